"""ALFWorld's engine with caches (worlds/alfworld.py) beside the unmodified one: seconds per load, reset and step.

    python -m benchmarks.alfworld_step [GAME.tw-pddl ...]

Same games, same actions (the expert's), same process, CPU seconds. Without arguments: four generated games per level.
"""
import json
import sys
import tempfile
import time
from pathlib import Path

import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs import PddlEnv

from worlds import alfworld
from worlds.alfworld_games import LEVELS, SCENES, make_game, solve


def seconds(call, *args):
    start = time.process_time()
    call(*args)
    return time.process_time() - start


def measure(env, path, actions):
    """(first load, first reset, step, load again, reset again)"""
    first = seconds(env.load, path), seconds(env.reset)
    step = sum(seconds(env.step, action) for action in actions) / len(actions)
    return *first, step, seconds(env.load, path), seconds(env.reset)


def compare(name, games):
    rows = []
    for game in games:
        alfworld._COMPILED.clear()
        actions = solve(alfworld.Engine(), game, 100)
        alfworld._COMPILED.clear()
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "game.tw-pddl"))
            Path(path).write_text(json.dumps(game))
            stock = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))
            rows.append((measure(stock, path, actions), measure(alfworld.Engine(), path, actions)))
    stock, cached = ([sum(values) / len(rows) for values in zip(*side)] for side in zip(*rows))
    for label, before, after in zip(("first load", "first reset", "step", "load again", "reset again"), stock, cached):
        print(f"{name:14s} {label:12s} {before:9.5f} s  {after:9.5f} s  {before / after:7.0f} x")


def main():
    engine = alfworld.Engine()
    if sys.argv[1:]:
        return compare("given games", [json.loads(Path(path).read_text()) for path in sys.argv[1:]])
    for name, level in LEVELS.items():
        compare(name, [make_game(f"benchmark-{i}", level, SCENES["train"], engine).data for i in range(4)])


if __name__ == "__main__":
    main()
