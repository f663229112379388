"""Checkpoints that load as they were saved, and every reason to refuse one: what would go wrong silently."""

import json
import math

import pytest
import torch
from conftest import FAMILIES, SIZES, make_model, make_tokenizer, of_kind
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers
from transformers import AutoConfig, PreTrainedTokenizerFast

import load
import model as lm
from chat.template import Chat
from eval import Args, fill
from harness.cli import UserError
from harness.folder import differing


def saved(folder, model, **config):
    """A checkpoint with a tokenizer, as a folder; config: what its config.json says otherwise."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return str(folder)


# ---- names, saving, precision

def test_a_round_trip(tmp_path):
    """A saved student must load as an ordinary checkpoint, also over an older one."""
    tokenizer, folder = make_tokenizer(), str(tmp_path / "student")
    for seed, own in ((0, dict(lr=1.0)), (1, dict(steps=3))):
        load.save(make_model(seed=seed), tokenizer, folder, own)
    loaded, again = load.load_model(folder), load.load_tokenizer(folder)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), make_model(seed=1).parameters()))
    assert load.weights(loaded) == load.weights(make_model(seed=1)) != load.weights(make_model())
    assert load.style(again) == "bare" and again.get_vocab() == tokenizer.get_vocab()
    assert load.defaults(folder) == dict(steps=3) and load.defaults("some/name") == {}
    assert (load.positions(folder), load.positions("/nowhere")) == (4096, math.inf)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_what_is_no_checkpoint(tmp_path):
    """A run's folder given in place of its student/, a path taken for a name on the hub, a base model without
    a template; an adapter, which loads beside peft and of which nothing is trained."""
    saved(tmp_path / "run", make_model())
    (tmp_path / "run" / "args.json").write_text("{}")
    with pytest.raises(UserError, match="has no model before its last step"):
        load.load_tokenizer(str(tmp_path / "run"))
    (tmp_path / "run" / "student").mkdir()
    with pytest.raises(UserError, match="is a run's folder: its model is .*/student"):
        load.load_tokenizer(str(tmp_path / "run"))
    for nowhere in ("./nowhere", "/nowhere", "runs/nowhere/student"):
        for read in (load.load_tokenizer, load.configuration):
            with pytest.raises(UserError, match=f"no folder '{nowhere}'"):
                read(nowhere)
    plain = make_tokenizer()
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="chat template"):
        load.load_tokenizer(str(tmp_path / "plain"))
    (tmp_path / "plain" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapter"):
        load.load_model(str(tmp_path / "plain"))
    for text, words in (("[1]", "holds no table"), ("{", "cannot be read")):
        (tmp_path / "plain" / load.DEFAULTS).write_text(text)
        with pytest.raises(UserError, match=words):
            load.defaults(str(tmp_path / "plain"))
    with pytest.raises(UserError, match="no tiny-narrow is shipped for webshop"):
        load.resolve("tiny-narrow", "webshop")


@pytest.mark.parametrize("gpu, able, tiny, large", [
    (True, True, "bf16", "bf16"), (True, False, "fp32", "fp32"), (False, True, "fp32", "bf16"),
    (False, False, "fp32", "fp32")])
def test_precision_is_chosen_by_device_and_model(gpu, able, tiny, large, tmp_path, monkeypatch):
    """bf16 emulated on a GPU before Ampere; a tiny pair that is no longer exact on a processor; a tied head
    that counts twice, or weights that are read to be counted."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict(avx2=True, amx_bf16=able))
    assert load.precision("auto") == tiny and load.has_bf16() == able
    assert load.play_dtype() == (torch.bfloat16 if tiny == "bf16" else torch.float32)
    for tied, chosen in ((True, tiny), (False, large)):  # 32 · 160,000 is 5.1 M
        config = AutoConfig.for_model("qwen3", **SIZES, vocab_size=160_000, tie_word_embeddings=tied)
        config.save_pretrained(tmp_path)
        name = str(tmp_path)
        assert load.precision("auto", name) == chosen
        assert (load.precision("bf16", name), load.precision("fp32", name)) == ("bf16", "fp32")  # as asked
        told = fill(Args(max_context=9), {}, name)
        assert any("--precision bf16, which" in text for text in told) == (chosen == "bf16")


# ---- architectures

DEEPSEEK = dict(
    q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
    n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=32)


