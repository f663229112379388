"""From played episodes to batches of tensors: Eq. 2's weights, rows cut to what is trained, micro-batches.

Read before this: rollout.py; after it: loss.py.

Notation: B = row, T = token, t = turn, N = trained token of a micro-batch.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from rollout import Episode, Row

AGGREGATES = ("episode", "token", "turn")


# ---- data

class Sample(NamedTuple):
    """A row to learn from, up to its last trained token; the weight and the loss of a turn stand in its
    episode."""
    row: Row
    episode: Episode
    number: int             # the episode's place among those of the step
    weight: dict            # {turn: what each of its tokens weighs}


@dataclass
class Batch:
    """A micro-batch; per trained token, in order of (row, position)."""
    ids: torch.Tensor       # (B, T), right-padded with 0
    where: torch.Tensor     # (N,) the position before it in the flattened (B · T): its state predicts it
    token: torch.Tensor     # (N,)
    sampled_logp: torch.Tensor  # (N,) with which the student sampled it; NaN where it did not
    weight: torch.Tensor    # (N,) in the loss
    episode: torch.Tensor   # (N,) its place among those of the step
    turn: torch.Tensor      # (N,)
    losses: dict            # {name: which of the N tokens are trained by it}


# A rank with nothing to train still takes part in the backward pass.
EMPTY = Sample(Row([0], [-1], [0.0]), Episode(None, 0), 0, {})


# ---- weights

def count(episodes):
    """[episodes, turns, tokens] that are trained, with a weight: summed over the ranks, what the loss is
    divided by."""
    turns = tokens = 0
    for episode in episodes:
        for row in episode.rows:
            weighed = [t for t in row.turn if t >= 0 and episode.turns[t].weight]
            turns += len(set(weighed))
            tokens += len(weighed)
    return [len(episodes), turns, tokens]


def share(aggregate, totals, length):
    """What a token of a turn with `length` tokens weighs, in a step with these totals (see `count`).

    episode   1 / episodes: the sum over an episode's tokens, the mean over episodes (Eq. 2)
    token     1 / tokens
    turn      every turn weighs the same, its tokens share it
    """
    episodes, turns, tokens = (max(1, total) for total in totals)
    if aggregate == "episode":
        return 1 / episodes
    return 1 / tokens if aggregate == "token" else 1 / (turns * length)


def trimmed(row):
    """The row up to its last trained token: what follows is never scored. Empty where nothing is trained."""
    end = max((j + 1 for j, t in enumerate(row.turn) if t >= 0), default=0)
    return replace(row, ids=row.ids[:end], turn=row.turn[:end], logp=row.logp[:end])


def samples_of(episodes, aggregate, totals):
    """The samples of some episodes: a token weighs its turn's weight times its `share`."""
    found = []
    for e, episode in enumerate(episodes):
        for row in map(trimmed, episode.rows):
            lengths = Counter(t for t in row.turn if t >= 0)
            weight = {t: episode.turns[t].weight * share(aggregate, totals, n) for t, n in lengths.items()}
            if weight:
                found.append(Sample(row, episode, e, weight))
    return found


# ---- tensors

def micro_batches(samples, batch_tokens):
    """Groups of samples whose padded size is at most batch_tokens (a longer row goes alone), similar lengths
    together.

    >>> rows = [EMPTY._replace(row=Row(ids=[0] * n)) for n in (5, 2, 4, 2)]
    >>> [[len(sample.row.ids) for sample in group] for group in micro_batches(rows, 8)]
    [[2, 2], [4], [5]]
    """
    groups = []
    for sample in sorted(samples, key=lambda sample: len(sample.row.ids)):
        if groups and len(sample.row.ids) * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def padded(rows, device):
    """Rows -> ids (B, T), right-padded with 0."""
    width = max(len(row.ids) for row in rows)
    return torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=device)  # (B, T)


def before(rows, device):
    """Per trained token, in order of (row, position): the index in the flattened (B · T) of the position
    *before* it, whose hidden state predicts it. (N,)"""
    width = max(len(row.ids) for row in rows)
    places = [b * width + j - 1 for b, row in enumerate(rows) for j, t in enumerate(row.turn) if t >= 0]
    return torch.tensor(places, dtype=torch.long, device=device)


def collate(samples, loss, device):
    """Samples -> a Batch. loss: the name for turns that name none.

    >>> from types import SimpleNamespace as Played
    >>> turns = [Played(loss="k1"), None, None, Played(loss="")]
    >>> a = Sample(Row([5, 7, 9, 2], [-1, -1, 0, 0], [0., 0., -.1, -.2]), Played(turns=turns), 0, {0: .5})
    >>> b = Sample(Row([5, 8], [-1, 3], [0., -.3]), Played(turns=turns), 1, {3: .25})
    >>> batch = collate([a, b], "nll", "cpu")
    >>> batch.ids.tolist(), batch.where.tolist(), batch.token.tolist()
    ([[5, 7, 9, 2], [5, 8, 0, 0]], [1, 2, 4], [9, 2, 8])
    >>> batch.weight.tolist(), batch.episode.tolist(), batch.turn.tolist()
    ([0.5, 0.5, 0.25], [0, 0, 1], [0, 0, 3])
    >>> {name: n.tolist() for name, n in batch.losses.items()}
    {'k1': [0, 1], 'nll': [2]}
    """
    trained = [
        (sample, sample.row.ids[j], sample.row.logp[j], t)
        for sample in samples for j, t in enumerate(sample.row.turn) if t >= 0]
    losses = {}
    for n, (sample, _, _, t) in enumerate(trained):
        losses.setdefault(sample.episode.turns[t].loss or loss, []).append(n)

    def integers(values):
        return torch.tensor(values, dtype=torch.long, device=device)  # (N,)

    def numbers(values):
        return torch.tensor(values, dtype=torch.float32, device=device)  # (N,)

    rows = [sample.row for sample in samples]
    return Batch(
        ids=padded(rows, device),
        where=before(rows, device),
        token=integers([token for _, token, _, _ in trained]),
        sampled_logp=numbers([logp for _, _, logp, _ in trained]),
        weight=numbers([sample.weight[t] for sample, _, _, t in trained]),
        episode=integers([sample.number for sample, _, _, _ in trained]),
        turn=integers([t for _, _, _, t in trained]),
        losses={name: integers(n) for name, n in losses.items()})
