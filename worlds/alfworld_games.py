"""Games for the real ALFWorld engine, generated offline, and an expert that plays them from their text alone.

    python -m worlds.alfworld_games --out DIR --train 512 --valid-seen 140 --valid-unseen 134

The package alfworld ships all that a game needs but the games: the PDDL domain, the text grammar, goal and
task-text templates, which object may lie where, and the receptacles of 120 real floor plans. A game is a pure
function of its seed, the same in every process. The folder written has the data set's own layout,
json_2.1.1/<split>/<task>/<trial>/ with game.tw-pddl and traj_data.json, and beside them expert.json, the
actions with which the expert won; a draft that the expert does not win within the level's horizon is thrown
away. Floor plans of valid_unseen, the package's test scenes, never occur in the other splits; the benchmark
trains on them. Left out: movable receptacles and slicing, as in the benchmark's text games.
"""

import argparse
import dataclasses
import functools
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import alfworld.gen
from alfworld.gen import constants
from alfworld.gen.goal_library import gdict
from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

from harness.folder import cache_home
from worlds.alfworld import PLACEHOLDER, Engine
from worlds.alfworld_search import share
from worlds.cache import in_processes, once, say

LAYOUTS = Path(next(iter(alfworld.gen.__path__))) / "layouts"
TASKS = (
    "pick_and_place_simple", "look_at_obj_in_light", "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep", "pick_cool_then_place_in_recep", "pick_two_obj_and_place")
ROOMS = {
    "kitchen": range(1, 31),
    "livingroom": range(201, 231),
    "bedroom": range(301, 331),
    "bathroom": range(401, 431)}
TASK_ROOMS = {
    "look_at_obj_in_light": ("livingroom", "bedroom"),
    "pick_clean_then_place_in_recep": ("kitchen", "bathroom"),
    "pick_heat_then_place_in_recep": ("kitchen",),
    "pick_cool_then_place_in_recep": ("kitchen",)}
STATIONS = {  # verb, where, of which objects
    "pick_clean_then_place_in_recep": ("clean", "SinkBasin", "Cleanable"),
    "pick_heat_then_place_in_recep": ("heat", "Microwave", "Heatable"),
    "pick_cool_then_place_in_recep": ("cool", "Fridge", "Coolable")}
TWO = "pick_two_obj_and_place"
LAMP = "DeskLamp"               # the lamp that stands in a receptacle, as the goal wants it
LAMP_PLACES = ("CoffeeTable", "Desk", "DiningTable", "Dresser", "Shelf", "SideTable", "TVStand")
FIXTURES = {
    "CoffeeMachine": 1, "Toaster": 1, "StoveBurner": 4, "GarbageCan": 1, "Toilet": 1, "HandTowelHolder": 1,
    "TowelHolder": 1, "ToiletPaperHanger": 1, "Bed": 1, "Sofa": 1, "LaundryHamper": 1, "SinkBasin": 1}
MAY_LIE = {
    place: {thing for thing in things if "Sliced" not in thing}
    for place, things in constants.VAL_RECEPTACLE_OBJECTS.items()}
THINGS = set().union(*MAY_LIE.values()) - {"PaperTowel", "DeskLamp", "FloorLamp"}
ABILITIES = ("Cleanable", "Heatable", "Coolable", "Sliceable")
SCENES = {
    "train": constants.TRAIN_SCENE_NUMBERS,
    "valid_seen": constants.TRAIN_SCENE_NUMBERS,
    "valid_unseen": constants.TEST_SCENE_NUMBERS}
SIZES = {"train": 512, "valid_seen": 140, "valid_unseen": 134}


@dataclass(frozen=True)
class Level:
    """How hard games are."""
    tasks: tuple = ("pick_and_place_simple", *STATIONS)     # task types, in turn
    rooms: tuple = ("kitchen",)
    receptacles: int = 5            # at most, of those that the floor plan has
    per_class: int = 1              # at most so many of one receptacle class
    objects: tuple = (3, 5)         # fewest and most, of those that the floor plan has
    copies: int = 2                 # of an object class, at most (the target of a "two" task always has two)
    hidden: float = 0.5             # probability that an object lies in a closed receptacle, where it may
    classes: tuple = ("Apple", "Bread", "Cup", "Egg", "Mug", "Plate", "Potato", "Tomato")  # (): all
    horizon: int = 20               # turns in which the expert must win


