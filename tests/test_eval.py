"""The evaluation command on the real engine with random models: what is played, counted, written, refused."""

import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from conftest import two_processes
from safetensors.torch import load_file, save_file

import envs
import eval as evaluation
import load
import tcod
from chat import prompts
from eval import Args
from harness.cli import UserError
from harness.folder import Journal
from harness.ranks import Ranks
from harness.stops import Stopped
from tasks import give_experts, read_experts


def arguments(checkpoints, folder, **more):
    """A few games of random models."""
    known = dict(
        model=str(checkpoints / "student"), teacher=str(checkpoints / "teacher"), data=folder,
        games=4, max_turns=5, max_response=4)
    return Args(**{**known, **more})


@pytest.fixture(autouse=True)
def three_at_once(monkeypatch):
    """Batches that do not divide the number of games."""
    monkeypatch.setattr(evaluation, "SMALL_AT_ONCE", 3)


def test_table_on_screen_and_in_a_file(checkpoints, data, tmp_path, capsys, monkeypatch):
    """The same seed must give the same episodes however many are played at once."""
    summaries = []
    for number in (3, 4):
        monkeypatch.setattr(evaluation, "SMALL_AT_ONCE", number)
        out = tmp_path / f"{number}.json"
        evaluation.main(arguments(checkpoints, data, out=str(out)))
        written = json.loads(out.read_text())
        summaries.append(written["summary"])
        assert written["split"] == "valid_seen"
        assert written["args"]["max_context"] == 2048  # as it was played, not as it was left open
    assert summaries[0] == summaries[1]
    assert (summaries[0]["games"], summaries[0]["rounds"]) == (4, 5.0)
    assert "student · valid_seen" in capsys.readouterr().out


def test_an_open_context_is_cut_to_the_positions(checkpoints, data, tmp_path, capsys):
    """A model of fewer positions than the default that ends in an error; a default that is taken for the
    user's word; the teacher's positions forgotten."""
    short, args = tmp_path / "short", partial(arguments, checkpoints, data)
    shutil.copytree(checkpoints / "teacher", short)  # its own default is 2,048
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 700}))
    evaluation.main(args(model=str(short), out=str(tmp_path / "t.json")))
    assert json.loads((tmp_path / "t.json").read_text())["args"]["max_context"] == 700
    assert f"--max-context 700, since '{short}' has no more positions" in capsys.readouterr().out
    run = tcod.Args(student=str(checkpoints / "student"), teacher=str(short))
    assert "--max-context 700" in tcod.resolve(run) and run.max_context == 700
    with pytest.raises(UserError, match="--max-context 701 is more than the 700 positions"):
        evaluation.main(args(model=str(short), max_context=701))
    for own, context in ((dict(max_context=2048), 2048), ({}, 4096)):  # the model has 4,096
        open_context = args()
        told = evaluation.fill(open_context, own, open_context.model)
        assert open_context.max_context == context and len(told) == (context == 4096)


def test_bad_games_are_left_out(checkpoints, damaged, tmp_path, capsys):
    """One game that cannot be played and ends an evaluation, counts as lost, or is taken for a hard one."""
    out, hard = tmp_path / "t.json", tmp_path / "hard.jsonl"
    evaluation.main(arguments(checkpoints, damaged, out=str(out), samples=2, save_hard=str(hard)))
    assert len(hard.read_text().splitlines()) == 3
    summary = json.loads(out.read_text())["summary"]
    assert (summary["games"], summary["pass_at_k"]["games"]) == (6, 3)
    assert len(summary["each"]) == 8 and summary["each"].count("--") == 1
    assert len(json.loads(out.read_text())["tasks"]) == 12  # the list's fingerprint
    assert ["duplicate object" in why for why in summary["unplayable"].values()] == [True]
    assert "left out, since it cannot be played: 1 task, valid_seen/" in capsys.readouterr().out
    evaluation.main(arguments(checkpoints, damaged, take_over="0", out=str(out) + "2"))
    assert json.loads((tmp_path / "t.json2").read_text())["take_over"][0]["games"] == 3
    assert "left out, since it cannot be played: 1 task, valid_seen/" in capsys.readouterr().out
    with pytest.raises(UserError, match="too many of the 4 tasks drawn .* --max-context 30"):
        evaluation.main(arguments(checkpoints, damaged, max_context=30))


