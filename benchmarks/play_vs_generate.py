"""Tokens per second of batched multi-turn play: the ragged cache kept from turn to turn, against Hugging Face
`generate` called every turn on the whole conversation (what a loop around a chat model does), and against
`generate` with its own cache kept from turn to turn, which only rows of equal length, as here, allow.

    python benchmarks/play_vs_generate.py                           # the tiny pair's sizes
    python benchmarks/play_vs_generate.py --rows 8 --words 40 --response 12 --layers 4 --width 256

What is saved is the prefill of everything said before, so the first ratio grows with the turns and falls with
the length of a response (the second line's are longer). Same random model, same conversations, same number of
sampled tokens, same process, one thread; the figures to look at are the ratios.
"""

import argparse
import os
import random
import sys
import time

import torch
from transformers import DynamicCache

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

from conftest import WORDS, make_model, make_tokenizer

import curriculum
import envs
import model as lm
import rollout

PAD = 0


class Script(envs.TextGame):
    """A game that says random words whatever is done: only the lengths matter here."""
    name = "script"
    splits = ("train",)
    train_split = "train"

    def __init__(self, seed, words):
        super().__init__()
        self.draw = random.Random(seed)
        self.words = words

    def _start(self, task):
        return " ".join(self.draw.choices(WORDS, k=4 * self.words))

    def _act(self, action):
        return " ".join(self.draw.choices(WORDS, k=self.words)), 0.0, False

    def _info(self):
        return dict(task="", kind="", admissible=[], won=False, lost=False, invalid=False, status="")


def play(model, chat, args, limits):
    """Ours. Returns (seconds, sampled tokens, final rows)."""
    games = [Script(i, args.words) for i in range(args.rows)]
    tasks = [envs.Task(str(i), "") for i in range(args.rows)]
    plan = curriculum.plan(curriculum.opd, 0, args.turns)
    began = time.perf_counter()
    episodes = rollout.play({"student": model}, chat, games, tasks, plan, limits)
    seconds = time.perf_counter() - began
    rows = [episode.row for episode in episodes]
    sampled = sum(t >= 0 for row in rows for t in row.turn)
    return seconds, sampled, [row.ids for row in rows]


@torch.no_grad()
def generate(model, chat, args, limits, **more):
    """The whole conversation, left-padded, through `generate` at every turn; returns the same. more: what
    `generate` is given besides."""
    games = [Script(i, args.words) for i in range(args.rows)]
    size = limits.max_response
    began = time.perf_counter()
    rows = []
    for game in games:
        text, _ = game.reset(options={"task": envs.Task("", "")})
        rows.append(chat.encode_observation(text + "\n", True))
    for turn in range(args.turns):
        for row, game, new in zip(rows, games, generate_once(model, rows, size, **more)):
            row += new + [chat.end]
            if turn + 1 < args.turns:
                text = game.step("")[0]
                row += chat.encode_observation(text + "\n", False)
    return time.perf_counter() - began, args.rows * args.turns * size, rows


def kept(model, chat, args, limits):
    """The same with transformers' cache of the whole conversation so far."""
    seconds, sampled, rows = generate(model, chat, args, limits, cache=DynamicCache(config=model.config))
    if len(set(map(len, rows))) > 1:
        raise ValueError("rows of different lengths: the cache of their pads was played on")
    return seconds, sampled, rows


def generate_once(model, rows, size, **more):
    """`size` new tokens behind each row, lists of ids."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])  # (B, T)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(
        input_ids=ids, attention_mask=mask, pad_token_id=PAD,
        do_sample=True, top_k=0, max_new_tokens=size, min_new_tokens=size, **more)
    return out[:, width:].tolist()


def setting(args):
    """(model, chat, limits): a random model whose responses never end early, so that both methods sample
    exactly the same number of tokens."""
    model = make_model(
        "qwen2", vocabulary=4096,
        hidden_size=args.width, intermediate_size=3 * args.width, num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32, num_key_value_heads=max(1, args.width // 64))
    chat = rollout.Chat(make_tokenizer())
    chat.vocabulary = lm.Vocabulary(model.config.vocab_size, [])  # both draw from all ids
    chat.stop = {-1}
    return model, chat, rollout.Limits(max_response=args.response, max_context=10**6)


def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--rows", type=int, default=16, help="conversations at once")
    parser.add_argument(
        "--words", type=int, default=25, help="of an observation; the first has four times as many")
    parser.add_argument("--response", type=int, default=4, help="tokens of a response")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=96, help="of the model, a multiple of 32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, chat, limits = setting(args)
    small = argparse.Namespace(rows=2, turns=2, words=args.words)
    methods, speeds = {"play": play, "generate": generate, "generate, cache kept": kept}, {}
    for method in methods.values():
        method(model, chat, small, limits)  # warm-up
    for name, method in methods.items():
        seconds, tokens, rows = method(model, chat, args, limits)
        speeds[name] = tokens / seconds
        print(
            f"{name:20} {tokens} tokens in {seconds:6.1f} s, {speeds[name]:6.0f} tokens/s, "
            f"longest row {max(map(len, rows))}", flush=True)
    ours, again, cached = speeds.values()
    print(f"ratio {ours / again:.1f}, and {ours / cached:.2f} to the cache that is kept")


if __name__ == "__main__":
    main()
