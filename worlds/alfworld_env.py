"""ALFWorld as an environment: the engine of worlds/alfworld.py, on the data set's games or on generated
ones."""

import functools
from dataclasses import replace

from envs import Task, TextGame, reason
from worlds.alfworld import Engine
from worlds.alfworld_data import data_folder, list_games
from worlds.alfworld_games import SMALL, cached_splits, demonstration

PUT = "move (object) to (place)"    # in the instructions; a game of an older release has other words
NO_EFFECT = "Nothing happens."      # the answer to whatever the engine does not understand or allow


class ALFWorld(TextGame):
    """ALFWorld's text games: the real data set when it is there, else games generated for the real engine.

    data: a folder that holds json_2.1.1/<split>/**/game.tw-pddl, as `alfworld-download` makes it; the default
    is $ALFWORLD_DATA, then ~/.cache/alfworld; "generated" for the generated games whatever is there. Those
    have no split valid_train.
    """
    name = "alfworld"
    horizon = 30                    # the benchmark's; generated games bring their own
    splits = ("train", "valid_train", "valid_seen", "valid_unseen")
    train_split = "train"
    eval_splits = ("valid_seen", "valid_unseen")
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
        if data_folder(data) is None:
            self.horizon = SMALL.horizon

    @classmethod
    def tasks(cls, split, data=""):
        cls.check_split(split)
        return list(tasks_of(data_folder(data) or cached_splits(), split))

    @classmethod
    def with_experts(cls, tasks, data=""):
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
            "carried": carried,
            "status": f"Task: {task}. You are at {place}, carrying {carried}."}


@functools.lru_cache(maxsize=None)
def tasks_of(folder, split):
    """The tasks of a data folder's split, the same for the whole process."""
    return tuple(Task(**{**game, "expert": tuple(game["expert"])}) for game in list_games(folder, split))