@pytest.mark.parametrize("kind, more", [
    ("phi", {}), ("gptj", {}), ("cohere", dict(logit_scale=0.25)), ("granite", dict(logits_scaling=4.0)),
    ("falcon", {}), ("opt", dict(ffn_dim=64, word_embed_proj_dim=32)), ("deepseek_v3", DEEPSEEK)])
def test_heads_and_caches_of_other_architectures(kind, more, tmp_path):
    """A head's bias, a scale of the logits, keys wider than values, a cache that is asked for its length:
    played, scored and trained on other logits than the model's own, or a traceback."""
    model = load.load_model(saved(tmp_path / "model", of_kind(kind, **more)))
    rows = [[5, 9, 11, 7, 30, 2, 17], [8, 6, 4]]
    cache = lm.RaggedCache(model, rows)
    with torch.no_grad():
        lm.extend(model, cache, [rows[0][:4], rows[1][:1]])
        played = lm.logits(lm.extend(model, cache, [rows[0][4:], rows[1][1:]]), cache.head)
        for i, row in enumerate(rows):
            own = model(input_ids=torch.tensor([row])).logits[0, -1]
            trained = lm.logits(lm.hidden_states(model, torch.tensor([row]))[0], lm.head(model))[-1]
            assert torch.allclose(played[i], own, atol=1e-4) and torch.allclose(trained, own, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_played_in_bf16_on_a_gpu_loads(kind, tmp_path):
    """A check so tight that bf16's own rounding, of the tail of a vocabulary above all, refuses a sound
    model."""
    folder = saved(tmp_path / "model", make_model(kind))
    assert load.load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("kind, words", [
    ("bert", "logits that are not its head's products"), ("bart", "does not play"),
    ("bloom", "cannot load .*scaled_dot_product_attention")])
def test_a_model_whose_logits_are_not_ours_is_refused(kind, words, tmp_path):
    """No causal model at all, another cache: played, scored and trained on other logits than its own, or a
    traceback."""
    folder = saved(tmp_path / "model", of_kind(kind))
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(UserError, match=words):
            load.load_model(folder, dtype=dtype)


def rope(kind, **more):
    """The rotary frequencies of a configuration."""
    return dict(rope_type=kind, factor=4.0, rope_theta=1e4, original_max_position_embeddings=64, **more)


@pytest.mark.parametrize("frequencies", [
    rope("dynamic"), rope("longrope", short_factor=[1.0] * 4, long_factor=[1.0, 2.0, 4.0, 8.0])])
def test_frequencies_that_depend_on_the_neighbours_are_refused(frequencies, tmp_path):
    """A row beside a longer one has other log-probabilities than alone, and play and training disagree."""
    model = make_model("llama", rope_parameters=frequencies, max_position_embeddings=64)
    with pytest.raises(UserError, match="depend on the longest row"):
        load.load_model(saved(tmp_path / "model", model))


def renamed(weights):
    """As a compiled model saves them."""
    return {f"_orig_mod.{name}": weight for name, weight in weights.items()}


def without_one(weights):
    return {name: weight for name, weight in weights.items() if "layers.1.mlp.up_proj" not in name}


def with_one_more(weights):
    return {**weights, "model.layers.0.self_attn.sinks": torch.zeros(4)}


def in_another_shape(weights):
    return {**weights, "model.norm.weight": torch.ones(48)}


@pytest.mark.parametrize("change, words", [
    (renamed, "not a whole checkpoint.*lacks"), (without_one, "lacks 1 weights, as .*up_proj"),
    (with_one_more, "besides its own 1 weights, as .*sinks"),
    (in_another_shape, "in other shapes 1 weights, as .*norm")])
def test_weights_that_do_not_match_are_refused(change, words, tmp_path):
    """A compiled or wrapped model's checkpoint, loaded as a random model in silence."""
    folder = saved(tmp_path / "model", make_model())
    path = tmp_path / "model" / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=words):
        load.load_model(folder)


def test_what_a_configuration_says_does_not_overrule(tmp_path):
    """A quantised teacher, eager attention or bf16 weights since config.json asks for them."""
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(UserError, match="quantis|cannot load"):
        load.load_model(saved(tmp_path / "model", make_model("qwen2"), quantization_config=quantised))
    folder = saved(tmp_path / "eager", make_model("qwen2"), attn_implementation="eager", dtype="bfloat16")
    model = load.load_model(folder)
    assert model.dtype == torch.float32 and model.config._attn_implementation == "sdpa"


# ---- noise

