"""How close two videos are: PSNR and SSIM, frame by frame, so that long clips need little memory.

SSIM is Wang et al. 2004 (IEEE TIP 13(4)): Gaussian window 11x11 with sigma 1.5, K1 = 0.01,
K2 = 0.03, only windows that lie inside the picture, on R, G and B separately, then averaged.
It depends on where black lies: pictures in [-1,1] are brought to [0,1] first, as the field has it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import VftError

RANGE = 2.0  # from -1 to 1
BEST_PSNR = 100.0  # dB, given to equal frames instead of infinity, which JSON cannot say
_WINDOW, _SIGMA = 11, 1.5


class Quality:
    """Means over the frames of a clip that comes in pieces.

    `update(a, b)` takes float `[3,T,H,W]` in [-1,1], any T >= 1, any device; `psnr` (dB, at most
    100 a frame) and `ssim` (at most 1) are the means over all `frames` so far.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._psnr = self._ssim = 0.0

    def update(self, a: Tensor, b: Tensor) -> None:
        """Raises VftError unless both are float `[3,T,H,W]` of one shape."""
        _check(a, b)
        a, b = a.detach().float(), b.detach().float().to(a.device)
        self.frames += a.shape[1]
        self._psnr += float(_frame_psnr(a, b).sum())
        self._ssim += float(_frame_ssim(a, b).sum())

    @property
    def psnr(self) -> float:
        """Mean PSNR in dB. Raises VftError before the first frame."""
        return self._psnr / self._count()

    @property
    def ssim(self) -> float:
        """Mean SSIM. Raises VftError before the first frame."""
        return self._ssim / self._count()

    def _count(self) -> int:
        if not self.frames:
            raise VftError("no frames were compared; update() with one or more")
        return self.frames


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.shape[0] != 3 or not a.numel():
        raise VftError(
            f"got videos of shape {list(a.shape)} and {list(b.shape)}; expected two [3,T,H,W] "
            "of one shape: bring them to one size and length first"
        )


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean PSNR in dB over the frames of two float `[3,T,H,W]` in [-1,1]; see `Quality`."""
    quality = Quality()
    quality.update(a, b)
    return quality.psnr


def ssim(a: Tensor, b: Tensor, padded: bool = False) -> float:
    """Mean SSIM over the frames of two float `[3,T,H,W]` in [-1,1]: over windows inside the
    picture, or, `padded`, over a window around every pixel, black (zero) beyond the edge. A picture
    smaller than the window shrinks the window to its shorter side, unless padded."""
    _check(a, b)
    return float(_frame_ssim(a.float(), b.float().to(a.device), padded).mean())


def whole_psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of two float `[3,T,H,W]` in [-1,1] from one mean square error over the clip, at
    most 100. Of frames that differ in quality it is less than the mean of their PSNRs."""
    error = (a.float() - b.float()).square().mean()
    return float((10 * torch.log10(RANGE**2 / error)).clamp(max=BEST_PSNR))


def _frame_psnr(a: Tensor, b: Tensor) -> Tensor:
    error = (a - b).square().mean(dim=(0, 2, 3))  # (T,)
    return (10 * torch.log10(RANGE**2 / error)).clamp(max=BEST_PSNR)


def _frame_ssim(a: Tensor, b: Tensor, padded: bool = False) -> Tensor:
    """`padded`: with zeros, so that there is a window around every pixel."""
    a, b = (a + 1) / 2, (b + 1) / 2
    window = _WINDOW if padded else min(_WINDOW, *a.shape[2:])
    x = torch.arange(window, device=a.device) - (window - 1) / 2
    g = torch.exp(-x.square() / (2 * _SIGMA**2))
    weights = (g / g.sum()).tolist()

    def blur(v: Tensor) -> Tensor:
        v = v.flatten(0, 1)  # (3·T, H, W)
        if padded:
            v = F.pad(v, (window // 2,) * 4)
        for dim in (1, 2):  # shifted and added: 15 times as fast on a CPU as a convolution
            inside = v.shape[dim] - window + 1
            total = v.narrow(dim, 0, inside) * weights[0]
            for i, weight in enumerate(weights[1:], 1):
                total.add_(v.narrow(dim, i, inside), alpha=weight)
            v = total
        return v

    mean_a, mean_b = blur(a), blur(b)
    var_a = blur(a * a) - mean_a.square()
    var_b = blur(b * b) - mean_b.square()
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    score = score / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))
    return score.mean(dim=(1, 2)).view(3, -1).mean(0)  # (T,)
