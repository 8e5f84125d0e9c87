"""The token grid and its file: small, nested, atomic, and safe to open whatever it is."""

from __future__ import annotations

import dataclasses
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from vft_lib.errors import TokenFileError, VftError
from vft_lib.tokens import Tokens


def grid(t: int = 5, k: int = 8, batch: int = 1, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return Tokens(
        ids=torch.randint(64_000, (batch, t, k), generator=generator),
        tokenizer="tiny", fingerprint="0123456789abcdef", frames=4 * t - 3, fps=8.0,
        size=(64, 64), source_size=(1080, 1920), source="a clip.mp4",
    )  # fmt: skip


GOOD: dict[str, Any] = {
    "version": 1, "tokenizer": "tiny", "fingerprint": "ab", "frames": 17, "fps": 8.0,
    "size": [64, 64], "fit": "crop",
}  # fmt: skip


UNEVEN = (8, 1, 3, 3, 1)


def uneven_file(path: Path, budgets: Any = UNEVEN, count: int | None = None, **more: Any) -> None:
    """A file of version 2, as another program might write it."""
    each = np.array(budgets, np.uint16) if isinstance(budgets, tuple) else budgets
    ids = np.arange(int(each.sum()) if count is None else count, dtype=np.uint16)
    save_file(
        {"ids": ids, "budgets": each} | more, path, {"vft": json.dumps(GOOD | {"version": 2})}
    )


def refused(path: Path) -> str:
    """The one line that refuses the file."""
    with pytest.raises(TokenFileError) as e:
        Tokens.load(path)
    message = str(e.value)
    assert "\n" not in message
    assert len(message) < 400
    assert message.count(str(path)) == 1, "wrapped twice"
    return message


# ---------------------------------------------------------------------- the file


@pytest.mark.parametrize("optional", [True, False])
def test_file_round_trip(tmp_path: Path, optional: bool) -> None:
    tokens = grid()
    if not optional:
        tokens = dataclasses.replace(tokens, source=None, source_size=None, fit="pad", fps=29.97)
    tokens.save(tmp_path / "a.vft")
    back = Tokens.load(tmp_path / "a.vft")
    assert torch.equal(back.ids, tokens.ids)
    assert back.ids.dtype == torch.int64
    for field in dataclasses.fields(Tokens):
        if field.name != "ids":
            assert getattr(back, field.name) == getattr(tokens, field.name), field.name


def test_equal_are_those_of_the_same_ids_of_the_same_clip(tmp_path: Path) -> None:
    tokens = grid()
    tokens.save(tmp_path / "a.vft")
    back = Tokens.load(tmp_path / "a.vft")
    assert back == tokens
    assert hash(back) == hash(tokens)
    assert back in [tokens]
    assert back != tokens.truncate(1)
    assert back != dataclasses.replace(tokens, fps=9.0)
    assert back != "tokens"


def test_numbers_of_numpy_are_numbers() -> None:
    tokens = grid()
    assert tokens.truncate(np.int64(2)) == tokens.truncate(2)
    each: Any = np.ones(len(tokens.rows), np.int64)
    assert tokens.truncate(each).rows == (1,) * len(tokens.rows)
    for wrong in (2.5, None, "2"):
        with pytest.raises(VftError, match="give a whole number"):
            tokens.truncate(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 0}, "'frames' is '0'"), ({"fps": 1e-9}, "'fps' is '1e-09'"),
        ({"source_size": (100, 70000)}, "'source_size'"), ({"source": "x" * 1025}, "'source'"),
    ],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(VftError, match=message):
        dataclasses.replace(grid(), **wrong).save(tmp_path / "a.vft")
    with pytest.raises(VftError, match="the notes are too large"):
        grid().save(tmp_path / "a.vft", {"workflow": "x" * (9 << 20)})
    assert not list(tmp_path.iterdir())


def test_the_largest_ids_survive(tmp_path: Path) -> None:
    tokens = dataclasses.replace(grid(), ids=torch.tensor([[[0, 63_999, 65_535]]]))
    tokens.save(tmp_path / "a.vft")
    assert Tokens.load(tmp_path / "a.vft").ids.tolist() == [[[0, 63_999, 65_535]]]


@pytest.mark.parametrize("wrong", [-1, 65_536])
def test_ids_beyond_two_bytes_do_not_wrap_around(tmp_path: Path, wrong: int) -> None:
    tokens = dataclasses.replace(grid(), ids=torch.tensor([[[1, wrong]]]))
    with pytest.raises(VftError, match="65535"):
        tokens.save(tmp_path / "a.vft")
    assert not list(tmp_path.iterdir())


