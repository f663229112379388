"""The only file that touches the Hugging Face model: load it, run it over whole rows (training) or over a
ragged cache (play).

The model itself is used unmodified. Rows of a batch differ in length, so the cache keeps a write position per
row: new tokens are written right-padded behind each row's end, what was padding is overwritten by the next
tokens, and a query sees the keys whose position is at most its own. That is exact: no left padding, no
attention to pads, positions as in an uncached forward.

Left out on purpose: quantisation, sharding of one model over several GPUs, sliding-window attention.
B = row, T = new token, S = cached position, V = vocabulary, D = width of the hidden states.
"""

import copy
import hashlib
import json
import math
import os
import shutil
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from harness.cli import UserError
from harness.folder import write_json

logging.set_verbosity_error()
logging.disable_progress_bar()

ROOT = os.path.dirname(os.path.abspath(__file__))
SMALL = 10_000_000  # parameters
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # nats, see `distance`
PRECISIONS = ("auto", "fp32", "bf16")
BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # what torch calls a processor's instructions for it
ALIGNED = 16  # a mask is as wide as a multiple of this: attention's kernels would make it so in every layer
BY_LENGTH = ("dynamic", "longrope")  # rotary frequencies that change with the length of the batch
# Shipped in assets/WORLD/, made by tiny/make.py.
TINY = {
    "tiny-teacher": "teacher", "tiny-student": "student", "tiny-narrow": "teacher-narrow",
    "full-teacher": "full-teacher", "full-student": "full-student", "full-narrow": "full-teacher-narrow"}
DEFAULTS = "defaults.json"  # beside a checkpoint: {knob: value}, how it wants to be played and trained


# ---- loading and saving

def resolve(name, env):
    """The folder behind the name of an embedded tiny checkpoint; any other name as it is.

    Raises UserError where none is shipped for this environment.
    """
    if name not in TINY:
        return name
    folder = os.path.join(ROOT, "assets", env, TINY[name])
    if not os.path.isdir(folder):
        raise UserError(
            f"no {name} is shipped for {env}: name a checkpoint with --student and --teacher, or --model")
    return folder


def defaults(name):
    """{knob: value} that a checkpoint's folder brings for tcod.py and eval.py; {} for all others.

    Raises UserError for a file that holds no such thing.
    """
    path = os.path.join(name, DEFAULTS)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            own = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    if not isinstance(own, dict):
        raise UserError(f"{path} holds no table of knobs and their values")
    return own


def device():
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def has_bf16():
    """Whether this process's device computes in bf16 itself: GPUs from Ampere on, some processors."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(torch.cpu.get_capabilities().get(name) for name in BF16)


def precision(asked):
    """"fp32" or "bf16", as asked; for "auto" bf16 on a GPU that has it, else fp32: on a processor runs stay
    exact, unless somebody asks for speed."""
    if asked != "auto":
        return asked
    return "bf16" if torch.cuda.is_available() and has_bf16() else "fp32"


def play_dtype(asked="auto"):
    """What a model that is only read is held in, and what the forward and backward of training run in. asked:
    see `precision`."""
    return torch.bfloat16 if precision(asked) == "bf16" else torch.float32


def load_tokenizer(name):
    """The tokenizer of a Hugging Face name or folder; raises UserError without one, or its chat template."""
    check_name(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(name, error) from error
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {name!r} has no chat template; use an instruction-tuned checkpoint")
    return tokenizer


def check_name(name):
    """Raises UserError for a path that leads nowhere, and for a run's folder, naming the model inside it."""
    if os.path.exists(os.path.join(name, "args.json")):
        student = os.path.join(name, "student")
        what = f"its model is {student}" if os.path.isdir(student) else "it has no model before its last step"
        raise UserError(f"{name!r} is a run's folder: {what}")
    written_as_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if written_as_path and not os.path.isdir(name):
        raise UserError(f"there is no folder {name!r} to load a model from")


