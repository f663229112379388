"""The loss: the divergence of the teacher's and the student's distribution at every token that the student sampled.

`token_loss` is the mathematics, on logits, with gradients in closed form. `ChunkedLoss` runs it over hidden states a chunk of tokens
at a time, so that no [tokens × vocabulary] tensor lives beyond its chunk. The rest turns played episodes into its inputs.

Notation: θ student, φ teacher; B = row, T = token, t = turn, V = vocabulary, N = trained response token of a micro-batch, D = width.
"""

import numpy as np
import torch

import envs
import model as lm
import rollout


def token_loss(kind, student, teacher, token, old_logp, ppo_clip=0.2):
    """The loss at every token and its gradient with respect to the student's logits, in closed form.

    student, teacher  logits at the sampling temperature, (N, V) fp32;  q = softmax(student) = p_θ,  p = softmax(teacher) = p_φ
    token, old_logp   the sampled tokens and their log-probabilities when sampled, (N,)
    Returns value (N,), gradient (N, V), and for the log, whatever was trained, KL(p_θ ‖ p_φ) (N,), in nats.

    forward  D_KL(p_φ ‖ p_θ), Eq. 2:        gradient q − p
    reverse  D_KL(p_θ ‖ p_φ):               gradient q ⊙ (log q/p − KL)
    jsd:β    β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q:  gradient q ⊙ (g − E_q g) with g = (1−β) log q/m
    k1       −min(r A, clip(r) A), r = q/q_old and A = log p − log q_old at the sampled token: PPO's surrogate as in the released
             code; at r = 1 its expected gradient over the tokens is that of reverse
    """
    logq, logp = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)  # (N, V)
    q, ratio = logq.exp(), logq - logp
    kl = (q * ratio).sum(-1)  # (N,)
    if kind == "reverse":
        return kl, q * (ratio - kl[:, None]), kl
    if kind == "forward":
        p = logp.exp()
        return (p * -ratio).sum(-1), q - p, kl
    if kind == "k1":
        new, reference = (x.gather(-1, token[:, None])[:, 0] for x in (logq, logp))  # (N,)
        r, advantage = (new - old_logp).exp(), reference - old_logp
        surrogate, bounded = r * advantage, r.clamp(1 - ppo_clip, 1 + ppo_clip) * advantage
        slope = torch.where(surrogate <= bounded, -surrogate, 0.0)  # d(−r A)/d log q(token); no gradient where the clip acts
        return -torch.minimum(surrogate, bounded), slope[:, None] * (one_hot(token, q) - q), kl
    beta = jsd_beta(kind)
    logm = torch.logaddexp(logp + np.log(beta), logq + np.log1p(-beta))
    g = (1 - beta) * (logq - logm)
    inner = (q * g).sum(-1)
    return beta * (logp.exp() * (logp - logm)).sum(-1) + inner, q * (g - inner[:, None]), kl


def one_hot(token, like):
    """(N,) ids -> (N, V)."""
    return torch.zeros_like(like).scatter_(-1, token[:, None], 1.0)


def jsd_beta(kind):
    """β of 'jsd:β'; raises UserError for any loss that does not exist."""
    name, _, beta = kind.partition(":")
    try:
        if name == "jsd" and 0 < float(beta) < 1:
            return float(beta)
    except ValueError:
        pass
    raise envs.UserError(f"unknown loss {kind!r}: reverse, forward, k1, or jsd:BETA with BETA between 0 and 1")


