"""What is said of played episodes: the outcome of one, the summary of many, the tables. Plain numbers and
text, no torch.

A figure of success always stands beside the number of games and its 95 % interval. An interval counts games:
what it is where games were played more than once, and of a difference, is said in docs/results.md.
"""

import math
from statistics import median

import numpy as np

from harness.cli import UserError

CONTEXT_WARNING = 0.02  # share of episodes that the context ended, above which the table says so
# A few tasks that cannot be played are left out; a run ends where they are at least so many, and more than
# such a share of the tasks drawn.
BAD_TASKS, BAD_SHARE = 10, 1 / 50
LEFT_OUT = "left out, since it cannot be played"
NO_ROOM = (
    "left out, since the replayed expert leaves no room in the context (raise --max-context, or use "
    "--history window:N)")
COUNTED = ("invalid", "missing", "cut", "repeats")  # of the turns that models played (rollout.Turn)
NAMED = 3               # tasks that the screen names; a log names all
Z = 1.959964            # 97.5 % point of the normal distribution
# 97.5 % points of Student's t distribution with 1, 2, ... degrees of freedom.
STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def wilson(won, games):
    """95 % Wilson score interval of won/games, as fractions (low, high); (0, 1) for no games.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.49, 0.943]
    """
    if games == 0:
        return 0.0, 1.0
    share = won / games
    centre = share + Z * Z / (2 * games)
    spread = Z * math.sqrt(share * (1 - share) / games + Z * Z / (4 * games * games))
    scale = 1 + Z * Z / games
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def worth(won, plays):
    """How many games, played once each, tell as much as several plays of some: the plays by the design effect
    of clusters, which is their cluster-robust variance over that of independent ones (Kish 1965).

    won, plays: of each game. Two games are added that were won always and never, as Wilson's interval does
    with plays: no finite number of games tells that all games are alike. Plays that always came out alike are
    worth their games, and so are single ones.

    >>> [round(worth(won, [5, 5, 5, 5])) for won in ([5, 5, 0, 0], [3, 2, 3, 2])]
    [4, 11]
    """
    usual = np.mean(plays)
    won, plays = np.append(won, (usual, 0)), np.append(plays, (usual, usual))
    share = won.sum() / plays.sum()
    design = ((won - share * plays) ** 2).sum() / (share * (1 - share) * plays.sum())
    return float(plays[:-2].sum() / max(1, design))


def rate(won, plays):
    """Success with its interval, as a dict: the figures behind `percent`. won, plays: of each game."""
    games = worth(won, plays) if len(plays) else 0
    share = sum(won) / max(1, sum(plays))
    low, high = wilson(share * games, games)
    return dict(games=sum(plays), won=sum(won), success=share, low=low, high=high)


