"""One episode to read: the transcript, the page with its figures, and the row as a table, on the real engine
with random models."""

import base64
import copy
import hashlib
import json
import math
import random
import re
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TEMPLATE, make_byte_tokenizer, make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import curriculum
import envs
import eval as evaluation
import load
import rollout
from chat.template import Chat
from watch import page as watching
from watch import row as listing

HOSTILE = "</script></span>\"'><img src=x onerror=alert(1)><!-- $task &lt; \x00\x1b\ud800 {0}"
VOID = {"meta", "br", "img", "link", "hr", "input"}
OURS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "p", "dl", "div", "dt", "dd", "ul",
    "li", "nav", "a", "i", "main", "section", "h2", "span", "details", "summary", "footer", "aside", "script"}


class Page(HTMLParser):
    """A page as it parses: every element with its attributes and its text, and whether all are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        made = SimpleNamespace(tag=tag, text="", inside=list(self.open), **{"of": dict(attributes)})
        assert len(made.of) == len(attributes)  # none is written twice
        self.found.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for made in self.open:
            made.text += data

    def all(self, kind):
        """The elements of a class, or of a tag."""
        return [made for made in self.found if kind in (made.tag, *made.of.get("class", "").split())]

    def inside(self, section):
        """The student's tokens in a turn's section."""
        return [token for token in self.all("t") if any(outer is section for outer in token.inside)]


def arguments(checkpoints, folder, **more):
    """One short game of random models."""
    known = dict(
        model=str(checkpoints / "student"), teacher=str(checkpoints / "teacher"), data=folder,
        watch="-", max_turns=5, max_response=4)
    return evaluation.Args(**{**known, **more})


# ---- on the screen

def test_watching_reads_like_a_transcript(checkpoints, data, capsys):
    """The observation printed under a turn must be the answer to it, and what went wrong must be marked."""
    evaluation.main(arguments(checkpoints, data))
    out = capsys.readouterr().out
    opening, first, *_ = out.split("--- turn")
    assert out.count("--- turn") == 5
    assert "Your task is to" in opening
    assert "[invalid]" in first and "Nothing happens." in first
    assert "not won after 5 turns" in out


# ---- the figures

@pytest.fixture(scope="module")
def pair(checkpoints):
    """(student, teacher)"""
    return [load.load_model(str(checkpoints / who)) for who in ("student", "teacher")]


def played(pair, data, history, temperature):
    """(episode, vocabulary) of a short game of the student's."""
    tokenizer = make_tokenizer()
    chat = Chat(tokenizer, load.end_tokens(pair[0]), load.vocabulary(tokenizer, *pair))
    limits = rollout.Limits(4, 2048, temperature, history)
    tasks = envs.make_tasks("alfworld", "valid_seen", data)[:1]
    [episode] = rollout.play(
        dict(student=pair[0]), chat, [envs.make_env("alfworld", data=data)], tasks,
        curriculum.Rules(curriculum.Method(), 0, 3), limits, seed=(3,))
    return episode, chat.vocabulary


def reference(exact, ids, size, temperature):
    """log p (V,) behind a row's ids, by the float64 model's own forward."""
    with torch.no_grad():
        logits = exact(torch.tensor([ids])).logits[0, -1, :size]
    return torch.log_softmax(logits / temperature, -1)


