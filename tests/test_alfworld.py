"""ALFWorld: the cached engine against the unmodified one, generated games, the text expert, the adapter."""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from conftest import heed_signals, two_processes

import envs
from harness import stops
from worlds import alfworld, alfworld_data
from worlds import alfworld_games as games
from worlds import alfworld_search as search
from worlds.alfworld import Engine
from worlds.alfworld_env import NO_EFFECT

ROOT = Path(__file__).resolve().parent.parent
ONE_GAME = ROOT.parent / "shared" / "alfworld_one_game"  # a game like the data set's, where there is one
SMALL = games.SMALL
ALL = games.Level(
    tasks=games.TASKS, rooms=tuple(games.ROOMS), receptacles=12, per_class=3, objects=(3, 8), classes=(),
    horizon=30)
TRAIN = games.SCENES["train"]
needs_stock_engine = pytest.mark.skipif(
    sys.version_info >= (3, 13),
    reason="the unmodified textworld updates locals() for eval, which Python 3.13 does not see any more")
SIMPLE = "pick_and_place_simple"
HEAT = "pick_heat_then_place_in_recep"
LIGHT = "look_at_obj_in_light"
CHANGES = ("take", "move", "open", "close", "heat", "use")
INVALID = (
    "go to moon 1", "take mug 1 from fridge 1", "move apple 1 to microwave 1", "heat egg 1 with microwave 1",
    "", "\n")


@pytest.fixture(scope="module")
def engine():
    return Engine()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set in the real layout."""
    root = tmp_path_factory.mktemp("alfworld")
    games.write_splits(root, {"train": 4, "valid_seen": 4, "valid_unseen": 4})
    return str(root)


def wander(rng, state):
    """An action that is often one that changes something, sometimes one that is not understood."""
    useful = [command for command in state["admissible_commands"] if command.split()[0] in CHANGES]
    if useful and rng.random() < 0.4:
        return rng.choice(useful)
    return rng.choice(INVALID if rng.random() < 0.2 else state["admissible_commands"])


def seen(state):
    return state.feedback, state["won"], state["lost"], tuple(state["admissible_commands"])


def start(env, task):
    return env.reset(options={"task": task})


# ---- the engine

@needs_stock_engine
@pytest.mark.parametrize("level, kind", [(SMALL, HEAT), (SMALL, SIMPLE), (ALL, LIGHT)])
def test_traces_equal_the_unmodified_engine(tmp_path, engine, level, kind):
    """A cache that goes stale: commands or text of an operator, a state shared by two games of a process."""
    level = dataclasses.replace(level, objects=(3, 8))
    game = games.make_game(f"trace-{kind}", level, TRAIN, engine, kind)
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(game.data))
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    stock = textworld.start(str(path), infos, [AlfredDemangler()])
    cached, other = Engine(), engine
    cached.load(str(path))
    rng = random.Random(0)
    for actions in ([None] * 25, game.expert):          # wandering, then (after a reset) a game that is won
        reference, state = stock.reset(), cached.reset()
        assert seen(reference) == seen(state)
        for action in actions:
            action = wander(rng, state) if action is None else action
            other.load(game.data)                       # interleaved: must not disturb
            other.reset()
            other.step("look")
            reference, *reference_end = stock.step(action)
            state, *end = cached.step(action)
            assert (seen(reference), reference_end) == (seen(state), end), action
    assert state["won"]


@pytest.mark.parametrize("expression", [
    "().__class__", "o.__class__", "o.name()", "o.name if o else 1", "[o]", "o.name + 1"])
def test_a_games_file_is_never_evaluated(expression):
    """Text of a data file handed to eval(), as the stock grammar does; what real grammars say still works."""
    variables = {"o": SimpleNamespace(name="", id="mug", indefinite="a")}

    def value(text):
        return alfworld._value(alfworld._expression(text), variables)

    assert value(" o.indefinite + ' ' + o.id") == "a mug"
    assert value("o.name or o.id") == "mug"
    with pytest.raises((ValueError, TypeError)):
        value(expression)


def test_the_task_sentence_is_the_games_own(engine):
    """The grammar is shared: a second game of the same grammar must not show the first one's task."""
    first, second = (games.make_game(f"task-{i}", SMALL, TRAIN, engine) for i in range(2))
    for game in (first, second, first):
        engine.load(game.data)
        task = game.traj["turk_annotations"]["anns"][0]["task_desc"]
        assert engine.task == task
        assert engine.reset().feedback.endswith(f"Your task is to: {task}.")


