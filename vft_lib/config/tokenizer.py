"""The architecture is data: frozen configs that travel in the safetensors header.

A published checkpoint (d18-d28 at 256 px) and our default (64 px, trained on two CPU cores) are
the same classes built from two instances of :class:`TokenizerConfig`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from .fields import canonical, from_json, spelled_out
from .preview import PreviewConfig
from .sampling import MAX_STEPS, UNMEASURED, SamplingDefaults

# What a config may say; models that are published or trained here stay far below. A model is only
# described until its weights are known to be in the file, so these bound what a description costs.
MAX_SIZE = 4096  # pixels along a side
MAX_CHUNK = 1025  # frames
MAX_REGISTERS = 4096  # per latent frame
MAX_WIDTH = 1 << 16  # of a layer, and channels
MAX_DEPTH = 128  # blocks of a trunk; 28 are published
MAX_BLOCKS = 16  # on a level of the autoencoder
MAX_PATCH = 64  # latent pixels along an axis
MAX_POSITIONS = 1 << 14  # along an axis
MAX_LEVELS = 256  # of one FSQ channel
MIN_FPS, MAX_FPS = 1e-3, 1000.0

MaskMode = Literal[
    "full",
    "causal",
    "time_block_causal",
    "time_block_causal_last",
    "flexible_time_block_causal_last",
]
PosembKind = Literal["learnable_sum", "learnable_prod", "sincos"]
DecoderStep = Literal["posemb", "nested_dropout", "prefix_masking", "null_condition"]
FeatureAggregate = Literal["avg", "first"]
GlobalMode = Literal["per_frame", "frame0"]


@dataclass(frozen=True)
class VAEConfig:
    """Causal video autoencoder of the VidTok kind (microsoft/VidTok, arXiv 2412.13061).

    Space is halved at every level but the last, time at levels 1 and 2: 8x8 in space, 4 in time.
    The defaults are `vidtok_kl_causal_488_16chn`.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    latent_channels: int = 16


@dataclass(frozen=True)
class PosembConfig:
    """One table per axis, summed or multiplied over the grid; or a fixed 2-D sine-cosine grid."""

    max_sizes: tuple[int, ...]
    kind: PosembKind = "learnable_sum"
    interpolate: bool = False


@dataclass(frozen=True)
class MaskConfig:
    """Who sees whom in the packed sequence (see masks.py).

    The four switches are read by `flexible_time_block_causal_last` only. They say what a patch
    ("prefix") or a register ("nonprefix") sees of *earlier* latent frames.
    """

    mode: MaskMode = "time_block_causal"
    prefix2prefix: Literal["full", "none"] = "full"
    prefix2nonprefix: Literal["full", "none"] = "full"
    nonprefix2prefix: Literal["full", "none"] = "full"
    nonprefix2nonprefix: Literal["full", "none", "causal"] = "full"


@dataclass(frozen=True)
class TransformerConfig:
    """Width, depth and heads of one trunk. `modulation_kinds`: 0 none, 1 shared, 2 one set for
    patches and one for registers."""

    dim: int
    depth: int
    head_dim: int = 64
    mlp_ratio: float = 4.0
    modulation_kinds: int = 0

    @property
    def hidden(self) -> int:
        """Width of the gated MLP: int(2 * int(mlp_ratio * dim) / 3)."""
        return int(2 * int(self.mlp_ratio * self.dim) / 3)


@dataclass(frozen=True)
class EncoderConfig:
    """Latents -> registers -> codes before quantization.

    Of SemanTok's tokenizers: with `feature_channels` > 0 it also reads patch features of an image
    network (DINOv2) in front of the latents' channels, with `global_feature` > 0 vectors of that
    width, added to register 0. The patch features of a latent frame are the mean over its frames,
    or those of the first ("first"); its vector is its own, or that of frame 0 ("frame0"). Such a
    tokenizer decodes without them.

    `grid`: the codes are those of the patches, one for each in rows from the top, and there are no
    registers that read them: what such tokens are compared with.
    """

    trunk: TransformerConfig
    patch_size: tuple[int, int, int]
    patch_posemb: PosembConfig
    register_frames: int
    mask: MaskConfig = MaskConfig("time_block_causal_last")
    feature_channels: int = 0
    global_feature: int = 0
    feature_aggregate: FeatureAggregate = "avg"
    global_mode: GlobalMode = "per_frame"
    grid: bool = False

    @property
    def reads_images(self) -> bool:
        """Whether encoding needs features of an image network beside the latents."""
        return bool(self.feature_channels or self.global_feature)


