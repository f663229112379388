"""The studies: what is run and refused, differences and intervals by hand, the tables of what is kept."""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import warm

import eval as evaluation
import methods
import plot
import tcod
from harness.cli import UserError, parse
from harness.folder import append, read_log, write_json
from harness.report import over_seeds
from loss import LOSSES

STUDIES = Path(__file__).resolve().parent.parent / "studies"
RESULTS = STUDIES.parent / "results"


def module(name):
    """A study's module."""
    sys.path.insert(0, str(STUDIES))
    found = importlib.import_module(name)
    sys.path.remove(str(STUDIES))
    return found


compare, curves = module("compare"), module("curves")
differences, tables = module("differences"), module("tables")
found = differences.found


def result(seed, *success, method="opd", prints=(), args=(), **more):
    """A run's result: success after 0, 10, 20, ... steps, a share of ten games, or "0110": of each game."""
    curve = []
    for i, one in enumerate(success):
        games = len(one.replace("-", "")) if isinstance(one, str) else 10
        share = one.count("1") / games if isinstance(one, str) else one
        summary = dict(success=share, won=games * share, games=games, rounds=5.0, invalid=0.0)
        if isinstance(one, str):
            summary["each"] = one
        who = "after" if i else "before"
        curve.append(dict(step=10 * i, eval={who: dict(seen=summary)}, tokens=100 * i, kl=1.0))
    known = dict(args=dict(method=method, loss="reverse", **dict(args)), fingerprint=dict(prints))
    return dict(method=method, loss="reverse", seed=seed, asked=[], curve=curve, **known, **more)


def keep(folder, *results):
    """Write results as a comparison below `folder` leaves them."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(results):
        (folder / "results" / f"{one['method']}-{i}.json").write_text(json.dumps(one))


# ---- started as a user does

SMALL = "--steps 2 --episodes 2 --eval-every 2 --eval-games 2 --max-turns 2"


@pytest.mark.parametrize("name, options, figure", [
    ("compare", f"--lines 'a=--method opd --loss reverse' --seeds 3 --out c --flags '{SMALL}'",
     r"(?m)^\| a \| 1 \|.* rounds \|.*% \| \d.* → .* \| \d+ \|.* \|$"),
    ("bench", "--rows 2 --turns 2 --context 16 --length 64 --batch-tokens 64",
     r"ours is \d+\.\d times as fast(.|\n)*a token of all of them (.|\n)*gradients +0\.003 "),
])
def test_a_study_runs_from_any_folder(name, options, figure, tmp_path):
    """A study that finds its modules only in the repository, or not any more after they were renamed."""
    process = warm.start(STUDIES / f"{name}.py", shlex.split(options), tmp_path / "said", tmp_path)
    process.join()
    said = (tmp_path / "said").read_text()
    assert process.exitcode == 0 and re.search(figure, said), said


def test_a_comparison_that_is_stopped(tmp_path):
    """Its run goes on by itself, or is killed in the middle of a step; the next run begins."""
    flags = shlex.split("--lines opd f2b --seeds 0 --flags '--steps 500 --eval-every 0 --eval-games 2'")
    process = warm.start(STUDIES / "compare.py", [*flags, "--out", "c"], tmp_path / "said", tmp_path)
    log = tmp_path / "c/runs/opd-0/log.jsonl"
    while len(read_log(log)) < 2 and process.is_alive():
        time.sleep(0.1)
    process.terminate()
    process.join(60)
    assert process.exitcode == 143 and "stopped by SIGTERM" in (tmp_path / "said").read_text()
    assert re.search(r"step \d+ is kept", (tmp_path / "c/runs/opd-0.txt").read_text())
    assert not (tmp_path / "c/runs/f2b-0").exists()


COMMANDS = [path for path in sorted(STUDIES.glob("*.py")) if path.stem not in ("differences", "tables")]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_the_help_says_how_to_start_it(path):
    """Help, which is the file's docstring, without the command that starts it."""
    text = path.read_text(encoding="utf-8")
    assert f"python studies/{path.name}" in ast.get_docstring(ast.parse(text))
    assert "command(main, Args)" in text


# ---- what is asked for

def test_the_lines_are_tcods():
    """A line by a method, a loss or a flag that has another name by now: seen after hours of other runs; a
    knob of play that lines may differ in."""
    assert {*tables.LOSSES, "nll"} == set(LOSSES)
    for label, flags in tables.LINES.items():
        args = parse(tcod.Args, flags.split())
        assert args.method in methods.METHODS and args.loss in LOSSES, label
    assert set(methods.METHODS) <= {flags.split()[1] for flags in tables.LINES.values()}
    played = {field.name for field in fields(evaluation.PlayArgs)}  # told by fingerprints, or by the seed
    assert played - {"data", "prompt", "seed"} <= set(differences.EVALUATION)
    named = [label for study in tables.STUDIES.values() for label in getattr(study, "lines", ())]
    assert set(named) <= set(tables.LINES)


