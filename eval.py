"""How good is a checkpoint? Success tables with confidence intervals, the take-over test, experts' episodes,
one episode to read.

    python eval.py --model tiny-student --split valid_seen --games 140
    python eval.py --model tiny-student --take-over 0,3,6,10
    torchrun --nproc-per-node 2 eval.py --model tiny-teacher --split train --games 512 --samples 3 \\
        --save-expert experts.jsonl --save-hard hard.jsonl
    python eval.py --model runs/alfworld-f2b/student --watch --html episode.html

The take-over test measures what the paper calls the teacher's support: the student plays the first n turns,
then the teacher takes over; its success and its share of invalid actions are reported over n. Success is the
game won, never merely "the episode ended". What was asked for in files is written batch by batch, beside a
journal FILE.played of all episodes, from which a stopped evaluation goes on when the same command is given.
"""

import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain

from harness import stops

if __name__ == "__main__":
    stops.catch()  # before the imports that take seconds

import numpy as np
from tqdm import tqdm

import curriculum
import envs
import model as lm
import prompts
import rollout
import watch
from experts import Experts, expert_line
from harness.cli import UserError, check_knobs, command, fill_presets, knob, preset
from harness.folder import Journal, check_place, write_json, write_lines
from harness.ranks import Ranks
from harness.report import (
    LEFT_OUT, named, outcome, percent, playable, success, summarise, table, table_by_kind, total, unplayable)
from template import parse_date

CONTEXT = 16_384  # tokens per row, unless the models have fewer positions; why: docs/real-models.md
# Arguments that another run of the same evaluation may change: where things lie, how many at once, the day
# (a template that writes it is told by its text, and so is a prompt).
ELSEWHERE = (
    "model", "teacher", "data", "out", "save_expert", "save_hard", "watch", "html", "batch", "take_over",
    "date", "prompt")


# ---- arguments

@dataclass
class PlayArgs:
    """What games are played, and how: shared by tcod.py and eval.py."""
    env: str = knob("alfworld", "alfworld, webshop or scienceworld")
    data: str = preset("", envs.DATA_HELP, path=True)
    knobs: str = knob("", envs.KNOBS_HELP)
    history: str = knob(
        "full",
        "full: one growing row per episode; window:N: every turn a fresh prompt with the last N turns")
    max_turns: int = preset(0, "turns per episode; 0: the environment's horizon", least=0)
    max_response: int = preset(512, "tokens per response", least=1)
    max_context: int = preset(
        CONTEXT, "tokens per row, prompts and responses together; left open, no more than the models have "
        "positions", least=1)
    precision: str = knob(
        "auto", "of models that are only read, and of training's forward and backward (weights, moments, "
        "logits and losses are fp32 always); auto: bf16 on a GPU that has it, else fp32",
        choices=lm.PRECISIONS)
    prompt: str = knob(
        "", "what a model is asked in a turn and how it marks its action: a text file with fields (see "
        f"prompts/react.txt): {prompts.explained()}; or react or bare; empty: bare for the tiny models, "
        "else react", path=True)
    date: str = knob("", "the day that chat templates which write one are given; empty: today")
    seed: int = knob(0, "seed of the run", least=0)


