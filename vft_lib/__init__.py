"""VideoFlexTok: a clip as a short row of tokens, coarse to fine.

    tok = vft_lib.load_tokenizer("default")
    tokens = tok.encode(vft_lib.read_video("clip.mp4", size=tok.config.size))
    video = tok.decode(tokens.truncate(8), seed=0)

Read `tokenizer/tokenizer.py` first; ARCHITECTURE.md says which room holds what.
"""

from .clips.cutting import join_tokens, slice_tokens
from .clips.stream import decode_file, encode_file, read_video
from .errors import CheckpointError, ConfigError, TokenFileError, VftError
from .models.loading import load_prior, load_tokenizer
from .prior.prior import Prior
from .tokenizer.tokenizer import Tokenizer
from .tokens import Tokens
from .video.video_out import write_video

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Prior",
    "TokenFileError",
    "Tokenizer",
    "Tokens",
    "VftError",
    "decode_file",
    "encode_file",
    "join_tokens",
    "load_prior",
    "load_tokenizer",
    "read_video",
    "slice_tokens",
    "write_video",
]
