"""`instruct-prune prove` on a tiny model, by the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prove_runs import QUICK, planted, score_pool

from instruct_prune import Run
from instruct_prune.cli import main
from instruct_prune.prove.bench import Bench
from instruct_prune.prove.config import ProveConfig


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder with a scored run over two sources, and rows of one of them to test by."""
    return score_pool(tmp_path_factory.mktemp("prove"), tiny_model_folder)


def play(folder: Path, *words: str, name: str = "STUDY") -> int:
    test = ["--test", f"garden={folder / 'test.jsonl'}"]
    return main(["prove", str(folder / "RUN"), *QUICK, *test, "--study", str(folder / name), *words])


def found(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "RUN" / "prove" / "prove.json").read_text())
    return values


RULES = ["--epochs", "4", "--rules", "oracle:source=planted", "hardest"]


@pytest.fixture(scope="module")
def done(scored: Path) -> dict[str, Any]:
    """All arms there can be, of three rules."""
    assert play(scored, *RULES) == 0
    return found(scored)


# ---- what is found ----


def test_a_planted_oracle_is_better(done: dict[str, Any]) -> None:
    garden = done["tests"]["garden"]
    oracle = garden["rules"]["oracle:source=planted"]
    assert oracle["word"] == "better"
    assert oracle["rank"] == 0
    assert oracle["mean"] < garden["random"]["mean"] < garden["untrained"]
    assert oracle["equal_total_tokens"]["difference"] < 0
    assert oracle["third_of_the_rate"]["difference"] < 0  # the one finalist
    assert garden["rules"]["hardest"]["third_of_the_rate"] is None
    assert oracle["random_of_its_lengths"]["arms"] == 4
    assert oracle["worth"]["times"] > 1.5
    assert oracle["held_out"] > 0  # what it forgets


def test_every_number_is_there(done: dict[str, Any]) -> None:
    kinds = [arm["kind"] for arm in done["arms"]]
    count = {kind: kinds.count(kind) for kind in set(kinds)}
    # a third of the rate: six random arms and two of the best rule
    assert count == {
        "untrained": 1,
        "random": 6,
        "rule": 4,
        "more": 4,
        "length": 8,
        "whole": 2,
        "total": 4,
        "third": 8,
    }
    assert done["test_files"]["garden"] == {
        "file": done["test_files"]["garden"]["file"], "read": 17, "unusable": 0, "repeated": 2, "rows": 15
    }  # fmt: skip
    assert done["pool"]["held_out"] == 15
    for arm in done["arms"]:
        assert set(arm["losses"]) == {"garden", "held-out"}
        assert set(arm["losses"]["garden"]) == {"per_token", "per_row", "inner", "short", "middle", "long"}


def test_arms_are_equal_in_tokens_and_steps(done: dict[str, Any]) -> None:
    for arm in done["arms"]:
        if arm["kind"] in ("random", "rule", "length", "more", "third"):
            assert arm["response_tokens"] == pytest.approx(800 * arm["times"], rel=0.01)
            assert arm["steps"] == done["budget"]["steps"] * arm["times"]
    total = {arm["kind"]: arm["total_tokens"] for arm in done["arms"] if arm["kind"] in ("random", "total")}
    assert total["total"] == pytest.approx(total["random"], rel=0.04)


def test_no_arm_has_a_held_out_row_or_one_of_the_test(scored: Path, done: dict[str, Any]) -> None:
    run = Run(scored / "RUN")
    text = {row.row_id: row.text for row in run.rows(kept=None)}
    of_test = {row["instruction"] for row in planted(15, start=500)}
    trained: set[int] = set()
    for path in (scored / "STUDY" / "arms").glob("*.json"):
        trained |= set(json.loads(path.read_text())["row_ids"])
    assert len(trained) <= len(text) - 15
    assert not any(text[row].split("\n")[0] in of_test for row in trained)
    from instruct_prune.run.prove_rows import ProveRows

    config = ProveConfig(test=(f"garden={scored / 'test.jsonl'}",), held_out=15, test_rows=15)
    assert not trained & set(ProveRows(run.folder, config).held_out.tolist())


