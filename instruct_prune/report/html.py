"""``RUN/report.html``: one page that opens offline; everything in it is inlined when it is written."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from instruct_prune.errors import InputError
from instruct_prune.report.aim import with_sources
from instruct_prune.report.losses import HARDLY
from instruct_prune.report.numbers import Numbers, boundary_of, compute, shifts_of
from instruct_prune.report.others import Other, read_other
from instruct_prune.report.pack import squeeze
from instruct_prune.report.page import page_data, pick_rows
from instruct_prune.report.proof_section import ProofView, proof_section
from instruct_prune.report.rows import read_rows, visible
from instruct_prune.report.tables import Tables, read_tables
from instruct_prune.rows.row import Reject, Row
from instruct_prune.run.folder import RunFolder
from instruct_prune.storage import atomic, write_json

TEXT_BYTES = 10_000_000
"""UTF-8 bytes of all inlined texts together (they compress to a third); a row may have LEAST_BYTES to MOST_BYTES of them."""
LEAST_BYTES, MOST_BYTES = 500, 8000
STYLE = "report.css"
SCRIPTS = (
    "data.js",
    "filters.js",
    "charts.js",
    "map.js",
    "tables.js",
    "targets.js",
    "visual.js",
    "detail.js",
    "page.js",
)


def write_report(
    folder: RunFolder, rows: Iterable[Row | Reject], *, samples: int = 5000, others: Sequence[RunFolder] = ()
) -> Path:
    """Write ``report.html`` and ``report.json`` into the run's folder.

    Args:
        folder: a scored run; embeddings, clusters and a selection are shown where there are any.
        rows: its data, read once.
        samples: rows whose text is in the page.
        others: runs over the same data, whose selections are put beside this one's.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: nothing was scored, the data changed, or another run is over other data.
    """
    if samples < 1:
        raise InputError(f"--samples {samples}: the report needs the text of at least 1 row.")
    tables = read_tables(folder)
    compared = _others(folder, tables, others)
    first = compute(folder, tables, others=compared)
    boundary = boundary_of(tables)
    queries = [] if first.target is None else first.target.queries
    shown = [] if first.visual is None else [row for row, _ in (*first.visual.lowest, *first.visual.highest)]
    picks = pick_rows(tables, boundary, first.groups, first.duplicates, samples, queries, shown)
    limit = min(MOST_BYTES, max(LEAST_BYTES, TEXT_BYTES // max(len(picks), 1)))
    typical = [row for group in first.groups for row in group.typical]
    facts = read_rows(rows, tables.row_id, picks, limit, [*typical, *shown])
    numbers = dataclasses.replace(
        first,
        shifts=shifts_of(tables, facts.columns, compared),
        target=with_sources(first.target, tables.aim, facts.columns),
    )
    write_json(folder / "report.json", numbers.to_json())
    page = _render(numbers, page_data(tables, numbers, boundary, picks, facts, compared), proof_section(folder))
    with atomic(folder / "report.html", "w") as file:
        file.write(page)
    return folder / "report.html"


def _others(folder: RunFolder, tables: Tables, others: Sequence[RunFolder]) -> list[Other]:
    """The other runs, under names that differ."""
    names = [tables.name]
    found = []
    for other in others:
        name = other.path.resolve().name
        while name in names:
            name += "'"
        names.append(name)
        found.append(read_other(other, folder, tables, name))
    if found and tables.selection is None:
        raise InputError(f"{folder.path} has no selection to compare. Run `instruct-prune select` on it first.")
    return found


def _render(numbers: Numbers, data: str, proof: ProofView | None) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    folder = files("instruct_prune.report") / "templates"
    read = {name: (folder / name).read_text(encoding="utf-8") for name in (STYLE, *SCRIPTS)}
    script = "(() => {\n'use strict';\n" + "".join(read[name] for name in SCRIPTS) + "})();\n"
    plotly = get_plotlyjs()
    environment = Environment(
        loader=PackageLoader("instruct_prune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,  # not Markup: that is ours
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"took": took, "count": lambda value: f"{value:,}"}
    return environment.get_template("report.html.jinja").render(
        n=numbers,
        proof=proof,
        hardly=HARDLY,
        data=data,
        plotly=squeeze(plotly.encode()),
        # Only these two scripts may run, and the style sheet may be inline; nothing may be fetched.
        script_hashes=" ".join(f"'sha256-{_sha256(text)}'" for text in (script, plotly)),
        script=Markup(script),
        style=Markup(read[STYLE]),
    )


def took(seconds: float) -> str:
    """A duration as people say it: 0.4 s, 14 s, 3 min 29 s, 2 h 14 min."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not rest and minutes < 60:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
