"""The ranks of torchrun: how they meet, what they share, and how one notices that another has stopped.

A rank may play for an hour while the others wait, which no time limit tells from a rank that is gone. So each
rank beats once in a while from a thread of its own, and what is limited is silence.
"""

import atexit
import os
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from tqdm import tqdm

from harness.cli import UserError

BEAT = 5  # seconds between two signs of life
SILENCE = 300  # seconds without one, after which a rank counts as lost
LEAVING = 60  # seconds that a rank which has lost another has to leave in good order
COMING = 300  # seconds within which all ranks have to be there
LOOK = 0.2  # seconds between two looks for a word, at most


def device():
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


class Lost(UserError):
    """Another rank came not, or stopped."""


def place():
    """(rank, number of ranks) from torchrun's variables; raises UserError where some are missing or wrong."""
    variables = ["RANK", "MASTER_ADDR", "MASTER_PORT"] + ["LOCAL_RANK"] * torch.cuda.is_available()
    named = os.environ
    missing = [name for name in variables if not named.get(name)]
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


def connect(host):
    """A line to the store in which the ranks leave word: torchrun's, else the one that the first rank hosts.

    host: whether it is to be hosted here. Raises Lost where nobody hosts it in time, UserError where it
    cannot be hosted.
    """
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    end = time.monotonic() + COMING
    while True:
        try:
            store = dist.TCPStore(
                address, int(port), is_master=host, timeout=timedelta(seconds=BEAT), wait_for_workers=False)
            # A restart by torchrun finds what the attempt before it left there.
            return dist.PrefixStore(f"tcod/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        except ValueError as error:
            raise UserError(f"MASTER_PORT is a port's number, not {port!r}") from error
        except RuntimeError as error:
            if host:
                reason = str(error).split("\n")[0]
                raise UserError(f"no process can be waited for at {address}:{port} ({reason})") from error
            if time.monotonic() > end:
                raise Lost(f"the first rank did not come to {address}:{port} in {COMING} s") from error


class Watch(threading.Thread):
    """Beats for this rank, and listens to the others."""

    def __init__(self, rank, world):
        super().__init__(daemon=True)
        self.rank, self.keys = rank, [f"beat {other}" for other in range(world)]
        self.store, self.over, self.lost = connect(host=False), threading.Event(), ""
        self.store.add(self.keys[rank], 1)

    def run(self):
        silent, beats = [0.0] * len(self.keys), None  # seconds
        last, deadline = time.monotonic(), None
        while not self.over.wait(BEAT):
            before, beats = beats, self.exchange()
            # Who was stopped for an hour did not listen for an hour.
            now, passed = time.monotonic(), min(time.monotonic() - last, 3 * BEAT)
            last = now
            for other in range(len(self.keys)):
                heard = beats and before and beats[other] != before[other]
                silent[other] = 0.0 if heard or other == self.rank else silent[other] + passed
            if max(silent) > SILENCE and not self.lost:
                other = silent.index(max(silent))
                self.lost = f"rank {other} has not been heard of for {SILENCE} s: it ended, or was stopped"
                deadline = now + LEAVING
            if deadline and now > deadline:  # held in a collective that nothing else ends
                print(f"error: {self.lost}", file=sys.stderr, flush=True)
                os._exit(2)

    def end(self):
        """Beat no more: a thread in the store's code when Python ends would abort the process."""
        self.over.set()
        self.join()

    def exchange(self):
        """Beat, and return all ranks' counts of beats; None where the store does not answer."""
        try:
            self.store.add(self.keys[self.rank], 1)
            return self.store.multi_get(self.keys)
        except RuntimeError:
            return None


class Ranks:
    """One process per GPU under torchrun, or a single process."""

    def __init__(self):
        self.rank, self.world = place()
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        if self.world > 1:
            hosted = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            self.store, self.meetings = connect(hosted), 0
            self.store.set_timeout(timedelta(seconds=COMING))
            self.watch = Watch(self.rank, self.world)
            self.meet(within=COMING)
            self.watch.start()
            atexit.register(self.watch.end)
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.world)

    @property
    def first(self):
        """Whether this process is the one that writes."""
        return self.rank == 0

    def meet(self, within=None):
        """Wait for all ranks to come here, for as long as they are alive; within: for so many seconds.

        What they do together stands behind a meeting: a collective waits in silence, deaf to Ctrl-C, and ends
        all ranks where one is ten minutes late. Raises Lost where a rank does not come.
        """
        if self.world == 1:
            return
        self.meetings += 1
        self.store.set(f"meeting {self.meetings} {self.rank}", "")
        end = time.monotonic() + (within or float("inf"))
        pause = LOOK / 256
        for other in range(self.world):
            while not self.store.check([f"meeting {self.meetings} {other}"]):
                if self.watch.lost:
                    raise Lost(self.watch.lost)
                if time.monotonic() > end:
                    raise Lost(f"rank {other} of {self.world} did not come in {within} s")
                time.sleep(pause)
                pause = min(LOOK, 2 * pause)
        # Who came here has left the meeting before this one, so that nobody asks for its word any more.
        self.store.delete_key(f"meeting {self.meetings - 1} {self.rank}")

    @contextmanager
    def in_turn(self, needed):
        """Around what one rank does after another, where that is needed.

        A model that is loaded onto a GPU is for a while in the machine's memory, which does not hold it once
        for every GPU. (`from_pretrained` puts weights straight onto a device only beside another package.)
        """
        for _ in range(self.rank if needed else 0):
            self.meet()
        yield
        for _ in range(self.world - self.rank if needed else 0):
            self.meet()

    def share(self, items):
        """This rank's part of a list that all ranks have: items rank, rank + world, …"""
        return items[self.rank::self.world]

    def gather(self, items):
        """All ranks' lists, joined in the order of the ranks."""
        everyone = [items]
        if self.world > 1:
            self.meet()
            everyone = [None] * self.world
            dist.all_gather_object(everyone, items)
        return [item for part in everyone for item in part]

    def sum(self, numbers):
        """Element-wise sum over ranks of a list of numbers."""
        return [sum(column) for column in zip(*self.gather([numbers]))]

    def any(self, flag):
        """Whether it is so on some rank."""
        return bool(self.sum([int(flag)])[0])

    def broadcast(self, make):
        """What `make()` returns on the first rank, on all of them; the others do not call it."""
        return self.gather([make()] if self.first else [])[0]

    def print(self, *text):
        """Print on the first rank."""
        if self.first:
            tqdm.write(" ".join(map(str, text)))

    @contextmanager
    def together(self):
        """Around the work: a collective that breaks off, since another rank ended in it, raises Lost."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            reason = str(error).split("\n")[0]
            raise Lost(f"another rank ended in the middle of an exchange ({reason})") from error

    def leave(self):
        """The end of a run of several processes; the first rank, which may host the store, goes last."""
        if self.world == 1:
            return
        self.meet()
        self.watch.end()
        dist.destroy_process_group()
        self.store.set(f"gone {self.rank}", "")
        if self.first:
            self.store.wait([f"gone {other}" for other in range(self.world)])


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
