"""Play over the ragged cache is exact; checkpoints that would go wrong silently are refused."""

import copy

import pytest
import torch
from conftest import make_model, make_tokenizer

import model as lm
from envs import UserError


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_ragged_cache_against_uncached_forward(kind):
    """Padding that is attended to, positions counted from the batch's longest row, a write over another row's end: six turns of
    different lengths per row, decoding steps in which some rows stand still, two rows leaving. Logits within 1e-4 in fp32."""
    model, rng = make_model(kind), torch.Generator().manual_seed(0)
    number = lambda low, high: int(torch.randint(low, high, (), generator=rng))
    rows = [[] for _ in range(5)]
    cache, worst = lm.RaggedCache(model, rows), 0.0
    with torch.no_grad():
        for turn in range(6):
            for row in rows:
                row += [number(3, 120) for _ in range(number(1, 40 if turn else 90))]
            logits = lm.extend(model, cache, [row[seen:] for row, seen in zip(rows, cache.length)])
            for _ in range(4):
                worst = max(worst, *(difference(model, row, logits[i]) for i, row in enumerate(rows)))
                going = [number(0, 3) > 0 for _ in rows]
                new = [number(3, 120) for _ in rows]
                after = lm.extend(model, cache, [[token] for token in new], grow=going)
                for i, (row, token) in enumerate(zip(rows, new)):
                    if going[i]:
                        row.append(token)
                        logits[i] = after[i]
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


def test_hidden_states_do_not_depend_on_right_padding():
    """The training forward takes no mask: this holds because attention is causal, and would break with left padding."""
    model = make_model()
    row, longer = [5, 9, 11, 7], [3] * 9
    with torch.no_grad():
        alone = lm.hidden_states(model, torch.tensor([row]))
        padded = lm.hidden_states(model, torch.tensor([row + [0] * 5, longer]))
    assert torch.allclose(alone[0], padded[0, :4], atol=1e-5)


def test_round_trip_and_refusals(tmp_path):
    """A saved student must load as an ordinary checkpoint, also over an older one; what cannot work says so in one sentence."""
    model, tokenizer = make_model(), make_tokenizer()
    for seed in (0, 1):
        lm.save(make_model(seed=seed), tokenizer, str(tmp_path / "student"))
    loaded, again = lm.load(str(tmp_path / "student"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), make_model(seed=1).parameters()))
    assert again.init_kwargs["prompt_style"] == "bare" and again.get_vocab() == tokenizer.get_vocab()
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
    """`.to(bfloat16)` rounds the rotary buffers too: the student would play with other positions than it is trained with."""
    model = make_model()
    bf16 = lm.rounded(copy.deepcopy(model), torch.bfloat16)
    assert {p.dtype for p in bf16.parameters()} == {torch.bfloat16}
    for ours, master in zip(bf16.buffers(), model.buffers(), strict=True):
        assert ours.dtype == master.dtype == torch.float32 and torch.equal(ours, master)


def test_sliding_window_attention_is_refused():
    """The cache's mask would attend beyond the window, silently."""
    config = copy.deepcopy(make_model("qwen2").config)
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match="full attention"):
        lm.check_supported("some-model", config)
    mistral = type("Config", (), dict(num_hidden_layers=2, sliding_window=4096))()
    with pytest.raises(UserError, match="full attention"):
        lm.check_supported("some-model", mistral)
