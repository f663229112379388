"""The paper's figures from the logs of one or more runs.

    python plot.py --runs runs/alfworld-opd-1 runs/alfworld-f2b-1 --out compare.png

Four panels over training steps, as in the paper's Figures 2 and 4: held-out success, trajectory KL, mean rounds, and the KL of each
turn over the turn index (early steps dashed, late steps solid). Runs of one method and teacher share a colour; several seeds are drawn
as their mean with a band from the lowest to the highest.
"""

import json
import os
from collections import defaultdict
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import envs
from eval import command, knob
from run import read_log


@dataclass
class Args:
    """Draw runs."""
    runs: list[str] = knob(None, "run folders")
    out: str = knob("tcod.png", "the picture to write")
    smooth: int = knob(5, "steps averaged in the training curves")


def read_run(folder):
    """(label, records) of a run: "method · teacher", its steps in order."""
    try:
        with open(os.path.join(folder, "args.json"), encoding="utf-8") as file:
            args = json.load(file)
    except FileNotFoundError:
        raise envs.UserError(f"{folder} holds no run (no args.json)") from None
    records = read_log(os.path.join(folder, "log.jsonl"))
    return f"{args['method']} · {os.path.basename(args['teacher'])}", records


def smoothed(values, width):
    """Mean over the last `width` steps, fewer at the start."""
    return [float(np.mean(values[max(0, i + 1 - width): i + 1])) for i in range(len(values))]


def held_out(records):
    """(steps, success) on the first held-out split, the starting student at step 0."""
    points = [(r["step"], s["success"]) for r in records for label, s in r.get("eval", {}).items()
              if label.startswith("student") and label.endswith(next(iter(r["eval"])).split(" · ")[-1])]
    return [p[0] for p in points], [p[1] for p in points]


def curve(axis, colour, label, series):
    """The mean over runs with a band from lowest to highest; series: list of (x, y), cut to what all runs have."""
    length = min(len(x) for x, _ in series)
    if length:
        x, ys = series[0][0][:length], np.array([y[:length] for _, y in series])
        axis.plot(x, ys.mean(0), color=colour, label=label)
        axis.fill_between(x, ys.min(0), ys.max(0), color=colour, alpha=0.15, linewidth=0)


def turn_profile(runs, part):
    """Mean KL of each turn over the first or last tenth of the steps of all runs."""
    rows = []
    for records in runs:
        steps = [r["kl_turn"] for r in records if "kl_turn" in r]
        tenth = max(1, len(steps) // 10)
        rows += steps[:tenth] if part == "early" else steps[-tenth:]
    longest = max(map(len, rows), default=0)
    columns = [[row[t] for row in rows if t < len(row) and row[t] is not None] for t in range(longest)]
    return [float(np.mean(column)) if column else np.nan for column in columns]


def main(args):
    if not args.runs:
        raise envs.UserError("name at least one run folder")
    groups = defaultdict(list)
    for folder in args.runs:
        label, records = read_run(folder)
        groups[label].append(records)
    figure, ((success, kl), (rounds, turns)) = plt.subplots(2, 2, figsize=(10, 6.4), constrained_layout=True)
    for i, (label, runs) in enumerate(groups.items()):
        colour = f"C{i}"
        curve(success, colour, label, [held_out(records) for records in runs])
        training = [[r for r in records if "kl" in r] for records in runs]
        for axis, key in ((kl, "kl"), (rounds, "rounds")):
            curve(axis, colour, label, [([r["step"] for r in run], smoothed([r[key] for r in run], args.smooth)) for run in training])
        for part, style in (("early", "--"), ("late", "-")):
            turns.plot(turn_profile(runs, part), style, color=colour, label=f"{label}, {part}" if part == "late" else None)
    for axis, title, x in ((success, "held-out success", "step"), (kl, "KL per trajectory (nats), training episodes", "step"),
                           (rounds, "rounds per training episode", "step"), (turns, "KL per turn (nats): first steps dashed, last solid", "turn")):
        axis.set(title=title, xlabel=x)
        axis.grid(alpha=0.25)
    success.set_ylim(0, 1)
    success.legend(fontsize=8)
    figure.savefig(args.out, dpi=110)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    command(main, Args)