SMALL = Level()
KNOBS = ("receptacles", "per_class", "copies", "hidden", "horizon")     # of the command
VERSION = "v1"                      # of its games: change it with anything that changes what a seed gives


class Goal(NamedTuple):
    """What a task wants; classes as the PDDL writes them, "" where the task has none."""
    kind: str
    thing: str
    parent: str                     # class of the receptacle where the thing must end
    lamp: str

    @property
    def station(self):
        """(verb, receptacle class) of the task's treatment, or ("", "")."""
        return STATIONS.get(self.kind, ("", "", ""))[:2]


class Game(NamedTuple):
    data: dict                      # the content of game.tw-pddl
    traj: dict                      # the content of traj_data.json
    expert: tuple                   # actions that win


# ---- games

def make_game(seed, level, scenes, engine, kind=None, tries=200):
    """The game of a seed. seed: any text; scenes: floor plan numbers; engine: an Engine to try drafts in.

    Raises ValueError when the level leaves no game, for example a lamp task in kitchens.
    """
    rng = random.Random(f"alfworld-{seed}")         # seeded by text: hash() differs between processes
    for _ in range(tries):
        task = kind or rng.choice(level.tasks)
        rooms = [room for room in TASK_ROOMS.get(task, ROOMS) if room in level.rooms]
        allowed = [scene for room in rooms for scene in ROOMS[room] if scene in scenes]
        draft = allowed and _draft(rng, task, rng.choice(allowed), level)
        expert = draft and solve(engine, draft[0], level.horizon, in_turn=True)
        if expert:
            data, traj = draft
            return Game({**data, "walkthrough": list(expert)}, traj, expert)
    raise ValueError(f"no game of {kind or level.tasks} in {tries} tries: {level}")


def _draft(rng, kind, scene, level):
    """(game.tw-pddl, traj_data.json) as dictionaries; None when this draw does not work out."""
    plan, classes = floor_plan(scene)
    available = Counter({place: min(n, level.per_class) for place, n in plan.items()})
    classes = [thing for thing in classes if thing in (level.classes or THINGS)]
    goal = _choose_goal(rng, kind, available, classes)
    if goal is None:
        return None
    places = _choose_places(rng, goal, available, level)
    things = _place_things(rng, goal, places, classes, level)
    if things is None:
        return None
    identifiers = {i for _, i in places} | {i for _, i, _ in things}
    if len(identifiers) < len(places) + len(things):    # two that were drawn are the same
        return None
    words = {"obj": goal.thing.lower(), "recep": goal.parent.lower(), "toggle": goal.lamp.lower()}
    task = rng.choice(gdict[kind]["templates"]).format(**words)
    game = {
        "pddl_domain": Path(ALFRED_PDDL_PATH).read_text(),
        "grammar": Path(ALFRED_TWL2_PATH).read_text().replace(PLACEHOLDER, task),
        "pddl_problem": _problem(goal, places, things),
        "solvable": True}
    params = {
        "object_target": goal.thing,
        "parent_target": goal.parent,
        "toggle_target": goal.lamp,
        "mrecep_target": "",
        "object_sliced": False}
    traj = {
        "task_type": kind,
        "scene": {"floor_plan": f"FloorPlan{scene}", "scene_num": scene},
        "pddl_params": params,
        "turk_annotations": {"anns": [{"task_desc": task}]}}
    return game, traj


