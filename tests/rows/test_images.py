"""Pictures of every kind and every fault: read, or rejected with a reason; nothing is lost."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from instruct_prune.encode.pictures import PictureStore, write_pictures
from instruct_prune.errors import InputError
from instruct_prune.rows import Source, open_data
from instruct_prune.rows.pixels import decode, thumbnail_of
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import ImageRef, Message, Part, Reject, Row

SAMPLES = Path(__file__).parents[2] / "data_samples"
RED, BLUE = (200, 30, 40), (20, 40, 220)


def two_halves(mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue, 20 x 10."""
    image = Image.new("RGB", (20, 10), RED)
    image.paste(BLUE, (10, 0, 20, 10))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tree(root: Path, names: list[str], suffix: str = ".png") -> Path:
    for i, name in enumerate(names):
        path = root / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.new("RGB", (8, 8), (i, i, i)), "PNG"))
    return root


def opened(*data: Path, **options: Any) -> Source:
    source = open_data([str(d) for d in data], **options)
    assert (source.format, source.model_kind) == ("image-classification", "image_encoder")
    return source


def picture(row: Row | Reject) -> ImageRef:
    assert isinstance(row, Row)
    (shown,) = row.messages[0].images
    return shown


def labels_of(source: Source) -> list[str]:
    return [row.columns["label"] for row in source if isinstance(row, Row)]


# ---- pixels ----


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encoded(two_halves(), "PNG"), 0),
        (encoded(two_halves().quantize(4), "PNG"), 3),
        (encoded(two_halves(), "BMP"), 0),
        (encoded(two_halves(), "TIFF"), 0),
        (encoded(two_halves("CMYK"), "TIFF"), 3),
        (encoded(two_halves("RGBA"), "WEBP", lossless=True), 0),
        (encoded(two_halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (20, 10), "green")]), 3),
    ],
    ids=["png", "palette", "bmp", "tiff", "cmyk", "webp", "animation: first frame"],
)
def test_kinds_of_pictures_come_out_as_the_same_pixels(data: bytes, tolerance: int) -> None:
    pixels = np.asarray(decode(data)).astype(int)
    assert pixels.shape == (10, 20, 3)
    assert abs(pixels[5, 2] - RED).max() <= tolerance
    assert abs(pixels[5, 17] - BLUE).max() <= tolerance


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    image = decode(encoded(two_halves(), "JPEG", quality=95, exif=exif))
    assert image.size == (10, 20)
    assert abs(np.asarray(image).astype(int)[2, 5] - RED).max() < 12


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    found = np.asarray(decode(encoded(Image.fromarray(ramp), "PNG")))
    np.testing.assert_allclose(found[..., 0], ramp / 257, atol=1)
    assert (found[..., 0] == found[..., 2]).all()


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(decode(encoded(clear, "PNG"))).min() == 255


