"""The paper's figures from the logs of one or more runs.

    python plot.py --runs runs/alfworld-opd-1 runs/alfworld-f2b-1 --out compare.png

Panels in the manner of the paper's Figures 2 and 4: held-out success over the steps and over the trained
tokens; of the training episodes, invalid actions, turns that repeat the one before (where a log has them),
trajectory KL and mean rounds over the steps, and the KL of each turn over the turn index (early steps dashed,
late steps solid). Runs that differ in nothing but the seed share a colour and are drawn as their mean with a
band from the lowest to the highest; in what else runs differ (the loss, the schedule, the splits …) stands in
their labels. A run without a teacher's forward (sft by nll) has no KL, and none is drawn.

No torch here. The figure is made through its object, not through pyplot: a notebook keeps its own backend.
"""

import os
from dataclasses import dataclass

if __name__ == "__main__":
    os.environ.pop("MPLBACKEND", None)  # a notebook's cell hands down its own, which may not be there

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter

from harness.cli import UserError, check_knobs, command, knob
from harness.folder import LOG, check_place, differing, read_args, read_log

# Arguments that may differ between two seeds of one experiment: where things lie (what lies there is told by
# fingerprints), and what changes no figure, or only by chance.
PLACES = ("data", "student", "prompt", "train_split", "without", "eval_splits")
ELSEWHERE = (*PLACES, "teacher", "out", "resume")
SAME_RUN = (*ELSEWHERE, "seed", "fingerprint", "save_every", "keep", "plan", "batch_tokens", "date", "chunk",
            "recompute", "moments", "eval_batch", "shared_tasks")
GONE = dict(eval_temperature=0.4, eval_max_response=0)  # what older runs could choose, and all have now
COLOURS, MARKS = 10, ("", "o", "^", "s", "x", "D")  # of matplotlib's cycle; of each ten lines
MARKED = 0.12   # of an axis, between two marks of a line


@dataclass
class Args:
    """Which runs to draw, and where."""
    runs: list = knob(None, "run folders", path=True)
    out: str = knob("tcod.png", "the picture to write; its ending says which type", path=True)
    smooth: int = knob(5, "steps averaged in the training curves", least=1)


# ---- what is drawn, as plain numbers

def identity(args):
    """{what: its value} of all that makes a run but its seed: arguments, and the fingerprints that args.json
    has of models, prompt, games and experts' episodes."""
    prints = args.get("fingerprint", {})
    told = (*SAME_RUN, "experts") if "experts' episodes" in prints else SAME_RUN
    return {**{name: value for name, value in {**GONE, **args}.items() if name not in told}, **prints}


def unlike(known, now):
    """In what a run differs from others, as names. known: {what: its value} of these; what only one of both
    notes, since it is of an older version, becomes known too."""
    changed = differing({what: known.get(what, value) for what, value in now.items()}, now)
    known.update({what: value for what, value in now.items() if what not in known})
    return changed


def once(places):
    """Files or folders, each once: links and trailing slashes lead to the same."""
    return list({os.path.realpath(place): place for place in reversed(places)}.values())[::-1]


def grouped(folders):
    """{label: the records of each of its runs}: runs of one label are seeds of one another.

    A label is "method · teacher", then the run's own value of every argument in which the runs differ; where
    what lies in a place differs, the place is said, and where that says nothing the fingerprints are.
    """
    folders = once(folders)
    runs, known, differs = [read_args(folder) for folder in folders], {}, set()
    for args in runs:
        differs.update(unlike(known, identity(args)))
    groups = {}
    for args, folder in zip(runs, folders):
        own = {**known, **identity(args)}
        key = tuple(str(own[what]) for what in sorted(differs))
        groups.setdefault(key, ({**GONE, **args}, []))[1].append(read_log(os.path.join(folder, LOG)))
    heads, labelled = [args for args, _ in groups.values()], {}
    said = {name for args in heads for name in args} - set(ELSEWHERE)
    names = sorted(differs & said - {"method"})
    if any(what not in said and not what.startswith("teacher") for what in differs):
        names += [place for place in PLACES if len({args.get(place) for args in heads}) > 1]
    for key, (args, logs) in groups.items():
        label = f"{args['method']} · {os.path.basename(args['teacher'].rstrip('/'))}"
        label = " · ".join([label, *(f"{name} {args.get(name)}" for name in names)])
        labelled[label if label not in labelled else f"{label} ({', '.join(key)})"] = logs
    return labelled


def held_out(records, split=None):
    """{step: success of the student} on a held-out split, the first one unless it is named, at step 0 before
    any training."""
    points = {}
    for record in records:
        results = record.get("eval", {})
        for who in ("before", "after"):
            if who in results:
                each = results[who]
                points[record["step"]] = each[split or next(iter(each))]["success"]
    return points


def tokens_until(records):
    """{step: tokens trained up to it}; older logs do not tell those without a weight in the loss apart."""
    points, trained = {}, 0
    for record in records:
        trained += record.get("weighed", record.get("tokens", 0))
        points[record["step"]] = trained
    return points


