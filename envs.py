"""Text games as Gymnasium environments: tasks and splits, prompts, action parsing, replay of expert actions.

    env = make_env("alfworld", split="valid_seen")
    obs, info = env.reset(options={"task": make_tasks("alfworld", "valid_seen")[0]})
    obs, reward, terminated, truncated, info = env.step("go to fridge 1")

An environment plays one game at a time and is used for many by reset(). The horizon is counted by who plays
(see rollout.py), not here. There is no torch in this file; what stands behind an adapter is in worlds/.
"""

import functools
import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium

from harness.cli import UserError
from worlds.alfworld import Engine
from worlds.alfworld_data import data_folder, list_games
from worlds.alfworld_games import cached_splits, demonstration, named_level
from worlds.scienceworld import REFUSALS, SHORT_TURNS, EngineDied, EpisodeLost, Game, Jvm, World
from worlds.webshop import Session, open_shop
from worlds.webshop_catalogue import default_folder

MAX_TEXT = 100_000              # characters of an observation or action that the spaces accept
MAX_REASON = 300                # characters of what is said of a game that cannot be played
PROMPTS = ("react", "bare")
PUT = "move (object) to (place)"    # in ALFWorld's instructions; a game of an older release has other words
NO_EFFECT = "Nothing happens."  # ALFWorld's answer to whatever it does not understand or allow


class Unplayable(UserError):
    """A task that cannot be played, by the fault of its game's file or of the engine. Who plays many of them
    goes on without it (`Episode.unplayable`). reason: the error's text without the task's name."""

    def __init__(self, task, reason):
        super().__init__(f"{task.id} cannot be played ({reason})")
        self.reason = reason


class ReplayError(Unplayable):
    """Expert actions ended the game before they were all played: they belong to another game or version."""


@dataclass(frozen=True)
class Task:
    """One game of a split."""
    id: str                         # unique and stable
    kind: str                       # task type: a row of the success table
    source: Any = None              # what it is loaded from: a path, (name, variation), a goal's index
    expert: tuple[str, ...] = ()    # actions of an expert's successful episode, replayed; () if none is known
    responses: tuple[str, ...] = ()  # what the expert said, per action; () where it gave bare actions
    digest: str = ""                # of the game's content: says which game an id numbers
    fault: str = ""                 # why it cannot be played, where listing it showed that


def digest(content):
    """12 hex digits that stand for a game's content (bytes)."""
    return hashlib.sha256(content).hexdigest()[:12]


