"""Temporal curriculum on-policy distillation (TCOD, arXiv 2604.24005): the training entry point.

    torchrun tcod.py --env alfworld                                 # the embedded tiny pair, on a laptop CPU
    torchrun --nproc-per-node 8 tcod.py --env alfworld --data DATA \\
        --student Qwen/Qwen2.5-3B-Instruct --teacher RL-TUNED-7B    # one process per GPU

Each step: the student plays a batch of episodes as deep as the curriculum allows (rollout.py), teacher and
student are run once over each trajectory row, the divergence of their distributions at the trained tokens is
the loss, AdamW takes a step. The methods differ in one line each, the functions of curriculum.py. Left out on
purpose: stale rollouts, several nodes, sharding of one model.

B = row, T = token, t = turn, N = trained token of a micro-batch, D = width, V = vocabulary, E = episode.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial

from harness import stops

if __name__ == "__main__":
    stops.catch()  # before the imports that take seconds

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import batch as batches
import curriculum
import envs
import loss as losses
import model as lm
import rollout
from harness import plan as memory
from harness.cli import UserError, command, knob, preset
from harness.folder import left_by_restart
from harness.ranks import Gradients, Ranks
from harness.report import clipping, episode_record, left_out, outcome, status, step_record
from harness.run import Run, resumed
from play import (
    PlayArgs, assess, assessed, check_context, check_play, evaluation_limits, fill, limits_of, show)
from tasks import demonstrated, drawn, load_games, pick, tell_left_out


@dataclass
class Args(PlayArgs):
    """What to train, on what, how. A student's checkpoint may bring its own defaults, in a file beside it."""
    method: str = knob(
        "f2b", "opd: the student plays all turns; f2b: the first k; b2f: an expert is replayed up to its "
        "last k turns; sft: an expert's responses are learned; guided: in each turn the teacher acts with a "
        "probability that falls from 1 to 0", choices=tuple(curriculum.METHODS))
    student: str = knob(
        "tiny-student", "checkpoint: a Hugging Face name or folder, or tiny-student", path=True)
    teacher: str = knob(
        "tiny-teacher", "checkpoint with the same vocabulary, or tiny-teacher, tiny-narrow", path=True)
    loss: str = preset(
        "reverse", f"{losses.explained()}. sft takes nll", choices=tuple(losses.LOSSES))
    beta: float = knob(0.5, "the weight of the teacher's side in the loss jsd", above=0.0, below=1.0)
    aggregate: str = knob(
        "episode", "episode: sum over an episode's tokens, mean over episodes (Eq. 2); token: mean over all "
        "tokens; turn: mean of the turns' means", choices=batches.AGGREGATES)
    schedule: str = knob(
        "linear", "linear (Eq. 4), step (--stages) or constant (--k-start)", choices=curriculum.SCHEDULES)
    k_start: int = preset(1, "depth k before the first step, in turns", least=1)
    eta: float = preset(2.0, "steps per further turn of depth, linear schedule", least=1e-9)
    stages: str = knob("", "step schedule: depth@step pairs, as in 5@10,30@20")
    rho: float = knob(0.8, "guided: the share of the steps after which beta(n) is 0", above=0.0)
    steps: int = preset(250, "training steps", least=1)
    episodes: int = preset(16, "episodes per step, over all ranks", least=1)
    lr: float = preset(1e-6, "AdamW learning rate, constant", above=0.0)
    clip: float = knob(1.0, "gradient norm is clipped to this", above=0.0)
    temperature: float = knob(
        1.0, "of sampling the training episodes; both distributions are compared at it", above=0.0)
    batch_tokens: int = knob(16384, "padded tokens per forward and backward", least=1)
    chunk: int = knob(1024, "tokens whose distributions are in memory at once", least=1)
    recompute: bool = preset(
        True, "recompute activations in the backward pass: less memory, about a third more time")
    moments: str = knob(
        "", "AdamW's moments: whole on every process, or shared out among them; empty: shared with more than "
        "one GPU", choices=("", "whole", "shared"))
    eval_every: int = preset(5, "evaluate on held-out games every so many steps; 0: never", least=0)
    eval_games: int = preset(140, "held-out games per evaluation and split", least=1)
    eval_batch: int = knob(32, "episodes of an evaluation that each process plays at once", least=1)
    eval_temperature: float = knob(0.4, "sampling temperature of the evaluation; 0 is greedy", least=0.0)
    eval_max_response: int = preset(
        0, "tokens per response of the evaluation (the paper: up to 4,096); 0: as in training", least=0)
    save_every: int = knob(10, "write the checkpoint that --resume goes on from every so many steps", least=1)
    keep: int = knob(
        0, "write the student of every so many steps too, as a checkpoint student-STEP; 0: only the last one",
        least=0)
    experts: str = knob(
        "", "experts' episodes for b2f and sft, written by eval.py --save-expert; empty: the games' own",
        path=True)
    train_split: str = knob(
        "", "split to train on, or a file of task ids, one a line; empty: the environment's own")
    without: str = knob("", "a file of task ids, one a line: they are not trained on", path=True)
    eval_splits: str = knob(
        "", "splits to evaluate on, by commas, or files of task ids, as in valid_seen,hard=FILE; empty: the "
        "environment's own")
    shared_tasks: bool = knob(False, "evaluate also on tasks that are trained on")
    out: str = knob("", "run folder; empty: the first free runs/ENV-METHOD-N", path=True)
    plan: int = knob(
        0, "say what each of so many GPUs would hold, by the models' configurations alone, and end; 0: train",
        least=0)
    resume: str = knob(
        "", "a run folder: go on exactly where its checkpoint stands, with its own arguments; give it alone, "
        "or with more --steps",
        path=True)


