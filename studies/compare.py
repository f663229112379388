"""The comparison of methods by one command: runs, their table, their figure.

    python studies/compare.py --lines opd f2b --teacher tiny-narrow --seeds 0,1,2 --jobs 2 --out runs/narrow
    python studies/compare.py --lines f2b "slow=--method f2b --eta 16" --flags '--steps 250' --out runs/slow
    python studies/compare.py --study factors --teacher tiny-narrow --out runs/factors
    python studies/compare.py --draw true --out results/alfworld-full          # again from the results alone

A line of the table is a label and flags of tcod.py: one of LINES below, or your own. Each line is run with
each seed, seeds outermost, so that a comparison stopped early is complete for its first ones. A run is
`python tcod.py FLAGS --out OUT/runs/LABEL-SEED`; the same command again goes on with what was interrupted. A
finished run leaves `OUT/results/LABEL-SEED.json` (what was asked for, fingerprints of tasks and weights, its
curve), which is all that table and figure need.

With `--experts teacher` the teacher first plays the train split `--samples` times: its won episodes are the
experts of b2f and sft, and the tasks that it never wins are the hard split, which is left out of training.

The table: success with the 95 % interval of all games together and the lowest and highest seed, and mean
rounds, on every held-out split; invalid actions on the first; the KL of a trajectory in the first and the
last tenth of the steps; trained tokens; the mean success over the run, speed and end in one figure; what its
last quarter brought, which says whether the curve is flat; the differences to the base, paired by seed.

Two studies set F2B beside OPD, a row for each comparison, and in the figure over what the teacher wins after
six turns of the student (its support): `gains` of all that is kept (`--study gains --out results`), and
`mechanism`, which first makes its teachers, from narrow to broad, by the share of mixed play that they saw.
"Over the tokens" is where both have trained as many, from the first token to the last that both did.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import curriculum
import plot
from harness.cli import UserError, check_knobs, command, knob, parse
from harness.folder import LOG, read_args, read_log, write_lines
from harness.report import wilson
from methods import METHODS

# ---- what can be compared

LOSSES = ("reverse", "forward", "jsd", "k1")    # nll is sft's alone
USUAL = ("reverse", "nll")                      # not named in a label


def called(method, loss):
    """'f2b', 'f2b-forward': what a line of this method and loss is called."""
    return method + f"-{loss}" * (loss not in USUAL)


LINES = {  # label: flags of tcod.py
    "sft": "--method sft --loss nll",
    **{called(method, loss): f"--method {method} --loss {loss}"
       for method in ("opd", "f2b", "b2f", "guided") for loss in LOSSES},
    "f2b-eta-4": "--method f2b --loss reverse --eta 4",
    "f2b-eta-8": "--method f2b --loss reverse --eta 8",
    "f2b-stages": "--method f2b --loss reverse --schedule 5@10,10@20,20@40",
    "opd-tokens": "--method opd --loss reverse",
    "opd-near": "--method opd --loss jsd --beta 0.2",   # TOP-D
    "f2b-constant": "--method f2b --loss reverse --schedule constant --k-start 6",
    **{name: f"--method {name} --loss reverse" for name in METHODS if name not in curriculum.METHODS},
}
# A line that ends where it has trained the tokens of another: (the same with all steps, the other), by seed.
EQUAL_TOKENS = {"opd-tokens": ("opd", "f2b")}


class Study(NamedTuple):
    """A table of lines."""
    lines: tuple
    base: str = "opd"           # others are compared with it ...
    same_loss: bool = True      # ... by the line's own loss; sft by the first there is
    brief: bool = False         # without models that are not trained, invalid actions and KL


class Pairs(NamedTuple):
    """A table of comparisons, F2B less OPD in each. rows: (label, loss, folder of the runs, folder of the
    teacher's take-over test)."""
    first: str                  # what a row is
    rows: tuple
    columns: tuple
    makes: bool = False         # teachers and runs, the label being a share of mixed play; else all is there


def after(turns):
    """The column of what the teacher wins once the student has played so many turns."""
    return f"teacher after {turns} student turns"


TEST = "take_over.json"
TURNS = (0, 3, 6, 10)   # of the student in a take-over test
SUPPORT = 6             # those after which a teacher's success is called its support
SHARES = ("0", "0.01", "0.03", "0.1", "0.3", "1")
STUDIES = {
    "paper": Study(("sft", "opd", "f2b", "b2f", "guided")),
    "factors": Study(
        ("f2b", "f2b-eta-4", "f2b-eta-8", "f2b-stages", "f2b-forward", "opd", "opd-forward", "opd-tokens"),
        base="f2b", same_loss=False, brief=True),
    "mechanism": Pairs(
        "share of mixed play", tuple((share, "reverse", f"{share}/table", share) for share in SHARES),
        (*map(after, TURNS), "seeds", "F2B − OPD, end", "over the run"), makes=True),
    "gains": Pairs(
        "games", (
            ("ALFWorld", "reverse", "alfworld-full-narrow", "alfworld-full-narrow"),
            ("ALFWorld, hard split left out", "reverse", "alfworld-hard", "alfworld-full-narrow"),
            ("ALFWorld", "reverse", "alfworld-full", "alfworld-full"),
            *(("small ALFWorld", "reverse", f"mechanism/{share}/table", f"mechanism/{share}")
              for share in SHARES),
            ("small ALFWorld, `k1`", "k1", "alfworld-k1", "alfworld-k1"),
            ("WebShop", "reverse", "webshop", "webshop"),
            ("WebShop, `forward`", "forward", "webshop", "webshop"),
            ("ScienceWorld", "reverse", "scienceworld", "scienceworld")),
        (after(SUPPORT), "seeds", "steps", "OPD", "F2B", "F2B − OPD, end", "over the run",
         "over the tokens")),
}
MADE = "--make teacher --refresh 0 --games 1500 --teacher-steps 900"   # a teacher of `mechanism`
TESTED = "--temperature 1 --games 140"                                 # its take-over test
OWNED = ("--env", "--data", "--student", "--teacher", "--method", "--loss", "--seed", "--out")
KEPT = (  # of a step's record in a result
    "step", "k", "loss", "kl", "kl_turn", "success", "rounds", "invalid", "repeats", "missing", "tokens",
    "grad_norm", "eval")
# 97.5 % points of Student's t distribution with 1, 2, ... degrees of freedom.
STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass
class Args:
    """Which runs, and where."""
    study: str = knob("paper", f"one of {', '.join(STUDIES)}", choices=tuple(STUDIES))
    lines: list = knob(None, "its lines, instead of the study's own: labels, or LABEL='FLAGS OF tcod.py'")
    env: str = knob("alfworld", "alfworld, webshop or scienceworld")
    data: str = knob("", "as for tcod.py", path=True)
    student: str = knob("tiny-student", "checkpoint", path=True)
    teacher: str = knob("tiny-teacher", "checkpoint", path=True)
    seeds: str = knob("0,1,2", "whole numbers, by commas")
    experts: str = knob(
        "own", "own: the environment's; teacher: its own successes, collected first",
        choices=("own", "teacher"))
    samples: int = knob(10, "how often the teacher plays each train task, with --experts teacher", least=1)
    collect: int = knob(0, "train tasks that the teacher plays; 0: all", least=0)
    jobs: int = knob(1, "runs at once", least=1)
    flags: str = knob("", "further flags for every run of tcod.py, in quotes: '--steps 250 --lr 1e-6'")
    draw: bool = knob(False, "no runs: table and figure from the results that are there")
    out: str = knob("runs/compare", "folder of everything", path=True)


# ---- what is asked for

def parse_seeds(text):
    """'0,1,2' -> ['0', '1', '2']; raises UserError for anything else."""
    seeds = [seed.strip() for seed in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds are whole numbers, each once, by commas, not {text!r}")
    return seeds


def parse_lines(texts):
    """['f2b', 'slow=--method f2b --eta 16'] -> {label: flags}, those that wait for others last; raises
    UserError for a label that is not known, or twice there."""
    lines = {}
    for text in texts:
        label, given, flags = text.partition("=")
        if not re.fullmatch(r"[\w.-]+", label) or label in lines or given and label in LINES:
            raise UserError(f"--lines wants each label once, in letters, digits, . and -, and not {label!r}")
        if not given and label not in LINES:
            raise UserError(f"--lines knows {', '.join(LINES)}; another one is LABEL='FLAGS', not {text!r}")
        lines[label] = shlex.split(flags if given else LINES[label])
    for label in set(lines) & set(EQUAL_TOKENS):
        if not set(EQUAL_TOKENS[label]) <= set(lines):
            raise UserError(f"--lines: {label} wants {' and '.join(EQUAL_TOKENS[label])} beside it")
    return dict(sorted(lines.items(), key=lambda line: line[0] in EQUAL_TOKENS))


def asked(args):
    """The study, its lines being those of --lines where these are given; raises UserError for what cannot be
    asked."""
    check_knobs(args)
    parse_seeds(args.seeds)
    own = [flag for flag in shlex.split(args.flags) if flag.split("=")[0] in OWNED]
    if own:
        raise UserError(f"--flags {', '.join(own)}: that is for the comparison or its --lines to say")
    study = STUDIES[args.study]
    if not args.lines:
        return study
    if isinstance(study, Pairs):
        raise UserError(f"--study {args.study} sets F2B beside OPD: leave out --lines")
    return study._replace(lines=tuple(parse_lines(args.lines)))


# ---- the runs

def start(program, flags, screen):
    """Run a program of ours (a file, or a module's name) to its end; its screen is added to a file. Raises
    UserError where it fails."""
    what = [os.path.join(ROOT, program)] if program.endswith(".py") else ["-m", program]
    found = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    with open(screen, "a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, *what, *flags], stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": threads})
    if done.returncode:
        raise UserError(f"{program} ended with status {done.returncode}: see the end of {screen}")


def played_on(args):
    """The flags that say by whom and on what is played, for tcod.py and eval.py."""
    return ["--env", args.env, "--data", args.data, "--teacher", args.teacher]


def collect(args):
    """The teacher's own successes and the hard split, by the prompt, history, horizon and context of the
    runs, the student's own defaults among them; returns the flags that leave its tasks out of training and
    evaluate on them.

    Interrupted, it goes on; finished, eval.py finds nothing left to play, or says that what it finds is of
    another teacher, other games or samples.
    """
    import envs  # the engines and torch: not for --draw
    import tcod
    from eval import PlayArgs

    hard, game = os.path.join(args.out, "hard.jsonl"), envs.game_type(args.env)
    common = parse(tcod.Args, [*played_on(args), "--student", args.student, *shlex.split(args.flags)])
    tcod.resolve(common)
    start("eval.py", [
        *(f"--{f.name}={getattr(common, f.name)}" for f in fields(PlayArgs)),
        "--model", args.teacher, "--split", common.train_split or game.train_split,
        "--games", str(args.collect or 10**9), "--samples", str(args.samples), "--temperature", "1.0",
        "--save-expert", os.path.join(args.out, "experts.jsonl"), "--save-hard", hard,
        "--out", os.path.join(args.out, "teacher.json")], os.path.join(args.out, "teacher.txt"))
    with open(hard, encoding="utf-8") as file:
        if not file.read().strip():
            return []
    return ["--without", hard, "--eval-splits", ",".join([*game.eval_splits, f"hard={hard}"])]


def short(value):
    """Numbers with five digits: a curve is drawn from them."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: short(part) for key, part in value.items()}
    return [short(part) for part in value] if isinstance(value, list) else value


def digest(folder, label, seed, flags):
    """All that table and figures need of a finished run."""
    args, curve = read_args(folder), []
    for record in read_log(os.path.join(folder, LOG)):
        kept = {key: record[key] for key in KEPT if key in record}
        kept["seconds"] = sum(record.get("seconds", {}).values())
        curve.append(short(kept))
    prints = args.pop("fingerprint", {})
    for place in ("out", "resume"):  # of this machine
        args.pop(place, None)
    return dict(
        label=label, method=args["method"], loss=args["loss"], seed=int(seed), asked=flags, args=args,
        fingerprint=prints, curve=curve)


def steps_for(wanted, result):
    """How many steps of a run train so many tokens, or all of its steps."""
    until = plot.tokens_until(result["curve"])
    return next((step for step, trained in until.items() if trained >= wanted), max(until))


def run(args, label, flags, seed, made):
    """A run to its end, in a process of its own, which goes on with what is there; returns the result, which
    is left only then. made: {(label, seed): the future of a result}."""
    if label in EQUAL_TOKENS:
        own, other = (made[name, seed].result() for name in EQUAL_TOKENS[label])
        flags = [*flags, "--steps", str(steps_for(tokens(other), own))]
    name = f"{label}-{seed}"
    path, folder = os.path.join(args.out, "results", f"{name}.json"), os.path.join(args.out, "runs", name)
    if not os.path.exists(path) or read(path)["asked"] != flags:
        start("tcod.py", [*flags, "--out", folder], f"{folder}.txt")
        write_lines(path, [digest(folder, label, seed, flags)])  # one line: thousands of short numbers
        print("finished", folder, flush=True)
    return read(path)


def run_all(args, lines):
    """What is not there yet, some runs at once. lines: {label: flags}, those of EQUAL_TOKENS last."""
    for name in ("results", "runs"):
        os.makedirs(os.path.join(args.out, name), exist_ok=True)
    common = [*played_on(args), "--student", args.student, *shlex.split(args.flags)]
    if args.experts == "teacher":
        common += collect(args)
    made = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        for seed in parse_seeds(args.seeds):
            for label, own in lines.items():
                flags = [*common, *own, "--seed", seed]
                expert = any(METHODS[word].expert for word in own if word in METHODS)
                if args.experts == "teacher" and expert:
                    flags += ["--experts", os.path.join(args.out, "experts.jsonl")]
                made[label, seed] = pool.submit(run, args, label, flags, seed, made)
        for future in made.values():
            future.result()  # raises what its run raised


def make_all(args, study):
    """For each row a teacher unless it is there, its take-over test, and its runs."""
    os.makedirs(args.out, exist_ok=True)
    for share, loss, runs, test in study.rows:
        folder, screen = os.path.join(args.out, test), os.path.join(args.out, f"{share}.txt")
        teacher = os.path.join(folder, "alfworld", "teacher")
        if not os.path.isdir(teacher):
            start("tiny.make", [
                *MADE.split(), "--mixed", share, "--jobs", str(args.jobs), "--out", folder], screen)
        asked = replace(args, teacher=teacher, out=os.path.join(args.out, runs))
        start("eval.py", [
            *played_on(asked), "--model", args.student, *TESTED.split(), "--take-over",
            ",".join(map(str, TURNS)), "--out", os.path.join(folder, TEST)], screen)
        run_all(asked, parse_lines([called(method, loss) for method in ("opd", "f2b")]))


# ---- what was found

def read(path):
    """A JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def differing(one, other):
    """In what two results differ that may not stand in one table, as names; training tasks may, the lengths
    of runs, and what a line is about."""
    prints, others = one["fingerprint"], other["fingerprint"]
    return [what for what in prints if "training" not in what and others.get(what) != prints[what]]


def own_label(result):
    """What a result's line is called in its comparison; older ones do not say."""
    return result.get("label") or called(result["method"], result["loss"])


def label_below(folder, place, own, alone):
    """What a line is called in a table of all results below `folder`: by itself, behind its comparison's
    folder where there are several; by that folder where it is alone there ('f2b-eta-4')."""
    comparison = os.path.relpath(os.path.dirname(place), folder)
    if comparison in (".", ".."):   # the folder itself, or its results/
        return own
    return comparison if alone else f"{comparison}/{own}"


def found(folder):
    """{label: [its results by seed]} of all evaluated runs below a folder, in the order of LINES.

    Raises UserError where there is none, or they were not all made with the same models and held-out games.
    """
    lines, first = {}, None
    for place, _, names in sorted(os.walk(folder)):
        if os.path.basename(place) != "results":
            continue
        results = [read(os.path.join(place, name)) for name in sorted(names) if name.endswith(".json")]
        results = [result for result in results if last(result)]
        alone = len(set(map(own_label, results))) == 1
        for result in results:
            first, label = first or result, label_below(folder, place, own_label(result), alone)
            wrong = differing(first, result)
            if wrong:
                raise UserError(
                    f"the results in {folder} cannot stand in one table: {label} {result['seed']} had "
                    f"another {', another '.join(wrong)} than the first")
            lines.setdefault(label, []).append(result)
    if not lines:
        raise UserError(f"{folder} holds no results of evaluated runs")
    return {label: sorted(each, key=lambda result: result["seed"]) for label, each in lines.items()}


def evaluations(result, who):
    """[(step, {split: summary})] of one who was evaluated."""
    return [(record["step"], record["eval"][who]) for record in result["curve"]
            if who in record.get("eval", {})]


def last(result):
    """{split: summary} of the trained student; empty where it was never evaluated."""
    each = evaluations(result, "after")
    return each[-1][1] if each else {}


def tokens(result):
    """Trained in a whole run."""
    return sum(record.get("tokens", 0) for record in result["curve"])


def mean_height(places, heights):
    """Of a curve that is straight between its points: the mean over its places, by trapezoids."""
    places, heights = np.array(places), np.array(heights)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(places)).sum() / (places[-1] - places[0]))


