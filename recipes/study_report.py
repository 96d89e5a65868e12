"""What a study says: statistics, a table, a plot. numpy only, so that it can be read on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 4000
Losses = NDArray[np.floating[Any]]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds (None with one seed)."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def statistics(losses: Losses, reference: Losses | None, seed: int) -> dict[str, Any]:
    """Mean loss, spread over seeds, and the gap to the reference with its interval.

    The interval is a paired bootstrap: rows are drawn again, the same for both arms, and so are each arm's seeds; 95% of
    the gaps lie in it. Few seeds make it too narrow (with one seed it knows nothing of how training varies).

    Args:
        losses: float [seeds, rows].
        reference: float [its seeds, rows], or None.
        seed: of the drawing.
    """
    found: dict[str, Any] = spread(losses.mean(axis=1).tolist())
    if reference is None:
        return found
    rng = np.random.default_rng(seed)
    n = losses.shape[1]
    weights = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n  # [draws, rows]
    drawn = []
    for table in (losses, reference):
        by_seed = weights @ table.T  # [draws, seeds]
        seeds = rng.integers(table.shape[0], size=by_seed.shape)
        drawn.append(np.take_along_axis(by_seed, seeds, axis=1).mean(axis=1))
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    return {**found, "gap": float(losses.mean() - reference.mean()), "interval": [float(low), float(high)]}


# ---- table ----


def markdown(summary: Mapping[str, Any]) -> str:
    """The study as a page of tables."""
    options = summary["options"]
    if summary["equal"] == "epochs":
        equal = f"every arm has the same number of epochs ({options['epochs']:g})"
    else:
        equal = f"every arm has the same number of optimiser steps ({options['max_steps']})"
    parts = [
        "# Study: subsets against random subsets of the same size",
        f"Model {summary['model']}; LoRA rank {options['rank']}, learning rate {options['learning_rate']:g}, "
        f"{options['batch_size']} rows a step; {equal}. Pool: {summary['pool']:,} rows. "
        "Numbers are nats per response token on rows that no arm trained on; lower is better. "
        "gap: mean loss minus that of random at the same size, with a 95% interval (paired bootstrap over rows and seeds).",
        reading(summary),
    ]
    parts += [set_table(summary, name) for name in summary["sets"]]
    parts += [lm_eval_table(summary), cost_table(summary), difficulty_table(summary)]
    if summary.get("left_out"):
        parts.append(f"Left out, over the time budget: {', '.join(summary['left_out'])}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def reading(summary: Mapping[str, Any]) -> str:
    """How often the interval excludes zero, in a sentence."""
    lines = []
    for name in summary["sets"]:
        gaps = [(arm["arm"], arm["keep"], arm["sets"][name]) for arm in summary["arms"] if "gap" in arm["sets"][name]]
        better = [f"{arm} at {keep:g}" for arm, keep, s in gaps if s["interval"][1] < 0]
        worse = [f"{arm} at {keep:g}" for arm, keep, s in gaps if s["interval"][0] > 0]
        rest = len(gaps) - len(better) - len(worse)
        lines.append(
            f"- {name}: better than random: {', '.join(better) or 'none'}; worse: {', '.join(worse) or 'none'}; "
            f"no difference that this study can see: {rest} of {len(gaps)}."
        )
    return "\n".join(lines)


def set_table(summary: Mapping[str, Any], name: str) -> str:
    rows = [
        f"## {name} ({summary['sets'][name]} rows)",
        "",
        "| keep | arm | seeds | loss | sd over seeds | gap to random | 95% interval |",
        "|---:|---|---:|---:|---:|---:|---|",
        f"| | not trained | | {summary['untrained'][name]:.4f} | | | |",
    ]
    for arm in summary["arms"]:
        s = arm["sets"][name]
        sd = f"{s['sd']:.4f}" if s["sd"] is not None else ""
        gap = f"{s['gap']:+.4f}" if "gap" in s else ""
        interval = f"{s['interval'][0]:+.4f} to {s['interval'][1]:+.4f}" if "gap" in s else ""
        rows.append(
            f"| {arm['keep']:.0%} | {arm['arm']} | {len(arm['seeds'])} | {s['mean']:.4f} | {sd} | {gap} | {interval} |"
        )
    return "\n".join(rows)


def lm_eval_table(summary: Mapping[str, Any]) -> str:
    names = list(summary["arms"][0].get("lm_eval", {})) if summary["arms"] else []
    if not names:
        return ""
    rows = [
        "## lm-evaluation-harness",
        "",
        "| keep | arm | " + " | ".join(names) + " |",
        "|---:|---|" + "---:|" * len(names),
    ]
    for arm in summary["arms"]:
        cells = [f"{arm['lm_eval'][n]['mean']:.4f}" for n in names]
        rows.append(f"| {arm['keep']:.0%} | {arm['arm']} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def cost_table(summary: Mapping[str, Any]) -> str:
    once = ", ".join(f"{name} {took:.1f} s" for name, took in summary["seconds"].items() if took is not None)
    rows = [
        "## cost",
        "",
        f"Once for all arms: {once or 'nothing'}. Each arm, on average:",
        "",
        "| keep | arm | rows | steps | selecting (s) | training (s) |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    rows += [
        f"| {a['keep']:.0%} | {a['arm']} | {a['rows']:.0f} | {a['steps']:.0f} | {a['select_seconds']:.2f} | {a['train_seconds']:.1f} |"
        for a in summary["arms"]
    ]
    return "\n".join(rows)


def difficulty_table(summary: Mapping[str, Any]) -> str:
    found = summary.get("difficulty")
    if not found:
        return ""
    rows = [
        "## what predicts difficulty while training",
        "",
        f"Loss of {found['rows']} rows of the pool, averaged over {found['checkpoints']} looks at the full arm in training, one each "
        "quarter of an epoch. Spearman rank correlation of each score, computed before training, with it (95% interval: bootstrap "
        "over rows). dlc and lc are over all subnets that were scored, dlc to X over the densities down to X:",
        "",
        "| score | rho | 95% interval |",
        "|---|---:|---|",
    ]
    ordered = sorted(found["rho"].items(), key=lambda item: -item[1][0])
    rows += [f"| {name} | {rho:+.3f} | {low:+.3f} to {high:+.3f} |" for name, (rho, low, high) in ordered]
    return "\n".join(rows)


# ---- plot ----

COLORS = ("#6b7280", "#d97706", "#2563eb", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d")
WIDTH, HEIGHT, LEFT, TOP = 420, 300, 70, 46


def svg(summary: Mapping[str, Any]) -> str:
    """Loss over the share kept, one panel a set: points with the spread over seeds, dashed where all rows are used."""
    names = list(summary["sets"])
    arms = list(dict.fromkeys(arm["arm"] for arm in summary["arms"]))
    colors = {arm: COLORS[i % len(COLORS)] for i, arm in enumerate(arms)}
    panels = [panel(summary, name, colors, i * (WIDTH + LEFT + 20)) for i, name in enumerate(names)]
    legend = "".join(
        f'<rect x="{LEFT + 110 * i}" y="8" width="12" height="12" fill="{colors[arm]}"/>'
        f'<text x="{LEFT + 16 + 110 * i}" y="19">{escape(arm)}</text>'
        for i, arm in enumerate(arms)
    )
    width = max(len(names) * (WIDTH + LEFT + 20), LEFT + 110 * len(arms)) + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + 60}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{legend}{"".join(panels)}</svg>\n'
    )


def panel(summary: Mapping[str, Any], name: str, colors: Mapping[str, str], shift: float) -> str:
    points = [(a["arm"], a["keep"], a["sets"][name]["mean"], a["sets"][name]["sd"] or 0.0) for a in summary["arms"]]
    keeps = sorted({keep for _, keep, _, _ in points if keep < 1}) or [1.0]
    low: float = min(mean - sd for _, _, mean, sd in points)
    high: float = max(mean + sd for _, _, mean, sd in points)
    margin = (high - low) * 0.08 or 0.01
    low, high = low - margin, high + margin

    def x(keep: float) -> float:  # shares side by side, evenly
        return LEFT + shift + WIDTH * (keeps.index(keep) + 0.5) / len(keeps)

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - value) / (high - low)

    drawn = [
        f'<text x="{LEFT + shift}" y="{TOP - 6}" font-weight="bold">{escape(name)}: loss per response token</text>'
    ]
    for i in range(5):
        value = low + (high - low) * i / 4
        drawn.append(
            f'<line x1="{LEFT + shift}" x2="{LEFT + shift + WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e5e7eb"/>'
            f'<text x="{LEFT + shift - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>'
        )
    drawn += [
        f'<text x="{x(k):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{k:.0%} kept</text>' for k in keeps if k < 1
    ]
    order = {arm: i for i, arm in enumerate(colors)}
    for arm, keep, mean, sd in points:
        color = colors[arm]
        if keep >= 1:
            drawn.append(
                f'<line x1="{LEFT + shift}" x2="{LEFT + shift + WIDTH}" y1="{y(mean):.1f}" y2="{y(mean):.1f}" '
                f'stroke="{color}" stroke-dasharray="6 4"/>'
            )
            continue
        at = x(keep) + (order[arm] - (len(order) - 1) / 2) * WIDTH / len(keeps) / (len(order) + 1)
        drawn.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(mean - sd):.1f}" y2="{y(mean + sd):.1f}" stroke="{color}" stroke-width="2"/>'
            f'<circle cx="{at:.1f}" cy="{y(mean):.1f}" r="5" fill="{color}"><title>{escape(arm)} {keep:.0%}: {mean:.4f}</title></circle>'
        )
    return "".join(drawn)
