"""What the loop of tcod.py works with: the student as it learns and plays, and a run with its models, games,
log, checkpoint and evaluations.
"""

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import curriculum
import envs
import load
import lora
import methods
import rollout
from batch import EMPTY, collate
from chat import prompts
from chat.template import Chat
from eval import HeldOut, assessed, at_once, check_context, limits_of, make_games, show
from harness import stops
from harness.cli import UserError
from harness.ranks import Gradients, Ranks, device
from harness.report import clipping, episode_records, left_out, outcome, status, step_record
from harness.run import Run
from loss import Distiller
from model import playing_copy, refresh, release
from tasks import drawn, identity, load_tasks, pick, tell_left_out
from watch import row

# ---- the student

def adamw(student, lr, world):
    """The optimizer: fp32 moments, fused on a GPU; of several GPUs each holds a part of them."""
    cuda = next(student.parameters()).is_cuda
    setting = dict(lr=lr, weight_decay=0.0, fused=cuda)
    if world == 1 or not cuda:
        return torch.optim.AdamW(student.parameters(), **setting)
    from torch.distributed.optim import ZeroRedundancyOptimizer  # takes two seconds

    return ZeroRedundancyOptimizer(student.parameters(), torch.optim.AdamW, **setting)


class Student:
    """The student as it learns and as it plays; each has the memory that the other gives up meanwhile.

    model: the fp32 master weights; learned: what has gradients and moments, the model or its factors (see
    lora.py); actor: the copy that plays, of a model with factors itself.
    """

    def __init__(self, model, vocabulary, args, ranks):
        self.model, self.clip = model, args.clip
        self.recompute = not load.is_small(model)  # less memory, about a third more time
        if self.recompute:
            model.activation_checkpointing_enable()
        self.learned = lora.adapt(model, args.lora, args.seed) if args.lora else model
        vocabulary = vocabulary.on(model.device)
        self.distiller = Distiller(
            model, beta=args.beta, temperature=args.temperature, vocabulary=vocabulary)
        if ranks.world > 1:
            self.distribute(args.loss)
        self.gradients = Gradients(self.learned.parameters())
        self.gradients.release()
        self.actor = model if args.lora else playing_copy(model, load.play_dtype(args.precision))
        self.optimizer = adamw(self.learned, args.lr, ranks.world)

    def distribute(self, loss):
        """Wrap it for the ranks. loss: a name."""
        self.distiller = DistributedDataParallel(
            self.distiller, gradient_as_bucket_view=True, forward_sync_buffers=False)
        # DDP makes gradients views of its buckets in a first backward pass, and makes these anew in the
        # second. In those of a step, a second copy of all gradients would stand beside the activations.
        nothing = collate([EMPTY], loss, self.model.device)
        for _ in range(2):
            self.distiller.zero_grad(set_to_none=True)
            value, _ = self.distiller(nothing, None)
            value.backward()

    def learns(self):
        """From here to `plays` there are gradients, zero at first, and no playing copy."""
        release(self.actor, self.model)
        self.gradients.restore()

    def clipped(self):
        """Clip the gradient; returns its norm before."""
        return torch.nn.utils.clip_grad_norm_(self.learned.parameters(), self.clip).item()

    def plays(self):
        """From here to `learns` the playing copy has the weights of now."""
        self.gradients.release()
        refresh(self.actor, self.model)


# ---- the run

