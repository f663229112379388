"""From episodes to tensors, by hand."""

import math
from types import SimpleNamespace

import pytest

from batch import EMPTY, collate, count, micro_batches, samples_of, trimmed
from rollout import Row


def episode(*rows, weights=None, losses=None):
    """What `rollout.play` returns, as far as batches look at it. rows: lists of turns, one per token."""
    turns = 1 + max((t for row in rows for t in row), default=-1)
    weights, losses = weights or [1.0] * turns, losses or [""] * turns
    return SimpleNamespace(
        rows=[Row(list(range(len(row))), list(row), [0.0] * len(row)) for row in rows],
        turns=[SimpleNamespace(weight=w, loss=loss) for w, loss in zip(weights, losses, strict=True)])


BOTH = [episode([-1, 0, 0, 0, -1, 1, 1]), episode([-1, 0, -1])]  # two episodes, three turns, six tokens


@pytest.mark.parametrize("aggregate, first, second", [
    ("episode", {0: 1 / 2, 1: 1 / 2}, {0: 1 / 2}), ("token", {0: 1 / 6, 1: 1 / 6}, {0: 1 / 6}),
    ("turn", {0: 1 / 9, 1: 1 / 6}, {0: 1 / 3})])
def test_weights_of_the_three_aggregates(aggregate, first, second):
    """Eq. 2 sums over an episode's tokens; a token mean would make long episodes lighter."""
    assert count(BOTH) == [2, 3, 6]
    found = samples_of(BOTH, aggregate, count(BOTH))
    assert [sample.weight for sample in found] == [pytest.approx(first), pytest.approx(second)]


def test_a_turns_own_weight():
    """A discount that is applied to the wrong turn; a normaliser that shrinks with the weights, or counts
    what a method has weighed with nothing."""
    played = episode([-1, 0, 1, 1, 2], weights=[1.0, 0.25, 0.0])
    assert count([played]) == [1, 2, 3]
    assert samples_of([played], "turn", count([played]))[0].weight == {0: 1 / 2, 1: 0.25 / 4, 2: 0.0}


def test_rows_end_with_their_last_trained_token():
    """A forward over what is never scored; a row without any trained token that takes a place in a batch."""
    row = trimmed(Row([1, 2, 3, 4], [-1, 0, -1, -1], [0.0] * 4))
    assert (row.ids, row.turn, row.logp) == ([1, 2], [-1, 0], [0.0, 0.0])
    found = samples_of([episode([-1, -1]), episode([-1, 0], [-1, -1, 0])], "episode", [2, 2, 2])
    assert [(sample.number, len(sample.row.ids)) for sample in found] == [(1, 2), (1, 3)]


def test_collate_gathers_what_belongs_together():
    """Columns in the order of the batch's rows, not of the episodes; an episode's number within the
    micro-batch; a teacher's turn trained by the student's loss, or weighed as another turn."""
    played = [episode([-1, 0, 0]), episode([-1, -1, -1, 0, -1, 1], losses=["", "forward"])]
    played[1].rows[0].logp[3] = math.nan
    group = micro_batches(samples_of(played[::-1], "turn", [2, 3, 4]), 100)[0]
    got = collate(group, "k1", "cpu")
    assert got.ids.tolist() == [[0, 1, 2, 0, 0, 0], [0, 1, 2, 3, 4, 5]]
    assert got.where.tolist() == [0, 1, 6 + 2, 6 + 4] and got.token.tolist() == [1, 2, 3, 5]
    assert got.episode.tolist() == [1, 1, 0, 0] and got.turn.tolist() == [0, 0, 0, 1]
    assert got.weight.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3])
    assert {name: n.tolist() for name, n in got.losses.items()} == {"k1": [0, 1, 2], "forward": [3]}
    assert got.sampled_logp.isnan().tolist() == [False, False, True, False]


def test_micro_batches_hold_every_sample_once():
    """A row longer than the limit that is dropped, or that takes others over it."""
    rows = [EMPTY._replace(number=i, row=Row([0] * n)) for i, n in enumerate((9, 2, 3, 3, 20, 1))]
    groups = micro_batches(rows, 10)
    assert [[sample.number for sample in group] for group in groups] == [[5, 1, 2], [3], [0], [4]]


def test_the_empty_sample_trains_nothing():
    """A rank without work that trains a dummy token."""
    got = collate([EMPTY], "reverse", "cpu")
    assert got.ids.tolist() == [[0]] and got.losses == {}
    assert got.where.numel() == got.token.numel() == 0
    assert count([]) == [0, 0, 0] and samples_of([], "turn", [1, 1, 1]) == []
