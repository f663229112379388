"""The loss beside those of others: TRL's, over the logits of the whole row, and Liger's, a chunk at a time.

    pip install trl==1.16.0 && pip install --no-deps liger-kernel==0.8.5    # beside this project's packages
    python studies/peers.py --size 135M --tokens 4096,16384                 # on Linux

Reverse KL at half of the tokens of a micro-batch, and its gradient for the hidden states and for the head.
All three begin at the same random states and heads, so the values must agree, and so must gradients. What a
peer has beyond the fastest is what it forms of tokens that nothing is learned from, and in memory the
[tokens × vocabulary] tensors that live at once. Where they do not fit, that is said.
"""

import os
import resource
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from bench import DEVICE, GPU, SIZES, held, peak, seconds

import loss as losses
from harness.cli import UserError, check_knobs, command, knob
from model import Head, Vocabulary

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # a warning of TRL's


@dataclass
class Args:
    """What is measured, and how large."""
    size: str = knob("tiny", "of the model", choices=tuple(SIZES))
    tokens: str = knob("512", "of a micro-batch, half of them trained; some by commas")


def ours(states, weight, taught, head, trained):
    """This project's: only what is trained is scored."""
    n = len(trained)
    batch = SimpleNamespace(
        token=torch.zeros(n, dtype=torch.long, device=DEVICE), sampled_logp=torch.zeros(n, device=DEVICE),
        weight=torch.full((n,), 1 / n, device=DEVICE), losses={"reverse": torch.arange(n, device=DEVICE)})
    return losses.chunked(
        (states[trained], Head(weight)), (taught[trained], Head(head)), batch, beta=0.5, temperature=1.0,
        vocabulary=Vocabulary(len(weight), []))[0]


def labels(states, trained):
    """(T,): −100 where nothing is trained, as both peers ask for."""
    return torch.full((len(states),), -100, device=DEVICE).index_fill_(0, trained, 0)


def trl(states, weight, taught, head, trained):
    """TRL's loss of generalised knowledge distillation: β = 1 is reverse KL."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer
    with torch.no_grad():
        teacher = taught @ head.T  # (T, V)
    return GKDTrainer.generalized_jsd_loss(
        states @ weight.T, teacher, labels(states, trained), beta=1)


def liger(states, weight, taught, head, trained):
    """Liger's chunked loss, not compiled; β = 1 is reverse KL."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1, compiled=False)
    return loss(states, weight, taught, head, labels(states, trained))


PEERS = {"ours": ours, "TRL": trl, "Liger": liger}


def learned(loss, known):
    """(value, gradient of the states (T, D), of the head (V, D))."""
    states, weight, *rest = known
    value = loss(states, weight, *rest)
    return value.detach(), *torch.autograd.grad(value, (states, weight))


def timed(work):
    """What it returns, and its seconds: on a CPU those of the process, since others may share the cores."""
    if not GPU:
        began = time.process_time()
        return work(), time.process_time() - began
    told = []
    took = seconds(lambda: told.append(work()))
    return told[0], took


def cost(work):
    """What it returns, its seconds, and its peak beyond what was held before, in bytes."""
    told, before = [], held()
    used = peak(lambda: told.extend(timed(work)))
    return *told, used - before


def measure_loss(size, tokens):
    """Print the seconds and the peak of each, and how far its gradients are from ours, relative to their
    largest number."""
    torch.manual_seed(0)
    states, taught = (torch.randn(tokens, size.width, device=DEVICE) for _ in range(2))
    weight, head = (torch.randn(size.vocabulary, size.width, device=DEVICE) / 8 for _ in range(2))
    states, weight = states.requires_grad_(), weight.requires_grad_()
    trained = torch.arange(tokens // 2, tokens, device=DEVICE)
    first = None
    for name, loss in PEERS.items():
        learned(loss, (states[:2], weight, taught[:2], head, 0 * trained[:1]))  # imports what it needs
        try:
            found, took, used = cost(partial(learned, loss, (states, weight, taught, head, trained)))
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            print(f"{name:6} {tokens} tokens: does not fit", flush=True)
            continue
        first = first or found
        off = max(((mine - its).abs().max() / mine.abs().max()).item() for mine, its in zip(first, found))
        print(f"{name:6} {tokens} tokens: {took:.2f} s, {used / 1e9:.2f} GB, {off:.0e} from ours", flush=True)


def main(args):
    check_knobs(args)
    if not all(number.isdecimal() and int(number) > 1 for number in args.tokens.split(",")):
        raise UserError(f"--tokens wants numbers above 1, by commas, not {args.tokens!r}")
    try:
        versions = [f"{name} {version(name)}" for name in ("torch", "trl", "liger-kernel")]
    except PackageNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install trl, then --no-deps liger-kernel") from None
    torch.set_num_threads(1)
    if not GPU:  # what does not fit ends in an error, and does not end the machine's other work
        free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line)
        resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(free.split()[1]), resource.RLIM_INFINITY))
    print(args.size, torch.cuda.get_device_name() if GPU else "a CPU", *versions, sep=", ", flush=True)
    for number in args.tokens.split(","):
        measure_loss(SIZES[args.size], int(number))


if __name__ == "__main__":
    command(main, Args)
