"""The paper's comparison by one command: Table 2 with our rows, and its figures.

    python benchmarks/paper_table.py --env alfworld --data DATA --student STUDENT --teacher TEACHER \\
        --methods sft,opd,f2b,b2f,guided --losses reverse,k1 --seeds 0,1,2,3,4 --jobs 2 --out runs/paper
    python benchmarks/paper_table.py --out runs/paper --draw true        # again from the results alone

First the teacher plays the train split `--samples` times: its won episodes are the experts of b2f and sft,
and the tasks that it never wins are the hard split, which is left out of training (`--experts own` takes the
environment's own experts and has no hard split). Then each run is tcod.py with a method, a loss and a seed;
seeds are outermost, so that a comparison stopped early is complete for its first ones. What a kill
interrupted goes on. A finished run leaves one JSON file in `results/` (what was asked for, fingerprints of
tasks and weights, its curve), which is all that the table and the figures need.

The table: success with the 95 % interval of all games together and the lowest and highest seed, and mean
rounds, on every held-out split; invalid actions on the first; the KL of a trajectory in the first and the
last tenth of the steps; trained tokens; the mean success over the run, speed and end in one figure; what
its last quarter brought, which says whether the curve is flat; and the differences to OPD by the same loss
(sft's: by the first loss), paired by seed, with their 95 % intervals over seeds (Student's t).
"""

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import plot
from curriculum import METHODS, NEEDS_EXPERT
from harness.cli import UserError, check_knobs, command, knob
from harness.folder import LOG, read_args, read_log, write_json, write_lines
from harness.report import wilson

LOSSES = ("reverse", "forward", "jsd", "k1")    # without torch; nll is sft's alone
WITHOUT_LOSS = ("sft",)         # learns by nll, whatever --losses says
HARD = "hard"
# 97.5 % points of Student's t distribution with 1, 2, ... degrees of freedom.
STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
KEPT = (  # of a step's record in a result
    "step", "k", "loss", "kl", "kl_turn", "success", "rounds", "invalid", "missing", "tokens", "grad_norm",
    "eval")


@dataclass
class Args:
    """Which runs, and where."""
    env: str = knob("alfworld", "alfworld, webshop or scienceworld")
    data: str = knob("", "as for tcod.py", path=True)
    student: str = knob("tiny-student", "checkpoint", path=True)
    teacher: str = knob("tiny-teacher", "checkpoint", path=True)
    methods: str = knob("sft,opd,f2b,b2f,guided", f"by commas: {', '.join(METHODS)}")
    losses: str = knob("reverse", f"by commas: {', '.join(LOSSES)}; sft learns by nll, once")
    seeds: str = knob("0,1,2", "whole numbers, by commas")
    experts: str = knob(
        "teacher", "teacher: its own successes, collected first; own: the environment's",
        choices=("teacher", "own"))
    samples: int = knob(10, "how often the teacher plays each train task", least=1)
    collect: int = knob(0, "train tasks that the teacher plays; 0: all", least=0)
    jobs: int = knob(1, "runs at once", least=1)
    flags: str = knob("", "further flags for every run of tcod.py, in quotes: '--steps 250 --lr 1e-6'")
    draw: bool = knob(False, "no runs: table and figures from the results that are there")
    out: str = knob("runs/paper", "folder of everything", path=True)


# ---- what is asked for

def chosen(text, known, name):
    """A list by commas; raises UserError for one that is not known, named twice, or none."""
    values = [value.strip() for value in text.split(",")]
    wrong = [value for value in values if value not in known]
    if wrong or len(set(values)) < len(values):
        raise UserError(f"--{name} wants each once, by commas, of {', '.join(known)}, not {text!r}")
    return values


