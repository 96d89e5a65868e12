"""The walls of the house: who may import whom, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import instruct_prune

ROOT = Path(instruct_prune.__file__).parent
ROOMS = {"rows", "encode", "models", "measure", "score", "select", "train", "export", "report"}
GROUND = {"arrays", "registry", "errors", "terminal", "progress", "geometry", "storage"}  # may be imported by all
FIRST_FLOOR = {"config", "run_folder", "models"}
UPSTAIRS = {"stages", "pipeline", "api"}

ALLOWED_BETWEEN_ROOMS = {("score", "encode.batching")}

LIBRARIES = {
    "torch": {"score", "models", "embed"},
    "transformers": {"score/causal_lm", "score/vision", "models", "encode/templates", "encode/tokenize"},
    "sklearn": {"embed"},
    "datasets": {"load", "export", "datatypes", "api"},  # datatypes and api only hand their rows over to it
    "peft": set(),
    "sentence_transformers": {"embed"},
    "accelerate": {"score"},
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")


def imports(path: Path) -> set[str]:
    """All modules a file imports at run time, also inside functions; not those under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(found: set[str]) -> set[str]:
    return {name.removeprefix("instruct_prune.") for name in found if name.startswith("instruct_prune.")}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_rooms_do_not_import_each_other(path: Path) -> None:
    room = name_of(path).split("/")[0]
    if room not in ROOMS:
        return
    for target in own(imports(path)):
        other = target.split(".")[0]
        allowed = other in GROUND | FIRST_FLOOR | {room} or any(
            (room, prefix) in ALLOWED_BETWEEN_ROOMS for prefix in (target, target.rpartition(".")[0])
        )
        if other in ROOMS | UPSTAIRS | {"cli"}:
            assert allowed, f"{name_of(path)} imports {target}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_ground_floor_stands_alone(path: Path) -> None:
    name = name_of(path).split("/")[0]
    targets = {target.split(".")[0] for target in own(imports(path))}
    if name in GROUND:
        assert targets <= GROUND
    elif name in FIRST_FLOOR:
        assert targets <= GROUND | FIRST_FLOOR
    elif name in UPSTAIRS:
        assert "cli" not in targets


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    name = name_of(path)
    for imported in imports(path):
        library = imported.split(".")[0]
        if library in LIBRARIES:
            assert any(name == home or name.startswith(home + "/") for home in LIBRARIES[library]), (
                f"{name} imports {library}"
            )


def test_no_utils_and_no_trust_in_foreign_code() -> None:
    for path in modules():
        assert path.stem not in ("utils", "helpers", "misc")
        text = path.read_text(encoding="utf-8")
        for banned in (
            "trust_remote_code=True",
            "allow_pickle=True",
            "import pickle",
            "yaml.load(",
            "weights_only=False",
        ):
            assert banned not in text, f"{path.name} has {banned}"


def loaded_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {line.split(".")[0] for line in done.stderr.splitlines()}


HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "datasets",
    "sklearn",
    "pandas",
    "accelerate",
    "sentence_transformers",
    "pyarrow",
}


def test_help_imports_nothing_heavy() -> None:
    loaded = loaded_after("from instruct_prune.cli import main; main(['--help'])")
    assert not HEAVY & loaded


def test_help_of_a_command_imports_nothing_heavy() -> None:
    code = "from instruct_prune.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass"
    assert not HEAVY & loaded_after(code)


def test_import_of_the_package_is_light_and_its_names_are_real() -> None:
    assert not HEAVY & loaded_after("import instruct_prune")
    for name in instruct_prune.__all__:
        assert getattr(instruct_prune, name) is not None
