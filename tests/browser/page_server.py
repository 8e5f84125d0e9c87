"""A small server that the real ComfyUI front end can live with: our extension, our nodes' real
schemas, and the HTTP and websocket messages that the page asks for. Prompts are really executed,
with the core nodes of comfy_host.py.

It runs in a thread of its own, so that tests can drive the browser synchronously.
"""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

PACK = "videoflextok"  # what the clone is called below custom_nodes
PACK_ROOT = Path(__file__).resolve().parents[2]
WEB = PACK_ROOT / "vft_nodes" / "web"
LOCALES = PACK_ROOT / "locales"
BLUEPRINTS = {f"blueprint-{i}": f for i, f in enumerate((PACK_ROOT / "subgraphs").glob("*.json"))}
EMPTY_LISTS = ("embeddings", "userdata", "v2/userdata", "experiment/models", "models", "assets")
EMPTY_OBJECTS = ("workflow_templates", "internal/folder_paths", "node_replacements")


class Server:
    """`static` is the front end's folder, `host` a comfy_host.Host, `object_info` what /object_info
    answers, `settings` the page's own ("Comfy.VueNodes.Enabled", …)."""

    def __init__(
        self, static: Path, host: Any, object_info: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        self.static, self.host, self.object_info = static, host, object_info
        self.settings = settings
        self.prompts: list[dict[str, Any]] = []
        self.finished = 0  # of them
        self.uploads: list[Path] = []
        self.unknown: list[str] = []  # requests that nothing answers
        self.url = ""
        self._sockets: set[web.WebSocketResponse] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()

    # -------------------------------------------------------------- life

    def start(self) -> Server:
        self._thread.start()
        if not self._ready.wait(30):
            raise RuntimeError("the test server did not start")
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def send(self, kind: str, data: Any) -> None:
        """A websocket message to all pages, from any thread."""
        asyncio.run_coroutine_threadsafe(self._send(kind, data), self._loop).result(30)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/ws", self._websocket)
        for method, path, handler in self._routes():
            app.router.add_route(method, path, handler)
            app.router.add_route(method, "/api" + path, handler)
        app.router.add_route("*", "/{path:.*}", self._file)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    # -------------------------------------------------------------- what the page asks for

    def _routes(self) -> list[tuple[str, str, Any]]:
        fixed: dict[str, Any] = {
            "object_info": self.object_info,
            "users": {"storage": "server", "migrated": True},
            "features": {},
            "extensions": [f"/extensions/{PACK}/{p.relative_to(WEB).as_posix()}"
                           for p in sorted(WEB.rglob("*.js"))],
            "i18n": translations(),
            "global_subgraphs": {name: blueprint(file) for name, file in BLUEPRINTS.items()},
            **{f"global_subgraphs/{name}": blueprint(file) | {"data": file.read_text("utf-8")}
               for name, file in BLUEPRINTS.items()},
            "queue": {"queue_running": [], "queue_pending": []},
            "history": {},
            "history_v2": {},
            "jobs": {"jobs": [], "pagination": {"offset": 0, "limit": 0, "total": 0,
                                                "has_more": False}},
            "system_stats": {
                "system": {"os": "posix", "ram_total": 1, "ram_free": 1, "argv": ["main.py"],
                           "comfyui_version": "0.3.62", "python_version": "3.11",
                           "pytorch_version": "2.8", "embedded_python": False},
                "devices": [],
            },
            **{name: [] for name in EMPTY_LISTS}, **{name: {} for name in EMPTY_OBJECTS},
        }  # fmt: skip
        routes = [("GET", f"/{name}", _answer(value)) for name, value in fixed.items()]
        return [
            *routes,
            ("GET", "/settings", self._settings),
            ("POST", "/settings", self._set),
            ("POST", "/settings/{id}", self._set),
            ("GET", "/prompt", _answer({"exec_info": {"queue_remaining": 0}})),
            ("POST", "/prompt", self._prompt),
            ("POST", "/upload/image", self._upload),
            ("GET", "/view", self._view),
        ]

    async def _settings(self, _: web.Request) -> web.Response:
        return web.json_response(self.settings)

    async def _set(self, request: web.Request) -> web.Response:
        value, name = await request.json(), request.match_info.get("id")
        self.settings.update({name: value} if name else value)
        return web.Response()

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        image = form["image"]
        assert isinstance(image, web.FileField)
        folder = self.host.base / "input" / str(form.get("subfolder", ""))
        folder.mkdir(parents=True, exist_ok=True)
        self.uploads.append(folder / image.filename)
        self.uploads[-1].write_bytes(image.file.read())
        answer = {"name": image.filename, "subfolder": str(form.get("subfolder", ""))}
        return web.json_response({**answer, "type": str(form.get("type", "input"))})

    async def _view(self, request: web.Request) -> web.StreamResponse:
        q = request.query
        folder = self.host.base / q.get("type", "output") / q.get("subfolder", "")
        return web.FileResponse(folder / q["filename"])

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets.add(socket)
        status = {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "test"}
        await socket.send_json({"type": "status", "data": status})
        async for message in socket:
            if message.type == WSMsgType.ERROR:
                break
        self._sockets.discard(socket)
        return socket

    async def _send(self, kind: str, data: Any) -> None:
        for socket in list(self._sockets):
            await socket.send_json({"type": kind, "data": data})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["path"]
        extension = f"extensions/{PACK}/"
        root, name = (WEB, name[len(extension):]) if name.startswith(extension) else (
            self.static, name or "index.html")  # fmt: skip
        path = (root / name).resolve()
        if request.method != "GET" or not path.is_file() or root.resolve() not in path.parents:
            self.unknown.append(f"{request.method} /{request.match_info['path']}")
            return web.Response(status=404)
        return web.FileResponse(path, headers={"Cache-Control": "no-store"})

    # -------------------------------------------------------------- prompts

    async def _prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.prompts.append(body)
        name = f"prompt-{len(self.prompts)}"
        self._task = asyncio.ensure_future(self._execute(name, body["prompt"]))
        return web.json_response({"prompt_id": name, "number": 1, "node_errors": {}})

    async def _execute(self, name: str, prompt: dict[str, Any]) -> None:
        """All nodes, each after those it depends on, and the messages of a run."""
        done: dict[str, Any] = {}

        async def result(node: str) -> Any:
            if node not in done:
                entry = prompt[node]
                values = {
                    k: (await result(v[0]))[v[1]] if isinstance(v, list) else v
                    for k, v in entry["inputs"].items()
                }
                at = {"node": node, "display_node": node, "prompt_id": name}
                await self._send("executing", at)
                output = await asyncio.to_thread(self._result, node, entry["class_type"], values)
                if output[1]:
                    await self._send("executed", {**at, "output": output[1]})
                done[node] = output[0]
            return done[node]

        await self._send("execution_start", {"prompt_id": name, "timestamp": 0})
        for node in prompt:
            await result(node)
        await self._send("execution_success", {"prompt_id": name, "timestamp": 1})
        await self._send("executing", {"node": None, "prompt_id": name})
        self.finished += 1

    def _result(self, node: str, kind: str, values: dict[str, Any]) -> tuple[Any, Any]:
        """A node's results, and what its `executed` message says."""
        from comfy_host import CORE

        if kind not in CORE:
            output = self.host.run(kind, unique_id=node, **values)
            return output.result, output.ui
        results = CORE[kind](**values)
        if kind == "SaveVideo":
            path = results[0].relative_to(self.host.base / "output")
            file = {"filename": path.name, "subfolder": str(path.parent), "type": "output"}
            return results, {"images": [file], "animated": [True]}
        shown = {"PreviewImage": "images", "PreviewAny": "text"}.get(kind)
        return results, {shown: results[0] if shown == "images" else results} if shown else None


def _answer(value: Any) -> Any:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(value)

    return handler


def blueprint(file: Path) -> dict[str, Any]:
    """What ComfyUI's list of subgraph blueprints says of a pack's file."""
    return {"source": "custom_node", "name": file.stem,
            "info": {"node_pack": f"custom_nodes.{PACK}"}}  # fmt: skip


def translations() -> dict[str, Any]:
    """The pack's locales, as ComfyUI's /i18n gives them: language -> file's stem -> content."""
    return {
        folder.name: {f.stem: json.loads(f.read_text("utf-8")) for f in folder.glob("*.json")}
        for folder in sorted(LOCALES.glob("*"))
    }
