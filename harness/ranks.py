"""The ranks of torchrun: the collectives that the loop needs, and the checkpoint that --resume goes on
from."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from tqdm import tqdm

import model as lm
from harness.folder import append


class Ranks:
    """One process per GPU under torchrun, or a single process."""

    def __init__(self):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if torch.cuda.is_available():
            torch.cuda.set_device(lm.device())
        if self.world > 1:
            # Ranks meet after whole rollouts and evaluations: the default of ten minutes would end a healthy
            # run.
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=4))

    @property
    def first(self):
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, items):
        """This rank's part of a list that all ranks have: items rank, rank + world, …"""
        return items[self.rank::self.world]

    def gather(self, items):
        """All ranks' lists, joined in the order of the ranks."""
        everyone = [items]
        if self.world > 1:
            everyone = [None] * self.world
            dist.all_gather_object(everyone, items)
        return [item for part in everyone for item in part]

    def sum(self, numbers):
        """Element-wise sum over ranks of a list of numbers."""
        return [sum(column) for column in zip(*self.gather([numbers]))]

    def broadcast(self, make):
        """What `make()` returns on the first rank, on all of them; the others do not call it."""
        return self.gather([make()] if self.first else [])[0]

    def append(self, path, records):
        """Add JSON lines to a log, on the first rank."""
        if self.first:
            append(path, records)

    def print(self, *text):
        """Print on the first rank."""
        if self.first:
            tqdm.write(" ".join(map(str, text)))

    def leave(self):
        """The end of a run of several processes."""
        if self.world > 1:
            dist.destroy_process_group()


def save_checkpoint(folder, student, optimizer, step):
    """Everything that --resume needs, in one file, written beside and moved into place. No generator: draws
    are seeded by step."""
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
