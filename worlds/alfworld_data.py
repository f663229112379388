"""Which ALFWorld games there are: the data set's folder, the games of a split by the benchmark's rules."""

import json
import os
from pathlib import Path

from tqdm import tqdm

from envs import digest, reason
from harness.cli import UserError

RELEASE = "json_2.1.1"          # the folder of the data set's splits, as alfworld-download names it
GAME, TRAJECTORY, EXPERT = "game.tw-pddl", "traj_data.json", "expert.json"


# ---- the folder

def data_folder(data):
    """The folder of the real data set, or None when there is none and the user did not name one."""
    # Who imports alfworld sets $ALFWORLD_DATA to this default: the variable does not say that a user did.
    default = Path(os.path.expanduser("~/.cache/alfworld"))  # nowhere, for a user without a home
    if data == "generated":
        return None
    folder = Path(os.path.expanduser(data or os.environ.get("ALFWORLD_DATA") or default))
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
    games = []
    for name in tqdm(names, f"reading {split}", unit="game", leave=False, delay=2):   # train: 2 to 14 s
        found = _read(places[name])
        if found:
            games.append(dict(id=name, source=os.path.join(places[name], GAME), **found))
    if not games:
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir()))
        raise UserError(
            f"There are no ALFWorld games in {root / split} ({root} has {there}); "
            "`alfworld-download` fetches the data set.")
    return games


def _find(split):
    """The folders that hold a game and what is known of its task, also behind links, but not around a loop of
    them."""
    for place, folders, files in os.walk(split, followlinks=True):
        here = Path(place).resolve()
        inner = [Path(place, name) for name in folders]
        folders[:] = [path.name for path in inner if not here.is_relative_to(path.resolve())]
        if GAME in files and TRAJECTORY in files:
            yield place


def _read(place):
    """What is said of the game in a folder: kind, expert, digest, fault; {} for one that is not solvable."""
    game, expert = Path(place, GAME), Path(place, EXPERT)
    try:
        content = game.read_bytes()
        solvable = json.loads(content).get("solvable", False)
        kind = json.loads(Path(place, TRAJECTORY).read_text())["task_type"]
        actions = json.loads(expert.read_text()) if expert.exists() else []
    except Exception as error:          # whatever a damaged file holds: one does not hide a split
        return dict(kind="unreadable", expert=[], digest="", fault=reason(error))
    if not solvable:
        return {}
    return dict(kind=kind, expert=actions, digest=digest(content), fault="")
