"""Learning curves as numbers, of the runs that are kept in a folder: success after so many steps, when it
came so far, and how far it was after so many tokens.

    python benchmarks/curves.py --out results/alfworld-full-narrow --level 50
    python benchmarks/curves.py --out results/factors --base f2b --tokens 50000

A line is one method by one loss in one folder, all its seeds; all lines must be of the same models and held-
out games. One table for each held-out split: success in %, mean (lowest–highest) of the seeds; "over the
run" is the mean from the first step to the last; differences to the base, in points, steps or tokens, are
paired by seed: mean and 95 % interval over seeds (Student's t). Between evaluations a curve is straight.
"""

import os
import sys
from dataclasses import dataclass

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]

import plot
from paper_table import check_same, interval, last, line, mean_height, read

from harness.cli import UserError, check_knobs, command, knob


@dataclass
class Args:
    """Which runs, and what is asked of their curves."""
    out: str = knob("runs/paper", "folder of a comparison, or of several: all results/ below it", path=True)
    base: str = knob("opd", "the line that others are compared with")
    level: float = knob(0.0, "say after how many steps and tokens this success, in %, was reached; 0: don't")
    tokens: int = knob(0, "say what the success was after so many trained tokens; 0: don't", least=0)


# ---- the lines

def kind(result):
    """'f2b', 'f2b-forward': the method, and the loss where it is not the usual one."""
    return result["method"] + f"-{result['loss']}" * (result["loss"] not in ("reverse", "nll"))


def label(folder, results, kinds, own):
    """What a line is called: its kind, behind the comparison's folder where there are several; the folder
    alone where that holds nothing else ('f2b-eta-4')."""
    place = os.path.relpath(os.path.dirname(results), folder)
    if place in (".", ".."):    # the comparison itself, or its results/
        return own
    return place if len(kinds) == 1 else f"{place}/{own}"


def found(folder):
    """{label: {seed: result}} of all evaluated runs below a folder.

    Raises UserError where there is none, or they were not all made with the same models and held-out games.
    """
    lines = {}
    for place, _, names in sorted(os.walk(folder)):
        if os.path.basename(place) == "results":
            each = [read(os.path.join(place, name)) for name in sorted(names)]
            each = [result for result in each if last(result)]
            kinds = set(map(kind, each))
            for result in each:
                name = label(folder, place, kinds, kind(result))
                lines.setdefault(name, {})[result["seed"]] = result
    if not lines:
        raise UserError(f"{folder} holds no results of evaluated runs")
    check_same([result for runs in lines.values() for result in runs.values()], folder)
    return lines


# ---- a curve

def reached(places, heights, level):
    """Where a curve first is as high as `level`; nan where it never is."""
    for i, height in enumerate(heights):
        if height >= level:
            if i == 0:
                return places[0]
            return float(np.interp(level, heights[i - 1:i + 1], places[i - 1:i + 1]))
    return np.nan


def figures(result, split, args):
    """{column: the run's figure}: success in % after each evaluated step, and what the options ask for."""
    points, until = plot.held_out(result["curve"], split), plot.tokens_until(result["curve"])
    steps, heights = list(points), [100 * success for success in points.values()]
    trained = [until[step] for step in steps]
    columns = {str(step): height for step, height in zip(steps, heights)}
    if len(steps) > 1:
        columns["over the run"] = mean_height(steps, heights)
    if args.level:
        columns[f"steps to {args.level:g} %"] = reached(steps, heights, args.level)
        columns[f"tokens to {args.level:g} %"] = reached(trained, heights, args.level)
    if args.tokens and trained[-1] >= args.tokens:
        columns[f"after {args.tokens:,} tokens"] = float(np.interp(args.tokens, trained, heights))
    return columns


# ---- the tables

def cell(values):
    """'27.3 (24–31)'; a dash where a seed has not come so far."""
    if not values or np.isnan(values).any():
        return "–"
    digits = ".1f" if max(values) <= 100 else ",.0f"
    ends = f" ({min(values):,.0f}–{max(values):,.0f})" * (len(values) > 1)
    return f"{np.mean(values):{digits}}{ends}"


def difference(ours, theirs):
    """Of {seed: figure} of two lines, in the figure's unit; a dash where a seed has not come so far."""
    each = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return "–" if np.isnan(each).any() else interval([one / 100 for one in each])  # which thinks in points


def shared(each):
    """The columns that all seeds of some line have, steps first."""
    columns = {}
    for runs in each.values():
        first, *others = runs.values()
        columns.update((column, None) for column in first if all(column in own for own in others))
    steps = sorted((column for column in columns if column.isdecimal()), key=int)
    return steps + [column for column in columns if column not in steps]


def table(lines, split, args):
    """The Markdown table of one split."""
    each = {name: {seed: figures(result, split, args) for seed, result in runs.items()}
            for name, runs in lines.items()}
    columns = shared(each)
    head = [split, "seeds", *columns]
    text = [line(head), "|---" * len(head) + "|"]

    def of(name, column):
        """{seed: the figure} of a line in which all seeds have it, else empty."""
        has = {seed: own[column] for seed, own in each[name].items() if column in own}
        return has if len(has) == len(each[name]) else {}

    for name, runs in each.items():
        text.append(line([name, str(len(runs)), *(cell(list(of(name, c).values())) for c in columns)]))
    for name, runs in each.items():
        both = set(runs) & set(each.get(args.base, {}))
        if name != args.base and both:
            cells = [difference(of(name, c), of(args.base, c)) for c in columns]
            text.append(line([f"{name} − {args.base}", str(len(both)), *cells]))
    return "\n".join(text) + "\n"


def main(args):
    check_knobs(args)
    lines = found(args.out)
    for split in last(next(iter(next(iter(lines.values())).values()))):
        print(table(lines, split, args))


if __name__ == "__main__":
    command(main, Args)
