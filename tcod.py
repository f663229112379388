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

import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
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
from eval import PlayArgs, check_context, check_play, evaluate, fill, limits_of, spread
from experts import give_experts
from harness import plan as memory
from harness.cli import UserError, command, knob, preset
from harness.folder import (
    EPISODES, LOG, append, claim, free_folder, left_by_restart, read_args, read_log, rewind, write_json,
    write_lines)
from harness.ranks import Checkpoint, Gradients, Ranks
from harness.report import (
    LEFT_OUT, NO_ROOM, all_unplayable, check_playable, clipping, episode_record, left_out, named, outcome,
    status, step_record, summarise, table, table_by_kind)

LABELS = {  # of who is evaluated
    "teacher": "teacher", "guest": "teacher, as the student", "before": "student before",
    "after": "student after"}


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


# ---- tasks

def training_tasks(args, prompt, ranks):
    """The train split; for methods that replay an expert only its tasks with an expert's episode, counted."""
    game_type, knobs = envs.game_type(args.env), envs.parse_knobs(args.env, args.knobs)
    split = envs.check_split(args.env, args.train_split or game_type.train_split)
    tasks = envs.make_tasks(args.env, split, args.data, **knobs)
    if args.without:
        listed = len(tasks)
        tasks = envs.without(tasks, args.without)
        ranks.print(f"{listed - len(tasks)} of {listed} training tasks are left out, as {args.without} says")
    if args.method not in curriculum.NEEDS_EXPERT:
        return tasks
    if args.experts:
        able, whose = give_experts(tasks, args.experts, prompt), f"those in {args.experts}"
    else:
        able, whose = game_type.with_experts(tasks, args.data, **knobs), game_type.experts
    ranks.print(f"{args.method}: {len(able)} of {len(tasks)} training tasks have an expert's episode "
                f"({whose}); the others are left out")
    if not able:
        raise UserError(
            f"{args.method} needs experts' successful episodes, and no training task has one: make them with "
            "eval.py --split train --save-expert FILE and pass --experts FILE")
    return able


def pick(tasks, n, args):
    """The tasks of step n: the list in a new order every time it has been gone through."""
    picked, orders = [], {}
    for i in range((n - 1) * args.episodes, n * args.episodes):
        time_round, place = divmod(i, len(tasks))
        if time_round not in orders:
            orders[time_round] = np.random.default_rng((args.seed, time_round)).permutation(len(tasks))
        picked.append(tasks[orders[time_round][place]])
    return picked


def demonstrated(tasks, method, game):
    """Picked tasks with their experts' episodes, where the method needs them; game: where they are made."""
    if method not in curriculum.NEEDS_EXPERT:
        return tasks
    return [game.demonstrate(task) for task in tasks]


def drawn(n, tasks, args):
    """How many different tasks have been picked behind step n."""
    return min(n * args.episodes, len(tasks))


def tell_left_out(record, history, number, tasks, ranks):
    """Say what this step left out, each task that cannot be played once; raises UserError where these have
    become more than a few.

    record: of this step; history: the records before it; number: of tasks drawn so far.
    """
    if record["filled"] and not any(before.get("filled") for before in history):
        ranks.print(f"step {record['step']}: {NO_ROOM}: {len(record['filled'])} tasks")
    known = all_unplayable(history)
    new = {task: why for task, why in record["unplayable"].items() if task not in known}
    if new:
        ranks.print(f"step {record['step']}: {LEFT_OUT}: {named(new)}")
    check_playable({**known, **new}, number, len(tasks))


# ---- the run

def resumed(args):
    """The arguments of the run to go on with, for as many steps as it had, or more."""
    if args != Args(resume=args.resume, steps=args.steps):
        raise UserError(
            "--resume takes everything else from the run's own args.json: give it alone, or with more "
            "--steps")
    saved = read_args(args.resume)
    saved.pop("fingerprint", None)
    strange = sorted(set(saved) - {f.name for f in fields(Args)})
    if strange:
        raise UserError(
            f"{args.resume}/args.json has arguments that this version does not know ({', '.join(strange)}): "
            "go on with the version that began the run")
    for f in fields(Args):
        value = saved.get(f.name, f.default)
        if value is not None and not isinstance(value, (int, float) if f.type is float else f.type):
            raise UserError(f"{args.resume}/args.json has {f.name} {value!r}, which is no {f.type.__name__}")
    if args.steps is not None:
        lengthen(saved, args.steps)
    return Args(**{**saved, "resume": args.resume, "out": args.resume})


def lengthen(saved, steps):
    """Give the arguments of a run more steps; raises UserError where it would not be the run that it is."""
    if steps < saved["steps"]:
        raise UserError(f"--steps {steps} is less than the {saved['steps']} that the run was begun for")
    if saved["method"] == "guided" and steps > saved["steps"]:
        raise UserError(
            "a guided run cannot be made longer: the teacher's share beta(n) depends on the number of steps")
    saved["steps"] = steps


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


