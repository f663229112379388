"""What the data set's training games are like: where things lie, what is wanted of them.

    python -m worlds.alfworld_search --data ~/.cache/alfworld       # writes worlds/alfworld_search.json

A player of these games learns where to look first: for a mug on the desk and in the coffee machine, for a
knife on the tables. Here it is counted over the problems of the train split, for every class of things and
every class of receptacles: how many of those receptacles hold such a thing at the start, and how many there
are in the games that have such a thing. Only the counts are kept, nothing of a game.
"""

import argparse
import functools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from worlds.alfworld_data import list_games

COUNTS = Path(__file__).with_suffix(".json")
BEHIND_DOORS = ("cabinet", "drawer", "fridge", "microwave", "safe")
DOOR = 0.5                      # what a share counts where opening costs a turn
# None of the goal, which has variables.
FACT = re.compile(r"\((objecttype|receptacletype|inreceptacle) ([^?\s]+) ([^?\s)]+?)(?:type)?\)")


@functools.lru_cache(maxsize=None)
def counts():
    """{thing's class: {place's class: [places that hold such a thing, places]}}, in lower case."""
    return json.loads(COUNTS.read_text())


def share(thing, place):
    """How good a place is to look for a thing, classes in lower case: the share of such places that hold one,
    less where they must be opened; 0 where none was ever found."""
    holding, places = counts().get(thing, {}).get(place, (0, 1))
    return holding / places * (DOOR if place in BEHIND_DOORS else 1)


def _facts(problem):
    """{predicate: [(thing or place, its class)], "inreceptacle": [(thing, place)]} of a PDDL problem, all in
    lower case."""
    facts = defaultdict(list)
    for predicate, what, of in FACT.findall(problem.lower()):
        facts[predicate].append((what, of))
    return facts


def classes(problem):
    """The class of every thing and place of a PDDL problem, in lower case."""
    facts = _facts(problem)
    return [kind for _, kind in facts["objecttype"] + facts["receptacletype"]]


def count(problems):
    """`counts` over PDDL problems, places where nothing of a class was found left out."""
    holding, all_places = defaultdict(Counter), defaultdict(Counter)
    for problem in problems:
        facts = _facts(problem)
        things, places = dict(facts["objecttype"]), dict(facts["receptacletype"])
        for thing in set(things.values()):              # a game may have one that lies nowhere
            all_places[thing].update(places.values())
        for thing, place in {(things[thing], place) for thing, place in facts["inreceptacle"]}:
            holding[thing][places[place]] += 1
    return {
        thing: {place: [n, all_places[thing][place]] for place, n in sorted(holding[thing].items())}
        for thing in sorted(holding)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="~/.cache/alfworld", help="the benchmark's data folder")
    games = list_games(Path(parser.parse_args().data).expanduser(), "train")
    problems = [json.loads(Path(game["source"]).read_text())["pddl_problem"] for game in games]
    lines = [f"{json.dumps(thing)}: {json.dumps(places)}" for thing, places in count(problems).items()]
    COUNTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
