"""The loop that writes ids, one after another, into a flat row."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..transformer.graphs import Graphs, Outputs
from .network import Cache, Condition
from .sampling import Sampler, guide

if TYPE_CHECKING:
    from .prior import Prior


def write_ids(
    prior: Prior, condition: Condition, flat: Tensor, m: int, guidance: float, choose: Sampler,
    known: Tensor | None,
) -> Generator[int, None, None]:  # fmt: skip
    """Write ids into `flat` `[B,length]` from position `m` on; yields how many there are after
    each. The arguments as in `Prior.sample`. CUDA graphs of the step are left to be cleared."""
    length, rows, guided = flat.shape[1], len(condition.start), guidance != 1
    network = prior.network
    known = None if known is None else known.to(prior.device)
    graphs = prior.graphs.begin(network, prior.device, rows)
    # Shapes never change: a captured or compiled step needs that, and on a GPU a library would
    # plan its attention anew for every length of the cache.
    fixed = graphs is not None or prior.compiled is not None or prior.device.type == "cuda"
    if fixed:
        condition = condition.additive(network.positions.dtype)
    cache = Cache(prior.config, rows, length, network.positions)
    given = flat[:, :m].repeat(2, 1) if guided else flat[:, :m]
    hidden = network.trunk(network.inputs(given, condition), condition, cache)
    step = prior.compiled or prior.step
    # Where the next id goes: on the device, so that nothing has to be sent there for each.
    here = torch.full((1,), m, device=prior.device)

    def write(hidden: Tensor, noise: Tensor, at: int | Tensor) -> None:
        logits = network.head(hidden[:, -1]).float()
        chosen = choose.pick(guide(logits, guidance) if guided else logits, noise)
        if known is not None:
            forced = column(known, at)
            chosen = torch.where(forced >= 0, forced, chosen)
        if isinstance(at, int):
            flat[:, at] = chosen
        else:
            flat.index_copy_(1, at, chosen[:, None])

    def next_id(noise: Tensor, at: int | Tensor = here) -> Outputs:
        before = column(flat, at - 1)
        hidden = step(before.repeat(2) if guided else before, condition, cache, at)
        write(hidden, noise, at)
        if isinstance(at, Tensor):
            at.add_(1)
        return ()

    run = Graphs.plain if graphs is None else graphs.run
    with closing(choose.draws(prior.config.vocab, prior.device, length - m)) as draws:
        for i, noise in enumerate(draws, m):
            if i == m:
                write(hidden, noise, m)
                here.add_(1)
            elif fixed:
                run("next id", next_id, noise)
            else:
                next_id(noise, i)
            yield i + 1


def column(x: Tensor, at: int | Tensor) -> Tensor:
    """Column `at` of `[B,n]`, `at` a number or a tensor [1] on the device."""
    return x[:, at] if isinstance(at, int) else x.index_select(1, at)[:, 0]
