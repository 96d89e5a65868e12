"""How trainers read exports, by their own code: the token ids and labels that they would train on.

Loads nothing of a trainer before one of its readers is called. Part of interop.py.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError

Learnt = tuple[list[int], list[int]]  # token ids and labels of a row, up to the last label


def learnt(ids: Sequence[int], labels: Sequence[int]) -> Learnt:
    """Without the tokens after the last label."""
    end = max((i + 1 for i, label in enumerate(labels) if label != -100), default=0)
    return list(ids[:end]), list(labels[:end])


def config_of(folder: Path, name: str) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def stand_in(name: str) -> None:
    """An empty module where it is not installed: a trainer imports it for rows of another kind."""
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In this folder, with a cache of its own: as people run the configurations."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def read_by_trl(folder: Path, model: Path) -> list[Learnt]:
    """The rows of the trainer that ``trl sft --config trl.yaml`` (or ``trl dpo``) makes."""
    from trl import (
        DatasetMixtureConfig,
        DPOConfig,
        DPOTrainer,
        ModelConfig,
        ScriptArguments,
        SFTConfig,
        SFTTrainer,
        TrlParser,
        get_dataset,
        get_peft_config,
    )  # fmt: skip

    dpo = "beta" in config_of(folder, "trl")
    with inside(folder):
        parser = TrlParser((ScriptArguments, DPOConfig if dpo else SFTConfig, ModelConfig, DatasetMixtureConfig))
        words = ["--config", "trl.yaml", "--use_cpu", "--bf16", "False", "--gradient_checkpointing", "False"]
        script, training, named, data = parser.parse_args_and_config(words, fail_with_unknown_args=True)
        trainer: Any = (DPOTrainer if dpo else SFTTrainer)(
            model=named.model_name_or_path,
            args=training,
            train_dataset=get_dataset(data)[script.dataset_train_split],
            peft_config=get_peft_config(named),
        )
        rows = list(trainer.train_dataset)
        if not dpo:
            batches = [trainer.data_collator([row]) for row in rows]
            return [learnt(b["input_ids"][0].tolist(), b["labels"][0].tolist()) for b in batches]
    return [
        learnt(row["prompt_ids"] + row[f"{side}_ids"], [-100] * len(row["prompt_ids"]) + row[f"{side}_ids"])
        for side in ("chosen", "rejected")
        for row in rows
    ]


def read_by_llamafactory(folder: Path, model: Path, **changes: str | None) -> list[Learnt]:
    """What ``llamafactory-cli train llamafactory.yaml`` trains on, with some keys changed."""
    os.environ.setdefault("DISABLE_VERSION_CHECK", "1")  # it wants an older transformers; its data code takes this one
    stand_in("torchaudio")
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.data.loader import get_dataset
    from llamafactory.hparams import DataArguments, FinetuningArguments, ModelArguments
    from transformers import AutoTokenizer, HfArgumentParser, Seq2SeqTrainingArguments

    config = config_of(folder, "llamafactory") | changes
    with inside(folder):
        parser = HfArgumentParser((ModelArguments, DataArguments, FinetuningArguments, Seq2SeqTrainingArguments))
        config |= {"use_cpu": True, "overwrite_cache": True}
        named, data, finetuning, training = parser.parse_dict(config)
        tokenizer = AutoTokenizer.from_pretrained(named.model_name_or_path)
        template = get_template_and_fix_tokenizer(tokenizer, data)
        stage = "rm" if finetuning.stage == "dpo" else finetuning.stage
        rows = list(get_dataset(template, named, data, training, stage, tokenizer)["train_dataset"])
    sides = ("chosen_", "rejected_") if stage == "rm" else ("",)
    return [learnt(row[f"{side}input_ids"], row[f"{side}labels"]) for side in sides for row in rows]


def read_by_llamafactory_itself(folder: Path, model: Path) -> list[Learnt]:
    """The conversations, under the template of LLaMA-Factory's that is meant for them."""
    described = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    name = next((name for name in described if name.endswith("-conversations")), None)
    if name is None:
        raise InputError("not written")
    chatml = "<|im_start|>" in (folder / f"{name.removesuffix('-conversations')}.jsonl").read_text(encoding="utf-8")
    return read_by_llamafactory(
        folder, model, dataset=name, tokenized_path=None, template="smollm" if chatml else "alpaca"
    )


