"""A user without the repository: the wheel, in an environment of its own, from another folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from sample_rows import alpaca_rows, write_jsonl

ROOT = Path(__file__).parents[1]

for builder in ("hatchling", "hatch_fancy_pypi_readme"):
    pytest.importorskip(builder, reason="the wheel is built by hatchling (extra dev)")


def run(words: list[str], folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    left_out = ("PYTHONPATH", "NO_COLOR", "RANK", "WORLD_SIZE")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)], ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def tool(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """``instruct-prune`` of a fresh environment that sees the libraries here, but not this repository."""
    folder = tmp_path_factory.mktemp("user") / "env"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    purelib = sysconfig.get_path("purelib", vars={"base": str(folder)})
    # A line of a .pth file is put behind the environment's own packages, and .pth files there (of an editable install)
    # are not read.
    (Path(purelib) / "libraries.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")) + "\n")
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", str(wheel)], folder)
    where = run([str(python), "-c", "import instruct_prune; print(instruct_prune.__file__)"], folder).stdout
    assert where.startswith(str(folder))
    return str(folder / "bin" / "instruct-prune")


def test_the_wheel_is_typed_and_carries_what_users_copy_and_no_benchmarks(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "instruct_prune/py.typed" in names
    shipped = {name.removeprefix("instruct_prune/share/") for name in names if name.startswith("instruct_prune/share/")}
    recipes = {p.relative_to(ROOT).as_posix() for p in (ROOT / "recipes").rglob("*.*") if p.parent.name != "benchmarks"}
    assert {name for name in recipes if "__pycache__" not in name} <= shipped
    assert {"data_samples/alpaca.jsonl", "data_samples/target_code.jsonl", "data_samples/test_code.jsonl"} <= shipped
    assert not any("benchmarks" in name or "__pycache__" in name for name in shipped)


def test_the_links_of_the_package_page_are_whole(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]
    assert f"Project-URL: Homepage, {address}" in metadata
    here = re.findall(r"\]\((?!\w+:|#)([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(here) > 10
    assert [target for target in here if not (ROOT / target).exists()] == []
    links = re.findall(r"\]\(([^)]+)\)", metadata)
    assert sorted(link for link in links if link.startswith(address)) == sorted(
        f"{address}/{target}" for target in here
    )
    assert all("://" in link for link in links)


def test_help_lists_and_recipes(tool: str, tmp_path: Path) -> None:
    assert "instruct-prune run --data" in run([tool, "--help"], tmp_path).stdout
    assert run([tool, "-V"], tmp_path).stdout.startswith("instruct-prune 0.")
    assert "flexrand" in run([tool, "methods"], tmp_path).stdout
    listed = run([tool, "recipe"], tmp_path).stdout
    assert "configs/llama3-8b" in listed
    assert "benchmarks" not in listed
    run([tool, "recipe", "lora"], tmp_path)
    assert (tmp_path / "lora.py").read_bytes() == (ROOT / "recipes" / "lora.py").read_bytes()
    again = run([tool, "recipe", "lora"], tmp_path, check=False)
    assert again.returncode == 2
    assert "was not overwritten" in again.stderr


@pytest.mark.slow
def test_run_and_demo_on_a_tiny_model(
    tool: str, tmp_path: Path, tiny_model_folder: Path, tiny_embedder_folder: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(24))
    models = ["--model", str(tiny_model_folder), "--embedder", str(tiny_embedder_folder), "--dtype", "float32"]
    told = run([tool, "run", "--data", str(data), *models, "--keep", "25%", "--out", "RUN", "--json"], tmp_path).stdout
    assert json.loads(told)["stages"]["select"]["kept"] == 6
    assert len((tmp_path / "RUN" / "pruned.jsonl").read_bytes().splitlines()) == 6
    told = run([tool, "demo", *models, "--dedup", "1.0"], tmp_path).stdout
    assert "planted rows dropped, keeping 24 of 120" in told
    assert "rows of code kept, of 12" in told
    assert told.rstrip().splitlines()[-1].startswith("code: selection: ")
    assert "better than random by" in told or "cannot tell" in told or "worse than random by" in told
    assert (tmp_path / "demo_run" / "report.html").exists()
