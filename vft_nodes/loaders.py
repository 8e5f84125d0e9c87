"""Models: load a tokenizer, load a prior."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from comfy_api.latest import io

from ..vft_lib import Prior, Tokenizer, VftError, load_prior, load_tokenizer
from ..vft_lib.checkpoints.checkpoint import header_of
from ..vft_lib.config.prior import PriorConfig
from ..vft_lib.config.sampling import Quality
from ..vft_lib.config.tokenizer import TokenizerConfig
from ..vft_lib.files.tensor_files import Source
from ..vft_lib.models.loading import EMBEDDED, kind_of, resolve
from ..vft_lib.tokenizer.velocity import modulation_memory
from . import host
from .listed import stamp_model
from .resources import MEMORY, Resources, compile_input, facts_of, resource_inputs
from .types import WIRES, PriorType, TokenizerType, advanced, checked, schema

DEFAULT = "default"  # of the models that come with the pack
DTYPES = ["auto", "bfloat16", "float16", "float32"]
DEVICES = ["auto", "cpu"]


@dataclass
class LoadedTokenizer:
    """What travels along a VFT_TOKENIZER wire."""

    model: Tokenizer
    patcher: Any
    asked: Resources = field(default_factory=Resources)

    def ready(self, decoding: bool, low_memory: bool = False) -> Tokenizer:
        """The tokenizer on its device, with room for its work."""
        model, asked, passes = self.model, self.asked, 2 if decoding else 1
        at_once = model.limit_memory(MEMORY[asked.memory])
        if low_memory:  # no second pass beside the first, one latent frame at a time
            at_once = passes = 1
        each = model.chunk_memory() // model.config.latent_frames
        work = at_once * passes * each + (modulation_memory(model.decoder) if decoding else 0)
        host.load([self.patcher], work, whole=asked.whole)
        if asked.memory == "auto":
            model.limit_memory(host.free_memory(self.patcher.load_device) // passes)
        return model

    def told(self, text: str) -> str:
        """`text`, and a line on how the tokenizer ran."""
        return f"{text}\n{facts_of(self.model)}"


@dataclass
class LoadedPrior:
    """What travels along a VFT_PRIOR wire."""

    model: Prior
    patcher: Any
    tokenizer: LoadedTokenizer | None = None
    """For previews."""

    def ready(self, clips: int = 1) -> Prior:
        """The prior on its device, with room for its cache."""
        c = self.model.config
        cache = 2 * c.depth * 2 * clips * c.seq_len * c.width * self.model.dtype.itemsize
        host.load([self.patcher], 2 * cache, whole=True)
        return self.model

    def told(self, text: str) -> str:
        """`text`, and a line on how the prior ran."""
        return f"{text}\n{facts_of(self.model)}"


WIRES["VFT_TOKENIZER"] = lambda value: isinstance(value, LoadedTokenizer)
WIRES["VFT_PRIOR"] = lambda value: isinstance(value, LoadedPrior)


@lru_cache(maxsize=512)
def _read(path: str, *changes: int) -> tuple[str, dict[str, Any]]:
    """What a file holds, "" if it is no model; and what the page tells of such a model before it is
    loaded: nothing of a published file. Reads its header only."""
    try:
        source = Source.open(path)
        kind = kind_of(source)
    except (VftError, OSError):
        return "", {}
    try:
        _, text = header_of(source, kind)
        if kind == "prior":
            p = PriorConfig.from_json(text)
            return kind, {
                "registers": p.registers, "frames": p.frames, "temperature": p.temperature,
                "guidance": p.guidance,
            }  # fmt: skip
        t = TokenizerConfig.from_json(text)
        return kind, {
            "registers": t.registers, "fps": t.fps,
            "sampling": {
                q: {"steps": t.sampling.of(q).steps, "guidance": t.sampling.of(q).guidance}
                for q in get_args(Quality)
            },
        }  # fmt: skip
    except VftError:
        return kind, {}


def _changes(path: Path) -> tuple[int, int, int]:
    """What differs once a file has been written again. OSError if it is not there."""
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size


def holds_model(path: Path) -> bool:
    """Whether a file that is there can be loaded, as far as its header tells."""
    return bool(_read(str(path), *_changes(path))[0])


def models_of(kind: str) -> dict[str, dict[str, Any]]:
    """The embedded models and the files of this kind in the model folders; what `_read` tells of
    each."""
    models: dict[str, dict[str, Any]] = {DEFAULT: {}}
    for name in (*EMBEDDED[kind], *host.model_files()):
        try:
            path = file_of(name, kind)
            found, told = _read(str(path), *_changes(path))
        except (VftError, OSError):
            continue
        if found in (kind, ""):
            models[name] = told  # a damaged file is listed: choosing it says what is wrong
    return models


def _model_input(kind: str) -> io.Input:
    """The list of models, with what `web/models.js` reads of each."""
    models = models_of(kind)
    widget = io.Combo.Input(
        kind, options=list(models), default=DEFAULT,
        tooltip=f"'{DEFAULT}' comes with the pack; others lie in models/videoflextok.",
    )  # fmt: skip
    widget.extra_dict = {"vft_models": models}
    return widget


def file_of(name: str, kind: str) -> Path:
    embedded = name in tuple(EMBEDDED[kind])  # of a prompt, so anything at all
    return resolve(name, kind) if embedded else host.model_path(name)


def found(name: str | None, kind: str) -> bool | str:
    """What a loader's `validate_inputs` answers: True, or why `name` cannot be loaded. In place of
    ComfyUI's own look at the list, which knows one spelling of `folder/file` only. None: a link
    will bring the name."""
    try:
        if name is not None:
            file_of(name, kind)
    except VftError as e:
        return str(e)
    return True


def stamp(name: str | None, kind: str) -> str:
    """What a loader's `fingerprint_inputs` answers. None: a link brings the name."""
    return "" if name is None else stamp_model(file_of(name, kind))


