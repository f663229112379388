"""How good is a checkpoint? Success tables with confidence intervals, the take-over test, expert trajectories, one episode to read.

    python eval.py --model tiny-student --split valid_seen --games 140
    python eval.py --model tiny-student --take-over 0,3,6,10
    python eval.py --model runs/alfworld-f2b/student --watch

The take-over test measures what the paper calls the teacher's support: the student plays the first n turns, then the teacher takes
over; its success and its share of invalid actions are reported over n. Success is the game won, never merely "the episode ended".
"""

import argparse
import json
import math
import os
import sys
from dataclasses import asdict, dataclass, field

import numpy as np
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging

import curriculum
import envs
import model as lm
import rollout


def knob(default, text):
    """A dataclass field with its help: every knob is written once."""
    shown = "" if default in ("", None, False) else f" (default: {default})"
    return field(default=default, metadata={"help": (text + shown).replace("%", "%%")})


DATA = ("the benchmark's data folder; empty: where the benchmark puts it, else (and with the tiny pair) games made offline. For "
        "scienceworld, which has no data folder: task types by commas, or short; empty: all 30 (with the tiny pair short)")
KNOBS = ("the world's own knobs, as NAME=VALUE separated by blanks; alfworld: level=small|full of generated games; webshop: "
         "goals=synthetic|human, seed=N, most=N; scienceworld: simplification=easy, or none (=) or some by commas")
PRESETS = {  # knob: (the paper's value, for real models; the measured one, for the embedded tiny pair)
    "max_response": (512, 16), "max_context": (10240, 2048),
}


def preset(name, text, table=PRESETS):
    """A knob whose default depends on the model; `fill_presets` sets it once the model is known."""
    paper, tiny = table[name]
    return knob(None, f"{text} (default: {paper}" + (")" if paper == tiny else f"; with the tiny pair {tiny})"))


def fill_presets(args, chat, model, table=PRESETS):
    """Fill in the defaults that depend on the model: the paper's for a real one, the measured ones for a tiny one."""
    tiny = chat.style == "bare"
    defaults = {name: measured if tiny else paper for name, (paper, measured) in table.items()}
    for name, value in {**defaults, **(envs.game_type(args.env).tiny_defaults if tiny else {})}.items():
        if getattr(args, name, "not a knob of this command") in (None, ""):
            setattr(args, name, value)
    longest = getattr(model.config, "max_position_embeddings", None) or args.max_context
    if args.max_context > longest:
        raise envs.UserError(f"--max-context {args.max_context} is more than the {longest} positions that the model has")
    return "the tiny pair's" if tiny else "the paper's"


def check_knobs(args, at_least_one, above_zero=()):
    """Numbers that would only fail, or mean something else, much later; raises UserError."""
    for names, low in ((at_least_one, "at least 1"), (above_zero, "above 0")):
        for name in names:
            value = getattr(args, name)
            if value is not None and (value < 1 if low == "at least 1" else value <= 0):
                raise envs.UserError(f"--{name.replace('_', '-')} is {low}, not {value}")
    if args.seed < 0:
        raise envs.UserError(f"--seed is not negative, but {args.seed} is")
    number = args.history.removeprefix("window:")
    if args.history != "full" and not (args.history.startswith("window:") and number.isdigit() and int(number)):
        raise envs.UserError(f"unknown --history {args.history!r}: full, or window:N with N at least 1")


