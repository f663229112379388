"""Translated problems: one translation per machine, files that are what was written, bounds on disk and in
memory."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import fast_downward
import mementos.core
import pytest
from textworld.logic import Proposition, Variable

from worlds import alfworld_games as games, alfworld_problems as problems
from worlds.alfworld import Engine
from worlds.cache import _cannot

ROOT = Path(__file__).resolve().parent.parent
SMALL, TRAIN = games.LEVELS["small"], games.SCENES["train"]


@pytest.fixture(scope="module")
def made():
    """Contents of three game files."""
    return [games.make_game(f"kept-{i}", SMALL, TRAIN, Engine()).data for i in range(3)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, as a process finds it that has just started."""
    monkeypatch.setenv("TCOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(problems, "_MEMORY", type(problems._MEMORY)())
    return tmp_path / "cache" / "alfworld-compiled"


@pytest.fixture
def translated(monkeypatch):
    """The problems that are translated from now on."""
    calls, translate = [], fast_downward.pddl2sas

    def counted(domain, problem, **more):
        calls.append(problem)
        return translate(domain, problem, **more)

    monkeypatch.setattr(fast_downward, "pddl2sas", counted)
    return calls


def play(game):
    """What a game shows at its start and after its first two admissible actions."""
    engine = Engine()
    engine.load(game)
    shown = [engine.reset()]
    for _ in range(2):
        shown.append(engine.step(shown[-1]["admissible_commands"][0])[0])
    return [(state.feedback, state["admissible_commands"], state["won"]) for state in shown]


def kept_files(cache):
    return sorted(path for path in cache.glob("*/*"))


def forget():
    problems._MEMORY.clear()


def test_a_later_process_translates_nothing(cache, made, translated):
    """A game that differs when it comes from the disk; a problem of another content taken for it."""
    first = [play(game) for game in made]
    forget()
    assert [play(game) for game in made] == first
    assert len(translated) == len(made) == len(kept_files(cache))
    play({**made[0], "pddl_problem": made[0]["pddl_problem"] + "\n"})
    assert len(translated) == len(made) + 1


def test_another_version_is_another_file(cache, made, translated, monkeypatch):
    """What an older version or another translator wrote, read as if it were today's."""
    play(made[0])
    forget()
    monkeypatch.setattr(problems, "VERSION", "another")
    play(made[0])
    assert len(translated) == len(kept_files(cache)) == 2


def emptied(content, other):
    return b""


def cut(content, other):
    return content[:-1]


def longer(content, other):
    return content + b"\n"


def flipped(content, other):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def without_a_line(content, other):
    return content.replace(b"\n", b" ")


def another_games(content, other):
    return other


@pytest.mark.parametrize("damage", [emptied, cut, longer, flipped, without_a_line, another_games])
def test_a_broken_file_is_made_again(cache, made, translated, damage):
    """A planning task that is not whole, handed to a C library that ends the process on it."""
    expected = play(made[0])
    one, = kept_files(cache)
    whole = one.read_bytes()
    play(made[1])
    other, = set(kept_files(cache)) - {one}
    one.write_bytes(damage(whole, other.read_bytes()))
    forget()
    assert play(made[0]) == expected
    assert len(translated) == 3 and one.read_bytes() == whole


def test_no_file_can_be_written(cache, made, capsys, tmp_path, monkeypatch):
    """A cache that is read-only, or no folder at all, which ends a run; said once, not at every game."""
    expected = play(made[0])
    (tmp_path / "file").touch()
    monkeypatch.setenv("TCOD_CACHE", str(tmp_path / "file"))
    forget()
    _cannot.cache_clear()
    capsys.readouterr()
    assert play(made[0]) == expected
    play(made[1])
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_the_least_used_files_go_first(cache, made, monkeypatch):
    """A folder that grows for ever; the games that are played all the time thrown away for new ones."""
    monkeypatch.setattr(problems, "SUBFOLDERS", 1)
    monkeypatch.setattr(problems, "_path", lambda key: cache / "all" / key)
    for game in made[:2]:
        play(game)
    first, second = sorted(kept_files(cache), key=lambda path: path.stat().st_mtime)
    forget()
    play(made[0])                                       # the older one is used again
    room = sum(path.stat().st_size for path in (first, second)) + 100
    monkeypatch.setattr(problems, "MOST_BYTES", room)
    play(made[2])
    left = kept_files(cache)
    assert first in left and second not in left
    assert sum(path.stat().st_size for path in left) <= room


def test_memory_is_bounded(cache, made, monkeypatch):
    """3 GB after all of train: problems, and every fact that was ever true, kept as long as the process."""
    monkeypatch.setattr(problems, "KEPT", 2)
    play(made[0])
    before = len(mementos.core._memento_cache)
    for game in made[1:]:
        play(game)
    assert len(problems._MEMORY) == 2
    assert len(mementos.core._memento_cache) - before < 50  # signatures, not hundreds of facts a game


def test_a_fact_is_the_librarys_proposition():
    """Facts that sort otherwise than the stock engine's, or are not found among them."""
    variables = [Variable(name, kind) for name, kind in (("mug", "object"), ("a", "object"), ("a", "agent"))]
    stock = [Proposition(name, [v]) for name in ("holds", "clean") for v in variables]
    ours = [problems.Fact(name, [v]) for name in ("holds", "clean") for v in variables]
    assert sorted(map(str, stock)) and [str(f) for f in sorted(ours)] == [str(p) for p in sorted(stock)]
    assert sorted(ours) == sorted(stock)
    assert set(ours) == set(stock) and len({*ours, *stock}) == len(stock)
    assert [fact.negate() for fact in ours] == [fact.negate() for fact in stock]
    assert [fact.negate().negate() for fact in ours] == stock


def _play_and_count(games_, cache, counts):
    calls, translate = [], fast_downward.pddl2sas
    fast_downward.pddl2sas = lambda *args, **more: calls.append(1) or translate(*args, **more)
    counts.put((len(calls), [play(game) for game in games_], len(calls)))


def test_two_processes_share_the_work(cache, made):
    """Ranks that start together: every one translates everything, or reads a file that is half written."""
    context = multiprocessing.get_context("fork")
    counts = context.Queue()
    ranks = [context.Process(target=_play_and_count, args=(made, cache, counts)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    (_, shown, one), (_, same, other) = counts.get(), counts.get()
    for rank in ranks:
        rank.join()
    assert shown == same
    assert one + other == len(made) == len(kept_files(cache))


def test_all_at_once(cache, made, tmp_path):
    """The command: games that are not kept afterwards, a second start that translates, a bad game unnamed."""
    games.write_splits(tmp_path, "small", {"train": 3, "valid_seen": 1})
    command = [sys.executable, "-m", "worlds.alfworld", "--compile", "--data", str(tmp_path), "--jobs", "2"]

    def run():
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "4 compiled games" in done.stdout
    assert "4/4" in done.stderr
    game = next(tmp_path.glob("json_2.1.1/train/*/*/game.tw-pddl"))
    game.write_text(game.read_text().replace("(:init", "(:in"))
    done = run()
    assert done.returncode == 2
    assert "1 of 4 games" in done.stderr and str(game) in done.stderr and "Traceback" not in done.stderr
