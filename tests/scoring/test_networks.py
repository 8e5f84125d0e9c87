"""What networks see of a clip, pixel by pixel, and which files are run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scoring.stand_ins import I3D as StandIn
from scoring.stand_ins import Classifier as StandInClassifier
from scoring.stand_ins import ViCLIP as StandInViCLIP
from scoring.stand_ins import clip_tokenizer, save_script
from vft_lib.errors import VftError
from vft_lib.scoring.networks import I3D, Classifier, Files, Inception, ViCLIP

CPU = torch.device("cpu")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def frames(count: int = 17, side: int = 40) -> Tensor:
    """`[T,3,H,W]`, whole values 0..255."""
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), generator=g).float()


def bilinear(x: np.ndarray, side: int) -> np.ndarray:
    """`[...,H,W]` by the definition: centres of pixels, the two nearest, edges repeated."""
    for axis in (-2, -1):
        n = x.shape[axis]
        at = (np.arange(side) + 0.5) * n / side - 0.5
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1, 1] if axis == -2 else [-1])
        a, b = (np.take(x, np.clip(low + i, 0, n - 1), axis) for i in (0, 1))
        x = a * (1 - share) + b * share
    return x


def averaged(x: np.ndarray, side: int) -> np.ndarray:
    """`[T,3,H,W]` bilinear with antialias, by Pillow."""

    def one(plane: np.ndarray) -> np.ndarray:
        image = Image.fromarray(plane.astype(np.float32))
        return np.array(image.resize((side, side), Image.Resampling.BILINEAR))

    return np.stack([np.stack([one(c) for c in frame]) for frame in x])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    trust = [
        save_script(StandIn(), tmp_path / "i3d.pt"),
        save_script(StandInViCLIP(), tmp_path / "viclip.pt"),
        save_script(StandInClassifier(), tmp_path / "classifier.pt"),
    ]
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    return Files(
        tmp_path / "i3d.pt", None, tmp_path / "viclip.pt", clip_tokenizer(tmp_path / "words"),
        tmp_path / "classifier.pt", tmp_path / "classes.txt", trust,
    )  # fmt: skip


@pytest.mark.parametrize("side", [40, 128, 300])
def test_i3d_sees_values_to_255_without_antialias(files: Files, side: int) -> None:
    """In 0..1, FVD is near 0 without an error; 212 px in place of 224 change it by half."""
    net, x = I3D(files, 17, CPU, print), frames(side=side)
    seen = net.prepare(x).clone().numpy()
    assert seen.shape == (1, 3, 17, 224, 224)
    assert seen.max() > 200
    expected = bilinear(x.numpy().astype(np.float64), 224).transpose(1, 0, 2, 3)[None]
    assert np.abs(seen - expected).max() < 0.01
    with torch.no_grad():
        of = net.network(torch.from_numpy(seen), rescale=True, resize=False, return_features=True)
    assert torch.equal(net(x), of)


@pytest.mark.parametrize("side", [40, 300])
def test_viclip_sees_every_second_frame_with_antialias(files: Files, side: int) -> None:
    net, x = ViCLIP(files, 17, CPU, print), frames(side=side)
    seen = net.prepare(x).numpy()
    assert seen.shape == (1, 8, 3, 224, 224)
    expected = averaged(x.numpy()[[0, 2, 4, 6, 8, 10, 12, 14]], 224) / 255
    expected = (expected - MEAN[:, None, None]) / STD[:, None, None]
    assert np.abs(seen[0] - expected).max() < 2e-3
    assert float(net(x).norm()) == pytest.approx(1, rel=1e-6)


def test_the_classifier_sees_sixteen_frames(files: Files) -> None:
    net, x = Classifier(files, 17, CPU, print), frames(side=300)
    seen = net.prepare(x).numpy()
    assert seen.shape == (1, 3, 16, 224, 224)
    expected = averaged(x.numpy()[:16], 224) / 255
    expected = (expected - MEAN[:, None, None]) / STD[:, None, None]
    assert np.abs(seen[0] - expected.transpose(1, 0, 2, 3)).max() < 2e-3
    green = torch.zeros(17, 3, 64, 64)
    green[:, 1] = 255
    assert net(green) == "green"


def test_inception_sees_normalized_frames_and_gives_the_pool(tmp_path: Path) -> None:
    try:
        from torchvision.models import inception as models
    except (ImportError, RuntimeError):
        pytest.skip("needs the torchvision of this torch")
    torch.manual_seed(0)
    network = models.inception_v3(
        weights=None, aux_logits=True, init_weights=False, transform_input=True
    ).eval()
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    with pytest.raises(VftError, match="not the known one") as refused:
        Inception(Files(inception=tmp_path / "inception.pth"), CPU, print)
    files = Files(inception=tmp_path / "inception.pth", trust=[str(refused.value).split()[-1]])
    net, x = Inception(files, CPU, print), frames(3, side=400)
    expected = bilinear(x.numpy().astype(np.float64), 299) / 255
    expected = (expected - MEAN[:, None, None]) / STD[:, None, None]
    assert np.abs(net.prepare(x).numpy() - expected).max() < 1e-3
    seen: list[Tensor] = []
    net.network.Conv2d_1a_3x3.register_forward_hook(lambda m, inp, out: seen.append(inp[0]))
    net(x)
    own_range = bilinear(x.numpy().astype(np.float64), 299) / 127.5 - 1  # of the published weights
    assert np.abs(torch.cat(seen).numpy() - own_range).max() < 1e-3
    pooled: list[Tensor] = []
    network.avgpool.register_forward_hook(lambda m, inp, out: pooled.append(out.flatten(1)))
    with torch.inference_mode():
        network(net.prepare(x))
    assert net(x).shape == (3, 2048)
    assert torch.allclose(net(x), pooled[0], rtol=1e-4, atol=1e-5)


def test_captions_are_read_by_clips_tokenizer(files: Files) -> None:
    net = ViCLIP(files, 17, CPU, print)
    a, b = net.text("a red ball"), net.text("a blue cube, bouncing")
    assert a.shape == b.shape == (1, 16)
    assert torch.equal(a, net.text("A red  ball"))
    assert not torch.allclose(a, b)
    with pytest.raises(VftError, match="--clip-tokenizer"):
        ViCLIP(Files(viclip=files.viclip, trust=files.trust), 17, CPU, print).text("a")


def test_a_file_of_unknown_sum_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even opened by torch; the sum is said, and what to add."""
    path, told = tmp_path / "i3d_torchscript.pt", list[str]()
    digest = save_script(StandIn(), path)
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("it was run"))
    for trust in ([], [digest[:8]], ["0" * 64]):
        with pytest.raises(VftError, match=f"SHA-256 {digest}.*--trust {digest[:16]}"):
            I3D(Files(path, trust=trust), 17, CPU, told.append)
    assert not told
    monkeypatch.undo()
    net = I3D(Files(path, trust=[digest[:16]]), 17, CPU, told.append)
    assert told == [f"i3d_torchscript.pt: SHA-256 {digest}, trusted by --trust"]
    assert digest[:16] in net.line
    path.write_bytes(b"no program")
    with pytest.raises(VftError, match="SHA-256"):
        I3D(Files(path, trust=[digest]), 17, CPU, print)