def readable(text):
    """A text that can be written and tokenised: half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def reason(error):
    """What an exception says, in a line of bounded length."""
    return readable(" ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON])


class AnyText(gymnasium.spaces.Text):
    """Any unicode string up to a length (Gymnasium's own Text space wants every character listed)."""

    def contains(self, x):
        return isinstance(x, str) and len(x) <= self.max_length


class TextGame(gymnasium.Env):
    """What the worlds share. A world defines the class attributes, tasks(), and the three methods at the end.

    info: "task" (its text), "kind", "admissible" (list of actions), "won", "lost", "invalid" (the last action
    was not understood, by the benchmark's own answer), "status" (one short line: the task, and what a player
    may have lost track of); and where the engine failed, which ends the episode, "fault" (the reason).
    Reward is 1 for a game won, else the world's own.
    """
    name = ""
    horizon = 30                    # turns
    splits: tuple[str, ...] = ()
    train_split = ""
    eval_splits: tuple[str, ...] = ()
    knob_types: dict = {}           # what else can be asked for: keyword of __init__ and tasks() -> its type
    data_help = ""                  # what --data means
    knobs_help = ""                 # the knobs, as they are written
    experts = ""                    # whose episodes `with_experts` and `demonstrate` give, for the screen
    instructions = ""               # what the game is and how actions are written: opens the "react" prompt
    restarts = 0                    # how many engines of this process died and were replaced

    def __init__(self, split="", data="", **knobs):
        self.observation_space = AnyText(MAX_TEXT, min_length=0)
        self.action_space = AnyText(MAX_TEXT, min_length=0)
        self.split = split or self.train_split
        self.data = data
        self.knobs = knobs
        self.task = None
        self._told = {}             # the last info
        self.check_split(self.split)
        self.check_knobs(knobs)

    @classmethod
    def check_split(cls, split):
        if split not in cls.splits:
            raise UserError(f"{cls.name} has no split '{split}'; it has {', '.join(cls.splits)}.")

    @classmethod
    def check_knobs(cls, knobs):
        """Raises UserError for a knob that this world does not have. knobs: names."""
        for knob in knobs:
            if knob not in cls.knob_types:
                raise cls.no_knob(knob)

    @classmethod
    def no_knob(cls, written):
        """The error of a knob that does not exist, or is not written as one."""
        known = ", ".join(cls.knob_types)
        usage = f"written as in {next(iter(cls.knob_types), 'NAME')}=VALUE"
        return UserError(f"{cls.name} has no knob '{written}'; it has {known}, {usage}.")

    @classmethod
    def tasks(cls, split, data="", **knobs) -> list[Task]:
        """The games of a split, in an order that never changes."""
        raise NotImplementedError

    @classmethod
    def with_experts(cls, tasks, data="", **knobs) -> list[Task]:
        """Those of these tasks for which an expert's episode is known or can be made, filled in where it is
        known. Where it is made only when a task is drawn, `demonstrate` does so."""
        return [task for task in tasks if task.expert]

    def demonstrate(self, task) -> Task:
        """A task of `with_experts` with its expert's episode, or with a fault where none can be made. It may
        play the game: whatever was played here before is over."""
        return task

    def reset(self, *, seed=None, options=None):
        """options={"task": Task} chooses the game; without it the environment's own generator draws one.

        Raises Unplayable for a game that cannot be played; the environment is as good as before.
        """
        super().reset(seed=seed)
        self.task = (options or {}).get("task") or self._draw()
        if self.task.fault:
            raise Unplayable(self.task, self.task.fault)
        try:
            obs, self._told = self._start(self.task), self._info()
        except UserError:           # what the user can mend, as a Java that is missing
            raise
        except (Exception, SystemExit) as error:    # ALFWorld's translator leaves the process on bad PDDL
            raise Unplayable(self.task, reason(error)) from error
        return readable(obs)[:MAX_TEXT], self._told

    def step(self, action):
        """-> observation, reward, terminated, truncated (always False), info. No action makes it raise."""
        try:
            obs, reward, terminated = self._act(tidy(action))
            self._told = self._info()
        except UserError:
            raise
        except Exception as error:  # a game whose fault shows only now
            self._told = {**self._told, "won": False, "lost": False, "fault": reason(error)}
            obs, reward, terminated = self._told["fault"], 0, True
        return readable(obs)[:MAX_TEXT], float(reward), terminated, False, self._told

    def _draw(self):
        tasks = type(self).tasks(self.split, self.data, **self.knobs)
        return tasks[self.np_random.integers(len(tasks))]

    def _start(self, task) -> str:
        raise NotImplementedError

    def _act(self, action) -> tuple[str, float, bool]:
        raise NotImplementedError

    def _info(self) -> dict:
        raise NotImplementedError


# ---- ALFWorld

class ALFWorld(TextGame):
    """ALFWorld's text games: the real data set when it is there, else games generated for the real engine.

    data: a folder that holds json_2.1.1/<split>/**/game.tw-pddl, as `alfworld-download` makes it; the default
    is $ALFWORLD_DATA, then ~/.cache/alfworld; "generated" for the generated games whatever is there. Knob:
    level ("small" or "full") of the generated games, which the data set's games refuse. Generated games have
    no split valid_train.
    """
    name = "alfworld"
    horizon = 30                    # the benchmark's; generated games bring their level's
    splits = ("train", "valid_train", "valid_seen", "valid_unseen")
    train_split = "train"
    eval_splits = ("valid_seen", "valid_unseen")
    knob_types = {"level": str}
    data_help = (
        "the folder that alfworld-download made, which holds json_2.1.1, or generated for games made offline "
        "(empty: where the benchmark puts it, else, and with the tiny pair, generated)")
    knobs_help = "level=small|full of generated games"
    experts = "the text expert's, and where it loses the game's own walkthrough"
    instructions = (
        "You are a household robot in a text game. Solve the task by giving one command at a time.\n"
        "Commands: look, inventory, go to (place), open (place), close (place), examine (thing), "
        f"take (object) from (place), {PUT}, use (object), heat (object) with (place), "
        "cool (object) with (place), clean (object) with (place), slice (object) with (object). "
        "Things are named with their number, as in 'mug 1'. You can carry one object at a time.")

    def __init__(self, split="", data="", **knobs):
        super().__init__(split, data, **knobs)
        self._engine = Engine()
        self._state = None
        self._invalid = False
        level = knobs.get("level")
        if _alfworld_folder(data, level) is None:
            self.horizon = named_level(level or "small").horizon

    @classmethod
    def tasks(cls, split, data="", *, level=None):
        cls.check_split(split)
        folder = _alfworld_folder(data, level) or cached_splits(level or "small")
        return list(_alfworld_tasks(folder, split))

    @classmethod
    def with_experts(cls, tasks, data="", **knobs):
        """All: the data set's games are demonstrated when they are drawn, those generated come with it."""
        return list(tasks)

    def demonstrate(self, task):
        if task.expert or task.fault:
            return task
        try:
            actions = demonstration(self._engine, task.source, self.horizon)
        except (Exception, SystemExit) as error:    # as in reset
            return replace(task, fault=reason(error))
        return replace(task, expert=actions)

    def _start(self, task):
        self._engine.load(task.source)
        putting = self._engine.putting.replace("{o}", "(object)").replace("{r}", "(place)")
        self.instructions = type(self).instructions.replace(PUT, putting)
        self._state = self._engine.reset()
        self._invalid = False
        return self._state.feedback

    def _act(self, action):
        self._state, score, _ = self._engine.step(action)
        self._invalid = self._state.feedback == NO_EFFECT
        return self._state.feedback, score, self._state["won"]

    def _info(self):
        task = self._engine.task
        place = self._engine.place or "the middle of the room"
        carried = self._engine.carried or "nothing"
        return {
            "task": task,
            "kind": self.task.kind,
            "admissible": list(self._state["admissible_commands"]),
            "won": self._state["won"],
            "lost": False,
            "invalid": self._invalid,
            "status": f"Task: {task}. You are at {place}, carrying {carried}."}


def _alfworld_folder(data, level):
    """The folder of the real data set, or None for generated games; level: of those, None where not given.

    Raises UserError for a level that does not exist, or beside the data set's games.
    """
    folder = data_folder(data)
    if level is not None:
        named_level(level)
    if folder is not None and level is not None:
        raise UserError(
            f"The knob level is of generated games, and those in {folder} are not: leave it out, or choose "
            "--data generated.")
    return folder


@functools.lru_cache(maxsize=None)
def _alfworld_tasks(folder, split):
    """The tasks of a data folder's split, the same for the whole process."""
    return tuple(Task(**{**game, "expert": tuple(game["expert"])}) for game in list_games(folder, split))


# ---- WebShop

class WebShop(TextGame):
    """WebShop's text environment (worlds/webshop.py), in rich text; the reward is the benchmark's.

    data: a folder with the benchmark's files; the default is a made-up catalogue. Knobs: goals ("synthetic"
    or "human"), seed (of sale prices and price caps, which the benchmark draws unseeded), most (goals that a
    split lists).
    """
    name = "webshop"
    horizon = 15
    splits = ("train", "dev", "test", "tcod_train", "tcod_test")    # the last two are TCOD's release
    train_split = "train"
    eval_splits = ("test",)
    knob_types = {"goals": str, "seed": int, "most": int}
    data_help = "the folder of the benchmark's files (empty: a catalogue made offline)"
    knobs_help = "goals=synthetic|human, seed=N, most=N"
    experts = "the scripted shopper's, where they earn reward 1"
    instructions = (
        "You are a visitor of a web shop, shown as text. Buy what the instruction asks for: the right kind "
        "of product, with every quality and option that it names, for no more than its price limit.\n"
        "Actions: search[words] looks for products; click[name] presses the button, opens the product or "
        "chooses the option of that name on the page. Choose the options before click[buy now], which ends "
        "the visit.")

    def __init__(self, split="", data="", **knobs):
        super().__init__(split, data, **knobs)
        self.session = None
        self._invalid = False

    @classmethod
    def tasks(cls, split, data="", *, goals="synthetic", seed=0, most=10_000):
        cls.check_split(split)
        return list(_webshop_tasks(_webshop(data, goals, seed), split, most))

    @property
    def shop(self):
        return _webshop(self.data, self.knobs.get("goals", "synthetic"), self.knobs.get("seed", 0))

    def _draw(self):
        shop = self.shop
        goal = shop.draw(shop.split(self.split), self.np_random.random())   # the benchmark's weights
        return _webshop_task(shop, self.split, goal, ())

    def _start(self, task):
        shop = self.shop
        self.session = Session(shop, shop.goal(task.source))
        self._invalid = False
        return self.session.rich()

    def _act(self, action):
        self._invalid = not self.session.step(action)
        done = self.session.page == "done"
        reward = self.session.reward if done and not self._invalid else 0.0
        return self.session.rich(), reward, done

    def _info(self):
        done, won = self.session.page == "done", self.session.reward == 1
        return {
            "task": self.session.goal.text,
            "kind": self.task.kind,
            "admissible": self.session.admissible(),
            "won": done and won,
            "lost": done and not won,
            "invalid": self._invalid,
            "status": self.session.status()}


def _webshop(data, goals, seed):
    """The shop of a data folder, shared by all environments of the process."""
    folder = Path(data).expanduser() if data else default_folder()
    return open_shop(str(folder), goals, seed)


def _webshop_task(shop, split, number, expert):
    goal = shop.goal(number)
    content = json.dumps([goal.text, goal.product["asin"], goal.options])
    return Task(
        f"{split}/{number:06d}", goal.product["category"], number, expert, digest=digest(content.encode()))


@functools.lru_cache(maxsize=None)
def _webshop_tasks(shop, split, most):
    """The first `most` goals of a split, with the scripted shopper's actions where those earn reward 1."""
    goals = shop.split(split)[:most]
    if not goals:
        given = f"{shop.catalogue.cache.parent} gives {len(shop)} {shop.kind} goals"
        raise UserError(
            f"WebShop's split '{split}' is empty: {given}, and the first 1,500 are for test and dev.")
    experts = shop.experts(goals)
    return tuple(_webshop_task(shop, split, goal, experts.get(goal, ())) for goal in goals)


# ---- ScienceWorld

class ScienceWorld(TextGame):
    """ScienceWorld's simulator (worlds/scienceworld.py), one JVM for all environments of a process.

    data: the task types, separated by commas; "short" for those whose solutions are short, with whole actions
    listed as admissible instead of templates; all 30 by default. Knob: simplification ("easy", "" for none,
    or the simulator's own, separated by commas). The reward of a step is the score so far in [0, 1], so the
    last one is the episode's; a failure is 0. info has "objects" (what OBJ in a template may be) and
    "crashed" (the JVM died and the episode with it).
    """
    name = "scienceworld"
    horizon = 30
    splits = ("train", "dev", "test", "tcod_train", "tcod_test")    # the last two, by type, are TCOD's
    train_split = "train"
    eval_splits = ("dev", "test")
    knob_types = {"simplification": str}
    data_help = "no folder, but task types by commas, or short (empty: all 30; with the tiny pair short)"
    knobs_help = "simplification=easy, or none (=) or some by commas"
    experts = "the simulator's own solutions, and the text expert's of the short tasks"
    instructions = (
        "You are in a house with laboratories, in a text game about school science. Solve the task by giving "
        "one command at a time.\n"
        "Commands are made from the templates listed, with names of objects in place of OBJ. Focus only on "
        "what the task names: a wrong focus fails it for good. If a command is ambiguous, the game lists "
        "what it may mean: answer with a number alone.")

    def __init__(self, split="", data="", **knobs):
        super().__init__(split, data, **knobs)
        self._world = _scienceworld(data, **knobs)
        self._game = None
        self._seen = None
        self._crashed = False
        if self._world.short:
            self.horizon = SHORT_TURNS

    @classmethod
    def tasks(cls, split, data="", *, simplification="easy"):
        cls.check_split(split)
        world = _scienceworld(data, simplification)
        return [_scienceworld_task(world, *listed) for listed in world.tasks(split)]

    @classmethod
    def with_experts(cls, tasks, data="", *, simplification="easy"):
        """Plays or loads what is not yet in the cache (see World.make_experts): seconds a task, once."""
        world = _scienceworld(data, simplification)
        world.make_experts([task.source for task in tasks])
        tasks = [replace(task, expert=world.experts.get(*task.source)) for task in tasks]
        return super().with_experts(tasks)

    @property
    def restarts(self):
        """How many JVMs of this process died and were replaced."""
        return Jvm.restarts

    def _start(self, task):
        self._game = self._game or Game()
        self._crashed = False
        self._seen = self._game.start(*task.source, self._world.simplification)
        return f"{self._game.task}\n{self._seen.text}"

    def _act(self, action):
        try:
            self._seen = self._game.step(action)
        except (EngineDied, EpisodeLost) as error:
            self._crashed = True
            return str(error), 0, True
        return self._seen.text, max(0, self._seen.score) / 100, self._seen.done

    def _info(self):
        seen = self._seen
        task = self._game.task.removeprefix("Your task is to ")
        admissible, objects = self._world.admissible(self._game, seen)
        carried = ", ".join(seen.carried) or "nothing"
        focus = f" You focused on the {seen.focus}." if seen.focus else ""
        return {
            "task": task,
            "kind": self.task.kind,
            "admissible": admissible,
            "objects": objects,
            "won": seen.score == 100 and not self._crashed,
            "lost": seen.score < 0,
            "crashed": self._crashed,
            "invalid": seen.text.startswith(REFUSALS),
            "status": f"Task: {task} You are in the {seen.place}, carrying {carried}.{focus}"}

    def close(self):
        if self._game is not None:
            self._game.close()


@functools.lru_cache(maxsize=None)
def _scienceworld(data="", simplification="easy"):
    """The chosen part of ScienceWorld, shared by all environments of the process."""
    return World(data, simplification)


def _scienceworld_task(world, source, expert):
    name, variation = source
    content = json.dumps([world.release, name, variation, world.simplification])
    return Task(f"{name}/{variation}", name, source, expert, digest=digest(content.encode()))


# ---- all of them

ENVS = {"alfworld": ALFWorld, "webshop": WebShop, "scienceworld": ScienceWorld}
for _game in ENVS.values():
    gymnasium.register(
        f"tcod/{_game.__name__}-v0", entry_point=f"envs:{_game.__name__}", max_episode_steps=_game.horizon)


def _help(attribute):
    return "; ".join(f"{name}: {getattr(game, attribute)}" for name, game in ENVS.items())


DATA_HELP = f"where the games come from; {_help('data_help')}"
KNOBS_HELP = f"the environment's own knobs, as NAME=VALUE separated by blanks; {_help('knobs_help')}"


def game_type(name):
    """The environment class of that name in ENVS. Raises UserError for any other name."""
    if name not in ENVS:
        raise UserError(f"There is no environment '{name}'; there are {', '.join(ENVS)}.")
    return ENVS[name]


def parse_knobs(name, text):
    """'goals=human seed=3' -> {"goals": "human", "seed": 3}. Raises UserError for what is no such knob."""
    game, knobs = game_type(name), {}
    for part in text.split():
        knob, given, value = part.partition("=")
        if knob not in game.knob_types or not given:
            raise game.no_knob(part)
        try:
            knobs[knob] = game.knob_types[knob](value)
        except ValueError:
            raise UserError(f"The knob {knob} of {name} is a whole number, not '{value}'.") from None
    return knobs


def make_env(name, **kw):
    """An environment by its name in ENVS. Raises UserError for a name, split or knob that does not exist."""
    return game_type(name)(**kw)


def make_tasks(name, split, data="", **knobs):
    """The tasks of a split of the environment of that name, or those that a file of task ids names.

    Raises UserError as make_env does, for a file without ids, and for ids that are of no task.
    """
    game = game_type(name)
    game.check_knobs(knobs)
    if split not in game.splits and os.path.isfile(split):
        return _listed_tasks(game, split, data, knobs)
    tasks = game.tasks(split, data, **knobs)
    if not tasks:
        raise UserError(
            f"{name}'s split '{split}' has no tasks with --data '{data}': name another split or other data.")
    return tasks


def _listed_tasks(game, path, data, knobs):
    """The tasks that a file names, looked for in the splits that their ids begin with, else in all."""
    wanted = read_ids(path)
    named = [split for split in game.splits if any(id.startswith(split + "/") for id in wanted)]
    found = {}
    for split in named or game.splits:
        found.update((task.id, task) for task in game.tasks(split, data, **knobs))
    strange = [id for id in wanted if id not in found]
    if strange:
        raise UserError(
            f"{len(strange)} of the {len(wanted)} ids in {path} are of no {game.name} task with --data "
            f"'{data}', the first one is '{strange[0]}'.")
    tasks = [found[id] for id in wanted]
    check_digests(tasks, wanted, path)
    return tasks


def read_ids(path):
    """{task id: its digest, or "" where none is given} of a file with a task a line: an id, or JSON as
    eval.py --save-hard and --save-expert write it; a line that begins with # says nothing.

    Raises UserError for a file that cannot be read or names none.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        said = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        entries = [json.loads(line) if line.startswith("{") else dict(task=line) for line in said]
        ids = {entry["task"]: entry.get("digest", "") for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of task ids, one a line ({error}).") from None
    if not ids:
        raise UserError(f"{path} names no task: a file of task ids has one a line.")
    return ids


def check_digests(tasks, ids, path):
    """Raises UserError where a file, {task id: digest}, speaks of other games than these tasks."""
    strange = [task.id for task in tasks if ids.get(task.id) and ids[task.id] != task.digest]
    if strange:
        raise UserError(
            f"{len(strange)} of the tasks in {path} are other games here, the first one {strange[0]}: it "
            "belongs to another --data.")


def named_splits(name, text):
    """{label: split or file of task ids} of an option, as in 'valid_seen,hard=FILE'; empty: the world's own.

    A split is its own label; a file without one is called by its name. Raises UserError for what is neither,
    and for two of one label.
    """
    game, found = game_type(name), {}
    for part in text.split(",") if text else game.eval_splits:
        label, given, split = (word.strip() for word in part.partition("="))
        split = check_split(name, split if given else label)
        if not given and split not in game.splits:
            label = Path(split).stem
        if not label or label in found:
            raise UserError(
                f"'{text}' has two splits called '{label}', or one without a name: write NAME=FILE.")
        found[label] = split
    return found


def check_split(name, split):
    """The split of that name, or the path of a file of task ids; raises UserError for anything else."""
    game, path = game_type(name), os.path.expanduser(split)
    if split in game.splits:
        return split
    if not os.path.isfile(path):
        raise UserError(
            f"{name} has no split '{split}', nor is there such a file of task ids; it has "
            f"{', '.join(game.splits)}.")
    read_ids(path)
    return path


def without(tasks, path):
    """The tasks but those that a file of task ids names. Raises UserError where it names none, or all."""
    ids = read_ids(path)
    left = [task for task in tasks if task.id not in ids]
    check_digests(tasks, ids, path)
    if not left or len(left) == len(tasks):
        raise UserError(
            f"{path} names {len(tasks) - len(left)} of the {len(tasks)} training tasks: a file of tasks to "
            "leave out names some, and not all.")
    return left


def fingerprint(tasks):
    """12 hex digits that stand for a list of tasks: their ids and what their games are."""
    return digest("\n".join(f"{task.id} {task.digest}" for task in tasks).encode())


# ---- prompts and answers

def prompt(env, obs, info, style, first):
    """The user's message of a turn.

    "react": instructions and task at the first turn, then at every turn the observation, the admissible
    actions and how to answer. "bare": the observation and the status line, for tiny models whose response is
    the action itself.
    """
    if style == "bare":
        return f"{obs}\n{info['status']}"
    parts = [env.instructions] if first else []
    if first and info["task"] not in obs:
        parts.append(f"Your task is to: {info['task']}")
    actions = "\n".join(info["admissible"])
    if info.get("objects"):
        actions += "\nOBJ is one of: " + ", ".join(info["objects"])
    parts.append(obs)
    parts.append(f"Admissible actions:\n{actions}")
    parts.append("Think about what to do next, then give one action as <action>...</action>.")
    return "\n\n".join(parts)


def parse_action(response, style):
    """The action in a response; None if it has none. "bare": all of it.

    "react": what stands between the last <action> and </action> that hold something; an <action> that is only
    mentioned opens nothing. One pass: its time grows with the response's length, whatever it repeats.
    """
    if style == "bare":
        return response.strip() or None
    action, opened = None, None
    for tag in re.finditer(r"<(/?)action>", response, re.IGNORECASE):
        if not tag[1]:
            opened = tag.end()
        elif opened is not None:
            action, opened = response[opened: tag.start()].strip() or action, None
    return action


def tidy(action):
    """An action as the engines want it: lower case, single blanks, no quotes around it, no full stop."""
    return " ".join(action.lower().split()).strip("\"'`. ")


def format_action(action, style):
    """The response that stands for an expert's action: what parse_action turns back into it."""
    return f"<action>{action}</action>" if style == "react" else action


def replay(env, actions):
    """Play expert actions from the state after reset(), each when the caller asks for its turn; yields
    (obs, terminated, info) per action.

    A crash is the world's fault, not the expert's: it is yielded and ends the replay, and whoever plays
    counts the episode as lost. Raises ReplayError if the game ends while the expert's episode does not.
    """
    length = max(len(actions), len(env.task.expert))
    for number, action in enumerate(actions, 1):
        obs, _, terminated, _, info = env.step(action)
        crashed = info.get("crashed") or info.get("fault")
        if terminated and number < length and not crashed:
            raise ReplayError(env.task, f"the game ended after {number} of the expert's {length} actions")
        yield obs, terminated, info
        if crashed:
            return
