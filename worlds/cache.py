"""What the worlds make once and keep on disk: whole or not at all, by one of the processes that want it.

Where it lies is said by `harness.folder.cache_home`.
"""

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

from harness.folder import locked


@contextmanager
def alone(path):
    """Let one process at a time make `path`; the ranks of a run wait for the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{path}.lock"):
        yield


def once(folder, write, fresh=Path.exists):
    """`folder`, filled by write(empty folder) unless fresh(folder) says that it is there and up to date.

    It is written beside and moved into place: a killed process leaves no half of it.
    """
    if fresh(folder):
        return folder
    with alone(folder):
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


def say(world, text):
    """A line on the screen, from one rank only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{world}: {text}", file=sys.stderr)
