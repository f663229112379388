"""Batched play of the real ALFWorld engine with a tiny random model: rows, windows, cuts, and independence of the batch."""

import numpy as np
import pytest
import torch
from conftest import WORDS, make_model, make_tokenizer

import curriculum
import envs
import rollout
from rollout import Chat, Limits, play, sample

LIMITS = Limits(max_response=5, max_context=2000, temperature=1.0, style="bare")


@pytest.fixture(scope="module")
def world(data):
    tasks = envs.make_tasks("alfworld", "train", data)
    words = sorted({word for task in tasks for action in task.expert for word in action.split()} - set(WORDS))
    return dict(model=make_model(), chat=Chat(make_tokenizer(words)), tasks=tasks, games=[envs.make_env("alfworld", data=data) for _ in tasks])


def run(world, pick, windows, limits=LIMITS, **more):
    return play(world["model"], world["chat"], world["games"], [world["tasks"][i] for i in pick], windows, limits, **more)


def uncached_logp(model, chat, row):
    """Log-probability of every token of a row from one plain forward of the model, float64 softmax."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, :, : chat.vocabulary].double()  # (T, V)
    return [None] + logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(row.ids[1:])[:, None])[:, 0].tolist()


def test_the_row_is_what_was_said_and_its_logps_are_exact(world):
    """Re-tokenised responses, a cache that lost a turn, log-probabilities of the neighbouring token: eight games, six turns each."""
    episodes = run(world, range(8), [(0, 6)] * 8)
    chat = world["chat"]
    for episode in episodes:
        row = episode.row
        assert len(row.ids) == len(row.turn) == len(row.logp) and len(episode.turns) == 6
        exact = uncached_logp(world["model"], chat, row)
        assert max(abs(a - b) for a, b, t in zip(exact, row.logp, row.turn) if t >= 0) < 1e-4
        for t, turn in enumerate(episode.turns):
            said = [i for i, at in zip(row.ids, row.turn) if at == t]
            assert chat.text(said) == turn["response"] and 1 <= len(said) <= 5
            assert turn["cut"] == (said[-1] != chat.end)
        pieces = [chat.observation(turn["observation"], i == 0) for i, turn in enumerate(episode.turns)]
        ours = [i for i, at in zip(row.ids, row.turn) if at < 0]
        ends = sum(turn["cut"] for turn in episode.turns)
        assert len(ours) == sum(map(len, pieces)) + ends  # the end token is appended where the student was cut off


def test_an_episode_does_not_depend_on_its_batch(world):
    """One generator for the whole batch would make an episode depend on who else is playing; so would a wrong mask."""
    together = run(world, range(8), [(0, 4)] * 8, seed=(7,), step=3)
    for i in (0, 5):
        alone = run(world, [i], [(0, 4)], seed=(7,), step=3, first_index=i)[0]
        assert alone.row.ids == together[i].row.ids
        assert np.allclose(alone.row.logp, together[i].row.logp, atol=1e-4)
    other = run(world, [5], [(0, 4)], seed=(7,), step=4, first_index=5)[0]
    assert other.row.ids != together[5].row.ids


def test_rank_shares_are_the_same_episodes(world):
    """Two ranks that draw the same numbers, or others than one rank would."""
    whole = run(world, range(4), [(0, 3)] * 4)
    odd = run(world, [1, 3], [(0, 3)] * 2, first_index=1, stride=2)
    assert [e.row.ids for e in odd] == [whole[1].row.ids, whole[3].row.ids]


def test_windows_replay_the_expert_and_stop(world):
    """B2F that trains on the expert's tokens, forgets the task in the prompt, or stops after k turns; F2B that plays on."""
    task = world["tasks"][0]
    length = len(task.expert)
    start, stop = curriculum.window("b2f", 2, length, 20)
    episode = run(world, [0], [(start, stop)])[0]
    assert start == length - 2 and len(episode.turns) == stop == 20
    assert [turn["action"] for turn in episode.turns[:start]] == list(task.expert[:start])
    assert min(t for t in episode.row.turn if t >= 0) == start and max(episode.row.turn) == 19
    first = world["chat"].observation(episode.opening, True)
    assert episode.row.ids[: len(first)] == first and "Your task is to" in episode.opening
    short = run(world, [0], [(0, 3)])[0]
    assert len(short.turns) == 3 and max(short.row.turn) == 2 and not short.won


def test_expert_actions_win_and_end_the_episode(world):
    """Success read from `done` at a limit instead of the game won; an episode that goes on after it is won."""
    task = world["tasks"][0]
    game, chat, actions = world["games"][0], world["chat"], iter(task.expert)
    episode = rollout.Episode(task, 0, 0, 20, env=game)
    rollout.begin(episode, chat, LIMITS)
    while not episode.done:
        ids = chat.response(next(actions))
        rollout.advance(episode, ids, [0.0] * len(ids), chat, LIMITS)
    assert episode.won and len(episode.turns) == len(task.expert) < 20
    assert episode.count("invalid") == episode.count("missing") == episode.count("cut") == 0


