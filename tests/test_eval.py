"""Figures of the tables by hand, and the command's parts on the real engine with random models."""

import doctest
import json

import pytest

import envs
import eval as evaluation
from eval import Args, spread, summarise, table, wilson


def test_examples_in_the_docstrings():
    """A docstring that promises values the code does not return."""
    assert doctest.testmod(evaluation).failed == 0


@pytest.mark.parametrize("won, games, low, high", [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (134, 140, 0.9097, 0.9802)])
def test_wilson_interval(won, games, low, high):
    """The normal approximation gives [1, 1] for ten of ten; values from Wilson's formula worked out separately."""
    got = wilson(won, games)
    assert got == pytest.approx((low, high), abs=2e-4) and 0 <= got[0] <= won / games <= got[1] + 1e-9 <= 1 + 1e-9


def outcome(task, kind, won, rounds, start=0, invalid=0, cut=0):
    return dict(task=task, kind=kind, won=won, rounds=rounds, start=start, invalid=invalid, missing=0, cut=cut, context_cut=False, crashed=False)


def test_summary_by_hand():
    """Rates per episode instead of per turn, replayed turns counted as the student's, pass@k counted in episodes."""
    outcomes = [outcome("a", "heat", True, 8, start=3, invalid=1), outcome("a", "heat", False, 20, invalid=4, cut=2),
                outcome("b", "cool", False, 20), outcome("b", "cool", False, 15)]
    s = summarise(outcomes)
    assert (s["games"], s["won"], s["success"], s["rounds"]) == (4, 1, 0.25, 63 / 4)
    assert s["invalid"] == pytest.approx(5 / 60) and s["cut"] == pytest.approx(2 / 60)
    assert (s["tasks"], s["solved"]) == (2, 1) and evaluation.success_of_tasks(s)["success"] == 0.5
    assert s["kinds"]["heat"]["success"] == 0.5 and s["kinds"]["cool"]["won"] == 0
    text = table({"student": s, "teacher": s})
    assert "25.0%" in text and "1 of" not in text and "50% of 2" in text and "0% of 2" in text


def test_games_are_spread_over_the_task_types(data):
    """The first games of a sorted list are all of one type, and so is every fourth of a list that cycles through four."""
    for kinds in (["a"] * 30 + ["b"] * 30 + ["c"] * 30, ["a", "b", "c"] * 30):
        chosen = spread(list(enumerate(kinds)), 30)
        assert len(set(chosen)) == 30 and chosen == sorted(chosen) == spread(list(enumerate(kinds)), 30)
        assert min(sum(kind == k for _, kind in chosen) for k in "abc") >= 5
    assert spread([1, 2], 5) == [1, 2]


def arguments(checkpoints, folder, **more):
    return Args(**{**dict(model=str(checkpoints / "student"), teacher=str(checkpoints / "teacher"), data=folder, games=4, max_turns=5,
                          max_response=4, batch=3), **more})


def test_table_on_screen_and_in_a_file(checkpoints, data, tmp_path, capsys):
    """Batches that do not divide the number of games; the same seed must give the same episodes whatever the batch."""
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    evaluation.main(arguments(checkpoints, data, out=str(files[0])))
    evaluation.main(arguments(checkpoints, data, out=str(files[1]), batch=4))
    a, b = (json.loads(file.read_text())["summary"] for file in files)
    assert a == b and a["games"] == 4 and a["rounds"] == 5.0
    assert "valid_seen" in capsys.readouterr().out


def test_take_over_counts_the_teachers_turns_only(checkpoints, data, tmp_path):
    """n = 0 is the teacher alone, n = horizon the student alone, with no turn of the teacher left to rate."""
    evaluation.main(arguments(checkpoints, data, take_over="0,5", out=str(tmp_path / "t.json")))
    first, last = json.loads((tmp_path / "t.json").read_text())["take_over"]
    assert (first["n"], last["n"]) == (0, 5) and first["games"] == 4 and last["teacher_invalid"] == 0.0
    assert first["teacher_invalid"] > 0.5  # a random model


def test_the_shortest_won_episode_is_kept(tmp_path):
    """Failures written as experts, or a detour kept although a shorter win is known."""
    episodes = [dict(task="a", won=True, actions=["x", "y"]), dict(task="a", won=True, actions=["y"]), dict(task="b", won=False, actions=["z"])]
    evaluation.save_experts(str(tmp_path / "e.jsonl"), episodes)
    assert [json.loads(line) for line in open(tmp_path / "e.jsonl")] == [dict(task="a", actions=["y"])]


def test_watching_reads_like_a_transcript(checkpoints, data, capsys):
    """The observation printed under a turn must be the answer to it, and what went wrong must be marked."""
    evaluation.main(arguments(checkpoints, data, watch=True))
    out = capsys.readouterr().out
    assert out.count("--- turn") == 5 and "Your task is to" in out.split("--- turn")[0] and "[invalid]" in out and "not won after 5 turns" in out


@pytest.mark.parametrize("wrong, words", [(dict(split="test"), "test"), (dict(env="chess"), "chess"), (dict(model="/nowhere"), "/nowhere"),
                                          (dict(take_over="1,x"), "--take-over"), (dict(games=0), "--games"),
                                          (dict(history="window:0"), "--history"), (dict(watch=True, take_over="0"), "choose one"),
                                          (dict(max_context=10**6), "4096 positions"), (dict(out="/nowhere/x.json"), "/nowhere"), (dict(knobs="level"), "written as in level=VALUE")])
def test_a_users_mistake_is_one_sentence(wrong, words, checkpoints, data):
    """A traceback."""
    with pytest.raises(envs.UserError, match=words):
        evaluation.main(arguments(checkpoints, data, **wrong))