def test_place_and_carried_follow_the_game(engine):
    """A status line that lags one action behind."""
    game = games.make_game("status", SMALL, TRAIN, engine, SIMPLE)
    engine.load(game.data)
    engine.reset()
    assert (engine.place, engine.carried) == ("", "")
    for action in game.expert:
        engine.step(action)
        words = action.split()
        if words[0] == "go":
            assert engine.place == " ".join(words[2:])
        if words[0] == "take":
            assert engine.carried == " ".join(words[1:3])
        if words[0] == "move":
            assert engine.carried == ""


# ---- generated games

@pytest.mark.parametrize("kind", games.TASKS)
def test_all_six_task_types_are_solvable(engine, kind):
    """A task type whose goal, station or lamp the generator forgets."""
    game = games.make_game(f"kind-{kind}", ALL, games.SCENES["valid_unseen"], engine, kind)
    engine.load(game.data)
    assert not engine.reset()["won"]
    ends = [engine.step(action)[2] for action in game.expert]
    assert ends == [False] * (len(ends) - 1) + [True]
    assert game.traj["task_type"] == kind


def test_seeds_give_the_games_that_they_gave(engine):
    """A draw more or in another order, another size of world, sets and hash(), whose order changes from
    process to process: the shipped pairs are measured on games that they never saw."""
    made = [games.make_game(f"train-{n}", SMALL, TRAIN, engine, SMALL.tasks[n]) for n in range(4)]
    made.append(games.make_game("large", ALL, TRAIN, engine))
    content = json.dumps([[game.data["pddl_problem"], game.traj, game.expert] for game in made])
    assert envs.digest(content.encode()) == "645647f66240"


def test_the_pools_games_are_those_of_one_process(folder, engine):
    """A pool whose processes give a game what another one left, or a place in the order as its seed."""
    jobs = [(split, number) for split in games.SIZES for number in range(4)]
    for split, number in reversed(jobs):
        path, = Path(folder, "json_2.1.1", split).glob(f"*/trial_{number:06d}")
        game = games.make_game(f"{split}-{number}", SMALL, games.SCENES[split], engine, SMALL.tasks[number])
        assert (path / "game.tw-pddl").read_text() == json.dumps(game.data)
        assert (path / "expert.json").read_text() == json.dumps(game.expert)


def test_a_level_without_games_is_one_sentence(tmp_path):
    """The traceback of another process in the place of what is wrong."""
    with pytest.raises(ValueError, match="^no game of look_at_obj_in_light in 200 tries"):
        games.write_splits(tmp_path, {"train": 2}, dataclasses.replace(SMALL, tasks=(LIGHT,)))


def test_a_signal_ends_the_pool(tmp_path, capfd):
    """Processes that take a signal for theirs, go on without us, or show a traceback each."""
    before, now = {number: signal.getsignal(number) for number in stops.CAUGHT}, dict(vars(stops.now))
    signal.signal(signal.SIGALRM, lambda *_: [os.kill(child.pid, signal.SIGINT) for child in (
        *multiprocessing.active_children(), SimpleNamespace(pid=os.getpid()))])
    try:
        heed_signals()
        stops.catch()
        with stops.running(), pytest.raises(stops.Stopped):
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            games.write_splits(tmp_path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        vars(stops.now).update(now)
    assert not multiprocessing.active_children() and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("hidden", [0.0, 1.0])
def test_hidden_is_the_share_behind_doors(engine, hidden):
    """The difficulty knob: at 0 what may lie in the open does, at 1 it never does where a door exists."""
    level = dataclasses.replace(SMALL, hidden=hidden, receptacles=9, objects=(8, 8))
    problem = games.make_game("doors", level, TRAIN, engine).data["pddl_problem"]
    facts = [line.strip(" ()").split() for line in problem.split("(:init")[1].splitlines()]
    doors = {fact[1] for fact in facts if fact[:1] == ["openable"]}
    homes = [fact[2] for fact in facts if fact[:1] == ["inReceptacle"]]
    share = sum(home in doors for home in homes) / len(homes)
    assert share < 0.5 if hidden == 0 else share > 0.5


def test_unseen_floor_plans_do_not_occur_in_train(folder):
    """A valid_unseen that was seen."""
    plans = {}
    for split in games.SIZES:
        paths = Path(folder, "json_2.1.1", split).rglob("traj_data.json")
        plans[split] = {json.loads(path.read_text())["scene"]["floor_plan"] for path in paths}
    assert plans["valid_unseen"]
    assert not plans["valid_unseen"] & (plans["train"] | plans["valid_seen"])
    assert not set(games.SCENES["valid_unseen"]) & set(games.SCENES["train"])


# ---- the expert

INTRO = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, "
    "you see a cabinet 1, a countertop 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\nYour task is to: ")