# ---- again, stopped, shared ----


def test_the_same_study_again_trains_nothing(
    scored: Path, done: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (scored / "RUN" / "prove" / "prove.json").read_bytes()
    monkeypatch.setattr(Bench, "run", lambda *_: pytest.fail("an arm was trained again"))
    capfd.readouterr()
    assert play(scored, *RULES) == 0
    assert (scored / "RUN" / "prove" / "prove.json").read_bytes() == before
    told = capfd.readouterr()
    assert "garden: oracle:source=planted: better than random by" in told.out
    assert "plan: 6 random arms, 2 of each of 2 rules" in told.err


def test_the_report_shows_it(scored: Path, done: dict[str, Any]) -> None:
    path, page = scored / "RUN" / "prove" / "prove.json", scored / "RUN" / "report.html"
    assert main(["report", str(scored / "RUN")]) == 0
    section = page.read_text().partition('id="proof-panel"')[2].partition("</section>")[0]
    line = section.partition("oracle:source=planted")[2].partition("</tr>")[0]
    assert line.count('<circle class="better"') == 2
    assert "better than random by" in line
    assert section.partition(">random<")[2].partition("</tr>")[0].count("<circle") == 6
    assert 'class="curve"' in section
    kept = path.read_text()
    path.write_text(json.dumps({**done, "made_from": {"score": "another"}}))
    assert main(["report", str(scored / "RUN")]) == 0
    section = page.read_text().partition('id="proof-panel"')[2].partition("</section>")[0]
    assert "the score stage was made anew" in section
    assert "<svg" not in section
    path.write_text(kept)


SHORT = ["--epochs", "0.5", "--rules", "hardest", "--extras", "whole"]


@pytest.fixture(scope="module")
def short(scored: Path) -> bytes:
    """A small study that nothing interrupted."""
    assert play(scored, *SHORT, name="WHOLE") == 0
    return (scored / "RUN" / "prove" / "prove.json").read_bytes()


def test_a_study_that_was_stopped_goes_on(
    scored: Path, short: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usual_run, made = Bench.run, list[Any]()

    def impatient(self: Bench, arm: Any) -> Any:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(arm)
        return usual_run(self, arm)

    monkeypatch.setattr(Bench, "run", impatient)
    assert play(scored, *SHORT, name="STOPPED") == 130
    assert len(list((scored / "STOPPED" / "arms").iterdir())) == 4  # no claim is left behind
    monkeypatch.setattr(Bench, "run", usual_run)
    capfd.readouterr()
    assert play(scored, *SHORT, name="STOPPED") == 0
    told = capfd.readouterr().err
    assert "3 arms were made before" in told  # and the one that the learning rate is chosen by
    assert "arm 5 of 11" in told
    assert (scored / "RUN" / "prove" / "prove.json").read_bytes() == short


def test_two_processes_share_the_arms(scored: Path, short: bytes) -> None:
    test = ["--test", f"garden={scored / 'test.jsonl'}", "--study", str(scored / "SHARED")]
    command = [sys.executable, "-m", "instruct_prune", "prove", str(scored / "RUN"), *QUICK, *test, *SHORT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(rank)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=300)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    made = [words.count(": loss ") for words in told]
    assert sum(made) == len(list((scored / "SHARED" / "arms").glob("*.json"))) == 6 + 2 + 1 + 2
    alone, shared = json.loads(short), found(scored)
    for one, other in zip(alone["arms"], shared["arms"], strict=True):
        assert one["losses"]["garden"]["per_token"] == pytest.approx(other["losses"]["garden"]["per_token"], abs=1e-4)


# ---- what the rules are ----


def test_the_runs_own_selection_is_the_rule_without_a_name(scored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["select", str(scored / "RUN"), "--keep", "20", "--method", "longest"]) == 0
    without = [word for word in QUICK if word not in ("--keep-tokens", "800")]
    words = ["--study", str(scored / "OWN"), "--epochs", "0.5", "--extras", "whole", "--rule-arms", "1"]
    assert main(["prove", str(scored / "RUN"), *without, *words]) == 0
    study = found(scored)
    assert list(study["tests"]) == ["held-out"]
    assert list(study["tests"]["held-out"]["rules"]) == ["selection"]
    own = next(arm for arm in study["arms"] if arm["kind"] == "rule")
    assert own["response_tokens"] == study["budget"]["response_tokens"]
    rows = json.loads(next((scored / "OWN" / "arms").glob("selection-0-*.json")).read_text())["row_ids"]
    assert set(rows) <= set(Run(scored / "RUN").selection.kept.tolist())
    assert len(rows) > 12  # all but those that are held out


def test_another_model_is_trained(
    scored: Path, tiny_llama: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tiny_llama(initializer_range=0.03).save_pretrained(other)
    tiny_tokenizer.save_pretrained(other)
    assert play(scored, *SHORT, "--train-model", str(other), "--rule-arms", "1", name="OTHER") == 0
    study = found(scored)
    assert study["model"]["name"] == str(other)
    assert study["scoring_model"] != str(other)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rules", "hardes"], "unknown --rules 'hardes'. Did you mean 'hardest'?"),
        (["--rules", "hardest:los"], "los"),
        (["--rules", "targeted:rsd"], "rsd"),
        (["--rules", "targeted"], "has no target"),
        (["--rules", "oracle"], "write oracle:COLUMN=VALUE"),
        (["--rules", "oracle:source=nobody"], "There is: planted, usual"),
        (["--rules", "balanced:kind"], "--stratify kind: the data has no column"),
        (["--rules", "hardest", "hardest"], "--rules: one is named twice"),
        (["--rules", "hardest", "--random-arms", "5"], "--random-arms 5: at least 6"),
        (["--rules", "hardest", "--keep-tokens", "1000000"], "half of them at most"),
        (["--rules", "hardest", "--keep-tokens", "50"], "fewer than ten rows"),
        (["--rules", "hardest", "--budget-minutes", "0.001"], "six random arms and one arm of each rule"),
        (["--rules", "hardest", "--test", "nowhere.jsonl"], "--test nowhere.jsonl: there is no such file"),
        (["--rules", "hardest", "--test", "POOL"], "none of its 280 rows can judge: 280 repeat"),
        (["--rules", "hardest", "--train-model", "nothing-here"], "--train-model nothing-here: unknown model"),
    ],
)
def test_bad_input_is_told(scored: Path, words: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = [word.replace("POOL", str(scored / "pool.jsonl")) for word in words]
    before = sorted(scored.rglob("*.json"))
    assert main(["prove", str(scored / "RUN"), *QUICK, *words, "--study", str(scored / "NONE")]) == 2
    error = capfd.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert sorted(scored.rglob("*.json")) == before


def test_a_test_in_another_format_and_its_unusable_rows_are_told(
    scored: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    turns = [
        [{"role": "user", "content": f"Why {i}?"}, {"role": "assistant", "content": "Because."}] for i in range(12)
    ]
    rows = [{"messages": one} for one in turns] + [{"messages": turns[0][:1]}]
    (scored / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--rules", "hardest", "--test", str(scored / "turns.jsonl"), "--budget-minutes", "0.0001"]
    assert main(["prove", str(scored / "RUN"), *QUICK, *words, "--study", str(scored / "TURNS")]) == 2
    told = capfd.readouterr().err
    assert "WARNING: the test turns is in the format messages, the pool in alpaca" in told
    assert "note: 1 rows of the test turns cannot be used (" in told
    assert "Give --budget-minutes 1," in told


def test_a_selection_of_more_than_half_of_the_pool_is_refused_by_its_own_name(
    scored: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    at = QUICK.index("--keep-tokens")
    quick = [*QUICK[:at], *QUICK[at + 2 :]]
    assert main(["select", str(scored / "RUN"), "--keep", "90%", "--method", "random"]) == 0
    capfd.readouterr()
    assert main(["prove", str(scored / "RUN"), *quick, "--rules", "selection"]) == 2
    told = capfd.readouterr().err
    assert "the run's selection has tokens for an arm: " in told
    assert "Give --keep-tokens " in told
