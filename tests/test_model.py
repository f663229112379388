"""Play over the ragged cache is exact; a head is the model's own; the copy that plays follows the student."""

import math
import weakref

import pytest
import torch
from conftest import FAMILIES, make_model, of_kind
from torch.utils._python_dispatch import TorchDispatchMode

import model as lm


def extended(model, cache, new):
    """`lm.extend` up to the logits (B, V)."""
    return lm.logits(lm.extend(model, cache, new), cache.head)


@pytest.mark.parametrize("kind", FAMILIES)
def test_ragged_cache_against_uncached_forward(kind):
    """Padding that is attended to, positions counted from the batch's longest row, a write over another row's
    end: six turns of different lengths per row in which some rows do not act, responses that are set back to
    their ends, two rows leaving. Logits within 1e-4 in fp32."""
    model, rng = make_model(kind), torch.Generator().manual_seed(0)
    rows = [[] for _ in range(5)]
    cache, worst = lm.RaggedCache(model, rows), 0.0

    def number(low, high):
        return int(torch.randint(low, high, (), generator=rng))

    with torch.no_grad():
        for turn in range(6):
            for row in rows:
                row += [number(3, 120) for _ in range(number(1, 40 if turn else 90))]
            seen, acts = cache.length, [number(0, 4) > 0 for _ in rows]
            new = [row[n:] if act else [] for row, n, act in zip(rows, seen, acts)]
            logits, said = extended(model, cache, new), [[] for _ in rows]
            for _ in range(4):
                worst = max(worst, *(
                    difference(model, row + more, logits[i])
                    for i, (row, more) in enumerate(zip(rows, said)) if acts[i]))
                token = torch.tensor([number(3, 120) for _ in rows])
                for more, i in zip(said, token.tolist()):
                    more.append(i)
                cache.advance()
                state = lm.feed_one(model, cache, token, torch.ones_like(token, dtype=torch.bool))
                logits = lm.logits(state, cache.head)
            for i, row in enumerate(rows):  # the last token of a response is fed in the turn to come
                more = said[i][:number(1, 5)] if acts[i] else []
                row += more
                cache.length[i] = len(row) - 1 if acts[i] else seen[i]
            if turn == 2:
                rows = [rows[3], rows[0], rows[4]]
                cache.select(rows)
    print(f"largest logit difference, {kind}: {worst:.1e}")
    assert cache.length[0] > 64 and len(set(cache.length)) == 3
    assert worst <= 1e-4


def difference(model, row, logits):
    """Largest difference to the logits behind the whole row, computed without any cache or batch."""
    return (model(input_ids=torch.tensor([row])).logits[0, -1] - logits).abs().max().item()


@pytest.mark.parametrize("kind", FAMILIES)
def test_hidden_states_do_not_depend_on_right_padding(kind):
    """The training forward takes no mask: this holds because attention is causal, and would break with left
    padding. What a teacher reads while it judges, in two parts, is the same."""
    model = make_model(kind)
    row, longer = [5, 9, 11, 7], [3] * 9
    cache = lm.RaggedCache(model, [row, longer])
    with torch.no_grad():
        alone = lm.hidden_states(model, torch.tensor([row]))
        padded = lm.hidden_states(model, torch.tensor([row + [0] * 5, longer]))
        first = lm.read(model, cache, [row[:3], longer[:1]])
        assert [len(states) for states in first] == [3, 1]
        second = lm.read(model, cache, [row[3:], longer[1:]])
    assert torch.allclose(alone[0], padded[0, :4], atol=1e-5)
    assert [len(states) for states in second] == [1, 8] and cache.length == [4, 9]
    assert torch.allclose(torch.cat([first[0], second[0]]), alone[0], atol=1e-5)
    assert torch.allclose(torch.cat([first[1], second[1]]), padded[1], atol=1e-5)