def expert_after(task, *turns):
    expert = games.TextExpert(INTRO + task)
    for action, observation in turns:
        expert.observe(action, observation)
    return expert


def arrive(place, sees="nothing"):
    return f"go to {place}", f"You arrive at {place}. On the {place}, you see {sees}."


def arrive_shut(place):
    return f"go to {place}", f"You arrive at {place}. The {place} is closed."


def take(thing, place):
    return f"take {thing} from {place}", f"You pick up the {thing} from the {place}."


def treat(verb, thing, place):
    return f"{verb} {thing} with {place}", f"You {verb} the {thing} using the {place}."


@pytest.mark.parametrize("task, goal", [
    ("put a mug in desk.", (SIMPLE, "mug", "desk", "")),
    ("put a hot mug in desk.", (HEAT, "mug", "desk", "")),
    ("clean some mug and put it in desk.", ("pick_clean_then_place_in_recep", "mug", "desk", "")),
    ("find two mug and put them in desk.", ("pick_two_obj_and_place", "mug", "desk", "")),
    ("examine the mug with the desklamp.", (LIGHT, "mug", "", "desklamp"))])
def test_goals_are_read_from_the_task(task, goal):
    """"put a hot mug in desk" read as a task about an object called hot."""
    assert games.goal_of(task) == goal


def test_expert_puts_a_wrong_object_back():
    """Holding what it does not want, it repeated an impossible `take`."""
    turns = [arrive("countertop 1", "a egg 1, and a mug 1"), take("mug 1", "countertop 1")]
    assert expert_after("put a egg in fridge.", *turns).act() == "move mug 1 to countertop 1"
    turns.append(arrive_shut("fridge 1"))
    assert expert_after("put a egg in fridge.", *turns).act() == "go to countertop 1"


def test_expert_remembers_what_was_refused():
    """A loop: the same action again after "Nothing happens.", in a state that has not changed."""
    there = arrive("countertop 1", "a egg 1")
    wanted = "take egg 1 from countertop 1"
    refused = wanted, "Nothing happens."
    assert expert_after("put a egg in fridge.", there).act() == wanted
    assert expert_after("put a egg in fridge.", there, refused).act() == "go to fridge 1"
    again = expert_after("put a egg in fridge.", there, refused, there)
    assert again.act() == wanted                        # arriving makes another state


def test_expert_knows_places_that_are_reached_together():
    """A search that ends at a coffee machine on a counter: the way to the counter is refused for ever."""
    turns = [arrive("cabinet 1"), arrive("countertop 1"), ("go to fridge 1", "Nothing happens.")]
    assert expert_after("put a egg in cabinet.", *turns).act() == "examine fridge 1"
    turns.append(("examine fridge 1", "The fridge 1 is closed."))
    assert expert_after("put a egg in cabinet.", *turns).act() == "open fridge 1"
    opened = "You open the fridge 1. The fridge 1 is open. In it, you see a egg 1."
    turns.append(("open fridge 1", opened))
    assert expert_after("put a egg in cabinet.", *turns).act() == "take egg 1 from fridge 1"


def test_expert_heats_again_what_was_cooled():
    """One "done" flag: heat is undone by cooling, and belongs to the one object that was heated."""
    turns = [
        arrive("cabinet 1", "a mug 2, and a mug 1"), take("mug 1", "cabinet 1"),
        arrive_shut("microwave 1"), treat("heat", "mug 1", "microwave 1")]
    assert expert_after("put a hot mug in countertop.", *turns).act() == "go to countertop 1"
    turns += [arrive_shut("fridge 1"), treat("cool", "mug 1", "fridge 1")]
    assert expert_after("put a hot mug in countertop.", *turns).act() == "go to microwave 1"


