"""The methods of the field: what each decides, by hand on small pasts and logs; and three steps of each."""

import ast
import inspect
import json
import math
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, chosen_data, free_port, launch

import curriculum
import envs
import loss as losses
import methods
import tcod
from batch import count
from curriculum import STUDENT, Judgement, NextTurn, Rules
from harness.cli import UserError
from harness.folder import read_log
from methods import ANSWERS, METHODS, quantile
from rollout import Row

ARGS = SimpleNamespace(schedule="linear", k_start=1, eta=2.0, steps=250, at=None)
NEW = [name for name in METHODS if name not in curriculum.METHODS]


def judged(*logps, entropy=0.0):
    """What the log has of judged turns; None: the teacher was not asked."""
    return [None if logp is None else dict(logp=logp, entropy=entropy, kl=-logp, gap=-logp) for logp in logps]


def record(step, *episodes):
    """A step's record; episodes: dicts, numbered in their order."""
    return dict(step=step, episodes=[dict(index=i, step=step, **e) for i, e in enumerate(episodes)])


def uncertain(*entropies):
    """An episode of the log with the teacher's entropy in each turn."""
    return dict(judged=[dict(logp=-1.0, entropy=H, kl=1.0, gap=1.0) for H in entropies])


def turns(*judgements, weight=1.0, **more):
    """Turns of the student's; judgements: (logp, entropy, gap), or None: a turn that was replayed."""
    return [
        SimpleNamespace(weight=weight, judgement=j and Judgement(j[0], j[1], 1.0, j[2]), **more)
        for j in judgements]


def over(turns, k=None, coin=None):
    """An episode that is over."""
    return SimpleNamespace(turns=turns, ahead=NextTurn(len(turns), k, 30, draw=lambda stream: coin))


# ---- what a dial reads in the log

def test_the_order_of_judgements_is_that_of_play():
    """Episode by episode instead of turn by turn; the order in which ranks hand them in; a last thousand
    that is cut at its end; turns that nobody judged counted."""
    log = [dict(step=0, episodes=[]),
           record(1, dict(judged=judged(-1, -2, -3)), dict(judged=judged(-4, None, -6)), dict()),
           record(2, dict(judged=judged(-7)), dict(judged=judged(-8)))]
    said = [turn["logp"] for turn in methods.judgements(log, 99)]
    assert said == [-1, -4, -2, -3, -6, -7, -8]
    assert [turn["logp"] for turn in methods.judgements(log, 4)] == [-3, -6, -7, -8]
    for each in log:
        each["episodes"].reverse()  # as of two ranks
    assert [turn["logp"] for turn in methods.judgements(log, 99)] == said


# ---- UOPD

def test_uopds_bound_is_a_quantile_of_the_last_thousand():
    """The other end of the quantile, or that of ℓ instead of −ℓ; a bound by fewer than 300; all turns of the
    log instead of the last; a share over all steps."""
    def log(*numbers):
        return [record(1, *(dict(judged=judged(-float(n))) for n in numbers))]

    uopd = METHODS["uopd"]()
    shares = [uopd.share(n, ARGS) for n in (12, 60, 120, 121, 250)]
    assert shares == pytest.approx([0.275, 0.175, 0.05, 0.05, 0.05])
    assert uopd.dial(60, ARGS, log(*range(299))) == math.inf
    assert uopd.dial(200, ARGS, log(*range(1, 301))) == 285  # 15 of 300 are above
    long = log(*[9999] * 500, *range(1, 1001))
    for n, bound in ((60, 825), (200, 950)):
        assert uopd.dial(n, ARGS, long) == bound == round(1000 * (1 - uopd.share(n, ARGS)))
    turn = NextTurn(3, 2.0, 30)
    said = [uopd.revise(turn, Judgement(logp, 0, 0, 0)) for logp in (-1.0, -2.0, -2.1)]
    assert said == [None, None, ANSWERS] and ANSWERS.loss == "nll"


def test_uopds_control_is_as_many_turns_by_a_coin():
    """A control with another share or another loss; one that the teacher reads."""
    control = METHODS["uopd-random"]()
    assert not Rules(control, 0.3, 30).judged and Rules(METHODS["uopd"](), 0.3, 30).judged
    assert [control.dial(n, ARGS, []) for n in (60, 200)] == pytest.approx([0.175, 0.05])
    coins = [NextTurn(0, 0.3, 30, draw=lambda stream, u=u: u) for u in (0.29, 0.31)]
    assert [control.act(turn) for turn in coins] == [ANSWERS, STUDENT]


