"""Does the mean of a run's last checkpoints play better than its last one, and do seeds spread less?

    python studies/compare.py --lines opd --seeds 0,1,2,3,4,5 --flags '--keep 10' --out runs/soup
    python studies/soup.py --runs runs/soup/runs/opd-* --last 3

A run's soup has the mean of the weights of its student and of the `--last` - 1 checkpoints kept before
(`tcod.py --keep`). Both play the held-out games by the run's own settings of evaluation (temperature 0.4).
The table: success in % by run, its mean, its deviation over runs, and the difference, paired by run and by
game as everywhere (docs/results.md).
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]

from compare import start
from differences import interval, level, outcomes, read
from tables import markdown

import load
from harness.cli import UserError, check_knobs, command, knob
from harness.folder import read_args
from harness.report import difference

SETTINGS = ("env", "data", "max_turns", "max_response", "max_context", "precision", "prompt")


@dataclass
class Args:
    """Which runs, and how many checkpoints."""
    runs: list = knob(None, "run folders of tcod.py with --keep, of one method with several seeds")
    last: int = knob(3, "checkpoints in a soup, the student of the last step among them", least=2)
    split: str = knob("valid_seen", "held-out games")
    games: int = knob(140, "of them", least=1)


def checkpoints(run, number):
    """The folders of a run's last checkpoints, the last step's first. Raises UserError where it kept less."""
    kept = [path for path in Path(run).glob("student-*") if re.fullmatch(r"student-\d+", path.name)]
    kept.sort(key=lambda path: int(path.name[len("student-"):]), reverse=True)
    if len(kept) < number:
        raise UserError(f"{run} kept {len(kept)} checkpoints of {number}: train with --keep N")
    return kept[:number]


def mix(folders, folder):
    """Write the mean of checkpoints as one."""
    models = [load.load_model(str(path)) for path in folders]
    with torch.no_grad():
        for mean, *others in zip(*(model.parameters() for model in models)):  # a tied one comes once
            mean.copy_(sum(others, mean) / len(models))
    load.save(models[0], load.load_tokenizer(str(folders[0])), folder)


def played(model, run, args):
    """A checkpoint's summary on the held-out games, by the settings of its run."""
    out, own = f"{model}.{args.split}.json", read_args(run)
    same = [part for name in SETTINGS if own[name] not in ("", None)
            for part in (f"--{name.replace('_', '-')}", str(own[name]))]
    start("eval.py", ["--model", str(model), "--split", args.split, "--games", str(args.games),
                      "--temperature", "0.4", "--out", out, *same])
    return read(out)["summary"]


def line(run, args):
    """A run's (last, soup), each (games,) of success, and the number of games."""
    folders = checkpoints(run, args.last)
    soup = os.path.join(run, "soup")
    if not os.path.exists(soup):
        mix(folders, soup)
    each = [played(model, run, args) for model in (folders[0], soup)]
    return list(map(outcomes, each)), each[0]["games"]


def main(args):
    check_knobs(args)
    if not args.runs:
        raise UserError("--runs: name folders of runs")
    pairs, numbers = zip(*(line(run, args) for run in args.runs))
    both = level([side for pair in pairs for side in pair]).reshape(len(pairs), 2, -1)
    shares = 100 * np.nanmean(both, 2).T  # of the last students, of the soups
    rows = [{"": name, "by run": ", ".join(f"{share:.1f}" for share in each), "mean": f"{each.mean():.1f}",
             "deviation": f"{each.std(ddof=1):.1f}"}
            for name, each in zip(("last", f"mean of {args.last}"), shares)]
    whole = both[:, :, ~np.isnan(both).any((0, 1))].swapaxes(0, 1)
    rows[1]["less the last"] = interval(*difference(*whole[::-1], numbers[0]))
    print(markdown(list(rows[1]), rows), end="")


if __name__ == "__main__":
    command(main, Args)
