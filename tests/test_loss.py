"""The losses against a float64 reference written as one would on paper, and the chunked gradient against the
obvious one."""

import pytest
import torch

import loss as losses
from batch import Batch
from loss import LOSSES, at_temperature, chunked
from model import Head, Vocabulary

BETAS = {"jsd": (0.5, 0.1)}
KINDS = [(name, beta) for name in LOSSES for beta in BETAS.get(name, (0.5,))]


def reference(name, student, teacher, token, beta):
    """The definitions on probabilities; float64, gradients by autograd."""
    q, p = student.softmax(-1), teacher.softmax(-1)

    def divergence(a, b):
        return (a * (a / b).log()).sum(-1)

    def said(x):
        return x.gather(-1, token[:, None])[:, 0]

    if name == "reverse":
        return divergence(q, p)
    if name == "forward":
        return divergence(p, q)
    if name == "k1":
        return -(said(q) / said(q).detach()) * (said(p).log() - said(q).log()).detach()
    if name == "nll":
        return -said(q).log()
    m = beta * p + (1 - beta) * q
    return beta * divergence(p, m) + (1 - beta) * divergence(q, m)


def draw(n=40, v=17, seed=0, scale=2.0):
    """Logits of a student and a teacher, and tokens that the student would say."""
    torch.manual_seed(seed)
    student, teacher = scale * torch.randn(n, v), scale * torch.randn(n, v)
    return student, teacher, torch.distributions.Categorical(logits=student).sample()


def value_and_gradient(name, student, teacher, token, beta=0.5):
    """A loss at every token, and its gradient with respect to the student's logits."""
    logits = student.clone().requires_grad_()
    value = LOSSES[name](logits.log_softmax(-1), teacher.log_softmax(-1), token, beta)
    value.sum().backward()
    return value.detach(), logits.grad


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name, beta", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_against_the_definition(name, beta, seed):
    """A wrong sign, KL in the other direction, a lost factor 1 − β, an advantage that has a gradient of its
    own."""
    student, teacher, token = draw(seed=seed)
    exact = student.double().requires_grad_()
    expected = reference(name, exact, teacher.double(), token, beta)
    expected.sum().backward()
    value, gradient = value_and_gradient(name, student, teacher, token, beta)
    assert relative(value, expected.detach()) <= 1e-5
    assert relative(gradient, exact.grad) <= 1e-5


def test_expected_k1_gradient_is_that_of_reverse_kl():
    """k1 with a baseline or future terms, or the advantage's own gradient, would be biased: enumerate every
    token."""
    student, teacher, _ = draw(n=5, v=7)
    q, expected = student.softmax(-1), torch.zeros(5, 7)
    for v in range(7):
        token = torch.full((5,), v)
        expected += q[:, v, None] * value_and_gradient("k1", student, teacher, token)[1]
    assert relative(expected, value_and_gradient("reverse", student, teacher, token)[1].double()) <= 1e-5


# ---- a chunk at a time

def batch_of(token, names, weight=None, sampled_logp=None):
    """A Batch as `batch.collate` makes it, without its rows. names: of a loss per token."""
    n = len(token)
    index = {name: torch.tensor([i for i in range(n) if names[i] == name]) for name in sorted(set(names))}
    return Batch(
        ids=None, where=None, token=token, episode=None, turn=None, losses=index,
        weight=torch.ones(n) if weight is None else weight,
        sampled_logp=torch.zeros(n) if sampled_logp is None else sampled_logp)


def exact_logits(states, head, temperature, cap=None):
    """float64 logits; states (n, D), head (V, D)."""
    logits = states.double() @ head.double().T
    return (logits if cap is None else cap * (logits / cap).tanh()) / temperature


def means(logp, token):
    """(log p of the tokens, entropy of p) at each token, by the definitions."""
    said = logp.gather(-1, token[:, None])[:, 0]
    return said, torch.distributions.Categorical(logits=logp).entropy()


@pytest.mark.parametrize("names", [*([name] for name in LOSSES), ["reverse", "forward", "nll"]])
@pytest.mark.parametrize("chunk, holes, cap", [
    (3, [], None), (1000, [], None), (3, [2, 7], None), (3, [2, 7], 1.5)])
