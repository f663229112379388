"""Where things lie in the data set's training games: the order in which an expert looks for them.

    python -m worlds.alfworld_search --data ~/.cache/alfworld       # writes worlds/alfworld_search.json

A player of these games learns where to look first: for a mug on the desk and in the coffee machine, for a knife
on the tables. Here it is counted over the problems of the train split, for every class of things and every
class of receptacles: how many of those receptacles hold such a thing at the start, and how many there are in
the games that have such a thing. Only the counts are kept, nothing of a game.
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
FACT = re.compile(r"\((objectType|receptacleType|inReceptacle) ([^?\s]+) ([^?\s)]+)\)")      # none of the goal: it has variables


@functools.lru_cache(maxsize=None)
def counts():
    """{thing's class: {place's class: [places that hold such a thing, places]}}, in lower case."""
    return json.loads(COUNTS.read_text())


def share(thing, place):
    """How good a place is to look for a thing, classes in lower case; 0 where none was ever found."""
    holding, places = counts().get(thing, {}).get(place, (0, 1))
    return holding / places * (DOOR if place in BEHIND_DOORS else 1)


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


def lying(problem):
    """(places, things) of a PDDL problem: {place: its class}, {thing's class: the places that hold one}."""
    facts = _facts(problem)
    places = {place: _named(kind) for place, kind in facts["receptacleType"]}
    kinds = {thing: _named(kind) for thing, kind in facts["objectType"]}
    things = {kind: set() for kind in kinds.values()}  # a game may have a thing that lies nowhere
    for thing, place in facts["inReceptacle"]:
        things[kinds[thing]].add(place)
    return places, things


def count(problems):
    """`counts` over PDDL problems, places where nothing of a class was found left out."""
    holding, all_places = defaultdict(Counter), defaultdict(Counter)
    for problem in problems:
        places, things = lying(problem)
        for thing, found in things.items():
            all_places[thing].update(places.values())
            holding[thing].update(places[place] for place in found)
    return {
        thing: {place: [n, all_places[thing][place]] for place, n in sorted(holding[thing].items())}
        for thing in sorted(holding)}


def problems(data):
    """The PDDL problems of the benchmark's training games, under a bar."""
    import envs                 # which games count; it imports the expert that reads these counts
    for task in tqdm(envs.make_tasks("alfworld", "train", data), unit="game"):
        yield json.loads(Path(task.source).read_text())["pddl_problem"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="the benchmark's data folder; empty: where it is put")
    found = count(problems(parser.parse_args().data))
    rows = [f"{json.dumps(thing)}: {json.dumps(places)}" for thing, places in found.items()]
    COUNTS.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
