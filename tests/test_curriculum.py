"""The schedule, and what each method says, by hand."""

import math
from types import SimpleNamespace

import pytest

from curriculum import (
    METHODS,
    STUDENT,
    Guided,
    Method,
    NextTurn,
    Rules,
    TakeOver,
    depth,
    stages,
    teacher_share,
)

ARGS = SimpleNamespace(schedule="linear", k_start=1, eta=2.0, steps=200, at=None)


# ---- the schedule

def test_linear_depth_is_equation_4_exactly():
    """Off by one: n counts from 1, so k stays at k_start for eta − 1 steps and then holds every value for eta
    steps."""
    assert [depth(n, eta=2) for n in range(1, 9)] == [1, 2, 2, 3, 3, 4, 4, 5]
    assert [depth(n, k_start=3, eta=4) for n in (1, 3, 4, 7, 8)] == [3, 3, 4, 4, 5]
    assert [depth(n, eta=0.5) for n in (1, 2, 3)] == [3, 5, 7]
    assert [depth(n, eta=2.5) for n in (4, 5, 7, 8)] == [2, 3, 3, 4]


def test_a_stage_begins_at_its_step_in_any_order():
    """Taking the last stage written instead of the last begun."""
    depths = [depth(n, "30@20,5@10", k_start=2) for n in (1, 9, 10, 19, 20, 99)]
    assert depths == [2, 2, 5, 5, 30, 30]
    assert depth(7, "constant", k_start=4) == 4
    assert stages("linear") == stages("constant") == []


@pytest.mark.parametrize("text", ["cosine", "step", "", "5", "5@", "@3", "0@3", "5@0", "a@b", "1@2@3"])
def test_a_schedule_that_cannot_be_read(text):
    """Silently training at a depth nobody asked for."""
    for read in (stages, lambda text: depth(7, text)):
        with pytest.raises(ValueError, match="linear, constant, or stages depth@step") as caught:
            read(text)
        assert "\n" not in str(caught.value)


def test_the_share_of_guided_turns_falls_by_its_cosine():
    """Over all steps instead of the share rho of them; from 0 to 1."""
    assert [round(teacher_share(n, 200), 6) for n in (0, 80, 160, 161, 200)] == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert teacher_share(25, 100, rho=0.5) == pytest.approx(0.5)
    assert teacher_share(10, 100) == pytest.approx(0.961940, abs=1e-6)


# ---- who acts

def played(method, k, L, T, coins=None):
    """A letter per turn of an episode that nobody wins: who acts, in capitals where the turn is trained."""
    rules, letters = Rules(method, k, T), ""
    while True:
        t, models = len(letters), sum(letter in "sStT" for letter in letters)
        turn = NextTurn(t, k, T, L, draw=lambda stream, t=t: coins[t])
        role = rules.act(SimpleNamespace(played=models), turn)
        if role is None:
            return letters
        letters += role.who[0].upper() if role.weight else role.who[0]


@pytest.mark.parametrize("method, k, L, expected", [
    ("opd", 1, 0, "S" * 30), ("opd", 99, 5, "S" * 30), ("opd", 1, 40, "S" * 30),
    ("f2b", 1, 0, "S"), ("f2b", 30, 0, "S" * 30), ("f2b", 31, 0, "S" * 30), ("f2b", 35, 40, "S" * 30),
    ("b2f", 1, 8, "e" * 7 + "S" * 23), ("b2f", 8, 8, "S" * 30), ("b2f", 9, 8, "S" * 30),
    ("b2f", 2, 40, "e" * 38 + "S" * 2), ("b2f", 25, 40, "e" * 15 + "S" * 25),
    ("b2f", 40, 40, "S" * 30), ("b2f", 35, 40, "e" * 5 + "S" * 30),
    ("sft", 1, 8, "E" * 8), ("sft", 99, 40, "E" * 40), ("sft", 1, 0, "")])
def test_who_acts(method, k, L, expected):
    """B2F that lets the student play k turns only, an expert longer than the horizon that leaves the student
    no turn, models that play more than T turns, SFT that stops at the depth."""
    assert played(METHODS[method](), k, L, 30) == expected


def test_guided_turns_are_drawn_turn_by_turn():
    """One draw for the whole episode, or the teacher below the coin instead of above; the teacher's turns
    take forward KL."""
    coins = [0.1, 0.6, 0.49, 0.5, 0.0]
    assert played(Guided(), 0.5, 0, 4, coins) == "TSTS"
    turns = [NextTurn(0, 0.5, 4, draw=dict(turn=coin, episode=1 - coin).get) for coin in (0.1, 0.9)]
    assert [Guided().act(turn).loss for turn in turns] == ["forward", ""]
    assert [turn.episode_coin for turn in turns] == pytest.approx([0.9, 0.1])