def test_chunks_against_the_whole(names, chunk, holes, cap, monkeypatch):
    """A chunk whose gradient overwrites another's, a temperature that the gradient forgets, padding of the
    head that is trained, ids that no token has, a chunk that holds tokens of two losses, an upstream gradient
    that is dropped; a cap that value or gradient forgets; log p and entropy of the student in place of the
    teacher's, or of another token."""
    monkeypatch.setattr(losses, "CHUNK", chunk)
    torch.manual_seed(1)
    n, d, v = 20, 6, 11
    hidden, head = torch.randn(n, d), torch.randn(v + 3, d)
    teacher = torch.randn(n, 4), Head(torch.randn(v + 5, 4), cap and 2 * cap)
    known = torch.tensor([i for i in range(v) if i not in holes])
    chosen, weight, sampled = torch.randint(len(known), (n,)), torch.rand(n), -torch.rand(n)
    each = [names[i % len(names)] for i in range(n)]
    x, y = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    total, logged = chunked(
        (x, Head(y, cap)), teacher, batch_of(known[chosen], each, weight, sampled), beta=0.3, temperature=0.7,
        vocabulary=Vocabulary(v, holes))
    (3 * total).backward()

    a, b = hidden.double().requires_grad_(), head.double().requires_grad_()
    student_logits = exact_logits(a, b[known], 0.7, cap)
    teacher_logits = exact_logits(teacher[0], teacher[1].weight[known], 0.7, cap and 2 * cap)
    values = torch.stack([
        reference(name, student_logits[i:i + 1], teacher_logits[i:i + 1], chosen[i:i + 1], 0.3)[0]
        for i, name in enumerate(each)])
    exact = (values * weight).sum()
    (3 * exact).backward()
    assert abs(total.item() - exact.item()) <= 1e-5 * abs(exact.item())
    assert relative(x.grad, a.grad) <= 1e-5 and relative(y.grad, b.grad) <= 1e-5
    assert y.grad[v:].abs().max() == 0 and y.grad[holes].abs().sum() == 0
    kl = reference("reverse", student_logits, teacher_logits, chosen, 0.3)
    logp, entropy = means(teacher_logits.log_softmax(-1), chosen)
    mismatch = (means(student_logits.log_softmax(-1), chosen)[0] - sampled).abs()
    assert losses.LOGGED == ("loss", "kl", "logp", "entropy", "mismatch")
    for ours, theirs in zip(logged, (values, kl, logp, entropy, mismatch), strict=True):
        assert relative(ours, theirs.detach()) <= 1e-5


def test_a_chunk_is_as_large_as_its_numbers(monkeypatch):
    """A chunk of 1,024 tokens of a vocabulary of 150,000: 600 MB a tensor, for both and their gradient."""
    monkeypatch.setattr(losses, "LOGITS", 1000)
    assert [losses.pieces(Vocabulary(size, [])) for size in (1, 10, 300, 5000)] == [1000, 100, 64, 64]
    monkeypatch.setattr(losses, "CHUNK", 64)
    assert [losses.pieces(Vocabulary(size, [])) for size in (10, 300)] == [64, 64]


def test_no_token_at_all():
    """A rank without work still takes part in the backward pass."""
    hidden, head = torch.zeros(0, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    batch = batch_of(torch.zeros(0, dtype=torch.long), [])
    total, logged = chunked(
        (hidden, Head(head)), None, batch, beta=0.5, temperature=1.0, vocabulary=Vocabulary(5, []))
    total.backward()
    assert total.item() == 0 and logged.shape == (5, 0) and head.grad.abs().sum() == 0


def test_nll_needs_no_teacher():
    """SFT that runs a teacher for nothing; a KL that nobody computed shown as 0."""
    torch.manual_seed(0)
    hidden, head, token = torch.randn(4, 3), torch.randn(6, 3), torch.tensor([0, 1, 2, 3])
    _, logged = chunked(
        (hidden, Head(head)), None, batch_of(token, ["nll"] * 4), beta=0.5, temperature=1.0,
        vocabulary=Vocabulary(6, []))
    exact = (hidden @ head.T).log_softmax(-1)
    assert torch.allclose(logged[0], -exact[range(4), token], atol=1e-6) and logged[1:4].isnan().all()
    assert losses.WITHOUT_TEACHER == ("nll",)


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_a_judgement_against_the_definition(temperature, monkeypatch):
    """KL in the other direction, the student's entropy, tokens of two chunks in another order, another
    temperature than the sampler's (greedy: 1), ids that no token has; a gap
    with a sign, which cancels in a mean."""
    monkeypatch.setattr(losses, "CHUNK", 3)
    torch.manual_seed(2)
    student, teacher = (
        (torch.randn(7, width), Head(torch.randn(rows, width))) for width, rows in ((6, 14), (4, 16)))
    known, chosen = torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 9, 10]), torch.randint(10, (7,))
    found = losses.judgement(student, teacher, known[chosen].tolist(), Vocabulary(11, [2]), temperature)
    logits = [
        exact_logits(states, head.weight[known], temperature or 1.0) for states, head in (student, teacher)]
    expected = [*means(logits[1].log_softmax(-1), chosen), reference("reverse", *logits, chosen, 0.5)]
    expected.append((means(logits[0].log_softmax(-1), chosen)[0] - expected[0]).abs())
    assert found.numpy() == pytest.approx(torch.stack(expected).numpy(), rel=1e-5)


@pytest.mark.parametrize("name", ["reverse", "forward", "jsd", "k1"])
def test_an_id_that_both_exclude_adds_nothing(name):
    """Infinite logits (an id masked by both heads): 0 · (inf − inf) is NaN, in the value or in the
    gradient."""
    student, teacher, _ = draw(n=6, v=5)
    kept, token = [0, 1, 3, 4], torch.tensor([0, 1, 3, 4, 0, 1])
    student[:, 2] = teacher[:, 2] = -torch.inf
    logits = at_temperature(student.clone(), 0.7)
    value, gradient = value_and_gradient(name, logits, at_temperature(teacher.clone(), 0.7), token, 0.4)
    exact = (student[:, kept].double() / 0.7).requires_grad_()
    expected = reference(name, exact, teacher[:, kept].double() / 0.7, torch.tensor([0, 1, 2, 3, 0, 1]), 0.4)
    expected.sum().backward()
    assert relative(value, expected.detach()) <= 1e-5
    assert relative(gradient[:, kept], exact.grad) <= 1e-5 and gradient[:, 2].abs().max() == 0
