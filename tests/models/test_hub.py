"""`vft download` against a hub on this machine: real connections, real faults."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from fake_hub import COMMIT, FakeHub, FakeRepo, serve
from published import GOLDEN, SMALL_VAE, VAE_ID, config_of, tensors_of, vae_tensors
from safetensors import safe_open
from safetensors.torch import save

from vft_lib import load_prior, load_tokenizer
from vft_lib.checkpoints import convert
from vft_lib.checkpoints.dino import RENAMED
from vft_lib.checkpoints.parity import make_weights
from vft_lib.cli import vft as cli
from vft_lib.errors import VftError
from vft_lib.models import hub_files, loading
from vft_lib.models.catalog import Entry, catalog
from vft_lib.models.hub import SOURCES, download, fetch_sources, plan
from vft_lib.models.loading import load_image_encoder

NAME, REPO = "videoflextok_d18_d28", "EPFL-VILAB/videoflextok_d18_d28"
ENTRY = catalog()[NAME]
# Larger than the pieces that huggingface_hub writes at a time (10 MB), so that a part is kept.
SCRIPT = "import sys; from vft_lib.cli import vft; sys.exit(vft.main(['download', *sys.argv[1:]]))"
BULK = {"x": np.arange(6_000_000, dtype=np.float32)}
WEIGHTS = safetensors.numpy.save(BULK)
WITH_VAE = safetensors.numpy.save({"vae.x": np.zeros(2000, np.float32)})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model of the catalogue; the models folder is `tmp_path / "models"`."""
    monkeypatch.setenv("VFT_HOME", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with serve() as hub:
        hub.repos[REPO] = FakeRepo({"config.json": b"{}", "model.safetensors": WEIGHTS})
        yield hub


def fetch(hub: FakeHub, folder: Path, entry: Entry = ENTRY, progress: Any = None) -> list[Path]:
    return fetch_sources(plan(entry, hub.endpoint), folder, progress)


def refused(hub: FakeHub, name: str = NAME, **options: Any) -> str:
    """The one line of a download that must fail before anything large is fetched."""
    with pytest.raises(VftError) as e:
        download(name, **({"endpoint": hub.endpoint} | options))
    message = str(e.value)
    assert "\n" not in message
    assert not hub.starts("model.safetensors")
    return message


# ---------------------------------------------------------------------- fetching


def test_files_arrive_whole_and_once(hub: FakeHub, tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def progress(label: str) -> Any:
        return lambda done, total: seen.update({label: (done, total)})

    (folder,) = fetch(hub, tmp_path, progress=progress)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == b"{}"
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json"}
    n = len(WEIGHTS)
    assert seen["fetch model.safetensors"] == seen["verify model.safetensors"] == (n, n)
    assert fetch(hub, tmp_path) == [folder]
    assert hub.starts("model.safetensors") == [0], "what is there is not fetched again"
    assert str(folder).endswith(COMMIT), "pinned to the commit that `main` was"


def test_a_connection_that_breaks_is_taken_up_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[REPO].cuts = [len(WEIGHTS) // 2]
    (folder,) = fetch(hub, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    first, second = hub.starts("model.safetensors")
    assert first == 0 < second < len(WEIGHTS)


def test_a_cancelled_download_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    class CancelledError(Exception):
        pass

    def cancel(label: str) -> Any:
        def update(done: int, total: int) -> None:
            if label == "fetch model.safetensors":
                raise CancelledError

        return update

    with pytest.raises(CancelledError):  # whatever the callback raises comes out as it is
        fetch(hub, tmp_path, progress=cancel)
    (part,) = tmp_path.rglob("*.part")
    kept = part.stat().st_size
    (folder,) = fetch(hub, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.starts("model.safetensors") == [0, kept]
    assert not part.exists()


@pytest.mark.parametrize("where", ["on the way", "in the part kept"])
def test_damaged_bytes_are_thrown_away(hub: FakeHub, tmp_path: Path, where: str) -> None:
    offer = plan(ENTRY, hub.endpoint)[0]
    file = offer.files[1]
    if where == "on the way":
        hub.repos[REPO].damaged = True
    else:
        (tmp_path / f"{file.path}.part").write_bytes(b"not what it began with")
    with pytest.raises(VftError, match=r"model.safetensors arrived damaged") as e:
        hub_files.fetch(offer, file, tmp_path)
    assert "run the same command again" in str(e.value)
    assert list(tmp_path.iterdir()) == []
    hub.repos[REPO].damaged = False
    assert hub_files.fetch(offer, file, tmp_path).read_bytes() == WEIGHTS


def test_a_small_file_is_checked_too(hub: FakeHub, tmp_path: Path) -> None:
    offer = plan(ENTRY, hub.endpoint)[0]
    hub.repos[REPO].files["config.json"] = b"[]"
    with pytest.raises(VftError, match=r"config.json arrived damaged"):
        hub_files.fetch(offer, offer.files[0], tmp_path)
    with pytest.raises(VftError, match=r"config.json arrived damaged"):
        hub_files.read(offer, offer.files[0])


def test_an_autoencoder_is_fetched_from_where_the_config_says(hub: FakeHub, tmp_path: Path) -> None:
    repo = "StabilityLabs/SemanTok"
    entry = catalog()["k600-semantok"]
    config = json.dumps({"hub_vae": {"repo": REPO, "revision": COMMIT}}).encode()
    hub.repos[repo] = FakeRepo(dict(zip(entry.files, (config, WEIGHTS))), licence="other")
    notes: list[str] = []
    offers = plan(entry, hub.endpoint, notes.append)
    assert [o.entry.name for o in offers] == ["k600-semantok", NAME]
    assert offers[0].licence == "Stability AI Community License", "the hub's tag says 'other'"
    assert REPO in notes[0]
    own, vae = fetch(hub, tmp_path, entry)
    assert own.name == "k600-semantok"
    assert (vae / "model.safetensors").read_bytes() == WEIGHTS
    asked = len(hub.starts(f"{COMMIT}/model.safetensors"))
    hub.repos[repo] = FakeRepo(dict(zip(entry.files, (config, WITH_VAE))), commit="ab" * 20)
    assert len(fetch(hub, tmp_path, entry)) == 1, "its own file has an autoencoder"
    assert len(hub.starts(f"{COMMIT}/model.safetensors")) == asked


# ---------------------------------------------------------------------- refusals, in one line


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    message = refused(hub, endpoint="http://127.0.0.1:9")  # nobody listens there
    for part in (
        "cannot be reached", f"`vft download {NAME}`", REPO, "revision main",
        "config.json and model.safetensors", "about 10.5 GB", "licence apache-2.0",
        f"`vft convert FOLDER {tmp_path / 'models' / NAME}.safetensors`",
    ):  # fmt: skip
        assert part in message


def test_a_hub_that_is_down(hub: FakeHub) -> None:
    hub.down = True
    assert f"the hub {hub.endpoint} answered 503; try `vft download {NAME}`" in refused(hub)


def test_a_mirror_that_sends_requests_on(hub: FakeHub, tmp_path: Path) -> None:
    """As mirrors do with what they have not: the token is theirs alone, an error names both."""
    with serve() as mirror:
        mirror.elsewhere = hub.endpoint.replace("127.0.0.1", "localhost")
        (folder,) = fetch(mirror, tmp_path)
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        login = {"HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
        hub.down = True
        hub.requests.clear()
        hub.tokens.clear()
        mirror.tokens.clear()
        with vft(mirror, NAME, "--yes", **login) as run:
            said = run.communicate(timeout=60)[1]
        assert run.returncode == 2
        assert set(mirror.tokens) == {"Bearer hf_secret"}
        assert hub.requests
        assert set(hub.tokens) == {None}
        (line,) = said.splitlines()
        both = f"the hub {mirror.endpoint} sends on to {mirror.elsewhere}, which answered 503; "
        assert both in line
        assert f"try `vft download {NAME}` again later, or with another HF_ENDPOINT" in line
        assert "vft convert" in line
        mirror.elsewhere = "http://127.0.0.1:9"  # nobody listens there
        message = refused(mirror)
        assert f"the hub {mirror.endpoint} sends on to {mirror.elsewhere}, which cannot" in message


def test_a_server_that_ignores_ranges(hub: FakeHub, tmp_path: Path) -> None:
    """All of the file comes after the part that is there, however often the connection breaks."""
    hub.ranges = False
    offer = plan(ENTRY, hub.endpoint)[0]
    file = offer.files[1]
    (tmp_path / f"{file.path}.part").write_bytes(WEIGHTS[:1000])
    hub.repos[REPO].cuts = [len(WEIGHTS) // 2]
    assert hub_files.fetch(offer, file, tmp_path).read_bytes() == WEIGHTS


def test_a_server_that_sends_too_much(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[REPO].sizes = {"model.safetensors": len(WEIGHTS) // 2}
    with pytest.raises(VftError, match=f"the hub {hub.endpoint} sends more than it tells; try"):
        fetch(hub, tmp_path)


def test_a_connection_that_is_lost_for_good(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[REPO].cuts = [len(WEIGHTS) // 2] + [0] * 6
    with pytest.raises(VftError) as e:
        fetch(hub, tmp_path)
    message = str(e.value)
    assert "\n" not in message
    assert "cannot be reached" in message
    assert "it goes on from the 10.5 MB that are here" in message
    assert "24 MB, licence apache-2.0" in message
    assert next(tmp_path.rglob("*.part")).stat().st_size > 0


def test_gated(hub: FakeHub) -> None:
    hub.repos[REPO].gated = True
    message = refused(hub)
    assert f"{REPO} is gated: accept its terms" in message
    assert "`hf auth login`" in message
    assert "vft convert" in message


def test_no_such_repository(hub: FakeHub) -> None:
    assert "no repository org/none, or it is private" in refused(hub, "org/none")


def test_no_such_revision(hub: FakeHub, tmp_path: Path) -> None:
    entry = dataclasses.replace(ENTRY, revision="v2")
    with (
        pytest.raises(VftError, match="has no revision v2"),
        hub_files.explained(entry, tmp_path / "x.safetensors"),
    ):
        plan(entry, hub.endpoint)


def test_no_such_file(hub: FakeHub) -> None:
    hub.repos[REPO].files = {"config.json": b"{}", "weights.bin": b"1"}
    message = refused(hub)
    assert "has no model.safetensors; it has config.json, weights.bin" in message


def test_not_a_hub(hub: FakeHub) -> None:
    hub.repos[REPO].commit = ""
    assert "does not tell the commit" in refused(hub)


def test_a_name_that_is_no_model(hub: FakeHub) -> None:
    assert "no model 'nono' in the catalogue" in refused(hub, "nono")
    assert hub.requests == []


def test_no_space_left(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos[REPO].sizes = {"model.safetensors": 10**18}
    message = refused(hub)
    assert "needs 2e+09 GB of free space" in message
    assert "--to or VFT_HOME" in message


@pytest.mark.parametrize("vae", ["x", {"repo": "../x"}, {"repo": REPO, "revision": "../x"}, {}])
def test_a_config_that_points_elsewhere(hub: FakeHub, vae: Any) -> None:
    hub.repos[REPO].files["config.json"] = json.dumps({"config": {"hub_vae": vae}}).encode()
    assert f"the config of {REPO} has hub_vae" in refused(hub)


def test_saying_no(hub: FakeHub, tmp_path: Path) -> None:
    shown: list[str] = []

    def confirm(offers: Any, target: Path) -> bool:
        assert target == tmp_path / "models" / f"{NAME}.safetensors"
        shown.extend(o.describe() for o in offers)
        return False

    assert "nothing was downloaded" in refused(hub, confirm=confirm)
    assert "licence  apache-2.0; commercial use: yes" in shown[0]
    assert "size     24 MB in 2 file(s)" in shown[0]
    assert not (tmp_path / "models").exists()


# ---------------------------------------------------------------------- the command


def vft(hub: FakeHub, *args: str, script: str = SCRIPT, **env: str) -> subprocess.Popen[str]:
    """The command in a process of its own, which takes the hub from its environment."""
    here = Path(__file__).parents[1]
    env = {"HF_HUB_DOWNLOAD_TIMEOUT": "300"} | env  # on a busy machine the hub may be paused long
    env = {"HF_ENDPOINT": hub.endpoint, "PYTHONPATH": f"{here.parent}:{here}"} | env
    return subprocess.Popen(
        [sys.executable, "-c", script, *args], env=os.environ | env, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_list(hub: FakeHub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{NAME}.safetensors").touch()
    assert cli.main(["download", "--list"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 29
    assert rows[1].split()[:6] == [NAME, "tokenizer", "~10.5", "GB", "apache-2.0", "yes"]
    assert rows[2].split()[5:6] == ["no"]
    assert str(tmp_path / "models") in rows[-1]
    assert cli.main(["download", "--list", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert len(models) == 27
    assert models[0]["file"] == str(tmp_path / "models" / f"{NAME}.safetensors")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("args", "said"), [([], "NAME"), ([NAME, "--list"], "NAME"), ([NAME], "--yes agrees")]
)
def test_usage(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str], hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert cli.main(["download", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert hub.requests == []


def test_offline_mode_is_one_line(hub: FakeHub) -> None:
    run = vft(hub, NAME, "--yes", HF_HUB_OFFLINE="1")
    out, err = run.communicate(timeout=120)
    assert (run.returncode, out) == (2, "")
    assert err.startswith("vft: error: HF_HUB_OFFLINE forbids to ask the hub")
    assert err.count("\n") == 1
    assert hub.requests == []


# ---------------------------------------------------------------------- all of it


def weights_of(case: str, vae: bool) -> bytes:
    """The published weight file of a parity case: its autoencoder, or everything else."""
    tensors = vae_tensors() if vae else tensors_of(case)
    return save({k: v for k, v in tensors.items() if vae or ".vae." not in k})


@pytest.fixture
def borrowing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A model whose config takes its autoencoder (a small one here) from the hub's other model."""
    monkeypatch.setitem(convert.VAES, VAE_ID, SMALL_VAE)
    entry = catalog()["k600-videoflextok"]
    config = config_of("time-causal") | {"hub_vae": {"repo": REPO, "revision": COMMIT}}
    files = (json.dumps(config).encode(), weights_of("time-causal", vae=False))
    hub.repos[entry.repo] = FakeRepo(dict(zip(entry.files, files)), licence="other")
    hub.repos[REPO].files["model.safetensors"] = weights_of("vae", vae=True)
    return entry


def test_from_a_name_to_an_image_encoder(hub: FakeHub) -> None:
    """The file that is written keeps the published names: ComfyUI's loader knows it by them."""
    pytest.importorskip("transformers", reason="transformers is missing: pip install .[dino]")
    with pytest.raises(VftError, match="image encoder 'dinov2-large' is not on this machine"):
        load_image_encoder()
    facts = json.loads((GOLDEN / "semantok-features" / "config.json").read_text())["dinov2"]
    state = json.loads((GOLDEN / "semantok-features" / "state.json").read_text())
    weights = {_published(key): make_weights(state, key) for key in state}
    entry = catalog()["dinov2-large"]
    config = json.dumps(facts | {"model_type": "dinov2", "torch_dtype": "float32"}).encode()
    hub.repos[entry.repo] = FakeRepo(dict(zip(entry.files, (config, save(weights)))))
    path = download(entry.name, endpoint=hub.endpoint)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    assert names == set(weights)
    assert "encoder.layer.1.attention.attention.query.weight" in names
    encoder = load_image_encoder(device="cpu")
    assert encoder.width == 32
    assert encoder.states(torch.zeros(1, 3, 224, 224)).shape == (1, 257, 32)
    with pytest.raises(VftError, match="is an image encoder, not a tokenizer"):
        load_tokenizer(entry.name, device="cpu")
    with pytest.raises(VftError, match="is a tokenizer, not an image encoder"):
        load_image_encoder("k600-semantok")


def _published(key: str) -> str:
    for old, new in RENAMED:
        key = key.replace(new, old)
    return key


def test_from_a_name_to_a_prior(hub: FakeHub, tmp_path: Path) -> None:
    entry = catalog()["k600-semantok-d16"]
    state = json.loads((GOLDEN / "prior-class" / "state.json").read_text())
    weights = save({key: make_weights(state, key) for key in state})
    files = ((GOLDEN / "prior-class" / "config.json").read_bytes(), weights)
    hub.repos[entry.repo] = FakeRepo(dict(zip(entry.files, files)), licence="other")
    path = download(entry.name, endpoint=hub.endpoint)
    prior = load_prior(entry.name, device="cpu")
    assert prior.config.name == entry.name
    assert (prior.config.depth, len(prior.config.classes)) == (2, 7)
    assert prior.network.state_dict()["start"].shape == (128,)
    with pytest.raises(VftError, match="is a prior, not a tokenizer"):
        load_tokenizer(entry.name, device="cpu")
    assert path == tmp_path / "models" / f"{entry.name}.safetensors"


def test_from_a_name_to_a_tokenizer(borrowing: Entry, hub: FakeHub, tmp_path: Path) -> None:
    notes: list[str] = []
    path = download(
        borrowing.hub_id, dtype=torch.float16, endpoint=hub.endpoint, note=notes.append,
        keep_source=True,
    )  # fmt: skip
    assert path == tmp_path / "models" / f"{borrowing.name}.safetensors"
    record = json.loads(path.with_suffix(".json").read_text())
    assert [(r["repo"], r["commit"]) for r in record] == [(borrowing.repo, COMMIT), (REPO, COMMIT)]
    with safe_open(path, "np") as f:
        assert f.metadata()["license"] == "Stability AI Community License"
    tokenizer = load_tokenizer(borrowing.name, device="cpu")
    assert tokenizer.config.name == borrowing.name
    source, vae = (tmp_path / "models" / SOURCES).rglob("model.safetensors")
    if "SemanTok" not in str(source):
        source, vae = vae, source
    again = tmp_path / "again.safetensors"
    assert loading.convert(source.parent, again, vae=vae) == tokenizer.fingerprint
    asked = len(hub.requests)
    assert download(borrowing.name, endpoint=hub.endpoint, note=notes.append) == path
    assert len(hub.requests) == asked
    assert "is there already" in notes[-1]


def test_a_failed_conversion_keeps_what_was_fetched(
    borrowing: Entry, hub: FakeHub, tmp_path: Path
) -> None:
    vae = hub.repos[REPO].files["model.safetensors"]
    hub.repos[REPO].files["model.safetensors"] = WEIGHTS
    with pytest.raises(VftError, match="misses tensor"):
        download(borrowing.name, endpoint=hub.endpoint)
    models = tmp_path / "models"
    assert [p.name for p in models.iterdir()] == [SOURCES]
    assert len(list(models.rglob("model.safetensors"))) == 2
    hub.repos[REPO].files["model.safetensors"] = vae
    for path in (models / SOURCES / REPO.replace("/", "--")).rglob("*.safetensors"):
        path.unlink()
    download(borrowing.name, endpoint=hub.endpoint)
    assert hub.starts(borrowing.files[1]) == [0], "the other file was still there"


def test_a_single_file_that_is_not_in_the_catalogue(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(convert.VAES, VAE_ID, SMALL_VAE)
    config = {k: json.dumps(v) for k, v in config_of("options").items()}
    single = save(tensors_of("options"), config)
    hub.repos["someone/theirs"] = FakeRepo({"model.safetensors": single}, licence="mit")
    notes: list[str] = []
    path = download("someone/theirs", tmp_path / "to", endpoint=hub.endpoint, note=notes.append)
    assert path == tmp_path / "to" / "someone--theirs.safetensors"
    assert "not in the catalogue" in notes[0]
    assert load_tokenizer(path, device="cpu").config.name == "someone--theirs"


SMALL = """
import sys
from vft_lib.cli import vft as cli
from vft_lib.checkpoints import convert
from published import GOLDEN, SMALL_VAE, VAE_ID
convert.VAES[VAE_ID] = SMALL_VAE
sys.exit(cli.main(["download", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_two_processes_download_one_model(borrowing: Entry, hub: FakeHub, tmp_path: Path) -> None:
    args = (borrowing.name, "--yes", "--json", "--dtype", "bf16")
    hub.pause.clear()
    first = vft(hub, *args, script=SMALL)
    while not hub.starts("model.safetensors"):  # it holds the lock now
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second = vft(hub, *args, script=SMALL)
    assert second.stderr is not None
    while "waiting for it" not in (line := second.stderr.readline()):
        assert line, "it ended without waiting"
    hub.pause.set()
    path = tmp_path / "models" / f"{borrowing.name}.safetensors"
    for run in (first, second):
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        facts = json.loads(out)
        assert (facts["name"], facts["file"]) == (borrowing.name, str(path))
    assert hub.starts("model.safetensors") == [0, 0], "each repository's weights, once"
    left = [p for p in (tmp_path / "models").rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert sorted(left) == [path.with_suffix(".json"), path]
    assert load_tokenizer(borrowing.name, device="cpu").config.name == borrowing.name


KILLED = """
import os, signal, sys
from vft_lib.cli import vft as cli
from vft_lib.checkpoints import convert
from vft_lib.models import hub
from published import SMALL_VAE, VAE_ID
convert.VAES[VAE_ID] = SMALL_VAE
hub.forget = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(cli.main(["download", *sys.argv[1:]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_after_the_conversion_it_keeps_no_gigabytes(
    borrowing: Entry, hub: FakeHub, tmp_path: Path
) -> None:
    """The model was there, so nobody ever looked at the published files again."""
    run = vft(hub, borrowing.name, "--yes", script=KILLED)
    run.communicate(timeout=300)
    assert run.returncode == -9
    models = tmp_path / "models"
    assert len(list(models.rglob("model.safetensors"))) == 2
    asked = len(hub.requests)
    path = download(borrowing.name, endpoint=hub.endpoint)
    assert len(hub.requests) == asked, "that takes no connection"
    left = [p for p in models.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert sorted(left) == [path.with_suffix(".json"), path]
    download(borrowing.name, endpoint=hub.endpoint)


def test_published_files_that_were_to_be_kept_are(
    borrowing: Entry, hub: FakeHub, tmp_path: Path
) -> None:
    download(borrowing.name, endpoint=hub.endpoint, keep_source=True)
    download(borrowing.name, endpoint=hub.endpoint)
    assert len(list((tmp_path / "models").rglob("model.safetensors"))) == 2
