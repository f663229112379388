"""The examples in the docstrings: what a docstring promises, the code returns."""

import doctest
import importlib

import pytest

MODULES = ("curriculum", "batch", "harness.report", "watch", "prompts")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_docstrings(name):
    """An example that was right once; none where there should be some."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0 and result.attempted > 0
