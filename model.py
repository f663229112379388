"""The only file that runs the Hugging Face model: over whole rows (training) or over a ragged cache (play).

The model itself is used unmodified. Rows of a batch differ in length, so the cache keeps a write position per
row: new tokens are written right-padded behind each row's end, what was padding is overwritten by the next
tokens, and a query sees the keys whose position is at most its own, in a layer with a window none further
back. That is exact: no left padding, no attention to pads, positions as in an uncached forward. What a layer
without keys carries from token to token (States) no padding ever reaches.

Left out on purpose: quantisation, sharding of one model over several GPUs, a cache that drops what is behind
a window.
Loading, and every reason to refuse a checkpoint, is load.py. Read before this: rollout.py, which calls it.

B = row, T = new token, S = cached position, V = vocabulary, D = width of the hidden states.
"""

import copy
import math
from typing import NamedTuple

import torch
from transformers.cache_utils import get_layer_types_and_kwargs

STATEFUL = {"linear_attention", "conv", "hybrid"}  # kinds of layers that carry a state
ALIGNED = 16  # a mask is as wide as a multiple of this: attention's kernels would make it so in every layer
# On a GPU a step of decoding is a graph (rollout.Drawing) of so many rows and keys. So one more token looks
# at a multiple of this many keys, and rows leave once no more than this share of them is left.
STEADY, LEFT = {"cpu": ALIGNED, "cuda": 1024}, {"cpu": 1.0, "cuda": 0.5}


# ---- the head, and whole rows

class Head(NamedTuple):
    """What makes logits of hidden states."""
    weight: torch.Tensor    # (V, D)
    cap: float = None       # Gemma's: logits are cap · tanh(products / cap)

    def slope(self, logits):
        """∂ logits / ∂ products where the logits (…, V) are these; 0 where no token is."""
        return 1.0 if self.cap is None else (1 - (logits / self.cap) ** 2).clamp_(min=0)


def head(model):
    """The output projection; its bias, where it has one, is a last column of the weight (see `ready`)."""
    out, cap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)
    if getattr(out, "bias", None) is None:
        return Head(out.weight, cap)
    return Head(torch.cat([out.weight, out.bias[:, None]], 1), cap)  # (V, D)


def ready(model, hidden):
    """Hidden states (..., D) such that `logits` of them and `head` are the model's own: scaled as the model
    scales its logits, and with a one for the head's bias."""
    scale = getattr(model.config, "logit_scale", None) or 1.0  # Cohere's
    scale /= getattr(model.config, "logits_scaling", None) or 1.0  # Granite's
    if scale != 1.0:
        hidden = hidden * scale
    if getattr(model.get_output_embeddings(), "bias", None) is None:
        return hidden
    return torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)  # (..., D)


def logits(hidden, head):
    """hidden (N, D), a Head -> (N, V) in fp32.

    The products of bf16 weights are summed and kept in fp32: rounded to bf16, logits of 16 to 32 would lie an
    eighth apart, which is more than the divergences that are trained on.
    """
    weight, cap = head
    if weight.is_cuda and weight.dtype == torch.bfloat16:
        products = torch.mm(hidden.to(weight.dtype), weight.T, out_dtype=torch.float32)  # (N, V)
    else:
        products = hidden.float() @ weight.float().T  # (N, V)
    return products if cap is None else cap * torch.tanh(products / cap)


def hidden_states(model, ids):
    """Uncached forward over whole rows: ids (B, T), right-padded -> hidden states (B, T, D).

    Right padding needs no mask: under causal attention a real token never sees a pad behind it.
    """
    return ready(model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state)  # (B, T, D)


def states_at(model, ids, where):
    """The hidden states (N, D) at the positions `where` (N,) of the flattened rows ids (B, T), and the
    Head."""
    return hidden_states(model, ids).flatten(0, 1)[where], head(model)


