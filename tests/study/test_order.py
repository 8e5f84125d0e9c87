"""What a prefix holds, and where tokens look: against what can be known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vft_lib.cli.vft import main
from vft_lib.errors import VftError
from vft_lib.study.order import correlation, measure_order, split
from vft_lib.study.recipes import SCALES, preset
from vft_lib.study.rollout import rollout, seen_share
from vft_lib.tokenizer.encoder import Encoder
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.world import world

TINY = SCALES["tiny"]


def encoder(kind: str) -> Encoder:
    torch.manual_seed(0)
    return Encoder(preset(TINY, kind, TINY.sizes[0][1], 0).tokenizer.config).eval()


@pytest.mark.parametrize("kind", ["registers", "grid", "control"])
def test_rollout_gives_shares(kind: str) -> None:
    shares = rollout(encoder(kind), torch.randn(2, 8, 5, 4, 4))
    assert shares.shape == (2, 5, 16, 4, 4)
    assert torch.allclose(shares.sum((-1, -2)), torch.ones(()), atol=1e-5)
    assert (shares >= 0).all()


def test_a_token_of_a_grid_looks_at_its_own_place_most() -> None:
    shares = rollout(encoder("grid"), torch.randn(1, 8, 5, 4, 4))[0].flatten(-2)
    assert (shares.argmax(-1) == torch.arange(16)).all()


def test_rollout_follows_what_a_register_attends_to() -> None:
    """Weights written by hand: every query finds the key of one patch, and no other."""
    made = encoder("registers")
    place, dim = 6, made.patch_proj.out_features
    blocks: list[Any] = list(made.trunk.blocks)
    with torch.no_grad():
        made.patch_proj.weight.zero_()
        made.patch_proj.bias.zero_()
        made.patch_posemb.table.zero_()
        for block in blocks:
            for linear in (block.attention.wq, block.attention.wk):
                linear.weight.copy_(torch.eye(dim) * 100)
        mark = torch.randn(dim) * 10
        made.registers.copy_(mark.expand_as(made.registers))

    def marked(x: torch.Tensor) -> torch.Tensor:  # one patch looks like the registers
        x = x.clone()
        x.view(*x.shape[:2], -1, dim)[:, :, place] = mark
        return x

    made.patch_posemb.register_forward_hook(lambda *args: marked(args[2]))
    for block in blocks:  # and nothing changes on the way
        block.attention.proj.weight.data.zero_()
        block.mlp.fc2.weight.data.zero_()
    shares = rollout(made, torch.randn(1, 8, 5, 4, 4))[0].flatten(-2)
    assert (shares[..., place] > 0.5).all()
    assert (seen_share(shares.unflatten(-1, (4, 4))) < 0.9).all()


def test_share_of_a_frame_that_is_seen() -> None:
    even, one = torch.full((4, 4), 1 / 16), torch.zeros(4, 4)
    one[1, 2] = 1
    assert float(seen_share(even)) == pytest.approx(1)
    assert float(seen_share(one)) == pytest.approx(1 / 16)
    half = torch.zeros(4, 4)
    half[:2] = 1 / 8
    assert float(seen_share(half)) == pytest.approx(1 / 2)


def test_layout_and_detail_are_all_there_is() -> None:
    torch.manual_seed(0)
    video = torch.rand(3, 3, 5, 32, 32) * 2 - 1
    layout, detail = split(video)
    x = video.movedim(1, 2)
    rest = x - layout - detail  # the mean color
    assert float(rest.std((0, 1, 3, 4)).max()) < 1e-6
    assert abs(correlation(layout, detail)) < 1e-4, "at right angles"
    assert correlation(layout, 3 * layout) == 1
    blurred = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(x.flatten(0, 1), 4), scale_factor=4.0
    ).view_as(x)
    assert float(split(blurred.movedim(2, 1))[1].abs().max()) < 1e-5, "blocks have no detail"


def test_order_of_a_tokenizer(tiny_tokenizer: Tokenizer) -> None:
    c = tiny_tokenizer.config
    clips = [world.make_clip(s, frames=c.chunk_frames, size=c.size).video for s in range(3)]
    order = measure_order(tiny_tokenizer, clips, torch.float32, probe_clips=8)
    assert [row["k"] for row in order.rows] == [0, *c.budgets]
    none, every = order.rows[0], order.rows[-1]
    assert "layout" not in none
    # No token of the first: the rest's clip alone, which all tokens of it give too.
    assert torch.equal(order.swapped[c.registers], order.own[c.registers])
    assert every["layout_of_first"] == every["layout"]
    assert every["detail_of_first"] == every["detail"]
    assert set(order.probe["color"]) == {0, *c.budgets}
    with pytest.raises(VftError, match="two or more"):
        measure_order(tiny_tokenizer, clips[:1], torch.float32)


def test_the_command_writes_table_and_pictures(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "order", "world", "--limit", "3", "--tokenizer", str(tiny_checkpoint), "--out",
             str(tmp_path), "--probe-clips", "8", "--steps", "1", "--device", "cpu"]  # fmt: skip
    assert main(words) == 0
    found = json.loads((tmp_path / "order.json").read_text())
    assert found["set"] == "3 clips of world"
    assert found["sampler"].startswith("Euler, 1 steps")
    assert "| k | layout | detail |" in capsys.readouterr().out
    for name in ("order.png", "swapped.png", "looks.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200
