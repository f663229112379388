"""Every benchmark, started from a folder of its own with its smallest size: it runs and prints a figure."""

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import UserError
from loss import LOSSES

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = (
    "--env webshop --methods opd,sft --seeds 0 --samples 1 --collect 3 --out paper --flags "
    "'--steps 2 --episodes 2 --eval-every 2 --eval-games 2 --max-turns 2'")
PAIR = (
    "--student tiny-student --minutes 0.01 --warm 1 --games 2 --play '--max-turns 2 --max-response 16' "
    "--sft '--lr 1e-3 --episodes 2' --distil '--lr 1e-3 --episodes 2' --out pair")
NARROW = (
    "--shares 0 --seeds 0 --games 500 --teacher-steps 2 --eval-games 2 --out dial "
    "--flags '--steps 2 --eval-every 2 --eval-games 2 --episodes 2'")
RUN = f"--runs '{Path(__file__).resolve().parent}/data/run' --parts 2 --verbs 1"
FACTORS = (
    "--seeds 0 --only f2b,opd --out factors --flags '--steps 4 --eval-every 4 --eval-games 2 --episodes 2 "
    "--max-turns 4'")
SMALLEST = [  # name and options; a figure that the output must hold, as a pattern
    ("alfworld_step", "--games 1", r"\d\.\d+ s +\d\.\d+ s +\d+ x"),
    ("alfworld_experts", "--data generated --splits valid_seen --games 4",
     r"(?m)^\| valid_seen \| all \| 4 (\| 100\.0% ){3}\| 4 of 4 win \|$"),
    ("alfworld_levels", "generated --games 1", r"(?m)^\| receptacles \| 5\.0 "),
    ("alfworld_start", "--data generated --games 2", r"the next start: 2 tasks .* 0 of 2 games translated"),
    ("alfworld_same", "--data generated --games 1 --actions 3", r"1 games, 4 states: 0 differ"),
    ("scienceworld_step", "--steps 3 --tasks 1 --environments 2 --turns 2", r"ours \d+\.\d ms.* 0 differ"),
    ("webshop_envs", "--environments 1 2 --seconds 0.1", r"\d+ steps per second"),
    ("webshop_search", "--sizes 100 200 --queries 5", r"(?m)^200( \| [\d.,e+-]+){9}"),
    ("memory", "--worlds webshop --resets 3 --steps 3", r"3 resets: (\d+ ){4}MB\n.* 3 training steps: \d+"),
    ("paper_table", TINY, r"(?m)^\| SFT \(nll\) \| 1 \|.* rounds \|.*% \| – \| \d+ \|.* \|$"),
    ("mechanism", NARROW, r"(?m)^\| 0 (\| \d+ ){4}\| 1 \| [+-]\d+\.\d \| [+-]\d+\.\d \|$"),
    ("factors", FACTORS, r"(?m)^\| opd-tokens \| 1 \|.*\| [+-]\d+\.\d \| [+-]\d+\.\d \| [+-]\d+\.\d \|$"),
    ("gains", "", r"(?m)^\| WebShop (\| \d+ ){3}(\| [\d.]+ ){2}(\| [+-][\d.]+ \[.+\] ){3}\|$"),
    ("curves", f"--out '{BENCHMARKS.parent}/results/alfworld-k1' --level 10",
     r"(?m)^\| f2b-k1 \| 5 (\| [\d.]+ \(\d+–\d+\) ){6}\| 1\d\d .*\|$"),
    # Of go, go, open and take one does what was done before, two are go; an empty action has no verb.
    ("habits", RUN, r"\| go \|\n.*\n\| 1–2 \| 50 \| 25 \(1.0\) \| 50 \(2.5\) \|\n\| 3–4 \| 100 \| 0 \| 0 \|"),
    ("decode", "--size tiny", r"(?m)^ tiny +4 +64 +\d+\.\d\d .*\n.*the host alone.*\n.*, ratio \d+\.\d\d"),
    ("step_memory", "--student tiny --teacher tiny --batch-tokens 400 --length 400", r"gradients +0\.002 "),
    ("plan_pairs", "--pairs 1", r"(?m)^\| Qwen2.5-3B \+ Qwen2.5-7B (\| \d+\.\d · .*){2}(\| defaults ){3}\|$"),
    ("real_pair", PAIR, r"(?m)^\| student after f2b \|.*\| 2 \| 100\.0% \|.*\| \d+ \| \d+ \| \d+ \|$"),
    ("step_vs_peers", "--size tiny --ways ours --tokens 40 --turns 2", r"a row per turn to one row: \d+\.\d"),
    ("play_vs_generate", "--turns 2 --rows 2", r"ratio \d+\.\d, and \d+\.\d\d to the cache"),
]


SLOW = (
    "alfworld_experts", "alfworld_levels", "alfworld_start", "decode", "factors", "mechanism", "memory",
    "plan_pairs", "play_vs_generate", "real_pair", "scienceworld_step", "step_memory", "step_vs_peers")