@pytest.mark.parametrize("asked, words", [
    (dict(lines=["f2c"]), "knows sft, opd, .*not 'f2c'"),
    (dict(lines=["opd", "opd"]), "each label once"),
    (dict(lines=["opd=--method f2b"]), "each label once"),
    (dict(lines=["a/b=--method f2b"]), "each label once"),
    (dict(lines=["opd", "opd-tokens"]), "opd-tokens wants opd and f2b"),
    (dict(lines=["opd"], study="gains"), "leave out --lines"),
    (dict(seeds="0,0"), "each once"),
    (dict(seeds="-1"), "whole numbers"),
    (dict(study="paper2"), "unknown --study"),
    (dict(flags="--lr 1e-4 --loss=k1"), "--flags cannot give --loss: that is for the comparison or"),
    (dict(flags="--seed 7 --plan 1 --lr 1"), "--flags cannot give --seed, --plan: "),
    (dict(flags="--resume a"), "cannot give --resume"),
    (dict(flags="--eval_splits a", experts="teacher"), "--flags cannot give --eval-splits"),
    (dict(lines=["a=--method f2b --teacher b"]), "--lines a cannot give --teacher: that is for the whole"),
    (dict(lines=["a=--method f2b --max-turns 5"]), "--lines a cannot give --max-turns"),
])
def test_what_cannot_be_asked(asked, words):
    """A line that stands under another's label, a flag that changes what a label says: runs of hours that
    are called what they are not."""
    with pytest.raises(UserError, match=words):
        compare.asked(compare.Args(**asked))


# ---- the runs

@pytest.fixture
def started(monkeypatch):
    """What is started, instead of starting it: [(program, flags)]. A run of tcod.py leaves a log of as many
    steps as it is told, 30 tokens each, 20 for f2b; a flag --fail ends it before."""
    told = []

    def run(program, flags, screen):
        told.append((program, flags))
        if "--fail" in flags:
            raise UserError("ended with status 2")
        if program == "tcod.py":
            args = {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2])}
            steps = int(args.get("steps", 10))
            os.makedirs(args["out"], exist_ok=True)
            write_json(os.path.join(args["out"], "args.json"), {**args, "fingerprint": {"student": "aa"}})
            log = [dict(step=n, tokens=20 if args["method"] == "f2b" else 30) for n in range(1, steps + 1)]
            if not os.path.exists(os.path.join(args["out"], "log.jsonl")):
                append(os.path.join(args["out"], "log.jsonl"), log)

    monkeypatch.setattr(compare, "start", run)
    return told


def test_seeds_are_outermost_and_what_is_done_is_not_done_again(started, tmp_path):
    """A comparison that is stopped early with all seeds of its first line alone; one that begins anew; a run
    that was asked for and failed, told as done; F2B's tokens of another seed."""
    args = compare.Args(out=str(tmp_path), seeds="1,0", flags="--lr 1")
    lines = compare.parse_lines(["opd-tokens", "f2b", "opd"])
    assert list(lines) == ["f2b", "opd", "opd-tokens"]  # that waits for the others
    compare.run_all(args, lines)
    folders = [os.path.relpath(flags[-1], tmp_path) for _, flags in started]
    assert folders == [f"runs/{label}-{seed}" for seed in "10" for label in lines]
    program, flags = started[2]
    assert (program, flags[-4:]) == ("tcod.py", ["--steps", "7", "--out", f"{tmp_path}/runs/opd-tokens-1"])
    kept = differences.read(tmp_path / "results" / "opd-tokens-1.json")
    assert (kept["label"], kept["method"], kept["seed"], len(kept["curve"])) == ("opd-tokens", "opd", 1, 7)
    assert kept["asked"] == flags[:-2] and "out" not in kept["args"]

    compare.run_all(args, lines)
    assert len(started) == 6
    one, path = compare.parse_lines(["f2b"]), tmp_path / "results" / "f2b-0.json"
    with pytest.raises(UserError, match="status 2"):
        compare.run_all(replace(args, seeds="0", flags="--fail now"), one)
    assert "--lr" in differences.read(path)["asked"]
    compare.run_all(replace(args, seeds="0", flags="--lr 2"), one)
    assert len(started) == 8  # other flags: tcod.py is asked, and says what differs


