"""What stands around a run, without torch: arguments, figures by hand, files that survive a kill."""

import json
import math
import os
import pty
import pwd
import signal
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, heed_signals, little_room, two_processes

from curriculum import Judgement
from harness import cli, folder, report
from harness.cli import UserError, knob, preset
from rollout import Turn

# ---- cli

@dataclass
class Args:
    """One knob of each sort."""
    method: str = knob("f2b", "which method", choices=("opd", "f2b"))
    k_start: int = knob(1, "depth", least=1)
    eta: float = knob(2.0, "slope", above=0.0)
    beta: float = knob(0.5, "weight", above=0.0, below=1.0)
    steps: int = preset(250, "steps", least=1)
    lr: float = preset(1e-6, "rate", above=0.0)
    data: str = preset("", "folder")
    watch: bool = knob(False, "print it, 100 % of it")
    runs: list = knob(None, "folders", path=True)


@pytest.mark.parametrize("flags, expected", [
    ([], dict(method="f2b", k_start=1, steps=None, watch=False, runs=None)),
    (["--k-start", "3"], dict(k_start=3)),
    (["--k_start=3"], dict(k_start=3)),
    (["--steps", "0"], dict(steps=0)),
    (["--eta", "1e-3"], dict(eta=0.001)),
    (["--watch"], dict(watch=True)),
    (["--watch=false"], dict(watch=False)),
    (["--watch", "True", "--data", "x"], dict(watch=True, data="x")),
    (["--runs", "a", "b", "--watch"], dict(runs=["a", "b"], watch=True)),
])
def test_options_are_read(flags, expected):
    """A switch whose written "false" is true, as bool("false") is; an option that is known with one sort of
    dash only."""
    args = cli.parse(Args, flags)
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("flags, words", [
    (["--methdo", "opd"], "--methdo"),
    (["--meth", "opd"], "--meth"),
    (["--k-start", "many"], "--k-start"),
    (["--watch=perhaps"], "true or false"),
    (["opd"], "opd"),
    (["--runs"], "--runs"),
    (["--data"], "--data"),
])
def test_a_misspelt_option_is_one_sentence(flags, words):
    """argparse prints a page of usage and leaves the process; an abbreviation quietly names another option
    once one is added."""
    with pytest.raises(UserError, match=words) as caught:
        cli.parse(Args, flags)
    assert "\n" not in str(caught.value)


def test_help_names_every_default(capsys):
    """A per cent sign in a help text breaks argparse; a default that is written a second time goes stale."""
    with pytest.raises(SystemExit) as caught:
        cli.parse(Args, ["--help"], "What this is.\n    as it stands")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert "\n    as it stands\n" in text
    assert "(default: 250)" in words
    assert "(default: 0.5)" in words
    assert "print it, 100 % of it" in words
    assert "default: False" not in words
    assert cli.knob(0, "zero").metadata["help"] == "zero (default: 0)"


@dataclass
class Own(Args):
    """Arguments that a checkpoint has its own defaults of."""

    def own(self):
        return dict(steps=120 if self.method == "f2b" else 7)


def test_help_shows_what_a_run_will_have(capsys):
    """The paper's value beside a checkpoint that brings its own; the own ones of another method."""
    for flags, steps in (([], 120), (["--method", "opd"], 7)):
        with pytest.raises(SystemExit):
            cli.parse(Own, [*flags, "--help"])
        words = " ".join(capsys.readouterr().out.split())
        assert f"steps (default: {steps}; the paper: 250)" in words
        assert "rate (default: 1e-06)" in words


@pytest.mark.parametrize("given, own, expected", [
    (None, {}, (250, "")),
    (None, dict(steps=120), (120, "")),
    (7, dict(steps=120), (7, "")),
    (0, dict(steps=120), (0, "")),
    (None, dict(steps=240, data="short", method="opd", batch=8), (240, "short")),
])
def test_presets_fill_what_was_left_open(given, own, expected):
    """An option of the user that is overwritten, 0 taken for "not given", another command's knob that breaks
    this one, a knob without a preset that a checkpoint changes; 1 in a JSON file, refused as no float."""
    args = Args(steps=given)
    cli.fill_presets(args, dict(own, lr=1))
    assert (args.steps, args.data, args.lr) == (*expected, 1.0)
    assert (args.method, args.k_start, args.watch) == ("f2b", 1, False)


