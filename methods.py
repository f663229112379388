"""The methods of the field around TCOD, each as the answers in which it differs from plain on-policy
distillation, and all methods by their names.

Since TCOD at least seventeen methods treat its failure: the student's errors carry the episode to where the
teacher is no guide. docs/methods.md tells them by their ideas. Here are the smallest that are faithful; each
docstring has the equation, the source, and where it departs from its paper. A method named -random is a
control: as much of the same, at places that nothing has chosen.

Constants that are ranks or shares are the published ones. Those in nats mean something else with every pair
of models: `first_step` sets them, by a share of turns; --at sets the published number.

ℓ_t = mean log p_φ of what the student said in turn t, H_t the teacher's mean entropy there, KL_t the mean
KL(θ‖φ). No torch. Read before this: curriculum.py; after it: envs.py.
"""

import math
import re
from bisect import bisect
from collections import Counter
from dataclasses import replace
from itertools import accumulate, takewhile

import curriculum
from curriculum import F2B, REPLAY, STUDENT, Method, Role

ANSWERS = Role("teacher", loss="nll")   # the teacher in the student's place, trained by cross-entropy
LATE, ENOUGH = 1000, 300    # UOPD: judgements that its bound is a quantile of, the fewest that make one


# ---- what a dial reads in the log

def quantile(values, share):
    """The smallest of the values that at least this share of them do not exceed.

    >>> [quantile([4, 1, 3, 2], share) for share in (0.25, 0.26, 0.5, 1)]
    [1, 2, 2, 4]
    """
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]


def first_step(log):
    """The episodes of the first step that has any. Of a method that is calibrated they were played and
    trained in whole, since nothing bounded them."""
    return next((record["episodes"] for record in log if record["episodes"]), [])


def judgements(log, number):
    """The last `number` judgements of all turns, the oldest first.

    In the order (step, turn, episode), which is the same for one rank, for two, and after a resume. Of a turn
    that the teacher took, it is that of the answer that was dropped.
    """
    found = []
    for record in reversed(log):
        if len(found) >= number:
            break
        said = {
            (t, e["index"]): judged
            for e in record["episodes"] for t, judged in enumerate(e.get("judged", ())) if judged}
        found = [said[place] for place in sorted(said)] + found
    return found[-number:]


# ---- who acts

class UOPD(Method):
    """UOPD (arXiv 2609.34036): the teacher answers where the student's proposal is among the worst of late.

    The proposal is dropped if −ℓ_t > τ, the 1 − r quantile of the last 1,000 −ℓ of all turns, dropped ones
    too; no bound while there are fewer than 300. r falls from 0.30 to 0.05 over 0.48 of the steps. The
    teacher's answer is trained by cross-entropy, the student's by --loss. The paper means over tokens:
    --aggregate token.
    """
    paced = True

    def dial(self, n, args, log):
        late = [-judged["logp"] for judged in judgements(log, LATE)]
        return quantile(late, 1 - self.share(n, args)) if len(late) >= ENOUGH else math.inf

    def share(self, n, args):
        return 0.30 - 0.25 * min(1.0, n / (0.48 * args.steps))

    def revise(self, turn, judgement):
        return ANSWERS if -judgement.logp > turn.k else None


class UOPDRandom(UOPD):
    """UOPD's control: the teacher answers as often, in turns that a coin chooses, and judges none."""
    revise = None

    def dial(self, n, args, log):
        return self.share(n, args)

    def act(self, turn):
        return ANSWERS if turn.coin < turn.k else STUDENT


# ---- when the episode ends

class TurnDepth(F2B):
    """TurnOPD's depth (arXiv 2607.05804): F2B whose k is where probes of whole episodes have their KL.

    Probes are the first 3 steps and every 8th. Of each, H = max(H_eff, H_cov): H_eff = Σ t m_t / Σ m_t, m_t
    the mean KL_t times the share of episodes alive; H_cov the turns in which 80 % of the won episodes have
    ended, kept from before where fewer than 8 are won. k = max(2, H̄ + 1), H̄ ← 0.7 H̄ + 0.3 H. From a
    summary of the paper. With 16 episodes a step eight wins come late: until then k follows H_eff alone.
    """

    def dial(self, n, args, log):
        mean, covered = math.inf, 0
        for record in log:
            mass = [
                (t, kl / tokens) for e in record["episodes"]
                for t, (kl, tokens) in enumerate(zip(e["kl_turn"], e["tokens_turn"])) if kl]
            if not self.probe(record["step"]) or not mass:
                continue
            wins = [e["rounds"] for e in record["episodes"] if e["won"]]
            covered = quantile(wins, 0.8) if len(wins) >= 8 else covered
            centre = round(sum(t * kl for t, kl in mass) / sum(kl for _, kl in mass))
            deep = max(centre, covered)
            mean = deep if mean == math.inf else 0.7 * mean + 0.3 * deep
        return math.inf if mean == math.inf or self.probe(n) else max(2, round(mean) + 1)

    def probe(self, n):
        return n <= 3 or n % 8 == 0