@dataclass
class Args(PlayArgs):
    """Play held-out games with a checkpoint and report its success."""
    model: str = knob(
        "tiny-student",
        "checkpoint: a Hugging Face name or folder, or tiny-student, tiny-teacher, tiny-narrow", path=True)
    split: str = knob(
        "", "split of the task list, or a file of task ids, one a line; empty: the environment's first "
        "held-out split")
    games: int = knob(140, "number of games, evenly over the split's list", least=1)
    samples: int = knob(
        1, "episodes per game; above 1 the table also says pass@k: won at least once (its interval counts "
        "games)", least=1)
    temperature: float = knob(0.4, "sampling temperature; 0 is greedy", least=0.0)
    take_over: str = knob(
        "", "take-over test: numbers of student turns before the teacher acts, as in 0,3,6,10")
    teacher: str = knob("tiny-teacher", "who takes over, or judges the student's tokens (--html)", path=True)
    save_expert: str = knob(
        "", "write the shortest won episode of each game to this file (for tcod.py --experts)", path=True)
    save_hard: str = knob("", "write the tasks that were lost in all samples to this file", path=True)
    watch: bool = knob(False, "play the first game only and print it turn by turn")
    html: str = knob(
        "", "with --watch, write a page to this file: the episode, each token shaded by its KL to --teacher",
        path=True)
    out: str = knob("", "write the table to this JSON file, as it grows", path=True)
    batch: int = knob(64, "episodes played at once", least=1)


def check_history(text):
    """Raises UserError unless text is "full" or "window:N" with N at least 1."""
    number = text.removeprefix("window:")
    windowed = text.startswith("window:") and number.isdecimal() and int(number) >= 1
    if text != "full" and not windowed:
        raise UserError(f"unknown --history {text!r}: full, or window:N with N at least 1")


def check_play(args):
    """Every knob within its bounds, presets included, and the world's own ones known; raises UserError.

    The day is filled in: it is part of the prompts, and a run that goes on keeps it.
    """
    check_knobs(args)
    check_history(args.history)
    args.date = parse_date(args.date).isoformat()
    if args.prompt:
        prompts.load(args.prompt)
    envs.parse_knobs(args.env, args.knobs)


def fill(args, own, *names):
    """Fill in the presets, and what depends on models and machine; returns what to say of it, sentences.

    own: see `fill_presets`; names: checkpoints: a --max-context that was left open gets no more than the
    positions that all of them have.
    """
    given, told = args.max_context is not None, []
    fill_presets(args, own)
    longest, name = min((lm.positions(lm.resolve(name, args.env)), name) for name in names)
    if args.max_context > longest and not given:
        args.max_context = longest
        told.append(f"--max-context {longest}, since {name!r} has no more positions")
    args.precision = lm.precision(args.precision)
    if args.precision == "bf16" and not lm.has_bf16():
        told.append("--precision bf16 on a device that has no instructions for it and is slower by it")
    return told


def check_context(args, model):
    """Raises UserError where a row of --max-context tokens has more positions than the model."""
    longest = lm.longest(model.config)
    if args.max_context > longest:
        raise UserError(
            f"--max-context {args.max_context} is more than the {longest} positions that "
            f"{model.name_or_path!r} has")


def take_over_turns(text):
    """'0,3,6' -> [0, 3, 6]; raises UserError for anything else."""
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise UserError(f"--take-over wants numbers of turns, as in 0,3,6,10, not {text!r}")
    return [int(number) for number in numbers]


def check(args):
    """Mistakes that can be told before models and games are loaded; raises UserError."""
    check_play(args)
    split_of(args)
    if bool(args.watch) + bool(args.take_over) + bool(args.save_expert or args.save_hard) > 1:
        raise UserError("--watch, --take-over and --save-expert are three different things: choose one")
    if args.out and args.watch:
        raise UserError("--out is for a table, and --watch makes none: leave it out")
    if args.html and not args.watch:
        raise UserError("--html is a page of the episode that --watch plays: give both")
    places = [path for path in (args.out, args.save_expert, args.save_hard, args.html) if path]
    for path in places:
        check_place(path)
    if len({os.path.realpath(path) for path in places}) < len(places):
        raise UserError(f"{', '.join(places)}: each wants a file of its own")
    if args.take_over:
        take_over_turns(args.take_over)


# ---- playing

def limits_of(args, temperature):
    """What bounds an episode: args are a PlayArgs whose presets are filled in."""
    return rollout.Limits(args.max_response, args.max_context, temperature, args.history)


