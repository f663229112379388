"""The temporal curriculum: how deep an episode the student is shown at training step n, and what a method is.

A method answers five questions. Each has a default, plain on-policy distillation, and a method is the one or
two answers in which it differs:

    dial    before step n: the number that moves over training, mostly the depth k of Eq. 4
    start   before an episode: which turns of its task are there to be replayed
    act     before a turn: who answers, by which loss and weight the answer is trained; None: the episode ends
    revise  before the game hears the student: its answer stands, or is dropped and the teacher answers
    weigh   when the episode is over: a weight for each of its turns

The paper's own methods are here, those of the field around it in methods.py. No torch, no environment: plain
numbers. Read before this: the loop at the end of tcod.py; after it: envs.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

RHO = 0.8  # guided turns: the share of the steps after which the teacher acts no longer, as published


# ---- what a method sees and says

class Role(NamedTuple):
    """Who answers in a turn, and how the answer is trained."""
    who: str                # "student", "teacher", or "expert": the answer of a recorded episode is replayed
    weight: float = 1.0     # of the turn's tokens in the loss; 0: not trained
    loss: str = ""          # a name in loss.LOSSES; "": the one that --loss names


STUDENT = Role("student")
TEACHER = Role("teacher", loss="forward")   # on the teacher's own tokens
EXPERT, REPLAY = Role("expert"), Role("expert", 0.0)


class Judgement(NamedTuple):
    """What the teacher says of a response, as means over the tokens that were drawn, in nats."""
    logp: float             # log p_φ of what was said
    entropy: float          # of the teacher's own distribution
    kl: float               # KL(θ‖φ)
    gap: float              # |log p_θ − log p_φ| of what was said


@dataclass
class NextTurn:
    """What a method sees of an episode before its next turn."""
    t: int                  # the turn to come, from 0
    k: float                # the dial of this training step: a depth, a probability, a threshold
    T: int                  # the horizon
    L: int = 0              # turns of the expert's successful episode; 0: there is none
    progress: float = 0.0   # the share n / N of the training steps
    past: list = ()         # the turns so far (rollout.Turn): who, action, invalid, repeats, judgement, …
    draw: Callable = None   # draw(stream) -> uniform in [0, 1); the same turn and stream give the same number

    @property
    def coin(self):
        """Uniform in [0, 1), drawn anew for every turn."""
        return self.draw("turn")

    @property
    def episode_coin(self):
        """Uniform in [0, 1), one for the whole episode."""
        return self.draw("episode")


# ---- the schedule

def depth(n, schedule="linear", k_start=1, eta=2.0):
    """k at training step n = 1 … N, in turns; never capped, since no episode goes beyond T or L.

    linear      k = k_start + floor(n / eta)                                   (Eq. 4)
    constant    k_start
    5@10,30@20  the k of the last stage that has begun; before the first: k_start

    >>> [depth(n, eta=2) for n in (1, 2, 3, 4)]
    [1, 2, 2, 3]
    >>> [depth(n, "5@10,30@20") for n in (9, 10, 19, 20)]
    [1, 5, 5, 30]
    """
    if schedule == "linear":
        return k_start + int(n // eta)
    begun = [(step, k) for k, step in stages(schedule) if n >= step]
    return max(begun, default=(0, k_start))[1]


def stages(schedule):
    """'5@10,30@20' -> [(5, 10), (30, 20)]: depth 5 from step 10 on, depth 30 from step 20 on.

    Raises ValueError with one sentence for what is neither that nor "linear" or "constant".
    """
    if schedule in ("linear", "constant"):
        return []
    try:
        pairs = [tuple(int(number) for number in stage.split("@")) for stage in schedule.split(",")]
        if any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--schedule is linear, constant, or stages depth@step as in 5@10,30@20, both at least 1, not "
            f"{schedule!r}") from None
    return pairs


def teacher_share(n, steps, rho=RHO):
    """Guided turns: the probability with which the teacher acts at step n of `steps`; a cosine from 1 to 0
    over a share rho of them.

    β(n) = (1 + cos(π · min(1, n / (rho · steps)))) / 2

    >>> [round(teacher_share(n, 100), 3) for n in (0, 20, 40, 80, 100)]
    [1.0, 0.854, 0.5, 0.0, 0.0]
    """
    return (1 + math.cos(math.pi * min(1.0, n / (rho * steps)))) / 2


# ---- the methods

class Method:
    """On-policy distillation (Eq. 2): the student plays every turn. The others change one answer or two."""
    expert = False          # needs an expert's episode: tasks without one are left out and counted
    judged = False          # the teacher reads the student's answers while the episode is played
    paced = False           # depends on the number of steps N: a run of it cannot be made longer
    loss = ""               # the loss that --loss is by default; "": the paper's
    scored = True           # that a training episode is won says something; else the log has no success
    constant = ""           # what --at sets in the place of the dial; "": nothing
    calibrated = ""         # by which rule the first step's episodes set the dial; "": they do not
    remembers = False       # `start` asks the log for responses: episodes.jsonl has them
    revise = None           # revise(turn, judgement) -> None: the answer stands; a Role of the teacher's

    def dial(self, n, args, log):
        """The number k that moves over training, before step n = 1 … N. args: of tcod.py; log: the records
        of the steps before (harness/report.py), each with its "episodes"."""
        return depth(n, args.schedule, args.k_start, args.eta)

    def start(self, task, k, log):
        """The task (envs.Task) as it is played in this step, k being the dial: its `expert` are the actions
        of the turns that may be replayed, its `responses` what was said in them."""
        return task

    def act(self, turn):
        """The Role of the turn to come, a NextTurn; None: the episode ends before it."""
        return STUDENT

    def weigh(self, episode, progress):
        """The weight of every turn of a rollout.Episode that is over; the normalisers of the loss count the
        turns that have weight. `episode.ahead`, the last NextTurn, has the dial and the episode's coin."""
        return [turn.weight for turn in episode.turns]


