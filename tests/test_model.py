"""Play over the ragged cache is exact; what plays on a GPU is emulated; checkpoints that would go wrong
silently are refused."""

import copy
import json
import math
import weakref

import pytest
import torch
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import model as lm
from harness.cli import UserError

KINDS = ["qwen2", "qwen3", "llama", "qwen3_moe"]


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_cache_against_uncached_forward(kind):
    """Padding that is attended to, positions counted from the batch's longest row, a write over another row's
    end: six turns of different lengths per row, decoding steps in which some rows stand still, two rows
    leaving. Logits within 1e-4 in fp32."""
    model, rng = make_model(kind), torch.Generator().manual_seed(0)
    rows = [[] for _ in range(5)]
    cache, worst = lm.RaggedCache(model, rows), 0.0

    def number(low, high):
        return int(torch.randint(low, high, (), generator=rng))

    with torch.no_grad():
        for turn in range(6):
            for row in rows:
                row += [number(3, 120) for _ in range(number(1, 40 if turn else 90))]
            logits = lm.extend(model, cache, [row[seen:] for row, seen in zip(rows, cache.length)])
            for _ in range(4):
                worst = max(worst, *(difference(model, row, logits[i]) for i, row in enumerate(rows)))
                going = [number(0, 3) > 0 for _ in rows]
                new = [number(3, 120) for _ in rows]
                after = lm.extend(model, cache, [[token] for token in new])
                for i, (row, token) in enumerate(zip(rows, new)):
                    if going[i]:
                        row.append(token)
                        logits[i] = after[i]
                    else:
                        cache.length[i] -= 1
            if turn == 2:
                rows = [rows[3], rows[0], rows[4]]
                cache.select(rows)
            for row in rows:
                row.append(number(3, 120))
    print(f"largest logit difference, {kind}: {worst:.1e}")
    assert cache.length[0] > 64 and len(set(cache.length)) == 3
    assert worst <= 1e-4


def difference(model, row, logits):
    """Largest difference to the logits behind the whole row, computed without any cache or batch."""
    return (model(input_ids=torch.tensor([row])).logits[0, -1] - logits).abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_do_not_depend_on_right_padding(kind):
    """The training forward takes no mask: this holds because attention is causal, and would break with left
    padding."""
    model = make_model(kind)
    row, longer = [5, 9, 11, 7], [3] * 9
    with torch.no_grad():
        alone = lm.hidden_states(model, torch.tensor([row]))
        padded = lm.hidden_states(model, torch.tensor([row + [0] * 5, longer]))
    assert torch.allclose(alone[0], padded[0, :4], atol=1e-5)


def test_round_trip_and_refusals(tmp_path):
    """A saved student must load as an ordinary checkpoint, also over an older one; what cannot work is one
    sentence."""
    model, tokenizer = make_model(), make_tokenizer()
    for seed in (0, 1):
        lm.save(make_model(seed=seed), tokenizer, str(tmp_path / "student"))
    loaded, again = lm.load(str(tmp_path / "student"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), make_model(seed=1).parameters()))
    assert lm.style(again) == "bare" and again.get_vocab() == tokenizer.get_vocab()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    with pytest.raises(UserError, match="nowhere"):
        lm.load(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="same vocabulary"):
        lm.same_vocabulary(tokenizer, make_tokenizer(extra=["zebra"]))
    again.chat_template = None
    again.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match="chat template"):
        lm.load(str(tmp_path / "plain"))


def test_the_playing_copy_keeps_its_rotary_frequencies():
    """`.to(bfloat16)` rounds the rotary buffers too: the student would play with other positions than it is
    trained with."""
    model = make_model()
    bf16 = lm.rounded(copy.deepcopy(model), torch.bfloat16)
    assert {p.dtype for p in bf16.parameters()} == {torch.bfloat16}
    for ours, master in zip(bf16.buffers(), model.buffers(), strict=True):
        assert ours.dtype == master.dtype == torch.float32 and torch.equal(ours, master)


