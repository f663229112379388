"""Text games as Gymnasium environments: tasks and splits, replay of expert actions.

    env = make_env("alfworld", split="valid_seen")
    obs, info = env.reset(options={"task": make_tasks("alfworld", "valid_seen")[0]})
    obs, reward, terminated, truncated, info = env.step("go to fridge 1")

An environment plays one game at a time and is used for many by reset(). The horizon is counted by who plays
(see rollout.py), not here. There is no torch in this file; what a world is stands in worlds/game.py, each
world in worlds/NAME_env.py.
"""

import json
import os
from pathlib import Path

import gymnasium

from harness.cli import UserError
from worlds.alfworld_env import ALFWorld
from worlds.game import ReplayError, Task, TextGame, Unplayable, digest, readable  # noqa: F401, found here
from worlds.scienceworld_env import ScienceWorld
from worlds.webshop_env import WebShop


# ---- the worlds by their names

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


# ---- replay

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