def test_the_take_over_test_trains_nothing():
    """A test that would train, or a teacher that never takes over."""
    assert played(TakeOver(), 3, 8, 6) == "sssttt"
    assert played(TakeOver(), 0, 0, 3) == "ttt" and played(TakeOver(), 9, 0, 3) == "sss"


# ---- what a method is

def test_a_method_that_says_nothing_is_on_policy_distillation():
    """A fork of one function that has to write the others too, or that makes the teacher judge for
    nothing."""
    class Mine(Method):
        pass

    mine, turn = Mine(), NextTurn(3, 1, 30)
    assert mine.act(turn) == STUDENT == ("student", 1.0, "")
    assert [mine.dial(n, ARGS, []) for n in (1, 2, 7)] == [1, 2, 4]
    assert (mine.expert, mine.judged, mine.paced, mine.loss, mine.revise) == (False, False, False, "", None)
    assert not Rules(mine, 1, 30).judged


def test_what_the_methods_ask_for():
    """A method without an expert's episode that silently becomes another: the released code's B2F became
    OPD. A run that is made longer although its dial counts on the number of steps."""
    letters = {name: played(method(), 1, 8, 30, [0.0] * 31) for name, method in METHODS.items()}
    assert {name for name, text in letters.items() if "e" in text.lower()} == {"b2f", "sft"}
    assert {name for name, method in METHODS.items() if method.expert} == {"b2f", "sft"}
    assert {name: method.loss for name, method in METHODS.items() if method.loss} == {"sft": "nll"}
    assert [name for name, method in METHODS.items() if method.paced] == ["guided"]


def test_the_rules_of_a_step():
    """A dial that does not move, or is shown the evaluation before the first step; progress that counts from
    the step before, or is no share."""
    rules = Rules.at(50, METHODS["f2b"](), ARGS, [], 30)
    assert (rules.k, rules.T, rules.progress) == (26, 30, 0.25)
    assert Rules.at(80, Guided(), ARGS, [], 30).k == pytest.approx(0.5)
    assert Rules.at(200, Guided(), ARGS, [], 30).progress == 1.0

    class Log(Method):
        def dial(self, n, args, log):
            return log[-1]["kl"] if log else math.inf

    assert [Rules.at(2, Log(), ARGS, log, 30).k for log in ([dict(step=0)], [dict(step=1, kl=0.5)])] == [
        math.inf, 0.5]


def test_what_a_method_sees_before_a_turn():
    """The turn before taken for the one to come; the replayed turns forgotten."""
    episode = SimpleNamespace(turns=["a", "b"], played=1, task=SimpleNamespace(expert=("x", "y", "z")))
    turn = Rules(Method(), 4, 30, 0.5).ahead(episode, dict(turn=0.25).get)
    assert (turn.t, turn.k, turn.T, turn.L, turn.progress, turn.past) == (2, 4, 30, 3, 0.5, ["a", "b"])
    assert turn.coin == 0.25


def test_a_method_weighs_an_episode_that_is_over():
    """Weights that replace those of the roles where nobody asked for it, or belong to other turns; too few
    of them, which would leave the last turns as they were."""
    class Late(Method):
        def weigh(self, episode, progress):
            return [turn.weight * progress * t for t, turn in enumerate(episode.turns)]

    class Short(Method):
        def weigh(self, episode, progress):
            return [0.0]

    def weights(method):
        episode = SimpleNamespace(turns=[SimpleNamespace(weight=weight) for weight in (1.0, 0.0, 1.0)])
        Rules(method, 1, 30, 0.25).weigh(episode)
        return [turn.weight for turn in episode.turns]

    assert weights(Method()) == [1.0, 0.0, 1.0]
    assert weights(Late()) == [0.0, 0.0, 0.5]
    with pytest.raises(ValueError):
        weights(Short())


def test_the_teacher_judges_where_a_method_asks_for_it():
    """A `revise` that is never asked since the method forgot to say `judged`."""
    class Revising(Method):
        def revise(self, turn, judgement):
            return None

    class Judged(Method):
        judged = True

    assert Rules(Revising(), 1, 30).judged and Rules(Judged(), 1, 30).judged
