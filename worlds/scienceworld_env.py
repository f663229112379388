"""ScienceWorld as an environment: the simulator of worlds/scienceworld.py."""

import functools
import json
from dataclasses import replace

from envs import Task, TextGame, digest
from worlds.scienceworld import REFUSALS, SHORT_TURNS, EngineDied, Game, Jvm, World


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
    experts = "the simulator's own solutions, and the text expert's of the short tasks"
    instructions = (
        "You are in a house with laboratories, in a text game about school science. Solve the task by giving "
        "one command at a time.\n"
        "Commands are made from the templates listed, with names of objects in place of OBJ. Focus only on "
        "what the task names: a wrong focus fails it for good. If a command is ambiguous, the game lists "
        "what it may mean: answer with a number alone.")

    def __init__(self, split="", data="", **knobs):
        super().__init__(split, data, **knobs)
        self._world = world_of(data, **knobs)
        self._game = None
        self._seen = None
        self._crashed = False
        if self._world.short:
            self.horizon = SHORT_TURNS

    @classmethod
    def tasks(cls, split, data="", *, simplification="easy"):
        cls.check_split(split)
        world = world_of(data, simplification)
        return [task_of(world, *listed) for listed in world.tasks(split)]

    @classmethod
    def with_experts(cls, tasks, data="", *, simplification="easy"):
        """Plays or loads what is not yet in the cache (see World.make_experts): seconds a task, once."""
        world = world_of(data, simplification)
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
        except EngineDied as error:
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
            "carried": carried,
            "status": f"Task: {task} You are in the {seen.place}, carrying {carried}.{focus}"}

    def close(self):
        if self._game is not None:
            self._game.close()


@functools.lru_cache(maxsize=None)
def world_of(data="", simplification="easy"):
    """The chosen part of ScienceWorld, shared by all environments of the process."""
    return World(data, simplification)


def task_of(world, source, expert):
    name, variation = source
    content = json.dumps([world.release, name, variation, world.simplification])
    return Task(f"{name}/{variation}", name, source, expert, digest=digest(content.encode()))
