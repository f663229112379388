"""What each GPU will hold, said before anything is loaded: `tcod.py --plan GPUS`, and a line at the start of
a run on a GPU.

Arithmetic on the configurations of student and teacher: a plan is {phase: {part: bytes}}, of the fullest
GPU, for the longest row and the fullest micro-batch, all of it trained. It refuses nothing; it warns, and
names what would help. What a layer and the loss hold at their peak was read off the tensors that are alive
there, in decoders as Llama's and Qwen's; the tests trace them anew. Of layers with a recurrence it is what
transformers' own code holds, which kernels of other packages need not. Of a mixture of experts that learns,
which nothing traces, it is a guess.

Left out on purpose: what CUDA, NCCL and the gaps between allocations take (see MARGIN), the scores of
attention that is written out, a response's hidden states, and a hint's tokens.
T = token, V = vocabulary, D = width, I = inner width of the MLP, Q, K = width of all queries, of all keys.
"""

import math

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import get_layer_types_and_kwargs

from harness.cli import UserError
from harness.ranks import device

CARDS = {  # as they are sold: the bytes that they have
    "24 GB": 25.3e9, "48 GB": 47.7e9, "80 GB": 85.5e9, "96 GB": 102.6e9, "141 GB": 150.7e9}
MARGIN = 0.05  # of a card, for what is left out above
OPENING = 2048  # tokens of a first prompt, about
SMALL = 10_000_000  # parameters of a student whose activations are kept, and whose evaluation is one batch
AT_ONCE = 32  # games that a process plays at once in an evaluation of any other
KEYED, STATEFUL = ("full_attention", "sliding_attention", "hybrid"), ("linear_attention", "conv", "hybrid")
LOSS = {"forward": 9, "jsd": 13, "nll": 6}  # tensors (chunk, V) in fp32 at once; 8 for all others


# ---- what a configuration says

def blank(config):
    """The model without data."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def weights(config):
    """{name: how many numbers} of the model's parameters."""
    return {name: parameter.numel() for name, parameter in blank(config).named_parameters()}


def linear(model):
    """{name: layer} of the linear layers of a model's blocks, which are numbered: what LoRA adapts."""
    return {name: layer for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear) and any(part.isdigit() for part in name.split("."))}


def factors(config, rank):
    """How many numbers each of LoRA's factors has."""
    layers = linear(blank(config)).values()
    return [rank * width for layer in layers for width in (layer.in_features, layer.out_features)]


def known(config, *names, default=None):
    """The first of these numbers that the configuration names."""
    config = config.get_text_config()
    return next((found for name in names if (found := getattr(config, name, None))), default)


