"""Which signal knows that the teacher is lost? What it says of a student's own turns, as a table.

    python studies/signals.py --pairs alfworld:tiny-student:tiny-narrow webshop:tiny-student:tiny-teacher \
        --out signals.png

The student plays training games to their end, and the teacher judges each of its answers: ℓ, the mean log p
of what was said; H, the teacher's mean entropy; KL, the mean KL(θ‖φ), in nats a token. The first table has
their means over turns that the game took and that do not repeat, that it refused, that repeat, and by the
index of the turn. The second has the AUC of −ℓ, H and KL as detectors of a refused turn, and of one from turn
10 on: 0.5 is blind. Its 95 % interval is a bootstrap over games. The figure has the means turn by turn.
"""

import os
import shlex
import sys
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import rollout
import tcod
from curriculum import Method, Rules
from eval import limits_of, make_games
from harness.cli import UserError, check_knobs, command, knob, parse
from harness.folder import check_place
from harness.ranks import Ranks
from tables import markdown
from tasks import spread, training_tasks
from training import load_models

SIGNALS = ("ℓ", "H", "KL")  # the first three of a curriculum.Judgement
ENOUGH = 16     # turns that a point of the figure is a mean of, at least
SPANS = {"turn 0": (0, 1), "1–4": (1, 5), "5–9": (5, 10), "10–19": (10, 20), "20–": (20, 10**6)}


@dataclass
class Args:
    """Which pairs, on how many games."""
    pairs: list = knob(None, "ENV:STUDENT:TEACHER, as tcod.py names them")
    games: int = knob(64, "training games of each pair", least=1)
    seed: int = knob(0, "of the draws", least=0)
    flags: str = knob("", "further flags of tcod.py for every pair, in quotes: '--prompt household'")
    out: str = knob("signals.png", "the figure", path=True)


class Judged(Method):
    """On-policy distillation whose every answer the teacher reads."""
    judged = True


def played(pair, args):
    """[(number of the game, number of the turn, rollout.Turn)] of a pair's games, each played in whole."""
    env, student, teacher = pair.split(":")
    own = parse(tcod.Args, [
        "--env", env, "--student", student, "--teacher", teacher, "--seed", str(args.seed),
        *shlex.split(args.flags)])
    tcod.resolve(own)
    model, chat, other, _ = load_models(own, Ranks())
    tasks = spread(training_tasks(own, False, chat.prompt, Ranks()), args.games)
    games = make_games(own, min(32, len(tasks)))
    rules, found = Rules(Judged(), 0, own.max_turns or games[0].horizon), []
    for first in range(0, len(tasks), len(games)):
        episodes = rollout.play(
            {"student": model.eval(), "teacher": other}, chat, games, tasks[first: first + len(games)], rules,
            limits_of(own, 1.0), seed=(args.seed, 5), first_index=first)
        found += [(e.index, t, turn) for e in episodes if e.sound for t, turn in enumerate(e.turns)]
    return found


def auc(values, positive):
    """How often a positive turn has a larger value than another one; half of the ties count."""
    ours, others = np.sort(values[positive]), np.sort(values[~positive])
    if not len(ours) or not len(others):
        return np.nan
    below = np.searchsorted(others, ours, "left") + np.searchsorted(others, ours, "right")
    return below.mean() / 2 / len(others)


def auc_cell(values, positive, game):
    """'0.79 [0.76, 0.82]': with a bootstrap over games; a dash where all turns are alike."""
    draw, turns = np.random.default_rng(0), [np.flatnonzero(game == number) for number in np.unique(game)]
    if positive.all() or not positive.any():
        return "–"
    picks = (draw.integers(len(turns), size=len(turns)) for _ in range(200))
    drawn = [np.concatenate([turns[i] for i in pick]) for pick in picks]
    low, high = np.nanquantile([auc(values[some], positive[some]) for some in drawn], (0.025, 0.975))
    return f"{auc(values, positive):.2f} [{low:.2f}, {high:.2f}]"


def signals(found):
    """{signal: its value in each turn}"""
    return dict(zip(SIGNALS, np.array([turn.judgement[:3] for *_, turn in found]).T))


def figure(pairs):
    """The mean of each signal by the turn's index, a line a pair. pairs: {pair: what was played}."""
    drawn = Figure(figsize=(11.5, 3.6), dpi=125, layout="constrained")
    panels = dict(zip(SIGNALS, drawn.subplots(1, len(SIGNALS))))
    for pair, found in pairs.items():
        number = np.array([t for _, t, _ in found])
        turns = [t for t in range(number.max() + 1) if (number == t).sum() >= ENOUGH]
        for name, values in signals(found).items():
            panels[name].plot(turns, [values[number == t].mean() for t in turns], label=pair)
    for name, axis in panels.items():
        axis.set(title=f"{name}, nats a token", xlabel="turn")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    drawn.legend(handles=panels["H"].get_lines(), loc="outside lower center", ncols=3, frameon=False)
    return drawn


def rows(pair, found):
    """The lines of a pair in both tables, {column: cell}."""
    game, number = np.array([[g, t] for g, t, _ in found]).T
    invalid, repeats = np.array([[turn.invalid, turn.repeats] for *_, turn in found]).T
    values = signals(found)
    spans = {span: (number >= first) & (number < end) for span, (first, end) in SPANS.items()}
    some = {"valid": ~invalid & ~repeats, "refused": invalid, "repeats": repeats, **spans}
    means, found_by = {"turns": f"{len(found):,}"}, {}
    for what, chosen in some.items():
        if chosen.any():
            means[what] = " · ".join(f"{each[chosen].mean():.2f}" for each in values.values())
    for what, positive in {"refused": invalid, "late": number >= 10}.items():
        for name, each in values.items():
            found_by[f"{what}, by {name}"] = auc_cell(-each if name == "ℓ" else each, positive, game)
    return {"ℓ · H · KL": pair, **means}, {"AUC": pair, **found_by}


def main(args):
    check_knobs(args)
    check_place(args.out)
    if any(pair.count(":") != 2 for pair in args.pairs or [""]):
        raise UserError("name --pairs as in alfworld:tiny-student:tiny-narrow")
    pairs = {pair: played(pair, args) for pair in args.pairs}
    for lines in zip(*(rows(*pair) for pair in pairs.items())):
        print(markdown(max(map(list, lines), key=len), lines))
    figure(pairs).savefig(args.out)


if __name__ == "__main__":
    command(main, Args)
