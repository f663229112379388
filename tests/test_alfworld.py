"""ALFWorld: the cached engine against the unmodified one, generated games, the text expert, and the adapter in envs.py."""
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fast_downward
import gymnasium
import pytest
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from gymnasium.utils.env_checker import check_env

import envs
from worlds import alfworld_games as games
from worlds.alfworld import Engine

ROOT = Path(__file__).resolve().parent.parent
ONE_GAME = ROOT.parent / "shared" / "alfworld_one_game"       # a game of the data set, where the developer has one
SMALL, FULL = games.LEVELS["small"], games.LEVELS["full"]
TRAIN = games.SCENES["train"]
INVALID = ("go to moon 1", "take mug 1 from fridge 1", "move apple 1 to microwave 1", "heat egg 1 with microwave 1", "", "\n")


@pytest.fixture(scope="module")
def engine():
    return Engine()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set in the real layout."""
    root = tmp_path_factory.mktemp("alfworld")
    games.write_splits(root, "small", {"train": 4, "valid_seen": 4, "valid_unseen": 4})
    return str(root)


def wander(rng, state):
    """An action that is often one that changes something, sometimes one that is not understood."""
    useful = [c for c in state["admissible_commands"] if c.split()[0] in ("take", "move", "open", "close", "heat", "use")]
    if useful and rng.random() < 0.4:
        return rng.choice(useful)
    return rng.choice(INVALID if rng.random() < 0.2 else state["admissible_commands"])


def seen(state):
    return state.feedback, state["won"], state["lost"], tuple(state["admissible_commands"])


# ---- the engine

@pytest.mark.parametrize("level, kind", [(SMALL, "pick_heat_then_place_in_recep"), (SMALL, "pick_and_place_simple"),
                                         (FULL, "look_at_obj_in_light")])
def test_traces_equal_the_unmodified_engine(tmp_path, engine, level, kind):
    """Guards a cache that goes stale: commands or text of an operator, a state shared by two games in one process."""
    game = dataclasses.replace(level, objects=(3, 8))
    game = games.make_game(f"trace-{kind}", game, TRAIN, engine, kind)
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(game.data))
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    stock, cached, other = textworld.start(str(path), infos, [AlfredDemangler()]), Engine(), engine
    cached.load(str(path))
    rng = random.Random(0)
    for actions in ([None] * 25, game.expert):                  # wandering, then (after a reset) a game that is won
        reference, state = stock.reset(), cached.reset()
        assert seen(reference) == seen(state)
        for action in actions:
            action = wander(rng, state) if action is None else action
            other.load(game.data), other.reset(), other.step("look")        # interleaved: must not disturb
            (reference, *reference_end), (state, *end) = stock.step(action), cached.step(action)
            assert (seen(reference), reference_end) == (seen(state), end), action
    assert state["won"]


def test_a_problem_is_translated_once_in_a_process(engine, monkeypatch):
    """Guards the cost that the cache is for: the stock engine translates four times for one load and reset."""
    data = games.make_game("once", SMALL, TRAIN, engine).data
    data = {**data, "pddl_problem": data["pddl_problem"] + "\n;; a problem that this process has not seen"}
    calls, translate = [], fast_downward.pddl2sas
    monkeypatch.setattr(fast_downward, "pddl2sas", lambda *a, **k: calls.append(a) or translate(*a, **k))
    arguments = list(sys.argv)
    for _ in range(2):
        fresh = Engine()
        fresh.load(data), fresh.reset(), fresh.reset()
    assert len(calls) == 1 and sys.argv == arguments            # the translator overwrites sys.argv


@pytest.mark.parametrize("expression", ["().__class__", "o.__class__", "o.name()", "o.name if o else 1", "[o]", "o.name + 1"])
def test_a_games_file_is_never_evaluated(expression):
    """Guards against handing text of a data file to eval(), as the stock grammar does; what real grammars say still works."""
    from types import SimpleNamespace
    from worlds.alfworld import _expression, _value
    variables = {"o": SimpleNamespace(name="", id="mug", indefinite="a")}
    assert _value(_expression(" o.indefinite + ' ' + o.id"), variables) == "a mug"
    assert _value(_expression("o.name or o.id"), variables) == "mug"
    with pytest.raises((ValueError, TypeError)):
        _value(_expression(expression), variables)


def test_the_task_sentence_is_the_games_own(engine):
    """Guards the shared grammar: a second game of the same grammar must not show the first one's task."""
    first, second = (games.make_game(f"task-{i}", SMALL, TRAIN, engine) for i in range(2))
    for game in (first, second, first):
        engine.load(game.data)
        task = game.traj["turk_annotations"]["anns"][0]["task_desc"]
        assert engine.task == task and engine.reset().feedback.endswith(f"Your task is to: {task}.")