@dataclass(frozen=True)
class Pictured:
    """What a trainer makes of a row that shows pictures.

    Attributes:
        pictures: paths.
        shown: tokens that stand for them.
        said: what is learnt, as text.
        loaded: pictures that its collator opened.
    """

    pictures: list[str]
    shown: int
    said: str
    loaded: int


def read_pictured_by_llamafactory(folder: Path, processor: Any, template: str) -> list[Pictured]:
    """What LLaMA-Factory makes of our ``dataset_info.json`` and its rows, under a template of its own."""
    os.environ.setdefault("DISABLE_VERSION_CHECK", "1")
    stand_in("torchaudio")
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.data.collator import MultiModalDataCollatorForSeq2Seq
    from llamafactory.data.loader import get_dataset
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    tokenizer, (name,) = processor.tokenizer, json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    with inside(folder):
        data = DataArguments(dataset=name, dataset_dir=".", template=template, overwrite_cache=True)
        made = get_template_and_fix_tokenizer(tokenizer, data)
        training = Seq2SeqTrainingArguments(output_dir="none", use_cpu=True)
        named = ModelArguments(model_name_or_path="none")
        rows = list(get_dataset(made, named, data, training, "sft", tokenizer, processor)["train_dataset"])
    collate = MultiModalDataCollatorForSeq2Seq(template=made, processor=processor, tokenizer=tokenizer)
    mark, found = tokenizer.convert_tokens_to_ids(processor.image_token), []
    for row in rows:
        pixels = collate([dict(row)]).get("pixel_values", ())
        said = tokenizer.decode([label for label in row["labels"] if label != -100], skip_special_tokens=True)
        found.append(Pictured(row["images"] or [], row["input_ids"].count(mark), said, len(pixels)))
    return found


def read_by_axolotl(folder: Path, model: Path) -> list[Learnt]:
    """What ``axolotl train axolotl.yaml`` trains on; pairs as the trainer of TRL, which it calls, reads them."""
    from axolotl.utils.data.rl import _load_split
    from axolotl.utils.data.sft import _load_and_process_single_dataset
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer

    config = DictDefault(config_of(folder, "axolotl") | {"tokenizer_config": str(model)})
    tokenizer = AutoTokenizer.from_pretrained(config.base_model)
    with inside(folder):
        if config.rl:
            from axolotl.utils.schemas.enums import RLType

            config.rl = RLType(config.rl)
            return [
                _pair(tokenizer, row, side) for side in ("chosen", "rejected") for row in _load_split(config, "train")
            ]
        rows, _ = _load_and_process_single_dataset(config.datasets[0], config, tokenizer, "train", 0)
        return [learnt(row["input_ids"], row["labels"]) for row in rows]


def _pair(tokenizer: Any, row: Mapping[str, str], side: str) -> Learnt:
    end = "" if row[side].endswith(tokenizer.eos_token) else tokenizer.eos_token
    prompt, whole = tokenizer(row["prompt"])["input_ids"], tokenizer(row["prompt"] + row[side] + end)["input_ids"]
    return learnt(whole, [-100] * len(prompt) + whole[len(prompt) :])


def read_by_swift(folder: Path, model: Path) -> list[Learnt]:
    """What ``swift sft swift.yaml`` trains on."""
    from swift.dataset import load_dataset
    from swift.model import get_processor
    from swift.template import get_template

    config = config_of(folder, "swift")
    processor = get_processor(str(model), model_type="llama")
    template = get_template(
        processor,
        template_type="chatml",
        use_chat_template=config["use_chat_template"],
        max_length=config["max_length"],
        truncation_strategy=config["truncation_strategy"],
    )
    template.set_mode("train")
    with inside(folder):
        data, _ = load_dataset(config["dataset"])
        rows = [template.encode(row) for row in data]
    return [learnt(row["input_ids"], row["labels"]) for row in rows]
