"""What does a clip show? The judge of the prior's model card: two small networks, trained on the
procedural clips of a run folder and kept there.

Colour and motion are read from latents (`classifier.py`), the shape from pixels (`outline.py`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from ..files.atomic import write_bytes
from ..footage.footage import to_video
from ..tokenizer.tokenizer import Tokenizer
from ..tokens import Tokens
from ..train.loop import train
from ..train.prior import HELD_OUT
from ..train.tokenizer import TokenizerRecipe, ids_of_latents
from ..world import world
from .classifier import LABELS, Classifier, ClassifierRecipe, ClassifierTask, labels_of
from .outline import SIZE, Outline, OutlineRecipe, OutlineTask, to_size
from .run_clips import autocast, decoded_latents, decoded_video, generator, run_clips

PICTURES = 4  # kept of each clip to learn outlines from
CHECKED = 256  # clips of the run that the networks do not train on, but are measured on


@dataclass(frozen=True)
class Judge:
    """`facts`: what each network was trained on, and what it reads of clips it has not seen."""

    classifier: Classifier
    outline: Outline
    facts: dict[str, dict[str, Any]]

    @torch.no_grad()
    def read(self, latents: Tensor | None = None, video: Tensor | None = None) -> dict[str, Tensor]:
        """Class numbers `[N]` by label: colour and motion of latents `[N,C,t,h,w]`, the shape of
        pictures `[N,3,T,H,W]` in [-1,1]."""
        found = {}
        if latents is not None:
            logits = self.classifier(latents.float().to(self.classifier.stem.weight.device))
            found = {name: x.argmax(1).cpu() for name, x in logits.items()}
        if video is not None:
            found["shape"] = self.outline.read(video)
        return found

    def accuracy(
        self, labels: dict[str, Tensor], latents: Tensor | None = None, video: Tensor | None = None
    ) -> dict[str, float]:
        """The share of clips that are read as `labels` say, by label; with latents and pictures
        also "all" three at once."""
        right = {name: x == labels[name] for name, x in self.read(latents, video).items()}
        if len(right) == len(LABELS):
            right["all"] = torch.stack(list(right.values())).all(0)
        return {name: round(float(x.float().mean()), 4) for name, x in right.items()}

    @torch.no_grad()
    def ends(
        self, tokenizer: Tokenizer, tokens: Tokens, labels: tuple[dict[str, Tensor], ...],
        dtype: torch.dtype, batch: int = 4,
    ) -> list[dict[str, float]]:  # fmt: skip
        """:meth:`accuracy` on the first and on the last chunk of clips, decoded and encoded again,
        against the `labels` of each."""
        frames = tokenizer.config.chunk_frames
        latents: tuple[list[Tensor], list[Tensor]] = ([], [])
        pictures: tuple[list[Tensor], list[Tensor]] = ([], [])
        for start in tqdm(
            range(0, len(tokens), batch), desc="first and last chunks", mininterval=1
        ):
            part = dataclasses.replace(tokens, ids=tokens.ids[start : start + batch])
            with autocast(tokenizer, dtype):
                video = tokenizer.decode(part)
                for i, end in enumerate((video[:, :, :frames], video[:, :, -frames:])):
                    latents[i].append(tokenizer.vae.encode(end.to(tokenizer.device)).cpu())
                    pictures[i].append(end[:, :, ::2].half())
        return [
            self.accuracy(wanted, torch.cat(z), torch.cat(v))
            for wanted, z, v in zip(labels, latents, pictures)
        ]


def pixels_of(scenes: list[world.Scene], frames: int, size: int) -> Tensor:
    """Every second picture of the scenes, rendered: `[N,3,T,H,W]` float16 in [-1,1]."""
    return torch.cat([to_video([s.render(frames, size)[::2]]).half() for s in scenes])


def recipes(tokenizer: Tokenizer) -> tuple[ClassifierRecipe, OutlineRecipe]:
    """Softened clips cost most, in proportion to the picture: of a tokenizer for more than 64 px
    there are as many fewer, and of its pictures the outline network sees 64 px anyway."""
    share = min(1.0, (SIZE / tokenizer.config.size) ** 2)
    c, o = ClassifierRecipe(tokenizer.decoder_mark), OutlineRecipe(tokenizer.decoder_mark)
    return (
        dataclasses.replace(c, softened=round(c.softened * share)),
        dataclasses.replace(o, softened=round(o.softened * share)),
    )


def trained_judge(
    steps: int | None, data: TokenizerRecipe, out: Path,
    tokenizer: Tokenizer, dtype: torch.dtype,
) -> Judge:  # fmt: skip
    """The judge of a run folder: `out/classifier.safetensors` and `out/outline.safetensors` where
    they are of these recipes and this tokenizer, else trained (in `steps` steps) and kept there."""
    c_recipe, o_recipe = recipes(tokenizer)
    if steps is not None:
        shorter = dataclasses.replace(c_recipe.schedule, steps=steps)
        c_recipe = dataclasses.replace(c_recipe, schedule=shorter)
        shorter = dataclasses.replace(o_recipe.schedule, steps=steps)
        o_recipe = dataclasses.replace(o_recipe, schedule=shorter)
    c, t, h, w = tokenizer.config.latent_shape
    judge = Judge(Classifier((c, t, h, w), c_recipe.widths), Outline(o_recipe.widths), {})
    for module in (judge.classifier, judge.outline):
        module.to(tokenizer.device).eval().requires_grad_(False)
    wanted = (("classifier", c_recipe, judge.classifier), ("outline", o_recipe, judge.outline))
    for name, recipe, module in wanted:
        facts = _kept(out / f"{name}.safetensors", recipe, module)
        if facts is not None:
            judge.facts[name] = facts
    if len(judge.facts) == len(wanted):
        return judge
    latents, scenes = run_clips(data, out, tokenizer, dtype)
    kept = [i for i in sorted(scenes) if (i + 1) % HELD_OUT]
    apart = sorted(scenes.keys() - set(kept))[:CHECKED]
    unseen = [scenes[i] for i in apart]
    for name, recipe, module in wanted:
        if name in judge.facts:
            continue
        task: ClassifierTask | OutlineTask
        torch.manual_seed(recipe.schedule.seed)
        if isinstance(recipe, ClassifierRecipe):
            task = _classifier_task(recipe, latents, scenes, kept, tokenizer, dtype)
            seen: dict[str, Tensor] = {"latents": latents[apart]}
        else:
            task = _outline_task(recipe, latents, scenes, kept, tokenizer, dtype)
            seen = {"video": pixels_of(unseen, tokenizer.config.chunk_frames, SIZE)}
        weights = train(task, recipe.schedule, out / name, device=tokenizer.device, dtype=dtype)
        weights = {k.removeprefix(f"{name}."): v.cpu().contiguous() for k, v in weights.items()}
        module.load_state_dict(weights)
        judge.facts[name] = {
            "clips": task.clips, "softened": len(task.softened),
            "softened_share": recipe.softened_share, "soften_steps": recipe.soften_steps,
            "steps": recipe.schedule.steps, "batch": recipe.schedule.batch,
            "parameters": sum(p.numel() for p in module.parameters()),
            "run_held_out": judge.accuracy(labels_of(unseen), **seen) if apart else {},
        }  # fmt: skip
        header = {"recipe": _said(recipe), "facts": json.dumps(judge.facts[name])}
        write_bytes(out / f"{name}.safetensors", save(weights, header))
    return judge


def _said(recipe: ClassifierRecipe | OutlineRecipe) -> str:
    return json.dumps(dataclasses.asdict(recipe), sort_keys=True)


def _kept(
    path: Path, recipe: ClassifierRecipe | OutlineRecipe, module: nn.Module
) -> dict[str, Any] | None:
    """Load what was trained by this very recipe, and say what it was trained on."""
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            if metadata.get("recipe") != _said(recipe):
                return None
            module.load_state_dict({k: f.get_tensor(k) for k in f.keys()})  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    print(
        f"vft: {path} is reused; delete it and the folder {path.stem} to train it again",
        file=sys.stderr,
    )
    facts: dict[str, Any] = json.loads(metadata["facts"])
    return facts


def _some(clips: list[int], count: int) -> list[int]:
    """`count` of them, evenly spread."""
    return clips[:: max(1, len(clips) // count)][:count]


def _softened(latents: Tensor, steps: int, tokenizer: Tokenizer, dtype: torch.dtype) -> Tensor:
    """Latents `[N,C,t,h,w]`, decoded from their own tokens at random budgets."""
    budgets = torch.tensor(tokenizer.config.budgets)
    keep = budgets[torch.randint(len(budgets), (len(latents),), generator=generator(0))]
    return decoded_latents(
        tokenizer, ids_of_latents(tokenizer, latents), dtype, keep=keep, steps=steps,
        desc="softening", batch=64,
    )  # fmt: skip


def _classifier_task(
    recipe: ClassifierRecipe, latents: Tensor, scenes: dict[int, world.Scene], kept: list[int],
    tokenizer: Tokenizer, dtype: torch.dtype,
) -> ClassifierTask:  # fmt: skip
    soft = _some(kept, recipe.softened)
    softened = _softened(latents[soft], recipe.soften_steps, tokenizer, dtype)
    return ClassifierTask(
        recipe, latents[kept], labels_of([scenes[i] for i in kept]), softened.half(),
        labels_of([scenes[i] for i in soft]),
    )  # fmt: skip


def _outline_task(
    recipe: OutlineRecipe, latents: Tensor, scenes: dict[int, world.Scene], kept: list[int],
    tokenizer: Tokenizer, dtype: torch.dtype,
) -> OutlineTask:  # fmt: skip
    frames, g = tokenizer.config.chunk_frames, generator(0)
    clear, soft = _some(kept, recipe.rendered), _some(kept, recipe.softened)
    rendered = [
        _pictures(pixels_of([scenes[i]], frames, SIZE)[0], scenes[i], g)
        for i in tqdm(clear, desc="outlines", mininterval=1)
    ]
    decoded = latents[soft].float()
    decoded[::2] = _softened(decoded[::2], recipe.soften_steps, tokenizer, dtype)
    # the first nine pictures, which half of the time decodes, will do
    videos = decoded_video(tokenizer, decoded[:, :, :3], dtype)
    softened = [_pictures(video, scenes[i], g) for i, video in zip(soft, videos)]
    return OutlineTask(
        recipe, torch.stack(rendered), labels_of([scenes[i] for i in clear])["shape"],
        torch.stack(softened), labels_of([scenes[i] for i in soft])["shape"],
    )  # fmt: skip


def _pictures(video: Tensor, scene: world.Scene, generator: torch.Generator) -> Tensor:
    """Some of every second picture `[3,T,H,W]` in [-1,1] of a scene, with the main object's
    mask: uint8 `[PICTURES,4,64,64]`."""
    chosen = torch.randperm(video.shape[1], generator=generator)[:PICTURES]
    rgb = to_size(video[:, chosen].transpose(0, 1).float())
    rgb = ((rgb + 1) * 127.5).round().clamp(0, 255).byte()
    mask = torch.from_numpy(scene.mask(2 * video.shape[1] - 1, SIZE)[::2])[chosen]
    return torch.cat([rgb, mask[:, None]], 1)
