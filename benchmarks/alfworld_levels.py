"""Are generated games like the data set's? The two side by side: rooms, things, targets, texts, types.

    python -m worlds.alfworld_games --level full --train 300 --valid-seen 1 --valid-unseen 1 --out /tmp/full
    python benchmarks/alfworld_levels.py ~/.cache/alfworld /tmp/full --games 300

Of each folder `--games` games of the train split, drawn once and for all. "Walkthrough" is the file's own:
the planner's in the data set, the text expert's in generated games.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import envs
from play import spread
from worlds.alfworld_games import STATIONS, TASKS
from worlds.alfworld_search import BEHIND_DOORS, lying_in

NUMBERS = (
    "receptacles", "objects", "classes", "shared locations", "targets", "commands", "walkthrough",
    "characters of intro", "of an observation")
SHARES = ("objects behind doors", "all targets behind doors", "one at its goal, treated")


def mean(values):
    """Of what there is; nan of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def room(data, traj):
    """What the files of a game say of its room: {what: value}."""
    places, things = lying_in(data["pddl_problem"])
    wanted = traj["pddl_params"]
    behind = [places[place] in BEHIND_DOORS for _, place in things]
    targets = [places[place] for kind, place in things if kind == wanted["object_target"].lower()]
    spots = re.findall(r"\(receptacleAtLocation [^?\s]+ (\S+)\)", data["pddl_problem"])
    found = {
        "receptacles": len(places), "objects": len(things), "classes": len({kind for kind, _ in things}),
        "shared locations": len(spots) - len(set(spots)), "targets": len(targets),
        "walkthrough": len(data.get("walkthrough", ())), "objects behind doors": mean(behind),
        "all targets behind doors": all(place in BEHIND_DOORS for place in targets)}
    if traj["task_type"] in STATIONS:
        found["one at its goal, treated"] = wanted["parent_target"].lower() in targets
    return found


def texts(env, task):
    """What a walk through the game shows: {what: value}."""
    actions = env.demonstrate(task).expert
    intro, info = env.reset(options={"task": task})
    shown, commands = [], [len(info["admissible"])]
    for action in actions:
        obs, _, _, _, info = env.step(action)
        shown.append(len(obs))
        commands.append(len(info["admissible"]))
    return {"characters of intro": len(intro), "of an observation": mean(shown), "commands": mean(commands)}


def describe(data, count):
    """{what: text of the table} over games of a data folder."""
    env, found, kinds = envs.make_env("alfworld", data=data), [], Counter()
    for task in spread(envs.make_tasks("alfworld", "train", data), count):
        game = Path(task.source)
        traj = json.loads(game.with_name("traj_data.json").read_text())
        found.append({**room(json.loads(game.read_text()), traj), **texts(env, task)})
        kinds[task.kind] += 1
    said = {}
    for what in NUMBERS:
        values = [game[what] for game in found]
        said[what] = f"{mean(values):.1f} ({max(values):.0f})"
    for what in SHARES:
        said[what] = f"{mean(game[what] for game in found if what in game):.0%}"
    said["types in TASKS' order, %"] = " ".join(f"{kinds[kind] / len(found):.0%}"[:-1] for kind in TASKS)
    return said


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="data folders")
    parser.add_argument("--games", type=int, default=300, help="of each folder")
    args = parser.parse_args()
    columns = [describe(folder, args.games) for folder in args.folders]
    print("| mean (most) | " + " | ".join(args.folders) + " |\n" + "| --- " * (1 + len(columns)) + "|")
    for what in columns[0]:
        print(f"| {what} | " + " | ".join(column[what] for column in columns) + " |")


if __name__ == "__main__":
    main()
