"""Files that survive a kill: JSON written beside and moved into place, logs of JSON lines, the run folder,
the journal of a long evaluation, locks, the cache. What cannot be written is a UserError that names it.

No torch is imported here.
"""

import glob
import itertools
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.cli import UserError
from harness.stops import Stopped

try:
    import fcntl
except ImportError:
    fcntl = None  # Windows has none

LOCKED = "another process is at work in {}: wait for its end, or choose another --out"
NO_FCNTL = "files are locked by fcntl, which Windows does not have: use Linux, macOS or WSL"
NO_LOCKS = "{} lies where files cannot be locked ({}): choose a place on another disk, by {}"
LOG, EPISODES = "log.jsonl", "episodes.jsonl"  # in a run folder: a line per step, a line per episode


def cache_home():
    """Where what was made once is kept: $TCOD_CACHE, else tcod in $XDG_CACHE_HOME or ~/.cache."""
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tcod")
    found = os.path.expanduser(os.environ.get("TCOD_CACHE") or usual)
    if found.startswith("~"):
        raise UserError(f"{found} leads to no home: set TCOD_CACHE, or HOME, to a folder to write in")
    return Path(found)


@contextmanager
def writing(path):
    """Around what writes `path`: raises UserError, naming it, where there is no room or no way to."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from error


@contextmanager
def locked(path):
    """Hold an exclusive lock on the file `path`, waiting for whoever has it; it ends with the process,
    however that ends."""
    if fcntl is None:
        raise UserError(NO_FCNTL)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(NO_LOCKS.format(path, error.strerror, "TCOD_CACHE")) from None
        yield


def check_place(path):
    """Raises UserError where `path` is a folder, or lies in one that does not exist; nothing for an empty
    path."""
    folder, name = os.path.split(path)
    if folder and not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder} to write {name} into")
    if path and os.path.isdir(path):
        raise UserError(f"{path} is a folder: name a file to write")


def hold(file, what):
    """Lock an open file until it is closed or the process ends, however it does.

    what: what it stands for. Raises UserError where another process has it.
    """
    if fcntl is None:
        raise UserError(NO_FCNTL)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(LOCKED.format(what)) from None
    except OSError as error:  # some network disks have no locks
        file.close()
        if os.path.getsize(file.name) == 0:
            os.unlink(os.path.realpath(file.name))
        raise UserError(NO_LOCKS.format(what, error.strerror, "--out")) from None


def claim(folder):
    """Hold a run folder for this process: what is returned keeps it until it is closed.

    The lock says which start of torchrun has it (see `left_by_restart`). Raises UserError where another
    process has it: two would write into one log and one checkpoint.
    """
    with writing(folder):
        lock = open(os.path.join(folder, "lock"), "a", encoding="utf-8")
    hold(lock, folder)
    with writing(folder):
        lock.truncate(0)
        lock.write(launch())
        lock.flush()
    return lock


@contextmanager
def replacing(path, mode="w"):
    """A file to write beside `path`, which is moved into place once it is whole, and never otherwise. What is
    written to a link goes where that leads."""
    path = os.path.realpath(path)
    beside = f"{path}.tmp"
    try:
        with writing(path):
            with open(beside, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
            os.replace(beside, path)
    finally:
        with suppress(OSError):
            os.unlink(beside)


def write_json(path, content):
    """Write JSON, whole or not at all; nothing for an empty path."""
    if path:
        with replacing(path) as file:
            json.dump(content, file, indent=1)


def lines(records):
    """Records as JSON lines."""
    return (json.dumps(record) + "\n" for record in records)


def write_lines(path, records):
    """Write JSON lines, all or none."""
    with replacing(path) as file:
        file.writelines(lines(records))


def append(path, records):
    """Add JSON lines to a log."""
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.writelines(lines(records))


def read_log(path, last=None):
    """The records of a JSON-lines log, up to step `last`; a line that a kill cut short is skipped."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        records = [record for record in map(parsed, file) if isinstance(record, dict)]
    return [r for r in records if last is None or r["step"] <= last]