@dataclass
class Training:
    """All that the loop works with."""
    args: Any               # tcod.Args
    ranks: Ranks
    run: Run
    student: Student
    teacher: Any
    chat: Chat
    tasks: list             # to train on
    games: list             # environments: as many as are played at once
    held_out: HeldOut
    turns: int              # the horizon T
    method: curriculum.Method
    hint: str               # the text of --hint
    told: bool = False      # by what the method is calibrated
    # Of the step at work: when it began, engines that had been replaced by then, seconds of its parts.
    began: float = 0.0
    restarts: int = 0
    seconds: dict = field(default_factory=dict)

    def steps(self):
        """The numbers of the steps that are not made yet, under a bar. Behind each: its checkpoint, its
        evaluation, the end where a signal asked for it. Before the first: what a stop had left undone."""
        args, run = self.args, self.run
        done, hidden = run.checkpoint.step, not self.ranks.first
        self.finish(done)
        if done == 0 and run.log:
            self.ranks.print(show(assessed(run.log)))
        left = range(done + 1, args.steps + 1)
        with tqdm(left, initial=done, total=args.steps, disable=hidden, dynamic_ncols=True) as bar:
            for n in bar:
                self.began, self.restarts = time.perf_counter(), self.games[0].restarts
                yield n
                if n % args.save_every == 0 or n == args.steps:
                    run.checkpoint.save()
                tell_left_out(run.log, self.tasks, args, self.ranks)
                self.finish(n)
                bar.set_postfix_str(status(run.log[-1], assessed(run.log)))

    def play(self, n, rules):
        """(the episodes of step n to learn from, the others' outcomes), of this rank."""
        args, ranks = self.args, self.ranks
        self.tell(rules)
        mine = ranks.share(pick(self.tasks, n, args))
        if needs_expert(self.method, self.hint):
            mine = [self.games[0].demonstrate(task) for task in mine]
        if self.hint:
            mine = [replace(task, hint=prompts.hinted(self.hint, task.expert)) for task in mine]
        mine = [self.method.start(task, rules.k, self.run.log) for task in mine]
        actors = {"student": self.student.actor, "teacher": self.teacher}
        limits = limits_of(args, args.temperature)
        played = rollout.play(
            actors, self.chat, self.games, mine, rules, limits,
            seed=(args.seed, 0), step=n, first_index=ranks.rank, stride=ranks.world)
        episodes = [episode for episode in played if episode.sound]
        for episode in episodes:
            rules.weigh(episode)
        self.seconds = dict(play=time.perf_counter() - self.began)
        return episodes, [outcome(episode) for episode in played if not episode.sound]

    def tell(self, rules):
        """Say once what the first step has set."""
        method, by_rule = self.method, self.args.at is None and math.isfinite(rules.k)
        if method.calibrated and by_rule and not self.told:
            self.ranks.print(
                f"{self.args.method}: {method.constant} is {rules.k:.4g}, so that {method.calibrated}")
            self.told = True

    def records(self, n, episodes, tokens, loss, norm):
        """All ranks' episodes as lines of the log. Raises UserError, naming the episodes to blame, where the
        loss or its gradient is not finite."""
        if self.ranks.first and episodes:
            row.write(self.run.path("row.txt"), episodes[0], tokens, self.chat.tokenizer)
        records = episode_records(n, episodes, tokens)
        if self.method.remembers:
            for record, episode in zip(records, episodes):
                record["responses"] = [turn.response for turn in episode.turns]
        records = self.ranks.gather(records)
        if not np.isfinite(loss + norm):
            bad = [r for r in records if not np.isfinite(r["loss"])]
            named = [f"{r['task']} (step {n}, episode {r['index']})" for r in bad]
            raise UserError(
                f"the loss is {loss}, its gradient's norm {norm}, and the weights were left as they are; "
                f"it came from {', '.join(named) or 'no single episode'}")
        return records

    def note(self, n, rules, records, lost, loss, norm):
        """Write the lines of step n."""
        restarts, = self.ranks.sum([self.games[0].restarts - self.restarts])
        lost = self.ranks.gather(lost)
        self.seconds["train"] = time.perf_counter() - self.began - self.seconds["play"]
        record = step_record(
            n, rules.k, loss, norm, self.args.clip, records, lost, restarts, self.seconds)
        if not self.method.scored:
            record["success"] = None
        self.run.add(record, records)

    def finish(self, n):
        """What may be left to do behind step n when a run goes on: its student, its evaluation; and the end,
        where a signal asked for it."""
        if n and self.args.keep and n % self.args.keep == 0:
            self.save(f"student-{n}")
        self.held_out.assess(self.run)
        if self.ranks.any(stops.asked()):
            stops.end()

    def save(self, name):
        """Write the student into the run folder, an ordinary checkpoint with its own defaults."""
        if self.ranks.first:
            own = load.defaults(load.resolve(self.args.student, self.args.env))
            load.save(self.student.model, self.chat.tokenizer, self.run.path(name), own)

    def end(self):
        """Save the student, and say how it went."""
        self.save("student")
        log = self.run.log
        bad = left_out(log, drawn(self.args.steps, self.tasks, self.args))
        shown = show(assessed(log))
        for text in filter(None, (shown, clipping(log), bad)):
            self.ranks.print(text)
        self.run.close()