def parse_seeds(text):
    """'0,1,2' -> ['0', '1', '2']; raises UserError for anything else."""
    seeds = [seed.strip() for seed in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds are whole numbers, each once, by commas, not {text!r}")
    return seeds


def rows(args):
    """(method, loss) of the table's lines, in their order."""
    methods, losses = chosen(args.methods, METHODS, "methods"), chosen(args.losses, LOSSES, "losses")
    pairs = []
    for method in methods:
        pairs += [(method, "nll")] if method in WITHOUT_LOSS else [(method, loss) for loss in losses]
    return pairs


def hard_tasks(args):
    """How many tasks the hard split has; 0 where there is none."""
    path = os.path.join(args.out, "hard.jsonl")
    if args.experts != "teacher" or not os.path.exists(path):
        return 0
    with open(path, encoding="utf-8") as file:
        return sum(bool(line.strip()) for line in file)


def flags_of(args, method, loss, seed, splits):
    """What a run of tcod.py is told, but for its folder.

    splits: the environment's held-out ones; the hard one joins them, and is left out of training.
    """
    flags = ["--env", args.env, "--data", args.data, "--student", args.student, "--teacher", args.teacher]
    flags += ["--method", method, "--loss", loss, "--seed", seed]
    if args.experts == "teacher" and method in NEEDS_EXPERT:
        flags += ["--experts", os.path.join(args.out, "experts.jsonl")]
    if hard_tasks(args):
        hard = os.path.join(args.out, "hard.jsonl")
        flags += ["--without", hard, "--eval-splits", ",".join([*splits, f"{HARD}={hard}"])]
    return flags + shlex.split(args.flags)


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


def collect(args):
    """The teacher's own successes and the hard split.

    Interrupted, it goes on; finished, eval.py finds nothing left to play, or says that what it finds is of
    another teacher, other games or samples.
    """
    start("eval.py", [
        "--env", args.env, "--data", args.data, "--model", args.teacher, "--split", "train",
        "--games", str(args.collect or 10**9), "--samples", str(args.samples), "--temperature", "1.0",
        "--save-expert", os.path.join(args.out, "experts.jsonl"),
        "--save-hard", os.path.join(args.out, "hard.jsonl"), "--out", os.path.join(args.out, "teacher.json")],
        os.path.join(args.out, "teacher.txt"))


def lengthened(before, flags):
    """The number of steps to go on to where a run was asked for the same but for fewer of them, else None."""
    def split(flags):
        """(flags without --steps, its value)"""
        at = flags.index("--steps") if "--steps" in flags else len(flags)
        return flags[:at] + flags[at + 2:], int(flags[at + 1]) if at + 1 < len(flags) else 0

    (old, fewer), (new, more) = split(before), split(flags)
    return more if old == new and fewer < more else None


def run(args, method, loss, seed, flags):
    """Train once, in a process of its own, or go on, or find it done; leaves the run's result.

    Raises UserError where the run's folder was begun with other flags.
    """
    name = f"{method}-{loss}-{seed}"
    folder, result = os.path.join(args.out, name), os.path.join(args.out, "results", f"{name}.json")
    asked, told = os.path.join(args.out, f"{name}.asked.json"), ["--resume", folder]
    begun = os.path.exists(os.path.join(folder, "args.json"))
    before = read(asked) if os.path.exists(asked) else None
    if os.path.exists(result) and read(result)["asked"] == flags:
        return
    if not begun:
        told = [*flags, "--out", folder]
    elif before != flags:
        steps = lengthened(before or [], flags)
        if steps is None:
            raise UserError(
                f"{folder} was begun with other flags ({shlex.join(before or [])}): remove it, or choose "
                "another --out")
        told += ["--steps", str(steps)]
    write_json(asked, flags)
    start("tcod.py", told, f"{folder}.txt")
    write_lines(result, [digest(folder, method, loss, seed, flags)])  # one line: thousands of short numbers
    print("finished", folder, flush=True)


def run_all(args):
    """What is not there yet, some runs at once."""
    import envs  # torch and the engines: not for --draw

    os.makedirs(os.path.join(args.out, "results"), exist_ok=True)
    pairs, seeds = rows(args), parse_seeds(args.seeds)
    splits = envs.game_type(args.env).eval_splits
    if args.experts == "teacher":
        collect(args)
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = []
        for seed in seeds:
            for method, loss in pairs:
                flags = flags_of(args, method, loss, seed, splits)
                futures.append(pool.submit(run, args, method, loss, seed, flags))
        for future in futures:
            future.result()  # raises what its run raised


# ---- a run's result

def short(value):
    """Numbers with five digits: a curve is drawn from them."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: short(part) for key, part in value.items()}
    return [short(part) for part in value] if isinstance(value, list) else value


def digest(folder, method, loss, seed, flags):
    """All that table and figures need of a finished run."""
    args = read_args(folder)
    curve = []
    for record in read_log(os.path.join(folder, LOG)):
        kept = {key: record[key] for key in KEPT if key in record}
        kept["seconds"] = sum(record.get("seconds", {}).values())
        curve.append(short(kept))
    prints = args.pop("fingerprint", {})
    for place in ("out", "resume"):  # of this machine
        args.pop(place)
    return dict(
        method=method, loss=loss, seed=int(seed), asked=flags, args=args, fingerprint=prints, curve=curve)


def read(path):
    """A JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def results(args):
    """{(method, loss): its results by seed}, those that are asked for and there.

    Raises UserError where they were not all made with the same models and held-out games.
    """
    found, folder = {}, os.path.join(args.out, "results")
    for pair in rows(args):
        paths = [os.path.join(folder, f"{'-'.join(pair)}-{seed}.json") for seed in parse_seeds(args.seeds)]
        each = [read(path) for path in paths if os.path.exists(path)]
        if each:
            found[pair] = each
    everyone = [result for each in found.values() for result in each]
    if not everyone:
        raise UserError(f"{folder} holds no results of these methods, losses and seeds")
    check_same(everyone, folder)
    return found


def check_same(results, folder):
    """Raises UserError where results were not all made with the same models and held-out games."""
    first = results[0]["fingerprint"]
    for result in results:
        prints = result["fingerprint"]
        wrong = [what for what in first if "training" not in what and prints.get(what) != first[what]]
        if wrong:
            raise UserError(
                f"the results in {folder} cannot stand in one table: {result['method']} {result['loss']} "
                f"{result['seed']} had another {', another '.join(wrong)} than the first")


# ---- the table

def evaluations(result, who):
    """[(step, {split: summary})] of one who was evaluated."""
    return [(record["step"], record["eval"][who]) for record in result["curve"]
            if who in record.get("eval", {})]


def last(result):
    """{split: summary} of the trained student; empty where it was never evaluated."""
    each = evaluations(result, "after")
    return each[-1][1] if each else {}


def mean_height(places, heights):
    """Of a curve that is straight between its points: the mean over its places, by trapezoids."""
    places, heights = np.array(places), np.array(heights)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(places)).sum() / (places[-1] - places[0]))


