"""Clips of the procedural world, drawn ahead by all cores while something else runs."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import VftError
from ..world import world

HELD_OUT_SEEDS = range(1_000_000)  # worlds that training never sees


def training_seeds(count: int, seed: int) -> list[int]:
    """Seeds of `count` worlds to train on."""
    drawn = np.random.default_rng(seed).integers(HELD_OUT_SEEDS.stop, 1 << 40, count)
    return [int(s) for s in drawn]


class Worlds:
    """The clips of `seeds`, uint8 `[N,frames,size,size,3]`, drawn by `processes` processes from the
    moment this is built, and kept (0: by this process, whenever they are asked for). `draw` makes
    a scene of a seed.

    The memory for all of them is reserved at once and shared; pages are taken as they are drawn.
    """

    def __init__(
        self, seeds: Sequence[int], frames: int, size: int, processes: int = 0,
        draw: Callable[[int], world.Scene] = world.draw_scene,
    ) -> None:  # fmt: skip
        self.seeds, self.draw = list(seeds), draw
        self.frames, self.size = frames, size
        self._workers: list[multiprocessing.process.BaseProcess] = []
        if not processes or not seeds or "fork" not in multiprocessing.get_all_start_methods():
            return
        shape = (len(self.seeds), frames, size, size, 3)
        count = int(np.prod(shape))
        self._video = np.frombuffer(mmap.mmap(-1, count), np.uint8).reshape(shape)
        self._done = np.frombuffer(mmap.mmap(-1, len(self.seeds)), np.uint8)
        fork = multiprocessing.get_context("fork")
        for i in range(processes):
            worker = fork.Process(target=self._draw, args=(i, processes), daemon=True)
            worker.start()
            self._workers.append(worker)

    def __len__(self) -> int:
        return len(self.seeds)

    def _draw(self, first: int, stride: int) -> None:
        os.nice(10)  # what runs beside must not wait for it
        for i in range(first, len(self.seeds), stride):
            self._video[i] = self._render(i)
            self._done[i] = 1

    def _render(self, i: int) -> npt.NDArray[np.uint8]:
        return self.draw(self.seeds[i]).render(self.frames, self.size)

    def ready(self) -> int:
        """How many clips at the front can be had at once."""
        if not self._workers:
            return len(self)
        left = np.flatnonzero(self._done == 0)
        return int(left[0]) if len(left) else len(self)

    def clips(self, index: Sequence[int]) -> Tensor:
        """Those clips, uint8 `[n,T,H,W,3]`; waits for what is not drawn yet."""
        index = [int(i) for i in index]
        if not self._workers:
            return torch.from_numpy(np.stack([self._render(i) for i in index]))
        while not self._done[index].all():
            if not any(worker.is_alive() for worker in self._workers):
                raise VftError("the processes that draw procedural clips have ended early")
            time.sleep(0.01)
        return torch.from_numpy(self._video[index])

    def close(self) -> None:
        """Stop drawing ahead; from now on clips are drawn when asked for."""
        for worker in self._workers:
            worker.terminate()
            worker.join()
        self._workers = []
