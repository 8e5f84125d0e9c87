"""From clips to numbers: what is computed of a clip, of a pair, and of two sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import VftError
from ..evaluation.curves import FRAME_STEP, mean_interval
from ..evaluation.figures import MEASURES as TITLES
from ..evaluation.learned import STRIDES, Features, Frechet, feature_distance
from ..measure.metrics import psnr, ssim, whole_psnr
from .networks import Networks
from .protocol import Line, Protocol, bootstrap_line, enough, frechet_line
from .sources import Share
from .store import Store

SETS = {"frechet_frames": "lite2.frames", "frechet_motion": "lite2.motion", "fvd": "i3d",
        "fid": "inception"}  # fmt: skip
PAIRED = ("psnr", "ssim", "feature_distance", "clipv")  # with the reference's own clip
MEANS = (*PAIRED, "text_score", "accuracy")
MORE = 20  # times as many sets for a mean as for a distance: it costs nothing


@dataclass(frozen=True)
class Look:
    """A clip as it is compared: `video` `[3,T,S,S]` in [-1,1] of 8-bit values, the features that
    are kept (`record`), and those that are not."""

    video: Tensor
    record: dict[str, Tensor]
    maps: Features | None


@dataclass(frozen=True)
class Scorer:
    """Everything that is computed of clips uint8 `[T,S,S,3]`."""

    protocol: Protocol
    networks: Networks

    def look(self, clip: np.ndarray, caption: str | None = None, label: str = "") -> Look:
        """`caption`: what it should show, for the text score; `label`: its class, for the
        classifier."""
        pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float()  # (T, 3, S, S), 0..255
        video = pixels.transpose(0, 1) / 127.5 - 1
        n, record, maps = self.networks, dict[str, Tensor](), None
        if n.lite2 is not None:
            maps = n.lite2(video[:, ::FRAME_STEP])
            record |= {"lite2.frames": maps.pooled, "lite2.motion": maps.motion}
        if n.i3d is not None:
            record["i3d"] = n.i3d(pixels)
        if n.inception is not None:
            record["inception"] = n.inception(pixels)
        if n.viclip is not None:
            record["viclip"] = n.viclip(pixels)
            if caption is not None and n.viclip.words is not None:
                record["text_score"] = (record["viclip"] * n.viclip.text(caption)).sum()[None]
        if n.classifier is not None and label:
            if label not in n.classifier.names:
                raise VftError(f"class {label!r} is none of the classifier's (--classes)")
            record["accuracy"] = torch.tensor([float(n.classifier(pixels) == label)])
        return Look(video, record, maps)

    def pair(self, real: Look, fake: Look) -> dict[str, Tensor]:
        """How close a clip is to the reference's."""
        p, a, b = self.protocol, real.video, fake.video
        found = {
            "psnr": whole_psnr(a, b) if p.whole_psnr else psnr(a, b),
            "ssim": ssim(a, b, p.padded_ssim),
        }
        if real.maps is not None and fake.maps is not None:
            found["feature_distance"] = feature_distance(real.maps, fake.maps)
        if "viclip" in real.record:
            found["clipv"] = float((real.record["viclip"] * fake.record["viclip"]).sum())
        return {k: torch.tensor([v], dtype=torch.float64) for k, v in found.items()}

    @property
    def facts(self) -> dict[str, Any]:
        """What records follow from, beside the clips."""
        kept = ("resamples", "pool", "counts", "name")
        fields = {k: v for k, v in dataclasses.asdict(self.protocol).items() if k not in kept}
        return fields | {"networks": {k: self.line_of(k) for k in TITLES if self.made_by(k)}}

    def made_by(self, measure: str) -> Any:
        """The network of a measure; None if it has none, or is not there."""
        n = self.networks
        return {
            "feature_distance": n.lite2, "frechet_frames": n.lite2, "frechet_motion": n.lite2,
            "fvd": n.i3d, "fid": n.inception, "clipv": n.viclip, "text_score": n.viclip,
            "accuracy": n.classifier,
        }.get(measure)  # fmt: skip

    def line_of(self, measure: str) -> Line:
        """The part of a protocol line that is the measure's own."""
        line: Line = {"measure": TITLES[measure]}
        network = self.made_by(measure)
        if measure in ("psnr", "ssim"):
            line |= self.protocol.paired_line(measure)
        elif measure == "accuracy" or measure in ("fvd", "fid", "clipv", "text_score"):
            line |= network.how if network else {}
        else:
            stages = {
                "feature_distance": f"strides {', '.join(map(str, STRIDES))}",
                "frechet_frames": "means at stride 16",
                "frechet_motion": f"means at stride 16, differences of frames {FRAME_STEP} apart",
            }[measure]
            line |= {"network": network.line if network else "none",
                     "input": f"every {FRAME_STEP}nd frame, {stages}"}  # fmt: skip
        if measure in SETS:
            line["distance"] = frechet_line()
        return line


