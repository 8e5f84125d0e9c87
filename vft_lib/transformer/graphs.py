"""Steps whose shapes never change: captured once as a CUDA graph and then replayed, or compiled.

Launching the kernels of a small step one by one takes the host longer than the GPU needs to run
them; a replay launches all of them at once. The results are the same, to the bit: the same kernels
run on the same numbers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .masks import holding

log = logging.getLogger(__name__)

Outputs = tuple[Tensor, ...]
Step = Callable[..., Outputs]
Replay = Callable[[], Outputs]
Capture = Callable[[Step, Outputs], Replay]
Use = Literal["auto", "on", "off"]

WARM = 2  # calls of a step before it is captured: libraries and compilers settle in them
HELD = 4  # captured steps at most; each holds the memory of its activations
SMALL = 8192  # rows of a step; with more of them the GPU takes longer than the host
LAG = 2  # steps that the host may be ahead of the GPU where somebody watches


def cuda_capture(step: Step, inputs: Outputs) -> Replay:
    """Record the kernels of `step(*inputs)`, which do not run yet."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads (loading, previews) may use the GPU meanwhile: only this one's calls count.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = step(*inputs)
    except BaseException:
        torch.cuda.set_stream(stream)  # a capture that fails would leave its own
        raise

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay


def rehearse(step: Step, inputs: Outputs) -> Replay:
    """What :func:`cuda_capture` does, without a GPU: nothing runs until the replay, which reads the
    same inputs and writes the same outputs each time."""
    kept: list[Tensor] = []

    def replay() -> Outputs:
        new = step(*inputs)
        if not kept:
            kept.extend(torch.empty_like(t) for t in new)
        for old, t in zip(kept, new):
            old.copy_(t)
        return tuple(kept)

    return replay


@dataclass
class _Entry:
    calls: int = 0
    failed: bool = False
    replay: Replay | None = None
    inputs: Outputs = ()
    seen: list[Tensor] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)


class Graphs:
    """The captured steps of one model, by shape.

    `use`: "on", "off", or "auto": where the weights lie on a CUDA device and the step is small.
    A step that cannot be captured is run as it is from then on, `failures` says why.
    """

    def __init__(self, capture: Capture = cuda_capture, use: Use = "auto") -> None:
        self.capture, self.use = capture, use
        self.captured = self.replayed = 0
        self.failures: list[str] = []
        self._entries: dict[Hashable, _Entry] = {}
        self._weights: tuple[int, ...] = ()

    def begin(self, model: nn.Module, device: torch.device, rows: int) -> Graphs | None:
        """Before steps of `rows` rows: this, or None where steps are to run as they are. Captured
        steps read the weights where they lay; if these have moved, the steps are forgotten."""
        tensors = [*model.parameters(), *model.buffers()]
        weights = tuple(t.data_ptr() for t in tensors)
        if weights != self._weights:
            self.clear()
            self._weights = weights
        if self.use == "off" or (self.use == "auto" and rows > SMALL):
            return None
        if self.capture is cuda_capture and device.type != "cuda":
            return None
        if any(t.device.type != device.type for t in tensors):
            return None  # they are brought to the device while the step runs
        return self

    @staticmethod
    def plain(key: Hashable, step: Step, *inputs: Tensor) -> Outputs:
        """:meth:`run` where nothing is captured."""
        return step(*inputs)

    @property
    def held(self) -> int:
        """How many steps are held now."""
        return len(self._entries)

    def clear(self) -> None:
        """Forget all steps and return their memory."""
        if self.capture is cuda_capture and any(e.replay for e in self._entries.values()):
            torch.cuda.synchronize()  # the last replay may still run
        self._entries.clear()

    def run(self, key: Hashable, step: Step, *inputs: Tensor) -> Outputs:
        """`step(*inputs)`. All that changes from call to call is in `inputs`, or in tensors that
        the step itself writes; `key` stands for everything else that it depends on. What it
        returns is the caller's own."""
        key = key, tuple((t.shape, t.dtype, t.device) for t in inputs)
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= HELD:
                self.clear()
            entry = self._entries[key] = _Entry()
        entry.calls += 1
        if entry.failed or entry.calls <= WARM:
            return step(*inputs)
        if entry.replay is None and not self._capture(entry, step, inputs):
            return step(*inputs)
        assert entry.replay is not None
        changed = [i for i, new in enumerate(inputs) if entry.seen[i] is not new]
        if changed:  # what stays the same is copied once
            torch._foreach_copy_([entry.inputs[i] for i in changed], [inputs[i] for i in changed])
            entry.seen = list(inputs)
        self.replayed += 1
        return tuple(t.clone() for t in entry.replay())

    def _capture(self, entry: _Entry, step: Step, inputs: Outputs) -> bool:
        entry.inputs = tuple(t.clone() for t in inputs)
        entry.seen = list(inputs)
        try:
            with holding(entry.held):
                entry.replay = self.capture(step, entry.inputs)
        except Exception as e:  # whatever a driver, a kernel library or a hook may raise
            entry.failed, entry.inputs, entry.seen = True, (), []
            why = _why(e)
            self.failures.append(why)
            log.warning("a step cannot be captured as a CUDA graph and runs without: %s", why)
            return False
        self.captured += 1
        return True


def _why(e: BaseException) -> str:
    return f"{type(e).__name__}: {(str(e).strip() or 'no message').splitlines()[0]}"


def refused(e: BaseException) -> str:
    """Why torch.compile gave up, in one line, and what to install where that is the remedy."""
    said = _why(getattr(e, "inner_exception", None) or e)
    if "compiler" in said.lower():  # inductor's words, and Triton's
        said += "; install one (g++ or clang), or do not compile"
    return said


class Compiled:
    """A step through torch.compile, for each shape anew. Where it cannot be compiled (no compiler,
    no Triton, a call that cannot be traced) it runs as written from then on; `problem` says why.
    `done`: whether it has run compiled."""

    def __init__(
        self, step: Callable[..., Any], backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        self.step, self.done, self.problem = step, False, ""
        self._failures = TorchDynamoException
        self._compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, *inputs: Any) -> Any:
        if not self.problem:
            try:
                result = self._compiled(*inputs)
                self.done = True
                return result
            except self._failures as e:
                self.problem = refused(e)
                log.warning("a step runs as written, not compiled: %s", self.problem)
        return self.step(*inputs)


class Pace:
    """Keeps the host close to the GPU, so that progress means something and a cancel acts soon, and
    never lets the GPU run dry: called after each step, it waits for the one `lag` before."""

    def __init__(self, device: torch.device, lag: int = LAG) -> None:
        self.cuda, self.lag = device.type == "cuda", lag
        self._events: deque[torch.cuda.Event] = deque()

    def __call__(self) -> None:
        if not self.cuda:
            return
        event = torch.cuda.Event()
        event.record()
        self._events.append(event)
        if len(self._events) > self.lag:
            self._events.popleft().synchronize()
