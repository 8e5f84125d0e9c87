"""The same shards on many machines: Ray Data hands them to actors that hold the model.

Ray schedules, restarts and retries; what it retries is a shard, and a shard that is made twice is
the same file under the same name. All machines see the source and the folder of shards.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import VftError
from ..tokenizer.tokenizer import Tokenizer
from .plan import Plan, read_shard
from .sources import open_source
from .tokenizing import Machine

LOCAL = "local"


@dataclass(frozen=True)
class Cluster:
    """`address` as Ray takes it, or `LOCAL`: one that is started here and ends with this process.
    `actors`: models at work (None: one a GPU, or without any, as many as the cores allow);
    `workers`: decoders of each."""

    address: str = LOCAL
    actors: int | None = None
    workers: int = 1
    batch: int = 4


def run_on(
    cluster: Cluster, source: Path, plan: Plan, load: Callable[[], Tokenizer], folder: Path,
    units: Sequence[int],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Make these shards; yields what became of each: {"unit", "records", "failed"}. `load` and the
    paths mean the same on every machine. VftError without Ray, or where it cannot be reached."""
    ray = _ray()
    try:
        if cluster.address == LOCAL:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error",
                     _node_ip_address="127.0.0.1")  # fmt: skip
        else:
            ray.init(cluster.address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as e:
        raise VftError(f"Ray cannot be reached at {cluster.address}: {e}") from None
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        there = ray.cluster_resources()
        gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1))
        actors = cluster.actors or gpus or max(1, cores // cluster.workers)
        tasks = ray.data.from_items(
            [{"unit": unit} for unit in units], override_num_blocks=len(units)
        )
        made = tasks.map_batches(
            Maker, batch_size=1, num_gpus=1 if gpus else 0, num_cpus=cluster.workers,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(units))),
            fn_constructor_args=(source.resolve(), plan, load, folder.resolve(), cluster),
        )  # fmt: skip
        yield from made.iter_rows()
    finally:
        ray.shutdown()


class Maker:
    """An actor: the model and its decoders, which stay from shard to shard."""

    def __init__(
        self, source: Path, plan: Plan, load: Callable[[], Tokenizer], folder: Path,
        cluster: Cluster,
    ) -> None:  # fmt: skip
        clips = open_source(source)
        if clips.mark != plan.source:
            raise VftError(f"{source} is not the same on all machines")
        tokenizer = load()
        if tokenizer.fingerprint != plan.fingerprint:
            raise VftError(f"tokenizer {plan.tokenizer} is not the same on all machines")
        self.folder = folder
        self.machine = Machine(
            clips, plan, tokenizer, folder, workers=cluster.workers, batch=cluster.batch
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {"unit": [], "records": [], "failed": []}
        for unit in map(int, batch["unit"]):
            shard = read_shard(self.folder, unit)  # there, where a retry follows a lost answer
            if shard is None:
                (shard,) = self.machine.run([unit])
            rows["unit"].append(unit)
            rows["records"].append(len(shard.rows))
            rows["failed"].append(len(shard.failures))
        return rows


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
        import ray.data
    except ImportError:
        raise VftError('--ray needs Ray: pip install ".[cluster]"') from None
    return ray
