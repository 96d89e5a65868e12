"""Losses of rows with pictures are those of transformers' own forward pass over each row alone, whatever rows run together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sight_models import ARCHITECTURES, conversations, made, picture, png

from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.encode.batching import plan_batches
from instruct_prune.encode.item import Encoded, PicturedTokens
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.measure.subnets import SubnetSwitch
from instruct_prune.models.vision_language import VisionLanguage
from instruct_prune.rows import open_data
from instruct_prune.rows.pixels import decode
from instruct_prune.rows.row import ImageRef, Message, Part, Row

CPU = torch.device("cpu")
KEEPS = {"llava", "llava_onevision", "qwen2_vl", "idefics3", "internvl", "gemma3", "paligemma"}
"""Architectures of which a row's features are computed once and kept."""


def model_of(name: str, load: bool = True, **options: Any) -> VisionLanguage:
    model = VisionLanguage(ScoreConfig(), EncodeConfig(**options), "sharegpt", made(name))
    if load:
        model.load("float32", CPU)
    return model


def asks(text: str, *pictures: bytes, answer: str = "Green.", row_id: int = 0) -> Row:
    shown = tuple(Part("image", ImageRef(f"{i}.png", data)) for i, data in enumerate(pictures))
    user = Message("user", (*shown, Part("text", text)) if shown else text)
    return Row(row_id, (user, Message("assistant", answer, trained=True)), "rows.json", row_id + 1, {})


def encoded(model: VisionLanguage, *rows: Row) -> list[list[tuple[str, bool]]]:
    found = model.encoder.encode(list(rows))
    assert [one.status for one in found] == ["ok"] * len(rows), [one.reason for one in found]
    return [model.encoder.decode(one) for one in found]


# ---- masks, written by hand ----

OPEN, ASKED = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def test_masks_of_llava() -> None:
    (found,) = encoded(model_of("llava", load=False), asks("What colour?", png(0), png(1)))
    prompt = OPEN + ("<image>" * 16 + "\n") * 2 + "What colour?" + ASKED
    assert found == [(prompt, False), ("Green.<|im_end|>", True), ("\n", False)]


def test_masks_of_qwen2_vl() -> None:
    # 40 x 32 pixels become 32 x 32: 4 x 4 patches of 8 pixels, of which 2 x 2 make a token; 64 x 32 make 8.
    (found,) = encoded(model_of("qwen2_vl", load=False), asks("What colour?", png(0), png(1, 64, 32)))
    shown = "".join(f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in (4, 8))
    assert found == [(OPEN + shown + "What colour?" + ASKED, False), ("Green.<|im_end|>", True), ("\n", False)]


def test_masks_of_idefics3() -> None:
    (found,) = encoded(model_of("idefics3", load=False), asks("What colour?", png(0, 32, 32)))
    fake, four = "<fake_token_around_image>", "<image>" * 4
    rows = "".join("".join(f"{fake}<row_{i}_col_{j}>{four}" for j in (1, 2)) + "\n" for i in (1, 2))
    shown = f"{rows}\n{fake}<global-img>{four}{fake}"
    assert found == [(OPEN + shown + "What colour?" + ASKED, False), ("Green.<|im_end|>", True), ("\n", False)]


def test_masks_of_gemma3_whose_line_breaks_join_those_of_the_template() -> None:
    (found,) = encoded(model_of("gemma3", load=False), asks("\n\nWhat colour?", png(0)))
    shown = f"\n\n<start_of_image>{'<image_soft_token>' * 4}<end_of_image>\n\n"
    assert found == [(OPEN + shown + "\n\nWhat colour?" + ASKED, False), ("Green.<|im_end|>", True), ("\n", False)]


def test_masks_of_paligemma() -> None:
    (found,) = encoded(model_of("paligemma", load=False), asks("What colour?", png(0), png(1)))
    assert found == [("<image>" * 32 + "<bos>What colour?\n", False), ("Green.<|im_end|>", True)]


def test_masks_of_several_turns_with_pictures_between() -> None:
    first, last = asks("One?", png(0), answer="Yes.").messages, asks("Two?", png(1), answer="Both.").messages
    (found,) = encoded(model_of("llava", load=False), Row(0, first + last, "r", 1, {}))
    image = "<image>" * 16 + "\n"
    assert found == [
        (OPEN + image + "One?" + ASKED, False), ("Yes.<|im_end|>", True), ("\n" + OPEN + image + "Two?" + ASKED, False),
        ("Both.<|im_end|>", True), ("\n", False),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokens_are_those_of_the_processor(name: str) -> None:
    """By the processor's own call over the whole text, as trainers call it."""
    model = model_of(name, load=False)
    row = asks("What colour?", png(0), png(1, 64, 36))
    (found,) = model.encoder.encode([row])
    _, ids, _ = model._expanded[0]
    assert found.input_ids.tolist() == ids
    assert found.response_mask.sum() == len(model.tokenizer.encode("Green.<|im_end|>", add_special_tokens=False))


# ---- losses ----


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "rows.json").write_text(json.dumps(conversations(folder)))
    return [row for row in open_data([str(folder / "rows.json")]) if isinstance(row, Row)]