def widths(config):
    """(D, I, Q, K). The inner width of a mixture of experts is what its experts hold of a token, in dense
    ones."""
    width, heads = known(config, "hidden_size"), known(config, "num_attention_heads")
    head = known(config, "qk_head_dim", "head_dim", default=width // heads)
    inner = known(config, "intermediate_size", default=4 * width)
    experts = known(config, "num_experts_per_tok", default=0)
    if experts and known(config, "num_experts", "num_local_experts", "n_routed_experts"):
        own = known(config, "moe_intermediate_size", default=inner)
        inner = max(inner, experts * max(4 * width, width + 4 * own) // 3)
    return width, inner, heads * head, known(config, "num_key_value_heads", default=heads) * head


def language(config):
    """Of a composite model's configuration the part that plays and learns; all of any other."""
    own = config.get_text_config()
    own.tie_word_embeddings = config.tie_word_embeddings
    return own


def layers(config):
    """[(kind, configuration)] of every layer."""
    config = config.get_text_config()
    return list(zip(get_layer_types_and_kwargs(config)[0], config.per_layer_config))


def masked(config, tokens):
    """Whether a layer's attention has a window that rows of so many tokens show: then there are masks, also
    of rows that begin."""
    windows = [layer.sliding_window for kind, layer in layers(config) if kind == "sliding_attention"]
    return tokens > min(windows, default=math.inf)


def recurrence(config):
    """(heads, width of a key, of a value, tokens of a chunk) of a layer with a state: a key and a value of a
    state-space model are its state and its head. Of a convolution heads and keys are 0, the value is D."""
    heads = known(config, "linear_num_value_heads", "linear_num_heads", "mamba_n_heads", default=0)
    key = known(config, "linear_key_head_dim", "linear_head_dim", "mamba_d_state", default=0)
    width = known(config, "hidden_size")
    value = known(config, "linear_value_head_dim", "linear_head_dim", "mamba_d_head", default=width)
    return heads, key, value, known(config, "mamba_chunk_size", default=64)


def convolved(config):
    """Numbers of a token that such a layer's convolution sees."""
    heads, key, value, _ = recurrence(config)
    groups = known(config, "linear_num_key_heads", "linear_num_heads", "mamba_n_groups", default=0)
    return max(1, heads) * value + 2 * groups * key


def at_once(args, gpus, student):
    """The most episodes that one of so many GPUs plays at once in an evaluation; student: its number of
    parameters."""
    every = math.ceil(args.eval_games / gpus)
    return every if student < SMALL else min(every, max(AT_ONCE, args.episodes // gpus))


def chunk(vocabulary):
    """Tokens whose distributions are in memory at once."""
    return min(1024, max(64, 2**26 // vocabulary))


def cards():
    """{name: bytes} of this machine's GPU; without one, of those that there are."""
    if not torch.cuda.is_available():
        return CARDS
    own = torch.cuda.get_device_properties(device())
    return {own.name: own.total_memory}


# ---- the parts, in bytes; size: of a number in the precision that is played and learned in

def most_moments(sizes, gpus):
    """Numbers whose moments the fullest of the GPUs holds: whole parameters are shared out, the largest
    first."""
    shares = [0] * gpus
    for size in sorted(sizes, reverse=True):
        shares[shares.index(min(shares))] += size
    return max(shares)


def cache(config, tokens, size):
    """Keys and values of so many tokens."""
    keyed = [widths(layer)[3] for kind, layer in layers(config) if kind in KEYED]
    return 2 * sum(keyed) * tokens * size


def states(config, rows, size):
    """What layers carry from token to token, of so many rows, however long."""
    number = sum(kind in STATEFUL for kind, _ in layers(config))
    heads, key, value, _ = recurrence(config)
    kernel = known(config, "linear_conv_kernel_dim", "mamba_d_conv", "conv_L_cache", default=0)
    return rows * number * (4 * heads * key * value + size * kernel * convolved(config))


def forward(config, tokens, size):
    """The peak of a forward that is not learned from: in one layer's MLP, or its recurrence."""
    width, inner, *_ = widths(config)
    heads, key, value, chunk = recurrence(config)
    recurrent = heads and 4 * convolved(config) + heads * (10 * chunk + 22 * key + 32 * value)
    return tokens * max(size * (3 * inner + 4 * width), recurrent)


def saved(args, config, found, tokens, size):
    """What one layer, the largest, keeps for its backward pass; found: see `weights`."""
    width, inner, queries, keys = widths(config)
    heads, key, value, chunk = recurrence(config)
    attention = 2 * size * (queries + keys)
    if any("q_norm" in name for name in found):
        attention += (4 if args.lora else 4 + size) * (queries + keys)
    # The delta rule keeps a product of its keys with all of a chunk; a state-space model forms it going back.
    delta = 23 if known(config, "mamba_d_state") else 67
    recurrent = heads * (8 * chunk + delta * key + 46 * value)
    between = 8 + 2 * size if args.lora else 28 - size
    each = 4 * size * inner + between * width + max(attention, recurrent)
    layer = 2 * width * (queries + keys) + 3 * width * inner
    rounded = size == 2 and not args.lora  # the layer's weights
    return tokens * each + 2 * layer * rounded


def losing(args, student, teacher, tokens, size):
    """The loss at its peak: what a chunk's logits become, or the head's gradient as it is added to, and
    hidden states."""
    rows, width = min(known(each, "vocab_size") for each in (student, teacher)), widths(student)[0]
    each, head = min(tokens, chunk(rows)) * rows, width * known(student, "vocab_size")
    logits = LOSS.get(args.loss, 8) - 2 * (tokens <= chunk(rows))  # the chunk before leaves two
    judged = 0 if args.loss == "nll" else size * tokens * widths(teacher)[0]
    if args.lora:  # the head has no gradient; in bf16 a copy of it is made
        copied = head if size == 2 else 0
        return 4 * max(logits * each, 3 * each + copied) + (5 + 2 * size) * tokens * width + judged
    return 4 * (max(logits * each + head, 2 * each + 2 * head) + 5 * tokens * width) + judged


def learning(args, student, teacher, found, tokens, size):
    """Parts of a micro-batch. Of layers that are computed again in the backward pass, each keeps its input
    alone."""
    width, inner, *_ = widths(student)
    again = sum(found.values()) >= SMALL
    layer, last = saved(args, student, found, tokens, size), 2 * size * tokens * (inner + width)
    stream = size if args.lora else 4  # bytes of a number of what goes from layer to layer
    kept = known(student, "num_hidden_layers") * (stream * tokens * width if again else layer)
    # The gradient of a tied head waits for that of the embeddings, and a third is made of the two.
    tied, table = bool(known(student, "tie_word_embeddings")), 4 * width * known(student, "vocab_size")
    table *= not args.lora
    peak = max(
        losing(args, student, teacher, tokens, size), again * layer + last + tied * table,
        (1 + 2 * tied) * table - kept, forward(teacher, tokens, size) - kept)
    kept += 3 * tokens**2 * masked(student, tokens)  # of bool, and in bf16 in a layer
    return {"kept of all layers": kept, "the loss, or a layer's backward": peak}


def playing(players, rows, fed, context, size):
    """Parts of a turn of so many episodes, each fed so many tokens: the caches of all who play, at their
    largest, and its forward, with the masks of layers with a window and of others."""
    held = [cache(config, rows * context, size) + states(config, rows, size) for config in players]
    forwards = [  # in which a model has copies of its states
        forward(config, rows * fed, size) + masked(config, fed) * rows * fed**2 * (2 * size + 2)
        + states(config, rows, size)
        for config in players]
    return {"keys, values and states": sum(held), "a turn's forward": max(forwards, default=0)}


# ---- the plan

def plan(args, student, teacher, gpus):
    """{phase: {part: bytes}} on the fullest of so many GPUs. student, teacher: their configurations.

    Raises UserError for an architecture of which the sizes cannot be told.
    """
    try:
        return phases(args, language(student), language(teacher), gpus)
    except Exception as error:  # whatever a model's or a fork's code does without data: it may run with data
        reason = str(error).strip().split("\n")[0]
        kinds = f"{student.model_type} and {teacher.model_type}"
        raise UserError(f"what {kinds} will hold cannot be counted ({reason})") from error


def phases(args, student, teacher, gpus):
    """See `plan`."""
    size = 2 if args.precision == "bf16" else 4
    context = min(args.max_context, *(
        known(each, "max_position_embeddings", default=math.inf) for each in (student, teacher)))
    tokens, found = max(args.batch_tokens, context), weights(student)
    number, learned, base = sum(found.values()), list(found.values()), {}
    if args.lora:
        learned = factors(student, args.lora)
        base = {f"student, {args.precision}": size * number, "factors, fp32": 4 * sum(learned)}
    held = {
        **(base or {"student, fp32": 4 * number}),
        f"teacher, {args.precision}": size * sum(weights(teacher).values()),
        "AdamW's moments, fp32": 8 * most_moments(learned, gpus)}
    learns = {**held, "gradients, fp32": 4 * sum(learned)}
    copied = size == 2 and not args.lora  # else the student itself plays
    plays = {**held, "playing copy": size * number * copied}

    # What an expert has said, or the other model, is fed at once; of a window all is fed anew.
    players = {"sft": [], "guided": [student, teacher]}.get(args.method, [student])
    opening = min(OPENING if args.history == "full" else context, context)
    fed = context if args.method in ("b2f", "guided") else opening
    plan = {"playing": {**plays, **playing(players, args.episodes // gpus, fed, context, size)}}
    if args.eval_every:
        games = at_once(args, gpus, number)
        turns = [playing([who], games, opening, context, size) for who in (student, teacher)]
        plan["evaluating"] = {**plays, **max(turns, key=total)}
    plan["learning"] = {**learns, **learning(args, student, teacher, found, tokens, size)}
    plan["updating"] = learns
    return plan


def total(parts):
    return sum(parts.values())


# ---- what is said of it

def helpful(phase, args, gpus):
    """What makes a phase smaller, as flags."""
    rows = phase in ("playing", "evaluating", "learning")
    wanted = {
        f"--batch-tokens {args.max_context}": phase == "learning" and args.batch_tokens > args.max_context,
        f"--episodes {gpus}": phase == "playing" and args.episodes > gpus,
        "fewer --eval-games": phase == "evaluating",
        "a smaller --max-context": rows,
        "--history window:N with it": rows and args.history == "full",
        "--lora 32": not args.lora,
        "more GPUs": True}
    return ", ".join(flag for flag, helps in wanted.items() if helps)


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