# ---- one training step

class Distiller(torch.nn.Module):
    """The student with its loss, so that DistributedDataParallel sees one forward per micro-batch."""

    def __init__(self, student, **setting):
        """setting: what `loss.chunked` asks for by name."""
        super().__init__()
        self.student, self.setting = student, setting

    def forward(self, batch, teacher):
        """batch from `collate`, teacher from `score` -> what `loss.chunked` returns."""
        hidden = lm.hidden_states(self.student, batch["ids"]).flatten(0, 1)  # (B, T, D) -> (B · T, D)
        student = hidden[batch["where"]], lm.head(self.student)  # (N, D), (V', D)
        return losses.chunked(student, teacher, batch, **self.setting)


@torch.no_grad()
def score(teacher, rows):
    """The teacher's part: its hidden states before the trained tokens of these rows, (N, D'), and its head.

    In order of (row, position). A fork that shows the teacher other context than the student (a solution, a
    hint) does it here: other rows, the same trained tokens.
    """
    device = teacher.device
    hidden = lm.hidden_states(teacher, batches.padded(rows, device)).flatten(0, 1)  # (B · T, D')
    return hidden[batches.before(rows, device)], lm.head(teacher)


def backward(distiller, teacher, episodes, args, ranks):
    """Accumulate the gradient of Eq. 2 over this rank's episodes.

    Returns this rank's part of the loss, and lists (4, E, t): the sums over each turn's tokens of 1, of their
    value, KL and mismatch (see `loss.chunked`).

    The normalisers are summed over all ranks before the first backward. Ranks may have different numbers of
    micro-batches: only the last one of each rank synchronises, and a rank without any runs an empty one.
    """
    totals = ranks.sum(batches.count(episodes))
    samples = batches.samples(episodes, args.aggregate, totals, args.loss) or [batches.EMPTY]
    groups = batches.micro_batches(samples, args.batch_tokens)
    device, bf16 = next(distiller.parameters()).device, lm.precision(args.precision) == "bf16"
    loss, turns = 0.0, max((len(episode.turns) for episode in episodes), default=0)
    sums = torch.zeros(4, len(episodes) * turns, device=device)
    distiller.train(args.recompute)  # recomputation wants training mode; `lm.load` set every dropout to 0
    for i, group in enumerate(groups):
        batch = batches.collate(group, device)
        last, taught = i + 1 == len(groups), set(batch["loss"]) - set(losses.WITHOUT_TEACHER)
        # The cache of rounded weights is for forwards that are kept: recomputation makes each one again.
        with torch.autocast(
                device.type, torch.bfloat16, enabled=bf16, cache_enabled=not args.recompute):
            judged = score(teacher, [sample.row for sample in group]) if taught else None
            with nullcontext() if last or ranks.world == 1 else distiller.no_sync():
                value, tokens = distiller(batch, judged)
                (value * ranks.world).backward()  # DDP averages over ranks; Eq. 2 is a sum
        loss += value.item()
        counted = torch.cat([torch.ones_like(tokens[:1]), tokens])  # (4, N)
        sums.index_add_(1, batch["episode"] * turns + batch["turn"], counted)
    distiller.eval()
    return loss, sums.view(4, len(episodes), turns).tolist()


