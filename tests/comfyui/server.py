"""A real ComfyUI on the CPU with a node pack linked in, and what a client of it sees."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfyui.messages import Run, read_binary, read_text
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

LAUNCHER = Path(__file__).with_name("launch.py")
PACK_NAME = "videoflextok-nodes"  # the folder a registry installation makes
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class ComfyUI:
    """A ComfyUI process of our own: its base directory, its port, its log.

    `checkout` is left as it is: models, custom_nodes, input, output, temp and user lie under
    `base`, with `pack` linked into custom_nodes. Use it as a context manager; entering waits until
    the server answers.

    Raises:
        RuntimeError: the process ended or did not answer in time; the message ends with its log.
    """

    def __init__(self, checkout: Path, python: Path, base: Path, pack: Path) -> None:
        self.checkout, self.python, self.base = checkout.resolve(), python, base
        for name in ("custom_nodes", "input", "output", "temp", "user", "models", "home", "extra"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / PACK_NAME).symlink_to(pack.resolve(), target_is_directory=True)
        paths = f"elsewhere:\n  base_path: {base}\n  videoflextok: extra\n"
        (base / "extra_model_paths.yaml").write_text(paths)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyUI:
        command = [str(self.python), str(LAUNCHER), str(self.checkout / "main.py"), "--cpu"]
        command += ["--disable-auto-launch", "--disable-api-nodes"]
        command += ["--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--temp-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{self.base}/user/comfyui.db"]
        command += ["--extra-model-paths-config", str(self.base / "extra_model_paths.yaml")]
        # Caches of models would go to the home directory. Large blocks get memory maps of their
        # own, which go back to the system when freed: the process' size tells what it holds.
        changes = {"HOME": str(self.base / "home"), "MALLOC_MMAP_THRESHOLD_": "262144"}
        changes["VFT_HOME"] = changes["HF_HOME"] = str(self.base / "home" / "models")
        changes["PYTHONUNBUFFERED"] = "1"
        changes["VFT_REACHED"] = str(self.base / "reached.txt")
        with (self.base / "comfyui.log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.base,
                env=os.environ | changes,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self, limit: float = 300) -> None:
        """Returns once /system_stats answers; importing everything takes 20 to 60 seconds."""
        assert self.process is not None
        start = time.monotonic()
        while time.monotonic() - start < limit:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with {self.process.returncode}:\n{self.log}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not answer within {limit:.0f} s:\n{self.log}")

    def stop(self) -> None:
        """Ends the process; what it wrote stays."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        """All that the process printed so far, without colours."""
        return ANSI.sub("", (self.base / "comfyui.log").read_text(errors="replace"))

    @property
    def reached(self) -> list[str]:
        """Hosts beyond this machine that the process asked for, and what asked (see launch.py)."""
        file = self.base / "reached.txt"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def memory(self) -> int:
        """The process' resident memory that no file backs, in bytes."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
        assert found, "the kernel does not say RssAnon"
        return int(found[1]) * 1024

    def fetch(
        self, path: str, body: bytes | dict[str, Any] | None = None, kind: str = "application/json"
    ) -> bytes:
        """What the server answers to a GET, or to a POST of `body`.

        Raises:
            RuntimeError: any other answer than success; the message has what the server said.
        """
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        if data is not None:
            request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            raise RuntimeError(f"{path}: {error.code} {text}") from None

    def get(self, path: str) -> Any:
        """What the server answers to a GET, parsed."""
        return json.loads(self.fetch(path))

    def view(self, file: dict[str, str]) -> bytes:
        """An output file, as the browser gets it, by its entry in a node's outputs."""
        keys = ("filename", "subfolder", "type")
        return self.fetch("/view?" + urllib.parse.urlencode({key: file[key] for key in keys}))

    def upload(self, name: str, content: bytes) -> str:
        """Puts a file into the input folder as the browser does; the name it got there."""
        border = uuid.uuid4().hex
        head = f'Content-Disposition: form-data; name="image"; filename="{name}"'
        body = f"--{border}\r\n{head}\r\n\r\n".encode() + content + f"\r\n--{border}--".encode()
        kind = f"multipart/form-data; boundary={border}"
        return str(json.loads(self.fetch("/upload/image", body, kind))["name"])

    def interrupt(self) -> None:
        """The Cancel button."""
        self.fetch("/interrupt", {})

    def free(self) -> None:
        """The button Unload Models and Free Memory; returns when that is done: its memory has been
        the same for four seconds, as nothing else tells of it, and a machine may be busy.

        Pressed twice: it sets two flags, and a worker that acts on the first may miss the second
        one until something else wakes it.
        """
        for _ in range(2):
            self.fetch("/free", {"unload_models": True, "free_memory": True})
            if not Path("/proc/self/status").exists():
                time.sleep(2)
                continue
            seen = [self.memory]
            while len(seen) < 5 or max(seen[-5:]) - min(seen[-5:]) > 1 << 20:
                time.sleep(1)
                seen.append(self.memory)

    @contextmanager
    def page(self, client: str) -> Iterator[ClientConnection]:
        """What a page of the browser hears, under a name of its own."""
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={client}"
        with connect(address, max_size=None, proxy=None) as channel:
            flags = {"supports_preview_metadata": True}
            channel.send(json.dumps({"type": "feature_flags", "data": flags}))
            yield channel

    def run(
        self,
        prompt: dict[str, Any],
        limit: float = 180,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> Run:
        """Queues a prompt in API format and listens until it ends.

        `on_progress(node id, value, of how many)` is called as the messages come.

        ComfyUI leaves out outputs whose inputs are wrong (`Run.refused`) as long as one is right.

        Raises:
            RuntimeError: the server refused the whole prompt; the message says why.
            TimeoutError: no end within `limit` seconds; the prompt was interrupted.
        """
        client = uuid.uuid4().hex
        with self.page(client) as channel:
            start = time.monotonic()
            body = {"prompt": prompt, "client_id": client}
            answer = json.loads(self.fetch("/prompt", body))
            run = Run(answer["prompt_id"], refused=answer.get("node_errors", {}))
            try:
                while not run.status:
                    message = self._receive(channel, start + limit - time.monotonic())
                    if isinstance(message, bytes):
                        read_binary(run, message)
                    else:
                        read_text(run, json.loads(message), on_progress)
            except TimeoutError:
                self.interrupt()
                raise TimeoutError(
                    f"no end of the prompt within {limit:.0f} s; ran: {run.executed}, "
                    f"progress: {run.progress[-1:]}"
                ) from None
            run.seconds = time.monotonic() - start
        run.outputs = self._outputs(run.prompt_id)
        return run

    def _receive(self, channel: ClientConnection, seconds: float) -> str | bytes:
        try:
            return channel.recv(max(seconds, 0))
        except ConnectionClosed:
            raise RuntimeError(f"ComfyUI hung up:\n{self.log[-3000:]}") from None

    def _outputs(self, prompt_id: str) -> dict[str, dict[str, Any]]:
        # The last message is sent shortly before the history has the prompt.
        for _ in range(50):
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return dict(history[prompt_id]["outputs"])
            time.sleep(0.1)
        raise RuntimeError(f"prompt {prompt_id} is not in the history")
