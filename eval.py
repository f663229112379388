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

from harness import stops

if __name__ == "__main__":
    stops.catch()  # before the imports that take seconds

import curriculum
import envs
import model as lm
import rollout
import watch
from experts import Experts, expert_line
from harness.cli import UserError, command, knob
from harness.folder import Journal, check_place, write_json, write_lines
from harness.ranks import Ranks
from harness.report import (
    LEFT_OUT, named, outcome, percent, playable, success, summarise, table, table_by_kind, total, unplayable)
from play import PlayArgs, check_context, check_play, fill, limits_of, play_all, spread

# Arguments that another run of the same evaluation may change: where things lie, how many at once, the day
# (a template that writes it is told by its text, and so is a prompt).
ELSEWHERE = (
    "model", "teacher", "data", "out", "save_expert", "save_hard", "watch", "html", "batch", "take_over",
    "date", "prompt")


# ---- arguments

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