def stop_unless_finite(loss, norm, records):
    """Raises UserError, naming the episodes to blame, where the loss or its gradient is not finite."""
    if not np.isfinite(loss + norm):
        bad = [r for r in records if not np.isfinite(r["loss"])]
        named = [f"{r['task']} (step {r['step']}, episode {r['index']})" for r in bad]
        raise UserError(
            f"the loss is {loss}, its gradient's norm {norm}, and the weights were left as they are; "
            f"it came from {', '.join(named) or 'no single episode'}")


# ---- the run

def resolve(args):
    """Fill in the defaults that depend on models and method; returns what to say of them on the screen.

    Raises UserError where the student's own ones name a knob that does not exist.
    """
    own = lm.defaults(lm.resolve(args.student, args.env))
    strange = sorted(set(own) - {f.name for f in fields(Args) if "paper" in f.metadata})
    if strange:
        raise UserError(f"{args.student}'s own defaults name what has none: {', '.join(strange)}")
    whose = f"{args.student}'s own defaults" if own else "the paper's defaults"
    if args.method == "sft":
        own = {**own, "loss": "nll"}
    return ", ".join([whose, *fill(args, own, args.student, args.teacher)])


def check(args, world):
    """Mistakes that can be told before models and games are loaded; raises UserError."""
    check_play(args)
    envs.check_split(args.env, args.train_split or envs.game_type(args.env).train_split)
    envs.named_splits(args.env, args.eval_splits)
    if args.without:
        envs.read_ids(args.without)
    if args.schedule == "step" and not args.stages:
        raise UserError("--schedule step needs --stages, as in 5@10,30@20")
    try:
        curriculum.parse_stages(args.stages)
    except ValueError as error:
        raise UserError(str(error)) from None
    if args.episodes % world:
        raise UserError(f"--episodes {args.episodes} cannot be shared equally by {world} processes")


def load_models(args, ranks):
    """(student, its chat, teacher, its chat), on this process's device; says in what the chats differ."""
    device, dtype = lm.device(), lm.play_dtype(args.precision)
    with ranks.in_turn(device.type == "cuda"):
        student, tokenizer = lm.load(lm.resolve(args.student, args.env), device)
        teacher, other = lm.load(lm.resolve(args.teacher, args.env), device, dtype)
    lm.same_vocabulary(tokenizer, other)
    for model in (student, teacher):
        check_context(args, model)
    vocabulary = lm.vocabulary(tokenizer, student, teacher)
    chat = rollout.Chat(tokenizer, lm.end_tokens(student), vocabulary, args.date, args.prompt)
    teacher_chat = rollout.Chat(other, lm.end_tokens(teacher), vocabulary, args.date, args.prompt)
    unlike = chat.unlike(teacher_chat)
    if unlike:
        ranks.print(f"teacher and student have different {', '.join(unlike)}: the teacher judges rows in the "
                    "student's, and is evaluated in both")
    return student, chat, teacher, teacher_chat


def learner(student, args, vocabulary):
    """The student with its loss, as it learns."""
    if args.recompute:
        student.activation_checkpointing_enable()
    vocabulary = vocabulary.on(student.device)
    setting = dict(beta=args.beta, temperature=args.temperature, vocabulary=vocabulary, chunk=args.chunk)
    return Distiller(student, **setting)


def distributed(student, args, vocabulary, ranks):
    """The student as a Distiller, wrapped for the ranks."""
    distiller = learner(student, args, vocabulary)
    if ranks.world == 1:
        return distiller
    distiller = DistributedDataParallel(distiller, gradient_as_bucket_view=True, broadcast_buffers=False)
    # DDP makes gradients views of its buckets in a first backward pass, and makes these anew in the second.
    # In those of a step, a second copy of all gradients would stand beside the activations.
    for _ in range(2):
        distiller.zero_grad(set_to_none=True)
        backward(distiller, None, [], args, ranks)
    return distiller


