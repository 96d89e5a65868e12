"""The numbers of the report, counted a second time by other means."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from report_runs import LADDER, MIXED, forget, make_run, sample, varied_samples, with_picture, write_row_facts

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.report.compare import compare
from instruct_prune.report.losses import families_of
from instruct_prune.report.numbers import boundary_of, compute, shifts_of
from instruct_prune.report.others import read_other
from instruct_prune.report.page import pick_rows
from instruct_prune.report.pools import EASY_HARD, KEPT_DROPPED, find_boundary
from instruct_prune.report.rows import cut, image_address, read_rows, visible
from instruct_prune.report.scripts import script_of
from instruct_prune.report.shift import bin_of, edges_of, histogram
from instruct_prune.report.tables import read_tables
from instruct_prune.rows.row import ImageRef, Message, Reject, Row
from instruct_prune.run.records import ScoreFacts
from instruct_prune.select.data import Pool, Selection
from instruct_prune.select.projection import principal_components


def test_counts_are_those_of_the_files(tmp_path: Path) -> None:
    rows = [*varied_samples(200), Reject(200, "part-0.jsonl", 201, "no output")]
    folder = make_run(tmp_path / "run", rows, duplicates=[(5, 1), (6, 1), (9, 8)], truncated=4)
    counts = compute(folder, read_tables(folder)).counts
    selection = pandas.read_parquet(folder / "selection.parquet")
    scores = pandas.read_parquet(folder / "scores.parquet")
    assert (counts.read, counts.rejected, counts.scored) == (201, 1, 200)
    assert (counts.kept, counts.dropped) == (int(selection.selected.sum()), int((~selection.selected).sum()))
    assert counts.response_tokens == scores.n_response.sum()
    assert counts.response_tokens_kept == scores.n_response[selection.selected].sum()
    assert (counts.truncated, counts.duplicates) == (4, 3)


def test_groups_are_those_of_the_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", varied_samples(300))
    groups = compute(folder, read_tables(folder)).groups
    joined = pandas.read_parquet(folder / "selection.parquet").merge(pandas.read_parquet(folder / "clusters.parquet"))
    by_cluster = joined.groupby("cluster")
    assert [group.size for group in groups] == by_cluster.size().tolist()
    assert [group.kept for group in groups] == by_cluster.selected.sum().tolist()
    assert [group.mean_score for group in groups] == pytest.approx(by_cluster.score.mean().tolist(), rel=1e-6)
    nearest = joined.sort_values("distance").groupby("cluster").row_id.apply(lambda rows: sorted(rows.head(3)))
    assert [sorted(group.typical) for group in groups] == nearest.tolist()


def test_score_histogram_counts_every_row_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", varied_samples(300))
    selection = pandas.read_parquet(folder / "selection.parquet")
    counts = compute(folder, read_tables(folder)).score.counts
    by_reason = selection.reason.value_counts()
    assert {name: sum(bars) for name, bars in counts.items()} == {
        "dropped": by_reason["budget"],
        "kept: easy pool": by_reason["easy pool"],
        "kept: hard pool": by_reason["hard pool"],
    }


def test_health_and_warnings_come_from_the_manifest(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", varied_samples(60), truncated=2, duplicates=[(3, 2)], warnings=["it collapsed"])
    numbers = compute(folder, read_tables(folder))
    health = folder.facts(ScoreFacts).health
    assert numbers.health == dataclasses.asdict(health)
    assert "subnet it collapsed has collapsed" in numbers.warnings[0]
    assert numbers.warnings[:1] == health.warnings
    assert any("2 of the 60" in line for line in numbers.warnings)
    assert any("1 rows are near-duplicates" in line for line in numbers.warnings)
    assert [(group.row, group.others) for group in numbers.duplicates] == [(2, [3])]


def test_unstable_rows_are_read_from_the_selection(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", varied_samples(60))
    assert read_tables(folder).unstable is None
    folder.write_selection(folder.read_selection(), {"unstable": np.arange(60) < 7})
    numbers = compute(folder, read_tables(folder))
    assert numbers.counts.unstable == 7
    assert any("7 rows are unstable" in line for line in numbers.warnings)


def test_training_time_saved(tmp_path: Path) -> None:
    """10 s for three passes over all tokens: a training step is three passes, so dropped tokens cost 10 s x their share."""
    folder = make_run(tmp_path / "run", varied_samples(100), subnets=LADDER)
    numbers = compute(folder, read_tables(folder))
    dropped = 1 - numbers.counts.tokens_kept / numbers.counts.tokens
    assert numbers.seconds.saved_per_epoch == pytest.approx(10.0 * dropped)
    assert numbers.seconds.selecting == pytest.approx(0.5 + 12 + 1 + 0.1)


def test_mmd_is_that_of_compare(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", varied_samples(300))
    tables = read_tables(folder)
    mmd = compute(folder, tables).mmd
    assert tables.vectors is not None
    assert mmd is not None
    pool = Pool(
        tables.row_id, tables.score, tables.n_response, tables.labels, tables.label_names, np.asarray(tables.vectors)
    )
    profile = compare(pool, {"it": tables.row_id[tables.kept]}).profiles[1]
    assert mmd.kept == pytest.approx(profile.mmd, abs=1e-12)
    assert len(mmd.random) == 8


def test_loss_curves_go_from_the_whole_model_down(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", varied_samples(90), subnets=(MIXED[1], MIXED[0], *MIXED[2:]))
    tables = read_tables(folder)
    magnitude, dropout = families_of(tables)
    assert (magnitude.kind, magnitude.values, magnitude.columns) == ("magnitude", [1.0, 0.8, 0.64], [1, 0, 2])
    assert (dropout.kind, dropout.values, dropout.columns) == ("dropout", [0.0, 0.02, 0.05], [1, 3, 4])
    easiest = np.argsort(tables.score, kind="stable")[:30]
    expected = np.quantile(tables.losses[easiest][:, [1, 0, 2]], (0.25, 0.5, 0.75), axis=0)
    easy = magnitude.bands["easy"]
    assert np.allclose([easy["low"], easy["median"], easy["high"]], expected)


def test_depth_ends_at_all_blocks(tmp_path: Path) -> None:
    subnets = (SubnetSpec("dense"), SubnetSpec("depth", 6), SubnetSpec("depth", 12))
    folder = make_run(tmp_path / "run", varied_samples(30), subnets=subnets)
    (family,) = compute(folder, read_tables(folder)).to_json()["families"]
    assert (family["values"], family["columns"]) == ([None, 12, 6], [0, 2, 1])


def test_missing_parts(tmp_path: Path) -> None:
    """No embeddings, no clusters, no selection, no rejected.jsonl: what there is, is counted."""
    folder = make_run(tmp_path / "run", varied_samples(40), keep=None, clusters=None)
    (folder / "rejected.jsonl").unlink()
    numbers = compute(folder, read_tables(folder))
    assert (numbers.mmd, numbers.pools, numbers.group_kind) == (None, None, "")
    assert (numbers.counts.kept, numbers.counts.dropped, numbers.counts.scored) == (0, 0, 40)
    assert list(numbers.score.counts) == ["scored"]
    assert numbers.seconds.saved_per_epoch is None
    json.dumps(numbers.to_json(), allow_nan=False)


def test_rejected_rows_are_counted_by_reason(tmp_path: Path) -> None:
    rejects = [Reject(30 + i, "a.jsonl", i, "no output" if i % 3 else "not JSON") for i in range(6)]
    folder = make_run(tmp_path / "run", [*varied_samples(30), *rejects])
    rejected = compute(folder, read_tables(folder)).rejected
    assert rejected.reasons == [("rejected", "no output", 4), ("rejected", "not JSON", 2)]
    assert [row["row_id"] for row in rejected.rows] == [30, 31, 32, 33, 34, 35]


def test_nothing_scored_is_an_input_error(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", varied_samples(30))
    forget(folder, "score")
    with pytest.raises(InputError, match="instruct-prune score"):
        read_tables(folder)


def test_selection_of_older_scores_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", varied_samples(30))
    make_run(tmp_path / "run2", varied_samples(31))
    (tmp_path / "run2" / "selection.parquet").replace(folder / "selection.parquet")
    with pytest.raises(InputError, match="instruct-prune select"):
        read_tables(folder)


# ---- boundary of the pools ----


def selection_of(selected: list[bool], *, split: float | None, method: str = "flexrand", **more: object) -> Selection:
    n = len(selected)
    kept = 2 if split is not None else 3
    stands_for_itself = np.asarray(more.get("duplicate_of", np.full(n, -1))) < 0
    return Selection(
        row_id=np.arange(n),
        selected=np.array(selected),
        reason=np.where(stands_for_itself, np.where(selected, kept, 0), 1).astype(np.int8),
        reasons=("budget", "duplicate", "hard pool", "picked"),
        stratum=np.zeros(n, dtype=np.int32),
        score=np.arange(n, dtype=np.float32),
        rank=np.arange(n, dtype=np.int32),
        method=method,
        seed=0,
        params={} if split is None else {"split": split},
        **more,  # type: ignore[arg-type]
    )


def test_boundary_of_flexrand_lies_at_the_split() -> None:
    found = find_boundary(selection_of([True] * 8, split=0.25))
    assert found is not None
    assert found.between == EASY_HARD
    assert found.in_easy.tolist() == [True, True] + 6 * [False]
    assert found.score.tolist() == [1.5]
    assert found.distance.tolist() == pytest.approx(
        [1.5 / 8, 0.5 / 8, 0.5 / 8, 1.5 / 8, 2.5 / 8, 3.5 / 8, 4.5 / 8, 5.5 / 8]
    )


def test_boundary_under_a_token_budget_is_measured_in_tokens() -> None:
    found = find_boundary(selection_of([True] * 4, split=0.5), np.array([6, 1, 1, 2]))
    assert found is not None
    assert found.in_easy.tolist() == [False] * 4  # the first row alone has more than half of the 10 tokens
    found = find_boundary(selection_of([True] * 4, split=0.5), np.array([2, 3, 1, 4]))
    assert found is not None
    assert found.in_easy.tolist() == [True, True, False, False]


def test_near_duplicates_are_in_no_pool() -> None:
    found = find_boundary(selection_of([True] * 5, split=0.5, duplicate_of=np.array([-1, 0, -1, -1, -1])))
    assert found is not None
    assert found.in_easy.tolist() == [True, False, True, False, False]
    assert np.isnan(found.distance[1])


@pytest.mark.parametrize(
    ("selected", "score"),
    [([True, True, False, False], 1.5), ([False, True, True, True], 0.5), ([True, False, True, False], None)],
)
def test_boundary_of_methods_that_keep_one_end(selected: list[bool], score: float | None) -> None:
    found = find_boundary(selection_of(selected, split=None, method="easiest"))
    if score is None:
        assert found is None
    else:
        assert found is not None
        assert (found.between, found.score.tolist()) == (KEPT_DROPPED, [score])


def test_flexrand_keeps_easy_rows_from_the_easy_pool_only(tmp_path: Path) -> None:
    """What the report takes for the pools is what the selection drew from."""
    for name, options in {"rows": {}, "tokens": {"tokens_kept": 900, "keep": None, "clusters": None}}.items():
        folder = make_run(tmp_path / name, varied_samples(200), **options)  # type: ignore[arg-type]
        tables = read_tables(folder)
        boundary = boundary_of(tables)
        assert boundary is not None
        assert tables.selection is not None
        reasons = np.array(tables.selection.reasons)[tables.selection.reason]
        assert boundary.in_easy[reasons == "easy pool"].all()
        assert not boundary.in_easy[reasons == "hard pool"].any()


# ---- other selections ----


def test_two_selections_side_by_side(tmp_path: Path) -> None:
    rows = varied_samples(120)
    first, second = make_run(tmp_path / "a", rows), make_run(tmp_path / "b", rows, method="hardest", keep=0.5)
    tables = read_tables(first)
    other = read_other(second, first, tables, "b")
    (numbers,) = compute(first, tables, [other]).others
    a = set(pandas.read_parquet(first / "selection.parquet").query("selected").row_id)
    b = set(pandas.read_parquet(second / "selection.parquet").query("selected").row_id)
    assert (numbers.both, numbers.only_here, numbers.only_there) == (len(a & b), len(a - b), len(b - a))
    assert numbers.jaccard == pytest.approx(len(a & b) / len(a | b))
    assert sum(numbers.group_kept) == numbers.kept == len(b)


def test_selections_of_other_data_are_refused(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a", varied_samples(30)), make_run(tmp_path / "b", varied_samples(30))
    write_row_facts(second, varied_samples(30), sha256="1" * 64)
    with pytest.raises(InputError, match="different data"):
        read_other(second, first, read_tables(first), "b")


# ---- the pass over the data ----


def test_columns_are_told_apart(tmp_path: Path) -> None:
    rows = [
        sample(i, "q", "an answer", kind=["a", "b", None][i % 3], size=i * 0.5, many=f"v{i}", level=i % 4, nested={"x": 1}, mixed=i or "x")
        for i in range(100)
    ]  # fmt: skip
    folder = make_run(tmp_path / "run", rows)
    tables = read_tables(folder)
    columns = {column.name: column for column in read_rows(rows, tables.row_id, np.arange(3), 100).columns}
    assert set(columns) == {"kind", "size", "level"}
    assert columns["kind"].values == ("a", "b")
    assert columns["kind"].codes is not None
    assert columns["kind"].codes[:6].tolist() == [0, 1, -1, 0, 1, -1]
    assert columns["size"].numbers is not None
    assert columns["size"].numbers[7] == 3.5
    assert columns["level"].values == ("0", "1", "2", "3")
    (kind, *_) = shifts_of(tables, [columns["kind"]])
    assert kind.categories == ["a", "b", "(none)"]
    assert kind.counts is not None
    assert kind.counts["all"] == [34, 33, 33]
    assert sum(kind.counts["kept"]) == tables.kept.sum()


def test_endless_columns_and_huge_numbers() -> None:
    rows = [Row(i, (Message("text", "t", trained=True),), "f", i, {}, {f"key{i}": i, "n": 10**400}) for i in range(90)]
    assert read_rows(rows, np.arange(90), np.arange(2), 100).columns == ()


def test_data_that_changed_are_refused() -> None:
    with pytest.raises(InputError, match="changed"):
        read_rows(varied_samples(9), np.arange(10), np.arange(2), 100)


def test_rejected_rows_and_unscored_rows_are_passed_over() -> None:
    rows = [Reject(0, "f", 1, "bad"), *(sample(i, f"q{i}", "a") for i in range(1, 5))]
    facts = read_rows(rows, np.array([2, 4]), np.array([1]), 100)
    assert list(facts.texts) == [1]
    assert facts.texts[1].turns[0].text == "q4"


def test_invisible_characters_are_made_visible() -> None:
    assert visible("a\x00b\x1b[31m\u202ec\u200b\ud800") == "a\\x00b\\x1b[31m\\u202ec\\u200b\\ud800"
    assert visible("tab\tline\r\nnext") == "tab\tline\nnext"
    assert visible("نمی‌خواهم 👩‍👧 ñ 日本") == "نمی‌خواهم 👩‍👧 ñ 日本"  # the joiners belong to the words


def test_long_texts_are_cut_at_whole_characters() -> None:
    assert cut("short", 100) == ("short", 5)
    text, used = cut("é" * 1_000_000, 101)
    assert text == "é" * 50 + "… [1,000,000 characters in all]"
    assert used == 101


def test_pictures_are_pictures() -> None:
    shown = [red_square(), b"no picture", b"<svg onload=alert(1)>"]
    rows = [with_picture(sample(i, "q", "a"), data) for i, data in enumerate(shown)]
    rows.append(sample(3, "q", "a"))
    facts = read_rows(rows, np.arange(4), np.arange(4), 100)
    assert facts.texts[0].image == image_address(ImageRef("", red_square()))
    assert facts.texts[0].image.startswith("data:image/jpeg;base64,")
    assert [facts.texts[i].image for i in (1, 2, 3)] == ["", "", ""]


def red_square() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(content, "PNG")
    return content.getvalue()


def test_pictures_without_room_are_not_those_of_the_last_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(image_address(ImageRef("", red_square())))
    monkeypatch.setattr("instruct_prune.report.rows.IMAGE_BYTES", 50 * size)
    rows, ids = [with_picture(sample(i, "q", "a"), red_square()) for i in range(200)], np.arange(200)
    facts = read_rows(rows, ids, ids, 100, foremost=[198, 199])
    shown = [at for at, text in facts.texts.items() if text.image]
    assert len(shown) == 50
    assert {198, 199} <= set(shown)
    assert all(sum(low <= at < low + 50 for at in shown) >= 5 for low in range(0, 200, 50))


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello world", "Latin"),
        ("Привет, hi", "Cyrillic"),
        ("これは日本語の文章です", "Kana"),
        ("这是一个句子", "Han"),
        ("مرحبا بالعالم", "Arabic"),
        ("नमस्ते", "Devanagari"),
        ("안녕하세요", "Hangul"),
        ("12 + 34 = 46", "no letters"),
        ("", "no letters"),
        ("über größer", "Latin"),
        ("שלום a", "Hebrew"),
        ("漢字々", "Han"),
        ("ＡＢＣ１", "Latin"),  # wide letters
        ("𝐱 = 𝛼", "Latin"),  # letters of formulas, the first of equals
        ("👋", "no letters"),
        ("aпривет", "Cyrillic"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


# ---- histograms, projection, choice of texts ----


@pytest.mark.parametrize("log", [False, True])
def test_bins_hold_every_value(log: bool) -> None:
    values = np.random.default_rng(0).gamma(1, 30, 5000).astype(np.int32)
    found = histogram(values, {"all": np.ones(5000, dtype=bool)}, log)
    assert sum(found.counts["all"]) == 5000
    assert (np.diff(found.edges) > 0).all()
    middle = len(found.edges) // 2
    inside = (values >= found.edges[middle]) & (values < found.edges[middle + 1])
    assert found.counts["all"][middle] == inside.sum()


@pytest.mark.parametrize("values", [np.zeros(9, dtype=np.int32), np.full(9, 2.5, dtype=np.float32), np.full(4, np.nan)])
def test_bins_of_constant_columns(values: np.ndarray) -> None:
    edges = edges_of(values)
    assert len(edges) >= 2
    assert set(bin_of(values, edges)) <= {0, -1}


@pytest.mark.parametrize(("n", "d"), [(300, 20), (5, 20), (2, 3), (40, 1)])
def test_projection_is_that_of_the_svd(n: int, d: int) -> None:
    rng = np.random.default_rng(1)
    vectors = (rng.standard_normal((n, d)) * np.arange(1, d + 1)[::-1]).astype(np.float32)
    found = principal_components(vectors, np.arange(n))
    _, singular, axes = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    expected = (vectors - vectors.mean(axis=0)) @ axes[:2].T
    for i in range(min(2, expected.shape[1])):
        if singular[i] > 1e-4:
            assert abs(found.xy[:, i]) == pytest.approx(abs(expected[:, i]), abs=2e-3 * float(singular[0]))
    share = singular[0] ** 2 / (singular**2).sum()
    assert found.axes[0] == f"component 1 ({share:.0%} of variance)"


def test_texts_of_both_sides_and_of_every_large_cluster(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", varied_samples(1000), duplicates=[(8, 7)])
    tables = read_tables(folder)
    numbers = compute(folder, tables)
    picks = pick_rows(tables, boundary_of(tables), numbers.groups, numbers.duplicates, 200)
    assert len(picks) == 200
    assert (np.diff(picks) > 0).all()
    kept = tables.kept[picks].sum()
    assert 60 < kept < 140  # 300 of the 1000 rows are kept; the page shows about as many of either side
    rows = set(tables.row_id[picks].tolist())
    assert {7, 8} <= rows
    assert all(set(group.typical) <= rows for group in numbers.groups)
    assert pick_rows(tables, None, numbers.groups, [], 5000).tolist() == list(range(1000))
