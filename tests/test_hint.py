"""--hint: what the teacher alone reads before the first message, while it judges, answers and teaches."""

import dataclasses

import pytest
import torch
from conftest import arguments
from test_judging import Choosy, Judged
from test_rollout import LIMITS, make_world, run, worst_logp

import batch as batches
import envs
import model as lm
import tcod
from chat import prompts
from curriculum import Method
from harness.cli import UserError
from harness.folder import read_log, write_lines

NEAR = 2e-5  # of a hidden state


@pytest.fixture(scope="module")
def world(data):
    return make_world(data)


def by_hand(world, episode, row):
    """The states before a row's trained tokens, of a plain forward over a conversation that begins with the
    hint and the first message, whose tokens are made anew."""
    chat, task = world["chat"], episode.task
    first = min((t for t in row.turn if t >= 0), default=0)
    shown = episode.turns[max(0, first - 2)].observation if len(episode.rows) > 1 else episode.opening
    text = shown if shown == episode.opening else f"{episode.opening}\n\n{shown}"
    plain, told = (chat.encode_observation(said, True) for said in (text, f"{task.hint}\n\n{text}"))
    assert row.ids[: len(plain)] == plain
    ids, shift = told + row.ids[len(plain):], len(told) - len(plain)
    hidden = lm.hidden_states(world["teacher"], torch.tensor([ids]))[0]
    return hidden[[j + shift - 1 for j, t in enumerate(row.turn) if t >= 0]]


@torch.no_grad()
@pytest.mark.parametrize("method, history", [
    (Method(), "full"), (Judged(), "full"), (Choosy(), "full"), (Choosy(), "window:2")])
def test_the_trained_tokens_align(method, history, world):
    """A teacher's distribution of the neighbouring token; a student that reads the hint too; a teacher that
    judges, or answers in the student's place, without it; a cache set back to the student's row."""
    limits = dataclasses.replace(LIMITS, history=history)
    tasks = [dataclasses.replace(task, hint="look " * (2 + i)) for i, task in enumerate(world["tasks"])]
    episodes = run(world, (), method, T=7, limits=limits, tasks=tasks)
    assert worst_logp(world, episodes) < 1e-4
    samples = batches.samples_of(episodes, "episode", [1, 1, 1])
    states, _ = tcod.score(world["teacher"], samples)
    rows = [by_hand(world, sample.episode, sample.row) for sample in samples]
    exact = torch.cat(rows)
    assert len(exact) > 100 and (states - exact).abs().max() < NEAR
    bare = [sample._replace(row=dataclasses.replace(sample.row, hinted=[])) for sample in samples]
    for turn in (turn for episode in episodes for turn in episode.turns):
        turn.taught = None
    again, others = (tcod.score(world["teacher"], each)[0] for each in (samples, bare))
    assert (again - exact).abs().max() < NEAR and (others - exact).abs().max() > 0.1


def test_a_run_with_a_hint(checkpoints, data, tmp_path, capsys):
    """A hint that does not reach the loss; tasks without an expert's episode that are trained on; a run that
    goes on with another hint; a row that grows beyond the context only where the teacher reads."""
    tasks, experts = envs.make_tasks("alfworld", "train", data), tmp_path / "experts.jsonl"
    known = [dict(task=task.id, digest=task.digest, actions=task.expert, responses=task.expert)
             for task in tasks]
    write_lines(experts, known[:5])
    lesson, runs = tmp_path / "lesson.txt", {}
    lesson.write_text("look\n")
    shared = dict(method="uopd", steps=1, eval_every=0, experts=str(experts))
    for name, hint in (("none", ""), ("lesson", str(lesson)), ("expert", "expert")):
        tcod.main(arguments(checkpoints, data, tmp_path / name, hint=hint, **shared))
        runs[name] = read_log(tmp_path / name / "episodes.jsonl")
    for ours, theirs in zip(runs["none"], runs["lesson"], strict=True):
        assert ours["actions"] == theirs["actions"] and ours["logp_turn"] != theirs["logp_turn"]
    assert "uopd: 5 of 8 training tasks have an expert's episode" in capsys.readouterr().out
    assert {e["task"] for e in runs["expert"]} <= {line["task"] for line in known[:5]}
    lesson.write_text("inventory\n")
    with pytest.raises(UserError, match="begun with another hint"):
        tcod.main(tcod.Args(resume=str(tmp_path / "lesson")))
    lesson.write_text("look " * 2000)
    long = arguments(checkpoints, data, tmp_path / "long", hint=str(lesson), max_context=500, **shared)
    tcod.main(long)
    assert "its first prompt has 2089 tokens, and 4 more for a response" in capsys.readouterr().out


@pytest.mark.parametrize("text, loss, words", [
    (None, "reverse", "cannot be read"), (" \n", "reverse", "is empty"),
    ("Do {experts}", "reverse", "has a field {experts}, and there is only {expert}"),
    ("look", "nll", "read by the teacher alone, and --loss nll has none")])
def test_a_hint_that_says_nothing(text, loss, words, checkpoints, data, tmp_path):
    """A run without a hint under the name of one with a hint."""
    hint = tmp_path / "hint.txt"
    if text:
        hint.write_text(text)
    args = dict(hint=str(hint), loss=loss, method="sft" if loss == "nll" else "opd")
    with pytest.raises(UserError, match=words):
        tcod.main(arguments(checkpoints, data, tmp_path / "run", **args))


def test_a_hint_is_filled_in_once():
    """An action in braces that is filled in again; white space of the file's end in the prompt."""
    assert prompts.hinted(prompts.hint("expert"), ("look", "{expert}")).endswith("task:\nlook\n{expert}")
    assert prompts.hint("") == ""