def test_place_and_carried_follow_the_game(engine):
    """Guards the status line against lagging one action behind."""
    game = games.make_game("status", SMALL, TRAIN, engine, "pick_and_place_simple")
    engine.load(game.data), engine.reset()
    assert (engine.place, engine.carried) == ("", "")
    for action in game.expert:
        engine.step(action)
        words = action.split()
        if words[0] == "go":
            assert engine.place == " ".join(words[2:])
        assert engine.carried == {"take": " ".join(words[1:3]), "move": ""}.get(words[0], engine.carried)


# ---- generated games

@pytest.mark.parametrize("kind", games.TASKS)
def test_all_six_task_types_are_solvable(engine, kind):
    """Guards a task type whose goal, station or lamp the generator forgets."""
    game = games.make_game(f"kind-{kind}", FULL, games.SCENES["valid_unseen"], engine, kind)
    engine.load(game.data)
    assert not engine.reset()["won"]
    ends = [engine.step(action)[2] for action in game.expert]
    assert ends == [False] * (len(ends) - 1) + [True] and game.traj["task_type"] == kind


def test_a_game_is_the_same_in_every_process(engine):
    """Guards sets and hash() in the generator: their order changes from process to process."""
    code = ("import hashlib, json; from worlds.alfworld_games import *\n"
            "game = make_game('same', LEVELS['full'], SCENES['train'], Engine())\n"
            "print(hashlib.sha256(json.dumps(game).encode()).hexdigest())")
    made = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert len(made) == 1


def test_level_small_is_the_measured_world(engine):
    """Guards the size of world in which a tiny teacher was measured to learn the game."""
    for number in range(8):
        game = games.make_game(f"size-{number}", SMALL, TRAIN, engine)
        engine.load(game.data)
        places = games.TextExpert(engine.reset().feedback).places
        things = [fact.arguments[0].name.split("_bar_")[0] for fact in engine._pddl_state.named("inreceptacle", "object", "receptacle")]
        assert len(places) == 5 == len({games.class_of(place) for place in places})
        assert 3 <= len(things) <= 5 and set(things) <= {thing.lower() for thing in SMALL.classes}


def test_hidden_is_the_share_behind_doors(engine):
    """Guards the difficulty knob: at 0 a target that may lie in the open does, at 1 it never does where a door exists."""
    for hidden in (0.0, 1.0):
        level = dataclasses.replace(SMALL, hidden=hidden, receptacles=9, objects=(8, 8))
        problem = games.make_game("doors", level, TRAIN, engine).data["pddl_problem"].split("(:init")[1]
        doors = {line.split()[1].rstrip(")") for line in problem.splitlines() if "(openable " in line}
        homes = {line.split()[1]: line.split()[2].rstrip(")") for line in problem.splitlines() if "(inReceptacle " in line}
        share = sum(home in doors for home in homes.values()) / len(homes)
        assert share < 0.5 if hidden == 0 else share > 0.5