def test_samples_are_episodes_of_their_own(checkpoints, data, capsys, monkeypatch):
    """Every sample of a game with the same draws; pass@k of samples instead of games."""
    played = []

    def seen(episode):
        played.append(episode)
        return note(episode)

    note = evaluation.note_expert
    monkeypatch.setattr(evaluation, "note_expert", seen)
    evaluation.main(arguments(checkpoints, data, games=2, samples=2))
    assert [episode.index for episode in played] == [0, 1, 2, 3]
    names = [episode.task.id for episode in played]
    assert names[0] == names[1] != names[2] == names[3]
    assert played[0].turns[0].ids != played[1].turns[0].ids
    assert "of 2 tasks" in capsys.readouterr().out


def test_take_over_counts_the_teachers_turns_only(checkpoints, data, tmp_path):
    """n = 0 is the teacher alone, n = horizon the student alone, with no turn of the teacher left to rate."""
    out = tmp_path / "t.json"
    evaluation.main(arguments(checkpoints, data, take_over="0,5", out=str(out)))
    first, last = json.loads(out.read_text())["take_over"]
    assert (first["n"], last["n"]) == (0, 5)
    assert first["games"] == 4
    assert last["teacher_invalid"] == 0.0
    assert first["teacher_invalid"] > 0.5  # a random model


def test_invalid_actions_are_those_of_the_teacher():
    """The student's wanderings blamed on the teacher, whoever of both had the later turns."""
    turns = [
        SimpleNamespace(who=who, invalid=invalid, missing=False, cut=False, repeats=False, action="x")
        for who, invalid in (("student", True), ("teacher", False), ("student", True), ("teacher", True))]
    episode = SimpleNamespace(
        task=envs.Task("a", "heat"), index=0, turns=turns, won=False, lost=False, context_cut=False,
        crashed=False, filled=False, unplayable="")

    def play(rules, note, begin):
        assert begin == 0 and rules.k == 1
        yield [note(episode)]

    row = evaluation.take_over(play, 1, 4, Journal("", {}), Ranks())
    assert row["teacher_invalid"] == 0.5
    assert (row["n"], row["games"], row["won"]) == (1, 1, 0)


def test_hard_tasks_are_those_lost_in_all_tries():
    """A task of which a try is still to come, that could not be played, or whose engine died: it was not
    lost."""
    def record(task, won=False, crashed=False, unplayable=""):
        return dict(task=task, digest="d", won=won, crashed=crashed, unplayable=unplayable)

    records = [
        *[record("lost")] * 2, record("once"), record("once", won=True), record("soon"),
        record("died"), record("died", crashed=True), *[record("bad", unplayable="no goal")] * 2]
    assert evaluation.hard(records, 2) == [dict(task="lost", digest="d")]


def test_a_file_of_ids_is_played(checkpoints, data, tmp_path, capsys):
    """The whole split in place of a file's tasks."""
    task = envs.make_tasks("alfworld", "train", data)[3]
    (tmp_path / "hard.ids").write_text(task.id)
    for split, label in ((str(tmp_path / "hard.ids"), "hard"), (f"lost={tmp_path / 'hard.ids'}", "lost")):
        evaluation.main(arguments(checkpoints, data, split=split))
        shown = capsys.readouterr().out
        assert "1 of the 1 tasks in" in shown and f"{label}  " in shown


# ---- the held-out games of a run