@pytest.mark.parametrize("own, words", [
    (dict(steps="120"), "own steps is no int, but '120'"),
    (dict(steps=True), "own steps is no int"),
    (dict(lr=[1]), "own lr is no float"),
    (dict(data=1), "own data is no str"),
])
def test_a_checkpoints_own_defaults_are_checked(own, words):
    """A text that is compared with a number only when the run has begun."""
    with pytest.raises(UserError, match=words):
        cli.fill_presets(Args(), own)


@pytest.mark.parametrize("wrong, words", [
    (dict(method="ppo"), "unknown --method 'ppo': opd, f2b"),
    (dict(k_start=0), "--k-start is at least 1, not 0"),
    (dict(eta=0.0), "--eta is above 0.0, not 0.0"),
    (dict(eta=math.nan), "--eta is above 0.0, not nan"),
    (dict(beta=1.0), "--beta is below 1.0, not 1.0"),
    (dict(beta=math.nan), "--beta"),
    (dict(steps=-1), "--steps is at least 1"),
    (dict(eta=math.inf), "--eta is a finite number, not inf"),
])
def test_values_outside_their_bounds(wrong, words):
    """NaN, of which no comparison is true; a bound that is meant strictly."""
    with pytest.raises(UserError) as caught:
        cli.check_knobs(Args(**wrong))
    assert words in str(caught.value)
    cli.check_knobs(Args(eta=1e-9, k_start=1))


def test_help_needs_no_torch():
    """Seconds of waiting for an import that plain text does not need."""
    code = "import sys, harness.cli, harness.folder, harness.report, curriculum, plot\n"
    code += "print(sorted({'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.strip() == "[]", process.stderr


COMMAND = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from dataclasses import dataclass
from harness import stops
stops.catch()
from harness.cli import UserError, command, knob

@dataclass
class Args:
    what: str = knob("", "what happens")

class Swallows:
    def __del__(self):
        kill(signal.SIGTERM)

def kill(number):
    os.kill(os.getpid(), number)

def main(args):
    if args.what == "begins":
        kill(signal.SIGINT)
    elif args.what == "swallowed":
        Swallows()
    elif args.what == "mistake":
        raise UserError("no such thing")
    elif args.what == "full":
        open("/dev/full", "w").write("x" * 10**6)
    elif args.what == "signs":
        return print("50.0% [9%–91%] · seen ✓")
    for n in range(1, 4):
        if stops.asked():
            stops.end(f"step {{n - 1}} is kept")
        print(f"step {{n}}")
        if n == 1:
            continue
        if args.what == "again":
            stops.PRESS = 0.01
            kill(signal.SIGINT)
            time.sleep(0.05)
            kill(signal.SIGTERM)
        elif args.what.startswith("SIG"):
            kill(getattr(signal, args.what))
            kill(signal.SIGTERM)
        print("whole")

if "--what=early" in sys.argv:
    kill(signal.SIGINT)
command(main, Args)
"""
FIRST = "what is at work is finished first; a second one ends at once\n"


def run_command(what, before=heed_signals):
    """(status, stdout, stderr) of the command above."""
    process = subprocess.run(
        [sys.executable, "-c", COMMAND.format(root=ROOT), f"--what={what}"], capture_output=True, text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, preexec_fn=before)
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize("what, status, out, err", [
    ("SIGINT", 130, "step 1\nstep 2\nwhole\n", f"Ctrl-C: {FIRST}stopped by Ctrl-C: step 2 is kept\n"),
    ("SIGHUP", 129, "step 1\nstep 2\nwhole\n", f"SIGHUP: {FIRST}stopped by SIGHUP: step 2 is kept\n"),
    ("again", 143, "step 1\nstep 2\n", f"Ctrl-C: {FIRST}stopped by SIGTERM\n"),
    ("early", 130, "", "stopped by Ctrl-C\n"),
    ("begins", 130, "", "stopped by Ctrl-C\n"),
    ("mistake", 2, "", "error: no such thing\n"),
    ("full", 2, "", "error: No space left on device\n"),
    ("signs", 0, "50.0% [9%-91%] - seen ?\n", ""),
])
def test_how_a_command_ends(what, status, out, err):
    """A traceback; a step cut in two; a command without a loop, or a signal while modules are imported, that
    goes on; a signal that a launcher hands on, taken for a second one; a second one that is not heeded, or
    loses what was printed; a table that the screen's encoding cannot show."""
    assert run_command(what) == (status, out, err)


def test_a_signal_that_python_drops():
    """Stopped, raised in a `__del__`, is only printed: the run would never end."""
    status, out, err = run_command("swallowed")
    assert (status, out) == (143, "") and err.endswith("stopped by SIGTERM: step 0 is kept\n")


def test_an_ignored_signal_stays_ignored():
    """nohup, whose run ends when its terminal does."""
    def nohup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    assert run_command("SIGHUP", nohup)[::2] == (0, "")