def over_run(result):
    """Mean success over the steps of a run on the first held-out split; nan where it has one evaluation."""
    points = plot.held_out(result["curve"])
    return mean_height(list(points), list(points.values())) if len(points) > 1 else np.nan


def over_tokens(one, other):
    """Mean success of one run less another's over the tokens that both trained, a curve being straight
    between evaluations."""
    curves = []
    for result in (one, other):
        points, until = plot.held_out(result["curve"]), plot.tokens_until(result["curve"])
        curves.append(([until[step] for step in points], list(points.values())))
    end = min(trained[-1] for trained, _ in curves)
    places = sorted({place for trained, _ in curves for place in trained if place <= end})
    return mean_height(places, np.interp(places, *curves[0]) - np.interp(places, *curves[1]))


# ---- differences and their intervals

def paired(ours, theirs):
    """[(a run, the one of the same seed among others)], both lists of results."""
    base = {result["seed"]: result for result in theirs}
    return [(result, base[result["seed"]]) for result in ours if result["seed"] in base]


def differences(ours, theirs):
    """Success of runs less that of others, seed by seed, as shares: {"end", "over the run", "over the
    tokens"}, all on the first held-out split."""
    each = {"end": [], "over the run": [], "over the tokens": []}
    for one, other in paired(ours, theirs):
        split = next(iter(last(one)))
        each["end"].append(last(one)[split]["success"] - last(other)[split]["success"])
        each["over the run"].append(over_run(one) - over_run(other))
        each["over the tokens"].append(over_tokens(one, other))
    return each


