"""How good is a checkpoint? Success tables with confidence intervals, the take-over test, experts' episodes,
one episode to read; and the held-out games of a training run.

    python eval.py --model tiny-student --split valid_seen --games 140
    python eval.py --model tiny-student --take-over 0,3,6,10
    torchrun --nproc-per-node 2 eval.py --model tiny-teacher --split train --games 512 --samples 3 \\
        --save-expert experts.jsonl --save-hard hard.jsonl
    python eval.py --model runs/alfworld-f2b-1/student --watch episode.html

The take-over test measures what the paper calls the teacher's support: the student plays the first n turns,
then the teacher takes over; its success and its share of invalid actions are reported over n. Success is the
game won, never merely "the episode ended". What was asked for in files is written batch by batch, beside a
journal FILE.played of all episodes, from which a stopped evaluation goes on when the same command is given.
"""

import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from harness import stops

if __name__ == "__main__":
    stops.catch()  # before the imports that take seconds

from tqdm import tqdm

import curriculum
import envs
import load
import rollout
from chat import prompts
from chat.template import Chat
from harness.cli import UserError, check_knobs, command, fill_presets, knob, preset, usual
from harness.folder import Journal, check_place, write_json, write_lines
from harness.plan import AT_ONCE
from harness.ranks import Ranks, device
from harness.report import (
    LEFT_OUT,
    each,
    named,
    outcome,
    percent,
    playable,
    success,
    summarise,
    table,
    table_by_kind,
    total,
    unplayable,
)
from tasks import Experts, expert_line, fingerprint, listed, named_splits, spread, world_identity
from watch import page

CONTEXT = 16_384  # tokens per row, unless the models have fewer positions; why: docs/real-models.md
SMALL_AT_ONCE = 140  # games that a process plays at once in an evaluation of a tiny model
LABELS = {  # of who is evaluated
    "teacher": "teacher", "guest": "teacher, as the student", "before": "student before",
    "after": "student after"}
# Arguments that another run of the same evaluation may change: where things lie (a prompt is told by its
# words).
ELSEWHERE = ("model", "teacher", "data", "out", "save_expert", "save_hard", "watch", "take_over", "prompt")


# ---- arguments

@dataclass
class PlayArgs:
    """What games are played, and how: shared by tcod.py and eval.py."""
    env: str = knob("alfworld", ", ".join(envs.WORLDS))
    data: str = preset("", "where the games come from; " + "; ".join(
        f"{name}: {world.data}" for name, world in envs.WORLDS.items()), path=True)
    knobs: str = knob("", "the environment's own knobs, as NAME=VALUE separated by blanks; " + "; ".join(
        f"{name}: {world.knobs}" for name, world in envs.WORLDS.items() if world.knobs))
    history: str = knob(
        "full",
        "full: one growing row per episode; window:N: every turn a fresh prompt with the last N turns")
    max_turns: int = preset(0, "turns per episode; 0: the environment's horizon", least=0)
    max_response: int = preset(512, "tokens per response", least=1)
    max_context: int = preset(
        CONTEXT, "tokens per row, prompts and responses together; left open, no more than the models have "
        "positions", least=1)
    precision: str = preset(
        "auto", "of models that are only read, and of training's forward and backward (weights, moments, "
        "logits and losses are fp32 always); auto: bf16 on a device that has it, fp32 elsewhere "
        "and for tiny models on a CPU",
        choices=load.PRECISIONS)
    prompt: str = knob(
        "", "what a model is asked in a turn and how it marks its action: a text file with fields (see "
        f"chat/react.txt): {prompts.explained()}; or one of {', '.join(prompts.SHIPPED)} (household: short, "
        "for ALFWorld alone); empty: bare for the tiny models, else react", path=True)
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
    games: int = knob(140, "number of games, drawn once and for all from the split's list", least=1)
    samples: int = knob(
        1, "episodes per game; above 1 the table also says pass@k: won at least once; intervals count games, "
        "not episodes", least=1)
    temperature: float = knob(0.4, "sampling temperature; 0 is greedy", least=0.0)
    take_over: str = knob(
        "", "take-over test: numbers of student turns before the teacher acts, as in 0,3,6,10")
    teacher: str = knob(
        "tiny-teacher", "who takes over, or judges the student's tokens (--watch FILE)", path=True)
    save_expert: str = knob(
        "", "write the shortest won episode of each game to this file (for tcod.py --experts)", path=True)
    save_hard: str = knob("", "write the tasks that were lost in all samples to this file", path=True)
    watch: str = knob(
        "", "play the first game only: - prints it turn by turn; a file: write a page there too, each token "
        "shaded by its KL to --teacher", path=True)
    out: str = knob("", "write the table to this JSON file, as it grows", path=True)

    def own(self):
        """{knob: value}: the defaults that the checkpoint brings."""
        return load.defaults(load.resolve(self.model, self.env))


