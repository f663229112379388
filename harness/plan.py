"""What each GPU will hold, said before anything is loaded: `tcod.py --plan GPUS`, and a line at the start of
a run on a GPU.

From the configurations of student and teacher alone: the numbers of their weights, and what the run's own
code takes beside these (counted.py). A plan is {phase: {part: bytes}}, of the fullest GPU, for the longest
row and the fullest micro-batch. It refuses nothing; it warns, and names what would help.

Left out on purpose: what CUDA, NCCL and the gaps between allocations take (see MARGIN).
"""

import math

import torch

import model as lm
from harness.cli import UserError
from harness.counted import learning, numbers, playing, scoring

CARDS = {"80 GB": 85.5e9, "96 GB": 102.6e9, "141 GB": 150.7e9}  # as they are sold: the bytes that they have
MARGIN = 0.05  # of a card, for what is left out above
OPENING = 2048  # tokens of a first prompt, about
FEW = 128  # --chunk from which on the loss is no more what counts


# ---- the plan

def at_once(args, gpus):
    """The most episodes that one of so many GPUs plays at once, in training or in an evaluation."""
    return max(args.episodes // gpus, min(args.eval_batch, args.eval_games))


def cards():
    """{name: bytes} of this machine's GPU; without one, of those that there are."""
    if not torch.cuda.is_available():
        return CARDS
    own = torch.cuda.get_device_properties(lm.device())
    return {own.name: own.total_memory}


def most_moments(sizes, gpus):
    """Numbers whose moments the fullest of the GPUs holds: whole parameters are shared out, the largest
    first."""
    shares = [0] * gpus
    for size in sorted(sizes, reverse=True):
        shares[shares.index(min(shares))] += size
    return max(shares)


def plan(args, student, teacher, gpus, learner):
    """{phase: {part: bytes}} on the fullest of so many GPUs.

    student, teacher: their configurations; learner: (model, args, vocabulary) -> the student with its loss.
    Raises UserError for an architecture whose operations cannot be counted.
    """
    try:
        return phases(args, student, teacher, gpus, learner)
    except Exception as error:  # whatever a model's or a fork's code does without data: it may run with data
        reason = str(error).strip().split("\n")[0]
        kinds = f"{student.model_type} and {teacher.model_type}"
        raise UserError(f"what {kinds} will hold cannot be counted ({reason})") from error


def phases(args, student, teacher, gpus, learner):
    """See `plan`. Assumed are the longest row and the fullest micro-batch, all of it trained."""
    longest = min(lm.longest(student), lm.longest(teacher))
    context = min(args.max_context, longest)
    learns, plays = resident(args, student, teacher, gpus)
    found = {"playing": {**plays, **training_turn(args, student, teacher, context, args.episodes // gpus)}}
    if args.eval_every:
        further = (args.eval_max_response or args.max_response) - args.max_response
        games = min(math.ceil(args.eval_games / gpus), at_once(args, gpus))
        turns = [turn([who], args, games, OPENING, min(context + further, longest))
                 for who in (student, teacher)]
        found["evaluating"] = {**plays, **max(turns, key=total)}
    tokens = max(args.batch_tokens, context)
    kept, peak = learning(student, teacher, tokens, learner, args)
    peak = max(peak, scoring(teacher, lm.play_dtype(args.precision), tokens) - kept)
    found["learning"] = {**learns, "kept of all layers": kept, "the loss, or a layer's backward": peak}
    found["updating"] = learns
    return found


def resident(args, student, teacher, gpus):
    """Parts that are there whatever is done: (while the student learns, while it plays)."""
    sizes, each = numbers(student), lm.play_dtype(args.precision).itemsize
    whole = gpus == 1 or args.moments == "whole"
    held = {
        "student, fp32": 4 * sum(sizes), f"teacher, {args.precision}": each * sum(numbers(teacher)),
        "AdamW's moments, fp32": 8 * (sum(sizes) if whole else most_moments(sizes, gpus))}
    copied = each * sum(sizes) if args.precision == "bf16" else 0  # in fp32 the student itself plays
    return {**held, "gradients, fp32": 4 * sum(sizes)}, {**held, "playing copy": copied}


def training_turn(args, student, teacher, context, rows):
    """Parts of a turn in training. What an expert has said, or the other model, is fed at once."""
    players = {"sft": [], "guided": [student, teacher]}.get(args.method, [student])
    fed = context if args.method in ("b2f", "guided") else OPENING
    return turn(players, args, rows, fed, context)


def turn(players, args, rows, fed, context):
    """Parts of a turn of so many episodes: the caches of all who play, at their largest, and its forward,
    which feeds `fed` tokens to each row, or all that a window shows."""
    fed, dtype = min(fed if args.history == "full" else context, context), lm.play_dtype(args.precision)
    found = [playing(config, dtype, rows, fed, context) for config in players]
    caches, forwards = zip(*found) if found else ([0], [0])
    return {"keys and values": sum(caches), "a turn's forward": max(forwards)}


def total(parts):
    return sum(parts.values())


# ---- what is said of it

def helpful(phase, args, gpus):
    """What makes a phase smaller, as flags."""
    learns, plays = phase == "learning", phase in ("playing", "evaluating")
    wanted = {
        "--moments shared": gpus > 1 and args.moments == "whole",
        "--recompute true": learns and not args.recompute,
        f"--chunk {FEW}": learns and args.chunk > FEW,
        f"--batch-tokens {args.max_context}": learns and args.batch_tokens > args.max_context,
        f"--episodes {gpus}": phase == "playing" and args.episodes > gpus,
        f"--eval-batch {args.episodes // gpus}":
            phase == "evaluating" and min(args.eval_batch, args.eval_games) > args.episodes // gpus,
        "a smaller --max-context": learns or plays,
        "--history window:N with it": (learns or plays) and args.history == "full",
        "more GPUs": args.moments != "whole"}
    return ", ".join(flag for flag, helps in wanted.items() if helps) or "smaller models"


def verdict(found, card, args, gpus):
    """One sentence: whether the fullest phase fits a card of so many bytes, and what would help."""
    phase = max(found, key=lambda name: total(found[name]))
    most, room = total(found[phase]), (1 - MARGIN) * card
    sentence = f"{phase} takes {most / 1e9:.1f} of its {card / 1e9:.1f} GB"
    if most <= room:
        return f"fits: {sentence}"
    little = "is tight" if most <= card else "does not fit"
    over = [name for name in found if total(found[name]) > room]
    advice = "; ".join(f"{name}: {helpful(name, args, gpus)}" for name in over)
    return f"{little}: {sentence}. It would help {advice}"


def table(found, args, gpus, cards):
    """The plan as text: parts by phases, and a verdict for each of {card: bytes}."""
    parts = list(dict.fromkeys(part for phase in found.values() for part in phase))
    lines = [f"{'GB per GPU, of ' + str(gpus):34}" + "".join(f"{phase:>12}" for phase in found)]
    for part in parts:
        cells = [f"{phase[part] / 1e9:12.1f}" if part in phase else " " * 12 for phase in found.values()]
        lines.append(f"{part:34}" + "".join(cells))
    lines.append(f"{'together':34}" + "".join(f"{total(phase) / 1e9:12.1f}" for phase in found.values()))
    lines += [f"{name}: {verdict(found, card, args, gpus)}" for name, card in cards.items()]
    return "\n".join(line.rstrip() for line in lines)