@pytest.mark.parametrize("most, capacities", [(math.inf, [80, 200]), (120, [80, 120]), (100, [80, 100])])
def test_the_cache_never_grows_beyond_the_context(most, capacities):
    """A buffer of twice the context at its end: half of the largest cache for nothing."""
    model, sizes = make_model(), []
    cache = lm.RaggedCache(model, ["row"], most)
    with torch.no_grad():
        for width in (40, 60):
            lm.extend(model, cache, [[5] * width])
            sizes.append(cache.layers[0][0].shape[2])
    assert sizes == capacities


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_first_turn_needs_no_mask(kind, monkeypatch):
    """Causal attention over rows that are not empty, or whose keys end elsewhere than the queries: rows of
    different lengths, fed at once, and behind a first token as later turns are."""
    model, attend, masked = make_model(kind), torch.nn.functional.scaled_dot_product_attention, []

    def noting(*args, attn_mask=None, is_causal=False, **more):
        masked.append((attn_mask is not None, is_causal))
        return attend(*args, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    rows = [[3 + i * j % 100 for j in range(length)] for i, length in ((1, 40), (2, 7), (3, 25))]
    at_once, later = lm.RaggedCache(model, rows), lm.RaggedCache(model, rows)
    with torch.no_grad():
        first = lm.extend(model, at_once, rows)
        assert set(masked) == {(False, True)}
        lm.extend(model, later, [row[:1] for row in rows])
        masked.clear()
        behind = lm.extend(model, later, [row[1:] for row in rows])
        assert set(masked) == {(True, False)}
    assert torch.allclose(first, behind, atol=1e-5)
    for one, other in zip(at_once.layers, later.layers):
        for i, row in enumerate(rows):
            assert torch.allclose(one[0][i, :, : len(row)], other[0][i, :, : len(row)], atol=1e-5)


class Alive(TorchDispatchMode):
    """How many of a cache's present tensors are alive at each call of an operation."""

    def __init__(self, cache, operation):
        super().__init__()
        self.old = [weakref.ref(kept) for pair in cache.layers for kept in pair]
        self.operation, self.number = operation, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation == self.operation:
            self.number.append(sum(one() is not None for one in self.old))
        return operation(*args, **(kwargs or {}))


def test_finished_rows_free_their_memory_tensor_by_tensor():
    """A cache that is there twice while rows leave it."""
    model, owners = make_model(), [object() for _ in range(3)]
    cache = lm.RaggedCache(model, owners)
    with torch.no_grad():
        lm.extend(model, cache, [[5] * 9] * 3)
    kept = [pair[1].clone() for pair in cache.layers]
    with Alive(cache, torch.ops.aten.index.Tensor) as alive:
        cache.select([owners[2], owners[0]])
    assert alive.number == [4, 3, 2, 1]  # keys and values of two layers
    assert all(torch.equal(pair[1], before[[2, 0]]) for pair, before in zip(cache.layers, kept))


def test_a_cache_grows_tensor_by_tensor():
    """All layers there twice while a long episode wants more room."""
    cache = lm.RaggedCache(make_model(), range(3))
    cache.capacity = 9
    cache.layers = [[torch.rand(3, 2, 9, 8) for _ in "kv"] for _ in range(2)]
    kept = [pair[1].clone() for pair in cache.layers]
    with Alive(cache, torch.ops.aten.new_zeros.default) as alive:
        cache.reach(10)
    assert alive.number == [4, 3, 2, 1] and cache.layers[1][0].shape == (3, 2, 64, 8)
    assert all(torch.equal(pair[1][:, :, :9], before) for pair, before in zip(cache.layers, kept))


def test_a_head_with_a_bias_is_trained():
    """The bias is a column that `head` makes anew: its gradient must reach the parameter."""
    model, ids = of_kind("phi"), torch.tensor([[5, 9, 11]])
    ours = lm.logits(lm.hidden_states(model, ids)[0], lm.head(model)).logsumexp(-1).sum()
    bias = model.get_output_embeddings().bias
    gradient = torch.autograd.grad(ours, bias)[0]
    own = model(input_ids=ids).logits.logsumexp(-1).sum()
    assert torch.allclose(gradient, torch.autograd.grad(own, bias)[0], atol=1e-6)


# ---- the copy that plays

def test_the_playing_copy_keeps_its_rotary_frequencies():
    """`.to(bfloat16)` rounds the rotary buffers too: the student would play with other positions than it is
    trained with."""
    model = make_model()
    bf16 = lm.playing_copy(model, torch.bfloat16)
    assert {p.dtype for p in bf16.parameters()} == {torch.bfloat16}
    for ours, master in zip(bf16.buffers(), model.buffers(), strict=True):
        assert ours.dtype == master.dtype == torch.float32 and torch.equal(ours, master)


def test_the_gpus_precision_on_the_cpu():
    """fp32 masters that autocast turns into bf16 gradients; a head that a processor makes fp32 again at every
    token, or with other values; a playing copy that stays beside the gradients, that lags behind the masters,
    or whose tied head comes apart from its embedding so that only one of them follows; where it is the
    student itself, weights that are gone."""
    student, ids = make_model("qwen3", tie_word_embeddings=True), torch.tensor([[5, 9, 11, 7, 30, 2, 17]])
    player, before = lm.playing_copy(student, torch.bfloat16), lm.head(student).weight.clone()
    lm.release(player, student)
    assert sum(p.numel() for p in player.parameters()) == 0
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = lm.hidden_states(student, ids)
        lm.logits(hidden[0], lm.head(student)).logsumexp(-1).sum().backward()
    optimizer.step()
    assert {p.grad.dtype for p in student.parameters()} == {torch.float32}
    lm.refresh(player, student)
    assert not torch.equal(lm.head(player).weight, before.to(torch.bfloat16))
    for copied, master in zip(player.parameters(), student.parameters(), strict=True):
        assert copied.dtype == torch.bfloat16 and torch.equal(copied, master.to(torch.bfloat16))
    for model in (player, student):
        assert lm.head(model).weight is model.get_input_embeddings().weight
    with torch.no_grad():
        cache = lm.RaggedCache(player, [0])
        assert cache.head.weight.dtype == torch.float32
        assert torch.equal(cache.head.weight, lm.head(player).weight.float())
        played = extended(player, cache, ids.tolist())
        with torch.autocast("cpu", torch.bfloat16):
            learner = lm.logits(lm.hidden_states(student, ids)[0, -1:], lm.head(student))
    mismatch = (played.log_softmax(-1) - learner.log_softmax(-1)).abs().max().item()
    assert 0 < mismatch < 0.2  # bf16's own rounding, and no more
    own = lm.playing_copy(student, torch.float32)
    lm.release(own, student)
    assert own is student and lm.head(student).weight.numel() > 0
