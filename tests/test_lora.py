"""LoRA: the base is untouched and plays what is learned, the factors' gradient, ranks, runs that go on, what
lies on disk, other people's adapters."""

import copy
import importlib.util
import json

import pytest
import test_tcod
import torch
import torch.multiprocessing
from conftest import FAMILIES, arguments, free_port, make_model, make_tokenizer, of_kind
from safetensors.torch import load_file, save_file
from test_tcod import TEACHER, made_up_episode, make_student, relative, same_runs, stop, weights_of

import load
import lora
import loss as losses
import model as lm
import tcod
from harness import plan
from harness.cli import UserError
from harness.folder import read_log
from harness.ranks import Ranks

RANKS = Ranks()


def noisy(model, rank=4, size=0.1):
    """The model with factors that are not zero."""
    for factor in lora.adapt(model, rank, seed=0)[1::2]:
        torch.nn.init.normal_(factor, std=size)
    return model


def logits_of(model, rows, parts=False):
    """A model's own logits (B, T, V); parts: over the cache, in two pieces."""
    with torch.no_grad():
        if not parts:
            return model(input_ids=rows).logits
        cache = lm.RaggedCache(model, list(range(len(rows))))
        pieces = [torch.stack(lm.read(model, cache, piece.tolist())) for piece in (rows[:, :5], rows[:, 5:])]
        return lm.logits(torch.cat(pieces, 1).flatten(0, 1), cache.head).view(*rows.shape, -1)


ROWS = torch.arange(24).view(2, 12)


# ---- the model

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", FAMILIES)
def test_before_the_first_step_it_is_the_base(kind, dtype):
    """Factors that begin elsewhere than at zero, or round what they are added to; experts or a head that are
    adapted, a norm that is trained."""
    base = lm.rounded(make_model(kind), dtype)
    model = copy.deepcopy(base)
    factors = lora.adapt(model, 4, seed=0)
    for parts in (False, True):
        assert torch.equal(logits_of(model, ROWS, parts), logits_of(base, ROWS, parts))
    layers = 2 * (4 if kind == "qwen3_moe" else 7)
    assert len(factors) == 2 * layers and {f.dtype for f in factors} == {torch.float32}
    learned = {id(p) for p in model.parameters() if p.requires_grad}
    assert learned == {id(factor) for factor in factors}
    again = lora.adapt(copy.deepcopy(base), 4, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(factors, again))  # on every rank, and after a kill
    assert not torch.equal(factors[0], lora.adapt(copy.deepcopy(base), 4, seed=1)[0])
    assert lora.told(base) == "" and f" beside {layers} frozen" in lora.told(model)


def test_rank_0_is_full_fine_tuning():
    """An optimizer over a part of the weights, no copy that plays, where no factor was asked for; a copy
    where one was."""
    student, _ = make_student(RANKS)
    assert student.learned is student.model
    groups, = student.optimizer.param_groups
    assert [id(p) for p in groups["params"]] == [id(p) for p in student.model.parameters()]
    assert all(p.requires_grad for p in student.model.parameters())
    bf16, _ = make_student(RANKS, precision="bf16")
    assert bf16.actor is not bf16.model
    one, _ = make_student(RANKS, precision="bf16", lora=2)
    assert one.actor is one.model and one.learned is not one.model


@pytest.mark.parametrize("recompute", [False, True])
def test_gradient_of_the_factors_by_the_chain_rule(recompute):
    """A lost scale, factors of which one is detached, the first layer, whose input has no gradient, left out
    by recomputation; gradients of the base. From full fine-tuning's gradient of the merged weights W:
    dB = 2 dW Aᵀ, dA = 2 Bᵀ dW."""
    episodes = [made_up_episode(seed) for seed in range(3)]
    student, args = make_student(RANKS, recompute, lora=3)
    for factor in student.learned[1::2]:
        torch.nn.init.normal_(factor, std=0.1)
    value, _ = tcod.backward(student, TEACHER, episodes, args, RANKS)
    full, args = make_student(RANKS)
    full.model.load_state_dict(lora.merged(student.model))
    exact, _ = tcod.backward(full, TEACHER, episodes, args, RANKS)
    assert abs(value - exact) <= 1e-5 * exact
    for name, layer in plan.linear(student.model).items():
        whole = full.model.get_parameter(f"{name}.weight").grad
        assert relative(layer.lora_B.grad, 2 * whole @ layer.lora_A.T) <= 1e-4
        assert relative(layer.lora_A.grad, 2 * layer.lora_B.T @ whole) <= 1e-4
    frozen = [p for p in student.model.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen) and len(student.optimizer.param_groups[0]["params"]) == 28


