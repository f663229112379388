"""Batched play of the real ALFWorld engine with tiny random models: rows, who acts, cuts, independence of the
batch."""

import dataclasses
import math
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import WORDS, make_model, make_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

import curriculum
import envs
import model as lm
import rollout
from chat.template import Chat
from rollout import Limits, decode, play, sample

TAKE_OVER = curriculum.TakeOver()
LIMITS = Limits(max_response=5, max_context=2000, temperature=1.0)


def make_world(data):
    """Two random models, their chat, eight games."""
    tasks = envs.make_tasks("alfworld", "train", data)
    said = {word for task in tasks for action in task.expert for word in action.split()}
    chat = Chat(make_tokenizer(sorted(said - set(WORDS))))
    games = [envs.make_env("alfworld", data=data) for _ in tasks]
    return dict(student=make_model(), teacher=make_model(seed=9), chat=chat, tasks=tasks, games=games)


@pytest.fixture(scope="module")
def world(data):
    return make_world(data)


def run(world, pick, method="opd", k=99, T=20, limits=LIMITS, tasks=None, **more):
    """Play some of the world's tasks by a method, a name or a curriculum.Method; k: its dial."""
    actors = {who: world[who] for who in ("student", "teacher") if who in world}
    method = curriculum.METHODS[method]() if isinstance(method, str) else method
    tasks = tasks or [world["tasks"][i] for i in pick]
    rules = curriculum.Rules(method, k, T)
    return play(actors, world["chat"], world["games"], tasks, rules, limits, **more)


def uncached_logp(model, chat, row):
    """Log-probability of every token of a row from one plain forward of the model, float64 softmax."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()  # (T, V')
        logits = logits[:, : chat.vocabulary.size]  # (T, V)
    said = torch.tensor(row.ids[1:])[:, None]
    return [math.nan] + logits.log_softmax(-1)[:-1].gather(-1, said)[:, 0].tolist()


def worst_logp(world, episodes):
    """Largest difference of what the student's tokens were sampled with to an uncached forward."""
    worst = 0.0
    for row in (row for episode in episodes for row in episode.rows):
        exact = uncached_logp(world["student"], world["chat"], row)
        worst = max([worst, *(abs(a - b) for a, b in zip(exact, row.logp) if not math.isnan(b))])
    return worst


def said_at(row, turn):
    """The ids of a turn's trained response."""
    return [i for i, at in zip(row.ids, row.turn) if at == turn]


def test_the_row_is_what_was_said_and_its_logps_are_exact(world):
    """Re-tokenised responses, a cache that lost a turn, log-probabilities of the neighbouring token: eight
    games, six turns."""
    episodes = run(world, range(8), T=6)
    chat = world["chat"]
    assert worst_logp(world, episodes) < 1e-4
    for episode in episodes:
        row = episode.row
        assert len(row.ids) == len(row.turn) == len(row.logp) and len(episode.turns) == 6
        for t, turn in enumerate(episode.turns):
            said = said_at(row, t)
            assert chat.decode(said)[0] == turn.response and 1 <= len(said) <= 5
            assert turn.cut == (said[-1] != chat.end)
        read = 0
        for t, turn in enumerate(episode.turns):
            read += len(chat.encode_observation(turn.observation, t == 0))
            read += turn.cut  # the end token is appended where the student was cut off
        assert sum(at < 0 for at in row.turn) == read


@pytest.mark.parametrize("method, history", [
    ("opd", "full"), ("f2b", "full"), ("b2f", "full"), ("sft", "full"), ("guided", "full"),
    (TAKE_OVER, "full"), ("guided", "window:2"), ("b2f", "window:1"),
    (TAKE_OVER, "window:3")], ids=lambda value: value if isinstance(value, str) else "take-over")
