"""Lists of games played by a model: the arguments of it that tcod.py and eval.py share, success on held-out
games, and when in a run it is measured.
"""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from tqdm import tqdm

import curriculum
import envs
import model as lm
import prompts
import rollout
from harness.cli import UserError, check_knobs, fill_presets, knob, preset
from harness.report import outcome, summarise, table, table_by_kind
from template import parse_date

CONTEXT = 16_384  # tokens per row, unless the models have fewer positions; why: docs/real-models.md
LABELS = {  # of who is evaluated
    "teacher": "teacher", "guest": "teacher, as the student", "before": "student before",
    "after": "student after"}


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


# ---- a list of games

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


# ---- the held-out games of a run

def evaluation_limits(args, positions, ranks):
    """What bounds an episode of the evaluation: the game may say as much as in training, so a row is longer
    by what a response is, up to the models' positions; where these are too few, the screen says so."""
    limits = limits_of(args, args.eval_temperature)
    response = args.eval_max_response or args.max_response
    context = args.max_context + response - args.max_response
    if context > positions and args.eval_every:
        ranks.print(f"evaluations end an episode at {positions - response} tokens instead of "
                    f"{context - response}: --eval-max-response {response} does not fit behind more of them")
    return replace(limits, max_response=response, max_context=min(context, positions))


def assess(run, *, players, games, held_out, turns, limits, args, ranks):
    """Evaluate what is due after the last step of the run's log and not yet in it, {who: {split: summary}}.

    The same on every rank. Before the first step, 0, these are the teacher and the student, later the
    student. The log is written for each split: nothing but the evaluation in progress is lost.

    players: {who of LABELS: (model, chat)}
    """
    history = run.history
    n = history[-1]["step"] if history else 0
    if not args.eval_every or (n % args.eval_every and n != args.steps):
        return
    if not history:
        history.append(dict(step=0))
    results = history[-1].setdefault("eval", {})
    for who in ["after"] if n else [who for who in players if who != "after"]:
        done, (model, chat) = results.setdefault(who, {}), players[who]
        for split in [split for split in held_out if split not in done]:
            outcomes = evaluate(
                model, chat, games, held_out[split], turns, limits, seed=args.seed, rank=ranks.rank,
                world=ranks.world, label=f"{LABELS[who]} · {split}")
            done[split] = summarise(ranks.gather(outcomes))
            run.rewrite()


def assessed(history):
    """The last evaluation of each {who: {split: summary}} in the log."""
    return {who: splits for record in history for who, splits in record.get("eval", {}).items()}


def show(results):
    """The table of all evaluations so far; success per task type once the student has been trained."""
    text = table({LABELS[who]: splits for who, splits in results.items()}) if results else ""
    return "\n".join(filter(None, [text, table_by_kind(results.get("after", {}))]))
