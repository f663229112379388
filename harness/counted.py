"""How much memory the run's own code takes for models of any size, without any of it: on tensors that have
sizes and types but no data, what is allocated is counted.

Counted are the student's forward with its loss and its backward pass, the teacher's forward, and a turn over
the ragged cache, of models cut to a few layers: the others are like them. The tensors stand for a CPU's, so
that every machine counts the same; a GPU's kernels want no more. All results are bytes.
"""

import copy
import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

import batch as batches
import loss as losses
import model as lm
from rollout import Row

DEPTHS = 3, 4  # layers of the models that are counted: what the second has more is what a layer adds


class Tally(TorchDispatchMode):
    """Bytes of the memory that operations under it made and that is in use: now, and at its peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return made

    def add(self, storage):
        """Count a storage until nobody holds it; views share one."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key, size)

    def remove(self, key, size):
        self.known.discard(key)
        self.now -= size

    def begin(self):
        """Forget the peak so far; returns what is in use."""
        self.peak = self.now
        return self.now


# ---- models without data

def cut(config, layers):
    """The configuration with so many layers."""
    config = copy.deepcopy(config)
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = layers
    if kinds:
        config.layer_types = (kinds * layers)[:layers]
    return config


def build(config, dtype):
    """The model of a configuration, as it is loaded."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    lm.without_noise(model)
    return model.eval()


def numbers(config):
    """How many numbers each parameter of the whole model has."""
    with torch.device("meta"):
        return [parameter.numel() for parameter in build(config, torch.float32).parameters()]


def rows_in_common(*configs):
    """The rows that the heads of all these models have."""
    return min(config.get_text_config().vocab_size for config in configs)


# ---- what is counted

def all_trained(tokens, loss):
    """A micro-batch of one row, every token of it trained."""
    row = Row([0] * tokens, [0] * tokens, [0.0] * tokens)
    return batches.collate([batches.Sample(0, row, [1.0] * tokens, [loss] * tokens)], "cpu")


def learned(config, layers, teacher, tokens, learner, args):
    """(what the forward of a micro-batch keeps for the backward pass, the peak of both), of a student with so
    many layers, beyond its weights and gradients.

    learner: (model, args, vocabulary) -> the student with its loss.
    """
    rows, dtype = rows_in_common(config, teacher), lm.play_dtype(args.precision)
    with FakeTensorMode(), Tally() as tally:
        distiller = learner(build(cut(config, layers), torch.float32), args, lm.Vocabulary(rows, []))
        distiller.train(args.recompute)
        for parameter in distiller.parameters():
            parameter.grad = torch.zeros_like(parameter)
        # The teacher's head in fp32: of one in bf16 only a CPU makes a copy in fp32.
        head = torch.zeros(rows, teacher.get_text_config().hidden_size)
        batch, judged, before = all_trained(tokens, args.loss), None, tally.begin()
        if args.loss not in losses.WITHOUT_TEACHER:
            judged = head.new_zeros(tokens, head.shape[1], dtype=dtype), head
        bf16 = dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=not args.recompute):
            value, _ = distiller(batch, judged)
            kept = tally.now - before
            value.backward()
        return kept, tally.peak - before


def learning(config, teacher, tokens, learner, args):
    """(what all layers keep for the backward pass, the peak beyond that), see `learned`."""
    (fewer, _), (more, peak) = (learned(config, n, teacher, tokens, learner, args) for n in DEPTHS)
    each = more - fewer
    return each * config.num_hidden_layers, peak - each * DEPTHS[1]


def scoring(config, dtype, tokens):
    """The teacher's forward over a micro-batch, beyond its weights."""
    with FakeTensorMode(), Tally() as tally, torch.no_grad():
        model = build(cut(config, DEPTHS[1]), dtype)
        before = tally.begin()
        lm.hidden_states(model, torch.zeros(1, tokens, dtype=torch.long))
        return tally.peak - before


def playing(config, dtype, rows, fed, context):
    """(the cache when so many rows have `context` tokens, the forward that feeds `fed` tokens to each of
    them, beyond it)."""
    with FakeTensorMode(), Tally() as tally, torch.no_grad():
        model = build(cut(config, DEPTHS[1]), dtype)
        out = model.get_output_embeddings()  # as in `learned`
        model.set_output_embeddings(torch.nn.Linear(out.in_features, out.out_features, out.bias is not None))
        cache, before = lm.RaggedCache(model, range(rows), fed), tally.begin()
        lm.extend(model, cache, [[0] * fed] * rows)
        full = sum(kept.untyped_storage().nbytes() for pair in cache.layers for kept in pair)
        return full / DEPTHS[1] * config.num_hidden_layers * context / fed, tally.peak - before - full