def longest(config):
    """How many positions a model of this configuration has; infinity where it names no number."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf


def positions(name):
    """`longest` of a Hugging Face name or folder; infinity where it has no configuration, of which who loads
    it will speak."""
    try:
        return longest(AutoConfig.from_pretrained(name))
    except (OSError, ValueError, KeyError):
        return math.inf


def style(tokenizer):
    """The prompt that it wants (prompts.SHIPPED): the tiny tokenizers say "bare", all others get "react"."""
    return "bare" if tokenizer.init_kwargs.get("prompt_style") == "bare" else "react"


def configuration(name):
    """The configuration of a Hugging Face name or folder, of which no more is needed than config.json."""
    check_name(name)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(name, error) from error


def load_model(name, device="cpu", dtype=torch.float32):
    """The model of a Hugging Face name or folder; weights in `dtype`, attention by torch's
    scaled_dot_product_attention.

    Raises UserError where there is no such checkpoint, or an architecture that is not supported.
    """
    if os.path.exists(os.path.join(name, "adapter_config.json")):
        raise UserError(f"{name!r} holds an adapter, not a model: merge it into its base model and save that")
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, attn_implementation="sdpa", output_loading_info=True,
            ignore_mismatched_sizes=True)  # they are told by name below
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise cannot_load(name, error) from error
    check_weights(name, found)
    check_supported(name, model, dtype)
    if model.num_parameters() < SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # at this size more threads cost more than they save
    without_noise(model)
    model = model.to(device).eval()
    check_logits(name, model)
    return model


def load(name, device="cpu", dtype=torch.float32):
    """(model, tokenizer) of a Hugging Face name or folder."""
    tokenizer = load_tokenizer(name)
    return load_model(name, device, dtype), tokenizer


def cannot_load(name, error):
    """The UserError for a checkpoint that transformers does not load."""
    reason = str(error).strip().split("\n")[0]
    return UserError(f"cannot load a causal language model from {name!r} ({reason})")


def check_weights(name, found):
    """Raises UserError where the file's weights are not those of the model: transformers draws what is
    missing at random.

    found: the loading info of `from_pretrained`.
    """
    for what, keys in (("lacks", "missing_keys"), ("has besides its own", "unexpected_keys"),
                       ("has in other shapes", "mismatched_keys")):
        names = sorted(str(key) for key in found[keys])
        if names:
            raise UserError(
                f"{name!r} is not a whole checkpoint of its model: it {what} {len(names)} weights, as "
                f"{names[0]} (a compiled or wrapped model wants its weights' names back)")


def distance(own, ours):
    """Mean over tokens of Σ_v p |log p − log q|, p the model's own distribution: logits (N, V) each -> nats.

    Weighted by p, since bf16 rounds a logit of 32 to eighths: the largest difference over a vocabulary says
    more of that than of the model.
    """
    logp, logq = own.float().log_softmax(-1), ours.float().log_softmax(-1)  # (N, V)
    apart = logp.exp() * (logp - logq).abs()
    return torch.where(logp == -torch.inf, 0.0, apart).sum(-1).mean().item()


@torch.no_grad()
def check_logits(name, model):
    """Raises UserError unless both of our paths, whole rows and the ragged cache, give the model's own
    logits, and training mode the same.

    What stands behind the head (a scale, a cap) or inside a layer shows here, on two rows of different
    lengths, fed to the cache in three parts.
    """
    kind = model.config.model_type
    ids = torch.arange(34, device=model.device).view(2, 17)  # (B, T)
    ids %= model.config.get_text_config().vocab_size
    try:
        own = model(input_ids=ids).logits.flatten(0, 1)  # (B · T, V)
        whole = logits(hidden_states(model, ids).flatten(0, 1), head(model))  # (B · T, V)
        first, second = ids.tolist()
        cache = RaggedCache(model, [first, second])
        extend(model, cache, [first[:5], second[:8]])
        step(model, cache, ids[[0, 1], [5, 8]])
        cached = extend(model, cache, [first[6:], second[9:10]])  # (B, V)
        learning = logits(hidden_states(model.train(), ids).flatten(0, 1), head(model))  # (B · T, V)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{name!r} ({kind}) does not play over the ragged cache ({reason})") from error
    model.eval()
    ends = own[[16, 17 + 9]]  # (B, V)
    apart = max(distance(own, whole), distance(ends, cached))
    if not apart <= TOLERANCE[model.dtype]:
        raise UserError(
            f"{name!r} ({kind}) has logits that are not its head's products: ours are {apart:.2g} nats off "
            "its own, so that other distributions would be played and trained")
    noise = distance(whole, learning)
    if not noise <= TOLERANCE[model.dtype]:
        raise UserError(
            f"{name!r} ({kind}) is noisy in training mode, by {noise:.2g} nats, in a way that this version "
            "does not know how to turn off: set its dropout or jitter to 0 in its config.json")


def check_supported(name, model, dtype):
    """Raises UserError for what the cache or the head would silently get wrong and a forward of a few tokens
    does not show."""
    config = model.config
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        windowed = getattr(config, "sliding_window", None)
    else:
        windowed = set(layer_types) - {"full_attention"}
    if windowed or not hasattr(config, "num_hidden_layers"):
        raise UserError(
            f"{name!r} has layers other than full attention, which the ragged cache does not support")
    if getattr(config, "final_logit_softcapping", None):
        raise UserError(f"{name!r} caps its logits behind the head, which the loss does not support")
    for module in model.modules():
        if any(kind in str(getattr(module, "rope_type", "")) for kind in BY_LENGTH):
            raise UserError(
                f"{name!r} has rotary frequencies that depend on the longest row of a batch (rope_type "
                f"{module.rope_type}): a row would be judged otherwise beside other rows")
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{name!r} is quantised, which is not supported: name the checkpoint that it was made from")
    attention = config._attn_implementation
    # Some architectures keep a few weights of a bf16 model in fp32, which does no harm.
    other = {p.dtype for p in model.parameters()} - {dtype, torch.float32}
    if attention != "sdpa" or other:
        raise UserError(
            f"{name!r} does not load as it is asked to: its attention is {attention} instead of sdpa, or "
            f"some of its weights are {', '.join(map(str, other))} instead of {dtype}")


def without_noise(model):
    """Set every dropout and jitter to 0: distributions are compared, and noise in them would be noise in the
    loss.

    They are modules, or numbers that a layer keeps under some name (attention_dropout, attn_pdrop,
    router_jitter_noise, layerdrop).
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def fingerprint(model):
    """12 hex digits that stand for a model's weights: of each its name, its shape and some of its values, as
    bf16."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)].to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(weight.shape)} {some.tolist()}".encode())
    return digest.hexdigest()[:12]


def end_tokens(model):
    """The ids that end a response by the checkpoint's generation_config, which may name more than the
    tokenizer does."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


