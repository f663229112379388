"""The picture at the top of the README: a row as a strip, and what each method does with it.

    python studies/strip.py --out docs/row.svg

A real episode: the shipped student plays a game, and the shipped teacher's KL at each of its tokens stands
above it. Below, the same strip by method: who acts in each turn, what is trained, where the episode ends.
"""

import os
import sys
from dataclasses import dataclass

import matplotlib
import matplotlib.patches
import torch
from matplotlib.figure import Figure

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import envs
import load
import tcod
from chat.template import Chat
from curriculum import METHODS, NextTurn, Rules
from harness.cli import command, fill_presets, knob
from harness.ranks import Ranks
from rollout import Limits, play
from training import Student

TURNS, K, EXPERT = 8, 3, 6      # that are shown; the depth; the length of the expert's episode
COLOURS = {"student": "#2b6cb0", "teacher": "#c05621", "expert": "#718096", "game": "#e2e8f0"}
COINS = (0.1, 0.9, 0.3, 0.8, 0.2, 0.9, 0.6, 0.1)    # of the guided turns, with beta 0.5
SAYS = {
    "opd": "every turn, Eq. 2", "f2b": f"the first k = {K} turns, Eq. 3",
    "b2f": f"the expert up to its last k = {K} turns, Eq. 5", "sft": "the expert's own turns",
    "guided": "the teacher with probability β"}


@dataclass
class Args:
    """Where to."""
    out: str = knob("docs/row.svg", "the picture", path=True)
    seed: int = knob(0, "of the episode")


def played(seed):
    """(an episode of the shipped student, KL of its trained tokens in their order)."""
    args, ranks = tcod.Args(method="opd", teacher="tiny-narrow"), Ranks()
    fill_presets(args, args.own())
    args.precision = "fp32"
    names = [load.resolve(name, args.env) for name in (args.student, args.teacher)]
    student, teacher = (load.load_model(name) for name in names)
    tokenizer = load.load_tokenizer(names[0])
    chat = Chat(tokenizer, load.end_tokens(student), load.vocabulary(tokenizer, student, teacher))
    tasks = envs.make_tasks("alfworld", "valid_seen", "generated")
    rules = Rules(METHODS["opd"](), K, TURNS)
    episode, = play({"student": student}, chat, [envs.make_env("alfworld", data="generated")], tasks[:1],
                    rules, Limits(args.max_response), seed=(seed,))
    learner = Student(student, chat.vocabulary, args, ranks)
    learner.learns()
    _, tokens = tcod.backward(learner, teacher, [episode], args, ranks)
    return episode, tokens["kl"]


def draw_row(axis, episode, kl):
    """The tokens as cells, the KL of the trained ones above them. Returns where each turn begins and ends."""
    row, kls, places = episode.row, iter(kl), {}
    for place, turn in enumerate(row.turn):
        said = turn >= 0
        axis.bar(place + 0.5, 1, 0.92, bottom=-1.2, color=COLOURS["student" if said else "game"])
        if said:
            axis.bar(place + 0.5, next(kls), 0.92, color=COLOURS["student"], alpha=0.55)
            places[turn] = places.get(turn, (place,))[0], place + 1
    last = 0
    for turn, (begin, end) in places.items():
        said = episode.turns[turn].action.replace("go to ", "go to\n")
        axis.text((last + begin) / 2, -1.5, f"$o_{turn}$", ha="center", va="top", fontsize=9)
        axis.text((begin + end) / 2, -1.5, f"$a_{turn}$\n{said}", ha="center", va="top", fontsize=7.5)
        last = end
    axis.set(xlim=(0, len(row.turn)), ylim=(-4.6, None), xticks=[], yticks=[0, 4, 8])
    axis.set_ylabel("KL(θ‖φ), nats", loc="top")
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    return places


def draw_method(axis, y, name, places):
    """Who acts in each turn, darker where it is trained."""
    method, expert = METHODS[name](), EXPERT if METHODS[name].expert else 0
    for t, (begin, end) in places.items():
        coin = COINS[t]
        k = 0.5 if name == "guided" else K
        role = method.act(NextTurn(t, k, TURNS, expert, draw=lambda stream, coin=coin: coin))
        if role is None:
            break
        first = places[t - 1][1] if t else 0
        axis.barh(y, begin - first, 0.5, left=first, color=COLOURS["game"])
        axis.barh(y, end - begin, 0.5, left=begin, color=COLOURS[role.who], alpha=1 if role.weight else 0.35)
        last = end
    axis.text(last + 0.6, y, SAYS[name], va="center", fontsize=8, color="#4a5568")
    axis.text(-0.6, y, name, va="center", ha="right", fontsize=9, family="monospace")


def main(args):
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "tcod"
    torch.set_num_threads(1)
    episode, kl = played(args.seed)
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    top, below = figure.subplots(2, 1, height_ratios=(1.1, 1), sharex=True)
    places = draw_row(top, episode, kl)
    for y, name in enumerate(reversed(METHODS)):
        draw_method(below, y, name, places)
    below.axis("off")
    names = [("game", "read: the game's words"), ("student", "the student"), ("teacher", "the teacher"),
             ("expert", "an expert, replayed (pale: not trained)")]
    patches = [matplotlib.patches.Patch(color=COLOURS[who], label=text) for who, text in names]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(args.out, metadata={"Date": None})
    print(f"wrote {args.out}: turns {[turn.action for turn in episode.turns]}")


if __name__ == "__main__":
    command(main, Args)
