"""The teacher reads the student's answers while the episode is played: what it says of them, what it has read
for the loss, and what an answer that is dropped leaves behind."""

import dataclasses
import math

import pytest
import torch
from test_rollout import LIMITS, make_world, run, said_at, worst_logp

import batch as batches
import model as lm
import rollout
import tcod
from curriculum import EXPERT, STUDENT, TEACHER, Method, Role

NEAR = 2e-5  # nats, and of a hidden state


class Plain(Method):
    """The expert begins, then guided turns; episodes end at different turns."""
    expert = True

    def act(self, turn):
        if turn.t < 2 * turn.episode_coin:
            return Role("expert", 0.0)
        if turn.t > 3 + 5 * turn.episode_coin:
            return None
        return TEACHER if turn.coin < 0.3 else STUDENT


class Judged(Plain):
    """The same, and the teacher reads what the student says."""
    judged = True


class Choosy(Judged):
    """The same, and of about every second answer it thinks so little that it answers itself."""

    def revise(self, turn, judgement):
        return TEACHER if math.floor(100 * judgement.logp) % 2 else None


class Dropping(Method):
    """The teacher answers in the place of every answer of the student's."""

    def revise(self, turn, judgement):
        return TEACHER


@pytest.fixture(scope="module")
def world(data):
    return make_world(data)


@pytest.fixture
def readings(monkeypatch):
    """What the teacher was asked to judge, in its order: (ids of the row before it, Answer)."""
    seen, judge = [], rollout.judge

    def noted(teacher, student, going, said, chat, limits):
        judged = judge(teacher, student, going, said, chat, limits)
        seen.extend((list(episode.row.ids), answer) for episode, answer in judged.items())
        return judged

    monkeypatch.setattr(rollout, "judge", noted)
    return seen


@torch.no_grad()
def states_before(model, ids, number):
    """Of a plain forward over ids: the hidden states that its last `number` tokens are drawn from."""
    return lm.hidden_states(model, torch.tensor([ids]))[0, -number - 1: -1]  # (n, D)


def obviously(world, before, said, temperature=1.0):
    """(mean log p, entropy, KL(θ‖φ), mean |log q − log p|) of a response behind a row, by plain forwards and
    float64 softmaxes."""
    logs = {}
    for who in ("student", "teacher"):
        states = states_before(world[who], before + said, len(said))
        logits = world["chat"].vocabulary.among(lm.logits(states, lm.head(world[who]))).double()
        logs[who] = (logits / temperature).log_softmax(-1)  # (n, V)
    logq, logp = logs["student"], logs["teacher"]
    means = [
        logp[range(len(said)), said].mean(),
        -(logp.exp() * logp).sum(-1).mean(),
        (logq.exp() * (logq - logp)).sum(-1).mean(),
        (logq - logp)[range(len(said)), said].abs().mean()]
    return torch.stack(means)


def spoken(episode):
    """(turn's number, turn, row, place of its first token) of every turn that a model played."""
    for t, turn in enumerate(episode.turns):
        if turn.who != "expert":
            row = next(row for row in reversed(episode.rows) if t in row.turn)
            yield t, turn, row, row.turn.index(t)


@pytest.mark.parametrize("history", ["full", "window:2"])
def test_judging_changes_nothing_in_what_is_played(world, history):
    """A student that draws other numbers, or reads another cache, where somebody listens: bit for bit."""
    limits = dataclasses.replace(LIMITS, history=history)
    alone, heard = (run(world, range(8), method, T=9, limits=limits) for method in (Plain(), Judged()))
    for one, other in zip(alone, heard, strict=True):
        assert [row.ids for row in one.rows] == [row.ids for row in other.rows]
        assert str([row.logp for row in one.rows]) == str([row.logp for row in other.rows])
        assert [turn.action for turn in one.turns] == [turn.action for turn in other.turns]
        assert not any(turn.judgement or turn.taught is not None for turn in one.turns)
        assert {turn.who for turn in other.turns if turn.judgement} == {"student"}
    assert {turn.who for episode in heard for turn in episode.turns} == {"student", "teacher", "expert"}
    assert len({len(episode.turns) for episode in heard}) > 2  # rows leave the batch one by one


