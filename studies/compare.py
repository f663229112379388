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

The table: success with its 95 % interval over games and the lowest and highest seed, and mean rounds, on
every held-out split; invalid actions on the first; the KL of a trajectory in the first and the last tenth of
the steps; trained tokens; the mean success over the run, speed and end in one figure; what its last quarter
brought, which says whether the curve is flat; the differences to the base, paired by seed and by game. A
second table says what each took: tokens trained; tokens that the teacher was asked for, those that it scored
(proposals that were dropped are not counted) and those that it drew; answers that it read before the game
did; seconds; and the differences over equal tokens of both kinds. With `field` a third table says how was
played in training: repeated and refused turns, and the KL. A note says in what else the lines differ.
Within a line all is the same but the seed, between lines the models and the evaluation are: other results are
refused. docs/results.md says what the intervals are.

Two studies set F2B beside OPD, a row for each comparison, and in the figure over what the teacher wins after
six turns of the student (its support): `gains` of all that is kept (`--study gains --out results`), and
`mechanism`, which first makes its teachers, from narrow to broad, by the share of mixed play that they saw.
`field` sets all methods and their controls beside OPD, and its figure has the differences; `methods` sets
such comparisons side by side (`--study methods --draw true --out results/methods`).
"Over the tokens" is where both have trained as many, from the first token to the last that both did.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import curriculum
import plot
from harness import stops
from harness.cli import UserError, check_knobs, command, knob, parse
from harness.folder import LOG, parsed, read_args, read_log, write_lines
from harness.report import difference, rate, wilson
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
    forest: bool = False        # its figure has differences to the base, not curves


class Pairs(NamedTuple):
    """A table of comparisons, F2B less OPD in each. rows: (label, loss, folder of the runs, folder of the
    teacher's take-over test)."""
    first: str                  # what a row is
    rows: tuple
    columns: tuple
    makes: bool = False         # teachers and runs, the label being a share of mixed play; else all is there


class Beside(NamedTuple):
    """Comparisons by `field` side by side. folders: {what is compared in it: folder, seen from --out}."""
    folders: dict


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
    "field": Study(
        ("opd", "f2b", "f2b-constant", "opd-near", "b2f", "guided", "sft",
         *(name for name in METHODS if name not in curriculum.METHODS)), same_loss=False, forest=True),
    "methods": Beside({
        "ALFWorld, narrow": "../alfworld-full-narrow", "small, narrow": "../field",
        "small, broad": "../field-broad"}),
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
FIELD, TITLES = STUDIES["field"], ("over the run", "over the tokens", "end")
MADE = "--make teacher --refresh 0 --games 1500 --teacher-steps 900"   # a teacher of `mechanism`
TESTED = "--temperature 1 --games 140"                                 # its take-over test
OWNED = ("env", "data", "student", "teacher", "seed", "out", "resume", "plan")  # for the comparison to say
EVALUATION = (          # the same in all lines, and so are the models and the held-out games
    "env", "knobs", "history", "max_turns", "max_response", "max_context", "precision", "eval_temperature",
    "eval_max_response", "student", "teacher", "prompt")
TRAINED = ("list of training tasks", "experts' episodes")  # fingerprints that lines need not share
CHOSEN = ("method", "loss")                         # what a label says
CURRICULUM = ("method", "schedule", "k_start", "eta", "stages", "rho")  # in what F2B may differ from OPD
KEPT = (  # of a step's record in a result
    "step", "k", "loss", "kl", "kl_turn", "success", "rounds", "invalid", "repeats", "missing", "tokens",
    "weighed", "judged", "teacher_tokens", "seconds", "grad_norm", "eval")


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


def refuse(flags, owned, where, whose):
    """Raises UserError for flags that are for others to say."""
    given = [flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in flags]
    wrong = [f"--{name.replace('_', '-')}" for name in given if name in owned]
    if wrong:
        raise UserError(f"{where} cannot give {', '.join(wrong)}: that is for {whose} to say")


def asked(args):
    """The study, its lines being those of --lines where these are given; raises UserError for what cannot be
    asked."""
    check_knobs(args)
    parse_seeds(args.seeds)
    ours = ("experts", "without", "eval_splits") if args.experts == "teacher" else ()
    refuse(shlex.split(args.flags), (*OWNED, *CHOSEN, *ours), "--flags", "the comparison or its --lines")
    for label, flags in parse_lines(args.lines or ()).items():
        owned = (*OWNED, *EVALUATION, "eval_games", "eval_splits", *ours)
        refuse(flags, owned, f"--lines {label}", "the whole comparison")
    study = STUDIES[args.study]
    if not args.lines:
        return study
    if not isinstance(study, Study):
        raise UserError(f"--study {args.study} has lines of its own: leave out --lines")
    return study._replace(lines=tuple(parse_lines(args.lines)))


