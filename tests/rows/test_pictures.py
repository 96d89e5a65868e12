"""Pictures that conversations show: found in every way that data name them, or the row is rejected by its field."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from sight_models import png

from instruct_prune.errors import InputError
from instruct_prune.rows import open_data
from instruct_prune.rows.row import ImageRef, Message, Part, Reject, Row
from instruct_prune.rows.table import RowTable, write_rows

ANSWER = {"role": "assistant", "content": "Green."}
SAYS = [{"from": "human", "value": "<image>\nWhat colour is the bus?"}, {"from": "gpt", "value": "Green."}]
CASES: dict[str, dict[str, Any]] = {
    "llava": {"id": "000000033471", "image": "pics/{}.jpg", "conversations": SAYS},
    "images_list": {
        "images": ["pics/{}.jpg"],
        "messages": [{"role": "user", "content": "<image>What colour is it?"}, ANSWER],
    },
    "llava_category": {"image": "pics/{}.jpg", "category": "vqa", "conversations": SAYS},
}
"""Rows as users have them, with a place for the picture's number."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    return tmp_path


def read(rows: list[dict[str, Any]], folder: Path | None = None, **options: Any) -> list[Row | Reject]:
    source = open_data(rows, image_folder=str(folder) if folder else None, **options)
    assert source.model_kind == "vision_language"
    return list(source)


def said(row: Row | Reject) -> list[str | bytes]:
    """The first turn: words, names of files, bytes of held pictures."""
    assert isinstance(row, Row), row
    content = row.messages[0].content
    parts = [Part("text", content)] if isinstance(content, str) else content
    return [p.value if isinstance(p.value, str) else p.value.data or Path(p.value.path).name for p in parts]


# ---- where pictures stand ----


def test_llava_llamafactory_and_parts_say_the_same(folder: Path) -> None:
    places = [{"type": "image"}, {"type": "text", "text": "\nWhat colour is the bus?"}]
    own = [{"type": "image", "image": "0.png"}, places[1]]
    rows = [
        {"image": "0.png", "conversations": SAYS},
        {"images": ["0.png"], "messages": [{"role": "user", "content": SAYS[0]["value"]}, ANSWER]},
        {"images": ["0.png"], "messages": [{"role": "user", "content": places}, ANSWER]},
        {"messages": [{"role": "user", "content": own}, ANSWER]},
        {"images": ["0.png"], "instruction": SAYS[0]["value"], "output": "Green."},
    ]
    for row in rows:
        (found,) = read([row], folder)
        assert said(found) == ["0.png", "\nWhat colour is the bus?"]
        assert isinstance(found, Row)
        assert found.messages[1].text == "Green."
        assert [Path(image.path).is_file() for image in found.messages[0].images] == [True]
        assert not found.columns


def test_several_pictures_stand_in_their_order_and_text_rows_are_mixed_in(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"images": ["0.png", "2.png"], "conversations": [{"from": "human", "value": "a<image>b<image>"}, SAYS[1]]},
        {"image": "", "conversations": [{"from": "human", "value": "no picture"}, SAYS[1]]},
        {"conversations": [{"from": "human", "value": "none"}, SAYS[1], {"from": "human", "value": "<image>and now?"}, SAYS[1]],
         "image": "1.png"},
    ]  # fmt: skip
    one, two, three = read(rows, folder)
    assert said(one) == ["a", "0.png", "b", "2.png"]
    assert said(two) == ["no picture"]
    assert isinstance(three, Row)
    assert [len(message.images) for message in three.messages] == [0, 0, 1, 0]


def test_a_mark_in_alpacas_input_is_a_place(folder: Path) -> None:
    (row,) = read([{"instruction": "Say", "input": "of <image> all", "output": "a", "image": "0.png"}], folder)
    assert said(row) == ["Say\nof ", "0.png", " all"]


def held(value: Any) -> dict[str, Any]:
    return {"image": value, "conversations": SAYS}


URI = "data:image/png;base64," + base64.b64encode(png(7)).decode()


@pytest.mark.parametrize(
    "row",
    [
        held(png(7)), held({"bytes": png(7), "path": None}), held([{"bytes": png(7), "path": "x.png"}]), held(URI),
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}}]}, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "input_image", "image_url": URI}]}, ANSWER]},
        {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": URI.partition(",")[2]}}
        ]}, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "image", "base64": URI.partition(",")[2]}]}, ANSWER]},
    ],
    ids=["bytes", "datasets", "list of datasets", "data URI", "openai", "responses", "anthropic", "base64"],
)  # fmt: skip
def test_pictures_that_lie_in_the_row(row: dict[str, Any]) -> None:
    (found,) = read([row])
    assert said(found)[0] == png(7)


def test_equal_bytes_have_equal_names_so_that_repeats_are_seen() -> None:
    texts = [row.text for row in read([held(png(7)), held(png(7)), held(png(8))]) if isinstance(row, Row)]
    assert texts[0] == texts[1] != texts[2]


