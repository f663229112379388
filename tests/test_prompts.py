"""Prompts from files: ours are what they were, others are filled in and refused, actions are found again."""

import time
from types import SimpleNamespace

import pytest

import envs
from chat import prompts
from harness.cli import UserError

TAGS = "<action>{action}</action>"
ENV = SimpleNamespace(instructions="You are a robot.\n\nBe quick.")
THINK = "Think about what to do next, then give one action as <action>...</action>."


def told(task="find a mug", actions=("look", "go to desk 1"), **more):
    """What an environment says beside the observation."""
    return dict(task=task, admissible=list(actions), status=f"Task: {task}. You carry nothing.", **more)


def by_hand(obs, info, style, first):
    """The prompts as they were written before they stood in files."""
    if style == "bare":
        return f"{obs}\n{info['status']}"
    said = [ENV.instructions] if first else []
    if first and info["task"] not in obs:
        said.append(f"Your task is to: {info['task']}")
    actions = "\n".join(info["admissible"])
    if info.get("objects"):
        actions += "\nOBJ is one of: " + ", ".join(info["objects"])
    return "\n\n".join([*said, obs, f"Admissible actions:\n{actions}", THINK])


@pytest.mark.parametrize("style", prompts.SHIPPED)
@pytest.mark.parametrize("turn", [1, 2, 17])
@pytest.mark.parametrize("obs, info", [
    ("You see a desk.", told()),
    ("You see a desk.\n\nYour task is to: find a mug", told()),
    ("A lab.\n", told(objects=["agent", "air"])),
    ("A lab.", told(objects=[])),
    ("", told(actions=[])),
    ("It says {task} and {nothing} and {}.\n\n\n\\1 \\g<0>", told(task="{observation}", actions=["{turn}"]))])
def test_our_prompts_are_what_they_were(style, turn, obs, info):
    """A blank line more than the models were trained with; a game's braces filled in; a task said twice."""
    assert prompts.load(style).write(ENV, obs, info, turn) == by_hand(obs, info, style, turn == 1)


def test_a_world_is_asked_as_before(data):
    """The same on the real engine: fields that an environment does not give."""
    env = envs.make_env("alfworld", data=data)
    obs, info = env.reset(seed=0)
    first, later = (prompts.load("react").write(env, obs, info, turn) for turn in (1, 2))
    assert first == f"{env.instructions}\n\n{later}" and first.count(info["task"]) == 1
    assert all(f"\n{action}\n" in later for action in info["admissible"])
    assert prompts.load("bare").write(env, obs, info, 1) == f"{obs}\n{info['status']}"
    known = prompts.values(env, obs, info, 1)
    assert set(known) == set(prompts.FIELDS) and known["carried"] == "nothing"


def write(path, turn="{observation}", action="{action}", first=None):
    """A prompt's file."""
    opening = f"# a remark\n\n[first turn]\n{first}\n\n" if first else ""
    path.write_text(f"{opening}[turn]\n{turn}\n\n[action]\n{action}\n")
    return str(path)


def test_a_file_of_ones_own(tmp_path):
    """Turns without their number; a line that stays without what it speaks of; the first turn's text in all,
    or lost where there is none; braces that are no fields."""
    turn = 'Step {turn}, task {task}, as {"a": 1}.\nYou carry {carried}.\n\n[{actions}]\n{observation}'
    both = prompts.load(write(tmp_path / "both", turn, "ACTION: {action}", "{instructions} {observation}"))
    assert both.write(ENV, "A desk.", told(), 1) == f"{ENV.instructions} A desk."
    assert both.write(ENV, "A desk.", told(carried="a mug"), 3) == (
        'Step 3, task find a mug, as {"a": 1}.\nYou carry a mug.\n\n[look\ngo to desk 1]\nA desk.')
    one = prompts.load(write(tmp_path / "one", turn, "ACTION: {action}"))
    assert one.write(ENV, "A desk.", told(), 1).startswith('Step 1, task find a mug, as {"a": 1}.\n\n[look')
    assert one.digest != both.digest == prompts.load(write(
        tmp_path / "again", turn, "ACTION: {action}", "{instructions} {observation}")).digest