class Vocabulary(NamedTuple):
    """The ids that are sampled and compared: those below `size` but for the `holes`."""
    size: int
    holes: list

    def on(self, device):
        """The same with its holes on the device, so that they are not sent there every time."""
        return self._replace(holes=torch.tensor(self.holes, dtype=torch.long, device=device))

    def logits(self, hidden, head):
        """hidden (N, D), a Head -> logits over these ids (N, V) in fp32."""
        return self.among(logits(hidden, head))

    def among(self, logits):
        """logits (..., V') over the ids of a head -> (..., V) over these; −inf where no token is."""
        logits = logits[..., : self.size]
        if len(self.holes):
            logits.index_fill_(-1, torch.as_tensor(self.holes, device=logits.device), -torch.inf)
        return logits


# ---- play over a ragged cache

class States:
    """What layers without keys carry from token to token: a convolution's last inputs, a recurrence's state.
    The model calls what is here by the names that transformers gives it.

    A state cannot be set back, and padding would change it: of the tokens that are fed at once a row takes
    all or none. Models change a state in place or hand back another one. So each is lent a copy, and behind
    the forward the rows that took the tokens keep what became of it (`settle`), the others what they had.
    """

    def __init__(self):
        self.kept, self.lent = {}, {}  # {(what, layer, number): (B, …)}; zeros: no token seen

    def settle(self, takes):
        """takes (B,) of bool: the rows that took the tokens just fed."""
        for which, new in self.lent.items():
            rows = takes.view(-1, *[1] * (new.ndim - 1))  # (B, 1, …)
            if which not in self.kept:
                self.kept[which] = torch.zeros_like(new)
            self.kept[which].copy_(torch.where(rows, new, self.kept[which]))
        self.lent.clear()

    def get_state(self, *which):
        if which not in self.kept:
            return None
        self.lent[which] = self.kept[which].clone()
        return self.lent[which]

    def get_conv_state(self, layer_idx, state_idx=0):
        return self.get_state("conv", layer_idx, state_idx)

    def get_recurrent_state(self, layer_idx, state_idx=0):
        return self.get_state("recurrent", layer_idx, state_idx)

    def update_conv_state(self, new, layer_idx, state_idx=0, conv_kernel_size=None, **_):
        """The inputs (B, D, T) of a convolution, behind those that it remembers."""
        which = "conv", layer_idx, state_idx
        before = self.kept.get(which)
        if before is None:
            before = new.new_zeros(*new.shape[:2], conv_kernel_size)
        seen = torch.cat([before, new], -1)  # (B, D, K + T)
        self.lent[which] = seen[..., -before.shape[-1]:]
        return seen

    def update_recurrent_state(self, new, layer_idx, state_idx=0, **_):
        self.lent["recurrent", layer_idx, state_idx] = new
        return new

    def is_recording_past(self, *_):
        return False


