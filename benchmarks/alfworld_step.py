"""ALFWorld's engine with caches (worlds/alfworld.py) beside the unmodified one: load, reset and step.

    python benchmarks/alfworld_step.py                      # four generated games per level
    python benchmarks/alfworld_step.py --games 1
    python benchmarks/alfworld_step.py GAME.tw-pddl ...     # given ones

Same games, same actions (the expert's), same process, CPU seconds.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs import PddlEnv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from worlds import alfworld, alfworld_problems as problems
from worlds.alfworld_games import LEVELS, SCENES, make_game, solve

MEASURED = ("first load", "first reset", "step", "load again", "reset again", "from disk")


def seconds(call, *args):
    start = time.process_time()
    call(*args)
    return time.process_time() - start


def measure(env, path, actions):
    """The seconds of MEASURED; "from disk" is the load of a later process."""
    first_load = seconds(env.load, path)
    first_reset = seconds(env.reset)
    step = sum(seconds(env.step, action) for action in actions) / len(actions)
    again = seconds(env.load, path), seconds(env.reset)
    problems._MEMORY.clear()
    return first_load, first_reset, step, *again, seconds(env.load, path)


def measure_both(game):
    """(seconds of the stock engine, seconds of ours) on one game."""
    actions = solve(alfworld.Engine(), game, 100)
    problems._MEMORY.clear()
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "game.tw-pddl"))
        Path(path).write_text(json.dumps(game))
        os.environ["TCOD_CACHE"] = folder       # where nothing is kept yet
        stock = measure(AlfredDemangler(PddlEnv(infos)), path, actions)
        return stock, measure(alfworld.Engine(), path, actions)


def compare(name, games):
    """Prints a line for each of MEASURED, means over the games."""
    rows = [measure_both(game) for game in games]
    stock, cached = ([sum(values) / len(rows) for values in zip(*side)] for side in zip(*rows))
    for label, before, after in zip(MEASURED, stock, cached):
        print(f"{name:14s} {label:12s} {before:9.5f} s  {after:9.5f} s  {before / after:7.0f} x")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="GAME.tw-pddl", help="games to measure on")
    parser.add_argument("--games", type=int, default=4, help="generated games per level (default: 4)")
    args = parser.parse_args()
    if args.files:
        return compare("given games", [json.loads(Path(file).read_text()) for file in args.files])
    engine = alfworld.Engine()
    for name, level in LEVELS.items():
        games = [make_game(f"benchmark-{i}", level, SCENES["train"], engine) for i in range(args.games)]
        compare(name, [game.data for game in games])


if __name__ == "__main__":
    main()