def items_of(model: VisionLanguage, rows: list[Row], folder: Path) -> Any:
    model.write_items(folder, rows, lambda n: None, False)
    return model.open_items(folder)


def plain_loss(model: VisionLanguage, row: Row, one: Encoded) -> float:
    """By the processor and the model as transformers documents them: one row, no batch, nothing kept."""
    images = [decode(image.read()) for message in row.messages for image in message.images]
    ids = torch.from_numpy(one.input_ids.astype(np.int64))[None]
    more: dict[str, Any] = {}
    if images:
        asked = json.loads(model._expanded[row.row_id][0])
        suffix = {"suffix": [asked["suffix"]]} if "suffix" in asked else {}
        options = {"add_special_tokens": False, "return_tensors": "pt"}
        found = model.processor.processor(images=images, text=[asked["text"]], **suffix, **options)
        assert found["input_ids"].tolist() == ids.tolist()
        more = {k: v for k, v in found.items() if k not in ("input_ids", "attention_mask", "labels")}
    with torch.inference_mode():
        logits = model.module(input_ids=ids, **more).logits[0, :-1].float()
    losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
    return float(losses[torch.from_numpy(one.response_mask[1:])].mean())


def losses_of(model: VisionLanguage, items: Any, rows: np.ndarray, batch_tokens: int) -> np.ndarray:
    lengths = items.lengths[rows]
    plan = plan_batches(rows, lengths, batch_tokens=batch_tokens, alone=model.alone(lengths))
    model.start_pass(plan, (), False)
    found = np.full(len(items), np.nan)
    with torch.inference_mode():
        for batch in (batch for chunk in plan.chunks for batch in chunk):
            ready = model.collate([items[int(i)] for i in batch.rows], -1)
            found[batch.rows] = model.losses(ready, model.forward(ready), None).numpy()
    return found[rows]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_are_those_of_the_plain_forward_pass(name: str, rows: list[Row], tmp_path: Path) -> None:
    model = model_of(name)
    some = [row for row in rows if name != "paligemma" or row.messages[0].images]  # it takes no text alone
    items = items_of(model, some, tmp_path)
    assert items.status_names.tolist() == ["ok"] * len(some)
    every = np.arange(len(some))
    wanted = [plain_loss(model, row, model.encoder.encode([row])[0]) for row in some]
    for batch_tokens in (1, 300, 4096):
        np.testing.assert_allclose(losses_of(model, items, every, batch_tokens), wanted, atol=1e-4)
    np.testing.assert_allclose(losses_of(model, items, every[::-1][:5], 4096), np.asarray(wanted)[::-1][:5], atol=1e-4)
    assert np.std(wanted) > 0.01
    assert model.shortcuts.features == (name in KEEPS)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "mllama"])
