"""Every benchmark, started from a folder of its own with its smallest size: it runs and prints a figure."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = (
    "--env webshop --methods opd,f2b,sft --seeds 0,1 --samples 2 --collect 4 --out paper --flags "
    "'--steps 2 --episodes 2 --eval-every 2 --eval-games 2 --max-turns 2'")
SMALLEST = [  # name and options; a figure that the output must hold, as a pattern
    ("alfworld_step", "--games 1", r"\d\.\d+ s +\d\.\d+ s +\d+ x"),
    ("alfworld_start", "--data generated --games 2", r"the next start: 2 tasks .* 0 of 2 games translated"),
    ("alfworld_same", "--data generated --games 1 --actions 3", r"1 games, 4 states: 0 differ"),
    ("scienceworld_step", "--steps 3 --tasks 1 --environments 2 --turns 2", r"ours \d+\.\d ms.* 0 differ"),
    ("webshop_envs", "--environments 1 2 --seconds 0.1", r"\d+ steps per second"),
    ("webshop_search", "--sizes 100 200 --queries 5", r"(?m)^200( \| [\d.,e+-]+){9}"),
    ("memory", "--worlds webshop --resets 3 --steps 3", r"3 resets: (\d+ ){4}MB\n.* 3 training steps: \d+"),
    ("paper_table", TINY, r"(?m)^\| SFT \(nll\) \| 2 \|.* rounds \|.*% \| – \| \d+ \|.*\[.*\] \|$"),
    ("play_vs_generate", "--turns 2 --rows 2", r"ratio \d+\.\d"),
]


def start(name, options, folder):
    """Status, output and errors of a benchmark that is started in `folder`, with its caches there."""
    variables = {**os.environ, "TCOD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    variables.pop("PYTHONPATH", None)
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *shlex.split(options)]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("name, options, figure", SMALLEST)
def test_a_benchmark_runs_from_any_folder(name, options, figure, tmp_path):
    """A benchmark that finds its modules only in the repository, or not any more after they were renamed."""
    done = start(name, options, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(figure, done.stdout), done.stdout


def test_no_benchmark_is_forgotten():
    """A benchmark that nothing starts, until a reader does."""
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == {name for name, _, _ in SMALLEST}


@pytest.mark.parametrize("name", [name for name, _, _ in SMALLEST])
def test_the_help_says_how_to_start_it(name, tmp_path):
    """Help without the command, or with one that works in one folder only."""
    done = start(name, "--help", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{name}.py" in done.stdout
