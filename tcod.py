"""Temporal curriculum on-policy distillation (TCOD, arXiv 2604.24005): the training entry point.

    torchrun tcod.py --env alfworld                                   # the embedded tiny pair, on a laptop CPU
    torchrun --nproc-per-node 8 tcod.py --env alfworld --data DATA \\
        --student Qwen/Qwen2.5-3B-Instruct --teacher RL-TUNED-7B     # one process per GPU

Each step: the student plays a batch of episodes inside the curriculum's window (rollout.py), teacher and student are run once over
each trajectory row, the divergence of their distributions at the student's own tokens is the loss, AdamW takes a step. OPD, F2B and
B2F differ in one line, `curriculum.window`. Left out on purpose: stale rollouts, several nodes, sharding of one model.

Notation as in loss.py: B = row, T = token, t = turn, N = trained response token of a micro-batch, D = width.
"""

import dataclasses
import json
import os
import time
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import curriculum
import envs
import loss as losses
import model as lm
import rollout
from eval import PRESETS as eval_presets
from eval import DATA, KNOBS, chat_of, check_knobs, command, evaluate, fill_presets, knob, outcome, preset, spread, summarise, table, write_json
from run import Ranks, append, free_folder, load_checkpoint, read_log, rewind, save_checkpoint

PRESETS = {  # knob: (the paper's value, for real models; the measured one, for the embedded tiny pair)
    **eval_presets,
    "loss": ("reverse", "reverse"), "k_start": (1, 1), "eta": (2.0, 2.0), "steps": (250, 120), "episodes": (16, 16), "lr": (1e-6, 1e-3),
    "eval_every": (5, 40), "eval_games": (140, 140),
}


@dataclasses.dataclass
class Args:
    """What to train, on what, how. Where two defaults are named, the second applies when the student is an embedded tiny one."""
    env: str = knob("alfworld", "alfworld, webshop or scienceworld")
    method: str = knob("f2b", "opd: all turns; f2b: the first k turns; b2f: an expert is replayed up to its last k turns")
    student: str = knob("tiny-student", "checkpoint: a Hugging Face name or folder, or tiny-student")
    teacher: str = knob("tiny-teacher", "checkpoint with the same vocabulary, or tiny-teacher, tiny-narrow")
    loss: str = preset("loss", "reverse, forward (Eq. 2) or jsd:BETA over the whole vocabulary, or k1 (sampled token, PPO clip)", PRESETS)
    aggregate: str = knob("episode", "episode: sum over an episode's tokens, mean over episodes (Eq. 2); token; turn: mean of turn means")
    schedule: str = knob("linear", "linear (Eq. 4), step (--stages) or constant (--k-start)")
    k_start: int = preset("k_start", "depth k before the first step, in turns", PRESETS)
    eta: float = preset("eta", "steps per further turn of depth, linear schedule", PRESETS)
    stages: str = knob("", "step schedule: depth@step pairs, as in 5@10,30@20")
    steps: int = preset("steps", "training steps", PRESETS)
    episodes: int = preset("episodes", "episodes per step, over all ranks", PRESETS)
    lr: float = preset("lr", "AdamW learning rate, constant", PRESETS)
    clip: float = knob(1.0, "gradient norm is clipped to this")
    ppo_clip: float = knob(0.2, "clip of the probability ratio, loss k1 only")
    temperature: float = knob(1.0, "sampling temperature of the training episodes; both distributions are compared at it")
    max_turns: int = knob(0, "turns per episode T; 0: the environment's horizon")
    max_response: int = preset("max_response", "tokens per response", PRESETS)
    max_context: int = preset("max_context", "tokens per row, prompt and responses together", PRESETS)
    history: str = knob("full", "full: one growing row per episode; window:N: every turn a fresh prompt with the last N turns")
    batch_tokens: int = knob(16384, "padded tokens per forward and backward")
    chunk: int = knob(1024, "tokens whose distributions are in memory at once")
    recompute: bool = knob(False, "recompute activations in the backward pass: less memory, about a third more time")
    eval_every: int = preset("eval_every", "evaluate on held-out games every so many steps; 0: never", PRESETS)
    eval_games: int = preset("eval_games", "held-out games per evaluation and split", PRESETS)
    eval_temperature: float = knob(0.4, "sampling temperature of the evaluation")
    save_every: int = knob(10, "write the checkpoint that --resume continues from every so many steps")
    experts: str = knob("", "expert episodes for b2f, written by eval.py --save-expert; empty: those stored beside the games")
    train_split: str = knob("", "split to train on; empty: the environment's own")
    eval_splits: str = knob("", "splits to evaluate on, by commas; empty: the environment's own")
    knobs: str = knob("", KNOBS)
    data: str = knob("", DATA)
    out: str = knob("", "run folder; empty: the first free runs/ENV-METHOD-N")
    resume: str = knob("", "a run folder: go on exactly where its checkpoint stands, with its own arguments; give it alone")
    seed: int = knob(0, "seed of everything drawn")


