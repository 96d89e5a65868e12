"""Chat templates stay in their sandbox; option files are plain YAML."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from spoken import refused, tell

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "is unsafe"),
    "globals": ("{{ cycler.__init__.__globals__.os.system('touch MARK') }}", "is unsafe"),
    "globals of a function": ("{{ raise_exception.__globals__['os'].system('touch MARK') }}", "is unsafe"),
    "format": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "is unsafe"),
    "messages changed": ("{{ messages.append(1) }}", "is unsafe"),
    "a file": ("{% include '/etc/passwd' %}", "no loader"),
    "a module": ("{% import 'os' as os %}", "no loader"),
    "division": ("{{ 1 / 0 }}", "division by zero"),
    "a long range": ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
    "without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "more than memory": ("{{ 'x' * 10 ** 15 }}", "MemoryError"),
    "an unknown name": ("{{ nothing.here }}", "undefined"),
    "no template": ("{% for %}", "Expected an expression"),
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a b c"}]
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text((json.dumps({"messages": turns}) + "\n") * 4)
    return path


@pytest.mark.parametrize("whose", ["the user's", "the tokenizer's"])
def test_templates_stay_in_their_sandbox(
    whose: str, mark: Path, chats: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    model, own = tmp_path / "model", tmp_path / "own.jinja"
    shutil.copytree(tiny_model_folder, model)
    (model / "chat_template.jinja").write_text(CHATML)
    words = ["inspect", "--data", chats, "--model", model, *(["--template", own] if whose == "the user's" else [])]
    for text, says in TEMPLATES.values():
        (own if whose == "the user's" else model / "chat_template.jinja").write_text(
            text.replace("MARK", str(mark)) + CHATML
        )
        assert refused(tell(*words), says)
    (own if whose == "the user's" else model / "chat_template.jinja").write_text(CHATML)
    assert tell(*words).is_clean(0)


# ---- option files ----

NINE = ", ".join(["*{}"] * 9)
BOMB = "a: &a [x]\n" + "".join(
    f"{new}: &{new} [{NINE.format(*[old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=False)
)
OPTIONS = {
    "code": ("!!python/object/apply:os.system ['touch MARK']", "could not determine a constructor"),
    "code in a value": ("data: !!python/object/apply:os.system ['touch MARK']", "could not determine a constructor"),
    "many times nine": (BOMB, "no aliases"),
    "inside itself": ("data: &a [*a]", "no aliases"),
    "deep": ("data: " + "[" * 100_000, "nothing deeper"),
    "twice": ("data: a\ndata: b", "data is said twice"),
    "escapes": ('"\\e[2Jdata": 1', "\\x1b[2Jdata"),
    "a long number": ("seed: " + "9" * 5000, "is not valid YAML"),
    "two documents": ("data: a\n---\ndata: b", "is not valid YAML"),
    "a list": ("- a", "expected a mapping"),
}


def test_option_files(mark: Path, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    for text, says in OPTIONS.values():
        path.write_text(text.replace("MARK", str(mark)))
        told = tell("run", "--config", path, "--out", tmp_path / "RUN")
        assert refused(told, says)
        assert "\x1b" not in told.text
    path.write_text("limit: 5\nkeep: 30%\n")
    assert tell("run", "--config", path, "--out", tmp_path / "RUN", "--print-config").is_clean(0)