def spread(values):
    """(mean, half of its 95 % interval over seeds by Student's t); one seed has no interval: nan."""
    values = np.array(values)
    if len(values) < 2:
        return values.mean(), np.nan
    t = STUDENT_T[min(len(values) - 1, len(STUDENT_T)) - 1]
    return values.mean(), t * values.std(ddof=1) / np.sqrt(len(values))


def interval(differences, unit=100):
    """'+3.1 [-0.4, 6.6]', by default shares in points: the mean and its 95 % interval; a dash without a
    seed."""
    if not differences:
        return "–"
    mean, half = spread(unit * np.array(differences))
    return f"{mean:+.1f}" + (f" [{mean - half:.1f}, {mean + half:.1f}]" if len(differences) > 1 else "")


# ---- tables

def markdown(columns, rows):
    """A table of rows {column: cell}; a dash where a row has none."""
    lines = [columns, *([row.get(column, "–") for column in columns] for row in rows)]
    head, *others = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([head, "|---" * len(columns) + "|", *others]) + "\n"


def success_cell(summaries):
    """'85.0 [80–89] (81–88), 9.1 rounds': in %, all games together, their 95 % interval, lowest and highest
    seed."""
    each = [100 * s["success"] for s in summaries]
    low, high = wilson(sum(s["won"] for s in summaries), sum(s["games"] for s in summaries))
    ends = f" ({min(each):.0f}–{max(each):.0f})" * (len(each) > 1)
    rounds = np.mean([s["rounds"] for s in summaries])
    return f"{np.mean(each):.1f} [{100 * low:.0f}–{100 * high:.0f}]{ends}, {rounds:.1f} rounds"


