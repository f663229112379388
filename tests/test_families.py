"""Families beyond full attention: small random models of each, as checkpoints, against themselves over each
row alone.

    python -m pytest tests/test_families.py -q -s -m "slow or not slow" | grep -o "| [a-z][^%]* |$"

prints the figures of docs/real-models.md; without -m one family of each kind is tried.
"""

import dataclasses
import random
from types import SimpleNamespace

import pytest
import torch
from conftest import arguments, make_tokenizer
from test_judging import Choosy, spoken, states_before
from test_rollout import LIMITS, make_world, run, said_at, worst_logp
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.cache_utils import get_layer_types_and_kwargs

import batch as batches
import load
import loss as losses
import model as lm
import rollout
import tcod
from harness import plan
from harness.cli import UserError
from harness.folder import read_log

NEAR = 2e-4  # nats: in fp32, what the rounding of a chunk rule comes to
FAR = 0.5  # of what is broken on purpose

SIZES = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=4096, initializer_range=0.15, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
WINDOW = dict(sliding_window=8)
S, F, L, C = "sliding_attention", "full_attention", "linear_attention", "conv"
MIXED = dict(**WINDOW, layer_types=[S, S, S, F])
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
SHARED = dict(**EXPERTS, shared_expert_intermediate_size=32)
LINEAR = dict(
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16)
MAMBA = dict(mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1, mamba_expand=2,
             mamba_chunk_size=16)
GRANITE = dict(**MAMBA, num_local_experts=2, num_experts_per_tok=1, shared_intermediate_size=32,
               layer_types=[L, L, F, L])
LATENT = dict(
    q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, head_dim=8,
    num_key_value_heads=4, first_k_dense_replace=1)
PER_LAYER = dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=128)
CAP = dict(final_logit_softcapping=30.0)
FAMILIES = {  # name: what its configuration says; "family: variant"
    "mistral: window": WINDOW,
    "phi3: window": WINDOW,
    "qwen2: window": dict(**WINDOW, use_sliding_window=True, max_window_layers=2),
    "ministral": dict(**WINDOW, layer_types=[S, F, S, F]),
    "gemma2": WINDOW,
    "gemma3_text": MIXED,
    "gemma3n_text": dict(
        **MIXED, **PER_LAYER, num_kv_shared_layers=0, laurel_rank=8, activation_sparsity_pattern=None,
        intermediate_size=[96] * 4, altup_num_inputs=2),
    "gemma4_text": dict(**MIXED, **CAP, hidden_size_per_layer_input=0),
    "gemma4_text: E": dict(
        **WINDOW, **CAP, **PER_LAYER, layer_types=[S, F, S, F], num_kv_shared_layers=2),
    "gemma4_text: experts": dict(
        **MIXED, **CAP, hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=4, top_k_experts=2,
        moe_intermediate_size=32),
    "gpt_oss": dict(**WINDOW, num_local_experts=4, num_experts_per_tok=2),
    "olmo3": MIXED,
    "exaone4": MIXED,
    "cwm": MIXED,
    "cohere2": dict(**MIXED, logit_scale=1.0),
    "afmoe": dict(**MIXED, **EXPERTS, num_dense_layers=1),
    "qwen3_5_text": LINEAR,
    "qwen3_5_moe_text": dict(**LINEAR, **SHARED),
    "qwen3_next": dict(**LINEAR, **SHARED),
    "olmo_hybrid": LINEAR,
    "kimi_linear": dict(**LATENT, linear_num_heads=2, linear_head_dim=16, layer_types=[L, L, F, L],
                        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    "lfm2": dict(layer_types=[C, C, F, C]),
    "lfm2_moe": dict(**EXPERTS, layer_types=[C, C, F, C], num_dense_layers=1),
    "lfm3": {},
    "granitemoehybrid": GRANITE,
    "bamba": dict(**MAMBA, attn_layer_indices=[2]),
    "falcon_h1": dict(**MAMBA, mamba_d_ssm=128),
    "qwen2": {}, "qwen3": {}, "llama": {}, "smollm3": {}, "ministral3": {}, "olmo2": {}, "granite": {},
    "glm4": {}, "ernie4_5": {}, "seed_oss": {}, "arcee": {}, "apertus": {}, "hunyuan_v1_dense": {},
    "qwen3_moe": EXPERTS, "olmoe": EXPERTS,
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
    "granitemoe": dict(num_local_experts=4, num_experts_per_tok=2),
    "minimax_m2": dict(num_local_experts=4, num_experts_per_tok=2),
    "glm4_moe": dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                     first_k_dense_replace=1),
}
EACH_KIND = (
    "mistral: window", "gemma2", "gemma3_text", "gemma4_text: E", "gpt_oss", "qwen3_5_text", "lfm2",
    "granitemoehybrid", "falcon_h1")