def test_the_teachers_own_episodes_and_the_hard_split(started, tmp_path, monkeypatch):
    """A collection that was cut short taken for a whole one, since its files are there; experts given to
    methods that learn from none; the hard split trained on."""
    for name in ("teacher.json", "experts.jsonl", "hard.jsonl"):
        (tmp_path / name).write_text("{}\n")
    args = compare.Args(out=str(tmp_path), samples=4, experts="teacher", seeds="0")
    compare.run_all(args, compare.parse_lines(["b2f", "opd"]))
    (first, collected), (_, b2f), (_, opd) = started
    assert first == "eval.py" and collected[collected.index("--samples") + 1] == "4"
    assert b2f[b2f.index("--experts") + 1] == f"{tmp_path}/experts.jsonl" and "--experts" not in opd
    for flags in (b2f, opd):
        assert flags[flags.index("--without") + 1] == f"{tmp_path}/hard.jsonl"
        splits = flags[flags.index("--eval-splits") + 1].split(",")
        assert splits == ["valid_seen", "valid_unseen", f"hard={tmp_path}/hard.jsonl"]
    (tmp_path / "hard.jsonl").write_text("")
    assert compare.collect(args) == []


def test_the_teacher_that_collects_plays_as_the_runs_do(started, tmp_path):
    """Experts and a hard split of another prompt, history, horizon or list of tasks than the runs'; the
    student's own presets unknown to it."""
    (tmp_path / "hard.jsonl").write_text("{}\n")
    (tmp_path / "some.ids").write_text("train/0")
    args = compare.Args(
        out=str(tmp_path), experts="teacher",
        flags=f"--prompt react --max_turns=6 --history window:2 --steps 1 --train-split {tmp_path}/some.ids")
    compare.collect(args)
    (_, flags), = started
    own = parse(evaluation.Args, flags)
    asked = parse(tcod.Args, [*compare.played_on(args), "--student", args.student, *shlex.split(args.flags)])
    tcod.resolve(asked)
    assert (own.max_turns, own.history, own.prompt) == (6, "window:2", "react")
    assert {f.name: getattr(own, f.name) for f in fields(evaluation.PlayArgs)} == {
        f.name: getattr(asked, f.name) for f in fields(evaluation.PlayArgs)}
    assert (own.split, own.model, own.temperature) == (f"{tmp_path}/some.ids", "tiny-teacher", 1.0)


# ---- figures by hand

def test_differences_are_paired_by_seed():
    """Means of different seeds subtracted from one another, normal quantiles for two seeds, a curve's mean
    that ignores where it was evaluated."""
    assert over_seeds([0.1, 0.2]) == pytest.approx((0.15, 0.6353), abs=1e-4)  # 12.706 · 0.07071 / √2
    assert over_seeds([0.1, 0.2, 0.3]) == pytest.approx((0.2, 0.2484), abs=1e-4)  # 4.303 · 0.1 / √3
    assert differences.interval(0.15, 0.2) == "+15.0 [-5.0, 35.0]"
    assert differences.interval(-0.0001, np.nan) == "+0.0"
    assert differences.over_run(result(0, 0.0, 0.4, 0.5)) == pytest.approx([(0.2 + 0.45) / 2])
    both = [result(0, 0.0, 0.4, 0.5), result(1, 0.0, 0.4, 0.9)]
    assert tables.quarter(both) == "+15.0"  # from step 15 to 20: 5 and 25 points
    opd = [result(0, 0.0, 0.2), result(1, 0.0, 0.6), result(2, 0.0, 0.9)]
    f2b = [result(1, 0.0, 0.7, method="f2b"), result(0, 0.0, 0.3, method="f2b")]
    each = differences.differences(f2b, opd)
    assert (each["end"][0], each["over the run"][0]) == pytest.approx((0.1, 0.05))
    assert differences.differences(f2b, opd[2:]) == {}


def test_seeds_that_agree_do_not_make_a_difference_certain():
    """Three seeds with the same difference of one game in ten printed as -10.0 [-10.0, -10.0]; all games won
    by both printed as a difference of nothing, for certain."""
    runs = [[result(seed, 0.0, share, method=method) for seed in range(3)]
            for method, share in (("f2b", 0.6), ("opd", 0.7))]
    # Two more games each: 19/32 and 22/32; √(0.59 · 0.41 / 32 + 0.69 · 0.31 / 32) = 0.1195, times 1.96.
    assert differences.differences(*runs)["end"] == pytest.approx((-0.1, 0.2340), abs=1e-4)
    runs = [[result(seed, "0000", letters) for seed in range(3)] for letters in ("1111", "1111")]
    # A game more for each side: 1, -1 and four times 0: √(2/6 / 6) = 0.2357.
    assert differences.differences(*runs)["end"] == pytest.approx((0, 1.96 * 0.2357), abs=1e-4)


def test_games_are_paired_where_they_are_known():
    """Outcomes of other games subtracted, a game that cannot be played taken as lost, a run of an older
    version beside a newer one."""
    ours = [result(0, "0000-", "1110-"), result(1, "0000-", "1100-")]
    theirs = [result(0, "0000-", "1000-"), result(1, "0000-", "0100-")]
    end = differences.differences(ours, theirs)["end"]
    # By seed 2/4 and 1/4: 0.375 ± 12.706 · 0.125; by game 0.5, 0.5, 0.5, 0 and 1, -1 come to less.
    assert end == pytest.approx((0.375, 1.5883), abs=1e-4)
    run = differences.differences(ours, theirs)["over the run"]
    assert run == pytest.approx((0.1875, 0.7941), abs=1e-4)
    older = [result(0, 0.0, 0.2), result(1, 0.0, 0.2)]
    assert differences.differences(ours, older)["end"][0] == pytest.approx((0.75 + 0.5) / 2 - 0.2)
    assert tables.success_cell([differences.last(one)["seen"] for one in ours]) == (
        "62.5 [24–90] (50–75), 5.0 rounds")  # four games are worth 4.83: by hand


