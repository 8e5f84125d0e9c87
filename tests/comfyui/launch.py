"""Runs a ComfyUI's main.py: `python launch.py path/to/main.py [its arguments]`.

It has no network but loopback; with VFT_REACHED set, the hosts that it asked for are written into
the file of that name, a line each, with what asked.

torchvision's wheels for CUDA import on a CPU torch only if the operators that their binary would
have registered exist. Where that binary does not load, this names them; nothing calls them.
"""

from __future__ import annotations

import importlib.machinery
import os
import runpy
import sys
import traceback
from pathlib import Path


class TorchvisionOperators:
    """Import hook: acts when torchvision is first asked for, so that main.py comes before torch."""

    library = None  # its operators live as long as it does

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        """Never finds anything; the next finder does."""
        if name != "torchvision" or cls.library is not None:
            return
        import torch

        spec = importlib.machinery.PathFinder.find_spec(name)
        folders = (spec and spec.submodule_search_locations) or []
        try:
            for binary in (file for folder in folders for file in Path(folder).glob("_C*")):
                torch.ops.load_library(str(binary))
        except OSError:
            cls.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                cls.library.define(f"{operator}(Tensor dets, Tensor scores, float iou) -> Tensor")


def note(host: str) -> None:
    """A line on a host that this process asked for."""
    if file := os.environ.get("VFT_REACHED"):
        frames = traceback.extract_stack()[:-2]
        places = [f"{frame.filename}:{frame.lineno}" for frame in reversed(frames)]
        with open(file, "a", encoding="utf-8") as log:
            log.write(f"{host} from {' < '.join(places)}\n")


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from offline import stay_on_this_machine

    stay_on_this_machine(note)
    sys.meta_path.insert(0, TorchvisionOperators)
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