SHORT = {S: "window", F: "full", L: "recurrent", C: "conv", "hybrid": "attention and recurrent",
         "dummy": "with shared keys"}


# ---- small models

def build(name, seed=0, **more):
    """A random model of a family; what begins at 0 or 1 and is learned is random too."""
    torch.manual_seed(seed)
    kind, settings = name.split(":")[0], FAMILIES.get(name, {})
    config = AutoConfig.for_model(kind, **{**SIZES, **settings, **more})
    model = AutoModelForCausalLM.from_config(config)
    for weight, parameter in model.named_parameters():
        if weight.endswith("sinks"):
            torch.nn.init.normal_(parameter)
        if weight.endswith("router.scale") or weight.endswith("router.per_expert_scale"):
            torch.nn.init.ones_(parameter)
    return model


def saved(folder, model):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """name -> the family's model, through a checkpoint and every check at loading."""
    known = {}

    def get(name, seed=0):
        if (name, seed) not in known:
            folder = tmp_path_factory.mktemp("family")
            known[name, seed] = load.load_model(saved(folder, build(name, seed)))
        return known[name, seed]

    return get


@torch.no_grad()
def own_logp(model, ids):
    """log p (T, V) of a row alone, by the model itself."""
    return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def some_ids(rng, number):
    return [rng.randrange(3, 120) for _ in range(number)]


# ---- play and whole rows

@torch.no_grad()
def whole(model):
    """The largest difference, in nats, of log-probabilities over five padded rows to each row alone."""
    rng = random.Random(0)
    rows = [some_ids(rng, number) for number in (61, 7, 130, 1, 33)]
    ids = torch.tensor([row + [0] * (130 - len(row)) for row in rows])
    hidden = lm.hidden_states(model, ids)  # (B, T, D)
    logs = [lm.logits(of_row, lm.head(model)).log_softmax(-1) for of_row in hidden]
    return max((ours[: len(row)] - own_logp(model, row)).abs().max().item() for ours, row in zip(logs, rows))


@torch.no_grad()
def played(model, seed=0):
    """The largest difference, in nats, of what tokens were sampled with to the finished row alone: six rows,
    five turns of which a row sits some out, responses that end apart, two rows that leave."""
    rng, draws = random.Random(seed), torch.Generator().manual_seed(seed)
    chat = SimpleNamespace(vocabulary=lm.Vocabulary(128, []), stop=set(range(100, 112)))
    rows, limits, said = [[] for _ in range(6)], rollout.Limits(max_response=14), []
    cache = lm.RaggedCache(model, rows)
    for turn in range(5):
        acts = [rng.random() < 0.7 for _ in rows]
        acts[turn % len(rows)] = True
        for row in rows:
            row += some_ids(rng, rng.randrange(1, 60 if turn else 90))
        u = torch.rand(len(rows), limits.max_response, generator=draws)
        for row, answer in zip(rows, rollout.decode(model, cache, rows, acts, u, chat, limits)):
            if answer:
                said.append((row, len(row), answer))
                row += answer.ids
        if turn == 2:
            rows = [rows[i] for i in (4, 0, 2, 5)]
            cache.select(rows)
    worst, tokens = 0.0, 0
    for row, start, answer in said:
        own = own_logp(model, row)[start - 1:]  # (…, V)
        exact = own[range(len(answer.ids)), answer.ids]
        worst = max(worst, (exact - torch.tensor(answer.logp)).abs().max().item())
        tokens += len(answer.ids)
    assert tokens > 80 and len({len(answer.ids) for _, _, answer in said}) > 4
    return worst


def tried(*names, default=EACH_KIND):
    """Families as parameters: the others than one of each kind are slow."""
    return [pytest.param(name, marks=() if name in default else pytest.mark.slow) for name in names]


def layers(model):
    """In words, with how many there are of each."""
    kinds, _ = get_layer_types_and_kwargs(model.config)
    return ", ".join(f"{kinds.count(kind)} {SHORT[kind]}" for kind in dict.fromkeys(kinds))