def smoothed(records, key, width):
    """{training step: mean of the last `width` values up to it}, fewer at the start; steps without a value
    are left out."""
    known = [r for r in records if r.get(key) is not None]
    points = {}
    for i, record in enumerate(known):
        window = known[max(0, i + 1 - width): i + 1]
        points[record["step"]] = float(np.mean([r[key] for r in window]))
    return points


def tenth(steps, part):
    """The first ("early") or the last ("late") tenth of a list, at least one."""
    count = max(1, len(steps) // 10)
    return steps[:count] if part == "early" else steps[-count:]


def turn_profile(runs, part):
    """Mean KL of each turn over the "early" or "late" steps of all runs; NaN where nothing is known."""
    rows = []
    for records in runs:
        rows += tenth([r["kl_turn"] for r in records if "kl_turn" in r], part)
    means = []
    for t in range(max(map(len, rows), default=0)):
        column = [row[t] for row in rows if t < len(row) and row[t] is not None]
        means.append(float(np.mean(column)) if column else np.nan)
    return means


# ---- drawing

def look(i):
    """How the i-th line is drawn: after ten the colours come again, with marks."""
    return dict(color=f"C{i % COLOURS}", marker=MARKS[i // COLOURS % len(MARKS)], ms=4, markevery=MARKED)


def curve(axis, look, series, places=None):
    """The mean over runs with a band from lowest to highest.

    series: {step: value} of each run. Only steps that all runs have are drawn, since a mean over fewer seeds
    would be another figure; a run that has no value at all is left out. places: {step: where it is drawn} of
    each run, their mean counts; by default at the step.
    """
    known = [i for i, points in enumerate(series) if points]
    steps = sorted(set.intersection(*(set(series[i]) for i in known))) if known else []
    if steps:
        values = np.array([[series[i][step] for step in steps] for i in known])  # (runs, steps)
        at = np.mean([[places[i][step] for step in steps] for i in known], 0) if places else steps
        axis.plot(at, values.mean(0), **look)
        axis.fill_between(at, values.min(0), values.max(0), color=look["color"], alpha=0.15, linewidth=0)


def legend(figure, names):
    """Name the lines below a figure, at most five in a line and about as many in each; names: Line2D."""
    lines = -(-len(names) // 5)
    figure.legend(handles=names, loc="outside lower center", ncols=-(-len(names) // lines), frameon=False)


PANELS = {  # of a training step: key: title
    "invalid": "invalid actions", "repeats": "turns that repeat the one before",
    "kl": "KL per trajectory (nats)", "rounds": "rounds per episode"}
LAYOUT = [["success", "tokens", "invalid"], ["kl", "rounds", "turns"]]
WITH_REPEATS = [["success", "tokens", "invalid", "repeats"], ["kl", "rounds", "turns", "turns"]]


def draw(groups, smooth):
    """The figure of {label: the records of each of its runs}."""
    repeats = any(record.get("repeats") is not None for runs in groups.values() for r in runs for record in r)
    figure = Figure(figsize=(14 if repeats else 11.5, 6), dpi=125, layout="constrained")
    panels, names = figure.subplot_mosaic(WITH_REPEATS if repeats else LAYOUT), []
    for i, (label, runs) in enumerate(groups.items()):
        of = f", {len(runs)} runs" * (len(runs) > 1)  # a band's
        names.append(Line2D([], [], **look(i), label=label + of))
        success = [held_out(records) for records in runs]
        curve(panels["success"], look(i), success)
        curve(panels["tokens"], look(i), success, [tokens_until(records) for records in runs])
        for key in PANELS.keys() & panels.keys():
            curve(panels[key], look(i), [smoothed(records, key, smooth) for records in runs])
        for part, style in (("early", "--"), ("late", "-")):
            profile = turn_profile(runs, part)
            if not np.isnan(profile).all():  # marks cannot stand on a line without points
                panels["turns"].plot(profile, style, **look(i))
    panels["success"].set(title="held-out success", xlabel="step")
    panels["tokens"].set(title="held-out success", xlabel="trained tokens")
    panels["tokens"].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels["turns"].set(title="KL per turn (nats)", xlabel="turn (dashed: early steps, solid: late)")
    for name, axis in panels.items():
        if name in PANELS:
            axis.set(title=PANELS[name], xlabel="step")
        if name in ("success", "tokens", "invalid", "repeats"):
            axis.set_ylim(0, 1)
            axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    legend(figure, names)
    return figure


def check(args):
    """Mistakes that can be told before anything is read; raises UserError."""
    check_knobs(args)
    if not args.runs:
        raise UserError("name at least one run folder, as in --runs runs/alfworld-f2b-1")
    kind = os.path.splitext(args.out)[1].removeprefix(".").lower()
    kinds = Figure().canvas.get_supported_filetypes()
    if kind not in kinds:
        raise UserError(
            f"{args.out} is no picture that can be written: its ending is one of {', '.join(kinds)}")
    check_place(args.out)


def main(args):
    check(args)
    draw(grouped(args.runs), args.smooth).savefig(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    command(main, Args)
