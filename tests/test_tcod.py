"""The training loop: gradients over ranks, kill and resume, the log, and what a user may get wrong."""

import os
import random
import signal
import socket
import time
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing
from conftest import arguments, launch, make_model
from safetensors.torch import load_file

import envs
import rollout
import tcod
from run import Ranks, append, read_log


def made_up_episode(seed, rows=1):
    """An episode of random tokens with a few trained responses, as `rollout.play` would return it."""
    draw = random.Random(seed)
    episode = SimpleNamespace(rows=[])
    for _ in range(rows):
        row = rollout.Row()
        for t in range(draw.randint(1, 4)):
            row.say([draw.randint(3, 99) for _ in range(draw.randint(2, 12))])
            said = [draw.randint(3, 99) for _ in range(draw.randint(1, 5))]
            row.respond(said, t, [-draw.random() - 1 for _ in said])
        episode.rows.append(row)
    return episode


def gradients(episodes, loss="reverse", aggregate="episode", batch_tokens=64, ddp=False):
    """The student's gradient after `tcod.backward` on this rank's episodes, as one vector; and the loss and KLs that it returned."""
    args = tcod.Args(loss=loss, aggregate=aggregate, batch_tokens=batch_tokens, chunk=8, ppo_clip=1e9)  # the made-up ratios are far from 1
    student, teacher = make_model(seed=1), make_model(seed=2, vocabulary=144)
    distiller = tcod.Distiller(student, args, 120)
    distiller = torch.nn.parallel.DistributedDataParallel(distiller) if ddp else distiller
    value, kls = tcod.backward(distiller, teacher, episodes, args, RANKS)
    return torch.cat([p.grad.flatten() for p in student.parameters()]), value, kls


RANKS = Ranks()
CASES = [([[(1,), (2, 3), (3,), (4,), (5,)], [(6,)]], "reverse", "episode"), ([[(1,), (2,)], []], "k1", "token"),
         ([[], [(7, 2), (8,)]], "jsd:0.3", "turn")]  # each rank's episodes (seed, rows), loss, aggregation