@dataclass
class Args:
    """Play held-out games with a checkpoint and report its success."""
    model: str = knob("tiny-student", "checkpoint: a Hugging Face name or folder, or tiny-student, tiny-teacher, tiny-narrow")
    env: str = knob("alfworld", "alfworld, webshop or scienceworld")
    split: str = knob("", "split of the task list; empty: the environment's first held-out split")
    games: int = knob(140, "number of games, evenly over the split's list")
    samples: int = knob(1, "episodes per game; above 1 the table also says pass@k: won at least once (its interval counts games)")
    temperature: float = knob(0.4, "sampling temperature; 0 is greedy")
    max_turns: int = knob(0, "turns per episode; 0: the environment's horizon")
    max_response: int = preset("max_response", "tokens per response")
    max_context: int = preset("max_context", "tokens per row, prompt and responses together")
    history: str = knob("full", "full: one growing row per episode; window:N: every turn a fresh prompt with the last N turns")
    take_over: str = knob("", "take-over test: numbers of student turns before the teacher acts, as in 0,3,6,10")
    teacher: str = knob("tiny-teacher", "who takes over")
    save_expert: str = knob("", "write the actions of the episodes won to this file (for tcod.py --experts)")
    watch: bool = knob(False, "play the first game only and print it turn by turn")
    knobs: str = knob("", KNOBS)
    data: str = knob("", DATA)
    out: str = knob("", "write the table to this JSON file")
    batch: int = knob(64, "episodes played at once")
    seed: int = knob(0, "seed of the sampling")


def wilson(won, games):
    """95 % Wilson score interval of won/games, as fractions (low, high); (0, 1) for no games.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.49, 0.943]
    """
    if games == 0:
        return 0.0, 1.0
    z, share = 1.959964, won / games
    centre, spread = share + z * z / (2 * games), z * math.sqrt(share * (1 - share) / games + z * z / (4 * games * games))
    return max(0.0, (centre - spread) / (1 + z * z / games)), min(1.0, (centre + spread) / (1 + z * z / games))


def outcome(episode):
    """The part of an episode that a table or a log needs, as plain JSON values."""
    return dict(task=episode.task.id, kind=episode.task.kind, index=episode.index, start=episode.start, stop=episode.stop,
                rounds=len(episode.turns), won=episode.won, lost=episode.lost, invalid=episode.count("invalid"),
                missing=episode.count("missing"), cut=episode.count("cut"), context_cut=episode.context_cut, crashed=episode.crashed,
                actions=[turn["action"] for turn in episode.turns])


def spread(tasks, count):
    """`count` tasks drawn once and for all from the list, in its order: a list may be sorted by task type, or cycle through the types,
    so that neither its first games nor every n-th one stand for it."""
    chosen = np.random.default_rng(0).permutation(len(tasks))[:count]
    return [tasks[i] for i in sorted(chosen)]


def success(outcomes):
    """Games, success and its interval of a list of outcomes."""
    won = sum(o["won"] for o in outcomes)
    low, high = wilson(won, len(outcomes))
    return dict(games=len(outcomes), won=won, success=won / max(1, len(outcomes)), low=low, high=high)


def summarise(outcomes):
    """One table's figures: success with interval in all and per task type, mean rounds, and rates over the student's turns."""
    turns = max(1, sum(o["rounds"] - o["start"] for o in outcomes))
    rates = {what: sum(o[what] for o in outcomes) / turns for what in ("invalid", "missing", "cut")}
    kinds = {kind: success([o for o in outcomes if o["kind"] == kind]) for kind in sorted({o["kind"] for o in outcomes})}
    tasks = {o["task"] for o in outcomes}
    solved = {o["task"] for o in outcomes if o["won"]}
    return dict(**success(outcomes), rounds=sum(o["rounds"] for o in outcomes) / max(1, len(outcomes)), **rates,
                context_cut=sum(o["context_cut"] for o in outcomes), crashed=sum(o["crashed"] for o in outcomes),
                tasks=len(tasks), solved=len(solved), kinds=kinds)


def evaluate(actor, chat, games, tasks, turns, limits, *, seed=0, rank=0, world=1, label=""):
    """Play every task once and return this rank's outcomes; rank r of a world of ranks plays tasks r, r + world, …

    actor as in `rollout.play`; games: environments, as many as may be played at once; turns: the horizon T.
    """
    mine, outcomes = list(range(len(tasks)))[rank::world], []
    with tqdm(total=len(mine), desc=label, disable=rank > 0 or not label, leave=False) as bar:
        for i in range(0, len(mine), len(games)):
            batch = mine[i:i + len(games)]
            episodes = rollout.play(actor, chat, games, [tasks[j] for j in batch], [curriculum.window("opd", 0, 0, turns)] * len(batch),
                                    limits, seed=(seed, 1), first_index=batch[0], stride=world)
            outcomes += [outcome(episode) for episode in episodes]
            bar.update(len(batch))
            bar.set_postfix_str(f"success {success(outcomes)['success']:.0%}")
    return outcomes


