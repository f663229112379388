"""What every run needs around its loop: the ranks of torchrun, the run folder's logs, and the checkpoint that --resume goes on from.

Nothing is lost by a kill at any moment: files are written beside and moved into place, and logs are rewound to the checkpoint.
"""

import json
import os

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
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

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
    """The run folder: --out, or the first free runs/ENV-METHOD-N."""
    if args.out and os.path.exists(os.path.join(args.out, "args.json")):
        raise envs.UserError(f"{args.out} holds a run already: continue it with --resume {args.out} or choose another --out")
    names = (os.path.join("runs", f"{args.env}-{args.method}-{n}") for n in range(1, 10**6))
    return args.out or next(name for name in names if not os.path.exists(name))


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
    append(path + ".tmp", kept)
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
    state = torch.load(path, map_location=lm.head(student).device, weights_only=True)
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
