"""Vectors of rows by several embedders, for the benchmarks beside this file: sentence encoders and the scoring model's own states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from instruct_prune import EncodeConfig, Row, ScoreConfig
from instruct_prune.arrays import Float32
from instruct_prune.measure.engine import Work, measure_parts
from instruct_prune.measure.measurement import Measurement
from instruct_prune.measure.parts import PartStore
from instruct_prune.measure.probes import Probe, parse_probe
from instruct_prune.measure.stored import find
from instruct_prune.measure.subnet import DENSE
from instruct_prune.models import names
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.models.model import Model
from instruct_prune.models.sentence_encoder import TextEncoder, embed_rows
from instruct_prune.progress import Progress
from instruct_prune.run.check import MODEL
from instruct_prune.run.embed import unit_rows
from instruct_prune.run.measure import batch_cost, plan_work
from instruct_prune.storage import digest

NOT_CENTRED = " raw"
"""Ends the name of vectors from which the mean was not taken off."""


def vectors_of(
    embedders: Sequence[str], rows: Sequence[Row], config: ScoreConfig, encode: EncodeConfig, data_format: str | None,
    folder: Path, raw: bool = False,
) -> dict[str, Float32]:  # fmt: skip
    """Float32 [n, d] of the n rows, L2-normalised, by the name of the embedder.

    Args:
        embedders: names of sentence encoders, and "model", "model:weighted", "model:mean@15" and so on, for which one pass
            of the dense model is run for all of them together.
        rows: numbered from 0.
        config: the scoring model.
        encode: how rows are written for it.
        data_format: of the rows, which decides the template.
        folder: where parts are written. With the same rows and embedders, work that was interrupted goes on from there.
        raw: also give the model's states without taking off their mean, under the name with " raw" behind it.

    Raises:
        InputError: there is no such embedder or probe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probes = {name: _probe(name) for name in embedders if name.partition(":")[0] == MODEL}
    if probes:
        _write_states(list(probes.values()), rows, CausalLM(config, encode, data_format), config, folder)
    found: dict[str, Float32] = {}
    for name in embedders:
        if name not in probes:
            found[name] = _encoded(name, rows, folder)
            continue
        for centred in (True, False) if raw else (True,):
            target = folder / "unit.npy"
            unit_rows(folder / f"{probes[name].name}.npy", target, centred)
            found[name if centred else name + NOT_CENTRED] = np.load(target, allow_pickle=False)
    return found


def _probe(name: str) -> Probe:
    return parse_probe(name.partition(":")[2] or CausalLM.pooling)


def _write_states(
    probes: Sequence[Probe], rows: Sequence[Row], model: CausalLM, config: ScoreConfig, folder: Path
) -> None:
    """NAME.npy for each probe: its pooled states of all rows, NaN where a row has nothing to score."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.write_items(folder / "items", rows, lambda done: None, strict=False)
    items = model.open_items(folder / "items")
    dtype = model.dtype(config.dtype, device)
    measurements = [Measurement(DENSE, probe) for probe in dict.fromkeys(probes)]
    identity = [model.name, dtype, dict(model.encoding), [m.column for m in measurements], [row.text for row in rows]]
    model.load(dtype, device)  # what rows may share depends on the model
    work = plan_work(
        model,
        items,
        measurements,
        batch_cost(model, config, device.type),
        PartStore(folder / "parts", digest(identity)),
    )
    _run(model, work)
    for measurement in measurements:
        states = np.full((len(rows), measurement.probe.width(model)), np.nan, dtype=np.float32)
        for positions, values in find(work, measurement.column).blocks():
            states[positions] = values
        np.save(folder / f"{measurement.probe.name}.npy", states)


def _run(model: Model, work: Work) -> None:
    todo = work.missing()
    with Progress("dense pass", work.cost(todo), model.unit) as progress:
        measure_parts(model, work, todo, advance=lambda rows, cost: progress.advance(cost, rows))


def _encoded(name: str, rows: Sequence[Row], folder: Path) -> Float32:
    found = names.find_model(name, option="--embedder")
    target = folder / "encoded.npy"
    parts = folder / "encoded" / digest([found.name, [row.text for row in rows]])
    with Progress(f"embedding with {name}", len(rows), "rows") as progress:
        embed_rows(rows, len(rows), lambda: TextEncoder(found.location, found.name), parts, target, progress.advance)
    vectors: Float32 = np.load(target, allow_pickle=False)
    return vectors
