"""The training loop: gradients over ranks, kill and resume, the log, and what a user may get wrong."""

import os
import random
import shutil
import signal
import time
from math import cos, inf, nan, pi
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing
from conftest import arguments, free_port, launch, make_model
from safetensors.torch import load_file

import curriculum
import envs
import eval as evaluation
import load
import loss as losses
import methods
import model as lm
import rollout
import tcod
from harness.cli import UserError
from harness.folder import append, read_args, read_log
from harness.ranks import Ranks
from harness.report import NO_ROOM
from harness.run import Checkpoint
from harness.stops import Stopped
from training import Student, adamw


def made_up_episode(seed, rows=1):
    """An episode of random tokens with a few trained responses, as `rollout.play` would return it."""
    draw = random.Random(seed)
    turns = [SimpleNamespace(weight=1.0, loss="", taught=None) for _ in range(4)]
    episode = SimpleNamespace(rows=[], turns=turns)
    for _ in range(rows):
        row = rollout.Row()
        for t in range(draw.randint(1, 4)):
            row.say([draw.randint(3, 99) for _ in range(draw.randint(2, 12))])
            said = [draw.randint(3, 99) for _ in range(draw.randint(1, 5))]
            row.respond(said, t, [-draw.random() - 1 for _ in said])
        episode.rows.append(row)
    return episode


def make_student(ranks, recompute=False, **knobs):
    """(a Student of random weights that is about to learn, its arguments)."""
    args = tcod.Args(**{**dict(loss="reverse", batch_tokens=64, beta=0.3, lr=1e-2), **knobs})
    with patch.object(load, "SMALL", 0 if recompute else load.SMALL):
        student = Student(make_model(seed=1), lm.Vocabulary(120, []), args, ranks)
    student.learns()
    return student, args


def step(episodes, chunk=8, **knobs):
    """The student's gradient after `tcod.backward` on this rank's episodes, as one vector; the loss; what is
    said of each token."""
    student, args = make_student(RANKS, **knobs)
    with patch.object(losses, "CHUNK", chunk):
        value, tokens = tcod.backward(student, TEACHER, episodes, args, RANKS)
    return torch.cat([p.grad.flatten() for p in student.model.parameters()]), value, tokens


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


TEACHER = make_model(seed=2, vocabulary=144)
RANKS = Ranks()
CASES = [  # each rank's episodes (seed, rows), loss, aggregate
    ([[(1,), (2, 3), (3,), (4,), (5,)], [(6,)]], "reverse", "episode"),
    ([[(1,), (2,)], []], "k1", "token"),
    ([[], [(7, 2), (8,)]], "jsd", "turn")]


def ranked(rank, folder, port):
    """One of two gloo processes with its own share of the episodes."""
    global RANKS
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    RANKS = Ranks()
    with RANKS.in_turn(True):
        append(f"{folder}/turns", [dict(comes=rank)])
        time.sleep(0.2)
        append(f"{folder}/turns", [dict(goes=rank)])
    for i, (shares, loss, aggregate) in enumerate(CASES):
        episodes = [made_up_episode(*seed) for seed in shares[rank]]
        grad, value, _ = step(episodes, loss=loss, aggregate=aggregate)
        torch.save(dict(grad=grad, value=value), f"{folder}/{i}-{rank}.pt")
    three_steps([made_up_episode(rank), made_up_episode(2 + rank)], f"{folder}/shared")
    RANKS.leave()


def gradient_memory(student):
    """{what stands for a piece of memory: its bytes} of a student's gradients; empty where there are none."""
    pieces = [p.grad.untyped_storage() for p in student.parameters() if p.grad is not None]
    return {piece._cdata: piece.nbytes() for piece in pieces}


def three_steps(episodes, folder, **knobs):
    """Train on them three times and write the checkpoint of a run folder; several ranks share the moments, as
    they do on GPUs. Returns the student's model."""
    os.makedirs(folder, exist_ok=True)
    student, args = make_student(RANKS, **knobs)
    if RANKS.world > 1:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # takes two seconds

        student.optimizer = ZeroRedundancyOptimizer(
            student.learned.parameters(), torch.optim.AdamW, lr=args.lr, weight_decay=0.0)
    checkpoint = Checkpoint(folder, student.learned, student.optimizer, RANKS.first)
    buckets = gradient_memory(student.model)
    for _ in range(3):
        student.plays()
        assert sum(gradient_memory(student.model).values()) == 0
        student.learns()
        tcod.backward(student, TEACHER, episodes, args, RANKS)
        student.optimizer.step()
        # Gradients are views of DDP's buckets from the first step on: no second copy of them.
        assert RANKS.world == 1 or gradient_memory(student.model) == buckets
    checkpoint.step = 3
    checkpoint.save()
    return student.model