def test_each_line_has_its_base():
    """F2B by forward KL less OPD by reverse; a factor compared with whatever comes first."""
    def line(method, loss):
        return [dict(method=method, loss=loss)]

    lines = {"sft": line("sft", "nll"), "opd": line("opd", "reverse"), "opd-k1": line("opd", "k1"),
             "f2b-k1": line("f2b", "k1"), "f2b-jsd": line("f2b", "jsd"), "slow": line("f2b", "reverse")}
    paper, factors = tables.STUDIES["paper"], tables.STUDIES["factors"]
    assert [tables.base_of(lines, label, paper) for label in lines] == [
        "opd", "opd", "opd-k1", "opd-k1", None, "opd"]
    assert tables.base_of(lines, "opd", factors) is None
    assert tables.base_of({**lines, "f2b": line("f2b", "reverse")}, "f2b-k1", factors) == "f2b"
    headings = [tables.heading(label, each[0], paper) for label, each in lines.items()]
    assert headings[2:4] == ["OPD (k1)", "F2B (k1)"] and headings[-1] == "slow"


def test_steps_of_as_many_tokens():
    """The step before the tokens are reached; a run that never comes to them."""
    steps = [compare.steps_for(wanted, result(0, 0.0, 0.2, 0.3)) for wanted in (100, 101, 1000)]
    assert steps == [10, 20, 20]  # 0, 100 and 300 tokens after 0, 10 and 20 steps


def test_what_the_teacher_was_asked_for_by_hand():
    """Tokens that it drew and that are scored by the same pass counted twice; those that it drew and are read
    again counted once; answers that it read and dropped forgotten, or an older result of such a method taken
    at its word; a run without a teacher that asks for any; an older result that asked for none, though its
    method asks for what it trains."""
    guided = [dict(step=0), dict(step=1, kl=2.0, tokens=10, teacher_tokens=4, judged=0),
              dict(step=2, kl=1.0, tokens=20, teacher_tokens=6, judged=0)]
    old = [dict(step=1, kl=2.0, tokens=10, teacher_tokens=4, judged=3)]
    uopd = [{**old[0], "dropped_tokens": 5}]
    sft = [dict(step=1, kl=None, tokens=10, teacher_tokens=0, judged=0)]
    assert differences.asked_until(guided) == {0: 0, 1: 14, 2: 40}
    assert differences.asked_until(uopd) == {1: 15} and differences.asked_until(sft) == {1: 0}
    older = [dict(step=1, kl=1.0, tokens=7), dict(step=2, kl=1.0, tokens=8)]
    runs = [dict(method=method, curve=curve) for method, curve in (
        ("guided", guided), ("sft", sft), ("uopd", uopd), ("uopd", old), ("guided", older), ("f2b", older))]
    assert list(map(differences.asked_of_teacher, runs)) == [40, 0, 15, None, None, 15]


def test_training_by_quarter_by_hand():
    """A quarter that is cut elsewhere, a share that is no percentage, a replayed turn's KL taken for 0, a
    line without a teacher; of the first steps, others or all of them, and no success taken for 0."""
    steps = [dict(step=i, repeats=i / 100, invalid=0.5, kl=1.0, kl_turn=[None, 2.0 * i, 4.0 * i])
             for i in range(1, 9)]
    played = tables.went([dict(curve=[dict(step=0), *steps])], "opd", tables.STUDIES["field"])
    assert list(played.values()) == [
        "opd", "1.5 · 3.5 · 5.5 · 7.5", "50.0 · 50.0 · 50.0 · 50.0", "4.5 · 10.5 · 16.5 · 22.5"]
    for change, columns in ((dict(kl_turn=[None]), 3), (dict(), 4)):
        alone = [{**record, **change} for record in steps[:2]]  # fewer steps than quarters
        assert len(tables.went([dict(curve=alone)], "sft", tables.STUDIES["field"])) == columns
    first = [{**record, "success": won} for record, won in zip(steps, (0.5, 0, 0, 1, 1, 1, 1, 1))]
    alone = [{**record, "success": None} for record in steps]  # where winning says nothing
    text = curves.played({"opd": [dict(curve=first)], "reopd": [dict(curve=alone)]}, 5)
    assert text.splitlines()[2].startswith("| opd | 50.0 · 0.0 · 0.0 · 100.0 · 100.0 | 1.0 · 2.0 · 3.0 ·")
    assert text.splitlines()[3].startswith("| reopd | – | 1.0 · 2.0 · 3.0 · 4.0 · 5.0 |")
    del steps[0]["repeats"]
    assert list(tables.went([dict(curve=steps)], "old", tables.STUDIES["field"]).values()) == ["old"]