def kl_cell(each):
    """'95.5 → 15.3', mean over seeds of the first and the last tenth of the steps; a dash without a
    teacher."""
    ends = []
    for part in ("early", "late"):
        steps = [[r["kl"] for r in result["curve"] if "kl" in r] for result in each]
        ends.append([value for kls in steps for value in plot.tenth(kls, part)])
    if None in ends[0] + ends[1]:
        return "–"
    return f"{np.mean(ends[0]):.1f} → {np.mean(ends[1]):.1f}"


def quarter(each):
    """'+1.8': what the last quarter of the steps brought, in points, mean over seeds; between evaluations a
    curve is straight."""
    gains = []
    for points in [plot.held_out(result["curve"]) for result in each]:
        steps, success = list(points), list(points.values())
        gains.append(success[-1] - np.interp(0.75 * steps[-1], steps, success))
    return f"{100 * np.mean(gains):+.1f}"


def heading(label, result, study):
    """'OPD (reverse)' for a method by a loss, else the label."""
    if not study.brief and label == called(result["method"], result["loss"]):
        return f"{result['method'].upper()} ({result['loss']})"
    return label


def base_of(lines, label, study):
    """The label of the line that this one is compared with; None where there is none."""
    loss = lines[label][0]["loss"]
    if not study.same_loss:
        return study.base if study.base in lines else None
    for name, (first, *_) in lines.items():
        if first["method"] == study.base and (first["loss"] == loss or loss == "nll"):
            return name
    return None


