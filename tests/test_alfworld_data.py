"""The data set's folder and its splits: which folder is meant, which games count, what is kept of a list."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

import envs
from chat import prompts
from harness.cli import UserError
from worlds import alfworld_data, alfworld_games as games
from worlds.alfworld_data import list_games

KIND = "pick_and_place_simple"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; the age under which stamps are not trusted is taken away."""
    monkeypatch.setenv("TCOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(alfworld_data, "RACY", 0)
    return tmp_path / "cache" / "alfworld-lists"


@pytest.fixture
def data(tmp_path):
    """A data folder whose games hold only what a list reads."""
    for name in ("a", "b", "c"):
        write(tmp_path / "data", name)
    return tmp_path / "data"


@pytest.fixture
def reads(monkeypatch):
    """The folders of games that are read from now on, by their names."""
    found, read = [], alfworld_data._read

    def counted(place):
        found.append(os.path.basename(os.path.dirname(place)))
        return read(place)

    monkeypatch.setattr(alfworld_data, "_read", counted)
    return found


def write(data, name, split="train", solvable=True, **more):
    place = data / "json_2.1.1" / split / name / "trial"
    place.mkdir(parents=True, exist_ok=True)
    (place / "game.tw-pddl").write_text(json.dumps(dict(solvable=solvable, **more)))
    (place / "traj_data.json").write_text(json.dumps(dict(task_type=KIND)))
    return place


def digests(data, split="train"):
    time.sleep(0.02)                                    # beyond the resolution of a file's time
    return {game["id"].split("/")[1]: game["digest"] for game in list_games(data, split)}


# ---- what is kept of a list

def test_a_second_start_reads_no_game(data, reads):
    """14 seconds of reading 3,553 games to say their names; an unsolvable one read again every time."""
    write(data, "unsolvable", solvable=False)
    first = digests(data)
    assert sorted(first) == ["a", "b", "c"] and sorted(reads) == ["a", "b", "c", "unsolvable"]
    reads.clear()
    assert digests(data) == first and not reads


def changed(place):
    """Same size, same time of writing: as unpacking another archive leaves it."""
    game = place / "game.tw-pddl"
    stat = game.stat()
    game.write_text(game.read_text().replace(": ", " :"))
    os.utime(game, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replaced(place):
    """Another file moved into place, which is as old as the first."""
    game, other = place / "game.tw-pddl", place / "other"
    stat = game.stat()
    other.write_text(game.read_text().replace(": ", " :"))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, game)


def solved(place):
    (place / "expert.json").write_text('["look"]')


def of_another_kind(place):
    (place / "traj_data.json").write_text('{"task_type": "other"}')


@pytest.mark.parametrize("change", [changed, replaced, solved, of_another_kind])
def test_a_changed_game_is_read_again(data, reads, change):
    """A list that goes stale: digests, experts and types of games that are not there any more."""
    digests(data)
    reads.clear()
    change(data / "json_2.1.1" / "train" / "b" / "trial")
    time.sleep(0.02)
    found = {game["id"]: game for game in list_games(data, "train")}
    assert reads == ["b"]
    shutil.rmtree(os.environ["TCOD_CACHE"])
    assert found == {game["id"]: game for game in list_games(data, "train")}


def test_games_that_come_and_go(data, reads):
    """A list of what was there once."""
    digests(data)
    reads.clear()
    write(data, "d")
    shutil.rmtree(data / "json_2.1.1" / "train" / "a")
    assert sorted(digests(data)) == ["b", "c", "d"] and reads == ["d"]
    swap = data / "json_2.1.1" / "train"
    os.rename(swap / "b", swap / "x")
    os.rename(swap / "c", swap / "b")
    os.rename(swap / "x", swap / "c")
    reads.clear()
    digests(data)
    assert sorted(reads) == ["b", "c"]


def test_links_and_copies(data, reads, tmp_path):
    """A link that points elsewhere by now; a copy that stands where another folder stood; a link taken for
    games of its own."""
    write(tmp_path / "other", "a", comment="another game")
    link = tmp_path / "link"
    link.symlink_to(data)
    first = digests(link)
    reads.clear()
    assert digests(data) == first and not reads         # the same folder, whatever it is called
    link.unlink()
    link.symlink_to(tmp_path / "other")
    other = digests(link)
    assert list(other) == ["a"] and other["a"] != first["a"]
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "other", data)           # with the times of the copied files
    assert digests(data) == other


def test_files_written_just_now_are_not_trusted(data, reads, monkeypatch):
    """A game that is written twice within the resolution of a file's time."""
    monkeypatch.setattr(alfworld_data, "RACY", 1.0)
    digests(data)
    reads.clear()
    digests(data)
    assert sorted(reads) == ["a", "b", "c"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 1, "games": 3}'])