# ---- TurnOPD

def probe(step, kls, tokens, won=0, rounds=0):
    """A step of the log: the KL of each turn of each episode (None: not trained), its tokens, and so many
    won episodes of so many rounds besides."""
    played = [dict(kl_turn=k, tokens_turn=n, won=False, rounds=len(k)) for k, n in zip(kls, tokens)]
    more = [dict(kl_turn=[None], tokens_turn=[0], won=True, rounds=r) for r in ([rounds] * won)]
    return record(step, *played, *more)


def test_turnopds_depth_is_the_centre_of_its_probes():
    """A sum over a turn's tokens for their mean; the mean over those that are alive, without how many they
    are; steps that are no probes; an average that begins at 0; a depth below 2."""
    depth = METHODS["turnopd-depth"]().dial
    first = probe(1, [[4.0, 2.0, 6.0, None], [1.0]], [[2, 2, 1, 0], [1]])
    # means 2, 1, 6 and 1: (0·2 + 1·1 + 2·6 + 0·1) / 10 = 1.3
    assert [depth(n, ARGS, []) for n in (1, 4)] == [math.inf] * 2
    assert [depth(n, ARGS, [first]) for n in (3, 4, 8, 9)] == [math.inf, 2, math.inf, 2]
    deep = probe(8, [[0.0] * 11 + [5.0]], [[1] * 12])  # all at turn 11
    assert depth(9, ARGS, [first, probe(5, [[0, 9.0]], [[1, 1]]), deep]) == 5  # 0.7 · 1 + 0.3 · 11 = 4


def test_turnopds_wins_are_eight_or_those_of_before():
    """Seven wins that set the depth; the eight of an earlier probe forgotten; the rounds of all won episodes
    instead of 80 % of them; the larger of both confused with the smaller."""
    depth = METHODS["turnopd-depth"]().dial
    flat = [[[1.0] * 5], [[1] * 5]]  # its centre is turn 2
    assert depth(4, ARGS, [probe(1, *flat, won=7, rounds=9)]) == 3
    assert depth(4, ARGS, [probe(1, *flat, won=8, rounds=9)]) == 10
    assert depth(4, ARGS, [probe(1, *flat, won=8, rounds=1)]) == 3
    kept = [probe(1, *flat, won=8, rounds=9), probe(2, *flat, won=7, rounds=2)]
    assert depth(4, ARGS, kept) == 10
    mixed = probe(1, *flat, won=8, rounds=4)
    mixed["episodes"] += probe(1, [], [], won=2, rounds=20)["episodes"]
    assert depth(4, ARGS, [mixed]) == 5


def test_turnopds_blend_is_a_mean_over_the_episode():
    """Eq. 2's sum over tokens, in which an episode weighs by its length; the end token that a cut response is
    given counted; turns that are not trained among the R."""
    row = Row()
    for t, number in ((0, 1), (-1, 7), (2, 3)):
        row.respond([5] * number, t, [0.0] * number)
    played = turns(None, None, None)
    played[1].weight = 0.0
    played[2].ids = [5, 5, 5, 2]  # it was cut
    episode = SimpleNamespace(rows=[row], turns=played)
    weigh = METHODS["turnopd-blend"]().weigh
    assert weigh(episode, 0.0) == [1 / 4, 0.0, 1 / 4] and weigh(episode, 1.0) == [1 / 2, 0.0, 1 / 6]
    for progress in (0.0, 0.3, 1.0):
        one, _, other = weigh(episode, progress)
        assert one + 3 * other == pytest.approx(1)
    both = METHODS["turnopd"]()
    assert both.act(NextTurn(2, 2, 30)) is None and both.weigh(episode, 1.0)[0] == 1 / 2
    assert both.dial(4, ARGS, [probe(1, [[1.0] * 5], [[1] * 5])]) == 3
    assert [name for name, method in METHODS.items() if method.paced] == [
        "guided", "uopd", "uopd-random", "turnopd", "turnopd-blend"]


# ---- STRIDE

