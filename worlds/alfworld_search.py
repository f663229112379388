"""What the data set's training games are like: where things lie, what is wanted of them.

    python -m worlds.alfworld_search --data ~/.cache/alfworld       # writes worlds/alfworld_search.json

A player of these games learns where to look first: for a mug on the desk and in the coffee machine, for a
knife on the tables. Here it is counted over the problems of the train split, for every class of things and
every class of receptacles: how many of those receptacles hold such a thing at the start, and how many there
are in the games that have such a thing. The goals are counted as well, for each task type and kind of room.
Only the counts are kept, nothing of a game.
"""

import argparse
import functools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from tqdm import tqdm

COUNTS = Path(__file__).with_suffix(".json")
BEHIND_DOORS = ("cabinet", "drawer", "fridge", "microwave", "safe")
DOOR = 0.5                      # what a share counts where opening costs a turn
ROOMS = {0: "kitchen", 2: "livingroom", 3: "bedroom", 4: "bathroom"}  # of the hundreds of a floor plan
# None of the goal, which has variables.
FACT = re.compile(r"\((objectType|receptacleType|inReceptacle) ([^?\s]+) ([^?\s)]+)\)")


@functools.lru_cache(maxsize=None)
def _kept():
    return json.loads(COUNTS.read_text())


def counts():
    """{thing's class: {place's class: [places that hold such a thing, places]}}, in lower case."""
    return _kept()["places"]


def goals(kind, room):
    """{(thing's class, class of the place or lamp): games} of a task type in a kind of room, as PDDL writes
    the classes."""
    return {tuple(goal.split()): games for goal, games in _kept()["goals"].get(f"{kind} {room}", {}).items()}


def chance(thing, place):
    """How many of such places hold such a thing, classes in lower case; 0 where none was ever found."""
    holding, places = counts().get(thing, {}).get(place, (0, 1))
    return holding / places


def share(thing, place):
    """How good a place is to look for a thing: `chance`, less where it must be opened."""
    return chance(thing, place) * (DOOR if place in BEHIND_DOORS else 1)


def _named(kind):
    """"CoffeeMachineType" -> "coffeemachine"."""
    return kind.removesuffix("Type").lower()


def _facts(problem):
    """{predicate: [its two arguments]} of what a PDDL problem says of classes, and of what lies where."""
    facts = defaultdict(list)
    for predicate, what, where in FACT.findall(problem):
        facts[predicate].append((what, where))
    return facts


def classes(problem):
    """The class of every thing and place of a PDDL problem, in lower case."""
    facts = _facts(problem)
    return [_named(kind) for _, kind in facts["objectType"] + facts["receptacleType"]]


def lying_in(problem):
    """({place: its class}, [(thing's class, the place where it lies)]) of a PDDL problem."""
    facts = _facts(problem)
    places = {place: _named(kind) for place, kind in facts["receptacleType"]}
    kinds = {thing: _named(kind) for thing, kind in facts["objectType"]}
    return places, [(kinds[thing], place) for thing, place in facts["inReceptacle"]]


def count(problems):
    """`counts` over PDDL problems, places where nothing of a class was found left out."""
    holding, all_places = defaultdict(Counter), defaultdict(Counter)
    for problem in problems:
        places, things = lying_in(problem)
        for thing in set(classes(problem)):             # a game may have one that lies nowhere
            all_places[thing].update(places.values())
        for thing, place in set(things):
            holding[thing][places[place]] += 1
    return {
        thing: {place: [n, all_places[thing][place]] for place, n in sorted(holding[thing].items())}
        for thing in sorted(holding)}


def count_goals(trajs):
    """{"type room": {"thing place": games}} over the contents of traj_data.json."""
    found = defaultdict(Counter)
    for traj in trajs:
        wanted = traj["pddl_params"]
        room = ROOMS[traj["scene"]["scene_num"] // 100]
        goal = f"{wanted['object_target']} {wanted['parent_target'] or wanted['toggle_target']}"
        found[f"{traj['task_type']} {room}"][goal] += 1
    return {where: dict(sorted(found[where].items())) for where in sorted(found)}


def contents(data):
    """([PDDL problem], [traj_data.json]) of the benchmark's training games, under a bar."""
    import envs                 # which games count; it imports the expert that reads these counts
    problems, trajs = [], []
    for task in tqdm(envs.make_tasks("alfworld", "train", data), unit="game"):
        game = Path(task.source)
        problems.append(json.loads(game.read_text())["pddl_problem"])
        trajs.append(json.loads(game.with_name("traj_data.json").read_text()))
    return problems, trajs


def table(rows):
    """A dictionary as JSON, a line for each of its keys."""
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="the benchmark's data folder; empty: where it is put")
    problems, trajs = contents(parser.parse_args().data)
    places, wanted = table(count(problems)), table(count_goals(trajs))
    COUNTS.write_text(f'{{"places": {places},\n"goals": {wanted}}}\n')


if __name__ == "__main__":
    main()