class Vocabulary(NamedTuple):
    """The ids that are sampled and compared: those below `size` but for the `holes`."""
    size: int
    holes: list

    def on(self, device):
        """The same with its holes on the device, so that they are not sent there every time."""
        return self._replace(holes=torch.tensor(self.holes, dtype=torch.long, device=device))

    def among(self, logits):
        """logits (..., V') over the ids of a head -> (..., V) over these; −inf where no token is."""
        logits = logits[..., : self.size]
        if len(self.holes):
            logits.index_fill_(-1, torch.as_tensor(self.holes, device=logits.device), -torch.inf)
        return logits


def vocabulary(tokenizer, *models):
    """The ids that stand for a token of the tokenizer and have a row in every model's head.

    Heads are padded beyond the tokenizer, each to its own size; tokenizers skip ids, or have tokens that were
    added and never trained. Raises UserError where text can become an id that a model has no row for.
    """
    size = min([head(model).shape[0] for model in models], default=max(tokenizer.get_vocab().values()) + 1)
    known = set(tokenizer.get_vocab().values())
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = sorted(i for i in known - control if i >= size)
    if beyond:
        raise UserError(
            f"{tokenizer.name_or_path!r} has {len(beyond)} tokens for text that the model's head lacks, as "
            f"{tokenizer.convert_ids_to_tokens(beyond[0])!r}: the tokenizer is another model's")
    size = min(size, max(known) + 1)
    return Vocabulary(size, sorted(set(range(size)) - known))