def test_two_ranks_with_uneven_work_equal_one(tmp_path):
    """DistributedDataParallel averages: means of ranks' means, a hang where micro-batches differ, a rank
    without any episode."""
    torch.multiprocessing.start_processes(
        ranked, (str(tmp_path), free_port()), nprocs=2, start_method="forkserver")
    turns = [dict(comes=0), dict(goes=0), dict(comes=1), dict(goes=1)]
    assert read_log(f"{tmp_path}/turns") == turns  # models are loaded one after another
    for i, (shares, loss, aggregate) in enumerate(CASES):
        parts = [torch.load(tmp_path / f"{i}-{rank}.pt", weights_only=True) for rank in range(2)]
        episodes = [made_up_episode(*seed) for share in shares for seed in share]
        alone, value, _ = step(episodes, loss=loss, aggregate=aggregate, batch_tokens=10**6)
        for part in parts:
            difference = relative(part["grad"], alone)
            print(f"{loss}, {aggregate}: relative difference of the gradient {difference:.1e}")
            assert difference <= 1e-5 and abs(part["value"] - value) <= 1e-5 * abs(value)

    # Moments that each rank holds a part of: the same weights, and one process goes on from their checkpoint.
    alone = three_steps([made_up_episode(seed) for seed in range(4)], f"{tmp_path}/whole")
    resumed = make_model(seed=5)
    optimizer = adamw(resumed, 1e-2, world=1)
    assert Checkpoint(f"{tmp_path}/shared", resumed, optimizer, first=True).step == 3
    apart = max((a - b).abs().max().item() for a, b in zip(alone.parameters(), resumed.parameters()))
    print(f"largest difference of a weight after three steps with shared moments: {apart:.1e}")
    assert apart <= 1e-6
    moments = torch.load(f"{tmp_path}/whole/checkpoint.pt", weights_only=True)["optimizer"]["state"]
    for i, state in optimizer.state_dict()["state"].items():
        assert state["step"] == 3 and torch.allclose(state["exp_avg"], moments[i]["exp_avg"], atol=1e-6)
    assert len(optimizer.state_dict()["state"]) == len(moments)


def by_turn(tokens):
    """{(episode, turn, figure): its sum over the turn's tokens}, and how many these are."""
    sums = {}
    for e, t, *figures in zip(tokens["episode"], tokens["turn"], *(tokens[name] for name in losses.LOGGED)):
        for name, figure in (("tokens", 1), *zip(losses.LOGGED, figures)):
            sums[int(e), int(t), name] = sums.get((int(e), int(t), name), 0) + figure
    return sums