def test_the_turn_that_crosses_is_trained():
    """An episode that ends before the turn whose ℓ crosses λ, so that it is never learned from; the mean in
    place of the sum; turns of the expert's counted."""
    act = METHODS["stride"]().act

    def acts(*logps, k=-3.0):
        past = turns(*(logp and (logp, 0, 0) for logp in logps))
        return act(NextTurn(len(past), k, 30, past=past)) == STUDENT

    assert acts() and acts(-1.0, -1.0) and acts(-1.0, -2.0) and acts(None, None, -2.9)
    assert not acts(-1.0, -2.1) and not acts(-1.0, -1.0, -1.1)
    assert acts(*[-9.0] * 29, k=-math.inf)  # on-policy distillation


def test_strides_bound_plays_a_share_of_the_first_step():
    """A quantile of the sums behind a turn: the first turn counted as one that can be missing; the other end
    of the quantile; the last step's episodes instead of the first's."""
    def kept(episodes, bound):
        """How many turns would have been played, by `act` itself."""
        stride, number = METHODS["stride"](), 0
        for logps in episodes:
            past = turns(*((logp, 0, 0) for logp in logps))
            ahead = [NextTurn(t, bound, 30, past=past[:t]) for t in range(len(past))]
            number += next((t for t, turn in enumerate(ahead) if stride.act(turn) is None), len(past))
        return number

    draw = np.random.default_rng(0)
    episodes = [(-5 * draw.random(size)).tolist() for size in (30, 30, 11, 25, 4)]
    log = [dict(step=0, episodes=[]), record(1, *(dict(judged=judged(*logps)) for logps in episodes))]
    dial = METHODS["stride"]().dial
    assert dial(1, ARGS, log[:1]) == -math.inf
    assert kept(episodes, dial(2, ARGS, log)) == 23  # of 100
    assert dial(9, ARGS, [*log, record(2, dict(judged=judged(-99.0, -99.0)))]) == dial(2, ARGS, log)
    asked = Rules.at(2, METHODS["stride"](), SimpleNamespace(**{**vars(ARGS), "at": -2.0}), log, 30)
    assert asked.k == -2.0


@pytest.mark.parametrize("logps, kept", [
    ((-0.1, -0.5, -0.2, -0.9, -0.1), 1),    # the longest prefix ends before −0.9; its weakest turn is 1
    ((-0.9, -0.1), 0), ((-0.5, -0.4), 0), ((-0.1, -0.2), 1), ((-0.8, -0.1), 0),
    ((None, None, -0.1, -0.3, -2.0), 3),    # two were replayed before
    ((None, None, -2.0, -0.1), 2)])
def test_what_a_restart_keeps(logps, kept):
    """The weakest turn of the whole episode instead of its prefix; the weakest turn itself; a prefix that
    was replayed lost, or taken for a turn of ℓ 0."""
    log = [record(1, dict(task="b", judged=judged(-0.1, -0.2), actions=["x"] * 2, responses=["y"] * 2)),
           record(2, dict(task="a", judged=judged(*logps), actions=list("vwxyz"), responses=list("VWXYZ")))]
    task = envs.Task("a", "take", expert=("of", "another"), responses=("", ""))
    start = METHODS["stride-restart"]().start
    begun = start(task, -2.0, log)  # its bar is the paper's, −0.8
    assert "".join(begun.expert) == "vwxyz"[:kept] and "".join(begun.responses) == "VWXYZ"[:kept]
    assert start(envs.Task("c", "take", expert=("of",)), -2.0, log).expert == ()
    act = METHODS["stride-restart"]().act
    assert act(NextTurn(1, -2.0, 30, L=2)).who == "expert" and not act(NextTurn(1, -2.0, 30, L=2)).weight
    assert act(NextTurn(2, -2.0, 30, L=2, past=turns(None, None))) == STUDENT


def test_a_restart_takes_the_last_episode_of_its_task():
    """The first of several in one step, or the one that another rank hands in last."""
    def kept(step, *named):
        return record(step, *(dict(task="a", judged=judged(-0.1, -0.2), actions=[n, "x"], responses=["", ""])
                              for n in named))

    log = [kept(1, "p"), kept(2, "q", "r")]
    log[1]["episodes"].reverse()
    assert METHODS["stride-restart"]().start(envs.Task("a", "take"), -2.0, log).expert == ("r",)


# ---- ReOPD