def needs_expert(method, hint):
    """Whether a task without an expert's episode is left out."""
    return method.expert or "{expert}" in hint


def load_models(args, ranks):
    """(student, its chat, teacher, its chat), on this process's device; says in what the chats differ."""
    names = [load.resolve(name, args.env) for name in (args.student, args.teacher)]
    read = load.play_dtype(args.precision)
    dtypes = read if args.lora else torch.float32, read
    with ranks.in_turn(device().type == "cuda"):
        tokenizers = [load.load_tokenizer(name) for name in names]
        models = [load.load_model(name, device(), dtype) for name, dtype in zip(names, dtypes)]
    load.same_vocabulary(*tokenizers)
    for model in models:
        check_context(args, model)
    vocabulary = load.vocabulary(tokenizers[0], *models)
    chat, other = (
        Chat(tokenizer, load.end_tokens(model), vocabulary, args.prompt)
        for tokenizer, model in zip(tokenizers, models))
    unlike = chat.unlike(other)
    if unlike:
        ranks.print(f"teacher and student have different {', '.join(unlike)}: the teacher judges rows in the "
                    "student's, and is evaluated in both")
    return models[0], chat, models[1], other


def set_up(args, told, ranks):
    """Models, games and the run folder. told: what to say of the defaults."""
    model, chat, teacher, other = load_models(args, ranks)
    method, hint = methods.METHODS[args.method](), prompts.hint(args.hint)
    expert = needs_expert(method, hint)
    tasks, splits = load_tasks(args, expert, chat.prompt, ranks)
    held = at_once(model, args.eval_games, ranks.world) if args.eval_every else 0
    games = make_games(args, max(args.episodes // ranks.world, held))
    turns = args.max_turns or games[0].horizon
    prints = ranks.broadcast(lambda: {
        "student": load.sample(model), "teacher": load.sample(teacher),
        **load.identity("student", model, chat), **load.identity("teacher", teacher, other),
        "prompt": chat.prompt.digest, **identity(args, tasks, splits, expert),
        **({"hint": envs.digest(hint.encode())} if hint else {})})
    student = Student(model, chat.vocabulary, args, ranks)
    run = Run(args, run_name(args), student.learned, student.optimizer, prints, ranks)
    student.plays()
    told += lora.told(model)
    ranks.print(f"{args.method} on {args.env}: {len(tasks)} training tasks, {told}, run folder {run.folder}"
                + f", going on after step {run.checkpoint.step}" * bool(args.resume))
    own = student.actor, chat
    players = {"teacher": (teacher, other), "guest": (teacher, chat), "before": own, "after": own}
    if not chat.unlike(other):
        del players["guest"]
    held_out = HeldOut(args, ranks, players, games, splits, turns)
    return Training(args, ranks, run, student, teacher, chat, tasks, games, held_out, turns, method, hint)


def run_name(args):
    """What a run folder of these arguments is called, up to its number."""
    return f"{args.env}-{args.method}"
