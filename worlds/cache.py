"""What the worlds make once, by several processes, and keep on disk, under `harness.folder.cache_home`: whole
or not at all."""

import functools
import json
import os
import shutil
import signal
import sys
import zlib
from multiprocessing import Pool
from pathlib import Path

from tqdm import tqdm

from harness.folder import cache_home, locked, writing

JOBS = 8    # processes at work at once, at most


def in_processes(make, jobs, what):
    """[make(job) for each], in any order, by a pool of processes, with a bar on the screen: how many there
    are changes nothing but the time. Raises what the first failing one raises."""
    with Pool(min(JOBS, os.cpu_count()), _alone) as pool:
        made = pool.imap_unordered(make, jobs, chunksize=4)
        return list(tqdm(made, desc=what, unit="game", total=len(jobs)))


def _alone():
    """In a process of the pool: signals are for who asked for the games, and ends the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def once(folder, write):
    """`folder`, filled by write(empty folder) unless it is there; processes that want it wait for the first.

    It is written beside and moved into place: a killed process leaves no half of it. Raises UserError where
    there is no room or no way to.
    """
    if folder.exists():
        return folder
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(f"{folder}.lock"):
            if folder.exists():
                return folder
            beside = Path(f"{folder}.new")
            shutil.rmtree(beside, ignore_errors=True)  # of a killed process
            beside.mkdir()
            try:
                write(beside)
                beside.rename(folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return folder


# ---- what can be made anew: a disk that is full, or not ours to write on, ends no run

def keep(name, value):
    """Keep a JSON value in the file of that name; of processes that do so at once the last one's stays."""
    path = cache_home() / name
    beside = Path(f"{path}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(zlib.compress(json.dumps([name, value]).encode()))
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        _cannot(error.strerror)


def kept(name):
    """The value that was kept under that name; None where its file is not there, not whole, or another's."""
    try:
        content = zlib.decompress((cache_home() / name).read_bytes())
        owner, value = json.loads(content)
    except (OSError, zlib.error, ValueError, TypeError):
        return None
    return value if owner == name else None


@functools.lru_cache(maxsize=None)
def _cannot(reason):
    """Say once that nothing is kept."""
    say("cache", f"{cache_home()} cannot be written ({reason}): what it would keep is made anew each time")


def say(world, text):
    """A line on the screen, from one rank only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{world}: {text}", file=sys.stderr)
