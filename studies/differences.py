"""What comparisons have left, read again; and differences between their lines, with intervals.

A result is what a run of studies/compare.py leaves: what was asked for, fingerprints of tasks and weights,
its curve. Results stand in one table only where the models, the held-out games and the evaluation are the
same. docs/results.md says what the intervals are.
"""

import json
import os
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import plot
from harness.cli import UserError
from harness.folder import parsed
from harness.report import difference

EVALUATION = (          # the same in all lines, and so are the models and the held-out games
    "env", "knobs", "history", "max_turns", "max_response", "max_context", "precision", "eval_temperature",
    "eval_max_response", "student", "teacher", "prompt")
TRAINED = ("list of training tasks", "experts' episodes")  # fingerprints that lines need not share
# A line that ends where it has trained the tokens of another: (the same with all steps, the other), by seed.
EQUAL_TOKENS = {"opd-tokens": ("opd", "f2b")}
USUAL = ("reverse", "nll")                      # not named in a label
SCORED = ("opd", "f2b", "b2f", "sft")           # ask the teacher for nothing but what they train


def called(method, loss):
    """'f2b', 'f2b-forward': what a line of this method and loss is called."""
    return method + f"-{loss}" * (loss not in USUAL)


# ---- what was found

def read(path):
    """A JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def read_result(path):
    """The result of a run; raises UserError for any other file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        result = parsed(file.read())
    if not isinstance(result, dict) or not {"method", "seed", "args", "curve"} <= set(result):
        raise UserError(f"{path} is no result of a run: remove it, or put it elsewhere")
    return result


def identity(result):
    """{what: its value} of a run but its seed: arguments, fingerprints, and how the held-out splits are
    called."""
    return {**plot.identity({**result["args"], "fingerprint": result["fingerprint"]}),
            "held-out splits": list(last(result))}


def measured(result):
    """That part of its identity which is the same in all lines: all but what is about training."""
    return {what: value for what, value in identity(result).items()
            if (what in EVALUATION or what not in result["args"]) and what not in TRAINED}


def check_same(lines, folder):
    """Raises UserError where a line has a run of another experiment, or twice one of a seed; or where lines
    have other models, games or another evaluation than one another."""
    all_lines = {}
    for label, results in lines.items():
        known, seeds = {}, set()
        for result in results:
            own, name = identity(result), f"{label} with seed {result['seed']}"
            if label.split("/")[-1] in EQUAL_TOKENS:
                own.pop("steps", None)  # by seed
            changed = plot.unlike(all_lines, measured(result)) or plot.unlike(known, own)
            if changed:
                raise UserError(
                    f"the results in {folder} cannot stand in one table: {name} had another "
                    f"{', another '.join(changed)} than those before")
            seed = result["args"].get("seed", result["seed"])
            if seed in seeds:
                raise UserError(f"{folder} holds {name} twice: put one of the two elsewhere")
            seeds.add(seed)


def own_label(result):
    """What a result's line is called in its comparison; older ones do not say."""
    return result.get("label") or called(result["method"], result["loss"])


