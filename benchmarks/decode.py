"""Decoding and prefill against the memory roofline: random weights of real sizes, bf16, made on the device.

    python benchmarks/decode.py                     # on a GPU: the sizes of Qwen2.5's 1.5B and 3B
    python benchmarks/decode.py --size tiny         # anywhere, in seconds

A decoded token reads every weight and every cached key and value once, so that those bytes over the bandwidth
of a large copy are the least that it can take. Beside the time of a token stand the kernels it launches, what
they take, and how often the host waits for the device; what the host alone needs shows on a model as deep
and 64 wide. Then one layer's attention of a decoding step, by kernel; and the prefill of a first turn (all
rows empty) against that of the same tokens behind one that is cached.

Another version's `model.py` and `rollout.py` are measured by naming their folder in PYTHONPATH.
"""

import argparse
import os
import sys
import time
import warnings
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

# Last, so that PYTHONPATH may name another version's folder.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import model as lm
import rollout

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
COPIED = 2**30 if GPU else 2**25    # bytes of the copy whose bandwidth is the roof
TOKENS = 32                         # decoded per measurement
FEW = 4                             # decoded while the profiler looks
REPEATS = 20                        # of one layer's attention
SHOWN = 8                           # kernels that are named, of the last setting


class Size(NamedTuple):
    """A model's sizes, and the settings in which it is measured."""
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    known: int              # ids that the tokenizer has: those sampled from
    rows: tuple
    contexts: tuple
    prefill: tuple          # (rows, tokens of each)


REAL = dict(
    kv_heads=2, vocabulary=151936, known=151665, rows=(16, 64), contexts=(2048, 6144), prefill=(16, 2048))
SIZES = {
    "1.5B": Size(width=1536, inner=8960, layers=28, heads=12, **REAL),
    "3B": Size(width=2048, inner=11008, layers=36, heads=16, **REAL),
    "tiny": Size(
        width=64, inner=192, layers=3, heads=4, kv_heads=2, vocabulary=4096, known=4000,
        rows=(2, 4), contexts=(32, 64), prefill=(2, 64))}


# ---- measuring

def seconds(work):
    """How long `work` takes, on the device too."""
    if GPU:
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def bandwidth():
    """Bytes a second that a large copy reads and writes."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * COPIED / min(seconds(lambda: target.copy_(source)) for _ in range(REPEATS))


def kernels(work):
    """[(name, seconds)] of the kernels that `work` launches; none without a GPU."""
    if not GPU:
        return []
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    found = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
    return [(event.name, event.time_range.elapsed_us() / 1e6) for event in found]


def longest(found):
    """Print the kernels that take most of a token, of what `kernels` has found in FEW of them."""
    number, busy = Counter(name for name, _ in found), Counter()
    for name, took in found:
        busy[name] += took
    for name, took in busy.most_common(SHOWN):
        print(f"      {1e3 * took / FEW:8.3f} ms in {number[name] / FEW:5.0f} x {name[:80]}")


def waits(work):
    """How often the host waits for the device, a copy from or to it included; 0 without a GPU."""
    if not GPU:
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        work()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in seen)


# ---- what is measured

def make_model(size, dtype=DTYPE):
    """A random model, weights made where they stay."""
    config = Qwen2Config(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.inner,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        max_position_embeddings=32768, tie_word_embeddings=True)
    with DEVICE:
        model = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa", dtype=dtype)
    return model.eval()


def weight_bytes(model):
    """What every token reads; a tied head is the embedding."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def filled(model, size, lengths):
    """A cache whose rows hold random keys and values, with room for a response."""
    cache = lm.RaggedCache(model, lengths)
    shape = len(lengths), size.kv_heads, max(lengths) + TOKENS + 1, size.width // size.heads
    for layer in range(size.layers):
        cache.layers[layer] = [torch.randn(shape, device=DEVICE, dtype=DTYPE) for _ in "kv"]
    return cache


class Talk:
    """A response of every row behind what the cache holds of it, never ended by a stop token."""

    def __init__(self, model, size, cache, lengths):
        self.model, self.cache, self.lengths = model, cache, lengths
        self.rows = [[5] * (length + 1) for length in lengths]
        self.u = torch.rand(len(lengths), TOKENS, device=DEVICE, dtype=torch.float64)
        self.chat = SimpleNamespace(vocabulary=lm.Vocabulary(size.known, []), stop={-1})

    def decode(self, tokens):
        """Decode so many, from the same lengths each time."""
        self.cache.length = list(self.lengths)
        limits = rollout.Limits(max_response=tokens, max_context=8192)
        acts = [True] * len(self.rows)
        rollout.decode(self.model, self.cache, self.rows, acts, self.u[:, :tokens], self.chat, limits)