def check_play(args):
    """Every knob within its bounds, presets included, and the world's own ones known; raises UserError."""
    check_knobs(args)
    number = args.history.removeprefix("window:")
    windowed = args.history.startswith("window:") and number.isdecimal() and int(number) >= 1
    if args.history != "full" and not windowed:
        raise UserError(f"unknown --history {args.history!r}: full, or window:N with N at least 1")
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
    longest, name = min((load.positions(load.resolve(name, args.env)), name) for name in names)
    if args.max_context > longest and not given:
        args.max_context = longest
        told.append(f"--max-context {longest}, since {name!r} has no more positions")
    asked = args.precision
    args.precision = load.precision(asked, load.resolve(names[0], args.env))
    if args.precision == "bf16" and not load.has_bf16():
        told.append("--precision bf16 on a device that has no instructions for it and is slower by it")
    if asked == "auto" and args.precision == "bf16":
        told.append("--precision bf16, which this device has instructions for")
    return told


def check_context(args, model):
    """Raises UserError where a row of --max-context tokens has more positions than the model."""
    longest = load.longest(model.config)
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


def split_of(args):
    """(label, split or file of task ids) to play; raises UserError where there is none, or several."""
    splits = named_splits(args.env, args.split or envs.game_type(args.env).eval_splits[0])
    if len(splits) > 1:
        raise UserError(f"--split takes one split or file of task ids, not {', '.join(splits)}")
    return next(iter(splits.items()))


def check(args):
    """Mistakes that can be told before models and games are loaded; raises UserError."""
    check_play(args)
    split_of(args)
    if bool(args.watch) + bool(args.take_over) + bool(args.save_expert or args.save_hard) > 1:
        raise UserError("--watch, --take-over and --save-expert are three different things: choose one")
    if args.out and args.watch:
        raise UserError("--out is for a table, and --watch makes none: leave it out")
    written = (args.out, args.save_expert, args.save_hard, args.watch.removeprefix("-"))
    places = [path for path in written if path]
    for path in places:
        check_place(path)
    if len({os.path.realpath(path) for path in places}) < len(places):
        raise UserError(f"{', '.join(places)}: each wants a file of its own")
    if args.take_over:
        take_over_turns(args.take_over)


# ---- a list of games

def limits_of(args, temperature):
    """What bounds an episode: args are a PlayArgs whose presets are filled in."""
    return rollout.Limits(args.max_response, args.max_context, temperature, args.history)