def test_ten_seconds_take_less_than_4_kb(tmp_path: Path) -> None:
    tokens = grid(t=21, k=32)
    assert (tokens.frames, tokens.count, tokens.id_bytes) == (81, 672, 1344)
    tokens.save(tmp_path / "a.vft")
    assert (tmp_path / "a.vft").stat().st_size < 4_000


def test_the_file_is_a_plain_safetensors_container(tmp_path: Path) -> None:
    grid().save(tmp_path / "a.vft")
    data = (tmp_path / "a.vft").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["ids"]["dtype"] == "U16"
    assert header["ids"]["shape"] == [5, 8]
    assert json.loads(header["__metadata__"]["vft"])["version"] == 1


def test_a_file_name_with_odd_characters_is_kept(tmp_path: Path) -> None:
    tokens = dataclasses.replace(grid(), source="e\u200bx\nü \U0001f600.mp4")
    tokens.save(tmp_path / "a.vft")
    assert Tokens.load(tmp_path / "a.vft").source == tokens.source


def test_a_batch_does_not_fit_one_file(tmp_path: Path) -> None:
    batch = grid(batch=3)
    with pytest.raises(VftError, match=r"one clip, got 3.*tokens\[i\]"):
        batch.save(tmp_path / "a.vft")
    assert not list(tmp_path.iterdir())
    batch[2].save(tmp_path / "a.vft")
    assert torch.equal(Tokens.load(tmp_path / "a.vft").ids, batch.ids[2:])


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.vft"
    grid(seed=1).save(path)
    before = path.read_bytes()

    def full_disk(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(VftError, match="No space left on device"):
        grid(seed=2).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "the temporary file is left behind"


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(VftError, match=r"nowhere does not exist; create it"):
        grid().save(tmp_path / "nowhere" / "a.vft")


# ---------------------------------------------------------------------- damaged files


def test_cut_off_files(tmp_path: Path) -> None:
    grid().save(tmp_path / "a.vft")
    data = (tmp_path / "a.vft").read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "b.vft").write_bytes(data[:length])
        assert "b.vft" in refused(tmp_path / "b.vft")


def test_any_damaged_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    grid().save(tmp_path / "a.vft")
    data = (tmp_path / "a.vft").read_bytes()
    path = tmp_path / "b.vft"
    refusals = 0
    for place in range(len(data)):
        for value in (0, 34, 255):
            path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
            try:
                Tokens.load(path)
            except TokenFileError as e:
                refusals += 1
                assert "\n" not in str(e)
    assert refusals > len(data)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100, b"\x10" + b"\0" * 7 + b"{" * 16])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.vft").write_bytes(content)
    assert "not a readable token file" in refused(tmp_path / "a.vft")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.vft")
    refused(tmp_path)
    with pytest.raises(TokenFileError, match="null byte"):
        Tokens.load("a\0b")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.vft").open("wb") as f:
        f.truncate((1 << 28) + 1)
    assert "268435457 bytes" in refused(tmp_path / "a.vft")


@pytest.mark.parametrize(
    "ids",
    [
        np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int64), np.zeros((1, 2, 3), np.uint16),
        np.zeros(3, np.uint16), np.zeros((0, 3), np.uint16), np.zeros((3, 0), np.uint16),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)  # fmt: skip
def test_ids_of_a_wrong_kind(tmp_path: Path, ids: np.ndarray) -> None:
    save_file({"ids": ids}, tmp_path / "a.vft", {"vft": json.dumps(GOOD)})
    message = refused(tmp_path / "a.vft")
    assert "expected U16 [t,k]" in message
    assert str(list(ids.shape)) in message


def test_bfloat16_ids_were_a_type_error(tmp_path: Path) -> None:
    ids = torch.zeros(2, 3, dtype=torch.bfloat16)
    save_torch({"ids": ids}, tmp_path / "a.vft", {"vft": json.dumps(GOOD)})
    assert "BF16" in refused(tmp_path / "a.vft")


@pytest.mark.parametrize("names", [("ids", "more"), ("other",), ()])
def test_other_tensors(tmp_path: Path, names: tuple[str, ...]) -> None:
    tensors = {name: np.zeros((2, 3), np.uint16) for name in names}
    save_file(tensors, tmp_path / "a.vft", {"vft": json.dumps(GOOD)})
    assert "tensors" in refused(tmp_path / "a.vft")


