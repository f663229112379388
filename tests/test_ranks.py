"""Several ranks, and how they end: one that is late, never comes, hangs, fails, or is asked to stop."""

import itertools
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context

import pytest
import torch.distributed.run
import warm
from conftest import ROOT, free_port, heed_signals

import harness.ranks
from harness import stops
from harness.cli import UserError, command
from harness.ranks import Ranks


def work(what, folder):
    """Steps of a tenth of a second, in which the last rank does `what` once there are two of them."""
    ranks = Ranks()
    with ranks.together():
        last = ranks.rank == ranks.world - 1
        for n in itertools.count(1):
            time.sleep(0.1)
            if n == 3 and last and what == "late":
                time.sleep(3)
            if n == 3 and last and what == "hangs":
                os.kill(os.getpid(), signal.SIGSTOP)
            if n == 3 and last and what == "fails":
                raise ZeroDivisionError("a bug")
            total, = ranks.sum([ranks.rank + 1])
            if n == 4 and what == "late":
                break
            (folder / f"at-{n}").touch()
            if ranks.any(stops.asked()):
                stops.end(f"step {n} is kept")
        ranks.print(f"sum {total}")
        ranks.leave()


@dataclass
class Nothing:
    """No arguments."""


def start(rank, world, port, what, folder, **variables):
    """A rank in a process of its own, forked, so that torch is not imported again: what it says goes to a
    file."""
    def run():
        place = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **place, **variables)
        harness.ranks.BEAT, harness.ranks.SILENCE = 0.1, 1.5
        said = os.open(folder / f"said-{rank}", os.O_CREAT | os.O_WRONLY)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
        sys.argv = ["work"]
        heed_signals()
        command(lambda args: work(what, folder), Nothing)
        sys.stdout.flush()

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def ended(processes, folder, seconds=30):
    """[(status, what it said)] of each."""
    for process in processes:
        process.join(seconds)
    texts = [(folder / f"said-{rank}").read_text() for rank in range(len(processes))]
    return [(process.exitcode, text) for process, text in zip(processes, texts)]


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.02)


def two(what, folder):
    port = free_port()
    return [start(rank, 2, port, what, folder) for rank in range(2)]


def test_a_rank_that_is_late(tmp_path):
    """A long evaluation on one rank that ends the others: it is silent in the exchange, not to the store."""
    (status, said), other = ended(two("late", tmp_path), tmp_path)
    assert (status, said) == (0, "sum 3\n") and other == (0, "")


def test_a_rank_that_hangs(tmp_path):
    """A rank that holds the others for ever."""
    first, second = two("hangs", tmp_path)
    first.join(30)
    second.kill()
    status, said = ended([first, second], tmp_path)[0]
    assert status == 2
    assert said == "error: rank 1 has not been heard of for 1.5 s: it did not come, has ended or hangs\n"


def test_a_rank_that_fails(tmp_path):
    """Others that wait for it, or that say nothing but its connection's fault."""
    (status, said), (other, fault) = ended(two("fails", tmp_path), tmp_path)
    assert (status, other) == (2, 1) and "ZeroDivisionError: a bug" in fault
    assert said.startswith("error: another rank ended in the middle of an exchange (")
    assert said.count("\n") == 1


@pytest.mark.parametrize("to", [(0, 1), (1,)])
def test_ranks_stop_behind_the_same_step(to, tmp_path):
    """One rank that ends where another goes on to the next step and waits for it there; a step that one of
    them keeps and the other not; a signal to one of them alone."""
    processes = two("nothing", tmp_path)
    wait_for(tmp_path / "at-2")
    for rank in to:
        os.kill(processes[rank].pid, signal.SIGINT)
        time.sleep(0.03)
    (status, said), (other, nothing) = ended(processes, tmp_path)
    last = max(int(path.name[3:]) for path in tmp_path.glob("at-*"))
    assert nothing == "" and status == (130 if 0 in to else 143)
    assert other == 130 or 0 in to and other == 143  # the first one's word may come before its own signal
    assert said.endswith(f": step {last} is kept\n")