def spread(tasks, count):
    """`count` tasks drawn once and for all from the list, in its order: a list may be sorted by task type, or
    cycle through the types, so that neither its first games nor every n-th one stand for it."""
    chosen = np.random.default_rng(0).permutation(len(tasks))[:count]
    return [tasks[i] for i in sorted(chosen)]


def play_all(actors, chat, games, tasks, plan, limits, *,
             note=outcome, seed=0, begin=0, rank=0, world=1, label=""):
    """Play every task from number `begin` on once, and yield this rank's part of each batch, in order.

    actors and plan as in `rollout.play`. A batch is as many tasks as all ranks have games, of which this rank
    plays every world-th; all ranks see the same number of batches. note: what is kept of an episode, since an
    episode holds all its tokens.
    """
    together = len(games) * world
    played = won = 0
    with tqdm(total=len(tasks), initial=begin, desc=label, disable=rank > 0 or not label, leave=False) as bar:
        for first in range(begin, len(tasks), together):
            batch = tasks[first:first + together]
            episodes = rollout.play(
                actors, chat, games, batch[rank::world], plan, limits,
                seed=(seed, 1), first_index=first + rank, stride=world)
            played += sum(not episode.unplayable for episode in episodes)
            won += sum(episode.won for episode in episodes)
            bar.update(len(batch))
            bar.set_postfix_str(f"success {won / max(1, played):.0%}")
            yield [note(episode) for episode in episodes]
            del episodes  # before the next ones are played


def evaluate(actor, chat, games, tasks, turns, limits, *, seed=0, rank=0, world=1, label=""):
    """Play every task once with the model `actor` and return this rank's outcomes, see `play_all`.

    games: environments, as many as may be played at once; turns: the horizon T.
    """
    plan = curriculum.plan(curriculum.opd, 0, turns)
    batches = play_all(
        {"student": actor}, chat, games, tasks, plan, limits, seed=seed, rank=rank, world=world, label=label)
    return list(chain.from_iterable(batches))


# ---- the command's three answers

def report_episode(args, play, turns, actors, chat):
    """Print one episode; write its page where one is asked for. Raises Unplayable where it cannot be
    played."""
    plan = curriculum.plan(curriculum.opd, 0, turns)
    for episode in next(play(plan=plan, note=lambda played: played)):  # one rank has it
        if episode.unplayable:
            raise envs.Unplayable(episode.task, episode.unplayable)
        watch.transcript(episode)
        if args.html:
            facts = {
                "student": args.model, "teacher": args.teacher,
                "sampled": f"at temperature {args.temperature}, seed {args.seed}"}
            watch.write_page(args.html, episode, actors, chat, args.temperature, facts)
            print(f"wrote {args.html}")


def together(batches, ranks):
    """What the ranks noted of each batch, in the order of the tasks."""
    for batch in batches:
        yield sorted(ranks.gather(batch), key=lambda record: record["index"])


def note_teacher(episode):
    """An outcome with the teacher's turns in it, and those of them that were invalid."""
    theirs = [turn["invalid"] for turn in episode.turns if turn["who"] == "teacher"]
    return dict(outcome(episode), theirs=len(theirs), theirs_invalid=sum(theirs))


def take_over(play, n, turns, journal, ranks):
    """Success where the student plays n turns and the teacher the rest; also the share of invalid actions
    among the teacher's.

    play: `play_all` with all but its plan; what the journal has is not played again.
    """
    records = [record for record in journal.records if record["n"] == n]
    plan = curriculum.plan(curriculum.take_over, n, turns)
    for batch in together(play(plan=plan, note=note_teacher, begin=len(records)), ranks):
        batch = [dict(record, n=n) for record in batch]
        with stops.whole():
            journal.append(batch)
        records += batch
    share = total(records, "theirs_invalid") / max(1, total(records, "theirs"))
    return dict(n=n, **success(playable(records)), teacher_invalid=share, unplayable=unplayable(records))