def test_what_was_sampled_equals_an_uncached_forward(world, method, history):
    """A model that rides along while another acts, and is caught up wrongly; rows of replayed turns that
    shift a cache: the log-probabilities of all that the student sampled, in all methods, with ragged expert
    prefixes."""
    limits = dataclasses.replace(LIMITS, history=history)
    k = 0.5 if method == "guided" else 3
    episodes = run(world, range(8), method, k, T=9, limits=limits)
    who = {turn.who for episode in episodes for turn in episode.turns}
    expected = {"b2f": {"expert", "student"}, "sft": {"expert"}, "guided": {"student", "teacher"},
                TAKE_OVER: {"student", "teacher"}}
    assert who == expected.get(method, {"student"})
    assert worst_logp(world, episodes) < 1e-4
    sampled = sum(not math.isnan(logp) for episode in episodes for row in episode.rows for logp in row.logp)
    assert (sampled == 0) == (method == "sft")


def test_the_teacher_samples_from_its_own_distribution(world):
    """A teacher that acts on the student's cache or with the student's weights: greedy play shows whose
    argmax was taken."""
    greedy = dataclasses.replace(LIMITS, temperature=0.0)
    episodes = run(world, range(4), "guided", k=0.5, T=6, limits=greedy)
    checked = 0
    for episode in episodes:
        for t, turn in enumerate(episode.turns):
            at = episode.row.turn.index(t)
            with torch.no_grad():
                logits = world[turn.who](input_ids=torch.tensor([episode.row.ids[:at]])).logits[0, -1]
            assert logits[: world["chat"].vocabulary.size].argmax().item() == episode.row.ids[at]
            checked += turn.who == "teacher"
    assert 3 <= checked <= 21


def test_an_episode_does_not_depend_on_its_batch(world):
    """One generator for the whole batch would make an episode depend on who else is playing; so would a wrong
    mask."""
    for method in ("opd", "guided"):
        together = run(world, range(8), method, k=0.5, T=4, seed=(7,), step=3)
        for i in (0, 5):
            alone = run(world, [i], method, k=0.5, T=4, seed=(7,), step=3, first_index=i)[0]
            assert alone.row.ids == together[i].row.ids
            assert np.allclose(alone.row.logp, together[i].row.logp, atol=1e-4, equal_nan=True)
        other = run(world, [5], method, k=0.5, T=4, seed=(7,), step=4, first_index=5)[0]
        assert other.row.ids != together[5].row.ids


class Coins(curriculum.Method):
    """Notes of every turn: its number, its coin, the episode's, its coin once more."""

    def __init__(self):
        self.seen = []

    def act(self, turn):
        self.seen.append((turn.t, turn.coin, turn.episode_coin, turn.coin))
        return curriculum.STUDENT


def test_coins_are_a_turns_and_an_episodes(world):
    """A coin that is another when it is looked at again, the same in every turn, or drawn from the numbers
    that the tokens are drawn from; an episode's that changes on its way."""
    method = Coins()
    run(world, [0, 1], method, T=3, seed=(7,), step=3)
    turns = sorted(method.seen)
    assert [t for t, *_ in turns] == [0, 0, 1, 1, 2, 2]
    coins, of_episodes = {coin for _, coin, *_ in turns}, {coin for *_, coin, _ in turns}
    assert all(coin == again for _, coin, _, again in turns)
    assert len(coins) == 6 and len(of_episodes) == 2 and not coins & of_episodes
    tokens = {rollout.generator((7, 3), rollout.Episode(None, i, turns=[None] * t)).random()
              for i in (0, 1) for t in (0, 1, 2)}
    assert not (coins | of_episodes) & tokens
    alone = Coins()
    run(world, [1], alone, T=3, seed=(7,), step=3, first_index=1)
    assert set(alone.seen) < set(method.seen)


def test_rank_shares_are_the_same_episodes(world):
    """Two ranks that draw the same numbers, or others than one rank would."""
    whole = run(world, range(4), T=3)
    odd = run(world, [1, 3], T=3, first_index=1, stride=2)
    assert [e.row.ids for e in odd] == [whole[1].row.ids, whole[3].row.ids]