# ---- the runs

CHILDREN = set()    # programs of ours that run


def hand_on(stop):
    """A SIGTERM, to the programs that run; a Ctrl-C reaches them by itself."""
    if stop.status == 128 + signal.SIGTERM:
        for child in list(CHILDREN):
            child.terminate()


def start(program, flags, screen=None):
    """Run a program of ours (a file, or a module's name) to its end, also after a stop; its screen is added
    to a file, else it is ours. Raises UserError where it fails."""
    what = [os.path.join(ROOT, program)] if program.endswith(".py") else ["-m", program]
    found = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    variables = {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": threads}
    with open(screen, "a", encoding="utf-8") if screen else nullcontext() as file, subprocess.Popen(
            [sys.executable, *what, *flags], stdout=file, stderr=file, env=variables) as child:
        CHILDREN.add(child)
        try:
            child.wait()
        except stops.Stopped as stop:
            hand_on(stop)
            raise
        finally:
            CHILDREN.remove(child)
    if child.returncode:
        where = f": see the end of {screen}" if screen else ""
        raise UserError(f"{program} ended with status {child.returncode}{where}")


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
        curve.append(short({key: record[key] for key in KEPT if key in record}))
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
        try:
            for future in made.values():
                future.result()  # raises what its run raised
        except BaseException as error:  # no further run begins
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, stops.Stopped):
                hand_on(error)
            raise


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


def read_result(path):
    """The result of a run; raises UserError for any other file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        result = parsed(file.read())
    if not isinstance(result, dict) or not {"method", "seed", "args", "curve"} <= set(result):
        raise UserError(f"{path} is no result of a run: remove it, or put it elsewhere")
    return result


def identity(result):
    """{what: its value} of a run but its seed: arguments, fingerprints, and how the held-out splits are
    called."""
    return {**plot.identity({**result["args"], "fingerprint": result["fingerprint"]}),
            "held-out splits": list(last(result))}


def measured(result):
    """That part of its identity which is the same in all lines: all but what is about training."""
    return {what: value for what, value in identity(result).items()
            if (what in EVALUATION or what not in result["args"]) and what not in TRAINED}


def check_same(lines, folder):
    """Raises UserError where a line has a run of another experiment, or twice one of a seed; or where lines
    have other models, games or another evaluation than one another."""
    all_lines = {}
    for label, results in lines.items():
        known, seeds = {}, set()
        for result in results:
            own, name = identity(result), f"{label} with seed {result['seed']}"
            if label.split("/")[-1] in EQUAL_TOKENS:
                own.pop("steps", None)  # by seed
            changed = plot.unlike(all_lines, measured(result)) or plot.unlike(known, own)
            if changed:
                raise UserError(
                    f"the results in {folder} cannot stand in one table: {name} had another "
                    f"{', another '.join(changed)} than those before")
            seed = result["args"].get("seed", result["seed"])
            if seed in seeds:
                raise UserError(f"{folder} holds {name} twice: put one of the two elsewhere")
            seeds.add(seed)


def own_label(result):
    """What a result's line is called in its comparison; older ones do not say."""
    return result.get("label") or called(result["method"], result["loss"])


