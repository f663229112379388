"""docs/forking.md: every fork is applied to a copy of the project and run for three steps."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import warm
from conftest import ROOT, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

import load
from harness.cli import UserError
from harness.folder import read_log

TEXT = (Path(ROOT) / "docs" / "forking.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", TEXT, flags=re.M)[1:]}
# Those that only add something to the project are applied to one copy, and run by one process.
TOGETHER = [title for title in SECTIONS if title.split(".")[0] in ("1", "2", "3", "4", "5", "6", "8")]
COPIES = [TOGETHER, *[[title] for title in SECTIONS if title not in TOGETHER]]
FLAGS = "--steps 3 --episodes 4 --eval-every 0 --eval-games 4 --max-response 4 --max-turns 3"
DRIVER = """
import json
import sys
import tcod
from harness.cli import parse
for flags in json.loads(sys.argv[1]):
    tcod.main(parse(tcod.Args, flags))
"""


def copy_of_the_project(folder):
    """What a fork starts from; the shipped checkpoints by a link."""
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "assets", "results", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=ignored)
    os.symlink(Path(ROOT) / "assets", folder / "assets")
    return folder


def diffs(section):
    """[(file, lines of its diff)] of a section."""
    return re.findall(r"^```diff (\S+)\n(.*?)^```", section, re.M | re.S)


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


def flags_of(title, games):
    """A section's own command, at the smallest size."""
    command = re.search(r"^```bash\npython tcod.py (.*?)\n```", SECTIONS[title], re.M | re.S)[1]
    data = [] if "--env" in command else ["--data", games]
    return [*command.split(), *FLAGS.split(), *data, "--out", f"out-{title.split('.')[0]}"]


@pytest.fixture(scope="module")
def ran(data, tmp_path_factory):
    """{title: (the log's records, its episodes)} of every fork."""
    found, root = {}, tmp_path_factory.mktemp("forks")
    for i, titles in enumerate(COPIES):
        folder = copy_of_the_project(root / str(i))
        for title in titles:
            for name, block in diffs(SECTIONS[title]):
                apply(block, folder / name)
            if "hyperclovax" in SECTIONS[title]:
                make_hyperclovax(folder / "hyperclovax")
                with pytest.raises(UserError, match="not its head's products"):
                    load.load_model(str(folder / "hyperclovax"))  # by the lines that the section takes out
        flags = [flags_of(title, data) for title in titles]
        (folder / "driver.py").write_text(DRIVER)
        process = warm.start(folder / "driver.py", [json.dumps(flags)], folder / "said", folder)
        process.join()
        assert process.exitcode == 0, (folder / "said").read_text()
        for title in titles:
            out = folder / f"out-{title.split('.')[0]}"
            found[title] = read_log(out / "log.jsonl"), read_log(out / "episodes.jsonl")
    return found


def test_a_fork_is_short():
    """A method of the field that does not fit into ten lines of one file."""
    assert [title.split(".")[0] for title in SECTIONS] == [str(n) for n in range(1, 10)]
    for title in list(SECTIONS)[:6]:
        (name, block), = diffs(SECTIONS[title])
        added = [line for line in block.splitlines() if line.startswith("+") and line.strip("+ ")]
        assert len(added) <= 10, title


@pytest.mark.parametrize("title", SECTIONS)
def test_a_fork_runs_as_written(title, ran):
    """Lines that the project no longer has, a choice that does not reach --help or the loop, a method whose
    answer is not asked for."""
    log, episodes = ran[title]
    assert [r["step"] for r in log] == [1, 2, 3] and len(episodes) == 12
    played = {e["who"] for e in episodes}
    number = title.split(".")[0]
    if number == "1":
        depth = {r["step"]: r["k"] for r in log}
        assert depth[1] == 1 and all(e["rounds"] <= depth[e["step"]] for e in episodes)
    elif number == "2":
        assert all(e["weight_turn"] == [0.9**t for t in range(e["rounds"])] for e in episodes)
    elif number == "3":
        assert played <= {"sss", "stt", "sst", "ss", "s"} and any("t" in who for who in played)
        assert all(e["trained"] == e["who"].count("s") and e["judged"][0]["kl"] > 0 for e in episodes)
    elif number == "4":
        assert all(who.lstrip("e") in ("s", "ss", "sss", "") for who in played) and len(played) > 1
        assert all(e["trained"] == e["who"].count("s") for e in episodes)
    elif number == "6":
        assert all(e["weight_turn"] == sorted(e["weight_turn"], reverse=True) for e in episodes)
        assert all(0.0 in e["weight_turn"] for e in episodes if e["invalid"] > 1)
    elif number == "7":
        assert len({e["task"] for e in episodes if e["step"] == 1}) == 1
    elif number == "8":
        assert {e["kind"] for e in episodes} == {"guess"}
