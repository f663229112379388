"""How many seeds does a difference need? Power by simulation from the spread that comparisons have shown.

    python studies/power.py --folders results/alfworld-full-narrow results/field results/webshop --points 5

Of each comparison, the deviation of what a line gains over `--base` with the same seed, at the end and over
the run, about the line's own mean, pooled over all lines. Then how often Student's t over so many seeds tells
a true gain of `--points` from none, if gains are normal with that deviation; and what gain 80 % of such
comparisons would tell. The interval over games comes on top: it does not shrink with seeds.
"""

import os
import sys
from dataclasses import dataclass

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from compare import found, learned, markdown, over_run, paired

from harness.cli import UserError, check_knobs, command, knob
from harness.report import STUDENT_T

SEEDS = (2, 3, 5, 8, 12)
DRAWN = 20_000  # comparisons simulated
SHARE = 0.8     # of comparisons that shall tell
WHAT = {"end": lambda result: learned(result)[1][-1], "over the run": over_run}


@dataclass
class Args:
    """Whose spread, and what shall be told."""
    folders: list = knob(None, "of comparisons (studies/compare.py)")
    base: str = knob("opd", "label, or its beginning, of the line that others are set beside")
    points: float = knob(5.0, "of success that are to be told from none", above=0)
    seed: int = knob(0, "of the simulation", least=0)


def deviation(lines, base, figure):
    """(deviation of a seed's gain about its line's mean, in points; its degrees of freedom)."""
    squares, free = 0.0, 0
    for results in lines.values():
        gains = [100 * np.nanmean(figure(one)) - 100 * np.nanmean(figure(other))
                 for one, other in paired(results, base)]
        if results is not base and len(gains) > 1:
            squares += np.var(gains, ddof=1) * (len(gains) - 1)
            free += len(gains) - 1
    return (squares / max(1, free)) ** 0.5, free


def told(seeds, spread, rng):
    """The least true gain, in points, that each of DRAWN comparisons tells: one is told where the mean is
    further from 0 than half of its interval."""
    gains = rng.normal(0, spread, (DRAWN, seeds))
    half = STUDENT_T[seeds - 2] * gains.std(1, ddof=1) / seeds**0.5
    return half - gains.mean(1)


def main(args):
    check_knobs(args)
    if not args.folders:
        raise UserError("--folders: name folders of comparisons")
    rng, rows = np.random.default_rng(args.seed), []
    for folder in args.folders:
        lines = found(folder)
        base = next((results for label, results in lines.items() if label.startswith(args.base)), None)
        if base is None:
            raise UserError(f"{folder} has no line {args.base!r}: it has {', '.join(lines)}")
        for what, figure in WHAT.items():
            spread, free = deviation(lines, base, figure)
            if not free:
                raise UserError(f"{folder} has no line with two seeds beside {args.base!r}")
            needed = {seeds: told(seeds, spread, rng) for seeds in SEEDS}
            rows.append({
                "comparison": f"{os.path.basename(os.path.normpath(folder))}, {what}",
                "deviation of a gain": f"{spread:.1f} ({free})",
                **{f"{seeds} seeds": f"{100 * np.mean(least < args.points):.0f} % · "
                   f"{np.quantile(least, SHARE):.1f}" for seeds, least in needed.items()}})
    print(markdown(list(rows[0]), rows), end="")


if __name__ == "__main__":
    command(main, Args)
