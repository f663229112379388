"""The temporal curriculum: how deep an episode the student is shown at training step n, and which turns of it are its own.

`depth` is the schedule k(n) of Eq. 4; `window` turns k into the turns that the student plays and is trained on. The return line of
`window` is the whole difference between OPD, F2B and B2F. No torch, no environment: plain integers.
"""

METHODS = ("opd", "f2b", "b2f")
SCHEDULES = ("linear", "step", "constant")


def depth(n, schedule="linear", k_start=1, eta=2.0, stages=()):
    """k at training step n = 1 … N, in turns; not capped, `window` does that.

    linear    k = k_start + floor(n / eta)                                   (Eq. 4)
    step      the k of the last stage that has begun; before the first: k_start
    constant  k_start
    stages: pairs (k, first step), as `parse_stages` makes them.

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
    """'5@10,30@20' -> [(5, 10), (30, 20)]: depth 5 from step 10 on, depth 30 from step 20 on. Raises ValueError with one sentence."""
    try:
        stages = [tuple(int(number) for number in stage.split("@")) for stage in text.split(",") if stage]
        if any(len(stage) != 2 or min(stage) < 1 for stage in stages):
            raise ValueError
    except ValueError:
        raise ValueError(f"stages are written depth@step, as in 5@10,30@20, both at least 1, not {text!r}") from None
    return stages


def window(method, k, L, T):
    """The student's turns (start, stop) in an episode of at most T turns: before `start` an expert's actions are replayed,
    from `start` to `stop` the student acts and is trained on, at `stop` the episode ends. L: length of the expert's successful
    episode, in turns (B2F only).

    Replayed turns count towards T. Only an expert that needs more than T turns is used from its end: the episode then goes on to the
    expert's length, and the student never gets more than T turns of its own.

    >>> window("opd", 3, None, 30), window("f2b", 3, None, 30), window("b2f", 3, 8, 30)
    ((0, 30), (0, 3), (5, 30))
    """
    if method == "b2f" and not L:
        raise ValueError("B2F replays an expert's successful episode, and this task has none")
    if method == "b2f":
        start = max(0, L - k)
        return start, min(start + T, max(L, T))
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: {', '.join(METHODS)}")
    return {"opd": (0, T), "f2b": (0, min(k, T))}[method]
