"""Does a temporal curriculum gain where the teacher's support is narrow? Teachers from narrow to broad, the
take-over curve of each, and F2B against OPD with it, on the small embedded games.

    python benchmarks/mechanism.py --shares 0,0.01,0.03,0.1,0.3,1 --seeds 0,1,2 --jobs 2 --out runs/mechanism
    python benchmarks/mechanism.py --out results/mechanism --draw true  # again from what was found

The dial is the share of mixed play among what a teacher learned from (`tiny.make --mixed`): with 0 it has
seen the expert's own states only. A teacher's support is measured by the take-over test: the student plays n
turns, then the teacher; its success. Each part is made once: a teacher, its take-over test, its runs (see
paper_table.py); interrupted, the same command goes on; other flags want another --out.
"""

import os
import sys
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]

from paper_table import Args as Table
from paper_table import differences, interval, line, present, read, results, start

from harness.cli import UserError, check_knobs, command, knob

TURNS = (0, 3, 6, 10)   # that the student begins with in the take-over test
FLAGS = ["--env", "alfworld", "--data", "generated"]


@dataclass
class Args:
    """Which teachers, how many seeds, and where."""
    shares: str = knob("0,0.01,0.03,0.1,0.3,1", "shares of mixed play, by commas")
    seeds: str = knob("0,1,2", "whole numbers, by commas")
    games: int = knob(1500, "training games of a teacher", least=1)
    teacher_steps: int = knob(900, "optimizer steps of a teacher", least=1)
    eval_games: int = knob(140, "games of a take-over test", least=1)
    jobs: int = knob(1, "processes at once", least=1)
    flags: str = knob("", "further flags for every run of tcod.py, in quotes")
    draw: bool = knob(False, "no runs: table and figure from what is there")
    out: str = knob("runs/mechanism", "folder of everything", path=True)


def shares(text):
    """'1,0.1' -> ['0.1', '1'], narrow first; raises UserError for what is no share."""
    try:
        found = sorted(text.split(","), key=float)
    except ValueError:
        found = []
    if not found or not all(0 <= float(share) <= 1 for share in found):
        raise UserError(f"--shares are numbers from 0 to 1, by commas, not {text!r}")
    return found


# ---- what is made

def make(args, share):
    """A teacher unless it is there, its take-over test and its runs, which go on from what there is of them:
    eval.py's table grows, so that a file of it does not say that all was played."""
    folder = os.path.join(args.out, share)
    teacher, screen = os.path.join(folder, "alfworld", "teacher"), os.path.join(args.out, f"{share}.txt")
    os.makedirs(folder, exist_ok=True)
    if not os.path.isdir(teacher):
        start("tiny.make", [
            "--make", "teacher", "--mixed", share, "--refresh", "0", "--games", str(args.games),
            "--teacher-steps", str(args.teacher_steps), "--jobs", str(args.jobs), "--out", folder], screen)
    start("eval.py", [
        *FLAGS, "--model", "tiny-student", "--teacher", teacher, "--temperature", "1", "--take-over",
        ",".join(map(str, TURNS)), "--games", str(args.eval_games),
        "--out", os.path.join(folder, "take_over.json")], screen)
    start("benchmarks/paper_table.py", [
        *FLAGS, "--teacher", teacher, "--methods", "opd,f2b", "--experts", "own", "--seeds", args.seeds,
        "--jobs", str(args.jobs), "--flags", args.flags, "--out", os.path.join(folder, "table")], screen)


# ---- what was found

def found(args):
    """[(share, {n: success after n student turns}, gains at the end, gains over the run)], narrow first.

    Raises UserError where there is nothing yet.
    """
    rows = []
    for share in shares(args.shares):
        folder = os.path.join(args.out, share)
        taken = os.path.join(folder, "take_over.json")
        if not os.path.exists(taken):
            continue
        curve = {row["n"]: row["success"] for row in read(taken)["take_over"]}
        asked = Table(methods="opd,f2b", seeds=args.seeds, out=os.path.join(folder, "table"))
        runs = results(asked)
        opd, f2b = (runs.get((method, "reverse"), []) for method in ("opd", "f2b"))
        rows.append((share, curve, *differences(f2b, opd)))
    if not rows:
        raise UserError(f"{args.out} holds no teacher's take-over test of --shares {args.shares}")
    return rows


def table(rows):
    """The Markdown table: in %, differences in points."""
    head = ["share of mixed play", *(f"after {n}" for n in TURNS), "seeds", "F2B − OPD, end",
            "F2B − OPD, over the run"]
    lines = [line(head), "|---" * len(head) + "|"]
    for share, curve, ends, means in rows:
        support = [f"{100 * curve[n]:.0f}" for n in TURNS]
        lines.append(line([share, *support, str(len(ends)), interval(ends), interval(means)]))
    return "\n".join(lines) + "\n"


def draw(args, rows):
    """The figure: the teachers' support; what the curriculum gains over it."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for share, curve, ends, means in rows:
        (drawn,) = left.plot(list(curve), [100 * s for s in curve.values()], marker="o", label=share)
        for values, marker in ((ends, "o"), (means, "^")) if ends else ():
            height = 100 * np.mean(values)
            right.plot([100 * curve[6]] * len(values), 100 * np.array(values), ".", color=drawn.get_color())
            right.plot([100 * curve[6]], [height], marker, color=drawn.get_color(), ms=9, mfc="none")
    left.set(xlabel="turns that the student began with", ylabel="teacher's success, %", ylim=(0, 102))
    left.legend(title="mixed play", frameon=False)
    right.axhline(0, color="grey", lw=0.8)
    right.set(xlabel="teacher's success after 6 student turns, %", ylabel="F2B − OPD, points",
              title="○ at the end   △ over the run")
    path = os.path.join(args.out, "figure.png")
    figure.savefig(path, dpi=110)
    return path


def main(args):
    check_knobs(args)
    if not args.draw:
        for share in shares(args.shares):
            make(args, share)
    rows = found(args)
    present(args.out, table(rows), draw(args, rows))


if __name__ == "__main__":
    command(main, Args)
