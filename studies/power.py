"""How many seeds does a difference need? Power by simulation from the spread that comparisons have shown.

    python studies/power.py --folders results/alfworld-full-narrow results/field results/webshop --points 5

Of each comparison, the deviation of what a line gains over OPD by its own loss with the same seed, about the
line's own mean, pooled over all lines: at the end, as the mean of its last three evaluations, and over the
run. Then how often Student's t over so many seeds detects a true gain of `--points`, if gains are normal with
that deviation; and the gain that 80 % of such comparisons detect. The interval over games is not in this: it
does not shrink with seeds.
"""

import os
import sys
from dataclasses import dataclass

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from differences import found, learned, over_run, paired
from harness.cli import UserError, check_knobs, command, knob
from harness.report import STUDENT_T
from tables import STUDIES, base_of, markdown

SEEDS = (2, 3, 5, 8, 12)
DRAWN = 20_000  # comparisons simulated
SHARE = 0.8     # of comparisons that detect the gain in the second number of a cell
WHAT = {
    "end": lambda result: learned(result)[1][-1],
    "last three": lambda result: np.mean(learned(result)[1][-3:], 0),
    "over the run": over_run}


@dataclass
class Args:
    """Whose spread, and what is to be detected."""
    folders: list = knob(None, "of comparisons (studies/compare.py)")
    points: float = knob(5.0, "the true gain, in points of success", above=0)
    seed: int = knob(0, "of the simulation", least=0)


def deviation(lines, figure):
    """(deviation of a seed's gain about its line's mean, in points; degrees of freedom of all lines
    together). Raises UserError where no line has two seeds beside OPD."""
    squares, free = 0.0, 0
    for label, results in lines.items():
        base = base_of(lines, label, STUDIES["paper"])
        if base in (None, label):
            continue
        gains = [100 * np.nanmean(figure(one)) - 100 * np.nanmean(figure(other))
                 for one, other in paired(results, lines[base])]
        if len(gains) > 1:
            squares += np.var(gains, ddof=1) * (len(gains) - 1)
            free += len(gains) - 1
    if not free:
        raise UserError("a comparison has no line with two seeds beside OPD")
    return (squares / free) ** 0.5, free


def detected(seeds, spread, rng):
    """(DRAWN,) the least true gain, in points, that each simulated comparison detects: a gain is detected
    where its interval is above 0."""
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
        for what, figure in WHAT.items():
            spread, free = deviation(lines, figure)
            least = {seeds: detected(seeds, spread, rng) for seeds in SEEDS}
            rows.append({
                "comparison": f"{os.path.basename(os.path.normpath(folder))}, {what}",
                "deviation of a gain": f"{spread:.1f} ({free})",
                **{f"{seeds} seeds": f"{100 * np.mean(gains < args.points):.0f} % · "
                   f"{np.quantile(gains, SHARE):.1f}" for seeds, gains in least.items()}})
    print(markdown(list(rows[0]), rows), end="")


if __name__ == "__main__":
    command(main, Args)