@pytest.mark.parametrize("gpu, able, chosen", [
    (True, True, "bf16"), (True, False, "fp32"), (False, True, "fp32"), (False, False, "fp32")])
def test_precision_is_chosen_by_the_device(gpu, able, chosen, monkeypatch):
    """bf16 emulated on a GPU before Ampere; runs on a processor that are no longer exact."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict(avx2=True, amx_bf16=able))
    assert lm.precision("auto") == chosen and lm.has_bf16() == able
    assert (lm.precision("bf16"), lm.precision("fp32")) == ("bf16", "fp32")  # as asked


def test_the_playing_copy_gives_its_memory_up():
    """A copy that stays beside the gradients, or comes back as it was before the step; where it is the
    student itself, weights that are gone."""
    student = make_model("qwen3", tie_word_embeddings=True)
    player = lm.rounded(copy.deepcopy(student), torch.bfloat16)
    lm.release(player, student)
    assert sum(p.numel() for p in player.parameters()) == 0
    with torch.no_grad():
        lm.head(student).add_(1.0)
    lm.refresh(player, student)
    for copied, master in zip(player.parameters(), student.parameters(), strict=True):
        assert copied.dtype == torch.bfloat16 and torch.equal(copied, master.to(torch.bfloat16))
    assert lm.head(player) is player.get_input_embeddings().weight
    lm.release(student, student)
    assert lm.head(student).numel() > 0


@pytest.mark.parametrize("most, capacities", [(math.inf, [80, 200]), (120, [80, 120]), (100, [80, 100])])
def test_the_cache_never_grows_beyond_the_context(most, capacities):
    """A buffer of twice the context at its end: half of the largest cache for nothing."""
    model, sizes = make_model(), []
    cache = lm.RaggedCache(model, ["row"], most)
    with torch.no_grad():
        for width in (40, 60):
            lm.extend(model, cache, [[5] * width])
            sizes.append(cache.layers[0][0].shape[2])
    assert sizes == capacities


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_turn_needs_no_mask(kind, monkeypatch):
    """Causal attention over rows that are not empty, or whose keys end elsewhere than the queries: rows of
    different lengths, fed at once, and behind a first token as later turns are."""
    model, attend, masked = make_model(kind), torch.nn.functional.scaled_dot_product_attention, []

    def noting(*args, attn_mask=None, is_causal=False, **more):
        masked.append((attn_mask is not None, is_causal))
        return attend(*args, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    rows = [[3 + i * j % 100 for j in range(length)] for i, length in ((1, 40), (2, 7), (3, 25))]
    at_once, later = lm.RaggedCache(model, rows), lm.RaggedCache(model, rows)
    with torch.no_grad():
        first = lm.extend(model, at_once, rows)
        assert set(masked) == {(False, True)}
        lm.extend(model, later, [row[:1] for row in rows])
        masked.clear()
        behind = lm.extend(model, later, [row[1:] for row in rows])
        assert set(masked) == {(True, False)}
    assert torch.allclose(first, behind, atol=1e-5)
    for one, other in zip(at_once.layers, later.layers):
        for i, row in enumerate(rows):
            assert torch.allclose(one[0][i, :, : len(row)], other[0][i, :, : len(row)], atol=1e-5)


def test_finished_rows_free_their_memory_tensor_by_tensor():
    """A cache that is there twice while rows leave it."""
    model, owners, alive = make_model(), [object() for _ in range(3)], []
    cache = lm.RaggedCache(model, owners)
    with torch.no_grad():
        lm.extend(model, cache, [[5] * 9] * 3)
    old = [weakref.ref(kept) for pair in cache.layers for kept in pair]
    kept = [pair[1].clone() for pair in cache.layers]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation == torch.ops.aten.index.Tensor:
                alive.append(sum(one() is not None for one in old))
            return operation(*args, **(kwargs or {}))

    with Watch():
        cache.select([owners[2], owners[0]])
    assert alive == [4, 3, 2, 1]  # keys and values of two layers
    assert all(torch.equal(pair[1], before[[2, 0]]) for pair, before in zip(cache.layers, kept))


def step(student):
    """One optimizer step on a bf16 forward of fp32 weights, as on a GPU."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = lm.hidden_states(student, torch.tensor([[5, 9, 11, 7, 30]]))
        lm.logits(hidden[0], lm.head(student)).logsumexp(-1).sum().backward()
    optimizer.step()
    return hidden