def test_b2f_replays_the_expert_and_trains_the_student_only(world):
    """B2F that trains on the expert's tokens, forgets the task in the prompt, or stops after k turns; F2B
    that plays on."""
    task = world["tasks"][0]
    start = len(task.expert) - 2
    episode = run(world, [0], "b2f", k=2)[0]
    assert len(episode.turns) == 20 and episode.played == 20 - start
    assert [turn.action for turn in episode.turns[:start]] == list(task.expert[:start])
    assert min(t for t in episode.row.turn if t >= 0) == start and max(episode.row.turn) == 19
    first = world["chat"].encode_observation(episode.opening, True)
    assert episode.row.ids[: len(first)] == first and "Your task is to" in episode.opening
    short = run(world, [0], "f2b", k=3)[0]
    assert len(short.turns) == 3 and max(short.row.turn) == 2 and not short.won


def test_the_experts_responses_are_whole(world):
    """Reasoning that is dropped, also in B2F behind whose prefix the student's own turns carry it; an end
    token that is not learned, an expert's episode that does not end in the game won."""
    task, chat = world["tasks"][0], world["chat"]
    responses = tuple(f"look and {action}" for action in task.expert)
    spoken = dataclasses.replace(task, responses=responses)
    bare, whole = run(world, None, "sft", tasks=[task, spoken])
    for episode, texts in ((bare, task.expert), (whole, responses)):
        assert episode.won and len(episode.turns) == len(task.expert) and episode.played == 0
        assert [turn.action for turn in episode.turns] == list(task.expert)
        for t, text in enumerate(texts):
            assert said_at(episode.row, t) == chat.encode_response(text)
            assert said_at(episode.row, t)[-1] == chat.end
        assert all(math.isnan(logp) for logp in episode.row.logp)
    replayed = run(world, None, "b2f", k=2, tasks=[spoken])[0]
    first = chat.encode_observation(replayed.opening, True) + chat.encode_response(responses[0])
    assert replayed.row.ids[: len(first)] == first
    assert [turn.response for turn in replayed.turns[:-2] if turn.who == "expert"] == list(responses[:-2])


def test_a_task_that_cannot_be_played_is_left_out(world):
    """One game whose file is cut, one that its expert does not fit, one that listing found unreadable: each
    ended the run. The others play as they would without them."""
    tasks = [dataclasses.replace(task) for task in world["tasks"][:5]]
    whole = run(world, None, "sft", tasks=tasks)
    tasks[1] = dataclasses.replace(tasks[1], source="/nowhere/game.tw-pddl")
    tasks[2] = dataclasses.replace(tasks[2], expert=(*tasks[2].expert, "look"))
    tasks[3] = dataclasses.replace(tasks[3], fault="its file is empty")
    episodes = run(world, None, "sft", tasks=tasks)
    reasons = [episode.unplayable for episode in episodes]
    assert [episode.sound for episode in episodes] == [True, False, False, False, True]
    assert reasons[0] == reasons[4] == "" and reasons[1].startswith("FileNotFoundError: ")
    assert reasons[2].startswith("the game ended after") and reasons[3] == "its file is empty"
    assert all(episodes[i].row.ids == whole[i].row.ids for i in (0, 4))


def test_a_game_that_fails_in_the_middle_is_left_out(world, data, tmp_path):
    """A game whose fault shows at its first step: a traceback, or an episode that looks like a lost one."""
    task = world["tasks"][0]
    text = Path(task.source).read_text().replace('\\"GotoLocation.feedback', '\\"elsewhere')
    (tmp_path / "game.tw-pddl").write_text(text)
    broken = dataclasses.replace(task, source=str(tmp_path / "game.tw-pddl"))
    episode, sound = run(world, None, "sft", tasks=[broken, task])
    assert "GotoLocation.feedback" in episode.unplayable and not episode.sound and not episode.won
    assert sound.sound and sound.won
    assert run(world, None, "sft", tasks=[task])[0].row.ids == sound.row.ids  # by the environment of before