def test_reopds_cut_is_geometric():
    """p(t*) ∝ κ^t* that loses its last turn or has one behind it; a cut that is drawn anew each turn; a lost
    game where nobody could win."""
    reopd, L = METHODS["reopd"](), 6
    places = []
    for i in range(2000):
        seen = [NextTurn(t, 0.6, 30, L, draw={"episode": (i + 0.5) / 2000}.get) for t in range(L + 1)]
        who = [role and (role.who[0], role.weight) for role in map(reopd.act, seen)]
        cut = who.index(("s", 1.0))
        assert who[:cut] == [("e", 0.0)] * cut and set(who[cut + 1:]) <= {None}
        places.append(cut)
    exact = [0.6**t / sum(0.6**j for j in range(L)) for t in range(L)]
    assert [places.count(t) / 2000 for t in range(L)] == pytest.approx(exact, abs=1e-3)
    assert reopd.dial(7, ARGS, []) == 0.6 and reopd.expert and not reopd.scored
    assert 0.85 < sum(0.6**t for t in range(4)) * 0.4 < 0.9  # of a long expert: most turns are the first four


# ---- the frontier

def test_the_frontier_ends_what_is_trained():
    """A level in place of a rise; a window that reaches before its turn, or one turn; turns that count again
    once the entropy falls; the turn that crosses trained; weight for what the roles left out."""
    weigh = METHODS["frontier"]().weigh
    H = [0.3, 0.0, 0.3, 0.6, 0.6, 0.9, 0.0, 0.0]  # means of three: 0.2, -, -, 0.3, 0.5, 0.7, 0.5, 0.3
    played = turns(*((-1.0, h, 0) for h in H))
    assert weigh(over(played, k=0.4), 0.5) == [1] * 5 + [0] * 3
    assert weigh(over(played, k=0.05), 0.5) == [1] * 3 + [0] * 5
    assert weigh(over(played, k=math.inf), 0.5) == [1] * 8  # on-policy distillation
    played[0].weight = 0.0
    assert weigh(over(played, k=0.4), 0.5)[:2] == [0, 1]
    assert weigh(over(played[:2], k=-math.inf), 0.5) == [0, 1]  # the first three are always there


def test_the_frontiers_bound_keeps_a_share_of_the_first_step():
    """A quantile of the rises of turns in place of the largest so far: turns behind a frontier counted as
    kept."""
    draw = np.random.default_rng(1)
    first = [uncertain(*draw.random(size)) for size in (30, 30, 20, 20)]
    dial, log = METHODS["frontier"]().dial, [record(1, *first)]
    bound = dial(2, ARGS, log)
    assert dial(1, ARGS, []) == math.inf and 0 < bound < 1
    kept = [METHODS["frontier"]().weigh(
        over(turns(*((-1.0, turn["entropy"], 0) for turn in e["judged"])), k=bound), 0) for e in first]
    assert sum(map(sum, kept)) in range(75, 79)  # of 100, ties behind a frontier are kept together
    assert dial(9, ARGS, [*log, record(2, uncertain(*[9.0] * 9))]) == bound
    short = [record(1, uncertain(0.1, 0.2))]
    assert METHODS["frontier"]().weigh(over(turns((-1, 0.5, 0)), k=dial(2, ARGS, short)), 0) == [1]


def test_the_frontiers_control_leaves_as_many_turns():
    """A cut that is uniform, which keeps half whatever the share; the share of the first step for ever."""
    control = METHODS["frontier-random"]()
    low, high = uncertain(*[0.0] * 8), uncertain(*[0.0] * 3, *[6.0] * 5)
    calm = [record(1, low, low, low, high)]  # 27 of 32 turns up to the frontier, of which 25 % may go
    assert control.dial(1, ARGS, []) == 1.0
    assert control.dial(2, ARGS, calm) == 27 / 32
    assert control.dial(3, ARGS, [*calm, record(2, high, high)]) == 3 / 8
    for share in (1.0, 27 / 32, 3 / 8):
        coins, played = [(i + 0.5) / 4000 for i in range(4000)], turns(*[None] * 20)
        kept = [sum(control.weigh(over(played, share, coin), 0)) for coin in coins]
        assert np.mean(kept) / 20 == pytest.approx(share, abs=2e-3)
        assert share == 1.0 or len(set(kept)) > 10
    cut = control.weigh(over(turns(*[None] * 20), 0.5, 0.4), 0)
    assert cut == [1] * 8 + [0] * 12


