"""Which tasks a run trains on and is measured on, files of task ids, files of experts' episodes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import arguments

import envs
import tasks as lists
import tcod
from chat import prompts
from harness.cli import UserError
from harness.folder import read_log
from harness.ranks import Ranks
from tasks import Experts, check_shared, expert_line, give_experts, listed, named_splits, pick, read_experts

BARE, ALFWORLD = prompts.load("bare"), envs.game_type("alfworld")


@pytest.fixture
def ids_file(tmp_path):
    """write(lines) -> the path of a file of task ids."""
    def write(*lines, name="ids.txt", encoding="utf-8"):
        path = tmp_path / name
        path.write_text("\n".join(lines), encoding=encoding)
        return str(path)
    return write


# ---- files of task ids

@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_split_may_be_a_file_of_ids(encoding, data, ids_file):
    """Tasks in another order, twice, or those of the wrong split; a note in the file taken for a task, or the
    mark of an editor that writes one taken for a part of it."""
    train, seen = (envs.make_tasks("alfworld", split, data) for split in ("train", "valid_seen"))
    wanted = [train[5], seen[1], train[2]]
    path = ids_file(
        "# lost in all tries", wanted[0].id, "", f" {wanted[1].id} ", wanted[2].id, wanted[0].id,
        encoding=encoding)
    assert listed("alfworld", path, data) == wanted
    first = ids_file(train[0].id, encoding=encoding)
    assert listed("alfworld", first, data) == train[:1]
    assert lists.without(train, first, ALFWORLD, data) == train[1:]


def test_lines_of_eval_are_ids_of_the_same_games(data, ids_file):
    """The tasks lost in all tries, or won, as eval.py writes them; the same ids in another data folder number
    other games."""
    train = envs.make_tasks("alfworld", "train", data)
    lines = [json.dumps(dict(task=task.id, digest=task.digest)) for task in train[:2]]
    assert listed("alfworld", ids_file(*lines), data) == train[:2]
    assert lists.without(train, ids_file(*lines), ALFWORLD, data) == train[2:]
    other = ids_file(lines[0], json.dumps(dict(task=train[1].id, digest="0123456789ab")))
    for read in (
            lambda: listed("alfworld", other, data), lambda: lists.without(train, other, ALFWORLD, data)):
        with pytest.raises(UserError, match=f"1 of the tasks .* are other games here, .*{train[1].id}"):
            read()


def test_ids_without_a_split_are_looked_for_in_all(ids_file):
    """A world whose ids do not begin with their split."""
    pytest.importorskip("scienceworld")
    wanted = [envs.make_tasks("scienceworld", split, "boil")[0] for split in ("test", "train")]
    assert listed("scienceworld", ids_file(*(task.id for task in wanted)), "boil") == wanted


def test_named_splits(ids_file):
    """A label that is lost, so that two files share a row of the table."""
    path = ids_file("x", name="hard.ids")
    named = named_splits("alfworld", f"valid_seen, lost={path},{path}")
    assert named == {"valid_seen": "valid_seen", "lost": path, "hard": path}
    assert list(named_splits("alfworld", "")) == ["valid_seen", "valid_unseen"]


@pytest.mark.parametrize("text, words", [
    ("valid_seen,", "no split ''"), ("hard=", "no split ''"),
    ("dev", "no split 'dev', nor is there such a file"),
    ("valid_seen,valid_seen", "without a name of its own, 'valid_seen'"), ("=train", "of its own, ''"),
    ("training=valid_seen", "of its own, 'training'"),
    ("hard=/nowhere", "no split '/nowhere'")])
def test_what_is_no_split_is_said(text, words):
    """A traceback after minutes of loading, or an evaluation that is left out."""
    with pytest.raises(UserError, match=words):
        named_splits("alfworld", text)


def test_files_that_hold_no_ids(data, ids_file, tmp_path):
    """Experts' episodes, weights, an empty file, ids of other games: named, in one sentence."""
    (tmp_path / "weights").write_bytes(b"\xff\xfe\x00")
    bad = {
        ids_file("", "# nothing"): "names no task",
        str(tmp_path / "weights"): "not a file of task ids",
        ids_file("train/nowhere", name="other"): "1 of the 1 ids .* first one is 'train/nowhere'"}
    for path, words in bad.items():
        with pytest.raises(UserError, match=words) as error:
            listed("alfworld", path, data)
        assert "\n" not in str(error.value)


def test_tasks_are_left_out(data, ids_file):
    """--without that leaves nothing out, or everything; a misspelt id that leaves its task in, unsaid; one of
    another split, or of a task that is not trained on anyway, refused."""
    train, seen = (envs.make_tasks("alfworld", split, data) for split in ("train", "valid_seen"))
    assert seen[0].id not in {task.id for task in train}
    left = lists.without(train, ids_file(train[3].id, seen[0].id), ALFWORLD, data)
    assert left == train[:3] + train[4:]
    left = lists.without(train[:6], ids_file(train[3].id, train[7].id), ALFWORLD, data)
    assert left == train[:3] + train[4:6]
    for path in (ids_file(seen[0].id), ids_file(*(task.id for task in train), name="all")):
        with pytest.raises(UserError, match="names (0|8) of the 8 training tasks"):
            lists.without(train, path, ALFWORLD, data)
    wrong = ids_file(train[3].id, train[2].id.upper(), "train/none", encoding="utf-8-sig")
    with pytest.raises(UserError, match=f"2 of the 3 ids in .* no alfworld task .*'{train[2].id.upper()}'"):
        lists.without(train, wrong, ALFWORLD, data)


