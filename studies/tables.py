"""What can be compared, and the tables and figures: a row for each line, for each pair of F2B and OPD, or for
each method over several comparisons. studies/compare.py, which makes the runs, says what stands in them.
"""

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import curriculum
import plot
from differences import (
    asked_of_teacher,
    called,
    differences,
    evaluations,
    found,
    identity,
    interval,
    last,
    level,
    outcomes,
    over_run,
    paired,
    read,
    steps_of,
    tokens,
)
from harness.cli import UserError
from harness.report import rate, wilson
from methods import METHODS

# ---- which there are

LOSSES = ("reverse", "forward", "jsd", "k1")    # nll is sft's alone
LINES = {  # label: flags of tcod.py
    "sft": "--method sft --loss nll",
    **{called(method, loss): f"--method {method} --loss {loss}"
       for method in ("opd", "f2b", "b2f", "guided") for loss in LOSSES},
    "f2b-eta-4": "--method f2b --loss reverse --eta 4",
    "f2b-eta-8": "--method f2b --loss reverse --eta 8",
    "f2b-stages": "--method f2b --loss reverse --schedule 5@10,10@20,20@40",
    "opd-tokens": "--method opd --loss reverse",
    "opd-near": "--method opd --loss jsd --beta 0.2",   # TOP-D
    "f2b-constant": "--method f2b --loss reverse --schedule constant --k-start 6",
    "f2b-constant-near": "--method f2b --loss jsd --beta 0.2 --schedule constant --k-start 6",
    **{name: f"--method {name} --loss reverse" for name in METHODS if name not in curriculum.METHODS},
}


class Study(NamedTuple):
    """A table of lines."""
    lines: tuple
    base: str = "opd"           # others are compared with it ...
    same_loss: bool = True      # ... by the line's own loss; sft by the first there is
    brief: bool = False         # without models that are not trained, invalid actions and KL
    forest: bool = False        # its figure has differences to the base, not curves


class Pairs(NamedTuple):
    """A table of comparisons, F2B less OPD in each. rows: (label, loss, folder of the runs, folder of the
    teacher's take-over test)."""
    rows: tuple


class Beside(NamedTuple):
    """Comparisons side by side, each with its own `opd`. folders: {a comparison: its folder, seen from
    --out}."""
    folders: dict
    lines: tuple = ()           # those that are shown; by default all that are there
    support: str = ""           # what a name says of its teacher, whose take-over test is in the folder


def after(turns):
    """The column of what the teacher wins once the student has played so many turns."""
    return f"teacher after {turns} student turns"


TEST = "take_over.json"
TURNS = (0, 3, 6, 10)   # of the student in a take-over test
SUPPORT = 6             # those after which a teacher's success is called its support
SHARES = ("0", "0.01", "0.03", "0.1", "0.3")  # of mixed play in a teacher's training
STUDIES = {
    "paper": Study(("sft", "opd", "f2b", "b2f", "guided")),
    "factors": Study(
        ("f2b", "f2b-eta-4", "f2b-eta-8", "f2b-stages", "f2b-forward", "opd", "opd-forward", "opd-tokens"),
        base="f2b", same_loss=False, brief=True),
    "field": Study(
        ("opd", "f2b", "f2b-constant", "opd-near", "f2b-constant-near", "b2f", "guided", "sft",
         *(name for name in METHODS if name not in curriculum.METHODS)), same_loss=False, forest=True),
    "methods": Beside({
        "ALFWorld, narrow": "../alfworld-full-narrow", "ALFWorld, broad": "../alfworld-full",
        "small, narrow": "../field", "small, broad": "../field-broad",
        "WebShop": "../webshop-field", "ScienceWorld": "../scienceworld-field"}),
    "support": Beside(
        {"tiny-narrow": "../field", **{share: share for share in SHARES},
         "tiny-teacher": "../field-broad"},
        lines=("opd", "f2b", "f2b-constant", "frontier", "guided"), support="share of mixed play"),
    "gains": Pairs((
        ("ALFWorld", "reverse", "alfworld-full-narrow", "alfworld-full-narrow"),
        ("ALFWorld, hard split left out", "reverse", "alfworld-hard", "alfworld-full-narrow"),
        ("ALFWorld", "reverse", "alfworld-full", "alfworld-full"),
        *(("small ALFWorld", "reverse", folder, folder)
          for folder in ("field", *(f"support/{share}" for share in SHARES), "field-broad")),
        ("small ALFWorld, `k1`", "k1", "alfworld-k1", "alfworld-k1"),
        ("WebShop", "reverse", "webshop-field", "webshop"),
        ("WebShop, `forward`", "forward", "webshop", "webshop"),
        ("ScienceWorld", "reverse", "scienceworld-field", "scienceworld-field"))),
}
FIELD = STUDIES["field"]
IDEAS = {   # what a line changes, by how its label begins; the longest beginning counts
    "trains on others' turns": ("sft", "guided", "uopd", "frontier-guided"),
    "ends early": ("f2b", "stride", "turnopd"),
    "starts behind replayed turns": ("b2f", "reopd", "stride-restart"),
    "weighs turns": ("frontier", "turnopd-blend", "sod", "clean"),
    "has another target": ("opd-near",)}