# ---- what is rejected ----


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"image": "0.png", "conversations": [{"from": "human", "value": "no mark"}, SAYS[1]]}, "image", "1 pictures, and its turns have 0"),
        ({"images": ["0.png", "1.png"], "conversations": SAYS}, "images", "2 pictures, and its turns have 1"),
        ({"conversations": SAYS, "other": 1}, "conversations", "0 pictures, and its turns have 1"),
        ({"image": "none.png", "conversations": SAYS}, "image", "no such picture"),
        ({"images": ["0.png", "none.png"], "conversations": [{"from": "human", "value": "<image><image>"}, SAYS[1]]}, "images[1]", "no such picture"),
        ({"image": "https://host/cat.png", "conversations": SAYS}, "image", "remote address"),
        ({"image": "s3://bucket/cat.png", "conversations": SAYS}, "image", "remote address"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://h/x.png"}}]}, ANSWER]},
         "messages[0].content[0]", "remote address"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]}, "messages[0].content[0]", "no picture"),
        ({"image": "data:image/png;base64,@@@", "conversations": SAYS}, "image", "no base64"),
        ({"image": "data:image/png,abc", "conversations": SAYS}, "image", "data URI is damaged"),
        ({"image": 3, "conversations": SAYS}, "image", "it is a number"),
        ({"image": "a\0b.png", "conversations": SAYS}, "image", "no such picture"),
        ({"image": "0.png", "conversations": [SAYS[0] | {"value": "draw"}, {"from": "gpt", "value": "<image>"}]},
         "conversations", "assistant's turn"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}, ANSWER]}, "messages[0].content[0]", "'video'"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_rejected_by_their_field(
    folder: Path, row: dict[str, Any], field: str, reason: str
) -> None:
    good = (
        {"image": "0.png", "conversations": SAYS}
        if "conversations" in row
        else {"messages": [{"role": "user", "content": "q"}, ANSWER]}
    )
    found = read([row, good], folder)
    assert [type(each) for each in found] == [Reject, Row]
    assert isinstance(found[0], Reject)
    assert (found[0].field, reason in found[0].reason) == (field, True), found[0]


def test_nothing_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refused)
    (row,) = read([{"image": "https://host/cat.png", "conversations": SAYS}], folder)
    assert isinstance(row, Reject)


# ---- which rows these are ----


@pytest.mark.parametrize("name", ["llava", "images_list", "llava_category"])
def test_the_cases_of_users_are_conversations(name: str, tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    for i in (1, 2):
        (tmp_path / "pics" / f"{i}.jpg").write_bytes(png(i))
    lines = [json.dumps(CASES[name]).replace("{}", str(i)) + "\n" for i in (1, 2)]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    source = open_data([str(tmp_path / "rows.jsonl")], image_folder=str(tmp_path))
    assert (source.model_kind, source.strata) == ("vision_language", None)
    assert [len(row.messages[0].images) for row in source if isinstance(row, Row)] == [1, 1]


def test_a_class_label_is_not_taken_for_a_conversation_nor_the_other_way_round(folder: Path) -> None:
    labelled = [{"image": f"{i}.png", "label": "cat"} for i in range(3)]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    assert open_data([str(folder / "list.jsonl")]).model_kind == "image_encoder"
    talked = [{"image": "0.png", "category": "vqa", "label": "x", "conversations": SAYS}] * 3
    source = open_data(talked, image_folder=str(folder))
    assert (source.format, source.model_kind) == ("sharegpt", "vision_language")
    assert [row.columns for row in source if isinstance(row, Row)] == [{"category": "vqa", "label": "x"}] * 3


def test_files_with_and_without_pictures_make_one_set(folder: Path) -> None:
    for name, rows in (
        ("a", [{"image": "0.png", "conversations": SAYS}]),
        ("b", [{"conversations": [SAYS[0] | {"value": "q"}, SAYS[1]]}]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_data([str(folder / "b.jsonl"), str(folder / "a.jsonl")])
    assert source.model_kind == "vision_language"
    assert [len(row.messages[0].images) for row in source if isinstance(row, Row)] == [0, 1]


def test_a_mapping_names_pictures_or_leaves_them_out(folder: Path) -> None:
    row = {"shots": ["0.png"], "talk": [{"role": "user", "content": "<image>q"}, ANSWER]}
    (found,) = read([row], folder, columns={"messages": "talk", "images": "shots"})
    assert said(found) == ["0.png", "q"]
    assert open_data([row], columns={"messages": "talk"}).model_kind == "causal_lm"


def test_the_folder_of_pictures_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--image-folder .*nowhere: there is no such folder"):
        open_data([held("0.png")], image_folder=str(tmp_path / "nowhere"))


def test_paths_are_relative_to_the_file_where_no_folder_is_given(folder: Path) -> None:
    (folder / "rows.json").write_text(json.dumps([{"image": "1.png", "conversations": SAYS}]))
    (row,) = open_data([str(folder / "rows.json")])
    assert said(row) == ["1.png", "\nWhat colour is the bus?"]


def test_another_picture_of_the_same_name_is_other_data(folder: Path) -> None:
    (folder / "rows.json").write_text(json.dumps([{"image": "1.png", "conversations": SAYS}]))
    before = open_data([str(folder / "rows.json")]).identity()
    assert open_data([str(folder / "rows.json")]).identity() == before
    (folder / "1.png").write_bytes(png(9) + b"more")
    assert open_data([str(folder / "rows.json")]).identity() != before


def test_stored_rows_come_back_with_their_pictures(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"image": "0.png", "conversations": SAYS},
        held(URI),
        {"conversations": [SAYS[0] | {"value": "q"}, SAYS[1]]},
    ]
    source = open_data(rows, image_folder=str(folder))
    table = write_rows(tmp_path / "stored", source)
    assert list(RowTable.open(tmp_path / "stored")) == list(table)
    assert [row.messages for row in table] == [row.messages for row in source if isinstance(row, Row)]
    assert [raw for _, raw in table.raw(table.row_id)] == rows


def test_a_turn_is_compared_by_its_parts() -> None:
    turn = Message("user", (Part("image", ImageRef("a.png")), Part("text", "b")))
    assert (turn.text, [image.path for image in turn.images]) == ("b", ["a.png"])
