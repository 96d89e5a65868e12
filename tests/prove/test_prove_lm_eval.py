"""`prove --lm-eval`: tasks of lm-evaluation-harness beside the loss; the library is replaced but for the last test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fake_lm_eval
import numpy as np
import pytest
import scipy.stats
from prove_runs import QUICK, planted, score_pool
from sample_rows import write_jsonl

from instruct_prune.cli import main
from instruct_prune.errors import InputError
from instruct_prune.prove.bench import Bench
from instruct_prune.prove.harness import Tasks

SHORT = [*QUICK, "--epochs", "0.5", "--rules", "hardest", "--extras", "whole"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return score_pool(tmp_path_factory.mktemp("prove-lm-eval"), tiny_model_folder)


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real" not in request.node.name:
        fake_lm_eval.install(monkeypatch)


def play(folder: Path, *words: str, name: str = "STUDY") -> int:
    return main(["prove", str(folder / "RUN"), *SHORT, "--study", str(folder / name), *words])


def found(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "RUN" / "prove" / "prove.json").read_text())
    return values


def test_each_task_and_metric_has_its_verdict(scored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert play(scored, "--lm-eval", "tea") == 0
    study, told = found(scored), capfd.readouterr()
    arms = {kind: [arm for arm in study["arms"] if arm["kind"] == kind] for kind in ("untrained", "random", "rule")}
    weights = {kind: [arm["lm_eval"]["tea"]["up"] for arm in some] for kind, some in arms.items()}
    assert weights["untrained"] == [0]
    assert len(set(weights["random"])) == 6
    by_metric = {each["metric"]: each for each in study["lm_eval"]["compared"]}
    assert list(by_metric) == ["up", "down", "drawn", "unsaid"]
    random, rule = np.asarray(weights["random"]), np.asarray(weights["rule"])
    t = (rule.mean() - random.mean()) / (random.std(ddof=1) * np.sqrt(1 / 2 + 1 / 6))
    p = 2 * scipy.stats.t.sf(abs(t), 5)
    for metric, sign in (("up", 1), ("down", -1)):
        of_rule = by_metric[metric]["rules"]["hardest"]
        assert by_metric[metric]["random"]["mean"] == pytest.approx(random.mean())
        assert by_metric[metric]["random"]["sd"] == pytest.approx(random.std(ddof=1))
        assert (of_rule["mean"], of_rule["difference"]) == pytest.approx((rule.mean(), rule.mean() - random.mean()))
        assert (of_rule["t"], of_rule["p"]) == pytest.approx((t, p))
        assert of_rule["rank"] == (sign * random > sign * rule.mean()).sum()
        words = {1: "better", -1: "worse"}[np.sign(t) * sign] if p < 0.05 else "cannot tell"
        assert of_rule["word"] == words
        assert f"tea {metric}{', lower is better' if sign < 0 else ''}: hardest: {of_rule['verdict']}." in told.out
    # Every arm has the same prompts and documents: what is drawn is drawn alike.
    assert by_metric["drawn"]["random"]["sd"] == 0
    assert "all random arms have the same number" in by_metric["drawn"]["rules"]["hardest"]["verdict"]
    assert "does not say whether higher is better" in by_metric["unsaid"]["rules"]["hardest"]["verdict"]
    assert study["lm_eval"]["left_out"] == ["tea sometimes,strict"]  # the untrained model has none
    assert "left out, because some arm has no number in it: tea sometimes,strict." in told.out
    assert "held-out 15 rows, tea 2 documents" in told.err
    assert told.err.count("note: lm_eval on tea: cut a prompt") == 1
    assert "a bar" not in told.err
    assert list(study["tests"]) == ["held-out"]


def test_the_same_again_asks_nothing_and_other_tasks_make_other_arms(
    scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert play(scored, "--lm-eval", "tea", name="AGAIN") == 0
    before = (scored / "RUN" / "prove" / "prove.json").read_bytes()
    asked = len(fake_lm_eval.CALLS)
    assert play(scored, "--lm-eval", "tea", name="AGAIN") == 0
    assert len(fake_lm_eval.CALLS) == asked
    assert (scored / "RUN" / "prove" / "prove.json").read_bytes() == before

    class Refused(Exception):
        pass

    def run(self: Bench, arm: Any) -> Any:
        raise Refused

    monkeypatch.setattr(Bench, "run", run)
    for words in ([], ["--lm-eval", "bread"]):
        with pytest.raises(Refused):
            play(scored, *words, name="AGAIN")


def test_the_report_shows_it(scored: Path) -> None:
    assert play(scored, "--lm-eval", "tea") == 0
    assert main(["report", str(scored / "RUN")]) == 0
    table = (scored / "RUN" / "report.html").read_text().partition('id="proof-tasks"')[2].partition("</section>")[0]
    assert "tea down, lower is better" in table
    line = table.partition(">hardest<")[2].partition("</tr>")[0]
    assert found(scored)["lm_eval"]["compared"][0]["rules"]["hardest"]["verdict"] in line
    assert "left out, because some arm has no number in it: tea sometimes,strict." in table


def test_a_group_has_one_number_or_those_of_its_tasks() -> None:
    for name, expected in (("meals", ["meals"]), ("kinds", ["bread", "tea"])):
        tasks = Tasks([name])
        tasks.load()
        assert list(tasks.directions) == expected
        assert tasks.documents == {"bread": 16, "tea": 2}
        assert tasks.directions[expected[0]] == fake_lm_eval.DIRECTIONS


def test_identity_is_that_of_what_is_asked() -> None:
    def identity(documents: list[str]) -> Any:
        tasks = Tasks(["tea"])
        tasks.load()
        tasks._tasks["tea"].eval_docs = documents
        return tasks.identity

    assert identity(["green"]) == identity(["green"])  # though addresses and places differ
    assert identity(["green"]) != identity(["white"])


def test_time_is_scaled_to_all_documents(monkeypatch: pytest.MonkeyPatch, tiny_llama: Any, tiny_tokenizer: Any) -> None:
    tasks = Tasks(["bread", "tea"])
    tasks.load()
    clock = iter([0.0, 3.0, 10.0, 11.0])  # three seconds for 8 of 16 documents, one for both of two
    monkeypatch.setattr("instruct_prune.prove.harness.time.monotonic", lambda: next(clock))
    assert tasks.seconds(tiny_llama(), tiny_tokenizer) == 3 * 2 + 1
    assert fake_lm_eval.CALLS == [(("bread", "tea"), 1), (("bread",), 8), (("tea",), 8)]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["bred"], "unknown --lm-eval 'bred'. Did you mean 'bread'?"),
        (["bred", "tee"], "- unknown --lm-eval 'tee'. Did you mean 'tea'?"),
        (["nowhere.yaml"], "--lm-eval nowhere.yaml: there is no such file"),
        (["far_away"], "cannot make this task: ConnectionError: Couldn't reach 'kitchen/far_away' on the Hub. Data are taken"),
        (["runs_code"], "runs_code runs code that the model writes"),
        (["pictures"], "pictures shows pictures or sounds"),
        (["meals", "tea"], "--lm-eval tea: the task tea is named twice"),
        (["tea", "tea"], "--lm-eval: one is named twice"),
    ],
)  # fmt: skip
def test_bad_input_is_told(scored: Path, names: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert play(scored, "--lm-eval", *names, name="NONE") == 2
    error = capfd.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert not (scored / "NONE").exists()


def test_a_library_that_is_missing_or_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_lm_eval.install(monkeypatch, manager=type("Old", (), {}))
    with pytest.raises(InputError, match=r"lm_eval 0.4.99 is too old, 0.4.12 or later is needed"):
        Tasks(["tea"]).load()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        InputError, match=r"--lm-eval needs lm-evaluation-harness: pip install 'instruct-prune\[lm-eval\]'"
    ):
        Tasks(["tea"]).load()
    Tasks([]).load()  # nobody asked for it


def test_a_real_task_of_ones_own(scored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    documents = [
        {"question": row["instruction"], "choices": [f" {row['output']}", " stone stone"], "gold": 0}
        for row in planted(20, start=900)
    ]
    write_jsonl(tmp_path / "bread.jsonl", documents)
    task = {
        "task": "bread", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "bread.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "gold",
        "doc_to_choice": "choices", "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "bread.yaml").write_text(json.dumps(task))
    assert play(scored, "--lm-eval", str(tmp_path / "bread.yaml"), name="REAL") == 0
    (acc,) = found(scored)["lm_eval"]["compared"]
    assert (acc["task"], acc["metric"], acc["higher_is_better"]) == ("bread", "acc", True)
    values = [arm["lm_eval"]["bread"]["acc"] for arm in found(scored)["arms"]]
    assert all(0 <= value <= 1 and (value * 20) == pytest.approx(round(value * 20)) for value in values)
    assert "bread 20 documents" in capfd.readouterr().err