def percent(part):
    """'62.1 % [54–70]' of a dict from `success`."""
    return f"{part['success']:6.1%} [{part['low']:.0%}–{part['high']:.0%}]"


def table(summaries, by_type=""):
    """Text of {label: summary}: a line each, then success per task type with a column for each label that begins with by_type
    (None: no such part)."""
    width = max(map(len, summaries)) + 2
    lines = [f"{'':{width}}success [95 %]      games  rounds  invalid  no action    cut"]
    lines += [f"{label:{width}}{percent(s):19}{s['games']:6}{s['rounds']:8.1f}{s['invalid']:9.1%}{s['missing']:11.1%}{s['cut']:7.1%}"
              for label, s in summaries.items()]
    summaries = {label: s for label, s in summaries.items() if by_type is not None and label.startswith(by_type)}
    kinds = sorted({kind for s in summaries.values() for kind in s["kinds"]})
    if len(kinds) > 1:
        wide = max(map(len, kinds)) + 2
        lines += ["", " " * wide + "  ".join(summaries)]
        cell = lambda s, kind, label: f"{s['kinds'][kind]['success']:.0%} of {s['kinds'][kind]['games']}" if kind in s["kinds"] else "–"
        lines += [(f"{kind:{wide}}" + "  ".join(f"{cell(s, kind, label):{len(label)}}" for label, s in summaries.items())).rstrip() for kind in kinds]
    return "\n".join(lines)


def chat_of(model, tokenizer):
    """The chat of a loaded checkpoint; its generation_config may name more than one token that ends a response."""
    stop = model.generation_config.eos_token_id
    return rollout.Chat(tokenizer, stop if isinstance(stop, list) else [stop])


def watch(episode):
    """Print an episode turn by turn."""
    print(episode.opening)
    for i, turn in enumerate(episode.turns):
        after = episode.turns[i + 1]["observation"] if i + 1 < len(episode.turns) else ""
        note = " [no action]" * turn["missing"] + " [invalid]" * turn["invalid"] + " [cut]" * turn["cut"]
        print(f"\n--- turn {i + 1}{note}\n> {turn['response']}\n{after}")
    print(f"\n=== {'won' if episode.won else 'lost' if episode.lost else 'not won'} after {len(episode.turns)} turns")


def take_over(student, teacher, chat, games, tasks, turns, limits, n, seed):
    """Success when the student plays n turns and the teacher the rest; also the share of invalid actions among the teacher's."""
    episodes = []
    for i in range(0, len(tasks), len(games)):
        batch = tasks[i:i + len(games)]
        episodes += rollout.play(lambda turn: student if turn < n else teacher, chat, games, batch, [(0, turns)] * len(batch),
                                 limits, seed=(seed, 1), first_index=i)
    theirs = [turn["invalid"] for episode in episodes for turn in episode.turns[n:]]
    return dict(n=n, **success([outcome(e) for e in episodes]), teacher_invalid=sum(theirs) / max(1, len(theirs)))


def load(args, name):
    """(model, chat) of args' device; `name` may be one of the embedded tiny checkpoints."""
    model, tokenizer = lm.load(lm.resolve(name, args.env), lm.device(), lm.play_dtype())
    return model, chat_of(model, tokenizer)


