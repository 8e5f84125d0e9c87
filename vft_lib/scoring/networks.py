"""Networks whose features are compared: the offline one, and those that the user brings.

Loading a TorchScript file runs code in it. So a file is run only if its SHA-256 is a known one, or
if the user has named it (`trust`); and nothing but the command line comes here.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import VftError
from ..evaluation.learned import FeatureNetwork
from ..video.frames import Report
from .protocol import Line, digest_of

I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
INCEPTION_SHA256 = "0cc3c7bd"  # begins so, as torchvision's file name says
I3D_FEATURES, I3D_FRAMES = 400, 10  # numbers a clip; frames that it needs
INCEPTION_FEATURES = 2048
VICLIP_FRAMES = range(0, 16, 2)
CLASSIFIER_FRAMES = 16
TEXT_TOKENS = 77
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


@dataclass(frozen=True)
class Files:
    """What the user has named. `trust`: SHA-256 sums (or their first 16 digits and more) of files
    that may run though they are not known. `i3d_frames`: how many of a clip's frames I3D sees
    (None: all)."""

    i3d: Path | None = None
    inception: Path | None = None
    viclip: Path | None = None
    clip_tokenizer: Path | None = None
    classifier: Path | None = None
    classes: Path | None = None
    trust: Sequence[str] = field(default_factory=tuple)
    i3d_frames: int | None = None


class I3D:
    """FVD's network, StyleGAN-V's TorchScript of it: 400 numbers a clip."""

    def __init__(self, files: Files, frames: int, device: torch.device, note: Report) -> None:
        assert files.i3d is not None
        self.frames = files.i3d_frames or frames
        if not I3D_FRAMES <= self.frames <= frames:
            raise VftError(
                f"I3D is to see {self.frames} of {frames} frames: it needs {I3D_FRAMES} at least; "
                "choose a longer protocol (--frames)"
            )
        self.device = device
        self.network, self.line = _script(files.i3d, device, I3D_SHA256, files.trust, note)

    @property
    def how(self) -> Line:
        side = "224 px bilinear without antialias, values 0..255"
        return {"network": self.line, "input": f"first {self.frames} frames, {side}"}

    def prepare(self, frames: Tensor) -> Tensor:
        """Frames `[T,3,H,W]`, values 0..255 -> `[1,3,T,224,224]`, values 0..255."""
        x = resized(frames[: self.frames], 224, antialias=False)
        return x.transpose(0, 1)[None]

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """Frames `[T,3,H,W]`, values 0..255 -> features `[1,400]`. VftError for another shape."""
        x = self.prepare(frames).to(self.device)
        found = self.network(x, rescale=True, resize=False, return_features=True)
        if found.shape != (1, I3D_FEATURES):
            raise VftError(
                f"I3D gave features of shape {list(found.shape)} for {self.frames} frames, not "
                f"[1, {I3D_FEATURES}]: give it 16 of them (--i3d-frames 16)"
            )
        return found.float().cpu()


class Inception:
    """torchvision's inception_v3 (IMAGENET1K_V1), the pooled 2048 numbers of each frame. Not
    TensorFlow's Inception: FIDs of the two do not compare."""

    def __init__(self, files: Files, device: torch.device, note: Report) -> None:
        assert files.inception is not None
        try:
            from torchvision.models import inception_v3
        except (ImportError, RuntimeError) as e:  # RuntimeError: built for another torch
            raise VftError(
                f"FID needs torchvision ({e}): install the one that fits your torch"
            ) from None
        data, digest = _read(files.inception)
        _check(files.inception, digest, INCEPTION_SHA256, files.trust, note)
        network = inception_v3(
            weights=None, aux_logits=True, transform_input=True, init_weights=False
        )  # as torchvision builds it for these weights: to their own range inside the network
        try:
            network.load_state_dict(torch.load(io.BytesIO(data), "cpu", weights_only=True))
        except Exception as e:
            raise VftError(f"{files.inception} holds no weights of inception_v3 ({e})") from None
        network.fc = torch.nn.Identity()
        self.network, self.device = network.eval().requires_grad_(False).to(device), device
        self.line = (
            f"torchvision inception_v3, pool ({files.inception.name}, SHA-256 {digest[:16]})"
        )

    @property
    def how(self) -> Line:
        side = "299 px bilinear without antialias, ImageNet normalization, transform_input"
        return {"network": self.line, "input": f"every frame, {side}"}

    def prepare(self, frames: Tensor) -> Tensor:
        """Frames `[T,3,H,W]`, values 0..255 -> `[T,3,299,299]`, normalized."""
        return normalized(resized(frames, 299, antialias=False))

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """Frames `[T,3,H,W]`, values 0..255 -> features `[T,2048]`."""
        parts = [self.network(x.to(self.device)) for x in self.prepare(frames).split(8)]
        return torch.cat(parts).float().cpu()


