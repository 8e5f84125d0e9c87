"""What each step of a training run reads from shards: a function of the step's number alone.

An epoch is cut into blocks of neighbouring shards (see `dataset.Order`), a block into batches of
items of one kind, in random order. So a run that was killed goes on with the very batch that it
would have read, without reading those before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import VftError
from ..prior.text import split_words
from .dataset import Index, Order
from .formats import Record

MAX_WORDS = 20_000  # that a prior knows by heart; it spells the others


@dataclass
class Batches:
    """`items` turns places `[n,2]` of records into what is read, `[m,3]` (shard, place, part), and
    the kind of each `[m]`; `size` says how many of a kind a batch holds (the last of a block may
    hold fewer). `extras` as in `Shards`."""

    order: Order
    items: Callable[[Index, np.ndarray], tuple[np.ndarray, np.ndarray]]
    size: Callable[[int], int]
    extras: Sequence[str] = ()
    _walk: Iterator[list[tuple[int, np.ndarray]]] | None = None
    _begin: int = 0  # the step that the block's first batch is
    _block: list[tuple[int, np.ndarray]] = field(default_factory=list)
    _held: dict[tuple[int, int], Record] | None = None

    def at(self, step: int) -> tuple[int, list[tuple[Record, int]]]:
        """The kind of a step's batch, and its (record, part). VftError if no record can be read."""
        if self._walk is None or step < self._begin:
            self._walk, self._begin, self._block, self._held = self._blocks(), 0, [], None
        while step >= self._begin + len(self._block):
            self._begin += len(self._block)
            self._block, self._held = next(self._walk), None
        if self._held is None:
            places = np.unique(np.concatenate([items[:, :2] for _, items in self._block]), axis=0)
            records = self.order.index.read(places, self.extras)
            self._held = {(s, i): r for (s, i), r in zip(places.tolist(), records)}
        kind, items = self._block[step - self._begin]
        return kind, [(self._held[s, i], part) for s, i, part in items.tolist()]

    def _blocks(self) -> Iterator[list[tuple[int, np.ndarray]]]:
        epoch = 0
        while True:
            empty = True
            for number, places in enumerate(self.order.blocks(epoch)):
                rng = np.random.default_rng((self.order.seed or 0, epoch, number, self.order.rank))
                if batches := self._batches(places, rng):
                    empty = False
                    yield batches
            if empty:
                raise VftError("the shards hold no record that this model can be trained on")
            epoch += 1

    def _batches(
        self, places: np.ndarray, rng: np.random.Generator
    ) -> list[tuple[int, np.ndarray]]:  # fmt: skip
        items, kinds = self.items(self.order.index, places)
        found = []
        for kind in np.unique(kinds).tolist():
            mine = rng.permutation(items[kinds == kind])
            size = self.size(kind)
            found += [(kind, mine[i : i + size]) for i in range(0, len(mine), size)]
        return [found[i] for i in rng.permutation(len(found))]


def longest(lengths: Sequence[int], rows: int) -> int:
    """The greatest of the lengths within so many latent frames; 0: none."""
    return max((t for t in lengths if t <= rows), default=0)


def by_length(order: Order, lengths: Sequence[int], batch: int) -> Batches:
    """Records by the :func:`longest` of `lengths` that they hold, those of none left out. `batch`
    of the shortest; longer ones come in smaller batches, of about as many ids."""

    def items(index: Index, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = [index.shards[s].rows[i] for s, i in places.tolist()]
        kinds = np.array([longest(lengths, n) for n in rows], np.int64)
        whole = np.concatenate([places, np.zeros_like(places[:, :1])], 1)
        return whole[kinds > 0], kinds[kinds > 0]

    return Batches(order, items, lambda t: max(1, round(batch * min(lengths) / t)))


def by_chunk(order: Order, chunk_rows: int, overlap: int, batch: int) -> Batches:
    """Every chunk of every record, with its latents."""

    def items(index: Index, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [
            (s, i, chunk)
            for s, i in places.tolist()
            for chunk in range((index.shards[s].rows[i] - overlap) // (chunk_rows - overlap))
        ]
        whole = np.array(found, np.int64).reshape(-1, 3)
        return whole, np.zeros(len(whole), np.int64)

    return Batches(order, items, lambda kind: batch, ("latents",))


def words_of(index: Index) -> tuple[str, ...]:
    """The words of all captions, at most the `MAX_WORDS` most frequent, in order."""
    words = Counter[str]()
    for record in index.stream(index.records(range(len(index.shards)))):
        words.update(split_words(record.caption or ""))
    return tuple(sorted(word for word, _ in words.most_common(MAX_WORDS)))