def test_the_gpus_precision_on_the_cpu():
    """fp32 masters that autocast turns into bf16 gradients, a playing copy that lags behind the masters, or
    whose tied head comes apart from its embedding so that only one of them follows."""
    student = make_model("qwen3", tie_word_embeddings=True)
    player = lm.rounded(copy.deepcopy(student), torch.bfloat16)
    before = [p.clone() for p in player.parameters()]
    step(student)
    assert {p.grad.dtype for p in student.parameters()} == {torch.float32}
    lm.refresh(player, student)
    assert any(not torch.equal(old, new) for old, new in zip(before, player.parameters()))
    for copied, master in zip(player.parameters(), student.parameters(), strict=True):
        assert copied.dtype == torch.bfloat16 and torch.equal(copied, master.to(torch.bfloat16))
    for model in (player, student):
        assert lm.head(model) is model.get_input_embeddings().weight
    with torch.no_grad():
        row = [5, 9, 11, 7, 30, 2, 17]
        cached = lm.extend(player, lm.RaggedCache(player, [0]), [row])
        with torch.autocast("cpu", torch.bfloat16):
            learner = lm.logits(lm.hidden_states(student, torch.tensor([row]))[0, -1:], lm.head(student))
    mismatch = (cached.log_softmax(-1) - learner.float().log_softmax(-1)).abs().max().item()
    assert 0 < mismatch < 0.2  # bf16's own rounding, and no more


def test_sliding_window_attention_is_refused():
    """The cache's mask would attend beyond the window, silently."""
    model = make_model("qwen2")
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match="full attention"):
        lm.check_supported("some-model", model, torch.float32)
    model.config.layer_types, model.config.sliding_window = None, 4096
    with pytest.raises(UserError, match="full attention"):
        lm.check_supported("some-model", model, torch.float32)


def test_noise_is_taken_out():
    """Dropout in the training forward: the student would be compared with a noisy copy of itself."""
    model = make_model("qwen2", attention_dropout=0.3)
    lm.without_noise(model)
    row = torch.tensor([[5, 9, 11, 7, 30, 2, 17]])
    with torch.no_grad():
        still = lm.hidden_states(model, row)
        assert torch.equal(still, lm.hidden_states(model.train(), row))


def saved(folder, model):
    """A checkpoint with a tokenizer, as a folder."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def renamed(weights):
    """As a compiled model saves them."""
    return {f"_orig_mod.{name}": weight for name, weight in weights.items()}


def without_one(weights):
    return {name: weight for name, weight in weights.items() if "layers.1.mlp.up_proj" not in name}


def with_one_more(weights):
    return {**weights, "model.layers.0.self_attn.sinks": torch.zeros(4)}


@pytest.mark.parametrize("change, words", [
    (renamed, "not a whole checkpoint.*lacks"), (without_one, "lacks 1 weights, as .*up_proj"),
    (with_one_more, "besides its own 1 weights, as .*sinks")])
def test_weights_that_do_not_match_are_refused(change, words, tmp_path):
    """A compiled or wrapped model's checkpoint, loaded as a random model in silence."""
    folder = saved(tmp_path / "model", make_model())
    path = tmp_path / "model" / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=words):
        lm.load_model(folder)


