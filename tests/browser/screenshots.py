"""The README's pictures: `cd tests && PYTHONPATH=.. python -m browser.screenshots`.

Each workflow that needs nothing beyond the pack is really run first, so that its results show.
Written to docs/screenshots in 256 colours: less than 100 kB each.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

from comfy_host import Host
from PIL import Image
from playwright.sync_api import sync_playwright

from browser.conftest import FLAGS, chromium, open_app
from browser.page_server import PACK_ROOT

WORKFLOWS = PACK_ROOT / "workflows"
OUT = PACK_ROOT / "docs" / "screenshots"


def save(png: bytes, path: Path) -> None:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    # Few greys and many soft colours: this pair of options keeps both.
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    few.save(path, optimize=True)


def main(names: list[str]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    host = Host(Path(tempfile.mkdtemp()))
    found = {p: json.loads(p.read_text("utf-8")) for p in sorted(WORKFLOWS.glob("*.json"))}
    for workflow in found.values():  # no warnings of missing models in the pictures
        for node in workflow["nodes"]:
            for model in node.get("properties", {}).get("models", []):
                (host.models / model["name"]).touch()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        app = open_app(browser, host, nodes2=False)
        for path, workflow in found.items():
            if names and path.stem not in names:
                continue
            app.open(workflow, path.stem)
            if not any(n["type"] == "VFTDownloadModel" for n in workflow["nodes"]):
                app.run(600)
            app.page.wait_for_timeout(2000)  # videos load
            app.fit()
            app.page.wait_for_timeout(1500)  # their controls take their places
            save(app.page.screenshot(), OUT / f"{path.stem}.png")
        app.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
