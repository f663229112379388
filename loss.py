"""The loss: how far the student's distribution is from its target at every token that is trained.

A loss is a function of log-probabilities to a value per token; autograd forms its gradient. `chunked` runs
one over hidden states, a chunk of tokens at a time, so that no [tokens × vocabulary] tensor lives beyond its
chunk. Nothing here knows of episodes. Read before this: batch.py; after it: tcod.py.

Notation: θ student, φ teacher; n = token of a chunk, N = trained token of a micro-batch, V = vocabulary,
D = width. logq (n, V) = log p_θ and logp (n, V) = log p_φ, both fp32 at the sampling temperature; token (n,):
what was said.
"""

import math

import torch

from model import Head, states_at

# A logit of −inf (an id that is excluded) becomes this: what both exclude then adds 0 · 0 to a divergence and
# not 0 · (inf − inf).
LOWEST = torch.finfo(torch.float32).min / 4
# Tokens whose distributions are in memory at once: at most so many, and so many numbers in one [n, V].
CHUNK, LOGITS = 1024, 2**26
LOGGED = ("loss", "kl", "logp", "entropy", "mismatch")  # of every trained token, see `chunked`


# ---- the losses: each is called as (logq, logp, token, beta) and takes what it needs

def at(logs, token):
    """The entry of `token` in every row: (n, V), (n,) -> (n,)."""
    return logs.gather(-1, token[:, None])[:, 0]


def entropy(logp):
    """−Σ_v p log p: (n, V) -> (n,)."""
    return -(logp.exp() * logp).sum(-1)


def reverse(logq, logp, *_):
    """KL(θ‖φ) = Σ_v q (log q − log p)."""
    return (logq.exp() * (logq - logp)).sum(-1)


def forward(logq, logp, *_):
    """KL(φ‖θ) = Σ_v p (log p − log q). Eq. 2 as printed."""
    return (logp.exp() * (logp - logq)).sum(-1)


def jsd(logq, logp, token, beta):
    """β KL(p‖m) + (1 − β) KL(q‖m), m = β p + (1 − β) q."""
    logm = torch.logaddexp(logp + math.log(beta), logq + math.log1p(-beta))
    return beta * forward(logm, logp) + (1 - beta) * reverse(logq, logm)


def k1(logq, logp, token, *_):
    """−r A at the sampled token, A = log p − log q, r = q / q held fixed: the released code's policy
    gradient.

    There is one update per batch, so that r is 1 and its clip would never act. Its expected gradient is that
    of `reverse`.
    """
    said = at(logq, token)
    advantage = at(logp, token) - said.detach()
    return -(said - said.detach()).exp() * advantage


def nll(logq, logp, token, *_):
    """−log q of the token that was said: supervised learning, no teacher."""
    return -at(logq, token)


LOSSES = {"reverse": reverse, "forward": forward, "jsd": jsd, "k1": k1, "nll": nll}
WITHOUT_TEACHER = ("nll",)


def explained():
    """What --help says of the losses: the first sentence of each (`python -OO` leaves out what that is)."""
    said = {name: " ".join((loss.__doc__ or "a loss").split()) for name, loss in LOSSES.items()}
    return "; ".join(f"{name}: {text.split('. ')[0].rstrip('.')}" for name, text in said.items())


# ---- distributions

def at_temperature(logits, temperature):
    """Logits divided by the temperature, −inf made finite (see LOWEST); in the same memory."""
    return logits.div_(temperature).clamp_(min=LOWEST)


def distributions(states, head, vocabulary, temperature):
    """Log-probabilities (n, V) over the ids of `vocabulary` behind hidden states (n, D) and a Head."""
    logits = vocabulary.logits(states, head)  # (n, V)
    return torch.log_softmax(at_temperature(logits, temperature), -1)


