"""The examples in the docstrings and the pages: what they promise, the code returns."""

import doctest
import importlib
from pathlib import Path

import pytest
from conftest import ROOT

FILES = [*Path(ROOT).glob("*.py"), *Path(ROOT).glob("*/*.py")]
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES
    if ">>> " in file.read_text("utf-8") and file.parent.name != "tests")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_docstrings(name):
    """An example that was right once."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0 and result.attempted > 0


def test_the_examples_are_found():
    """None where there should be some; a room whose examples are never run."""
    assert {"curriculum", "batch", "chat.prompts", "watch.page", "harness.report"} <= set(MODULES)


def test_the_tour():
    """A number on the page that was right once."""
    result = doctest.testfile(f"{ROOT}/docs/tour.md", module_relative=False, encoding="utf-8")
    assert result.failed == 0 and result.attempted > 30


def test_the_readme_shows_the_loop_as_it_is():
    """A loop in the README that the code no longer has; a README that grows."""
    readme = Path(ROOT, "README.md").read_text(encoding="utf-8")
    loop = readme.split("```python\n")[1].split("```")[0]
    assert loop in Path(ROOT, "tcod.py").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
