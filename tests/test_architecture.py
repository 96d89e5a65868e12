"""The walls of the house (docs/architecture.md): who may import whom, how long a file may be, and what an import costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import instruct_prune

ROOT = Path(instruct_prune.__file__).parent

GROUND = {
    "arrays", "command_options", "config", "config_file", "errors", "geometry", "menu", "parameter", "plugin", "progress", "registry",
    "storage", "terminal",
}  # fmt: skip
"""Files at the top of the package that every room may import; they import each other alone."""

ROOMS = ("rows", "encode", "models", "measure", "score", "select", "train", "prove", "run", "export", "report")
"""In the order in which data go: a room may import those that stand before it."""

UPSTAIRS = {"cli", "commands", "catalog", "shipped", "api", "__main__"}
"""They may import everything; ``cli`` finds the actions of the commands by the names that ``menu`` has."""

STAGES_MAY_ALSO = {("run", "export"), ("run", "report")}
"""``run`` calls what comes after it, so these two may not call it back ..."""
OF_RUN = {"run.folder", "run.records", "run.target_facts"}
"""... but they read a run's folder and records."""

LIBRARIES = {
    "torch": {"models", "measure", "train"},
    "transformers": {"models", "train"},
    "peft": {"train"},
    "accelerate": {"measure", "train"},
    "sentence_transformers": {"models"},
    "tokenizers": {"encode"},
    "sklearn": {"select"},
    "scipy": {"score", "prove", "report"},
    "datasets": {"rows", "score", "export", "api"},  # score and api hand their rows over to it
    "pandas": {"score", "select"},  # to_pandas()
    "PIL": {"rows", "models"},
    "huggingface_hub": {"models", "export"},
    "plotly": {"report"},
    "lm_eval": {"prove"},
    "umap": {"select"},
    "rich": {"commands", "report"},
    "tyro": {"cli", "command_options", "config", "train"},
}

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60


def name_of(path: Path) -> str:
    """``select.methods`` of a file in the package; ``select`` of the file that stands for a folder."""
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def imports(name: str) -> frozenset[str]:
    """All that a file imports at run time, also inside functions, but not under TYPE_CHECKING."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: imports are absolute"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}".removeprefix("instruct_prune.")
                found.add(f"instruct_prune.{inside}" if inside in FILES else str(node.module))
    return frozenset(found)


def own(name: str) -> set[str]:
    """The files of the package that a file imports."""
    return {found.removeprefix("instruct_prune.") for found in imports(name) if found.startswith("instruct_prune.")}


def room_of(name: str) -> str:
    return name.partition(".")[0]


def allowed(name: str, target: str) -> bool:
    here, there = room_of(name), room_of(target)
    if there in ("cli", "api", "__main__"):
        return name == "__main__"
    if here in UPSTAIRS | {"__init__"} or there in GROUND | {here}:
        return True
    if here in GROUND:
        return False
    if (here, there) in STAGES_MAY_ALSO:
        return True
    if there == "run":
        return target in OF_RUN
    return ROOMS.index(there) < ROOMS.index(here)


def test_every_file_is_in_a_room_or_on_the_ground_floor() -> None:
    assert {room_of(name) for name in FILES} == GROUND | set(ROOMS) | UPSTAIRS | {"__init__"}


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down_the_line(name: str) -> None:
    assert [target for target in sorted(own(name)) if not allowed(name, target)] == []


def test_no_circle_among_files() -> None:
    graph = {name: own(name) - {name} for name in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"files import each other in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("name", FILES)
def test_libraries_stay_in_their_rooms(name: str) -> None:
    for library in {found.partition(".")[0] for found in imports(name)}:
        assert room_of(name) in LIBRARIES.get(library, {room_of(name)}), f"{name} imports {library}"


def functions(name: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name}.{node.name}", (node.end_lineno or 0) - node.lineno + 1


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_short(name: str) -> None:
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES
    for function, length in functions(name):
        assert length <= MOST_LINES_OF_A_FUNCTION, function


def test_no_utils_and_no_trust_in_foreign_code() -> None:
    for path in FILES.values():
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


# ---- what an import costs ----


def loaded_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {line.split(".")[0] for line in done.stderr.splitlines()}


HEAVY = {
    "torch", "transformers", "numpy", "datasets", "sklearn", "scipy", "pandas", "accelerate", "sentence_transformers", "pyarrow",
}  # fmt: skip
OF_MODELS = {"torch", "transformers", "datasets", "scipy", "pandas", "accelerate", "sentence_transformers"}


@pytest.mark.parametrize(
    ("code", "banned"),
    [
        ("import instruct_prune", HEAVY),
        ("from instruct_prune.cli import main; main(['--help'])", HEAVY),
        ("from instruct_prune.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass", HEAVY),
        ("import instruct_prune.select", OF_MODELS | {"sklearn", "pyarrow"}),
        ("import instruct_prune.run.select", OF_MODELS),
    ],
)
def test_what_an_import_loads(code: str, banned: set[str]) -> None:
    assert sorted(banned & loaded_after(code)) == []


def test_public_names_are_real_and_no_rooms() -> None:
    for name in instruct_prune.__all__:
        assert getattr(instruct_prune, name) is not None
        with pytest.raises(ModuleNotFoundError):  # a room of this name would hide it once it is imported
            importlib.import_module(f"instruct_prune.{name}")
