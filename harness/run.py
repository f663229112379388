"""A training run on disk: its folder with arguments, log and checkpoint, and what going on with it asks for.

Nothing is lost by a kill at any moment: the log is cut back to the checkpoint's step when a run goes on.
"""

import os
from contextlib import contextmanager
from dataclasses import asdict, fields

import torch

from harness.cli import UserError
from harness.folder import (
    EPISODES, LOG, append, claim, free_folder, read_args, read_log, replacing, rewind, write_json,
    write_lines)
from harness.stops import Stopped, whole


# ---- the arguments of a run to go on with

def resumed(args):
    """The arguments of the run that --resume names, for as many steps as it had, or more.

    args: of an entry point, a dataclass with `resume` and `steps`. Raises UserError where the run cannot go
    on with them.
    """
    known = type(args)
    if args != known(resume=args.resume, steps=args.steps):
        raise UserError(
            "--resume takes everything else from the run's own args.json: give it alone, or with more "
            "--steps")
    saved = read_args(args.resume)
    saved.pop("fingerprint", None)
    strange = sorted(set(saved) - {f.name for f in fields(known)})
    if strange:
        raise UserError(
            f"{args.resume}/args.json has arguments that this version does not know ({', '.join(strange)}): "
            "go on with the version that began the run")
    for f in fields(known):
        value = saved.get(f.name, f.default)
        if value is not None and not isinstance(value, (int, float) if f.type is float else f.type):
            raise UserError(f"{args.resume}/args.json has {f.name} {value!r}, which is no {f.type.__name__}")
    if args.steps is not None:
        lengthen(saved, args.steps)
    return known(**{**saved, "resume": args.resume, "out": args.resume})


def lengthen(saved, steps):
    """Give the arguments of a run more steps; raises UserError where it would not be the run that it is."""
    if steps < saved["steps"]:
        raise UserError(f"--steps {steps} is less than the {saved['steps']} that the run was begun for")
    if saved["method"] == "guided" and steps > saved["steps"]:
        raise UserError(
            "a guided run cannot be made longer: the teacher's share beta(n) depends on the number of steps")
    saved["steps"] = steps


def check_same(folder, prints):
    """Raises UserError where a run to go on with had another model or other games than those at hand."""
    before = read_args(folder).get("fingerprint", prints)
    # What an older version did not note was as it is by default.
    changed = [what for what in prints if before.get(what, prints[what]) != prints[what]]
    if changed:
        raise UserError(
            f"{folder} was begun with another {', another '.join(changed)}: bring back the --data, "
            "the --prompt and the checkpoints that its args.json names, or begin a new run")


# ---- the checkpoint

class Checkpoint:
    """What --resume goes on from, `checkpoint.pt` in the run folder. No generator: draws are seeded by step.

    step: the last whole step, whose weights and moments are in memory; None in the middle of one.
    saved: the step that the file holds, 0 without one.
    """

    def __init__(self, folder, student, optimizer, first):
        """first: whether this process writes it. Loads what is there; raises UserError where that is no
        checkpoint of this student."""
        self.folder, self.student, self.optimizer, self.first = folder, student, optimizer, first
        self.path = os.path.join(folder, "checkpoint.pt")
        self.step = self.saved = self.load()

    def load(self):
        """Restore what was saved; returns its step, 0 when there is none yet."""
        if not os.path.exists(self.path):
            return 0
        try:
            # No second student on the GPU, and one for all processes in the machine's memory.
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
            self.student.load_state_dict(state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
            return state["step"]
        except Exception as error:  # of a file that was cut, torch raises whatever its bytes lead to
            raise UserError(
                f"{self.path} is no whole checkpoint of this student ({type(error).__name__}): bring back "
                "the file that the run wrote, or begin a new run") from error

    def save(self):
        """Write it in one file, beside and moved into place; all processes come here where each has a part of
        the moments."""
        if self.sharded:
            self.optimizer.consolidate_state_dict()
        if self.first:
            parts = dict(student=self.student.state_dict(), optimizer=self.optimizer.state_dict())
            with replacing(self.path, "wb") as file:
                try:
                    torch.save(dict(**parts, step=self.step), file)
                except RuntimeError as error:  # torch's writer, closing, covers what the disk had said
                    raise error.__context__ or error
        self.saved = self.step

    @property
    def sharded(self):
        """Whether each process holds a part of the optimizer's state."""
        return hasattr(self.optimizer, "consolidate_state_dict")

    @contextmanager
    def advancing(self, n):
        """Around what makes step n: between the first change and the last line of the log there is no step to
        go on from."""
        with whole():
            self.step = None
            yield
            self.step = n

    @contextmanager
    def kept(self):
        """Around the loop: however it ends, the last whole step is kept, and a signal's sentence says so.

        With shared moments it is the last step saved: to put them together, all processes would have to come.
        """
        try:
            yield
        except BaseException as error:
            if self.step not in (None, self.saved) and not self.sharded:
                self.save()
            if isinstance(error, Stopped):
                error.kept = f"step {self.saved} is kept, go on with --resume {self.folder}"
            raise


# ---- the folder

class Run:
    """A run's folder, held by this process: its checkpoint, loaded, and its log up to that step.

    history: the log's records, the same on every rank.
    """

    def __init__(self, args, name, student, optimizer, prints, ranks):
        """Begin the run in a free folder NAME-N or in args.out, or go on with args.resume.

        prints: what it learns from and is measured on, in few letters. Raises UserError where the run to go
        on with had others, or another process is at work in it.
        """
        if args.resume:
            check_same(args.resume, prints)
        self.first = ranks.first
        self.folder = args.resume or ranks.broadcast(lambda: free_folder(args.out, name))
        self.lock = claim(self.folder) if self.first else None
        self.checkpoint = Checkpoint(self.folder, student, optimizer, self.first)
        if self.first:
            for log in (LOG, EPISODES):
                rewind(self.path(log), self.checkpoint.step)
            saved = {**asdict(args), "resume": "", "out": self.folder, "fingerprint": prints}
            write_json(self.path("args.json"), saved)
        self.history = ranks.broadcast(lambda: read_log(self.path(LOG)))

    def path(self, name):
        """Of a file of the run."""
        return os.path.join(self.folder, name)

    def add(self, record, episodes):
        """A step's line in the log, and its episodes'."""
        self.history.append(record)
        if self.first:
            append(self.path(LOG), [record])
            append(self.path(EPISODES), episodes)

    def rewrite(self):
        """Write the log anew, all of it or nothing: a line has got an evaluation."""
        if self.first:
            write_lines(self.path(LOG), self.history)

    def close(self):
        """Give the folder free."""
        if self.lock:
            self.lock.close()