@pytest.mark.parametrize("version", [0, 3, "1", "2", True, 2.0, None, True * 7, [1], "x" * 10_000])
def test_other_versions(tmp_path: Path, version: Any) -> None:
    meta = json.dumps(GOOD | {"version": version})
    save_file({"ids": np.zeros((2, 3), np.uint16)}, tmp_path / "a.vft", {"vft": meta})
    assert "update it" in refused(tmp_path / "a.vft")


@pytest.mark.parametrize(
    "meta",
    [
        "", "{", "nul", "null", "[]", "3", '"x"', "{}", "[" * 100_000,
        '{"version": ' + "9" * 5000 + "}",
    ],
    ids=lambda m: m[:20],
)  # fmt: skip
def test_metadata_that_is_no_object(tmp_path: Path, meta: str) -> None:
    save_file({"ids": np.zeros((2, 3), np.uint16)}, tmp_path / "a.vft", {"vft": meta})
    refused(tmp_path / "a.vft")


def test_no_metadata(tmp_path: Path) -> None:
    save_file({"ids": np.zeros((2, 3), np.uint16)}, tmp_path / "a.vft")
    assert "not a token file" in refused(tmp_path / "a.vft")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fps", "NaN"), ("fps", "Infinity"), ("fps", "-8"), ("fps", "0"), ("fps", "1e999"),
        ("fps", "true"), ("fps", '"8"'), ("fps", "null"), ("fps", "1" + "0" * 400),
        ("frames", "0"), ("frames", "-1"), ("frames", "17.0"), ("frames", "true"),
        ("frames", "null"), ("frames", "1" + "0" * 400), ("frames", "4294967296"),
        ("size", "[64]"), ("size", "[64, 0]"), ("size", "[64, -64]"), ("size", "[64, 64.5]"),
        ("size", "64"), ("size", "null"), ("size", "[64, 99999999]"), ("size", "[true, true]"),
        ("source_size", "[64]"), ("source_size", '"big"'),
        ("fit", '"bend"'), ("fit", "null"), ("fit", "[]"), ("fit", "{}"),
        ("tokenizer", "7"), ("tokenizer", "null"), ("tokenizer", '"a\\nb"'),
        ("tokenizer", '"' + "x" * 5000 + '"'),
        ("fingerprint", "[]"), ("fingerprint", '"\\u001b[31m"'), ("source", "3"),
    ],
    ids=lambda v: v[:16],
)  # fmt: skip
def test_metadata_out_of_range(tmp_path: Path, name: str, value: str) -> None:
    rest = json.dumps({k: v for k, v in GOOD.items() if k != name})
    meta = rest[:-1] + f', "{name}": {value}}}'
    save_file({"ids": np.zeros((2, 3), np.uint16)}, tmp_path / "a.vft", {"vft": meta})
    assert repr(name) in refused(tmp_path / "a.vft")


def test_a_later_program_may_add_entries(tmp_path: Path) -> None:
    meta = json.dumps(GOOD | {"mood": "calm"})
    save_file({"ids": np.zeros((2, 3), np.uint16)}, tmp_path / "a.vft", {"vft": meta})
    assert Tokens.load(tmp_path / "a.vft").frames == 17


# ---------------------------------------------------------------------- a budget per latent frame


def test_an_uneven_grid_survives_its_file(tmp_path: Path) -> None:
    tokens = grid(k=8).truncate(UNEVEN)
    tokens.save(tmp_path / "a.vft")
    back = Tokens.load(tmp_path / "a.vft")
    assert torch.equal(back.ids, tokens.ids)
    for field in dataclasses.fields(Tokens):
        if field.name != "ids":
            assert getattr(back, field.name) == getattr(tokens, field.name), field.name
    with safe_open(tmp_path / "a.vft", "np") as f:
        assert json.loads(f.metadata()["vft"])["version"] == 2
        assert f.get_tensor("budgets").tolist() == [8, 1, 3, 3, 1]
        assert f.get_tensor("ids").tolist() == tokens.ids[tokens.ids >= 0].tolist()


def test_version_1_is_written_where_budgets_are_equal(tmp_path: Path) -> None:
    grid(k=8).truncate([3] * 5).save(tmp_path / "a.vft")
    grid(k=8).truncate(3).save(tmp_path / "b.vft")
    assert (tmp_path / "a.vft").read_bytes() == (tmp_path / "b.vft").read_bytes()
    assert b'"version\\":1' in (tmp_path / "a.vft").read_bytes()