BRIEF = {   # lines of the table that one reads first: what is trained
    "sft": "the expert's episodes",
    "guided": "some turns are the teacher's",
    "uopd": "the teacher's answers in place of the worst",
    "stride": "until the teacher finds the episode unlikely",
    "f2b": "more turns, step by step",
    "f2b-constant": "six turns, always",
    "b2f": "what follows a replayed expert"}
TITLES = ("over the run", "over the tokens", "end")     # of a figure's panels
DEAR = ("over the tokens", "over the teacher's tokens")  # of differences, by what they cost
CHOSEN = ("method", "loss")                         # what a label says
CURRICULUM = ("method", "schedule", "k_start", "eta", "stages", "rho")  # in what F2B may differ from OPD


# ---- tables

def markdown(columns, rows):
    """A table of rows {column: cell}; a dash where a row has none."""
    lines = [columns, *([row.get(column, "–") for column in columns] for row in rows)]
    head, *others = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join([head, "|---" * len(columns) + "|", *others]) + "\n"


def success_cell(summaries):
    """'85.0 [80–89] (81–88), 9.1 rounds': in %, the 95 % interval over games of all evaluations, which are of
    the same games, lowest and highest seed."""
    shares, won = [100 * s["success"] for s in summaries], level(list(map(outcomes, summaries)))
    low, high = wilson(np.mean(shares) / 100 * summaries[0]["games"], summaries[0]["games"])
    if won.shape[1] > 1:  # else each game counts once, as if it came out alike with all seeds
        won = won[:, ~np.isnan(won).any(0)]
        low, high = (rate(won.sum(0), np.full(won.shape[1], len(won)))[end] for end in ("low", "high"))
    ends = f" ({min(shares):.0f}–{max(shares):.0f})" * (len(shares) > 1)
    rounds = np.mean([s["rounds"] for s in summaries])
    return f"{np.mean(shares):.1f} [{100 * low:.0f}–{100 * high:.0f}]{ends}, {rounds:.1f} rounds"


def kl_cell(each):
    """'95.5 → 15.3', mean over seeds of the first and the last tenth of the steps; a dash without a
    teacher."""
    ends = []
    for part in ("early", "late"):
        steps = [[r["kl"] for r in result["curve"] if "kl" in r] for result in each]
        ends.append([value for kls in steps for value in plot.tenth(kls, part)])
    if None in ends[0] + ends[1]:
        return "–"
    return f"{np.mean(ends[0]):.1f} → {np.mean(ends[1]):.1f}"


def quarter(each):
    """'+1.8': what the last quarter of the steps brought, in points, mean over seeds; between evaluations a
    curve is straight."""
    gains = []
    for points in [plot.held_out(result["curve"]) for result in each]:
        steps, success = list(points), list(points.values())
        gains.append(success[-1] - np.interp(0.75 * steps[-1], steps, success))
    return f"{100 * np.mean(gains):+.1f}"


def heading(label, result, study):
    """'OPD (reverse)' for a method by a loss where losses are compared, else the label."""
    if study.same_loss and label == called(result["method"], result["loss"]):
        return f"{result['method'].upper()} ({result['loss']})"
    return label


def base_of(lines, label, study):
    """The label of the line that this one is compared with; None where there is none."""
    loss = lines[label][0]["loss"]
    if not study.same_loss:
        return study.base if study.base in lines else None
    for name, (first, *_) in lines.items():
        if first["method"] == study.base and (first["loss"] == loss or loss == "nll"):
            return name
    return None


def gained(lines, study):
    """{label: its `differences` to its base}; empty where it has none."""
    bases = {label: base_of(lines, label, study) for label in lines}
    return {label: {} if base in (None, label) else differences(lines[label], lines[base])
            for label, base in bases.items()}


