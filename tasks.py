"""Which tasks a run trains on, in which order, and which it is measured on; experts' episodes in a file.

A split is a list of tasks of a world (envs.py), or a file of task ids. What training may not see is checked
here, and what cannot be played is left out, counted and named. No torch.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

import envs
from harness.cli import UserError
from harness.folder import append, read_log, write_lines
from harness.report import LEFT_OUT, NO_ROOM, all_unplayable, check_playable, named

# ---- files of task ids


def read_ids(path):
    """{task id: its digest, or "" where none is given} of a file with a task a line: an id, or JSON as
    eval.py --save-hard and --save-expert write it; a line that begins with # says nothing.

    Raises UserError for a file that cannot be read or names none.
    """
    try:
        lines = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig").splitlines()
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


def listed(name, split, data="", **knobs):
    """The tasks of a split of the world of that name, or the tasks that a file of task ids names.

    The file's ids are looked for in the splits that they begin with, else in all. Raises UserError as
    `envs.make_tasks` does, for a file without ids, and for ids that are of no task.
    """
    game = envs.game_type(name)
    if split in game.splits or not os.path.isfile(split):
        return envs.make_tasks(name, split, data, **knobs)
    game.check_knobs(knobs)
    return looked_up(game, read_ids(split), split, data, **knobs)


def looked_up(game, ids, path, data, **knobs):
    """The tasks of a world that the ids in a file, {task id: digest}, name; raises UserError for ids that are
    of no task, naming the first."""
    found = {}
    begun = [own for own in game.splits if any(id.startswith(own + "/") for id in ids)]
    for own in begun or game.splits:
        found.update((task.id, task) for task in game.tasks(own, data, **knobs))
    strange = [id for id in ids if id not in found]
    if strange:
        raise UserError(
            f"{len(strange)} of the {len(ids)} ids in {path} are of no {game.name} task with --data "
            f"'{data}', the first one is '{strange[0]}'.")
    tasks = [found[id] for id in ids]
    check_digests(tasks, ids, path)
    return tasks


def check_split(name, split):
    """The split of that name, or the path of a file of task ids; raises UserError for anything else."""
    game, path = envs.game_type(name), os.path.expanduser(split)
    if split in game.splits:
        return split
    if not os.path.isfile(path):
        raise UserError(
            f"{name} has no split '{split}', nor is there such a file of task ids; it has "
            f"{', '.join(game.splits)}.")
    read_ids(path)
    return path


def named_splits(name, text):
    """{label: split or file of task ids} of an option, as in 'valid_seen,hard=FILE'; empty: the world's own.

    A split is its own label; a file without one is called by its name. Raises UserError for what is neither,
    and for two of one label.
    """
    game, found = envs.game_type(name), {}
    for part in text.split(",") if text else game.eval_splits:
        label, given, split = (word.strip() for word in part.partition("="))
        split = check_split(name, split if given else label)
        if not given and split not in game.splits:
            label = Path(split).stem
        if not label or label in (*found, "training"):  # so the tasks trained on are called
            raise UserError(
                f"'{text}' has a split without a name of its own, '{label}': write NAME=FILE.")
        found[label] = split
    return found


def without(tasks, path, game, data="", **knobs):
    """The tasks of a world except those that a file of task ids names; it may name others that are not among
    them. Raises UserError where it names none, or all, and for ids that are of no task."""
    ids = read_ids(path)
    if not set(ids) <= {task.id for task in tasks}:
        looked_up(game, ids, path, data, **knobs)
    left = [task for task in tasks if task.id not in ids]
    check_digests(tasks, ids, path)
    if not left or len(left) == len(tasks):
        raise UserError(
            f"{path} names {len(tasks) - len(left)} of the {len(tasks)} training tasks: a file of tasks to "
            "leave out names some, and not all.")
    return left


def spread(tasks, count):
    """`count` tasks drawn once and for all from the list, in its order: a list may be sorted by task type, or
    cycle through the types, so that neither its first games nor every n-th one stand for it."""
    chosen = np.random.default_rng(0).permutation(len(tasks))[:count]
    return [tasks[i] for i in sorted(chosen)]


def fingerprint(tasks):
    """12 hex digits that stand for a list of tasks: their ids and what their games are."""
    return envs.digest("\n".join(f"{task.id} {task.digest}" for task in tasks).encode())


def identity(args, tasks, held_out, expert):
    """{what: in few letters}: the games of a run; expert: whether its method replays one."""
    found = {"list of training tasks": fingerprint(tasks), **world_identity(args)}
    for split, chosen in held_out.items():
        found[f"list of {split} tasks"] = fingerprint(chosen)
    if expert:
        episodes = [[task.id, task.expert, task.responses] for task in tasks]
        found["experts' episodes"] = envs.digest(json.dumps(episodes).encode())
    return found


def world_identity(args):
    """{what: in few letters} of what games of a world share, beyond what its tasks' digests cover."""
    return envs.game_type(args.env).shared(args.data, **envs.parse_knobs(args.env, args.knobs))


