"""Lists of games: which are drawn, who plays which, how long a response of an evaluation is."""

from conftest import arguments

import envs
import model as lm
import play
import rollout
import tcod
from harness.ranks import Ranks
from play import spread


def test_games_are_spread_over_the_task_types():
    """The first games of a sorted list are all of one type, and so is every fourth of a list that cycles
    through four."""
    for kinds in (["a"] * 30 + ["b"] * 30 + ["c"] * 30, ["a", "b", "c"] * 30):
        tasks = list(enumerate(kinds))
        chosen = spread(tasks, 30)
        assert chosen == sorted(chosen) == spread(tasks, 30)
        assert len(set(chosen)) == 30
        for kind in "abc":
            assert sum(own == kind for _, own in chosen) >= 5
    assert spread([1, 2], 5) == [1, 2]


def test_ranks_play_what_one_process_plays(checkpoints, data):
    """Episodes that depend on who plays them, or are left out where the ranks do not divide the games."""
    tokenizer = lm.load_tokenizer(str(checkpoints / "student"))
    model = lm.load_model(str(checkpoints / "student"))
    chat = rollout.Chat(tokenizer)
    limits = rollout.Limits(max_response=4, max_context=2048)
    tasks = envs.make_tasks("alfworld", "valid_seen", data)[:3]
    games = [envs.make_env("alfworld", data=data) for _ in range(2)]
    alone = play.evaluate(model, chat, games, tasks, 3, limits, seed=5)
    parts = []
    for rank in range(2):
        parts.append(play.evaluate(
            model, chat, games, tasks, 3, limits, seed=5, rank=rank, world=2))
    assert [o["index"] for o in alone] == [0, 1, 2]
    assert [parts[0][0], parts[1][0], parts[0][1]] == alone
    assert [len(part) for part in parts] == [2, 1]


def test_an_evaluations_responses_are_as_long_as_asked(checkpoints, data, tmp_path, monkeypatch, capsys):
    """A longer response that takes the room of the game's words, or is forgotten when a run goes on; a row
    beyond the positions."""
    limits = []

    def seen(*args, **more):
        limits.append(args[5])
        return evaluate(*args, **more)

    evaluate = play.evaluate
    monkeypatch.setattr(play, "evaluate", seen)
    run = tmp_path / "run"
    tcod.main(arguments(checkpoints, data, run, steps=1, eval_max_response=9, eval_splits="valid_seen"))
    tcod.main(tcod.Args(resume=str(run), steps=2))
    assert {(l.max_response, l.max_context, l.temperature) for l in limits} == {(9, 2048 + 9 - 4, 0.4)}

    args = arguments(checkpoints, data, run, max_context=4000, eval_max_response=104)
    capsys.readouterr()
    for positions, context, told in ((4100, 4100, False), (4050, 4050, True)):
        found = play.evaluation_limits(args, positions, Ranks())
        assert (found.max_response, found.max_context) == (104, context)
        assert ("end an episode at 3946 tokens instead of 3996" in capsys.readouterr().out) == told
    args.eval_max_response = 0
    assert play.evaluation_limits(args, 4096, Ranks()).max_context == 4000