@functools.lru_cache(maxsize=None)
def floor_plan(scene):
    """({receptacle class: count}, [object classes]) of a real floor plan."""
    openable = json.loads((LAYOUTS / f"FloorPlan{scene}-openable.json").read_text())
    present = json.loads((LAYOUTS / f"FloorPlan{scene}-objects.json").read_text())
    places = Counter(key.split("|")[0] for key in openable)
    places["SinkBasin"] = min(places.pop("Sink", 0), 1)
    places["BathtubBasin"] = places.pop("Bathtub", 0)
    for place, count in FIXTURES.items():           # receptacles that the openable file does not list
        if place in present and not places[place]:
            places[place] = count
    counts = {place: places[place] for place in sorted(places) if places[place] and place in MAY_LIE}
    return counts, [thing for thing in sorted(present) if thing in THINGS]


def _choose_goal(rng, kind, available, classes):
    _, station, treatment = STATIONS.get(kind, ("", "", ""))
    if station and not available[station]:
        return None
    if kind == "look_at_obj_in_light" and not any(available[place] for place in LAMP_PLACES):
        return None
    able = constants.VAL_ACTION_OBJECTS.get(treatment, THINGS)
    at_home = set().union(*(MAY_LIE[place] for place in available))
    things = [thing for thing in classes if thing in able and thing in at_home]
    if not things:
        return None
    thing = rng.choice(things)
    if kind == "look_at_obj_in_light":
        return Goal(kind, thing, "", LAMP)
    movable = constants.MOVABLE_RECEPTACLES_SET | {station}
    parents = [place for place in available if thing in MAY_LIE[place] and place not in movable]
    return Goal(kind, thing, rng.choice(parents), "") if parents else None


def _choose_places(rng, goal, available, level):
    """[(class, identifier)]: what the goal needs, and others up to the level's number."""
    needed = [place for place in (goal.parent, goal.station[1]) if place]
    if goal.lamp:
        needed.append(rng.choice([place for place in LAMP_PLACES if available[place]]))
    rest = []
    for place in available:
        rest += [place] * (available[place] - needed.count(place))
    rng.shuffle(rest)
    chosen = sorted(needed + rest[:max(0, level.receptacles - len(needed))])
    return [(place, _identifier(rng, place)) for place in chosen]


def _identifier(rng, name):
    """An identifier in the data set's form.

    E.g. Mug_bar__plus_01_dot_59_bar__minus_00_dot_97_bar__plus_01_dot_29.
    """
    values = [rng.uniform(-4, 4) for _ in range(3)]
    signed = [("_minus_" if value < 0 else "_plus_") + f"{abs(value):05.2f}" for value in values]
    position = "_bar_".join(signed).replace(".", "_dot_")
    # The engine names a thing by what stands before the first _bar_, with "basin" added when it occurs later.
    if name.endswith("Basin"):
        return f"{name[:-5]}_bar_{position}_bar_{name}"
    return f"{name}_bar_{position}"


def _place_things(rng, goal, places, classes, level):
    """[(class, identifier, receptacle's identifier)], or None when a target has nowhere to lie."""
    placed = []
    for thing in _choose_things(rng, goal, classes, level):
        homes = _homes(goal, thing, places)
        if homes:
            placed.append((thing, _identifier(rng, thing), _choose_home(rng, homes, level)))
        elif thing == goal.thing:
            return None
    if goal.lamp:
        stands = [identifier for place, identifier in places if place in LAMP_PLACES]
        placed.append((goal.lamp, _identifier(rng, goal.lamp), rng.choice(stands)))
    return placed


def _choose_things(rng, goal, classes, level):
    """Classes of the game's objects, a class for each object, the goal's first."""
    targets = 2 if goal.kind == TWO else rng.randint(1, min(2, level.copies))
    wanted = [goal.thing] * targets
    others = [thing for thing in classes if thing != goal.thing]
    total = rng.randint(*level.objects)
    rng.shuffle(others)
    for thing in others:
        wanted += [thing] * min(rng.randint(1, level.copies), total - len(wanted))
    return wanted


def _homes(goal, thing, places):
    """Receptacles where a thing may lie.

    A target never lies where it must end, nor, if it can be helped, at its station.
    """
    homes = [(place, i) for place, i in places if thing in MAY_LIE[place]]
    if thing == goal.thing:
        homes = [home for home in homes if home[0] != goal.parent]
        homes = [home for home in homes if home[0] != goal.station[1]] or homes
    return homes


