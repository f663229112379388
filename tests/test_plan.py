"""What a GPU will hold is said before anything is loaded: the arithmetic against what is traced on tensors
without data, that against what is really allocated, the flags that are named."""

import copy
import json

import pytest
import torch
import traced
from traced import HYBRIDS, MODELS
from transformers import AutoConfig, AutoModelForCausalLM

import lora
import loss as losses
import model as lm
import tcod
from harness import plan
from harness.cli import UserError, fill_presets
from load import play_dtype


def settings(*configs, **knobs):
    """The arguments of a run of these models, the paper's defaults filled in."""
    args = tcod.Args(**{"precision": "bf16", **knobs})
    fill_presets(args)
    if configs:
        args.recompute = sum(plan.weights(configs[0]).values()) >= plan.SMALL
    return args


@pytest.mark.parametrize("name, numbers, per_token", [
    ("Qwen2.5-3B", 3_085_938_688, 2 * 2 * 36 * 2 * 128), ("Qwen2.5-7B", 7_615_616_512, 2 * 2 * 28 * 4 * 128),
    ("Qwen3-1.7B", 1_720_574_976, 2 * 2 * 28 * 8 * 128), ("Qwen3-4B", 4_022_468_096, 2 * 2 * 36 * 8 * 128),
    ("Qwen3-30B-A3B", 30_532_122_624, 2 * 2 * 48 * 4 * 128)])
def test_weights_and_caches_of_the_papers_models(name, numbers, per_token):
    """A tied head counted twice; a cache by the query's heads, of 2 bytes instead of 2 for each of keys and
    values."""
    assert sum(plan.weights(MODELS[name]).values()) == numbers
    assert plan.cache(MODELS[name], 3 * 4096, size=2) == 3 * 4096 * per_token


@pytest.mark.parametrize("student, teacher, tokens, knobs", [
    ("Qwen2.5-3B", "Qwen2.5-7B", 16384, dict()), ("Qwen2.5-7B", "Qwen2.5-7B", 8192, dict()),
    ("Qwen3-1.7B", "Qwen3-30B-A3B", 4096, dict()), ("Qwen3-4B", "Qwen3-4B", 4096, dict(precision="fp32")),
    *[("Qwen3-1.7B", "Qwen3-4B", 2048, dict(loss=loss)) for loss in ("jsd", "nll")],
    ("Qwen2.5-3B", "Qwen2.5-7B", 16384, dict(lora=32)), ("Qwen2.5-7B", "Qwen2.5-7B", 8192, dict(lora=128)),
    ("Qwen3-1.7B", "Qwen3-30B-A3B", 4096, dict(lora=32)), ("Qwen3-4B", "Qwen3-30B-A3B", 16384, dict(lora=32)),
    ("Qwen3-4B", "Qwen3-4B", 4096, dict(lora=16, precision="fp32")),
    ("Qwen3-1.7B", "Qwen3-4B", 2048, dict(loss="nll", lora=16))])
def test_learning_is_as_traced(student, teacher, tokens, knobs):
    """A peak that is elsewhere than where the arithmetic looks: the loss, a layer's backward, the gradient of
    a tied head, the teacher's forward; with LoRA the gradient of a head that has none. Recomputed layers keep
    their input alone, with LoRA in its precision. Eight layers of the real width."""
    student, teacher = (traced.cut(MODELS[name], 8) for name in (student, teacher))
    args = settings(student, teacher, **knobs)
    dtype = play_dtype(args.precision)
    kept, peak = traced.learned(student, teacher, tokens, args)
    peak = max(peak, traced.scored(teacher, dtype, tokens))
    parts = plan.learning(args, student, teacher, plan.weights(student), tokens, dtype.itemsize)
    print(f"{plan.total(parts) / 1e9:.2f} GB by plan, {peak / 1e9:.2f} traced")
    assert plan.total(parts) == pytest.approx(peak, rel=0.1)
    number = dtype.itemsize if args.lora else 4
    assert parts["kept of all layers"] == 8 * tokens * student.hidden_size * number < kept


@pytest.mark.parametrize("name, layers, tokens", [
    ("Qwen3.5-4B", 4, 1024), ("Gemma-3-4B", 6, 4096), ("Granite-4-H-1B", 6, 16384)])
def test_hybrids_are_as_traced(name, layers, tokens):
    """Keys in layers that have none, states that grow with a row; what a recurrence holds in one layer, and a
    window's masks."""
    config = traced.cut(HYBRIDS[name], layers)
    args = settings(config)
    _, peak = traced.learned(config, config, tokens, args)
    parts = plan.learning(args, config, config, plan.weights(config), tokens, size=2)
    cache, forward = traced.played(config, torch.bfloat16, rows=4, fed=2048)
    playing = plan.playing([config], 4, 2048, 2048, size=2)
    shown = [f"{size / 1e9:.2f}" for size in (plan.total(parts), peak, playing["a turn's forward"], forward)]
    print("{}: learning {} GB by plan, {} traced; a turn {}, {}".format(name, *shown))
    assert plan.total(parts) == pytest.approx(peak, rel=0.1)
    assert playing["keys, values and states"] == cache
    assert playing["a turn's forward"] == pytest.approx(forward, rel=0.1)


