"""Tokens per second of batched multi-turn play: the ragged cache kept from turn to turn, against Hugging Face `generate` called every
turn on the whole conversation (what a loop around a chat model does).

    python benchmarks/play_vs_generate.py                                                             # the tiny pair's sizes
    python benchmarks/play_vs_generate.py --rows 8 --words 40 --response 12 --layers 4 --width 256    # longer responses

What is saved is the prefill of everything said before, so the ratio grows with the turns and falls with the length of a response.
Same random model, same conversations, same number of sampled tokens, same process, one thread; the figure to look at is the ratio.
"""

import argparse
import os
import random
import sys
import time

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

from conftest import WORDS, make_model, make_tokenizer

import envs
import rollout


class Script(envs.TextGame):
    """A game that says random words whatever is done: only the lengths matter here."""
    name, splits, train_split = "script", ("train",), "train"

    def __init__(self, seed, words):
        super().__init__()
        self.draw, self.words = random.Random(seed), words

    def _start(self, task):
        return " ".join(self.draw.choices(WORDS, k=4 * self.words))

    def _act(self, action):
        return " ".join(self.draw.choices(WORDS, k=self.words)), 0.0, False

    def _info(self):
        return dict(task="", kind="", admissible=[], won=False, lost=False, invalid=False, status="")


def play(model, chat, rows, turns, words, limits):
    """Ours. Returns (seconds, sampled tokens, final rows)."""
    games = [Script(i, words) for i in range(rows)]
    began = time.perf_counter()
    episodes = rollout.play(model, chat, games, [envs.Task(str(i), "") for i in range(rows)], [(0, turns)] * rows, limits)
    seconds = time.perf_counter() - began
    return seconds, sum(t >= 0 for e in episodes for t in e.row.turn), [e.row.ids for e in episodes]


@torch.no_grad()
def generate(model, chat, rows, turns, words, limits):
    """The whole conversation, left-padded, through `generate` at every turn."""
    games = [Script(i, words) for i in range(rows)]
    pad, size = 0, limits.max_response
    began = time.perf_counter()
    ids = [chat.observation(game.reset(options={"task": envs.Task("", "")})[0] + "\n", True) for game in games]
    for turn in range(turns):
        width = max(map(len, ids))
        batch = torch.tensor([[pad] * (width - len(row)) + row for row in ids])  # (B, T)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        out = model.generate(input_ids=batch, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=size, min_new_tokens=size,
                             pad_token_id=pad)
        for row, game, new in zip(ids, games, out[:, width:].tolist()):
            row += new + [chat.end]
            if turn + 1 < turns:
                row += chat.observation(game.step("")[0] + "\n", False)
    return time.perf_counter() - began, rows * turns * size, ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("turns", 30), ("rows", 16), ("words", 25), ("response", 4), ("layers", 3), ("width", 96)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model("qwen2", vocabulary=4096, hidden_size=args.width, intermediate_size=3 * args.width, num_hidden_layers=args.layers,
                       num_attention_heads=args.width // 32, num_key_value_heads=max(1, args.width // 64))
    chat = rollout.Chat(make_tokenizer())
    chat.vocabulary = model.config.vocab_size  # both draw from all ids
    chat.stop = {-1}  # no response ends early: both sample exactly the same number of tokens
    limits = rollout.Limits(max_response=args.response, max_context=10**6, style="bare")
    for method in (play, generate):  # warm-up
        method(model, chat, 2, 2, args.words, limits)
    speeds = {}
    for method in (play, generate):
        seconds, tokens, rows = method(model, chat, args.rows, args.turns, args.words, limits)
        speeds[method.__name__] = tokens / seconds
        print(f"{method.__name__:9} {tokens} tokens in {seconds:6.1f} s, {tokens / seconds:6.0f} tokens/s, longest row {max(map(len, rows))}", flush=True)
    print(f"ratio {speeds['play'] / speeds['generate']:.1f}")


if __name__ == "__main__":
    main()
