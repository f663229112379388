"""A run on disk: what goes on exactly, what is refused, what a kill or a full disk leaves."""

import dataclasses
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, arguments, little_room, make_model, make_tokenizer
from safetensors.torch import load_file

import curriculum
import harness.run
import load
import methods
import tcod
from chat import prompts
from harness.cli import UserError
from harness.folder import read_args, read_log, write_json
from harness.run import Checkpoint
from worlds import alfworld_env


def begun(checkpoints, data, folder, steps=4):
    """A run of so many steps that stands behind its second."""
    tcod.main(arguments(checkpoints, data, folder, steps=2, eval_every=0))
    saved = read_args(folder)
    write_json(folder / "args.json", {**saved, "steps": steps})


def same_logs(one, other):
    """Two runs left the same log, but for its timings."""
    for ours, theirs in zip(read_log(one / "log.jsonl"), read_log(other / "log.jsonl"), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert (one / "episodes.jsonl").read_text() == (other / "episodes.jsonl").read_text()


def same_students(one, other):
    """Two runs left the same weights, bit for bit."""
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})


def test_resume_refuses_another_teacher(checkpoints, data, tmp_path):
    """A teacher's folder that was replaced between a run's stop and its --resume."""
    mine = tmp_path / "mine"
    shutil.copytree(checkpoints, mine)
    begun(mine, data, tmp_path / "run")
    make_model("qwen3", 7, 144).save_pretrained(mine / "teacher")
    with pytest.raises(UserError, match="begun with another teacher:"):
        tcod.main(tcod.Args(resume=str(tmp_path / "run")))
    shutil.copytree(checkpoints / "teacher", mine / "teacher", dirs_exist_ok=True)
    tcod.main(tcod.Args(resume=str(tmp_path / "run")))
    assert [r["step"] for r in read_log(tmp_path / "run" / "log.jsonl")] == [1, 2, 3, 4]


def test_resume_refuses_another_prompt(checkpoints, data, tmp_path):
    """A run that goes on with other words, or a mark that no response of before has; one of a version that
    did not note the prompt."""
    asked, run = tmp_path / "asked.txt", tmp_path / "run"
    asked.write_text("[turn]\n{observation} {status}\n[action]\n{action}\n")
    little = dict(steps=1, episodes=2, eval_every=0, max_turns=2)
    tcod.main(arguments(checkpoints, data, run, prompt=str(asked), **little))
    asked.write_text("# the same\n\n[turn]\n\n{observation} {status}\n\n[action]\n{action}\n")
    tcod.main(tcod.Args(resume=str(run), steps=2))
    asked.write_text("[turn]\n{observation}\n[action]\n{action}\n")
    with pytest.raises(UserError, match="begun with another prompt:"):
        tcod.main(tcod.Args(resume=str(run), steps=3))
    tcod.main(arguments(checkpoints, data, tmp_path / "old", **little))
    saved = read_args(tmp_path / "old")
    for name in ("prompt", "precision", "keep"):
        saved.pop(name)
    saved["fingerprint"].pop("prompt")
    write_json(tmp_path / "old" / "args.json", saved)
    tcod.main(tcod.Args(resume=str(tmp_path / "old"), steps=2))
    assert read_args(tmp_path / "old")["fingerprint"]["prompt"] == prompts.load("bare").digest


def test_resume_refuses_other_games(checkpoints, data, tmp_path):
    """--data that is resolved anew: the run goes on, and is evaluated, on other games."""
    games = tmp_path / "games"
    shutil.copytree(data, games)
    begun(checkpoints, str(games), tmp_path / "run")
    game = next((games / "json_2.1.1" / "train").glob("**/game.tw-pddl"))
    game.write_text(game.read_text() + " ")
    alfworld_env.tasks_of.cache_clear()  # a resumed run is another process
    with pytest.raises(UserError, match="begun with another list of training tasks:"):
        tcod.main(tcod.Args(resume=str(tmp_path / "run")))


def test_the_same_command_goes_on(checkpoints, data, tmp_path, capsys):
    """A run that is begun anew over what is there; a second way of going on, which the first does not know
    of: the same run as one that was never stopped."""
    more = dict(steps=4, eval_every=2, precision="auto")
    tcod.main(arguments(checkpoints, data, tmp_path / "whole", **more))
    args = arguments(checkpoints, data, tmp_path / "run", **more)
    tcod.main(dataclasses.replace(args, steps=2))
    for _ in range(2):  # a run that is over says so again, and changes nothing
        tcod.main(dataclasses.replace(args))
        assert "going on after step" in capsys.readouterr().out
        same_logs(tmp_path / "whole", tmp_path / "run")
    same_students(tmp_path / "whole", tmp_path / "run")
    assert read_args(tmp_path / "run")["steps"] == 4


@pytest.mark.parametrize("changed, words", [
    (dict(seed=3, method="opd"), "another method, another seed: give the same arguments"),
    (dict(lr=2e-2), "another lr: "), (dict(eta=2.0), "another eta: "),
    (dict(max_turns=5), "another max_turns: "),
    (dict(steps=1), "--steps 1 is less than the 2")])
def test_another_command_does_not_go_on(changed, words, checkpoints, data, tmp_path):
    """A flag that is silently dropped since the run's own is taken; two runs in one log."""
    run = tmp_path / "run"
    begun(checkpoints, data, run, steps=2)
    before = {name: (run / name).read_bytes() for name in ("args.json", "log.jsonl", "checkpoint.pt")}
    with pytest.raises(UserError, match=words):
        tcod.main(dataclasses.replace(arguments(checkpoints, data, run, steps=2, eval_every=0), **changed))
    assert before == {name: (run / name).read_bytes() for name in before}


