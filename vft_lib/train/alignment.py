"""A second teacher for the tokenizer: what procedural clips are known to show.

The flow loss alone spends the first tokens on what moves most pixels. Shape and motion of the main
object move few, and say most of what a caption says. So heads that are dropped after training are
held to the truth, which the world tells for free. The tokens that a clip keeps must say the main
object's colour, shape and motion; the decoder's last hidden state must show the same three, and the
object's outline. (The paper aligns hidden states with features of a vision network for the same
end, as REPA does, arXiv 2410.06940.) Real clips have no such truth and teach by the flow loss
alone.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..config.tokenizer import TokenizerConfig
from ..evaluation.probe import LABELS, UNKNOWN, labels_of
from ..world import world
from .data import Window


class Alignment(nn.Module):
    """The heads, and the truth about each of `sources`."""

    masks: Tensor
    """`[N,t,2,size/2,size/2]` uint8, see :func:`outlines`."""
    labels: dict[str, Tensor]
    """Class numbers `[N]` by label, UNKNOWN for real clips."""

    def __init__(
        self, config: TokenizerConfig, sources: list[Window | int], width: int = 512
    ) -> None:  # fmt: skip
        super().__init__()
        c = config
        scenes = [world.draw_scene(s) if isinstance(s, int) else None for s in sources]
        self.masks = outlines(scenes, c.latent_frames, c.size)
        self.labels = labels_of(scenes)
        _, ph, pw = c.decoder.patch_size
        half = c.size // 2 // c.latent_shape[-1]  # mask pixels a side of a latent cell
        self.outline = nn.Linear(c.decoder.trunk.dim, 2 * ph * half * pw * half)
        self.tokens = nn.Linear(c.latent_frames * c.registers * len(c.fsq_levels), width)
        self.said = nn.ModuleDict({k: nn.Linear(width, len(v)) for k, v in LABELS.items()})
        width = c.decoder.trunk.dim
        self.shown = nn.ModuleDict({k: nn.Linear(width, len(v)) for k, v in LABELS.items()})

    def touched(self, index: Tensor, h: int, w: int, device: torch.device) -> Tensor:
        """1 where a latent cell `[B,1,t,h,w]` of clips `index` `[B]` holds some of the main object,
        else 0."""
        masks = self.masks[index].to(device)
        return (F.adaptive_max_pool2d(masks.amax(2).float(), (h, w)) > 0).float()[:, None]

    def outline_loss(self, hidden: Tensor, index: Tensor) -> Tensor:
        """Cross-entropy of the outlines that hidden patches `[B,t,h',w',d]` draw."""
        mask = self.masks[index].to(hidden.device).float() / 255
        missed = F.binary_cross_entropy_with_logits(self.drawn(hidden), mask, reduction="none")
        known = self.labels["shape"][index].to(hidden.device) != UNKNOWN
        return (missed.flatten(1).mean(1) * known).sum() / known.sum().clamp_min(1)

    def drawn(self, hidden: Tensor) -> Tensor:
        """Hidden patches `[B,t,h',w',d]` -> logits of the masks `[B,t,2,H,W]`."""
        side = self.masks.shape[-1] // hidden.shape[2]
        logits = self.outline(hidden).float().unflatten(-1, (2, side, side))
        return rearrange(logits, "b t h w f y x -> b t f (h y) (w x)")

    def said_losses(self, codes: Tensor, keep: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Cross-entropy by label, in nats, of what the first `keep` `[B]` codes of each latent
        frame (`[B,t,K,6]`) say; 0 for a batch of real clips."""
        kept = torch.arange(codes.shape[2], device=codes.device) < keep[:, None]
        x = F.silu(self.tokens((codes * kept[:, None, :, None]).flatten(1)))
        return {k: self._missed(k, head(x), index) for k, head in self.said.items()}

    def shown_losses(self, hidden: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The same of what the decoder's hidden patches `[B,t,h',w',d]` are of, in their mean."""
        x = hidden.mean((1, 2, 3))
        return {k: self._missed(k, head(x), index) for k, head in self.shown.items()}

    def _missed(self, name: str, logits: Tensor, index: Tensor) -> Tensor:
        truth = self.labels[name][index].to(logits.device)
        missed = F.cross_entropy(logits.float(), truth, ignore_index=UNKNOWN, reduction="sum")
        return missed / (truth != UNKNOWN).sum().clamp_min(1)


def outlines(scenes: list[world.Scene | None], latent_frames: int, size: int) -> Tensor:
    """Main objects' masks `[N,t,2,size/2,size/2]` uint8 (255: all of a pixel), the last and the
    middle of the frames that a latent frame stands for; nothing where there is no scene."""
    masks = torch.zeros(len(scenes), latent_frames, 2, size // 2, size // 2, dtype=torch.uint8)
    last = 4 * torch.arange(latent_frames)
    shown = torch.stack([(last - 2).clamp_min(0), last], 1)  # (t, 2)
    for i, scene in enumerate(tqdm(scenes, desc="outlines", mininterval=1)):
        if scene is not None:
            mask = scene.mask(int(last[-1]) + 1, size // 2)
            masks[i] = torch.from_numpy(mask)[shown]
    return masks
