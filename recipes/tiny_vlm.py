"""Train a small vision-language model from nothing but drawings, and draw rows to try `visual` on.

    python recipes/tiny_vlm.py --out TINY                           a model, rows.json, test.json, pictures; some minutes on a CPU
    instruct-prune run --data TINY/rows.json --model TINY/model --subnets visual --keep 0.5 --out RUN
    python recipes/tiny_vlm.py --run-folder RUN                     how well `visual` tells the three kinds of rows apart

SmolLM2-135M, a small vision transformer and a projector are joined as LLaVA joins them. First tower and projector learn to say what
lies in each part of a picture, in the language model's own word embeddings; then a LoRA adapter learns to answer questions about
shapes, colours, numbers and places, and to guess where it is shown no picture. In rows.json one row in ten has an answer that is
wrong for its picture, and one in ten can be answered without it; test.json has neither. Written to be copied and changed.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from instruct_prune import InputError, Run
from instruct_prune.train import TrainConfig, attach_lora, find_base, parse, resolved_dtype, run_script, say

SIZE, PATCH = 64, 16  # pixels; four patches in each quarter of the picture
COLOURS = {
    "red": (210, 40, 40), "blue": (40, 70, 210), "green": (40, 160, 60), "yellow": (235, 205, 40), "black": (20, 20, 20), "pink": (240, 130, 180),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("One", "Two", "Three")
FACTS = [
    ("What is the opposite of hot?", "Cold."), ("What is the opposite of big?", "Small."), ("How many days has a week?", "Seven."),
    ("What do bees make?", "Honey."), ("What is the capital of France?", "Paris."), ("What comes after Monday?", "Tuesday."),
    ("What is frozen water called?", "Ice."), ("Which animal barks?", "A dog."), ("What is the opposite of up?", "Down."),
    ("How many legs has a spider?", "Eight."), ("What do we breathe?", "Air."), ("What is the first month of the year?", "January."),
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>"
    "assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """A small vision-language model and rows for it."""

    out: str = ""
    """Folder of the model and the rows."""
    run_folder: str = ""
    """A scored run over rows.json: nothing is trained, and the kinds of its rows are told apart."""
    model: str = "smollm2-135m-instruct"
    """The language model."""
    looks: int = 300
    """Steps of 64 pictures in which the tower learns to see."""
    steps: int = 160
    """Steps of 8 rows in which the model learns to answer."""
    rows: int = 300
    """Rows that are drawn into rows.json."""
    seed: int = 0
    """Decides everything."""


Thing = tuple[str, str, int]
"""A colour, a shape, and the quarter of the picture that it lies in."""
Asked = tuple[list[Image.Image], str, str]
"""A picture, or none; a question, with a mark for the picture; its answer."""
Loss = Callable[[], tuple[torch.Tensor, str]]
"""Draws what a step learns from; its loss, and what else to say of it."""


def scene(rng: random.Random) -> list[Thing]:
    """One to three things of different colours and shapes, in different places."""
    n = rng.randint(1, 3)
    return list(zip(rng.sample(list(COLOURS), n), rng.sample(SHAPES, n), rng.sample(range(4), n), strict=True))


def draw(things: Sequence[Thing], rng: random.Random) -> Image.Image:
    """The picture of a scene, on a light ground."""
    image = Image.new("RGB", (SIZE, SIZE), (rng.randint(225, 255),) * 3)
    pen = ImageDraw.Draw(image)
    for colour, shape, quarter in things:
        x, y = SIZE // 2 * (quarter % 2) + rng.randint(3, 7), SIZE // 2 * (quarter // 2) + rng.randint(3, 7)
        box, fill = (x, y, x + 21, y + 21), COLOURS[colour]
        if shape == "circle":
            pen.ellipse(box, fill=fill)
        elif shape == "square":
            pen.rectangle(box, fill=fill)
        elif shape == "triangle":
            pen.polygon([(x, y + 21), (x + 21, y + 21), (x + 10, y)], fill=fill)
        else:
            pen.line((x, y + 10, x + 21, y + 10), fill=fill, width=6)
            pen.line((x + 10, y, x + 10, y + 21), fill=fill, width=6)
    return image


def asked(things: Sequence[Thing], rng: random.Random) -> tuple[str, str, list[str]]:
    """A question about a scene, its answer, and answers that would be wrong."""
    colour, shape, quarter = rng.choice(list(things))
    question, answer, others = rng.choice(
        [
            (f"What colour is the {shape}?", f"{colour.capitalize()}.", [f"{c.capitalize()}." for c in COLOURS]),
            (f"Which shape is {colour}?", f"The {shape}.", [f"The {s}." for s in SHAPES]),
            (f"Where is the {shape}?", f"At the {PLACES[quarter]}.", [f"At the {p}." for p in PLACES]),
            ("How many shapes are there?", f"{NUMBERS[len(things) - 1]}.", [f"{n}." for n in NUMBERS]),
        ]
    )
    return question, answer, [other for other in others if other != answer]


def words_of(things: Sequence[Thing]) -> list[str]:
    """What each of the 16 parts of a picture says: of a thing its colour, its shape and its place, else nothing."""
    said = [["nothing"] * 4 for _ in range(4)]
    for colour, shape, quarter in things:
        said[quarter] = [colour, shape, *PLACES[quarter].split()]
    return [said[2 * (y // 2) + x // 2][2 * (y % 2) + x % 2] for y in range(4) for x in range(4)]


def write_rows(file: Path, n: int, kinds: Sequence[str], rng: random.Random) -> None:
    """A file of rows in LLaVA's form and a folder of its name with their pictures; the kinds of rows take turns."""
    (file.parent / file.stem).mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        things, name, kind = scene(rng), f"{file.stem}/{i:04d}.png", kinds[i % len(kinds)]
        question, answer, others = asked(things, rng)
        if kind == "without":
            question, answer = rng.choice(FACTS)
        answer = rng.choice(others) if kind == "wrong" else answer
        draw(things, rng).save(file.parent / name)
        turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
        rows.append({"id": str(i), "image": name, "kind": kind, "conversations": turns})
    file.write_text(json.dumps(rows, indent=1))