@pytest.mark.parametrize("name", EACH_KIND)
def test_the_plan_counts_what_is_held(name, loaded):
    """Keys of layers that have none or share them, a state that is forgotten or in another precision."""
    model = loaded(name)
    cache = lm.RaggedCache(model, range(3))
    with torch.no_grad():
        lm.extend(model, cache, [[5, 9, 11, 7, 30]] * 3)
    keys = sum(kept.nbytes for pair in filter(None, cache.layers) for kept in pair)
    assert plan.cache(model.config, 3 * cache.capacity, size=4) == keys
    assert plan.states(model.config, 3, size=4) == sum(state.nbytes for state in cache.kept.values())


@pytest.mark.parametrize("name", tried(*FAMILIES))
def test_a_family_plays_and_learns_as_it_is(name, loaded):
    """A window that nobody masks, a state that padding or another row's token reached, a cap that is
    forgotten: played on, or learned from, other logits than the model's own."""
    model = loaded(name)
    rows, play = whole(model), played(model)
    print(f"| {name} | {layers(model)} | {model.config._attn_implementation} | {rows:.0e} | {play:.0e} |")
    assert rows < NEAR and play < NEAR


# ---- what is broken on purpose shows

def a_wider_window(cache, width, place=lm.RaggedCache.place):
    cache.window += 1
    placed = place(cache, width)
    cache.window -= 1
    return placed


def no_window(cache, width, place=lm.RaggedCache.place):
    cache.window, window = 10**6, cache.window
    placed = place(cache, width)
    cache.window = window
    return placed


def all_rows_take(cache, takes, settle=lm.RaggedCache.settle):
    settle(cache, torch.ones_like(takes))


def all_at_once(new, stateful, pieces=lm.pieces):
    return pieces(new, stateful=False)


FAULTS = {
    "a window one token wider": (lm.RaggedCache, "place", a_wider_window),
    "no window": (lm.RaggedCache, "place", no_window),
    "states of rows that stand still are not kept": (lm.RaggedCache, "settle", all_rows_take),
    "rows of different lengths fed at once": (lm, "pieces", all_at_once)}
WINDOWED, STATEFUL = list(FAULTS)[:2], list(FAULTS)[2:]


def breaks(fault, name, loaded, monkeypatch):
    """Break it on purpose: play is far off, and the model refused."""
    model = loaded(name)
    monkeypatch.setattr(*FAULTS[fault])
    play = played(model)
    print(f"| {fault} | {name} | {play:.1f} |")
    assert play > FAR
    with pytest.raises(UserError, match="in parts than over the whole"):
        load.check_logits(name, model)


@pytest.mark.parametrize("name", tried(
    "mistral: window", "gemma3_text", "gpt_oss", "olmo3", default=("mistral: window", "gemma3_text")))
@pytest.mark.parametrize("fault", WINDOWED)
def test_a_window_that_is_broken_shows(fault, name, loaded, monkeypatch):
    """A test of play, or a check at loading, that would pass without a window."""
    breaks(fault, name, loaded, monkeypatch)


@pytest.mark.parametrize("name", tried(
    "qwen3_5_text", "granitemoehybrid", "lfm2", "falcon_h1", default=("qwen3_5_text", "lfm2")))
@pytest.mark.parametrize("fault", STATEFUL)
def test_a_state_that_is_broken_shows(fault, name, loaded, monkeypatch):
    """A test of play, or a check at loading, that would pass with states that padding has reached."""
    breaks(fault, name, loaded, monkeypatch)


# ---- gradients

def some_samples():
    """Three rows of different lengths; from the fourth token on most are trained."""
    rng, found = random.Random(0), []
    for number in (70, 9, 33):
        turns = [-1 if j < 3 or j % 7 < 3 else 0 for j in range(number)]
        row = rollout.Row(some_ids(rng, number), turns, [-1.0] * number)
        played = SimpleNamespace(turns=[SimpleNamespace(loss="", taught=None)])
        found.append(batches.Sample(row, played, 0, {0: 0.1}))
    return found


