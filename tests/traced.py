"""The reference of harness/plan.py: how much memory the run's own code takes for models of any size, traced
on tensors that have sizes and types but no data.

Counted are the student's forward with its loss and its backward pass, the teacher's forward, and a turn over
the ragged cache. The tensors stand for a CPU's, so that every machine counts the same; a GPU's kernels need
no more. All results are bytes.
"""

import copy
import weakref

import torch
import transformers.masking_utils
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

import batch as batches
import lora
import loss as losses
import model as lm
from load import play_dtype, without_noise
from loss import Distiller
from rollout import Episode, Row, Turn

# Whether rows are packed is asked of their positions' data: without any, a mask is made that no run has.
transformers.masking_utils.find_packed_sequence_indices = lambda *_, **__: None


def sizes(kind, width, layers, heads, kv_heads, inner, **more):
    """The configuration of a Qwen model."""
    return AutoConfig.for_model(
        kind, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=inner,
        **{"vocab_size": 151936, "tie_word_embeddings": True, **more})


MODELS = {  # the paper's, by their public configurations
    "Qwen2.5-3B": sizes("qwen2", 2048, 36, 16, 2, 11008, max_position_embeddings=32768),
    "Qwen2.5-7B": sizes(
        "qwen2", 3584, 28, 28, 4, 18944, max_position_embeddings=32768, vocab_size=152064,
        tie_word_embeddings=False),
    "Qwen3-1.7B": sizes("qwen3", 2048, 28, 16, 8, 6144, max_position_embeddings=40960, head_dim=128),
    "Qwen3-4B": sizes("qwen3", 2560, 36, 32, 8, 9728, max_position_embeddings=40960, head_dim=128),
    "Qwen3-30B-A3B": sizes(
        "qwen3_moe", 2048, 48, 32, 4, 6144, max_position_embeddings=262144, head_dim=128, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=768, tie_word_embeddings=False)}

FULL, RECURRENT = "full_attention", "linear_attention"
HYBRIDS = {  # of the size of those that there are; each begins with all of its kinds of layers
    "Qwen3.5-4B": sizes(
        "qwen3_5_text", 2560, 32, 16, 4, 9216, vocab_size=248320, head_dim=256, linear_num_value_heads=32,
        linear_num_key_heads=16, linear_key_head_dim=128, linear_value_head_dim=128,
        max_position_embeddings=262144),
    "Gemma-3-4B": sizes(
        "gemma3_text", 2560, 34, 8, 4, 10240, vocab_size=262208, head_dim=256, sliding_window=1024,
        max_position_embeddings=131072),
    "Granite-4-H-1B": sizes(
        "granitemoehybrid", 1536, 40, 12, 4, 4096, vocab_size=100352, shared_intermediate_size=4096,
        mamba_n_heads=48, mamba_d_head=64, mamba_d_state=128, mamba_n_groups=1, num_local_experts=0,
        layer_types=4 * [*5 * [RECURRENT], FULL, *4 * [RECURRENT]], max_position_embeddings=131072)}


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
    without_noise(model)
    return model.eval()


def rows_in_common(*configs):
    """The rows that the heads of all these models have."""
    return min(config.get_text_config().vocab_size for config in configs)


# ---- what is counted

def all_trained(tokens, loss):
    """A micro-batch of one row, every token of it trained."""
    row = Row([0] * tokens, [0] * tokens, [0.0] * tokens)
    turn = Turn("student", 1.0, "", "", "", [], "", False, False, False, False)
    sample = batches.Sample(row, Episode(None, 0, turns=[turn]), 0, {0: 1.0})
    return batches.collate([sample], loss, "cpu")


def learner(model, args, vocabulary):
    """The student with its loss, as in training.Student."""
    if args.recompute:
        model.activation_checkpointing_enable()
    return Distiller(model, beta=args.beta, temperature=args.temperature, vocabulary=vocabulary)


def learned(config, teacher, tokens, args):
    """(what the forward of a micro-batch keeps for the backward pass, the peak of both), beyond the student's
    weights and gradients; with LoRA beyond its base, the factors and theirs."""
    rows, dtype = rows_in_common(config, teacher), play_dtype(args.precision)
    with FakeTensorMode(), Tally() as tally:
        model = build(config, dtype if args.lora else torch.float32)
        learned = lora.adapt(model, args.lora, seed=0) if args.lora else model
        distiller = learner(model, args, lm.Vocabulary(rows, []))
        distiller.train(args.recompute)
        for parameter in learned.parameters():
            parameter.grad = torch.zeros_like(parameter)
        # The teacher's head in fp32: of one in bf16 only a CPU makes a copy in fp32.
        head = torch.zeros(rows, teacher.get_text_config().hidden_size)
        batch, judged, before = all_trained(tokens, args.loss), None, tally.begin()
        if args.loss not in losses.WITHOUT_TEACHER:
            judged = head.new_zeros(tokens, head.shape[1], dtype=dtype), lm.Head(head)
        bf16 = dtype == torch.bfloat16 and not args.lora
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=not args.recompute):
            value, _ = distiller(batch, judged)
            kept = tally.now - before
            value.backward()
        return kept, tally.peak - before


def scored(config, dtype, tokens):
    """The teacher's forward over a micro-batch, beyond its weights."""
    with FakeTensorMode(), Tally() as tally, torch.no_grad():
        model = build(config, dtype)
        before = tally.begin()
        lm.hidden_states(model, torch.zeros(1, tokens, dtype=torch.long))
        return tally.peak - before


def played(config, dtype, rows, fed):
    """(the cache of so many rows of `fed` tokens, the forward that feeds them beyond it)."""
    with FakeTensorMode(), Tally() as tally, torch.no_grad():
        model = build(config, dtype)
        out = model.get_output_embeddings()  # as in `learned`
        model.set_output_embeddings(torch.nn.Linear(out.in_features, out.out_features, out.bias is not None))
        cache, before = lm.RaggedCache(model, range(rows), fed), tally.begin()
        lm.extend(model, cache, [[0] * fed] * rows)
        kept = [*cache.kept.values(), *(each for pair in filter(None, cache.layers) for each in pair)]
        full = sum(tensor.untyped_storage().nbytes() for tensor in kept)
        return full, tally.peak - before - full
