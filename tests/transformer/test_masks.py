"""Attention masks against the words of spec §4, pair by pair."""

from __future__ import annotations

import itertools

import pytest
import torch

from vft_lib.config.tokenizer import MaskConfig
from vft_lib.transformer.masks import attention_mask

CPU = torch.device("cpu")
FLEXIBLE = [
    MaskConfig("flexible_time_block_causal_last", pp, pn, np, nn)  # type: ignore[arg-type]
    for pp, pn, np in itertools.product(["full", "none"], repeat=3)
    for nn in ("full", "none", "causal")
]
MODES = [
    MaskConfig("causal"),
    MaskConfig("time_block_causal"),
    MaskConfig("time_block_causal_last"),
    *FLEXIBLE,
]


def sees(c: MaskConfig, t: int, p: int, r: int) -> list[list[bool]]:
    """One row a query. A token is (frame, kind, place among its kind)."""
    tokens = []
    for frame in range(t):
        tokens += [(frame, "patch", i) for i in range(p)]
        tokens += [(frame, "register", i) for i in range(r)]
    rows = []
    for me, (frame, kind, place) in enumerate(tokens):
        row = []
        for other, (their_frame, their_kind, their_place) in enumerate(tokens):
            if c.mode == "full":
                yes = True
            elif c.mode == "causal":
                yes = other <= me
            elif c.mode == "time_block_causal":
                yes = their_frame <= frame
            elif their_frame > frame:
                yes = False
            elif their_frame == frame:
                yes = their_kind == "patch" or (kind == "register" and their_place <= place)
            elif c.mode == "time_block_causal_last":
                yes = True
            else:
                switch = {
                    ("patch", "patch"): c.prefix2prefix,
                    ("patch", "register"): c.prefix2nonprefix,
                    ("register", "patch"): c.nonprefix2prefix,
                    ("register", "register"): c.nonprefix2nonprefix,
                }[kind, their_kind]
                yes = switch == "full" or (switch == "causal" and their_place <= place)
            row.append(yes)
        rows.append(row)
    return rows


@pytest.mark.parametrize("config", MODES, ids=lambda c: "-".join(vars(c).values()))
@pytest.mark.parametrize(("t", "p", "r"), [(1, 2, 3), (3, 4, 2), (4, 1, 5)])
def test_mask_is_what_the_specification_says(config: MaskConfig, t: int, p: int, r: int) -> None:
    mask = attention_mask(config, t, p, r, CPU)
    assert mask is not None
    assert mask.dtype == torch.bool
    assert mask.tolist() == sees(config, t, p, r)
    assert mask.diagonal().all(), "a token that sees nothing gives NaN"


def test_full_needs_no_mask() -> None:
    assert attention_mask(MaskConfig("full"), 3, 4, 2, CPU) is None
    assert all(all(row) for row in sees(MaskConfig("full"), 2, 2, 2))


def test_modes_differ_from_one_another() -> None:
    masks = [str(sees(c, 3, 2, 2)) for c in MODES]
    assert len(set(masks)) == len(masks) - 1  # all switches full is time_block_causal_last