# ---- experts' episodes in a file: the shortest won one of each task

def expert_line(episode):
    """A won episode as a line of the experts' file; None for any other."""
    if not episode.won:
        return None
    return dict(
        task=episode.task.id, digest=episode.task.digest,
        actions=[turn.action for turn in episode.turns],
        responses=[turn.response for turn in episode.turns])  # whole: reasoning and action


class Experts:
    """The experts' file as it grows: a shorter episode is written behind the one that it replaces, and a
    reader of the file takes the last of a task."""

    def __init__(self, path, journal):
        """Take up what is there; raises UserError where the journal's experts are gone."""
        self.path, self.best = path, {}
        if path and journal.records and not os.path.exists(path):
            raise UserError(f"{path} is gone, and {journal.path} counts on it: bring it back, or remove both")
        if path:
            for line in read_log(path):
                self.keep(line)
            self.write()

    def keep(self, line):
        """Note an expert's line unless one as short is there; returns whether it was noted."""
        known = self.best.get(line["task"])
        shorter = not known or len(line["actions"]) < len(known["actions"])
        if shorter:
            self.best[line["task"]] = line
        return shorter

    def add(self, lines):
        """Write those that are the shortest so far."""
        shorter = [line for line in lines if line and self.keep(line)]
        if self.path:
            append(self.path, shorter)

    def write(self):
        """Write the file anew, a line for each task."""
        if self.path:
            write_lines(self.path, self.best.values())


def parse_expert(line):
    """A line of the file -> (task id, (digest, actions, responses)); raises ValueError."""
    def are_texts(value):
        return isinstance(value, list) and all(isinstance(text, str) for text in value)

    entry = json.loads(line)
    if not isinstance(entry, dict) or not are_texts(entry.get("actions")) or "task" not in entry:
        raise ValueError("a line that holds no episode")
    if "digest" not in entry or "responses" not in entry:
        raise ValueError("an older version, without the expert's responses")
    actions, responses = entry["actions"], entry["responses"]
    if not are_texts(responses) or len(responses) != len(actions) or not actions:
        raise ValueError("a line without a response for each action")
    return entry["task"], (entry["digest"], tuple(actions), tuple(responses))