def test_noise_is_taken_out():
    """Dropout in the training forward: the student would be compared with a noisy copy of itself."""
    model = make_model("qwen2", attention_dropout=0.3)
    load.without_noise(model)
    row = torch.tensor([[5, 9, 11, 7, 30, 2, 17]])
    with torch.no_grad():
        still = lm.hidden_states(model, row)
        assert torch.equal(still, lm.hidden_states(model.train(), row))


def test_noise_that_nobody_turned_off_is_refused(monkeypatch):
    """A model that is random in training mode, in a way that `without_noise` does not know:
    recomputation would train it on other log-probabilities than it played with."""
    model = make_model("qwen2")
    load.check_logits("some-model", model)
    monkeypatch.setattr(model.model.norm, "forward", lambda x: x + torch.rand_like(x) * model.training)
    with pytest.raises(UserError, match="noisy in training mode"):
        load.check_logits("some-model", model)


def test_distance_by_hand():
    """A tail that nobody samples decides; a masked id gives NaN."""
    own = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log()
    ours = torch.tensor([[0.25, 0.5, 0.25, 0.0]]).log()
    assert load.distance(own, ours) == pytest.approx(0.75 * math.log(2), abs=1e-6)
    assert load.distance(own, own) == 0.0


# ---- what a model is

def changed_parts(one, other):
    """In which parts of their identities two (model, tokenizer) differ."""
    prints = [load.identity("student", model, Chat(tokenizer, load.end_tokens(model)))
              for model, tokenizer in (one, other)]
    return differing(*prints)


@pytest.mark.parametrize("number", [1, 2049, 128 * 32 - 1])
def test_every_weight_counts(number):
    """One number of an embedding of which a sample looks at a column only: a model that was trained on, or
    mended, taken for the one of before."""
    model = make_model()
    before, sampled = load.weights(model), load.sample(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.view(-1)[number] += 0.25
    assert load.weights(model) != before and load.sample(model) == sampled


def test_weights_are_told_across_precisions_and_pieces(monkeypatch):
    """A checkpoint in bf16 that is another one in fp32; two numbers that changed places; one hash for another
    order of the same pieces."""
    model = make_model().bfloat16()
    before = load.weights(model)
    assert load.weights(model.float()) == before
    monkeypatch.setattr(load, "PIECE", 100)
    weight = model.get_input_embeddings().weight.data
    there = load.weights(model)
    weight[[5, 90]] = weight[[90, 5]]
    assert load.weights(model) != there
    weight[[5, 90]] = weight[[90, 5]]
    assert load.weights(model) == there


def test_a_configuration_as_far_as_it_changes_logits():
    """Another rotary base or scale of the norm taken for the same model; what only says how to train or
    cache taken for another."""
    plain, tokenizer = make_model(), make_tokenizer()
    rope = dict(rope_type="default", rope_theta=3.0)
    for name, value in (("rms_norm_eps", 1e-2), ("rope_parameters", rope)):
        other = make_model(**{name: value})
        assert changed_parts((plain, tokenizer), (other, tokenizer)) == ["student's configuration"]
    other = make_model(
        attention_dropout=0.1, use_cache=False, bos_token_id=3, transformers_version="9", architectures=["X"])
    assert changed_parts((plain, tokenizer), (other, tokenizer)) == []
    other.generation_config.eos_token_id = [2, 5]
    assert changed_parts((plain, tokenizer), (other, tokenizer)) == ["student's end tokens"]


def test_a_tokenizer_and_its_template():
    """A vocabulary or normaliser that was mended, a template with other words: the same weights, another
    student."""
    model, plain = make_model(), make_tokenizer()
    lower, other = make_tokenizer(), make_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    other.chat_template = other.chat_template.replace("assistant ", "assistant : ")
    for tokenizer, part in (
            (make_tokenizer(extra=["zebra"]), "tokenizer"), (lower, "tokenizer"), (other, "template")):
        assert changed_parts((model, plain), (model, tokenizer)) == [f"student's {part}"]
    assert changed_parts((model, plain), (model, make_tokenizer())) == []


# ---- what others read

def read(path):
    return json.loads(path.read_text())


def test_older_readers_find_the_rotary_frequencies(tmp_path):
    """A student that transformers 4 reads with base 10,000, half a nat off, in silence: it knows the names of
    before. An empty entry that is dropped, so that a library's default takes its place."""
    scaled = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=1024)
    for kind, rope, found in (
            ("qwen2", dict(rope_type="default", rope_theta=1e6), dict(rope_theta=1e6)),
            ("qwen2", scaled, dict(rope_theta=1e6, rope_scaling={
                name: value for name, value in scaled.items() if name != "rope_theta"})),
            ("phi", dict(rope_type="default", rope_theta=1e5, partial_rotary_factor=0.5),
             dict(rope_theta=1e5, partial_rotary_factor=0.5)),
            ("gpt_neox", dict(rope_type="default", rope_theta=1e5, partial_rotary_factor=0.5),
             dict(rotary_emb_base=1e5, rotary_pct=0.5))):
        model, folder = of_kind(kind, rope_parameters=rope), tmp_path / kind
        load.save(model, make_tokenizer(), str(folder))
        own = model.config.to_diff_dict()
        written = read(folder / "config.json")
        older = ("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_emb_base", "rotary_pct")
        assert {name: written[name] for name in older if name in written} == found
        assert {name for name, value in own.items() if value is None} <= set(written)
        again = load.configuration(str(folder))
        assert load.configured(again) == load.configured(model.config)


