"""What does a student do as it learns? Its verbs, and how often it repeats itself, over the steps of runs.

    python benchmarks/habits.py --runs runs/paper/opd-reverse-0 runs/paper/f2b-reverse-0

Success and KL do not say what goes wrong. A student that is led by reverse KL may settle on what its teacher
goes along with, and repeat it: the KL falls, the games are lost. Counted are the actions of the training
episodes (`episodes.jsonl` of a run folder), those of an expert's replay left out.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]

from paper_table import line

from harness.cli import UserError, check_knobs, command, knob
from harness.folder import EPISODES, read_log


@dataclass
class Args:
    """Which runs, and how finely."""
    runs: list = knob(None, "run folders", path=True)
    parts: int = knob(5, "equal parts of the steps", least=1)
    verbs: int = knob(4, "most frequent verbs of each run, a column each", least=1)


def own_actions(episode):
    """What a model did in an episode; an expert's replay comes first."""
    return episode["actions"][len(episode["who"]) - len(episode["who"].lstrip("e")):]


def habits(episodes):
    """(success, share of actions that are the one before again, Counter of the verbs) of some episodes."""
    verbs, again, pairs = Counter(), 0, 0
    for actions in map(own_actions, episodes):
        verbs.update(action.split()[0] for action in actions if action.split())
        again += sum(one == other for one, other in zip(actions, actions[1:]))
        pairs += max(0, len(actions) - 1)
    return sum(episode["won"] for episode in episodes) / len(episodes), again / max(1, pairs), verbs


def table(episodes, parts, shown):
    """The Markdown table of a run: its steps in equal parts, shares in %."""
    steps = episodes[-1]["step"]
    verbs = [verb for verb, _ in habits(episodes)[2].most_common(shown)]
    head = ["steps", "won", "the action before again", *verbs]
    lines = [line(head), "|---" * len(head) + "|"]
    for i in range(parts):
        first, final = steps * i // parts + 1, steps * (i + 1) // parts
        chosen = [episode for episode in episodes if first <= episode["step"] <= final]
        if chosen:
            won, again, used = habits(chosen)
            shares = [won, again, *(used[verb] / max(1, used.total()) for verb in verbs)]
            lines.append(line([f"{first}–{final}", *(f"{100 * share:.0f}" for share in shares)]))
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
