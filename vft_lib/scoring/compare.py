"""`vft eval compare`: two sets of clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import VftError
from ..video.frames import Report
from .score import Reference, Scorer, fill, unfinished
from .sources import Share, Source
from .store import Store

Records = tuple[Mapping[str, Tensor], ...]


def compare(
    real: Source, fake: Source, scorer: Scorer, out: Path, note: Report, *,
    share: Share | None = None, captions: Mapping[str, str] | None = None,
    places: Mapping[str, str],
) -> dict[str, Any] | None:  # fmt: skip
    """The results of two sets, as :func:`report.write` takes them; None if parts are still to be
    done by others. Clips of equal names in both are pairs, and are compared one by one.

    `captions`: by clip, of both sets. `places`: where "real" and "fake" lie: what is kept of clips
    in `out` is kept under it. VftError where nothing can be compared."""
    share, captions = share or Share(), captions or {}
    paired = set(real.ids) == set(fake.ids)
    common = len(set(real.ids) & set(fake.ids))
    if not paired and common:
        note(
            f"{common} names stand in both sets, {len(real.ids) + len(fake.ids) - 2 * common} in "
            "one: only distances of sets are computed; for pairs, list the common ones (--ids)"
        )
    ids = {"real": list(real.ids), "fake": list(real.ids if paired else fake.ids)}
    sides = {"real": real, "fake": fake}
    marks = {side: {clip: of.mark(clip) for clip in ids[side]} for side, of in sides.items()}
    facts = scorer.facts | {"captions": sorted(captions.items())}
    stores = {
        side: Store(out / "clips", facts | {"side": side, "paired": paired, "place": places[side],
                    "other": places["real"] if paired else ""})
        for side in sides
    }  # fmt: skip

    def looks(side: str, batch: list[str]) -> Iterator[Any]:
        source = sides[side]
        for clip in batch:
            label = source.label(clip) if scorer.networks.classifier else ""
            yield scorer.look(source.read(clip), captions.get(clip), label)

    def pairs(batch: list[str]) -> Iterator[Records]:
        for a, b in zip(looks("real", batch), looks("fake", batch)):
            yield a.record, b.record | scorer.pair(a, b)

    left = 0
    if paired:
        both = {clip: f"{marks['real'][clip]} | {marks['fake'][clip]}" for clip in ids["real"]}
        two = [stores["real"], stores["fake"]]
        left = fill(two, ids["real"], both, share, 1, pairs, "comparing clips")
    else:
        for side, store in stores.items():

            def single(batch: list[str], side: str = side) -> Iterator[Records]:
                for look in looks(side, batch):
                    yield (look.record,)

            left += fill([store], ids[side], marks[side], share, 1, single, f"{side} clips")
    if unfinished(left, note):
        return None
    line = scorer.protocol.line(ids["real"], "the first set's clips")
    reference = Reference(scorer, stores["real"], ids["real"], line, paired, note)
    row = reference.row(stores["fake"], ids["fake"])
    if not row["lines"]:
        raise VftError(
            "nothing could be compared: the sets have no names in common and "
            + (row["notes"][0] if row["notes"] else "no network is named")
        )
    rows = [{"kind": "clips", "name": "the second set", **row}]
    own = reference.itself()
    if own is not None:
        rows.append({"kind": "reference", "name": "the first set", **own})
    return {"command": "compare", "subject": dict(places), "rows": rows}
