"""What the paper's four pairs take on eight GPUs, and with which flags they fit one of 80, 96 or 141 GB: the
table in docs/real-models.md.

    python benchmarks/plan_pairs.py                # two minutes
    python benchmarks/plan_pairs.py --pairs 1      # the first pair

The sizes are those of the models' public configurations; nothing is loaded.
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tcod
from harness import plan
from harness.cli import fill_presets

GPUS = 8


def sizes(kind, width, layers, heads, kv_heads, inner, **more):
    """The configuration of a Qwen model."""
    return AutoConfig.for_model(
        kind, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=inner,
        **{"vocab_size": 151936, "tie_word_embeddings": True, **more})


MODELS = {
    "Qwen2.5-3B": sizes("qwen2", 2048, 36, 16, 2, 11008, max_position_embeddings=32768),
    "Qwen2.5-7B": sizes(
        "qwen2", 3584, 28, 28, 4, 18944, max_position_embeddings=32768, vocab_size=152064,
        tie_word_embeddings=False),
    "Qwen3-1.7B": sizes("qwen3", 2048, 28, 16, 8, 6144, max_position_embeddings=40960, head_dim=128),
    "Qwen3-4B": sizes("qwen3", 2560, 36, 32, 8, 9728, max_position_embeddings=40960, head_dim=128),
    "Qwen3-30B-A3B": sizes(
        "qwen3_moe", 2048, 48, 32, 4, 6144, max_position_embeddings=262144, head_dim=128, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=768, tie_word_embeddings=False)}
PAIRS = [
    ("Qwen2.5-3B", "Qwen2.5-7B"), ("Qwen2.5-7B", "Qwen2.5-7B"), ("Qwen3-1.7B", "Qwen3-30B-A3B"),
    ("Qwen3-4B", "Qwen3-30B-A3B")]
TRIES = [  # flags, those first that cost least
    {}, dict(eval_batch=4), dict(eval_batch=4, chunk=128),
    dict(eval_batch=4, chunk=128, max_context=10240, batch_tokens=10240)]


def planned(student, teacher, flags):
    """The plan of a pair with these flags."""
    args = tcod.Args(precision="bf16", **flags)
    fill_presets(args)
    return plan.plan(args, MODELS[student], MODELS[teacher], GPUS, tcod.learner)


def written(flags):
    """Flags as they are given."""
    named = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in flags.items())
    return f"`{named}`" if named else "defaults"


def row(student, teacher):
    """A pair's line of the table: the flags tried until every card has some that fit."""
    fits, figures = {}, []
    for flags in TRIES:
        found = planned(student, teacher, flags)
        totals = [plan.total(parts) for parts in found.values()]
        figures.append(" · ".join(f"{size / 1e9:.1f}" for size in totals[:3]))
        for card, room in plan.CARDS.items():
            if max(totals) <= (1 - plan.MARGIN) * room:
                fits.setdefault(card, written(flags))
        if len(fits) == len(plan.CARDS):
            break
    cells = [f"{student} + {teacher}", figures[0], figures[-1]]
    return "| " + " | ".join(cells + [fits.get(card, "no") for card in plan.CARDS]) + " |"


def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="so many of them (default: all)")
    columns = ["pair", "GB by defaults: playing · evaluating · learning", "GB by the last flags tried"]
    print("| " + " | ".join([*columns, *plan.CARDS]) + " |")
    print("|---" * (3 + len(plan.CARDS)) + "|")
    for pair in PAIRS[:parser.parse_args().pairs]:
        print(row(*pair), flush=True)


if __name__ == "__main__":
    main()
