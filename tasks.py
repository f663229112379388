"""Which tasks a run trains on, in which order, and which it is measured on; the environments that play them.

A split is a list of tasks (envs.py). What training may not see is checked here, and what cannot be played is
left out, counted and named.
"""

import numpy as np

import curriculum
import envs
from experts import give_experts
from harness import plan as memory
from harness.cli import UserError
from harness.report import LEFT_OUT, NO_ROOM, all_unplayable, check_playable, named
from play import spread


# ---- which

def training_tasks(args, prompt, ranks):
    """The train split; for methods that replay an expert only its tasks with an expert's episode, counted."""
    game_type, knobs = envs.game_type(args.env), envs.parse_knobs(args.env, args.knobs)
    split = envs.check_split(args.env, args.train_split or game_type.train_split)
    tasks = envs.make_tasks(args.env, split, args.data, **knobs)
    if args.without:
        listed = len(tasks)
        tasks = envs.without(tasks, args.without)
        ranks.print(f"{listed - len(tasks)} of {listed} training tasks are left out, as {args.without} says")
    if args.method not in curriculum.NEEDS_EXPERT:
        return tasks
    if args.experts:
        able, whose = give_experts(tasks, args.experts, prompt), f"those in {args.experts}"
    else:
        able, whose = game_type.with_experts(tasks, args.data, **knobs), game_type.experts
    ranks.print(f"{args.method}: {len(able)} of {len(tasks)} training tasks have an expert's episode "
                f"({whose}); the others are left out")
    if not able:
        raise UserError(
            f"{args.method} needs experts' successful episodes, and no training task has one: make them with "
            "eval.py --split train --save-expert FILE and pass --experts FILE")
    return able


def held_out_tasks(args, ranks):
    """{split: the tasks of it that are evaluated on}"""
    knobs, held_out = envs.parse_knobs(args.env, args.knobs), {}
    for label, split in envs.named_splits(args.env, args.eval_splits).items():
        listed = envs.make_tasks(args.env, split, args.data, **knobs)
        held_out[label] = spread(listed, args.eval_games)
        if label != split:
            ranks.print(f"{label}: {len(held_out[label])} of the {len(listed)} tasks in {split}")
    return held_out


def check_shared(tasks, held_out):
    """Raises UserError where held-out tasks are trained on, whatever their splits are called."""
    trained = {task.digest for task in tasks} - {""}
    for split, chosen in held_out.items():
        shared = sum(task.digest in trained for task in chosen)
        if shared:
            raise UserError(
                f"{shared} of the {len(chosen)} tasks to evaluate on of split {split} are trained on: choose "
                "other --eval-splits, or say --shared-tasks if that is meant")


def load_games(args, prompt, ranks):
    """(training tasks, {split: held-out tasks}, environments: as many as are played at once by this rank)."""
    tasks, held_out = training_tasks(args, prompt, ranks), held_out_tasks(args, ranks)
    if not args.shared_tasks:
        check_shared(tasks, held_out)
    knobs, at_once = envs.parse_knobs(args.env, args.knobs), range(memory.at_once(args, ranks.world))
    return tasks, held_out, [envs.make_env(args.env, data=args.data, **knobs) for _ in at_once]


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


def demonstrated(tasks, method, game):
    """Picked tasks with their experts' episodes, where the method needs them; game: where they are made."""
    if method not in curriculum.NEEDS_EXPERT:
        return tasks
    return [game.demonstrate(task) for task in tasks]


def drawn(n, tasks, args):
    """How many different tasks have been picked behind step n."""
    return min(n * args.episodes, len(tasks))


def tell_left_out(history, tasks, args, ranks):
    """Say what the last step of the log left out, each task that cannot be played once; raises UserError
    where these have become more than a few."""
    *before, record = history
    if record["filled"] and not any(step.get("filled") for step in before):
        ranks.print(f"step {record['step']}: {NO_ROOM}: {len(record['filled'])} tasks")
    known = all_unplayable(before)
    new = {task: why for task, why in record["unplayable"].items() if task not in known}
    if new:
        ranks.print(f"step {record['step']}: {LEFT_OUT}: {named(new)}")
    check_playable({**known, **new}, drawn(record["step"], tasks, args), len(tasks))