def _choose_home(rng, homes, level):
    """A receptacle's identifier, one behind a door with the level's probability."""
    closed = [i for place, i in homes if place in constants.OPENABLE_CLASS_SET]
    open_ = [i for place, i in homes if place not in constants.OPENABLE_CLASS_SET]
    hide = closed and (not open_ or rng.random() < level.hidden)
    return rng.choice(closed if hide else open_)


# ---- a game's PDDL

PROBLEM = """\
(define (problem plan_{kind})
    (:domain alfred)
    (:objects
        {objects}
    )
    (:init
        {facts}
    )
{wish}
"""


def _problem(goal, places, things):
    """The PDDL problem: every receptacle has a location of its own, the agent starts at one more."""
    location = {identifier: f"loc_bar_{n}" for n, (_, identifier) in enumerate(places)}
    start = f"loc_bar_{len(places)}"
    place_classes = sorted({place for place, _ in places})
    thing_classes = sorted({thing for thing, *_ in things} | {goal.thing})
    objects = ["agent1 - agent"]
    objects += [f"{thing}Type - otype" for thing in thing_classes]
    objects += [f"{place}Type - rtype" for place in place_classes]
    objects += [f"{i} - object" for _, i, _ in things]
    objects += [f"{i} - receptacle" for _, i in places]
    objects += [f"{loc} - location" for loc in (*location.values(), start)]
    facts = ["(= (total-cost) 0)", f"(atLocation agent1 {start})", *_facts(places, things, location)]
    for place in place_classes:
        fitting = [thing for thing in thing_classes if thing in MAY_LIE[place]]
        facts += [f"(canContain {place}Type {thing}Type)" for thing in fitting]
    wish = gdict[goal.kind]["pddl"].replace("#", "-")
    wish = wish.format(obj=goal.thing, recep=goal.parent, toggle=goal.lamp)
    lines = "\n        "
    # A leading (:metric ...) would break the engine's parser; the wish closes the definition itself.
    return PROBLEM.format(
        kind=goal.kind, objects=lines.join(objects), facts=lines.join(facts), wish=wish.rstrip())


def _facts(places, things, location):
    """What is true of places and things at the start. location: a receptacle's identifier -> its location."""
    for place, i in places:
        yield f"(receptacleType {i} {place}Type)"
        yield f"(receptacleAtLocation {i} {location[i]})"
        if place in constants.OPENABLE_CLASS_SET:
            yield f"(openable {i})"
    for thing, i, home in things:
        yield f"(objectType {i} {thing}Type)"
        yield f"(inReceptacle {i} {home})"
        yield f"(objectAtLocation {i} {location[home]})"
        yield from (f"({ability} {i})" for ability in _abilities(thing))


def _abilities(thing):
    if thing == LAMP:
        return ["toggleable"]
    able = ["pickupable"]
    able += [name.lower() for name in ABILITIES if thing in constants.VAL_ACTION_OBJECTS[name]]
    if thing in constants.MOVABLE_RECEPTACLES_SET:
        able.append("isReceptacleObject")
    return able


# ---- the expert

NAME = r"(\w+ \d+)"
SENTENCES = {
    "arrive": r"You arrive at NAME\.",
    "take": r"You pick up the NAME from the NAME\.",
    "move": r"You move the NAME to the NAME\.",
    "treat": r"You (clean|heat|cool) the NAME using",
    "shut": r"You close the NAME\.|The NAME is closed\.",
    "open": r"The NAME is open\.",
    "contents": r"(?:On the NAME|The NAME is open\. In it), you see (.*?)\."}
OBSERVED = {name: re.compile(pattern.replace("NAME", NAME)) for name, pattern in SENTENCES.items()}
MOVES = ("arrive", "take", "move", "shut", "open")  # what makes the state another one


def class_of(name):
    """"mug 2" -> "mug"."""
    return name.split()[0]