def start(name, options, folder):
    """Status, output and errors of a benchmark that is started in `folder`, with its caches there."""
    variables = {**os.environ, "TCOD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    variables.pop("PYTHONPATH", None)
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *shlex.split(options)]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def case(name, *rest):
    """A benchmark's start, marked where it takes long."""
    return pytest.param(name, *rest, marks=[pytest.mark.slow] * (name in SLOW))


@pytest.mark.parametrize("name, options, figure", [case(*one) for one in SMALLEST])
def test_a_benchmark_runs_from_any_folder(name, options, figure, tmp_path):
    """A benchmark that finds its modules only in the repository, or not any more after they were renamed."""
    done = start(name, options, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(figure, done.stdout), done.stdout


def test_no_benchmark_is_forgotten():
    """A benchmark that nothing starts, until a reader does."""
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == {name for name, _, _ in SMALLEST}


@pytest.mark.parametrize("name", [name for name, _, _ in SMALLEST])
def test_the_help_says_how_to_start_it(name):
    """Help, which is the file's docstring, without the command that starts it."""
    text = (BENCHMARKS / f"{name}.py").read_text()
    assert f"python benchmarks/{name}.py" in ast.get_docstring(ast.parse(text))
    assert "__doc__" in text or "command(main, Args)" in text


def module(name):
    """A benchmark's module."""
    sys.path.insert(0, str(BENCHMARKS))
    found = importlib.import_module(name)
    sys.path.remove(str(BENCHMARKS))
    return found


@pytest.fixture(scope="module")
def paper_table():
    return module("paper_table")


def result(seed, *success, method="opd"):
    """A run's result: success after 0, 10, 20, ... steps, in ten games."""
    curve = []
    for i, share in enumerate(success):
        splits = dict(seen=dict(success=share, won=10 * share, games=10, rounds=5.0, invalid=0.0))
        who = "before" if i == 0 else "after"
        curve.append(dict(step=10 * i, eval={who: splits}, tokens=100 * i, kl=1.0))
    return dict(method=method, loss="reverse", seed=seed, fingerprint={}, curve=curve)


def test_differences_are_paired_by_seed(paper_table):
    """Means of different seeds subtracted from one another, normal quantiles for two seeds, a curve's mean
    that ignores where it was evaluated."""
    assert paper_table.interval([0.1, 0.2]) == "+15.0 [-48.5, 78.5]"  # 15 ± 12.706 · 7.071 / √2
    assert paper_table.interval([0.1, 0.2, 0.3]) == "+20.0 [-4.8, 44.8]"  # 20 ± 4.303 · 10 / √3
    assert paper_table.over_run(result(0, 0.0, 0.4, 0.5)) == pytest.approx((0.2 + 0.45) / 2)
    both = [result(0, 0.0, 0.4, 0.5), result(1, 0.0, 0.4, 0.9)]
    assert paper_table.quarter(both) == "+15.0"  # from step 15 to 20: 5 and 25 points
    found = {("opd", "reverse"): [result(0, 0.0, 0.2), result(1, 0.0, 0.6), result(2, 0.0, 0.9)],
             ("f2b", "reverse"): [result(1, 0.0, 0.7, method="f2b"), result(0, 0.0, 0.3, method="f2b")]}
    assert paper_table.against_opd(found, "f2b", "reverse") == ("+10.0 [10.0, 10.0]", "+5.0 [5.0, 5.0]")
    assert paper_table.against_opd(found, "opd", "reverse") == ("–", "–")


def test_steps_of_as_many_tokens():
    """The step before the tokens are reached; a run that never comes to them."""
    steps = [module("factors").steps_for(wanted, result(0, 0.0, 0.2, 0.3)) for wanted in (100, 101, 1000)]
    assert steps == [10, 20, 20]  # 0, 100 and 300 tokens after 0, 10 and 20 steps


def test_the_documents_say_what_was_found():
    """Results that were added, or made again, while README and docs/results.md go on with the old figures."""
    root, gains = BENCHMARKS.parent, module("gains")
    table = gains.table(gains.found())
    for name in ("results/table.md", "README.md", "docs/results.md"):
        assert table in (root / name).read_text(encoding="utf-8"), name


def test_gains_are_of_the_seeds_that_both_have(tmp_path):
    """A mean over other seeds than the difference beside it; success at equal steps given for that at equal
    tokens."""
    (tmp_path / "results").mkdir()
    for seed, method, success in ((0, "opd", 0.2), (0, "f2b", 0.4), (1, "opd", 0.4), (1, "f2b", 0.5),
                                  (2, "opd", 0.9)):
        made = result(seed, 0.0, success, method=method)
        made["curve"][-1]["tokens"] = {"opd": 100, "f2b": 50}[method]
        (tmp_path / "results" / f"{method}-reverse-{seed}.json").write_text(json.dumps(made))
    gains = module("gains")
    one = gains.Comparison("here", 0.386, *gains.pairs(str(tmp_path), "reverse"))
    # After 50 tokens F2B is at 0.4 and 0.5, OPD halfway to 0.2 and 0.4: 0.3 more, 0.15 over the 50.
    assert gains.row(one) == [
        "here", "39", "2", "10", "30.0", "45.0", "+15.0 [-48.5, 78.5]", "+7.5 [-24.3, 39.3]",
        "+15.0 [15.0, 15.0]"]


def test_a_curve_between_its_evaluations(tmp_path):
    """The evaluation after a level was reached given for the place where it was; a mean over fewer seeds than
    the line has; tokens counted from the evaluation before."""
    (tmp_path / "results").mkdir()
    runs = (0, "opd", (0.0, 0.2, 0.4)), (1, "opd", (0.0, 0.4)), (0, "f2b", (0.0, 0.5))
    for seed, method, success in runs:
        path = tmp_path / "results" / f"{method}-reverse-{seed}.json"
        path.write_text(json.dumps(result(seed, *success, method=method)))
    curves = module("curves")
    args = curves.Args(out=str(tmp_path), level=30, tokens=50)
    lines = curves.found(str(tmp_path))
    # 0, 100 and 300 tokens after 0, 10 and 20 steps.
    assert curves.figures(lines["opd"][0], "seen", args) == pytest.approx({
        "0": 0, "10": 20, "20": 40, "over the run": 20, "steps to 30 %": 15, "tokens to 30 %": 200,
        "after 50 tokens": 10})
    assert curves.table(lines, "seen", args).splitlines()[2:] == [
        "| f2b | 1 | 0.0 | 50.0 | 25.0 | 6.0 | 60.0 | 25.0 |",
        "| opd | 2 | 0.0 (0–0) | 30.0 (20–40) | 20.0 (20–20) | 11.2 (8–15) | 138 (75–200) | 15.0 (10–20) |",
        "| f2b − opd | 1 | +0.0 | +30.0 | +5.0 | -9.0 | -140.0 | +15.0 |"]
    with pytest.raises(UserError, match="no results"):
        curves.found(str(tmp_path / "none"))


def test_curves_of_several_comparisons(tmp_path):
    """A method that takes the place of another in the same folder; runs from two teachers in one table."""
    made = [result(0, 0.0, 0.2), result(0, 0.0, 0.3, method="f2b"), result(0, 0.0, 0.4, method="f2b")]
    for folder, one in zip(("both", "both", "alone"), made):
        (tmp_path / folder / "results").mkdir(parents=True, exist_ok=True)
        path = tmp_path / folder / "results" / f"{one['method']}-reverse-0.json"
        path.write_text(json.dumps(one))
    curves = module("curves")
    lines = curves.found(str(tmp_path))
    assert lines == {"alone": {0: made[2]}, "both/f2b": {0: made[1]}, "both/opd": {0: made[0]}}
    assert set(curves.found(str(tmp_path / "both"))) == {"f2b", "opd"}
    path.write_text(json.dumps({**made[2], "fingerprint": {"teacher": "another"}}))
    with pytest.raises(UserError, match="had another teacher"):
        curves.found(str(tmp_path))


def test_a_collection_that_was_cut_short_is_not_taken_for_a_whole_one(paper_table, tmp_path, monkeypatch):
    """The teacher's table grows with the collection: that it is there does not say that all was played."""
    (tmp_path / "teacher.json").write_text("{}")
    told = []
    monkeypatch.setattr(paper_table, "start", lambda program, flags, screen: told.append((program, flags)))
    paper_table.collect(paper_table.Args(out=str(tmp_path), samples=4))
    assert [program for program, _ in told] == ["eval.py"]
    assert told[0][1][told[0][1].index("--samples") + 1] == "4"


def test_the_losses_are_those_of_the_project(paper_table):
    """A loss that the table cannot be asked for: the list stands there so that drawing needs no torch."""
    assert {*paper_table.LOSSES, "nll"} == set(LOSSES)


def test_a_found_result_counts_only_for_what_was_asked(paper_table, tmp_path):
    """Results of other models drawn into one table; a longer run that is begun again, another one that is
    gone on with."""
    flags = ["--lr", "1e-3", "--steps", "20"]
    assert paper_table.lengthened(flags, [*flags[:3], "40"]) == 40
    assert paper_table.lengthened(flags, [*flags[:3], "10"]) is None
    assert paper_table.lengthened(flags, ["--lr", "1e-4", "--steps", "40"]) is None
    (tmp_path / "results").mkdir()
    for seed, teacher in ((0, "aa"), (1, "bb")):
        one = {**result(seed, 0.0, 0.2), "fingerprint": {"teacher": teacher}}
        (tmp_path / "results" / f"opd-reverse-{seed}.json").write_text(json.dumps(one))
    args = paper_table.Args(methods="opd", seeds="0,1", out=str(tmp_path))
    with pytest.raises(UserError, match="opd reverse 1 had another teacher"):
        paper_table.results(args)
    args = paper_table.Args(methods="opd,sft", seeds="0", out=str(tmp_path))
    assert list(paper_table.results(args)) == [("opd", "reverse")]