@pytest.mark.parametrize("history, temperature", [("full", 0.7), ("window:1", 1.0), ("full", 0.0)])
def test_a_token_is_judged_where_it_was_sampled(pair, data, history, temperature, monkeypatch):
    """KL(teacher ‖ student), a distribution one token too late, another temperature than the sampler's, the
    teacher's padded head; the rows of a window taken for one; a chunk's tokens put to another's turn."""
    monkeypatch.setattr(watching, "CHUNK", 3)
    episode, vocabulary = played(pair, data, history, temperature)
    turns = watching.judge(episode, *pair, vocabulary, temperature)
    exact, seen = [copy.deepcopy(model).double() for model in pair], Counter()
    assert len(turns) == len(episode.turns) == 3
    for row in episode.rows:
        for j, (t, i) in enumerate(zip(row.turn, row.ids)):
            if t < 0:
                continue
            token = turns[t][seen[t]]
            seen[t] += 1
            logs = [reference(model, row.ids[:j], vocabulary.size, temperature or 1) for model in exact]
            kl = sum(math.exp(q) * (q - p) for q, p in zip(*(log.tolist() for log in logs)))
            assert token.id == i and token.kl == pytest.approx(kl, rel=1e-3, abs=1e-5)
            assert token.said == pytest.approx([log[i].exp().item() for log in logs], rel=1e-3)
            for log, likeliest in zip(logs, token.likeliest):
                best = log.exp().sort(descending=True)
                assert [p for _, p in likeliest] == pytest.approx(best.values[:5].tolist(), rel=1e-3)
                assert likeliest[0][0] == best.indices[0]
    assert [seen[t] for t in range(3)] == [len(tokens) for tokens in turns] and min(seen.values()) > 0


def test_every_token_and_every_sum_is_on_the_page(checkpoints, data, tmp_path, capsys):
    """A token without its figure, a sum of another turn's, a bar that jumps elsewhere, a page that needs the
    network or runs a script that it does not know."""
    path = tmp_path / "page.html"
    evaluation.main(arguments(checkpoints, data, watch=str(path), temperature=1.0))
    assert f"wrote {path}" in capsys.readouterr().out
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    sections, bars = page.all("turn"), page.all("bar")
    assert len(sections) == len(bars) == 5
    for n, (section, bar, sum_) in enumerate(zip(sections, bars, page.all("sum")), 1):
        kls = [float(token.of["data-kl"]) for token in page.inside(section)]
        assert kls and float(sum_.of["data-sum"]) == pytest.approx(sum(kls), rel=1e-4)
        assert bar.of["href"] == "#" + section.of["id"] == f"#turn-{n}"
        assert "invalid" in bar.of["aria-label"] and "invalid" in section.text
    assert re.search("5 in 5 turns", text) and "Not won after 5 turns" in text
    odds = json.loads(page.all("t")[0].of["data-odds"])
    assert [len(who) for who in odds["likeliest"]] == [5, 5]

    [script] = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    policy = next(made.of["content"] for made in page.all("meta") if "http-equiv" in made.of)
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    assert "innerHTML" not in script.text
    links = [made.of[key] for made in page.found for key in ("href", "src") if key in made.of]
    assert all(link.startswith("#") for link in links)
    assert "//" not in text.replace(script.text, "") and "url(" not in text


# ---- hostile texts, tokens that are no text

def test_what_a_game_or_a_model_says_is_never_markup():
    """A script that a game's text or a token brings along, in the page's text or out of an attribute; a blank
    of the template that it fills."""
    tokenizer = make_tokenizer([HOSTILE.replace("\ud800", ""), "safe"])
    bad, safe = tokenizer.convert_tokens_to_ids([HOSTILE.replace("\ud800", ""), "safe"])
    turn = SimpleNamespace(
        observation="\n".join([HOSTILE] * 30), missing=False, invalid=True, cut=False)
    episode = SimpleNamespace(
        task=envs.Task(HOSTILE, HOSTILE), turns=[turn], won=True, lost=False, observation=HOSTILE)
    tokens = [watching.Token(i, 2.0, [0.5, 0.1], [[(bad, 0.5)], [(safe, 0.9)]]) for i in (bad, safe)]
    page = Page(watching.render(episode, [tokens], tokenizer, {HOSTILE: HOSTILE}))
    assert {made.tag for made in page.found} == OURS
    assert not [key for made in page.found for key in made.of if key.startswith("on")]
    shown = HOSTILE.replace("\x00", "␀").replace("\x1b", "␛").replace("\ud800", "?")
    assert page.all("game")[0].text.count(shown) == 30
    assert page.all("game")[1].text == shown
    assert page.all("dt")[0].text == page.all("dd")[0].text == shown
    assert page.all("t")[0].text == shown.replace("?", "")
    odds = json.loads(page.all("t")[1].of["data-odds"])
    assert odds["likeliest"][0][0][0] == HOSTILE.replace("\ud800", "").translate(watching.BLANKS)
    assert odds["name"] == "safe" and page.all("sum")[0].of["data-sum"] == "4"


