"""VideoFlexTok: a clip as a short row of tokens, coarse to fine.

    tok = vft_lib.load_tokenizer("default")
    tokens = tok.encode(vft_lib.read_video("clip.mp4", size=tok.config.size))
    video = tok.decode(tokens.truncate(8), seed=0)

Read `tokenizer/tokenizer.py` first; ARCHITECTURE.md says which room holds what.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, ConfigError, TokenFileError, VftError

if TYPE_CHECKING:
    from .clips.cutting import join_tokens, slice_tokens
    from .clips.stream import decode_file, encode_file, read_video
    from .models.loading import load_image_encoder, load_prior, load_tokenizer
    from .prior.prior import Prior
    from .shards.dataset import Shards
    from .tokenizer.sampling import Sampling
    from .tokenizer.tokenizer import Tokenizer
    from .tokens import Tokens
    from .video.video_out import write_video

_HOMES = {
    "Prior": "prior.prior", "Sampling": "tokenizer.sampling", "Shards": "shards.dataset",
    "Tokenizer": "tokenizer.tokenizer", "Tokens": "tokens",
    "decode_file": "clips.stream", "encode_file": "clips.stream", "read_video": "clips.stream",
    "join_tokens": "clips.cutting", "slice_tokens": "clips.cutting",
    "load_image_encoder": "models.loading",
    "load_prior": "models.loading", "load_tokenizer": "models.loading",
    "write_video": "video.video_out",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


__all__ = [
    "CheckpointError",
    "ConfigError",
    "Prior",
    "Sampling",
    "Shards",
    "TokenFileError",
    "Tokenizer",
    "Tokens",
    "VftError",
    "decode_file",
    "encode_file",
    "join_tokens",
    "load_image_encoder",
    "load_prior",
    "load_tokenizer",
    "read_video",
    "slice_tokens",
    "write_video",
]
