"""docs/forking.md: every ablation is applied to a copy of the project and run for two steps."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

import model as lm
from harness.cli import UserError
from harness.folder import read_log

SECTIONS = re.split(r"^## ", (Path(ROOT) / "docs" / "forking.md").read_text(encoding="utf-8"), flags=re.M)[1:]
TITLES = [section.splitlines()[0] for section in SECTIONS]
SMALL = ["--steps", "2", "--episodes", "4", "--eval-every", "0", "--max-response", "4", "--max-turns", "3"]


def copy_of_the_project(folder):
    """What a fork starts from; the shipped checkpoints by a link."""
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "assets", "__pycache__", ".pytest_cache")
    shutil.copytree(ROOT, folder, ignore=ignored)
    os.symlink(Path(ROOT) / "assets", folder / "assets")
    return folder


def apply(block, path):
    """Put the + lines of a diff in the place of its - lines; what it says of the file must stand there
    exactly once."""
    lines = block.splitlines()
    before = "\n".join(line[1:] for line in lines if line[0] in " -")
    after = "\n".join(line[1:] for line in lines if line[0] in " +")
    text = path.read_text(encoding="utf-8")
    assert text.count(before + "\n") == 1, f"{path.name} does not have the lines\n{before}"
    path.write_text(text.replace(before + "\n", after + "\n"), encoding="utf-8")


def make_hyperclovax(folder):
    """A small random model whose logits are scaled in a way of its own."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "hyperclovax", vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, logits_scaling=4.0, max_position_embeddings=16384)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def run(folder, command, games):
    """The section's own command, at the smallest size; the records of its log."""
    flags = command.removeprefix("python tcod.py").split()
    data = [] if "--env" in flags else ["--data", games]
    process = subprocess.run(
        [sys.executable, "tcod.py", *flags, *SMALL, *data, "--out", "out"], cwd=folder, capture_output=True,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.returncode == 0, process.stdout + process.stderr
    return read_log(folder / "out" / "log.jsonl"), read_log(folder / "out" / "episodes.jsonl")


def test_seven_ablations():
    """A document that loses a section."""
    assert [title.split(".")[0] for title in TITLES] == list("1234567")


@pytest.mark.parametrize("section", SECTIONS, ids=TITLES)
def test_an_ablation_runs_as_written(section, data, tmp_path):
    """Lines that the project no longer has, a choice that does not reach --help or the loop, a copy that ends
    in a traceback."""
    folder = copy_of_the_project(tmp_path / "fork")
    for name, block in re.findall(r"^```diff (\S+)\n(.*?)^```", section, re.M | re.S):
        apply(block, folder / name)
    if "hyperclovax" in section:
        make_hyperclovax(folder / "hyperclovax")
        with pytest.raises(UserError, match="not its head's products"):
            lm.load_model(str(folder / "hyperclovax"))  # by the lines that the section takes out
    command = re.search(r"^```bash\n(.*?)\n```", section, re.M | re.S)[1]
    log, episodes = run(folder, command, data)
    assert [r["step"] for r in log] == [1, 2] and len(episodes) == 8
    if "--schedule adaptive" in command:
        doctest = subprocess.run([sys.executable, "-m", "doctest", "curriculum.py"], cwd=folder)
        assert doctest.returncode == 0
    if "--method relay" in command:
        assert {e["who"] for e in episodes if e["rounds"] == 3 and e["step"] == 1} == {"tts"}
    if "one task in a step" in section:
        assert len({e["task"] for e in episodes if e["step"] == 1}) == 1
    if "--env guess" in command:
        assert {e["kind"] for e in episodes} == {"guess"}
