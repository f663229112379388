"""Temporal curriculum on-policy distillation (TCOD, arXiv 2604.24005): the training entry point.

    torchrun tcod.py --env alfworld                                 # the embedded tiny pair, on a laptop CPU
    torchrun --nproc-per-node 8 tcod.py --env alfworld --data DATA \\
        --student Qwen/Qwen2.5-3B-Instruct --teacher RL-TUNED-7B    # one process per GPU

Each step: the student plays a batch of episodes as deep as the curriculum allows (rollout.py), teacher and
student are run once over each trajectory row, the divergence of their distributions at the trained tokens is
the loss, AdamW takes a step. The methods are small classes in curriculum.py and methods.py. What this is not:

1. no reward: the teacher's distribution at the student's own tokens is all that is learned from;
2. no policy gradient: the divergence is summed over the vocabulary, and its gradient is exact (loss.py);
3. no stale rollouts: every step plays with the weights of now, so that there is no ratio to clip;
4. no row per turn, unless --history asks for a window: an episode is one growing row, run once.

Read this file from its end: `train` is the loop, then `backward` and `score`. After it: curriculum.py.
B = row, T = token, t = turn, N = trained token of a micro-batch, D = width, V = vocabulary.
"""

from contextlib import nullcontext
from dataclasses import dataclass, fields

from harness import stops

if __name__ == "__main__":
    stops.catch()  # before the imports that take seconds

import torch

import curriculum
import load
import methods
from batch import AGGREGATES, EMPTY, before, collate, count, micro_batches, padded, samples_of
from chat import prompts
from eval import PlayArgs, check_play, fill
from harness.cli import UserError, command, knob, preset
from harness.plan import cards, plan, table, verdict
from harness.ranks import Ranks
from harness.run import begun, going_on
from loss import LOGGED, LOSSES, WITHOUT_TEACHER, explained
from model import head, states_at
from tasks import check_split, named_splits, read_ids
from training import run_name, set_up

# ---- arguments

@dataclass
class Args(PlayArgs):
    """What to train, on what, how. A student's checkpoint may bring its own defaults, in a file beside it."""
    method: str = knob("f2b", methods.explained(), choices=tuple(methods.METHODS))
    at: float = knob(None, f"the method's own constant ({methods.constants()}); empty: by its rule")
    student: str = knob(
        "tiny-student", "checkpoint: a Hugging Face name or folder, or tiny-student", path=True)
    teacher: str = knob(
        "tiny-teacher", "checkpoint with the same vocabulary, or tiny-teacher, tiny-narrow", path=True)
    hint: str = knob(
        "", "what the teacher alone reads before the first message: expert, or a file's text, in which "
        "{expert} stands for the expert's actions; the teacher may be the student's own checkpoint",
        path=True)
    loss: str = preset(
        "reverse", f"{explained()}. sft takes nll", choices=tuple(LOSSES))
    beta: float = knob(0.5, "loss jsd: the weight of the teacher's side", above=0.0, below=1.0)
    aggregate: str = knob(
        "episode", "episode: sum over an episode's tokens, mean over episodes (Eq. 2); token: mean over all "
        "tokens; turn: mean of the turns' means", choices=AGGREGATES)
    schedule: str = knob(
        "linear", "of the depth k: linear (Eq. 4), constant (--k-start), or stages depth@step as in "
        "5@10,30@20")
    k_start: int = preset(1, "depth k before the first step, in turns", least=1)
    eta: float = preset(2.0, "steps per further turn of depth, linear schedule", least=1e-9)
    steps: int = preset(250, "training steps", least=1)
    episodes: int = preset(16, "episodes per step, over all ranks", least=1)
    lr: float = preset(1e-6, "AdamW learning rate, constant", above=0.0)
    lora: int = knob(
        0, "rank of the factors that are trained beside the student's frozen linear layers, at a higher "
        "learning rate (docs/real-models.md); 0: all weights are trained", least=0)
    clip: float = knob(1.0, "gradient norm is clipped to this", above=0.0)
    temperature: float = knob(
        1.0, "of sampling the training episodes; both distributions are compared at it", above=0.0)
    batch_tokens: int = knob(16384, "padded tokens per forward and backward", least=1)
    eval_every: int = preset(5, "evaluate on held-out games every so many steps; 0: never", least=0)
    eval_games: int = preset(140, "held-out games per evaluation and split", least=1)
    save_every: int = knob(10, "write the checkpoint that the run goes on from every so many steps", least=1)
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
    out: str = knob(
        "", "run folder; empty: the first free runs/ENV-METHOD-N; where the same command has begun a run, it "
        "goes on", path=True)
    plan: int = knob(
        0, "say what each of so many GPUs would hold, by the models' configurations alone, and end; 0: train",
        least=0)
    resume: str = knob(
        "", "a run folder: go on exactly where its checkpoint stands, with its own arguments; give it alone, "
        "or with more --steps",
        path=True)

    def own(self):
        """{knob: value}: the defaults that the student's checkpoint brings, and the method's loss."""
        loss = methods.METHODS.get(self.method, curriculum.Method).loss
        brought = load.defaults(load.resolve(self.student, self.env))
        return {**brought, "loss": loss} if loss else brought