def same_vocabulary(student, teacher):
    """Raises UserError unless the two tokenizers give every token the same id: distributions over ids are
    compared."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    other = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
    raise UserError(
        f"teacher and student need the same vocabulary, but {teacher.name_or_path!r} has {len(theirs)} "
        f"tokens and {student.name_or_path!r} {len(ours)}, and {len(other)} have other ids, as {other[0]!r}")


def save(model, tokenizer, folder, own=None):
    """Write an ordinary Hugging Face checkpoint (safetensors), beside and then moved into place; raises
    UserError where there is no room or no way to. own: its `defaults`, if it has any."""
    beside, old = f"{folder}.tmp-{os.getpid()}", f"{folder}.old-{os.getpid()}"
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        if own:
            write_json(os.path.join(beside, DEFAULTS), own)
        if os.path.exists(folder):
            os.rename(folder, old)
        os.rename(beside, folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be written ({error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# ---- the copy that plays

def playing_copy(model, asked="auto"):
    """The copy that plays: its parameters are bf16; in fp32 it is the model itself. asked: see
    `precision`."""
    dtype = play_dtype(asked)
    return model if dtype == torch.float32 else rounded(copy.deepcopy(model), dtype)


def rounded(model, dtype):
    """Its parameters in `dtype`, its buffers as they are.

    `.to(bfloat16)` would also round the rotary frequencies, and position 1,000 would be off by a radian.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def release(actor, student):
    """Give up the memory of the copy that plays, until `refresh`: the student learns meanwhile."""
    if actor is not student:
        for copied in actor.parameters():
            copied.data = copied.data.new_empty(0)


def refresh(actor, student):
    """Copy the master weights into the copy that plays; nothing to do where they are one module."""
    if actor is not student:
        for copied, master in zip(actor.parameters(), student.parameters(), strict=True):
            copied.data = master.data.to(copied.dtype, copy=True)


# ---- the head, and whole rows

def head(model):
    """The output projection (V, D); its bias, where it has one, is a last column (see `ready`)."""
    out = model.get_output_embeddings()
    if getattr(out, "bias", None) is None:
        return out.weight
    return torch.cat([out.weight, out.bias[:, None]], 1)  # (V, D)


def ready(model, hidden):
    """Hidden states (..., D) such that their products with the rows of `head` are the model's own logits:
    scaled as the model scales its logits, and with a one for the head's bias."""
    scale = getattr(model.config, "logit_scale", None) or 1.0  # Cohere's
    scale /= getattr(model.config, "logits_scaling", None) or 1.0  # Granite's
    if scale != 1.0:
        hidden = hidden * scale
    if getattr(model.get_output_embeddings(), "bias", None) is None:
        return hidden
    return torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)  # (..., D)


def logits(hidden, weight):
    """hidden (N, D), weight (V, D) -> (N, V) in fp32.

    The products of bf16 weights are summed and kept in fp32: rounded to bf16, logits of 16 to 32 would lie an
    eighth apart, which is more than the divergences that are trained on.
    """
    if weight.is_cuda and weight.dtype == torch.bfloat16:
        return torch.mm(hidden.to(weight.dtype), weight.T, out_dtype=torch.float32)
    return hidden.float() @ weight.float().T


def hidden_states(model, ids):
    """Uncached forward over whole rows: ids (B, T), right-padded -> hidden states (B, T, D).

    Right padding needs no mask: under causal attention a real token never sees a pad behind it.
    """
    return ready(model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state)  # (B, T, D)


# ---- play over a ragged cache