def trained(each, label, study, splits, gains):
    """A line's {column: cell}. each: its results; gains: its `differences` to its base."""
    runs = [100 * np.nanmean(over_run(result)) for result in each]
    return {
        "": heading(label, each[0], study), "seeds": str(len(each)),
        **{f"{split}, %": success_cell([last(result)[split] for result in each]) for split in splits},
        "invalid": f"{np.mean([last(result)[splits[0]]['invalid'] for result in each]):.1%}",
        "KL, start → end": kl_cell(each), "tokens": f"{np.mean(list(map(tokens, each))):,.0f}",
        "over the run": f"{np.mean(runs):.1f}", "last quarter": quarter(each),
        **{f"to {study.base.upper()}, {what}": interval(*gains[what]) if gains else "–"
           for what in ("end", "over the run")}}


def sum_of(result, key, part=None):
    """Of a figure of all its steps, or of a part of it; None of an older result, which has none."""
    figures = [record.get(key) for record in steps_of(result)]
    if part:
        figures = [figure.get(part) if isinstance(figure, dict) else None for figure in figures]
    return None if None in figures else sum(figures)


def spent(each, label, study, gains):
    """What a line took, {column: cell}: means over its seeds; a dash where one is an older result."""
    found = {
        "teacher's tokens": asked_of_teacher,
        "of these drawn": lambda result: sum_of(result, "teacher_tokens"),
        "turns judged in play": lambda result: sum_of(result, "judged"),
        "seconds of play": lambda result: sum_of(result, "seconds", "play"),
        "of training": lambda result: sum_of(result, "seconds", "train")}
    each_found = {name: list(map(count, each)) for name, count in found.items()}
    means = {name: None if None in counts else np.mean(counts) for name, counts in each_found.items()}
    means = {"tokens trained": np.mean(list(map(tokens, each))), **means}
    return {
        "what it took": heading(label, each[0], study),
        **{name: "–" if mean is None else f"{mean:,.0f}" for name, mean in means.items()},
        **{f"to {study.base.upper()}, {what}": interval(*gains[what]) if what in gains else "–"
           for what in DEAR}}


def mean_kl(record):
    """The mean KL of its turns by their index, nats; NaN where nothing was compared with a teacher."""
    values = [kl for kl in record["kl_turn"] if kl is not None]
    return np.mean(values) if values else np.nan


PLAYED = {  # in a training step
    "turns that repeat, %": lambda record: 100 * record["repeats"],
    "that the game refused, %": lambda record: 100 * record["invalid"],
    "KL, mean over the turn's index, nats": mean_kl}


def by_part(each, figures, parts, steps=None):
    """{what: '4.0 · 24.7 · …'}: figures {what: of a step's record} of a line's runs, means over its seeds by
    equal parts of the first so many steps, by default of all; without what a run does not tell."""
    runs, cells = [steps_of(one)[:steps] for one in each], {}
    if not all("repeats" in record for run in runs for record in run):
        return cells
    for what, figure in figures.items():
        split = [np.array_split([figure(record) for record in run], parts) for run in runs]
        means = np.mean([[np.mean(part) for part in run if len(part)] for run in split], 0)  # (parts,)
        if not np.isnan(means).any():
            cells[what] = " · ".join(f"{value:.1f}" for value in means)
    return cells


def went(each, label, study):
    """How a line played in training, {column: cell}, by quarter of the steps."""
    return {"training, by quarter": heading(label, each[0], study), **by_part(each, PLAYED, 4)}


def zero_shot(each, splits):
    """The lines of those who are not trained: every run has evaluated them. each: results of a line."""
    for who, label in (("teacher", "teacher"), ("guest", "teacher, as the student"), ("before", "student")):
        runs = [evaluations(result, who)[0][1] for result in each if evaluations(result, who)]
        if runs:
            cells = {f"{split}, %": success_cell([run[split] for run in runs]) for split in splits}
            invalid = np.mean([run[splits[0]]["invalid"] for run in runs])
            yield {"": label, "seeds": str(len(runs)), **cells, "invalid": f"{invalid:.1%}"}


def note(lines):
    """In what lines differ besides what a label says, as a sentence below the table; empty where in
    nothing."""
    seen = {}  # {what: {its values: None}}
    for result in (result for results in lines.values() for result in results):
        for what, value in identity(result).items():
            seen.setdefault(what, {})[str(value) or "–"] = None
    each = [f"{what} ({', '.join(values)})" for what, values in sorted(seen.items())
            if len(values) > 1 and what not in CHOSEN]
    return f"\nnote: the lines differ in {', '.join(each)} too\n" if each else ""


