"""Names of the package, and functions of the user's own."""

import sys
from pathlib import Path

import pytest

from instruct_prune.errors import InputError
from instruct_prune.registry import is_reference, load_attribute, resolve

TABLE = {"join": "os.path:join", "split": "os.path:split"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("own_"):
            del sys.modules[name]


def test_names_of_a_table_and_of_the_users_own(here: Path) -> None:
    import os.path

    (here / "own_package").mkdir()
    (here / "own_package" / "rules.py").write_text("def shortest(): return 7\n")
    assert resolve(TABLE, "join", "--method") is os.path.join
    before = list(sys.path)
    assert resolve(TABLE, "own_package.rules:shortest", "--method")() == 7
    assert sys.path == before


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(
        InputError, match=r"unknown --method 'jion'\. Did you mean 'join'\? Known: join, split; or your own"
    ):
        resolve(TABLE, "jion", "--method")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own_nowhere:rule", "there is no module 'own_nowhere' in the working folder"),
        ("own_nowhere.deep:rule", "there is no module 'own_nowhere' in the working folder"),
        ("own_rules:lenght", r"has no 'lenght'\. Did you mean 'length'"),
        ("own_rules:NUMBER", "an object of type int; a function is expected"),
        ("own_needy:rule", "own_needy imports 'own_absent', which is not installed"),
        ("own_broken:rule", "own_broken cannot be imported: .*own_broken.py, line 1"),
        ("own_rules:", "write package.module:attribute"),
        ("own rules:length", "write package.module:attribute"),
    ],
)
def test_what_is_wrong_is_said(here: Path, name: str, says: str) -> None:
    (here / "own_rules.py").write_text("NUMBER = 3\ndef length(): pass\n")
    (here / "own_needy.py").write_text("import own_absent\n")
    (here / "own_broken.py").write_text("def rule(:\n")
    with pytest.raises(InputError, match=says) as caught:
        load_attribute(name, "--score")
    assert str(caught.value).startswith("--score ")


def test_an_error_of_the_users_own_keeps_its_traceback(here: Path) -> None:
    (here / "own_error.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_attribute("own_error:rule", "--method")


def test_references_are_told_from_names() -> None:
    assert [name for name in ("a:b", "a.b:c", "a", "a:", "C:\\x", "a/b:c", "1:2") if is_reference(name)] == [
        "a:b",
        "a.b:c",
    ]