@dataclass(frozen=True)
class DecoderConfig:
    """Codes + noisy latents -> velocity.

    `steps` is the order in which the registers are prepared: it decides whether masked registers
    carry a position, and so what may be collapsed. `nested_dropout` and `null_condition` are always
    there; `posemb` and `prefix_masking` may be missing, and then own no weights.
    """

    trunk: TransformerConfig
    patch_size: tuple[int, int, int]
    patch_posemb: PosembConfig
    register_posemb: PosembConfig
    steps: tuple[DecoderStep, ...] = (
        "posemb",
        "nested_dropout",
        "prefix_masking",
        "null_condition",
    )
    mask: MaskConfig = MaskConfig("time_block_causal")
    max_timestep: float = 1.0
    head_modulation: bool = True


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything needed to build a tokenizer and to cut clips into its chunks.

    `size` is the side of the square picture in pixels, `registers` is K, the largest budget per
    latent frame, `overlap` the number of frames shared by neighbouring chunks (0 or 1) and `fps`
    the frame rate that clips are sampled at unless the user says otherwise. `distilled`: how many
    passes without guidance the flow decoder was distilled to by `vft train distill` (0: it was
    not). Such a student has its teacher's name, fingerprint and ids. `preview`: of the preview
    decoder, an optional part (None: there is none).
    """

    name: str
    size: int
    registers: int
    vae: VAEConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    chunk_frames: int = 17
    overlap: int = 1
    fps: float = 8.0
    fsq_levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    sampling: SamplingDefaults = UNMEASURED
    distilled: int = 0
    preview: PreviewConfig | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.distilled <= MAX_STEPS:
            raise ConfigError(f"distilled is {self.distilled}; expected 0 to {MAX_STEPS} passes")
        if (self.chunk_frames - 1) % 4 or self.chunk_frames < 5:
            raise ConfigError(f"chunk_frames is {self.chunk_frames}; expected 1 + 4n with n >= 1")
        if self.overlap not in (0, 1):
            raise ConfigError(f"overlap is {self.overlap}; expected 0 or 1")
        if self.chunk_frames > MAX_CHUNK:
            raise ConfigError(f"chunk_frames is {self.chunk_frames}; expected at most {MAX_CHUNK}")
        if self.size % 8 or not 8 <= self.size <= MAX_SIZE:
            raise ConfigError(
                f"size is {self.size} px; expected a multiple of 8, at most {MAX_SIZE}"
            )
        if not 1 <= self.registers <= MAX_REGISTERS:
            raise ConfigError(f"registers is {self.registers}; expected 1 to {MAX_REGISTERS}")
        check_fps(self.fps)
        check_levels(self.fsq_levels)
        if len(self.vae.multipliers) != 4:
            raise ConfigError(f"multipliers are {self.vae.multipliers}; expected 4 of them")
        widths = [self.vae.width * m for m in self.vae.multipliers] + [self.vae.latent_channels]
        if not 0 < min(widths) <= max(widths) <= MAX_WIDTH:
            raise ConfigError(f"{self.vae}: a width is 0, or above {MAX_WIDTH}")
        blocks = self.vae.encoder_blocks, self.vae.decoder_blocks
        if not 0 < min(blocks) <= max(blocks) <= MAX_BLOCKS:
            raise ConfigError(f"{self.vae}: expected 1 to {MAX_BLOCKS} blocks on each level")
        for size in (self.encoder.patch_size, self.decoder.patch_size):
            if not 0 < min(size) <= max(size) <= MAX_PATCH:
                raise ConfigError(f"patch_size is {size}; expected 1 to {MAX_PATCH} on each axis")
        if not self.token_frames <= self.encoder.register_frames <= MAX_CHUNK:
            raise ConfigError(
                f"register_frames is {self.encoder.register_frames}; a chunk has "
                f"{self.token_frames} frames of registers, and {MAX_CHUNK} are the limit"
            )
        places = math.prod(self.size // 8 // p for p in self.encoder.patch_size[1:] if p)
        if self.encoder.grid and places != self.registers:
            raise ConfigError(
                f"registers is {self.registers}; a grid has one for each of {places} patches"
            )
        if max(self.encoder.feature_channels, self.encoder.global_feature) > MAX_WIDTH:
            raise ConfigError(f"the encoder's features are more than {MAX_WIDTH} wide")
        if self.encoder.global_feature and self.encoder.patch_size[0] > 1:
            raise ConfigError(
                f"patch size {self.encoder.patch_size}: a feature vector is one latent frame's"
            )
        steps = self.decoder.steps
        if len(set(steps)) != len(steps) or not {"nested_dropout", "null_condition"} <= {*steps}:
            raise ConfigError(
                f"decoder steps are {steps}; expected nested_dropout and null_condition, and "
                "posemb or prefix_masking if there, once each"
            )
        if self.decoder.max_timestep <= 0:
            raise ConfigError(f"max_timestep is {self.decoder.max_timestep}; expected above 0")
        for side in (self.encoder, self.decoder):
            self._check_side(side)

    def _check_side(self, side: EncoderConfig | DecoderConfig) -> None:
        trunk, grid = side.trunk, self.size // 8
        span = side.patch_size[0]
        if span != self.encoder.patch_size[0] or span < 1 or self.latent_frames % span:
            raise ConfigError(
                f"patch size {side.patch_size}: encoder and decoder patches must span the same "
                f"number of latent frames, and divide the {self.latent_frames} of a chunk"
            )
        if span > 1 and self.overlap:
            raise ConfigError(
                f"patch size {side.patch_size}: chunks cannot overlap by one frame where a patch "
                f"spans {span} latent frames"
            )
        if any(p < 1 or grid % p for p in side.patch_size[1:]):
            raise ConfigError(f"patch size {side.patch_size} does not divide the {grid} px latent")
        if trunk.dim > MAX_WIDTH:
            raise ConfigError(f"dim is {trunk.dim}; expected at most {MAX_WIDTH}")
        if trunk.head_dim < 1 or trunk.dim < 1 or trunk.dim % trunk.head_dim:
            raise ConfigError(f"dim {trunk.dim} is not a multiple of head_dim {trunk.head_dim}")
        if trunk.depth > MAX_DEPTH or trunk.mlp_ratio > 64 or trunk.modulation_kinds > 2:
            raise ConfigError(
                f"{trunk}: expected depth up to {MAX_DEPTH}, mlp_ratio up to 64, modulation_kinds "
                "up to 2"
            )
        if trunk.hidden < 1:
            raise ConfigError(f"mlp_ratio is {trunk.mlp_ratio}: the MLP has no width")
        for posemb in (side.patch_posemb, getattr(side, "register_posemb", side.patch_posemb)):
            sizes = posemb.max_sizes or (0,)
            if not 0 < min(sizes) <= max(sizes) <= MAX_POSITIONS:
                raise ConfigError(
                    f"position table of sizes {sizes}; expected 1 to {MAX_POSITIONS} each"
                )
            if posemb.kind == "sincos" and (len(sizes) < 2 or trunk.dim % 4):
                raise ConfigError(f"sincos positions need two axes and a width of 4n: {posemb}")

    @property
    def latent_frames(self) -> int:
        """Latent frames per chunk: 1 + (chunk_frames - 1) / 4."""
        return 1 + (self.chunk_frames - 1) // 4

    @property
    def token_frames(self) -> int:
        """Rows of ids per chunk: one per latent frame, unless patches span several."""
        return self.latent_frames // self.encoder.patch_size[0]

    @property
    def budgets(self) -> list[int]:
        """The budgets that are shown and measured: 1, 2, 4 … and K itself."""
        powers = [1 << i for i in range(self.registers.bit_length())]
        return [k for k in powers if k < self.registers] + [self.registers]

    @property
    def stride(self) -> int:
        """New frames that each chunk after the first contributes."""
        return self.chunk_frames - self.overlap

    @property
    def vocab(self) -> int:
        """Number of different ids: 8*8*8*5*5*5 = 64,000; one id is less than 65,536: two bytes."""
        return math.prod(self.fsq_levels)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(channels, t, h, w) of one chunk's latents."""
        side = self.size // 8
        return self.vae.latent_channels, self.latent_frames, side, side

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no white space. Without an entry for a part that is not
        there: such a file is the same to the byte, and programs from before the part read it."""
        data = dataclasses.asdict(self)
        return canonical({k: v for k, v in data.items() if k != "preview" or v is not None})

    def identity(self) -> str:
        """Canonical JSON of what ids depend on, and fingerprints are made of: no name, frame rate,
        sampling defaults, distillation or preview decoder, and no entry that stands at its default,
        so that later entries change nothing."""
        free = {"name", "fps", "sampling", "distilled", "preview"}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept = {k: spelled_out(v) for k, v in own.items() if k not in free}
        return canonical(kept)

    @staticmethod
    def from_json(text: str) -> TokenizerConfig:
        """Inverse of :meth:`to_json`. Unknown, missing or ill-typed entries raise ConfigError."""
        return from_json(TokenizerConfig, text, "tokenizer")


def check_fps(fps: float) -> None:
    """ConfigError unless it is a frame rate."""
    if not MIN_FPS <= fps <= MAX_FPS:
        raise ConfigError(f"fps is {fps}; expected {MIN_FPS} to {MAX_FPS:g}")


def check_levels(levels: tuple[int, ...]) -> None:
    """ConfigError unless these are FSQ levels whose ids are two bytes."""
    each = levels or (0,)
    if not 2 <= min(each) <= max(each) <= MAX_LEVELS or math.prod(levels) > 1 << 16:
        raise ConfigError(
            f"fsq_levels are {levels}; expected 2 to {MAX_LEVELS} each, and a product of at most "
            "65,536: an id is two bytes"
        )
