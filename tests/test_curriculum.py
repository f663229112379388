"""The schedule and the window, by hand."""

import doctest

import pytest

import curriculum
from curriculum import depth, parse_stages, window


def test_examples_in_the_docstrings():
    """A docstring that promises values the code does not return."""
    assert doctest.testmod(curriculum).failed == 0


def test_linear_depth_is_equation_4_exactly():
    """Off by one: n counts from 1, so k stays at k_start for eta − 1 steps and then holds every value for eta steps."""
    assert [depth(n, eta=2) for n in range(1, 9)] == [1, 2, 2, 3, 3, 4, 4, 5]
    assert [depth(n, k_start=3, eta=4) for n in (1, 3, 4, 7, 8)] == [3, 3, 4, 4, 5]
    assert [depth(n, eta=0.5) for n in (1, 2, 3)] == [3, 5, 7]
    assert [depth(n, eta=2.5) for n in (4, 5, 7, 8)] == [2, 3, 3, 4]


def test_step_depth_begins_at_its_step_in_any_order():
    """Taking the last stage written instead of the last begun."""
    stages = parse_stages("30@20,5@10")
    assert [depth(n, "step", k_start=2, stages=stages) for n in (1, 9, 10, 19, 20, 99)] == [2, 2, 5, 5, 30, 30]
    assert depth(7, "constant", k_start=4) == 4


@pytest.mark.parametrize("text", ["5", "5@", "@3", "0@3", "5@0", "a@b", "1@2@3"])
def test_stages_that_cannot_be_read(text):
    """Silently training at a depth nobody asked for."""
    with pytest.raises(ValueError, match="depth@step"):
        parse_stages(text)


@pytest.mark.parametrize("method, k, L, expected", [
    ("opd", 1, None, (0, 30)), ("opd", 99, 5, (0, 30)),
    ("f2b", 1, None, (0, 1)), ("f2b", 30, None, (0, 30)), ("f2b", 31, None, (0, 30)),
    ("b2f", 1, 8, (7, 30)), ("b2f", 8, 8, (0, 30)), ("b2f", 9, 8, (0, 30)),
    ("b2f", 2, 40, (38, 40)), ("b2f", 25, 40, (15, 40)), ("b2f", 40, 40, (0, 30)), ("b2f", 35, 40, (5, 35))])
def test_window(method, k, L, expected):
    """B2F that lets the student play k turns only, or an expert longer than the horizon that leaves the student no turn."""
    start, stop = window(method, k, L, 30)
    assert (start, stop) == expected
    assert 0 < stop - start <= 30


def test_b2f_without_expert_is_an_error():
    """The released code's silent fallback from B2F to OPD."""
    for nothing in (None, 0):
        with pytest.raises(ValueError, match="expert"):
            window("b2f", 3, nothing, 30)
    with pytest.raises(ValueError, match="unknown method"):
        window("ppo", 3, 8, 30)