def places(folder):
    """The folders called `results` in it, itself and those behind links too, each once, in order."""
    seen = set()
    for place, names, _ in os.walk(os.path.normpath(folder), followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names.sort()
        if os.path.basename(place) == "results":
            yield place


def found(folder):
    """{label: [its results by seed]} of all evaluated runs below a folder.

    A label is the line's own in a folder of one comparison. In a folder of several it stands behind its
    comparison's, which alone is the label where there is one line in it ('f2b-eta-4'). Raises UserError where
    there is no result, or results cannot stand in one table: see `check_same`.
    """
    comparisons = {}
    for place in places(folder):
        names = [name for name in sorted(os.listdir(place)) if name.endswith(".json") and name[0] != "."]
        paths = plot.once([os.path.join(place, name) for name in names])
        results = [result for result in map(read_result, paths) if last(result)]
        if results:
            comparisons[os.path.relpath(os.path.dirname(place), folder)] = results
    lines = {}
    for name, results in comparisons.items():
        alone = len(set(map(own_label, results))) == 1
        for result in sorted(results, key=lambda result: result["seed"]):
            label = own_label(result)
            if name not in (".", ".."):
                label = name if alone else f"{name}/{label}"
            lines.setdefault((label, name), []).append(result)
    labels = [label for label, _ in lines]
    told = {(f"{name}/{own_label(each[0])}" if labels.count(label) > 1 else label): each
            for (label, name), each in lines.items()}
    if not told:
        raise UserError(f"{folder} holds no results of evaluated runs")
    check_same(told, folder)
    return told


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
    return max(plot.tokens_until(result["curve"]).values())


def asked_of_teacher(result):
    """Tokens that a whole run asked the teacher for; None of an older result, which does not tell."""
    told = all("teacher_tokens" in record for record in steps_of(result))
    return max(asked_until(result["curve"]).values()) if told else None


def outcomes(summary):
    """(games,) of an evaluation: 1 where a game was won, 0 where it was lost, nan where it could not be
    played; (1,), its success, of older results, which do not keep it by game."""
    if "each" not in summary:
        return np.array([summary["success"]])
    return np.array([{"0": 0, "1": 1, "-": np.nan}[letter] for letter in summary["each"]])


def level(each):
    """Arrays (games,) or (1,) as one: by game where all are, else their means (number, 1)."""
    if min(map(len, each)) == 1:
        each = [np.nanmean(one, keepdims=True) for one in each]
    return np.array(each, float)


def asked_until(records):
    """{step: tokens that the teacher was asked for up to it}, scored or drawn."""
    points, asked = {}, 0
    for record in records:
        if record.get("kl") is not None:
            asked += record.get("tokens", 0)
        if not record.get("judged"):  # else the states that it drew from are those that score
            asked += record.get("teacher_tokens", 0)
        points[record["step"]] = asked
    return points


def learned(result, split=None):
    """(steps, success (points, games), see `outcomes`) of the student on a held-out split, the first one
    unless it is named."""
    points = {}
    for who in ("before", "after"):
        for step, splits in evaluations(result, who):
            points[step] = outcomes(splits[split or next(iter(splits))])
    return list(points), level(list(points.values()))


def at(place, places, heights):
    """The height of a curve (points, games), straight between its points, at a place (games,), or at several
    (places, games)."""
    return np.apply_along_axis(lambda game: np.interp(place, places, game), 0, heights)


def mean_height(places, heights):
    """The mean of a curve over its places (games,), by trapezoids."""
    return np.diff(places) @ (heights[1:] + heights[:-1]) / 2 / (places[-1] - places[0])


def over_run(result, split=None):
    """Mean success over the steps of a run (games,)."""
    return mean_height(*learned(result, split))


def over_both(count, one, other):
    """Mean success of each of two runs over what both reached of a count, as `plot.tokens_until`."""
    curves = []
    for result in (one, other):
        until, (steps, heights) = count(result["curve"]), learned(result)
        curves.append(([until[step] for step in steps], heights))
    end = min(reached[-1] for reached, _ in curves)
    places = sorted({place for reached, _ in curves for place in reached if place <= end})
    return [mean_height(places, at(places, *curve)) for curve in curves]


# ---- differences and their intervals

def paired(ours, theirs):
    """[(a run, the one of the same seed among others)], both lists of results."""
    base = {result["seed"]: result for result in theirs}
    return [(result, base[result["seed"]]) for result in ours if result["seed"] in base]


def compared(pairs, number):
    """(mean, half of its 95 % interval), see `report.difference`. pairs: of each seed the success (games,) of
    a run and of the one that it is compared with; number: of games."""
    both = level([side for pair in pairs for side in pair]).reshape(len(pairs), 2, -1)
    return difference(*both[:, :, ~np.isnan(both).any((0, 1))].swapaxes(0, 1), number)


def differences(ours, theirs):
    """{"end", "over the run", "over the tokens", "over the teacher's tokens"}: success of runs less that of
    others on the first held-out split, (mean, half of its 95 % interval); empty where they share no seed. The
    last is of the seeds where both are known to have asked the teacher."""
    pairs, number = paired(ours, theirs), next(iter(last(ours[0]).values()))["games"]
    each = {
        "end": [(learned(one)[1][-1], learned(other)[1][-1]) for one, other in pairs],
        "over the run": [(over_run(one), over_run(other)) for one, other in pairs],
        "over the tokens": [over_both(plot.tokens_until, *pair) for pair in pairs],
        "over the teacher's tokens": [
            over_both(asked_until, *pair) for pair in pairs if all(map(asked_of_teacher, pair))]}
    return {what: compared(values, number) for what, values in each.items() if values}


def interval(mean, half, unit=100):
    """'+3.1 [-0.4, 6.6]', by default shares in points; one seed has no interval."""
    low, mean, high = (round(unit * value, 1) + 0.0 for value in (mean - half, mean, mean + half))  # no -0.0
    return f"{mean:+.1f}" + f" [{low:.1f}, {high:.1f}]" * (not np.isnan(half))


# ---- tables

def markdown(columns, rows):
    """A table of rows {column: cell}; a dash where a row has none."""
    lines = [columns, *([row.get(column, "–") for column in columns] for row in rows)]
    head, *others = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join([head, "|---" * len(columns) + "|", *others]) + "\n"


def success_cell(summaries):
    """'85.0 [80–89] (81–88), 9.1 rounds': in %, the 95 % interval over games of all evaluations, which are of
    the same games, lowest and highest seed."""
    shares, won = [100 * s["success"] for s in summaries], level(list(map(outcomes, summaries)))
    low, high = wilson(np.mean(shares) / 100 * summaries[0]["games"], summaries[0]["games"])
    if won.shape[1] > 1:  # else each game counts once, as if it came out alike with all seeds
        won = won[:, ~np.isnan(won).any(0)]
        low, high = (rate(won.sum(0), np.full(won.shape[1], len(won)))[end] for end in ("low", "high"))
    ends = f" ({min(shares):.0f}–{max(shares):.0f})" * (len(shares) > 1)
    rounds = np.mean([s["rounds"] for s in summaries])
    return f"{np.mean(shares):.1f} [{100 * low:.0f}–{100 * high:.0f}]{ends}, {rounds:.1f} rounds"


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
    """'OPD (reverse)' for a method by a loss where losses are compared, else the label."""
    if study.same_loss and label == called(result["method"], result["loss"]):
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


def gained(lines, label, study):
    """A line's `differences` to its base; empty where it has none."""
    base = base_of(lines, label, study)
    return differences(lines[label], lines[base]) if base not in (None, label) else {}


def trained(each, label, study, splits, gains):
    """A line's {column: cell}. each: its results; gains: see `gained`."""
    runs = [100 * np.nanmean(over_run(result)) for result in each]
    return {
        "": heading(label, each[0], study), "seeds": str(len(each)),
        **{f"{split}, %": success_cell([last(result)[split] for result in each]) for split in splits},
        "invalid": f"{np.mean([last(result)[splits[0]]['invalid'] for result in each]):.1%}",
        "KL, start → end": kl_cell(each), "tokens": f"{np.mean(list(map(tokens, each))):,.0f}",
        "over the run": f"{np.mean(runs):.1f}", "last quarter": quarter(each),
        **{f"to {study.base.upper()}, {what}": interval(*gains[what]) if gains else "–"
           for what in ("end", "over the run")}}


def spent(each, label, study, gains):
    """What a line took, {column: cell}: means over its seeds; a dash where one is an older result."""
    found = {
        "teacher's tokens": asked_of_teacher,
        "of these drawn": lambda result: sum(r["teacher_tokens"] for r in steps_of(result)),
        "turns judged in play": lambda result: sum(r["judged"] for r in steps_of(result)),
        "seconds of play": lambda result: sum(r["seconds"]["play"] for r in steps_of(result)),
        "of training": lambda result: sum(r["seconds"]["train"] for r in steps_of(result))}
    known = all(asked_of_teacher(result) is not None for result in each)
    means = {name: np.mean(list(map(count, each))) if known else None for name, count in found.items()}
    means = {"tokens trained": np.mean(list(map(tokens, each))), **means}
    return {
        "what it took": heading(label, each[0], study),
        **{name: "–" if mean is None else f"{mean:,.0f}" for name, mean in means.items()},
        **{f"to {study.base.upper()}, {what}": interval(*gains[what]) if what in gains else "–"
           for what in ("over the tokens", "over the teacher's tokens")}}


def mean_kl(record):
    """The mean KL of its turns by their index, nats; NaN where nothing was compared with a teacher."""
    values = [kl for kl in record["kl_turn"] if kl is not None]
    return np.mean(values) if values else np.nan


def went(each, label, study):
    """How a line played in training, {column: cell}: means over its seeds by quarter of the steps; a dash
    where an older result does not tell."""
    found = {
        "turns that repeat, %": lambda record: 100 * record["repeats"],
        "that the game refused, %": lambda record: 100 * record["invalid"],
        "KL, mean over the turn's index, nats": mean_kl}
    cells = {"training, by quarter": heading(label, each[0], study)}
    if not all("repeats" in record for one in each for record in steps_of(one)):
        return cells
    for name, figure in found.items():
        runs = [np.array_split([figure(record) for record in steps_of(one)], 4) for one in each]
        quarters = np.mean([[np.mean(part) for part in run if len(part)] for run in runs], 0)  # (4,)
        if not np.isnan(quarters).any():
            cells[name] = " · ".join(f"{value:.1f}" for value in quarters)
    return cells


def steps_of(result):
    """The records of its training steps."""
    return [record for record in result["curve"] if record["step"]]


def zero_shot(result, splits):
    """The lines of those who are not trained: every run has evaluated them."""
    for who, label in (("teacher", "teacher"), ("guest", "teacher, as the student"), ("before", "student")):
        for _, found in evaluations(result, who)[:1]:
            cells = {f"{split}, %": success_cell([found[split]]) for split in splits}
            yield {"": label, "seeds": "", **cells, "invalid": f"{found[splits[0]]['invalid']:.1%}"}


def note(lines):
    """In what lines differ besides what a label says, as a sentence below the table; empty where in
    nothing."""
    seen = {}  # {what: {its values: None}}
    for result in (result for results in lines.values() for result in results):
        for what, value in identity(result).items():
            seen.setdefault(what, {})[str(value) or "–"] = None
    each = [f"{what} ({', '.join(values)})" for what, values in sorted(seen.items())
            if len(values) > 1 and what not in CHOSEN]
    return f"\nnote: the lines differ in {', '.join(each)} too\n" if each else ""


def table(lines, study):
    """The Markdown table of {label: results}."""
    first = next(iter(lines.values()))[0]
    splits = list(last(first))
    gains = {label: gained(lines, label, study) for label in lines}
    rows = [trained(each, label, study, splits, gains[label]) for label, each in lines.items()]
    columns = list(rows[0])
    if study.brief:
        columns = [name for name in columns if name not in ("invalid", "KL, start → end")]
    else:
        rows = [*zero_shot(first, splits), *rows]
    text = markdown(columns, rows)
    costs = [spent(each, label, study, gains[label]) for label, each in lines.items()]
    if any(cost["teacher's tokens"] != "–" for cost in costs):
        text += "\n" + markdown(list(costs[0]), costs)
    if study.forest:
        played = [went(each, label, study) for label, each in lines.items()]
        text += "\n" + markdown(max(map(list, played), key=len), played)
    return text + note(lines)


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
    changed = set(plot.unlike(identity(opd[0]), identity(f2b[0]))) - set(CURRICULUM)
    if changed:
        raise UserError(f"{os.path.join(out, runs)}: OPD and F2B had another {', another '.join(changed)}")
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
        "F2B − OPD, end": interval(*each["end"]),
        **{what: interval(*each[what]) for what in ("over the run", "over the tokens")}}