def ranked(rank, folder, port):
    """One of two gloo processes with its own share of the episodes."""
    global RANKS
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    RANKS = Ranks()
    for i, (shares, loss, aggregate) in enumerate(CASES):
        grad, value, _ = gradients([made_up_episode(*seed) for seed in shares[rank]], loss, aggregate, ddp=True)
        torch.save(dict(grad=grad, value=value), f"{folder}/{i}-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_with_uneven_work_equal_one(tmp_path):
    """DistributedDataParallel averages: means of ranks' means, a hang where micro-batches differ, or a rank without any episode."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(ranked, (str(tmp_path), port), nprocs=2)
    for i, (shares, loss, aggregate) in enumerate(CASES):
        parts = [torch.load(tmp_path / f"{i}-{rank}.pt", weights_only=True) for rank in range(2)]
        alone, value, _ = gradients([made_up_episode(*seed) for share in shares for seed in share], loss, aggregate, batch_tokens=10**6)
        for part in parts:
            difference = ((part["grad"] - alone).norm() / alone.norm()).item()
            print(f"{loss}, {aggregate}: relative difference of the gradient {difference:.1e}")
            assert difference <= 1e-5
        assert abs(sum(part["value"] for part in parts) - value) <= 1e-5 * abs(value)


def test_micro_batches_and_recomputation_change_nothing():
    """A normaliser per micro-batch instead of one for the step."""
    episodes = [made_up_episode(seed) for seed in range(6)]
    small, _, kls = gradients(episodes, batch_tokens=1)
    large, _, again = gradients(episodes, batch_tokens=10**6)
    assert ((small - large).norm() / large.norm()).item() <= 1e-5
    rows = [row for episode in episodes for row in episode.rows]
    for row, kl, other in zip(rows, kls, again, strict=True):  # in the rows' order, whatever the batching
        assert [k is not None for k in kl] == [t >= 0 for t in row.turn]
        assert all(abs(a - b) < 1e-4 for a, b in zip(kl, other) if a is not None)


def test_gradient_of_equation_2_against_the_obvious_way():
    """One row at a time through the whole model, softmax over the vocabulary, autograd in float64: the sum over an episode's
    tokens, the mean over episodes."""
    episodes = [made_up_episode(seed, rows=1 + seed % 2) for seed in range(4)]
    got, value, _ = gradients(episodes, "forward")
    student, teacher = make_model(seed=1).double(), make_model(seed=2, vocabulary=144).double()
    exact = 0.0
    for row in (row for episode in episodes for row in episode.rows):
        q, p = (model(input_ids=torch.tensor([row.ids])).logits[0, :-1, :120].softmax(-1) for model in (student, teacher))
        kl = (p * (p / q).log()).sum(-1)
        exact = exact + kl[torch.tensor(row.turn[1:]) >= 0].sum() / len(episodes)
    exact.backward()
    reference = torch.cat([p.grad.flatten() for p in student.parameters()])
    assert abs(value - exact.item()) <= 1e-5 * exact.item()
    assert ((got - reference).norm() / reference.norm()).item() <= 1e-4


def test_a_killed_run_goes_on_exactly(checkpoints, data, tmp_path):
    """State that is not in the checkpoint (a generator, the optimizer's moments, the order of the tasks), or steps logged twice."""
    tcod.main(arguments(checkpoints, data, tmp_path / "whole"))
    process = launch(arguments(checkpoints, data, tmp_path / "killed"))
    log = tmp_path / "killed" / "log.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None and not (log.exists() and any(r["step"] >= 3 for r in read_log(log))):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "student").exists(), "the run ended before it was killed"
    with open(log, "a") as file:
        file.write('{"step": 99, "k"')  # a line cut short by the kill
    tcod.main(tcod.Args(resume=str(tmp_path / "killed")))
    whole, killed = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "killed"))
    before = load_file(checkpoints / "student" / "model.safetensors")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert any(not torch.equal(whole[name], before[name]) for name in whole)
    records = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "killed")]
    strip = lambda r: {k: v for k, v in r.items() if k != "seconds"}
    assert [strip(r) for r in records[0]] == [strip(r) for r in records[1]]
    assert [r["step"] for r in records[0]] == list(range(7))
    assert len(read_log(tmp_path / "killed" / "episodes.jsonl")) == 6 * 4


@pytest.mark.parametrize("method", ["opd", "f2b", "b2f"])
def test_the_log_shows_k_and_the_windows(method, checkpoints, data, tmp_path):
    """A schedule that is read but does not reach the sampler; Eq. 4 with eta 1: k = 1 + n."""
    tcod.main(arguments(checkpoints, data, tmp_path / "run", method=method, steps=2, eval_every=0))
    records, episodes = read_log(tmp_path / "run" / "log.jsonl"), read_log(tmp_path / "run" / "episodes.jsonl")
    assert [r["k"] for r in records] == [2, 3]
    experts = {task.id: len(task.expert) for task in envs.make_tasks("alfworld", "train", data)}
    for e in episodes:
        k, length = e["step"] + 1, experts[e["task"]]
        assert (e["start"], e["stop"]) == {"opd": (0, 4), "f2b": (0, k), "b2f": (length - k, min(length - k + 4, max(length, 4)))}[method]
        assert len(e["kl_turn"]) == e["rounds"] - e["start"] and abs(sum(e["kl_turn"]) - e["kl"]) < 1e-6
    for r in records:
        own = [e for e in episodes if e["step"] == r["step"]]
        assert abs(r["kl"] - sum(e["kl"] for e in own) / 4) < 1e-6 * r["kl"]
        assert abs(r["loss"] - r["kl"]) < 1e-4 * r["kl"]  # reverse KL by Eq. 2 is the logged KL itself