def test_what_is_due_is_evaluated_once(monkeypatch):
    """The teacher played again after every few steps; what a stop left of an evaluation played anew; a record
    without its episodes, which a method's dial reads."""
    played = []
    monkeypatch.setattr(
        evaluation, "evaluate", lambda model, *rest, label, **more: played.append((model, label)) or [])
    args = SimpleNamespace(
        eval_every=4, steps=6, seed=0, max_response=4, max_context=99, history="full")
    players = {who: (who, None) for who in ("teacher", "before", "after")}
    held_out = evaluation.HeldOut(args, Ranks(), players, [], {"seen": [], "unseen": []}, 30)
    run = SimpleNamespace(log=[], rewrite=lambda: None)
    held_out.assess(run)
    assert [model for model, _ in played] == ["teacher", "teacher", "before", "before"]
    assert played[1][1] == "teacher · unseen" and run.log[0]["episodes"] == []
    for n, number in ((1, 0), (4, 2), (5, 0), (6, 2)):
        played.clear()
        run.log.append(dict(step=n))
        held_out.assess(run)
        assert [model for model, _ in played] == ["after"] * number
    run.log[-1]["eval"]["after"].pop("unseen")
    played.clear()
    held_out.assess(run)
    assert played == [("after", "student after · unseen")]


# ---- stops

def stopping(at):
    """`rollout.play` that wins every other task, and is stopped at its `at`-th call."""
    original, calls = evaluation.rollout.play, []

    def play(*args, **named):
        calls.append(1)
        if len(calls) == at:
            raise Stopped(signal.SIGTERM)
        episodes = original(*args, **named)
        for episode in episodes:
            episode.won = episode.index // 2 % 2 == 0
        return episodes

    return play


def files(folder):
    """{name: content} of what an evaluation wrote, its own place taken out of it."""
    return {path.name: path.read_text().replace(str(folder), "") for path in sorted(folder.iterdir())}


def test_a_stopped_evaluation_goes_on(checkpoints, data, tmp_path, monkeypatch):
    """35,000 episodes of a teacher lost with the last one; games played twice, or other ones; another
    evaluation's files overwritten; experts whose file does not belong to its own games."""
    def args(folder, **more):
        named = dict(out=f"{folder}/t.json", save_expert=f"{folder}/e.jsonl", save_hard=f"{folder}/h.jsonl")
        return arguments(checkpoints, data, samples=2, **{**named, **more})

    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder, at in ((whole, 0), (part, 2)):
        folder.mkdir()
        with monkeypatch.context() as context:
            context.setattr(evaluation.rollout, "play", stopping(at))
            if folder == whole:
                evaluation.main(args(folder))
                continue
            with pytest.raises(Stopped, match="t.json.played holds 3 episodes, the same command goes on"):
                evaluation.main(args(folder))
    table = json.loads((part / "t.json").read_text())
    assert (table["summary"]["games"], table["of"]) == (3, 8)
    assert len(read_experts(str(part / "e.jsonl"))) == 1
    with open(part / "t.json.played", "a") as file:
        file.write('{"task": "cut by a kil')
    before = files(part)
    with pytest.raises(UserError, match="another evaluation .it differs in temperature"):
        evaluation.main(args(part, temperature=1.0))
    with pytest.raises(UserError, match="another evaluation .it differs in words of the prompt"):
        evaluation.main(args(part, prompt="react"))
    assert files(part) == before
    with pytest.raises(UserError, match="e.jsonl is there already, and no .*e.jsonl.played says of what"):
        evaluation.main(args(part, out="", save_hard=f"{part}/h2.jsonl"))
    monkeypatch.setattr(evaluation.rollout, "play", stopping(0))
    monkeypatch.setattr(evaluation, "SMALL_AT_ONCE", 2)
    evaluation.main(args(part))
    done = files(part)
    assert done == files(whole)
    assert [len(done[name].splitlines()) for name in ("e.jsonl", "h.jsonl", "t.json.played")] == [2, 2, 9]
    tasks = envs.make_tasks("alfworld", "valid_seen", data)
    able = give_experts(tasks, f"{part}/e.jsonl", prompts.load("bare"))
    assert [task.id for task in able] == [tasks[0].id, tasks[2].id]
    assert {len(task.expert) for task in able} == {len(task.responses) for task in able} == {5}
    monkeypatch.setattr(evaluation.rollout, "play", stopping(1))
    evaluation.main(args(part))  # nothing is left to play
    assert files(part) == done


