"""Download a published model: the only node that opens a connection."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io

from ..vft_lib import VftError
from ..vft_lib.models.catalog import catalog
from . import host
from .listed import stamp_model
from .loaders import holds_model
from .types import advanced, checked, schema


class DownloadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VFTDownloadModel", "Download VFT Model",
            description="Fetches a published model into models/videoflextok (DINOv2: clip_vision), "
            "verifies and converts it. Nothing else in this pack ever opens a connection. "
            "Afterwards press R, and it is in the loaders' lists.",
            search_aliases=["videoflextok download"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "model", options=list(catalog()),
                    tooltip="The published models; sizes and licences are shown before anything "
                    "is fetched.",
                ),
                io.Boolean.Input(
                    "accept_licence", default=False,
                    tooltip="Off: only show the licence and the size. On: you accept the licence; "
                    "download.",
                ),
                advanced(io.Combo.Input(
                    "dtype", options=["bfloat16", "float16", "as published"], default="bfloat16",
                    tooltip="Number format of the file that is written; half the size in 16 bits.",
                )),
            ],
            outputs=[io.String.Output(display_name="file",
                                      tooltip="The file's name, as the loaders list it.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, model: str | None, **_: object) -> str:
        if model is None:  # a link will bring it
            return ""
        path = host.download_folder(catalog()[model].kind) / catalog()[model].file_name
        return stamp_model(path) if path.exists() else "missing"

    @classmethod
    @checked
    def execute(cls, model: str, accept_licence: bool, dtype: str) -> io.NodeOutput:
        from ..vft_lib.models.hub import download

        work, entry = host.Work(cls.hidden), catalog()[model]
        path = host.download_folder(entry.kind) / entry.file_name
        text = f"{model}: {entry.about}\n{entry.facts}"
        if not path.exists() and not accept_licence:
            text += f"\nfrom {entry.hub_id}\nSet accept_licence to fetch it into {path.parent}"
            return io.NodeOutput(entry.file_name, ui={"text": (text,)})
        if path.exists():
            if not holds_model(path):
                raise VftError(
                    f"{path} is there but holds no model (perhaps the published file without its "
                    "config, as the missing-models dialog fetches it): delete it and run again"
                )
            text += f"\n{path.name} is in {path.parent}; to fetch it with another dtype, delete it"
            return io.NodeOutput(path.name, ui={"text": (text,)})

        def progress(label: str) -> host.Work:
            work.say(f"{label}\n{entry.facts}")
            return work

        cast = None if dtype == "as published" else getattr(torch, dtype)
        try:
            path = download(model, path.parent, cast, progress=progress, note=work.say)
        except VftError as e:
            if "`vft " not in str(e):
                raise
            pack = Path(__file__).parents[1]
            raise VftError(
                f"{e}. Instead of `vft download`, run this node again; `vft convert` is `python -m "
                f"vft_lib convert` in {pack}"
            ) from None
        text += f"\n{path.name} is in {path.parent}"
        return io.NodeOutput(path.name, ui={"text": (text,)})