def places(folder):
    """The folders called `results` in it, itself and those behind links too, each once, in order."""
    seen = set()
    for place, names, _ in os.walk(os.path.normpath(folder), followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names.sort()
        if os.path.basename(place) == "results":
            yield place


def found(folder):
    """{label: [its results by seed]} of all evaluated runs below a folder.

    A label is the line's own in a folder of one comparison. In a folder of several it stands behind its
    comparison's, which alone is the label where there is one line in it ('f2b-eta-4'). Raises UserError where
    there is no result, or results cannot stand in one table: see `check_same`.
    """
    comparisons = {}
    for place in places(folder):
        names = [name for name in sorted(os.listdir(place)) if name.endswith(".json") and name[0] != "."]
        paths = plot.once([os.path.join(place, name) for name in names])
        results = [result for result in map(read_result, paths) if last(result)]
        if results:
            comparisons[os.path.relpath(os.path.dirname(place), folder)] = results
    lines = {}
    for name, results in comparisons.items():
        alone = len(set(map(own_label, results))) == 1
        for result in sorted(results, key=lambda result: result["seed"]):
            label = own_label(result)
            if name not in (".", ".."):
                label = name if alone else f"{name}/{label}"
            lines.setdefault((label, name), []).append(result)
    labels = [label for label, _ in lines]
    told = {(f"{name}/{own_label(each[0])}" if labels.count(label) > 1 else label): each
            for (label, name), each in lines.items()}
    if not told:
        raise UserError(f"{folder} holds no results of evaluated runs")
    check_same(told, folder)
    return told


def evaluations(result, who):
    """[(step, {split: summary})] of one who was evaluated."""
    return [(record["step"], record["eval"][who]) for record in result["curve"]
            if who in record.get("eval", {})]


def last(result):
    """{split: summary} of the trained student; empty where it was never evaluated."""
    each = evaluations(result, "after")
    return each[-1][1] if each else {}


def steps_of(result):
    """The records of its training steps."""
    return [record for record in result["curve"] if record["step"]]


def tokens(result):
    """Trained in a whole run."""
    return max(plot.tokens_until(result["curve"]).values())


def asked_of_teacher(result):
    """Tokens that a whole run asked the teacher for; None of an older result of a method that asks for more
    than it trains, which does not tell, or not how many of them were of answers that it read and took the
    place of."""
    told = result["method"] in SCORED or all(
        "teacher_tokens" in record and
        ("dropped_tokens" in record or not (record["judged"] and record["teacher_tokens"]))
        for record in steps_of(result))
    return max(asked_until(result["curve"]).values()) if told else None


def outcomes(summary):
    """(games,) of an evaluation: 1 where a game was won, 0 where it was lost, nan where it could not be
    played; (1,), its success, of older results, which do not keep it by game."""
    if "each" not in summary:
        return np.array([summary["success"]])
    return np.array([{"0": 0, "1": 1, "-": np.nan}[letter] for letter in summary["each"]])


def level(each):
    """Arrays (games,) or (1,) as one: by game where all are, else their means (number, 1)."""
    if min(map(len, each)) == 1:
        each = [np.nanmean(one, keepdims=True) for one in each]
    return np.array(each, float)


def asked_until(records):
    """{step: tokens that the teacher was asked for up to it}, scored or drawn, dropped answers among them."""
    points, asked = {}, 0
    for record in records:
        if record.get("kl") is not None:
            asked += record.get("tokens", 0)
        if not record.get("judged"):  # else the states that it drew from are those that score
            asked += record.get("teacher_tokens", 0)
        asked += record.get("dropped_tokens", 0)
        points[record["step"]] = asked
    return points


def learned(result, split=None):
    """(steps, success (points, games), see `outcomes`) of the student on a held-out split, the first one
    unless it is named."""
    points = {}
    for who in ("before", "after"):
        for step, splits in evaluations(result, who):
            points[step] = outcomes(splits[split or next(iter(splits))])
    return list(points), level(list(points.values()))


def at(place, places, heights):
    """The height of a curve (points, games), straight between its points, at a place (games,), or at several
    (places, games)."""
    return np.apply_along_axis(lambda game: np.interp(place, places, game), 0, heights)


def mean_height(places, heights):
    """The mean of a curve over its places (games,), by trapezoids."""
    return np.diff(places) @ (heights[1:] + heights[:-1]) / 2 / (places[-1] - places[0])


def over_run(result, split=None):
    """Mean success over the steps of a run (games,)."""
    return mean_height(*learned(result, split))


def over_both(count, one, other):
    """Mean success of each of two runs over what both reached of a count, as `plot.tokens_until`."""
    curves = []
    for result in (one, other):
        until, (steps, heights) = count(result["curve"]), learned(result)
        curves.append(([until[step] for step in steps], heights))
    end = min(reached[-1] for reached, _ in curves)
    places = sorted({place for reached, _ in curves for place in reached if place <= end})
    return [mean_height(places, at(places, *curve)) for curve in curves]


# ---- differences and their intervals

def paired(ours, theirs):
    """[(a run, the one of the same seed among others)], both lists of results."""
    base = {result["seed"]: result for result in theirs}
    return [(result, base[result["seed"]]) for result in ours if result["seed"] in base]


def compared(pairs, number):
    """(mean, half of its 95 % interval), see `report.difference`. pairs: of each seed the success (games,) of
    a run and of the one that it is compared with; number: of games."""
    both = level([side for pair in pairs for side in pair]).reshape(len(pairs), 2, -1)
    return difference(*both[:, :, ~np.isnan(both).any((0, 1))].swapaxes(0, 1), number)


def differences(ours, theirs):
    """{"end", "over the run", "over the tokens", "over the teacher's tokens"}: success of runs less that of
    others on the first held-out split, (mean, half of its 95 % interval); empty where they share no seed. The
    last is of the seeds where both are known to have asked the teacher."""
    pairs, number = paired(ours, theirs), next(iter(last(ours[0]).values()))["games"]
    each = {
        "end": [(learned(one)[1][-1], learned(other)[1][-1]) for one, other in pairs],
        "over the run": [(over_run(one), over_run(other)) for one, other in pairs],
        "over the tokens": [over_both(plot.tokens_until, *pair) for pair in pairs],
        "over the teacher's tokens": [
            over_both(asked_until, *pair) for pair in pairs if all(map(asked_of_teacher, pair))]}
    return {what: compared(values, number) for what, values in each.items() if values}


def interval(mean, half, unit=100):
    """'+3.1 [-0.4, 6.6]', by default shares in points; one seed has no interval."""
    low, mean, high = (round(unit * value, 1) + 0.0 for value in (mean - half, mean, mean + half))  # no -0.0
    return f"{mean:+.1f}" + f" [{low:.1f}, {high:.1f}]" * (not np.isnan(half))