def trained(lines, label, study, splits):
    """A line's {column: cell}."""
    each, base = lines[label], base_of(lines, label, study)
    gains = differences(each, lines[base]) if base not in (None, label) else {}
    return {
        "": heading(label, each[0], study), "seeds": str(len(each)),
        **{f"{split}, %": success_cell([last(result)[split] for result in each]) for split in splits},
        "invalid": f"{np.mean([last(result)[splits[0]]['invalid'] for result in each]):.1%}",
        "KL, start → end": kl_cell(each), "tokens": f"{np.mean(list(map(tokens, each))):,.0f}",
        "over the run, %": f"{100 * np.mean(list(map(over_run, each))):.1f}", "last quarter": quarter(each),
        **{f"to {study.base.upper()}, {what}": interval(gains.get(what, ()))
           for what in ("end", "over the run")}}


def zero_shot(result, splits):
    """The lines of those who are not trained: every run has evaluated them."""
    for who, label in (("teacher", "teacher"), ("guest", "teacher, as the student"), ("before", "student")):
        for _, found in evaluations(result, who)[:1]:
            cells = {f"{split}, %": success_cell([found[split]]) for split in splits}
            yield {"": label, "seeds": "", **cells, "invalid": f"{found[splits[0]]['invalid']:.1%}"}