def png_of(width: int, height: int) -> bytes:
    """The beginning of a PNG that promises this size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT"


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"hello, this is text", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
        (encoded(NOISE, "JPEG")[:900], "truncated"),
        (encoded(NOISE, "PNG")[:900], "truncated"),
        (png_of(12_000, 12_000), "decompression bomb"),
        (png_of(60_000, 60_000), "decompression bomb"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image"),
    ],
    ids=["empty", "text", "pointer", "cut jpeg", "cut png", "large", "bomb", "broken header"],
)
def test_faults_have_reasons(data: bytes, reason: str) -> None:
    with pytest.raises(RowError) as error:
        decode(data)
    assert reason in error.value.reason


def test_pixels_that_are_no_numbers() -> None:
    gray = np.ones((4, 4), dtype=np.float32)
    gray[1, 1] = np.nan
    with pytest.raises(RowError) as error:
        decode(encoded(Image.fromarray(gray), "TIFF"))
    assert "no numbers" in error.value.reason


def test_thumbnail_is_a_small_jpeg_or_none() -> None:
    small = thumbnail_of(encoded(NOISE.resize((500, 300)), "PNG"))
    assert small is not None
    assert Image.open(io.BytesIO(small)).size == (96, 58)
    assert thumbnail_of(b"nothing") is None


# ---- trees, listings, tables ----


def test_tree_order_classes_and_what_is_passed_over(tmp_path: Path) -> None:
    root = tree(tmp_path, ["b/2", "a/1", "b/deep/0", "stray", "a/.hidden"])
    (root / "a" / "notes.txt").write_text("no picture")
    rows = list(opened(root))
    assert [(Path(r.source).relative_to(root).as_posix(), type(r).__name__) for r in rows] == [
        ("a/1.png", "Row"), ("b/2.png", "Row"), ("b/deep/0.png", "Row"), ("stray.png", "Reject"),
    ]  # fmt: skip
    assert labels_of(opened(root)) == ["a", "b", "b"]
    assert "no class folder" in rows[3].reason  # type: ignore[union-attr]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", ["a/0"])
    elsewhere = tree(tmp_path / "elsewhere", ["b/1"])
    (root / "b").symlink_to(elsewhere / "b")
    (root / "a" / "circle").symlink_to(root)
    assert [p.relative_to(root).as_posix() for p in opened(root)._inputs[0].reader.files()] == ["a/0.png", "b/1.png"]


def test_relative_trees_and_listings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "pics", ["a/1"])
    (tmp_path / "list.csv").write_text("path,label\npics/a/1.png,a\n")
    monkeypatch.chdir(tmp_path)
    for data in (Path("pics"), Path("list.csv")):
        (row,) = opened(data)
        assert decode(picture(row).read()).size == (8, 8)


def test_split_folders_are_no_classes(tmp_path: Path) -> None:
    root = tree(tmp_path, ["train/cat/1", "train/dog/1", "test/cat/9"])
    assert labels_of(opened(root)) == ["cat", "dog"]
    assert labels_of(opened(root, split="test")) == ["cat"]
    with pytest.raises(InputError, match=r"no split 'tset'.*'test'"):
        open_data([str(root)], split="tset")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_listing_of_paths(tmp_path: Path, kind: str) -> None:
    tree(tmp_path / "pics", ["x", "y"])
    rows = [{"file_name": "pics/x.png", "class": "one"}, {"file_name": "pics/y.png", "class": ""}]
    listing = tmp_path / f"list.{kind}"
    if kind == "csv":
        listing.write_text("file_name,class\npics/x.png,one\npics/y.png,\n")
    else:
        listing.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(opened(listing))
    path = str(tmp_path / "pics" / "x.png")
    assert isinstance(found[0], Row)
    said = (Message("user", (Part("image", ImageRef(path)),)), Message("assistant", "one", trained=True))
    assert (found[0].messages, found[0].raw, found[0].line) == (
        said,
        {"path": path, "label": "one"},
        2 - (kind == "jsonl"),
    )
    assert found[0].columns == {"path": path, "label": "one"}
    assert isinstance(found[1], Reject)
    assert "no label" in found[1].reason


def test_listing_of_data_uris_and_addresses(tmp_path: Path) -> None:
    data = encoded(two_halves(), "PNG")
    named = [
        "data:image/png;base64," + base64.b64encode(data).decode(),
        "https://host/x.png",
        f"file://{tmp_path}/x.png",
    ]
    listing = tmp_path / "list.jsonl"
    listing.write_text("".join(json.dumps({"image": name, "label": "one"}) + "\n" for name in named))
    held, remote, path = opened(listing)
    assert picture(held).data == data
    assert isinstance(remote, Reject)
    assert "remote address" in remote.reason
    assert picture(path) == ImageRef(f"{tmp_path}/x.png")


def test_text_is_no_image_data(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Draw x.png", "output": "done"}\n')
    assert open_data([str(rows)]).model_kind == "causal_lm"
    with pytest.raises(InputError, match="does not exist"):
        open_data([str(tmp_path / "missing.csv")])


def test_images_without_labels_and_images_beside_text_are_refused(tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("path,size\na.png,3\n")
    with pytest.raises(InputError, match=r"no labels.*path, size"):
        open_data([str(listing)])
    text = tmp_path / "text.jsonl"
    text.write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(InputError, match="holds no images"):
        open_data([str(tree(tmp_path / "t", ["a/1"])), str(text)])


@pytest.mark.parametrize("how", ["disk", "parquet"])
def test_datasets_sets_hold_the_bytes_and_the_names(tmp_path: Path, how: str) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    pictures = [{"bytes": encoded(Image.new("RGB", (6, 6), (i, 0, 0)), "PNG"), "path": None} for i in range(4)]
    made = datasets.Dataset.from_dict({"image": pictures, "label": [1, 0, 1, -1]}, features=features)
    target = tmp_path / ("set" if how == "disk" else "set.parquet")
    made.save_to_disk(str(target)) if how == "disk" else made.to_parquet(str(target))
    source = opened(target)
    rows = list(source)
    assert labels_of(source) == ["bee", "ant", "bee"]
    assert isinstance(rows[3], Reject)  # the hidden label of a test set
    write_pictures(tmp_path / "index", (row for row in rows if isinstance(row, Row)))
    index = PictureStore.open(tmp_path / "index")
    assert [index[i].open().getpixel((0, 0)) for i in range(3)] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert index.classes == ("ant", "bee")


def test_index_keeps_broken_pictures_with_their_reasons(tmp_path: Path) -> None:
    source = opened(SAMPLES / "images")
    key = json.loads((SAMPLES / "images_key.json").read_text())
    write_pictures(tmp_path, (row for row in source if isinstance(row, Row)))
    index = PictureStore.open(tmp_path)
    (paths,) = index.text_columns("path")
    failed = {"/".join(Path(p).parts[-2:]) for p, ok in zip(paths, index.scorable, strict=True) if not ok}
    assert len(index) == 60
    assert failed == set(key["broken"])
    assert set(index.status_names[~index.scorable]) == {"failed"}
    assert all(index.text_columns("reason")[0][i] for i in np.flatnonzero(~index.scorable))
    for name in key["unusual"]:
        assert index[[str(p).endswith(name) for p in paths].index(True)].open().mode == "RGB"


def test_sample_pictures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    import runpy

    draw = runpy.run_path(str(SAMPLES / "draw_images.py"))
    draw["main"](tmp_path / "images")
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert names == sorted(
        p.relative_to(SAMPLES).as_posix() for p in [*(SAMPLES / "images").rglob("*.*"), SAMPLES / "images_key.json"]
    )
    for name in ("images/circle/00.jpg", "images/triangle/12.jpg"):
        ours, theirs = (np.asarray(decode((root / name).read_bytes())).astype(int) for root in (tmp_path, SAMPLES))
        assert abs(ours - theirs).max() <= 8  # encoders differ in the last bits


def test_identity_follows_the_files(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a/1", "b/1"])
    before = opened(root).identity()
    assert opened(root).identity() == before
    (root / "a" / "1.png").write_bytes(b"longer than it was" * 50)
    assert opened(root).identity() != before


# ---- pictures beside text ----

TURNS = [{"from": "human", "value": "<image>\nWhat colour is the bus?"}, {"from": "gpt", "value": "Green."}]


@pytest.mark.parametrize(
    ("more", "field", "reason"),
    [
        ({"image": "pics/1.jpg"}, "image", "no such picture"),
        ({"image": "pics/1.jpg", "category": "vqa"}, "image", "no such picture"),
        ({"image": {"bytes": b"x", "path": None}, "label": "a", "images": []}, None, ""),
        ({"images": ["pics/1.jpg"]}, "images", "no such picture"),
        ({"images": ["https://host/no-suffix"]}, "images", "remote address"),
    ],
)
def test_conversations_about_pictures_are_conversations(more: dict[str, Any], field: str | None, reason: str) -> None:
    rows = [{"conversations": TURNS} | more] * 3
    for options in ({}, {"format": "sharegpt"}):
        source = open_data(rows, **options)
        assert (source.format, source.model_kind) == ("sharegpt", "vision_language")
        found = list(source)
        assert [isinstance(row, Reject) for row in found] == [field is not None] * 3
        assert all(row.field == field and reason in row.reason for row in found if isinstance(row, Reject))
    source = open_data(rows, columns={"conversations": "conversations"})
    assert "without its pictures" in source.description or more["images"] == ["https://host/no-suffix"]
    assert [row.messages[1].text for row in source if isinstance(row, Row)] == ["Green."] * 3


def test_a_format_that_was_given_is_obeyed(tmp_path: Path) -> None:
    tree(tmp_path, ["x"])
    row = {"image": str(tmp_path / "x.png"), "label": "cat", "instruction": "q", "output": "a"}
    assert labels_of(opened_rows := open_data([row], format="image-classification")) == ["cat"]
    assert opened_rows.model_kind == "image_encoder"
    assert open_data([row]).format == "alpaca"
    assert open_data([{**row, "text": "caption"} | {"output": None}]).format == "image-classification"


def test_most_rows_decide_and_conversations_weigh_more() -> None:
    row = {"image": "1.jpg", "category": "vqa"}
    mixed = [{**row, "conversations": TURNS}, {**row, "conversations": TURNS}, row]
    assert open_data(mixed).format == "sharegpt"
    assert open_data([*mixed[:1], row, row]).format == "image-classification"


def test_rows_without_pictures_among_those_with_them_are_read() -> None:
    rows = [{"conversations": TURNS, "images": []}, {"conversations": TURNS, "images": None}, {"conversations": TURNS}]
    assert all(isinstance(row, Row) for row in open_data(rows))


def test_named_columns_of_pictures_are_used(tmp_path: Path) -> None:
    tree(tmp_path, ["x", "y"])
    row = {"path": str(tmp_path / "x.png"), "shot": str(tmp_path / "y.png"), "label": "no", "kind": "yes"}
    (found,) = open_data([row], columns={"image": "shot", "label": "kind"})
    assert picture(found).path == row["shot"]
    assert found.columns["label"] == "yes"  # type: ignore[union-attr]
