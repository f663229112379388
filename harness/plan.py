"""What each GPU will hold, said before anything is loaded: `tcod.py --plan GPUS`, and a line at the start of
a run on a GPU.

The run's own code (the student's forward with its loss, the backward pass, the teacher's forward, a turn over
the ragged cache) is run on tensors that have sizes and types but no data, for models cut to a few layers, and
what it allocates is counted. All layers are alike, so the others are arithmetic; so are the weights. The
tensors stand for a CPU's: every machine makes the same plan, and a GPU's kernels want no more.

Left out on purpose: what CUDA, NCCL and the gaps between allocations take (see MARGIN). Nothing is refused.
"""

import copy
import math
import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

import batch as batches
import loss as losses
import model as lm
from harness.cli import UserError
from rollout import Row

CARDS = {"80 GB": 85.5e9, "96 GB": 102.6e9, "141 GB": 150.7e9}  # as they are sold: the bytes that they have
MARGIN = 0.05  # of a card, for what is left out above
DEPTHS = 3, 4  # layers of the models that are counted; one more and one less say what a layer adds
OPENING = 2048  # tokens of a first prompt, at most: the first feed of episodes that begin with a model's turn
FEW = 128  # --chunk below which the loss is no more what counts


# ---- counting

class Tally(TorchDispatchMode):
    """Bytes of the memory that operations under it made and that is still in use: now, and at its peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return made

    def add(self, storage):
        """Count a storage until nobody holds it; views share one."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key, size)

    def remove(self, key, size):
        self.known.discard(key)
        self.now -= size

    def begin(self):
        """Forget the peak so far; returns what is in use."""
        self.peak = self.now
        return self.now


def cut(config, layers):
    """The configuration with so many layers."""
    config = copy.deepcopy(config)
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = layers
    if kinds:
        config.layer_types = (kinds * layers)[:layers]
    return config


def build(config, dtype):
    """A model without data, under a FakeTensorMode or on the meta device."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    lm.without_noise(model)
    return model.eval()


def numbers(config):
    """Numbers in each parameter of the whole model."""
    with torch.device("meta"):
        return [parameter.numel() for parameter in build(config, torch.float32).parameters()]


def learned(config, layers, teacher, tokens, learner, args):
    """One micro-batch, every token of it trained: (bytes that the forward keeps, bytes of the peak), both
    beyond weights and gradients."""
    rows = min(c.get_text_config().vocab_size for c in (config, teacher))
    sample = batches.Sample(0, Row([0] * tokens, [0] * tokens, [0.0] * tokens), [1.0] * tokens,
                            [args.loss] * tokens)
    with FakeTensorMode(), Tally() as tally:
        distiller = learner(build(cut(config, layers), torch.float32), args, lm.Vocabulary(rows, []))
        distiller.train(args.recompute)
        for parameter in distiller.parameters():
            parameter.grad = torch.zeros_like(parameter)
        # In fp32 here, as a GPU multiplies by a bf16 head without making an fp32 copy of it.
        head = torch.zeros(rows, teacher.get_text_config().hidden_size)
        batch, before = batches.collate([sample], "cpu"), tally.begin()
        judged = None
        if args.loss not in losses.WITHOUT_TEACHER:
            judged = head.new_zeros(tokens, head.shape[1], dtype=torch.bfloat16), head
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=not args.recompute):
            value, _ = distiller(batch, judged)
            kept = tally.now - before
            value.backward()
        return kept, tally.peak - before


def learning(config, teacher, tokens, learner, args):
    """(bytes that all layers keep for the backward pass, bytes of the peak beyond them)."""
    (fewer, _), (more, peak) = (learned(config, n, teacher, tokens, learner, args) for n in DEPTHS)
    each = more - fewer
    return each * config.num_hidden_layers, peak - each * DEPTHS[1]


def scoring(config, tokens):
    """Bytes of the teacher's forward over a micro-batch, beyond its weights."""
    with FakeTensorMode(), Tally() as tally, torch.no_grad():
        model = build(cut(config, DEPTHS[1]), torch.bfloat16)
        before = tally.begin()
        lm.hidden_states(model, torch.zeros(1, tokens, dtype=torch.long))
        return tally.peak - before


def playing(config, rows, fed, context):
    """(bytes of the cache when `rows` rows have `context` tokens, bytes of feeding `fed` tokens to each)."""
    with FakeTensorMode(), Tally() as tally, torch.no_grad():
        model = build(cut(config, DEPTHS[1]), torch.bfloat16)
        out = model.get_output_embeddings()
        model.set_output_embeddings(torch.nn.Linear(out.in_features, out.out_features, out.bias is not None))
        cache, before = lm.RaggedCache(model, range(rows), fed), tally.begin()
        lm.extend(model, cache, [[0] * fed] * rows)
        full = sum(kept.untyped_storage().nbytes() for pair in cache.layers for kept in pair)
        working = tally.peak - before - full
    return full / DEPTHS[1] * config.num_hidden_layers * context / fed, working


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
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"what {student.model_type} and {teacher.model_type} will hold cannot be counted ({reason})") \
            from error


def phases(args, student, teacher, gpus, learner):
    """See `plan`. Assumed are the longest row and the fullest micro-batch, all of it trained."""
    context = min(args.max_context, lm.longest(student), lm.longest(teacher))
    # At once is fed: an opening; what a window shows; what an expert has said, or the other model.
    first = context if args.history != "full" else min(context, OPENING)
    fed = context if args.method in ("b2f", "guided") else first
    rows, players = args.episodes // gpus, [student, teacher] if args.method == "guided" else [student]
    held, resting = resident(args, student, teacher, gpus)
    found = {"playing": {**resting, **turn(players, rows, fed, context)}}
    if args.eval_every:
        games = min(math.ceil(args.eval_games / gpus), at_once(args, gpus))
        longer = max(0, (args.eval_max_response or args.max_response) - args.max_response)
        longest = min(context + longer, lm.longest(student), lm.longest(teacher))
        turns = [turn([who], games, first, longest) for who in (student, teacher)]
        found["evaluating"] = {**resting, **max(turns, key=total)}
    tokens = max(args.batch_tokens, context)
    kept, peak = learning(student, teacher, tokens, learner, args)
    peak = max(peak, scoring(teacher, tokens) - kept)
    found["learning"] = {**held, "kept of all layers": kept, "the loss, or a layer's backward": peak}
    found["updating"] = held
    return found


def resident(args, student, teacher, gpus):
    """Parts that are there whatever is done: (while the student learns, while it plays)."""
    sizes = numbers(student)
    whole = gpus == 1 or args.moments == "whole"
    held = {
        "student, fp32": 4 * sum(sizes), "teacher, bf16": 2 * sum(numbers(teacher)),
        "AdamW's moments, fp32": 8 * (sum(sizes) if whole else most_moments(sizes, gpus))}
    return {**held, "gradients, fp32": 4 * sum(sizes)}, {**held, "playing copy, bf16": 2 * sum(sizes)}


def turn(players, rows, fed, context):
    """Parts of a turn of so many episodes: the caches of all who play, at their largest, and its forward."""
    found = [playing(config, rows, fed, context) for config in players]
    return {"keys and values": sum(cache for cache, _ in found), "a turn's own": max(own for _, own in found)}


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