class Stride(Method):
    """STRIDE's stop (arXiv 2609.14636): the episode ends behind the turn at which Σ ℓ falls below λ.

    Σ_{j ≤ t} ℓ_j < λ, over the student's own turns; the turn that crosses is trained. λ = −1 to −2 belong to
    another benchmark: here the first step is whole, and λ such that 23 % of its turns would have been played,
    as the paper's stop took 62 s of 274 a step. From a summary of the paper.
    """
    judged, constant = True, "λ"
    calibrated = "23 % of the first step's turns would have been played"

    def dial(self, n, args, log):
        spent = [
            before for e in first_step(log)
            for before in accumulate((-turn["logp"] for turn in e["judged"][:-1]), initial=0.0)]
        return -quantile(spent, 0.23) if spent else -math.inf

    def act(self, turn):
        spent = sum(past.judgement.logp for past in turn.past if past.judgement)
        return STUDENT if spent >= turn.k else None


class StrideRestart(Stride):
    """STRIDE's stop and restart: a task that comes again begins behind the turns that went well before.

    Of its last episode the longest prefix of turns with ℓ_j > 0.4 λ (the paper's −0.8 beside λ = −2), up to
    its weakest turn, is replayed, untrained. Turns that were replayed before stay, and have no ℓ of their
    own. It takes tasks that come again: more episodes than tasks.
    """
    remembers = True

    def start(self, task, k, log):
        before = [e for record in log for e in record["episodes"] if e["task"] == task.id]
        if not before:
            return replace(task, expert=(), responses=())
        last = max(before, key=lambda e: (e["step"], e["index"]))
        kept = self.prefix(last["judged"], 0.4 * k) if "judged" in last else 0
        return replace(task, expert=(*last["actions"][:kept],), responses=(*last["responses"][:kept],))

    def prefix(self, judged, bar):
        well = list(takewhile(lambda turn: turn is None or turn["logp"] > bar, judged))
        own = [t for t, turn in enumerate(well) if turn]
        return min(own, key=lambda t: well[t]["logp"]) if own else len(well)

    def act(self, turn):
        return REPLAY if turn.t < turn.L else super().act(turn)


# ---- where it starts

class ReOPD(Method):
    """ReOPD (arXiv 2607.04763): a prefix of the expert's episode, then one turn of the student's.

    p(t*) ∝ κ^t* for t* = 0 … L − 1, κ = 0.6; turns before t* are replayed. The paper reads the prefix from a
    file and executes nothing; here the world replays it. A step trains one turn an episode: more --episodes.
    """
    expert, scored, constant = True, False, "κ"

    def dial(self, n, args, log):
        return 0.6

    def act(self, turn):
        mass = list(accumulate(turn.k**t for t in range(turn.L)))
        cut = bisect(mass, turn.episode_coin * mass[-1])
        if turn.t > cut:
            return None
        return REPLAY if turn.t < cut else STUDENT


# ---- what a turn weighs

class Frontier(Method):
    """The entropy frontier: no loss from the turn on where the teacher's entropy has risen by τ.

    mean(H_{t−2} … H_t) − mean(H_0, H_1, H_2) > τ, t ≥ 3; the episode is played to its end. From a
    reproduction of TCOD's baselines (August 2026, no paper), with τ = 0.1 nat of a top-16 entropy, which kept
    70 to 80 % of the turns: here the first step is whole, and τ such that 75 % of its turns would have been
    kept.
    """
    judged, constant = True, "τ"
    calibrated = "75 % of the first step's turns would have been trained"

    def dial(self, n, args, log):
        rises = [rise for e in first_step(log) for rise in self.rises(e)]
        return quantile(rises, 0.75) if rises else math.inf

    def rises(self, e):
        return risen([turn["entropy"] for turn in e["judged"]])

    def weigh(self, episode, progress):
        rises = risen([turn.judgement.entropy for turn in episode.turns])
        return [turn.weight * (rise <= episode.ahead.k) for turn, rise in zip(episode.turns, rises)]


