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
import os
import shutil

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from harness.cli import UserError

logging.set_verbosity_error()
logging.disable_progress_bar()

ROOT = os.path.dirname(os.path.abspath(__file__))
SMALL = 10_000_000  # parameters
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # nats, see `distance`
# Shipped in assets/WORLD/, made by tiny/make.py.
TINY = {"tiny-teacher": "teacher", "tiny-student": "student", "tiny-narrow": "teacher-narrow"}


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


def device():
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def play_dtype():
    """What a model that is only read is held in: bf16 on a GPU, fp32 on the CPU."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def load_tokenizer(name):
    """The tokenizer of a Hugging Face name or folder; raises UserError without one, or its chat template."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(name, error) from error
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {name!r} has no chat template; use an instruction-tuned checkpoint")
    return tokenizer


def style(tokenizer):
    """The style of its prompts: the tiny tokenizers say "bare" (the response is the action), all others are
    "react"."""
    return tokenizer.init_kwargs.get("prompt_style", "react")


def load_model(name, device="cpu", dtype=torch.float32):
    """The model of a Hugging Face name or folder; weights in `dtype`, attention by torch's
    scaled_dot_product_attention.

    Raises UserError where there is no such checkpoint, or an architecture that is not supported.
    """
    if os.path.exists(os.path.join(name, "adapter_config.json")):
        raise UserError(f"{name!r} holds an adapter, not a model: merge it into its base model and save that")
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, attn_implementation="sdpa", output_loading_info=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise cannot_load(name, error) from error
    check_weights(name, found)
    check_supported(name, model.config)
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
    logits.

    What stands behind the head (a bias, a scale, a cap) or inside a layer shows here, in one forward of two
    rows.
    """
    kind = model.config.model_type
    ids = torch.arange(34, device=model.device).view(2, 17)  # (B, T)
    ids %= model.config.get_text_config().vocab_size
    try:
        own = model(input_ids=ids).logits  # (B, T, V)
        whole = logits(hidden_states(model, ids).flatten(0, 1), head(model))  # (B · T, V)
        rows = [ids[0].tolist(), ids[1, :9].tolist()]
        cached = extend(model, RaggedCache(model, rows), rows)  # (B, V)
    except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{name!r} ({kind}) does not play over the ragged cache ({reason})") from error
    ends = torch.stack([own[0, -1], own[1, 8]])  # (B, V)
    apart = max(distance(own.flatten(0, 1), whole), distance(ends, cached))
    if not apart <= TOLERANCE[model.dtype]:
        raise UserError(
            f"{name!r} ({kind}) has logits that are not its head's products: ours are {apart:.2g} nats off "
            "its own, so that other distributions would be played and trained")


def check_supported(name, config):
    """Raises UserError for what the cache or the head would silently get wrong."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        windowed = getattr(config, "sliding_window", None)
    else:
        windowed = set(layer_types) - {"full_attention"}
    if windowed or not hasattr(config, "num_hidden_layers"):
        raise UserError(
            f"{name!r} has layers other than full attention, which the ragged cache does not support")
    if getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_scaling", 1) != 1:
        raise UserError(f"{name!r} transforms its logits after the head, which the loss does not support")


def without_noise(model):
    """Set every dropout to 0: distributions are compared, and noise in them would be noise in the loss."""
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), (int, float)):
            module.attention_dropout = 0.0
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


def same_vocabulary(student, teacher):
    """Raises UserError unless the two tokenizers give every token the same id: distributions over ids are
    compared."""
    if student.get_vocab() != teacher.get_vocab():
        raise UserError(
            f"teacher and student need the same vocabulary, but {teacher.name_or_path!r} has {len(teacher)} "
            f"tokens and {student.name_or_path!r} {len(student)}, with different ids")