def read_experts(path):
    """{task id: (digest, actions, responses)} from a file that --save-expert wrote.

    Raises UserError for any other file; also for one of a version that wrote the bare actions: it says
    neither which games they belong to nor what the expert said.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return dict(parse_expert(line) for line in file)
    except (OSError, ValueError) as error:
        reason = f"{path} is not a file as eval.py --save-expert writes it now ({error})"
        raise UserError(f"{reason}: write it again") from None


def give_experts(tasks, path, prompt):
    """Those of the tasks that have an expert's episode in the file, with it filled in.

    Raises UserError where the file belongs to other games: a task has the same id and other content, or none
    of its episodes is of a task here; and where its responses do not hold their actions as this prompt asks,
    since then they were said by a model that writes otherwise than the student is asked to.
    """
    experts = read_experts(path)
    known = [task for task in tasks if task.id in experts]
    if not known:
        raise UserError(
            f"none of the {len(experts)} experts' episodes in {path} is of one of these {len(tasks)} tasks: "
            "write them with eval.py --save-expert on the same --env, --data and --split")
    strange = [task.id for task in known if task.digest != experts[task.id][0]]
    if strange:
        raise UserError(
            f"{len(strange)} of the {len(known)} experts' episodes in {path} were won in other games than "
            f"these, the first one of {strange[0]}: write them again with eval.py --save-expert")
    able = []
    for task in known:
        _, actions, responses = experts[task.id]
        if [prompt.action(response) or "" for response in responses] != list(actions):
            raise UserError(
                f"the expert's responses to {task.id} in {path} do not hold its actions as the prompt "
                f"{prompt.name!r} asks for them: write them again with an expert of the student's prompt")
        able.append(replace(task, expert=actions, responses=responses))
    return able


# ---- the tasks of a run

def training_tasks(args, expert, prompt, ranks):
    """The train split; for methods that replay an expert only its tasks with an expert's episode, counted."""
    game_type, knobs = envs.game_type(args.env), envs.parse_knobs(args.env, args.knobs)
    split = check_split(args.env, args.train_split or game_type.train_split)
    tasks = listed(args.env, split, args.data, **knobs)
    if args.without:
        number = len(tasks)
        tasks = without(tasks, args.without, game_type, args.data, **knobs)
        ranks.print(f"{number - len(tasks)} of {number} training tasks are left out, as {args.without} says")
    if not expert:
        return tasks
    if args.experts:
        able, whose = give_experts(tasks, args.experts, prompt), f"those in {args.experts}"
    else:
        able, whose = game_type.with_experts(tasks, args.data, **knobs), game_type.experts
    others = "; the others are left out" * (len(able) < len(tasks))
    ranks.print(f"{args.method}: {len(able)} of {len(tasks)} training tasks have an expert's episode "
                f"({whose}){others}")
    if not able:
        raise UserError(
            f"{args.method} needs experts' successful episodes, and no training task has one: make them with "
            "eval.py --split train --save-expert FILE and pass --experts FILE")
    return able


def held_out_tasks(args, ranks):
    """{split: the tasks of it that are evaluated on}"""
    knobs, held_out = envs.parse_knobs(args.env, args.knobs), {}
    for label, split in named_splits(args.env, args.eval_splits).items():
        found = listed(args.env, split, args.data, **knobs)
        held_out[label] = spread(found, args.eval_games)
        if label != split:
            ranks.print(f"{label}: {len(held_out[label])} of the {len(found)} tasks in {split}")
    return held_out


def check_shared(tasks, held_out):
    """Raises UserError where held-out tasks are trained on, whatever their splits are called."""
    trained = {task.digest for task in tasks} - {""}
    for split, chosen in held_out.items():
        shared = sum(task.digest in trained for task in chosen)
        if shared:
            raise UserError(
                f"{shared} of the {len(chosen)} tasks to evaluate on of split {split} are trained on: choose "
                "other --eval-splits, or leave them out of training by --without")


def load_tasks(args, expert, prompt, ranks):
    """(training tasks, {split: held-out tasks}) of a run; expert: whether its method needs one."""
    tasks, held_out = training_tasks(args, expert, prompt, ranks), held_out_tasks(args, ranks)
    check_shared(tasks, held_out)
    return tasks, held_out


# ---- step by step

def pick(tasks, n, args):
    """The tasks of step n: the list in a new order every time it has been gone through."""
    picked, orders = [], {}
    for i in range((n - 1) * args.episodes, n * args.episodes):
        time_round, place = divmod(i, len(tasks))
        if time_round not in orders:
            orders[time_round] = np.random.default_rng((args.seed, time_round)).permutation(len(tasks))
        picked.append(tasks[orders[time_round][place]])
    return picked


def drawn(n, tasks, args):
    """How many different tasks have been picked behind step n."""
    return min(n * args.episodes, len(tasks))


def tell_left_out(log, tasks, args, ranks):
    """Say what the last step of the log left out, each task that cannot be played once; raises UserError
    where these have become more than a few."""
    *before, record = log
    if record["filled"] and not any(step.get("filled") for step in before):
        ranks.print(f"step {record['step']}: {NO_ROOM}: {len(record['filled'])} tasks")
    known = all_unplayable(before)
    new = {task: why for task, why in record["unplayable"].items() if task not in known}
    if new:
        ranks.print(f"step {record['step']}: {LEFT_OUT}: {named(new)}")
    check_playable({**known, **new}, drawn(record["step"], tasks, args), len(tasks))