def test_expert_brings_two_objects_to_one_receptacle():
    """Counting objects instead of places: one mug in each of two drawers does not win."""
    intro = INTRO.replace("a fridge 1", "a drawer 1, a drawer 2")
    expert = games.TextExpert(intro + "put two mug in drawer.")
    expert.observe(*arrive("drawer 1", "a mug 1"))
    expert.observe(*arrive("drawer 2", "a mug 2"))
    assert expert.act() == "go to drawer 1"             # the mug here stays: this drawer is the one to fill
    expert.observe(*take("mug 2", "drawer 2"))
    assert expert.act() == "go to drawer 1"


def test_expert_looks_where_things_lie_most_often():
    """The intro's order, which loses a third of the data set's games; the best place again, once it was seen;
    a tie that is broken by the alphabet."""
    shares = {place: search.share("egg", place) for place in ("cabinet", "countertop", "fridge", "sinkbasin")}
    assert shares["sinkbasin"] > shares["fridge"] > shares["countertop"] > shares["cabinet"] == 0
    seen = [arrive("sinkbasin 1")]
    assert expert_after("put a egg in microwave.").act() == "go to sinkbasin 1"
    assert expert_after("put a egg in microwave.", *seen).act() == "go to fridge 1"
    expert = games.TextExpert(INTRO + "put a egg in microwave.", in_turn=True)
    assert expert.act() == "go to cabinet 1"


PROBLEM = """(:init (receptacleType fridge_a FridgeType) (receptacleType drawer_a DrawerType)
(receptacleType drawer_b DrawerType) (objectType egg_a EggType) (objectType egg_b EggType)
(objectType mug_a MugType) (inReceptacle egg_a fridge_a) (inReceptacle egg_b fridge_a)
(inReceptacle mug_a drawer_b)) (:goal (and (objectType ?o PanType) (inReceptacle ?o drawer_a)))"""


def test_places_are_counted_not_things(monkeypatch):
    """Two eggs in one fridge counted twice; what the goal says counted as true; doors forgotten."""
    apart = PROBLEM.replace("inReceptacle egg_b fridge_a", "inReceptacle egg_b drawer_a")
    found = search.count([PROBLEM, apart])
    assert found == {"egg": {"drawer": [1, 4], "fridge": [2, 2]}, "mug": {"drawer": [2, 4]}}
    monkeypatch.setattr(search, "counts", lambda: found)
    assert search.share("mug", "drawer") == 0.25        # half of 2 / 4
    assert search.share("pan", "fridge") == 0


def test_expert_of_a_game_is_made_when_it_is_drawn(folder, tmp_path):
    """B2F and SFT without a single task on games that bring no expert; an expert that loses, with no
    walkthrough in its place; a game that nobody wins in place of an error of the whole run."""
    shutil.copytree(folder, tmp_path / "data")
    for file in (tmp_path / "data").rglob("expert.json"):
        file.unlink()
    env = envs.make_env("alfworld", data=str(tmp_path / "data"))
    tasks = envs.make_tasks("alfworld", "train", str(tmp_path / "data"))
    assert envs.game_type("alfworld").with_experts(tasks) == tasks
    first = env.demonstrate(tasks[0])
    assert [task.expert for task in tasks] == [()] * 4
    env.reset(options={"task": first})
    assert [info["won"] for *_, info in envs.replay(env, first.expert)][-1]
    env.horizon = 1
    walked = env.demonstrate(tasks[1])
    assert list(walked.expert) == json.loads(Path(tasks[1].source).read_text())["walkthrough"]
    lost = json.loads(Path(tasks[2].source).read_text())
    Path(tasks[2].source).write_text(json.dumps({**lost, "walkthrough": ["look"]}))
    assert "wins it" in env.demonstrate(tasks[2]).fault


@pytest.mark.parametrize("revisit", [False, True])
@pytest.mark.parametrize("level, limit, count", [(ALL, 120, 6), (SMALL, 20, 12)])
def test_expert_wins_from_every_state(engine, level, limit, count, revisit):
    """Labels for states that students reach: after any play the expert wins, without an invalid action."""
    for number in range(count):
        kind = level.tasks[number % len(level.tasks)]
        game = games.make_game(f"recover-{number}", level, TRAIN, engine, kind)
        for turns in (3, 10):
            rng = random.Random(f"{number}-{turns}")
            engine.load(game.data)
            state = engine.reset()
            expert = games.TextExpert(state.feedback, revisit=revisit)
            for turn in range(turns + limit):
                if turn >= turns and state["won"]:
                    break
                action = wander(rng, state) if turn < turns else expert.act()
                state, _, _ = engine.step(action)
                assert turn < turns or state.feedback != NO_EFFECT
                expert.observe(action, state.feedback)
            assert state["won"], (number, turns)