def test_an_uneven_grid_of_another_program(tmp_path: Path) -> None:
    uneven_file(tmp_path / "a.vft")
    tokens = Tokens.load(tmp_path / "a.vft")
    assert tokens.ids[0].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7], [8] + [-1] * 7, [9, 10, 11] + [-1] * 5,
        [12, 13, 14] + [-1] * 5, [15] + [-1] * 7,
    ]  # fmt: skip
    assert (tokens.budget, tokens.count, tokens.id_bytes) == (8, 16, 32)
    assert tokens.budgets == tokens.rows == UNEVEN


@pytest.mark.parametrize(
    ("budgets", "count", "said"),
    [
        ((8, 0, 8), None, "budgets are 0 to 8"), ((3, 3), None, "not all alike"),
        ((1, 4097), None, "expected 1 to 4096"), ((1, 2), 4, "4 ids, but its budgets are of 3"),
        ((1, 2), 2, "2 ids"), ((65535,) * 3 + (1,), 5, "65535"), ((7,), None, "not all alike"),
        ((1,) * 1100 + (4096,), None, "too thin"),
        (np.array([[1, 2]], np.uint16), None, "expected U16 [t]"),
        (np.array([1, 2], np.int64), None, "expected U16 [t]"),
        (np.zeros(0, np.uint16), 3, "expected U16 [t]"), ((1, 2), 0, "expected U16 [n]"),
    ],
    ids=range(12),
)  # fmt: skip
def test_budgets_that_no_clip_has(
    tmp_path: Path, budgets: Any, count: int | None, said: str
) -> None:
    uneven_file(tmp_path / "a.vft", budgets, count)
    assert said in refused(tmp_path / "a.vft")


def test_tensors_of_the_other_version(tmp_path: Path) -> None:
    ids = np.zeros((2, 3), np.uint16)
    uneven_file(tmp_path / "a.vft", ids=ids)
    assert "ids are U16 [2, 3], expected U16 [n]" in refused(tmp_path / "a.vft")
    uneven_file(tmp_path / "a.vft", more=ids)
    assert "other tensors than 'budgets' and 'ids'" in refused(tmp_path / "a.vft")
    both = {"ids": ids, "budgets": np.ones(2, np.uint16)}
    save_file(both, tmp_path / "a.vft", {"vft": json.dumps(GOOD)})
    assert "other tensors than 'ids'" in refused(tmp_path / "a.vft")


def test_a_thin_file_asks_for_no_memory(tmp_path: Path) -> None:
    """300 kB would become a grid of 4 GB."""
    budgets = (1,) * 131_000 + (4096,)
    uneven_file(tmp_path / "a.vft", budgets)
    tracemalloc.start()
    assert "too thin" in refused(tmp_path / "a.vft")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_what_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    budgets = (1,) * 1100 + (4096,)
    tokens = grid(t=1101, k=4096).truncate(budgets)
    with pytest.raises(VftError, match="too thin; cut the clip in time"):
        tokens.save(tmp_path / "a.vft")
    assert not list(tmp_path.iterdir())


def test_any_damaged_byte_of_an_uneven_file(tmp_path: Path) -> None:
    uneven_file(tmp_path / "a.vft", (4, 1, 2))
    data = (tmp_path / "a.vft").read_bytes()
    path, accepted = tmp_path / "b.vft", 0
    for place in range(len(data)):
        for value in (0, 34, 255):
            path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
            try:
                tokens = Tokens.load(path)
                accepted += 1
                assert tokens.count == int((tokens.ids >= 0).sum())
            except TokenFileError as e:
                assert "\n" not in str(e)
    assert 0 < accepted < len(data)