def goal_of(task):
    """The Goal of a task's sentence, its classes in lower case.

    Raises ValueError if no template of the benchmark made it.
    """
    for kind in TASKS:
        for template in gdict[kind]["templates"]:
            pattern = re.sub(r"{(\w+)}", r"(?P<\1>\\w+)", template)
            found = re.fullmatch(pattern, task.strip().rstrip("."))
            if found:
                words = {"recep": "", "toggle": "", **found.groupdict()}
                return Goal(kind, words["obj"], words["recep"], words["toggle"])
    raise ValueError(f"not a task of ALFWorld's templates: {task}")


class TextExpert:
    """Plays from the intro and the observations alone, and from any state that other players left.

        expert = TextExpert(intro); action = expert.act(); expert.observe(action, observation)

    observe() takes every action really played, whoever chose it; act() depends on that history only and
    changes nothing. It walks the receptacles where what it looks for lies most often in the data set first
    (see worlds/alfworld_search.py), those that are as good in the intro's order; opens what is closed,
    remembers what lies where, puts a wrong object back, and does not repeat an action that was just answered
    with "Nothing happens.". in_turn=True walks in the intro's order alone. revisit=True searches on in the
    intro's order even past receptacles already seen: longer episodes, but a rule that needs no memory, so
    easier to clone. goal: for tasks whose sentence comes from no template.
    """

    def __init__(self, intro, revisit=False, goal=None, in_turn=False):
        listed, _, task = intro.partition("Your task is to: ")
        self.goal = goal or goal_of(task)
        self.places = re.findall(rf"an? {NAME}", listed.partition("you see")[2])
        self.revisit = revisit
        self.in_turn = in_turn or revisit
        self.at = None          # the place where the agent stands
        self.carried = None     # the object in its hands
        self.origin = None      # the place where that was taken
        self.seen = {}          # place -> objects that lie there, as far as known
        self.spots = {}         # place -> the places that are reached together with it
        self.closed = set()     # places
        self.ready = set()      # objects that were treated as the task wants
        self.refused = set()    # actions that do nothing in the present state
        self.fits = set()       # (object class, place class) seen to work
        self.unfit = set()      # the same, refused

    # -- what it learns

    def observe(self, action, observation):
        """Take in what an action, by whoever, was answered with."""
        if observation.startswith("Nothing happens"):
            return self._was_refused(action)
        found = {name: pattern.search(observation) for name, pattern in OBSERVED.items()}
        if any(found[name] for name in MOVES):
            self.refused.clear()                        # what was refused may work now
        for name, match in found.items():
            if match:
                getattr(self, f"_saw_{name}")(*(group for group in match.groups() if group))

    def _was_refused(self, action):
        self.refused.add(action)
        place = " ".join(action.split()[-2:])
        if place not in self.places or not self.at:
            return
        here = self._here(place)
        if action == f"go to {place}" and not here:     # the way to where one stands is no way
            spot = {place, self.at} | self.spots.get(place, set()) | self.spots.get(self.at, set())
            self.spots.update(dict.fromkeys(spot, spot))
        if action == f"move {self.carried} to {place}" and here and place not in self.closed:
            self.unfit.add((class_of(self.carried), class_of(place)))

    def _saw_arrive(self, place):
        self.at = place

    def _saw_take(self, thing, place):
        self.carried, self.origin = thing, place
        self.seen.setdefault(place, set()).discard(thing)
        self.fits.add((class_of(thing), class_of(place)))

    def _saw_move(self, thing, place):
        self.carried = self.origin = None
        self.seen.setdefault(place, set()).add(thing)
        self.fits.add((class_of(thing), class_of(place)))

    def _saw_treat(self, verb, thing):
        self.ready.discard(thing)                       # heating undoes cooling, and the other way round
        if verb == self._verb():
            self.ready.add(thing)

    def _saw_shut(self, place):
        self.closed.add(place)

    def _saw_open(self, place):
        self.closed.discard(place)

    def _saw_contents(self, place, listed):
        self.seen[place] = set(re.findall(rf"an? {NAME}", listed))
        self.fits.update((class_of(thing), class_of(place)) for thing in self.seen[place])

    # -- what it does

    def act(self):
        """The next action."""
        action = self._plan()
        return self._walk() if action in self.refused else action

    def _plan(self):
        if not self.carried:
            return self._fetch()
        if class_of(self.carried) != self.goal.thing:
            return self._put_back()
        if self.goal.lamp:
            return self._light()
        if self._verb() and self.carried not in self.ready:
            kind = self.goal.station[1].lower()
            station = next(place for place in self.places if class_of(place) == kind)
            return self._there(station, f"{self._verb()} {self.carried} with {station}")
        return self._into(self._destination(), "move {} to {}", self.carried)

    def _fetch(self):
        known = self._known(self.goal.thing)
        if self.goal.kind == TWO:                       # both must lie in one receptacle
            known = [(place, thing) for place, thing in known if place != self._destination()]
        if not known:
            return self._search(self.goal.thing)

        def rank(found):
            place, thing = found
            return thing not in self.ready, place != self.at

        place, thing = min(known, key=rank)
        return self._into(place, "take {} from {}", thing)

    def _put_back(self):
        kind = class_of(self.carried)
        good = self.fits - self.unfit
        works = [place for place in (self.at, self.origin) if place and (kind, class_of(place)) in good]
        may = [place for place in self._onward() if (kind, class_of(place)) not in self.unfit]
        return self._into((works or may or [self.at])[0], "move {} to {}", self.carried)

    def _light(self):
        lamps = self._known(self.goal.lamp)
        if not lamps:
            return self._search(self.goal.lamp)
        place, lamp = lamps[0]
        return self._there(place, f"use {lamp}")

    def _search(self, thing):
        new = [place for place in self._onward() if place not in self.seen]
        if not self.in_turn:
            new.sort(key=lambda place: -share(thing, class_of(place)))
        for place in new:
            if self._here(place):
                return f"open {place}" if place in self.closed else f"examine {place}"
        return self._walk() if self.revisit or not new else f"go to {new[0]}"

    def _walk(self):
        elsewhere = (place for place in self._onward() if not self._here(place))
        return "go to " + next(elsewhere, self.places[0])

    # -- what it knows

    def _verb(self):
        return self.goal.station[0]

    def _here(self, place):
        """Whether the agent stands there: in some floor plans a place is reached together with another."""
        return place == self.at or place in self.spots.get(self.at, ())

    def _onward(self):
        """All places in the intro's order, beginning after the present one."""
        start = self.places.index(self.at) + 1 if self.at in self.places else 0
        return self.places[start:] + self.places[:start]

    def _known(self, kind):
        """[(place, object)] of the objects of a class, as far as known."""
        lying = [(place, thing) for place in self.places for thing in sorted(self.seen.get(place, ()))]
        return [(place, thing) for place, thing in lying if class_of(thing) == kind]

    def _destination(self):
        """Where targets go: for two of them the receptacle that has most of them already."""

        def rank(place):
            things = self.seen.get(place, ()) if self.goal.kind == TWO else ()
            there = sum(class_of(thing) == self.goal.thing for thing in things)
            return there, place == self.at

        fitting = [place for place in self.places if class_of(place) == self.goal.parent]
        return max(fitting, key=rank)

    def _there(self, place, action):
        return action if self._here(place) else f"go to {place}"

    def _into(self, place, action, thing):
        """Go there, open it if it is closed, act."""
        if place in self.closed:
            return self._there(place, f"open {place}")
        if place != self.at and self._here(place) and place not in self.seen:
            return f"examine {place}"                       # beside the present place: it may be closed
        return self._there(place, action.format(thing, place))