class ViCLIP:
    """A TorchScript file with `encode_video([B,8,3,224,224]) -> [B,D]` and, for captions,
    `encode_text(int64 [B,77]) -> [B,D]`."""

    def __init__(self, files: Files, frames: int, device: torch.device, note: Report) -> None:
        assert files.viclip is not None
        if frames <= VICLIP_FRAMES[-1]:
            raise VftError(f"ViCLIP sees frames 0 to {VICLIP_FRAMES[-1]}; clips have {frames}")
        self.device = device
        self.network, self.line = _script(files.viclip, device, None, files.trust, note)
        self.words = None if files.clip_tokenizer is None else _words(files.clip_tokenizer)

    @property
    def how(self) -> Line:
        side = "224 px bilinear with antialias, ImageNet normalization"
        words = "none" if self.words is None else type(self.words).__name__
        return {
            "network": self.line, "input": f"frames 0, 2, ..., 14, {side}", "captions by": words,
        }  # fmt: skip

    def prepare(self, frames: Tensor) -> Tensor:
        """Frames `[T,3,H,W]`, values 0..255 -> `[1,8,3,224,224]`, normalized."""
        return normalized(resized(frames[list(VICLIP_FRAMES)], 224, antialias=True))[None]

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """Frames `[T,3,H,W]`, values 0..255 -> a unit vector `[1,D]`."""
        found = self.network.encode_video(self.prepare(frames).to(self.device))
        return F.normalize(found.float(), dim=-1).cpu()

    @torch.inference_mode()
    def text(self, caption: str) -> Tensor:
        """A caption -> a unit vector `[1,D]`."""
        if self.words is None:
            raise VftError("captions need CLIP's own tokenizer: name its folder (--clip-tokenizer)")
        ids = self.words(
            caption, padding="max_length", truncation=True, max_length=TEXT_TOKENS,
            return_tensors="pt",
        )["input_ids"]  # fmt: skip
        found = self.network.encode_text(ids.to(self.device))
        return F.normalize(found.float(), dim=-1).cpu()


class Classifier:
    """A TorchScript file, `[B,3,16,224,224] -> [B,C]`, and the names of its classes."""

    def __init__(self, files: Files, frames: int, device: torch.device, note: Report) -> None:
        assert files.classifier is not None
        if files.classes is None:
            raise VftError("a classifier needs the names of its classes, one a line (--classes)")
        if frames < CLASSIFIER_FRAMES:
            raise VftError(f"the classifier sees {CLASSIFIER_FRAMES} frames; clips have {frames}")
        lines = files.classes.read_text("utf-8").splitlines()
        self.names, self.device = [line.strip() for line in lines if line.strip()], device
        self.network, self.line = _script(files.classifier, device, None, files.trust, note)

    @property
    def how(self) -> Line:
        side = "224 px bilinear with antialias, ImageNet normalization"
        return {
            "network": self.line, "input": f"first {CLASSIFIER_FRAMES} frames, {side}",
            "classes": f"{len(self.names)}, list {digest_of(self.names)}",
        }  # fmt: skip

    def prepare(self, frames: Tensor) -> Tensor:
        """Frames `[T,3,H,W]`, values 0..255 -> `[1,3,16,224,224]`, normalized."""
        x = normalized(resized(frames[:CLASSIFIER_FRAMES], 224, antialias=True))
        return x.transpose(0, 1)[None]

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> str:
        """Frames `[T,3,H,W]`, values 0..255 -> the name of the likeliest class."""
        scores = self.network(self.prepare(frames).to(self.device))
        if scores.shape != (1, len(self.names)):
            raise VftError(
                f"the classifier gave {list(scores.shape)} scores, --classes has {len(self.names)}"
            )
        return self.names[int(scores.argmax())]


@dataclass(frozen=True)
class Networks:
    """Those that there are."""

    lite2: FeatureNetwork | None = None
    i3d: I3D | None = None
    inception: Inception | None = None
    viclip: ViCLIP | None = None
    classifier: Classifier | None = None

    @staticmethod
    def load(
        files: Files, frames: int, device: torch.device, note: Report, offline: bool = True
    ) -> Networks:
        """`offline`: EfficientNet-Lite2 too, which VftError wants installed."""
        return Networks(
            FeatureNetwork(device) if offline else None,
            I3D(files, frames, device, note) if files.i3d else None,
            Inception(files, device, note) if files.inception else None,
            ViCLIP(files, frames, device, note) if files.viclip else None,
            Classifier(files, frames, device, note) if files.classifier else None,
        )


def resized(frames: Tensor, side: int, antialias: bool) -> Tensor:
    """Frames `[T,3,H,W]` -> `[T,3,side,side]`, bilinear."""
    return F.interpolate(
        frames, (side, side), mode="bilinear", align_corners=False, antialias=antialias
    )


def normalized(frames: Tensor) -> Tensor:
    """Values 0..255 -> ImageNet's mean 0 and deviation 1."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    return (frames / 255 - mean) / std


def _read(path: Path) -> tuple[bytes, str]:
    """The bytes that are used, and their SHA-256."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise VftError(f"cannot read {path}: {e.strerror or e}") from None
    return data, hashlib.sha256(data).hexdigest()


def _check(path: Path, digest: str, known: str | None, trust: Sequence[str], note: Report) -> None:
    if known and digest.startswith(known):
        note(f"{path.name}: SHA-256 {digest}, the known one")
    elif any(len(t) >= 16 and digest.startswith(t.lower()) for t in trust):
        note(f"{path.name}: SHA-256 {digest}, trusted by --trust")
    else:
        why = f"not the known one ({known[:16]})" if known else "none is known for such files"
        raise VftError(
            f"{path.name} has the SHA-256 {digest}, {why}. A TorchScript file is a program: if you "
            f"know where this one comes from, add --trust {digest[:16]}"
        )


def _script(
    path: Path, device: torch.device, known: str | None, trust: Sequence[str], note: Report
) -> tuple[Any, str]:
    """A TorchScript file, after its hash was checked; and what a protocol line says of it."""
    data, digest = _read(path)
    _check(path, digest, known, trust, note)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it is the format of the file
        try:
            network = torch.jit.load(io.BytesIO(data), map_location=device).eval()
        except RuntimeError as e:
            raise VftError(f"{path} is no TorchScript file ({e})") from None
    return network, f"{path.name}, SHA-256 {digest[:16]}"


def _words(folder: Path) -> Any:
    try:
        from transformers import CLIPTokenizer
    except ImportError:
        raise VftError("captions for ViCLIP need transformers: pip install '.[umt5]'") from None
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as e:
        raise VftError(f"{folder} holds no tokenizer of CLIP ({e})") from None