def table(lines, study, gains):
    """The Markdown table of {label: results}; gains: see `gained`."""
    most = max(lines.values(), key=len)
    splits = list(last(most[0]))
    rows = [trained(each, label, study, splits, gains[label]) for label, each in lines.items()]
    columns = list(rows[0])
    if study.brief:
        columns = [name for name in columns if name not in ("invalid", "KL, start → end")]
    else:
        rows = [*zero_shot(most, splits), *rows]
    text = markdown(columns, rows)
    costs = [spent(each, label, study, gains[label]) for label, each in lines.items()]
    if any(cost["of these drawn"] != "–" for cost in costs):
        text += "\n" + markdown(list(costs[0]), costs)
    if study.forest:
        played = [went(each, label, study) for label, each in lines.items()]
        text += "\n" + markdown(max(map(list, played), key=len), played)
    return text + note(lines)


# ---- pairs

@dataclass
class Gain:
    """F2B beside OPD. support: see `took_over`; opd, f2b: results of the seeds that both have; differences:
    of the two."""
    label: str
    support: dict
    opd: list
    f2b: list
    differences: dict


def gain(out, label, loss, runs, test):
    """A row of a study of pairs, of what is kept below `out`."""
    lines = found(os.path.join(out, runs))
    opd, f2b = (lines.get(called(method, loss), []) for method in ("opd", "f2b"))
    both = paired(opd, f2b)
    if not both:
        raise UserError(f"{os.path.join(out, runs)} holds no seed of both OPD and F2B by {loss}")
    changed = set(plot.unlike(identity(opd[0]), identity(f2b[0]))) - set(CURRICULUM)
    if changed:
        raise UserError(f"{os.path.join(out, runs)}: OPD and F2B had another {', another '.join(changed)}")
    opd, f2b = map(list, zip(*both))
    return Gain(label, took_over(os.path.join(out, test)), opd, f2b, differences(f2b, opd))


def took_over(folder):
    """{turns of the student: what the teacher then wins, a share}, of the take-over test in a folder."""
    return {row["n"]: row["success"] for row in read(os.path.join(folder, TEST))["take_over"]}


def gain_cells(one):
    """A pair's {column: cell}."""
    split, each = next(iter(last(one.opd[0]))), one.differences
    ends = [np.mean([last(result)[split]["success"] for result in runs]) for runs in (one.opd, one.f2b)]
    return {
        "games": one.label, after(SUPPORT): f"{100 * one.support[SUPPORT]:.0f}",
        "seeds": str(len(one.opd)), "steps": str(one.opd[0]["curve"][-1]["step"]),
        "OPD": f"{100 * ends[0]:.1f}", "F2B": f"{100 * ends[1]:.1f}",
        "F2B − OPD, end": interval(*each["end"]),
        **{what: interval(*each[what]) for what in ("over the run", "over the tokens")}}


def gain_table(gains):
    """The Markdown table of a study of pairs."""
    rows = list(map(gain_cells, gains))
    return markdown(list(rows[0]), rows)


def gain_figure(gains):
    """What the curriculum gains, over the teacher's support."""
    points = {title: {} for title in TITLES}
    for one in gains:
        for title in TITLES:
            point = one.support[SUPPORT], *one.differences[title]
            points[title].setdefault(one.label, []).append(point)
    return over_support(points, "F2B − OPD")


def over_support(points, what, apart=0.0):
    """Differences over the teacher's support; a hollow point is one seed. points: {title of a panel: {label:
    [(support, mean, half of the interval)]}}, all as shares; apart: how far labels stand from one another, in
    points of support, where they share it."""
    figure = Figure(figsize=(11.5, 4), dpi=125, layout="constrained")
    axes = figure.subplots(1, len(points), sharey=True)
    labels = list(next(iter(points.values())))
    for axis, (title, lines) in zip(axes, points.items()):
        for i, each in enumerate(lines.values()):
            support, mean, half = 100 * np.array(sorted(each)).T    # (points,)
            support += apart * (i - (len(labels) - 1) / 2)
            axis.errorbar(support, mean, half, fmt="o", color=f"C{i}", capsize=3)
            axis.plot(support, np.where(np.isnan(half), mean, np.nan), "o", color=f"C{i}", mfc="white")
        axis.axhline(0, color="grey", lw=0.8)
        tidy(axis, title, f"teacher's success after {SUPPORT} student turns, %")
    axes[0].set_ylabel(f"{what}, points of success")
    plot.legend(figure, [
        Line2D([], [], marker="o", ls="", color=f"C{i}", label=label.replace("`", ""))
        for i, label in enumerate(labels)])
    return figure


