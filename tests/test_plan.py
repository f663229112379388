"""What a GPU will hold is said before anything is loaded: the numbers of weights, what is counted on tensors
without data against what is really allocated, the flags that are named."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig

import model as lm
import tcod
from benchmarks.plan_pairs import MODELS
from harness import counted, plan
from harness.cli import UserError, fill_presets


def settings(**knobs):
    """The arguments of a run, the paper's defaults filled in."""
    args = tcod.Args(precision="bf16", **knobs)
    fill_presets(args)
    return args


@pytest.mark.parametrize("name, numbers, per_token", [
    ("Qwen2.5-3B", 3_085_938_688, 2 * 2 * 36 * 2 * 128), ("Qwen2.5-7B", 7_615_616_512, 2 * 2 * 28 * 4 * 128),
    ("Qwen3-1.7B", 1_720_574_976, 2 * 2 * 28 * 8 * 128), ("Qwen3-4B", 4_022_468_096, 2 * 2 * 36 * 8 * 128),
    ("Qwen3-30B-A3B", 30_532_122_624, 2 * 2 * 48 * 4 * 128)])
def test_weights_and_caches_of_the_papers_models(name, numbers, per_token):
    """A tied head counted twice; a cache by the query's heads, of 2 bytes instead of 2 for each of keys and
    values."""
    assert sum(counted.numbers(MODELS[name])) == numbers
    cache, _ = counted.playing(MODELS[name], torch.bfloat16, rows=3, fed=64, context=4096)
    assert cache == 3 * 4096 * per_token


@pytest.mark.parametrize("name, recompute", [("Qwen2.5-3B", True), ("Qwen3-1.7B", False)])
def test_a_step_of_few_layers_says_what_more_will_take(name, recompute):
    """What a layer keeps is not the same for all, or the peak is elsewhere in a deeper model: counted whole,
    with 8 layers of their real width. Recomputed layers keep their fp32 input alone."""
    config, args, tokens = counted.cut(MODELS[name], 8), settings(recompute=recompute, chunk=512), 2048
    kept, peak = counted.learning(config, config, tokens, tcod.learner, args)
    _, whole = counted.learned(config, 8, config, tokens, tcod.learner, args)
    print(f"{name}, recompute {recompute}: {(kept + peak) / 1e9:.2f} GB by plan, {whole / 1e9:.2f} counted")
    assert kept + peak == pytest.approx(whole, rel=0.1)
    if recompute:
        assert kept == 8 * tokens * config.hidden_size * 4


def test_a_teachers_forward_of_few_layers_is_that_of_all():
    """Experts' hidden states that a mixture of experts keeps from layer to layer."""
    config = counted.cut(MODELS["Qwen3-30B-A3B"], 8)
    with torch.no_grad(), counted.FakeTensorMode(), counted.Tally() as tally:
        model = counted.build(config, torch.bfloat16)
        before = tally.begin()
        lm.hidden_states(model, torch.zeros(1, 4096, dtype=torch.long))
    assert counted.scoring(config, torch.bfloat16, 4096) == pytest.approx(tally.peak - before, rel=0.1)


SMALL = dict(
    hidden_size=128, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    intermediate_size=384, vocab_size=2048, tie_word_embeddings=True)


def allocated(config, tokens, args):
    """Bytes at the peak of a real micro-batch, by torch's profiler: what the allocator gave out, and the
    teacher's hidden states."""
    student = tcod.learner(counted.build(config, torch.float32), args, lm.Vocabulary(config.vocab_size, []))
    student.train(args.recompute)
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = counted.all_trained(tokens, args.loss)
    hidden = torch.zeros(tokens, config.hidden_size, dtype=torch.bfloat16)
    head = torch.zeros(config.vocab_size, config.hidden_size)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=not args.recompute):
            value, _ = student(batch, (hidden, head))
        value.backward()
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + hidden.nbytes


@pytest.mark.parametrize("kind, recompute", [("qwen2", True), ("qwen3", False)])
def test_what_is_counted_is_what_is_allocated(kind, recompute):
    """Views counted as memory of their own, memory that is counted and never freed or freed too early."""
    config, args = AutoConfig.for_model(kind, **SMALL), settings(recompute=recompute, chunk=32)
    real = allocated(config, 128, args)
    kept, peak = counted.learning(config, config, 128, tcod.learner, args)
    print(f"{kind}, recompute {recompute}: {(kept + peak) / 1e6:.1f} MB by plan, {real / 1e6:.1f} allocated")
    assert kept + peak == pytest.approx(real, rel=0.1)


def test_moments_are_shared_as_whole_parameters():
    """An equal part for each: a large embedding is one GPU's alone."""
    assert plan.most_moments([100, 10, 10, 10], 4) == 100
    assert plan.most_moments([5, 4, 3, 3, 3], 2) == 10


def test_verdicts_by_hand():
    """A card that is full to the last byte called enough; flags that are given already, or change nothing."""
    found = {"playing": {"a": 50e9, "b": 20e9}, "learning": {"a": 50e9, "c": 33e9}}
    args = settings(chunk=128, batch_tokens=1024, max_context=2048, history="window:3")
    assert plan.verdict(found, 100e9, args, 8) == "fits: learning takes 83.0 of its 100.0 GB"
    tight = "is tight: learning takes 83.0 of its 85.0 GB. It would help learning: a smaller --max-context, "
    assert plan.verdict(found, 85e9, args, 8) == tight + "more GPUs"
    args.recompute, args.moments, args.history = False, "whole", "full"
    assert plan.verdict(found, 65e9, args, 8) == (
        "does not fit: learning takes 83.0 of its 65.0 GB. It would help playing: --moments shared, "
        "--episodes 8, a smaller --max-context, --history window:N with it; learning: --moments shared, "
        "--recompute true, a smaller --max-context, --history window:N with it")


def folder(tmp_path, name, config):
    """A folder that holds a configuration and nothing else."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps(config.to_dict()))
    return str(tmp_path / name)


def test_the_command_needs_configurations_alone(tmp_path, capsys):
    """Weights, tokenizers or games that are looked for; a run that begins."""
    student = folder(tmp_path, "student", counted.cut(MODELS["Qwen3-1.7B"], 1))
    teacher = folder(tmp_path, "teacher", counted.cut(MODELS["Qwen2.5-3B"], 1))
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
    """A traceback out of a forward that reads its data."""
    config = copy.deepcopy(MODELS["Qwen3-1.7B"])
    with pytest.raises(UserError, match="qwen3 and qwen3 will hold cannot be counted"):
        plan.plan(settings(), config, config, 8, lambda model, args, vocabulary: model.weight)
