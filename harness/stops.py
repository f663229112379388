"""Ctrl-C and SIGTERM: a command ends in one sentence, with its work kept whole, and exit status 130 or 143.

A signal is raised as `Stopped` wherever the command happens to be; `whole` puts it off to the end of what
must not be cut in two. `catch` comes before the imports that take seconds: until the command has begun there
is nothing to keep, and a signal ends the process at once. A signal that the process was started to ignore
stays ignored.
"""

import ctypes
import os
import signal
import sys
from contextlib import contextmanager

DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(BaseException):
    """A signal asked for the end. Not an Exception: nothing that survives an error may survive this.

    kept: a clause that says what is left of the work, which whoever leaves something fills in.
    """

    def __init__(self, number):
        super().__init__(number)
        self.status = 128 + number
        self.kept = ""

    def __str__(self):
        return ": ".join(filter(None, [f"stopped by {NAMES[self.args[0]]}", self.kept]))


class _Now:
    """Where this process is: `begun`, a command is running; `closed`, how many `whole` are open; `came`, the
    signal that did."""
    begun, closed, came = False, 0, None


def _on_signal(number, _):
    if _Now.came:
        return  # torchrun hands on a Ctrl-C that the process had itself: what is being saved goes on
    _Now.came = number
    if not _Now.begun:  # what is being imported, or taken down, could only add a traceback
        stop = Stopped(number)
        say(stop)
        os._exit(stop.status)
    if not _Now.closed:
        raise Stopped(number)


def say(stop):
    """The sentence, of one rank for all."""
    if os.environ.get("RANK", "0") == "0":
        print(stop, file=sys.stderr, flush=True)


def catch():
    """Ctrl-C and SIGTERM are ours from here on. Where torchrun is killed, which tells its processes nothing,
    the system sends them SIGTERM: they would go on alone, and keep the run's folder."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)
    for number in NAMES:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


@contextmanager
def running():
    """Around a command: inside, a signal is raised as Stopped."""
    _Now.begun, _Now.closed, _Now.came = True, 0, None
    try:
        yield
    finally:
        _Now.begun = False


@contextmanager
def whole():
    """Around what must not be cut in two; a signal that came meanwhile is raised behind it, and so is one
    that was raised where Python drops what is raised (a `__del__`)."""
    _Now.closed += 1
    try:
        yield
    finally:
        _Now.closed -= 1
    if _Now.came and not _Now.closed:
        raise Stopped(_Now.came)