def table(lines, study):
    """The Markdown table of {label: results}."""
    first = next(iter(lines.values()))[0]
    splits = list(last(first))
    rows = [trained(lines, label, study, splits) for label in lines]
    if study.brief:
        return markdown([name for name in rows[0] if name not in ("invalid", "KL, start → end")], rows)
    return markdown(list(rows[0]), [*zero_shot(first, splits), *rows])


# ---- pairs

@dataclass
class Gain:
    """F2B beside OPD. support: {turns of the student: what the teacher then wins, a share}; opd, f2b: results
    of the seeds that both have."""
    label: str
    support: dict
    opd: list
    f2b: list


def gain(out, label, loss, runs, test):
    """A row of a study of pairs, of what is kept below `out`."""
    lines = found(os.path.join(out, runs))
    opd, f2b = (lines.get(called(method, loss), []) for method in ("opd", "f2b"))
    both = paired(opd, f2b)
    if not both:
        raise UserError(f"{os.path.join(out, runs)} holds no seed of both OPD and F2B by {loss}")
    tested = read(os.path.join(out, test, TEST))["take_over"]
    return Gain(label, {row["n"]: row["success"] for row in tested}, *map(list, zip(*both)))


def gain_cells(one, first):
    """A pair's {column: cell}; first: the name of the first column."""
    split, each = next(iter(last(one.opd[0]))), differences(one.f2b, one.opd)
    ends = [np.mean([last(result)[split]["success"] for result in runs]) for runs in (one.opd, one.f2b)]
    return {
        first: one.label, **{after(n): f"{100 * success:.0f}" for n, success in one.support.items()},
        "seeds": str(len(one.opd)), "steps": str(one.opd[0]["curve"][-1]["step"]),
        "OPD": f"{100 * ends[0]:.1f}", "F2B": f"{100 * ends[1]:.1f}",
        "F2B − OPD, end": interval(each["end"]),
        **{what: interval(each[what]) for what in ("over the run", "over the tokens")}}