def check_shared(tasks, held_out):
    """Raises UserError where held-out tasks are trained on, whatever their splits are called."""
    trained = {task.digest for task in tasks} - {""}
    for split, chosen in held_out.items():
        shared = sum(task.digest in trained for task in chosen)
        if shared:
            raise UserError(
                f"{shared} of the {len(chosen)} tasks to evaluate on of split {split} are trained on: choose "
                "other --eval-splits, or say --shared-tasks if that is meant")


def load_games(args, prompt, ranks):
    """(training tasks, {split: held-out tasks}, environments: as many as are played at once by this rank)."""
    knobs = envs.parse_knobs(args.env, args.knobs)
    tasks, held_out = training_tasks(args, prompt, ranks), {}
    for label, split in envs.named_splits(args.env, args.eval_splits).items():
        listed = envs.make_tasks(args.env, split, args.data, **knobs)
        held_out[label] = spread(listed, args.eval_games)
        if label != split:
            ranks.print(f"{label}: {len(held_out[label])} of the {len(listed)} tasks in {split}")
    if not args.shared_tasks:
        check_shared(tasks, held_out)
    at_once = range(memory.at_once(args, ranks.world))
    return tasks, held_out, [envs.make_env(args.env, data=args.data, **knobs) for _ in at_once]


def evaluation_limits(args, positions, ranks):
    """What bounds an episode of the evaluation: the game may say as much as in training, so a row is longer
    by what a response is, up to the models' positions; where these are too few, the screen says so."""
    limits = limits_of(args, args.eval_temperature)
    response = args.eval_max_response or args.max_response
    context = args.max_context + response - args.max_response
    if context > positions and args.eval_every:
        ranks.print(f"evaluations end an episode at {positions - response} tokens instead of "
                    f"{context - response}: --eval-max-response {response} does not fit behind more of them")
    return replace(limits, max_response=response, max_context=min(context, positions))


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


def assess(history, keep, *, players, games, held_out, turns, limits, args, ranks):
    """Evaluate what is due after the last step of the log and not yet in it, {who: {split: summary}}.

    The same on every rank. Before the first step, 0, these are the teacher and the student, later the
    student.

    players: {who: (model, chat)}; keep() writes the log, and is called for each split: nothing but the
    evaluation in progress is lost.
    """
    n = history[-1]["step"] if history else 0
    if not args.eval_every or (n % args.eval_every and n != args.steps):
        return
    if not history:
        history.append(dict(step=0))
    results = history[-1].setdefault("eval", {})
    for who in ["after"] if n else [who for who in players if who != "after"]:
        done, (model, chat) = results.setdefault(who, {}), players[who]
        for split in [split for split in held_out if split not in done]:
            outcomes = evaluate(
                model, chat, games, held_out[split], turns, limits, seed=args.seed, rank=ranks.rank,
                world=ranks.world, label=f"{LABELS[who]} · {split}")
            done[split] = summarise(ranks.gather(outcomes))
            keep()


def assessed(history):
    """The last evaluation of each {who: {split: summary}} in the log."""
    return {who: splits for record in history for who, splits in record.get("eval", {}).items()}


def fingerprints(student, teacher, tasks, held_out, prompt):
    """What a run learns from and is measured on, in few letters: --resume goes on only with the same."""
    games = {f"list of {split} tasks": envs.fingerprint(chosen) for split, chosen in held_out.items()}
    models = {"student": lm.fingerprint(student), "teacher": lm.fingerprint(teacher)}
    return {
        **models, "prompt": prompt.digest, "list of training tasks": envs.fingerprint(tasks), **games}


def check_same(folder, prints):
    """Raises UserError where a run to go on with had another model or other games than those at hand."""
    before = read_args(folder).get("fingerprint", prints)
    # What an older version did not note was as it is by default.
    changed = [what for what in prints if before.get(what, prints[what]) != prints[what]]
    if changed:
        raise UserError(
            f"{folder} was begun with another {', another '.join(changed)}: bring back the --data, "
            "the --prompt and the checkpoints that its args.json names, or begin a new run")


def run_name(args):
    """What a run folder of these arguments is called, up to its number."""
    return f"{args.env}-{args.method}"


def write_log(folder, history, ranks):
    """Write the log anew, all of it or nothing: the last line has got an evaluation."""
    if ranks.first:
        write_lines(os.path.join(folder, LOG), history)


def open_folder(args, student, optimizer, prints, ranks):
    """The run folder, claimed: (its checkpoint, loaded; the log's records up to that step; the lock)."""
    if args.resume:
        check_same(args.resume, prints)
    folder = args.resume or ranks.broadcast(lambda: free_folder(args.out, run_name(args)))
    lock = claim(folder) if ranks.first else None
    checkpoint = Checkpoint(folder, student, optimizer, ranks.first)
    if ranks.first:
        for name in (LOG, EPISODES):
            rewind(os.path.join(folder, name), checkpoint.step)
        saved = {**asdict(args), "resume": "", "out": folder, "fingerprint": prints}
        write_json(os.path.join(folder, "args.json"), saved)
    return checkpoint, ranks.broadcast(lambda: read_log(os.path.join(folder, LOG))), lock