def test_what_has_no_weight_is_in_no_normaliser():
    """Turns behind the frontier in the means of --aggregate token and turn."""
    row = Row()
    for t in range(4):
        row.say([7, 7])
        row.respond([5] * (t + 1), t, [0.0] * (t + 1))
    episode = over(turns(*((-1.0, h, 0) for h in (0.0, 0.0, 0.0, 9.0))), k=1.0)
    episode.rows = [row]
    Rules(METHODS["frontier"](), 1.0, 30).weigh(episode)
    assert count([episode]) == [1, 3, 6] and row.turn.count(3) == 4  # still in the row, for the log


# ---- weights of a turn

def test_sods_weights():
    """The gap's inverse without the first turn's; a cap of 1, or none; signs that cancel."""
    played = turns((-1, 0, 2.0), (-1, 0, 4.0), (-1, 0, 0.0), (-1, 0, 1.9), weight=0.5)
    weights = METHODS["sod"]().weigh(over(played), 0.5)
    assert weights == pytest.approx([0.5, 0.25, 0.6, 0.5 * 2 / 1.9], rel=1e-5)


def test_clean_trains_what_the_game_took():
    """Weight for a refused turn that does not repeat, or for a repeated one that is not refused."""
    flags = [(False, False), (True, False), (False, True), (True, True)]
    played = [SimpleNamespace(weight=0.5, invalid=i, repeats=r) for i, r in flags]
    assert METHODS["clean"]().weigh(over(played), 0.5) == [0.5, 0, 0, 0]


# ---- TOP-D

@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_a_near_teacher_is_the_jsd(alpha):
    """A second loss for what is here: the gradient of KL(q‖m), m = αp + (1 − α)q̄ held fixed, is that of
    `jsd` with β = α divided by 1 − α; at α = 1 it is reverse KL."""
    torch.manual_seed(0)
    logits, teacher = 2 * torch.randn(2, 30, 17, dtype=torch.float64)
    student, p = logits.requires_grad_(), teacher.log_softmax(-1)

    def slope(value):
        return torch.autograd.grad(value(student.log_softmax(-1)).sum(), student)[0]

    def near(logq, alpha=alpha):
        mixed = alpha * p.exp() + (1 - alpha) * logq.exp().detach()
        return losses.reverse(logq, mixed.log())

    jsd = slope(lambda logq: losses.jsd(logq, p, None, alpha))
    assert torch.allclose(slope(near), jsd / (1 - alpha), rtol=1e-10, atol=1e-13)
    assert torch.allclose(
        slope(lambda logq: near(logq, 1.0)), slope(lambda logq: losses.reverse(logq, p)), atol=1e-13)


# ---- three steps of each

@pytest.fixture(scope="module")
def few(data, tmp_path_factory):
    """A file of four tasks: each comes again in every step."""
    path = tmp_path_factory.mktemp("few") / "few.txt"
    path.write_text("\n".join(task.id for task in envs.make_tasks("alfworld", "train", data)[:4]))
    return str(path)


def trained(out, data, few, **more):
    """(log, episodes) of a short run of the tiny pair."""
    known = dict(
        steps=3, episodes=4, eval_every=0, eval_games=2, max_turns=8, train_split=few, data=data,
        out=str(out))
    tcod.main(tcod.Args(**{**known, **more}))
    return read_log(out / "log.jsonl"), read_log(out / "episodes.jsonl")


def history(log, episodes):
    """The log as a resumed run reads it."""
    return [{**r, "episodes": [e for e in episodes if e["step"] == r["step"]]} for r in log]


def weighed(e):
    return [t for t, weight in enumerate(e["weight_turn"]) if weight]