def test_context_limit_is_counted_and_a_prompt_beyond_it_is_left_out(world):
    """The released code's silent loss of all later turns; one long prompt that ends a run."""
    row = run(world, [0], T=4)[0].row
    room = row.turn.index(2) + 5 - 1  # one token too few for the third response
    limits = dataclasses.replace(LIMITS, max_context=room)
    cut = run(world, [0], T=4, limits=limits)[0]
    assert cut.context_cut and len(cut.turns) == 2 and max(cut.row.turn) == 1
    assert not run(world, [0], T=2, limits=limits)[0].context_cut
    episode = run(world, [0], T=4, limits=dataclasses.replace(LIMITS, max_context=20))[0]
    assert "beyond --max-context 20" in episode.unplayable and not episode.sound and not episode.turns


def test_a_replay_that_fills_the_context_is_cut_before_the_student(world):
    """B2F's prefix may already be too long: one response on an over-long row, a crash of the model, or an
    episode that trains nothing and counts in the mean; SFT on a part of the expert's episode."""
    start = len(world["tasks"][0].expert) - 1
    whole = run(world, [0], "b2f", k=1)[0].row
    room = whole.turn.index(start) + 5 - 1  # one token too few for the student's first response
    cut = run(world, [0], "b2f", k=1, limits=dataclasses.replace(LIMITS, max_context=room))[0]
    assert cut.context_cut and cut.played == 0 and max(cut.row.turn) == -1
    assert cut.filled and not cut.sound
    fits = run(world, [0], "b2f", k=1, limits=dataclasses.replace(LIMITS, max_context=room + 1))[0]
    assert fits.played >= 1 and fits.sound and fits.context_cut
    imitated = run(world, [0], "sft", limits=dataclasses.replace(LIMITS, max_context=room - 5))[0]
    assert imitated.filled and not imitated.sound
    assert run(world, [0], "sft")[0].sound


def answered(episode, chat, t):
    """The ids of turn t's response in a later row: as sampled, not tokenised again."""
    said = said_at(episode.rows[t], t) + [chat.end] * episode.turns[t].cut
    assert said == episode.turns[t].ids
    return said


def test_an_action_that_is_said_again_repeats(world, monkeypatch):
    """An action that is compared with the one before the last, or not with the expert's."""
    def scripted(player, going, acting, seed, stream, chat, limits):
        said = [chat.encode_response(words[len(episode.turns)]) for episode in acting]
        return {episode: rollout.Answer(ids, [-1.0] * len(ids)) for episode, ids in zip(acting, said)}

    monkeypatch.setattr(rollout, "respond", scripted)
    words = ["look", "look", "inventory", "look", "look", "look"]
    turns = run(world, [0], T=6)[0].turns
    assert [turn.action for turn in turns] == words
    assert [turn.repeats for turn in turns] == [False, True, False, False, True, True]
    expert = world["tasks"][0].expert
    words = [*expert[:-2], expert[-3], "look"]
    turns = run(world, [0], "b2f", k=2, T=3)[0].turns
    assert [turn.who for turn in turns[-3:]] == ["expert", "student", "student"]
    assert [turn.repeats for turn in turns[-2:]] == [True, False]


def test_window_1_by_hand(world):
    """The last response behind the opening, as if it had answered the first observation. Turn 0: opening.
    Turn 1: opening, a0, o1. Turn 2: opening and o1 in one message, a1, o2."""
    episode = run(world, [0], T=4, limits=dataclasses.replace(LIMITS, history="window:1"))[0]
    chat, o = world["chat"], [turn.observation for turn in episode.turns]
    openings = [o[0], o[0], f"{o[0]}\n\n{o[1]}", f"{o[0]}\n\n{o[2]}"]
    for t, (row, opening) in enumerate(zip(episode.rows, openings, strict=True)):
        prompt = chat.encode_observation(opening, True)
        if t > 0:
            prompt += answered(episode, chat, t - 1) + chat.encode_observation(o[t], False)
        said = said_at(row, t)
        assert row.ids[: len(prompt)] == prompt and row.ids[len(prompt): len(prompt) + len(said)] == said
        assert set(row.turn) == {-1, t}
    assert o[0] == episode.opening and worst_logp(world, [episode]) < 1e-4


