"""Learning curves as numbers, of the runs that are kept in a folder: success after so many steps, when it
came so far, and how far it was after so many tokens.

    python studies/curves.py --out results/alfworld-full-narrow --level 50
    python studies/curves.py --out results/factors --base f2b --tokens 50000
    python studies/curves.py --out results/field --first 25    # how was played while habits began

A line is one of a comparison (see compare.py), all its seeds; all lines must be of the same models and held-
out games. One table for each held-out split: success in %, mean (lowest–highest) of the seeds; "over the
run" is the mean from the first step to the last; differences to the base, in points, steps or tokens, are
paired by seed: mean and 95 % interval, over seeds and games (docs/results.md), of steps and tokens over seeds
alone; on the first split also over equal tokens, as in a comparison. Between evaluations a curve is straight.
With `--first` one table more says how was played in training, by fifths of the first so many steps: games
won, turns that repeat the one before, turns that the game refused, and the KL; means over seeds.
"""

import os
import sys
from dataclasses import dataclass

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]

import plot
from differences import at, compared, differences, found, interval, last, learned, mean_height
from harness.cli import check_knobs, command, knob
from harness.report import over_seeds
from tables import DEAR, PLAYED, by_part, markdown, note

PARTS = 5   # of the first steps


@dataclass
class Args:
    """Which runs, and what is asked of their curves."""
    out: str = knob("runs/compare", "folder of a comparison, or of several: all below it", path=True)
    base: str = knob("opd", "the line that others are compared with")
    level: float = knob(0.0, "say after how many steps and tokens this success, in %, was reached; 0: don't")
    tokens: int = knob(0, "say what the success was after so many trained tokens; 0: don't", least=0)
    first: int = knob(0, "say how was played in the first so many training steps; 0: don't", least=0)


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
    """{column: the run's figure}: success (games,) after each evaluated step, see `differences.learned`, and
    what the options ask for; steps and tokens are numbers."""
    (steps, success), until = learned(result, split), plot.tokens_until(result["curve"])
    trained = [until[step] for step in steps]
    columns = {str(step): each for step, each in zip(steps, success)}
    columns["over the run"] = mean_height(steps, success)
    if args.level:
        for what, places in (("steps", steps), ("tokens", trained)):
            columns[f"{what} to {args.level:g} %"] = reached(places, 100 * np.nanmean(success, 1), args.level)
    if args.tokens and trained[-1] >= args.tokens:
        columns[f"after {args.tokens:,} tokens"] = at(args.tokens, trained, success)
    return columns


# ---- the tables

def cell(figures):
    """'27.3 (24–31)'; a dash where a seed has not come so far."""
    values = [100 * np.nanmean(figure) if np.ndim(figure) else figure for figure in figures]
    if not values or np.isnan(values).any():
        return "–"
    digits = ".1f" if max(values) <= 100 else ",.0f"
    ends = f" ({min(values):,.0f}–{max(values):,.0f})" * (len(values) > 1)
    return f"{np.mean(values):{digits}}{ends}"


def difference(ours, theirs, games):
    """Of {seed: figure} of two lines, in the figure's unit; a dash where a seed has not come so far."""
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if np.ndim(pairs[0][0]):
        return interval(*compared(pairs, games))
    each = [one - other for one, other in pairs]
    return "–" if np.isnan(each).any() else interval(*over_seeds(each), unit=1)


def shared(line):
    """{column: {seed: figure}} of a line's {seed: {column: figure}}: the columns that all its seeds have."""
    first, *others = line.values()
    columns = [column for column in first if all(column in own for own in others)]
    return {column: {seed: own[column] for seed, own in line.items()} for column in columns}


def table(lines, split, args):
    """The Markdown table of one split."""
    each = {}
    for name, results in lines.items():
        each[name] = shared({result["seed"]: figures(result, split, args) for result in results})
    columns = list(dict.fromkeys(column for own in each.values() for column in own))
    columns.sort(key=lambda column: (0, int(column)) if column.isdecimal() else (1, 0))  # steps first
    rows, first = [], f"{split}, %"
    for name, own in each.items():
        cells = {column: cell(list(by_seed.values())) for column, by_seed in own.items()}
        rows.append({first: name, "seeds": str(len(lines[name])), **cells})
    splits = last(next(iter(lines.values()))[0])
    games, base = splits[split]["games"], each.get(args.base, {})
    for name, own in each.items():
        both = {result["seed"] for result in lines[name]} & {r["seed"] for r in lines.get(args.base, ())}
        if name != args.base and both:
            cells = {column: difference(own[column], base[column], games) for column in own if column in base}
            if split == next(iter(splits)):
                gains = differences(lines[name], lines[args.base])
                cells |= {what: interval(*gains[what]) for what in DEAR if what in gains}
            rows.append({first: f"{name} − {args.base}", "seeds": str(len(both)), **cells})
    columns += [what for what in DEAR if any(what in row for row in rows)]
    return markdown([first, "seeds", *columns], rows)


def share_won(record):
    """Of a training step, in %; NaN where winning says nothing there (`Method.scored`)."""
    return np.nan if record["success"] is None else 100 * record["success"]


def played(lines, steps):
    """The Markdown table of the first so many training steps."""
    figures, rows = {"games won, %": share_won, **PLAYED}, []
    for label, each in lines.items():
        cells = by_part(each, figures, PARTS, steps)
        rows.append({f"steps 1 to {steps}, by fifths": label, **cells})
    return markdown(max(map(list, rows), key=len), rows)


def main(args):
    check_knobs(args)
    lines = found(args.out)
    for split in last(next(iter(lines.values()))[0]):
        print(table(lines, split, args))
    if args.first:
        print(played(lines, args.first))
    print(note(lines).strip())


if __name__ == "__main__":
    command(main, Args)
