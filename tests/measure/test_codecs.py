"""Ordinary codecs at a number of bytes: what is counted is what is decoded."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vft_lib.footage.footage import to_video
from vft_lib.measure import codecs
from vft_lib.measure.codecs import Codec, Encoded
from vft_lib.measure.metrics import psnr
from vft_lib.world.world import make_clip

CLIP = list(make_clip(3, frames=9, size=64).video)
FOUND = codecs.available()


def closeness(frames: list[np.ndarray]) -> float:
    a, b = to_video([np.stack(CLIP), np.stack(frames)])
    return psnr(a, b)


def test_h264_is_always_there() -> None:
    assert "H.264" in [c.name for c in FOUND]
    assert len({c.name for c in FOUND}) == len(FOUND), "one encoder of each"


@pytest.mark.parametrize("codec", FOUND, ids=lambda c: c.name)
def test_more_bytes_are_closer_and_never_more_than_allowed(codec: Codec) -> None:
    encoded = Encoded(codec, CLIP, 8.0)
    smallest = encoded.at(0)
    few, many = encoded.at(2 * smallest.bytes), encoded.at(8 * smallest.bytes)
    assert smallest.bytes <= few.bytes <= 2 * smallest.bytes
    assert few.bytes < many.bytes <= 8 * smallest.bytes
    assert closeness(smallest.frames) < closeness(few.frames) < closeness(many.frames)
    assert closeness(many.frames) > 28
    assert {f.shape for f in many.frames} == {(64, 64, 3)}
    assert len(many.frames) == len(CLIP)


@pytest.mark.parametrize("codec", FOUND, ids=lambda c: c.name)
def test_the_best_quality_that_fits_is_taken(codec: Codec) -> None:
    encoded = Encoded(codec, CLIP, 8.0)
    found = encoded.at(1500)
    assert found.side == 64
    assert found.factor > codec.scale[0]
    better = sum(map(len, encoded._packets(64, found.factor - 1)))
    assert found.bytes <= 1500 < better


@pytest.mark.parametrize("codec", FOUND, ids=lambda c: c.name)
def test_colours_are_as_bright_as_before(codec: Codec) -> None:
    """The way to YUV and back took 1.3 levels of each colour, as no codec does."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    clip = [blocks.repeat(16, 0).repeat(16, 1)] * 3
    shown = np.stack(codecs._decode(codec, codecs._encode(codec, clip, codec.scale[0], 8.0)))
    error = shown.astype(float) - np.stack(clip)
    assert np.abs(error.mean((0, 1, 2))).max() < 0.4


def test_the_smallest_stream_is_the_smallest_of_all_sides() -> None:
    encoded = Encoded(codecs.H264, CLIP, 8.0)
    worst = codecs.H264.scale[-1]
    each = [sum(map(len, encoded._packets(side, worst))) for side in (64, 32, 16)]
    assert encoded.at(1).bytes == min(each)


def test_the_same_clip_gives_the_same_stream_at_small_sizes() -> None:
    for side in (16, 32, 64):
        clip = list(make_clip(3, frames=9, size=side).video)
        streams = [Encoded(codecs.H264, clip, 8.0)._packets(side, 30) for _ in range(12)]
        assert all(s == streams[0] for s in streams), side


def test_notes_that_no_decoder_needs_are_not_counted() -> None:
    one = Encoded(codecs.H264, CLIP[:1], 8.0).at(0)
    assert one.bytes < 200, "x264's note of its settings alone takes 600"
    units = b"\0\0\0\1\x09\x10" + b"\0\0\0\1\x67ab" + b"\0\0\1\x06note" + b"\0\0\1\x65cd"
    assert codecs._needed_h264(units) == b"\0\0\1\x67ab" + b"\0\0\1\x65cd"
    delimiter, sequence = b"\x12\x00", b"\x0a\x02ab"
    frame = b"\x32" + b"\xc8\x01" + bytes(200)  # a size of two LEB128 bytes
    assert codecs._needed_av1(delimiter + sequence + frame) == sequence + frame


def test_small_pictures_are_not_made_smaller_than_the_codec_takes() -> None:
    narrow = dataclasses.replace(codecs.H264, least=64)
    assert Encoded(narrow, CLIP, 8.0).at(0).side == 64
