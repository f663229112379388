"""The only file that runs the Hugging Face model: over whole rows (training) or over a ragged cache (play).

The model itself is used unmodified. Rows of a batch differ in length, so the cache keeps a write position per
row: new tokens are written right-padded behind each row's end, what was padding is overwritten by the next
tokens, and a query sees the keys whose position is at most its own. That is exact: no left padding, no
attention to pads, positions as in an uncached forward.

Left out on purpose: quantisation, sharding of one model over several GPUs, sliding-window attention.
Loading, and every reason to refuse a checkpoint, is load.py. Read before this: rollout.py, which calls it.

B = row, T = new token, S = cached position, V = vocabulary, D = width of the hidden states.
"""

import copy
import math
from typing import NamedTuple

import torch

ALIGNED = 16  # a mask is as wide as a multiple of this: attention's kernels would make it so in every layer


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


def states_at(model, ids, where):
    """The hidden states (N, D) at the positions `where` (N,) of the flattened rows ids (B, T), and the head
    (V', D)."""
    return hidden_states(model, ids).flatten(0, 1)[where], head(model)


class Vocabulary(NamedTuple):
    """The ids that are sampled and compared: those below `size` but for the `holes`."""
    size: int
    holes: list

    def on(self, device):
        """The same with its holes on the device, so that they are not sent there every time."""
        return self._replace(holes=torch.tensor(self.holes, dtype=torch.long, device=device))

    def logits(self, hidden, weight):
        """hidden (N, D), a head's weight (V', D) -> logits over these ids (N, V) in fp32."""
        return self.among(logits(hidden, weight))

    def among(self, logits):
        """logits (..., V') over the ids of a head -> (..., V) over these; −inf where no token is."""
        logits = logits[..., : self.size]
        if len(self.holes):
            logits.index_fill_(-1, torch.as_tensor(self.holes, device=logits.device), -torch.inf)
        return logits


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
        self.device, self.dtype = model.device, model.dtype
        # Made once: a copy where it has a bias, or where a processor would make it fp32 at every token.
        self.head = head(model) if model.device.type == "cuda" else head(model).float()
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
    """Write ids (B, T) from each row's end on, of which `number` (B,) are its own; returns the hidden states
    behind them (B, T, D)."""
    positions, mask = cache.place(ids.shape[1])
    out = model.base_model(
        input_ids=ids, position_ids=positions, attention_mask=mask, cache=cache, use_cache=True)
    cache.end = cache.end + number
    return ready(model, out.last_hidden_state)


def read(model, cache, new):
    """Feed each row its new tokens, at least one each: list of B lists of ids -> the hidden states behind
    them (B, T, D), right-padded, and how many are a row's own (B,)."""
    device, width = model.device, max(map(len, new))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in new], device=device)  # (B, T)
    cache.end, number = torch.tensor([cache.length, [len(row) for row in new]], device=device)  # (B,), (B,)
    hidden = feed(model, cache, ids, number)  # (B, T, D)
    cache.length = [seen + len(row) for seen, row in zip(cache.length, new)]
    return hidden, number


def extend(model, cache, new):
    """`read`, and of each row the hidden state behind its last new token (B, D)."""
    hidden, number = read(model, cache, new)
    return hidden[cache.rows[:, 0], number - 1]


def feed_one(model, cache, token):
    """Feed one more token of every row, behind an `extend`: (B,) -> the hidden states behind it (B, D).
    Nothing is sent to the device, nothing is read from it."""
    hidden = feed(model, cache, token[:, None], torch.ones_like(token))  # (B, 1, D)
    cache.length = [seen + 1 for seen in cache.length]
    return hidden[:, 0]


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