def report_take_over(args, play, turns, games, journal, ranks):
    """Print and write the take-over table; games: how many are played for each n."""
    ranks.print(f"{args.model} plays n turns, then {args.teacher} takes over ({games} games)")
    ranks.print("  n  success [95 %]       teacher's invalid actions")
    rows = []
    for n in take_over_turns(args.take_over):
        row = take_over(play, n, turns, journal, ranks)
        rows.append(row)
        ranks.print(f"{n:3}  {percent(row):20} {row['teacher_invalid']:.1%}")
        if row["unplayable"]:
            ranks.print(f"     {LEFT_OUT}: {named(row['unplayable'])}")
        if ranks.first:
            write_json(args.out, dict(args=asdict(args), take_over=rows))


def note_expert(episode):
    """An outcome with the expert's line in it."""
    return dict(outcome(episode), digest=episode.task.digest, expert=expert_line(episode))


def hard(records, samples):
    """The tasks that were lost in all their samples, as lines of a file: their ids and digests."""
    tries = {}
    for record in records:
        if record["unplayable"]:
            continue
        tries.setdefault((record["task"], record["digest"]), []).append(record)
    lost = [key for key, own in tries.items() if len(own) == samples and not any(o["won"] for o in own)]
    return [dict(task=task, digest=digest) for task, digest in lost]


def write_success(args, split, records, number, ranks):
    """Write what is known so far of `number` episodes to be played; nothing before one could be.

    Raises UserError, on every rank, where more than a few tasks cannot be played.
    """
    if all(record["unplayable"] for record in records) and len(records) < number:
        return
    found = dict(args=asdict(args), split=split, of=number, summary=summarise(records))
    if not ranks.first:
        return
    write_json(args.out, found)
    if args.save_hard:
        write_lines(args.save_hard, hard(records, args.samples))


def report_success(args, play, turns, split, number, journal, ranks):
    """Print and write the success table, and the experts' episodes and lost tasks where they are asked for.

    number: of episodes in all; those that the journal has are not played again.
    """
    experts = Experts(args.save_expert if ranks.first else "", journal)
    plan, begin = curriculum.plan(curriculum.opd, 0, turns), len(journal.records)
    for batch in together(play(plan=plan, note=note_expert, begin=begin, label=split), ranks):
        with stops.whole():
            experts.add([record.pop("expert") for record in batch])  # first: the journal says what is there
            journal.append(batch)
            write_success(args, split, journal.records, number, ranks)
    experts.write()
    write_success(args, split, journal.records, number, ranks)
    if ranks.first:
        print_success(args, split, summarise(journal.records))
    if args.save_expert:
        ranks.print(f"{len(experts.best)} expert episodes written to {args.save_expert}")


def print_success(args, split, summary):
    """The screen's tables."""
    print(table({args.model: {split: summary}}))
    by_kind = table_by_kind({split: summary})
    if by_kind:
        print(by_kind)
    if args.samples > 1:
        part = summary["pass_at_k"]
        print(f"pass@{args.samples}: {percent(part)} of {part['games']} tasks")


# ---- main

def load(args, name):
    """The model of a checkpoint, on this process's device."""
    model = lm.load_model(name, lm.device(), lm.play_dtype(args.precision))
    check_context(args, model)
    return model


def load_teacher(args, tokenizer, ranks):
    """The model that takes over or judges, in the student's template; raises UserError where its vocabulary
    is not the student's."""
    name = lm.resolve(args.teacher, args.env)
    other = lm.load_tokenizer(name)
    lm.same_vocabulary(tokenizer, other)
    unlike = rollout.Chat(tokenizer, prompt=args.prompt).unlike(rollout.Chat(other, prompt=args.prompt))
    if unlike:
        ranks.print(
            f"the teacher's own {', '.join(unlike)} are others than the student's, which it is given here")
    return load(args, name)