# ---- the environment

def test_info_and_status(folder):
    """The contract of prompts and counters; the wording is what a tiny model's tokenizer knows."""
    env = envs.make_env("alfworld", data=folder)
    task = envs.make_tasks("alfworld", "train", folder)[0]
    obs, info = start(env, task)
    text = obs.rpartition("Your task is to: ")[2][:-1]
    assert info["status"] == f"Task: {text}. You are at the middle of the room, carrying nothing."
    assert (info["task"], info["kind"]) == (text, task.kind)
    assert (info["won"], info["lost"], info["invalid"]) == (False, False, False)
    obs, reward, terminated, truncated, info = env.step("dance with the fridge")
    assert (obs, reward, terminated, truncated) == (NO_EFFECT, 0.0, False, False)
    assert info["invalid"]
    *_, (obs, terminated, info) = envs.replay(env, task.expert)
    assert terminated and info["won"] and not info["invalid"]
    assert info["status"].endswith("carrying nothing.")


def test_splits_show_every_task_type_first(folder):
    """Evaluating on one task type: sorted by path, the first games of a split would all be of one."""
    tasks = envs.make_tasks("alfworld", "valid_seen", folder)
    assert {task.kind for task in tasks[:4]} == set(SMALL.tasks)


def test_a_replay_is_play(folder):
    """B2F that begins elsewhere than it says: a replay that leads to another state than its actions, or runs
    ahead of the row that it is written into."""
    task = envs.make_tasks("alfworld", "train", folder)[1]
    env, other = (envs.make_env("alfworld", data=folder) for _ in range(2))
    start(env, task)
    start(other, task)
    turns = envs.replay(env, task.expert)
    for action in task.expert[:-1]:
        obs, _, terminated, _, info = other.step(action)
        assert next(turns) == (obs, terminated, info) and not info["won"]
        assert env.step("look") == other.step("look")


def write_trial(root, name, game, traj):
    """A game file with its traj_data.json; game: a dictionary."""
    path = root / "json_2.1.1" / "train" / name / "trial"
    path.mkdir(parents=True)
    (path / "game.tw-pddl").write_text(json.dumps(game))
    (path / "traj_data.json").write_text(traj)


def test_the_benchmarks_rules_decide_which_games_count(folder, tmp_path):
    """Success over games that nobody else counts: unsolvable, with a movable receptacle, sliced."""
    one = Path(envs.make_tasks("alfworld", "train", folder)[0].source)
    game, traj = json.loads(one.read_text()), one.with_name("traj_data.json").read_text()
    root = tmp_path / "movable Sliced data"             # only names inside the data set count
    unchecked = {key: value for key, value in game.items() if key != "solvable"}
    write_trial(root, "good", game, traj)
    write_trial(root, "unsolvable", {**game, "solvable": False}, traj)
    write_trial(root, "pick_and_place_with_movable_recep", game, traj)
    write_trial(root, "pick-AppleSliced", game, traj)
    write_trial(root, "unchecked", unchecked, traj)
    tasks = envs.make_tasks("alfworld", "train", str(root))
    assert [(task.id, task.expert, task.responses) for task in tasks] == [("train/good/trial", (), ())]


def test_a_digest_tells_games_of_one_name_apart(folder, tmp_path):
    """Two data folders whose ids agree: a run resumed on the other would go on with other games unnoticed."""
    one = Path(envs.make_tasks("alfworld", "train", folder)[0].source)
    game, traj = json.loads(one.read_text()), one.with_name("traj_data.json").read_text()
    changed = {**game, "pddl_problem": game["pddl_problem"] + "\n"}
    found = []
    for name, content in (("a", game), ("same", game), ("other", changed)):
        write_trial(tmp_path / name, "game", content, traj)
        found += envs.make_tasks("alfworld", "train", str(tmp_path / name))
    assert len({task.id for task in found}) == 1
    first, same, other = [task.digest for task in found]
    assert first == same != other
    assert len(first) == 12 and int(first, 16)