@pytest.mark.parametrize("name", NEW)
def test_three_steps(name, data, few, tmp_path, monkeypatch, capsys):
    """A method that never reaches the loop; a dial that a resumed run would not have; a log that does not say
    what was decided, by which number; a KL that falls since less of it is counted."""
    monkeypatch.setattr(methods, "ENOUGH", 40)
    log, episodes = trained(tmp_path / "run", data, few, method=name)
    assert [r["step"] for r in log] == [1, 2, 3] and len(episodes) == 12
    args, method = tcod.Args(**{**vars(ARGS), "steps": 3, "method": name}), METHODS[name]()
    dials = [method.dial(n, args, history(log, episodes)[: n - 1]) for n in (1, 2, 3)]
    assert [r["k"] for r in log] == [k if math.isfinite(k) else None for k in dials]
    for r, k in zip(log, dials):
        own = [e for e in episodes if e["step"] == r["step"]]
        assert all(None not in [e["kl_turn"][t] for t, who in enumerate(e["who"]) if who != "e"] for e in own)
        lost = sum(e["loss"] for e in own) / 4
        if name in ("frontier", "frontier-random", "clean", "sod"):
            parts = [e["kl_turn"][t] * e["weight_turn"][t] for e in own for t in range(e["rounds"])]
            lost = sum(parts) / 4
            kept = sum(e["tokens_turn"][t] for e in own for t in weighed(e))
            assert (r["weighed"], r["tokens"]) == (kept, sum(e["response_tokens"] for e in own))
            assert r["kl"] == pytest.approx(sum(sum(e["kl_turn"]) for e in own) / 4)
        if not name.startswith("turnopd") or name == "turnopd-depth":
            assert r["loss"] == pytest.approx(lost, rel=1e-4)
        assert sum(r["acted"].values()) == sum(e["rounds"] for e in own)
        for e in own:
            if name == "uopd":
                assert e["who"] == "".join("st"[-turn["logp"] > k] for turn in e["judged"])
                assert r["judged"] == sum(len(e["judged"]) for e in own)
            if name.startswith("stride"):
                spent = np.cumsum([turn["logp"] for turn in e["judged"] if turn])
                assert all(spent[:-1] >= k) and (spent[-1] < k or e["won"] or len(spent) == 8)
            if name == "frontier":
                assert weighed(e) == [t for t, rise in enumerate(method.rises(e)) if rise <= k]
    acted = {letter for e in episodes for letter in e["who"]}
    assert acted == {"uopd": {*"st"}, "uopd-random": {*"st"}, "reopd": {*"se"}}.get(name, {"s"}) or (
        name == "stride-restart" and acted == {*"se"})
    assert [r["success"] for r in log] == [None] * 3 or name != "reopd"
    assert ("so that" in capsys.readouterr().out) == (name in ("stride", "stride-restart", "frontier"))


def test_a_restart_replays_what_was_played(data, few, tmp_path):
    """Other words than the student's own, or of another task; a run that goes on with other prefixes."""
    own = dict(method="stride-restart", at=-400.0)  # its bar takes every turn: the weakest one ends a prefix
    log, whole = trained(tmp_path / "whole", data, few, **own)
    trained(tmp_path / "run", data, few, steps=2, **own)
    tcod.main(tcod.Args(resume=str(tmp_path / "run"), steps=3))
    assert (tmp_path / "run" / "episodes.jsonl").read_text() == (
        tmp_path / "whole" / "episodes.jsonl").read_text()
    replayed = 0
    for e in whole:
        begun = e["who"].count("e")
        for before in (o for o in whole if o["task"] == e["task"] and o["step"] == e["step"] - 1):
            assert begun >= before["who"].count("e") and e["who"].startswith("e" * begun)
            assert e["actions"][:begun] == before["actions"][:begun]
            assert e["responses"][:begun] == before["responses"][:begun]
            weakest = min((turn["logp"], t) for t, turn in enumerate(before["judged"]) if turn)[1]
            assert begun == weakest
            replayed += begun
        assert e["trained"] == e["rounds"] - begun and e["weight_turn"][:begun] == [0.0] * begun
    assert replayed > 8 and log[2]["acted"]["expert"] > 0


