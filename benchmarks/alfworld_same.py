"""Does ALFWorld's cached engine (worlds/alfworld.py) say what the unmodified one says? On random play.

    python benchmarks/alfworld_same.py                          # 100 games of the data set, 50 actions each
    python benchmarks/alfworld_same.py --data generated         # the same on generated games of level full

Both engines play the same actions side by side: admissible ones, those of earlier turns, and nonsense.
Compared at every state: feedback, won, lost, admissible commands, score, done.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs import PddlEnv
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from worlds.alfworld import Engine
from worlds.alfworld_data import data_folder, list_games
from worlds.alfworld_games import LEVELS, SCENES, make_game

NONSENSE = ("", "dance", "go to moon 1", "take mug 1 from fridge 99", "GO TO fridge 1", "look around")


def seen(state):
    return state.feedback, state["won"], state["lost"], tuple(state["admissible_commands"])


def choose(rng, now, before):
    """now, before: what is admissible, and what was at some earlier state."""
    chance = rng.random()
    return rng.choice(NONSENSE if chance < 0.1 else before if chance < 0.2 else now)


def compare(path, engine, actions, seed):
    """(states compared, those that differ) of one game."""
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    stock = AlfredDemangler(PddlEnv(infos))
    stock.load(path)
    engine.load(path)
    theirs, ours = (stock.reset(),), (engine.reset(),)
    rng, before = random.Random(seed), ["look"]
    compared = differ = 0
    for turn in range(actions + 1):
        compared += 1
        differ += (seen(theirs[0]), theirs[1:]) != (seen(ours[0]), ours[1:])
        now = theirs[0]["admissible_commands"]
        action = choose(rng, now, before)
        before = before + list(now)
        if turn < actions:
            theirs, ours = stock.step(action), engine.step(action)
    return compared, differ


def games_of(args, folder):
    """Paths of games; generated ones are written into `folder`."""
    data = data_folder(args.data)
    if data is not None:
        listed = [game["source"] for game in list_games(data, args.split)]
        return random.Random(0).sample(listed, min(args.games, len(listed)))
    print("generated games" if args.data else "no data set is here: generated games")
    paths = [Path(folder, f"{i}.tw-pddl") for i in range(args.games)]
    for path in paths:
        path.write_text(json.dumps(make_game(path.stem, LEVELS["full"], SCENES["train"], Engine()).data))
    return [str(path) for path in paths]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="the data set's folder, or generated")
    parser.add_argument("--split", default="train", help="of the data set (default: train)")
    parser.add_argument("--games", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--actions", type=int, default=50, help="in each (default: 50)")
    args = parser.parse_args()
    compared = differ = 0
    with tempfile.TemporaryDirectory() as folder:
        engine, paths = Engine(), games_of(args, folder)
        for seed, path in enumerate(tqdm(paths, unit="game")):
            one = compare(path, engine, args.actions, seed)
            compared, differ = compared + one[0], differ + one[1]
            if one[1]:
                print(f"{path}: {one[1]} of {one[0]} states differ")
    print(f"{len(paths)} games, {compared} states: {differ} differ")


if __name__ == "__main__":
    main()
