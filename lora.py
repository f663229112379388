"""LoRA (arXiv 2106.09685), `--lora RANK`: low-rank factors are trained beside the frozen linear layers of a
student's blocks.

    y = x Wᵀ + b + 2 (x Aᵀ) Bᵀ      W (out, in), b frozen; A (RANK, in), B (out, RANK) trained

The base is held in the precision that plays, the factors in fp32. B begins at zero: the first step plays the
base to the bit. One model learns and plays, unmerged: merged weights in bf16 would be another model's. Frozen
with the base are its embeddings, norms, head and convolutions, and experts that are one 3-D parameter.

On disk: the run's checkpoint holds the factors, `student/` the merged model, and `student/adapter/` the
factors as the package peft writes them. Such a folder, whoever wrote it, is a student or a teacher: it is
merged into its base at loading.
"""

import json
import math
import os
import re

import torch
from safetensors.torch import save_file
from torch import nn

from harness.cli import UserError
from harness.folder import write_json
from harness.plan import linear

SCALE = 2  # peft's lora_alpha / r
FACTORS = ("lora_A", "lora_B")
CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."  # of the names in peft's files
# Of adapter_config.json: what changes the sum, and leaves no trace in the factors' names and shapes.
OTHER = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "use_qalora")
BASE_KEPT = (True, False, "gaussian", "orthogonal", "eva")  # init_lora_weights; others change the base too


# ---- learning and playing

def add(layer, inputs, output):
    """A forward hook: the factors' product beside the layer's own, in the precision of what comes in."""
    x, = inputs
    low = nn.functional.linear(x, layer.lora_A.to(x.dtype))  # (..., RANK)
    high = nn.functional.linear(low, layer.lora_B.to(x.dtype))  # (..., out)
    return output.add_(high, alpha=SCALE)


def adapt(model, rank, seed):
    """Freeze a model and give every linear layer of its blocks factors; returns them as a ParameterList: all
    that is trained, and that a run's checkpoint holds. seed: of A.

    Raises UserError where there is no such layer.
    """
    layers = linear(model)
    if not layers:
        raise UserError(
            f"a {model.config.model_type} has no linear layers in its blocks for --lora: train all of it, "
            "without --lora")
    model.requires_grad_(False)
    draw, trained = torch.Generator().manual_seed(seed), nn.ParameterList()
    for layer in layers.values():
        down = torch.empty(rank, layer.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=draw)  # as peft draws it
        layer.lora_A = nn.Parameter(down.to(model.device))
        layer.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, device=model.device))
        layer.register_forward_hook(add)
        trained += [layer.lora_A, layer.lora_B]
    return trained


def adapted(model):
    """{name: layer} of the layers that have factors."""
    return {name: layer for name, layer in linear(model).items() if hasattr(layer, "lora_A")}


def told(model):
    """What the run's first line says: how much of the model is trained."""
    layers = adapted(model).values()
    number = sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in layers)
    return f", {number:,} numbers trained beside {len(layers)} frozen linear layers" if layers else ""


# ---- on disk

@torch.no_grad()
def merged(model):
    """{name: weight} of an ordinary checkpoint: a layer's factors are added to it in fp32, and the sum is
    rounded once. Of a model without factors its own weights."""
    weights = {name: w for name, w in model.state_dict().items() if not name.endswith(FACTORS)}
    for name, layer in adapted(model).items():
        whole = layer.weight.float() + SCALE * (layer.lora_B @ layer.lora_A)
        weights[f"{name}.weight"] = whole.to(layer.weight.dtype).cpu()
    return weights


def write(model, folder):
    """Write a model's factors as peft does, into a folder that is made; nothing where it has none."""
    layers, base = adapted(model), model.name_or_path
    if not layers:
        return
    rank = len(next(iter(layers.values())).lora_A)
    factors = {f"{PREFIX}{name}.{which}.weight": getattr(layer, which).detach().cpu()
               for name, layer in layers.items() for which in FACTORS}
    os.makedirs(folder)
    save_file(factors, os.path.join(folder, WEIGHTS[0]), metadata={"format": "pt"})
    write_json(os.path.join(folder, CONFIG), dict(
        peft_type="LORA", task_type="CAUSAL_LM", inference_mode=True,
        base_model_name_or_path=os.path.abspath(base) if os.path.isdir(base) else base,
        r=rank, lora_alpha=SCALE * rank, lora_dropout=0.0, bias="none",
        target_modules=sorted({name.split(".")[-1] for name in layers})))


def configuration(folder):
    """What an adapter's folder says of it, else peft's defaults; {} of any other folder or name."""
    path = os.path.join(folder, CONFIG)
    if not os.path.isfile(path):
        return {}
    usual = dict(base_model_name_or_path="", lora_alpha=8, alpha_pattern={}, init_lora_weights=True)
    kinds = dict(base_model_name_or_path=str, lora_alpha=(int, float), alpha_pattern=dict)
    try:
        with open(path, encoding="utf-8") as file:
            found = {**usual, **{name: value for name, value in json.load(file).items() if value is not None}}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            raise refused(folder, f"its {name} is {found[name]!r}")
    if os.path.realpath(found["base_model_name_or_path"] or os.sep) == os.path.realpath(folder):
        raise refused(folder, "it names itself as the model that it was made for")
    return found


def base(folder):
    """The name of the model that an adapter's folder was made for; "" for any other folder or name."""
    config = configuration(folder)
    if config and not config["base_model_name_or_path"]:
        raise refused(folder, "it names no model that it was made for")
    return config.get("base_model_name_or_path", "")


def scale(config, name, rank):
    """What peft multiplies the factors' product of a layer by."""
    own = config["alpha_pattern"].items()
    alpha = next((a for key, a in own if re.match(rf"(.*\.)?({key})$", name)), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


@torch.no_grad()
def merge(model, folder, factors):
    """Add an adapter to the model that it was made for, in fp32, rounded once a layer.

    factors: {peft's name: tensor}. Raises UserError for all but plain LoRA on linear layers of this model.
    """
    config, layers, left = configuration(folder), dict(model.named_modules()), dict(factors)
    odd = [name for name in OTHER if config.get(name)]
    if config.get("peft_type") != "LORA" or config["init_lora_weights"] not in BASE_KEPT or odd:
        raise refused(folder, ", ".join(odd) or "it is not plain LoRA")
    embeddings = model.get_input_embeddings().weight
    for key in [key for key in factors if key.endswith("lora_A.weight")]:
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        layer = layers.get(name)
        down, up = left.pop(key), left.pop(key.replace("lora_A", "lora_B"), None)
        if not isinstance(layer, nn.Linear) or layer.weight is embeddings or up is None:
            raise refused(folder, f"its base has no linear layer of its own for {key}")
        if (len(up), down.shape[1]) != layer.weight.shape:
            raise refused(folder, f"{key} has another shape than its layer")
        change = scale(config, name, len(down)) * up.float() @ down.float()
        layer.weight.copy_(layer.weight.float() + change.to(layer.weight.device))
    if left or not factors:
        raise refused(folder, f"it holds {min(left, default='no factors')}")


def refused(folder, why):
    """The UserError for an adapter that `merge` would get wrong."""
    return UserError(
        f"{folder!r} holds an adapter that is not merged here ({why}): merge it with peft, and save that")
