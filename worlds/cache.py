"""What the worlds make once and keep on disk: whole or not at all, by one of the processes that want it.

Where it lies is said by `harness.folder.cache_home`.
"""

import functools
import os
import shutil
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.folder import cache_home, locked, writing


@contextmanager
def alone(path):
    """Let one process at a time make `path`; the ranks of a run wait for the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{path}.lock"):
        yield


def once(folder, write, fresh=Path.exists):
    """`folder`, filled by write(empty folder) unless fresh(folder) says that it is there and up to date.

    It is written beside and moved into place: a killed process leaves no half of it. Raises UserError where
    there is no room or no way to.
    """
    if fresh(folder):
        return folder
    with writing(folder), alone(folder):
        if not fresh(folder):
            beside = Path(f"{folder}.new")
            shutil.rmtree(beside, ignore_errors=True)  # of a killed process
            beside.mkdir()
            try:
                write(beside)
                shutil.rmtree(folder, ignore_errors=True)
                beside.rename(folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return folder


# ---- small files that can be made anew: a disk that is full, or not ours to write on, ends no run

@contextmanager
def perhaps_alone(path):
    """`alone`; where no lock can be had, go on without."""
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(path))
        except OSError as error:
            _cannot(error.strerror)
        yield


def keep(path, content, most):
    """Write bytes beside `path` and move them into place, by one process at a time (`perhaps_alone`).

    The folder is bounded: those of its files that were not used for longest go while it has more than `most`
    bytes.
    """
    beside = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)
        _bound(path.parent, most)
    except OSError as error:
        _cannot(error.strerror)


def kept(path):
    """The bytes of a file, which counts as used now; None where it is not there or cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        os.utime(path)
    except OSError:
        pass                    # another user's: it can be read all the same
    return content


def _bound(folder, most):
    stats = [(path.stat(), path) for path in folder.iterdir()]
    over = sum(stat.st_size for stat, _ in stats) - most
    for stat, path in sorted(stats, key=lambda pair: pair[0].st_mtime):
        if over <= 0:
            return
        path.unlink()
        over -= stat.st_size


@functools.lru_cache(maxsize=None)
def _cannot(reason):
    """Say once that nothing is kept."""
    say("cache", f"{cache_home()} cannot be written ({reason}): what it would keep is made anew each time")


def say(world, text):
    """A line on the screen, from one rank only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{world}: {text}", file=sys.stderr)