def test_success_over_what_both_have_asked_for():
    """Runs set side by side where one alone has come so far."""
    one, other = result(0, 0.0, 0.2, 0.3), result(0, 0.0, 0.4)
    for made, each in ((one, (0, 50, 50)), (other, (0, 200))):
        for record, asked in zip([r for r in made["curve"] if "eval" in r], each):
            record.update(tokens=asked, teacher_tokens=0, kl=1.0)
    height, theirs = differences.over_both(differences.asked_until, one, other)
    assert height == pytest.approx(0.5 * 0.1 + 0.5 * 0.25)  # to 100: 0 to 0.2 at 50, then to 0.3
    assert theirs == pytest.approx(0.1)                     # 0 to 0.4 at 200, so 0.2 at 100


def test_gains_are_of_the_seeds_that_both_have(tmp_path):
    """A mean over other seeds than the difference beside it; success at equal steps given for that at equal
    tokens."""
    for seed, method, success in ((0, "opd", 0.2), (0, "f2b", 0.4), (1, "opd", 0.4), (1, "f2b", 0.5),
                                  (2, "opd", 0.9)):
        made = result(seed, 0.0, success, method=method)
        made["curve"][-1]["tokens"] = {"opd": 100, "f2b": 50}[method]
        (tmp_path / "a" / "results").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / "results" / f"{method}-{seed}.json").write_text(json.dumps(made))
    (tmp_path / "take_over.json").write_text(json.dumps(dict(take_over=[dict(n=6, success=0.386)])))
    one = tables.gain(str(tmp_path), "here", "reverse", "a", ".")
    # After 50 tokens F2B is at 0.4 and 0.5, OPD halfway to 0.2 and 0.4: 0.3 more, 0.15 over the 50.
    assert list(tables.gain_cells(one).values()) == [
        "here", "39", "2", "10", "30.0", "45.0", "+15.0 [-54.6, 84.6]", "+7.5 [-32.5, 47.5]",
        "+15.0 [-7.4, 37.4]"]
    with pytest.raises(UserError, match="no seed of both OPD and F2B by k1"):
        tables.gain(str(tmp_path), "here", "k1", "a", ".")


def test_a_curve_between_its_evaluations(tmp_path):
    """The evaluation after a level was reached given for the place where it was; a mean over fewer seeds than
    the line has; tokens counted from the evaluation before."""
    keep(tmp_path, result(0, 0.0, 0.2, 0.4), result(1, 0.0, 0.4), result(0, 0.0, 0.5, method="f2b"))
    args = curves.Args(out=str(tmp_path), level=30, tokens=50)
    lines = found(str(tmp_path))
    # 0, 100 and 300 tokens after 0, 10 and 20 steps: over F2B's 100 it has 0.25, OPD 0.1.
    figures = curves.figures(lines["opd"][0], "seen", args)
    assert {name: np.mean(figure) for name, figure in figures.items()} == pytest.approx({
        "0": 0, "10": 0.2, "20": 0.4, "over the run": 0.2, "steps to 30 %": 15, "tokens to 30 %": 200,
        "after 50 tokens": 0.1})
    assert curves.table(lines, "seen", args).splitlines()[2:] == [
        "| f2b | 1 | 0.0 | 50.0 | 25.0 | 6.0 | 60.0 | 25.0 | – | – |",
        "| opd | 2 | 0.0 (0–0) | 30.0 (20–40) | 20.0 (20–20) | 11.2 (8–15) | 138 (75–200) | 15.0 (10–20)"
        " | – | – |",
        "| f2b − opd | 1 | +0.0 | +30.0 | +5.0 | -9.0 | -140.0 | +15.0 | +15.0 | +15.0 |"]
    keep(tmp_path / "more", result(0, "0000", "1100"), result(1, "0000", "1110"),
         *(result(seed, "0000", "1000", method="f2b") for seed in (0, 1)))
    text = curves.table(found(str(tmp_path / "more")), "seen", curves.Args())
    assert text.splitlines()[-1] == (  # 12.706 · 12.5 is more than what the games make
        "| f2b − opd | 2 | +0.0 [-46.2, 46.2] | -37.5 [-196.3, 121.3]" + 3 * " | -18.8 [-98.2, 60.7]" + " |")


# ---- what is kept

