"""Run folders as the pipeline leaves them, made from any rows in milliseconds: losses and embeddings are computed from the text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.rows.row import ImageRef, Message, Part, Reject, Row
from instruct_prune.rows.table import RowFacts
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts, EncodeFacts, RowsFacts, ScoreFacts, SelectFacts, TokenCounts
from instruct_prune.score.health import Health, SubnetHealth
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import build_pool, select_rows
from instruct_prune.select.clusters import cluster
from instruct_prune.select.data import Budget, Embeddings
from instruct_prune.storage import row_ids_hash, write_json

LADDER = (SubnetSpec("dense"), SubnetSpec("magnitude", 0.8), SubnetSpec("magnitude", 0.64))
MIXED = (*LADDER, SubnetSpec("dropout", 0.02, 0), SubnetSpec("dropout", 0.05, 0))

HOSTILE = (
    "<script>window.__hacked = 1</script>",
    "</script><script>window.__hacked = 2</script>",
    "<img src=x onerror=\"window.__hacked = 3\"><svg onload='window.__hacked = 4'>",
    "[link](javascript:window.__hacked=5) <a href='javascript:window.__hacked=6'>x</a>",
    "{{ 7 * 7 }} {% raw %} ${window.__hacked=7} <!-- --> ]]> &lt;b&gt;",
    "\u202eright to left override\u202c \u2066isolate\u2069 zero\u200bwidth",
    "null \x00 bell \x07 escape \x1b[31m line\u2028separator",
    "x" * 1_000_000,
    "https://example.invalid/pixel.png <link rel=stylesheet href=https://example.invalid/a.css>",
    "lone surrogate \ud800 end",
)


def sample(row_id: int, question: str, answer: str, **columns: Any) -> Row:
    messages = (Message("user", question), Message("assistant", answer, trained=True))
    raw = {"instruction": question, "output": answer, **columns}
    return Row(row_id, messages, columns.pop("file", "rows.jsonl"), row_id + 1, raw, columns)


def with_picture(row: Row, data: bytes) -> Row:
    """The row, its first turn showing a picture beside the text."""
    first = row.messages[0]
    parts = (Part("text", first.text), Part("image", ImageRef(f"{row.row_id}.png", data)))
    return dataclasses.replace(row, messages=(dataclasses.replace(first, content=parts), *row.messages[1:]))


def varied_samples(n: int, seed: int = 0) -> list[Row]:
    """n rows about six things, with a category, a number and a file each."""
    rng = np.random.default_rng(seed)
    topics = {
        "code": "python function list loop return sort string integer",
        "maths": "prove sum integer prime root equation number triangle",
        "travel": "city river train museum walk hotel beach island",
        "food": "bread soup onion oven salt butter cheese rice",
        "letters": "dear letter thank sincerely invite meeting reply apology",
        "history": "war king empire treaty century revolution church ship",
    }
    names = list(topics)
    rows = []
    for i in range(n):
        name = names[int(rng.integers(len(names)))]
        words = topics[name].split()
        question = f"Question {i} about {name}: " + " ".join(rng.choice(words, 4))
        answer = " ".join(rng.choice(words, int(rng.integers(3, 60)))) + "."
        rows.append(
            sample(
                i,
                question,
                answer,
                category=name,
                quality=float(rng.normal()),
                file=f"part-{int(rng.integers(2))}.jsonl",
            )
        )
    return rows


def hostile_samples() -> list[Row]:
    """Rows whose texts, roles, columns and file names try to get out of the page."""
    rows = varied_samples(40)
    for text in HOSTILE:
        i = len(rows)
        row = sample(i, text, f"answer {text}", category=text[:40], file=f"a{text[:60]}.jsonl")
        rows.append(row)
        rows.append(Row(i + 1, (Message(text[:30], text, trained=True),), "b.jsonl", i, {}, {text[:50] or "x": text}))
    return rows


def make_run(
    path: Path,
    rows: Sequence[Row | Reject],
    *,
    keep: float | None = 0.3,
    subnets: tuple[SubnetSpec, ...] = LADDER,
    method: str = "flexrand",
    clusters: int | None = 8,
    duplicates: Iterable[tuple[int, int]] = (),
    tokens_kept: int | None = None,
    truncated: int = 0,
    seed: int = 0,
    dim: int = 24,
    warnings: Sequence[str] = (),
) -> RunFolder:
    """A run over these rows.

    Args:
        path: the folder.
        rows: samples, and rejects that are listed in rejected.jsonl.
        keep: share to keep; None selects nothing.
        subnets: to be scored under.
        method: of selection.
        clusters: how many; None for neither embeddings nor clusters.
        duplicates: (row, the row that stands for it).
        tokens_kept: a budget in response tokens instead of ``keep``.
        truncated: how many of the first rows were cut.
        seed: of the selection and of the losses.
        dim: of the embeddings.
        warnings: names of further subnets, which have collapsed: the report warns of each.
    """
    folder = RunFolder(path)
    samples = [row for row in rows if isinstance(row, Row)]
    rejects = [row for row in rows if isinstance(row, Reject)]
    write_row_facts(folder, rows)
    folder.begin(RowsFacts, {"inputs": ["0" * 64], "limit": None})
    folder.finish(RowsFacts(("rows.jsonl",), len(rows), len(rejects), seconds=0.3))
    folder.begin(EncodeFacts, {"template": "alpaca"}, (RowsFacts,))
    folder.finish(EncodeFacts("tiny-model", None, {}, len(samples), len(samples), (), seconds=0.2))
    table = _scores(samples, subnets, truncated, seed)
    folder.begin(ScoreFacts, {"model": {"name": "tiny-model"}}, (RowsFacts, EncodeFacts))
    folder.write_scores(table)
    tokens = int((table.n_prompt + table.n_response).sum())
    folder.finish(
        ScoreFacts(
            model="tiny-model",
            dtype="float32",
            score="dlc",
            ladder=subnets,
            collapsed=(),
            health=_health(table, warnings),
            read=len(rows),
            scored=len(samples),
            rejected=len(rejects),
            tokens=tokens * len(subnets),
            passes=tuple(s.name for s in subnets),
            unit="tokens",
            processes=1,
            device="1 process on cpu",
            switching_seconds=0.1,
            scoring_seconds=10.0,
            seconds=12.0,
            left_whole={},
        )
    )
    _write_rejects(folder, rejects)
    embeddings = labels = None
    if clusters is not None:
        embeddings = Embeddings(table.row_id, _vectors(samples, dim), "words")
        np.save(folder / "embeddings.npy", embeddings.vectors)
        np.save(folder / "embeddings_rows.npy", table.row_id)
        folder.begin(EmbedFacts, {"embedder": "words"}, (EncodeFacts,))
        folder.finish(EmbedFacts("words", dim, seconds=1.0))
        labels = cluster(embeddings, clusters, seed)
    if keep is not None or tokens_kept is not None:
        pool = build_pool(table, embeddings=embeddings, clusters=labels)
        rows_kept = round((keep or 0) * len(samples))
        budget = Budget(tokens=tokens_kept) if tokens_kept is not None else Budget(rows=rows_kept)
        stands = np.full(len(samples), -1, dtype=np.int64)
        for row, leader in duplicates:
            stands[row] = leader
        selection = select_rows(
            pool, budget, method=method, seed=seed, duplicate_of=stands if (stands >= 0).any() else None
        )
        inputs = (ScoreFacts, *((EmbedFacts,) if labels is not None else ()))
        options = {"keep": keep, "keep_tokens": tokens_kept, "seed": seed, "score": None}
        folder.begin(SelectFacts, options, inputs)
        folder.write_selection(selection)
        if labels is not None:
            folder.write_clusters(labels)
        chosen = selection.selected
        length, whole = table.n_response.astype(np.int64), (table.n_prompt + table.n_response).astype(np.int64)
        folder.finish(
            SelectFacts(
                scored=len(selection),
                kept=int(chosen.sum()),
                dropped=int((~chosen).sum()),
                tokens=TokenCounts(*(int(n.sum()) for n in (length, length[chosen], whole, whole[chosen]))),
                score="dlc",
                duplicates=int((stands >= 0).sum()),
                contaminated=0,
                unstable=None,
                selected_hash=row_ids_hash(selection.kept),
                params=dict(selection.params),
                clustered=labels is not None,
                strata=len(selection.strata_names),
                seconds=0.1,
            )
        )
    return folder


def write_row_facts(folder: RunFolder, rows: Sequence[Row | Reject], sha256: str = "0" * 64) -> None:
    """What the rows stage says of the data; the rows themselves are given to the report by the tests."""
    folder.path.mkdir(parents=True, exist_ok=True)
    files = sorted({row.source.encode(errors="replace").decode() for row in rows})
    facts = RowFacts(
        description=f"alpaca (instruction, output) of {len(files)} files",
        format="alpaca",
        kind="jsonl",
        model_kind="causal_lm",
        strata=None,
        files=tuple(files),
        identity=tuple({"path": name, "sha256": sha256} for name in files),
        stamps={},
        read=len(rows),
        rejected=sum(isinstance(row, Reject) for row in rows),
        opened_with={"data": None},
    )
    folder.create()
    write_json(folder / "rows" / "rows.json", dataclasses.asdict(facts))


def forget(folder: RunFolder, stage: str) -> None:
    """As if the stage had not run."""
    manifest = folder.manifest
    del manifest["stages"][stage]
    write_json(folder / "manifest.json", manifest)


def _scores(samples: Sequence[Row], subnets: tuple[SubnetSpec, ...], truncated: int, seed: int) -> ScoreTable:
    n = len(samples)
    rng = np.random.default_rng(seed + 1)
    length = np.array([max(1, len(s.messages[-1].text[:5000].split())) for s in samples], dtype=np.int32)
    base = rng.gamma(4, 0.5, n) + 3 / np.sqrt(length)
    drop = np.array(
        [(1 - s.value if s.kind != "dropout" else 4 * s.value) if s.kind != "dense" else 0 for s in subnets]
    )
    losses = base[:, None] * (1 + drop) + rng.normal(0, 0.1, (n, len(subnets))) * (drop > 0)
    status = np.where(np.arange(n) < truncated, "truncated", "ok")
    return ScoreTable(
        row_id=np.array([s.row_id for s in samples], dtype=np.int64),
        content_hash=np.array([f"{i:08x}" for i in range(n)]),
        status=status,
        n_prompt=np.array([len(s.messages[0].text[:5000].split()) + 20 for s in samples], dtype=np.int32),
        n_response=length,
        n_cut=np.zeros(n, dtype=np.int32),
        losses=losses.astype(np.float32),
        subnets=subnets,
        score=losses.mean(axis=1).astype(np.float32),
        score_name="dlc",
        backbone="tiny-model",
    )


def _health(table: ScoreTable, collapsed: Sequence[str]) -> Health:
    """Of the subnets, and of some more that have collapsed."""
    rho = np.eye(len(table.subnets) + len(collapsed))
    rho[: len(table.subnets), : len(table.subnets)] = np.corrcoef(table.losses.T)
    rows = [
        SubnetHealth(s.name, float(table.losses[:, j].mean()), float(rho[0, j]), 0.8, False, ())
        for j, s in enumerate(table.subnets)
    ]
    rows += [SubnetHealth(name, 7.0, 0.0, 0.5, True, ()) for name in collapsed]
    return Health(tuple(rows), tuple(tuple(row) for row in rho.tolist()), 6.5)


def _vectors(samples: Sequence[Row], dim: int) -> np.ndarray[Any, Any]:
    """Sums of random directions, one for each word."""
    known: dict[str, np.ndarray[Any, Any]] = {}

    def direction(word: str) -> np.ndarray[Any, Any]:
        if word not in known:
            digest = hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest()
            known[word] = np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(dim)
        return known[word]

    vectors = np.zeros((len(samples), dim), dtype=np.float32)
    for i, row in enumerate(samples):
        for message in row.messages:
            for word in message.text[:2000].split() or ["empty"]:
                vectors[i] += direction(word)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _write_rejects(folder: RunFolder, rejects: Sequence[Reject]) -> None:
    with open(folder / "rejected.jsonl", "w", encoding="utf-8") as file:
        for row in rejects:
            entry = {"file": row.source, "line": row.line, "row_id": row.row_id, "status": row.status,
                     "field": row.field, "reason": row.reason}  # fmt: skip
            file.write(json.dumps(entry) + "\n")