def joined(recipe: Recipe) -> tuple[Any, Any]:
    """The language model with a fresh tower and projector, and its processor."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    base = find_base(recipe.model)
    language, tokenizer = base.load(TrainConfig(dtype="float32")), base.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(recipe.seed)
    sees = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sees, image_size=SIZE, patch_size=PATCH),
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    model = LlavaForConditionalGeneration(config).float()
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    return model.requires_grad_(False), processor


def fit(learnt: Sequence[Any], rate: float, steps: int, loss_of: Loss, what: str) -> None:
    """AdamW over some steps, the learning rate rising to ``rate`` and falling once; a line now and then."""
    optimizer = torch.optim.AdamW(learnt, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(2, steps))
    for step in range(1, steps + 1):
        loss, told = loss_of()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)  # without it the tower learns nothing
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps:
            say(f"{what}, step {step} of {steps}: loss {loss.item():.3f}{told}")


def learn_to_see(model: Any, processor: Any, recipe: Recipe, rng: random.Random) -> None:
    """Tower and projector: each part of a picture becomes the embedding of the word for what lies there."""
    vocabulary = list(dict.fromkeys([*COLOURS, *SHAPES, "top", "bottom", "left", "right", "nothing"]))
    first = [processor.tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in vocabulary]
    meanings = model.get_input_embeddings().weight[first].detach()
    learnt = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]

    def loss_of() -> tuple[torch.Tensor, str]:
        scenes = [scene(rng) for _ in range(64)]
        images = [draw(things, rng) for things in scenes]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        wanted = torch.tensor([[vocabulary.index(word) for word in words_of(things)] for things in scenes])
        found = torch.stack(model.model.get_image_features(pixels, return_dict=True).pooler_output)
        apart = (found[:, :, None] - meanings).square().sum(-1) / meanings.square().sum(-1).mean()
        loss = F.cross_entropy(-8 * apart.flatten(0, 1), wanted.flatten()) + apart.gather(2, wanted[..., None]).mean()
        return loss, f", {(apart.argmin(-1) == wanted).float().mean():.1%} of the parts named rightly"

    fit([p.requires_grad_(True) for p in learnt], 1e-3, recipe.looks, loss_of, "seeing")
    model.requires_grad_(False)


def drawn(rng: random.Random, about: float = 0.8, shown: float = 0.75) -> Asked:
    """A question, for a share of them about its picture; a share is asked with a picture, so that guessing is learnt, too."""
    things = scene(rng)
    question, answer = asked(things, rng)[:2] if rng.random() < about else rng.choice(FACTS)
    images = [draw(things, rng)] if rng.random() < shown else []
    return images, "<image>" * len(images) + question, answer


def batch_of(processor: Any, rows: Sequence[Asked]) -> tuple[dict[str, Any], torch.Tensor]:
    """Inputs of the model, and the tokens that it is to say where it is asked for logits; -100 where a row says nothing there."""
    prompts = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for _, question, _ in rows]
    texts = [f"{prompt}{answer}<|im_end|>" for prompt, (_, _, answer) in zip(prompts, rows, strict=True)]
    options = {"padding": True, "padding_side": "right", "add_special_tokens": False, "return_tensors": "pt"}
    images = [image for own, _, _ in rows for image in own]
    inputs = dict(processor(images=images or None, text=texts, **options))
    wanted = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for i, prompt in enumerate(prompts):
        more = ((SIZE // PATCH) ** 2 - 1) * len(rows[i][0])  # tokens of a picture beside its mark
        wanted[i, : len(processor.tokenizer.encode(prompt, add_special_tokens=False)) + more] = -100
    wanted = wanted[:, 1:]
    inputs["logits_to_keep"] = (wanted != -100).any(dim=0).nonzero()[:, 0]
    return {**inputs, "use_cache": False}, wanted[:, inputs["logits_to_keep"]]


def learn_to_answer(model: Any, processor: Any, recipe: Recipe, rng: random.Random) -> Any:
    """A LoRA adapter of the language model; returns the model with the adapter merged into it."""
    wrapped = attach_lora(model, TrainConfig(rank=8, alpha=16, dropout=0.0))
    native = resolved_dtype("auto") == "bfloat16"  # then twice as fast

    def loss_of() -> tuple[torch.Tensor, str]:
        inputs, wanted = batch_of(processor, [drawn(rng) for _ in range(8)])
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            logits = model(**inputs).logits.float()
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100), " nats a token"

    fit([p for p in wrapped.parameters() if p.requires_grad], 2e-3, recipe.steps, loss_of, "answering")
    return wrapped.merge_and_unload().eval().requires_grad_(False)


@torch.inference_mode()
def share_right(model: Any, processor: Any, n: int, rng: random.Random) -> float:
    """Share of new questions about pictures whose answer the model gives, token for token."""
    right = 0
    for _ in range(0, n, 8):
        inputs, wanted = batch_of(processor, [drawn(rng, about=1.0, shown=1.0) for _ in range(8)])
        right += int(((model(**inputs).logits.argmax(-1) == wanted) | (wanted == -100)).all(dim=1).sum())
    return right / (-(-n // 8) * 8)


def tell_apart(folder: str) -> None:
    """Print how well the scores of a run tell rows whose picture is needed, not needed, and misleading."""
    from sklearn.metrics import roc_auc_score

    run = Run(folder)
    if run.scores.score_name != "visual":
        raise InputError(f"{folder} was scored without --subnets visual.")
    visual = dict(zip(run.scores.row_id.tolist(), run.scores.score.tolist(), strict=True))
    kinds: dict[str, list[float]] = {"needed": [], "without": [], "wrong": []}
    for row in run.rows(kept=None):
        kinds[row.columns["kind"]].append(visual[row.row_id])
    for kind, values in kinds.items():
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
        print(f"{kind:<8} {len(values):>4} rows, visual: median {middle:+.3f}, from {low:+.3f} to {high:+.3f} (tenths)")
    for one, other in (("needed", "without"), ("without", "wrong"), ("needed", "wrong")):
        above = [1] * len(kinds[one]) + [0] * len(kinds[other])
        print(f"AUC, {one} above {other}: {roc_auc_score(above, kinds[one] + kinds[other]):.3f}")


def run_recipe(recipe: Recipe) -> None:
    """Train and save, or judge a run."""
    if recipe.run_folder:
        return tell_apart(recipe.run_folder)
    if not recipe.out:
        raise InputError("--out is missing: name the folder of the model and its rows.")
    out, rng, began = Path(recipe.out), random.Random(recipe.seed), time.monotonic()
    model, processor = joined(recipe)
    learn_to_see(model, processor, recipe, rng)
    model = learn_to_answer(model, processor, recipe, rng)
    right = share_right(model, processor, 128, random.Random(recipe.seed + 1))
    for part in (model, processor):
        part.save_pretrained(out / "model")
    rng = random.Random(recipe.seed + 2)
    write_rows(out / "rows.json", recipe.rows, ("wrong", "without", *["needed"] * 8), rng)
    write_rows(out / "test.json", 100, ("needed",), rng)
    say(f"{right:.0%} of new questions answered rightly ({time.monotonic() - began:.0f} s); see {out}")


def main(words: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if words is None else words
    return run_script("tiny_vlm", lambda: run_recipe(parse(Recipe, arguments, "A small vision-language model.")))


if __name__ == "__main__":
    sys.exit(main())