def test_keys_and_states_by_hand():
    """Keys that are shared counted for every layer, or all as wide as the first; the whole of a composite
    configuration, whose language model says otherwise whether its head is tied."""
    config = AutoConfig.for_model(
        "gemma4_text", hidden_size=64, num_hidden_layers=6, head_dim=16, global_head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, num_kv_shared_layers=2,
        layer_types=2 * ["sliding_attention", "sliding_attention", "full_attention"])
    assert plan.cache(config, 10, size=2) == 10 * 2 * 2 * 2 * (16 + 16 + 32 + 16)
    assert plan.states(HYBRIDS["Gemma-3-4B"], 3, size=2) == 0
    assert set(plan.STATEFUL) == lm.STATEFUL
    per_row = 24 * (4 * 32 * 128 * 128 + 2 * 4 * (2 * 16 * 128 + 32 * 128))
    assert plan.states(HYBRIDS["Qwen3.5-4B"], 3, size=2) == 3 * per_row
    part = {**SMALL, "model_type": "mistral", "tie_word_embeddings": False}
    whole = AutoConfig.for_model("mistral3", text_config=part)
    assert whole.tie_word_embeddings and plan.language(whole).tie_word_embeddings
    found = plan.weights(plan.language(whole))
    assert not any("vision" in name or "lm_head" in name for name in found)


@pytest.mark.parametrize("name", ["Qwen2.5-7B", "Qwen3-30B-A3B"])
def test_playing_is_as_traced(name):
    """What a mixture of experts makes of a token forgotten; a forward that grows with the layers."""
    config = traced.cut(MODELS[name], 4)
    for rows, fed in ((2, 2048), (18, 512)):
        cache, forward = traced.played(config, torch.bfloat16, rows, fed)
        parts = plan.playing([config], rows, fed, fed, size=2)
        assert parts["keys, values and states"] == cache
        assert parts["a turn's forward"] == pytest.approx(forward, rel=0.1)


SMALL = dict(
    hidden_size=128, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    intermediate_size=384, vocab_size=2048, tie_word_embeddings=True)


def allocated(config, tokens, args):
    """Bytes at the peak of a real micro-batch, by torch's profiler: what the allocator gave out, and the
    teacher's hidden states."""
    model = traced.build(config, torch.bfloat16 if args.lora else torch.float32)
    learned = lora.adapt(model, args.lora, seed=0) if args.lora else model
    student = traced.learner(model, args, lm.Vocabulary(config.vocab_size, []))
    student.train(args.recompute)
    for parameter in learned.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = traced.all_trained(tokens, args.loss)
    hidden = torch.zeros(tokens, config.hidden_size, dtype=torch.bfloat16)
    head = torch.zeros(config.vocab_size, config.hidden_size)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.lora, cache_enabled=not args.recompute):
            value, _ = student(batch, (hidden, lm.Head(head)))
        value.backward()
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + hidden.nbytes


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("kind, again", [("qwen2", True), ("qwen3", False)])
def test_what_is_traced_is_what_is_allocated(kind, again, rank, monkeypatch):
    """Views counted as memory of their own, memory that is counted and never freed or freed too early; a
    small student, whose activations are kept."""
    if again:
        monkeypatch.setattr(plan, "SMALL", 0)
    config, tokens = AutoConfig.for_model(kind, **SMALL), 1024
    args = settings(config, lora=rank)
    assert args.recompute == again
    real = allocated(config, tokens, args)
    _, peak = traced.learned(config, config, tokens, args)
    parts = plan.learning(args, config, config, plan.weights(config), tokens, size=2)
    shown = [f"{size / 1e6:.1f}" for size in (plan.total(parts), peak, real)]
    print(f"{kind}, computed again {again}, rank {rank}: {shown[0]} MB by plan, {shown[1]} traced, "
          f"{shown[2]} allocated")
    assert peak == pytest.approx(real, rel=0.1)
    assert plan.total(parts) == pytest.approx(real, rel=0.1)


def test_a_chunk_is_as_the_loss_cuts_it():
    """A constant that stands in two places, and is changed in one."""
    for size in (75, 65536, 151936, 2**20):
        assert plan.chunk(size) == losses.pieces(lm.Vocabulary(size, []))


def test_moments_are_shared_as_whole_parameters():
    """An equal part for each: a large embedding is one GPU's alone."""
    assert plan.most_moments([100, 10, 10, 10], 4) == 100
    assert plan.most_moments([5, 4, 3, 3, 3], 2) == 10