def test_results_of_several_comparisons(tmp_path):
    """A method that takes the place of another in the same folder; what a line was called forgotten; a line
    of one comparison taken for seeds of another's of the same name."""
    made = [result(0, 0.0, 0.2), result(0, 0.0, 0.3, method="f2b"), result(0, 0.0, 0.4, method="f2b")]
    keep(tmp_path / "both", *made[:2])
    keep(tmp_path / "alone", made[2])
    assert found(str(tmp_path)) == {"alone": [made[2]], "both/f2b": [made[1]], "both/opd": [made[0]]}
    assert set(found(str(tmp_path / "both"))) == {"f2b", "opd"}
    keep(tmp_path / "both", made[0], made[1], {**made[2], "label": "slow"})
    assert set(found(str(tmp_path / "both"))) == {"f2b", "opd", "slow"}
    keep(tmp_path, {**made[0], "label": "alone"})
    assert set(found(str(tmp_path))) == {"./alone", "alone/f2b", "both/f2b", "both/opd", "both/slow"}
    with pytest.raises(UserError, match="no results"):
        found(str(tmp_path / "none"))


@pytest.mark.parametrize("seed, method, other, words", [
    (2, "f2b", dict(lr=2.0), "f2b with seed 2 had another lr than"),
    (2, "f2b", dict(steps=9), "another steps"),
    (0, "b2f", dict(eval_temperature=1.0), "with seed 0 had another eval_temperature"),
    (0, "b2f", dict(max_turns=50), "another max_turns"),
    (0, "b2f", dict(history="window:1"), "another history"),
    (0, "b2f", dict(prints={"teacher": "b"}), "another teacher"),
    (0, "b2f", dict(prints={"teacher": "a", "list of seen tasks": "b"}), "another list of seen tasks"),
    (2, "f2b", dict(prints={"teacher": "a", "list of training tasks": "b"}), "list of training tasks"),
    (1, "f2b", dict(), "f2b with seed 1 twice"),
    (0, "b2f", dict(lr=2.0, steps=9, prints={"teacher": "a", "list of training tasks": "b"}), ""),
    (0, "b2f", dict(save_every=1, date="then"), ""),
])
def test_what_cannot_stand_in_one_table(seed, method, other, words, tmp_path):
    """A run of another learning rate, teacher or evaluation averaged as a seed, or set beside one; what
    lines may differ in not told, or refused."""
    usual = dict(lr=1.0, steps=10, max_turns=20, history="full")
    prints = dict.fromkeys(("teacher", "list of seen tasks", "list of training tasks"), "a")
    made = [result(seed, 0.0, 0.5, method=name, prints=prints, args=usual)
            for name in ("opd", "f2b") for seed in (0, 1)]
    prints = other.pop("prints", prints)
    keep(tmp_path, *made, result(seed, 0.0, 0.9, method=method, prints=prints, args={**usual, **other}))
    args = compare.Args(draw=True, out=str(tmp_path))
    if words:
        with pytest.raises(UserError, match=words):
            found(str(tmp_path))
    else:
        text, _ = compare.drawn(args, compare.asked(args))
        assert ("note: the lines differ in list of training tasks (a, b), lr (1.0, 2.0), steps (10, 9) too"
                in text) == ("lr" in other)