@pytest.mark.parametrize("history, method, temperature", [
    ("full", Judged, 1.0), ("full", Choosy, 0.5), ("window:2", Choosy, 1.0)])
def test_a_judgement_is_that_of_an_uncached_forward(world, readings, history, method, temperature):
    """The states of the neighbouring token, of a pass that did not read the token before the answer; a cache
    that holds what was dropped, what somebody else's row said, or too much of a row that was not judged;
    another temperature than the run's; the end token that a cut answer is given."""
    limits = dataclasses.replace(LIMITS, history=history, temperature=temperature)
    episodes = run(world, range(8), method(), T=9, limits=limits)
    judged = [turn for episode in episodes for turn in episode.turns if turn.judgement]
    assert len(judged) == len(readings) > 20
    for before, answer in readings:  # also of those that were dropped
        exact = obviously(world, before, answer.ids, temperature)
        assert (torch.tensor(answer.judgement) - exact).abs().max() < NEAR
    cut = 0
    for episode in episodes:
        for t, turn, row, start in spoken(episode):
            said = said_at(row, t)
            through = row.ids[: start + len(said)]
            states = states_before(world["teacher"], through, len(said))
            assert turn.taught.shape == states.shape and (turn.taught - states).abs().max() < NEAR
            if turn.who == "student":
                exact = obviously(world, row.ids[:start], said, temperature)
                assert (torch.tensor(turn.judgement) - exact).abs().max() < NEAR
                cut += turn.cut
    assert cut > 5  # what was drawn is judged, not the end token behind it
    dropped = sum(turn.who == "teacher" for turn in judged)
    assert 5 < dropped < len(judged) - 5 if method is Choosy else dropped == 0


@pytest.mark.parametrize("history", ["full", "window:2"])
def test_a_dropped_answer_leaves_no_trace(world, readings, history):
    """A row that holds both answers, or a cache of either model that holds the dropped one: what is drawn
    later is drawn behind what nobody has heard."""
    limits = dataclasses.replace(LIMITS, history=history)
    episodes = run(world, range(8), Choosy(), T=9, limits=limits)
    assert worst_logp(world, episodes) < 1e-4
    instead = 0
    for episode in episodes:
        for t, turn, row, start in spoken(episode):
            said = said_at(row, t)
            assert turn.ids == said + [world["chat"].end] * turn.cut
            behind = row.ids[start: start + len(turn.ids)]
            assert behind == turn.ids  # nothing else was written in between
            student = turn.who == "student"
            assert all(math.isnan(row.logp[j]) != student for j in range(start, start + len(said)))
            if turn.who == "teacher" and turn.judgement:
                dropped = next(answer for before, answer in readings if before == row.ids[:start])
                assert turn.judgement == dropped.judgement and turn.loss == "forward"
                assert turn.dropped == len(dropped.ids)
                instead += 1
        read = sum(len(row.ids) - sum(t >= 0 for t in row.turn) for row in episode.rows)
        assert history != "full" or read == heard(world, episode)
    assert instead > 5


def heard(world, episode):
    """How many tokens of an episode's one row nobody is trained on: its prompts, the end tokens of cut
    answers, the expert's turns."""
    chat, number = world["chat"], 0
    for t, turn in enumerate(episode.turns):
        number += len(chat.encode_observation(turn.observation, t == 0)) + turn.cut
        number += len(turn.ids) if turn.who == "expert" else 0
    return number