def test_no_gradient_of_a_frozen_head():
    """A fourth of the loss's products for nothing; a gradient of the states that is another without it."""
    torch.manual_seed(0)
    hidden, head, weight = torch.randn(9, 6), torch.randn(11, 6), torch.rand(9)
    token = torch.randint(11, (9,))

    def value(name, n, logits):
        return losses.nll(torch.log_softmax(logits, -1), None, token[n])

    chunks = [("nll", torch.arange(9))]
    found = [losses.gradients(hidden, head.requires_grad_(wanted), None, weight, value, chunks,
                              lm.Vocabulary(11, []), 0.7) for wanted in (True, False)]
    assert found[0][2] is not None and found[1][2] is None
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_full_rank_reaches_what_all_weights_reach():
    """Factors that cannot stand for a change of any rank, or that the optimizer does not move: a teacher that
    differs from the student in its linear layers alone is met by rank ≥ width and not by rank 1."""
    base, teacher = make_model(seed=1), make_model(seed=1)
    with torch.no_grad():
        for layer in plan.linear(teacher).values():
            layer.weight += 0.05 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3))
    episodes = [made_up_episode(seed) for seed in range(4)]
    losses_of = {}
    for rank, lr in ((0, 3e-3), (64, 3e-3), (1, 3e-3)):
        student, args = make_student(RANKS, lora=rank, lr=lr, batch_tokens=10**6)
        assert torch.equal(student.model.lm_head.weight, base.lm_head.weight)
        for _ in range(100):
            student.learns()
            value, _ = tcod.backward(student, teacher, episodes, args, RANKS)
            student.clipped()
            student.optimizer.step()
            student.plays()
            losses_of.setdefault(rank, []).append(value)
    print({rank: (f"{found[0]:.4f}", f"{found[-1]:.5f}") for rank, found in losses_of.items()})
    start = losses_of[0][0]
    assert losses_of[64][0] == pytest.approx(start, rel=1e-5)
    assert losses_of[0][-1] < 0.01 * start and losses_of[64][-1] < 0.01 * start < losses_of[1][-1]


def test_a_model_without_linear_layers_is_refused():
    """A run that trains nothing: GPT-2's layers are transposed, and of a class of their own."""
    with pytest.raises(UserError, match="a gpt2 has no linear layers in its blocks for --lora"):
        lora.adapt(of_kind("gpt2"), 4, seed=0)


# ---- ranks