def test_a_terminal_that_is_closed(tmp_path):
    """An error of a screen that is gone, in the middle of the step that is to be finished."""
    mark = f"print('whole'); open({str(tmp_path / 'whole')!r}, 'w')"
    code = COMMAND.format(root=ROOT).replace('print("whole")', mark)
    code = code.replace("kill(getattr(signal, args.what))", "while not stops.now.came: time.sleep(0.01)")
    child, terminal = pty.fork()
    if not child:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", code, "--what=SIGHUP"])
    shown = b""
    while b"step 2" not in shown:
        shown += os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert (tmp_path / "whole").exists()


# ---- report

@pytest.mark.parametrize("won, games, low, high", [
    (0, 10, 0.0, 0.2775),
    (10, 10, 0.7225, 1.0),
    (5, 10, 0.2366, 0.7634),
    (134, 140, 0.9097, 0.9802),
])
def test_wilson_interval(won, games, low, high):
    """The normal approximation gives [1, 1] for ten of ten; values from Wilson's formula worked out
    separately."""
    got = report.wilson(won, games)
    assert got == pytest.approx((low, high), abs=2e-4)
    assert 0 <= got[0] <= won / games <= got[1] + 1e-9 <= 1 + 1e-9


@pytest.mark.parametrize("won, plays, games", [
    ([1, 0, 1], [1, 1, 1], 3),                  # played once: Wilson's
    ([10, 0, 10, 0], [10, 10, 10, 10], 4),      # alike in every play: four games, and not forty
    ([4, 4], [4, 4], 2),                        # won always: nothing tells that other games are
    ([1, 1, 1, 1], [2, 2, 2, 2], 8),            # once each: no more than the plays
    # With 2 and 0 of 2 beside them 7 of 12 are won: 58/12 over 12 · 7/12 · 5/12 is the design effect.
    ([2, 2, 1, 0], [2, 2, 2, 2], 8 * 35 / 58),
])
def test_plays_of_one_game_are_no_games_of_their_own(won, plays, games):
    """Ten identical plays of eight games that give [17-35] where one play of each gives [7-59]."""
    assert report.worth(won, plays) == pytest.approx(games)
    part = report.rate(won, plays)
    assert (part["low"], part["high"]) == pytest.approx(report.wilson(sum(won) / sum(plays) * games, games))
    assert (part["won"], part["games"]) == (sum(won), sum(plays))


def coverage(estimate, truth, runs=2000):
    """How often the intervals of `estimate`, rng -> (mean, half), have the truth in them."""
    rng = np.random.default_rng(0)
    found = [estimate(rng) for _ in range(runs)]
    return np.mean([abs(mean - truth) <= half for mean, half in found])


@pytest.mark.parametrize("kept", [True, False], ids=["by game", "success alone"])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_effect", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("methods", [(0.5, 0.5), (0.7, 0.4), (1.3, 0.4)])
def test_an_interval_of_a_difference_has_the_truth_in_it(kept, seeds, seed_effect, methods):
    """Student's t over seeds alone: 140 games are the same for all seeds, and what they favour in a method
    no seed shows. A game is won where what it favours (in all methods: deviation 1; in one: 0.5), what the
    seed does and chance (1) together with the method come above 0."""
    scale = np.sqrt(2 * (1 + 1 + 0.25 + seed_effect**2))
    truth = sum(sign * math.erf(method / scale) / 2 for sign, method in zip((1, -1), methods))

    def estimate(rng):
        hardness = rng.normal(size=140)
        sides = []
        for method in methods:
            favoured = method + hardness + 0.5 * rng.normal(size=140)
            drawn = favoured + seed_effect * rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, 140))
            sides.append((drawn > 0).mean(1, keepdims=True) if not kept else 1.0 * (drawn > 0))
        return report.difference(*sides, 140)

    assert coverage(estimate, truth) >= 0.93