def solve(engine, game, horizon, in_turn=False):
    """Actions with which the expert wins a game (a dictionary or a path); None if not within `horizon`
    turns. in_turn: see TextExpert."""
    engine.load(game)
    state, actions = engine.reset(), []
    expert = TextExpert(state.feedback, in_turn=in_turn)
    while not state["won"] and len(actions) < horizon:
        actions.append(expert.act())
        state, _, _ = engine.step(actions[-1])
        expert.observe(actions[-1], state.feedback)
    return tuple(actions) if state["won"] else None


_DEMONSTRATIONS = {}            # (path, horizon) -> actions, kept for the whole process


def demonstration(engine, path, horizon):
    """Actions that win the game of a file: the text expert's where it wins within `horizon` turns, else the
    file's own walkthrough.

    Raises ValueError where that does not win either, and what a file that is no game makes the engine raise.
    """
    if (path, horizon) not in _DEMONSTRATIONS:
        try:
            actions = solve(engine, path, horizon)
        except (ValueError, LookupError, StopIteration):    # a task or a room that the expert does not know
            actions = None
        _DEMONSTRATIONS[path, horizon] = actions or _walkthrough(engine, path)
    return _DEMONSTRATIONS[path, horizon]


def _walkthrough(engine, path):
    actions = tuple(json.loads(Path(path).read_text()).get("walkthrough", ()))
    engine.load(path)
    state = engine.reset()
    for number, action in enumerate(actions, 1):
        state, _, _ = engine.step(action)
        if state["won"]:
            return actions[:number]
    raise ValueError("neither the text expert nor the game's own walkthrough wins it")