def test_context_limit_is_counted_and_too_short_a_context_is_an_error(world):
    """The released code's silent loss of all later turns."""
    row = run(world, [0], [(0, 4)])[0].row
    room = row.turn.index(2) + 5 - 1  # one token too few for the third response
    cut = run(world, [0], [(0, 4)], Limits(5, room, 1.0, "bare"))[0]
    assert cut.context_cut and len(cut.turns) == 2 and max(cut.row.turn) == 1
    assert not run(world, [0], [(0, 2)], Limits(5, room, 1.0, "bare"))[0].context_cut
    with pytest.raises(envs.UserError, match="--max-context"):
        run(world, [0], [(0, 4)], Limits(5, 20, 1.0, "bare"))


def test_a_replay_that_fills_the_context_is_cut_before_the_student(world):
    """B2F's prefix may already be too long: one response on an over-long row, or a crash of the model."""
    start, stop = curriculum.window("b2f", 1, len(world["tasks"][0].expert), 20)
    whole = run(world, [0], [(start, stop)])[0].row
    room = whole.turn.index(start) + 5 - 1  # one token too few for the student's first response
    cut = run(world, [0], [(start, stop)], Limits(5, room, 1.0, "bare"))[0]
    assert cut.context_cut and not cut.played and max(cut.row.turn) == -1


def test_history_window_gives_every_turn_a_row_of_its_own(world):
    """A window that drops the task, keeps the wrong turns, or scores a turn on another row's prefix."""
    limits = Limits(5, 2000, 1.0, "bare", "window:2")
    episode = run(world, [0], [(0, 5)], limits)[0]
    assert [sorted(set(row.turn)) for row in episode.rows] == [[-1, t] for t in range(5)]
    chat, turns = world["chat"], episode.turns
    expected = chat.observation(episode.opening, True)
    for t in (2, 3):
        said = [i for i, at in zip(episode.rows[t].ids, episode.rows[t].turn) if at == t]  # as sampled, not tokenised again
        expected = expected + said + [chat.end] * turns[t]["cut"] + chat.observation(turns[t + 1]["observation"], False)
    assert episode.rows[4].ids[: len(expected)] == expected
    for row in episode.rows:
        exact = uncached_logp(world["model"], chat, row)
        assert max(abs(a - b) for a, b, t in zip(exact, row.logp, row.turn) if t >= 0) < 1e-4


def test_take_over_feeds_the_second_model_the_whole_history(world):
    """A teacher that takes over on an empty cache: its first turn must be scored on everything said before."""
    teacher = make_model(seed=9)
    episode = play(lambda turn: world["model"] if turn < 2 else teacher, world["chat"], world["games"], world["tasks"][:3],
                   [(0, 4)] * 3, LIMITS)[1]
    exact = [uncached_logp(model, world["chat"], episode.row) for model in (world["model"], teacher)]
    for j, t in enumerate(episode.row.turn):
        if t >= 0:
            assert abs(exact[t >= 2][j] - episode.row.logp[j]) < 1e-4


def test_sampling_follows_the_distribution():
    """A cumulative sum that is off by one token, a temperature applied twice, a token of probability 0."""
    logits = torch.tensor([[0.0, -1.0, float("-inf"), 1.0]])
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    token, logp = sample(logits.expand(4000, -1), 0.5, u)
    share = torch.bincount(token, minlength=4) / 4000
    assert torch.allclose(share, (logits[0] / 0.5).softmax(-1), atol=1e-3) and share[2] == 0
    assert torch.allclose(logp, (logits[0] / 0.5).log_softmax(-1)[token], atol=1e-6)
    token, logp = sample(logits, 0, u[:1])
    assert token.item() == 3 and torch.allclose(logp, logits.log_softmax(-1)[:, 3])


def test_the_templates_own_end_token_ends_a_response():
    """A tokenizer whose eos is not the token that its template writes behind a response (Qwen2.5 base, Gemma): the end would be
    doubled, or never be recognised."""
    tokenizer = make_tokenizer(["<eos>"])
    tokenizer.eos_token = "<eos>"
    chat = Chat(tokenizer)
    assert chat.end == tokenizer.convert_tokens_to_ids("<|im_end|>") and {chat.end, tokenizer.eos_token_id} <= chat.stop
    assert chat.observation("look", False).count(chat.end) == 1  # the user's message, not the response before it
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ; ' }}{% endfor %}"
    with pytest.raises(envs.UserError, match="special token"):
        Chat(tokenizer)


def test_chat_pieces_rebuild_the_templates_own_text():
    """A row cut together from pieces must read exactly as the template renders the conversation."""
    tokenizer = make_tokenizer()
    chat = Chat(tokenizer)
    messages = [dict(role=role, content=text) for role, text in (("user", "go to fridge 1"), ("assistant", "look"), ("user", "take mug"))]
    pieces = chat.observation("go to fridge 1", True) + chat.response("look") + chat.observation("take mug", False)
    whole = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), add_special_tokens=False)
    assert pieces == whole and tokenizer.unk_token_id not in pieces