@pytest.mark.parametrize("name", EACH_KIND)
def test_gradients_against_each_row_alone(name, loaded):
    """A cap whose slope the chunk forgets, padding behind a row that reaches its gradient: the loss of a
    padded micro-batch, and every parameter's gradient, against autograd on the model's own logits."""
    student, teacher, samples = loaded(name), loaded(name, seed=1), some_samples()
    vocabulary, temperature = lm.Vocabulary(120, [5, 6]), 0.7
    batch = batches.collate(samples, "reverse", "cpu")
    distiller = losses.Distiller(student, beta=0.5, temperature=temperature, vocabulary=vocabulary)
    ours, _ = distiller(batch, tcod.score(teacher, samples))
    known = dict(student.named_parameters())
    found = torch.autograd.grad(ours, known.values(), allow_unused=True)

    def logs(model, ids):
        logits = model(input_ids=torch.tensor([ids])).logits[0, :, :120] / temperature  # (T, V)
        return logits.index_fill(1, torch.tensor([5, 6]), -1e9).log_softmax(-1)

    own = 0.0
    for sample in samples:
        logq, logp = logs(student, sample.row.ids), logs(teacher, sample.row.ids).detach()
        at = torch.tensor([j - 1 for j, turn in enumerate(sample.row.turn) if turn == 0])
        own += 0.1 * (logq[at].exp() * (logq[at] - logp[at])).sum()
    exact = torch.autograd.grad(own, known.values(), allow_unused=True)
    apart = {}
    for weight, one, other in zip(known, found, exact):
        assert (one is None) == (other is None), weight
        if one is not None:
            apart[weight] = ((one - other).abs().max() / (other.abs().max() + 1e-12)).item()
    print(f"| gradients | {name} | {max(apart.values()):.0e} |")
    assert ours.item() == pytest.approx(own.item(), rel=1e-5) and ours > 1
    assert len(apart) > 10 and max(apart.values()) < 1e-4


# ---- answers that are dropped, a whole run

@pytest.mark.parametrize("history", ["full", "window:2"])
def test_a_dropped_answer_leaves_no_trace_in_a_state(history, data, loaded):
    """A state of either model that has seen what nobody heard, or that a row which was not judged was fed
    into."""
    world = make_world(data)
    world.update(student=loaded("qwen3_5_text"), teacher=loaded("granitemoehybrid"))
    limits = dataclasses.replace(LIMITS, history=history)
    episodes = run(world, range(8), Choosy(), T=9, limits=limits)
    assert worst_logp(world, episodes) < NEAR
    instead = 0
    for episode in episodes:
        for t, turn, row, start in spoken(episode):
            said = said_at(row, t)
            states = states_before(world["teacher"], row.ids[: start + len(said)], len(said))
            assert (turn.taught - states).abs().max() < NEAR
            instead += turn.who == "teacher" and turn.judgement is not None
    assert instead > 5


def test_pieces_of_many_rows():
    """As many forwards as there are lengths; tokens that are lost, doubled or out of order."""
    rng = random.Random(0)
    rows = [some_ids(rng, rng.randrange(300, 900)) for _ in range(64)]
    fed = list(lm.pieces(rows, stateful=True))
    assert len(fed) == 10 and len(list(lm.pieces(rows, stateful=False))) == 1
    assert [sum(parts, []) for parts in zip(*fed)] == rows
    for parts in fed:
        assert len({len(part) for part in parts if part}) == 1


def test_a_row_with_states_begins_anew(loaded):
    """Rows that are set back with states of what lay behind, or others that lose theirs."""
    model, rows = loaded("lfm2"), [[5, 9, 11, 7, 30], [8, 6, 4, 3]]
    cache = lm.RaggedCache(model, rows)
    with torch.no_grad():
        lm.extend(model, cache, rows)
        cache.set_back([3, 4])
        assert cache.length == [0, 4]
        found = lm.extend(model, cache, [[5, 9, 11, 20], [40]])
        for ids, state in zip(([5, 9, 11, 20], [8, 6, 4, 3, 40]), found):
            assert torch.allclose(state, lm.hidden_states(model, torch.tensor([ids]))[0, -1], atol=1e-5)


@pytest.mark.parametrize("history", ["full", "window:2"])
@pytest.mark.parametrize("name", tried(
    "qwen3_5_text", "gemma4_text: E", "granitemoehybrid", default=("qwen3_5_text",)))