class Distiller(torch.nn.Module):
    """The student with its loss, so that DistributedDataParallel sees one forward per micro-batch."""

    def __init__(self, student, args, vocabulary):
        super().__init__()
        self.student, self.args, self.vocabulary = student, args, vocabulary

    def forward(self, batch, teacher_hidden, teacher_head):
        """batch from `collate`, teacher_hidden (N, D') -> loss (), KL per token (N,)."""
        hidden = lm.hidden_states(self.student, batch["ids"]).flatten(0, 1)[batch["where"]]  # (B, T, D) -> (N, D)
        return losses.ChunkedLoss.apply(hidden, lm.head(self.student), teacher_hidden, teacher_head,
                                 batch["token"], batch["old_logp"], batch["weight"], self.args, self.vocabulary)


def backward(distiller, teacher, episodes, args, ranks):
    """Accumulate the gradient of Eq. 2 over this rank's episodes; returns the loss (a rank's share) and the KL per token, by row.

    The normalisers are summed over all ranks before the first backward. Ranks may have different numbers of micro-batches: only the
    last one of each rank synchronises, and a rank without any runs an empty one.
    """
    totals = ranks.sum(losses.count(episodes))
    rows = [losses.trimmed(row) for episode in episodes for row in episode.rows]
    weights = list(losses.token_weights(episodes, args.aggregate, totals))
    loss, kls, scored = 0.0, [[] for _ in rows], [j for j, row in enumerate(rows) if row.ids]
    if not scored:  # nothing to train on this rank: it still takes part in the synchronisation
        scored, rows, weights = [0], [rollout.Row([0], [-1], [0.0])], [[0.0]]
        kls = kls or [[]]
    groups = [[scored[i] for i in group] for group in losses.micro_batches([rows[j] for j in scored], args.batch_tokens)]
    distiller.train(args.recompute)  # the model recomputes activations only in training mode; `model.load` set its dropout to 0
    for i, group in enumerate(groups):
        batch = losses.collate([rows[j] for j in group], [weights[j] for j in group], lm.head(teacher).device)
        with torch.autocast(batch["ids"].device.type, torch.bfloat16, enabled=batch["ids"].is_cuda):
            with torch.no_grad():
                teacher_hidden = lm.hidden_states(teacher, batch["ids"]).flatten(0, 1)[batch["where"]]  # (N, D')
            with nullcontext() if ranks.world == 1 or i == len(groups) - 1 else distiller.no_sync():
                value, kl = distiller(batch, teacher_hidden, lm.head(teacher))
                (value * ranks.world).backward()  # DistributedDataParallel averages over ranks; Eq. 2 is a sum
        loss += value.item()
        split = kl.tolist()
        for j in group:
            kls[j] = [split.pop(0) if t >= 0 else None for t in rows[j].turn]
    distiller.eval()
    return loss, kls