def test_a_broken_list_is_made_again(data, reads, cache, content):
    """A list that was cut short, or is something else, ends every start."""
    first = digests(data)
    one, = cache.iterdir()
    whole = one.read_bytes()
    one.write_bytes(content)
    assert digests(data) == first and one.read_bytes() == whole


def test_a_list_that_cannot_be_kept(data, tmp_path, monkeypatch):
    """A home that is read-only, which ends a run."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TCOD_CACHE", str(tmp_path / "file"))
    assert sorted(digests(data)) == ["a", "b", "c"]


# ---- which folder, which split, which knob

def said(call, *args, **more):
    with pytest.raises(UserError) as error:
        call(*args, **more)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


@pytest.mark.parametrize("inner", ["json_2.1.1", "json_2.1.1/train", "json_2.1.1/train/a"])
def test_the_inner_folder_is_answered_with_the_outer(data, inner, tmp_path):
    """"No games" for a folder full of games."""
    link = tmp_path / "elsewhere"
    link.symlink_to(data / inner)
    for given in (data / inner, link):
        assert f"give {data}, not {given}." in said(envs.make_tasks, "alfworld", "train", str(given))


def test_what_is_not_there_is_said(data, tmp_path):
    """A folder that does not exist, one without the release, a split that was not fetched."""
    for missing in (tmp_path / "nowhere", tmp_path):
        sentence = said(envs.make_tasks, "alfworld", "train", str(missing))
        assert f"no ALFWorld games in {missing}: --data is the folder that holds json_2.1.1" in sentence
    assert "has train)" in said(envs.make_tasks, "alfworld", "valid_train", str(data))


def test_valid_train_is_a_split(data):
    """The data set's fourth split, refused by name."""
    write(data, "v", split="valid_train")
    task, = envs.make_tasks("alfworld", "valid_train", str(data))
    assert task.id == "valid_train/v/trial"
    assert "valid_train" not in envs.ALFWorld.eval_splits


def test_a_level_beside_real_games_is_refused(data):
    """A knob that is read and does nothing: a run of level full that is played on other games."""
    for call in (envs.make_tasks, envs.make_env):
        args = ("alfworld", "train") if call is envs.make_tasks else ("alfworld",)
        assert "level is of generated games" in said(call, *args, data=str(data), level="small")
        assert "no level 'huge'" in said(call, *args, data=str(data), level="huge")


# ---- games of an older release

OLDER = {  # text of the grammar now: what it was before
    "move {o} to {r}": "put {o} in/on {r}",
    "You move the {o.name} to the {r.name}.": "You put the {o.name} in/on the {r.name}."}


def test_the_instructions_use_the_games_verb(tmp_path):
    """A prompt that asks for "move" where the game knows "put"; and the other way round in the next game."""
    games.write_splits(tmp_path, "small", {"train": 2})
    new, old = envs.make_tasks("alfworld", "train", str(tmp_path))
    path = Path(old.source)
    content = json.loads(path.read_text())
    for now, before in OLDER.items():
        assert now in content["grammar"]
        content["grammar"] = content["grammar"].replace(now, before)
    path.write_text(json.dumps(content))
    env, said = envs.make_env("alfworld", data=str(tmp_path)), []
    for task in (new, old, new):
        obs, info = env.reset(options={"task": task})
        said.append(prompts.load("react").write(env, obs, info, 1).partition(obs)[0])
    assert said[0] == said[2]
    assert said[0].replace("move (object) to (place)", "put (object) in/on (place)") == said[1]
    assert said[0] != said[1]
    env.reset(options={"task": old})
    for action in old.expert:
        _, _, _, _, info = env.step(re.sub("^move (.*) to ", r"put \1 in/on ", action))
    assert info["won"]


def test_a_data_folder_of_links(data, tmp_path):
    """Games that lie behind links, as stores lay them out, and are not found; a loop of links."""
    linked = tmp_path / "linked" / "json_2.1.1" / "train"
    linked.mkdir(parents=True)
    for name in ("a", "b"):
        (linked / name).symlink_to(data / "json_2.1.1" / "train" / name)
    (linked / "c").mkdir()
    (linked / "c" / "trial").symlink_to(data / "json_2.1.1" / "train" / "c" / "trial")
    (linked / "loop").symlink_to(tmp_path / "linked")
    found = list_games(tmp_path / "linked", "train")
    assert [game["id"] for game in found] == [game["id"] for game in list_games(data, "train")]
    assert len(found) == 3