def test_older_readers_load_the_tokenizer(tmp_path):
    """A class that transformers 4 does not know, and a list where it wants a dictionary: no tokenizer."""
    load.save(make_model(), make_tokenizer(), str(tmp_path / "student"))
    written = read(tmp_path / "student" / "tokenizer_config.json")
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|im_start|>"] and "extra_special_tokens" not in written
    again = load.load_tokenizer(str(tmp_path / "student"))
    assert Chat(again).identity() == Chat(make_tokenizer()).identity()


def test_a_student_behind_a_link(tmp_path):
    """A link to a larger disk that the first saving replaces by a folder."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "student").symlink_to(tmp_path / "disk" / "student")
    for seed in (0, 1):
        load.save(make_model(seed=seed), make_tokenizer(), str(tmp_path / "student"))
    assert (tmp_path / "student").is_symlink()
    there = load.load_model(str(tmp_path / "disk" / "student"))
    assert load.weights(there) == load.weights(make_model(seed=1))
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["student"]


def test_two_sets_of_weights_in_a_folder(tmp_path):
    """The older of two files loaded, since its format is looked for first; two that agree refused."""
    folder, model = saved(tmp_path / "model", make_model()), make_model()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    load.load_model(folder)
    with torch.no_grad():
        model.model.norm.weight[3] += 1
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match="model.safetensors and pytorch_model.bin, as in model.norm.weight"):
        load.load_model(folder)
    for broken in (b"", b"PK"):
        (tmp_path / "model" / "pytorch_model.bin").write_bytes(broken)
        with pytest.raises(UserError, match="cannot load .*pytorch_model.bin'"):
            load.load_model(folder)
    (tmp_path / "model" / "pytorch_model.bin").unlink()
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    for path in (tmp_path / "parts").glob("model*"):
        path.rename(tmp_path / "model" / path.name)
    with pytest.raises(UserError, match="differ, model.safetensors and model.safetensors.index.json, as in"):
        load.load_model(folder)
    (tmp_path / "model" / "model.safetensors").unlink()
    assert load.weights(load.load_model(folder)) == load.weights(model)


# ---- vocabularies

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
    vocabulary, most = load.vocabulary(tokenizer, make_model()), max(tokenizer.get_vocab().values())
    assert vocabulary == (most + 1, list(range(20, 30))) and most >= len(tokenizer)
    logits = vocabulary.among(torch.zeros(2, 128))
    assert logits.shape == (2, most + 1) and (logits.exp().sum(-1) == len(tokenizer)).all()


def test_ids_beyond_a_head():
    """A control token that was added and has no row is never sampled; words without one are refused, since a
    game's text could name them."""
    plain, rows = make_tokenizer(), len(make_tokenizer())
    assert load.vocabulary(plain, make_model(vocabulary=128), make_model(vocabulary=144)) == (rows, [])
    padded = make_tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert load.vocabulary(padded, make_model(vocabulary=rows)) == (rows, [])
    with pytest.raises(UserError, match="1 tokens for text that the model's head lacks, as 'zebra'"):
        load.vocabulary(make_tokenizer(extra=["zebra"]), make_model(vocabulary=rows))


def test_another_vocabulary_is_refused():
    """Distributions over ids that stand for other words."""
    load.same_vocabulary(make_tokenizer(), make_tokenizer())
    with pytest.raises(UserError, match="same vocabulary.* 1 have other ids, as 'zebra'"):
        load.same_vocabulary(make_tokenizer(), make_tokenizer(extra=["zebra"]))