def over_seeds(values):
    """(mean, half of its 95 % interval over seeds by Student's t); one seed has no interval: nan."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    t = STUDENT_T[min(len(values) - 1, len(STUDENT_T)) - 1]
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / math.sqrt(len(values)))


def difference(ours, theirs, games):
    """(mean, half of its 95 % interval) of success less that of others, paired by seed and by game.

    ours, theirs (seeds, games): what each run won of each game, 0 to 1; or (seeds, 1): its success alone.
    games: that an evaluation has, for the latter. By seeds: Student's t. By games: cluster-robust, with one
    more game for each side (Bonett and Price 2012); of success alone two independent proportions, each with
    two more games (Agresti and Caffo 2000). The larger counts; of success alone the two add up, since pairing
    cannot show then whether a method suits some games more than others.
    """
    mean, seeds = over_seeds((ours - theirs).mean(1))
    if ours.shape[1] > 1:
        by_game = np.append((ours - theirs).mean(0), (1, -1))
        return mean, max(seeds, Z * math.sqrt(by_game.var() / len(by_game)))
    plays, variance = len(ours) * games, 0
    for success in (ours.mean(), theirs.mean()):
        share = (success * plays + 1) / (plays + 2)
        variance += share * (1 - share) / (plays + 2)
    return mean, math.hypot(seeds, Z * math.sqrt(variance))


def outcome(episode):
    """What a table or a log needs of a played episode, as plain JSON values. Counts are over the turns that
    models played."""
    models = [turn for turn in episode.turns if turn.who != "expert"]
    counts = {what: sum(getattr(turn, what) for turn in models) for what in COUNTED}
    return dict(
        task=episode.task.id, kind=episode.task.kind, index=episode.index,
        rounds=len(episode.turns), played=len(models), won=episode.won, lost=episode.lost, **counts,
        context_cut=episode.context_cut, crashed=episode.crashed,
        filled=episode.filled, unplayable=episode.unplayable,
        who="".join(turn.who[0] for turn in episode.turns),  # a letter a turn: student, teacher, expert
        actions=[turn.action for turn in episode.turns])


def total(records, name):
    """The sum of one figure over outcomes or records."""
    return sum(record[name] for record in records)


# ---- tasks that cannot be played

def unplayable(outcomes):
    """{task: why it cannot be played}"""
    return {o["task"]: o["unplayable"] for o in outcomes if o["unplayable"]}


def named(bad):
    """{task: why it cannot be played} for the screen: how many, and the first of them."""
    texts = [f"{task} ({why})" for task, why in bad.items()]
    more = f" and {len(texts) - NAMED} more" * (len(texts) > NAMED)
    return f"{len(bad)} task{'s' * (len(bad) > 1)}, {', '.join(texts[:NAMED])}{more}"


def check_playable(bad, drawn, listed):
    """Raises UserError where the tasks that cannot be played are more than a few, or all that there are.

    bad: as from `unplayable`; drawn: how many tasks have been drawn so far, listed: how many there are.
    """
    many = len(bad) >= BAD_TASKS and len(bad) > BAD_SHARE * drawn
    if many or 0 < len(bad) == listed:
        raise UserError(f"too many of the {drawn} tasks drawn cannot be played: {named(bad)}")


def playable(outcomes):
    """Those of tasks that could be played. Raises UserError where more than a few could not."""
    drawn = len({o["task"] for o in outcomes})
    check_playable(unplayable(outcomes), drawn, drawn)
    return [o for o in outcomes if not o["unplayable"]]


# ---- summaries

def success(outcomes):
    """`rate` of a list of outcomes: plays of one task are plays of one game."""
    plays = {}
    for o in outcomes:
        plays.setdefault(o["task"], []).append(o["won"])
    return rate(list(map(sum, plays.values())), list(map(len, plays.values())))


def each(outcomes):
    """"0110": a letter for each task of the list, in its order: lost, won, or - where it cannot be played."""
    in_order = sorted(outcomes, key=lambda o: o["index"])
    return "".join("-" if o["unplayable"] else str(int(o["won"])) for o in in_order)


def summarise(outcomes):
    """One line of a table: success in all and per task type, mean rounds, pass@k, and rates over the turns
    that models played. Tasks that cannot be played count in none of them: they are named in `unplayable`."""
    bad, letters, outcomes = unplayable(outcomes), each(outcomes), playable(outcomes)
    turns = max(1, total(outcomes, "played"))
    tasks = {o["task"] for o in outcomes}
    solved = {o["task"] for o in outcomes if o["won"]}
    kinds = {}
    for kind in sorted({o["kind"] for o in outcomes}):
        kinds[kind] = success([o for o in outcomes if o["kind"] == kind])
    return dict(
        **success(outcomes),
        rounds=total(outcomes, "rounds") / max(1, len(outcomes)),
        **{what: total(outcomes, what) / turns for what in COUNTED},
        context_cut=total(outcomes, "context_cut"),
        crashed=total(outcomes, "crashed"),
        pass_at_k=rate([task in solved for task in tasks], [1] * len(tasks)),
        unplayable=bad,
        each=letters,
        kinds=kinds)


# ---- what a training run logs

def known(number):
    """A number for the log; None for what is not known, since JSON has no NaN."""
    return float(number) if math.isfinite(number) else None


def episode_record(n, episode, turn, tokens):
    """An episode's line in the log of step n.

    turn (N,): of each trained token; tokens: {name: values (N,)}, by loss.LOGGED: its loss before weights;
    KL(θ‖φ), log p of it and the entropy of φ in nats (NaN: no teacher); |log q − log q_sampled| (NaN: not the
    student's). By turn: its trained tokens and their weight in the loss, the sum of the KL, the means of the
    teacher's log p and entropy; judged: what it said of the student's answers while the episode was played,
    where a method asks for it.
    """
    rounds = len(episode.turns)
    number = np.bincount(turn, minlength=rounds)  # of trained tokens, by turn
    sums = {name: np.bincount(turn, values, rounds) for name, values in tokens.items()}
    sampled = ~np.isnan(tokens["mismatch"])

    def by_turn(values):
        return [known(value) if count else None for value, count in zip(values, number)]

    record = dict(
        step=n, **outcome(episode), trained=int((number > 0).sum()), response_tokens=int(number.sum()),
        row_tokens=sum(len(row.ids) for row in episode.rows),
        teacher_tokens=sum(len(turn.ids) for turn in episode.turns if turn.who == "teacher"),
        dropped_tokens=sum(turn.dropped for turn in episode.turns),
        loss=float(sums["loss"].sum()),
        kl=known(sums["kl"].sum()),
        tokens_turn=number.tolist(),
        weight_turn=[turn.weight for turn in episode.turns],
        kl_turn=by_turn(sums["kl"]),
        logp_turn=by_turn(sums["logp"] / np.maximum(number, 1)),
        entropy_turn=by_turn(sums["entropy"] / np.maximum(number, 1)),
        mismatch=float(tokens["mismatch"][sampled].sum()),
        sampled_tokens=int(sampled.sum()))
    judged = [turn.judgement and turn.judgement._asdict() for turn in episode.turns]
    return {**record, "judged": judged} if any(judged) else record


def episode_records(n, episodes, tokens):
    """The lines of step n; tokens: of all its trained tokens, with the "episode" and "turn" of each."""
    records = []
    for e, episode in enumerate(episodes):
        own = tokens["episode"] == e
        values = {name: column[own] for name, column in tokens.items()}
        records.append(episode_record(n, episode, values.pop("turn").astype(int), values))
    return records


def mean_per_turn(records, name):
    """A figure per turn, over the episodes that were trained at that turn; None where none was."""
    means = []
    for t in range(max((r["rounds"] for r in records), default=0)):
        values = [r[name][t] for r in records if t < r["rounds"] and r[name][t] is not None]
        means.append(sum(values) / len(values) if values else None)
    return means


def step_record(n, k, loss, norm, clip, records, lost, restarts, seconds):
    """The log's line of step n, from all ranks' episodes: their records, and the outcomes of those that are
    left out (`Episode.sound`).

    k: the dial; None where it bounds nothing. norm: of the gradient, before it was clipped to `clip`. rounds
    count replayed turns, turns only trained ones. acted: turns of each who; judged: answers that the teacher
    read before the game did; weighed: tokens with a weight in the loss; teacher_tokens: that it drew;
    dropped_tokens: of the answers that it read and then took the place of.
    mismatch: the mean |log q − log q_sampled| over the tokens that the student sampled; not 0 where learner
    and player compute differently. crashed, filled, unplayable: what is not among the records, since the
    world died, the replayed expert left no room in the context, or the task cannot be played. restarts:
    engines that were replaced.
    """
    summary, games = summarise(records), max(1, len(records))
    tokens, turns = total(records, "response_tokens"), total(records, "trained")
    kls = [r["kl"] for r in records]
    kl = math.nan if None in kls else sum(kls)
    shown = ("games", "success", "rounds", *COUNTED, "context_cut")
    who = "".join(r["who"] for r in records)
    weighed = [n for r in records for n, weight in zip(r["tokens_turn"], r["weight_turn"]) if weight]
    return dict(
        step=n, k=known(k), loss=loss, grad_norm=norm, clipped=norm > clip,
        kl=known(kl / games),
        kl_token=known(kl / max(1, tokens)),
        **{name: mean_per_turn(records, name) for name in ("kl_turn", "logp_turn", "entropy_turn")},
        mismatch=total(records, "mismatch") / max(1, total(records, "sampled_tokens")),
        **{name: summary[name] for name in shown},
        crashed=total(lost, "crashed"),
        filled=[o["task"] for o in lost if o["filled"]],
        unplayable=unplayable(lost),
        restarts=restarts,
        acted={name: who.count(name[0]) for name in ("student", "teacher", "expert")},
        judged=sum(map(bool, (turn for r in records for turn in r.get("judged", ())))),
        turns=turns / games,
        response_length=tokens / max(1, turns),
        tokens=tokens,
        weighed=sum(weighed),
        teacher_tokens=total(records, "teacher_tokens"),
        dropped_tokens=total(records, "dropped_tokens"),
        row_tokens=total(records, "row_tokens"),
        seconds=seconds)


def all_unplayable(log):
    """{task: why it cannot be played} of a run's log so far."""
    bad = {}
    for record in log:
        bad.update(record.get("unplayable", {}))
    return bad


def left_out(log, drawn):
    """What a run of `drawn` tasks left out, a line for each cause; empty where it is nothing."""
    bad, lines = all_unplayable(log), []
    filled = {task for record in log for task in record.get("filled", ())}
    if bad:
        lines.append(f"of {drawn} tasks drawn, {LEFT_OUT}: {named(bad)}")
    if filled:
        lines.append(f"of {drawn} tasks drawn, {NO_ROOM}: {len(filled)} in some steps")
    return "\n".join(lines)


def clipping(log):
    """In how many steps the gradient was clipped, as a sentence; empty where it was in none."""
    steps = [record for record in log if "clipped" in record]  # logs of older versions have none
    clipped = total(steps, "clipped")
    if not clipped:
        return ""
    norm = median(record["grad_norm"] for record in steps)
    return f"the gradient was clipped in {clipped} of {len(steps)} steps, its median norm was {norm:.3g}"


def status(record, results):
    """The figures to watch, for the progress bar. results: {who: {split: summary}} so far."""
    held_out = next((f"{s['success']:.0%}" for s in results.get("after", {}).values()), "–")
    kl = "–" if record["kl"] is None else f"{record['kl'] / max(record['turns'], 1e-9):.3g}"
    speed = record["tokens"] / sum(record["seconds"].values())
    lost = record["crashed"] + len(record["filled"]) + len(record["unplayable"])
    k = "–" if record["k"] is None else f"{record['k']:.3g}"
    won = "–" if record["success"] is None else f"{record['success']:.0%}"
    text = (f"k {k} loss {record['loss']:.3g} KL/turn {kl} won {won} "
            f"rounds {record['rounds']:.1f} refused {record['invalid']:.0%} "
            f"held-out {held_out} tok/s {speed:.0f}")
    return text + f" left out {lost}" * bool(lost)


# ---- tables

def percent(part):
    """'62.1% [54%–70%]' of a dict from `rate`."""
    return f"{part['success']:6.1%} [{part['low']:.0%}–{part['high']:.0%}]"


def table(results):
    """The screen's table: results {who: {split: summary}} -> a line for each of both."""
    rows = {f"{who} · {split}": s for who, splits in results.items() for split, s in splits.items()}
    width = max(map(len, rows)) + 2
    lines = [f"{'':{width}}success [95 %]      games  rounds  invalid  no action    cut  context"]
    ended, crashed, games, bad = 0, 0, 0, {}
    for label, s in rows.items():
        out_of_context = s["context_cut"] / max(1, s["games"])
        rates = f"{s['invalid']:9.1%}{s['missing']:11.1%}{s['cut']:7.1%}{out_of_context:9.1%}"
        lines.append(f"{label:{width}}{percent(s):19}{s['games']:6}{s['rounds']:8.1f}{rates}")
        ended, crashed, games = ended + s["context_cut"], crashed + s["crashed"], games + s["games"]
        bad.update(s.get("unplayable", {}))  # logs of older versions have none
    if ended > CONTEXT_WARNING * games:
        lines.append(
            f"{ended} of {games} episodes were ended by the context and count as not won: "
            "raise --max-context, or use --history window:N")
    if crashed:
        lines.append(f"{crashed} of {games} episodes ended with an engine that died, and count as not won")
    if bad:
        lines.append(f"{LEFT_OUT}: {named(bad)}")
    return "\n".join(lines)


def table_by_kind(splits):
    """{split: summary} -> a line per task type, a column per split; empty where there is one type only."""
    kinds = sorted({kind for s in splits.values() for kind in s["kinds"]})
    if len(kinds) < 2:
        return ""
    title = "success by task type"
    wide = max(map(len, [title, *kinds])) + 2
    lines = ["", f"{title:{wide}}  " + "  ".join(f"{split:>14}" for split in splits)]
    for kind in kinds:
        parts = [s["kinds"].get(kind) for s in splits.values()]
        cells = [f"{part['success']:.0%} of {part['games']}" if part else "–" for part in parts]
        lines.append(f"{kind:{wide}}  " + "  ".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)
