"""Shards read again: every record once an epoch, for every reader; on at the sample; by others."""

from __future__ import annotations

import gc
import io
import json
import shutil
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

import vft_lib
from shards.conftest import tokenize, write_shards
from vft_lib.errors import VftError
from vft_lib.shards.dataset import Index, Order, Shards
from vft_lib.shards.formats import read_records
from vft_lib.tokenizer.tokenizer import Tokenizer


def names(reader: Shards) -> list[str]:
    return [record.key for record in reader]


@pytest.fixture(scope="module")
def many(
    clips: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:  # fmt: skip
    """Windows of one chunk: 28 records in six shards."""
    out = tmp_path_factory.mktemp("many") / "out"
    more = ("--window", "17", "--stride", "8", "--clips-per-shard", "2")
    assert tokenize(clips, out, tiny_checkpoint, *more) == 0
    return out


def test_one_line_gives_tokens(tokens: Path, tiny_tokenizer: Tokenizer) -> None:
    for record in islice(vft_lib.Shards(tokens), 1):
        video = tiny_tokenizer.decode(record.tokens.truncate(2), seed=0, steps=1)
        assert video.shape[2] == record.tokens.frames


def test_every_record_comes_once_an_epoch(many: Path) -> None:
    straight = names(Shards(many))
    assert straight == sorted(straight)
    assert len(straight) == len(Shards(many)) == 28
    mixed = Shards(many, shuffle=True, seed=3, buffer=12)
    first, second = names(mixed), names(mixed)
    assert sorted(first) == sorted(second) == straight
    assert len({tuple(straight), tuple(first), tuple(second)}) == 3
    assert names(Shards(many, shuffle=True, seed=3, buffer=12)) == first
    assert names(Shards(many, shuffle=True, seed=4, buffer=12)) != first


@pytest.mark.parametrize("world", [2, 4, 9])
def test_readers_share_the_records(many: Path, world: int) -> None:
    """By shards, and of more readers than shards by records."""
    each = [names(Shards(many, shuffle=True, rank=r, world=world)) for r in range(world)]
    assert sorted(name for mine in each for name in mine) == names(Shards(many))
    assert all(each)
    with pytest.raises(VftError, match="rank 2 of 2"):
        Shards(many, rank=2, world=2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_reader_goes_on_at_the_sample(many: Path, shuffle: bool) -> None:
    def reader() -> Shards:
        return Shards(many, shuffle=shuffle, buffer=10)

    whole = reader()
    expected = names(whole) + names(whole)
    for stop in (0, 1, 13, 27, 28, 50):
        first = reader()
        seen: list[str] = []
        while len(seen) < stop:
            seen += [r.key for r in islice(first, stop - len(seen))]
        second = reader()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        while len(seen) < 2 * 28:
            seen += names(second)
        assert seen == expected


def test_going_on_reads_no_shard_before(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, read = Shards(many, shuffle=True, buffer=1), []
    expected = names(reader)
    reader.load_state_dict({"epoch": 0, "given": 20})
    numbered = Index._numbered

    def counted(index: Index, shard: int, extras: object) -> object:
        read.append(shard)
        return numbered(index, shard, extras)  # type: ignore[arg-type]

    monkeypatch.setattr(Index, "_numbered", counted)
    assert names(reader) == expected[20:]
    assert len(read) < 6


def test_workers_of_a_loader_split_the_records(many: Path) -> None:
    loader = DataLoader(
        Shards(many), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    assert sorted(record.key for record in loader) == names(Shards(many))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_shuffle_each_epoch_another_way(many: Path, persistent: bool) -> None:
    loader = DataLoader(
        Shards(many, shuffle=True, seed=1), batch_size=None, num_workers=2,
        multiprocessing_context="fork", persistent_workers=persistent,
    )  # fmt: skip
    first, second = ([record.key for record in loader] for _ in range(2))
    assert sorted(first) == sorted(second) == names(Shards(many))
    assert first != second


def test_an_epoch_left_early_does_not_shorten_the_next(many: Path) -> None:
    reader = Shards(many)
    next(iter(reader))
    assert names(reader) == names(Shards(many))
    assert len(list(islice(reader, len(reader)))) == len(names(reader)) == 28


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it closes no file
def test_webdataset_reads_the_shards(tokens: Path) -> None:
    shards = [str(s.file) for s in Index.of(tokens).shards]
    found = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode())
    ours = list(Shards(tokens))
    assert [sample["__key__"] for sample in found] == [record.key for record in ours]
    for sample, record in zip(found, ours):
        assert np.array_equal(sample["ids.npy"], record.ids)
        assert sample["json"]["caption"] == record.caption
    del found
    gc.collect()


def test_validation_clips_are_kept_apart(tmp_path: Path) -> None:
    """One clip in 32, with all its windows."""
    write_shards(tmp_path, clips=100, windows=2)
    index = Index.of(tmp_path)
    shards = range(len(index.shards))
    places = {tuple(p) for p in index.records(shards).tolist()}
    held, rest = (
        {tuple(p) for p in index.records(shards, held_out=h).tolist()} for h in (True, False)
    )
    assert held | rest == places
    assert not held & rest
    clips = Counter(index.shards[s].clips[i] for s, i in held)
    assert clips == {31: 2, 63: 2, 95: 2}
    order = Order(index, 0, held_out=False)
    assert {tuple(p) for block in order.blocks(0) for p in block.tolist()} == rest


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: (p / "tokens.json").unlink(), "no tokens.json"),
        (lambda p: (p / "tokens.json").write_text("{"), "not readable"),
        (lambda p: (p / "tokens.json").write_text('{"kind": "other"}'), "not readable"),
        (lambda p: [f.unlink() for f in p.glob("*.tar")], "no complete shard"),
        (lambda p: (p / "shard-000001.json").write_text("[]"), "delete it to have it made again"),
        (lambda p: cut(p / "shard-000001.tar"), "not a readable shard|holds 1 records"),
        (lambda p: shutil.copy(p / "shard-000000.tar", p / "shard-000001.tar"), "said beside it"),
    ],
)  # fmt: skip
def test_damage_is_told_in_one_line(
    tokens: Path, tmp_path: Path, break_it: object, message: str
) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    break_it(tmp_path / "copy")  # type: ignore[operator]
    with pytest.raises(VftError, match=message) as e:
        names(Shards(tmp_path / "copy"))
    assert "\n" not in str(e.value)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])