def decoding(name, model, size, rows, context, roof):
    """Print what a token takes, and the least that its bytes do; returns a few tokens' `kernels`."""
    lengths = [context - i for i in range(rows)]
    talk = Talk(model, size, filled(model, size, lengths), lengths)
    talk.decode(2)
    took = seconds(lambda: talk.decode(TOKENS)) / TOKENS
    found = kernels(lambda: talk.decode(FEW))
    busy = sum(took for _, took in found)
    entry = 2 * size.layers * size.kv_heads * (size.width // size.heads) * DTYPE.itemsize
    read = weight_bytes(model) + sum(lengths) * entry
    least = read / roof
    print(
        f"{name:>5} {rows:5} {context:8} {1e3 * took:9.2f} {read / 1e9:6.2f} {1e3 * least:9.3f} "
        f"{took / least:6.1f} {len(found) / FEW:8.0f} {1e3 * busy / FEW:8.2f} "
        f"{waits(lambda: talk.decode(TOKENS)) / TOKENS:6.2f}", flush=True)
    return found


def host(name, size):
    """Print what a token takes where the device has next to nothing to do."""
    narrow = size._replace(width=64, inner=64, heads=2, kv_heads=1, vocabulary=1024, known=1024)
    model = make_model(narrow)
    talk = Talk(model, narrow, filled(model, narrow, [16, 15]), [16, 15])
    talk.decode(2)
    took = seconds(lambda: talk.decode(TOKENS)) / TOKENS
    print(f"{name:>5}  the host alone, {size.layers} layers: {1e3 * took:.2f} ms a token", flush=True)


def attention(name, size, rows, context, roof):
    """Print the time of one layer's attention of a decoding step by kernel, a masked one and flash without a
    mask, and the time that its keys and values take at the roof."""
    group, head = size.heads // size.kv_heads, size.width // size.heads
    q = torch.randn(rows, size.kv_heads, group, head, device=DEVICE, dtype=DTYPE)  # one token, grouped
    k, v = torch.randn(2, rows, size.kv_heads, context + 64, head, device=DEVICE, dtype=DTYPE)
    seen = torch.ones(rows, 1, 1, context, device=DEVICE, dtype=torch.bool)
    added = torch.zeros(rows, 1, 1, context, device=DEVICE, dtype=DTYPE)
    least = 2 * k[:, :, :context].numel() * DTYPE.itemsize / roof
    print(f"{name:>5} {rows:5} {context:8} {1e6 * least:7.0f}", end="")
    for kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH,
                   SDPBackend.FLASH_ATTENTION):
        for mask in (None,) if kernel == SDPBackend.FLASH_ATTENTION else (seen, added):
            def once():
                return scaled_dot_product_attention(q, k[:, :, :context], v[:, :, :context], attn_mask=mask)
            print(f" {timed(once, kernel):>8}", end="")
    print(flush=True)


def timed(once, kernel):
    """Microseconds of an attention by this kernel, as text; – where it cannot do it."""
    try:
        with warnings.catch_warnings(), sdpa_kernel(kernel):
            warnings.simplefilter("ignore")
            once()
            return f"{1e6 * seconds(lambda: [once() for _ in range(REPEATS)]) / REPEATS:.0f}"
    except RuntimeError:
        return "–"


def prefill(name, model, size):
    """Print the time of a first turn, and that of the same tokens behind one that is cached."""
    rows, tokens = size.prefill
    found = []
    for before in (0, 1, 0, 1):  # the first two warm up
        cache = lm.RaggedCache(model, range(rows))
        talk = Talk(model, size, cache, [before] * rows)
        if before:
            rollout.decode(
                model, cache, [[5]] * rows, [True] * rows, talk.u[:, :1], talk.chat,
                rollout.Limits(max_response=1, max_context=8192))
        talk.rows = [[5 + i % 100 for i in range(before + tokens)]] * rows
        found.append(seconds(lambda: talk.decode(1)))
    first, later = found[2:]
    print(
        f"{name:>5}  prefill of {rows} rows, {tokens} tokens: {1e3 * first:.1f} ms in a first turn, "
        f"{1e3 * later:.1f} ms behind a cached token, ratio {later / first:.2f}", flush=True)


@torch.no_grad()
def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument(
        "--size", nargs="+", choices=SIZES, default=["1.5B", "3B"], help="which models (default: both real)")
    args = parser.parse_args()
    roof = bandwidth()
    print(f"{lm.__file__}, torch {torch.__version__}; a copy moves {roof / 1e9:.0f} GB/s")
    print(f"{'size':>5} {'rows':>5} {'context':>8} {'ms/token':>9} {'GB':>6} {'least ms':>9} {'ratio':>6} "
          f"{'kernels':>8} {'busy ms':>8} {'waits':>6}")
    for name in args.size:
        size = SIZES[name]
        model = make_model(size)
        for rows in size.rows:
            for context in size.contexts:
                found = decoding(name, model, size, rows, context, roof)
        longest(found)
        host(name, size)
        prefill(name, model, size)
    print("one layer's attention of a token, in µs; bool and additive masks\n"
          f"{'size':>5} {'rows':>5} {'context':>8} {'least':>7} {'effic. b':>8} {'a':>8} {'cudnn b':>8} "
          f"{'a':>8} {'math b':>8} {'a':>8} {'flash':>8}")
    for name in args.size:
        for rows in SIZES[name].rows:
            for context in SIZES[name].contexts:
                attention(name, SIZES[name], rows, context, roof)


if __name__ == "__main__":
    main()