def split_of(args):
    """(label, split or file of task ids) to play; raises UserError where there is none, or several."""
    named = envs.named_splits(args.env, args.split or envs.game_type(args.env).eval_splits[0])
    if len(named) > 1:
        raise UserError(f"--split takes one split or file of task ids, not {', '.join(named)}")
    return next(iter(named.items()))


def load_games(args, split, ranks):
    """(tasks, each `samples` times; environments, as many as are played at once by one rank).

    split: of the environment, or a file of task ids.
    """
    knobs = envs.parse_knobs(args.env, args.knobs)
    listed = envs.make_tasks(args.env, split, args.data, **knobs)
    chosen = spread(listed, args.games)
    if split not in envs.game_type(args.env).splits:
        ranks.print(f"{len(chosen)} of the {len(listed)} tasks in {split}")
    tasks = [task for task in chosen for _ in range(args.samples)]
    at_once = min(args.batch, -(-len(tasks) // ranks.world))
    return tasks, [envs.make_env(args.env, data=args.data, **knobs) for _ in range(at_once)]


def open_journal(args, split, chat, actors, tasks, turns, ranks):
    """The journal of this evaluation, the same on all ranks and in memory only where no file is asked for.

    Its first line says what is evaluated: models and tasks by their content, wherever they lie.
    """
    products = (args.out, args.save_expert, args.save_hard)
    path = next((f"{product}.played" for product in products if product), "")
    head = {name: value for name, value in asdict(args).items() if name not in ELSEWHERE}
    head.update({f"{who}'s weights": lm.fingerprint(model) for who, model in actors.items()})
    head.update({"list of tasks": envs.fingerprint(tasks), "max_turns": turns})
    head.update(split=split, experts=bool(args.save_expert))
    head["template"] = [chat.before, chat.behind, chat.between]
    head["words of the prompt"] = chat.prompt.digest
    journal = Journal(path if ranks.first else "", head, products)
    journal.records = ranks.broadcast(lambda: journal.records)
    return journal


def run(args, name, tokenizer, ranks):
    """Load models and games, and give the command's answer."""
    label, split = split_of(args)
    with ranks.in_turn(lm.device().type == "cuda"):
        actors = {"student": load(args, name)}
        if args.take_over or args.html:
            actors["teacher"] = load_teacher(args, tokenizer, ranks)
    tasks, games = load_games(args, split, ranks)
    turns = args.max_turns or games[0].horizon
    if args.take_over and max(take_over_turns(args.take_over)) > turns:
        raise UserError(f"--take-over {args.take_over} goes beyond the {turns} turns of an episode")
    vocabulary = lm.vocabulary(tokenizer, *actors.values())
    chat = rollout.Chat(tokenizer, lm.end_tokens(actors["student"]), vocabulary, args.date, args.prompt)
    play = partial(
        play_all, actors, chat=chat, games=games, tasks=tasks, seed=args.seed, rank=ranks.rank,
        world=ranks.world, limits=limits_of(args, args.temperature))
    if args.watch:
        report_episode(args, play, turns, actors, chat)
        return

    journal = open_journal(args, label, chat, actors, tasks, turns, ranks)
    with journal.kept():
        if args.take_over:
            report_take_over(args, play, turns, len(tasks), journal, ranks)
        else:
            report_success(args, play, turns, label, len(tasks), journal, ranks)


def main(args):
    ranks = Ranks()
    game_type = envs.game_type(args.env)
    name = lm.resolve(args.model, args.env)
    tokenizer = lm.load_tokenizer(name)
    told = fill(args, lm.defaults(name), args.model, *[args.teacher] * bool(args.take_over))
    check(args)
    for sentence in told:
        ranks.print(sentence)
    if args.watch:
        args = replace(args, games=1, samples=1)
    with ranks.together():
        run(args, name, tokenizer, ranks)
        ranks.leave()


if __name__ == "__main__":
    command(main, Args)