def test_a_run_that_lies_twice_counts_once(tmp_path):
    """A comparison behind a link left out, or counted twice; a folder in itself without an end; a companion
    file of a Mac, or one that is no result, as a traceback."""
    keep(tmp_path / "f2b", result(0, 0.0, 0.3, method="f2b"))
    keep(tmp_path / "elsewhere" / "opd", result(0, 0.0, 0.2))
    one = tmp_path / "one"
    one.mkdir()
    for name, place in (("opd", "elsewhere/opd"), ("f2b", "f2b"), ("again", "f2b"), ("self", "one")):
        (one / name).symlink_to(tmp_path / place)
    for name in (".DS_Store", "._opd-0.json", "opd-0.json.tmp"):
        (tmp_path / "f2b" / "results" / name).write_bytes(b"\0\0\xff")
    (tmp_path / "f2b" / "results" / "f2b-1.json").symlink_to("f2b-0.json")
    assert {label: len(each) for label, each in found(f"{one}/").items()} == {"again": 1, "opd": 1}
    (tmp_path / "f2b" / "results" / "a.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match="a.json is no result of a run"):
        found(str(one))
    with pytest.raises(UserError, match="cannot stand in one table"):
        found(str(RESULTS))


def test_splits_called_as_columns_are(tmp_path):
    """A split whose name is a column's, or has a bar in it, and takes its place."""
    made = result(0, 0.0, 0.2)
    for record in made["curve"]:
        for who, splits in record["eval"].items():
            record["eval"][who] = {name: splits["seen"] for name in ("seeds", "over the run", "a|b")}
    keep(tmp_path, made)
    args = compare.Args(draw=True, out=str(tmp_path))
    head, _, _, row = compare.drawn(args, compare.asked(args))[0].splitlines()
    assert head.startswith("|  | seeds | seeds, % | over the run, % | a\\|b, % | invalid |")
    assert row.startswith("| OPD (reverse) | 1 | 20.0 [6–51], 5.0 rounds |") and "| 10.0 | +5.0 |" in row
    assert "| opd | 1 | 0.0 | 20.0 | 10.0 |" in curves.table(
        found(str(tmp_path)), "seeds", curves.Args())


def test_models_that_are_not_trained_by_hand():
    """One seed's evaluation of them taken for all, or a run's without one for a defeat."""
    runs = [result(0, 0.1, 0.2), result(1, 0.3, 0.2)]
    (student,) = tables.zero_shot([*runs, dict(curve=[])], ["seen"])
    assert student["seeds"] == "2" and student["seen, %"].startswith("20.0 [")
    assert student["seen, %"].endswith("(10–30), 5.0 rounds")


def test_only_the_lines_that_are_asked_for_are_drawn(tmp_path):
    """A line that --lines leaves out, or a word without one, drawn all the same."""
    keep(tmp_path, result(0, 0.0, 0.2), result(0, 0.0, 0.3, method="f2b"))
    args = compare.Args(draw=True, out=str(tmp_path), lines=["f2b"])
    text, _ = compare.drawn(args, compare.asked(args))
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| student", "| F2B (reverse)"]
    args.lines = ["sft"]
    with pytest.raises(UserError, match="no evaluated run of --lines sft"):
        compare.drawn(args, compare.asked(args))


KEPT = sorted(path.parent for path in RESULTS.glob("*/table.md")) + [RESULTS]
STUDY = {"factors": "factors", "results": "gains", "field": "field",
         "field-broad": "field", "webshop-field": "field", "scienceworld-field": "field",
         "smollm2-field": "field", "methods": "methods", "support": "support"}


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_the_tables_say_what_was_found(folder, monkeypatch):
    """Results that were added, made again or counted otherwise, while tables and documents go on with the old
    figures."""
    monkeypatch.setattr(plot, "draw", lambda *groups, **more: None)  # seconds
    args = compare.Args(draw=True, out=str(folder), study=STUDY.get(folder.name, "paper"))
    text, _ = compare.drawn(args, compare.asked(args))
    assert text == (folder / "table.md").read_text(encoding="utf-8")
    if folder.name == "methods":
        page = (RESULTS.parent / "docs" / "results.md").read_text(encoding="utf-8")
        shown, rest = text.split("\n\n", 1)
        assert shown in page and rest in page
        told = (RESULTS.parent / "docs" / "methods.md").read_text(encoding="utf-8")
        first = rest.split("\n\n")[0].splitlines()     # at equal steps
        rows = {cells[1].strip(): cells for cells in (line.split("|") for line in first)}
        for name in ("uopd", "turnopd", "stride", "stride-restart", "reopd", "frontier", "sod", "opd-near"):
            here = " · ".join(rows[name][i].split(", ", 1)[1].strip() for i in (2, 4, 5)) + " |"
            method = name.replace("opd-near", "--loss jsd --beta 0.2")
            assert re.search(rf"^\| `{method}` .*{re.escape(here)}$", told, re.M), name
    if folder.name == "support":
        told = (RESULTS.parent / "docs" / "results.md").read_text(encoding="utf-8")
        _, steps, trained, _ = text.split("\n\n")
        steps = re.sub(r"[\d.]+ \(3 seeds\), ", "", steps)     # less OPD alone
        for row in (*steps.splitlines()[3:], *trained.splitlines()[2:]):    # behind OPD's own
            assert row.split("|", 2)[2] in told, row
    if folder == RESULTS:
        assert text in (RESULTS.parent / "docs" / "results.md").read_text(encoding="utf-8")
        shown = [line for line in (RESULTS.parent / "README.md").read_text(encoding="utf-8").splitlines()
                 if line.startswith(("| ALFWorld", "| small ALFWorld", "| WebShop", "| ScienceWorld"))]
        assert len(shown) == 4 and set(shown) <= set(text.splitlines())


def test_comparisons_side_by_side(tmp_path, monkeypatch):
    """A line that one of the comparisons lacks, put beside another's cells or in front of the others; tokens
    that the teacher drew counted for nothing; a comparison without OPD; a gain over another teacher's
    support."""
    opd, uopd = result(0, 0.1, 0.2), result(0, 0.1, 0.6, method="uopd")
    for each, drawn in ((opd, 0), (uopd, 100)):
        each["curve"][1].update(teacher_tokens=drawn, judged=0)
    keep(tmp_path / "a", opd, uopd)
    keep(tmp_path / "b", result(0, 0.1, 0.2), result(0, 0.1, 0.4, method="uopd"),
         result(0, 0.1, 0.9, method="sod"))
    study = tables.Beside({"A": "../a", "B": "../b"})
    monkeypatch.setitem(tables.STUDIES, "methods", study)
    args = compare.Args(draw=True, out=str(tmp_path / "methods"), study="methods")
    text, figure = compare.drawn(args, compare.asked(args))
    (tmp_path / "methods").mkdir()
    compare.main(replace(args, draw=False))  # nothing is run
    assert (tmp_path / "methods" / "table.md").read_text() == text
    shown, steps, trained, asked = (
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()[2:]]
        for part in text.split("\n\n"))
    ((_, *cells),) = shown      # SOD is none of those that one reads first
    assert cells == ["+20 ?", "+10 ?", "+40 ?", "100", "200"]   # in A as many were drawn as are trained
    assert [tables.told_apart(*ends) for ends in ((0.17, 0.1), (-0.004, 0.1))] == ["+17", "0 ?"]
    assert steps == [
        ["opd", "20.0 (1 seed)", "20.0 (1 seed)"],
        ["uopd", "60.0 (1 seed), +20.0", "40.0 (1 seed), +10.0"],
        ["sod", "–", "90.0 (1 seed), +35.0"]]
    assert trained == [["uopd", "+20.0", "+10.0"], ["sod", "–", "+35.0"]]
    assert asked == [["uopd", "+7.5", "–"]]     # after 100 of its 200 UOPD is at 0.35: 0.225 less 0.15
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["trains on others' turns", "uopd", "weighs turns", "sod"]

    for folder, won in (("a", 0.9), ("b", 0.4)):
        tested = [{"n": n, "success": won if n == 6 else 1.0} for n in tables.TURNS]
        (tmp_path / folder / "take_over.json").write_text(json.dumps({"take_over": tested}))
    text, figure = compare.drawn(args, study._replace(lines=("opd", "uopd"), support="mixed"))
    assert "| mixed | A | B |" in text and "sod" not in text
    assert "| teacher after 6 student turns | 90 | 40 |" in text
    points, _, _ = figure.axes[0].containers[0]     # over the run
    assert points.get_xydata() == pytest.approx(np.array([[40, 10], [90, 20]]))

    shutil.rmtree(tmp_path / "a")
    keep(tmp_path / "a", result(0, 0.1, 0.6, method="uopd"))
    with pytest.raises(UserError, match="A: there is no opd"):
        compare.drawn(args, study)