def test_a_token_may_hold_a_part_of_a_character():
    """A traceback, or a letter that is lost, where a character takes several tokens, and where the bytes are
    of none."""
    tokenizer = make_byte_tokenizer(TEMPLATE, ["<|im_start|>"])
    for text in ("né €5", "go\n to 🍎🍏", "a ✓"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = watching.texts(tokenizer, ids)
        assert len(pieces) == len(ids) and "".join(pieces).replace(watching.PART, "") == text
    rng, letters = random.Random(0), range(256)
    for _ in range(50):
        ids = rng.choices(letters, k=12)
        assert len(watching.texts(tokenizer, ids)) == 12
        names = [watching.name(tokenizer, i) for i in ids]
        assert all(name and watching.PART not in name for name in names)


def test_a_blank_that_leads_a_word_is_kept():
    """SentencePiece's tokens, which lose it when they are decoded alone: two alternatives that look the
    same."""
    core = Tokenizer(models.WordLevel({"▁go": 0, "go": 1, "▁to": 2, "<unk>": 3}, unk_token="<unk>"))
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert watching.texts(tokenizer, [0, 2, 1]) == ["go", " to", "go"]
    assert [watching.name(tokenizer, i) for i in (0, 1, 2)] == ["▁go", "go", "▁to"]


@pytest.mark.parametrize("kl, shade", [
    (0.0, 0), (0.0099, 0), (0.01, 1), (0.5, 3), (9.99, 5), (10, 6), (99, 6)])
def test_shades_are_those_of_the_legend(kl, shade):
    """A shade that the legend says begins elsewhere."""
    assert watching.level(kl) == shade
    names = [made.text for made in Page(watching.legend_html()).all("li")]
    assert names == ["below 0.01", "0.01", "0.1", "0.3", "1", "3", "10"]


# ---- the row as a table

def test_a_row_by_hand(tmp_path):
    """Figures of another token, or of another episode of the step; rows of one turn each, which a batch
    sorts by their length, with figures in the batch's order; a figure that nobody computed shown as a
    number."""
    tokenizer, nan = make_tokenizer(), math.nan
    go, mug, end = tokenizer.convert_tokens_to_ids(["go", "mug", "<|im_end|>"])
    episode = SimpleNamespace(rows=[
        rollout.Row([mug, go, end], [-1, 0, 0], [nan, -0.5, -0.25]),
        rollout.Row([mug, go], [-1, 1], [nan, nan])])
    tokens = dict(
        episode=np.array([1.0, 0, 0, 0]), turn=np.array([0.0, 1, 0, 0]),
        logp=np.array([-9.0, -3, -1, -2]), kl=np.array([9.0, nan, 0.1, 0.2]),
        weight=np.array([9.0, 0.25, 0.5, 0.5]))
    listing.write(tmp_path / "row.txt", episode, tokens, tokenizer)
    head, *lines = (tmp_path / "row.txt").read_text().splitlines()
    assert head.split() == ["id", "text", "turn", "log", "q", "log", "p", "KL", "weight"]
    assert [line.split() for line in lines] == [
        [f"{mug}", "mug", "·", "·", "·", "·", "·"],
        [f"{go}", "go", "0", "-0.5000", "-1.0000", "0.1000", "0.5000"],
        [f"{end}", "<|im_end|>", "0", "-0.2500", "-2.0000", "0.2000", "0.5000"],
        [f"{mug}", "mug", "·", "·", "·", "·", "·"],
        [f"{go}", "go", "1", "·", "-3.0000", "·", "0.2500"]]