def test_what_was_left_open_is_the_runs_own(checkpoints, data, tmp_path):
    """A default that is filled in before it is compared, so that the checkpoint's own looks like another."""
    run = tmp_path / "run"
    begun(checkpoints, data, run, steps=2)
    args = arguments(checkpoints, data, run, steps=None, eval_every=0)
    tcod.main(dataclasses.replace(args, lr=None, max_response=None, eval_games=None, precision=""))
    saved = read_args(run)
    assert (saved["steps"], saved["lr"], saved["max_response"], saved["eval_games"]) == (2, 1e-2, 4, 2)


def test_a_folder_is_one_runs_at_a_time(checkpoints, data, tmp_path):
    """Two runs started at once into one folder, or one run resumed twice: one log and one checkpoint of
    both."""
    begun(checkpoints, data, tmp_path / "run")
    before = (tmp_path / "run" / "log.jsonl").read_text()
    holder = (
        "import sys; from harness.folder import claim; held = claim(sys.argv[1]); print('held', flush=True); "
        "sys.stdin.read()")
    command = [sys.executable, "-c", holder, str(tmp_path / "run")]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is at work in"):
        tcod.main(tcod.Args(resume=str(tmp_path / "run")))
    assert (tmp_path / "run" / "log.jsonl").read_text() == before
    other.kill()
    other.wait()
    tcod.main(tcod.Args(resume=str(tmp_path / "run")))


def test_torchruns_restart_goes_on(checkpoints, data, tmp_path, monkeypatch):
    """A second run in another folder, or a refusal to begin, though a checkpoint lies there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "r")
    args = dict(steps=3, eval_every=0, save_every=1)
    original = harness.run.append

    def crash(path, records):
        original(path, records)
        if records[0]["step"] == 2:
            raise RuntimeError("in the middle of a step")

    monkeypatch.setattr(harness.run, "append", crash)
    for out in ("", "mine"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
        with pytest.raises(RuntimeError, match="middle"):
            tcod.main(arguments(checkpoints, data, out, **args))
    monkeypatch.setattr(harness.run, "append", original)
    for out, run in (("", "runs/alfworld-f2b-1"), ("mine", "mine")):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        tcod.main(arguments(checkpoints, data, out, **args))
        assert [r["step"] for r in read_log(f"{run}/log.jsonl")] == [1, 2, 3]
        assert len(read_log(f"{run}/episodes.jsonl")) == 3 * 4  # the broken step's are made anew
    assert os.listdir("runs") == ["alfworld-f2b-1"]


def test_a_checkpoint_that_was_cut(checkpoints, data, tmp_path):
    """A traceback of torch's; a run that begins anew since nothing could be read."""
    begun(checkpoints, data, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    for size in (path.stat().st_size // 2, 1000, 0):
        os.truncate(path, size)
        with pytest.raises(UserError, match="checkpoint.pt is no whole checkpoint of this student"):
            tcod.main(tcod.Args(resume=str(tmp_path / "run")))
        assert path.stat().st_size == size
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 2


def test_a_checkpoint_without_room(tmp_path):
    """The checkpoint of before lost, or half a new one; a step that is kept though it was only half made."""
    student = make_model()
    optimizer = torch.optim.AdamW(student.parameters())
    checkpoint = Checkpoint(tmp_path, student, optimizer, first=True)
    with checkpoint.advancing(1):
        pass
    checkpoint.save()
    with checkpoint.advancing(2):
        pass
    with little_room(10_000), pytest.raises(UserError, match="checkpoint.pt cannot be written"):
        checkpoint.save()
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    assert Checkpoint(tmp_path, student, optimizer, first=True).step == 1
    with pytest.raises(RuntimeError), checkpoint.kept(lambda: None), checkpoint.advancing(3):
        raise RuntimeError("in the middle")
    assert Checkpoint(tmp_path, student, optimizer, first=True).step == 1
    with little_room(10_000), pytest.raises(UserError, match="student cannot be written"):
        load.save(student, make_tokenizer(), str(tmp_path / "student"))
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_resume_is_given_alone(tmp_path):
    """--resume with another flag that is silently dropped."""
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(UserError, match="alone"):
        tcod.main(tcod.Args(resume=str(tmp_path), lr=9.0))


def test_a_run_is_made_longer(checkpoints, data, tmp_path):
    """A curve that is not flat yet is followed on: the same steps as in a run that was begun for them all.
    Fewer steps would be another run."""
    for name, steps in (("short", 2), ("long", 4)):
        tcod.main(arguments(checkpoints, data, tmp_path / name, steps=steps, eval_every=2))
    tcod.main(tcod.Args(resume=str(tmp_path / "short"), steps=4))
    same_logs(tmp_path / "short", tmp_path / "long")
    same_students(tmp_path / "short", tmp_path / "long")
    assert read_args(str(tmp_path / "short"))["steps"] == 4
    with pytest.raises(UserError, match="less than the 4"):
        tcod.main(tcod.Args(resume=str(tmp_path / "short"), steps=3))


def test_what_depends_on_the_number_of_steps_is_not_made_longer(checkpoints, data, tmp_path, monkeypatch):
    """The teacher's share over other steps than the run was begun for: another run, under the same name; a
    method of one's own that says so, and is not asked."""
    monkeypatch.setitem(methods.METHODS, "opd", curriculum.Guided)
    for method in ("guided", "opd"):
        args = arguments(checkpoints, data, tmp_path / method, method=method, steps=1, eval_every=0)
        tcod.main(dataclasses.replace(args))
        for longer in (dataclasses.replace(args, steps=2), tcod.Args(resume=args.out, steps=2)):
            with pytest.raises(UserError, match=f"a {method} run cannot be made longer"):
                tcod.main(longer)
        assert read_args(args.out)["steps"] == 1
        tcod.main(tcod.Args(resume=args.out, steps=1))