def test_what_was_not_written_cannot_be_read(tokens: Path) -> None:
    with pytest.raises(VftError, match=r"holds no codes \(it holds: none\); tokenize --with"):
        Shards(tokens, extras=("codes",))


def test_a_reader_needs_no_more_than_torch_takes(tokens: Path) -> None:
    """A batch of ids, as training code would make it."""
    loader = DataLoader(Shards(tokens), batch_size=3, collate_fn=list)
    for batch in loader:
        ids = torch.cat([record.tokens.ids[:, :5] for record in batch])
        assert ids.shape == (len(batch), 5, 8)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


GOOD = {
    "clip": 0, "window": 0, "first": 0, "caption": None, "tokenizer": "tiny", "fingerprint": "",
    "frames": 17, "fps": 8.0, "size": [32, 32], "source_size": None, "fit": "crop", "source": "a",
}  # fmt: skip
IDS = npy("{'descr': '<u2', 'fortran_order': False, 'shape': (5, 2), }", bytes(20))


def record_file(path: Path, facts: object, ids: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in (("0.json", json.dumps(facts).encode()), ("0.ids.npy", ids)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("facts", "ids"),
    [
        (GOOD, npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1 << 40, 2), }")),
        (GOOD, npy("{'descr': '<u2', 'fortran_order': False, 'shape': (10**12, 2), }")),
        (GOOD, npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000, 2), }")),
        (GOOD, npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }", b"cos\nsystem\n")),
        (GOOD, npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1), }", bytes(8))),
        (GOOD, npy("{'descr': '<u2', 'fortran_order': True, 'shape': (5, 2), }", bytes(20))),
        (GOOD, npy("{'descr': '<u2', 'fortran_order': False, 'shape': (10,), }", bytes(20))),
        (GOOD, b"\x93NUMPY\x02\x00"), (GOOD, b""), ([], IDS), ("text", IDS),
        (GOOD | {"fps": 1e9}, IDS), (GOOD | {"frames": -1}, IDS), (GOOD | {"frames": True}, IDS),
        (GOOD | {"size": [0, 1]}, IDS), (GOOD | {"size": None}, IDS), (GOOD | {"fit": 3}, IDS),
        (GOOD | {"caption": ["a"]}, IDS), (GOOD | {"source": {}}, IDS), ({"clip": 0}, IDS),
    ],
)  # fmt: skip
def test_records_of_strangers_are_sound_or_refused(
    tmp_path: Path, facts: object, ids: bytes
) -> None:
    (sound,) = read_records(record_file(tmp_path / "good.tar", GOOD, IDS))
    assert sound.tokens.ids.shape == (1, 5, 2)
    with pytest.raises(VftError, match="is not a readable shard") as e:
        list(read_records(record_file(tmp_path / "bad.tar", facts, ids)))
    assert "\n" not in str(e.value)