@pytest.mark.parametrize("right, wrong", [("(:init", "(:in"), ("}", "")])
def test_a_corrupt_game_is_named(folder, tmp_path, right, wrong):
    """The translator's SystemExit and the parsers' own exceptions, which would end a run without a name."""
    task = envs.make_tasks("alfworld", "train", folder)[0]
    path = tmp_path / "game.tw-pddl"
    path.write_text(Path(task.source).read_text().replace(right, wrong))
    env = envs.make_env("alfworld", data=folder)
    with pytest.raises(envs.Unplayable, match=task.id) as error:
        start(env, dataclasses.replace(task, source=str(path)))
    assert "\n" not in str(error.value)
    start(env, task)    # as good as before
    assert [env.step(action)[4]["won"] for action in task.expert][-1]


@pytest.mark.parametrize("text", ["", "[1, 2]", "[" * 5000])
def test_one_unreadable_file_does_not_hide_a_split(folder, tmp_path, text):
    """A list of games that ends at the first broken one."""
    copied = tmp_path / "games"
    shutil.copytree(folder, copied)
    path = next((copied / "json_2.1.1" / "train").glob("**/game.tw-pddl"))
    path.write_text(text)
    tasks = envs.make_tasks("alfworld", "train", str(copied))
    assert len(tasks) == len(envs.make_tasks("alfworld", "train", folder))
    bad, = [task for task in tasks if task.fault]
    assert bad.source == str(path)
    with pytest.raises(envs.Unplayable, match=bad.id):
        start(envs.make_env("alfworld", data=str(copied)), bad)


def test_no_data_set_means_generated_games(monkeypatch, tmp_path):
    """$ALFWORLD_DATA, which importing alfworld sets, taken for a user's: a folder must exist or be named."""
    default = tmp_path / ".cache" / "alfworld"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ALFWORLD_DATA", str(default))
    assert alfworld_data.data_folder("") is None
    assert envs.make_env("alfworld").horizon == 20
    (default / "json_2.1.1").mkdir(parents=True)
    assert alfworld_data.data_folder("") == default
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "elsewhere"))
    assert alfworld_data.data_folder("") == tmp_path / "elsewhere"


def _generate(cache):
    os.environ["TCOD_CACHE"] = str(cache)

    def write(folder):                                  # stands for the 40 seconds of writing real games
        (cache / f"written-by-{os.getpid()}").touch()
        time.sleep(0.3)
        (Path(folder) / "json_2.1.1").mkdir()

    games.write_splits = write
    assert (games.cached_splits() / "json_2.1.1").is_dir()


def test_two_processes_generate_once(tmp_path):
    """torchrun's first run: the second rank generates again, or reads a half-written folder."""
    assert two_processes(_generate, tmp_path) == [0, 0]
    name = f"alfworld-small-{games.VERSION}"
    assert len(list(tmp_path.glob("written-by-*"))) == 1
    assert sorted(path.name for path in tmp_path.glob("alfworld-*")) == [name, f"{name}.lock"]


def test_what_a_killed_process_left_is_made_again(tmp_path, monkeypatch):
    """Half of the games, written by a process that was killed, taken for all, or in the way for ever."""
    monkeypatch.setenv("TCOD_CACHE", str(tmp_path))

    def write(folder):
        (Path(folder) / "whole").touch()

    monkeypatch.setattr(games, "write_splits", write)
    half = tmp_path / f"alfworld-small-{games.VERSION}.new"
    half.mkdir()
    (half / "half").touch()
    folder = games.cached_splits.__wrapped__()
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert not half.exists()


@pytest.mark.skipif(not ONE_GAME.exists(), reason="no such game beside the project")
def test_a_game_in_the_data_sets_format_is_played_and_won(tmp_path):
    """The real format: cabinets without doors, a counter reached with the coffee machine on it, no expert."""
    name = "pick_heat_then_place_in_recep-Potato-None-SinkBasin-14"
    shutil.copytree(ONE_GAME, tmp_path / "json_2.1.1" / "train" / name / "trial")
    task, = envs.make_tasks("alfworld", "train", str(tmp_path))
    assert (task.kind, task.expert) == (HEAT, ())
    env = envs.make_env("alfworld", data=str(tmp_path))
    obs, info = start(env, task)
    assert info["task"] == "put a hot potato in sinkbasin" and env.horizon == 30
    expert, turns = games.TextExpert(obs), 0
    while not info["won"] and turns < 50:               # the benchmark's own limit
        action = expert.act()
        obs, reward, terminated, _, info = env.step(action)
        expert.observe(action, obs)
        turns += 1
    assert info["won"] and terminated and reward == 1.0
