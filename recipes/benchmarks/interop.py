"""Do trainers train what was scored? Each export is loaded by the trainers' own code and put beside the scorer's tokens.

    python recipes/benchmarks/interop.py                            # prints the table
    python recipes/benchmarks/interop.py --write docs/exports.md    # and puts it into the page

A cell says how many rows have the scorer's token ids and labels; tokens after the last learnt one do not count, because
nothing is learnt from them. Trainers that are not installed keep their columns of the page. They need no GPU, and no more
than their data code has to import: TRL, ``pip install --no-deps llamafactory==0.9.5 axolotl==0.19.0 ms-swift==4.6.0`` and what
they ask for.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_prune import DataConfig, EncodeConfig, ExportConfig, Run, ScoreConfig, SelectConfig
from instruct_prune.encode.store import TokenStore
from instruct_prune.errors import InputError
from instruct_prune.models.names import find_model, load_tokenizer

Learnt = tuple[list[int], list[int]]  # token ids and labels of a row, up to the last label
Reader = Callable[[Path, Path], list[Learnt]]  # of an export's folder and the model's folder
BEGIN, END = "<!-- interop: written by recipes/benchmarks/interop.py -->", "<!-- /interop -->"

QUESTIONS = ("Name a river.", "Add two and three.", "What is soft?", "Who sings?", "Say it in French.", "Stop.")
ANSWERS = ("The Rhine.", "\n5", " Wool,\nand felt.", "A lark", "C'est la vie: déjà vu!", "...")
CALL = {"id": "c00010000", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}}


@dataclass(frozen=True)
class Case:
    """Some rows.

    Attributes:
        name: in the table.
        rows: of the data file.
        template: that they are scored under.
        tokenizer: "" for the model's own, "bos" for the same with a token put before every text, "blanks" for a small one
            that writes blanks as part of words and puts one before every text, as Llama 2's does.
        max_length: tokens of a row at most.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    template: str
    tokenizer: str = ""
    max_length: int = 512


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _cases() -> list[Case]:
    pairs = list(zip(QUESTIONS, ANSWERS, strict=True))
    alpaca = [{"instruction": q, "input": "as a list" if i % 2 else "", "output": a} for i, (q, a) in enumerate(pairs)]
    single = [{"messages": [turn("system", "Be brief."), turn("user", q), turn("assistant", a)]} for q, a in pairs]
    several = [
        {"messages": [turn("user", q), turn("assistant", a), turn("user", "And then?"), turn("assistant", f"{a} No.")]}
        for q, a in pairs
    ]
    weighted = [
        {"messages": [row["messages"][0], {**row["messages"][1], "weight": 0}, *row["messages"][2:]]} for row in several
    ]
    asks = [turn("user", "Rain?"), turn("assistant", "", tool_calls=[CALL]), turn("tool", "none")]
    calls = [{"messages": [*asks, turn("assistant", a)], "tools": [TOOL]} for a in ANSWERS]
    preferred = [{"prompt": q, "chosen": a, "rejected": "I cannot say."} for q, a in pairs]
    said = [[turn("user", q)] for q in QUESTIONS]
    spoken = [
        {"prompt": q, "chosen": [turn("assistant", a)], "rejected": [turn("assistant", "Hm.")]}
        for q, a in zip(said, ANSWERS, strict=True)
    ]
    return [
        Case("Alpaca rows, `alpaca`", alpaca, "alpaca"),
        Case("Alpaca rows, `alpaca`, tokenizer with BOS", alpaca, "alpaca", "bos"),
        Case("one answer, `chat`", single, "chat"),
        Case("several answers, `chat`", several, "chat"),
        Case("several answers, one with weight 0, `chat`", weighted, "chat"),
        Case("tool calls, `chat`", calls, "chat"),
        Case("several answers, `alpaca`, tokenizer with BOS", several, "alpaca", "bos"),
        Case("one answer, `plain`", single, "plain"),
        Case("Alpaca rows, `alpaca`, tokenizer with `▁`", alpaca, "alpaca", "blanks"),
        Case("Alpaca rows longer than `--max-length`", alpaca, "alpaca", max_length=28),
        Case("preference pairs, `alpaca`", preferred, "alpaca"),
        Case("preference pairs of turns, `chat`", spoken, "chat"),
    ]


CASES = _cases()


# ---- what was scored ----


