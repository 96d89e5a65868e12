"""Run folders as the pipeline leaves them, made from any rows in milliseconds: losses and embeddings are computed from the text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.rows.row import Message, Reject, Row
from instruct_prune.run.folder import RunFolder
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import build_pool, select_rows
from instruct_prune.select.clusters import cluster
from instruct_prune.select.data import Budget, Embeddings
from instruct_prune.storage import row_ids_hash

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
    tokens: int | None = None,
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
        tokens: a budget in response tokens instead of ``keep``.
        truncated: how many of the first rows were cut.
        seed: of the selection and of the losses.
        dim: of the embeddings.
        warnings: of the score stage.
    """
    folder = RunFolder(path)
    samples = [row for row in rows if isinstance(row, Row)]
    rejects = [row for row in rows if isinstance(row, Reject)]
    data = {"inputs": ["0" * 64], "limit": None}
    folder.begin("encode", data)
    files = sorted({row.source.encode(errors="replace").decode() for row in rows})
    folder.finish(
        "encode",
        description=f"alpaca (instruction, output) of {len(files)} files",
        inputs=[{"path": name, "sha256": "0" * 64} for name in files],
        accounting={"read": len(rows), "rejected": len(rejects)},
        seconds=0.5,
    )
    table = _scores(samples, subnets, truncated, seed)
    folder.begin("score", {"model": {"name": "tiny-model"}})
    folder.write_scores(table)
    folder.finish(
        "score",
        ladder=[[s.kind, s.value, s.seed, s.scope] for s in subnets],
        collapsed=[],
        health=_health(table),
        warnings=list(warnings),
        accounting={"read": len(rows), "scored": len(samples), "rejected": len(rejects)},
        scoring_seconds=10.0,
        seconds=12.0,
        device="1 process on cpu",
    )
    _write_rejects(folder, rejects)
    embeddings = labels = None
    if clusters is not None:
        embeddings = Embeddings(table.row_id, _vectors(samples, dim), "words")
        np.save(folder / "embeddings.npy", embeddings.vectors)
        np.save(folder / "embeddings_rows.npy", table.row_id)
        folder.begin("embed", {"embedder": "words"})
        folder.finish("embed", seconds=1.0)
        labels = cluster(embeddings, clusters, seed)
        folder.write_clusters(labels)
    if keep is not None or tokens is not None:
        pool = build_pool(table, embeddings=embeddings, clusters=labels)
        budget = Budget(tokens=tokens) if tokens is not None else Budget(rows=round((keep or 0) * len(samples)))
        stands = np.full(len(samples), -1, dtype=np.int64)
        for row, leader in duplicates:
            stands[row] = leader
        selection = select_rows(
            pool, budget, method=method, seed=seed, duplicate_of=stands if (stands >= 0).any() else None
        )
        folder.write_selection(selection)
        folder.begin("select", {"keep": keep, "keep_tokens": tokens, "seed": seed, "score": None})
        folder.finish("select", selected_hash=row_ids_hash(selection.kept), seconds=0.1)
    return folder


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


def _health(table: ScoreTable) -> dict[str, Any]:
    rho = np.corrcoef(table.losses.T)
    rows = [
        {"name": s.name, "mean_loss": float(table.losses[:, j].mean()), "rho_dense": float(rho[0, j]), "same_order": 0.8,
         "collapsed": False, "identical_to": []}
        for j, s in enumerate(table.subnets)
    ]  # fmt: skip
    return {"unigram_loss": 6.5, "subnets": rows, "rho": rho.tolist()}


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