def pieces(vocabulary):
    """How many tokens a chunk has."""
    return min(CHUNK, max(64, LOGITS // vocabulary.size))


@torch.no_grad()
def judgement(student, teacher, ids, vocabulary, temperature):
    """What the teacher says of n tokens, in nats: log p of each, its entropy, KL(θ‖φ), |log q − log p| of
    each -> (4, n).

    student, teacher: (states before the tokens (n, D), Head). A greedy sampler's distributions are
    compared at temperature 1.
    """
    token, found = torch.tensor(ids, device=teacher[0].device), []  # (n,)
    for n in torch.arange(len(ids), device=token.device).split(pieces(vocabulary)):
        logq, logp = (
            distributions(states[n], head, vocabulary, temperature or 1.0)
            for states, head in (student, teacher))
        said, own = at(logp, token[n]), at(logq, token[n])
        found.append(torch.stack([said, entropy(logp), reverse(logq, logp), (own - said).abs()]))
    return torch.cat(found, 1)


# ---- the gradient, a chunk at a time

def gradients(hidden, table, cap, weight, value, chunks, vocabulary, temperature):
    """Σ_n weight_n · value_n, and its gradients with respect to hidden (N, D) and table (V', D), a head's
    weight, None where that is frozen; cap: of its logits.

    value: (name, n, logits (n, V)) -> (n,); chunks: pairs (name, n), n the index tensor (n,) of tokens of one
    loss.
    """
    d_hidden, d_table = torch.zeros_like(hidden), torch.zeros_like(table) if table.requires_grad else None
    seen, total = Head(table[: vocabulary.size], cap), hidden.new_zeros((), dtype=torch.float32)  # (V, D), ()
    for name, n in chunks:
        logits = vocabulary.logits(hidden[n], seen)  # (n, V)
        bend = seen.slope(logits)
        logits = at_temperature(logits, temperature).requires_grad_()
        with torch.enable_grad():
            loss = (value(name, n, logits) * weight[n]).sum()
        slope = torch.autograd.grad(loss, logits)[0].div_(temperature).mul_(bend)  # (n, V)
        total += loss.detach()
        d_hidden[n] = (slope @ seen.weight.float()).to(d_hidden.dtype)
        if d_table is not None:  # a fourth of all products, in vain for a frozen head
            d_table[: vocabulary.size] += slope.T @ hidden[n].float()
    return total, d_hidden, d_table


class Chunked(torch.autograd.Function):
    """The first of `gradients`, with the others as its gradients: they are formed inside the forward, chunk
    by chunk."""

    @staticmethod
    def forward(ctx, hidden, table, *rest):
        with torch.autocast(hidden.device.type, enabled=False):  # logits and their gradient are fp32
            total, *slopes = gradients(hidden, table, *rest)
        ctx.save_for_backward(*slopes)
        return total

    @staticmethod
    def backward(ctx, d_total):
        d_hidden, d_table = ctx.saved_tensors
        d_table = None if d_table is None else d_table * d_total
        return d_hidden * d_total, d_table, None, None, None, None, None, None


def chunked(student, teacher, batch, *, beta, temperature, vocabulary):
    """The loss of a micro-batch's trained tokens, and what the log says of each.

    student   (hidden (N, D), Head of V' rows)
    teacher   the same of the teacher, widths of its own; None where no loss asks for it
    batch     a Batch: a chunk holds tokens of one loss
    Only the ids of `vocabulary` are compared, since checkpoints pad their heads differently. Returns Σ
    weight · value (), and for the log (5, N), not differentiable, by LOGGED: the value; KL(θ‖φ), log p of
    what was said and the entropy of φ in nats, NaN without a teacher; |log q − log q_sampled|, the mismatch
    of the learner and the player, NaN where the student did not play.
    """
    hidden, head = student
    logged = torch.full((len(LOGGED), len(hidden)), torch.nan, device=hidden.device)

    # `Chunked` calls this for each chunk of tokens, under autograd; the log is filled by the way.
    def value(name, n, logits):
        token, logq = batch.token[n], torch.log_softmax(logits, -1)  # (n, V)
        logp = None
        if teacher is not None:
            with torch.no_grad():
                logp = distributions(teacher[0][n], teacher[1], vocabulary, temperature)  # (n, V)
                logged[2, n], logged[3, n] = at(logp, token), entropy(logp)
        found = LOSSES[name](logq, logp, token, beta)
        logged[0, n], logq = found.detach(), logq.detach()
        if logp is not None:
            logged[1, n] = logged[0, n] if name == "reverse" else reverse(logq, logp)
        logged[4, n] = (at(logq, token) - batch.sampled_logp[n]).abs()
        return found

    chunks = [(name, n) for name, index in batch.losses.items() for n in index.split(pieces(vocabulary))]
    total = Chunked.apply(hidden, *head, batch.weight, value, chunks, vocabulary, temperature)
    return total, logged


class Distiller(torch.nn.Module):
    """The student with its loss, so that DistributedDataParallel sees one forward per micro-batch."""

    def __init__(self, student, **setting):
        """setting: what `chunked` asks for by name."""
        super().__init__()
        self.student, self.setting = student, setting

    def forward(self, batch, teacher):
        """A Batch, and the teacher's (hidden (N, D'), Head) or None -> what `chunked` returns."""
        return chunked(states_at(self.student, batch.ids, batch.where), teacher, batch, **self.setting)