def gain_table(gains, study):
    """The Markdown table of a study of pairs."""
    return markdown([study.first, *study.columns], [gain_cells(one, study.first) for one in gains])


def gain_figure(gains):
    """What the curriculum gains, over the teacher's support; a hollow point is one seed."""
    figure = Figure(figsize=(11.5, 4), dpi=125, layout="constrained")
    colours = {}
    for axis, title in zip(figure.subplots(1, len(TITLES), sharey=True), TITLES):
        for one in gains:
            colour = colours.setdefault(one.label, f"C{len(colours)}")
            mean, half = 100 * np.array(differences(one.f2b, one.opd)[title])
            hollow = dict(mfc="white") if np.isnan(half) else {}
            axis.errorbar(100 * one.support[SUPPORT], mean, half, fmt="o", color=colour, capsize=3, **hollow)
        axis.axhline(0, color="grey", lw=0.8)
        tidy(axis, title, f"teacher's success after {SUPPORT} student turns, %")
    figure.axes[0].set_ylabel("F2B − OPD, points of success")
    plot.legend(figure, [
        Line2D([], [], marker="o", ls="", color=colour, label=label.replace("`", ""))
        for label, colour in colours.items()])
    return figure


def tidy(axis, title, label):
    axis.set(title=title, xlabel=label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)