class Reference:
    """The set that others are compared with, its distances prepared once. `line`: what the lines of
    all its measures begin with. `paired`: clip i of a set is a version of its clip i."""

    def __init__(
        self, scorer: Scorer, store: Store, ids: Sequence[str], line: Line, paired: bool,
        note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.scorer, self.store, self.ids = scorer, store, ids
        self.line, self.paired, self.note = line, paired, note
        self.frechets: dict[str, Frechet] = {}
        self.told: set[str] = set()

    def row(
        self, store: Store, ids: Sequence[str], extra: Line | None = None,
        only: Sequence[str] = tuple(TITLES),
    ) -> dict[str, Any]:  # fmt: skip
        """Every measure of the set `ids` in `store` (or `only` some), with its interval; under
        "lines" how each was made (`extra`: the sampler), under "notes" what is to be told of few
        clips."""
        names, some = store.names_of(ids)
        found, lines, notes = dict[str, Any](), dict[str, Line](), list[str]()
        resamples = self.scorer.protocol.resamples
        for key in only:
            if key in SETS and SETS[key] in names:
                try:
                    warning = enough(min(len(ids), len(self.ids)), TITLES[key])
                except VftError as e:
                    notes.append(f"refused: {e}")
                    continue
                if warning:
                    notes.append(warning)
                features = store.rows(ids, SETS[key])
                distance = self._frechet(key)
                found[key] = distance(features)
                found[f"{key}_interval"] = list(distance.interval(features))
            elif key in MEANS and key in names:
                values = store.values(ids, key)
                found[key] = float(np.mean(values))
                found[f"{key}_interval"] = list(mean_interval(values, MORE * resamples))
            else:
                if key in some:
                    notes.append(f"{TITLES[key]} is left out: some clips have no caption or class")
                continue
            sets = key in SETS
            count = {"sets": f"{len(self.ids)}, {len(ids)}"} if sets else {"clips": len(ids)}
            own = self.scorer.line_of(key)
            interval = {"interval": bootstrap_line(resamples if sets else MORE * resamples)}
            lines[key] = own | self.line | count | (extra or {}) | interval
        for text in notes:
            if text not in self.told:
                self.told.add(text)
                self.note(text)
        return {"clips": len(ids)} | found | {"lines": lines, "notes": notes}

    def itself(self) -> dict[str, Any] | None:
        """What can be said of the reference alone, for comparison: text score and accuracy; None if
        neither was computed."""
        names, _ = self.store.names_of(self.ids)
        keys = [k for k in MEANS if k not in PAIRED and k in names]
        return self.row(self.store, self.ids, only=keys) if keys else None

    def _frechet(self, key: str) -> Frechet:
        if key not in self.frechets:
            features = self.store.rows(self.ids, SETS[key])
            resamples = self.scorer.protocol.resamples
            self.frechets[key] = Frechet(features, resamples, self.paired)
        return self.frechets[key]


def fill(
    stores: Sequence[Store], ids: Sequence[str], marks: Mapping[str, str], share: Share, batch: int,
    make: Callable[[list[str]], Iterable[Sequence[Mapping[str, Tensor]]]], title: str,
) -> int:  # fmt: skip
    """Compute what is not there yet of this process's share: `make(batch of clips)` gives for each
    of them one record for each store. Returns how many clips others have still to do."""
    for part in tqdm(share.batches(ids, batch), desc=title, mininterval=1):
        if any(store.missing(part, marks) for store in stores):
            for clip, records in zip(part, make(part)):
                for store, record in zip(stores, records):
                    store.put(clip, marks[clip], record)
    return len({clip for store in stores for clip in store.missing(ids, marks)})


def unfinished(left: int, note: Callable[[str], None]) -> bool:
    """Whether clips are left to others, after what :func:`fill` returned; says so."""
    if left:
        note(f"{left} clips are left to other parts; the last one to end writes the results")
    return left > 0
