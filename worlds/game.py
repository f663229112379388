"""What every world is to who plays it: a task, and a Gymnasium environment that plays one task after another.

A world is a subclass of TextGame in a file of its own, worlds/NAME_env.py; envs.py lists them by their names.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import gymnasium

from harness.cli import UserError

MAX_TEXT = 100_000              # characters of an observation or action that the spaces accept
MAX_REASON = 300                # characters of what is said of a game that cannot be played


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


def tidy(action):
    """An action as the engines want it: lower case, single blanks, no quotes around it, no full stop."""
    return " ".join(action.lower().split()).strip("\"'`. ")


class AnyText(gymnasium.spaces.Text):
    """Any unicode string up to a length (Gymnasium's own Text space wants every character listed)."""

    def contains(self, x):
        return isinstance(x, str) and len(x) <= self.max_length


class TextGame(gymnasium.Env):
    """What the worlds share. A world defines the class attributes, tasks(), and the three methods at the end.

    info: "task" (its text), "kind", "admissible" (list of actions), "won", "lost", "invalid" (the last action
    was not understood, by the benchmark's own answer), "status" (one short line: the task, and what a player
    may have lost track of), "carried" (by the player, where a world has such a thing); and where the engine
    failed, which ends the episode, "fault" (the reason).
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