# ---- the data set's layout

def write_splits(folder, sizes=SIZES, level=SMALL):
    """Write folder/json_2.1.1/<split>/..., so many games of each split."""
    jobs = [(split, number) for split, size in sizes.items() for number in range(size)]
    write = functools.partial(_write, Path(folder) / "json_2.1.1", level)
    in_processes(write, jobs, "ALFWorld games")


@functools.lru_cache(maxsize=None)
def _engine():
    """This process's engine."""
    return Engine()


def _write(folder, level, job):
    """Make the game of a (split, number), and write it."""
    split, number = job
    kind = level.tasks[number % len(level.tasks)]
    game = make_game(f"{split}-{number}", level, SCENES[split], _engine(), kind)
    write_game(folder / split, f"trial_{number:06d}", game)


def write_game(folder, trial, game):
    """folder/<task>-<object>-<movable>-<receptacle>-<scene>/<trial>/, the data set's names."""
    params = game.traj["pddl_params"]
    where = params["parent_target"] or params["toggle_target"]
    scene = game.traj["scene"]["scene_num"]
    path = folder / f"{game.traj['task_type']}-{params['object_target']}-None-{where}-{scene}" / trial
    path.mkdir(parents=True)
    (path / "game.tw-pddl").write_text(json.dumps(game.data))
    (path / "traj_data.json").write_text(json.dumps({**game.traj, "task_id": trial}, indent=1))
    (path / "expert.json").write_text(json.dumps(game.expert))


@functools.lru_cache(maxsize=None)
def cached_splits():
    """The folder of the generated games, made once per machine."""
    folder = cache_home() / f"alfworld-small-{VERSION}"
    say("ALFWorld", f"generated games are used ({folder}); `alfworld-download` fetches the data set.")
    return once(folder, write_splits)


# ---- the command

def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write json_2.1.1 into")
    for split, size in SIZES.items():
        parser.add_argument(f"--{split.replace('_', '-')}", type=int, default=size, help="number of games")
    known = dataclasses.asdict(SMALL)
    for name in KNOBS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(known[name]), default=known[name])
    parser.add_argument(
        "--objects", type=int, nargs=2, metavar=("FEWEST", "MOST"), default=list(SMALL.objects))
    args = vars(parser.parse_args())
    if Path(args["out"], "json_2.1.1").exists():
        parser.error(f"{args['out']} holds a data set already; choose another folder")
    knobs = {name: args[name] for name in KNOBS}
    level = dataclasses.replace(SMALL, objects=tuple(args["objects"]), **knobs)
    try:
        write_splits(args["out"], {split: args[split] for split in SIZES}, level)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