def save(model, tokenizer, folder):
    """Write an ordinary Hugging Face checkpoint (safetensors), beside and then moved into place."""
    beside, old = f"{folder}.tmp-{os.getpid()}", f"{folder}.old-{os.getpid()}"
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    if os.path.exists(folder):
        os.rename(folder, old)
    os.rename(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


# ---- the copy that plays

def playing_copy(model):
    """The copy that plays: on a GPU its parameters are bf16, on the CPU it is the model itself."""
    if play_dtype() == torch.float32:
        return model
    return rounded(copy.deepcopy(model), play_dtype())


def rounded(model, dtype):
    """Its parameters in `dtype`, its buffers as they are.

    `.to(bfloat16)` would also round the rotary frequencies, and position 1,000 would be off by a radian.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def refresh(actor, student):
    """Copy the master weights into the copy that plays; nothing to do where they are one module."""
    if actor is not student:
        for copied, master in zip(actor.parameters(), student.parameters(), strict=True):
            copied.data.copy_(master.data)


# ---- the head, and whole rows

def head(model):
    """The output projection's weight: (V, D)."""
    return model.get_output_embeddings().weight


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
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, D)


# ---- play over a ragged cache

class RaggedCache:
    """Keys and values of B rows, each with a length of its own. `update` is what the model calls in every
    layer."""

    def __init__(self, model, owners):
        """model: the model that will fill it; owners: whom each of the B rows belongs to (`select` finds them
        again)."""
        self.owners, self.length = list(owners), [0] * len(owners)
        # Per layer (2, B, heads, S, head width), made at the first update.
        self.layers = [None] * model.config.num_hidden_layers
        self.positions, self.span = None, 0

    def select(self, owners):
        """Keep only the rows of these owners, in this order: what a finished episode held is freed."""
        where = {id(owner): i for i, owner in enumerate(self.owners)}
        index = [where[id(owner)] for owner in owners]
        if index == list(range(len(self.owners))):
            return
        self.owners, self.length = list(owners), [self.length[i] for i in index]
        for layer, kv in enumerate(self.layers):
            if kv is not None:
                self.layers[layer] = kv[:, torch.tensor(index, device=kv.device)]

    def place(self, width, device):
        """Where the next `width` tokens of every row go; returns (position_ids (B, T), mask (B, 1, T, S))."""
        start = torch.tensor(self.length, device=device)
        self.positions = start[:, None] + torch.arange(width, device=device)  # (B, T)
        self.span = max(self.length) + width
        keys = torch.arange(self.span, device=device)
        mask = keys <= self.positions[:, :, None]  # (B, T, S)
        return self.positions, mask[:, None]

    def update(self, keys, values, layer, *_, **__):
        """Write new keys and values (B, heads, T, head width) of one layer; returns all of it up to the
        longest row."""
        kv = self.layers[layer]
        if kv is None or kv.shape[3] < self.span:
            kv = self.layers[layer] = self.grown(kv, keys)
        rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
        kv[0][rows, :, self.positions] = keys.transpose(1, 2).to(kv.dtype)
        kv[1][rows, :, self.positions] = values.transpose(1, 2).to(kv.dtype)
        return kv[0][:, :, : self.span], kv[1][:, :, : self.span]

    def grown(self, kv, like):
        """A larger buffer with the old content: capacity doubles, so that a long episode copies each entry
        about once.

        Zeros, not empty: a masked key has probability 0, but 0 · NaN would still be NaN.
        """
        capacity = max(64, 2 * self.span)
        new = like.new_zeros(2, like.shape[0], like.shape[1], capacity, like.shape[3])
        if kv is not None:
            new[:, :, :, : kv.shape[3]] = kv
        return new


def extend(model, cache, new, grow=None):
    """Feed each row its new tokens and return the logits behind the last of them: list of B lists of ids ->
    (B, V) in fp32.

    Every row needs at least one new token. grow: rows whose tokens count from now on (default all); a row
    that is only carried along writes behind its end, where the next call overwrites it.
    """
    device, width = head(model).device, max(map(len, new))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in new], device=device)  # (B, T)
    positions, mask = cache.place(width, device)
    out = model.base_model(
        input_ids=ids, position_ids=positions, attention_mask=mask, cache=cache, use_cache=True)
    last = torch.tensor([len(row) - 1 for row in new], device=device)
    hidden = out.last_hidden_state[torch.arange(len(new), device=device), last]  # (B, D)
    for i, row in enumerate(new):
        if grow is None or grow[i]:
            cache.length[i] += len(row)
    return logits(hidden, head(model))  # (B, V)