def ranked(rank, folder, port):
    """One of two gloo processes, each with two of four episodes, and no work in the end."""
    torch.set_num_threads(1)
    place = dict(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    test_tcod.os.environ.update(place)
    test_tcod.RANKS = Ranks()
    episodes = [made_up_episode(rank), made_up_episode(2 + rank)]
    model = test_tcod.three_steps(episodes, f"{folder}/shared", lora=4)
    torch.save(lora.merged(model), f"{folder}/{rank}.pt")
    test_tcod.RANKS.leave()


def test_two_ranks_equal_one(tmp_path):
    """DDP that waits for gradients of the base; factors that each rank draws anew; moments that are shared
    out over frozen weights, or a checkpoint that one process cannot go on from."""
    torch.multiprocessing.start_processes(
        ranked, (str(tmp_path), free_port()), nprocs=2, start_method="forkserver")
    alone = test_tcod.three_steps([made_up_episode(seed) for seed in range(4)], f"{tmp_path}/whole", lora=4)
    exact, base = lora.merged(alone), make_model(seed=1).state_dict()
    moved = max((exact[name] - base[name]).abs().max().item() for name in exact)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        apart = max((exact[name] - found[name]).abs().max().item() for name in exact)
        print(f"rank {rank}: largest difference of a merged weight {apart:.1e}, largest change {moved:.1e}")
        assert apart <= 1e-6 < 0.01 < moved
    paths = (tmp_path / name / "checkpoint.pt" for name in ("whole", "shared"))
    one, two = (torch.load(path, weights_only=True) for path in paths)
    assert len(two["student"]) == 28 and two["student"].keys() == one["student"].keys()
    for i, state in two["optimizer"]["state"].items():
        assert torch.allclose(state["exp_avg"], one["optimizer"]["state"][i]["exp_avg"], atol=1e-6)
    assert len(two["optimizer"]["state"]) == 28


# ---- runs

def test_a_killed_run_goes_on_exactly(checkpoints, data, tmp_path):
    """Factors or moments that are not in the checkpoint, a base that is; factors drawn anew, or a base that
    was merged into when the student was kept."""
    shared = dict(steps=6, eval_every=3, keep=2, save_every=2, lora=4)
    tcod.main(arguments(checkpoints, data, tmp_path / "whole", **shared))
    stop(arguments(checkpoints, data, tmp_path / "killed", **shared), 9, 3)
    assert not (tmp_path / "killed" / "student").exists(), "the run ended before it was killed"
    with pytest.raises(UserError, match="begun with another lora"):
        tcod.main(arguments(checkpoints, data, tmp_path / "killed", **{**shared, "lora": 5}))
    tcod.main(tcod.Args(resume=str(tmp_path / "killed")))
    same_runs(tmp_path / "whole", tmp_path / "killed")
    for name in ("student-2", "student-4", "student-6", "student"):
        folders = [tmp_path / run / name / "adapter" for run in ("whole", "killed")]
        assert test_tcod.same(*(load_file(folder / lora.WEIGHTS[0]) for folder in folders))
    assert not test_tcod.same(*(weights_of(tmp_path / "whole", f"student-{n}") for n in (2, 4)))
    kept = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    model, teacher = (load.load_model(str(checkpoints / who)) for who in ("student", "teacher"))
    sizes = plan.factors(model.config, 4)
    assert [f.numel() for f in kept["student"].values()] == sizes and max(sizes) < model.num_parameters() / 50
    assert load.weights(teacher) != load.weights(model)
    records = read_log(tmp_path / "whole" / "log.jsonl")
    assert all(r["mismatch"] < 1e-4 for r in records if r["step"])


def test_one_model_plays_and_learns_in_bf16(checkpoints, data, tmp_path, capsys):
    """A learner in fp32, or under autocast, whose distributions are not the player's: the mismatch of full
    fine-tuning."""
    found = {}
    for rank in (0, 4):
        out = tmp_path / str(rank)
        little = dict(precision="bf16", steps=4, episodes=2, max_turns=2, eval_every=0, lr=3e-2, lora=rank)
        tcod.main(arguments(checkpoints, data, out, **little))
        found[rank] = [r["mismatch"] for r in read_log(out / "log.jsonl")]
    print(found)
    assert sum(found[4]) < 0.3 * sum(found[0])
    assert weights_of(tmp_path / "4", "student")["model.norm.weight"].dtype == torch.bfloat16
    assert ", 4,096 numbers trained beside 14 frozen linear layers, run folder" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["sft", "guided", "uopd", "b2f"])
