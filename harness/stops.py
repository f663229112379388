"""Interim."""
import os, signal, sys
from contextlib import contextmanager
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_came = [None]
class Stopped(BaseException):
    def __init__(self, number):
        super().__init__(number); self.status = 128 + number; self.kept = ""
    def __str__(self):
        return ": ".join(filter(None, [f"stopped by {NAMES[self.args[0]]}", self.kept]))
def say(stop):
    print(stop, file=sys.stderr, flush=True)
def catch():
    pass
@contextmanager
def running():
    yield
def asked():
    return _came[0] is not None
def end(kept=""):
    stop = Stopped(_came[0]); stop.kept = kept
    raise stop