def test_a_line_has_the_colour_of_what_it_changes():
    """A line that begins like another's name: the blend of a method that ends early, the frontier with guided
    turns, a restart; a fork's own line taken for one of them."""
    ideas = [*tables.IDEAS, "other"]
    said = [ideas[tables.idea_of(label)].split()[0] for label in (
        "turnopd-depth", "turnopd-blend", "frontier-random", "frontier-guided", "stride-restart", "slow")]
    assert said == ["ends", "weighs", "weighs", "trains", "starts", "other"]
    known = [label for label in tables.FIELD.lines if tables.idea_of(label) == len(tables.IDEAS)]
    assert known == ["opd"]


# ---- signals

def test_an_auc_by_hand():
    """The other way round; ties that count as won."""
    signals = module("signals")
    values, positive = np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])
    assert signals.auc(values, positive) == (2 + 1.5) / 4
    assert np.isnan(signals.auc(values, positive | True))
    assert signals.auc_cell(values, positive & False, np.arange(4)) == "–"
    assert signals.auc_cell(values, positive, np.array([0, 0, 0, 0])) == "0.88 [0.88, 0.88]"


def test_the_spread_of_a_gain_by_hand(tmp_path, capsys):
    """The spread between lines taken for that of seeds, a gain that is not paired by seed, or set beside
    OPD by another loss; a power that is the share of comparisons which detect nothing."""
    power = module("power")
    other = [{**result(seed, 0.1, 0.9 - 0.4 * seed), "loss": "forward"} for seed in (0, 1)]
    opd = [result(0, 0.1, 0.2), result(1, 0.1, 0.4), result(2, 0.1, 0.3)]
    near = [result(1, 0.1, 0.5, method="near"), result(0, 0.1, 0.4, method="near")]
    lines = {"opd-forward": other, "opd": opd, "near": near, "far": [result(0, 0.1, 0.9, method="far")]}
    end = power.WHAT["end"]
    assert power.deviation(lines, end) == (pytest.approx(50**0.5), 1)  # gains of 20 and 10 points
    rng = np.random.default_rng(0)
    for seeds in power.SEEDS:  # with no gain, intervals of 95 % leave 0 out on this side in 2.5 % of draws
        assert np.mean(power.detected(seeds, 3.0, rng) < 0) == pytest.approx(0.025, abs=0.004)
    # A noncentral t of two degrees of freedom with shift 3·√3 exceeds 4.303 in 74.6 %.
    assert np.mean(power.detected(3, 1.0, rng) < 3) == pytest.approx(0.746, abs=0.012)
    keep(tmp_path, *opd, *near)
    power.main(power.Args(folders=[str(tmp_path)]))
    assert f"| {tmp_path.name}, end | 7.1 (1) | " in capsys.readouterr().out