def test_an_adapters_folder_is_refused_by_name(tmp_path):
    """Beside peft it loads, and nothing in it is trained."""
    folder = saved(tmp_path / "adapter", make_model())
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapter"):
        lm.load_model(folder)


SIZES = dict(
    vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, initializer_range=0.2,
    eos_token_id=2, bos_token_id=1, pad_token_id=0)


def of_kind(kind, **more):
    """A random model of an architecture, with all that its head may have beside a weight."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **more})
    model = AutoModelForCausalLM.from_config(config)
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)  # a trained one is not zero
    return model


DEEPSEEK = dict(
    q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
    n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=32)


@pytest.mark.parametrize("kind, more", [
    ("phi", {}), ("gptj", {}), ("cohere", dict(logit_scale=0.25)), ("granite", dict(logits_scaling=4.0)),
    ("falcon", {}), ("opt", dict(ffn_dim=64, word_embed_proj_dim=32)), ("deepseek_v3", DEEPSEEK)])
def test_heads_and_caches_of_other_architectures(kind, more, tmp_path):
    """A head's bias, a scale of the logits, keys wider than values, a cache that is asked for its length:
    played, scored and trained on other logits than the model's own, or a traceback."""
    model = lm.load_model(saved(tmp_path / "model", of_kind(kind, **more)))
    rows = [[5, 9, 11, 7, 30, 2, 17], [8, 6, 4]]
    cache = lm.RaggedCache(model, rows)
    with torch.no_grad():
        lm.extend(model, cache, [rows[0][:4], rows[1][:1]])
        played = lm.extend(model, cache, [rows[0][4:], rows[1][1:]])
        for i, row in enumerate(rows):
            own = model(input_ids=torch.tensor([row])).logits[0, -1]
            hidden = lm.hidden_states(model, torch.tensor([row]))[0]
            trained = lm.logits(hidden, lm.head(model))[-1]
            assert torch.allclose(played[i], own, atol=1e-4) and torch.allclose(trained, own, atol=1e-4)


def test_a_head_with_a_bias_is_trained():
    """The bias is a column that `head` makes anew: its gradient must reach the parameter."""
    model = of_kind("phi")
    hidden = lm.hidden_states(model, torch.tensor([[5, 9, 11]]))[0]  # (T, D + 1)
    ours = lm.logits(hidden, lm.head(model)).logsumexp(-1).sum()
    bias = model.get_output_embeddings().bias
    gradient = torch.autograd.grad(ours, bias)[0]
    own = model(input_ids=torch.tensor([[5, 9, 11]])).logits.logsumexp(-1).sum()
    assert torch.allclose(gradient, torch.autograd.grad(own, bias)[0], atol=1e-6)


@pytest.mark.parametrize("kind, words", [
    ("bert", "logits that are not its head's products"), ("bart", "does not play"),
    ("bloom", "cannot load"), ("gemma3_text", "other than full attention")])
def test_a_model_whose_logits_are_not_ours_is_refused(kind, words, tmp_path):
    """No causal model at all, another cache: played, scored and trained on other logits than its own, or a
    traceback."""
    folder = saved(tmp_path / "model", of_kind(kind))
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(UserError, match=words):
            lm.load_model(folder, dtype=dtype)


@pytest.mark.parametrize("rope", [
    {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64},
    {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4, "short_factor": [1.0] * 4,
     "long_factor": [1.0, 2.0, 4.0, 8.0], "original_max_position_embeddings": 64}])
def test_frequencies_that_depend_on_the_neighbours_are_refused(rope, tmp_path):
    """A row beside a longer one has other log-probabilities than alone, and play and training disagree."""
    folder = saved(tmp_path / "model", make_model("llama", rope_parameters=rope, max_position_embeddings=64))
    with pytest.raises(UserError, match="depend on the longest row"):
        lm.load_model(folder)


