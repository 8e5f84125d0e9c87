"""How a number is made: what is fixed before anything is measured, and the line that says it.

Two numbers compare exactly if their lines are equal. A line names the set, its size, the frames,
their size and rate, the reference, the network and its hash, resizing, the distance, the sampler
and the seed; not what is measured (a tokenizer, a prior, a folder).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import VftError
from ..evaluation.learned import EPS, INTERVAL

LEAST, FEW = 32, 256  # clips: below, a distance of sets is refused; below, it is warned of
REFERENCES = ("raw", "autoencoder")

Line = dict[str, Any]  # the fields of a protocol line, in the order in which they are written


@dataclass(frozen=True)
class Protocol:
    """`frames` of each clip, from its beginning, at `fps`, brought to `size` px by cropping.

    `reference`: compare with the clips themselves ("raw") or with what the tokenizer's autoencoder
    alone makes of them ("autoencoder"), so that the autoencoder is not measured. `whole_psnr`: one
    mean square error a clip, else the mean of the frames' PSNRs. `padded_ssim`: zeros beyond the
    edge, else windows inside the picture only. `steps`, `guidance`, `apg`: of the flow decoder
    (None: the tokenizer's own); `plain`: euler at even steps whatever else is its own.
    `batch_noise`: a generator is seeded anew for each batch of `batch`
    clips, else each clip has its own. `pool`: clips of the reference at most; `counts`: how many
    are generated at a budget, where that differs; `prior_guidance`: (up to this budget, scale),
    None: the prior's own. `resamples`: sets that the bootstrap draws.
    """

    name: str = "vft"
    frames: int = 17
    size: int = 128
    fps: float = 8.0
    reference: str = "raw"
    whole_psnr: bool = False
    padded_ssim: bool = False
    steps: int | None = None
    guidance: float | None = None
    apg: bool | None = None
    plain: bool = False
    batch_noise: bool = False
    batch: int = 8
    seed: int = 0
    pool: int | None = None
    counts: tuple[tuple[int, int], ...] = ()
    prior_guidance: tuple[tuple[int, float], ...] | None = None
    resamples: int = 100

    def __post_init__(self) -> None:
        if self.reference not in REFERENCES:
            raise VftError(f"reference {self.reference!r}: choose one of {', '.join(REFERENCES)}")
        for name in ("frames", "size", "batch", "resamples"):
            if getattr(self, name) < 1:
                raise VftError(f"{name} is {getattr(self, name)}; choose 1 or more")
        if not 0 < self.fps <= 480:
            raise VftError(f"{self.fps:g} frames a second: choose more than 0 and up to 480")

    def but(self, **fields: Any) -> Protocol:
        """With the `fields` that are not None in place of its own; its name then says so."""
        given = {k: v for k, v in fields.items() if v is not None and v != getattr(self, k)}
        if not given:
            return self
        name = self.name if self.name.endswith("*") or self.name == "vft" else f"{self.name}*"
        return dataclasses.replace(self, name=name, **given)

    def generated(self, budget: int, captions: int) -> int:
        """How many clips are generated at a budget."""
        return dict(self.counts).get(budget, self.pool or captions)

    def guidance_of_prior(self, budget: int) -> float | None:
        """None: the prior's own."""
        if self.prior_guidance is None:
            return None
        return next(scale for most, scale in self.prior_guidance if budget <= most)

    def line(self, ids: Sequence[str], reference: str | None = None) -> Line:
        """What every measure's line begins with; `ids`: the names of the reference's clips."""
        return {
            "protocol": self.name,
            "set": f"{len(ids)} clips, list {digest_of(ids)}",
            "frames": f"{self.frames} of {self.size}x{self.size} px at {self.fps:g} fps, 8 bits",
            "reference": reference or self.reference,
        }

    def paired_line(self, measure: str) -> Line:
        """How PSNR and SSIM are computed."""
        if measure == "psnr":
            return {"psnr": "one mean square error a clip" if self.whole_psnr else "mean of frames"}
        where = "zero padding" if self.padded_ssim else "windows inside the picture"
        return {"ssim": f"11x11 Gaussian, sigma 1.5, values 0..1, {where}"}


SEMANTOK = Protocol(
    "semantok", 17, 128, 8.0, "autoencoder", whole_psnr=True, padded_ssim=True,
    steps=50, guidance=3.0, apg=True, plain=True, batch_noise=True, batch=8, pool=2048,
    counts=((1, 4096), (4, 3072)), prior_guidance=((4, 3.0), (63, 2.0), (1 << 30, 1.0)),
)  # fmt: skip
PROTOCOLS = {"vft": Protocol(), "semantok": SEMANTOK}


def protocol_named(name: str) -> Protocol:
    """VftError for a name that is none."""
    if name not in PROTOCOLS:
        raise VftError(f"protocol {name!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def bootstrap_line(resamples: int) -> str:
    share = INTERVAL[1] - INTERVAL[0]
    return f"{share:.0%} of a bootstrap over clips, {resamples} sets"


def frechet_line() -> str:
    return f"Fréchet, float64, unbiased covariance, eigh, eps {EPS:g}"


def text_of(line: Line) -> str:
    """A line as it is written."""
    return "; ".join(f"{key}: {value}" for key, value in line.items())


def digest_of(ids: Sequence[str]) -> str:
    """Names a list of clips."""
    text = "\n".join(ids).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:12]


def enough(count: int, what: str) -> str | None:
    """What is to be told of a distance between sets of `count` clips (the smaller of both): None
    for 256 and more. VftError below 32."""
    if count < LEAST:
        raise VftError(f"{what} of {count} clips is noise; give {LEAST} at least, better {FEW}")
    if count < FEW:
        return f"{what} of {count} clips is rough: look at the interval, or give {FEW} or more"
    return None
