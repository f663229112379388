"""The experts' file: which episodes are in it, how they come back, which files are refused."""

from types import SimpleNamespace

import pytest

import envs
from chat import prompts
from experts import expert_line, give_experts, keep_shortest, read_experts
from harness.cli import UserError
from harness.folder import write_lines


def won(task, said, digest="d", is_won=True):
    """An episode in which each response is a thought and an action."""
    turns = [dict(action=word, response=f"I should. <action>{word}</action>") for word in said]
    return SimpleNamespace(task=envs.Task(task, "", digest=digest), turns=turns, won=is_won)


def test_the_shortest_won_episode_is_kept():
    """Failures written as experts; a detour kept although a shorter win is known; the reasoning lost."""
    best = {}
    assert keep_shortest(best, expert_line(won("a", "xyz")))
    assert keep_shortest(best, expert_line(won("a", "yy")))
    assert not keep_shortest(best, expert_line(won("a", "zz")))
    assert expert_line(won("a", "x", is_won=False)) is None
    assert keep_shortest(best, expert_line(won("c", "p", digest="e")))
    said = "I should. <action>y</action>"
    assert best == dict(
        a=dict(task="a", digest="d", actions=["y", "y"], responses=[said, said]),
        c=dict(task="c", digest="e", actions=["p"], responses=["I should. <action>p</action>"]))


def experts_file(folder, *episodes):
    """A file as --save-expert writes it."""
    best, path = {}, str(folder / "experts.jsonl")
    for episode in episodes:
        keep_shortest(best, expert_line(episode))
    write_lines(path, best.values())
    return path


def test_experts_come_back_as_they_were_won(tmp_path):
    """Responses tied to other actions; lists in a task, which has to be hashable; tasks without an expert
    kept."""
    path = experts_file(tmp_path, won("b", "pq"), won("a", "y"), won("elsewhere", "z"))
    assert read_experts(path)["a"] == ("d", ("y",), ("I should. <action>y</action>",))
    tasks = [envs.Task(name, "", expert=("old",), digest="d") for name in "abc"]
    able = give_experts(tasks, path, prompts.load("react"))
    assert [task.id for task in able] == ["a", "b"]
    assert able[1].expert == ("p", "q")
    assert able[1].responses[1] == "I should. <action>q</action>"
    assert hash(able[0])


@pytest.mark.parametrize("known, words", [
    (dict(a="other", b="d", c="d"), "1 of the 2 experts' episodes .* the first one of a"),
    (dict(a="d", b=""), "1 of the 2 experts' episodes .* the first one of b"),
    (dict(x="d", y="d"), "none of the 2 experts' episodes .* these 2 tasks"),
])
def test_experts_of_other_games_are_refused(known, words, tmp_path):
    """An episode replayed in a game that merely has the same name; a file of another split that leaves all
    tasks out."""
    path = experts_file(tmp_path, won("a", "y"), won("b", "z"))
    tasks = [envs.Task(name, "", digest=digest) for name, digest in known.items()]
    with pytest.raises(UserError, match=words) as caught:
        give_experts(tasks, path, prompts.load("react"))
    assert "\n" not in str(caught.value)


def test_experts_of_another_prompt_style_are_refused(tmp_path):
    """A student that is asked to think and then act, taught by the bare words of a tiny model: whole tags
    would be its actions, or none."""
    path = experts_file(tmp_path, won("a", "y"))
    with pytest.raises(UserError, match="responses to a .* the prompt 'bare' asks"):
        give_experts([envs.Task("a", "", digest="d")], path, prompts.load("bare"))


@pytest.mark.parametrize("line, words", [
    ('{"task": "a", "actions": ["x"]}', "older version.*write it again"),
    ('{"task": "a", "actions": ["x"], "responses": ["x"]}', "older version"),
    ('{"task": "a", "digest": "d", "actions": ["x", "y"], "responses": ["x"]}', "response for each action"),
    ('{"task": "a", "digest": "d", "actions": [], "responses": []}', "response for each action"),
    ('{"task": "a", "digest": "d", "actions": "go", "responses": "go"}', "holds no episode"),
    ('{"step": 1, "kl": 2.0}', "holds no episode"),
    ('["a"]', "holds no episode"),
    ("\x89PNG", "not a file as eval.py --save-expert writes"),
])
def test_a_file_that_holds_no_experts(line, words, tmp_path):
    """Bare actions of an older version taken for what the expert said; a traceback; a log taken for an empty
    file."""
    path = tmp_path / "experts.jsonl"
    path.write_text(line + "\n", encoding="latin-1")
    with pytest.raises(UserError, match=words) as caught:
        read_experts(str(path))
    assert "\n" not in str(caught.value)
