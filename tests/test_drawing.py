"""A step of decoding can be captured as a graph: it has fixed shapes, reads nothing from the device, sends
nothing to it. On a GPU the graph draws what the step does."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from test_families import build
from test_judging import Choosy, Plain
from test_rollout import LIMITS, make_world, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import load
import model as lm
import rollout

KINDS = ("qwen3", "qwen3_moe", "gemma3_text", "gemma2", "gemma4_text: E", "lfm2", "granitemoehybrid",
         "qwen3_5_text", "falcon_h1")
READS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "equal.default")


def begun(kind, dtype=torch.float32, device="cpu", stop=frozenset({7, 11})):
    """A Drawing of three rows of different length, behind its first tokens."""
    chat = SimpleNamespace(vocabulary=lm.Vocabulary(120, [3, 5]), stop=stop)
    model = lm.rounded(build(kind).eval(), dtype).to(device)
    load.without_noise(model)
    cache = lm.RaggedCache(model, [object() for _ in range(3)])
    drawing = cache.drawing = rollout.Drawing(model, cache, chat, LIMITS)
    state = lm.extend(model, cache, [[12] * (4 + i) for i in range(3)])
    drawing.begin(state, [True, True, False], torch.full((3, LIMITS.max_response), 0.4).double())
    cache.advance()
    return drawing


def moved(drawing, device):
    """All that a step touches, on another device."""
    for held in (drawing, drawing.cache):
        for name, value in vars(held).items():
            if isinstance(value, torch.Tensor):
                setattr(held, name, value.to(device))
    cache, vocabulary = drawing.cache, drawing.vocabulary
    drawing.vocabulary = vocabulary._replace(holes=vocabulary.holes.to(device))
    drawing.model.to(device)
    cache.device, cache.head = torch.device(device), lm.head(drawing.model)
    cache.layers = [pair and [each.to(device) for each in pair] for pair in cache.layers]
    cache.kept = {which: state.to(device) for which, state in cache.kept.items()}
    return drawing


class Host(TorchDispatchMode):
    """Counts the operations, those that touch a tensor of the host's, and those that read a value."""

    def __init__(self):
        super().__init__()
        self.all, self.host, self.reads = 0, Counter(), Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, torch.Tensor)]
        self.all += 1
        self.host[str(operation)] += any(each.device.type == "cpu" for each in tensors)
        self.reads[str(operation)] += any(name in str(operation) for name in READS)
        return out


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_stays_on_the_device(kind):
    """A number that the host sends or waits for at every token: on a GPU the capture fails. On the meta
    device nothing can be read, and whatever is not there is the host's."""
    experts = kind in ("qwen3_moe", "granitemoehybrid")  # without data they are bf16 alone
    drawing = moved(begun(kind, torch.bfloat16 if experts else torch.float32), "meta")
    drawing.step()
    with Host() as seen:
        drawing.step()
    assert +seen.host == +seen.reads == Counter() and 50 < seen.all < 2000


@torch.no_grad()
def test_what_the_host_does_is_seen():
    """A test that cannot fail: experts that are looped over look at which were chosen."""
    for how, fails in (("eager", True), ("grouped_mm", False)):
        drawing = begun("qwen3_moe")
        drawing.model.set_experts_implementation(how)
        with Host() as seen:
            drawing.step()
        assert any(seen.reads.values()) == fails


@torch.no_grad()
@pytest.mark.parametrize("kind", ("gemma3_text", "lfm2"))
def test_a_step_is_one_graph(kind):
    """Python that decides by a tensor's value; a step that, compiled whole, draws other tokens."""
    plain, whole = begun(kind), begun(kind)
    torch._dynamo.reset()
    compiled = torch.compile(whole.step, fullgraph=True, backend="eager")
    for _ in range(3):
        plain.step()
        compiled()
        plain.cache.advance()
        whole.cache.advance()
    assert torch.equal(plain.tokens, whole.tokens) and plain.j.item() == 4
    assert torch.allclose(plain.logps, whole.logps, atol=1e-6)


@torch.no_grad()
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_draws_what_the_step_does(kind):
    """A graph that reads what was there when it was captured: other numbers, another turn's rows, a row that
    had not ended; a state that a capture leaves behind; one that is not captured at all."""
    plain, graph = (begun(kind, torch.bfloat16, "cuda", stop=set(range(8, 30))) for _ in range(2))
    for turn in range(3):
        for _ in range(LIMITS.max_response - 1):
            plain.cache.advance()
            plain.step()
            graph.run()
        assert graph.replay not in (None, graph.step) and plain.ended.any()
        for name in ("tokens", "logps", "states", "ended"):
            assert torch.equal(getattr(plain, name), getattr(graph, name))
        assert torch.equal(plain.cache.end, graph.cache.end)
        assert all(torch.equal(state, graph.cache.kept[which]) for which, state in plain.cache.kept.items())
        u = torch.rand(3, LIMITS.max_response, generator=torch.Generator().manual_seed(turn)).double()
        for drawing in (plain, graph):
            drawing.cache.length = drawing.cache.end.tolist()
            state = lm.extend(drawing.model, drawing.cache, [[20 + turn] * (3 - i) for i in range(3)])
            drawing.begin(state, [True, True, False], u)


@pytest.fixture(scope="module")
def world(data):
    return make_world(data)


@pytest.mark.parametrize("method, history", [
    (Plain(), "full"), (Choosy(), "full"), (Choosy(), "window:2")], ids=("plain", "choosy", "window"))
def test_as_on_a_gpu(method, history, world, monkeypatch):
    """Rows that stay though their episodes have ended, and are judged, set back or drawn for; a step that
    looks further than any row is long: the same episodes as where rows leave at once."""
    limits = dataclasses.replace(LIMITS, history=history)
    ours = run(world, range(8), method, T=9, limits=limits)
    monkeypatch.setitem(lm.LEFT, "cpu", 0.5)
    monkeypatch.setitem(lm.STEADY, "cpu", 256)
    selects, select = [], lm.RaggedCache.select

    def noted(cache, owners):
        select(cache, owners)
        selects.append(len(cache.owners) - len(owners))

    monkeypatch.setattr(lm.RaggedCache, "select", noted)
    for one, other in zip(ours, run(world, range(8), method, T=9, limits=limits), strict=True):
        assert [turn.ids for turn in one.turns] == [turn.ids for turn in other.turns]
        for row, same in zip(one.rows, other.rows, strict=True):
            assert row.ids == same.ids
            assert torch.allclose(
                torch.tensor(row.logp), torch.tensor(same.logp), atol=1e-5, equal_nan=True)
    assert max(selects) > 0
