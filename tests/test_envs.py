"""What all worlds share: the action in a response, how an engine gets it, tasks that are there."""

import time

import pytest

import envs
from harness.cli import UserError


@pytest.mark.parametrize("response, action", [
    ("I think. <action>go to fridge 1</action>", "go to fridge 1"),
    ("I put my choice in <action> tags.\n<action>go to fridge 1</action>", "go to fridge 1"),
    ("<action><action>go to fridge 1</action>", "go to fridge 1"),
    ("It goes between <action> and </action>.\n<action>go to fridge 1</action>", "go to fridge 1"),
    ("<action>go to fridge 1</action> I will now wait for <action></action>", "go to fridge 1"),
    ("<action>look</action> or rather <action>go to fridge 1\n</action>", "go to fridge 1"),
    ("<ACTION>go to fridge 1</ACTION>", "go to fridge 1"),
    ("<action>go to fridge 1", None), ("go to fridge 1</action>", None),
    ("<action> </action>", None), ("", None)])
def test_the_action_in_a_response(response, action):
    """A response that mentions the tag before it uses it, and loses its action or sends a mangled one."""
    assert envs.parse_action(response, "react") == action


@pytest.mark.parametrize("text", ["<action>", "<action>a</action>", "<action></action", "</action>", "<"])
def test_hostile_responses_take_linear_time(text):
    """Time that grows with the square of a response that repeats tags: 100,000 characters took minutes."""
    began = time.process_time()
    envs.parse_action(text * (400_000 // len(text)), "react")
    assert time.process_time() - began < 2


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


def test_an_empty_split_is_an_error():
    """0.0 % of 0 games, or a traceback from a draw among none."""
    with pytest.raises(UserError, match="no tasks with --data 'boil'"):
        envs.make_tasks("scienceworld", "tcod_test", "boil")