def risen(H):
    """By how much the mean of three turns' entropies has risen above the first three's, at most so far.

    >>> risen([0.0, 0.5, 1.0, 1.5, 0.5, 3.5])
    [-inf, -inf, -inf, 0.5, 0.5, 1.3333333333333333]
    """
    rises = [sum(H[t - 2: t + 1]) / 3 - sum(H[:3]) / 3 if t >= 3 else -math.inf for t in range(len(H))]
    return list(accumulate(rises, max))


class FrontierRandom(Frontier):
    """The frontier's control: a cut at a random turn that leaves as many turns as the frontier would.

    An episode of R turns keeps R u^(1/s − 1), u its coin: s R on average, s the share of the last step's
    turns that the frontier, calibrated in the same way, would have kept.
    """
    constant = calibrated = ""     # the share moves with the log

    def dial(self, n, args, log):
        bound = super().dial(n, args, log)
        last = next((record["episodes"] for record in reversed(log) if record["episodes"]), [])
        kept = [rise <= bound for e in last for rise in self.rises(e)]
        return sum(kept) / len(kept) if kept else 1.0

    def weigh(self, episode, progress):
        cut = len(episode.turns) * episode.ahead.episode_coin ** (1 / episode.ahead.k - 1)
        return [turn.weight * (t + 0.5 < cut) for t, turn in enumerate(episode.turns)]


class TurnBlend(Method):
    """TurnOPD's blend (arXiv 2607.05804): a token's weight, from that of its episode's mean to its turn's.

    (1 − α)/n + α/(R n_t), n tokens in R turns, n_t of them in turn t. The window of α was not found: here it
    goes from 0 to 1 over all steps. It is a mean over each episode, for --aggregate episode alone, and not
    Eq. 2's sum.
    """
    paced = True

    def weigh(self, episode, progress):
        n = Counter(t for row in episode.rows for t in row.turn if t >= 0)  # trained tokens of each turn
        return [
            turn.weight * ((1 - progress) / n.total() + progress / (len(n) * n[t])) if n[t] else 0.0
            for t, turn in enumerate(episode.turns)]


class TurnOPD(TurnDepth, TurnBlend):
    """TurnOPD (arXiv 2607.05804), both arms: turnopd-depth and turnopd-blend."""


class SOD(Method):
    """SOD's weights (arXiv 2605.07725): a turn weighs less the further the student is from the teacher.

    w_t = min((g_0 + ε)/(g_t + ε), 1.2), g_t = mean |log p_θ − log p_φ| of what was said; ε = 1e-6 is ours.
    Meant to fail: weights of this kind alone brought ScienceWorld from 13.0 to 3.8 (arXiv 2609.35319).
    """
    judged = True

    def weigh(self, episode, progress):
        gaps = [turn.judgement.gap + 1e-6 for turn in episode.turns]
        return [turn.weight * min(gaps[0] / gap, 1.2) for turn, gap in zip(episode.turns, gaps)]


class Clean(Method):
    """A plain idea that every method should beat: no loss on a turn that the game refused or that repeats."""

    def weigh(self, episode, progress):
        return [turn.weight * (not turn.invalid and not turn.repeats) for turn in episode.turns]


# ---- all methods by their names

METHODS = {
    **curriculum.METHODS,
    "uopd": UOPD, "uopd-random": UOPDRandom,
    "turnopd": TurnOPD, "turnopd-depth": TurnDepth, "turnopd-blend": TurnBlend,
    "stride": Stride, "stride-restart": StrideRestart,
    "reopd": ReOPD,
    "frontier": Frontier, "frontier-random": FrontierRandom,
    "sod": SOD,
    "clean": Clean,
}


def explained():
    """What --help says of the methods: the first sentence of each."""
    told = {name: method.__doc__ or "a method" for name, method in METHODS.items()}  # none by -OO
    said = {name: " ".join(text.split()) for name, text in told.items()}
    first = {name: re.split(r"(?<!Eq)\. ", text)[0].rstrip(".") for name, text in said.items()}
    return "; ".join(f"{name}: {text}" for name, text in first.items())


def constants():
    """What --help says of --at: 'stride: λ, …'."""
    return ", ".join(f"{name}: {method.constant}" for name, method in METHODS.items() if method.constant)