def at_once(model, number, world):
    """How many of so many games each of `world` processes plays at once in an evaluation."""
    most = SMALL_AT_ONCE if load.is_small(model) else AT_ONCE
    return min(most, -(-number // world))


def make_games(args, number):
    """So many environments of the run."""
    knobs = envs.parse_knobs(args.env, args.knobs)
    return [envs.make_env(args.env, data=args.data, **knobs) for _ in range(number)]


def play_all(actors, chat, games, tasks, rules, limits, ranks, *, note=outcome, seed=0, begin=0, label=""):
    """Play every task from number `begin` on once, and yield this rank's part of each batch, in order.

    actors and rules as in `rollout.play`. A batch is as many tasks as all ranks have games, of which this
    rank plays every world-th; all ranks see the same number of batches. note: what is kept of an episode,
    since an episode holds all its tokens. Raises Stopped between two batches where a signal asked for it.
    """
    together, played, won = len(games) * ranks.world, 0, 0
    hidden = not ranks.first or not label
    with tqdm(total=len(tasks), initial=begin, desc=label, disable=hidden, leave=False) as bar:
        for first in range(begin, len(tasks), together):
            if ranks.any(stops.asked()):
                stops.end()
            batch = tasks[first:first + together]
            episodes = rollout.play(
                actors, chat, games, ranks.share(batch), rules, limits,
                seed=(seed, 1), first_index=first + ranks.rank, stride=ranks.world)
            played += sum(not episode.unplayable for episode in episodes)
            won += sum(episode.won for episode in episodes)
            bar.update(len(batch))
            bar.set_postfix_str(f"success {won / max(1, played):.0%}")
            yield [note(episode) for episode in episodes]
            del episodes  # before the next ones are played


def evaluate(actor, chat, games, tasks, turns, limits, ranks, *, seed=0, label=""):
    """Play every task once with the model `actor` and return this rank's outcomes, see `play_all`.

    games: environments, as many as may be played at once; turns: the horizon T.
    """
    rules = curriculum.Rules(curriculum.Method(), 0, turns)
    batches = play_all(
        {"student": actor}, chat, games, tasks, rules, limits, ranks, seed=seed, label=label)
    return list(chain.from_iterable(batches))


# ---- the held-out games of a run

@dataclass
class HeldOut:
    """The games that a training run is measured on, and the models that play them."""
    args: Any               # tcod.Args
    ranks: Ranks
    players: dict           # {who of LABELS: (model, chat)}
    games: list             # environments, as many as are played at once
    tasks: dict             # {split: its tasks}
    turns: int              # the horizon T
    temperature: float = 0.4  # the paper's

    def assess(self, run):
        """Evaluate what is due after the last step of the run's log and not yet in it,
        {who: {split: summary}}.

        The same on every rank. Before the first step, 0, these are the teacher and the student, later the
        student. The log is written for each split: nothing but the evaluation in progress is lost.
        """
        log, every = run.log, self.args.eval_every
        n = log[-1]["step"] if log else 0
        if not every or (n % every and n != self.args.steps):
            return
        if not log:
            log.append(dict(step=0, episodes=[]))
        results = log[-1].setdefault("eval", {})
        for who in ["after"] if n else [who for who in self.players if who != "after"]:
            done, (model, chat) = results.setdefault(who, {}), self.players[who]
            for split in [split for split in self.tasks if split not in done]:
                outcomes = evaluate(
                    model, chat, self.games, self.tasks[split], self.turns,
                    limits_of(self.args, self.temperature), self.ranks, seed=self.args.seed,
                    label=f"{LABELS[who]} · {split}")
                done[split] = summarise(self.ranks.gather(outcomes))
                run.rewrite()


def assessed(log):
    """The last evaluation of each {who: {split: summary}} in the log."""
    return {who: splits for record in log for who, splits in record.get("eval", {}).items()}


def show(results):
    """The table of all evaluations so far; success per task type once the student has been trained."""
    text = table({LABELS[who]: splits for who, splits in results.items()}) if results else ""
    return "\n".join(filter(None, [text, table_by_kind(results.get("after", {}))]))


# ---- the command's three answers

def report_episode(args, play, rules, actors, chat):
    """Print one episode; write its page where one is asked for. Raises Unplayable where it cannot be
    played."""
    for episode in next(play(rules=rules, note=lambda played: played)):  # one rank has it
        if episode.unplayable:
            raise envs.Unplayable(episode.task, episode.unplayable)
        page.transcript(episode)
        if args.watch != "-":
            facts = {
                "student": args.model, "teacher": args.teacher,
                "sampled": f"at temperature {args.temperature}, seed {args.seed}"}
            page.write(args.watch, episode, actors, chat, args.temperature, facts)
            print(f"wrote {args.watch}")


def together(batches, ranks):
    """What the ranks noted of each batch, in the order of the tasks."""
    for batch in batches:
        yield sorted(ranks.gather(batch), key=lambda record: record["index"])


def note_teacher(episode):
    """An outcome with the teacher's turns in it, and how many of them were invalid."""
    theirs = [turn.invalid for turn in episode.turns if turn.who == "teacher"]
    return dict(outcome(episode), theirs=len(theirs), theirs_invalid=sum(theirs))


def take_over(play, n, turns, journal, ranks):
    """Success where the student plays n turns and the teacher the rest; also the share of invalid actions
    among the teacher's.

    play: `play_all` with all but its rules; what the journal has is not played again.
    """
    records = [record for record in journal.records if record["n"] == n]
    rules = curriculum.Rules(curriculum.TakeOver(), n, turns)
    for batch in together(play(rules=rules, note=note_teacher, begin=len(records)), ranks):
        batch = [dict(record, n=n) for record in batch]
        journal.append(batch)
        records += batch
    share = total(records, "theirs_invalid") / max(1, total(records, "theirs"))
    return dict(
        n=n, **success(playable(records)), teacher_invalid=share, unplayable=unplayable(records),
        each=each(records))


def report_take_over(args, play, turns, games, journal, ranks):
    """Print and write the take-over table; games: how many are played for each n."""
    ranks.print(f"{args.model} plays n turns, then {args.teacher} takes over ({games} episodes)")
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
    """The tasks that were lost in all their samples, as lines of a file: their ids and digests. An episode
    whose engine died was not lost."""
    tries = {}
    for record in records:
        if not record["unplayable"] and not record["crashed"]:
            tries.setdefault((record["task"], record["digest"]), []).append(record["won"])
    lost = [key for key, won in tries.items() if len(won) == samples and not any(won)]
    return [dict(task=task, digest=digest) for task, digest in lost]


def write_success(args, split, records, tasks, ranks):
    """Write what is known so far of the tasks to be played; nothing before one could be.

    Raises UserError, on every rank, where more than a few tasks cannot be played.
    """
    if all(record["unplayable"] for record in records) and len(records) < len(tasks):
        return
    found = dict(
        args=asdict(args), split=split, of=len(tasks), tasks=fingerprint(tasks),
        summary=summarise(records))
    if ranks.first:
        write_json(args.out, found)
        if args.save_hard:
            write_lines(args.save_hard, hard(records, args.samples))


def report_success(args, play, rules, split, tasks, journal, ranks):
    """Print and write the success table, and the experts' episodes and lost tasks where they are asked for.

    tasks: all that are played; those that the journal has are not played again.
    """
    experts = Experts(args.save_expert if ranks.first else "", journal)
    for batch in together(
            play(rules=rules, note=note_expert, begin=len(journal.records), label=split), ranks):
        experts.add([record.pop("expert") for record in batch])  # first: the journal says what is there
        journal.append(batch)
        write_success(args, split, journal.records, tasks, ranks)
    experts.write()
    write_success(args, split, journal.records, tasks, ranks)
    summary = summarise(journal.records)
    ranks.print(table({args.model: {split: summary}}))
    for text in filter(None, [table_by_kind({split: summary})]):
        ranks.print(text)
    if args.samples > 1:
        part = summary["pass_at_k"]
        ranks.print(f"pass@{args.samples}: {percent(part)} of {part['games']} tasks")
    if args.save_expert:
        ranks.print(f"{len(experts.best)} expert episodes written to {args.save_expert}")


# ---- main

def load_player(args, name):
    """The model of a checkpoint, on this process's device."""
    model = load.load_model(name, device(), load.play_dtype(args.precision))
    check_context(args, model)
    return model


def load_teacher(args, tokenizer, ranks):
    """The model that takes over or judges, in the student's template; raises UserError where its vocabulary
    is not the student's."""
    name = load.resolve(args.teacher, args.env)
    other = load.load_tokenizer(name)
    load.same_vocabulary(tokenizer, other)
    unlike = Chat(tokenizer, prompt=args.prompt).unlike(Chat(other, prompt=args.prompt))
    if unlike:
        ranks.print(
            f"the teacher's own {', '.join(unlike)} are others than the student's, which it is given here")
    return load_player(args, name)


def choose_tasks(args, split, ranks):
    """The tasks to play, each `samples` times; split: of the environment, or a file of task ids."""
    found = listed(args.env, split, args.data, **envs.parse_knobs(args.env, args.knobs))
    chosen = spread(found, args.games)
    if split not in envs.game_type(args.env).splits:
        ranks.print(f"{len(chosen)} of the {len(found)} tasks in {split}")
    return [task for task in chosen for _ in range(args.samples)]


def open_journal(args, split, chat, actors, tasks, turns, ranks):
    """The journal of this evaluation, the same on all ranks and in memory only where no file is asked for.

    Its first line says what is evaluated: models and tasks by their content, wherever they lie.
    """
    products = (args.out, args.save_expert, args.save_hard)
    path = next((f"{product}.played" for product in products if product), "")
    head = {name: value for name, value in asdict(args).items() if name not in ELSEWHERE}
    head.update({f"{who}'s weights": load.sample(model) for who, model in actors.items()})
    head.update({"list of tasks": fingerprint(tasks), "max_turns": turns})
    head.update(split=split, experts=bool(args.save_expert))
    head["template"] = [chat.before, chat.behind, chat.between]
    head["words of the prompt"] = chat.prompt.digest
    if ranks.first and path:
        head["identity"] = world_identity(args)
        for who, model in actors.items():
            head["identity"].update(load.identity(who, model, chat if who == "student" else None))
    unsaid = {name: value for name, value in usual(Args).items() if name in head}
    unsaid["identity"] = head.get("identity")
    journal = Journal(path if ranks.first else "", head, products, unsaid)
    journal.records = ranks.broadcast(lambda: journal.records)
    return journal


def run(args, name, tokenizer, ranks):
    """Load models and games, and give the command's answer."""
    label, split = split_of(args)
    with ranks.in_turn(device().type == "cuda"):
        actors = {"student": load_player(args, name)}
        if args.take_over or args.watch not in ("", "-"):
            actors["teacher"] = load_teacher(args, tokenizer, ranks)
    tasks = choose_tasks(args, split, ranks)
    games = make_games(args, at_once(actors["student"], len(tasks), ranks.world))
    turns = args.max_turns or games[0].horizon
    if args.take_over and max(take_over_turns(args.take_over)) > turns:
        raise UserError(f"--take-over {args.take_over} goes beyond the {turns} turns of an episode")
    vocabulary = load.vocabulary(tokenizer, *actors.values())
    chat = Chat(tokenizer, load.end_tokens(actors["student"]), vocabulary, args.prompt)
    rules = curriculum.Rules(curriculum.Method(), 0, turns)
    play = partial(
        play_all, actors, chat=chat, games=games, tasks=tasks, seed=args.seed, ranks=ranks,
        limits=limits_of(args, args.temperature))
    if args.watch:
        report_episode(args, play, rules, actors, chat)
        return

    journal = open_journal(args, label, chat, actors, tasks, turns, ranks)
    with journal.kept():
        if args.take_over:
            report_take_over(args, play, turns, len(tasks), journal, ranks)
        else:
            report_success(args, play, rules, label, tasks, journal, ranks)


def main(args):
    ranks = Ranks()
    name = load.resolve(args.model, args.env)
    envs.game_type(args.env)
    tokenizer = load.load_tokenizer(name)
    told = fill(args, args.own(), args.model, *[args.teacher] * bool(args.take_over))
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