def resolve(args):
    """Fill in the defaults that depend on models and method; returns what to say of them on the screen.

    Raises UserError where the student's own ones name a knob that does not exist.
    """
    own, left_open = args.own(), {f.name for f in fields(Args) if getattr(args, f.name) in (None, "")}
    strange = sorted(set(own) - {f.name for f in fields(Args) if "paper" in f.metadata})
    if strange:
        raise UserError(f"{args.student}'s own defaults name what has none: {', '.join(strange)}")
    told = fill(args, own, args.student, args.teacher)
    brought = ", ".join(f"{name} {value}" for name, value in own.items() if name in left_open)
    return ", ".join([f"defaults {brought}, else the paper's" if brought else "the paper's defaults", *told])


def check(args, world):
    """Mistakes that can be told before models and games are loaded; raises UserError."""
    check_play(args)
    if prompts.hint(args.hint) and args.loss in WITHOUT_TEACHER:
        raise UserError(f"--hint is read by the teacher alone, and --loss {args.loss} has none")
    learned = curriculum.Method.loss or methods.METHODS[args.method].loss
    if args.loss in WITHOUT_TEACHER and args.loss != learned:
        raise UserError(
            f"--loss {args.loss} would train the student on its own words, without a teacher: it is for sft")
    if args.at is not None and not methods.METHODS[args.method].constant:
        raise UserError(f"{args.method} has no constant for --at: only {methods.constants()} have")
    if args.train_split:
        check_split(args.env, args.train_split)
    named_splits(args.env, args.eval_splits)
    if args.without:
        read_ids(args.without)
    try:
        curriculum.stages(args.schedule)
    except ValueError as error:
        raise UserError(str(error)) from None
    if args.episodes % world:
        raise UserError(f"--episodes {args.episodes} cannot be shared equally by {world} processes")


# ---- the gradient

@torch.no_grad()
def score(teacher, samples):
    """The teacher's part: its hidden states before the trained tokens of these samples, (N, D'), and its
    head; in order of (row, position).

    What it has read while the episodes were played is not read again. With --hint its rows begin otherwise;
    the trained tokens are the same.
    """
    known = [[sample.episode.turns[t].taught for t in sample.weight] for sample in samples]
    if all(states is not None for row in known for states in row):
        return torch.cat([states for row in known for states in row]), head(teacher)
    rows, device = [sample.row.for_teacher() for sample in samples], teacher.device
    return states_at(teacher, padded(rows, device), before(rows, device))


