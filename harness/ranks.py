"""The ranks of torchrun: what they share, and how one notices that another is gone.

A rank may play for an hour while the others wait for it in an exchange, which no time limit tells from one
that hangs. So each rank gives a sign of life from a thread of its own, and what is limited is silence.
"""

import atexit
import os
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from tqdm import tqdm

from harness.cli import UserError
from harness.stops import exit_now

BEAT = 5  # seconds between two signs of life
SILENCE = 300  # seconds without one, after which a rank counts as lost
LONG = timedelta(days=30)  # an exchange waits as long as all ranks live
LEFT = []  # groups that were left, kept until Python ends: see Ranks.leave


class Lost(UserError):
    """Another rank came not, or ended."""


def device():
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def place():
    """(rank, number of ranks) from torchrun's variables; raises UserError where some are missing or wrong."""
    named = os.environ
    wanted = ["RANK", "MASTER_ADDR", "MASTER_PORT"] + ["LOCAL_RANK"] * torch.cuda.is_available()
    missing = [name for name in wanted if not named.get(name)]
    if named.get("WORLD_SIZE", "1") != "1" and missing:
        raise UserError(
            f"WORLD_SIZE is {named['WORLD_SIZE']}, but {', '.join(missing)} is not set: start several "
            "processes with torchrun, or unset WORLD_SIZE for a single one")
    try:
        rank, world = int(named.get("RANK") or 0), int(named.get("WORLD_SIZE") or 1)
    except ValueError as error:
        raise UserError(f"RANK and WORLD_SIZE are whole numbers ({error})") from None
    if not 0 <= rank < world:
        raise UserError(f"RANK {rank} is none of the {world} that WORLD_SIZE names: start it with torchrun")
    return rank, world


def connect(rank, world):
    """The store that all ranks see: torchrun's, else the first rank's. Raises Lost where they do not come."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=timedelta(seconds=SILENCE)))
    except ValueError as error:
        raise UserError(f"MASTER_PORT is a port's number, not {port!r}") from error
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise Lost(f"the {world} ranks do not meet at {address}:{port} ({reason})") from error
    # A restart by torchrun finds what the attempt before it left there.
    return dist.PrefixStore(f"tcod/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


class Heart(threading.Thread):
    """Gives signs of life of this rank, and ends the process where another one gives none."""

    def __init__(self, store, rank, world):
        super().__init__(daemon=True)
        self.rank, self.world, self.over = rank, world, threading.Event()
        self.store = store.clone()  # a connection of its own
        self.store.set_timeout(timedelta(seconds=BEAT))

    def run(self):
        last, silent = [0] * self.world, [0] * self.world
        while not self.over.wait(BEAT):
            try:
                beats = [self.store.add(f"beat {i}", int(i == self.rank)) for i in range(self.world)]
            except RuntimeError:  # the store is gone, and with it the process that had it
                beats = last
            # Counted by our own beats: who was stopped for an hour did not listen for an hour.
            silent = [0 if new > old else n + 1 for new, old, n in zip(beats, last, silent)]
            last = beats
            if max(silent) * BEAT > SILENCE and not self.over.is_set():
                rank = silent.index(max(silent))
                print(f"error: rank {rank} has not been heard of for {SILENCE} s: it did not come, has ended "
                      "or hangs", file=sys.stderr, flush=True)
                exit_now(2)

    def end(self):
        """No more signs: a thread in the store's code when Python ends would abort the process."""
        self.over.set()
        self.join()


class Ranks:
    """One process per GPU under torchrun, or a single process."""

    def __init__(self):
        self.rank, self.world = place()
        self.first, self.device = self.rank == 0, device()  # the first one writes
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            store = connect(self.rank, self.world)
            self.heart = Heart(store, self.rank, self.world)
            self.heart.start()
            atexit.register(self.heart.end)
            # What lies on no GPU goes by gloo, which tells at once where another rank has ended.
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            with self.together():
                dist.init_process_group(
                    backend, store=store, rank=self.rank, world_size=self.world, timeout=LONG)

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

    def any(self, flag):
        """Whether it is true on some rank."""
        return any(self.gather([flag]))

    def broadcast(self, make):
        """What `make()` returns on the first rank, on all of them; the others do not call it."""
        return self.gather([make()] if self.first else [])[0]

    def print(self, *text):
        """Print on the first rank."""
        if self.first:
            tqdm.write(" ".join(map(str, text)))

    @contextmanager
    def in_turn(self, needed):
        """Around what one rank does after another, where that is needed.

        A model that is loaded onto a GPU is for a while in the machine's memory, which does not hold it once
        for every GPU. (`from_pretrained` puts weights straight onto a device only beside another package.)
        """
        for _ in range(self.rank if needed else 0):
            self.gather([])
        yield
        for _ in range(self.world - self.rank if needed else 0):
            self.gather([])

    @contextmanager
    def together(self):
        """Around the work: an exchange that breaks off, since another rank ended in it, raises Lost."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            reason = str(error).split("\n")[0]
            raise Lost(f"another rank ended in the middle of an exchange ({reason})") from error

    def leave(self):
        """The end of a run of several processes, at which all come together.

        The group outlives DDP. Else DDP would have the last reference to it, and would free it with Python's
        lock held, while the group's thread waits for that lock.
        """
        if self.world > 1:
            self.gather([])
            self.heart.end()
            LEFT.append(dist.group.WORLD)
            dist.destroy_process_group()


class Gradients:
    """The memory of the gradients: there while the student learns, given up while it plays.

    DDP's gradients are views of its buckets and must stay these; only the memory behind them goes and comes.
    """

    def __init__(self, parameters):
        """parameters: of the student, with the gradients that DDP has made, if it has."""
        self.parameters, self.buckets = list(parameters), {}
        for parameter in self.parameters:
            if parameter.grad is not None:
                bucket = parameter.grad.untyped_storage()
                self.buckets[bucket.data_ptr()] = bucket, bucket.nbytes()

    def release(self):
        for bucket, _ in self.buckets.values():
            bucket.resize_(0)
        if not self.buckets:
            for parameter in self.parameters:
                parameter.grad = None

    def restore(self):
        """To before the first backward pass: zeros."""
        for bucket, size in self.buckets.values():
            bucket.resize_(size)
            bucket.fill_(0)