def test_the_teacher_goes_on_behind_its_own_answer(world):
    """A teacher that answers from the state behind the dropped answer, or before the prompt's last token:
    greedy play shows whose argmax each token is."""
    greedy = dataclasses.replace(LIMITS, temperature=0.0)
    episodes = run(world, range(4), Choosy(), T=6, limits=greedy)
    seen = []
    for episode in episodes:
        for t, turn, row, start in spoken(episode):
            said = said_at(row, t)
            states = states_before(world[turn.who], row.ids[: start + len(said)], len(said))
            logits = world["chat"].vocabulary.among(lm.logits(states, lm.head(world[turn.who])))
            assert logits.argmax(-1).tolist() == said
            seen.append((turn.who, bool(turn.judgement)))
            if turn.who == "student":  # there is no distribution at temperature 0: that of 1 is compared
                exact = obviously(world, row.ids[:start], said)
                assert (torch.tensor(turn.judgement) - exact).abs().max() < NEAR
    assert {("student", True), ("teacher", True), ("teacher", False)} == set(seen)


def test_the_teachers_answer_has_draws_of_its_own(world, readings):
    """Draws that the dropped answer has used: the answer in its place would be what was dropped again, or
    depend on how long that was."""
    one = run({**world, "student": world["teacher"]}, range(8), Dropping(), T=1)
    dropped = [answer.ids for _, answer in readings]
    instead = [said_at(episode.row, 0) for episode in one]
    assert sum(a == b for a, b in zip(dropped, instead, strict=True)) <= 2
    other = run(world, range(8), Dropping(), T=1)
    assert [answer.ids for _, answer in readings[8:]] != dropped
    assert [said_at(episode.row, 0) for episode in other] == instead


def test_who_listens_costs_nothing_to_others(world, readings):
    """Evaluations, the take-over test and the expert's turns that are judged; a teacher that is asked for
    where there is none."""
    run({key: world[key] for key in world if key != "teacher"}, range(2), "f2b", k=2)
    run(world, range(2), "guided", k=0.5, T=4)
    assert not readings

    class Expert(Method):
        expert = judged = True

        def act(self, turn):
            return EXPERT if turn.t < 3 else STUDENT

    for episode in run(world, range(2), Expert(), T=2):
        assert [turn.judgement is None for turn in episode.turns] == [True] * 3 + [False] * 2
        assert [turn.taught is None for turn in episode.turns] == [True] * 3 + [False] * 2
    assert len(readings) == 4


def test_a_turn_keeps_no_more_than_its_own_states(world):
    """A view that holds on to the whole pass, with every row's prompt in it, until the step is over."""
    for episode in run(world, range(4), Choosy(), T=4):
        for turn in episode.turns:
            if turn.taught is not None:
                assert turn.taught.untyped_storage().nbytes() == turn.taught.numel() * 4


# ---- the loss behind it

def samples_of(episodes):
    return batches.samples_of(episodes, "episode", batches.count(episodes))


@pytest.mark.parametrize("history", ["full", "window:2"])
def test_what_was_read_is_not_read_again(world, monkeypatch, history):
    """States in another order than the batch's tokens; a teacher that is run over whole rows all the same;
    one that is not where the expert's turns are trained too."""
    limits = dataclasses.replace(LIMITS, history=history)
    episodes = run(world, range(8), Choosy(), T=9, limits=limits)
    runs, hidden_states = [], lm.hidden_states
    monkeypatch.setattr(lm, "hidden_states", lambda *args: runs.append(1) or hidden_states(*args))
    for group in batches.micro_batches(samples_of(episodes), 2000):
        known, head = tcod.score(world["teacher"], group)
        assert not runs and head == lm.head(world["teacher"])
        rows = [sample.row for sample in group]
        whole = hidden_states(world["teacher"], batches.padded(rows, "cpu")).flatten(0, 1)
        assert (known - whole[batches.before(rows, "cpu")]).abs().max() < NEAR
    for turn in episodes[0].turns:
        turn.taught = None  # as of an expert's turn that is trained
    everything = samples_of(episodes)
    again, _ = tcod.score(world["teacher"], everything)
    assert len(runs) == 1 and len(again) == batches.count(episodes)[2]