def test_unseen_floor_plans_do_not_occur_in_train(folder):
    """Guards the meaning of valid_unseen."""
    scenes = {split: {json.loads(path.read_text())["scene"]["floor_plan"]
                      for path in Path(folder, "json_2.1.1", split).rglob("traj_data.json")} for split in games.SIZES}
    assert scenes["valid_unseen"] and not scenes["valid_unseen"] & (scenes["train"] | scenes["valid_seen"])
    assert not set(games.SCENES["valid_unseen"]) & set(games.SCENES["train"])


# ---- the expert

INTRO = ("-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
         "a cabinet 1, a countertop 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\nYour task is to: ")


def expert_after(task, *turns):
    expert = games.TextExpert(INTRO + task)
    for action, observation in turns:
        expert.observe(action, observation)
    return expert


@pytest.mark.parametrize("task, goal", [
    ("put a mug in desk.", ("pick_and_place_simple", "mug", "desk", "")),
    ("put a hot mug in desk.", ("pick_heat_then_place_in_recep", "mug", "desk", "")),
    ("clean some mug and put it in desk.", ("pick_clean_then_place_in_recep", "mug", "desk", "")),
    ("find two mug and put them in desk.", ("pick_two_obj_and_place", "mug", "desk", "")),
    ("examine the mug with the desklamp.", ("look_at_obj_in_light", "mug", "", "desklamp"))])
def test_goals_are_read_from_the_task(task, goal):
    """Guards "put a hot mug in desk" being read as a task about an object called hot."""
    assert games.goal_of(task) == goal


def test_expert_puts_a_wrong_object_back():
    """Guards the known failure: holding what it does not want, it repeated an impossible `take`."""
    turns = [("go to countertop 1", "You arrive at countertop 1. On the countertop 1, you see a egg 1, and a mug 1."),
             ("take mug 1 from countertop 1", "You pick up the mug 1 from the countertop 1.")]
    assert expert_after("put a egg in fridge.", *turns).act() == "move mug 1 to countertop 1"
    turns += [("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed.")]
    assert expert_after("put a egg in fridge.", *turns).act() == "go to countertop 1"


def test_expert_remembers_what_was_refused():
    """Guards a loop: the same action again after "Nothing happens.", in a state that has not changed."""
    arrive = ("go to countertop 1", "You arrive at countertop 1. On the countertop 1, you see a egg 1.")
    take = "take egg 1 from countertop 1"
    assert expert_after("put a egg in fridge.", arrive).act() == take
    assert expert_after("put a egg in fridge.", arrive, (take, "Nothing happens.")).act() == "go to fridge 1"
    again = expert_after("put a egg in fridge.", arrive, (take, "Nothing happens."), arrive)
    assert again.act() == take                          # arriving makes another state


def test_expert_knows_places_that_are_reached_together():
    """Guards a search that ends at a coffee machine on a counter: the way to the counter is refused for ever."""
    turns = [("go to cabinet 1", "You arrive at cabinet 1. On the cabinet 1, you see nothing."),
             ("go to countertop 1", "You arrive at countertop 1. On the countertop 1, you see nothing."),
             ("go to fridge 1", "Nothing happens.")]
    assert expert_after("put a egg in cabinet.", *turns).act() == "examine fridge 1"
    turns += [("examine fridge 1", "The fridge 1 is closed.")]
    assert expert_after("put a egg in cabinet.", *turns).act() == "open fridge 1"
    turns += [("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, you see a egg 1.")]
    assert expert_after("put a egg in cabinet.", *turns).act() == "take egg 1 from fridge 1"


