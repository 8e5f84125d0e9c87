"""Stills and animated GIF, WebP and PNG through Pillow, which knows their frame durations."""

from __future__ import annotations

import mmap
from collections.abc import Generator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .frames import VideoError
from .shots import Matrix, Problem, Shot, Size, check_pixels, reduction, upright

_STILLS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow also claims raw MPEG
_JPEGS = (".mjpeg", ".mjpg")  # from webcams: one JPEG after the other
_ANIMATED = ("GIF", "WEBP", "PNG")
_TURNS: dict[int, Matrix] = {  # by the EXIF orientation
    2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1), 5: (0, 1, 1, 0), 6: (0, 1, -1, 0),
    7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip

# Pillow's readers raise whatever a damaged file makes happen in them: IndexError and KeyError,
# zlib.error, struct.error ... Hence `except Exception` around them, and nothing else.


def open_image(file: Path) -> Image.Image | None:
    """None if this is no image. Reads the header only."""
    if file.suffix.lower() in _JPEGS:
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(b"\xff\xd9\xff\xd8") > 0:  # behind the end of one begins another
                return None
    try:
        return Image.open(file, formats=_STILLS)
    except UnidentifiedImageError:
        return None
    except Exception as error:
        raise VideoError(
            f"{file} cannot be read ({_reason(error)}); save the image again."
        ) from error


def image_shots(
    image: Image.Image, file: Path, problem: Problem, size: Size | None = None
) -> Generator[Shot, None, None]:
    """Its frames. Large ones come smaller, yet larger than `size`."""
    with image:
        clock = index = 0  # ms, frames
        try:
            count = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
        except Exception:
            count = 1
        while index < count:
            try:
                image.seek(index)
                pixels = _pixels(image, file, size)
                shown = round(image.info.get("duration") or 0)  # WebP: known once it is loaded
            except Exception as error:
                if index:
                    problem(
                        f"the file is damaged or cut off ({_reason(error)})", f"after frame {index}"
                    )
                    return
                if isinstance(error, VideoError):
                    raise
                raise VideoError(f"{file} is damaged ({_reason(error)}); save it again.") from error
            # Browsers take 10 ms or less, which older tools write for "no delay", as 100 ms.
            shown = 0 if count == 1 else shown if shown > 10 else 100
            yield Shot(clock / 1000, shown / 1000, partial(np.array, pixels))
            clock, index = clock + shown, index + 1


def orientation(image: Image.Image) -> Matrix:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), (1, 0, 0, 1))
    except Exception:  # unreadable EXIF: shown as it is stored
        return 1, 0, 0, 1


def has_alpha(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def _pixels(image: Image.Image, file: Path, size: Size | None) -> np.ndarray:
    """The current frame, upright, over black: uint8 `[H, W, 3]`."""
    full, factor = image.width, reduction((image.height, image.width), size)
    if factor > 1:  # a JPEG is decoded smaller
        image.draft(image.mode, (image.width // factor, image.height // factor))
    check_pixels(image.height, image.width, file)
    factor = factor * image.width // full
    image.load()
    turn = orientation(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion would clip
        grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        small = Image.fromarray(grey)
    else:
        mode = "RGBA" if has_alpha(image) else "RGB"
        small = image if image.mode == mode else image.convert(mode)
    if factor > 1:
        small = small.reduce(factor)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, (0, 0, 0, 255)), small)
    return np.ascontiguousarray(upright(np.array(small.convert("RGB")), turn))


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