def test_uneven_truncation_is_nested() -> None:
    tokens = grid(k=8, batch=2)
    part = tokens.truncate(UNEVEN)
    assert (part.budget, part.count, part.budgets) == (8, 16, UNEVEN)
    for i, k in enumerate(UNEVEN):
        assert torch.equal(part.ids[:, i, :k], tokens.ids[:, i, :k])
        assert (part.ids[:, i, k:] == -1).all()
    assert torch.equal(part.truncate(8).ids, part.ids)
    two = part.truncate(2)  # of each the first two, or what it has
    assert two.budgets == (2, 1, 2, 2, 1)
    assert torch.equal(two.ids, tokens.truncate((2, 1, 2, 2, 1)).ids)
    assert torch.equal(part.truncate(1).ids, tokens.truncate(1).ids)
    assert part.truncate(1).budgets is None
    assert torch.equal(part[1].ids, part.ids[1:])


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ([8, 1, 3, 3], "4 budgets for 5 latent frames"),
        ([8, 2, 3, 3, 1], r"budget 2 is out of range.*1 per latent frame; choose 1 to 1"),
        ([0, 1, 3, 3, 1], "budget 0 is out of range"), (9, "choose 1 to 8"),
    ],
)  # fmt: skip
def test_budgets_beyond_what_is_there(budgets: Any, said: str) -> None:
    with pytest.raises(VftError, match=said):
        grid(k=8).truncate(UNEVEN).truncate(budgets)


@pytest.mark.parametrize("budgets", [(), (1, 2), (3, 1, 1, 1, 1), (2, 0, 1, 1, 1), (2,) * 5])
def test_budgets_that_do_not_belong_to_the_ids(budgets: tuple[int, ...]) -> None:
    with pytest.raises(VftError, match=r"budgets from \d to \d for 5 latent frames of up to 2 ids"):
        dataclasses.replace(grid(k=2), budgets=budgets)
    with pytest.raises(VftError, match="expected to be -1"):
        dataclasses.replace(grid(k=2), budgets=(2, 1, 1, 1, 1))


def test_the_budget_within_of_an_uneven_grid() -> None:
    tokens = grid(k=8).truncate(UNEVEN)  # 5 hold 1, three 2, three 3, one each up to 8
    assert [tokens.budget_within(count=n) for n in (5, 7, 8, 10, 11, 12, 16, 99)] == [
        1, 1, 2, 2, 3, 4, 8, 8,
    ]  # fmt: skip
    assert tokens.within(id_bytes=25) == 12
    assert tokens.within(count=99) == 16


# ---------------------------------------------------------------------- the grid


def test_truncation_is_nested() -> None:
    tokens = grid(k=8)
    for k in range(1, 9):
        short = tokens.truncate(k)
        assert torch.equal(short.ids, tokens.ids[:, :, :k])
        assert short.budget == k
        assert (short.frames, short.fingerprint) == (tokens.frames, tokens.fingerprint)
        for j in range(1, k + 1):
            assert torch.equal(short.truncate(j).ids, tokens.truncate(j).ids)
    assert tokens.budget == 8


def test_truncated_tokens_survive_their_file(tmp_path: Path) -> None:
    tokens = grid(k=8).truncate(3)
    tokens.save(tmp_path / "a.vft")
    assert torch.equal(Tokens.load(tmp_path / "a.vft").ids, tokens.ids)


@pytest.mark.parametrize("budget", [0, -1, 9])
def test_truncation_cannot_add_detail(budget: int) -> None:
    with pytest.raises(VftError, match=rf"budget {budget} is out of range.*8.*choose 1 to 8"):
        grid(k=8).truncate(budget)


def test_counts() -> None:
    tokens = grid(t=5, k=4, batch=3)
    assert (len(tokens), tokens.budget, tokens.count, tokens.id_bytes) == (3, 4, 20, 40)
    assert tokens.seconds == 17 / 8
    assert torch.equal(tokens[1].ids, tokens.ids[1:2])
    assert torch.equal(tokens[-1].ids, tokens.ids[2:])


@pytest.mark.parametrize("ids", [torch.zeros(5, 8).long(), torch.zeros(1, 5, 8)])
def test_ids_of_another_shape_or_dtype(ids: torch.Tensor) -> None:
    with pytest.raises(VftError, match=r"expected int64 \[B,t,k\]"):
        dataclasses.replace(grid(), ids=ids)


def test_notes_are_kept_in_the_file_and_change_nothing_else(tmp_path: Path) -> None:
    grid = Tokens(
        ids=torch.zeros(1, 5, 2, dtype=torch.int64), tokenizer="t", fingerprint="f", frames=17,
        fps=8.0, size=(64, 64),
    )  # fmt: skip
    grid.save(tmp_path / "a.vft", {"workflow": '{"nodes": []}', "vft": "not this"})
    assert torch.equal(Tokens.load(tmp_path / "a.vft").ids, grid.ids)
    with safe_open(tmp_path / "a.vft", "np") as f:
        assert f.metadata()["workflow"] == '{"nodes": []}'
