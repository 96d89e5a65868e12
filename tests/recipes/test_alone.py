"""Each recipe is one file that can be copied anywhere: it uses public names only, and runs in an empty folder."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
PUBLIC = ("instruct_prune", "instruct_prune.train")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in the file; the name is empty for `import module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_public_names_only(path: Path) -> None:
    siblings = {other.stem for other in RECIPES}
    for module, name in imports(path):
        assert module.split(".")[0] not in siblings, f"{path.name} imports {module}, another recipe"
        if module.split(".")[0] != "instruct_prune":
            continue
        assert module in PUBLIC, f"{path.name} imports {module}"
        assert name in importlib.import_module(module).__all__, f"{path.name} imports {module}.{name}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_at_most_300_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_help_of_a_copy_in_an_empty_folder(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path)
    done = subprocess.run([sys.executable, path.name, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_there(module: str) -> None:
    home = importlib.import_module(module)
    for name in home.__all__:
        assert getattr(home, name) is not None
        assert not isinstance(getattr(home, name), type(sys)), f"{module}.{name} is a module"


def test_lora_in_an_empty_folder(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copy(next(path for path in RECIPES if path.stem == "lora"), tmp_path)
    command = [
        sys.executable,
        "lora.py",
        "--run-folder",
        str(tiny_run),
        "--out",
        "adapter",
        "--max-steps",
        "2",
        "--rank",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter" / "adapter" / "adapter_model.safetensors").exists()