# ---- the tasks of a run

def test_every_task_comes_once_a_round():
    """A task that comes again before all have come; one order for every round, or for all seeds."""
    tasks, orders = list(range(10)), {}
    for seed in (0, 1):
        args = SimpleNamespace(episodes=4, seed=seed)
        orders[seed] = [task for n in range(1, 6) for task in pick(tasks, n, args)]
        assert sorted(orders[seed][:10]) == sorted(orders[seed][10:]) == tasks
        assert orders[seed][:10] != orders[seed][10:]
    assert orders[0] != orders[1]
    assert [lists.drawn(n, tasks, args) for n in (1, 2, 3)] == [4, 8, 10]


def test_games_are_spread_over_the_task_types():
    """The first games of a sorted list are all of one type, and so is every fourth of a list that cycles
    through four."""
    for kinds in (["a"] * 30 + ["b"] * 30 + ["c"] * 30, ["a", "b", "c"] * 30):
        tasks = list(enumerate(kinds))
        chosen = lists.spread(tasks, 30)
        assert chosen == sorted(chosen) == lists.spread(tasks, 30)
        assert len(set(chosen)) == 30
        for kind in "abc":
            assert sum(own == kind for _, own in chosen) >= 5
    assert lists.spread([1, 2], 5) == [1, 2]


def test_splits_are_the_tasks_of_a_file(checkpoints, data, tmp_path, capsys):
    """Training on what was to be left out, or on the games of the evaluation; a file whose tasks are counted
    as another split's."""
    train, seen = (envs.make_tasks("alfworld", split, data) for split in ("train", "valid_seen"))
    files = {"chosen": train[:5], "not": train[1:4], "hard": seen[:1]}
    for name, tasks in files.items():
        (tmp_path / name).write_text("\n".join(task.id for task in tasks))
    splits = dict(
        train_split=str(tmp_path / "chosen"), without=str(tmp_path / "not"),
        eval_splits=f"valid_unseen,lost={tmp_path / 'hard'}")
    tcod.main(arguments(checkpoints, data, tmp_path / "run", steps=1, **splits))
    assert {e["task"] for e in read_log(tmp_path / "run" / "episodes.jsonl")} == {train[0].id, train[4].id}
    first, last = [r["eval"] for r in read_log(tmp_path / "run" / "log.jsonl")]
    assert set(first) == {"teacher", "before"} and set(last) == {"after"}
    for found in (*first.values(), *last.values()):
        assert {split: s["games"] for split, s in found.items()} == {"valid_unseen": 2, "lost": 1}
    shown = capsys.readouterr().out
    assert "3 of 5 training tasks are left out" in shown and "lost: 1 of the 1 tasks in" in shown
    assert "2 training tasks" in shown


def test_held_out_tasks_are_not_trained_on(checkpoints, data, tmp_path, ids_file):
    """Splits of other names that share games, or a game under two ids: success on what was learned by
    heart."""
    seen = envs.make_tasks("alfworld", "valid_seen", data)
    for split in ("valid_seen", ids_file(seen[0].id, seen[1].id)):
        args = arguments(
            checkpoints, data, tmp_path, train_split=split, eval_games=4,
            eval_splits="valid_unseen,valid_seen")
        with pytest.raises(UserError, match="[24] of the 4 tasks .* valid_seen are trained on"):
            lists.load_tasks(args, False, BARE, Ranks())
    task = envs.Task("a", "", digest="d")
    with pytest.raises(UserError, match="1 of the 2 tasks .* of split x"):
        check_shared([task], {"x": [replace(task, id="b"), replace(task, digest="")]})
    check_shared([replace(task, digest="")], {"x": [replace(task, digest="")]})  # whose content nobody knows


def test_an_expert_is_needed(checkpoints, data, tmp_path, capsys, monkeypatch):
    """B2F that falls back to OPD where a task has no expert's episode, or where none has one."""
    train = envs.make_tasks("alfworld", "train", data)
    line = dict(task=train[2].id, digest=train[2].digest, actions=["look"], responses=["look"])
    (tmp_path / "experts.jsonl").write_text(json.dumps(line))
    args = arguments(checkpoints, data, tmp_path, method="b2f", experts=str(tmp_path / "experts.jsonl"))
    able, held_out = lists.load_tasks(args, True, BARE, Ranks())
    assert [(task.id, task.expert) for task in able] == [(train[2].id, ("look",))]
    assert {split: len(tasks) for split, tasks in held_out.items()} == dict(valid_seen=2, valid_unseen=2)
    assert "b2f: 1 of 8 training tasks have an expert's episode" in capsys.readouterr().out
    assert lists.training_tasks(args, False, BARE, Ranks()) == train

    monkeypatch.setattr(envs.game_type("alfworld"), "with_experts", lambda tasks, data, **knobs: [])
    with pytest.raises(UserError, match="b2f needs experts' successful episodes.* pass --experts FILE"):
        lists.load_tasks(replace(args, experts=""), True, BARE, Ranks())