def _about(path: Path, model: Tokenizer | Prior) -> str:
    licence = Source.open(path).metadata.get("license", "unknown")
    numbers = sum(v.numel() for v in model.state_dict().values())
    return (
        f"licence {licence} · {numbers / 1e6:.1f} M parameters, {path.stat().st_size / 1e6:.1f} MB "
        f"file · {facts_of(model)}"
    )


def _device_inputs() -> list[io.Input]:
    return [
        advanced(io.Combo.Input(
            "dtype", options=DTYPES, default="auto",
            tooltip="Number format of the weights. auto: bfloat16 where the card is fast at it, "
            "else float16; float32 on the CPU.",
        )),
        advanced(io.Combo.Input(
            "device", options=DEVICES, default="auto",
            tooltip="auto: the card that ComfyUI uses. cpu: leave the card to other models.",
        )),
    ]  # fmt: skip


class LoadTokenizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTLoadTokenizer", "Load VFT Tokenizer",
            description="Loads what turns a clip into tokens and tokens into a clip. 'default' "
            "comes with the pack: small (128 px), no download.",
            search_aliases=["videoflextok", "video tokenizer", "load vft"],
            inputs=[
                _model_input("tokenizer"),
                *_device_inputs(),
                *resource_inputs(),
            ],
            outputs=[
                TokenizerType.Output(display_name="tokenizer",
                                     tooltip="For Encode and Flow Decode."),
                io.String.Output(display_name="about",
                                 tooltip="Name, licence, size, device, number format, attention."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, tokenizer: str | None) -> bool | str:
        return found(tokenizer, "tokenizer")

    @classmethod
    def fingerprint_inputs(cls, tokenizer: str | None, **_: Any) -> str:
        return stamp(tokenizer, "tokenizer")

    @classmethod
    @checked
    def execute(cls, tokenizer: str, dtype: str, device: str, **asked: str | None) -> io.NodeOutput:
        path, how = file_of(tokenizer, "tokenizer"), Resources.of(asked)
        compute, rest, kind = host.place(device, dtype)
        model = load_tokenizer(path, device=rest, dtype=kind, ops=how.layers())
        refused = how.apply(model, compute)
        for problem in refused:
            host.log.warning("%s: %s", tokenizer, problem)
        c = model.config
        text = "\n".join([
            f"{c.name} · {c.size} px, {c.registers} tokens per latent frame, {c.fps:g} fps"
            + f" · student of {c.distilled} passes" * bool(c.distilled),
            _about(path, model), *refused,
        ])  # fmt: skip
        loaded = LoadedTokenizer(model, host.patcher(model, compute, rest), how)
        return io.NodeOutput(loaded, text, ui={"text": (text,)})


class LoadPrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTLoadPrior", "Load VFT Prior",
            description="Loads what writes tokens from words or a class, and adds detail to "
            "coarse tokens. 'default' comes with the pack and knows simple scenes.",
            search_aliases=["videoflextok prior", "text to video tokens", "load vft prior"],
            inputs=[
                _model_input("prior"),
                *_device_inputs(),
                TokenizerType.Input(
                    "tokenizer", optional=True,
                    tooltip="The tokenizer whose tokens it writes: checked, used for previews, and "
                    "needed by published priors.",
                ),
                compile_input("The step of one token"),
            ],
            outputs=[
                PriorType.Output(display_name="prior",
                                 tooltip="For Text-to-Token Prior, Class-to-Token Prior, Refine "
                                 "Tokens and Truncate Prefix."),
                io.String.Output(display_name="about",
                                 tooltip="Name, licence, size, device, number format, attention."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prior: str | None) -> bool | str:
        return found(prior, "prior")

    @classmethod
    def fingerprint_inputs(cls, prior: str | None, **_: Any) -> str:
        return stamp(prior, "prior")

    @classmethod
    @checked
    def execute(
        cls, prior: str, dtype: str, device: str, tokenizer: LoadedTokenizer | None = None,
        **asked: str | None,
    ) -> io.NodeOutput:  # fmt: skip
        path = file_of(prior, "prior")
        compute, rest, kind = host.place(device, dtype)
        model = Resources.of(asked).compiled(load_prior(path, device=rest, dtype=kind))
        model.device = compute
        if tokenizer is not None:
            model.bind(tokenizer.model)
        c = model.config
        takes = {"both": "captions and classes", "text": "text", "class": "classes"}
        text = (
            f"{c.name} · takes {takes.get(c.cond, c.cond)}, up to {c.registers} tokens per latent "
            f"frame, {c.frames} frames, for tokenizer {c.tokenizer}\n{_about(path, model)}"
        )
        loaded = LoadedPrior(model, host.patcher(model, compute, rest), tokenizer)
        return io.NodeOutput(loaded, text, ui={"text": (text,)})
