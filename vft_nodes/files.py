"""Token files in and out; tokens cut to a budget, and cut and joined in time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..vft_lib import Tokens, VftError
from ..vft_lib.clips.adaptive import truncate_adaptive
from ..vft_lib.clips.cutting import join_tokens, slice_tokens
from ..vft_lib.errors import one_line
from ..vft_lib.files.packaged import packaged
from ..vft_lib.prior.prior import bits_budget
from . import host
from .listed import TokenFiles, spellings, stamp_tokens
from .loaders import LoadedPrior, LoadedTokenizer
from .tokenizing import per_frame, shown, summary
from .types import PriorType, TokenizerType, TokensType, advanced, checked, schema

SUFFIX = ".vft"
EXAMPLE = "example.vft [pack]"  # comes with the pack
OUTPUT = " [output]"
MAX_NOTES = 1 << 22  # characters of the workflow that goes with tokens
_FILES = TokenFiles(SUFFIX)


def file_names() -> list[str]:
    """What Load Tokens offers: uploads, then what Save Tokens wrote, then the example."""
    uploads, saved = (_FILES.below(host.folder(kind)) for kind in ("input", "output"))
    return [*uploads, *(name + OUTPUT for name in saved), EXAMPLE]


def token_file(name: str) -> Path:
    """The file of a name that :func:`file_names` lists; VftError for one outside of ComfyUI's
    folders or that is not there."""
    if name == EXAMPLE:
        return packaged("example.vft")
    if not isinstance(name, str):
        raise VftError(f"a token file's name is a text, got {type(name).__name__}")
    kind = "output" if name.endswith(OUTPUT) else "input"
    for spelled in spellings(name.removesuffix(OUTPUT)):
        path = host.confined(spelled, kind)
        if os.path.isfile(path) and path.suffix.lower() == SUFFIX:
            return path
    raise VftError(f"no token file {name!r}: upload it, or put it into ComfyUI's {kind} folder")


class SaveTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTSaveTokens", "VFT Save Tokens",
            description="Writes a .vft file to share: a few hundred bytes of tokens, plus the "
            "workflow (some 10 kB), as in images. Drop it on the canvas to load it.",
            search_aliases=["videoflextok save", "export tokens"],
            is_output_node=True,
            inputs=[
                TokensType.Input("tokens", tooltip="One clip's tokens."),
                io.String.Input("filename_prefix", default="videoflextok/clip",
                                tooltip="Below ComfyUI's output folder; a number is added."),
            ],
            outputs=[TokensType.Output(display_name="tokens",
                                       tooltip="The same tokens.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(cls, tokens: Tokens, filename_prefix: str) -> io.NodeOutput:
        path, subfolder = host.output_path(filename_prefix, SUFFIX)
        notes = {}
        if host.metadata_allowed():
            more = cls.hidden.extra_pnginfo
            notes = {"prompt": cls.hidden.prompt, **(more if isinstance(more, dict) else {})}
        kept = {k: json.dumps(v) for k, v in notes.items() if v is not None}
        large = sum(map(len, kept.values())) > MAX_NOTES
        tokens.save(path, {} if large else kept)
        text = f"{path.name}: {path.stat().st_size:,} B\n{summary(tokens)}"
        text += "\nwithout the workflow, which is larger than 4 MB" * large
        saved = {"filename": path.name, "subfolder": subfolder, "type": "output"}
        return io.NodeOutput(tokens, ui={**shown(tokens, text), "vft": [saved]})


class LoadTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTLoadTokens", "VFT Load Tokens",
            description="Reads a .vft file. The file names the tokenizer that made it; Flow Decode "
            "refuses any other.",
            search_aliases=["videoflextok load", "import tokens", ".vft"],
            inputs=[
                io.Combo.Input(
                    "file", options=file_names(),
                    tooltip="Uploaded files, files that Save Tokens wrote [output], and the "
                    "example of the pack.",
                ),
            ],
            outputs=[TokensType.Output(display_name="tokens",
                                       tooltip="For Flow Decode.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        # Naming `file` here switches ComfyUI's own list check off: an upload is not in the list.
        # None: a link will bring the name.
        try:
            if file is not None:
                token_file(file)
        except VftError as e:
            return str(e)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str:
        return "" if file is None else stamp_tokens(token_file(file))

    @classmethod
    @checked
    def execute(cls, file: str) -> io.NodeOutput:
        tokens = Tokens.load(token_file(file))
        text = f"{summary(tokens)}\nof tokenizer {tokens.tokenizer} ({tokens.fingerprint})"
        return io.NodeOutput(tokens, ui=shown(tokens, text))


BY = ["tokens per frame", "tokens in all", "bytes", "information"]


class TruncatePrefix(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTTruncate", "VFT Truncate Prefix",
            description="Keeps the first tokens of every latent frame: the coarse part of the "
            "clip. Nothing is encoded again; instant, unless a prior judges ('information', "
            "'adaptive').",
            search_aliases=[
                "token budget", "fewer tokens", "adaptive budget", "videoflextok truncate",
            ],
            inputs=[
                TokensType.Input("tokens", tooltip="From VFT Encode, or any node with tokens."),
                io.Combo.Input(
                    "by", options=BY, default=BY[0],
                    tooltip="What the budget counts. 'information' ignores it: a prior finds the "
                    "smallest budget that keeps the share below.",
                ),
                io.Int.Input(
                    "budget", default=8, min=1, max=1 << 30,
                    tooltip="Tokens per latent frame, or tokens or bytes of the whole clip.",
                ),
                advanced(io.Float.Input(
                    "keep_bits", default=0.9, min=0.01, max=1.0, step=0.01,
                    tooltip="With 'information': the share of the clip's bits to keep. Tokens "
                    "beyond those that the prior knows (16 for the default) count like the last.",
                )),
                PriorType.Input("prior", optional=True,
                                tooltip="For 'information' and 'adaptive'."),
                io.Boolean.Input(
                    "adaptive", default=False, optional=True,
                    tooltip="More tokens where more happens, by the prior's surprise, at the same "
                    "size of the whole clip. 'tokens per frame' is then the mean.",
                ),
            ],
            outputs=[
                TokensType.Output(display_name="tokens", tooltip="The tokens kept."),
                io.Int.Output(display_name="budget",
                              tooltip="How many per latent frame, at most."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, tokens: Tokens, by: str, budget: int, keep_bits: float,
        prior: LoadedPrior | None = None, adaptive: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        work = host.Work(cls.hidden)
        if adaptive:
            if prior is None:
                raise VftError("'adaptive' needs a prior: connect Load VFT Prior")
            sizes: dict[str, dict[str, Any]] = {
                "information": {"keep_bits": keep_bits}, "bytes": {"id_bytes": budget},
                "tokens in all": {"count": budget},
            }  # fmt: skip
            size = sizes.get(by, {})
            if not size:
                tokens.truncate(budget)  # a mean beyond what there is, is refused in its words
                size = {"count": budget * len(tokens.rows)}
            kept = truncate_adaptive(prior.ready(), tokens, **size, progress=work)
            return io.NodeOutput(kept, kept.budget, ui=shown(kept))
        if by == "information":
            if prior is None:
                raise VftError("'information' needs a prior: connect Load VFT Prior")
            bits = prior.ready().surprise(tokens, progress=work)
            budget = bits_budget(bits[0], keep_bits)
        elif by == "tokens in all":
            budget = tokens.budget_within(count=budget)
        elif by == "bytes":
            budget = tokens.budget_within(id_bytes=budget)
        kept = tokens.truncate(budget)
        return io.NodeOutput(kept, budget, ui=shown(kept))


class JoinTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTJoinTokens", "VFT Join Tokens",
            description="One clip after the other, as tokens. Each keeps its budget.",
            search_aliases=["concatenate tokens", "videoflextok join"],
            inputs=[
                TokenizerType.Input("tokenizer", tooltip="The one that made the tokens."),
                TokensType.Input("first", tooltip="The earlier clip."),
                TokensType.Input("second", tooltip="The later clip, of the same frame rate."),
                io.Combo.Input(
                    "unfinished_chunk", options=["hold the last frame", "drop"],
                    default="hold the last frame",
                    tooltip="Tokens come in chunks (17 frames for the default). If the first clip "
                    "ends within one: hold its last frame to the chunk's end, or drop that chunk.",
                ),
            ],
            outputs=[TokensType.Output(display_name="tokens", tooltip="Both clips.")],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, tokenizer: LoadedTokenizer, first: Tokens, second: Tokens, unfinished_chunk: str
    ) -> io.NodeOutput:
        joined = join_tokens(
            tokenizer.model, [first, second], drop_partial=unfinished_chunk == "drop"
        )
        return io.NodeOutput(joined, ui=shown(joined))


class SliceTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTSliceTokens", "VFT Slice Tokens",
            description="A part of a clip, as tokens, in whole chunks (about 2 s for the default).",
            search_aliases=["cut tokens", "trim tokens", "videoflextok slice"],
            inputs=[
                TokenizerType.Input("tokenizer", tooltip="The one that made the tokens."),
                TokensType.Input("tokens", tooltip="The whole clip."),
                io.Int.Input("first_chunk", default=0, min=0, max=1_000_000,
                             tooltip="Where to begin; 0: the beginning."),
                io.Int.Input("chunks", default=0, min=0, max=1_000_000,
                             tooltip="How many; 0: all that follow."),
            ],
            outputs=[TokensType.Output(display_name="tokens", tooltip="The part.")],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, tokenizer: LoadedTokenizer, tokens: Tokens, first_chunk: int, chunks: int
    ) -> io.NodeOutput:
        model = tokenizer.model
        part = slice_tokens(model, tokens, first_chunk, chunks or None)
        begin = first_chunk * model.config.stride / tokens.fps
        text = (
            f"chunks {first_chunk} to {first_chunk + model.chunk_count(part.frames) - 1} of "
            f"{model.chunk_count(tokens.frames)}: {begin:.1f} s to {begin + part.seconds:.1f} s\n"
            f"{summary(part)}"
        )
        return io.NodeOutput(part, ui=shown(part, text))


def node_facts(tokens: Tokens) -> dict[str, Any]:
    """What Tokens Info shows, by name."""
    return {
        "tokenizer": f"{tokens.tokenizer} ({tokens.fingerprint})",
        "grid": f"{tokens.ids.shape[1]} latent frames × {per_frame(tokens)} tokens",
        "tokens": f"{tokens.count:,}", "bytes": f"{tokens.id_bytes:,}",
        "clip": f"{tokens.frames} frames at {tokens.fps:g} fps, {tokens.seconds:.2f} s",
        "bits per second": f"{8 * tokens.id_bytes / tokens.seconds:,.0f}",
        "picture": f"{tokens.size[1]}×{tokens.size[0]} px, {tokens.fit}"
        + (f" of {tokens.source_size[1]}×{tokens.source_size[0]}" if tokens.source_size else ""),
        "source": one_line(tokens.source or "unknown"),
    }  # fmt: skip
