"""A training run on disk: its folder with arguments, log and checkpoint, and how a run goes on.

There is one way of going on. A folder that holds a run is gone on with where its checkpoint stands: the one
that --resume names, the one that --out names when the same command is given again, the one that torchrun's
restart had begun. Nothing is lost by a kill at any moment: the log is cut back to the checkpoint's step.
"""

import os
from contextlib import contextmanager
from dataclasses import asdict, fields

import torch

from harness.cli import UserError, usual
from harness.folder import (
    EPISODES,
    LOG,
    append,
    claim,
    differing,
    free_folder,
    holds_run,
    left_by_restart,
    read_args,
    read_log,
    replacing,
    rewind,
    write_json,
    write_lines,
)
from harness.stops import Stopped

OPEN = (None, "", "auto")  # what a preset is that the user left open, or to the machine


# ---- the arguments of a run to go on with

def begun(args, name):
    """The folder of the run to go on with, "" for a new one; name: of a run folder without --out."""
    if args.resume:
        return args.resume
    return args.out if holds_run(args.out) else left_by_restart(name)


def going_on(args, folder, paced):
    """The arguments of the run in `folder`, for as many steps as it had, or more.

    args: of an entry point, a dataclass with `resume`, `out` and `steps`; paced: method -> whether it depends
    on the number of steps. Raises UserError where the run cannot go on.
    """
    known = type(args)
    if args.resume and args != known(resume=args.resume, steps=args.steps):
        raise UserError(
            "--resume takes everything else from the run's own args.json: give it alone, or with more "
            "--steps")
    saved = arguments(folder, known)
    if not args.resume:
        check_asked(folder, saved, args)
    if args.steps is not None:
        lengthen(saved, args.steps, paced)
    return known(**{**saved, "resume": folder, "out": folder})


def arguments(folder, known):
    """The arguments in a run's folder; raises UserError where `known`, a dataclass, has no such ones."""
    saved = read_args(folder)
    saved.pop("fingerprint", None)
    strange = sorted(set(saved) - {f.name for f in fields(known)})
    if strange:
        raise UserError(
            f"{folder}/args.json has arguments that this version does not know ({', '.join(strange)}): "
            "go on with the version that began the run")
    for f in fields(known):
        value = saved.get(f.name, f.default)
        if value is not None and not isinstance(value, (int, float) if f.type is float else f.type):
            raise UserError(f"{folder}/args.json has {f.name} {value!r}, which is no {f.type.__name__}")
    return saved


def check_asked(folder, saved, args):
    """Raises UserError where the run in a folder was begun with other arguments than are asked for now."""
    asked = {
        f.name: getattr(args, f.name) for f in fields(args)
        if not ("paper" in f.metadata and getattr(args, f.name) in OPEN)}
    for name in ("resume", "out", "steps"):
        asked.pop(name, None)
    before = {**usual(type(args)), **saved}  # what an older version had no knob for was as it is by default
    changed = differing({name: before[name] for name in asked}, asked)
    if changed:
        raise UserError(
            f"{folder} holds a run that was begun with another {', another '.join(changed)}: give the same "
            "arguments to go on, or choose another --out")


def lengthen(saved, steps, paced):
    """Give the arguments of a run more steps; raises UserError where it would not be the run that it is."""
    if steps < saved["steps"]:
        raise UserError(f"--steps {steps} is less than the {saved['steps']} that the run was begun for")
    if steps > saved["steps"] and paced(saved["method"]):
        raise UserError(
            f"a {saved['method']} run cannot be made longer: what its method does depends on the number of "
            "steps")
    saved["steps"] = steps


def check_same(folder, prints):
    """Raises UserError where a run to go on with had another model or other games than those at hand."""
    before = read_args(folder).get("fingerprint", {})
    # What an older version did not note was as it is by default.
    changed = differing({what: before.get(what, prints[what]) for what in prints}, prints)
    if changed:
        raise UserError(
            f"{folder} was begun with another {', another '.join(changed)}: bring back the --data, "
            "the --prompt, the --hint and the checkpoints that its args.json names, or begin a new run")


# ---- the checkpoint

class Checkpoint:
    """Where a run goes on, `checkpoint.pt` in its folder. No generator: draws are seeded by step.

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
                    raise (error.__context__ or error) from None
        self.saved = self.step

    @property
    def sharded(self):
        """Whether each process holds a part of the optimizer's state."""
        return hasattr(self.optimizer, "consolidate_state_dict")

    @contextmanager
    def advancing(self, n):
        """Around what makes step n: between the first change and the last line of the log there is no step to
        go on from."""
        self.step = None
        yield
        self.step = n

    @contextmanager
    def kept(self, meet):
        """Around the loop: however it ends, the last whole step is kept, and a signal's sentence says so.

        A signal ends all ranks behind the same step; meet: a function in which they wait for one another, so
        that none ends, and torchrun with it, while the first still writes. An error may be of one rank alone:
        where each holds a part of the moments, what was saved last is kept then.
        """
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, Stopped)
            if self.step not in (None, self.saved) and (stopped or not self.sharded):
                self.save()
            if stopped:
                error.kept = f"step {self.saved} is kept, go on with --resume {self.folder}"
                meet()
            raise


# ---- the folder

class Run:
    """A run's folder, held by this process: its checkpoint, loaded, and its log up to that step.

    log: its records, the same on every rank; in memory each has its "episodes" too.
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
        self.log = ranks.broadcast(self.read)

    def path(self, name):
        """Of a file of the run."""
        return os.path.join(self.folder, name)

    def read(self):
        """The log's records, each with its episodes."""
        log = read_log(self.path(LOG))
        records = {record["step"]: record for record in log}
        for record in log:
            record["episodes"] = []
        for episode in read_log(self.path(EPISODES), self.checkpoint.step):
            records[episode["step"]]["episodes"].append(episode)
        return log

    def add(self, record, episodes):
        """A step's line in the log, and its episodes'."""
        self.log.append({**record, "episodes": episodes})
        if self.first:
            append(self.path(EPISODES), episodes)
            append(self.path(LOG), [record])

    def rewrite(self):
        """Write the log anew, all of it or nothing: a line has got an evaluation."""
        if self.first:
            own = [{key: value for key, value in r.items() if key != "episodes"} for r in self.log]
            write_lines(self.path(LOG), own)

    def close(self):
        """Give the folder free."""
        if self.lock:
            self.lock.close()
