"""Ctrl-C, SIGTERM and SIGHUP: a command ends in one sentence, with exit status 130, 143 or 129.

A loop that asks (`asked`, behind each step) ends itself there, its work kept; a second signal ends the
process at once. Nothing is half-written either way: files are moved into place whole, and the line of a log
that was cut is skipped. Until a loop has asked, a signal is raised wherever the command is; until the command
has begun, it ends the process.
"""

import ctypes
import math
import os
import signal
import stat
import sys
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
PRESS = 1.0  # seconds within which who hands a signal on, as a launcher does, has done it
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A command is running; a loop of it asks; the signal that came, and when.
now = SimpleNamespace(begun=False, looped=False, came=None, at=-math.inf)


class Stopped(BaseException):
    """A signal asked for the end. Not an Exception: nothing that survives an error may survive this.

    kept: a clause that says what is left of the work.
    """

    def __init__(self, number, kept=""):
        super().__init__(number)
        self.name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.status, self.kept = 128 + number, kept

    def __str__(self):
        return ": ".join(filter(None, [f"stopped by {self.name}", self.kept]))


def say(sentence):
    """Show it, on one rank for all; not where the terminal is gone, or is being written at this moment."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError, RuntimeError):
            print(sentence, file=sys.stderr, flush=True)


def exit_now(status):
    """End the process, whatever it is in the middle of."""
    with suppress(OSError, RuntimeError):
        sys.stdout.flush()
    os._exit(status)


def on_signal(number, _):
    stop = Stopped(number)
    if stop.name == "SIGHUP":  # the terminal is gone: what is said from here on is dropped, and no error
        for stream in (1, 2):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    if now.begun and now.came is None:
        now.came, now.at = number, time.monotonic()
        if not now.looped:
            raise stop
        say(f"{stop.name}: what is at work is finished first; a second one ends at once")
    elif time.monotonic() > now.at + PRESS:  # while modules are imported, an error would only add a traceback
        say(stop)
        exit_now(stop.status)


def catch():
    """These signals are ours from here on, unless the process was started to ignore them.

    Where torchrun is killed, which tells its processes nothing, the system sends them SIGTERM: they would go
    on alone, and keep the run's folder.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)
    for number in CAUGHT:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)


@contextmanager
def running():
    """Around a command."""
    now.begun, now.looped, now.came, now.at = True, False, None, -math.inf
    try:
        yield
    finally:
        now.begun = False


def asked():
    """Whether a signal has come. A loop that asks once goes on asking, and ends itself by `end`."""
    now.looped = True
    return now.came is not None


def end(kept=""):
    """Raise Stopped, behind a step; kept: a clause that says what is left of the work."""
    raise Stopped(now.came or signal.SIGTERM, kept)  # another rank's signal, where none came here