@pytest.mark.parametrize("torchrun, rank", [(False, 0), (False, 1), (True, 1)])
def test_a_rank_that_never_comes(torchrun, rank, tmp_path):
    """Four hours of silence. With torchrun there is a store, and nothing to be missed but the rank."""
    port, variables = free_port(), {}
    if torchrun:
        store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        variables = dict(TORCHELASTIC_USE_AGENT_STORE="True")
    process = start(rank, 2, port, "", tmp_path, **variables)
    process.join(30)
    *_, said = (tmp_path / f"said-{rank}").read_text().splitlines()  # the store's code may say more
    assert process.exitcode == 2
    silent = f"error: rank {1 - rank} has not been heard of for 1.5 s: it did not come"
    assert said.startswith(silent if torchrun else f"error: the 2 ranks do not meet at 127.0.0.1:{port} (")
    if torchrun:
        del store


PROGRAM = """
import itertools, sys, time
sys.path.insert(0, {root!r})
from harness import stops
stops.catch()
from dataclasses import dataclass
from harness.cli import command
from harness.ranks import Ranks

@dataclass
class Nothing: pass

def main(args):
    ranks = Ranks()
    for n in itertools.count(1):
        time.sleep(0.1)
        open(f"{folder}/at-{{n}}", "w").close()
        if ranks.any(stops.asked()):
            stops.end(f"step {{n}} is kept")

command(main, Nothing)
"""


def test_torchrun_hands_a_ctrl_c_on(tmp_path):
    """Ranks that torchrun has to kill, or of which one keeps another step than the other."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=ROOT, folder=tmp_path))
    flags = ["--nproc-per-node=2", "--master-port", str(free_port()), str(program)]
    process = warm.start(torch.distributed.run.__file__, flags, tmp_path / "said")
    wait_for(tmp_path / "at-2")
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    said = (tmp_path / "said").read_text()
    last = max(int(path.name[3:]) for path in tmp_path.glob("at-*"))
    assert f"\nstopped by Ctrl-C: step {last} is kept\n" in said and "forcefully" not in said


@pytest.mark.parametrize("variables, words", [
    (dict(WORLD_SIZE="2"), "WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT is not set"),
    (dict(WORLD_SIZE="2", RANK="1"), "MASTER_ADDR, MASTER_PORT is not set"),
    (dict(WORLD_SIZE="2", RANK="2", MASTER_ADDR="x", MASTER_PORT="1"), "RANK 2 is none of the 2"),
    (dict(RANK="1"), "RANK 1 is none of the 1"),
    (dict(WORLD_SIZE="two", RANK="0", MASTER_ADDR="x", MASTER_PORT="1"), "whole numbers"),
    (dict(WORLD_SIZE="2", RANK="0", MASTER_ADDR="localhost", MASTER_PORT="x"), "port's number, not 'x'"),
])
def test_ranks_of_nowhere(variables, words, monkeypatch):
    """A traceback for a cluster's WORLD_SIZE; a process that is no rank, and writes nothing."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        Ranks()


LEAVES = """
import os
import sys

import torch

sys.path[:0] = [sys.argv[1]]
from harness.ranks import Ranks

def work(port):
    os.environ["MASTER_PORT"] = port
    ranks = Ranks()
    learner = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    learner(torch.ones(1, 2)).sum().backward()
    ranks.leave()

for port in sys.argv[2:]:
    work(port)
print("left all")
"""


def test_a_run_that_ends_does_not_hang(tmp_path):
    """DDP has the last reference to the group: freeing it waits, with Python's lock held, for a thread that
    wants that lock; a run that is complete never returns (seen in one of ten ends)."""
    program, ports = tmp_path / "leaves.py", {str(free_port()) for _ in range(25)}
    program.write_text(LEAVES)
    processes = [
        warm.start(program, [ROOT, *ports], tmp_path / f"said-{rank}", tmp_path, RANK=rank, LOCAL_RANK=rank,
                   WORLD_SIZE="2", MASTER_ADDR="127.0.0.1") for rank in "01"]
    for process in processes:
        process.join(90)
    hang = [process.is_alive() for process in processes]
    for process in processes:
        process.kill()
    assert hang == [False, False]
    assert all("left all" in (tmp_path / f"said-{rank}").read_text() for rank in "01")
