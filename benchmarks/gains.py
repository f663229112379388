"""What the curriculum gains: success of F2B less OPD in every comparison that is kept under results/, in one
table, the one of README.md and docs/results.md, and over the teacher's support, in one figure.

    python benchmarks/gains.py --out results

Success is in %, on the first held-out split, the means of the seeds in which both were run; differences are
in points, paired by seed, with their 95 % interval over seeds (Student's t). "Over the run" is the mean
success from the first step to the last, which is speed (see paper_table.py); F2B trains fewer tokens in as
many steps, so that "over the tokens" sets them side by side where they have trained as many, from the first
token to the last that both did. The teacher's support is what it wins after the student has played six turns
(`eval.py --take-over 0,3,6,10 --temperature 1`).
"""

import os
import sys
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]

import plot
from paper_table import Args as Table
from paper_table import differences, interval, last, line, mean_height, present, read, results, spread

from harness.cli import check_knobs, command, knob

RESULTS = os.path.join(ROOT, "results")
STUDENT_TURNS = 6   # before the teacher takes over
MOST_SEEDS = 20     # that are looked for
SHARES = ("0", "0.01", "0.03", "0.1", "0.3", "1")   # of mixed play: mechanism.py's teachers
COMPARISONS = (  # what is played; the loss; folders of the runs and of the teacher's take-over test
    ("ALFWorld", "reverse", "alfworld-full-narrow", "alfworld-full-narrow"),
    ("ALFWorld, hard split left out", "reverse", "alfworld-hard", "alfworld-full-narrow"),
    ("ALFWorld", "reverse", "alfworld-full", "alfworld-full"),
    *(("small ALFWorld", "reverse", f"mechanism/{share}/table", f"mechanism/{share}") for share in SHARES),
    ("small ALFWorld", "k1", "alfworld-k1", "alfworld-k1"),
    ("WebShop", "reverse", "webshop", "webshop"),
    ("WebShop", "forward", "webshop", "webshop"),
    ("ScienceWorld", "reverse", "scienceworld", "scienceworld"),
)


@dataclass
class Args:
    """Where to."""
    out: str = knob("runs/gains", "folder of the table and the figure", path=True)


# ---- what was found

@dataclass
class Comparison:
    """OPD's and F2B's results, seed by seed, and `support`: what the teacher wins after the student's turns,
    a share."""
    label: str
    support: float
    opd: list
    f2b: list


def support(path):
    """Success of the teacher after the student's first turns, from a take-over test."""
    return next(row["success"] for row in read(path)["take_over"] if row["n"] == STUDENT_TURNS)


def pairs(folder, loss):
    """(OPD's results, F2B's results) by one loss, of the seeds that both have."""
    seeds = ",".join(map(str, range(MOST_SEEDS)))
    found = results(Table(methods="opd,f2b", losses=loss, seeds=seeds, out=folder))
    by_seed = [{result["seed"]: result for result in found[method, loss]} for method in ("opd", "f2b")]
    both = sorted(set.intersection(*map(set, by_seed)))
    return [[each[seed] for seed in both] for each in by_seed]


def found():
    """All comparisons, in their order."""
    each = []
    for games, loss, runs, test in COMPARISONS:
        label = games if loss == "reverse" else f"{games}, `{loss}`"
        wins = support(os.path.join(RESULTS, test, "take_over.json"))
        each.append(Comparison(label, wins, *pairs(os.path.join(RESULTS, runs), loss)))
    return each


def over_tokens(f2b, opd):
    """F2B's mean success less OPD's over the tokens that both trained; a curve is straight between
    evaluations."""
    curves = []
    for result in (f2b, opd):
        points, until = plot.held_out(result["curve"]), plot.tokens_until(result["curve"])
        curves.append(([until[step] for step in points], list(points.values())))
    end = min(trained[-1] for trained, _ in curves)
    places = sorted({place for trained, _ in curves for place in trained if place <= end})
    return mean_height(places, np.interp(places, *curves[0]) - np.interp(places, *curves[1]))


# ---- table and figure

def gains(one):
    """{"end", "over the run", "over the tokens": F2B less OPD, a share for each seed}"""
    ends, runs = differences(one.f2b, one.opd)
    return {"end": ends, "over the run": runs, "over the tokens": list(map(over_tokens, one.f2b, one.opd))}


def row(one):
    """The cells of one comparison."""
    split = next(iter(last(one.opd[0])))
    ends = [100 * np.mean([last(result)[split]["success"] for result in each]) for each in (one.opd, one.f2b)]
    size = [f"{100 * one.support:.0f}", str(len(one.opd)), str(one.opd[0]["curve"][-1]["step"])]
    return [one.label, *size, *(f"{end:.1f}" for end in ends), *map(interval, gains(one).values())]


def table(comparisons):
    """The Markdown table."""
    head = ["games", f"teacher after {STUDENT_TURNS} student turns", "seeds", "steps", "OPD", "F2B",
            "F2B − OPD, end", "over the run", "over the tokens"]
    return "\n".join([line(head), "|---" * len(head) + "|", *(line(row(one)) for one in comparisons)]) + "\n"


def draw(folder, comparisons):
    """The figure: what the curriculum gains, over the teacher's support; a hollow point is one seed."""
    figure = Figure(figsize=(11.5, 4), dpi=125, layout="constrained")
    colours = {}
    titles = ("over the run", "over the tokens", "end")
    for axis, title in zip(figure.subplots(1, len(titles), sharey=True), titles):
        for one in comparisons:
            colour = colours.setdefault(one.label, f"C{len(colours)}")
            mean, half = spread(gains(one)[title])
            hollow = dict(mfc="white") if np.isnan(half) else {}
            axis.errorbar(100 * one.support, mean, half, fmt="o", color=colour, capsize=3, **hollow)
        axis.axhline(0, color="grey", lw=0.8)
        axis.set(title=title, xlabel=f"teacher's success after {STUDENT_TURNS} student turns, %")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    figure.axes[0].set_ylabel("F2B − OPD, points of success")
    plot.legend(figure, [
        Line2D([], [], marker="o", ls="", color=colour, label=label.replace("`", ""))
        for label, colour in colours.items()])
    path = os.path.join(folder, "figure.png")
    figure.savefig(path)
    return path


def main(args):
    check_knobs(args)
    os.makedirs(args.out, exist_ok=True)
    comparisons = found()
    present(args.out, table(comparisons), draw(args.out, comparisons))


if __name__ == "__main__":
    command(main, Args)