@pytest.mark.parametrize("wrong, words", [
    (dict(env="chess"), "chess"), (dict(method="ppo"), "unknown --method"), (dict(loss="mse"), "unknown loss"),
    (dict(schedule="cosine"), "unknown --schedule"), (dict(schedule="step"), "--stages"), (dict(stages="5"), "depth@step"),
    (dict(data="/nowhere"), "no ALFWorld games"), (dict(student="/nowhere"), "/nowhere"), (dict(max_context=30), "--max-context 30"),
    (dict(resume="/nowhere"), "no run to resume"), (dict(history="all"), "--history"),
    (dict(method="b2f", experts="/nowhere"), "/nowhere"), (dict(eta=0.0), "--eta"), (dict(k_start=0), "--k-start"),
    (dict(temperature=0.0), "--temperature"), (dict(seed=-1), "--seed"), (dict(train_split="dev"), "no split 'dev'"),
    (dict(eval_splits="valid_seen,dev"), "no split 'dev'"), (dict(knobs="size=3"), "no knob 'size=3'; it has level"), (dict(knobs="level=huge", data="generated"), "no level")])
def test_a_users_mistake_is_one_sentence(wrong, words, checkpoints, data, tmp_path):
    """A traceback, or a run that quietly does something else."""
    with pytest.raises(envs.UserError, match=words) as caught:
        tcod.main(arguments(checkpoints, data, tmp_path / "run", **wrong))
    assert "\n" not in str(caught.value)


def test_splits_are_those_asked_for(checkpoints, data, tmp_path):
    """Training on the games of the evaluation, or the other way round."""
    tcod.main(arguments(checkpoints, data, tmp_path / "run", steps=1, train_split="valid_seen", eval_splits="valid_unseen,train"))
    assert all(e["task"].startswith("valid_seen") for e in read_log(tmp_path / "run" / "episodes.jsonl"))
    evaluated = [set(r["eval"]) for r in read_log(tmp_path / "run" / "log.jsonl")]
    assert evaluated[1] == {"student after · valid_unseen", "student after · train"} and len(evaluated[0]) == 4


def test_b2f_needs_experts_and_a_batch_must_divide(checkpoints, data, tmp_path):
    """B2F that falls back to OPD; ranks with different numbers of episodes."""
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(envs.UserError, match="no training task has one"):
        tcod.main(arguments(checkpoints, data, tmp_path / "run", method="b2f", experts=str(tmp_path / "none.jsonl")))
    with pytest.raises(envs.UserError, match="shared equally"):
        tcod.check(tcod.Args(episodes=5), SimpleNamespace(world=2))


def test_an_existing_run_is_not_overwritten(checkpoints, data, tmp_path):
    """The same command twice would mix two runs in one log."""
    append(tmp_path / "args.json", [{}])
    with pytest.raises(envs.UserError, match="--resume"):
        tcod.main(arguments(checkpoints, data, tmp_path))


def test_resume_is_given_alone(tmp_path):
    """--resume with another flag that is silently dropped."""
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(envs.UserError, match="alone"):
        tcod.main(tcod.Args(resume=str(tmp_path), steps=9))


def test_exit_status_of_a_mistake():
    """A script around the command cannot tell a mistake from a crash."""
    process = launch(tcod.Args(method="ppo"))
    assert process.communicate()[0].strip().splitlines() == ["error: unknown --method 'ppo': opd, f2b, b2f"]
    assert process.returncode == 2


def test_a_loss_that_is_not_finite_stops_the_run():
    """Training on with broken weights."""
    with pytest.raises(envs.UserError, match=r"mug \(step 3, episode 1\)"):
        tcod.stop_unless_finite(float("nan"), 1.0, [dict(task="egg", step=3, index=0, kl=1.0), dict(task="mug", step=3, index=1, kl=float("inf"))])