def is_kept(n, args):
    """Whether the student of step n is one that --keep asks for."""
    return bool(args.keep and n and n % args.keep == 0)


def save_student(name, student, tokenizer, folder, args, ranks):
    """Write the student into the run folder, an ordinary checkpoint with its own defaults."""
    if ranks.first:
        own = lm.defaults(lm.resolve(args.student, args.env))
        with stops.whole():
            lm.save(student, tokenizer, os.path.join(folder, name), own)


def show(results):
    """The table of all evaluations so far; success per task type once the student has been trained."""
    text = table({LABELS[who]: splits for who, splits in results.items()}) if results else ""
    return "\n".join(filter(None, [text, table_by_kind(results.get("after", {}))]))


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


def train(args, defaults, ranks):
    """Set up models, games and the run folder; then the loop. defaults: what the screen says of them."""
    tell_plan(args, ranks)
    student, chat, teacher, teacher_chat = load_models(args, ranks)
    distiller = distributed(student, args, chat.vocabulary, ranks)
    gradients = Gradients(student.parameters())
    gradients.release()
    actor = lm.playing_copy(student, args.precision)  # fp32 master weights stay in `student`
    optimizer = adamw(student, args, ranks.world)
    tasks, held_out, games = load_games(args, chat.prompt, ranks)
    turns = args.max_turns or games[0].horizon
    limits = limits_of(args, args.temperature)
    positions = min(lm.longest(model.config) for model in (student, teacher))
    stages, method = curriculum.parse_stages(args.stages), curriculum.METHODS[args.method]

    prints = fingerprints(student, teacher, tasks, held_out, chat.prompt)
    checkpoint, history, lock = open_folder(args, student, optimizer, prints, ranks)
    folder, done = checkpoint.folder, checkpoint.step
    lm.refresh(actor, student)
    ranks.print(f"{args.method} on {args.env}: {len(tasks)} training tasks, {defaults}, "
                f"run folder {folder}" + f", going on after step {done}" * bool(args.resume))
    players = {
        "teacher": (teacher, teacher_chat), "guest": (teacher, chat), "before": (actor, chat),
        "after": (actor, chat)}
    if not chat.unlike(teacher_chat):
        del players["guest"]
    judge = partial(
        assess, history, partial(write_log, folder, history, ranks), players=players, games=games,
        held_out=held_out, turns=turns, args=args, ranks=ranks,
        limits=evaluation_limits(args, positions, ranks))

    save = partial(
        save_student, student=student, tokenizer=chat.tokenizer, folder=folder, args=args, ranks=ranks)

    steps, restarts = range(done + 1, args.steps + 1), games[0].restarts
    with checkpoint.kept():
        if is_kept(done, args):
            save(f"student-{done}")  # a run may have ended between its checkpoint and this
        judge()
        if done == 0 and history:
            ranks.print(show(assessed(history)))
        bar = tqdm(steps, initial=done, total=args.steps, disable=not ranks.first, dynamic_ncols=True)
        for n in bar:
            began, before = time.perf_counter(), restarts
            k = curriculum.depth(n, args.schedule, args.k_start, args.eta, stages, history)
            plan = curriculum.plan(method, k, turns, curriculum.beta(n, args.steps, args.rho))
            mine = demonstrated(ranks.share(pick(tasks, n, args)), args.method, games[0])
            played = rollout.play(
                {"student": actor, "teacher": teacher}, chat, games, mine, plan, limits,
                seed=(args.seed, 0), step=n, first_index=ranks.rank, stride=ranks.world)
            seconds = dict(play=time.perf_counter() - began)

            lm.release(actor, student)
            gradients.restore()
            episodes = [episode for episode in played if episode.sound]
            loss, sums = backward(distiller, teacher, episodes, args, ranks)
            records = ranks.gather([episode_record(n, *parts) for parts in zip(episodes, *sums)])
            lost = ranks.gather([outcome(episode) for episode in played if not episode.sound])
            restarts = games[0].restarts  # of engines; those of an evaluation count in the step behind it
            loss, died = ranks.sum([loss, restarts - before])
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), args.clip).item()
            stop_unless_finite(loss, norm, records)
            with checkpoint.advancing(n):
                if records:  # else AdamW's momentum alone would move the weights
                    optimizer.step()
                gradients.release()
                lm.refresh(actor, student)
                seconds["train"] = time.perf_counter() - began - seconds["play"]
                history.append(step_record(n, k, loss, norm, args.clip, records, lost, died, seconds))
                if ranks.first:
                    append(os.path.join(folder, LOG), history[-1:])
                    append(os.path.join(folder, EPISODES), records)
            if n % args.save_every == 0 or n == args.steps:
                checkpoint.save()
            if is_kept(n, args):
                save(f"student-{n}")
            tell_left_out(history[-1], history[:-1], drawn(n, tasks, args), tasks, ranks)
            judge()
            bar.set_postfix_str(status(history[-1], assessed(history)))
        save("student")
    bad = left_out(history, drawn(args.steps, tasks, args))
    for text in filter(None, (show(assessed(history)), clipping(history), bad)):
        ranks.print(text)
    if lock:
        lock.close()


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