class ChunkedLoss(torch.autograd.Function):
    """Σ_n weight_n · loss_n without an [N × V] tensor beyond one chunk: the gradient is formed inside the forward.

    hidden (N, D), head (V', D): the student's; teacher_hidden (N, D'), teacher_head (V'', D'). Only the first `vocabulary` ids are
    compared, since checkpoints pad their heads differently. Returns the scalar loss and the KL per token (N,), not differentiable.
    """

    @staticmethod
    @torch.autocast("cuda", enabled=False)  # the logits and their gradient are formed in fp32
    def forward(ctx, hidden, head, teacher_hidden, teacher_head, token, old_logp, weight, args, vocabulary):
        d_hidden, d_head = torch.zeros_like(hidden), torch.zeros_like(head)
        total, kls = hidden.new_zeros((), dtype=torch.float32), []
        for n in torch.arange(len(token), device=token.device).split(args.chunk):
            logits = lm.logits(hidden[n], head[:vocabulary]) / args.temperature  # (n, V)
            teacher_logits = lm.logits(teacher_hidden[n], teacher_head[:vocabulary]) / args.temperature
            value, gradient, kl = token_loss(args.loss, logits, teacher_logits, token[n], old_logp[n], args.ppo_clip)
            gradient *= (weight[n] / args.temperature)[:, None]
            total += (value * weight[n]).sum()
            d_hidden[n] = (gradient @ head[:vocabulary].float()).to(d_hidden.dtype)
            d_head[:vocabulary] += gradient.T @ hidden[n].float()
            kls.append(kl)
        ctx.save_for_backward(d_hidden, d_head)
        kls = torch.cat(kls) if kls else hidden.new_zeros(0)
        ctx.mark_non_differentiable(kls)
        return total, kls

    @staticmethod
    def backward(ctx, d_total, _):
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * d_total, d_head * d_total, *[None] * 7


def token_weights(episodes, aggregate, totals):
    """Weight of every trained token, per row: a list (T,) over each row's tokens, 0 where nothing is trained.

    totals: numbers of episodes, turns and trained tokens over all ranks (`count`). With aggregate "episode" (Eq. 2) every token of
    an episode weighs 1 / episodes; "token": 1 / tokens; "turn": every turn weighs the same, its tokens share it.
    """
    all_episodes, all_turns, all_tokens = totals
    for episode in episodes:
        for row in episode.rows:
            length = np.bincount([t for t in row.turn if t >= 0], minlength=1)
            share = {"episode": lambda t: 1 / all_episodes, "token": lambda t: 1 / all_tokens,
                     "turn": lambda t: 1 / (all_turns * length[t])}[aggregate]
            yield [share(t) if t >= 0 else 0.0 for t in row.turn]


def count(episodes):
    """[episodes, trained turns, trained tokens] of this rank."""
    trained = [[t for t in row.turn if t >= 0] for e in episodes for row in e.rows]
    return [len(episodes), sum(len(set(turns)) for turns in trained), sum(map(len, trained))]


def micro_batches(rows, batch_tokens):
    """Indices of rows, grouped so that no group's padded size exceeds batch_tokens (a longer row goes alone), similar lengths together.

    >>> micro_batches([rollout.Row(ids=[0] * n) for n in (5, 2, 4, 2)], 8)
    [[1, 3], [2], [0]]
    """
    groups = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i].ids)):
        if groups and len(rows[i].ids) * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def trimmed(row):
    """The row up to its last trained token: what was said after it is never scored. Empty when nothing in it is trained."""
    end = max((j + 1 for j, t in enumerate(row.turn) if t >= 0), default=0)
    return rollout.Row(row.ids[:end], row.turn[:end], row.logp[:end])


def collate(rows, weights, device):
    """Rows -> dict of tensors: ids (B, T) right-padded with 0, and per trained token, in order of (row, position):
    where (N,), the index in the flattened (B · T) of the position *before* it, whose hidden state predicts it; token, old_logp,
    weight (N,).

    >>> a = rollout.Row([5, 7, 9, 2], [-1, -1, 0, 0], [0., 0., -.1, -.2])
    >>> b = rollout.Row([5, 8], [-1, 0], [0., -.3])
    >>> {k: v.tolist() for k, v in collate([a, b], [[0, 0, .5, .5], [0, .5]], "cpu").items()}  # doctest: +ELLIPSIS
    {'ids': [[5, 7, 9, 2], [5, 8, 0, 0]], 'where': [1, 2, 4], 'token': [9, 2, 8], ...
    """
    width = max(len(row.ids) for row in rows)
    trained = [(b, j) for b, row in enumerate(rows) for j, t in enumerate(row.turn) if t >= 0]
    tensor = lambda values, dtype: torch.tensor(values, dtype=dtype, device=device)
    return dict(ids=tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], torch.long),  # (B, T)
                where=tensor([b * width + j - 1 for b, j in trained], torch.long),  # (N,)
                token=tensor([rows[b].ids[j] for b, j in trained], torch.long),
                old_logp=tensor([rows[b].logp[j] for b, j in trained], torch.float32),
                weight=tensor([weights[b][j] for b, j in trained], torch.float32))