def test_noise_that_nobody_turned_off_is_refused(monkeypatch):
    """A model that is random in training mode, in a way that `without_noise` does not know: `--recompute`
    would train it on other log-probabilities than it played with."""
    model = make_model("qwen2")
    lm.check_logits("some-model", model)
    monkeypatch.setattr(model.model.norm, "forward", lambda x: x + torch.rand_like(x) * model.training)
    with pytest.raises(UserError, match="noisy in training mode"):
        lm.check_logits("some-model", model)


@pytest.mark.parametrize("change, words", [
    (dict(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), "quantis|cannot load"),
    (dict(attn_implementation="eager", dtype="bfloat16"), None)])
def test_what_a_configuration_says_does_not_overrule(change, words, tmp_path):
    """A quantised teacher, eager attention or bf16 weights since config.json asks for them."""
    folder = saved(tmp_path / "model", make_model("qwen2"))
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if words:
        with pytest.raises(UserError, match=words):
            lm.load_model(folder)
    else:
        model = lm.load_model(folder)
        assert model.dtype == torch.float32 and model.config._attn_implementation == "sdpa"


def with_ids(change):
    """The tests' tokenizer with other ids."""
    tokenizer = make_tokenizer()
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    change(core)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)), eos_token="<|im_end|>", unk_token="<unk>",
        chat_template=tokenizer.chat_template)


def test_ids_that_no_token_has_are_left_out():
    """Counting a tokenizer's tokens: with holes in its ids the last tokens are never sampled nor compared,
    and ids that stand for nothing are."""
    def skip_ten(core):
        words = core["model"]["vocab"]
        core["model"]["vocab"] = {word: i if i < 20 else i + 10 for word, i in words.items()}

    tokenizer = with_ids(skip_ten)
    vocabulary, most = lm.vocabulary(tokenizer, make_model()), max(tokenizer.get_vocab().values())
    assert vocabulary == (most + 1, list(range(20, 30))) and most >= len(tokenizer)
    logits = vocabulary.among(torch.zeros(2, 128))
    assert logits.shape == (2, most + 1) and (logits.exp().sum(-1) == len(tokenizer)).all()


def test_ids_beyond_a_head():
    """A control token that was added and has no row is never sampled; words without one are refused, since a
    game's text could name them."""
    plain, rows = make_tokenizer(), len(make_tokenizer())
    assert lm.vocabulary(plain, make_model(vocabulary=128), make_model(vocabulary=144)) == (rows, [])
    padded = make_tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert lm.vocabulary(padded, make_model(vocabulary=rows)) == (rows, [])
    with pytest.raises(UserError, match="1 tokens for text that the model's head lacks, as 'zebra'"):
        lm.vocabulary(make_tokenizer(extra=["zebra"]), make_model(vocabulary=rows))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_played_in_bf16_on_a_gpu_loads(kind, tmp_path):
    """A check so tight that bf16's own rounding, of the tail of a vocabulary above all, refuses a sound
    model."""
    folder = saved(tmp_path / "model", make_model(kind))
    assert lm.load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_distance_by_hand():
    """A tail that nobody samples decides; a masked id gives NaN."""
    own = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log()
    ours = torch.tensor([[0.25, 0.5, 0.25, 0.0]]).log()
    assert lm.distance(own, ours) == pytest.approx(0.75 * math.log(2), abs=1e-6)
    assert lm.distance(own, own) == 0.0


def test_a_folder_that_is_no_model(tmp_path):
    """A run's folder given in place of its student/, a path taken for a name on the hub."""
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(UserError, match="has no model before its last step"):
        lm.load_tokenizer(str(tmp_path))
    (tmp_path / "student").mkdir()
    with pytest.raises(UserError, match="is a run's folder: its model is .*/student"):
        lm.load_tokenizer(str(tmp_path))
    for nowhere in ("./nowhere", "/nowhere", "runs/nowhere/student"):
        with pytest.raises(UserError, match=f"no folder '{nowhere}'"):
            lm.load_tokenizer(nowhere)