def parsed(line):
    """The JSON of a line; None where a kill cut it short."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def rewind(path, last):
    """Drop what a killed run logged behind its last checkpoint."""
    write_lines(path, read_log(path, last))


def differing(before, now):
    """The same? In which entries two dictionaries differ that say what something was made of, as names,
    sorted; of an entry that is itself a dictionary these are its own."""
    names = set()
    for key in {*before, *now}:
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            names.update(differing(one, other))
        elif one != other:
            names.add(key)
    # Of a model older versions noted a sample of its weights, under its bare name.
    return sorted(name for name in names if f"{name}'s weights" not in names)


class Journal:
    """What a long evaluation has done so far: JSON lines, added to as it goes; the first one says of what.

    The same evaluation, begun again, goes on behind the last whole line. Without a path it is in memory only.
    """

    def __init__(self, path, head, products=(), unsaid=()):
        """head: a dict that the file found must begin with. products: files that are made from the journal.
        unsaid: a dict of what older versions did not write there, as it was then.

        Raises UserError where the file found is of something else, a product is there without it, or another
        process is writing it; what is there stays as it is.
        """
        self.path, self.records, self.file = path, [], None
        if not path:
            return
        with writing(path):
            self.file = open(path, "a+b")
        hold(self.file, path)
        if os.path.getsize(path) == 0:
            self.begin(head, products)
        found, length = self.read()
        changed = ", ".join(differing({**dict(unsaid), **found}, head))
        if changed:
            raise UserError(
                f"{path} is of another evaluation (it differs in {changed}): go on with the same, or name "
                "another file")
        self.file.truncate(length)  # what a kill cut short

    def begin(self, head, products):
        """Write the first line, where nothing else is in the way."""
        present = [product for product in products if product and os.path.exists(product)]
        if present:
            os.unlink(self.path)
            raise UserError(
                f"{present[0]} is there already, and no {self.path} says of what: name another file, or "
                "remove it")
        self.append([head])

    def read(self):
        """Read all whole lines; returns the first, and where the last ends."""
        self.file.seek(0)
        length, found = 0, []
        for line in self.file:
            record = parsed(line.decode("utf-8", "replace")) if line.endswith(b"\n") else None
            if not isinstance(record, dict):
                break
            length += len(line)
            found.append(record)
        if not found:
            raise UserError(f"{self.path} is no journal of an evaluation: name another file")
        self.records = found[1:]
        return found[0], length

    def append(self, records):
        """Add records."""
        if self.file:
            with writing(self.path):
                self.file.writelines(line.encode() for line in lines(records))
                self.file.flush()
        self.records += records

    @contextmanager
    def kept(self):
        """Around the work: a signal's sentence says what is left of it."""
        try:
            yield
        except Stopped as stop:
            stop.kept = "nothing is kept without a file to write, as --out names"
            if self.file:
                stop.kept = f"{self.path} holds {len(self.records)} episodes, the same command goes on there"
            raise


def read_args(folder):
    """The arguments that a run was started with; raises UserError where there is no run."""
    path = os.path.join(folder, "args.json")
    try:
        with open(path, encoding="utf-8") as file:
            saved = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} holds no run (no args.json)") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): bring back the file that the run wrote") from None
    if not isinstance(saved, dict):
        raise UserError(f"{path} holds no arguments: bring back the file that the run wrote")
    return saved


def holds_run(folder):
    """Whether a run was begun in it."""
    return bool(folder) and os.path.exists(os.path.join(folder, "args.json"))


def free_folder(out, name):
    """Make the run folder: `out`, or the first free runs/NAME-N, also when two runs start at once."""
    if out:
        with writing(out):
            os.makedirs(out, exist_ok=True)
        return out
    with writing(os.path.abspath("runs")):
        os.makedirs("runs", exist_ok=True)
        for n in itertools.count(1):
            folder = os.path.join("runs", f"{name}-{n}")
            try:
                os.mkdir(folder)
                return folder
            except FileExistsError:
                continue


# ---- torchrun's own restarts

def launch():
    """What all attempts of one start of torchrun have in common; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"torchrun {name} {os.getppid()}" if name else ""


def left_by_restart(name):
    """The run folder of the attempt that torchrun restarts with this process, "" where there is none.

    torchrun starts its processes again with the same command: the run that they were in is told by its lock.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return ""
    for folder in glob.glob(os.path.join("runs", f"{name}-*")):
        lock = Path(folder, "lock")
        if lock.is_file() and lock.read_text(encoding="utf-8") == launch() and holds_run(folder):
            return folder
    return ""