def adamw(student, args, world):
    """The optimizer: fp32 moments, fused on a GPU; with several processes they may each hold a part of
    them."""
    cuda = next(student.parameters()).is_cuda
    setting = dict(lr=args.lr, weight_decay=0.0, fused=cuda)
    shared = args.moments == "shared" or not args.moments and cuda
    if world == 1 or not shared:
        return torch.optim.AdamW(student.parameters(), **setting)
    from torch.distributed.optim import ZeroRedundancyOptimizer  # takes two seconds

    return ZeroRedundancyOptimizer(student.parameters(), torch.optim.AdamW, **setting)


def fingerprints(student, teacher, tasks, held_out, prompt):
    """What a run learns from and is measured on, in few letters: --resume goes on only with the same."""
    games = {f"list of {split} tasks": envs.fingerprint(chosen) for split, chosen in held_out.items()}
    models = {"student": lm.fingerprint(student), "teacher": lm.fingerprint(teacher)}
    return {
        **models, "prompt": prompt.digest, "list of training tasks": envs.fingerprint(tasks), **games}


def run_name(args):
    """What a run folder of these arguments is called, up to its number."""
    return f"{args.env}-{args.method}"


def is_kept(n, args):
    """Whether the student of step n is one that --keep asks for."""
    return bool(args.keep and n and n % args.keep == 0)


def save_student(name, model, tokenizer, run, args):
    """Write the student into the run folder, an ordinary checkpoint with its own defaults."""
    if run.first:
        own = lm.defaults(lm.resolve(args.student, args.env))
        with stops.whole():
            lm.save(model, tokenizer, run.path(name), own)


def planned(args, gpus):
    """What each of so many GPUs will hold, {phase: {part: bytes}}."""
    configs = [lm.configuration(lm.resolve(name, args.env)) for name in (args.student, args.teacher)]
    return memory.plan(args, *configs, gpus, learner)


def tell_plan(args, ranks):
    """A line of the plan, where there is a GPU that it is for."""
    if not torch.cuda.is_available() or not ranks.first:
        return
    try:
        found = planned(args, ranks.world)
        for name, card in memory.cards().items():
            ranks.print(f"memory of {name}, by plan: {memory.verdict(found, card, args, ranks.world)}")
    except UserError as error:  # the run itself will show
        ranks.print(error)


class Student:
    """The student as it learns and as it plays; each has the memory that the other gives up meanwhile.

    model: the fp32 master weights, with gradients and optimizer; actor: the copy that plays.
    """

    def __init__(self, model, vocabulary, args, ranks):
        self.model = model
        self.distiller = distributed(model, args, vocabulary, ranks)
        self.gradients = Gradients(model.parameters())
        self.gradients.release()
        self.actor = lm.playing_copy(model, args.precision)
        self.optimizer = adamw(model, args, ranks.world)

    def learns(self):
        """From here to `plays` there are gradients, zero at first, and no playing copy."""
        lm.release(self.actor, self.model)
        self.gradients.restore()

    def plays(self):
        """From here to `learns` the playing copy has the weights of now."""
        self.gradients.release()
        lm.refresh(self.actor, self.model)


def learn(student, teacher, played, n, args, ranks):
    """The gradient of step n, clipped: (loss, its norm, records of the episodes learned from, outcomes of
    those left out), the same on every rank."""
    student.learns()
    episodes = [episode for episode in played if episode.sound]
    loss, sums = backward(student.distiller, teacher, episodes, args, ranks)
    records = ranks.gather([episode_record(n, *parts) for parts in zip(episodes, *sums)])
    lost = ranks.gather([outcome(episode) for episode in played if not episode.sound])
    loss, = ranks.sum([loss])
    norm = torch.nn.utils.clip_grad_norm_(student.model.parameters(), args.clip).item()
    stop_unless_finite(loss, norm, records)
    return loss, norm, records, lost


