"""Files that survive a kill: JSON written beside and moved into place, logs of JSON lines, the run folder,
locks, the cache.

No torch is imported here.
"""

import itertools
import json
import os
from contextlib import contextmanager
from pathlib import Path

from harness.cli import UserError

try:
    import fcntl
except ImportError:
    fcntl = None  # Windows has none

NO_LOCKS = "files are locked by fcntl, which Windows does not have: use Linux, macOS or WSL"
LOG, EPISODES = "log.jsonl", "episodes.jsonl"  # in a run folder: a line per step, a line per episode


def cache_home():
    """Where what was made once is kept: $TCOD_CACHE, else ~/.cache/tcod."""
    return Path(os.environ.get("TCOD_CACHE") or "~/.cache/tcod").expanduser()


@contextmanager
def locked(path):
    """Hold an exclusive lock on the file `path`, waiting for whoever has it; it ends with the process,
    however that ends."""
    if fcntl is None:
        raise UserError(NO_LOCKS)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_place(path):
    """Raises UserError where `path` lies in a folder that does not exist; nothing for an empty path."""
    folder, name = os.path.split(path)
    if folder and not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder} to write {name} into")


def claim(folder):
    """Hold a run folder for this process, until what is returned is closed or the process ends, however it
    does.

    Raises UserError where another process has it: two would write into one log and one checkpoint.
    """
    if fcntl is None:
        raise UserError(NO_LOCKS)
    lock = open(os.path.join(folder, "lock"), "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(
            f"another process is at work in {folder}: wait for its end, or choose another --out") from None
    return lock


def write_json(path, content):
    """Write JSON beside `path` and move it into place; nothing for an empty path."""
    if path:
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(f"{path}.tmp", path)


def write_lines(path, records):
    """Write JSON lines beside `path` and move them into place."""
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    os.replace(f"{path}.tmp", path)


def append(path, records):
    """Add JSON lines to a log."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read_log(path, last=None):
    """The records of a JSON-lines log, up to step `last`; a line that a kill cut short is skipped."""
    records = []
    if not os.path.exists(path):
        return records
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return [r for r in records if last is None or r["step"] <= last]


def rewind(path, last):
    """Drop what a killed run logged behind its last checkpoint."""
    write_lines(path, read_log(path, last))


def read_args(folder):
    """The arguments that a run was started with; raises UserError where there is no run."""
    try:
        with open(os.path.join(folder, "args.json"), encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} holds no run (no args.json)") from None


def free_folder(out, name):
    """Make the run folder: `out`, or the first free runs/NAME-N, also when two runs start at once."""
    if out and os.path.exists(os.path.join(out, "args.json")):
        raise UserError(f"{out} holds a run already: continue it with --resume {out} or choose another --out")
    if out:
        os.makedirs(out, exist_ok=True)
        return out
    for n in itertools.count(1):
        folder = os.path.join("runs", f"{name}-{n}")
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            continue