def check(args, ranks):
    """Mistakes that can be told before anything is loaded; raises UserError."""
    for name, known in (("method", curriculum.METHODS), ("schedule", curriculum.SCHEDULES), ("aggregate", ("episode", "token", "turn"))):
        if getattr(args, name) not in known:
            raise envs.UserError(f"unknown --{name} {getattr(args, name)!r}: {', '.join(known)}")
    if args.loss not in (None, "reverse", "forward", "k1"):
        losses.jsd_beta(args.loss)
    if args.schedule == "step" and not args.stages:
        raise envs.UserError("--schedule step needs --stages, as in 5@10,30@20")
    try:
        curriculum.parse_stages(args.stages)
    except ValueError as error:
        raise envs.UserError(str(error)) from None
    check_knobs(args, ("k_start", "steps", "episodes", "max_response", "save_every", "batch_tokens", "chunk"), ("eta", "temperature"))
    if (args.episodes or 0) % ranks.world:
        raise envs.UserError(f"--episodes {args.episodes} cannot be shared equally by {ranks.world} processes")


def read_experts(path):
    """{task id: actions} from a file that eval.py --save-expert wrote; raises UserError for anything else."""
    try:
        with open(path, encoding="utf-8") as file:
            return {r["task"]: tuple(r["actions"]) for r in map(json.loads, file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise envs.UserError(f"--experts {path} is not a file that eval.py --save-expert wrote ({error})") from None


def training_tasks(args, ranks):
    """The train split; for b2f only the tasks with an expert's episode, with the count of what was left out."""
    game_type, knobs = envs.game_type(args.env), envs.parse_knobs(args.env, args.knobs)
    tasks = envs.make_tasks(args.env, args.train_split or game_type.train_split, args.data, **knobs)
    if args.method != "b2f":
        return tasks
    if args.experts:
        experts = read_experts(args.experts)
        able = [dataclasses.replace(task, expert=experts[task.id]) for task in tasks if experts.get(task.id)]
    else:
        able = game_type.with_experts(tasks, args.data, **knobs)
    ranks.print(f"b2f: {len(able)} of {len(tasks)} training tasks have an expert's episode; the others are left out")
    if not able:
        raise envs.UserError("b2f needs experts' successful episodes, and no training task has one: make them with "
                             "eval.py --split train --save-expert FILE and pass --experts FILE")
    return able


def pick(tasks, n, args):
    """The tasks of step n: the list in a new order every time it has been gone through."""
    wanted = range((n - 1) * args.episodes, n * args.episodes)
    orders = {e: np.random.default_rng((args.seed, e)).permutation(len(tasks)) for e in {i // len(tasks) for i in wanted}}
    return [tasks[orders[i // len(tasks)][i % len(tasks)]] for i in wanted]


def with_kl(episode, kls):
    """An episode's line for the log: its outcome and the KL summed over each of the student's turns (nats)."""
    turns = [0.0] * (len(episode.turns) - episode.start)
    for row, row_kls in zip(episode.rows, kls):
        for t, kl in zip(row.turn, row_kls):
            if t >= 0:
                turns[t - episode.start] += kl
    trained = sum(t >= 0 for row in episode.rows for t in row.turn)
    return dict(**outcome(episode), kl=sum(turns), kl_turn=turns, response_tokens=trained, row_tokens=sum(len(r.ids) for r in episode.rows))


def step_record(n, k, loss, norm, records, seconds):
    """The log's line of step n, from all ranks' episodes. window: the first and the last turn that any student played; turns: the
    student's own per episode, where rounds count replayed ones too."""
    total = summarise(records)
    longest = max((r["start"] + len(r["kl_turn"]) for r in records), default=0)
    per_turn = [[r["kl_turn"][t - r["start"]] for r in records if 0 <= t - r["start"] < len(r["kl_turn"])] for t in range(longest)]
    tokens, turns = (max(1, total) for total in (sum(r["response_tokens"] for r in records), sum(len(r["kl_turn"]) for r in records)))
    kl = sum(r["kl"] for r in records)
    return dict(step=n, k=k, window=[min((r["start"] for r in records), default=0), longest], loss=loss, grad_norm=norm,
                kl=kl / max(1, len(records)), kl_token=kl / tokens, turns=turns / max(1, len(records)),
                kl_turn=[float(np.mean(values)) if values else None for values in per_turn],
                **{key: total[key] for key in ("games", "success", "rounds", "invalid", "missing", "cut", "context_cut", "crashed")},
                response_length=tokens / turns, tokens=tokens, row_tokens=sum(r["row_tokens"] for r in records), seconds=seconds)


def refresh(actor, student):
    """Copy the master weights into the copy that plays (on the CPU they are the same module)."""
    for copied, master in zip(actor.parameters(), student.parameters() if actor is not student else ()):
        copied.data.copy_(master.data)


def assess(actors, games, tasks, turns, limits, args, ranks):
    """Evaluate each actor on each split: {label: summary}, the same on every rank. Labels are "name · split"."""
    found = {}
    for name, (actor, chat) in actors.items():
        for split, held_out in tasks.items():
            outcomes = evaluate(actor, chat, games, held_out, turns, limits, seed=args.seed, rank=ranks.rank, world=ranks.world,
                                label=f"{name} · {split}")
            found[f"{name} · {split}"] = summarise(ranks.gather(outcomes))
    return found


def main(args):
    ranks = Ranks()
    if args.resume:
        given = args
        try:
            with open(os.path.join(args.resume, "args.json"), encoding="utf-8") as file:
                args = Args(**{**json.load(file), "resume": args.resume, "out": args.resume})
        except FileNotFoundError:
            raise envs.UserError(f"{args.resume} holds no run to resume (no args.json)") from None
        if given != Args(resume=given.resume):
            raise envs.UserError("--resume takes everything else from the run's own args.json: give it alone")
    check(args, ranks)
    train(args, ranks)
    if ranks.world > 1:
        dist.destroy_process_group()


def train(args, ranks):
    """Set up student, teacher, games and log; then the loop."""
    game_type, knobs, device = envs.game_type(args.env), envs.parse_knobs(args.env, args.knobs), lm.device()
    student, tokenizer = lm.load(lm.resolve(args.student, args.env), device)
    teacher, teacher_tokenizer = lm.load(lm.resolve(args.teacher, args.env), device, lm.play_dtype())
    lm.same_vocabulary(tokenizer, teacher_tokenizer)
    chat, teacher_chat = chat_of(student, tokenizer), chat_of(teacher, teacher_tokenizer)
    which = fill_presets(args, chat, student, PRESETS)
    check(args, ranks)
    share = args.episodes // ranks.world
    limits = rollout.Limits(args.max_response, args.max_context, args.temperature, chat.style, args.history)
    eval_limits = dataclasses.replace(limits, temperature=args.eval_temperature)
    tasks = training_tasks(args, ranks)
    splits = args.eval_splits.split(",") if args.eval_splits else game_type.eval_splits
    held_out = {split: spread(envs.make_tasks(args.env, split, args.data, **knobs), args.eval_games) for split in splits}
    games = [envs.make_env(args.env, data=args.data, **knobs) for _ in range(max(share, min(32, args.eval_games)))]
    turns = args.max_turns or games[0].horizon

    if args.recompute:
        student.gradient_checkpointing_enable()
    distiller = Distiller(student, args, chat.vocabulary)
    if ranks.world > 1:
        distiller = DistributedDataParallel(distiller, gradient_as_bucket_view=True, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=0.0)
    actor = lm.playing_copy(student)  # fp32 master weights stay in `student`

    folder = args.resume or ranks.gather([free_folder(args) if ranks.rank == 0 else None])[0]
    log, episode_log = os.path.join(folder, "log.jsonl"), os.path.join(folder, "episodes.jsonl")
    done = load_checkpoint(folder, student, optimizer)
    refresh(actor, student)
    if ranks.rank == 0:
        rewind(log, done), rewind(episode_log, done)
        write_json(os.path.join(folder, "args.json"), {**dataclasses.asdict(args), "resume": "", "out": folder})
    ranks.print(f"{args.method} on {args.env}: {len(tasks)} training tasks, {which} defaults, run folder {folder}"
                + f", going on after step {done}" * bool(args.resume))

    results = {}
    for record in read_log(log, done):
        results.update(record.get("eval", {}))
    if args.eval_every and not results:
        results = assess({"teacher": (teacher, teacher_chat), "student before": (actor, chat)}, games, held_out, turns, eval_limits, args, ranks)
        if ranks.rank == 0:
            append(log, [dict(step=0, eval=results)])
        ranks.print(table(results, by_type=None))

    bar = tqdm(range(done + 1, args.steps + 1), initial=done, total=args.steps, disable=ranks.rank > 0, dynamic_ncols=True)
    for n in bar:
        began, restarts = time.perf_counter(), games[0].restarts
        k = curriculum.depth(n, args.schedule, args.k_start, args.eta, curriculum.parse_stages(args.stages))
        mine = pick(tasks, n, args)[ranks.rank::ranks.world]
        windows = [curriculum.window(args.method, k, len(task.expert), turns) for task in mine]  # OPD, F2B and B2F differ in this line
        episodes = rollout.play(actor, chat, games, mine, windows, limits, seed=(args.seed, 0), step=n, first_index=ranks.rank, stride=ranks.world)
        played = time.perf_counter()

        kept = [e for e in episodes if not e.crashed]
        optimizer.zero_grad()
        loss, kls = backward(distiller, teacher, kept, args, ranks)
        kls = iter(kls)
        records = ranks.gather([dict(step=n, **with_kl(e, [next(kls) for _ in e.rows])) for e in kept])
        loss = ranks.sum([loss])[0]
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), args.clip).item()
        stop_unless_finite(loss, norm, records)
        optimizer.step()
        refresh(actor, student)

        seconds = dict(play=played - began, train=time.perf_counter() - played)
        crashed = ranks.sum([len(episodes) - len(kept)])[0]
        record = {**step_record(n, k, loss, norm, records, seconds), "crashed": crashed}
        if args.eval_every and (n % args.eval_every == 0 or n == args.steps):
            record["eval"] = assess({"student after": (actor, chat)}, games, held_out, turns, eval_limits, args, ranks)
            results.update(record["eval"])
        record["restarts"] = ranks.sum([games[0].restarts - restarts])[0]  # of a world's engine, in all processes
        if ranks.rank == 0:
            append(log, [record])
            append(episode_log, records)
            if n % args.save_every == 0 or n == args.steps:
                save_checkpoint(folder, student, optimizer, n)
        bar.set_postfix_str(status(record, results))

    if ranks.rank == 0:
        lm.save(student, tokenizer, os.path.join(folder, "student"))
    if results:
        ranks.print(table(results, by_type="student after"))


def stop_unless_finite(loss, norm, records):
    """Raises UserError before the optimizer step when the loss or its gradient is not finite, naming the episodes that it came from."""
    if not np.isfinite(loss + norm):
        bad = [f"{r['task']} (step {r['step']}, episode {r['index']})" for r in records if not np.isfinite(r["kl"])]
        raise envs.UserError(f"the loss is {loss}, its gradient's norm {norm}, and the weights were left as they are; it came from {', '.join(bad) or 'no single episode'}")


def status(record, results):
    """The figures to watch, for the progress bar."""
    last = next((f"{s['success']:.0%}" for label, s in results.items() if label.startswith("student after")), "–")
    return (f"k {record['k']} loss {record['loss']:.3g} KL/turn {record['kl'] / max(record['turns'], 1e-9):.3g} won {record['success']:.0%} "
            f"rounds {record['rounds']:.1f} held-out {last} tok/s {record['tokens'] / sum(record['seconds'].values()):.0f}")


if __name__ == "__main__":
    command(main, Args)
