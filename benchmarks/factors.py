"""One factor at a time around F2B: how fast the depth grows, in stages, the other loss, and OPD with the same
steps and with the same tokens.

    python benchmarks/factors.py --teacher tiny-narrow --seeds 0,1,2 --flags '--steps 160 --eval-every 40'
    python benchmarks/factors.py --out results/factors --draw true    # again from what was found

Each line of the table differs from F2B's by what its name says; differences are paired by seed. OPD shows
long trajectories from the start, so that it trains more tokens in as many steps: "opd-tokens" ends at the
step in which it has trained as many as F2B did with that seed, and its run is these steps. Seeds are
outermost; interrupted, the same command goes on (see paper_table.py, which makes the runs).
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]

import plot
from paper_table import Args as Table
from paper_table import (
    differences, draw, flags_of, interval, last, line, parse_seeds, present, progress, read, results, run,
    success_cell, tokens)

from harness.cli import UserError, check_knobs, command, knob

FACTORS = {  # name: (method, loss, further flags)
    "f2b": ("f2b", "reverse", ""),
    "f2b-eta-4": ("f2b", "reverse", "--eta 4"),
    "f2b-eta-8": ("f2b", "reverse", "--eta 8"),
    "f2b-stages": ("f2b", "reverse", "--schedule step --stages 5@10,10@20,20@40"),
    "f2b-forward": ("f2b", "forward", ""),
    "opd": ("opd", "reverse", ""),
    "opd-forward": ("opd", "forward", ""),
}
EQUAL = "opd-tokens"  # opd for as many steps as train f2b's tokens


@dataclass
class Args:
    """On what, how many seeds, and where."""
    env: str = knob("alfworld", "alfworld, webshop or scienceworld")
    data: str = knob("generated", "as for tcod.py", path=True)
    student: str = knob("tiny-student", "checkpoint", path=True)
    teacher: str = knob("tiny-narrow", "checkpoint", path=True)
    only: str = knob("", f"some of the lines, by commas: {', '.join(FACTORS)}; empty: all, and {EQUAL}")
    seeds: str = knob("0,1,2", "whole numbers, by commas")
    jobs: int = knob(1, "runs at once", least=1)
    flags: str = knob("", "further flags for every run of tcod.py, in quotes")
    draw: bool = knob(False, "no runs: table and figure from what is there")
    out: str = knob("runs/factors", "folder of everything", path=True)


def chosen(args):
    """The names of the lines to make."""
    names = args.only.split(",") if args.only else list(FACTORS)
    strange = [name for name in names if name not in FACTORS]
    if strange:
        raise UserError(f"--only wants some of {', '.join(FACTORS)}, not {', '.join(strange)}")
    return names


def setting(args, name, flags=""):
    """What paper_table.py is asked for: the runs of one line, in a folder of its own."""
    method, loss, own = FACTORS["opd" if name == EQUAL else name]
    return Table(
        env=args.env, data=args.data, student=args.student, teacher=args.teacher, methods=method, losses=loss,
        experts="own", seeds=args.seeds, flags=" ".join(filter(None, [args.flags, own, flags])),
        out=os.path.join(args.out, name))


def make(asked, seed):
    """One run, where it is not there yet; returns its result."""
    os.makedirs(os.path.join(asked.out, "results"), exist_ok=True)
    run(asked, asked.methods, asked.losses, seed, flags_of(asked, asked.methods, asked.losses, seed, []))
    return read(os.path.join(asked.out, "results", f"{asked.methods}-{asked.losses}-{seed}.json"))


def steps_for(wanted, result):
    """How many steps of a run train so many tokens, or all of its steps."""
    until = plot.tokens_until(result["curve"])
    return next((step for step, trained in until.items() if trained >= wanted), max(until))


def make_all(args):
    """All runs, seed by seed."""
    names = chosen(args)
    with ThreadPoolExecutor(args.jobs) as pool:
        for seed in parse_seeds(args.seeds):
            made = pool.map(lambda name: make(setting(args, name), seed), names)
            found = dict(zip(names, made))
            if {"f2b", "opd"} <= set(found):
                steps = steps_for(tokens(found["f2b"]), found["opd"])
                make(setting(args, EQUAL, f"--steps {steps}"), seed)


def found(args):
    """{name: its results}, those that are there and were evaluated."""
    lines = {}
    for name in [*FACTORS, EQUAL]:
        folder = os.path.join(args.out, name, "results")
        if os.path.isdir(folder) and os.listdir(folder):
            each = next(iter(results(setting(args, name)).values()))
            lines[name] = [result for result in each if last(result)]
    if not lines.get("f2b"):
        raise UserError(f"{args.out} holds no evaluated run of f2b, which the others are compared with")
    return lines


def table(lines):
    """The Markdown table: in %, differences to F2B in points."""
    splits = list(last(lines["f2b"][0]))
    head = ["", "seeds", *(f"{split}, %" for split in splits), "tokens", "over the run, %", "last quarter",
            "to F2B, end", "to F2B, over the run"]
    text = [line(head), "|---" * len(head) + "|"]
    for name, each in lines.items():
        cells = [success_cell([last(result)[split] for result in each]) for split in splits]
        own = ("–", "–") if name == "f2b" else map(interval, differences(each, lines["f2b"]))
        text.append(line([name, str(len(each)), *cells, *progress(each), *own]))
    return "\n".join(text) + "\n"


def main(args):
    check_knobs(args)
    if not args.draw:
        make_all(args)
    lines = found(args)
    present(args.out, table(lines), draw(args.out, lines))


if __name__ == "__main__":
    command(main, Args)