def test_the_known_sum_needs_no_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, told = tmp_path / "i3d_torchscript.pt", list[str]()
    digest = save_script(StandIn(), path)
    monkeypatch.setattr("vft_lib.scoring.networks.I3D_SHA256", digest)
    I3D(Files(path), 17, CPU, told.append)
    assert told == [f"i3d_torchscript.pt: SHA-256 {digest}, the known one"]


def test_the_nodes_do_not_know_of_such_files() -> None:
    """A workflow names no file that is run."""
    root = Path(__file__).resolve().parents[2]
    for file in root.glob("vft_nodes/**/*.py"):
        assert "scoring" not in file.read_text("utf-8"), file


def test_too_few_and_too_many_frames_for_i3d_are_told(tmp_path: Path) -> None:
    digest = save_script(StandIn(long=True), tmp_path / "i3d.pt")
    files = Files(tmp_path / "i3d.pt", trust=[digest])
    with pytest.raises(VftError, match="it needs 10"):
        I3D(files, 9, CPU, print)
    with pytest.raises(VftError, match="--i3d-frames 16"):
        I3D(files, 17, CPU, print)(frames())
    sixteen = Files(tmp_path / "i3d.pt", trust=[digest], i3d_frames=16)
    net = I3D(sixteen, 17, CPU, print)
    assert net(frames()).shape == (1, 400)
    assert net.how["input"].startswith("first 16 frames")
    with pytest.raises(VftError, match="16 of 12"):
        I3D(sixteen, 12, CPU, print)


def test_too_few_frames_for_the_others_are_told(files: Files) -> None:
    with pytest.raises(VftError, match="ViCLIP sees frames 0 to 14"):
        ViCLIP(files, 14, CPU, print)
    with pytest.raises(VftError, match="sees 16 frames"):
        Classifier(files, 15, CPU, print)
    with pytest.raises(VftError, match="--classes"):
        Classifier(Files(classifier=files.classifier), 17, CPU, print)