def test_window_3_keeps_pairs_in_their_order(world):
    """A window that drops the task, keeps the wrong turns, or their observations shifted by one."""
    episode = run(world, [0], T=6, limits=dataclasses.replace(LIMITS, history="window:3"))[0]
    chat, o = world["chat"], [turn.observation for turn in episode.turns]
    early = chat.encode_observation(o[0], True)
    for t in (0, 1, 2):
        early += answered(episode, chat, t) + chat.encode_observation(o[t + 1], False)
    assert episode.rows[3].ids[: len(early)] == early
    late = chat.encode_observation(o[0] + "\n\n" + o[2], True)
    for t in (2, 3, 4):
        late += answered(episode, chat, t) + chat.encode_observation(o[t + 1], False)
    assert episode.rows[5].ids[: len(late)] == late and worst_logp(world, [episode]) < 1e-4


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


def test_a_prompts_file_reaches_every_turn(world, tmp_path):
    """Turns that are miscounted behind an expert's; an expert's actions without the mark that the student is
    asked for; a prompt that is read and not used."""
    (tmp_path / "p").write_text("[turn]\nTurn {turn}: {observation}\n[action]\nI do: {action}\n")
    chat = Chat(world["chat"].tokenizer, prompt=str(tmp_path / "p"))
    for method, k in (("sft", 1), ("b2f", 2), ("opd", 99)):
        episode = run({**world, "chat": chat}, [0], method, k, T=6)[0]
        said = [turn.observation.split(": ")[0] for turn in episode.turns]
        assert said == [f"Turn {number}" for number in range(1, len(episode.turns) + 1)] and len(said) > 2
        for turn in episode.turns:
            if turn.who == "expert":
                assert turn.response == f"I do: {turn.action}" and turn.action
            else:
                assert turn.missing  # a random model's words have no mark


# ---- decoding: what stays on the device

TALK = SimpleNamespace(vocabulary=lm.Vocabulary(120, [7, 50]), stop=set(range(10, 40)))


def obviously(model, ids, u, limits):
    """One row's response by a plain forward of all of it per token: (ids, log-probabilities, the states that
    they were drawn from (n, D))."""
    said, logps, states = [], [], []
    for number in u:
        row = torch.tensor([ids + said])
        logits = TALK.vocabulary.among(model(input_ids=row).logits[:, -1])
        token, logp = sample(logits, limits.temperature, number[None])
        said.append(token.item())
        logps.append(logp.item())
        states.append(model.model(input_ids=row).last_hidden_state[0, -1])
        if said[-1] in TALK.stop:
            break
    return said, logps, torch.stack(states)


@pytest.mark.parametrize("look", [1, 3, 8])
def test_decoding_is_what_each_row_says_alone(look, monkeypatch):
    """What a row says behind its end, until somebody looks, in its response or left in the cache for the turn
    to come; a row that does not act and is moved: three turns, five rows, other rows acting in each."""
    monkeypatch.setitem(rollout.LOOK, "cpu", look)
    model, draw = make_model(), torch.Generator().manual_seed(5)
    limits = Limits(max_response=10, max_context=200, temperature=0.8)
    rows, lengths = [[5 + i] * (3 + 4 * i) for i in range(5)], set()
    cache = lm.RaggedCache(model, rows, limits.max_context)
    with torch.no_grad():
        for acts in ([1, 0, 1, 1, 1], [1, 1, 0, 0, 1], [0, 1, 1, 0, 1]):
            u = torch.rand(5, limits.max_response, generator=draw, dtype=torch.float64)
            before = list(cache.length)
            for i, answer in enumerate(decode(model, cache, rows, acts, u, TALK, limits)):
                if not acts[i]:
                    assert answer is None and cache.length[i] == before[i]
                    continue
                ids, logps, states = obviously(model, rows[i], u[i], limits)
                assert answer.ids == ids and answer.logp == pytest.approx(logps, abs=1e-4)
                assert torch.allclose(answer.states, states, atol=1e-4)
                rows[i] += ids
                assert cache.length[i] == len(rows[i]) - 1
                rows[i] += [90 + i, 80]
                lengths.add(len(ids))
    assert len(lengths) >= 4