def test_a_plan_by_hand():
    """Moments that are not shared, or one GPU's that are; games of an evaluation over all GPUs on each; a
    playing copy that stands beside the gradients."""
    args = settings()
    configs = MODELS["Qwen2.5-3B"], MODELS["Qwen2.5-7B"]
    found, alone = plan.plan(args, *configs, gpus=8), plan.plan(args, *configs, gpus=1)
    assert list(found) == ["playing", "evaluating", "learning", "updating"]
    rounded = {part: round(size / 1e9, 1) for phase in found.values() for part, size in phase.items()}
    assert rounded["student, fp32"] == rounded["gradients, fp32"] == 12.3  # 4 · 3.086
    assert rounded["teacher, bf16"] == 15.2 and rounded["AdamW's moments, fp32"] == 3.1  # 2 · 7.616, 8 · .386
    assert alone["updating"]["AdamW's moments, fp32"] == 8 * 3_085_938_688
    assert not {"gradients, fp32", "playing copy"} <= set(found["playing"])
    caches = found["evaluating"]["keys, values and states"], alone["evaluating"]["keys, values and states"]
    assert caches == (18 * 16384 * 57344, 32 * 16384 * 57344)  # 140 games over 8 GPUs; at most 32 at once
    assert plan.at_once(args, 1, student=10**6) == 140
    assert "evaluating" not in plan.plan(settings(eval_every=0), *configs, gpus=8)


def test_verdicts_by_hand():
    """A card that is full to the last byte called enough; flags that are given already, or change nothing."""
    found = {"playing": {"a": 50e9, "b": 20e9}, "learning": {"a": 50e9, "c": 33e9}}
    args = settings(batch_tokens=1024, max_context=2048, history="window:3")
    assert plan.verdict(found, 100e9, args, 8) == "fits: learning takes 83.0 of its 100.0 GB"
    tight = "is tight: learning takes 83.0 of its 85.0 GB. It would help learning: a smaller --max-context, "
    assert plan.verdict(found, 85e9, args, 8) == tight + "--lora 32, more GPUs"
    args.lora = 32
    assert plan.verdict(found, 85e9, args, 8) == tight + "more GPUs"
    args.batch_tokens, args.history = 4096, "full"
    assert plan.verdict(found, 65e9, args, 8) == (
        "does not fit: learning takes 83.0 of its 65.0 GB. It would help playing: --episodes 8, a smaller "
        "--max-context, --history window:N with it, more GPUs; learning: --batch-tokens 2048, a smaller "
        "--max-context, --history window:N with it, more GPUs")


def test_a_plan_with_lora_by_hand():
    """A master or a playing copy that is not there; moments or gradients of the base; experts, or the head,
    counted among the layers that are adapted."""
    args, configs = settings(lora=32), (MODELS["Qwen2.5-3B"], MODELS["Qwen2.5-7B"])
    found = plan.plan(args, *configs, gpus=8)
    rounded = {part: round(size / 1e9, 2) for phase in found.values() for part, size in phase.items()}
    layer = 2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11008)  # q, o; k, v; gate, up, down
    assert sum(plan.factors(configs[0], 32)) == 36 * 32 * layer == 59_867_136
    assert rounded["student, bf16"] == 6.17 and rounded["factors, fp32"] == rounded["gradients, fp32"] == 0.24
    assert rounded["AdamW's moments, fp32"] == 0.06 and rounded["playing copy"] == 0  # 8 · 0.0599 / 8
    assert "student, fp32" not in rounded
    experts = MODELS["Qwen3-30B-A3B"]  # q, o; k, v of every layer
    assert sum(plan.factors(experts, 1)) == 48 * (2 * (2048 + 4096) + 2 * (2048 + 512))
    for kind in ("Qwen3-1.7B", "Qwen3-30B-A3B"):
        small = traced.cut(MODELS[kind], 1)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(small)
        assert [factor.numel() for factor in lora.adapt(model, 4, seed=0)] == plan.factors(small, 4)


def folder(tmp_path, name, config):
    """A folder that holds a configuration and nothing else."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps(config.to_dict()))
    return str(tmp_path / name)


def test_the_command_needs_configurations_alone(tmp_path, capsys):
    """Weights, tokenizers or games that are looked for; a run that begins."""
    student = folder(tmp_path, "student", traced.cut(MODELS["Qwen3-1.7B"], 1))
    teacher = folder(tmp_path, "teacher", traced.cut(MODELS["Qwen2.5-3B"], 1))
    tcod.main(tcod.Args(
        plan=8, student=student, teacher=teacher, data="/nowhere", out=str(tmp_path / "run"),
        max_context=1024, batch_tokens=1024))
    shown = capsys.readouterr().out
    print(shown)
    numbers = 151936 * 2048 + 3 * 2048 * 2048 + 3 * 2048 * 6144 + 3 * 2048 + 2 * 128
    assert f"student, fp32 {4 * numbers / 1e9:32.1f}" in shown and "80 GB: fits" in shown
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="cannot be shared equally by 3"):
        tcod.main(tcod.Args(plan=3))


def test_an_architecture_that_cannot_be_counted():
    """A traceback that ends a run: out of a model that cannot be made, or has no heads."""
    good, odd = MODELS["Qwen3-1.7B"], copy.deepcopy(MODELS["Qwen3-1.7B"])
    odd.hidden_act = "no such thing"
    for other in (odd, AutoConfig.for_model("mamba", num_hidden_layers=1)):
        with pytest.raises(UserError, match=f"{other.model_type} and qwen3 will hold cannot be counted"):
            plan.plan(settings(), other, good, 8)