def train(args, defaults, ranks):
    """Set up models, games and the run folder; then the loop. defaults: what the screen says of them."""
    tell_plan(args, ranks)
    model, chat, teacher, teacher_chat = load_models(args, ranks)
    student = Student(model, chat.vocabulary, args, ranks)
    tasks, held_out, games = load_games(args, chat.prompt, ranks)
    turns, limits = args.max_turns or games[0].horizon, limits_of(args, args.temperature)
    stages, method = curriculum.parse_stages(args.stages), curriculum.METHODS[args.method]

    prints = fingerprints(model, teacher, tasks, held_out, chat.prompt)
    run = Run(args, run_name(args), model, student.optimizer, prints, ranks)
    checkpoint, history, done = run.checkpoint, run.history, run.checkpoint.step
    student.plays()
    ranks.print(f"{args.method} on {args.env}: {len(tasks)} training tasks, {defaults}, "
                f"run folder {run.folder}" + f", going on after step {done}" * bool(args.resume))
    own = student.actor, chat
    players = {"teacher": (teacher, teacher_chat), "guest": (teacher, chat), "before": own, "after": own}
    if not chat.unlike(teacher_chat):
        del players["guest"]
    positions = min(lm.longest(each.config) for each in (model, teacher))
    judge = partial(
        assess, run, players=players, games=games, held_out=held_out, turns=turns, args=args, ranks=ranks,
        limits=evaluation_limits(args, positions, ranks))
    save = partial(save_student, model=model, tokenizer=chat.tokenizer, run=run, args=args)

    restarts = games[0].restarts  # of engines; those of an evaluation count in the step behind it
    with checkpoint.kept():
        if is_kept(done, args):
            save(f"student-{done}")  # a run may have ended between its checkpoint and this
        judge()
        if done == 0 and history:
            ranks.print(show(assessed(history)))
        steps = range(done + 1, args.steps + 1)
        bar = tqdm(steps, initial=done, total=args.steps, disable=not ranks.first, dynamic_ncols=True)
        for n in bar:
            began = time.perf_counter()
            k = curriculum.depth(n, args.schedule, args.k_start, args.eta, stages, history)
            plan = curriculum.plan(method, k, turns, curriculum.beta(n, args.steps, args.rho))
            mine = demonstrated(ranks.share(pick(tasks, n, args)), args.method, games[0])
            played = rollout.play(
                {"student": student.actor, "teacher": teacher}, chat, games, mine, plan, limits,
                seed=(args.seed, 0), step=n, first_index=ranks.rank, stride=ranks.world)
            seconds = dict(play=time.perf_counter() - began)
            loss, norm, records, lost = learn(student, teacher, played, n, args, ranks)
            died, = ranks.sum([games[0].restarts - restarts])
            restarts = games[0].restarts
            with checkpoint.advancing(n):
                if records:  # else AdamW's momentum alone would move the weights
                    student.optimizer.step()
                student.plays()
                seconds["train"] = time.perf_counter() - began - seconds["play"]
                run.add(step_record(n, k, loss, norm, args.clip, records, lost, died, seconds), records)
            if n % args.save_every == 0 or n == args.steps:
                checkpoint.save()
            if is_kept(n, args):
                save(f"student-{n}")
            tell_left_out(history, tasks, args, ranks)
            judge()
            bar.set_postfix_str(status(history[-1], assessed(history)))
        save("student")
    bad = left_out(history, drawn(args.steps, tasks, args))
    for text in filter(None, (show(assessed(history)), clipping(history), bad)):
        ranks.print(text)
    run.close()


def main(args):
    ranks = Ranks()
    before = ranks.broadcast(lambda: left_by_restart(args.out, run_name(args)))
    if before or args.resume:
        args = resumed(Args(resume=before) if before else args)
    if args.plan and args.precision == "auto":
        args.precision = "bf16"  # the GPUs that are planned for have it
    defaults = resolve(args)
    check(args, args.plan or ranks.world)
    with ranks.together():
        if not args.plan:
            train(args, defaults, ranks)
        elif ranks.first:
            print(memory.table(planned(args, args.plan), args, args.plan, memory.cards()))
        ranks.leave()


if __name__ == "__main__":
    command(main, Args)
