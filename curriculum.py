"""The temporal curriculum: how deep an episode the student is shown at training step n, and who acts in each
of its turns.

`depth` is the schedule k(n) of Eq. 4. A method is one small function: given where an episode stands, it says
who acts in the turn to come, by which loss that response is trained and with which weight. Those functions
are the whole difference between OPD, F2B, B2F, SFT and guided turns. No torch, no environment: plain numbers.
"""

import math
from typing import NamedTuple

SCHEDULES = ("linear", "step", "constant")


class Turn(NamedTuple):
    """Where an episode stands: all that a method may look at."""
    t: int              # the turn to come, from 0
    k: int              # the depth of this training step, Eq. 4
    T: int              # the horizon
    L: int = 0          # turns of the expert's successful episode; 0: there is none
    beta: float = 0.0   # probability with which the teacher acts (guided turns)
    coin: float = 0.0   # uniform in [0, 1), drawn anew for every turn


class Role(NamedTuple):
    """Who acts in a turn, and how its response is trained."""
    who: str            # "student", "teacher", or "expert": the response of a recorded episode is replayed
    weight: float       # of the turn's tokens in the loss; 0: not trained
    loss: str = ""      # a name in loss.LOSSES; "": the one that --loss names


STUDENT, TEACHER, EXPERT = Role("student", 1.0), Role("teacher", 1.0, "forward"), Role("expert", 1.0)
REPLAY = Role("expert", 0.0)


def opd(turn):
    """On-policy distillation (Eq. 2): the student plays every turn."""
    return STUDENT


def f2b(turn):
    """Front to back (Eq. 3): the student plays the first k turns, then the episode ends."""
    return STUDENT if turn.t < turn.k else None


def b2f(turn):
    """Back to front (Eq. 5): the expert's episode is replayed but for its last k turns; the student goes
    on."""
    return REPLAY if turn.t < turn.L - turn.k else STUDENT


def sft(turn):
    """Supervised fine-tuning: the expert's episode is replayed, and its responses are trained."""
    return EXPERT if turn.t < turn.L else None


def guided(turn):
    """Guided turns (arXiv 2606.15912): the teacher acts with probability beta(n), else the student."""
    return TEACHER if turn.coin < turn.beta else STUDENT


def take_over(turn):
    """The take-over test: the student plays k turns, then the teacher; nothing is trained."""
    return Role("student" if turn.t < turn.k else "teacher", 0.0)


METHODS = {"opd": opd, "f2b": f2b, "b2f": b2f, "sft": sft, "guided": guided}
# Tasks without an expert's episode are left out of these and counted: no method ever becomes another.
NEEDS_EXPERT = ("b2f", "sft")


def plan(method, k, T, beta=0.0):
    """What `rollout.play` asks before every turn: a function (t, L, played, coin) -> Role, or None where the
    episode ends.

    method: one of the functions above. Replayed turns count towards T. Only where the expert's episode is
    longer than T may an episode be as long; models never play more than T turns of it.

    >>> ends = plan(f2b, k=2, T=30)
    >>> [ends(t, L=0, played=t, coin=0) for t in (1, 2)] == [STUDENT, None]
    True
    >>> last = plan(b2f, k=3, T=30)
    >>> [last(t, L=8, played=max(0, t - 5), coin=0) for t in (4, 5, 30)] == [REPLAY, STUDENT, None]
    True
    """
    def role(t, L, played, coin):
        over = played >= T or t >= max(T, L)
        return None if over else method(Turn(t, k, T, L, beta, coin))
    return role


def depth(n, schedule="linear", k_start=1, eta=2.0, stages=(), log=()):
    """k at training step n = 1 … N, in turns; never capped, since no episode goes beyond T or L.

    linear    k = k_start + floor(n / eta)                                   (Eq. 4)
    step      the k of the last stage that has begun; before the first: k_start
    constant  k_start
    stages: pairs (k, first step), as `parse_stages` makes them. log: the log's records of the steps before n,
    for a schedule that looks at them (docs/forking.md has one).

    >>> [depth(n, eta=2) for n in (1, 2, 3, 4)]
    [1, 2, 2, 3]
    >>> [depth(n, "step", stages=[(5, 10), (30, 20)]) for n in (9, 10, 19, 20)]
    [1, 5, 5, 30]
    """
    if schedule == "linear":
        return k_start + int(n // eta)
    if schedule == "step":
        return max(((begins, k) for k, begins in stages if n >= begins), default=(0, k_start))[1]
    if schedule == "constant":
        return k_start
    raise ValueError(f"unknown schedule {schedule!r}: {', '.join(SCHEDULES)}")


def parse_stages(text):
    """'5@10,30@20' -> [(5, 10), (30, 20)]: depth 5 from step 10 on, depth 30 from step 20 on.

    Raises ValueError with one sentence.
    """
    try:
        stages = [tuple(int(number) for number in stage.split("@")) for stage in text.split(",") if stage]
        if any(len(stage) != 2 or min(stage) < 1 for stage in stages):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"stages are written depth@step, as in 5@10,30@20, both at least 1, not {text!r}") from None
    return stages


def beta(n, steps, rho=0.8):
    """Guided turns: the probability with which the teacher acts at step n of `steps`; a cosine from 1 to 0
    over a share rho of them.

    beta(n) = (1 + cos(pi · min(1, n / (rho · steps)))) / 2

    >>> [round(beta(n, 100), 3) for n in (0, 20, 40, 80, 100)]
    [1.0, 0.854, 0.5, 0.0, 0.0]
    """
    return (1 + math.cos(math.pi * min(1.0, n / (rho * steps)))) / 2
