"""From the bytes of a picture to its pixels: one RGB image of the right way up, or the reason why there is none."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np

from instruct_prune.rows.files import LFS_POINTER
from instruct_prune.rows.reader import RowError

MAX_PIXELS = 89_478_485  # Pillow's own limit for decompression bombs, at which it only warns

# What Pillow's decoders raise on damaged data.
BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, struct.error, zlib.error,
)  # fmt: skip


def decode(data: bytes) -> Any:
    """Decode a picture of any kind that Pillow reads.

    Grayscale, CMYK and palettes become RGB; 16 bits become 8 (scaled, not clipped); transparency is laid on white; EXIF
    rotation is applied; of an animation the first frame is taken.

    Args:
        data: the file's bytes.

    Returns:
        PIL.Image.Image in mode RGB.

    Raises:
        RowError: empty, no image, truncated or damaged, or so large that it must be a decompression bomb.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise RowError("the file is empty (zero bytes)")
    if data.startswith(LFS_POINTER):
        raise RowError("a Git LFS pointer and not the picture: fetch it with `git lfs pull`")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise RowError(_bomb(f"{width} x {height} pixels"))
            image.load()
            return to_rgb(_upright(image))
    except RowError:
        raise
    except Image.DecompressionBombError as error:
        raise RowError(_bomb(str(error))) from None
    except UnidentifiedImageError:
        raise RowError("not an image of a known kind") from None
    except BROKEN as error:
        what = "truncated" if "truncated" in str(error) or isinstance(error, EOFError) else "damaged"
        raise RowError(f"the image is {what}: {error}") from None


def _bomb(what: str) -> str:
    return f"the image would decode to more than {MAX_PIXELS:,} pixels ({what}): a decompression bomb, or to be scaled down first"


def _upright(image: Any) -> Any:
    """EXIF rotation applied; metadata that cannot be read are no reason to lose the picture."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except BROKEN:
        return image


def to_rgb(image: Any) -> Any:
    """A PIL image of any mode as RGB."""
    from PIL import Image

    if image.mode[0] in "IF":  # 16- and 32-bit gray: convert("RGB") would clip at 255
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise RowError("the image has pixels that are no numbers")
        top = 255.0 if values.max() <= 255 else 65535.0 if values.max() <= 65535 else float(values.max())
        gray = np.clip(values * (255.0 / top), 0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def thumbnail_of(data: bytes, size: int = 96) -> bytes | None:
    """A small JPEG of a picture, or None where it cannot be decoded."""
    try:
        image = decode(data)
    except RowError:
        return None
    image.thumbnail((size, size))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()
