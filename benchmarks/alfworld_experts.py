"""Does every game have an expert's episode that wins? The text expert's success by split and type, and each
game's demonstration, what B2F and SFT learn from, replayed through the environment.

    python benchmarks/alfworld_experts.py --data ~/.cache/alfworld
    python benchmarks/alfworld_experts.py --data generated --splits valid_seen --games 12

Within so many turns of the horizon; where the text expert loses, the demonstration is the walkthrough that
comes with the game.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import envs
from play import spread
from worlds.alfworld_games import TASKS, TextExpert

WITHIN = (20, 30, 50)


def turns_of_expert(env, task, most):
    """The turn in which the text expert wins; infinity where it does not within `most`."""
    obs, _ = env.reset(options={"task": task})
    expert = TextExpert(obs)
    for turn in range(1, most + 1):
        action = expert.act()
        obs, _, _, _, info = env.step(action)
        if info["won"]:
            return turn
        expert.observe(action, obs)
    return float("inf")


def replayed(env, task):
    """Whether the game's demonstration wins."""
    demonstrated = env.demonstrate(task)
    if demonstrated.fault:
        return False
    _, info = env.reset(options={"task": task})
    for action in demonstrated.expert:
        _, _, _, _, info = env.step(action)
    return info["won"]


def share(turns, within):
    """'98 %' of these games are won within so many turns."""
    return f"{sum(turn <= within for turn in turns) / len(turns):.1%}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help=envs.DATA_HELP)
    parser.add_argument("--splits", default="train,valid_seen,valid_unseen", help="by commas")
    parser.add_argument("--games", type=int, default=0, help="of each split; 0: all")
    args = parser.parse_args()
    env = envs.make_env("alfworld", data=args.data)
    print("| split | type | games | " + " | ".join(f"in {n} turns" for n in WITHIN) + " | demonstration |")
    print("|---" * (4 + len(WITHIN)) + "|")
    for split in args.splits.split(","):
        tasks = envs.make_tasks("alfworld", split, args.data)
        tasks = spread(tasks, args.games or len(tasks))
        found = defaultdict(list)
        for task in tqdm(tasks, desc=split, leave=False):
            one = turns_of_expert(env, task, WITHIN[-1]), replayed(env, task)
            for kind in ("all", task.kind):
                found[kind].append(one)
        for kind in filter(found.get, ("all", *TASKS)):
            turns, wins = zip(*found[kind])
            cells = [split, kind, str(len(turns)), *(share(turns, n) for n in WITHIN)]
            print("| " + " | ".join([*cells, f"{sum(wins)} of {len(wins)} win"]) + " |", flush=True)


if __name__ == "__main__":
    main()
