"""What a game is to the code that plays it: a task, and a Gymnasium environment for one task after another.

    env = make_env("alfworld", split="valid_seen")
    obs, info = env.reset(options={"task": make_tasks("alfworld", "valid_seen")[0]})
    obs, reward, terminated, truncated, info = env.step("go to fridge 1")

A world is a subclass of TextGame in a file of its own, worlds/NAME_env.py, and a line in WORLDS. The horizon
is counted by the sampler (rollout.py), not here. Read before this: nothing; after it: rollout.py.
"""

import hashlib
import importlib
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import gymnasium

from harness.cli import UserError

MAX_TEXT = 100_000              # characters of an observation or action that the spaces accept
MAX_REASON = 300                # characters of what is said of a game that cannot be played


# ---- data

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
    hint: str = ""                  # what the teacher alone reads before the first message


class Unplayable(UserError):
    """A task that cannot be played, by the fault of its game's file or of the engine. A run goes on without
    it (`Episode.unplayable`). reason: the error's text without the task's name."""

    def __init__(self, task, reason):
        super().__init__(f"{task.id} cannot be played ({reason})")
        self.reason = reason


class ReplayError(Unplayable):
    """Expert actions ended the game before they were all played: they belong to another game or version."""


# ---- text

def digest(content):
    """12 hex digits that stand for a game's content (bytes)."""
    return hashlib.sha256(content).hexdigest()[:12]


def readable(text):
    """A text that can be written and tokenised: half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def reason(error):
    """What an exception says, in a line of bounded length."""
    return readable(" ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON])


def tidy(action):
    """An action as the engines want it: lower case, single blanks, no quotes around it, no full stop."""
    return " ".join(action.lower().split()).strip("\"'`. ")


class AnyText(gymnasium.spaces.Text):
    """Any unicode string up to a length (Gymnasium's own Text space wants every character listed)."""

    def contains(self, x):
        return isinstance(x, str) and len(x) <= self.max_length


# ---- a world

class TextGame(gymnasium.Env):
    """What the worlds share. A world defines the class attributes, `tasks`, and the three methods at the end.

    info: "task" (its text), "kind", "admissible" (list of actions), "won", "lost", "invalid" (the last action
    was not understood, by the benchmark's own answer), "status" (one short line: the task, and what a player
    may have lost track of), "carried" (by the player, where a world has such a thing); and where the engine
    failed, which ends the episode, "crashed" (it died) or "fault" (the reason).
    Reward is 1 for a game won, else the world's own.
    """
    name = ""
    horizon = 30                    # turns
    splits: tuple[str, ...] = ()
    train_split = ""
    eval_splits: tuple[str, ...] = ()
    knob_types: dict = {}           # what else can be asked for: keyword of __init__ and tasks() -> its type
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
        if not cls.knob_types:
            return UserError(f"{cls.name} has no knob '{written}': it has none.")
        known = ", ".join(cls.knob_types)
        usage = f"written as in {next(iter(cls.knob_types))}=VALUE"
        return UserError(f"{cls.name} has no knob '{written}'; it has {known}, {usage}.")

    @classmethod
    def tasks(cls, split, data="", **knobs) -> list[Task]:
        """The games of a split, in an order that never changes."""
        raise NotImplementedError

    @classmethod
    def shared(cls, data="", **knobs) -> dict[str, str]:
        """{what: in few letters} of what all games share and no task's digest covers: a catalogue."""
        return {}

    @classmethod
    def with_experts(cls, tasks, data="", **knobs) -> list[Task]:
        """The tasks for which an expert's episode is known or can be made, filled in where it is known.
        Where it is made only when a task is drawn, `demonstrate` does so."""
        return [task for task in tasks if task.expert]

    def demonstrate(self, task) -> Task:
        """A task of `with_experts` with its expert's episode, or with a fault where none can be made. It may
        play the game: the game that was played here before is over."""
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


def replay(env, actions):
    """Play expert actions from the state after reset(), each when the caller asks for its turn; yields
    (obs, terminated, info) per action.

    A crash is the world's fault, not the expert's: it is yielded and ends the replay, and the episode counts
    as lost. Raises ReplayError if the game ends while the expert's episode does not.
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


# ---- the worlds by their names

class World(NamedTuple):
    """Where a world's class is, and what --help says of it. Only the world that is named is imported."""
    entry: str                      # module:class
    data: str                       # what --data means
    knobs: str = ""                 # its knobs, as they are written


WORLDS = {
    "alfworld": World(
        "worlds.alfworld_env:ALFWorld",
        "the folder that alfworld-download made, which holds json_2.1.1, or generated for games made offline "
        "(empty: where the benchmark puts it, else, and with the tiny pair, generated)"),
    "webshop": World(
        "worlds.webshop_env:WebShop",
        "the folder of the benchmark's files (empty: a catalogue made offline)",
        "goals=synthetic|human, seed=N, most=N"),
    "scienceworld": World(
        "worlds.scienceworld_env:ScienceWorld",
        "no folder, but task types by commas, or short (empty: all 30; with the tiny pair short)",
        "simplification=easy, or none (=) or some by commas")}


def game_type(name):
    """The environment class of that name in WORLDS. Raises UserError for any other name."""
    if name not in WORLDS:
        raise UserError(f"There is no environment '{name}'; there are {', '.join(WORLDS)}.")
    module, kind = WORLDS[name].entry.split(":")
    return getattr(importlib.import_module(module), kind)


def make_env(name, **kw):
    """An environment by its name in WORLDS. Raises UserError for a name, split or knob that does not
    exist."""
    return game_type(name)(**kw)


def make_tasks(name, split, data="", **knobs):
    """The tasks of a split. Raises UserError as make_env does, and for a split without tasks."""
    game = game_type(name)
    game.check_knobs(knobs)
    tasks = game.tasks(split, data, **knobs)
    if not tasks:
        raise UserError(
            f"{name}'s split '{split}' has no tasks with --data '{data}': name another split or other data.")
    return tasks


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


def within_horizon(name, **kw):
    """`make_env`, and an episode is truncated at its horizon: what gymnasium.make gives."""
    env = make_env(name, **kw)
    return gymnasium.wrappers.TimeLimit(env, env.horizon)


for _name, _world in WORLDS.items():
    gymnasium.register(f"tcod/{_world.entry.split(':')[1]}-v0", partial(within_horizon, _name))