# ---- the field

def side_by_side(out, study):
    """{what is compared: {label: its results}} of a study of comparisons."""
    each = {name: found(os.path.join(out, folder)) for name, folder in study.folders.items()}
    for name, lines in each.items():
        if FIELD.base not in lines:
            raise UserError(f"{name}: there is no {FIELD.base}, which all others are compared with")
    return each


def beside_cells(lines, label, name):
    """A line's {column: cell} of one of the comparisons; empty where it has none."""
    if label not in lines:
        return {}
    ends = [100 * next(iter(last(result).values()))["success"] for result in lines[label]]
    seeds = f"{min(ends):.0f}–{max(ends):.0f}, {len(ends)} seeds" if len(ends) > 1 else "1 seed"
    gains = gained(lines, label, FIELD)
    return {
        f"{name}: end": f"{np.mean(ends):.1f} ({seeds})",
        **{f"{name}: less OPD, {what}": interval(*gains[what]) for what in TITLES[:2] if gains}}


def beside_table(each, panels):
    """The Markdown table of `side_by_side`: the base, then the others as in the figure."""
    columns = [f"{name}: {what}" for name in each
               for what in ("end", *(f"less OPD, {title}" for title in TITLES[:2]))]
    rows = []
    for label in (FIELD.base, *reversed(ranked(panels))):
        cells = [beside_cells(lines, label, name) for name, lines in each.items()]
        rows.append({"": label, **{column: cell for one in cells for column, cell in one.items()}})
    return markdown(["", *columns], rows)