def ranks_of(world, args, folder):
    """The run by so many processes."""
    if world == 1:
        return [launch(args, folder / "said-0")]
    place = dict(WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return [launch(args, folder / f"said-{rank}", RANK=rank, LOCAL_RANK=rank, **place)
            for rank in map(str, range(world))]


def killed(args, world, folder):
    """Run it, kill all of its processes once the log has a second step, and go on to the end."""
    processes, log = ranks_of(world, args, folder), Path(args.out) / "log.jsonl"
    while len(read_log(log)) < 2 and processes[0].is_alive():
        time.sleep(0.02)
    for process in processes:
        with suppress(ProcessLookupError):  # the second rank does not outlive the first for long
            os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    assert 2 <= len(read_log(log)) < args.steps, "the run ended before it was killed"
    for rank, process in enumerate(ranks_of(world, args, folder)):
        process.join(600)
        assert process.exitcode == 0, (folder / f"said-{rank}").read_text()
    return history(read_log(log), read_log(log.with_name("episodes.jsonl")))


@pytest.mark.slow
@pytest.mark.parametrize("world", envs.WORLDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_kill_and_two_ranks(name, world, data, tmp_path):
    """A constant, a bound or a prefix of an expert that a killed run does not have when it goes on; two ranks
    that set other ones, or play other episodes, than one."""
    known = dict(
        env=world, data=chosen_data(world, data), method=name, steps=5, episodes=16, max_turns=10,
        eval_every=0, eval_games=2, save_every=1,
        lr=1e-6)  # AdamW divides by small numbers: with more the sums' order soon changes what is played
    runs = {}
    for out in ("whole", "one", "two"):
        args = tcod.Args(**known, out=str(tmp_path / out))
        (tmp_path / f"{out}-said").mkdir()
        if out == "whole":
            tcod.main(args)
            runs[out] = history(*(read_log(tmp_path / out / f"{file}.jsonl") for file in ("log", "episodes")))
        else:
            runs[out] = killed(args, 1 + (out == "two"), tmp_path / f"{out}-said")
    for record in sum(runs.values(), []):
        del record["seconds"]
    assert runs["one"] == runs["whole"]
    for ours, theirs in zip(runs["two"], runs["whole"], strict=True):
        assert ours["k"] == (theirs["k"] and pytest.approx(theirs["k"], rel=1e-3))
        played = [{e["index"]: (e["who"], e["actions"]) for e in r["episodes"]} for r in (ours, theirs)]
        assert played[0] == played[1]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert (ours["tokens"], ours["weighed"]) == (theirs["tokens"], theirs["weighed"])


def test_without_a_bound_it_is_on_policy_distillation(data, few, tmp_path, monkeypatch):
    """Draws, rows or caches that change where a method looks on but decides nothing: bit for bit."""
    class Judged(curriculum.Method):
        judged = True

    monkeypatch.setitem(METHODS, "opd", Judged)
    runs = {}
    for name, at in (("opd", None), ("uopd", None), ("stride", -1e9), ("frontier", 1e9)):
        trained(tmp_path / name, data, few, method=name, at=at, steps=2)
        runs[name] = (tmp_path / name / "episodes.jsonl").read_text()
    assert all(text == runs["opd"] for text in runs.values())


def test_a_constant_is_for_those_that_have_one(data, tmp_path):
    """A flag that is read and never used."""
    with pytest.raises(UserError, match="uopd has no constant for --at: only stride: λ, stride-restart: λ"):
        tcod.main(tcod.Args(method="uopd", at=0.3, data=data, out=str(tmp_path / "run")))


# ---- the page

PAGE = Path(ROOT) / "docs" / "methods.md"


def code_of(name):
    """A class or function as it stands, without docstrings and blank lines."""
    source = inspect.getsource(getattr(methods, name))
    node, gone = ast.parse(source).body[0], set()
    for part in (node, *node.body):
        if isinstance(part, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(part):
            gone.update(range(part.body[0].lineno, part.body[0].end_lineno + 1))
    return "\n".join(line for n, line in enumerate(source.splitlines(), 1) if n not in gone and line.strip())


def test_the_page_shows_the_code_as_it_stands():
    """Lines that were right once; a method that the page does not tell."""
    text = PAGE.read_text(encoding="utf-8")
    shown = "\n\n".join(re.findall(r"^```python\n(.*?)\n```", text, re.M | re.S)).split("\n\n")
    names = [re.match(r"(?:class|def) (\w+)", block)[1] for block in shown]
    assert [code_of(name) for name in names] == shown
    assert {METHODS[name].__name__ for name in NEW if not name.endswith("-random")} <= set(names)
    assert all(f"`{name}`" in text for name in METHODS)


def test_help_explains_every_method():
    """A method that --help does not know, or whose first sentence does not end."""
    said = methods.explained()
    assert all(f"{name}: " in said for name in METHODS) and len(said) < 200 * len(METHODS)
    assert said.startswith("opd: On-policy distillation (Eq. 2): the student plays every turn; f2b: Front")
    assert json.dumps(methods.constants(), ensure_ascii=False) == (
        '"stride: λ, stride-restart: λ, reopd: κ, frontier: τ"')
    assert quantile([3], 0.0) == 3
