"""From logits to an id: temperature, top-k, top-p, and randomness that belongs to one clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ..errors import VftError
from ..tokenizer.sampling import whole_seeds

AHEAD = 8  # steps whose numbers are drawn ahead of a GPU


def seeds_of(seed: int | Sequence[int], batch: int) -> list[int]:
    """Every clip draws from its own seed; one given seed serves clip i as seed + i. VftError for
    another number of them than clips."""
    given = whole_seeds(seed)
    seeds = [given + i for i in range(batch)] if isinstance(given, int) else given
    if len(seeds) != batch:
        raise VftError(f"got {len(seeds)} seeds for {batch} clips; give one, or one each")
    return seeds


def guide(logits: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance u + g (c - u) for `[2B,V]` (conditional half first) -> `[B,V]`."""
    cond, uncond = logits.chunk(2)
    return uncond + scale * (cond - uncond)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest of `[B,V]` become -inf; ties with the k-th value stay."""
    if k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, p: float, first: int = 1024) -> Tensor:
    """Keep the most likely ids of `[B,V]` until their probability reaches p, the one that crosses
    it included; the rest become -inf. Nothing is sorted: sorting 64,000 numbers a step is slower
    than the network. On a CPU only the `first` largest are looked at, and eight times as many where
    those do not reach p. A GPU would have to wait for that answer, so there p's threshold is
    searched for, without one (ids exactly as likely as the one that crosses then stay, too)."""
    if p >= 1:
        return logits
    if logits.is_cuda:
        return above_threshold(logits, p)
    total = logits.logsumexp(-1, keepdim=True)
    while True:
        n = min(first, logits.shape[-1])
        values, order = logits.topk(n)
        before = (values - total).exp().cumsum(-1)
        if n == logits.shape[-1] or bool((before[:, -1] >= p).all()):
            break
        first *= 8
    reached = torch.cat([torch.zeros_like(before[:, :1]), before[:, :-1]], -1) >= p
    kept = values.masked_fill(reached, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, order, kept)


def above_threshold(logits: Tensor, p: float) -> Tensor:
    """Of `[B,V]` the ids at least as likely as the largest threshold above which lies p of the
    probability, by bisection over all float32 numbers from 0 to 1: as integers, their bits are in
    the same order. 31 sums of V numbers, and the host never waits."""
    share = logits.float().softmax(-1)
    bits = share.view(torch.int32)
    low = torch.zeros_like(bits[:, :1])
    high = torch.full_like(low, 0x3F800000)  # 1.0
    for _ in range(31):
        middle = (low + high + 1) // 2
        enough = share.masked_fill(bits < middle, 0).sum(-1, keepdim=True) >= p
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle - 1)
    return logits.masked_fill(bits < low, -torch.inf)


class Sampler:
    """Chooses an id for each clip of a batch. Every clip has its own generator on the CPU, made
    from its seed, and draws a number for every id at each step, so what it draws depends neither
    on its place in the batch nor on the other settings.

    The draw is Gumbel-max, argmax(logits - log E) with E exponential: of two ways to draw from a
    softmax the one that small differences in the logits do not flip (a batch of another size sums
    in another order; an inverse of the cumulative sum would slip to a neighbour a hundred times
    as often).
    """

    def __init__(
        self, seeds: Sequence[int], *, temperature: float = 1.0, top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:  # fmt: skip
        if not 0 <= temperature <= 100:
            raise VftError(f"temperature is {temperature}; choose 0 (most likely ids) to 100")
        if top_k is not None and top_k < 1:
            raise VftError(f"top_k is {top_k}; choose 1 or more, or leave it out")
        if top_p is not None and not 0 < top_p <= 1:
            raise VftError(f"top_p is {top_p}; choose more than 0, at most 1 (1: all ids)")
        for s in seeds:
            if not -(1 << 63) <= s < 1 << 64:
                raise VftError(f"seed {s} is out of range; choose 0 to {(1 << 64) - 1}")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generators = [torch.Generator().manual_seed(s) for s in seeds]

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits `[B,V]` float32 -> ids `[B]`."""
        return self.pick(logits, self.draw(logits.shape[-1], logits.device))

    def draw(self, vocab: int, device: torch.device) -> Tensor:
        """The numbers of the next step `[B,V]` float32, log E; `[B,0]` where none are needed. On a
        GPU they arrive from pinned memory: the host goes on at once."""
        if self.temperature == 0:
            return torch.empty(len(self.generators), 0, device=device)
        noise = self._drawn(vocab, pin=device.type == "cuda")
        return noise.to(device, non_blocking=True)

    def draws(self, vocab: int, device: torch.device, count: int) -> Generator[Tensor, None, None]:
        """:meth:`draw`, `count` times. For a GPU a thread draws ahead: it takes about as long as
        a small network takes for an id."""
        if self.temperature == 0 or device.type != "cuda":
            for _ in range(count):
                yield self.draw(vocab, device)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead: deque[Future[Tensor]] = deque()
            for i in range(count):
                while len(ahead) < min(AHEAD, count - i):
                    ahead.append(pool.submit(self._drawn, vocab, True))
                yield ahead.popleft().result().to(device, non_blocking=True)

    def _drawn(self, vocab: int, pin: bool) -> Tensor:
        drawn = [torch.empty(vocab).exponential_(generator=g) for g in self.generators]
        noise = torch.stack(drawn).clamp(min=torch.finfo(torch.float32).tiny).log()
        return noise.pin_memory() if pin else noise

    def pick(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Logits `[B,V]` float32 and the numbers of :meth:`draw` -> ids `[B]`. The host waits for
        nothing here, on a GPU."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return (logits - noise).argmax(-1)
