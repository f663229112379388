"""Which ALFWorld games are there: the data set's folder, and the games of a split by the benchmark's rules.

Reading 3,553 games only to list them takes from 2 to 14 s. So what was read is kept beside the other caches,
a file per split's folder: for each game what is said of it, and the stamps of the files that said it. A later
start looks at the stamps, and reads games only that are new or whose files are others than they were.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from tqdm import tqdm

from harness.cli import UserError
from harness.folder import cache_home
from worlds.cache import keep, kept, perhaps_alone

RELEASE = "json_2.1.1"          # the folder of the data set's splits, as alfworld-download names it
VERSION = 1                     # of a kept list: change it with anything that changes what is read of a game
MOST_BYTES = 64 * 2**20         # of all kept lists; those that were not used for longest go first
RACY = 1.0                      # seconds: files younger than this are not trusted by their stamps
MAX_FAULT = 300                 # characters of what is said of a game that cannot be read
GAME, TRAJECTORY, EXPERT = "game.tw-pddl", "traj_data.json", "expert.json"


# ---- the folder

def data_folder(data):
    """The folder of the real data set, or None when there is none and the user did not name one."""
    # Who imports alfworld sets $ALFWORLD_DATA to this default: the variable does not say that a user did.
    default = Path("~/.cache/alfworld").expanduser()
    if data == "generated":
        return None
    folder = Path(data or os.environ.get("ALFWORLD_DATA") or default).expanduser()
    if folder == default and not (folder / RELEASE).is_dir():
        return None
    return folder


def check_folder(folder):
    """Raises UserError, naming the folder that is meant, where this one does not hold the data set's."""
    if (folder / RELEASE).is_dir():
        return
    meant = f"the folder that holds {RELEASE}, as alfworld-download makes it"
    for path in (folder.absolute(), folder.resolve()):
        for inner in (path, *path.parents):
            if inner.name == RELEASE and inner.is_dir():
                raise UserError(f"--data is {meant}: give {inner.parent}, not {folder}.")
    raise UserError(
        f"There are no ALFWorld games in {folder}: --data is {meant}; without --data generated games are "
        "used.")


# ---- the games of a split

def list_games(folder, split):
    """The playable games under folder/json_2.1.1/split, by the rules of AlfredTWEnv.collect_game_files.

    Each a dictionary: id (unique), source (its file), kind (task type), expert (its actions, where they are
    known), digest (of its file), fault (why it cannot be read). Raises UserError where there are none.
    """
    check_folder(folder)
    root = folder / RELEASE
    places = {place[len(str(root)) + 1:].replace(os.sep, "/"): place for place in _find(root / split)}
    # Games with movable receptacles and slices are told by the names of their folders.
    names = [name for name in places if "movable" not in name and "Sliced" not in name]
    # By trial, not by path: paths begin with the task type, and a split's first games should show all types.
    names.sort(key=lambda name: (os.path.basename(name), name))
    found = _describe((root / split).resolve(), {name: places[name] for name in names})
    games = [
        dict(id=name, source=os.path.join(places[name], GAME), **found[name])
        for name in names if found[name]]
    if not games:
        raise UserError(
            f"There are no ALFWorld games in {root / split} ({root} has {', '.join(splits(folder))}); "
            "`alfworld-download` fetches the data set.")
    return games


def splits(folder):
    """The names of the splits that a data folder has. Raises UserError where it is none."""
    check_folder(folder)
    return sorted(path.name for path in (folder / RELEASE).iterdir() if path.is_dir())


def _find(split):
    """The folders that hold a game and what is known of its task, also behind links, but not around a loop of
    them."""
    for place, folders, files in os.walk(split, followlinks=True):
        here = os.path.realpath(place)
        folders[:] = [name for name in folders if not _above(os.path.join(place, name), here)]
        if GAME in files and TRAJECTORY in files:
            yield place


def _above(link, here):
    """Whether it is a link to a folder in which `here` lies."""
    there = os.path.realpath(link)
    return os.path.islink(link) and os.path.commonpath([there, here]) == there


def _read(place):
    """What is said of the game in a folder: kind, expert, digest, fault; {} for one that is not solvable."""
    game, expert = Path(place, GAME), Path(place, EXPERT)
    try:
        content = game.read_bytes()
        solvable = json.loads(content).get("solvable", False)
        kind = json.loads(Path(place, TRAJECTORY).read_text())["task_type"]
        actions = json.loads(expert.read_text()) if expert.exists() else []
    except Exception as error:          # whatever a damaged file holds: one does not hide a split
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        return dict(kind="unreadable", expert=[], digest="", fault=fault[:MAX_FAULT])
    if not solvable:
        return {}
    return dict(kind=kind, expert=actions, digest=hashlib.sha256(content).hexdigest()[:12], fault="")


# ---- kept from one start to the next

def _describe(split, places):
    """{name: `_read` of its folder}, read only where the files are others than when they were last read.

    split: a folder without links, the same by whatever way it is reached; places: {name: folder}.
    """
    stamps = {name: _stamp(place) for name, place in places.items()}
    path = cache_home() / "alfworld-lists" / hashlib.sha256(os.fsencode(split)).hexdigest()[:16]
    found = _known(path, stamps)
    if len(found) == len(stamps):
        return found
    with perhaps_alone(path.parent):
        found = _known(path, stamps)            # another process may have read them meanwhile
        missing = [name for name in places if name not in found]
        for name in tqdm(missing, desc=f"reading {split.name}", unit="game", leave=False, delay=2):
            found[name] = _read(places[name])
        keep(path, _list(found, stamps), MOST_BYTES)
    return found


def _stamp(place):
    """Size, times, and number of each of a game's files: what changes when one is written, moved or replaced.

    Both times: unpacking and copying may give a file whatever time of writing it had elsewhere.
    """
    stamp = []
    for name in (GAME, TRAJECTORY, EXPERT):
        try:
            stat = os.stat(os.path.join(place, name))
        except OSError:
            stamp.append(None)
        else:
            stamp.append([stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    return stamp


def _list(found, stamps):
    """The file's content: {name: [stamp, what was read]}, but for games that are to be read again.

    Those could not be read, or were written just now: they might be written again within the resolution of a
    file's time.
    """
    latest = (time.time() - RACY) * 1e9
    old = [name for name in found if all(stamp is None or stamp[2] < latest for stamp in stamps[name])]
    games = {name: [stamps[name], found[name]] for name in old if not found[name].get("fault")}
    return json.dumps(dict(version=VERSION, games=games)).encode()


def _known(path, stamps):
    """{name: what was read of it}, of the games whose files are as they were."""
    try:
        content = json.loads(kept(path) or b"{}")
        games = content["games"] if content.get("version") == VERSION else {}
        return {name: games[name][1] for name in stamps if name in games and games[name][0] == stamps[name]}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}                               # no such list: the games are read again
