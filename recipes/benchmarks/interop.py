"""Do trainers train what was scored? Each export is loaded by the trainers' own code and put beside the scorer's tokens.

    python recipes/benchmarks/interop.py                            # prints the table
    python recipes/benchmarks/interop.py --write docs/exports.md    # and puts it into the page

A cell says how many rows have the scorer's token ids and labels; tokens after the last learnt one do not count, because
nothing is learnt from them. Trainers that are not installed, or not named by ``--trainer``, keep their columns of the page. They
need no GPU, and no more than their data code has to import. ``make interop`` makes an environment for each of them, with the
versions that it asks for, and writes the page.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interop_cases import ANSWERS, CASES, QUESTIONS, Case
from interop_readers import (
    Learnt,
    learnt,
    read_by_axolotl,
    read_by_llamafactory,
    read_by_llamafactory_itself,
    read_by_swift,
    read_by_trl,
)

from instruct_prune import DataConfig, EncodeConfig, ExportConfig, Run, ScoreConfig, SelectConfig
from instruct_prune.encode.store import TokenStore
from instruct_prune.errors import InputError
from instruct_prune.models.names import find_model, load_tokenizer

Reader = Callable[[Path, Path], list[Learnt]]  # of an export's folder and the model's folder
BEGIN, END = "<!-- interop: written by recipes/benchmarks/interop.py -->", "<!-- /interop -->"


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
        num_key_value_heads=2, max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id,
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


TRAINERS = tuple(dict.fromkeys(column.package for column in COLUMNS))
VERSIONS = "measured with"  # the last row of the table


def installed(column: Column) -> bool:
    return importlib.util.find_spec(column.package) is not None


def versions(column: Column) -> str:
    """Of the trainer and of the library that it tokenizes with, as installed."""
    names = ({"swift": "ms-swift"}.get(column.package, column.package), "transformers")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


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
    parser.add_argument(
        "--trainer", nargs="+", choices=TRAINERS, help="measure these columns alone; else all that are installed"
    )
    parser.add_argument("--write", type=Path, help="the page that holds the table")
    options = parser.parse_args()
    tokenizer = load_tokenizer(find_model(options.model))
    columns = [c for c in COLUMNS if (c.package in options.trainer if options.trainer else installed(c))]
    with tempfile.TemporaryDirectory() as work:
        table = measure(tokenizer, columns, CASES, Path(work))
    table[VERSIONS] = {column.title: versions(column) for column in columns}
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