def test_another_picture_is_another_loss_and_none_is_the_view_blind(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    items = items_of(model, [asks("What colour?", png(seed), row_id=seed) for seed in (0, 1)], tmp_path)
    one, two = losses_of(model, items, np.arange(2), 1)
    assert abs(one - two) > 1e-4
    blind = model.blind(items[0])
    text = model.tokenizer.decode(blind.ids)
    assert text.removeprefix("<bos>") == OPEN + "What colour?" + ASKED + "Green.<|im_end|>"
    assert model.tokenizer.decode(blind.ids[blind.response_mask]) == "Green.<|im_end|>"


def test_pictures_of_a_row_run_once_for_all_passes(rows: list[Row], tmp_path: Path) -> None:
    model = model_of("llava")
    items = items_of(model, rows, tmp_path)
    looked: list[int] = []
    model.module.model.vision_tower.register_forward_hook(lambda m, args, out: looked.append(len(args[0])))
    first = losses_of(model, items, np.arange(len(rows)), 4096)
    shown = sum(len(message.images) for row in rows for message in row.messages)
    assert sum(looked) == shown
    assert losses_of(model, items, np.arange(len(rows)), 300) == pytest.approx(first, abs=1e-5)
    assert sum(looked) == shown
    assert model._seen is not None
    model._seen.kept.clear()
    model._seen.room = 0
    losses_of(model, items, np.arange(len(rows)), 300)
    losses_of(model, items, np.arange(len(rows)), 300)
    assert sum(looked) == 3 * shown


def test_subnets_leave_the_vision_tower_and_the_projector_alone() -> None:
    model = model_of("llava")
    before = {name: weight.clone() for name, weight in model.module.named_parameters()}
    with SubnetSwitch(model.module, False, model.backbone) as switch:
        switch.to(SubnetSpec("magnitude", 0.5))
        changed = {name for name, weight in model.module.named_parameters() if not torch.equal(weight, before[name])}
        assert changed
        assert all(name.startswith("model.language_model.layers.") for name in changed)
        assert len([name for name in changed if "proj" in name]) == 2 * 7
    assert all(torch.equal(weight, before[name]) for name, weight in model.module.named_parameters())


# ---- what cannot be scored ----


def statuses(model: VisionLanguage, *rows: Row) -> list[tuple[str, str]]:
    return [(one.status.value, one.reason) for one in model.encoder.encode(list(rows))]


def test_pictures_that_cannot_be_used_have_a_status_with_their_name() -> None:
    model = model_of("llava", load=False)
    good, cut = png(0), png(0)[:200]
    (damaged,), (empty,), (typed,) = (
        statuses(model, asks("q", good, cut)), statuses(model, asks("q", b"")), statuses(model, asks("say <image> twice")),
    )  # fmt: skip
    assert damaged[0] == typed[0] == "failed"
    assert "picture 2 (1.png): the image is truncated" in damaged[1]
    assert empty == ("failed", "picture 1 (0.png): the file is empty (zero bytes)")
    assert "'<image>', which this model takes for a picture" in typed[1]


def test_nothing_is_cut_inside_a_picture() -> None:
    whole = model_of("llava", load=False)
    row = asks("What colour is it?", png(0), answer="Green, and red, and blue, and white.")
    (full,) = whole.encoder.encode([row])
    short = model_of("llava", load=False, max_length=len(full.input_ids) - 6)
    (cut,) = short.encoder.encode([row])
    assert (cut.status.value, cut.n_cut) == ("truncated", 5)  # and the line break after the end token
    np.testing.assert_array_equal(cut.input_ids, full.input_ids[:-6])
    (none,) = model_of("llava", load=False, max_length=20).encoder.encode([row])
    assert none.status.value == "too_long"
    assert "pictures are not cut" in none.reason
    (text,) = model_of("llava", load=False, max_length=20).encoder.encode([asks("words " * 30)])
    assert text.status.value == "truncated"  # rows of text alone are cut as ever


def test_a_cut_row_is_blind_to_the_same_tokens(tmp_path: Path) -> None:
    model = model_of("llava", max_length=44)
    row = asks("What colour is it?", png(0), answer="Green, and red, and blue, and white.")
    items = items_of(model, [row], tmp_path)
    seen, blind = items[0], items[0].blind
    np.testing.assert_array_equal(seen.ids[seen.response_mask], blind.ids[blind.response_mask])
    assert items.n_cut[0] > 0


def test_a_model_must_be_named_and_must_see(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(InputError, match=r"no model for them is installed: name a vision-language model"):
        VisionLanguage(ScoreConfig(), EncodeConfig(), "sharegpt")
    blind = VisionLanguage(ScoreConfig(model=str(tiny_model_folder)), EncodeConfig(), "sharegpt")
    with pytest.raises(InputError, match=r"takes no pictures beside text"):
        _ = blind.encoder


def test_an_encoder_of_text_takes_no_row_with_pictures() -> None:
    encoder = Encoder(model_of("llava", load=False).tokenizer, "plain", max_length=100)
    shown, text = encoder.encode([asks("What colour is it?", png(0), answer="Green."), asks("Why?")])
    assert (shown.status.value, text.status.value) == ("failed", "ok")
    assert "the row shows pictures" in shown.reason


def test_pictures_are_decoded_as_everywhere_else(tmp_path: Path) -> None:
    assert np.array_equal(np.asarray(decode(png(3))), np.asarray(picture(3)))


def test_items_know_their_pictures_and_hashes_follow_them(tmp_path: Path) -> None:
    model = model_of("llava", load=False)
    (tmp_path / "x.png").write_bytes(png(5))
    filed = Row(
        2, (Message("user", (Part("image", ImageRef(str(tmp_path / "x.png"))),)), *asks("").messages[1:]), "r", 3, {}
    )
    items = items_of(
        model, [asks("q", png(4)), asks("q", png(5), row_id=1), filed, asks("text", row_id=3)], tmp_path / "items"
    )
    first, filed_item = items[0], items[2]
    assert isinstance(first, PicturedTokens)
    assert isinstance(filed_item, PicturedTokens)
    assert (first.pictures[0].data, filed_item.pictures[0].data) == (png(4), None)
    assert not isinstance(items[3], PicturedTokens)
    hashes = items.text_columns("content_hash")[0]
    assert len(set(hashes)) == 4
