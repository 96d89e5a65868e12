"""Draws data_samples/images/: `python data_samples/draw_images.py`. Shapes and textures, made for this project.

48 x 48 pixels, four classes of fifteen pictures. Some carry the wrong class, some files are broken on purpose, some are of
unusual kinds (grayscale, CMYK, palette, EXIF-rotated, animated): images_key.json says which. The same bytes every time
with the same version of Pillow.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

HERE = Path(__file__).parent
SIZE = 48
CLASSES = ("circle", "square", "stripes", "triangle")
EACH = 15
MISLABELLED = {
    ("circle", 3): "square",
    ("square", 7): "circle",
    ("stripes", 5): "triangle",
    ("triangle", 11): "stripes",
}


def draw(kind: str, rng: np.random.Generator) -> Image.Image:
    """One picture of a class: random place, size and colours on a noisy ground."""
    ground, ink = rng.integers(0, 110, 3), rng.integers(140, 256, 3)
    if rng.random() < 0.5:
        ground, ink = ink, ground
    image = Image.new("RGB", (SIZE, SIZE), tuple(int(c) for c in ground))
    pen = ImageDraw.Draw(image)
    colour = tuple(int(c) for c in ink)
    x, y = rng.integers(17, SIZE - 17, 2).tolist()
    r = int(rng.integers(9, 16))
    if kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif kind == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    elif kind == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    else:
        step, shift = int(rng.integers(5, 10)), int(rng.integers(0, 8))
        for at in range(-SIZE + shift, 2 * SIZE, step):
            pen.line((at, 0, at + SIZE // 2, SIZE), fill=colour, width=2)
    noise = rng.normal(0, 9, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def animation(image: Image.Image) -> bytes:
    frames = [image.rotate(angle).convert("P", palette=Image.Palette.ADAPTIVE) for angle in (0, 90)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=200)


def rotated(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    return encode(image.rotate(90), "JPEG", quality=90, exif=exif)


def main(target: Path = HERE / "images") -> None:
    rng = np.random.default_rng(0)
    shutil.rmtree(target, ignore_errors=True)
    key: dict[str, dict[str, str]] = {"mislabelled": {}, "broken": {}, "unusual": {}}
    for name in CLASSES:
        (target / name).mkdir(parents=True)
        for i in range(EACH):
            true = MISLABELLED.get((name, i), name)
            image = draw(true, rng)
            path = target / name / f"{i:02d}.jpg"
            data = encode(image, "JPEG", quality=90)
            if true != name:
                key["mislabelled"][f"{name}/{path.name}"] = true
            special = {
                ("circle", 12): ("unusual", "grayscale", ".jpg", encode(image.convert("L"), "JPEG", quality=90)),
                ("square", 12): ("unusual", "CMYK", ".jpg", encode(image.convert("CMYK"), "JPEG", quality=90)),
                ("stripes", 12): ("unusual", "palette", ".png", encode(image.quantize(16), "PNG")),
                ("triangle", 12): ("unusual", "rotated by EXIF", ".jpg", rotated(image)),
                ("circle", 13): ("unusual", "animated", ".gif", animation(image)),
                ("square", 13): ("broken", "truncated", ".jpg", data[: len(data) // 2]),
                ("stripes", 13): ("broken", "zero bytes", ".jpg", b""),
                ("triangle", 13): ("broken", "text, not an image", ".png", b"this is no picture\n"),
            }.get((name, i))
            if special is not None:
                kind, what, suffix, data = special
                path = path.with_suffix(suffix)
                key[kind][f"{name}/{path.name}"] = what
            path.write_bytes(data)
    (target.parent / f"{target.name}_key.json").write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
