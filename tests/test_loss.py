"""The losses against a float64 autograd reference, and the assembly of batches by hand."""

import doctest
from types import SimpleNamespace

import pytest
import torch

import loss as losses
from envs import UserError
from loss import ChunkedLoss, jsd_beta, token_loss, token_weights
from rollout import Row

KINDS = ("reverse", "forward", "jsd:0.5", "jsd:0.1", "k1")


def reference(kind, student, teacher, token, old_logp, clip=0.2):
    """The definitions, written as one would on paper; float64, gradients by autograd."""
    q, p = student.softmax(-1), teacher.softmax(-1)
    divergence = lambda a, b: (a * (a / b).log()).sum(-1)
    if kind == "reverse":
        return divergence(q, p)
    if kind == "forward":
        return divergence(p, q)
    if kind == "k1":
        pick = lambda x: x.gather(-1, token[:, None])[:, 0]
        r, advantage = pick(q) / old_logp.exp(), (pick(p).log() - old_logp).detach()
        return -torch.minimum(r * advantage, r.clamp(1 - clip, 1 + clip) * advantage)
    beta = float(kind.split(":")[1])
    m = beta * p + (1 - beta) * q
    return beta * divergence(p, m) + (1 - beta) * divergence(q, m)


def draw(n=40, v=17, seed=0, scale=2.0, off_policy=0.3):
    torch.manual_seed(seed)
    student, teacher = scale * torch.randn(n, v), scale * torch.randn(n, v)
    token = torch.distributions.Categorical(logits=student).sample()
    old = student.log_softmax(-1).gather(-1, token[:, None])[:, 0] + off_policy * torch.randn(n)
    return student, teacher, token, old


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_against_autograd(kind, seed):
    """A wrong sign, a lost factor 1 − β, a gradient that flows through the clip, fp32 cancellation."""
    student, teacher, token, old = draw(seed=seed)
    exact = student.double().requires_grad_()
    value = reference(kind, exact, teacher.double(), token, old.double())
    value.sum().backward()
    got, gradient, kl = token_loss(kind, student, teacher, token, old)
    assert relative(got, value.detach()) <= 1e-5
    assert relative(gradient, exact.grad) <= 1e-5
    assert relative(kl, reference("reverse", student.double(), teacher.double(), token, old)) <= 1e-5


def test_the_clip_acts_in_this_data():
    """The clip test above would prove nothing if no token were clipped, or all."""
    student, teacher, token, old = draw()
    clipped = (token_loss("k1", student, teacher, token, old)[1] == 0).all(-1)
    assert 0 < clipped.sum() < len(clipped)


def test_expected_k1_gradient_is_that_of_reverse_kl():
    """k1 with a baseline or future terms, or the advantage's own gradient, would be biased: enumerate every token."""
    student, teacher, _, _ = draw(n=5, v=7)
    logq, expected = student.log_softmax(-1), torch.zeros(5, 7)
    for v in range(7):
        token = torch.full((5,), v)
        old = logq[:, v]
        expected += logq[:, v, None].exp() * token_loss("k1", student, teacher, token, old)[1]
    assert relative(expected, token_loss("reverse", student, teacher, token, old)[1].double()) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [7, 1024])
def test_chunks_temperature_and_padded_heads(kind, chunk):
    """A chunk's border, the factor 1/τ, ids that only a padded head has, gradients of the head, weights that differ per token."""
    torch.manual_seed(1)
    n, d, v = 23, 6, 11
    hidden, head = torch.randn(n, d), torch.randn(v + 3, d)  # the student's head is padded by three ids
    teacher_hidden, teacher_head = torch.randn(n, d + 2), torch.randn(v + 5, d + 2)
    token, weight, old = torch.randint(v, (n,)), torch.rand(n), -torch.rand(n) - 1
    args = SimpleNamespace(loss=kind, chunk=chunk, temperature=0.7, ppo_clip=0.2)
    a, b = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    total, kl = ChunkedLoss.apply(a, b, teacher_hidden, teacher_head, token, old, weight, args, v)
    (3 * total).backward()
    x, y = hidden.double().requires_grad_(), head.double().requires_grad_()
    logits = lambda h, w: (h.double() @ w[:v].double().T) / 0.7
    exact = (reference(kind, logits(x, y), logits(teacher_hidden, teacher_head), token, old.double()) * weight).sum()
    (3 * exact).backward()
    assert abs(total.item() - exact.item()) <= 1e-5 * abs(exact.item())
    assert relative(a.grad, x.grad) <= 1e-5 and relative(b.grad, y.grad) <= 1e-5
    assert b.grad[v:].abs().max() == 0 and kl.shape == (n,)


def test_no_token_at_all():
    """A rank without work still takes part in the backward pass."""
    hidden, head = torch.zeros(0, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    args = SimpleNamespace(loss="reverse", chunk=8, temperature=1.0, ppo_clip=0.2)
    nothing = torch.zeros(0)
    total, kl = ChunkedLoss.apply(hidden, head, torch.zeros(0, 4), torch.randn(5, 4), nothing.long(), nothing, nothing, args, 5)
    total.backward()
    assert total.item() == 0 and kl.numel() == 0 and head.grad.abs().sum() == 0


def test_weights_of_the_three_aggregations():
    """Eq. 2 sums over an episode's tokens; a token mean would make long episodes lighter. Two episodes, three turns, six tokens."""
    first = SimpleNamespace(rows=[Row([0] * 7, [-1, 0, 0, 0, -1, 1, 1], [0.0] * 7)])
    second = SimpleNamespace(rows=[Row([0] * 3, [-1, 0, -1], [0.0] * 3)])
    both = [first, second]
    assert losses.count(both) == [2, 3, 6]
    weights = {kind: list(token_weights(both, kind, [2, 3, 6])) for kind in ("episode", "token", "turn")}
    assert weights["episode"] == [[0, .5, .5, .5, 0, .5, .5], [0, .5, 0]]
    assert weights["token"] == [[0, 1 / 6, 1 / 6, 1 / 6, 0, 1 / 6, 1 / 6], [0, 1 / 6, 0]]
    assert weights["turn"][0] == pytest.approx([0, 1 / 9, 1 / 9, 1 / 9, 0, 1 / 6, 1 / 6]) and weights["turn"][1] == [0, 1 / 3, 0]


def test_examples_in_the_docstrings():
    """The worked example of `collate`: the hidden state *before* a token predicts it."""
    assert doctest.testmod(losses).failed == 0


@pytest.mark.parametrize("kind", ["kl", "jsd", "jsd:0", "jsd:1", "jsd:x", ""])
def test_unknown_loss(kind):
    """jsd:0 and jsd:1 are constant zero: training on them would do nothing, silently."""
    with pytest.raises(UserError, match="unknown loss"):
        jsd_beta(kind)
