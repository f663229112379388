"""The schedule, and who acts in which turn, by hand."""

import pytest

from curriculum import METHODS, NEEDS_EXPERT, beta, depth, parse_stages, plan, take_over


def test_linear_depth_is_equation_4_exactly():
    """Off by one: n counts from 1, so k stays at k_start for eta − 1 steps and then holds every value for eta
    steps."""
    assert [depth(n, eta=2) for n in range(1, 9)] == [1, 2, 2, 3, 3, 4, 4, 5]
    assert [depth(n, k_start=3, eta=4) for n in (1, 3, 4, 7, 8)] == [3, 3, 4, 4, 5]
    assert [depth(n, eta=0.5) for n in (1, 2, 3)] == [3, 5, 7]
    assert [depth(n, eta=2.5) for n in (4, 5, 7, 8)] == [2, 3, 3, 4]


def test_step_depth_begins_at_its_step_in_any_order():
    """Taking the last stage written instead of the last begun."""
    stages = parse_stages("30@20,5@10")
    depths = [depth(n, "step", k_start=2, stages=stages) for n in (1, 9, 10, 19, 20, 99)]
    assert depths == [2, 2, 5, 5, 30, 30]
    assert depth(7, "constant", k_start=4) == 4
    with pytest.raises(ValueError, match="unknown schedule"):
        depth(7, "cosine")


@pytest.mark.parametrize("text", ["5", "5@", "@3", "0@3", "5@0", "a@b", "1@2@3"])
def test_stages_that_cannot_be_read(text):
    """Silently training at a depth nobody asked for."""
    with pytest.raises(ValueError, match="depth@step"):
        parse_stages(text)


def played(method, k, L, T, beta=0.0, coins=None):
    """A letter per turn of an episode that nobody wins: who acts, in capitals where the turn is trained."""
    roles, letters = plan(method, k, T, beta), ""
    while True:
        models = sum(letter in "sStT" for letter in letters)
        coin = 0.5 if coins is None else coins[len(letters)]
        role = roles(len(letters), L, models, coin)
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
    assert played(METHODS[method], k, L, 30) == expected


def test_only_these_methods_replay_an_expert():
    """A method without an expert's episode that silently becomes another: the released code's B2F became
    OPD."""
    assert [name for name in METHODS if "e" in played(METHODS[name], 1, 8, 30).lower()] == list(NEEDS_EXPERT)


def test_guided_turns_are_drawn_turn_by_turn():
    """One draw for the whole episode, or the teacher below the coin instead of above; the teacher's turns
    take forward KL."""
    assert played(METHODS["guided"], 1, 0, 4, beta=0.5, coins=[0.1, 0.6, 0.49, 0.5, 0.0]) == "TSTS"
    roles = plan(METHODS["guided"], 1, 4, beta=0.5)
    assert [roles(0, 0, 0, coin).loss for coin in (0.1, 0.9)] == ["forward", ""]


def test_the_share_of_guided_turns_falls_by_its_cosine():
    """Over all steps instead of the share rho of them; from 0 to 1."""
    assert [round(beta(n, 200), 6) for n in (0, 80, 160, 161, 200)] == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert beta(25, 100, rho=0.5) == pytest.approx(0.5) and beta(10, 100) == pytest.approx(0.961940, abs=1e-6)


def test_the_take_over_test_trains_nothing():
    """A test that would train, or a teacher that never takes over."""
    assert played(take_over, 3, 8, 6) == "sssttt"
    assert played(take_over, 0, 0, 3) == "ttt" and played(take_over, 9, 0, 3) == "sss"