class F2B(Method):
    """Front to back (Eq. 3): the student plays the first k turns, then the episode ends."""

    def act(self, turn):
        return STUDENT if turn.t < turn.k else None


class B2F(Method):
    """Back to front (Eq. 5): the expert's episode is replayed except for its last k turns; the student goes
    on."""
    expert = True

    def act(self, turn):
        return REPLAY if turn.t < turn.L - turn.k else STUDENT


class SFT(Method):
    """Supervised fine-tuning: the expert's episode is replayed, and its responses are trained."""
    expert, loss = True, "nll"

    def act(self, turn):
        return EXPERT if turn.t < turn.L else None


class Guided(Method):
    """Guided turns (arXiv 2606.15912): the teacher acts with probability β(n), else the student."""
    paced = True

    def dial(self, n, args, log):
        return teacher_share(n, args.steps)

    def act(self, turn):
        return TEACHER if turn.coin < turn.k else STUDENT


class TakeOver(Method):
    """The take-over test: the student plays k turns, then the teacher; nothing is trained."""

    def act(self, turn):
        return Role("student" if turn.t < turn.k else "teacher", 0.0)


METHODS = {"opd": Method, "f2b": F2B, "b2f": B2F, "sft": SFT, "guided": Guided}


# ---- a method at one training step

@dataclass(frozen=True)
class Rules:
    """What the sampler asks before every turn: a method, and where training stands.

    T: the horizon. An episode has at most max(T, L) turns, of which models play at most T.
    """
    method: Method
    k: float
    T: int
    progress: float = 0.0

    @classmethod
    def at(cls, n, method, args, log, T):
        """The rules of training step n; --at is a dial that a user has set. log: of a run, which may begin
        with an evaluation before step 1."""
        log = [record for record in log if record["step"]]
        k = method.dial(n, args, log) if args.at is None else args.at
        return cls(method, k, T, n / args.steps)

    @property
    def judged(self):
        """Whether the teacher reads the student's answers while the episode is played."""
        return self.method.judged or self.method.revise is not None

    def ahead(self, episode, draw):
        """What the method sees of a rollout.Episode before its next turn."""
        t, L = len(episode.turns), len(episode.task.expert)
        return NextTurn(t, self.k, self.T, L, self.progress, episode.turns, draw)

    def act(self, episode, turn):
        """The Role of the turn to come, or None: the episode ends.

        >>> from types import SimpleNamespace as Episode
        >>> ends = Rules(F2B(), k=2, T=30)
        >>> [ends.act(Episode(played=t), NextTurn(t, 2, 30)) for t in (1, 2)] == [STUDENT, None]
        True
        >>> last, turns = Rules(B2F(), k=3, T=30), [NextTurn(t, 3, 30, L=8) for t in (4, 5, 30)]
        >>> [last.act(Episode(played=max(0, turn.t - 5)), turn) for turn in turns] == [REPLAY, STUDENT, None]
        True
        """
        over = episode.played >= self.T or turn.t >= max(self.T, turn.L)
        return None if over else self.method.act(turn)

    def weigh(self, episode):
        """Give every turn of an episode that is over its weight."""
        for turn, weight in zip(episode.turns, self.method.weigh(episode, self.progress), strict=True):
            turn.weight = weight