def backward(student, teacher, episodes, args, ranks):
    """Accumulate the gradient of Eq. 2 over this rank's episodes.

    Returns the loss, the same on every rank, and of this rank's trained tokens {name: (N,)}: episode, turn
    and weight, and what `loss.chunked` says of them.

    The normalisers are summed over all ranks before the first backward. Ranks may have different numbers of
    micro-batches: only the last one of each rank synchronises, and a rank without any runs an empty one.
    """
    totals = ranks.sum(count(episodes))
    samples = samples_of(episodes, args.aggregate, totals) or [EMPTY]
    groups = micro_batches(samples, args.batch_tokens)
    distiller, loss, found = student.distiller, 0.0, []
    distiller.train(student.recompute)  # recomputation wants training mode; load.py set every dropout to 0
    for i, group in enumerate(groups):
        batch = collate(group, args.loss, student.model.device)
        last = i + 1 == len(groups)
        needs_teacher = set(batch.losses) - set(WITHOUT_TEACHER)
        # Autocast caches the weights that it rounds. Recomputation rounds them again: the cache is in vain.
        with torch.autocast(
                student.model.device.type, torch.bfloat16,
                enabled=args.precision == "bf16" and not args.lora,  # a frozen base is bf16 itself
                cache_enabled=not student.recompute):
            judged = score(teacher, group) if needs_teacher else None
            with nullcontext() if last or ranks.world == 1 else distiller.no_sync():
                value, tokens = distiller(batch, judged)
                (value * ranks.world).backward()  # DDP averages over ranks; Eq. 2 is a sum
        loss += value.item()
        own = torch.stack([batch.episode, batch.turn, batch.weight])  # (3, N)
        found.append(torch.cat([own, tokens]))  # (8, N)
    distiller.eval()
    columns = torch.cat(found, 1).double().cpu().numpy()
    loss, = ranks.sum([loss])
    return loss, dict(zip(("episode", "turn", "weight", *LOGGED), columns))


def tell_plan(args, ranks):
    """--plan: what each of so many GPUs will hold; without it, where there is a GPU, a line of it."""
    if not ranks.first or not (args.plan or torch.cuda.is_available()):
        return
    gpus = args.plan or ranks.world
    configs = [load.configuration(load.resolve(name, args.env)) for name in (args.student, args.teacher)]
    found = plan(args, *configs, gpus)
    if args.plan:
        print(table(found, args, gpus, cards()))
        return
    for name, card in cards().items():
        ranks.print(f"memory of {name}, by plan: {verdict(found, card, args, gpus)}")


# ---- the loop

def train(training):
    """The loop of a Training that is set up."""
    args, student, run = training.args, training.student, training.run
    for n in training.steps():
        rules = curriculum.Rules.at(n, training.method, args, run.log, training.turns)  # k(n), Eq. 4
        episodes, lost = training.play(n, rules)  # rows o_0 a_0 o_1 a_1 …; the method says who acts
        student.learns()
        loss, tokens = backward(student, training.teacher, episodes, args, training.ranks)  # Eq. 2
        norm = student.clipped()
        records = training.records(n, episodes, tokens, loss, norm)
        with run.checkpoint.advancing(n):
            if records:  # else AdamW's momentum alone would move the weights
                student.optimizer.step()
            student.plays()  # the copy that plays has the weights of now
            training.note(n, rules, records, lost, loss, norm)


def main(args):
    ranks = Ranks()
    folder = ranks.broadcast(lambda: begun(args, run_name(args)))
    if folder:
        args = going_on(args, folder, lambda name: methods.METHODS.get(name, curriculum.Method).paced)
    if args.plan and args.precision is None:
        args.precision = "bf16"  # the GPUs that are planned for have it
    told = resolve(args)
    check(args, args.plan or ranks.world)
    with ranks.together():
        tell_plan(args, ranks)
        if not args.plan:
            training = set_up(args, told, ranks)
            with training.run.checkpoint.kept(meet=lambda: ranks.gather([])):
                train(training)
                training.end()
        ranks.leave()


if __name__ == "__main__":
    command(main, Args)
