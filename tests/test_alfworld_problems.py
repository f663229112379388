"""Translated problems: one translation per machine, files that are what was written, bounds in memory."""

import json
import shutil
import sys
import zlib

import fast_downward
import mementos.core
import pytest
from conftest import two_processes
from textworld.logic import Proposition, Variable

from harness.cli import UserError
from harness.folder import cache_home
from worlds import alfworld_games as games
from worlds import alfworld_problems as problems
from worlds.alfworld import Engine
from worlds.cache import _cannot, keep, kept


@pytest.fixture(scope="module")
def made():
    """Contents of three game files."""
    return [games.make_game(f"kept-{i}", games.SMALL, games.SCENES["train"], Engine()).data for i in range(3)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("TCOD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "alfworld-problems"


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


def test_a_later_process_translates_nothing(cache, made, translated):
    """A game that differs when it comes from the disk; a problem of another content taken for it; what the
    translator overwrites."""
    arguments, first = list(sys.argv), [play(game) for game in made]
    assert [play(game) for game in made] == first
    assert len(translated) == len(made) == len(kept_files(cache)) and sys.argv == arguments
    play({**made[0], "pddl_problem": made[0]["pddl_problem"] + "\n"})
    assert len(translated) == len(made) + 1


def test_a_folder_is_translated_beforehand(cache, translated, tmp_path, capsys):
    """A game of some split that is left out; one that cannot be read, which ends the command for all others
    or goes unsaid; a folder that lacks a split; files of another name than those that a run looks for."""
    games.write_splits(tmp_path, {"train": 2, "valid_seen": 1, "valid_unseen": 1})
    paths = sorted(tmp_path.glob("json_2.1.1/*/*/*/game.tw-pddl"))
    wrong = json.loads(paths[0].read_text())
    paths[0].write_text(json.dumps({**wrong, "pddl_problem": "(define"}))
    shutil.rmtree(cache)    # making a game plays it
    shutil.rmtree(tmp_path / "json_2.1.1" / "valid_unseen")
    paths = [path for path in paths if path.exists()]
    with pytest.raises(UserError, match="1 games could not be translated"):
        problems.main(problems.Args(data=str(tmp_path)))
    assert capsys.readouterr().out.startswith("2 of 3 problems are kept")
    assert len(kept_files(cache)) == len(paths) - 1 == 2
    del translated[:]
    for path in paths[1:]:
        play(path)
    assert not translated
    with pytest.raises(UserError, match="no data set"):
        problems.main(problems.Args(data="generated"))


def test_another_version_is_another_file(cache, made, translated, monkeypatch):
    """What an older version or another translator wrote, read as if it were today's."""
    play(made[0])
    monkeypatch.setattr(problems, "VERSION", "another")
    play(made[0])
    assert len(translated) == len(kept_files(cache)) == 2


def test_a_damaged_file_holds_nothing(cache):
    """A planning task that is not whole, or another game's, handed to a C library that ends the process."""
    for name in ("some/one", "some/other"):
        keep(name, [name] * 9)
        assert kept(name) == [name] * 9
    one, other = ((cache_home() / "some" / name) for name in ("one", "other"))
    whole = one.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    for damaged in (b"", whole[:-1], flipped, zlib.compress(b"["), zlib.compress(b"3"), other.read_bytes()):
        one.write_bytes(damaged)
        assert kept("some/one") is None, damaged


def test_a_damaged_problem_is_made_again(cache, made, translated):
    """One broken file, and a game that is never played again."""
    expected, (one,) = play(made[0]), kept_files(cache)
    whole = one.read_bytes()
    one.write_bytes(whole[:-1])
    assert play(made[0]) == expected
    assert len(translated) == 2 and one.read_bytes() == whole


def test_no_file_can_be_written(cache, made, capsys, tmp_path, monkeypatch):
    """A cache that is read-only, or no folder at all, which ends a run; said once, not at every game."""
    expected = play(made[0])
    (tmp_path / "file").touch()
    monkeypatch.setenv("TCOD_CACHE", str(tmp_path / "file"))
    _cannot.cache_clear()
    capsys.readouterr()
    assert play(made[0]) == expected
    play(made[1])
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_memory_is_bounded(cache, made):
    """3 GB after all of train: problems, and every fact that was ever true, kept as long as the process."""
    play(made[0])
    before = len(mementos.core._memento_cache)
    for game in made[1:]:
        play(game)
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


def _keep_often(value):
    for _ in range(30):
        keep("shared/value", value)
        assert kept("shared/value") == value


def test_processes_share_files(cache):
    """A file that is read while another process writes it, or whose writers are in each other's way."""
    value = list(range(30_000))
    assert two_processes(_keep_often, value) == [0, 0]
    assert [path.name for path in (cache_home() / "shared").iterdir()] == ["value"]
