"""`python docs/media/budgets.py PACK CLIP` draws the README's moving picture: a held-out real clip
of a pack (`vft train pack`) beside what the default tokenizer makes of it at several budgets."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import vft_lib
from vft_lib.footage.pack import load_pack
from vft_lib.video.frames import fit_frame

SIDE, GAP, LABEL = 192, 6, 22  # pixels


def main(pack: str, name: str, tokenizer: str = "default") -> None:
    tok = vft_lib.load_tokenizer(tokenizer)
    c = tok.config
    frames = load_pack(pack, "held").clips[name][:33]
    fitted = np.stack([fit_frame(f, (c.size, c.size), "crop") for f in frames])
    clip = torch.from_numpy(fitted).permute(3, 0, 1, 2).float()[None] / 127.5 - 1
    tokens = tok.encode(clip)
    budgets = [k for k in (4, 16, 32, 128) if k <= c.registers]
    shown = [(clip[0], "original")]
    for k in budgets:
        cut = tokens.truncate(k)
        shown.append((tok.decode(cut, seed=0)[0], f"k = {k}: {cut.id_bytes:,} bytes"))
    pictures = []
    for t in range(clip.shape[2]):
        width = len(shown) * (SIDE + GAP) - GAP
        sheet = Image.new("RGB", (width, SIDE + LABEL), (255, 255, 255))
        draw = ImageDraw.Draw(sheet)
        for i, (video, text) in enumerate(shown):
            frame = ((video[:, t].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
            tile = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(tile, (i * (SIDE + GAP), LABEL))
            draw.text((i * (SIDE + GAP) + 2, 3), text, (40, 40, 40), ImageFont.load_default(14))
        pictures.append(sheet)
    out = Path(__file__).with_name("budgets.webp")
    pictures[0].save(
        out, save_all=True, append_images=pictures[1:], duration=125, loop=0, quality=80
    )
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