def less(base):
    """What is shown of lines that are compared with this one."""
    return f"success less {base.upper()}'s"


def tidy(axis, title, label):
    """Title, label and grid of a panel."""
    axis.set(title=title, xlabel=label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)


# ---- methods, over several comparisons

def side_by_side(out, study):
    """{what is compared: {label: its results}} of a study of comparisons."""
    each = {name: found(os.path.join(out, folder)) for name, folder in study.folders.items()}
    if study.lines:
        each = {name: {label: lines[label] for label in study.lines if label in lines}
                for name, lines in each.items()}
    for name, lines in each.items():
        if FIELD.base not in lines:
            raise UserError(f"{name}: there is no {FIELD.base}, which all others are compared with")
    return each


def ended(each, gains):
    """A line's cell in one comparison: success at the end, its seeds, and what it has over the base."""
    ends = [100 * next(iter(last(result).values()))["success"] for result in each]
    gain = ahead("over the run", gains)
    return f"{np.mean(ends):.1f} ({len(ends)} seed{'s' * (len(ends) > 1)})" + f", {gain}" * (gain != "–")


def ahead(what, gains):
    """The cell of one of `differences` to the base; a dash where it is not known."""
    return interval(*gains[what]) if what in gains else "–"


def told_apart(mean, half):
    """'+17', or '+17 ?' where the interval has 0 in it, or one seed has none."""
    points = round(100 * mean)
    return (f"{points:+d}" if points else "0") + " ?" * (not abs(mean) > half)


def share_of(count, pairs):
    """'41–60': of what OPD takes, the least and the most over comparisons, in %. count: of a result, None
    where it does not tell; pairs: of each comparison the results of a line and OPD's."""
    counted = [[list(map(count, results)) for results in pair] for pair in pairs]
    shares = [100 * np.mean(ours) / np.mean(base) for ours, base in counted if None not in (*ours, *base)]
    return "–".join(dict.fromkeys(f"{end(shares):.0f}" for end in (min, max))) if shares else "–"


def brief(each, gains):
    """The Markdown table of BRIEF's lines: what they have over OPD over the run, and at the end of the first
    comparison; what they train and ask of the teacher, in % of OPD's."""
    first, rows = next(iter(each)), []
    said, end, trained, asked = (
        "method: what is trained", f"end, {first}", "trained tokens", "asked of the teacher")
    for label, what in BRIEF.items():
        known = {name: gain[label] for name, gain in gains.items() if gain.get(label)}
        if not known:
            continue
        pairs = [(each[name][label], each[name][FIELD.base]) for name in known]
        rows.append({
            said: f"`{label}`: {what}",
            **{name: told_apart(*gain["over the run"]) for name, gain in known.items()},
            end: told_apart(*known[first]["end"]) if first in known else "–",
            trained: share_of(tokens, pairs), asked: share_of(asked_of_teacher, pairs)})
    return markdown([said, *each, end, trained, asked], rows)


def beside_tables(each, gains):
    """The Markdown tables of `side_by_side`, a column for each comparison: the base, lines without a
    difference to it, then the others, the best over the run in the first comparison first. The last table has
    those that ask the teacher for more tokens than they train. gains: {a comparison: see `gained`}."""
    order = list(reversed(ranked({name: picked("over the run", gains[name]) for name in each})))
    alone = [label for lines in each.values() for label in lines if label not in order]
    labels = dict.fromkeys([FIELD.base, *alone, *order])

    def rows_of(cell):
        return {label: {name: cell(lines[label], gains[name][label])
                        for name, lines in each.items() if label in lines} for label in labels}

    steps = rows_of(ended)
    trained, asked = (rows_of(lambda _, gain, what=what: ahead(what, gain)) for what in DEAR)
    asked = {label: cells for label, cells in asked.items()
             if any(cell not in ("–", trained[label][name]) for name, cell in cells.items())}
    titles = "at the end; less OPD, over the run", *(f"less OPD, {what}" for what in DEAR)
    return "\n".join(
        markdown([title, *each], [{title: label} | cells for label, cells in rows.items()
                                  if set(cells.values()) != {"–"}])
        for title, rows in zip(titles, (steps, trained, asked)))