def tokenizer_of(kind: str, own: Any) -> Any:
    """A tokenizer of this kind (`Case.tokenizer`)."""
    import copy

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    found = copy.deepcopy(own)
    if kind == "blanks":
        backend = Tokenizer(models.BPE(byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        letters = [chr(code) for code in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=letters, show_progress=False
        )
        backend.train_from_iterator([*QUESTIONS, *ANSWERS, *letters, "▁"], trainer)
        found = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    if kind:
        token = found.bos_token or found.pad_token
        found.bos_token = token
        special = [(token, found.convert_tokens_to_ids(token))]
        found.backend_tokenizer.post_processor = TemplateProcessing(f"{token} $A", f"{token} $A {token} $B", special)
    return found


def model_folder(tokenizer: Any, folder: Path) -> Path:
    """A tiny Llama of random weights with this tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scored(case: Case, rows: Sequence[Mapping[str, Any]], model: Path, out: Path) -> Run:
    """A run that keeps all of some rows."""
    data = out.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = Run(out)
    run.score(
        DataConfig((str(data),)),
        ScoreConfig(str(model), subnets=("perplexity",), dtype="float32"),
        EncodeConfig(template=case.template, max_length=case.max_length),
    )
    run.select(SelectConfig(keep=1.0, method="random", clusters="none"))
    return run


def tokens_of(run: Run) -> list[Learnt]:
    """What the model was given, from the run's own store."""
    store = TokenStore.open(run.folder / "items")
    rows = [store[i] for i in range(len(store))]
    return [
        learnt(r.ids.tolist(), [t if m else -100 for t, m in zip(r.ids.tolist(), r.response_mask, strict=True)])
        for r in rows
    ]


def expected(case: Case, run: Run, model: Path, out: Path) -> list[Learnt]:
    """What is to be learnt of each row; of pairs, the chosen answers and then the rejected ones."""
    found = tokens_of(run)
    if "rejected" in case.rows[0]:
        swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in case.rows]
        found += tokens_of(scored(case, swapped, model, out))
    return found


def learnt(ids: Sequence[int], labels: Sequence[int]) -> Learnt:
    """Without the tokens after the last label."""
    end = max((i + 1 for i, label in enumerate(labels) if label != -100), default=0)
    return list(ids[:end]), list(labels[:end])


# ---- what trainers read ----


def config_of(folder: Path, name: str) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


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


# ---- the table ----


@dataclass(frozen=True)
class Column:
    """One way from an export into a trainer.

    Attributes:
        title: in the table.
        to: the export.
        package: that must be installed.
        read: what the trainer makes of it.
    """

    title: str
    to: str
    package: str
    read: Reader


COLUMNS = (
    Column("`tokens` in TRL", "tokens", "trl", read_by_trl),
    Column("`tokens` in LLaMA-Factory", "tokens", "llamafactory", read_by_llamafactory),
    Column("`tokens` in axolotl", "tokens", "axolotl", read_by_axolotl),
    Column("`trl`", "trl", "trl", read_by_trl),
    Column("`llamafactory`", "llamafactory", "llamafactory", read_by_llamafactory),
    Column("`llamafactory`, its own template", "llamafactory", "llamafactory", read_by_llamafactory_itself),
    Column("`axolotl`", "axolotl", "axolotl", read_by_axolotl),
    Column("`swift`", "swift", "swift", read_by_swift),
)


def installed(column: Column) -> bool:
    return importlib.util.find_spec(column.package) is not None


def cell(tokenizer: Any, wanted: Sequence[Learnt], found: Sequence[Learnt]) -> str:
    """How many rows are as they were scored, and what is changed in the first other one."""
    same = sum(one == other for one, other in zip(wanted, found, strict=False))
    text = f"{same} of {len(wanted)}"
    if len(found) != len(wanted):
        return f"{text}: {len(wanted) - len(found)} are not read"
    for (ids, labels), (other, theirs) in zip(wanted, found, strict=True):
        if (ids, labels) == (other, theirs):
            continue
        said, read = tokenizer.decode(ids), tokenizer.decode(other)
        if read == said:
            return f"{text}: same text, other tokens" if other != ids else f"{text}: other labels"
        return f"{text}: `{read[len(said) :]!r}` is learnt, too" if read.startswith(said) else f"{text}: other text"
    return text


def measure(tokenizer: Any, columns: Sequence[Column], cases: Sequence[Case], work: Path) -> dict[str, dict[str, str]]:
    """{case: {column: cell}} for the columns given, whose trainers must be installed."""
    table: dict[str, dict[str, str]] = {}
    for i, case in enumerate(cases):
        own = tokenizer_of(case.tokenizer, tokenizer)
        model = model_folder(own, work / f"model-{i}")
        run = scored(case, case.rows, model, work / f"run-{i}")
        wanted = expected(case, run, model, work / f"swapped-{i}")
        row = table[case.name] = {}
        written: set[str] = set()
        for column in columns:
            try:
                if column.to not in written:
                    run.export(ExportConfig((column.to,)))
                    written.add(column.to)
                row[column.title] = cell(own, wanted, column.read(run.folder.path / column.to, model))
            except InputError as error:
                row[column.title] = "refused" if "--to" in str(error) else str(error)
    return table


def markdown(table: Mapping[str, Mapping[str, str]]) -> str:
    titles = [column.title for column in COLUMNS]
    lines = [f"| rows, template | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row.get(title, '') for title in titles)} |" for name, row in table.items()]
    return "\n".join(lines)


def of_page(page: str) -> dict[str, dict[str, str]]:
    """The table that stands in a page."""
    lines = page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    cells = [[each.strip() for each in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: dict(zip(cells[0][1:], row[1:], strict=True)) for row in cells[2:]} if cells else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="whose tokenizer")
    parser.add_argument("--write", type=Path, help="the page that holds the table")
    options = parser.parse_args()
    tokenizer = load_tokenizer(find_model(options.model))
    columns = [column for column in COLUMNS if installed(column)]
    with tempfile.TemporaryDirectory() as work:
        table = measure(tokenizer, columns, CASES, Path(work))
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8")
        for name, row in of_page(page).items():
            if name in table:
                table[name] = row | table[name]
        before, _, rest = page.partition(BEGIN)
        after = rest.partition(END)[2]
        options.write.write_text(f"{before}{BEGIN}\n\n{markdown(table)}\n\n{END}{after}", encoding="utf-8")
    print(markdown(table))


if __name__ == "__main__":
    main()