def test_expert_heats_again_what_was_cooled():
    """Guards one "done" flag: heat is undone by cooling, and belongs to the one object that was heated."""
    turns = [("go to cabinet 1", "You arrive at cabinet 1. On the cabinet 1, you see a mug 2, and a mug 1."),
             ("take mug 1 from cabinet 1", "You pick up the mug 1 from the cabinet 1."),
             ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
             ("heat mug 1 with microwave 1", "You heat the mug 1 using the microwave 1.")]
    assert expert_after("put a hot mug in countertop.", *turns).act() == "go to countertop 1"
    turns += [("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
              ("cool mug 1 with fridge 1", "You cool the mug 1 using the fridge 1.")]
    assert expert_after("put a hot mug in countertop.", *turns).act() == "go to microwave 1"


def test_expert_brings_two_objects_to_one_receptacle():
    """Guards counting objects instead of places: one mug in each of two drawers does not win."""
    expert = games.TextExpert(INTRO.replace("a fridge 1", "a drawer 1, a drawer 2") + "put two mug in drawer.")
    for action, observation in [("go to drawer 1", "You arrive at drawer 1. On the drawer 1, you see a mug 1."),
                                ("go to drawer 2", "You arrive at drawer 2. On the drawer 2, you see a mug 2.")]:
        expert.observe(action, observation)
    assert expert.act() == "go to drawer 1"             # the mug here stays: this drawer is the one to fill
    expert.observe("take mug 2 from drawer 2", "You pick up the mug 2 from the drawer 2.")
    assert expert.act() == "go to drawer 1"


@pytest.mark.parametrize("revisit", [False, True])
def test_expert_wins_from_every_state(engine, revisit):
    """Guards labels for states that students reach: after any play the expert wins, without one invalid action."""
    for number in range(18):
        level = FULL if number < 6 else SMALL
        game = games.make_game(f"recover-{number}", dataclasses.replace(level, objects=(3, 6)), TRAIN, engine,
                               level.tasks[number % len(level.tasks)])
        for turns in (3, 10):
            rng = random.Random(f"{number}-{turns}")
            engine.load(game.data)
            state = engine.reset()
            expert = games.TextExpert(state.feedback, revisit=revisit)
            for _ in range(turns):
                action = wander(rng, state)
                state = engine.step(action)[0]
                expert.observe(action, state.feedback)
            for _ in range(20 if level is SMALL else 60):
                if state["won"]:
                    break
                action = expert.act()
                state = engine.step(action)[0]
                assert state.feedback != envs.NO_EFFECT
                expert.observe(action, state.feedback)
            assert state["won"], (number, turns)


# ---- the environment

def test_gymnasium_is_content(folder):
    """Guards spaces that reject unicode, a reset that ignores its seed, an unregistered id."""
    env = gymnasium.make("tcod/ALFWorld-v0", data=folder)
    check_env(env.unwrapped, skip_render_check=True)
    assert "größe\u2603" in env.action_space
    draws = {env.reset(seed=seed)[0] for seed in range(12)}
    assert len(draws) > 1


def test_info_and_status(folder):
    """Guards the contract that prompts and counters rely on; the wording is what a tiny model's tokenizer knows."""
    env, task = envs.make_env("alfworld", data=folder), envs.make_tasks("alfworld", "train", folder)[0]
    obs, info = env.reset(options={"task": task})
    text = obs.rpartition("Your task is to: ")[2][:-1]
    assert info["status"] == f"Task: {text}. You are at the middle of the room, carrying nothing."
    assert (info["task"], info["kind"], info["won"], info["lost"], info["invalid"]) == (text, task.kind, False, False, False)
    obs, reward, terminated, truncated, info = env.step("dance with the fridge")
    assert (obs, reward, terminated, truncated, info["invalid"]) == (envs.NO_EFFECT, 0.0, False, False, True)
    *_, (obs, info) = envs.replay(env, task.expert)
    assert info["won"] and not info["invalid"] and info["status"].endswith("carrying nothing.")


def test_splits_show_every_task_type_first(folder):
    """Guards evaluating on one task type: sorted by path, the first games of a split would all be of one."""
    assert {task.kind for task in envs.make_tasks("alfworld", "valid_seen", folder)[:4]} == set(SMALL.tasks)


def test_replay_reaches_the_state_of_play_and_stops_at_an_early_end(folder):
    """Guards B2F: a prefix of expert actions is the state it says, and a game that ends inside it is an error."""
    task = envs.make_tasks("alfworld", "train", folder)[1]
    env, other = (envs.make_env("alfworld", data=folder) for _ in range(2))
    env.reset(options={"task": task}), other.reset(options={"task": task})
    turns = envs.replay(env, task.expert[:-1])
    played = [other.step(action) for action in task.expert[:-1]]
    assert turns == [(obs, info) for obs, *_, info in played] and not turns[-1][1]["won"]
    longer = dataclasses.replace(task, expert=task.expert + ("look",))
    env.reset(options={"task": longer})
    with pytest.raises(envs.ReplayError, match=task.id):
        envs.replay(env, longer.expert)


def test_the_benchmarks_rules_decide_which_games_count(folder, tmp_path):
    """Guards success rates over games that nobody else counts: unsolvable, movable-receptacle, sliced."""
    one = Path(envs.make_tasks("alfworld", "train", folder)[0].source)
    game, traj = json.loads(one.read_text()), one.with_name("traj_data.json").read_text()
    root = tmp_path / "movable Sliced data"                     # only names inside the data set count
    for name, data in {"good": game, "unsolvable": {**game, "solvable": False}, "pick_and_place_with_movable_recep": game,
                       "pick-AppleSliced": game, "unchecked": {k: v for k, v in game.items() if k != "solvable"}}.items():
        path = root / "json_2.1.1" / "train" / name / "trial"
        path.mkdir(parents=True)
        (path / "game.tw-pddl").write_text(json.dumps(data))
        (path / "traj_data.json").write_text(traj)
    tasks = envs.make_tasks("alfworld", "train", str(root))
    assert [(task.id, task.expert) for task in tasks] == [("train/good/trial", ())]


def test_mistakes_end_in_one_sentence(folder, tmp_path):
    """Guards tracebacks, and a data folder without games that silently becomes generated games."""
    def message(call, *args, **kw):
        with pytest.raises(envs.UserError) as error:
            call(*args, **kw)
        assert str(error.value).endswith(".") and "\n" not in str(error.value)
        return str(error.value)
    assert "alfworld" in message(envs.make_env, "alfwrld")
    assert "valid_seen" in message(envs.make_tasks, "alfworld", "test", folder)
    assert "valid_seen" in message(envs.make_env, "alfworld", split="test", data=folder)
    assert "alfworld-download" in message(envs.make_tasks, "alfworld", "train", str(tmp_path))
    assert "full" in message(envs.make_tasks, "alfworld", "train", level="huge")


@pytest.mark.parametrize("damage", [lambda text: text[:-500], lambda text: "{}", lambda text: text.replace("(:init", "(:in")])
def test_a_corrupt_game_is_named(folder, tmp_path, damage):
    """Guards the PDDL translator's SystemExit and the parsers' own exceptions, which would end a run without a name."""
    task = envs.make_tasks("alfworld", "train", folder)[0]
    path = tmp_path / "game.tw-pddl"
    path.write_text(damage(Path(task.source).read_text()))
    env = envs.make_env("alfworld", data=folder)
    with pytest.raises(envs.UserError, match=str(path)) as error:
        env.reset(options={"task": dataclasses.replace(task, source=str(path))})
    assert "\n" not in str(error.value)


def test_no_data_set_means_generated_games(monkeypatch, tmp_path):
    """Guards $ALFWORLD_DATA, which importing alfworld sets: only a folder that exists, or that was named, is a data set."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / ".cache" / "alfworld"))
    assert envs._alfworld_folder("") is None and envs.make_env("alfworld").horizon == 20
    (tmp_path / ".cache" / "alfworld" / "json_2.1.1").mkdir(parents=True)
    assert envs._alfworld_folder("") == tmp_path / ".cache" / "alfworld"
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "elsewhere"))
    assert envs._alfworld_folder("") == tmp_path / "elsewhere"


def _generate(cache):
    os.environ["TCOD_CACHE"] = str(cache)

    def write(folder, level):                           # stands for the 40 seconds of writing real games
        (cache / f"written-by-{os.getpid()}").touch()
        time.sleep(0.3)
        (Path(folder) / "json_2.1.1").mkdir()
    games.write_splits = write
    assert (games.cached_splits("small") / "json_2.1.1").is_dir()


def test_two_processes_generate_once(tmp_path):
    """Guards torchrun's first run: the second rank must neither generate again nor read a half-written folder."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_generate, args=(tmp_path,)) for _ in range(2)]
    [rank.start() for rank in ranks], [rank.join() for rank in ranks]
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert len(list(tmp_path.glob("written-by-*"))) == 1
    assert sorted(path.name for path in tmp_path.glob("alfworld-*")) == [f"alfworld-small-{games.VERSION}",
                                                                         f"alfworld-small-{games.VERSION}.lock"]


@pytest.mark.skipif(not ONE_GAME.exists(), reason="no game of the data set beside the project")
def test_a_game_of_the_data_set_is_played_and_won(tmp_path):
    """Guards the real format: cabinets without doors, a counter reached with the coffee machine on it, no expert."""
    trial = tmp_path / "json_2.1.1" / "train" / "pick_heat_then_place_in_recep-Potato-None-SinkBasin-14" / "trial"
    shutil.copytree(ONE_GAME, trial)
    task, = envs.make_tasks("alfworld", "train", str(tmp_path))
    assert (task.kind, task.expert) == ("pick_heat_then_place_in_recep", ())
    env = envs.make_env("alfworld", data=str(tmp_path))
    obs, info = env.reset(options={"task": task})
    assert info["task"] == "put a hot potato in sinkbasin" and env.horizon == 30
    expert, turns = games.TextExpert(obs), 0
    while not info["won"] and turns < 50:               # the benchmark's own limit
        action = expert.act()
        obs, reward, terminated, _, info = env.step(action)
        expert.observe(action, obs)
        turns += 1
    assert info["won"] and terminated and reward == 1.0


# ---- prompts and answers

def test_prompts_restate_what_the_style_says(folder):
    """Guards a later turn without admissible actions, instructions at every turn, and a task that is said twice."""
    env = envs.make_env("alfworld", data=folder)
    obs, info = env.reset(seed=0)
    first, later = (envs.prompt(env, obs, info, "react", first) for first in (True, False))
    assert first == f"{env.instructions}\n\n{later}" and first.count(info["task"]) == 1
    assert all(f"\n{action}\n" in later for action in info["admissible"])
    assert envs.prompt(env, obs, info, "bare", True) == f"{obs}\n{info['status']}"


@pytest.mark.parametrize("response, style, action", [
    ("I think.\n<action> go to desk 1 </action>", "react", "go to desk 1"),
    ("<action>look</action> or <action>open fridge 1</action>", "react", "open fridge 1"),
    ("<action>go to\ndesk 1</action>", "react", "go to\ndesk 1"),
    ("go to desk 1", "react", None), ("<action></action>", "react", None), ("<action>look", "react", None),
    (" look\n", "bare", "look"), ("  ", "bare", None)])
def test_actions_are_read_from_responses(response, style, action):
    """Guards the first tag being taken for the answer, and an empty answer being sent as an action."""
    assert envs.parse_action(response, style) == action


@pytest.mark.parametrize("style", envs.PROMPTS)
def test_a_replayed_action_reads_back_as_itself(style):
    """Guards replayed turns in a format that the student is never asked for."""
    assert envs.parse_action(envs.format_action("move mug 1 to desk 1", style), style) == "move mug 1 to desk 1"