def test_figures_of_a_model_that_is_not_there_any_more(checkpoints, data, tmp_path, monkeypatch):
    """The same command after config.json was mended, or one weight that a sample of them does not see: the
    old table printed again. A journal of a version that noted less, refused for it."""
    mine, out = tmp_path / "student", tmp_path / "t.json"
    shutil.copytree(checkpoints / "student", mine)
    args = arguments(checkpoints, data, model=str(mine), out=str(out), games=2)
    evaluation.main(replace(args))
    evaluation.main(replace(args))
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-2}))
    with pytest.raises(UserError, match="of another evaluation .it differs in student's configuration."):
        evaluation.main(replace(args))
    (mine / "config.json").write_text(json.dumps(config))
    weights = load_file(mine / "model.safetensors")
    weights["model.embed_tokens.weight"][3, 5] += 1
    save_file(weights, mine / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="of another evaluation .it differs in student's weights."):
        evaluation.main(replace(args))
    head, *played = (tmp_path / "t.json.played").read_text().splitlines()
    old = {name: value for name, value in json.loads(head).items() if name not in ("identity", "history")}
    (tmp_path / "t.json.played").write_text("\n".join([json.dumps(old), *played, ""]))
    monkeypatch.setattr(evaluation.rollout, "play", stopping(1))
    evaluation.main(replace(args))  # nothing is left to play
    with pytest.raises(UserError, match="of another evaluation .it differs in history."):
        evaluation.main(replace(args, history="window:1"))


def test_games_are_shared_among_the_processes(checkpoints, monkeypatch):
    """An environment that nobody plays in; as many games of a large model as of a tiny one."""
    model = load.load_model(str(checkpoints / "student"))
    assert [evaluation.at_once(model, number, 2) for number in (1, 4, 9)] == [1, 2, 3]
    monkeypatch.setattr(load, "SMALL", 0)
    assert evaluation.at_once(model, 100, 1) == 32


def test_two_processes_evaluate_as_one(checkpoints, data, tmp_path):
    """Ranks that play the same games, or leave some out; lines in the order in which ranks are done; episodes
    that depend on who plays them."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    for folder in (alone, both):
        folder.mkdir()
    shared = dict(games=3, samples=3, max_turns=2)
    evaluation.main(arguments(checkpoints, data, save_hard=f"{alone}/h.jsonl", **shared))
    args = arguments(checkpoints, data, save_hard=f"{both}/h.jsonl", **shared)
    assert two_processes(evaluation.main, args, ranks=True) == [0, 0]
    assert files(both) == files(alone)
    assert len(files(both)["h.jsonl"].splitlines()) == 3


# ---- mistakes

@pytest.mark.parametrize("wrong, words", [
    (dict(split="test"), "test"),
    (dict(split="valid_seen,train"), "one split"),
    (dict(model="/nowhere"), "/nowhere"),
    (dict(take_over="1,x"), "--take-over"),
    (dict(take_over="0", teacher="/nowhere"), "/nowhere"),
    (dict(games=0), "--games"),
    (dict(samples=0), "--samples"),
    (dict(max_response=0), "--max-response"),
    (dict(max_turns=-1), "--max-turns"),
    (dict(temperature=float("nan")), "--temperature"),
    (dict(history="window:0"), "--history"),
    (dict(history="window:²"), "--history"),
    (dict(watch="-", take_over="0"), "choose one"),
    (dict(watch="-", out="x.json"), "--out is for a table"),
    (dict(save_hard="x", save_expert="./x"), "a file of its own"),
    (dict(take_over="0,6"), "beyond the 5 turns"),
    (dict(max_context=10**6), "4096 positions"),
    (dict(out="/nowhere/x.json"), "no folder /nowhere"),
    (dict(save_expert="/nowhere/x.jsonl"), "no folder /nowhere"),
    (dict(watch="/nowhere/x.html"), "no folder /nowhere"),
    (dict(watch="x.html", teacher="/nowhere"), "/nowhere"),
    (dict(precision="fp16"), "--precision"),
])
def test_a_users_mistake_is_one_sentence(wrong, words, checkpoints, data):
    """A traceback."""
    with pytest.raises(UserError, match=words) as caught:
        evaluation.main(arguments(checkpoints, data, **wrong))
    assert "\n" not in str(caught.value)