def over_run(result):
    """Mean success over the steps of a run on the first held-out split; nan where it has one evaluation."""
    points = plot.held_out(result["curve"])
    return mean_height(list(points), list(points.values())) if len(points) > 1 else np.nan


def quarter(each):
    """'+1.8': what the last quarter of the steps brought, in points, mean over seeds; between evaluations a
    curve is straight."""
    gains = []
    for points in [plot.held_out(result["curve"]) for result in each]:
        steps, success = list(points), list(points.values())
        gains.append(success[-1] - np.interp(0.75 * steps[-1], steps, success))
    return f"{100 * np.mean(gains):+.1f}"


def tokens(result):
    """Trained in a whole run."""
    return sum(record.get("tokens", 0) for record in result["curve"])


def success_cell(summaries):
    """'85.0 [80–89] (81–88), 9.1 rounds': in %, all games together, their 95 % interval, lowest and highest
    seed."""
    each = [100 * s["success"] for s in summaries]
    low, high = wilson(sum(s["won"] for s in summaries), sum(s["games"] for s in summaries))
    spread = f" ({min(each):.0f}–{max(each):.0f})" * (len(each) > 1)
    rounds = np.mean([s["rounds"] for s in summaries])
    return f"{np.mean(each):.1f} [{100 * low:.0f}–{100 * high:.0f}]{spread}, {rounds:.1f} rounds"


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


def spread(differences):
    """(mean, half its 95 % interval over seeds by Student's t) in points; one seed has no interval: nan."""
    points = 100 * np.array(differences)
    if len(points) < 2:
        return points.mean(), np.nan
    t = STUDENT_T[min(len(points) - 1, len(STUDENT_T)) - 1]
    return points.mean(), t * points.std(ddof=1) / np.sqrt(len(points))


