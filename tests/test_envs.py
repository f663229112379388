"""What all worlds share: how an engine gets an action, tasks that are there, what hostile players and broken
games do to them."""

import dataclasses
import json
import random
import string
import time

import gymnasium
import pytest
from conftest import chosen_data
from gymnasium.utils.env_checker import check_env

import envs
import eval as evaluation
from chat import prompts
from harness.cli import UserError


@pytest.mark.parametrize("action, engine", [
    ("Go to Fridge 1.", "go to fridge 1"), ('"go  to\tfridge 1"', "go to fridge 1"),
    ("search[Red shoes, size 9.5]", "search[red shoes, size 9.5]"), ("", ""), (". . .", "")])
def test_an_action_that_is_right_but_for_its_dress(action, engine):
    """A turn lost to a capital, a full stop, a doubled blank or quotes; a number's point or a comma that
    goes."""
    assert envs.tidy(action) == engine


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


@pytest.mark.parametrize("ask, words", [
    (lambda: envs.make_tasks("scienceworld", "tcod_test", "boil"), "no tasks with --data 'boil'"),
    (lambda: envs.make_tasks("alfworld", "dev"), "no split 'dev'; it has train, "),
    (lambda: envs.make_env("alfworld", split="dev"), "no split 'dev'; it has train, "),
    (lambda: envs.make_env("chess"), "no environment 'chess'; there are alfworld, webshop, scienceworld"),
    (lambda: envs.make_env("alfworld", level="small"), "alfworld has no knob 'level': it has none"),
    (lambda: envs.make_tasks("webshop", "train", level=1), "no knob 'level'; it has goals, seed, most"),
    (lambda: envs.parse_knobs("webshop", "gaols"), "no knob 'gaols'; .* written as in goals=VALUE"),
    (lambda: envs.parse_knobs("webshop", "seed=red"), "seed of webshop is a whole number, not 'red'")])
def test_what_there_is_not_is_said(ask, words):
    """0.0 % of 0 games, or a traceback from a draw among none; a knob that is misspelt and quietly
    ignored."""
    with pytest.raises(UserError, match=words):
        ask()


def test_knobs_have_their_types():
    """A seed that is a text, and so another catalogue."""
    assert envs.parse_knobs("webshop", "goals=human seed=3") == dict(goals="human", seed=3)
    assert envs.parse_knobs("scienceworld", "simplification=") == dict(simplification="")


def test_the_help_names_every_world_and_its_knobs():
    """A world or a knob added without a word about it in --help."""
    told = {f.name: f.metadata["help"] for f in dataclasses.fields(evaluation.PlayArgs)}
    for name, world in envs.WORLDS.items():
        knobs = envs.game_type(name).knob_types
        assert name in told["env"] and f"{name}: {world.data}" in told["data"]
        assert all(f"{knob}=" in world.knobs for knob in knobs)
        assert (f"{name}: {world.knobs}" in told["knobs"]) == bool(knobs)


@pytest.mark.parametrize("world", ["ALFWorld", "WebShop", "ScienceWorld"])
def test_gymnasium_is_content(world, data):
    """An id that is not registered, spaces that reject unicode, a reset that ignores its seed: what
    Gymnasium's own checker finds."""
    env = gymnasium.make(f"tcod/{world}-v0", data=chosen_data(world.lower(), data))
    check_env(env.unwrapped, skip_render_check=True)
    assert "größe\u2603" in env.action_space
    assert env.reset(seed=3) == env.reset(seed=3)
    assert len({env.reset(seed=seed)[0] for seed in range(6)}) > 1


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