def test_a_training_run(name, history, tmp_path, data):
    """A player that reads other states than the learner: the log's mismatch of a whole run."""
    for who, seed in (("student", 1), ("teacher", 2)):
        load.save(build(name, seed), make_tokenizer(), str(tmp_path / who), dict(max_context=2048))
    tcod.main(arguments(
        tmp_path, data, tmp_path / "run", history=history, steps=2, eval_every=0, lr=1e-3, method="opd"))
    steps, episodes = (read_log(tmp_path / "run" / name) for name in ("log.jsonl", "episodes.jsonl"))
    worst = max(step["mismatch"] for step in steps)
    print(f"| a run, --history {history} | {name} | {worst:.0e} |")
    assert len(episodes) == 8 and worst < NEAR
    load.load_model(str(tmp_path / "run" / "student"))


# ---- the language model of a composite checkpoint

VISION = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28,
    patch_size=14)
COMPOSITES = {
    "gemma3": ("gemma3_text", {}),
    "gemma4": ("gemma4_text", {}),
    "mistral3": ("mistral: window", dict(vision_config=dict(model_type="pixtral", **VISION, head_dim=16))),
    "qwen3_5": ("qwen3_5_text", dict(vision_config=dict(depth=1, hidden_size=32, num_heads=2)))}


def composite(kind, tied):
    text, more = COMPOSITES[kind]
    torch.manual_seed(0)
    said = {**SIZES, **FAMILIES[text], "model_type": text.split(":")[0]}
    said["tie_word_embeddings"] = not tied if kind == "mistral3" else tied  # what the whole says is heard
    config = AutoConfig.for_model(
        kind, **{"vision_config": VISION, **more}, text_config=said, tie_word_embeddings=tied)
    return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", tried(*COMPOSITES, default=("gemma3", "mistral3")))
def test_the_language_model_is_taken_out_of_a_composite_one(kind, tied, tmp_path):
    """An image tower that is kept, copied and gets no gradient; a student that is saved without its head,
    since the part's configuration says something else of it than the whole's."""
    whole_model = composite(kind, tied).eval()
    model = load.load_model(saved(tmp_path / "whole", whole_model))
    ids = [5, 9, 11, 7, 30, 2, 17, 8, 40, 3, 12, 90]
    assert torch.equal(own_logp(model, ids), own_logp(whole_model, ids))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("vision" in name or "projector" in name for name in names)
    assert not any(parameter.is_meta for parameter in [*model.parameters(), *model.buffers()])
    assert ("lm_head.weight" in names) != tied
    assert played(model) < NEAR
    load.save(model, make_tokenizer(), str(tmp_path / "student"))
    again = load.load_model(str(tmp_path / "student"))
    assert type(again) is type(model) and load.weights(again) == load.weights(model)
    assert torch.equal(own_logp(again, ids), own_logp(model, ids))


# ---- refused, with the true reason

@pytest.mark.parametrize("kind, settings, words", [
    ("llama4_text", dict(num_local_experts=4, intermediate_size_mlp=96, attention_chunk_size=8),
     "does not hold: chunked_attention"),
    ("minimax", dict(num_local_experts=4, num_experts_per_tok=2, layer_types=[L, F, L, F], block_size=16),
     "does not play over the ragged cache .*cache of its own"),
    ("jamba", dict(num_experts=4, num_experts_per_tok=2, attn_layer_period=4, attn_layer_offset=2,
                   mamba_d_state=8), r"do not go on from the states \(recurrent\)"),
    ("recurrent_gemma", {}, r"do not go on from the states \(all\)"),
    ("nemotron_h", dict(
        layer_types=[L, "moe", F, L, "mlp"], mamba_num_heads=8, mamba_head_dim=16, ssm_state_size=16,
        n_groups=1, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32), "bounds the time step"),
    ("granitemoehybrid", dict(**GRANITE, time_step_limit=(0.001, 0.1)), "bounds the time step"),
    ("gemma3_text", dict(**MIXED, use_bidirectional_attention=True), "in parts than over the whole"),
    ("mamba2", dict(num_heads=8, head_dim=16, state_size=16, n_groups=1, expand=2),
     "scaled_dot_product_attention")])
def test_a_family_that_would_be_wrong_is_refused(kind, settings, words, tmp_path):
    """Chunks, a scan that begins anew with every turn, a time step that is bounded over whole rows alone, a
    cache of another kind: played on other logits than its own, or a traceback."""
    folder = saved(tmp_path / "model", build(kind, **settings))
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(UserError, match=words):
            load.load_model(folder, dtype=dtype)