def interval(differences):
    """'+3.1 [-0.4, 6.6]' in points: the mean and its 95 % interval over seeds; a dash without a seed."""
    if not differences:
        return "–"
    mean, half = spread(differences)
    return f"{mean:+.1f}" + (f" [{mean - half:.1f}, {mean + half:.1f}]" if len(differences) > 1 else "")


def differences(ours, theirs):
    """Success of runs less that of others, seed by seed where both were evaluated: lists (at the end on the
    first held-out split, over the run)."""
    base, ends, means = {result["seed"]: result for result in theirs}, [], []
    for result in ours:
        other = base.get(result["seed"])
        if other and last(result) and last(other):
            split = next(iter(last(result)))
            ends.append(last(result)[split]["success"] - last(other)[split]["success"])
            means.append(over_run(result) - over_run(other))
    return ends, means


def against_opd(found, method, loss):
    """(difference at the end, difference over the run) to OPD by the same loss, or by the table's first one
    where a method has a loss of its own, seed by seed; dashes for OPD itself."""
    opd = [each for (name, own), each in found.items()
           if name == "opd" and (own == loss or method in WITHOUT_LOSS)]
    if method == "opd" or not opd:
        return "–", "–"
    return tuple(map(interval, differences(found[method, loss], opd[0])))


def progress(each):
    """Cells of what some runs took and how they went: tokens, success over the run, its last quarter."""
    means = [np.mean([figure(result) for result in each]) for figure in (tokens, over_run)]
    return [f"{means[0]:,.0f}", f"{100 * means[1]:.1f}", quarter(each)]


def line(cells):
    return "| " + " | ".join(cells) + " |"


def zero_shot(found, who, label, splits):
    """The line of one who is not trained: every run has evaluated it, the first one counts."""
    first = next(iter(found.values()))[0]
    each = evaluations(first, who)
    if not each:
        return []
    cells = [success_cell([each[0][1][split]]) for split in splits]
    return [line([label, "", *cells, f"{each[0][1][splits[0]]['invalid']:.1%}", *["–"] * 6])]


def trained(found, method, loss, splits):
    """A method's line; seeds in which it was evaluated."""
    each = [result for result in found[method, loss] if last(result)]
    cells = [success_cell([last(result)[split] for result in each]) for split in splits]
    cells.append(f"{np.mean([last(result)[splits[0]]['invalid'] for result in each]):.1%}")
    cells += [kl_cell(each), *progress(each)]
    return line([f"{method.upper()} ({loss})", str(len(each)), *cells, *against_opd(found, method, loss)])


def table(found):
    """The Markdown table of all results."""
    shown = [pair for pair, each in found.items() if any(map(last, each))]
    if not shown:
        raise UserError("none of these runs was evaluated: leave out --eval-every 0")
    splits = list(last(next(result for result in found[shown[0]] if last(result))))
    head = ["", "seeds", *(f"{split}, %" for split in splits), "invalid", "KL, start → end", "tokens",
            "over the run, %", "last quarter", "to OPD, end", "to OPD, over the run"]
    lines = [line(head), "|---" * len(head) + "|"]
    for who, label in (("teacher", "teacher"), ("guest", "teacher, as the student"), ("before", "student")):
        lines += zero_shot(found, who, label, splits)
    lines += [trained(found, method, loss, splits) for method, loss in shown]
    return "\n".join(lines) + "\n"


def draw(folder, lines):
    """The figure of {name: results}, each with the band of its seeds."""
    groups = {name: [result["curve"] for result in each] for name, each in lines.items()}
    picture = os.path.join(folder, "figure.png")
    plot.draw(groups, smooth=5).savefig(picture)
    return picture


def present(folder, text, picture):
    """Write the table beside its picture, and print it."""
    path = os.path.join(folder, "table.md")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    print(text)
    print(f"wrote {path} and {picture}")


def main(args):
    check_knobs(args)
    rows(args), parse_seeds(args.seeds)
    if not args.draw:
        run_all(args)
    found = results(args)
    named = {f"{method} ({loss})": each for (method, loss), each in found.items()}
    present(args.out, table(found), draw(args.out, named))


if __name__ == "__main__":
    command(main, Args)
