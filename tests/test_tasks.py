"""Which tasks a run trains on and is measured on."""

from types import SimpleNamespace

import pytest
from conftest import arguments

import curriculum
import envs
import tcod
from harness.cli import UserError
from harness.folder import read_log
from tasks import pick


def test_every_task_comes_once_a_round():
    """A task that comes again before all have come; one order for every round, or for all seeds."""
    tasks = list(range(10))
    orders = {}
    for seed in (0, 1):
        args = SimpleNamespace(episodes=4, seed=seed)
        orders[seed] = [task for n in range(1, 6) for task in pick(tasks, n, args)]
        assert sorted(orders[seed][:10]) == sorted(orders[seed][10:]) == tasks
        assert orders[seed][:10] != orders[seed][10:]
    assert orders[0] != orders[1]


def test_splits_are_those_asked_for(checkpoints, data, tmp_path):
    """Training on the games of the evaluation, or the other way round."""
    splits = dict(train_split="valid_seen", eval_splits="valid_unseen,train")
    tcod.main(arguments(checkpoints, data, tmp_path / "run", steps=1, **splits))
    assert all(e["task"].startswith("valid_seen") for e in read_log(tmp_path / "run" / "episodes.jsonl"))
    first, last = [r["eval"] for r in read_log(tmp_path / "run" / "log.jsonl")]
    assert set(first) == {"teacher", "before"} and set(last) == {"after"}
    assert all(set(splits) == {"valid_unseen", "train"} for splits in (*first.values(), *last.values()))


def test_splits_are_the_tasks_of_a_file(checkpoints, data, tmp_path, capsys):
    """Training on what was to be left out; a file whose tasks are counted as another split's."""
    train, seen = (envs.make_tasks("alfworld", split, data) for split in ("train", "valid_seen"))
    files = {"chosen": train[:5], "not": train[1:4], "hard": seen[:1]}
    for name, tasks in files.items():
        (tmp_path / name).write_text("\n".join(task.id for task in tasks))
    splits = dict(
        train_split=str(tmp_path / "chosen"), without=str(tmp_path / "not"),
        eval_splits=f"valid_unseen,lost={tmp_path / 'hard'}")
    tcod.main(arguments(checkpoints, data, tmp_path / "run", steps=1, **splits))
    assert {e["task"] for e in read_log(tmp_path / "run" / "episodes.jsonl")} == {train[0].id, train[4].id}
    after = read_log(tmp_path / "run" / "log.jsonl")[-1]["eval"]["after"]
    assert {split: s["games"] for split, s in after.items()} == {"valid_unseen": 2, "lost": 1}
    shown = capsys.readouterr().out
    assert "3 of 5 training tasks are left out" in shown and "lost: 1 of the 1 tasks in" in shown
    assert "2 training tasks" in shown


def test_held_out_tasks_are_not_trained_on(checkpoints, data, tmp_path):
    """Splits of other names that share games: success on what was learned by heart."""
    both = dict(train_split="valid_seen", eval_splits="valid_unseen,valid_seen", steps=1)
    with pytest.raises(UserError, match="2 of the 2 tasks .* valid_seen are trained on"):
        tcod.main(arguments(checkpoints, data, tmp_path / "run", **both))
    tcod.main(arguments(checkpoints, data, tmp_path / "run", shared_tasks=True, **both))


@pytest.mark.parametrize("method", curriculum.NEEDS_EXPERT)
def test_an_expert_is_needed(method, checkpoints, data, tmp_path):
    """B2F that falls back to OPD."""
    none = tmp_path / "none.jsonl"
    none.write_text("")
    with pytest.raises(UserError, match="expert"):
        tcod.main(arguments(checkpoints, data, tmp_path / "run", method=method, experts=str(none)))
