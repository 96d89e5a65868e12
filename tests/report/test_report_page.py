"""The report as a file: what is in it, and what cannot be."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_runs import HOSTILE, hostile_samples, make_run, varied_samples

from instruct_prune.errors import InputError
from instruct_prune.report.html import took, write_report
from instruct_prune.report.numbers import compute, shifts_of
from instruct_prune.report.pack import pack, small_codes, spread
from instruct_prune.report.rows import read_rows
from instruct_prune.report.tables import read_tables
from instruct_prune.rows.row import Reject


def block(page: str, name: str) -> bytes:
    found = re.search(rf'<script type="application/octet-stream" id="{name}">([A-Za-z0-9+/=]+)</script>', page)
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1]))


def unpack(data: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    size = int.from_bytes(data[:4], "little")
    meta = json.loads(data[4 : 4 + size])
    arrays = {
        name: np.frombuffer(data, dtype=kind, count=length, offset=4 + size + offset)
        for name, (kind, offset, length) in meta["arrays"].items()
    }
    return meta["header"], arrays


def test_pack_comes_back() -> None:
    arrays = {
        "a": np.arange(5, dtype=np.uint8),
        "b": np.array([1.5, np.nan], dtype=np.float32),
        "c": np.zeros(0, dtype=np.uint16),
    }
    header, found = unpack(gzip.decompress(base64.b64decode(pack({"x": "é\u2028</script>"}, arrays))))
    assert header == {"x": "é\u2028</script>"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_small_codes_hold_the_largest() -> None:
    assert small_codes(np.array([0, 255])).dtype == np.uint8
    assert small_codes(np.array([0, 256])).dtype == np.uint16
    found = small_codes(np.array([-1, 254]), missing=True)
    assert (found.dtype, found.tolist()) == (np.dtype(np.uint8), [255, 254])
    found = small_codes(np.array([-1, 255]), missing=True)
    assert (found.dtype, found.tolist()) == (np.dtype(np.uint16), [65535, 255])


def test_spread_is_fine_enough() -> None:
    values = np.random.default_rng(0).normal(3, 2, 1000).astype(np.float32)
    steps, low, high = spread(values)
    assert np.abs(low + steps * (high - low) / 65535 - values).max() <= (high - low) / 65535
    assert spread(np.full(3, 2.0))[0].tolist() == [0, 0, 0]


def test_page_and_json_say_what_was_counted(tmp_path: Path) -> None:
    rows = varied_samples(150)
    folder = make_run(tmp_path / "run", rows, duplicates=[(4, 3)])
    path = write_report(folder, rows)
    assert path == folder / "report.html"
    tables = read_tables(folder)
    numbers = compute(folder, tables).to_json()
    numbers["shifts"] = json.loads(
        json.dumps(
            [s.__dict__ for s in shifts_of(tables, read_rows(rows, tables.row_id, np.arange(0), 9).columns)],
            default=vars,
        )
    )
    saved = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(numbers))
    header, arrays = unpack(block(path.read_text(encoding="utf-8"), "data"))
    assert header["numbers"] == saved
    selection = folder.read_selection()
    np.testing.assert_array_equal(np.cumsum(arrays["row"]), selection.row_id)
    np.testing.assert_array_equal(arrays["score"], selection.score)
    assert [header["reasons"][code] for code in arrays["reason"]] == [
        selection.reasons[code] for code in selection.reason
    ]
    np.testing.assert_array_equal(arrays["fate"] > 0, selection.selected)
    assert [text[2][0][1] for text in header["texts"]] == [row.messages[0].text for row in rows]


def test_same_run_same_bytes(tmp_path: Path) -> None:
    rows = varied_samples(120)
    folder = make_run(tmp_path / "run", rows)
    first = write_report(folder, rows, samples=50).read_bytes()
    assert write_report(folder, rows, samples=50).read_bytes() == first


def test_neighbours_are_the_nearest(tmp_path: Path) -> None:
    rows = varied_samples(60)
    folder = make_run(tmp_path / "run", rows)
    header, arrays = unpack(block(write_report(folder, rows).read_text(encoding="utf-8"), "data"))
    vectors = np.load(folder / "embeddings.npy")
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -2)
    expected = np.sort(cosine, axis=1)[:, ::-1][:, : header["neighbors"]]
    np.testing.assert_allclose(arrays["cosine"].reshape(expected.shape), expected, atol=1e-5)


def test_policy_lets_only_our_scripts_run(tmp_path: Path) -> None:
    rows = varied_samples(30)
    page = write_report(make_run(tmp_path / "run", rows), rows).read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    inline = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(inline) == 1
    allowed = [inline[0].encode(), block(page, "plotly")]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in allowed}
    assert set(rules["script-src"].split()) == hashes
    assert page.index("Content-Security-Policy") < page.index("<script")


def test_nothing_is_fetched(tmp_path: Path) -> None:
    rows = varied_samples(30)
    page = write_report(make_run(tmp_path / "run", rows), rows).read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href|action|srcset|poster)\s*=\s*["']?([^"'\s>]+)""", page)
    assert links
    assert all(link.startswith("#") for link in links)
    assert "@import" not in page
    assert "url(" not in page


def test_hostile_text_stays_in_the_packed_block(tmp_path: Path) -> None:
    rows = hostile_samples()
    rejects = [Reject(len(rows) + i, text[:2000], i, text[:2000], text[:50]) for i, text in enumerate(HOSTILE[:8])]
    folder = make_run(tmp_path / "run", [*rows, *rejects], warnings=[HOSTILE[1]])
    page = write_report(folder, rows).read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>|<style>.*?</style>", "", page, flags=re.DOTALL)
    for piece in ("<script", "<img", "<svg", "<link", "\x00", "\x1b", "\u202e", "\u2028", "<a href='javascript"):
        assert piece not in markup
    assert "{{ 7 * 7 }}" in markup  # not 49
    assert "&lt;script&gt;window.__hacked = 2&lt;/script&gt;" in markup  # shown, as text
    header, _ = unpack(block(page, "data"))
    texts = {turn[1] for text in header["texts"] for turn in text[2]}
    assert HOSTILE[0] in texts
    assert max(len(text) for text in texts) < 8100  # of a line of a megabyte


def test_limits(tmp_path: Path) -> None:
    rows = varied_samples(80)
    folder = make_run(tmp_path / "run", rows)
    with pytest.raises(InputError, match="--samples 0"):
        write_report(folder, rows, samples=0)
    header, arrays = unpack(block(write_report(folder, rows, samples=10).read_text(encoding="utf-8"), "data"))
    assert len(header["texts"]) == len(arrays["picks"]) == 10
    assert header["n"] == len(arrays["score"]) == 80


def test_compare_needs_a_selection(tmp_path: Path) -> None:
    rows = varied_samples(30)
    first, second = make_run(tmp_path / "a", rows, keep=None), make_run(tmp_path / "b", rows)
    with pytest.raises(InputError, match="no selection"):
        write_report(first, rows, others=[second])
    with pytest.raises(InputError, match=r"the select stage has not run\. Run `instruct-prune select"):
        write_report(second, rows, others=[first])


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    rows = varied_samples(30)
    first, second = make_run(tmp_path / "a" / "run", rows), make_run(tmp_path / "b" / "run", rows, seed=1)
    page = write_report(first, rows, others=[second]).read_text(encoding="utf-8")
    assert "run&#39;" in page


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.7, "9.7 s"), (42.4, "42 s"), (209, "3 min 29 s"), (8054, "2 h 14 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert took(seconds) == text