@pytest.mark.parametrize("games, plays", [(8, 10), (51, 4), (140, 3)])
@pytest.mark.parametrize("success", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("alike", [0.1, 0.5])
def test_an_interval_of_a_success_has_the_truth_in_it(games, plays, success, alike):
    """Few games played often, few of them won, all alike or hardly."""
    def estimate(rng):
        chance = rng.beta(success * (1 / alike - 1), (1 - success) * (1 / alike - 1), games)
        part = report.rate(rng.binomial(plays, chance), np.full(games, plays))
        return (part["low"] + part["high"]) / 2, (part["high"] - part["low"]) / 2

    assert coverage(estimate, success, 1000) >= 0.93


def turn(who="student", invalid=False, missing=False, cut=False, repeats=False, **more):
    return Turn(who, 1.0, "", "", "I look", [], "look", missing, invalid, cut, repeats, **more)


def episode(task, kind, won, turns, index=0):
    """A played episode, as far as the tables look at it."""
    return SimpleNamespace(
        task=SimpleNamespace(id=task, kind=kind), index=index, turns=turns, won=won, lost=False,
        context_cut=False, crashed=False, filled=False, unplayable="", rows=[SimpleNamespace(ids=[1] * 9)])


def test_summary_by_hand():
    """Rates per episode instead of per turn, replayed turns counted as the model's, pass@k counted in
    episodes, rounds without the replayed turns."""
    replayed = [turn("expert", invalid=True)] * 3 + [turn(invalid=True)] + [turn("teacher")] * 4
    clumsy = [turn(invalid=True)] * 4 + [turn(cut=True)] * 2 + [turn(repeats=True)] + [turn()] * 13
    silent = [turn(missing=True, invalid=True)] * 3 + [turn()] * 12
    outcomes = [
        report.outcome(episode("a", "heat", True, replayed, 0)),
        report.outcome(episode("a", "heat", False, clumsy, 2)),
        report.outcome(episode("b", "cool", False, [turn()] * 20, 1)),
        report.outcome(episode("b", "cool", False, silent, 3))]
    assert outcomes[0]["who"] == "eeestttt"
    assert (outcomes[0]["rounds"], outcomes[0]["played"]) == (8, 5)
    s = report.summarise(outcomes)
    assert (s["games"], s["won"], s["success"]) == (4, 1, 0.25)
    assert s["rounds"] == (8 + 20 + 20 + 15) / 4
    assert s["invalid"] == pytest.approx((1 + 4 + 3) / 60)  # 5 + 20 + 20 + 15 turns that models played
    assert s["cut"] == pytest.approx(2 / 60)
    assert s["missing"] == pytest.approx(3 / 60)
    assert s["repeats"] == pytest.approx(1 / 60)
    assert (s["pass_at_k"]["won"], s["pass_at_k"]["games"]) == (1, 2)
    assert s["each"] == "1000"  # in the order of the list, whichever rank played what
    assert s["kinds"]["heat"]["success"] == 0.5
    assert s["kinds"]["heat"]["low"] < report.wilson(1, 2)[0]  # one task, twice
    assert s["kinds"]["cool"]["won"] == 0


def test_tables_by_hand():
    """Two splits of one model that overwrite each other; columns that do not stand under their heads."""
    heat = report.outcome(episode("a", "heat", True, [turn()] * 8))
    cool = report.outcome(episode("b", "cool", False, [turn(invalid=True)] * 20))
    both = report.summarise([heat, cool])
    one = report.summarise([heat])
    text = report.table({"teacher": {"seen": one}, "student after": {"seen": both, "unseen": one}})
    assert text.splitlines() == [
        "                        success [95 %]      games  rounds  invalid  no action    cut  context",
        "teacher · seen          100.0% [21%–100%]       1     8.0     0.0%       0.0%   0.0%     0.0%",
        "student after · seen     50.0% [9%–91%]         2    14.0    71.4%       0.0%   0.0%     0.0%",
        "student after · unseen  100.0% [21%–100%]       1     8.0     0.0%       0.0%   0.0%     0.0%"]
    assert report.table_by_kind({"seen": both, "unseen": one}).splitlines() == [
        "",
        "success by task type              seen          unseen",
        "cool                           0% of 1               –",
        "heat                         100% of 1       100% of 1"]
    assert report.table_by_kind({"unseen": one}) == ""


def figures(**columns):
    """What `tcod.backward` says of trained tokens: 0 where nothing is given."""
    names = ("weight", "loss", "kl", "logp", "entropy", "mismatch")
    known = dict.fromkeys(names, [0] * len(columns["turn"]))
    return {name: np.array(values, dtype=float) for name, values in {**known, **columns}.items()}


def test_log_records_by_hand():
    """A mean over all tokens instead of the turn's own, or over episodes that were not trained there; tokens
    of micro-batches, which come in any order, given to another episode; a judgement logged of the wrong
    answer; KL 0, or NaN in a file that has to be JSON, where nothing was trained or no teacher asked."""
    taught = turn("teacher", judgement=Judgement(-5.5, 0.25, 4.0, 2.0), dropped=7)
    first = episode("a", "heat", True, [turn("expert"), turn(repeats=True), taught])
    second = episode("b", "heat", False, [turn(invalid=True), turn(invalid=True, repeats=True)], 1)
    tokens = figures(
        episode=[1, 0, 0, 0, 1], turn=[0, 1, 2, 1, 1], loss=[1, 2, 3, 4, 5], kl=[1, 2, 3, 4, 5],
        logp=[-1, -2, -7, -4, -3], entropy=[0.5, 0.25, 1, 0.75, 0.5], mismatch=[0, 0.5, math.nan, 0.25, 0])
    one, two = report.episode_records(3, [first, second], tokens)
    assert one["kl_turn"] == [None, 6.0, 3.0] and two["kl_turn"] == [1.0, 5.0]
    assert one["logp_turn"] == [None, -3.0, -7.0] and two["logp_turn"] == [-1.0, -3.0]
    assert one["entropy_turn"] == [None, 0.5, 1.0] and two["entropy_turn"] == [0.5, 0.5]
    assert (one["repeats"], one["trained"], one["response_tokens"]) == (1, 2, 3)
    assert (one["loss"], one["mismatch"], one["sampled_tokens"], two["loss"]) == (9.0, 0.75, 2, 6.0)
    assert (one["tokens_turn"], one["weight_turn"]) == ([0, 2, 1], [1.0, 1.0, 1.0])
    judged = dict(logp=-5.5, entropy=0.25, kl=4.0, gap=2.0)
    assert one["judged"] == [None, None, judged] and "judged" not in two
    step = report.step_record(3, 2, 7.5, 1.5, 1.0, [one, two], [], 0, dict(play=1.0, train=3.0))
    assert (step["kl"], step["kl_token"]) == (7.5, 3.0) and step["kl_turn"] == [1.0, 5.5, 3.0]
    assert step["logp_turn"] == [-1.0, -3.0, -7.0] and step["entropy_turn"] == [0.5, 0.5, 1.0]
    assert step["repeats"] == 2 / 4 and step["invalid"] == 1 / 2 and step["mismatch"] == 0.75 / 4
    assert (step["turns"], step["rounds"], step["response_length"]) == (2.0, 2.5, 5 / 4)
    assert (step["success"], step["crashed"], step["filled"], step["unplayable"]) == (0.5, 0, [], {})
    assert (step["acted"], step["judged"]) == (dict(student=3, teacher=1, expert=1), 1)
    assert (one["dropped_tokens"], two["dropped_tokens"], step["dropped_tokens"]) == (7, 0, 7)
    assert (step["grad_norm"], step["clipped"]) == (1.5, True)
    assert report.status(step, {}).startswith(
        "k 2 loss 7.5 KL/turn 3.75 won 50% rounds 2.5 refused 50% held-out –")

    nothing = [math.nan] * 3
    alone, = report.episode_records(3, [first], figures(
        episode=[0] * 3, turn=[1, 2, 1], loss=[2, 3, 4], kl=nothing, logp=nothing, entropy=nothing))
    assert alone["kl"] is None and alone["logp_turn"] == alone["entropy_turn"] == [None] * 3
    step = report.step_record(3, math.inf, 8.0, 1.0, 1.0, [alone], [], 0, dict(play=1.0))
    assert (step["k"], step["kl"], step["kl_token"], step["kl_turn"]) == (None, None, None, [None] * 3)
    assert report.status({**step, "success": None}, {}).startswith("k – loss 8 KL/turn – won –")
    json.dumps([alone, step], allow_nan=False)


def test_clipped_steps_are_counted():
    """A norm after clipping, which is 1 whatever was cut off; steps of an older log counted as whole."""
    history = [dict(step=0), dict(step=1, grad_norm=9.0)]
    for n, norm in enumerate((59.0, 1.0, 3.0, 0.5), 2):
        history.append(report.step_record(n, 1, 1.0, norm, 1.0, [], [], 0, dict(play=1.0)))
    assert report.clipping(history) == "the gradient was clipped in 2 of 4 steps, its median norm was 2"
    assert report.clipping(history[:2]) == ""


def lost(task, **why):
    """The outcome of an episode that nothing can be learned from."""
    empty = episode(task, "heat", False, [])
    vars(empty).update(why)
    return report.outcome(empty)


def test_what_is_left_out_is_counted_and_named():
    """A game that cannot be played and counts as lost, in the table or in a step's means; one that is left
    out without a word."""
    played = [report.outcome(episode(name, "heat", name == "a", [turn()])) for name in "ab"]
    bad = lost("c", unplayable="no goal")
    summary = report.summarise([*played, bad, bad])
    assert sorted(summary["each"]) == ["-", "-", "0", "1"]
    assert (summary["games"], summary["success"], summary["rounds"]) == (2, 0.5, 1.0)
    assert summary["pass_at_k"]["games"] == 2 and summary["unplayable"] == {"c": "no goal"}
    last = report.table({"teacher": {"seen": summary}, "student": {"seen": summary}}).splitlines()[-1]
    assert last == "left out, since it cannot be played: 1 task, c (no goal)"
    records = report.episode_records(
        1, [episode("a", "heat", True, [turn()])], figures(episode=[0], turn=[0], loss=[6], kl=[6]))
    gone = [bad, lost("d", filled=True), lost("e", crashed=True), lost("f", filled=True)]
    step = report.step_record(1, 1, 6.0, 0.5, 1.0, records, gone, 0, dict(play=1.0))
    assert (step["games"], step["success"], step["kl"], step["crashed"]) == (1, 1.0, 6.0, 1)
    assert (step["filled"], step["unplayable"]) == (["d", "f"], {"c": "no goal"})
    assert report.status(step, {}).endswith("left out 4")
    lines = report.left_out([dict(step=0), step, dict(step, filled=["d"])], 20).splitlines()
    assert lines[0] == "of 20 tasks drawn, left out, since it cannot be played: 1 task, c (no goal)"
    assert lines[1] == f"of 20 tasks drawn, {report.NO_ROOM}: 2 in some steps"
    assert report.left_out([dict(step=0)], 20) == ""


@pytest.mark.parametrize("bad, drawn, listed, ends", [
    (0, 0, 0, False), (1, 1, 24, False), (9, 9, 24, False), (9, 9, 9, True), (10, 500, 900, False),
    (10, 499, 900, True), (30, 1501, 9000, False), (31, 1501, 9000, True)])
def test_how_many_bad_tasks_end_a_run(bad, drawn, listed, ends):
    """One bad game, drawn again and again, that ends a run; a data folder of which nothing can be played and
    that does not. More than one in fifty and at least ten, or all."""
    faults = {f"task {i}": "no goal" for i in range(bad)}
    if not ends:
        return report.check_playable(faults, drawn, listed)
    with pytest.raises(cli.UserError, match="cannot be played: .* task 0 .no goal.") as caught:
        report.check_playable(faults, drawn, listed)
    assert "\n" not in str(caught.value)


# ---- folder

def test_a_line_that_a_kill_cut_short(tmp_path):
    """A log that cannot be read any more, or a step that is there twice after --resume."""
    log = tmp_path / "log.jsonl"
    assert folder.read_log(log) == []
    folder.append(log, [dict(step=step) for step in range(4)])
    with open(log, "a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in folder.read_log(log)] == [0, 1, 2, 3]
    folder.rewind(log, 2)
    folder.append(log, [dict(step=3)])
    assert log.read_text() == "".join(f'{{"step": {step}}}\n' for step in range(4))
    assert os.listdir(tmp_path) == ["log.jsonl"]


def test_json_is_whole_or_not_there(tmp_path):
    """A file that was half overwritten when its content turned out not to be JSON."""
    path = str(tmp_path / "a.json")
    folder.write_json(path, dict(a=1))
    with pytest.raises(TypeError):
        folder.write_json(path, dict(a=object()))
    assert open(path).read() == '{\n "a": 1\n}'
    folder.write_json("", dict(a=1))  # nothing was asked for


def test_a_run_folder_is_nobody_elses(tmp_path, monkeypatch):
    """Two runs in one folder; a folder without a run that cannot be used."""
    monkeypatch.chdir(tmp_path)
    assert folder.free_folder("", "alfworld-f2b") == "runs/alfworld-f2b-1"
    assert folder.free_folder("", "alfworld-f2b") == "runs/alfworld-f2b-2"
    assert folder.free_folder("mine", "x") == "mine"
    assert folder.free_folder("mine", "x") == "mine"
    folder.write_json("mine/args.json", dict(method="opd"))
    assert folder.read_args("mine") == dict(method="opd")
    assert folder.holds_run("mine") and not folder.holds_run("runs") and not folder.holds_run("")
    for nothing in ("nowhere", "runs", "mine/args.json"):
        with pytest.raises(UserError, match="holds no run"):
            folder.read_args(nothing)
    for broken in ('{"method": "o', "[1]", "\x00"):
        (tmp_path / "mine" / "args.json").write_text(broken)
        with pytest.raises(UserError, match="bring back the file"):
            folder.read_args("mine")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/x"])
def test_a_run_folder_that_cannot_be(place, tmp_path, monkeypatch):
    """A traceback for --out that is a file, or lies where nothing can be made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=f"{place} cannot be written"):
        folder.free_folder(place, "x")
    (tmp_path / "runs").write_text("x")
    with pytest.raises(UserError, match="runs cannot be written"):
        folder.free_folder("", "x")
    assert (tmp_path / "file").read_text() == "x"


def test_a_full_disk(tmp_path):
    """A traceback; the file of before lost, or half a new one in its place."""
    path = str(tmp_path / "a.json")
    folder.write_json(path, dict(a=1))
    before = open(path).read()
    for write in (folder.write_json, folder.write_lines, folder.append):
        with little_room(5000), pytest.raises(UserError, match="a.json cannot be written .*File too large"):
            write(path, [dict(text="x" * 9000)])
        assert open(path).read().startswith(before)
    assert os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(UserError, match="/dev/null/x cannot be written"):
        folder.write_json("/dev/null/x", {})
    with pytest.raises(UserError, match="/dev/full cannot be written .No space left on device"):
        folder.append("/dev/full", [dict(text="x" * 9000)])


def test_a_link_stays_one(tmp_path):
    """A table or a log that is a link to another disk, replaced by a file when it is written the second time;
    a link that leads nowhere yet."""
    (tmp_path / "disk").mkdir()
    link = tmp_path / "a.json"
    link.symlink_to("disk/there.json")
    for content in (1, 2):
        folder.write_json(link, content)
        folder.write_lines(tmp_path / "b", [dict(a=content)])
        assert link.is_symlink() and (tmp_path / "disk" / "there.json").read_text() == str(content)
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b", "disk"]
    assert os.listdir(tmp_path / "disk") == ["there.json"]


def test_what_differs_is_named():
    """An entry that only one of both has taken for the same; a table of parts named as a whole."""
    one = dict(seed=1, teacher=dict(weights="a", template="b"), lr=None)
    assert folder.differing(one, dict(one)) == []
    assert folder.differing(one, dict(seed=2, teacher=dict(weights="c", template="b"))) == ["seed", "weights"]
    assert folder.differing(one, dict(one, teacher="a", games=3)) == ["games", "teacher"]
    assert folder.differing(dict(teacher={}), one) == ["seed", "template", "weights"]
    older, now = {"teacher": "a"}, {"teacher": "b", "teacher's weights": "c"}
    assert folder.differing(older, now) == ["teacher's weights"]
    assert folder.differing(older, {}) == ["teacher"]


def test_a_disk_without_locks(tmp_path, monkeypatch):
    """A sentence that names neither place nor cause; an empty journal that stays behind."""
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folder.fcntl, "flock", none)
    words = "{} lies where files cannot be locked .Function not implemented.: choose a place .*, by {}"
    with pytest.raises(UserError, match=words.format("x.played", "--out")):
        folder.Journal(str(tmp_path / "x.played"), {})
    with pytest.raises(UserError, match=words.format(tmp_path.name, "--out")):
        folder.claim(tmp_path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match=words.format("number.lock", "TCOD_CACHE")):
        add_slowly(str(tmp_path / "number"), 1)


def test_a_user_without_a_home(monkeypatch, capsys):
    """A traceback, or a folder called ~ where the command was given, for a container's user; --help, which
    needs none, refused."""
    def nobody(number):
        raise KeyError(number)

    for name in ("HOME", "TCOD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UserError, match="~/.cache/tcod leads to no home: set TCOD_CACHE, or HOME"):
        folder.cache_home()
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(SystemExit):
        cli.command(lambda args: pytest.fail("begun"), Args)
    assert capsys.readouterr().err == "error: this user has no home: set HOME to a folder to write in\n"
    monkeypatch.setattr(sys, "argv", ["x.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.command(print, Args)
    assert ended.value.code == 0
    monkeypatch.setenv("TCOD_CACHE", "/elsewhere")
    assert str(folder.cache_home()) == "/elsewhere"


def test_help_without_docstrings():
    """python -OO strips what --help is made of."""
    code = "import loss, methods; print(methods.explained(), loss.explained())"
    done = subprocess.run([sys.executable, "-OO", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "f2b: a method" in done.stdout and "reverse: a loss" in done.stdout


def test_a_journal_goes_on(tmp_path):
    """A line cut short by a kill that spoils the next one; the journal of another evaluation added to; a
    result of unknown make overwritten."""
    path, product = str(tmp_path / "x.played"), str(tmp_path / "x")
    journal = folder.Journal(path, dict(seed=1), [product])
    journal.append([dict(index=0), dict(index=1)])
    with pytest.raises(UserError, match="another process"):
        folder.Journal(path, dict(seed=1))
    journal.file.write(b'{"index": 2, "wo')
    journal.file.close()
    whole = open(path).read()
    with pytest.raises(UserError, match="another evaluation .it differs in games, seed"):
        folder.Journal(path, dict(seed=2, games=3))
    assert open(path).read() == whole
    open(product, "w").close()
    again = folder.Journal(path, dict(seed=1), [product])
    assert again.records == [dict(index=0), dict(index=1)]
    again.append([dict(index=2)])
    again.file.close()
    for unsaid in ((), dict(games=4)):
        with pytest.raises(UserError, match="another evaluation .it differs in games"):
            folder.Journal(path, dict(seed=1, games=3), unsaid=unsaid)
    folder.Journal(path, dict(seed=1, games=3), unsaid=dict(games=3, seed=2)).file.close()
    assert open(path).read().count("\n") == 4
    os.unlink(path)
    with pytest.raises(UserError, match="x is there already, and no .*x.played says of what"):
        folder.Journal(path, dict(seed=1), [product])
    assert os.listdir(tmp_path) == ["x"]


def test_torchruns_own_restart(tmp_path, monkeypatch):
    """Restarted processes that begin a second run, or take up one that another start of torchrun left."""
    monkeypatch.chdir(tmp_path)
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    other, own = (folder.free_folder("", "x") for _ in range(2))
    folder.claim(other).close()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "r1")
    folder.claim(own).close()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert folder.left_by_restart("x") == ""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert folder.left_by_restart("x") == ""  # it ended before it wrote its arguments
    for place in (other, own):
        folder.write_json(f"{place}/args.json", {})
    assert folder.left_by_restart("x") == own
    assert folder.left_by_restart("y") == ""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "r2")
    assert folder.left_by_restart("x") == ""


def test_a_file_wants_a_folder(tmp_path):
    """An hour of games, then a traceback where the table should be written."""
    with pytest.raises(UserError, match="is a folder: name a file"):
        folder.check_place(str(tmp_path))
    folder.check_place("")
    folder.check_place("here.json")
    with pytest.raises(UserError, match="no folder /nowhere to write x.json into"):
        folder.check_place("/nowhere/x.json")


def add_slowly(path, rounds):
    """Read a number, wait, write it back plus one: wrong unless nobody comes between."""
    for _ in range(rounds):
        with folder.locked(f"{path}.lock"):
            number = int(open(path).read())
            os.sched_yield()
            with open(path, "w") as file:
                file.write(str(number + 1))


def test_a_lock_holds_between_processes(tmp_path):
    """A lock that holds within one process only, or one that its owner's death leaves behind."""
    path = tmp_path / "number"
    path.write_text("0")
    assert two_processes(add_slowly, str(path), 60) == [0, 0]
    assert path.read_text() == "120"
    assert two_processes(die_with_the_lock, f"{path}.lock") == [7, 7]
    add_slowly(str(path), 1)
    assert path.read_text() == "121"


def die_with_the_lock(path):
    with folder.locked(path):
        os._exit(7)


def test_the_cache_can_be_elsewhere(monkeypatch):
    """A home directory that is full is written to although another place was named."""
    monkeypatch.setenv("TCOD_CACHE", "~/elsewhere")
    assert str(folder.cache_home()) == os.path.expanduser("~/elsewhere")
    monkeypatch.delenv("TCOD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(folder.cache_home()) == "/elsewhere/tcod"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(folder.cache_home()) == os.path.expanduser("~/.cache/tcod")


def test_the_table_warns_of_a_full_context():
    """Episodes that the context ended and that look like ordinary losses: 65 % instead of 100, no word."""
    cut = episode("a", "heat", False, [turn()] * 3)
    cut.context_cut = True
    won = episode("b", "heat", True, [turn()] * 3)
    few = report.summarise([report.outcome(e) for e in [cut] + [won] * 60])
    many = report.summarise([report.outcome(e) for e in [cut] + [won] * 40])
    assert "1 of 41 episodes" in report.table({"student": {"seen": many}}).splitlines()[-1]
    assert len(report.table({"student": {"seen": few}}).splitlines()) == 2


def test_a_home_in_a_path():
    """A folder called ~ beside the project."""
    args = cli.parse(Args, ["--runs", "~/x", "y", "--data", "~/x"])
    assert args.runs == [os.path.expanduser("~/x"), "y"] and args.data == "~/x"  # only runs are paths here
    with pytest.raises(UserError, match="nobody's home is '~nobody-of-this-name'"):
        cli.parse(Args, ["--runs", "~nobody-of-this-name/x"])
