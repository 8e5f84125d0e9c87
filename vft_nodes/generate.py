"""The prior: words or a class to tokens, and detail for coarse tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..vft_lib import Prior, Tokens, VftError
from ..vft_lib.video.frames import to_frames
from ..vft_lib.world.world import MOTIONS
from . import host
from .loaders import LoadedPrior
from .tokenizing import shown, summary
from .types import PriorType, TokensType, advanced, checked, schema, seed_input

PREVIEW_STEPS = 4  # of the decoder


def _sampling_inputs(what: str = "words are") -> list[io.Input]:
    return [
        seed_input(),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip=f"How strongly the {what} followed; 1: no guidance. 0 (auto): what suits the "
            "budget.",
        ),
        advanced(
            io.Float.Input(
                "temperature",
                default=-1.0,
                min=-1.0,
                max=2.0,
                step=0.01,
                tooltip="Below 1: safer choices. 0: always the likeliest token. -1 (auto): what "
                "the prior was measured best at.",
            )
        ),
        advanced(
            io.Int.Input(
                "top_k",
                default=0,
                min=0,
                max=65536,
                tooltip="Choose among the k likeliest tokens only; 0: among all.",
            )
        ),
        advanced(
            io.Float.Input(
                "top_p",
                default=1.0,
                min=0.01,
                max=1.0,
                step=0.01,
                tooltip="Choose among the likeliest tokens that together have this probability.",
            )
        ),
    ]


def _sampling(seed: int, guidance: float, temperature: float, top_k: int, top_p: float) -> dict:
    return {
        "seed": [seed], "guidance": guidance or None,
        "temperature": None if temperature < 0 else temperature,
        "top_k": top_k or None, "top_p": top_p if top_p < 1 else None,
    }  # fmt: skip


def _budget_input(tooltip: str) -> io.Input:
    return io.Int.Input("budget", default=8, min=1, max=4096, tooltip=tooltip)


def _words(prior: LoadedPrior, prompt: str, clip: Any, conditioning: Any) -> dict[str, Any]:
    """What the prior's `generate` and `refine` take for a prompt: its own text encoder's caption,
    or text states from elsewhere."""
    c = prior.model.config
    if prior.model.text is not None and (clip is not None or conditioning is not None):
        raise VftError(
            f"prior {c.name!r} reads the prompt itself: disconnect clip and conditioning"
        )
    if conditioning is None and clip is not None and prompt.strip():  # else no caption at all
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    if conditioning is not None:
        if len(conditioning) != 1:
            raise VftError(
                f"got a conditioning of {len(conditioning)} parts; connect the text encoder "
                "directly, without combining"
            )
        states = conditioning[0][0] if isinstance(conditioning[0], (list, tuple)) else None
        if not isinstance(states, Tensor) or not states.is_floating_point():
            raise VftError("got a conditioning without text states: connect a text encoder")
        if not states.isfinite().all():
            raise VftError(
                "the text states hold NaN or infinity: start ComfyUI with --fp32-text-enc, or use "
                "another umT5 file"
            )
        if states.ndim != 3 or states.shape[-1] != c.ctx_dim:
            raise VftError(
                f"this conditioning is {list(states.shape)}, prior {c.name!r} takes [1,n,"
                f"{c.ctx_dim}]: load umt5_xxl with Load CLIP, type wan"
            )
        return {"states": states, "mask": states.abs().sum(-1) > 0}
    if not prompt.strip():
        return {}
    if c.takes_text and prior.model.text is None:
        raise VftError(
            f"prior {c.name!r} has no text encoder of its own: connect clip (Load CLIP: umt5_xxl, "
            "type wan)"
        )
    return {"caption": prompt}


def _written(
    prior: LoadedPrior, work: host.Work, preview: bool, write: Callable[..., Tokens]
) -> io.NodeOutput:
    """What a node gives back, of tokens that `write(model, progress=, partial=)` makes; a second
    try, without previews, where memory runs out."""

    def attempt(low_memory: bool) -> Tokens:
        show = _partial(prior, work) if preview and not low_memory else None
        return write(prior.ready(2), progress=work, partial=show)

    advice = "choose bfloat16 or the CPU in Load VFT Prior, or a smaller prior"
    tokens = host.with_retry(work, attempt, advice)
    return io.NodeOutput(tokens, ui=shown(tokens, prior.told(summary(tokens))))


def _partial(prior: LoadedPrior, work: host.Work) -> Any:
    """A preview of the first chunk each time the tokens have doubled; None without a tokenizer."""
    if prior.tokenizer is None:
        return None
    loaded = prior.tokenizer

    def show(tokens: Tokens) -> None:
        if tokens.budget & (tokens.budget - 1) == 0:
            # Both: alone, the tokenizer could push out the prior that is at work.
            host.load([prior.patcher, loaded.patcher], loaded.model.chunk_memory())
            c = loaded.model.config
            t, length = c.latent_frames, min(tokens.frames, c.chunk_frames)
            first = tokens.with_ids(tokens.ids[:, :t], tokens.rows[:t], frames=length)
            model = loaded.model
            video = model.decode(first, steps=PREVIEW_STEPS, guidance=1.0, quality="draft")
            frames = list(to_frames(video[0]))
            work.show(frames[len(frames) // 2])

    return show


def _preview_input() -> io.Input:
    """Behind all others: widgets of saved workflows keep their places."""
    return advanced(io.Boolean.Input(
        "preview", default=True, optional=True,
        tooltip="With a tokenizer connected to Load VFT Prior: decode the first chunk each time "
        "the tokens have doubled, and show a frame of it.",
    ))  # fmt: skip


def _frames_input(**more: Any) -> io.Input:
    return advanced(io.Int.Input(
        "frames", default=0, min=0, max=100_000,
        tooltip="Length in frames; 0 (auto): the longest that the prior writes.", **more,
    ))  # fmt: skip


def _text_inputs(prompt: str) -> list[io.Input]:
    return [
        io.String.Input(
            "prompt",
            multiline=True,
            default=prompt,
            dynamic_prompts=True,
            tooltip="What the clip shows. The default prior follows colours and, about half of the "
            "time, motions; shapes hardly. Clips of 17 frames follow words better than long ones. "
            "Empty: anything.",
        ),
    ]


def _encoder_inputs() -> list[io.Input]:
    return [
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="For published priors: the umT5-XXL of Wan (Load CLIP, type wan).",
        ),
        io.Conditioning.Input(
            "conditioning",
            optional=True,
            tooltip="For published priors, in place of prompt and clip: umT5-XXL text states.",
        ),
    ]


class TextToTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTTextToTokens", "VFT Text-to-Token Prior",
            description="Writes tokens from words, coarse to fine. Stop at a small budget for a "
            "sketch; Refine Tokens goes on from there.",
            search_aliases=["text to video", "videoflextok prior", "prompt to tokens"],
            essentials_category="Video Tools",
            inputs=[
                PriorType.Input("prior", tooltip="From Load VFT Prior."),
                *_text_inputs("a red ball bounces to the right"),
                _budget_input("Tokens per latent frame to write."),
                *_sampling_inputs(),
                _frames_input(),
                *_encoder_inputs(),
                _preview_input(),
            ],
            outputs=[TokensType.Output(display_name="tokens",
                                       tooltip="For Flow Decode.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, prior: LoadedPrior, prompt: str, budget: int, seed: int, guidance: float,
        temperature: float, top_k: int, top_p: float, frames: int, clip: Any = None,
        conditioning: Any = None, preview: bool = True,
    ) -> io.NodeOutput:  # fmt: skip
        words = _words(prior, prompt, clip, conditioning)
        chosen = _sampling(seed, guidance, temperature, top_k, top_p)

        def write(model: Prior, **shown: Any) -> Tokens:
            return model.generate(budget=budget, frames=frames or None, **words, **chosen, **shown)

        return _written(prior, host.Work(cls.hidden), preview, write)


class ClassToTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTClassToTokens", "VFT Class-to-Token Prior",
            description="Writes tokens for a class: a motion for the default prior, an action for "
            "the published ones trained on Kinetics.",
            search_aliases=["class to video", "videoflextok class"],
            inputs=[
                PriorType.Input("prior", tooltip="From Load VFT Prior."),
                io.Combo.Input(
                    "class_name", options=list(MOTIONS), default="bounce_vertical",
                    tooltip="The classes of the default prior.",
                ),
                _budget_input("Tokens per latent frame to write."),
                *_sampling_inputs("class is"),
                advanced(io.String.Input(
                    "other_class", default="",
                    tooltip="For other priors: the name or number of a class, in place of the "
                    "list. A wrong one is answered with some that exist.",
                )),
                _frames_input(optional=True),
                _preview_input(),
            ],
            outputs=[TokensType.Output(display_name="tokens",
                                       tooltip="For Flow Decode.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, prior: LoadedPrior, class_name: str, budget: int, seed: int, guidance: float,
        temperature: float, top_k: int, top_p: float, other_class: str,
        frames: int = 0, preview: bool = True,
    ) -> io.NodeOutput:  # fmt: skip
        name = _class_of(prior, other_class.strip() or class_name)
        chosen = _sampling(seed, guidance, temperature, top_k, top_p)

        def write(model: Prior, **shown: Any) -> Tokens:
            return model.generate(
                class_name=name, budget=budget, frames=frames or None, **chosen, **shown
            )

        return _written(prior, host.Work(cls.hidden), preview, write)


def _class_of(prior: LoadedPrior, name: str) -> str:
    """The class that `name` means, which may be its number."""
    classes = prior.model.config.classes
    if name.isdecimal() and name not in classes and len(name) < 9 and int(name) < len(classes):
        return classes[int(name)]
    return name


class RefineTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTRefine", "VFT Refine Tokens",
            description="Goes on from coarse tokens: plausible detail, invented by the prior. What "
            "is there stays.",
            search_aliases=["videoflextok refine", "more tokens", "add detail"],
            inputs=[
                PriorType.Input("prior", tooltip="From Load VFT Prior."),
                TokensType.Input("tokens", tooltip="Of the prior's own tokenizer."),
                *_text_inputs(""),
                _budget_input("Tokens per latent frame to reach."),
                *_sampling_inputs(),
                *_encoder_inputs(),
                advanced(io.String.Input(
                    "class_name", default="", optional=True,
                    tooltip="For priors that take classes: the name or number of one, in place of "
                    "the prompt.",
                )),
                _preview_input(),
            ],
            outputs=[TokensType.Output(display_name="tokens",
                                       tooltip="For Flow Decode.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @checked
    def execute(
        cls, prior: LoadedPrior, tokens: Tokens, prompt: str, budget: int, seed: int,
        guidance: float, temperature: float, top_k: int, top_p: float, clip: Any = None,
        conditioning: Any = None, class_name: str = "", preview: bool = True,
    ) -> io.NodeOutput:  # fmt: skip
        words = _words(prior, prompt, clip, conditioning)
        if class_name.strip():
            words["class_name"] = _class_of(prior, class_name.strip())
        chosen = _sampling(seed, guidance, temperature, top_k, top_p)

        def write(model: Prior, **shown: Any) -> Tokens:
            return model.refine(tokens, budget, **words, **chosen, **shown)

        return _written(prior, host.Work(cls.hidden), preview, write)