class RaggedCache:
    """Keys and values of B rows, each with a length of its own. `update` is what the model calls in every
    layer.

    A row's length may be set back at any time: what lies behind it is not seen, and is overwritten.
    """

    def __init__(self, model, owners, most=math.inf):
        """model: the model that will fill it, whose weights stay as they are meanwhile; owners: whom each of
        the B rows belongs to (`select` finds them again); most: tokens that no row gets beyond."""
        self.owners, self.length, self.most = list(owners), [0] * len(owners), most
        self.device, self.dtype, self.head = model.device, model.dtype, head(model)
        # Per layer [keys, values], each (B, heads, S, width of its own), made at the first update.
        self.layers = [None] * model.config.num_hidden_layers
        # Of the tokens that are fed: where the first goes (B,), and the index of all of them.
        self.end, self.rows, self.positions = None, None, None
        # How many positions are looked at, and how many there is room for.
        self.span, self.capacity = 0, 0

    def select(self, owners):
        """Keep only the rows of these owners, in this order: what a finished episode held is freed, tensor by
        tensor."""
        where = {id(owner): i for i, owner in enumerate(self.owners)}
        index = [where[id(owner)] for owner in owners]
        if index == list(range(len(self.owners))):
            return
        self.owners, self.length = list(owners), [self.length[i] for i in index]
        index = torch.tensor(index, device=self.device)
        for pair in filter(None, self.layers):
            for i in range(len(pair)):
                pair[i] = pair[i][index]

    def place(self, width):
        """Where the next `width` tokens of every row go, from `end` on; returns (position_ids (B, T), what is
        added to the attention's scores (B, 1, T, S)).

        Where all rows are empty it is None: causal attention, which needs no mask and has faster kernels.
        """
        self.rows = torch.arange(len(self.length), device=self.device)[:, None]  # (B, 1)
        self.positions = self.end[:, None] + torch.arange(width, device=self.device)  # (B, T)
        self.span = max(self.length) + width
        self.make_room()
        if not any(self.length):
            return self.positions, None
        self.span = min(math.ceil(self.span / ALIGNED) * ALIGNED, self.capacity)
        later = torch.arange(self.span, device=self.device) > self.positions[:, :, None]  # (B, T, S)
        mask = torch.zeros(later.shape, dtype=self.dtype, device=self.device)
        return self.positions, mask.masked_fill_(later, -math.inf)[:, None]

    def make_room(self):
        """Let the capacity double up to the context, so that a long episode copies each entry about once."""
        self.capacity = self.layers[0][0].shape[2] if self.layers[0] else 0
        if self.span > self.capacity:
            self.capacity = max(self.span, min(max(2 * self.span, 64), self.most))

    def get_seq_length(self, *_):
        """For models that ask before they are told the positions; the mask says what a row sees."""
        return self.span

    def get_query_offset(self, *_):
        """Asked for where there is no mask: the rows are empty."""
        return 0

    def get_mask_sizes(self, width, *_):
        """(keys, the first one's position), asked for where there is no mask."""
        return width, 0

    def update(self, keys, values, layer, *_, **__):
        """Write new keys and values (B, heads, T, head width) of one layer; returns all of it up to the
        longest row."""
        new, pair = (keys, values), self.layers[layer]
        if pair is None or pair[0].shape[2] < self.capacity:
            pair = self.layers[layer] = [self.grown(*both) for both in zip(pair or (None, None), new)]
        for kept, added in zip(pair, new):
            kept[self.rows, :, self.positions] = added.transpose(1, 2).to(kept.dtype)
        return pair[0][:, :, : self.span], pair[1][:, :, : self.span]

    def grown(self, kept, like):
        """A larger buffer with the old content.

        Zeros, not empty: a masked key has probability 0, but 0 · NaN would still be NaN.
        """
        new = like.new_zeros(*like.shape[:2], self.capacity, like.shape[3])
        if kept is not None:
            new[:, :, : kept.shape[2]] = kept
        return new


def feed(model, cache, ids, number):
    """Write ids (B, T) from each row's end on, of which `number` (B,) are its own; returns the logits behind
    the last of these (B, V) in fp32."""
    positions, mask = cache.place(ids.shape[1])
    out = model.base_model(
        input_ids=ids, position_ids=positions, attention_mask=mask, cache=cache, use_cache=True)
    hidden = ready(model, out.last_hidden_state[cache.rows[:, 0], number - 1])  # (B, D)
    cache.end = cache.end + number
    return logits(hidden, cache.head)


def extend(model, cache, new):
    """Feed each row its new tokens and return the logits behind the last of them: list of B lists of ids ->
    (B, V) in fp32.

    Every row needs at least one new token.
    """
    device, width = model.device, max(map(len, new))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in new], device=device)  # (B, T)
    cache.end, number = torch.tensor([cache.length, [len(row) for row in new]], device=device)  # (B,), (B,)
    found = feed(model, cache, ids, number)
    cache.length = [seen + len(row) for seen, row in zip(cache.length, new)]
    return found


def step(model, cache, token):
    """Feed one more token of every row, behind an `extend`, and return the logits behind it: (B,) -> (B, V)
    in fp32. Nothing is sent to the device, nothing is read from it."""
    found = feed(model, cache, token[:, None], torch.ones_like(token))
    cache.length = [seen + 1 for seen in cache.length]
    return found