class RaggedCache(States):
    """Keys and values of B rows, each with a length of its own, and their states. `update` is what the model
    calls in every layer with keys."""

    def __init__(self, model, owners, most=math.inf):
        """model: the model that will fill it, whose weights stay as they are meanwhile; owners: whom each of
        the B rows belongs to (`select` finds them again); most: tokens that no row gets beyond."""
        super().__init__()
        config = model.config
        kinds, _ = get_layer_types_and_kwargs(config)
        self.stateful = not STATEFUL.isdisjoint(kinds)
        # How far back layers with a window see, and whether the model tells them from others by name.
        self.window = config.sliding_window if "sliding_attention" in kinds else math.inf
        self.by_kind = getattr(config, "layer_types", None) is not None
        self.eager = config._attn_implementation == "eager"  # which does not know causality by itself
        self.owners, self.length, self.most = list(owners), [0] * len(owners), most
        self.device, self.dtype = model.device, model.dtype
        self.head = head(model)  # made once: where it has a bias it has a copy
        if self.device.type != "cuda":  # a processor would make it fp32 at every token
            self.head = self.head._replace(weight=self.head.weight.float())
        # Per layer [keys, values], each (B, heads, S, width of its own), made at the first update.
        self.layers = [None] * len(kinds)
        # Of the tokens that are fed: where the first goes (B,), and the index of all of them.
        self.end = torch.zeros(len(owners), dtype=torch.long, device=self.device)
        self.rows, self.positions = None, None
        # How many positions are looked at, and how many there is room for.
        self.span, self.capacity, self.masked = 0, 0, False
        self.drawing = None  # what decodes these rows (rollout.Drawing)

    def select(self, owners):
        """Keep only the rows of these owners, in this order: what a finished episode held is freed, tensor by
        tensor. On a GPU it is freed when half of the rows have finished."""
        if len(owners) > LEFT[self.device.type] * len(self.owners):
            return
        where = {id(owner): i for i, owner in enumerate(self.owners)}
        index = [where[id(owner)] for owner in owners]
        if index == list(range(len(self.owners))):
            return
        self.owners, self.length = list(owners), [self.length[i] for i in index]
        index = torch.tensor(index, device=self.device)
        self.end, self.drawing = self.end[: len(owners)], None
        for pair in filter(None, self.layers):
            for i in range(len(pair)):
                pair[i] = pair[i][index]
        for which in self.kept:
            self.kept[which] = self.kept[which][index]

    def free(self):
        """Give all memory up: a game's fault may hold whoever played it, and with it this cache, for long."""
        self.layers, self.drawing = [], None
        self.kept.clear()

    def set_back(self, lengths):
        """Let rows be shorter, B lengths: what lies behind is not seen, and is overwritten. A row with states
        begins anew instead, with length 0: they cannot be set back."""
        if self.stateful:
            lengths = [n if n == seen else 0 for n, seen in zip(lengths, self.length)]
            anew = [i for i, n in enumerate(lengths) if n == 0]
            for state in self.kept.values():
                state[anew] = 0
        self.length = lengths

    def reach(self, width, aligned=ALIGNED):
        """Make room for the next `width` tokens of every row, and say how far is looked: what the host does
        before they are fed. The capacity doubles up to the context, so that a long episode copies each entry
        about once.

        Where all rows are empty and no window shows there is no mask: causal attention needs none, and has
        faster kernels. Attention that is written out knows no causality but the mask's.
        """
        self.span = max(self.length) + width
        if self.span > self.capacity:
            self.capacity = max(self.span, min(max(2 * self.span, 64), self.most))
            for pair in filter(None, self.layers):
                for i in range(len(pair)):
                    pair[i] = self.grown(pair[i], pair[i])
        self.masked = any(self.length) or self.span > self.window or self.eager
        if self.masked:
            self.span = min(math.ceil(self.span / aligned) * aligned, self.capacity)

    def advance(self):
        """`reach` for one more token of every row; `length` is from here on what a row has at most."""
        self.reach(1, STEADY[self.device.type])
        self.length = [seen + 1 for seen in self.length]

    def place(self, width):
        """Where the next `width` tokens of every row go, from `end` on; returns (position_ids (B, T), what is
        added to the attention's scores (B, 1, T, S), or {kind of layer: that}, or None)."""
        self.rows = torch.arange(len(self.owners), device=self.device)[:, None]  # (B, 1)
        self.positions = self.end[:, None] + torch.arange(width, device=self.device)  # (B, T)
        if not self.masked:
            return self.positions, None
        own, keys = self.positions[:, :, None], torch.arange(self.span, device=self.device)  # (B, T, 1), (S,)
        later = keys > own  # (B, T, S)
        full = self.added(later)
        if self.window == math.inf:
            return self.positions, full
        near = self.added(later | (keys <= own - self.window))
        return self.positions, dict(full_attention=full, sliding_attention=near) if self.by_kind else near

    def added(self, hidden):
        """(B, T, S) of bool: the keys that are not seen -> what is added to the scores (B, 1, T, S)."""
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, -math.inf)[:, None]

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
        if pair is None:
            pair = self.layers[layer] = [self.grown(each) for each in new]
        for kept, added in zip(pair, new):
            kept[self.rows, :, self.positions] = added.transpose(1, 2).to(kept.dtype)
        return pair[0][:, :, : self.span], pair[1][:, :, : self.span]

    def grown(self, like, kept=None):
        """A buffer as large as the capacity, with the old content.

        Zeros, not empty: a masked key has probability 0, but 0 · NaN would still be NaN.
        """
        new = like.new_zeros(*like.shape[:2], self.capacity, like.shape[3])
        if kept is not None:
            new[:, :, : kept.shape[2]] = kept
        return new