class Crossings(TorchDispatchMode):
    """Counts what would make a GPU and its host wait for each other: numbers that are read from tensors, and
    tensors that are made of numbers. `tolist` does not come by here: see `crossings`."""

    def __init__(self):
        super().__init__()
        self.read = self.made = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.read += operation in (aten._local_scalar_dense.default, aten.nonzero.default)
        self.made += operation == aten.lift_fresh.default
        return operation(*args, **(kwargs or {}))


def crossings(tokens, monkeypatch):
    """(read, made) while so many tokens are decoded by four rows that never stop."""
    model, limits = make_model(), Limits(max_response=tokens, max_context=200)
    chat = SimpleNamespace(vocabulary=lm.Vocabulary(120, [7, 50]), stop={-1})
    rows, lists = [[5] * (9 - i) for i in range(4)], Counter()
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.update(["read"]) or tolist(self))
    with torch.no_grad(), Crossings() as seen:
        decode(model, lm.RaggedCache(model, rows), rows, [True] * 4, torch.rand(4, tokens), chat, limits)
    monkeypatch.undo()
    return seen.read + lists["read"], seen.made


def test_a_decoded_token_does_not_wait_for_the_device(monkeypatch):
    """A device and its host that wait for each other five times a token: the tensors of a step made of lists,
    every token looked at."""
    look = rollout.LOOK["cuda"]
    counted = {}
    for tokens in (look, 3 * look):
        monkeypatch.setitem(rollout.LOOK, "cpu", look)
        counted[tokens] = crossings(tokens, monkeypatch)
    assert counted[3 * look][0] - counted[look][0] == 2  # a look every so many tokens
    assert counted[3 * look][1] == counted[look][1]
    assert sum(counted[3 * look]) <= 3 * look / 2
    assert sum(counted[look]) <= 9  # of a response, however long


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_decoded_token_does_not_wait_on_a_gpu():
    """The same, as CUDA counts it: whatever waits, also inside the model."""
    model, counted = make_model().cuda(), {}
    chat = SimpleNamespace(vocabulary=lm.Vocabulary(120, [7, 50]), stop={-1})
    rows = [[5] * (9 - i) for i in range(4)]
    for tokens in (8, 40):
        cache = lm.RaggedCache(model, rows)
        u = torch.rand(4, tokens, device=model.device)
        torch.cuda.set_sync_debug_mode("warn")
        with torch.no_grad(), warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            decode(model, cache, rows, [True] * 4, u, chat, Limits(max_response=tokens, max_context=200))
        torch.cuda.set_sync_debug_mode("default")
        counted[tokens] = sum("synchronizing CUDA" in str(warning.message) for warning in seen)
    assert counted[40] - counted[8] == 32 // rollout.LOOK["cuda"] and counted[8] <= 10


def test_a_play_leaves_no_cache_behind(world, monkeypatch):
    """Keys and values that stand beside gradients, since a cache and what decodes it hold one another, or a
    parser's kept error holds the frame that played."""
    caches, made = [], lm.RaggedCache.__init__

    def noted(cache, *args):
        made(cache, *args)
        caches.append(cache)

    monkeypatch.setattr(lm.RaggedCache, "__init__", noted)
    run(world, range(4), "guided", k=0.5, T=3)
    assert len(caches) == 2
    assert not any(cache.layers or cache.kept or cache.drawing for cache in caches)
