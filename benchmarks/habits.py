"""What does a student do as it learns? Its verbs, and how often it repeats itself, over the steps of runs.

    python benchmarks/habits.py --runs runs/paper/opd-reverse-0 runs/paper/f2b-reverse-0

Success and KL do not say what goes wrong. A student that is led by reverse KL may settle on what its teacher
goes along with, and repeat it: the KL falls, the games are lost. Of the turns in the training episodes
(`episodes.jsonl` of a run folder; an expert's replay left out, a guided run's teacher counted in): the share
with each verb in %, and in brackets the mean KL of these turns in nats.
"""

import os
import sys
from collections import defaultdict
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]

from paper_table import line

from harness.cli import UserError, check_knobs, command, knob
from harness.folder import EPISODES, read_log

ALL, AGAIN = "all", "the action before again"


@dataclass
class Args:
    """Which runs, and how finely."""
    runs: list = knob(None, "run folders", path=True)
    parts: int = knob(5, "equal parts of the steps", least=1)
    verbs: int = knob(4, "most frequent verbs of each run, a column each", least=1)


def own_turns(episode):
    """[(action, KL of its turn in nats or None)] of a model; an expert's replay comes first."""
    replayed = len(episode["who"]) - len(episode["who"].lstrip("e"))
    return list(zip(episode["actions"], episode["kl_turn"]))[replayed:]


def habits(episodes):
    """{habit: the KL of each turn that shows it, None where it is not known}: all turns, those that do the
    same as the one before, and each verb."""
    found = defaultdict(list)
    for turns in map(own_turns, episodes):
        for i, (action, kl) in enumerate(turns):
            found[ALL].append(kl)
            if i and action == turns[i - 1][0]:
                found[AGAIN].append(kl)
            if action.split():
                found[action.split()[0]].append(kl)
    return found


def cell(turns, every):
    """'21 (6.1)': the share of these turns in %, and their mean KL."""
    known = [kl for kl in turns if kl is not None]
    share = f"{100 * len(turns) / max(1, len(every)):.0f}"
    return f"{share} ({sum(known) / len(known):.1f})" if known else share


def table(episodes, parts, shown):
    """The Markdown table of a run, its steps in equal parts."""
    steps, whole = episodes[-1]["step"], habits(episodes)
    verbs = sorted({*whole} - {ALL, AGAIN}, key=lambda verb: -len(whole[verb]))[:shown]
    head = ["steps", "won", AGAIN, *verbs]
    lines = [line(head), "|---" * len(head) + "|"]
    for i in range(parts):
        first, final = steps * i // parts + 1, steps * (i + 1) // parts
        chosen = [episode for episode in episodes if first <= episode["step"] <= final]
        if chosen:
            won, found = sum(episode["won"] for episode in chosen) / len(chosen), habits(chosen)
            cells = [cell(found[name], found[ALL]) for name in (AGAIN, *verbs)]
            lines.append(line([f"{first}–{final}", f"{100 * won:.0f}", *cells]))
    return "\n".join(lines)


def main(args):
    check_knobs(args)
    if not args.runs:
        raise UserError("--runs wants one or more run folders")
    for folder in args.runs:
        episodes = read_log(os.path.join(folder, EPISODES))
        if not episodes:
            raise UserError(f"{folder} holds no episodes of a run ({EPISODES})")
        print(f"\n{folder}\n\n{table(episodes, args.parts, args.verbs)}", flush=True)


if __name__ == "__main__":
    command(main, Args)
