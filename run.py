"""What every run needs around its loop: the ranks of torchrun, the run folder's logs, and the checkpoint that --resume goes on from.

Nothing is lost by a kill at any moment: files are written beside and moved into place, and logs are rewound to the checkpoint.
"""

import itertools
import json
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from tqdm import tqdm

import envs
import model as lm


class Ranks:
    """One process per GPU under torchrun, or a single process: the three collectives that the loop needs."""

    def __init__(self):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if torch.cuda.is_available():
            torch.cuda.set_device(lm.device())
        if self.world > 1:
            # Ranks meet after whole rollouts and evaluations: the default of ten minutes would end a healthy run.
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(hours=4))

    def sum(self, numbers):
        """Element-wise sum over ranks of a list of numbers."""
        return [sum(column) for column in zip(*self.gather([numbers]))]

    def gather(self, items):
        """All ranks' lists, joined in the order of the ranks."""
        everyone = [items]
        if self.world > 1:
            everyone = [None] * self.world
            dist.all_gather_object(everyone, items)
        return [item for part in everyone for item in part]

    def print(self, *text):
        """Print on rank 0."""
        if self.rank == 0:
            tqdm.write(" ".join(map(str, text)))


def free_folder(args):
    """Make the run folder: --out, or the first free runs/ENV-METHOD-N, also when two runs start at once."""
    if args.out and os.path.exists(os.path.join(args.out, "args.json")):
        raise envs.UserError(f"{args.out} holds a run already: continue it with --resume {args.out} or choose another --out")
    if args.out:
        os.makedirs(args.out, exist_ok=True)
        return args.out
    for n in itertools.count(1):
        name = os.path.join("runs", f"{args.env}-{args.method}-{n}")
        try:
            os.makedirs(name)
            return name
        except FileExistsError:
            continue


def append(path, records):
    """Add JSON lines to a log."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read_log(path, last=None):
    """The records of a JSON-lines log, up to step `last`; a line that a kill cut short is skipped."""
    records = []
    for line in open(path, encoding="utf-8") if os.path.exists(path) else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [r for r in records if last is None or r["step"] <= last]


def rewind(path, last):
    """Drop what a killed run logged behind its last checkpoint."""
    kept = read_log(path, last)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
    os.replace(path + ".tmp", path)


def save_checkpoint(folder, student, optimizer, step):
    """Everything that --resume needs, in one file, written beside and moved into place. No generator state: draws are seeded by step."""
    path = os.path.join(folder, "checkpoint.pt")
    torch.save(dict(student=student.state_dict(), optimizer=optimizer.state_dict(), step=step), path + ".tmp")
    os.replace(path + ".tmp", path)


def load_checkpoint(folder, student, optimizer):
    """Restore what `save_checkpoint` wrote; returns its step, 0 when there is none yet."""
    path = os.path.join(folder, "checkpoint.pt")
    if not os.path.exists(path):
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)  # not a second student on the GPU
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
