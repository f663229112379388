"""One training step against its peers: TRL's GKD loss on full logits, Liger's chunked JSD, a row per turn.

    pip install --target LIGER --no-deps liger-kernel
    pip install --target TRL --no-deps trl accelerate psutil datasets dill multiprocess xxhash pandas pyarrow
    python benchmarks/step_vs_peers.py --trl TRL --liger LIGER                    # sizes of SmolLM2-135M
    python benchmarks/step_vs_peers.py --trl TRL --liger LIGER --size head        # Qwen's vocabulary

Random student and teacher of the same sizes, the same rows, half of their tokens trained; every measurement
in a process of its own, on a GPU in bf16 autocast where there is one. Two figures of each way: the loss
alone, forward and backward from hidden states that are there; and the whole step: both models over the rows,
the loss, the gradients, in one micro-batch, activations recomputed. Ours and Liger are given the trained
tokens alone; TRL's trainer takes the logits of the whole rows, and is asked for no more than that. The loss
is the same number in all three.

Then a long episode: one row with every turn in it, as here, against a row for each turn with all that was
said before it, as the released implementation of the paper has it. A peer that is not installed, or does not
run, is skipped by name.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import torch
from decode import DEVICE, GPU, Size, make_model, seconds
from step_memory import episodes, held, peak

sys.path.append(ROOT)

import batch as batches
import loss as losses
import model as lm
import rollout
import tcod
from harness.cli import UserError, check_knobs, command, fill_presets, knob
from harness.ranks import Ranks

SETTING = dict(rows=(), contexts=(), prefill=())
SIZES = {
    "smol": Size(
        width=576, inner=1536, layers=30, heads=9, kv_heads=3, vocabulary=49152, known=49152, **SETTING),
    "head": Size(
        width=256, inner=512, layers=2, heads=4, kv_heads=2, vocabulary=151936, known=151936, **SETTING),
    "tiny": Size(width=64, inner=192, layers=2, heads=4, kv_heads=2, vocabulary=512, known=512, **SETTING)}
BETA = {"forward": 0.0, "jsd": 0.5, "reverse": 1.0}  # as TRL and Liger call them
IGNORED = -100  # the label of a token that is not trained
LENGTH = 4096   # of a row
WHAT = ("loss", "step", "episode")
EPISODES = ("row", "turns")
SHOWN = 160     # letters of an error


@dataclass
class Args:
    """What is measured, and where the peers are."""
    size: str = knob("smol", "of both models", choices=tuple(SIZES))
    tokens: str = knob("4096,16384", "trained tokens of a step, about, by commas")
    ways: str = knob("ours,liger,trl", "by commas")
    what: str = knob("loss,step,episode", "is measured: the loss alone, the whole step, the long episode")
    loss: str = knob("reverse", "the divergence", choices=tuple(BETA))
    chunk: int = knob(1024, "tokens whose distributions are in memory at once, ours and Liger's", least=1)
    turns: int = knob(30, "of the long episode", least=1)
    said: int = knob(200, "tokens of an observation, and of a response, of the long episode", least=1)
    repeats: int = knob(3, "of each measurement, after a first one; the fastest counts", least=1)
    trl: str = knob("", "folder with TRL, from pip install --target", path=True)
    liger: str = knob("", "folder with Liger, likewise", path=True)
    measure: str = knob("", "WHAT-NUMBER: measure this alone, in this process; as the others are started")


# ---- the ways to a loss: (hidden (N, D), head (V, D)) of student and teacher, labels (N,), args -> ()

def ours(student, teacher, labels, args):
    """`loss.chunked`, as in tcod.py."""
    count = len(labels)
    batch = dict(
        token=labels, sampled_logp=torch.zeros(count, device=DEVICE),
        weight=torch.full((count,), 1 / count, device=DEVICE),
        loss={args.loss: torch.arange(count, device=DEVICE)})
    vocabulary = lm.Vocabulary(SIZES[args.size].vocabulary, [])
    return losses.chunked(
        student, teacher, batch, beta=0.5, temperature=1.0, vocabulary=vocabulary, chunk=args.chunk)[0]


def liger(student, teacher, labels, args):
    """Liger's linear layer and divergence in one; it is compiled on a GPU, as by default."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    work = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[args.loss], compiled=GPU, chunk_size=args.chunk)
    return work(*student, teacher[0].to(student[0].dtype), teacher[1].to(student[1].dtype), labels)


def trl(student, teacher, labels, args):
    """What TRL's GKDTrainer computes of both models' full logits."""
    from trl.experimental.gkd import GKDTrainer

    own = student[0] @ student[1].T
    with torch.no_grad():
        theirs = teacher[0] @ teacher[1].T
    return GKDTrainer.generalized_jsd_loss(own[None], theirs[None], labels[None], beta=BETA[args.loss])


LOSSES = {"ours": ours, "liger": liger, "trl": trl}


# ---- measured in a process of its own

def autocast():
    """The precision of a training step."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU, cache_enabled=False)


def models(args):
    """(student, teacher), random; the student's activations are recomputed."""
    torch.manual_seed(0)
    student, teacher = make_model(SIZES[args.size], torch.float32), make_model(SIZES[args.size])
    student.activation_checkpointing_enable()
    return student.train(), teacher


def figures(work, args):
    """(the loss, seconds, bytes beyond weights and gradients) of some work that returns a loss; what it
    imports or compiles when it is called first does not count."""
    value, took = work(), []
    before = held()
    most = max(peak(lambda: took.append(seconds(work))) for _ in range(args.repeats))
    return dict(loss=value, seconds=min(took), bytes=most - before)


