"""From clips to shards: the ids are those of `encode_file`, and no clip is lost or there twice."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import moving_picture
from torch import Tensor

from shards.conftest import tokenize
from vft_lib.clips.stream import encode_file
from vft_lib.errors import VftError
from vft_lib.shards import tokenizing
from vft_lib.shards.dataset import Shards
from vft_lib.shards.formats import Record
from vft_lib.shards.sources import open_source
from vft_lib.shards.tokenizing import Machine, plan_of
from vft_lib.tokenizer.tokenizer import Tokenizer
from vft_lib.video.frames import to_tensor
from vft_lib.video.video_in import read_frames
from vft_lib.video.video_out import write_video


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def records(folder: Path, *extras: str) -> dict[str, Record]:
    found = {f"{r.facts['source']} {r.window}": r for r in Shards(folder, extras=extras)}
    assert len(found) == len(Shards(folder))
    return found


def failures(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "failures.parquet").to_pylist()
    return {row["source"]: row["reason"] for row in rows}


def test_the_ids_of_a_shard_are_those_of_the_clip(
    tokens: Path, clips: Path, tiny_tokenizer: Tokenizer
) -> None:
    found = records(tokens)
    assert len(found) == 11
    for i in range(11):
        clip = clips / f"clip{i:02d}.mp4"
        record = found[f"{clip.name} 0"]
        expected = encode_file(tiny_tokenizer, clip)
        assert torch.equal(record.tokens.ids, expected.ids)
        assert record.tokens.facts == expected.facts
        assert record.caption == f"picture number {i} moves"
        assert record.ids.dtype == np.uint16
    assert list(failures(tokens)) == ["broken.mp4"]
    assert sorted(files(tokens)) == [
        "failures.parquet", "shard-000000.json", "shard-000000.tar", "shard-000001.json",
        "shard-000001.tar", "shard-000002.json", "shard-000002.tar", "tokens.json",
    ]  # fmt: skip


def test_parquet_holds_the_same(
    tokens: Path, clips: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert tokenize(clips, tmp_path / "out", tiny_checkpoint, "--format", "parquet") == 0
    assert (tmp_path / "out" / "shard-000000.parquet").exists()
    one, other = records(tokens), records(tmp_path / "out")
    assert one.keys() == other.keys()
    for name, record in one.items():
        assert np.array_equal(record.ids, other[name].ids)
        assert (record.facts, record.caption) == (other[name].facts, other[name].caption)
    table = pq.read_table(tmp_path / "out" / "shard-000000.parquet")
    row = table.to_pylist()[0]
    ids = np.frombuffer(row["ids"], "<u2").reshape(row["rows"], row["budget"])
    assert np.array_equal(ids, one[f"{row['source']} 0"].ids)


@pytest.mark.parametrize("kind", ["webdataset", pytest.param("parquet", marks=pytest.mark.slow)])
def test_windows_and_what_the_encoder_had(
    clips: Path, tiny_checkpoint: Path, tiny_tokenizer: Tokenizer, tmp_path: Path, kind: str
) -> None:
    more = ("--window", "21", "--stride", "8", "--fps", "all", "-k", "3", "--format", kind)
    extras = ("codes", "hidden", "latents")
    assert tokenize(clips, tmp_path / "out", tiny_checkpoint, *more, "--with", *extras) == 0
    found = records(tmp_path / "out", *extras)
    for i in range(11):
        length = 5 + 5 * i
        count = max(1, (length - 21) // 8 + 1)
        frames = list(read_frames(clips / f"clip{i:02d}.mp4", size=(32, 32)))
        assert len(frames) == length
        mine = [r for r in found.values() if r.facts["source"] == f"clip{i:02d}.mp4"]
        assert [r.window for r in mine] == list(range(count))
        for r in mine:
            part = to_tensor(frames[8 * r.window : 8 * r.window + 21])[None]
            expected = tiny_tokenizer.encode(part, budget=3)
            assert torch.equal(r.tokens.ids, expected.ids)
            assert (r.first, r.tokens.frames) == (8 * r.window, min(21, length))
            assert r.tokens.fps == pytest.approx(8)
            rows, chunks = len(r.ids), tiny_tokenizer.chunk_count(min(21, length))
            assert r.extras["codes"].shape == (rows, 8, 6)
            assert r.extras["hidden"].shape == (rows, 8, 32)
            assert r.extras["latents"].shape == (chunks, 4, 5, 4, 4)
            codes = torch.from_numpy(r.extras["codes"]).float()
            ids = tiny_tokenizer.fsq.ids(codes)[:, :3]
            assert (ids == expected.ids[0]).float().mean() > 0.9, "but for half precision"
            latents = tiny_tokenizer.vae.encode(part[:, :, :17]) if length >= 17 else None
            if latents is not None:
                stored = torch.from_numpy(r.extras["latents"][:1]).float()
                assert torch.allclose(latents, stored, atol=2e-3, rtol=2e-3)


def test_exact_windows_hold_whole_chunks(
    clips: Path, tiny_checkpoint: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert tokenize(clips, tmp_path / "out", tiny_checkpoint, "--window", "exact") == 0
    found = records(tmp_path / "out")
    for i in range(11):
        length = 5 + 5 * i
        if length < 17:
            assert "fewer than one chunk of 17" in failures(tmp_path / "out")[f"clip{i:02d}.mp4"]
        else:
            frames = 1 + 16 * ((length - 1) // 16)
            tokens = found[f"clip{i:02d}.mp4 0"].tokens
            clip = to_tensor(read_frames(clips / f"clip{i:02d}.mp4", fps=8, size=(32, 32)))
            assert tokens.frames == frames
            assert torch.equal(tokens.ids, tiny_tokenizer.encode(clip[:, :frames]).ids)


def test_hidden_files_of_a_tar_are_passed_over(tmp_path: Path) -> None:
    """macOS's tar writes `._clip.mp4` beside `clip.mp4`."""
    with tarfile.open(tmp_path / "mac.tar", "w") as tar:
        for name in ("./a.mp4", "./._b.mp4", "b.mp4", ".hidden/c.mp4", "d.mp4"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    found = [(c.name, c.problem) for c in open_source(tmp_path / "mac.tar").clips]
    assert [name.rpartition("/")[2] for name, _ in found] == ["a.mp4", "b.mp4", "d.mp4"]
    assert not any(problem for _, problem in found)


def test_lists_and_tars_are_sources(
    clips: Path, tiny_checkpoint: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A list in three formats, with a stretch of a clip, and a WebDataset tar."""
    stretch = to_tensor(
        read_frames(clips / "clip10.mp4", fps=8, size=(32, 32), start=1.0, max_frames=16)
    )
    wanted = {
        "clip03.mp4": ("a fish, blue", encode_file(tiny_tokenizer, clips / "clip03.mp4").ids),
        "clip10.mp4": (None, tiny_tokenizer.encode(stretch).ids),
    }
    rows = [
        {"path": f"{clips}/clip03.mp4", "caption": "a fish, blue", "start": None, "end": None},
        {"path": f"{clips}/clip10.mp4", "caption": None, "start": 1.0, "end": 3.0},
        {"path": "not-there.mp4", "caption": "gone", "start": None, "end": None},
        {"path": f"{clips}/clip01.mp4", "caption": "x", "start": 2.0, "end": 1.0},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    (tmp_path / "list.csv").write_text(
        f'caption,path,start,end,other\n"a fish, blue",{clips}/clip03.mp4,,,1\n'
        f",{clips}/clip10.mp4,1,3,\ngone,not-there.mp4,,,\nx,{clips}/clip01.mp4,2,1,\n"
    )
    (tmp_path / "list.txt").write_text(
        f"{clips}/clip03.mp4\ta fish, blue\n\n{clips}/clip10.mp4\t\t1\t3\nnot-there.mp4\tgone\n"
        f"{clips}/clip01.mp4\tx\t2\t1\n"
    )
    for name in ("list.parquet", "list.csv", "list.txt"):
        out = tmp_path / f"out-{name}"
        assert tokenize(tmp_path / name, out, tiny_checkpoint) == 0
        found = {Path(r.facts["source"]).name: r for r in Shards(out)}
        assert found.keys() == wanted.keys()
        for clip, (caption, ids) in wanted.items():
            assert found[clip].caption == caption
            assert torch.equal(found[clip].tokens.ids, ids)
        assert {Path(k).name for k in failures(out)} == {"not-there.mp4", "clip01.mp4"}
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for name, data in (
            ("a/000.mp4", (clips / "clip03.mp4").read_bytes()),
            ("a/000.txt", b"a fish, blue"),
            ("a/001.json", json.dumps({"caption": "told in JSON"}).encode()),
            ("a/001.mp4", (clips / "clip04.mp4").read_bytes()),
            ("a/002.mp4", b"broken"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    whole = (tmp_path / "some.tar").read_bytes()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(whole)
    (tmp_path / "tars" / "b.tar").write_bytes(whole[:1500])  # ends in the middle of a clip
    assert tokenize(tmp_path / "tars", tmp_path / "out", tiny_checkpoint) == 0
    found = {r.facts["source"]: r for r in Shards(tmp_path / "out")}
    assert {n: r.caption for n, r in found.items()} == {
        "a.tar/a/000.mp4": "a fish, blue", "a.tar/a/001.mp4": "told in JSON",
    }  # fmt: skip
    assert torch.equal(found["a.tar/a/000.mp4"].tokens.ids, wanted["clip03.mp4"][1])
    told = failures(tmp_path / "out")
    assert "a.tar/a/002.mp4" in told["a.tar/a/002.mp4"], "the name, not a number in /proc"
    assert any(name.startswith("b.tar") for name in told)


def test_shards_of_four_processes_are_those_of_one(
    tokens: Path, clips: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for i in (2, 0, 3, 1):
        assert (
            tokenize(clips, tmp_path / "out", tiny_checkpoint, "--shard", f"{i}/4", "--resume") == 0
        )
    assert files(tmp_path / "out") == files(tokens)


def test_a_run_goes_on_and_makes_nothing_twice(
    tokens: Path, clips: Path, tiny_checkpoint: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert tokenize(clips, out, tiny_checkpoint) == 0
    assert tokenize(clips, out, tiny_checkpoint) == 2
    assert "add --resume" in capsys.readouterr().err
    (out / "shard-000001.tar").unlink()
    left = out / ".shard-000001.01234567.tmp.tar"
    left.write_bytes(b"half")
    before = (out / "shard-000000.tar").stat().st_mtime_ns
    assert tokenize(clips, out, tiny_checkpoint, "--resume") == 0
    assert files(out) == files(tokens)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == before
    assert not left.exists()
    assert tokenize(clips, out, tiny_checkpoint, "--resume", "-k", "3", "--window", "17") == 2
    assert "other budget, stride, window" in capsys.readouterr().err
    (clips / "clip99.mp4").write_bytes((clips / "clip00.mp4").read_bytes())
    try:
        assert tokenize(clips, out, tiny_checkpoint, "--resume") == 2
        assert "begun with other clips" in capsys.readouterr().err
    finally:
        (clips / "clip99.mp4").unlink()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_decoder_that_dies_loses_no_clip(
    tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is killed in the middle of a clip; what it was at is done by another. One that
    dies twice at a clip costs that clip."""
    (tmp_path / "clips").mkdir()
    for name, frames in (("a", 17), ("b", 200), ("c", 200), ("d", 17)):  # more than there are slots
        write_video(tmp_path / "clips" / f"{name}.mp4", moving_picture(frames, 32, 32), 8)
    source = open_source(tmp_path / "clips")
    plan = plan_of(source, tiny_tokenizer, per_shard=3)
    plan.begin(tmp_path / "out", False)
    machine = Machine(source, plan, tiny_tokenizer, tmp_path / "out", workers=1, batch=1)
    killed: dict[int, int] = {}  # by process: the clip that it was at
    read = tokenizing.read_chunks
    deadly = {1: 1, 2: 2}  # clip: how often

    def kills(*args: object) -> dict[str, Tensor]:
        worker = machine.decoders.workers[0]
        clip = -1 if worker.task is None else worker.task[0]
        often = list(killed.values()).count(clip)
        pid = worker.process.pid
        if worker.sent and pid not in killed and often < deadly.get(clip, 0):
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            killed[pid] = clip
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tokenizing, "read_chunks", kills)
    with closing(machine):
        shards = list(machine.run(range(plan.units)))
    assert list(killed.values()) == [1, 2, 2]
    found = records(tmp_path / "out")
    assert found.keys() == {"a.mp4 0", "b.mp4 0", "d.mp4 0"}
    for name, record in found.items():
        expected = encode_file(tiny_tokenizer, tmp_path / "clips" / name.split()[0])
        assert torch.equal(record.tokens.ids, expected.ids)
    (failure,) = (f for shard in shards for f in shard.failures)
    assert (failure.clip, failure.source) == (2, "c.mp4")
    assert "died (SIGKILL), twice" in failure.reason


def test_a_chunk_that_cannot_be_encoded_costs_its_clip_alone(
    clips: Path, tokens: Path, tiny_tokenizer: Tokenizer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = open_source(clips)
    plan = plan_of(source, tiny_tokenizer, per_shard=20)
    plan.begin(tmp_path / "out", False)
    read = tokenizing.read_chunks
    frames = to_tensor(read_frames(clips / "clip02.mp4", fps=8, size=(32, 32)))

    def overflows(tokenizer: Tokenizer, video: Tensor, extras: object = ()) -> dict[str, Tensor]:
        if any(torch.equal(v[:, :15], frames) for v in video):
            raise VftError("an encoded chunk holds NaN")
        return read(tokenizer, video, extras)  # type: ignore[arg-type]

    monkeypatch.setattr(tokenizing, "read_chunks", overflows)
    with closing(Machine(source, plan, tiny_tokenizer, tmp_path / "out", batch=4)) as machine:
        (shard,) = machine.run([0])
    assert [f.source for f in shard.failures] == ["broken.mp4", "clip02.mp4"]
    assert "NaN" in shard.failures[1].reason
    one, other = records(tokens), records(tmp_path / "out")
    assert one.keys() - other.keys() == {"clip02.mp4 0"}
    assert all(np.array_equal(r.ids, one[name].ids) for name, r in other.items())


def test_an_error_ends_the_run_and_its_processes(
    clips: Path, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(clips)
    plan = plan_of(source, tiny_tokenizer, per_shard=4)
    plan.begin(tmp_path / "out", False)

    def fails(*args: object) -> dict[str, Tensor]:
        raise MemoryError

    monkeypatch.setattr(tokenizing, "read_chunks", fails)
    machine = Machine(source, plan, tiny_tokenizer, tmp_path / "out", workers=2, batch=1)
    with pytest.raises(MemoryError), closing(machine):
        list(machine.run(range(plan.units)))
    assert all(not worker.process.is_alive() for worker in machine.decoders.workers)
    for _ in range(100):
        if threading.active_count() == 1:
            break
        time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name == "vft-batches"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "gone", "there is no"),
        (lambda p: (p / "x.xyz").write_bytes(b"") or p / "x.xyz", "no source of clips"),
        (lambda p: p, "holds no clip"),
        (lambda p: (p / "a.csv").write_text("file\nx.mp4\n") and p / "a.csv", "no column `path`"),
        (lambda p: (p / "a.csv").write_bytes(b"path\n\xff\n") and p / "a.csv", "not a readable"),
        (lambda p: (p / "a.parquet").write_bytes(b"PAR1") and p / "a.parquet", "not a readable"),
    ],
)  # fmt: skip
def test_what_is_no_source_is_said_in_one_line(make: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(VftError, match=message):
        open_source(make(tmp_path))  # type: ignore[operator]


def test_wrong_options_are_said_in_one_line(
    clips: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (("--shard", "4/4"), "give I/N"), (("--window", "x"), "give numbers"),
        (("--window", "0", "--with", "colours"), "unknown: colours"), (("-k", "99"), "budget"),
        (("--window", "17", "--stride", "0"), "stride of 0"), (("--batch", "-1"), "give 1 or more"),
        (("--clips-per-shard", "0"), "give 1 or more"),
    ):  # fmt: skip
        assert tokenize(clips, tmp_path / "out", tiny_checkpoint, *options) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert message in said[-1], said
        for file in (tmp_path / "out").glob("*"):
            file.unlink() if file.is_file() else file.rmdir()


def test_long_clips_take_no_more_memory(
    tiny_checkpoint: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """What waits to be encoded is bounded by the slots, however long the clip is."""
    (tmp_path / "clips").mkdir()
    write_video(
        tmp_path / "clips" / "long.mp4", np.tile(moving_picture(40, 32, 32), (20, 1, 1, 1)), 8
    )
    source = open_source(tmp_path / "clips")
    plan = plan_of(source, tiny_tokenizer, per_shard=1)
    plan.begin(tmp_path / "out", False)
    with closing(Machine(source, plan, tiny_tokenizer, tmp_path / "out", batch=2)) as machine:
        assert len(machine.decoders.workers[0].frames) == 5
        (shard,) = machine.run([0])
    assert shard.rows == (tiny_tokenizer.latent_frames(800),)
    expected = encode_file(tiny_tokenizer, tmp_path / "clips" / "long.mp4")
    assert torch.equal(next(iter(Shards(tmp_path / "out"))).tokens.ids, expected.ids)