def check(args):
    """Mistakes that can be told before anything is loaded; raises UserError."""
    check_knobs(args, ("games", "samples", "batch", "max_response"))
    if bool(args.watch) + bool(args.take_over) + bool(args.save_expert) > 1:
        raise envs.UserError("--watch, --take-over and --save-expert are three different things: choose one")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise envs.UserError("eval.py runs in one process: start it with python, not with torchrun and several processes")
    for path in (args.out, args.save_expert):
        if path and not os.path.isdir(os.path.dirname(path) or "."):
            raise envs.UserError(f"there is no folder {os.path.dirname(path)} to write {os.path.basename(path)} into")
    if not all(n.strip().isdigit() for n in args.take_over.split(",") if args.take_over):
        raise envs.UserError(f"--take-over wants numbers of turns, as in 0,3,6,10, not {args.take_over!r}")


def main(args):
    check(args)
    game_type, knobs = envs.game_type(args.env), envs.parse_knobs(args.env, args.knobs)
    model, chat = load(args, args.model)
    fill_presets(args, chat, model)
    split = args.split or game_type.eval_splits[0]
    tasks = spread(envs.make_tasks(args.env, split, args.data, **knobs), 1 if args.watch else args.games)
    tasks = [task for task in tasks for _ in range(args.samples)]
    games = [envs.make_env(args.env, split=split, data=args.data, **knobs) for _ in range(min(args.batch, len(tasks)))]
    turns = args.max_turns or games[0].horizon
    limits = rollout.Limits(args.max_response, args.max_context, args.temperature, chat.style, args.history)
    if args.watch:
        return watch(rollout.play(model, chat, games, tasks[:1], [(0, turns)], limits, seed=(args.seed, 1))[0])
    if args.take_over:
        return report_take_over(args, model, chat, games, tasks, turns, limits)
    outcomes = evaluate(model, chat, games, tasks, turns, limits, seed=args.seed, label=split)
    summary = summarise(outcomes)
    print(table({f"{args.model} · {split}": summary}))
    if args.samples > 1:
        print(f"pass@{args.samples}: {percent(success_of_tasks(summary))} of {summary['tasks']} tasks")
    if args.save_expert:
        save_experts(args.save_expert, outcomes)
    write_json(args.out, dict(args=asdict(args), split=split, summary=summary))


def success_of_tasks(summary):
    """pass@k as a dict for `percent`."""
    low, high = wilson(summary["solved"], summary["tasks"])
    return dict(success=summary["solved"] / max(1, summary["tasks"]), low=low, high=high)


def report_take_over(args, student, chat, games, tasks, turns, limits):
    """Print and write the take-over table."""
    teacher, other = load(args, args.teacher)
    lm.same_vocabulary(chat.tokenizer, other.tokenizer)
    rows = []
    print(f"{args.model} plays n turns, then {args.teacher} takes over ({len(tasks)} games)\n  n  success [95 %]       teacher's invalid actions")
    for n in [int(n) for n in args.take_over.split(",")]:
        rows.append(take_over(student, teacher, chat, games, tasks, turns, limits, n, args.seed))
        print(f"{n:3}  {percent(rows[-1]):20} {rows[-1]['teacher_invalid']:.1%}", flush=True)
    write_json(args.out, dict(args=asdict(args), take_over=rows))


def save_experts(path, outcomes):
    """Write the shortest won episode of each task as a JSON line {"task", "actions"}."""
    best = {}
    for o in (o for o in outcomes if o["won"]):
        if o["task"] not in best or len(o["actions"]) < len(best[o["task"]]):
            best[o["task"]] = o["actions"]
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(dict(task=task, actions=actions)) + "\n" for task, actions in best.items())
    os.replace(path + ".tmp", path)
    print(f"{len(best)} expert episodes written to {path}")


def write_json(path, content):
    """Write JSON beside `path` and move it into place; nothing for an empty path."""
    if path:
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(path + ".tmp", path)


def command(main, args_type):
    """Run an entry point: parse its dataclass of arguments; a user's mistake is one sentence and exit status 2."""
    logging.set_verbosity_error(), logging.disable_progress_bar()
    args = HfArgumentParser(args_type, description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args_into_dataclasses()[0]
    try:
        main(args)
    except envs.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    command(main, Args)
