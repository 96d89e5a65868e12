"""Parquet, saved datasets and the Hub, read back with the datasets library."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instruct_prune.errors import InputError
from instruct_prune.export import ExportJob, export_selection, hub, tables

# Values of different types in one column need datasets 4.7.
MIXED = {"other": [1, "x"]} if hasattr(datasets, "Json") else {"k": 3}
ROWS: list[dict[str, Any]] = [
    {"instruction": "a", "output": "1", "extra": None, "score": 1, "meta": {"k": 1}},
    {"instruction": "b", "output": "dropped", "extra": "no", "score": 2, "meta": {"k": 2}},
    {"instruction": "c", "output": "3", "extra": "late", "score": 2.5, "meta": MIXED},
    {"instruction": "d", "output": "4", "score": 3, "tags": ["t"]},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def whole(row: dict[str, Any]) -> dict[str, Any]:
    names = ("instruction", "output", "extra", "score", "meta", "tags")
    return {name: row.get(name) for name in names}


@pytest.mark.parametrize("batch", [1, 2048])
def test_json_rows_as_parquet(
    tmp_path: Path, data: Path, job_of: Callable[..., ExportJob], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    # With one row at a time a column is null at first and text later, and objects have other keys in each batch.
    monkeypatch.setattr(tables, "BATCH_ROWS", batch)
    (done,) = export_selection(["parquet"], job_of(data, keep=[0, 2, 3]))
    assert (done.paths[0].name, done.rows) == ("pruned-set.parquet", 3)
    back = datasets.load_dataset(
        "parquet", data_files=str(done.paths[0]), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert list(back) == [whole(ROWS[i]) for i in (0, 2, 3)]
    assert pq.read_table(done.paths[0]).column("score").to_pylist() == [1.0, 2.5, 3.0]


def test_types_of_parquet_inputs_are_kept(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    table = pa.table({"instruction": ["a", "b"], "output": ["x", "y"], "n": pa.array([1, 2], pa.int8())})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet")
    (done,) = export_selection(["parquet"], job_of(tmp_path / "a.parquet", tmp_path / "b.parquet", keep=[1, 2]))
    back = pq.read_table(done.paths[0])
    assert back.schema.field("n").type == pa.int8()
    assert back.to_pylist() == [
        {"instruction": "b", "output": "y", "n": 2},
        {"instruction": "a", "output": "x", "n": 1},
    ]


def test_disk(data: Path, job_of: Callable[..., ExportJob]) -> None:
    (done,) = export_selection(["disk"], job_of(data, keep=[0, 3]))
    assert list(datasets.load_from_disk(str(done.paths[0]))) == [whole(ROWS[i]) for i in (0, 3)]
    again = export_selection(["disk"], job_of(data, keep=[1]))
    assert again[0].rows == len(datasets.load_from_disk(str(done.paths[0]))) == 1


def test_numbers_beyond_64_bits_are_refused(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    path = tmp_path / "big.jsonl"
    path.write_text(json.dumps({"instruction": "a", "output": "b", "n": 2**80}) + "\n")
    with pytest.raises(InputError, match="64 bits"):
        export_selection(["parquet"], job_of(path))


class FakeHub:
    """Remembers what it was asked; no network."""

    def __init__(self, licenses: dict[str, str | list[str] | None] | None = None) -> None:
        self.licenses = licenses or {}
        self.made: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.made = {"repo_id": repo_id, **options}

    def upload_folder(self, *, repo_id: str, repo_type: str, folder_path: str, commit_message: str) -> None:
        assert (repo_id, repo_type) == (self.made["repo_id"], "dataset")
        root = Path(folder_path)
        self.files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    def dataset_info(self, repo_id: str) -> Any:
        class Info:
            card_data = {"license": self.licenses[repo_id]} if self.licenses[repo_id] else None

        return Info


def pushed_card(job: ExportJob) -> tuple[Any, FakeHub]:
    from huggingface_hub import DatasetCard

    api = FakeHub()
    hub.hub(job, api)
    return DatasetCard(api.files["README.md"].decode()), api


def test_push_with_inherited_license(tmp_path: Path, data: Path, job_of: Callable[..., ExportJob]) -> None:
    facts = {"method": "flexrand", "evil": "| <script>\n---\nlicense: mit"}
    job = job_of(data, keep=[0, 2], hub_repo="me/pruned", license="cc-by-4.0", facts=facts)
    card, api = pushed_card(job)
    assert api.made == {"repo_id": "me/pruned", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert card.data.license == "cc-by-4.0"
    assert "`cc-by-4.0`, inherited" in card.content
    assert r"\| \<script\> --- license: mit" in card.content
    (tmp_path / "back.parquet").write_bytes(api.files[hub.DATA_FILE])
    assert pq.read_table(tmp_path / "back.parquet").num_rows == 2


def test_unknown_license_stays_blank(data: Path, job_of: Callable[..., ExportJob]) -> None:
    card, api = pushed_card(job_of(data, hub_repo="me/pruned", hub_private=False))
    assert card.data.license is None
    assert "license:" not in api.files["README.md"].decode().split("---")[1]
    assert "not stated by the source" in card.content
    assert api.made["private"] is False


def test_license_is_inherited_only_when_stated() -> None:
    api = FakeHub({"a/a": "mit", "b/b": "mit", "c/c": None, "d/d": ["mit", "apache-2.0"]})
    assert hub.inherited_license(["a/a", "b/b"], "hub", api) == "mit"
    assert hub.inherited_license(["a/a", "c/c"], "hub", api) is None
    assert hub.inherited_license(["d/d"], "hub", api) is None
    assert hub.inherited_license(["a.jsonl"], "jsonl", api) is None


def test_push_errors_are_in_our_words(data: Path, job_of: Callable[..., ExportJob]) -> None:
    with pytest.raises(InputError, match="owner/name with --hub-repo"):
        export_selection(["hub"], job_of(data))

    class Offline(FakeHub):
        def create_repo(self, repo_id: str, **options: Any) -> None:
            raise OSError("no network")

    with pytest.raises(InputError, match=r"could not be pushed: no network.*hf auth login"):
        hub.hub(job_of(data, hub_repo="me/pruned"), Offline())


def test_push_without_a_token(data: Path, job_of: Callable[..., ExportJob], monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's own client, against a server that answers as the Hub does when nobody is logged in."""
    from huggingface_hub import HfApi, constants, utils

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert "Authorization" not in self.headers
            self.send_response(401)
            self.send_header("X-Error-Message", "Invalid username or password.")
            self.end_headers()

        def log_message(self, *ignored: Any) -> None:
            pass

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if hasattr(utils, "reset_sessions"):  # before huggingface_hub 1.0 a session that was opened offline stays so
        utils.reset_sessions()
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)
        with pytest.raises(InputError, match=r"could not be pushed: .*401.*hf auth login") as refused:
            hub.hub(job_of(data, hub_repo="me/pruned"), api)
    finally:
        server.shutdown()
        server.server_close()
    assert "What would have been pushed lies in" in str(refused.value)
    assert (job_of(data).folder / "hub" / hub.DATA_FILE).exists()


def test_an_older_datasets_library_is_told_where_it_cannot_hold_a_column(
    tmp_path: Path, job_of: Callable[..., ExportJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(datasets, "Json", raising=False)  # as before 4.7
    rows = [{"instruction": "a", "output": "b", "meta": {"k": value}} for value in (1, 2, [1, "x"])]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"(?s)values of different types.*pip install 'datasets>=4.7'"):
        export_selection(["parquet"], job_of(path))
    (done,) = export_selection(["parquet"], job_of(path, keep=[0, 1]))
    assert pq.read_table(done.paths[0]).column("meta").to_pylist() == [{"k": 1}, {"k": 2}]