def ranked(panels):
    """All lines of `forest`, the best of the first panel last, then by the next one."""
    names = dict.fromkeys(name for panel in panels.values() for name in panel)
    return sorted(names, key=lambda name: [panel.get(name, (-1, 0))[0] for panel in panels.values()])


def forest(panels, base):
    """Differences to a base, with their intervals, the best of the first panel on top; a hollow point is one
    seed. panels: {title: {line: (mean, half of its interval)}}. The axes have one range, beyond which the
    intervals of two seeds go."""
    names = ranked(panels)
    figure = Figure(figsize=(11.5, 0.8 + 0.24 * len(names)), dpi=125, layout="constrained")
    for axis, (title, panel) in zip(figure.subplots(1, len(panels), sharey=True), panels.items()):
        for name, ends in panel.items():
            mean, half = 100 * np.array(ends)
            hollow = dict(mfc="white") if np.isnan(half) else {}
            place = names.index(name)
            axis.errorbar(mean, place, xerr=half, fmt="o", color="C0", capsize=2, **hollow)
        axis.axvline(0, color="grey", lw=0.8)
        axis.set_xlim(-60, 100)
        axis.set_yticks(range(len(names)), names)
        tidy(axis, title, f"less {base.upper()}, points of success")
    return figure


def lines_by(what, lines, study):
    """{line: (mean, half)} of one of `differences`, as `forest` wants it."""
    gains = {heading(label, each[0], study): gained(lines, label, study) for label, each in lines.items()}
    return {name: each[what] for name, each in gains.items() if each}


# ---- the whole

def drawn(args, study):
    """(table, figure) of what is found."""
    if isinstance(study, Pairs):
        gains = [gain(args.out, *row) for row in study.rows
                 if os.path.exists(os.path.join(args.out, row[-1], TEST))]
        if not gains:
            raise UserError(f"{args.out} holds no teacher's take-over test of --study {args.study}")
        return gain_table(gains, study), gain_figure(gains)
    if isinstance(study, Beside):
        each = side_by_side(args.out, study)
        panels = {f"{name}, over the run": lines_by("over the run", lines, FIELD)
                  for name, lines in each.items()}
        return beside_table(each, panels), forest(panels, FIELD.base)
    lines = found(args.out)
    order = study.lines if args.lines or study.brief else LINES  # methods, each by all losses
    names = dict.fromkeys(order if args.lines else (*order, *lines))
    lines = {name: lines[name] for name in names if name in lines}
    if not lines:
        raise UserError(f"{args.out} holds no evaluated run of --lines {' '.join(study.lines)}")
    if study.forest and study.base in lines:
        panels = {what: lines_by(what, lines, study) for what in TITLES}
        return table(lines, study), forest(panels, study.base)
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