@pytest.mark.parametrize("knobs", [dict(batch_tokens=1), dict(chunk=1), dict(recompute=True)])
def test_micro_batches_chunks_and_recomputation_change_nothing(knobs):
    """A normaliser per micro-batch instead of one for the step; dropout or a cache that recomputation brings
    with it."""
    episodes = [made_up_episode(seed, rows=1 + seed % 2) for seed in range(6)]
    expected, value, tokens = step(episodes, batch_tokens=10**6)
    got, again, same = step(episodes, **knobs)
    assert relative(got, expected) <= 1e-5 and abs(again - value) <= 1e-5 * abs(value)
    assert by_turn(tokens) == pytest.approx(by_turn(same), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_bf16_is_asked_of_both_models(recompute):
    """--precision that is read and does nothing; bf16 that reaches the weights, the gradient's sum or the
    logits; recomputation outside of autocast."""
    episodes = [made_up_episode(seed) for seed in range(4)]
    exact, value, _ = step(episodes)
    got, rounded, _ = step(episodes, precision="bf16", recompute=recompute)
    again, same, _ = step(episodes, precision="bf16", chunk=3)
    assert got.dtype == torch.float32 and 1e-3 < relative(got, exact) < 0.05
    assert 0 < abs(rounded - value) < 1e-2 * value
    assert relative(got, again) < 1e-2 and abs(rounded - same) < 1e-5 * value  # losses are summed in fp32
    assert torch.equal(step(episodes, precision="fp32")[0], exact)
    assert torch.equal(step(episodes, precision="auto")[0], exact)  # as this test's machine has no GPU


def test_a_run_in_bf16_goes_on_in_bf16(checkpoints, data, tmp_path, capsys):
    """A precision that another machine would choose otherwise when a run goes on; a playing copy in fp32."""
    run, little = tmp_path / "run", dict(steps=1, episodes=2, max_turns=2, max_response=2, eval_every=0)
    tcod.main(arguments(checkpoints, data, run, precision="bf16", **little))
    tcod.main(tcod.Args(resume=str(run), steps=2))
    assert read_args(run)["precision"] == "bf16"
    assert all(1e-4 < r["mismatch"] < 0.1 for r in read_log(run / "log.jsonl"))  # two models play and learn
    assert weights_of(run, "student")["model.norm.weight"].dtype == torch.float32
    slow = "--precision bf16 on a device that has no instructions" in capsys.readouterr().out
    assert slow != load.has_bf16()


@pytest.mark.parametrize("recompute, forwards", [(True, 2), (False, 1)])
def test_large_models_recompute(recompute, forwards):
    """A large model whose activations do not fit; a tiny one that is slower by a third."""
    student, args = make_student(RANKS, recompute, batch_tokens=10**6)
    runs = []
    student.model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
    tcod.backward(student, TEACHER, [made_up_episode(0)], args, RANKS)
    assert len(runs) == forwards and not student.model.training


def test_figures_of_a_turn_are_its_own():
    """A token's KL added to its neighbour's turn, or to another episode's, when rows are sorted into
    micro-batches."""
    episodes = [made_up_episode(seed) for seed in range(5)]
    _, value, tokens = step(episodes, batch_tokens=40)
    found = by_turn(tokens)
    for i, episode in enumerate(episodes):
        _, alone, single = step([episode], batch_tokens=40)
        own = {(0, t, name): figure for (e, t, name), figure in found.items() if e == i}
        assert own == pytest.approx(by_turn(single), rel=1e-4, abs=1e-5)
        assert abs(sum(own.get((0, t, "loss"), 0) for t in range(4)) - alone) < 1e-4 * alone
        for t in range(4):
            assert own.get((0, t, "tokens"), 0) == episode.rows[0].turn.count(t)
    assert abs(tokens["kl"].sum() / 5 - value) < 1e-4 * value  # reverse KL by Eq. 2 is the mean of the sums


def test_gradient_of_equation_2_against_the_obvious_way():
    """One row at a time through the whole model, softmax over the vocabulary, autograd in float64: the sum
    over an episode's tokens, the mean over episodes."""
    episodes = [made_up_episode(seed, rows=1 + seed % 2) for seed in range(4)]
    got, value, _ = step(episodes, loss="forward")
    student, teacher = make_model(seed=1).double(), make_model(seed=2, vocabulary=144).double()
    exact = 0.0
    for row in (row for episode in episodes for row in episode.rows):
        ids = torch.tensor([row.ids])
        q = student(input_ids=ids).logits[0, :-1, :120].softmax(-1)
        p = teacher(input_ids=ids).logits[0, :-1, :120].softmax(-1)
        kl = (p * (p / q).log()).sum(-1)
        exact = exact + kl[torch.tensor(row.turn[1:]) >= 0].sum() / len(episodes)
    exact.backward()
    reference = torch.cat([p.grad.flatten() for p in student.parameters()])
    assert abs(value - exact.item()) <= 1e-5 * exact.item()
    assert relative(got, reference) <= 1e-4


def strip(record):
    """A record without its timings."""
    return {key: value for key, value in record.items() if key != "seconds"}


def weights_of(run, name):
    """The weights of a checkpoint in a run folder."""
    return load_file(run / name / "model.safetensors")


def same(a, b):
    """Whether two tables of weights are the same, bit for bit."""
    return all(torch.equal(a[name], b[name]) for name in {*a, *b})


def same_runs(one, other):
    """Two finished runs left the same weights, bit for bit, and the same log."""
    assert same(weights_of(one, "student"), weights_of(other, "student"))
    records = [[strip(r) for r in read_log(folder / "log.jsonl")] for folder in (one, other)]
    assert records[0] == records[1]


def stop(args, number, step):
    """Start a run and send it this signal once its log has come to a step; its words and status are those of
    a stop."""
    folder = Path(args.resume or args.out)
    process = launch(args, folder.with_suffix(".said"))
    deadline, log = time.time() + 120, folder / "log.jsonl"
    while time.time() < deadline and process.is_alive():
        if any(r["step"] >= step for r in read_log(log)):
            break
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(60)
    said = folder.with_suffix(".said").read_text()
    if number == signal.SIGKILL:
        return
    assert process.exitcode == 128 + number, said
    assert "Traceback" not in said
    assert f"is kept, go on with --resume {folder}" in said.splitlines()[-1]


def test_a_killed_run_goes_on_exactly(checkpoints, damaged, tmp_path):
    """State that is not in the checkpoint (a generator, the optimizer's moments, the order of the tasks), or
    steps logged twice; a game that cannot be played, which ended a run, and its --resume at the same step."""
    shared = dict(steps=9, eval_every=4, keep=3, save_every=3)
    tcod.main(arguments(checkpoints, damaged, tmp_path / "whole", **shared))
    log = tmp_path / "killed" / "log.jsonl"
    args = arguments(checkpoints, damaged, tmp_path / "killed", **shared)
    for step, number in ((4, signal.SIGKILL), (7, signal.SIGTERM)):
        stop(args, number, step)
        assert not (tmp_path / "killed" / "student").exists(), "the run ended before it was killed"
        if number != signal.SIGKILL:
            kept = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"]
            assert kept == read_log(log)[-1]["step"] >= step
        with open(log, "a") as file:
            file.write('{"step": 99, "k"')  # a line cut short by the kill
        args = tcod.Args(resume=str(tmp_path / "killed"))
    tcod.main(tcod.Args(resume=str(tmp_path / "killed")))
    same_runs(tmp_path / "whole", tmp_path / "killed")
    kept = [weights_of(tmp_path / name, f"student-{n}") for n in (3, 6, 9) for name in ("whole", "killed")]
    assert same(*kept[:2]) and same(*kept[2:4]) and same(*kept[4:]) and not same(*kept[1:3])
    assert same(kept[5], weights_of(tmp_path / "killed", "student"))
    shutil.rmtree(tmp_path / "killed" / "student-9")  # as if killed behind the last checkpoint
    tcod.main(tcod.Args(resume=str(tmp_path / "killed")))
    assert same(kept[5], weights_of(tmp_path / "killed", "student-9"))
    before = load_file(checkpoints / "student" / "model.safetensors")
    after = load_file(tmp_path / "killed" / "student" / "model.safetensors")
    assert any(not torch.equal(after[name], before[name]) for name in after)
    records = read_log(log)
    assert [r["step"] for r in records] == list(range(10))
    left_out = [task for r in records[1:] for task in r["unplayable"]]
    assert 4 <= len(left_out) <= 5 and len(set(left_out)) == 1  # 36 draws of 8 tasks, one of which is bad
    episodes = [read_log(tmp_path / name / "episodes.jsonl") for name in ("whole", "killed")]
    assert len(episodes[0]) == 9 * 4 - len(left_out) and episodes[0] == episodes[1]


@pytest.mark.slow
def test_a_whole_run_of_two_ranks_against_one(checkpoints, damaged, tmp_path):
    """Ranks that play other episodes than one rank would, weigh them otherwise, or each write a log; a game
    that one of them cannot play, which another does not know of."""
    shared = dict(steps=3, eval_every=3, method="guided")
    tcod.main(arguments(checkpoints, damaged, tmp_path / "one", **shared))
    args = arguments(checkpoints, damaged, tmp_path / "two", **shared)
    place = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    processes = [launch(args, tmp_path / rank, RANK=rank, LOCAL_RANK=rank, **place) for rank in "01"]
    for process, rank in zip(processes, "01"):
        process.join(240)
        assert process.exitcode == 0, (tmp_path / rank).read_text()
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [r["step"] for r in two] == [0, 1, 2, 3]
    assert [r.get("eval") for r in one] == [r.get("eval") for r in two]
    for a, b in zip(one[1:], two[1:]):
        assert a["tokens"] == b["tokens"] and abs(a["loss"] - b["loss"]) <= 1e-4 * a["loss"]
    weights = [load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two")]
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 1e-3
    played = [{(e["step"], e["index"]): e["actions"] for e in read_log(tmp_path / name / "episodes.jsonl")}
              for name in ("one", "two")]
    assert [r["unplayable"] for r in one[1:]] == [r["unplayable"] for r in two[1:]]
    left_out = sum(len(r["unplayable"]) for r in one[1:])
    assert played[0] == played[1] and len(played[0]) == 12 - left_out and left_out in (1, 2)


@pytest.mark.parametrize("method", list(curriculum.METHODS))
def test_the_log_shows_who_acted(method, checkpoints, data, tmp_path):
    """A schedule that is read but does not reach the sampler; Eq. 4 with eta 1: k = 1 + n. A method that
    trains other turns."""
    tcod.main(arguments(checkpoints, data, tmp_path / "run", method=method, steps=2, eval_every=0))
    records = read_log(tmp_path / "run" / "log.jsonl")
    episodes = read_log(tmp_path / "run" / "episodes.jsonl")
    share = (1 + cos(pi / 1.6)) / 2  # the teacher's, in the first of two steps; its cosine ends after 0.8 N
    assert [r["k"] for r in records] == ([pytest.approx(share), 0] if method == "guided" else [2, 3])
    experts = {task.id: len(task.expert) for task in envs.make_tasks("alfworld", "train", data)}
    for e in episodes:
        k, length = e["step"] + 1, experts[e["task"]]
        start = max(0, length - k)
        who = {
            "opd": "s" * 4, "f2b": "s" * k, "sft": "e" * length,
            "b2f": "e" * start + "s" * min(4, max(length, 4) - start)}
        assert e["who"] == who.get(method, e["who"]) and e["rounds"] == len(e["who"])
        trained = [t for t, letter in enumerate(e["who"]) if letter != "e" or method == "sft"]
        assert e["trained"] == len(trained)
        for name in ("kl_turn", "logp_turn", "entropy_turn"):
            compared = [t for t, figure in enumerate(e[name]) if figure is not None]
            assert compared == ([] if method == "sft" else trained)
        again = [t for t in range(1, len(e["who"])) if e["actions"][t] == e["actions"][t - 1]]
        assert e["repeats"] == sum(e["who"][t] != "e" for t in again)
    if method == "guided":
        assert {letter for e in episodes for letter in e["who"]} == {"s", "t"}
    for r in records:
        own = [e for e in episodes if e["step"] == r["step"]]
        assert abs(r["loss"] - sum(e["loss"] for e in own) / 4) < 1e-4 * r["loss"]
        assert r["mismatch"] < 1e-4  # on the CPU learner and player are one model
        if method in ("opd", "f2b", "b2f"):
            assert abs(r["loss"] - r["kl"]) < 1e-4 * r["kl"]  # reverse KL by Eq. 2 is the logged KL itself


class Sceptic(curriculum.Method):
    """The teacher answers in the place of what it thinks less of than of most so far; what comes first counts
    for nothing."""

    def dial(self, n, args, log):
        said = [turn["logp"] for record in log for e in record["episodes"] for turn in e["judged"]]
        return median(said or [-6.0])

    def revise(self, turn, judgement):
        return curriculum.TEACHER if turn.t and judgement.logp < turn.k else None

    def weigh(self, episode, progress):
        return [0.0 if t == 0 else turn.weight for t, turn in enumerate(episode.turns)]


def test_a_method_of_ones_own(checkpoints, data, tmp_path, monkeypatch):
    """Evaluations that are judged; a log that does not say by which value an answer was dropped; a dial that
    does not see the log, or begins anew in a run that goes on; weights that are not asked for."""
    monkeypatch.setitem(methods.METHODS, "opd", Sceptic)
    heard, judge = [], rollout.judge
    monkeypatch.setattr(rollout, "judge", lambda *args: heard.append(1) or judge(*args))
    own = dict(method="opd", eval_every=2)
    tcod.main(arguments(checkpoints, data, tmp_path / "whole", steps=4, **own))
    assert len(heard) == 4 * 4  # once a turn of each step
    tcod.main(arguments(checkpoints, data, tmp_path / "run", steps=2, **own))
    tcod.main(tcod.Args(resume=str(tmp_path / "run"), steps=4))
    same_runs(tmp_path / "whole", tmp_path / "run")
    episodes = read_log(tmp_path / "run" / "episodes.jsonl")
    records = [r for r in read_log(tmp_path / "run" / "log.jsonl") if r["step"]]
    assert len({r["k"] for r in records}) > 2 and records[0]["k"] == -6.0
    for r in records:
        own = [e for e in episodes if e["step"] == r["step"]]
        for e in own:
            dropped = [judged["logp"] < r["k"] for judged in e["judged"]]
            assert e["who"] == "s" + "".join("st"[gone] for gone in dropped[1:]) and len(e["who"]) == 4
            assert None not in e["kl_turn"] and e["trained"] == 4
        counted = sum(e["loss"] - e["kl_turn"][0] for e in own) / 4  # of a student's turn the loss is its KL
        assert abs(r["loss"] - counted) < 1e-4 * counted
    assert 0 < sum(e["who"].count("t") for e in episodes) < 4 * 4 * 4


def test_bad_games_are_left_out_of_means(checkpoints, damaged, tmp_path, capsys):
    """Eq. 2's mean over episodes that were not played; a table that counts them as lost, or does not say that
    they are missing."""
    more = dict(steps=2, eval_every=2, eval_games=4, method="opd")
    tcod.main(arguments(checkpoints, damaged, tmp_path / "run", **more))
    start, *records = read_log(tmp_path / "run" / "log.jsonl")
    episodes = read_log(tmp_path / "run" / "episodes.jsonl")
    for r in records:  # the eight tasks are drawn in two steps
        own = [e for e in episodes if e["step"] == r["step"]]
        assert len(own) == r["games"] == 4 - len(r["unplayable"])
        assert abs(r["loss"] - sum(e["loss"] for e in own) / len(own)) < 1e-4 * r["loss"]
    task, = {task for r in records for task in r["unplayable"]}
    seen = start["eval"]["before"]["valid_seen"]
    assert seen["games"] == 3 and len(seen["unplayable"]) == 1
    said = capsys.readouterr().out
    assert f"of 8 tasks drawn, left out, since it cannot be played: 1 task, {task} (" in said
    assert f"left out, since it cannot be played: 1 task, {next(iter(seen['unplayable']))} (" in said


def test_a_run_of_bad_games_ends(checkpoints, data, tmp_path):
    """A data folder of which nothing can be played, and a run that learns nothing to its end."""
    args = arguments(checkpoints, data, tmp_path / "run", steps=9, eval_every=0, max_context=30)
    with pytest.raises(UserError, match="of the 8 tasks drawn .* 8 tasks, .* --max-context 30"):
        tcod.main(args)
    assert [len(r["unplayable"]) for r in read_log(tmp_path / "run" / "log.jsonl")] == [4, 4]


def test_a_replay_that_fills_the_context_is_left_out(checkpoints, data, tmp_path, capsys):
    """Episodes that train nothing and count in the mean."""
    limits = dict(max_context=445, k_start=1, eta=100.0)
    tcod.main(arguments(checkpoints, data, tmp_path / "run", method="b2f", steps=2, eval_every=0, **limits))
    records = read_log(tmp_path / "run" / "log.jsonl")
    filled = [task for r in records for task in r["filled"]]
    assert 1 <= len(filled) <= 7
    assert f"of 8 tasks drawn, {NO_ROOM}: {len(filled)} in some steps" in capsys.readouterr().out
    for r in records:
        own = [e for e in read_log(tmp_path / "run" / "episodes.jsonl") if e["step"] == r["step"]]
        assert len(own) == 4 - len(r["filled"]) and all(e["trained"] for e in own)
        assert abs(r["loss"] - sum(e["loss"] for e in own) / max(1, len(own))) < 1e-4 * max(1, r["loss"])


def test_sft_runs_no_teacher_forward_and_distils_when_asked(checkpoints, data, tmp_path, monkeypatch):
    """SFT that pays for a teacher; --loss forward that is ignored by it; a default loss that is not nll."""
    scored = []
    original = tcod.score
    monkeypatch.setattr(tcod, "score", lambda *args: scored.append(1) or original(*args))
    tcod.main(arguments(checkpoints, data, tmp_path / "nll", method="sft", steps=1, eval_every=0))
    assert not scored and read_log(tmp_path / "nll" / "log.jsonl")[0]["kl"] is None
    asked = dict(method="sft", loss="forward", steps=1, eval_every=0)
    tcod.main(arguments(checkpoints, data, tmp_path / "kl", **asked))
    assert scored and read_log(tmp_path / "kl" / "log.jsonl")[0]["kl"] > 0


WRONG = [
    (dict(env="chess"), "chess"), (dict(method="ppo"), "unknown --method"),
    (dict(loss="mse"), "unknown --loss"),
    (dict(schedule="cosine"), "--schedule is linear, constant, or stages .* not 'cosine'"),
    (dict(schedule="5@10,0@3"), "depth@step"), (dict(data="/nowhere"), "no ALFWorld games"),
    (dict(student="/nowhere"), "/nowhere"), (dict(teacher="/nowhere"), "/nowhere"),
    (dict(prompt="/nowhere"), "prompt '/nowhere' cannot be read"),
    (dict(max_context=30), "--max-context 30"), (dict(resume="/nowhere"), "holds no run"),
    (dict(history="all"), "--history"), (dict(method="b2f", experts="/nowhere"), "/nowhere"),
    (dict(eta=0.0), "--eta"), (dict(k_start=0), "--k-start"), (dict(temperature=0.0), "--temperature"),
    (dict(beta=1.0), "--beta"), (dict(seed=-1), "--seed"),
    (dict(train_split="dev"), "no split 'dev'"), (dict(eval_splits="valid_seen,dev"), "no split 'dev'"),
    (dict(without="/nowhere"), "not a file of task ids"),
    (dict(knobs="size=3"), "no knob 'size=3': it has none")]


@pytest.mark.parametrize("wrong, words", WRONG)
def test_a_users_mistake_is_one_sentence(wrong, words, checkpoints, data, tmp_path):
    """A traceback, or a run that quietly does something else."""
    args = arguments(checkpoints, data, tmp_path / "run", **wrong)
    with pytest.raises(UserError, match=words) as caught:
        tcod.main(tcod.Args(resume=args.resume) if args.resume else args)
    assert "\n" not in str(caught.value)


def test_a_batch_must_divide(checkpoints, data, tmp_path):
    """Ranks with different numbers of episodes."""
    args = arguments(checkpoints, data, tmp_path, episodes=5)
    tcod.resolve(args)
    with pytest.raises(UserError, match="shared equally"):
        tcod.check(args, world=2)


def test_an_evaluation_that_was_stopped(checkpoints, data, tmp_path, monkeypatch):
    """Hours of evaluation played again since the last of them was cut off; a step that is trained twice."""
    shared = dict(steps=2, eval_every=2)
    tcod.main(arguments(checkpoints, data, tmp_path / "whole", **shared))
    original, labels = evaluation.evaluate, []
    at = [4, 6]  # of 4 splits before the first step, and 2 at the end

    def evaluate(*args, label, **named):
        if at and len(labels) + 1 == at[0]:
            at.pop(0)
            raise Stopped(signal.SIGTERM)
        labels.append(label)
        return original(*args, label=label, **named)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    args = arguments(checkpoints, data, tmp_path / "run", **shared)
    for kept in (0, 2):
        with pytest.raises(Stopped, match=f"SIGTERM: step {kept} is kept, go on with --resume {args.out}"):
            tcod.main(args)
        args = tcod.Args(resume=str(tmp_path / "run"))
    tcod.main(args)
    same_runs(tmp_path / "whole", tmp_path / "run")
    assert len(labels) == len(set(labels)) == 6
    assert len(read_log(tmp_path / "run" / "episodes.jsonl")) == 2 * 4


def test_exit_status_of_a_mistake(tmp_path):
    """A script around the command cannot tell a mistake from a crash."""
    process = launch(tcod.Args(method="ppo"), tmp_path / "said")
    process.join(60)
    words = "error: unknown --method 'ppo': " + ", ".join(methods.METHODS)
    assert (process.exitcode, (tmp_path / "said").read_text().strip()) == (2, words)


def test_a_loss_that_is_not_finite_stops_the_run(checkpoints, data, tmp_path, monkeypatch):
    """Training on with broken weights, or keeping them; an episode that is not named."""
    losses_of, backward = [], tcod.backward

    def broken(*args):
        loss, tokens = backward(*args)
        losses_of.append(loss)
        if len(losses_of) == 2:
            tokens["loss"][tokens["episode"] == 1] = inf
            return nan, tokens
        return loss, tokens

    monkeypatch.setattr(tcod, "backward", broken)
    args = arguments(checkpoints, data, tmp_path / "run", eval_every=0, save_every=9)
    with pytest.raises(UserError, match=r"the loss is nan, .* came from [^,]* \(step 2, episode 1\)$"):
        tcod.main(args)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 1
    assert [r["step"] for r in read_log(tmp_path / "run" / "log.jsonl")] == [1]