@pytest.mark.parametrize("line, response, action", [
    (TAGS, "I think.\n<action> go to desk 1 </action>", "go to desk 1"),
    (TAGS, "<action>look</action> or <action>open fridge 1</action>", "open fridge 1"),
    (TAGS, "<action>go to\ndesk 1</action>", "go to\ndesk 1"),
    (TAGS, "I think. <action>look</action>", "look"),
    (TAGS, "My choice in <action> tags.\n<action>look</action>", "look"),
    (TAGS, "<action><action>look</action>", "look"),
    (TAGS, "Between <action> and </action>.\n<action>look</action>", "look"),
    (TAGS, "<action>look</action> and wait for <action></action>", "look"),
    (TAGS, "</action><action>look</action></action>", "look"),
    (TAGS, "<ACTION>look</ACTION>", "look"),
    (TAGS, "<action>look", None),
    (TAGS, "look</action>", None),
    (TAGS, "<action> </action>", None),
    (TAGS, "", None),
    ("{action}", " look\n", "look"), ("{action}", "  ", None),
    ("Action: {action}", "Thought: a desk.\nAction: go to desk 1", "go to desk 1"),
    ("Action: {action}", "Action:look\nI wait.", "look"),
    ("Action: {action}", "action: look\nAction: \n", "look"),
    ("Action: {action}", "I act", None),
    ("**Do:** {action}.*", "**do:** look.*", "look"),
    ("**Do:** {action}.*", "**Do:** look", None)])
def test_the_action_in_a_response(line, response, action, tmp_path):
    """A response that mentions the mark before it uses it, and loses its action or sends a mangled one; the
    first mark taken for the answer, an empty answer for an action, a mark for a pattern."""
    prompt = prompts.load(write(tmp_path / "p", action=line))
    assert prompt.action(response) == action


@pytest.mark.parametrize("line", [TAGS, "{action}", "Action: {action}", "a {action} b"])
def test_a_replayed_action_reads_back_as_itself(line, tmp_path):
    """Replayed turns in a format that the student is never asked for."""
    prompt = prompts.load(write(tmp_path / "p", action=line))
    assert prompt.response("move mug 1 to desk 1") == line.replace("{action}", "move mug 1 to desk 1")
    assert prompt.action(prompt.response("move mug 1 to desk 1")) == "move mug 1 to desk 1"


@pytest.mark.parametrize("text", ["<action>", "<action>a</action>", "<action></action", "</action>", "<"])
def test_hostile_responses_take_linear_time(text):
    """Time that grows with the square of a response that repeats tags: 100,000 characters took minutes."""
    began = time.process_time()
    prompts.load("react").action(text * (400_000 // len(text)))
    assert time.process_time() - began < 2


@pytest.mark.parametrize("text, words", [
    ("[turn]\n{observation} {history}\n[action]\n{action}", r"has a field \{history\}, .* \{task\}"),
    ("[turn]\n{observation.__class__} {observation} {0}\n[action]\n{action}", r"has a field \{0\}"),
    ("[turn]\n{observation} {}\n[action]\n{action}", r"has a field \{\}"),
    ("[turn]\n{observation}{action}\n[action]\n{action}", r"has a field \{action\}"),
    ("[turn]\n{task}\n[action]\n{action}", "a turn without {observation}"),
    ("[first turn]\n{task}\n[turn]\n{observation}\n[action]\n{action}", "a turn without {observation}"),
    ("[turn]\n{observation}", r"has no part \[action\]"), ("[action]\n{action}", r"has no part \[turn\]"),
    ("[turn]\n{observation}\n[turn]\n[action]\n{action}", r"two parts \[turn\]"),
    ("{observation}\n[turn]\n[action]\n{action}", "begins with '{observation}'"), ("", "no part"),
    ("[turn]\n{observation}\n[action]\ngo", "one line with"),
    ("[turn]\n{observation}\n[action]\n{action} {action}", "one line with"),
    ("[turn]\n{observation}\n[action]\nAction:\n{action}", "one line with"),
    ("[turn]\n{observation}\n[action]\n**{action}**", "needs a mark before the action"),
    ("[turn]\n{observation}\n[action]\n{action}.", "needs a mark before the action"),
    ("\0\xff", "begins with")])
def test_a_file_that_is_no_prompt_is_refused(text, words, tmp_path):
    """A field that is misspelt and stays in the prompt as it is; a mark that no response has."""
    (tmp_path / "p").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        prompts.load(str(tmp_path / "p"))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    """A traceback for a folder, for bytes, for nothing."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "bytes", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="cannot be read .* react, bare"):
            prompts.load(str(path))