def feed(model, cache, ids, number):
    """Write ids (B, T) from each row's end on, of which `number` (B,) are its own, behind `reach`; returns
    the hidden states behind them (B, T, D). Nothing is sent to the device, nothing is read from it."""
    positions, mask = cache.place(ids.shape[1])
    out = model.base_model(
        input_ids=ids, position_ids=positions, attention_mask=mask, cache=cache, use_cache=True)
    cache.settle(number > 0)
    cache.end += number
    return ready(model, out.last_hidden_state)


def pieces(new, stateful):
    """Which of its new tokens each row takes in each forward: all at once, or, since a state sees no padding,
    a power of two of them where it has as many left, the largest first.

    >>> list(pieces([[1, 2, 3, 4, 5], [], [6, 7, 8]], stateful=False))
    [[[1, 2, 3, 4, 5], [], [6, 7, 8]]]
    >>> list(pieces([[1, 2, 3, 4, 5], [], [6, 7, 8]], stateful=True))
    [[[1, 2, 3, 4], [], []], [[], [], [6, 7]], [[5], [], [8]]]
    >>> list(pieces([[1, 2, 3], [], [6, 7, 8]], stateful=True))
    [[[1, 2, 3], [], [6, 7, 8]]]
    """
    if not stateful:
        yield new
        return
    while lengths := {len(row) for row in new if row}:
        width = max(lengths)
        if len(lengths) > 1:
            width = 2 ** (width.bit_length() - 1)
        yield [row[:width] if len(row) >= width else [] for row in new]
        new = [row[width:] if len(row) >= width else row for row in new]


def read(model, cache, new):
    """Feed each row its new tokens, list of B lists of ids -> of each row the hidden states behind its own,
    B times (T, D). A row without any stays as it is."""
    found = [[] for _ in new]
    for fed in pieces(new, cache.stateful):
        lengths = list(map(len, fed))
        ids = [row + [0] * (max(lengths) - len(row)) for row in fed]
        ids = torch.tensor(ids, device=model.device)  # (B, T)
        end, number = torch.tensor([cache.length, lengths], device=model.device)  # (B,), (B,)
        cache.end.copy_(end)
        cache.reach(max(lengths))
        for states, n, of_row in zip(feed(model, cache, ids, number), lengths, found):
            of_row.append(states[:n])  # (n, D)
        cache.length = [seen + n for seen, n in zip(cache.length, lengths)]
    return [states[0] if len(states) == 1 else torch.cat(states) for states in found]


def extend(model, cache, new):
    """`read`, and of each row the hidden state behind its last new token (B, D); zeros without any."""
    found = read(model, cache, new)
    nothing = found[0].new_zeros(found[0].shape[1])  # (D,)
    return torch.stack([states[-1] if len(states) else nothing for states in found])


def feed_one(model, cache, token, takes):
    """Feed one more token of every row that takes one, behind `advance`: (B,), (B,) of bool -> the hidden
    states behind it (B, D)."""
    return feed(model, cache, token[:, None], takes.long())[:, 0]  # (B, D)


# ---- the copy that plays

def playing_copy(model, dtype):
    """The copy that plays, its parameters in `dtype`; in fp32 it is the model itself."""
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