def beside_support(out, study, each, gains):
    """(tables, figure) of comparisons whose teachers differ in their support."""
    said = study.support
    tests = {name: took_over(os.path.join(out, folder)) for name, folder in study.folders.items()}
    rows = [{said: after(n), **{name: f"{100 * test[n]:.0f}" for name, test in tests.items()}} for n in TURNS]
    points = {title: {} for title in TITLES}
    for name, lines in gains.items():
        for title in TITLES:
            for label, ends in picked(title, lines).items():
                points[title].setdefault(label, []).append((tests[name][SUPPORT], *ends))
    text = markdown([said, *each], rows) + "\n" + beside_tables(each, gains)
    return text, over_support(points, less(FIELD.base), apart=0.9)


def ranked(panels):
    """All lines of `forest`, the best of the first panel last, then by the next one."""
    names = dict.fromkeys(name for panel in panels.values() for name in panel)
    return sorted(names, key=lambda name: [panel.get(name, (-1, 0))[0] for panel in panels.values()])


def idea_of(label):
    """Which of IDEAS a line is, by its number; one more for a line of one's own."""
    begun = {name: i for i, names in enumerate(IDEAS.values()) for name in names if label.startswith(name)}
    return begun[max(begun, key=len)] if begun else len(IDEAS)


def forest(panels, what):
    """Differences to a base with their intervals, by IDEAS, the best of the first panel first; a hollow point
    is one seed. panels: {title: {line: (mean, half of its interval)}}; what: is shown. The axes have one
    range, beyond which the intervals of two seeds go."""
    lines, rows = list(reversed(ranked(panels))), []
    for i, idea in enumerate((*IDEAS, "other")):
        own = [name for name in lines if idea_of(name) == i]
        if own:
            rows += [idea, *own]
    figure = Figure(figsize=(11.5, 0.9 + 0.22 * len(rows)), dpi=125, layout="constrained")
    figure.suptitle(f"{what}: right of 0 is ahead; hollow: one seed", fontsize="medium")
    for axis, (title, panel) in zip(figure.subplots(1, len(panels), sharey=True), panels.items()):
        for name, ends in panel.items():
            mean, half = 100 * np.array(ends)
            hollow = dict(mfc="white") if np.isnan(half) else {}
            place, color = rows.index(name), f"C{idea_of(name)}"
            axis.errorbar(mean, place, xerr=half, fmt="o", color=color, capsize=2, **hollow)
        axis.axvline(0, color="grey", lw=0.8)
        axis.set(xlim=(-70, 80), ylim=(len(rows) - 0.5, -0.5))
        axis.set_yticks(range(len(rows)), rows)
        for text in axis.get_yticklabels():
            text.set_fontweight("bold" if text.get_text() not in lines else "normal")
        tidy(axis, title, "points")
        axis.title.set_fontsize("medium")
        axis.tick_params("y", length=0)
    return figure


def picked(what, gains):
    """{label: (mean, half)} of one of `differences`, as `forest` wants it."""
    return {label: each[what] for label, each in gains.items() if each}


# ---- the whole

def drawn(args, study):
    """(table, figure) of what is found."""
    if isinstance(study, Pairs):
        gains = [gain(args.out, *row) for row in study.rows
                 if os.path.exists(os.path.join(args.out, row[-1], TEST))]
        if not gains:
            raise UserError(f"{args.out} holds no teacher's take-over test of --study {args.study}")
        return gain_table(gains), gain_figure(gains)
    if isinstance(study, Beside):
        each = side_by_side(args.out, study)
        gains = {name: gained(lines, FIELD) for name, lines in each.items()}
        if study.support:
            return beside_support(args.out, study, each, gains)
        panels = {name: picked("over the run", gains[name]) for name in each}
        text = brief(each, gains) + "\n" + beside_tables(each, gains)
        return text, forest(panels, f"{less(FIELD.base)}, over the run")
    lines = found(args.out)
    order = study.lines if args.lines or study.brief else LINES  # methods, each by all losses
    names = dict.fromkeys(order if args.lines else (*order, *lines))
    lines = {name: lines[name] for name in names if name in lines}
    if not lines:
        raise UserError(f"{args.out} holds no evaluated run of --lines {' '.join(study.lines)}")
    gains = gained(lines, study)
    if study.forest and study.base in lines:
        panels = {what: picked(what, gains) for what in TITLES}
        return table(lines, study, gains), forest(panels, less(study.base))
    curves = {heading(label, each[0], study): [result["curve"] for result in each]
              for label, each in lines.items()}
    return table(lines, study, gains), plot.draw(curves, smooth=5)