def labelled(rows):
    """What each position of the rows has to predict, flattened (B · T,); IGNORED where it is not trained."""
    ids = batches.padded(rows, DEVICE)
    labels = torch.full_like(ids, IGNORED)
    for row, own in zip(rows, labels):
        for j, turn in enumerate(row.turn):
            if turn >= 0:
                own[j - 1] = row.ids[j]
    return labels.flatten()


def measure_alone(way, tokens, args):
    """The loss of so many tokens, forward and backward, from hidden states that are there."""
    student, teacher = models(args)
    size = SIZES[args.size]
    own = torch.randn(tokens, size.width, device=DEVICE, requires_grad=True)
    theirs = torch.randn(tokens, size.width, device=DEVICE, dtype=teacher.dtype)
    labels = torch.randint(size.vocabulary, (tokens,), device=DEVICE)

    def work():
        own.grad = lm.head(student).grad = None
        with autocast():
            value = LOSSES[way]((own, lm.head(student)), (theirs, lm.head(teacher)), labels, args)
        value.backward()
        return value.item()

    return figures(work, args)


def measure_step(way, tokens, args):
    """Both models over the rows, the loss and the gradients."""
    student, teacher = models(args)
    rows = [episode.row for episode in episodes(tokens, min(LENGTH, tokens), SIZES[args.size].known)]
    ids, labels = batches.padded(rows, DEVICE), labelled(rows)
    kept = labels >= 0 if way != "trl" else torch.ones_like(labels, dtype=torch.bool)

    def hidden(model):
        return lm.hidden_states(model, ids).flatten(0, 1)[kept], lm.head(model)

    def work():
        student.zero_grad()
        with autocast():
            with torch.no_grad():
                theirs = hidden(teacher)
            value = LOSSES[way](hidden(student), theirs, labels[kept], args)
        value.backward()
        return value.item()

    return figures(work, args)


def long_episode(way, args):
    """An episode of `turns` observations and responses: in one row, or in a row for each turn."""
    whole, rows = rollout.Row(), []
    for t in range(args.turns):
        whole.say(list(range(args.said)))
        rows.append(rollout.Row(list(whole.ids), [-1] * len(whole.ids), list(whole.logp)))
        for row in (whole, rows[-1]):
            row.respond(list(range(args.said)), t, [-1.0] * args.said)
    turns = [dict(weight=1.0, loss="")] * args.turns
    return rollout.Episode(None, 0, rows=[whole] if way == "row" else rows, turns=turns)


def measure_episode(way, args):
    """The gradient of a long episode, by tcod.py's own backward pass."""
    run = tcod.Args(loss=args.loss, chunk=args.chunk, aggregate="token")
    fill_presets(run)
    student, teacher = models(args)
    ranks, episode = Ranks(), long_episode(way, args)
    distiller = tcod.distributed(student, run, lm.Vocabulary(SIZES[args.size].vocabulary, []), ranks)

    def work():
        student.zero_grad()
        return tcod.backward(distiller, teacher, [episode], run, ranks)[0]

    return figures(work, args)


def measure(args):
    """Print the figures of what --measure names as a line of JSON."""
    what, way, tokens = args.measure.split("-")
    if what == "episode":
        found = measure_episode(way, args)
    else:
        found = (measure_alone if what == "loss" else measure_step)(way, int(tokens), args)
    print(json.dumps(found))


# ---- all of them

def started(args, name):
    """The figures of one measurement, in a new process; None where it did not run, which is said."""
    asked = asdict(replace(args, measure=name))
    flags = [f"--{key}={value}" for key, value in asked.items() if value != ""]
    paths = [args.trl if "-trl-" in name else args.liger if "-liger-" in name else ""]
    paths.append(os.environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        [sys.executable, os.path.abspath(__file__), *flags], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        print(f"{name:20} skipped: {last[:SHOWN]}", flush=True)
        return None
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{name:20} {found['seconds']:9.3f} s {found['bytes'] / 1e9:9.3f} GB   loss {found['loss']:.6f}",
          flush=True)
    return found


def compare(name, first, other):
    """Say how many times the seconds and the memory of the first the other one takes; a few kilobytes on a
    CPU may show as none."""
    if first and other:
        memory = f"{other['bytes'] / first['bytes']:.1f}" if first["bytes"] else "-"
        took = f"{other['seconds'] / first['seconds']:.2f} times the seconds"
        print(f"{name}: {took}, {memory} times the memory", flush=True)


def measure_all(args):
    """A line for each measurement, and the ratios to ours."""
    what, ways = args.what.split(","), args.ways.split(",")
    for tokens in args.tokens.split(","):
        for part in [part for part in what if part != "episode"]:
            found = {way: started(args, f"{part}-{way}-{tokens}") for way in ways}
            for way in [way for way in ways if way != "ours"]:
                compare(f"{part} of {tokens}, {way} to ours", found.get("ours"), found[way])
    if "episode" in what:
        row, turns = (started(args, f"episode-{way}-{args.turns}") for way in EPISODES)
        compare(f"episode of {args.turns} turns, a row per turn to one row", row, turns)


def check(args):
    """Raises UserError for what cannot be measured."""
    check_knobs(args)
    for name, known in (("ways", LOSSES), ("what", WHAT)):
        strange = [word for word in getattr(args, name).split(",") if word not in known]
        if strange:
            raise UserError(f"--{name} wants some of {', '.join(known)}, not {', '.join(strange)}")
    if not all(number.isdecimal() for number in args.tokens.split(",")):
        raise UserError(f"--tokens wants whole numbers, by commas, not {args.tokens!r}")


def main(args):
    check(args)
    if args.measure:
        measure(args)
        return
    name = torch.cuda.get_device_name() if GPU else "a CPU: resident memory, about"
    print(f"{args.size}, {args.loss}, on {name}", flush=True)
    measure_all(args)


if __name__ == "__main__":
    command(main, Args)
