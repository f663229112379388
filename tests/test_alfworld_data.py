"""The data set's folder and its splits: which folder is meant, which games count."""

import json
import re
from pathlib import Path

import pytest

import envs
from chat import prompts
from harness.cli import UserError
from worlds import alfworld_games as games
from worlds.alfworld_data import list_games

KIND = "pick_and_place_simple"


@pytest.fixture
def data(tmp_path):
    """A data folder whose games hold only what a list reads."""
    for name in ("a", "b", "c"):
        write(tmp_path / "data", name)
    return tmp_path / "data"


def write(data, name, split="train", solvable=True, **more):
    place = data / "json_2.1.1" / split / name / "trial"
    place.mkdir(parents=True, exist_ok=True)
    (place / "game.tw-pddl").write_text(json.dumps(dict(solvable=solvable, **more)))
    (place / "traj_data.json").write_text(json.dumps(dict(task_type=KIND)))
    return place


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
    assert "valid_train" not in envs.game_type("alfworld").eval_splits


# ---- games of an older release

OLDER = {  # text of the grammar now: what it was before
    "move {o} to {r}": "put {o} in/on {r}",
    "You move the {o.name} to the {r.name}.": "You put the {o.name} in/on the {r.name}."}


def test_the_instructions_use_the_games_verb(tmp_path):
    """A prompt that asks for "move" where the game knows "put"; and the other way round in the next game."""
    games.write_splits(tmp_path, {"train": 2})
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
