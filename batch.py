"""From played episodes to batches of tensors: Eq. 2's weights, rows cut to what is trained, micro-batches.

Notation: B = row, T = token, t = turn, N = trained token of a micro-batch.
"""

from collections import Counter
from typing import NamedTuple

import torch

from rollout import Row

AGGREGATES = ("episode", "token", "turn")


class Sample(NamedTuple):
    """A row to learn from, up to its last trained token, with the weight and the loss of every token."""
    episode: int            # the episode's place in the list that the samples were made of
    row: Row
    weight: list[float]     # (T,), 0 where nothing is trained
    loss: list[str]         # (T,), "" where nothing is trained


# A rank with nothing to train still takes part in the backward pass.
EMPTY = Sample(0, Row([0], [-1], [0.0]), [0.0], [""])


def count(episodes):
    """[episodes, trained turns, trained tokens]: summed over the ranks, what the loss is divided by."""
    turns = tokens = 0
    for episode in episodes:
        for row in episode.rows:
            trained = [t for t in row.turn if t >= 0]
            turns += len(set(trained))
            tokens += len(trained)
    return [len(episodes), turns, tokens]


def share(aggregate, totals, length):
    """What a token of a turn with `length` tokens weighs, in a step with these totals (see `count`).

    episode   1 / episodes: the sum over an episode's tokens, the mean over episodes (Eq. 2)
    token     1 / tokens
    turn      every turn weighs the same, its tokens share it
    """
    episodes, turns, tokens = totals
    if aggregate == "episode":
        return 1 / episodes
    return 1 / tokens if aggregate == "token" else 1 / (turns * length)


def trimmed(row):
    """The row up to its last trained token: what follows is never scored. Empty where nothing is trained."""
    end = max((j + 1 for j, t in enumerate(row.turn) if t >= 0), default=0)
    return Row(row.ids[:end], row.turn[:end], row.logp[:end])


def samples(episodes, aggregate, totals, loss):
    """The samples of some episodes: a token weighs its turn's weight times its `share`.

    loss: the name for turns that name none.
    """
    found = []
    for e, episode in enumerate(episodes):
        for row in map(trimmed, episode.rows):
            if not row.ids:
                continue
            lengths = Counter(t for t in row.turn if t >= 0)
            weights, losses = [0.0] * len(row.ids), [""] * len(row.ids)
            for j, t in enumerate(row.turn):
                if t >= 0:
                    weights[j] = episode.turns[t]["weight"] * share(aggregate, totals, lengths[t])
                    losses[j] = episode.turns[t]["loss"] or loss
            found.append(Sample(e, row, weights, losses))
    return found


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


def collate(samples, device):
    """Samples -> a dict of tensors: ids (B, T) and where (N,) as above; per trained token, in order of (row,
    position), its token, sampled_logp, weight, episode and turn (N,); and loss, {name: which of the N tokens
    are trained by it}.

    >>> row = Row([5, 7, 9, 2], [-1, -1, 0, 0], [0., 0., -.1, -.2])
    >>> a = Sample(0, row, [0, 0, .5, .5], ["", "", "k1", "k1"])
    >>> b = Sample(1, Row([5, 8], [-1, 3], [0., -.3]), [0, .5], ["", "nll"])
    >>> batch = collate([a, b], "cpu")
    >>> batch["ids"].tolist(), batch["where"].tolist(), batch["token"].tolist()
    ([[5, 7, 9, 2], [5, 8, 0, 0]], [1, 2, 4], [9, 2, 8])
    >>> batch["episode"].tolist(), batch["turn"].tolist()
    ([0, 0, 1], [0, 0, 3])
    >>> {name: n.tolist() for name, n in batch["loss"].items()}
    {'k1': [0, 1], 'nll': [2]}
    """
    columns = dict(token=[], sampled_logp=[], weight=[], episode=[], turn=[])
    losses = {}
    for sample in samples:
        for j, t in enumerate(sample.row.turn):
            if t >= 0:
                losses.setdefault(sample.loss[j], []).append(len(columns["turn"]))
                columns["token"].append(sample.row.ids[j])
                columns["sampled_logp"].append(sample.row.logp[j])
                columns["weight"].append(sample.weight[j])
                columns["episode"].append(sample.episode)
                columns["turn"].append(t)
    rows = [sample.row for sample in samples]
    batch = dict(ids=padded(rows, device), where=before(rows, device))
    for name, values in columns.items():
        real = name in ("sampled_logp", "weight")
        batch[name] = torch.tensor(values, dtype=torch.float32 if real else torch.long, device=device)  # (N,)
    batch["loss"] = {name: torch.tensor(index, device=device) for name, index in losses.items()}
    return batch