def gain_table(gains, study):
    """The Markdown table of a study of pairs."""
    return markdown([study.first, *study.columns], [gain_cells(one, study.first) for one in gains])


def gain_figure(gains):
    """What the curriculum gains, over the teacher's support; a hollow point is one seed."""
    figure = Figure(figsize=(11.5, 4), dpi=125, layout="constrained")
    colours, titles = {}, ("over the run", "over the tokens", "end")
    for axis, title in zip(figure.subplots(1, len(titles), sharey=True), titles):
        for one in gains:
            colour = colours.setdefault(one.label, f"C{len(colours)}")
            mean, half = spread(100 * np.array(differences(one.f2b, one.opd)[title]))
            hollow = dict(mfc="white") if np.isnan(half) else {}
            axis.errorbar(100 * one.support[SUPPORT], mean, half, fmt="o", color=colour, capsize=3, **hollow)
        axis.axhline(0, color="grey", lw=0.8)
        axis.set(title=title, xlabel=f"teacher's success after {SUPPORT} student turns, %")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    figure.axes[0].set_ylabel("F2B − OPD, points of success")
    plot.legend(figure, [
        Line2D([], [], marker="o", ls="", color=colour, label=label.replace("`", ""))
        for label, colour in colours.items()])
    return figure


# ---- the whole

def drawn(args, study):
    """(table, figure) of what is found."""
    if isinstance(study, Pairs):
        gains = [gain(args.out, *row) for row in study.rows
                 if os.path.exists(os.path.join(args.out, row[-1], TEST))]
        if not gains:
            raise UserError(f"{args.out} holds no teacher's take-over test of --study {args.study}")
        return gain_table(gains, study), gain_figure(gains)
    lines = found(args.out)
    order = study.lines if args.lines or study.brief else LINES  # methods, each by all losses
    names = dict.fromkeys(order if args.lines else (*order, *lines))
    lines = {name: lines[name] for name in names if name in lines}
    if not lines:
        raise UserError(f"{args.out} holds no evaluated run of --lines {' '.join(study.lines)}")
    curves = {heading(label, each[0], study): [result["curve"] for result in each]
              for label, each in lines.items()}
    return table(lines, study), plot.draw(curves, smooth=5)


def main(args):
    study = asked(args)
    if not args.draw and isinstance(study, Study):
        run_all(args, parse_lines(args.lines or study.lines))
    elif not args.draw and study.makes:
        make_all(args, study)
    text, figure = drawn(args, study)
    table, picture = os.path.join(args.out, "table.md"), os.path.join(args.out, "figure.png")
    with open(table, "w", encoding="utf-8") as file:
        file.write(text)
    figure.savefig(picture)
    print(f"{text}\nwrote {table} and {picture}")


if __name__ == "__main__":
    command(main, Args)
