"""The ComfyUI node pack: nodes translate, `vft_lib` does the work.

`loaders.py`, `download.py` models · `tokenizing.py` encode, decode · `generate.py` the prior ·
`files.py` token files, truncate, cut and join · `show.py` sweep and info. `host.py` alone talks to
ComfyUI.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import host
from .download import DownloadModel
from .files import JoinTokens, LoadTokens, SaveTokens, SliceTokens, TruncatePrefix
from .generate import ClassToTokens, RefineTokens, TextToTokens
from .loaders import LoadPrior, LoadTokenizer
from .show import BudgetSweep, ExampleClip, TokensInfo
from .tokenizing import Encode, FlowDecode

NODES: list[type[io.ComfyNode]] = [
    LoadTokenizer, LoadPrior, DownloadModel, Encode, TruncatePrefix, FlowDecode, TextToTokens,
    ClassToTokens, RefineTokens, SaveTokens, LoadTokens, JoinTokens, SliceTokens, BudgetSweep,
    TokensInfo, ExampleClip,
]  # fmt: skip


class VideoFlexTokExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> VideoFlexTokExtension:
    host.add_model_folder()  # ComfyUI 0.8 and before never call an extension's on_load
    return VideoFlexTokExtension()