# ---- experts' episodes

def won(task, said, digest="d", is_won=True):
    """An episode in which each response is a thought and an action."""
    turns = [SimpleNamespace(action=word, response=f"I should. <action>{word}</action>") for word in said]
    return SimpleNamespace(task=envs.Task(task, "", digest=digest), turns=turns, won=is_won)


JOURNAL = SimpleNamespace(path="experts.jsonl.played", records=[])


def experts_file(folder, *episodes):
    """A file as --save-expert writes it."""
    experts = Experts(str(folder / "experts.jsonl"), JOURNAL)
    for episode in episodes:
        experts.add([expert_line(episode)])
    return experts.path


def test_the_shortest_won_episode_is_kept(tmp_path):
    """Failures written as experts; a detour kept although a shorter win is known; the reasoning lost; a file
    that a kill cut short begun anew, or written over before the end."""
    path = experts_file(
        tmp_path, won("a", "xyz"), won("a", "yy"), won("a", "zz"), won("a", "x", is_won=False),
        won("c", "p", digest="e"))
    said = "I should. <action>y</action>"
    best = dict(
        a=dict(task="a", digest="d", actions=["y", "y"], responses=[said, said]),
        c=dict(task="c", digest="e", actions=["p"], responses=["I should. <action>p</action>"]))
    assert len(read_log(path)) == 3 and read_experts(path)["a"] == ("d", ("y", "y"), (said, said))
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"task": "cut by a kil')
    again = Experts(path, SimpleNamespace(path="", records=[1]))
    assert again.best == best and read_log(path) == list(best.values())
    again.add([None, expert_line(won("a", "q"))])
    again.write()
    assert [line["actions"] for line in read_log(path)] == [["q"], ["p"]]
    assert Experts("", JOURNAL).best == {}
    with pytest.raises(UserError, match="nowhere is gone, and x.played counts on it"):
        Experts(f"{tmp_path}/nowhere", SimpleNamespace(path="x.played", records=[1]))


def test_experts_come_back_as_they_were_won(tmp_path):
    """Responses tied to other actions; lists in a task, which has to be hashable; tasks without an expert
    kept."""
    path = experts_file(tmp_path, won("b", "pq"), won("a", "y"), won("elsewhere", "z"))
    tasks = [envs.Task(name, "", expert=("old",), digest="d") for name in "abc"]
    able = give_experts(tasks, path, prompts.load("react"))
    assert [task.id for task in able] == ["a", "b"]
    assert able[1].expert == ("p", "q")
    assert able[1].responses[1] == "I should. <action>q</action>"
    assert hash(able[0])


@pytest.mark.parametrize("known, style, words", [
    (dict(a="other", b="d", c="d"), "react", "1 of the 2 experts' episodes .* the first one of a"),
    (dict(a="d", b=""), "react", "1 of the 2 experts' episodes .* the first one of b"),
    (dict(x="d", y="d"), "react", "none of the 2 experts' episodes .* these 2 tasks"),
    (dict(a="d"), "bare", "responses to a .* the prompt 'bare' asks")])
def test_experts_of_other_games_or_prompts_are_refused(known, style, words, tmp_path):
    """An episode replayed in a game that merely has the same name; a file of another split that leaves all
    tasks out. A student that is asked for the bare action, taught to write whole tags as actions."""
    path = experts_file(tmp_path, won("a", "y"), won("b", "z"))
    tasks = [envs.Task(name, "", digest=digest) for name, digest in known.items()]
    with pytest.raises(UserError, match=words) as caught:
        give_experts(tasks, path, prompts.load(style))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line, words", [
    ('{"task": "a", "actions": ["x"]}', "older version.*write it again"),
    ('{"task": "a", "actions": ["x"], "responses": ["x"]}', "older version"),
    ('{"task": "a", "digest": "d", "actions": ["x", "y"], "responses": ["x"]}', "response for each action"),
    ('{"task": "a", "digest": "d", "actions": [], "responses": []}', "response for each action"),
    ('{"task": "a", "digest": "d", "actions": "go", "responses": "go"}', "holds no episode"),
    ('{"step": 1, "kl": 2.0}', "holds no episode"),
    ('["a"]', "holds no episode"),
    ("\x89PNG", "not a file as eval.py --save-expert writes")])
def test_a_file_that_holds_no_experts(line, words, tmp_path):
    """Bare actions of an older version taken for what the expert said; a traceback; a log taken for an empty
    file."""
    path = tmp_path / "experts.jsonl"
    path.write_text(line + "\n", encoding="latin-1")
    with pytest.raises(UserError, match=words) as caught:
        read_experts(str(path))
    assert "\n" not in str(caught.value)