def test_other_methods(method, checkpoints, data, tmp_path):
    """A loss without a teacher, a teacher that acts or judges, an expert's turns: what is frozen moves."""
    tcod.main(arguments(
        checkpoints, data, tmp_path / "run", method=method, steps=2, episodes=2, eval_every=0, lora=2))
    before, after = (weights_of(folder, "student") for folder in (checkpoints, tmp_path / "run"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{name}.weight" for name in plan.linear(make_model("qwen3"))}


# ---- on disk

def trained(tmp_path, kind="qwen3", dtype=torch.float32, rank=4):
    """(a model with factors, whose base lies in a folder; the folder that it was saved in)."""
    load.save(make_model(kind), make_tokenizer(), str(tmp_path / "base"), dict(max_response=7))
    model = noisy(load.load_model(str(tmp_path / "base"), dtype=dtype), rank)
    load.save(model, make_tokenizer(), str(tmp_path / "student"))
    return model, str(tmp_path / "student")


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
def test_a_merged_student_says_what_the_factors_say(kind, dtype, bound, tmp_path):
    """A lost scale, a layer that is left out, names that an ordinary checkpoint does not have; a sum that is
    rounded before it is made; a student's folder that transformers takes for an adapter."""
    model, folder = trained(tmp_path, kind, dtype)
    student, base = load.load_model(folder, dtype=dtype), load.load_model(str(tmp_path / "base"), dtype=dtype)
    for parts in (False, True):
        own, ours, before = (logits_of(m, ROWS, parts).flatten(0, 1) for m in (model, student, base))
        assert load.distance(own, ours) < bound < load.distance(own, before)
    for name, layer in plan.linear(model).items():
        assert torch.equal(layer.weight, base.get_parameter(f"{name}.weight"))  # not merged into
        exact = layer.weight.double() + 2 * layer.lora_B.double() @ layer.lora_A.double()
        step = 2.0 ** (-23 if dtype == torch.float32 else -8)
        assert (student.get_parameter(f"{name}.weight") - exact).abs().le(step * exact.abs() + 1e-7).all()


def test_an_adapters_folder_is_its_merged_model(tmp_path):
    """A base that plays in the student's place, its tokenizer or defaults lost; a configuration that is not
    found by --plan; an adapter of an adapter."""
    _, folder = trained(tmp_path)
    adapter = f"{folder}/adapter"
    assert load.weights(load.load_model(adapter)) == load.weights(load.load_model(folder))
    assert load.load_tokenizer(adapter).get_vocab() == make_tokenizer().get_vocab()
    assert load.defaults(adapter) == dict(max_response=7)
    assert load.positions(adapter) == 4096 and load.configuration(adapter).model_type == "qwen3"
    again = noisy(load.load_model(adapter), rank=40)  # more than the layers are wide
    load.save(again, make_tokenizer(), str(tmp_path / "again"))
    said = lora.configuration(str(tmp_path / "again" / "adapter"))
    assert (said["r"], said["lora_alpha"], said["base_model_name_or_path"]) == (40, 80, adapter)
    assert load.weights(load.load_model(str(tmp_path / "again" / "adapter"))) == load.weights(
        load.load_model(str(tmp_path / "again")))
    bf16 = load.load_model(adapter, dtype=torch.bfloat16)
    assert {p.dtype for p in bf16.parameters()} == {torch.bfloat16}


def others(tmp_path, factors, **config):
    """A folder as another program may write it, on a base in tmp_path / "base"."""
    folder = tmp_path / "others"
    folder.mkdir()
    said = dict(peft_type="LORA", base_model_name_or_path=str(tmp_path / "base"), r=2, lora_alpha=4)
    (folder / "adapter_config.json").write_text(json.dumps({**said, **config}))
    save_file(factors, folder / "adapter_model.safetensors")
    return str(folder)


Q, HEAD = "base_model.model.model.layers.1.self_attn.q_proj", "base_model.model.lm_head"


def pair(name, rank=2, width=32, out=32):
    """The factors of one layer."""
    draw = torch.Generator().manual_seed(1)
    return {f"{name}.lora_A.weight": torch.randn(rank, width, generator=draw),
            f"{name}.lora_B.weight": torch.randn(out, rank, generator=draw)}


@pytest.mark.parametrize("rank, config, scale", [
    (2, dict(), 2.0), (2, dict(use_rslora=True), 4 / 2**0.5), (4, dict(rank_pattern=dict(q_proj=4)), 1.0),
    (2, dict(alpha_pattern={"k_proj": 7, r"layers\.1\..*proj": 3, "q_proj": 9}), 1.5)])
def test_somebody_elses_scale(rank, config, scale, tmp_path):
    """alpha / r taken for 2; peft's division by the root of the rank; a layer's own rank, or alpha."""
    load.save(make_model("qwen3"), make_tokenizer(), str(tmp_path / "base"))
    factors = pair(Q, rank)
    names = others(tmp_path, factors, **config), str(tmp_path / "base")
    found, base = ([layer.self_attn.q_proj.weight for layer in load.load_model(name).model.layers]
                   for name in names)
    down, up = factors.values()
    assert torch.allclose(found[1] - base[1], scale * up @ down, atol=1e-5) and torch.equal(found[0], base[0])


@pytest.mark.parametrize("factors, config, words", [
    (pair(Q), dict(peft_type="LOHA"), "not plain LoRA"),
    (pair(Q), dict(init_lora_weights="pissa"), "not plain LoRA"),
    (pair(Q), dict(alora_invocation_tokens=[5]), "alora_invocation_tokens"),
    ({**pair(Q), f"{Q}.lora_magnitude_vector": torch.ones(32)}, {}, "it holds .*magnitude"),
    (pair(HEAD, out=128), {}, "no linear layer of its own for .*lm_head"),  # it is tied to the embeddings
    (pair(Q.replace("1", "9")), {}, "no linear layer of its own for .*layers.9"),
    (pair(Q, width=31), {}, "another shape"), ({}, {}, "it holds no factors"),
    (pair(Q), dict(base_model_name_or_path=None), "names no model"),
    (pair(Q), dict(base_model_name_or_path=7), "its base_model_name_or_path is 7"),
    (pair(Q), dict(lora_alpha="8"), "its lora_alpha is '8'"),
    (pair(Q), dict(alpha_pattern=[1]), "its alpha_pattern is"),
    (pair(Q), dict(base_model_name_or_path="/nowhere"), "/nowhere")])
def test_what_is_not_merged(factors, config, words, tmp_path):
    """Another sum than the adapter's own, silently: a teacher that was never trained."""
    load.save(make_model("qwen3"), make_tokenizer(), str(tmp_path / "base"))
    folder = others(tmp_path, factors, **config)
    with pytest.raises(UserError, match=words) as caught:
        load.load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="not installed: peft")
@pytest.mark.parametrize("kind", FAMILIES)
def test_peft_reads_the_factors(kind, tmp_path):
    """Names, shapes or a scale that peft does not know: it leaves out in silence what it does not find."""
    import peft
    from transformers import AutoModelForCausalLM

    model, folder = trained(tmp_path, kind, rank=40 if kind == "llama" else 4)
    config = peft.PeftConfig.from_pretrained(f"{folder}/adapter")
    base = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, f"{folder}/adapter")
    assert torch.allclose(logits_of(model, ROWS), logits_of(theirs, ROWS), atol=1e-5)
    assert not torch.allclose(logits_of(theirs, ROWS), logits_of(make_model(kind), ROWS), atol=1e-1)
    merged = theirs.merge_and_unload().state_dict()
    ours = load.load_model(folder).state_dict()
    assert merged.keys() == ours.keys() and all(torch.allclose(merged[n], ours[n], atol=1e-6) for n in ours)
    # And theirs by us.
    asked = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "o_proj"])
    draft = peft.get_peft_model(make_model(kind), asked)
    for name, parameter in draft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    draft.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "adapter_config.json"
    named = dict(base_model_name_or_path=str(tmp_path / "base"))  # a model made here has no name
    path.write_text(json.dumps({**json.loads(path.read_text()), **named}))
    ours = load.load_model(str(tmp_path / "theirs"))
    assert torch.allclose(logits_of(ours, ROWS), logits_of(draft, ROWS), atol=1e-5)
