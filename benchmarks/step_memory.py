"""Memory of one training step and what it consists of: a student of Qwen2.5-1.5B's sizes and a teacher of
3B's, random weights, two micro-batches of 16,384 tokens.

    python benchmarks/step_memory.py                                # on a GPU
    python benchmarks/step_memory.py --student tiny --teacher tiny  # anywhere; resident memory, roughly

Beside what was measured stands what the numbers of weights say: fp32 master weights, gradients and AdamW's
two moments, the bf16 copies. What a peak has beyond those is activations and logits, or the optimizer's own.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

import torch
from decode import DEVICE, GPU, SIZES, make_model, seconds

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import model as lm
import rollout
import tcod
from harness.cli import fill_presets
from harness.ranks import Ranks

SAID = 200  # tokens of an observation, and of a response behind it


# ---- memory, in bytes

def resident(field):
    """A line of the process's own status: VmRSS, VmHWM (its peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def held():
    """What is in use now."""
    return torch.cuda.memory_allocated() if GPU else resident("VmRSS")


def peak(work):
    """The most that was in use during `work`."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return resident("VmHWM")


# ---- a step

def episodes(tokens, length, vocabulary):
    """Two micro-batches of played episodes: rows of `length` tokens, every other SAID of them a response."""
    draw = random.Random(0)
    found = []
    for i in range(2 * tokens // length):
        row = rollout.Row()
        while len(row.ids) < length:
            row.say(draw.choices(range(vocabulary), k=SAID))
            row.respond(draw.choices(range(vocabulary), k=SAID), len(row.ids) // (2 * SAID), [-1.0] * SAID)
        row = rollout.Row(row.ids[:length], row.turn[:length], row.logp[:length])
        turns = [dict(weight=1.0, loss="")] * (1 + max(row.turn))
        found.append(rollout.Episode(None, i, rows=[row], turns=turns))
    return found


def settings(args):
    """The arguments of a training run: the defaults, but for the sizes."""
    run = tcod.Args(batch_tokens=args.batch_tokens, chunk=min(1024, args.batch_tokens))
    fill_presets(run)
    return run


def table(rows):
    """Print (what, bytes by the weights or None, bytes measured)."""
    print(f"{'GB':34} {'by number':>10} {'measured':>10}")
    for what, should, found in rows:
        by_number = f"{should / 1e9:10.3f}" if should is not None else " " * 10
        print(f"{what:34} {by_number} {found / 1e9:10.3f}")


def measure(args):
    """Print the table of one training step."""
    run, ranks, size = settings(args), Ranks(), SIZES[args.student]
    start, rows = held(), []

    def note(what, should):
        rows.append((what, should, held() - start - sum(found for _, _, found in rows)))

    student = make_model(size, torch.float32)
    count = student.num_parameters()
    note("student's weights, fp32", 4 * count)
    teacher = make_model(SIZES[args.teacher], lm.play_dtype())
    note("teacher's weights", lm.play_dtype().itemsize * teacher.num_parameters())
    actor = lm.playing_copy(student)
    lm.release(actor, student)
    note("playing copy, given up", 0)
    distiller = tcod.distributed(student, run, lm.Vocabulary(size.known, []), ranks)
    optimizer = tcod.adamw(student, run, ranks.world)
    played = episodes(args.batch_tokens, args.length, size.known)

    def learn():
        tcod.backward(distiller, teacher, played, run, ranks)

    began = time.perf_counter()
    learn()
    note("gradients", 4 * count)
    optimizer.step()
    note("AdamW's moments", 8 * count)
    optimizer.zero_grad(set_to_none=True)
    print(f"the first step took {time.perf_counter() - began:.1f} s", flush=True)
    kept = sum(found for _, _, found in rows)
    took = []
    most = peak(lambda: took.append(seconds(learn))) - start
    stepping = peak(optimizer.step) - start
    beyond = "  beyond the parts above"
    rows += [
        ("together", sum(should for _, should, _ in rows), kept),
        ("peak of forward and backward", None, most), (beyond, None, most - kept),
        ("peak of AdamW's step", None, stepping), (beyond, None, stepping - kept)]
    table(rows)
    trained = sum(t >= 0 for episode in played for t in episode.row.turn)
    print(f"forward and backward: {took[0]:.1f} s for {len(played)} rows of {args.length} tokens, {trained} "
          f"tokens trained, {args.batch_tokens} a micro-batch")


def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--student", choices=SIZES, default="1.5B", help="its sizes (default: 1.5B)")
    parser.add_argument("--teacher", choices=SIZES, default="3B", help="its sizes (default: 3B)")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="of a micro-batch (default: 16384)")
    parser.add_argument("--length", type=int, default=4096, help="of a row (default: 4096)")
    args = parser.parse_args()
    if not GPU:
        print(f"on {DEVICE.type}: resident memory, with what the libraries and the allocator keep")
    measure(args)


if __name__ == "__main__":
    main()
