"""One episode to read: on the screen turn by turn, or as a page that shades every token of the student's by
how far the student is from the teacher there.

    python eval.py --model tiny-student --teacher tiny-teacher --watch episode.html

The page is one file that opens from disk: page.html with its blanks filled. Whatever a game or a model says
is escaped, and the page forbids the browser any script but its own. The figures are those of a training step:
KL(student ‖ teacher) where each token was sampled, over the whole vocabulary, at the sampling temperature.
"""

import base64
import functools
import hashlib
import html
import json
import re
from pathlib import Path
from string import Template
from typing import NamedTuple

import torch

from batch import before, padded, trimmed
from envs import readable
from harness.folder import replacing
from loss import at, distributions, reverse
from model import states_at

CHUNK = 256                             # tokens whose distributions are in memory at once
LIKELIEST = 5                           # tokens of each distribution that are shown
LEVELS = (0.01, 0.1, 0.3, 1, 3, 10)     # nats at which a token's shade gets a step deeper
LINES = 12                              # of what a game said; the rest is folded away
PART = "\ufffd"                         # stands for a token that holds a part of a character only

# A page may not hold control characters: their pictures are shown instead. Blanks have to be seen where a
# token stands alone.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7f: 0x2421}
BLANKS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


# ---- on the screen

def ending(episode):
    """What became of it, in words."""
    ended = "won" if episode.won else "lost" if episode.lost else "not won"
    return f"{ended} after {len(episode.turns)} turns"


def faults(turn):
    """What went wrong in a turn, a list of words."""
    words = {"missing": "no action", "invalid": "invalid", "cut": "cut"}
    return [word for key, word in words.items() if getattr(turn, key)]


def transcript(episode):
    """Print an episode turn by turn."""
    print(episode.opening)
    answers = [turn.observation for turn in episode.turns[1:]] + [""]
    for i, (turn, answer) in enumerate(zip(episode.turns, answers), 1):
        note = "".join(f" [{word}]" for word in faults(turn))
        print(f"\n--- turn {i}{note}\n> {turn.response}\n{answer}")
    print(f"\n=== {ending(episode)}")


# ---- the student's tokens beside the teacher

class Token(NamedTuple):
    """A token that the student sampled, and the distributions of student and teacher that it was drawn at."""
    id: int
    kl: float           # KL(student ‖ teacher) in nats
    said: list          # its own probability by either
    likeliest: list     # by either: pairs (id, probability), the likeliest first


def compare(ids, logs):
    """The Tokens of n ids; logs: log-probabilities (n, V) of student and teacher."""
    kl = reverse(*logs).clamp(min=0).tolist()  # of equal distributions, rounding makes it -1e-9
    token = torch.tensor(ids, device=logs[0].device)  # (n,)
    said = torch.stack([at(log, token) for log in logs], 1).exp().tolist()  # (n, 2)
    best = [log.topk(min(LIKELIEST, log.shape[1])) for log in logs]
    ranked = [zip(top.indices.tolist(), top.values.exp().tolist()) for top in best]
    likeliest = [[list(zip(*one)) for one in both] for both in zip(*ranked)]
    return [Token(*parts) for parts in zip(ids, kl, said, likeliest)]


def judge_row(row, models, vocabulary, temperature):
    """The Tokens of a row, a chunk of distributions at a time; models: student and teacher."""
    ids = [i for i, turn in zip(row.ids, row.turn) if turn >= 0]
    whole, where = (of([row], models[0].device) for of in (padded, before))
    both = [states_at(model, whole, where) for model in models]
    tokens = []
    for first in range(0, len(ids), CHUNK):
        chunk = slice(first, first + CHUNK)
        logs = [distributions(hidden[chunk], head, vocabulary, temperature) for hidden, head in both]
        tokens += compare(ids[chunk], logs)
    return tokens


@torch.no_grad()
def judge(episode, student, teacher, vocabulary, temperature):
    """The Tokens of every turn of an episode: a list of lists.

    vocabulary: the ids that are compared (`load.vocabulary`); temperature: of the sampler; where it is 0, and
    the sampler greedy, distributions are compared at 1.
    """
    turns = [[] for _ in episode.turns]
    for row in filter(lambda row: row.ids, map(trimmed, episode.rows)):
        tokens = judge_row(row, (student, teacher), vocabulary, temperature or 1.0)
        for turn, token in zip([turn for turn in row.turn if turn >= 0], tokens):
            turns[turn].append(token)
    return turns


# ---- tokens as text

def decoded(tokenizer, ids):
    """The text of some ids, special tokens too."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def texts(tokenizer, ids):
    """What each of the ids adds to the text before it.

    A character may take several tokens: the last of them shows it, those before it show PART.
    """
    found, begin, end = [], 0, 0  # ids[begin:end] are shown, and decoded again with what follows them
    for j in range(len(ids)):
        before, text = decoded(tokenizer, ids[begin:end]), decoded(tokenizer, ids[begin: j + 1])
        if text.endswith(PART):
            found.append(PART)
            continue
        added = text.removeprefix(before)
        if j > end:
            added = added.lstrip(PART)  # bytes that became no character: shown already
        found.append(added)
        begin, end = end, j + 1
    return found


@functools.lru_cache(maxsize=None)  # a page names the same tokens thousands of times
def name(tokenizer, token):
    """A token alone, its blanks to be seen; the tokenizer's own name for it where it is no text alone."""
    text, own = decoded(tokenizer, [token]), str(tokenizer.convert_ids_to_tokens(token))
    marked = own.startswith("▁")  # SentencePiece's sign for a blank, which decoding alone takes away
    return own if marked or not text or PART in text else text.translate(BLANKS)


# ---- the page

def shown(text):
    """A text as the content of a page: nothing in it is markup."""
    return html.escape(readable(text).translate(PICTURES))


def element(tag, content, **attributes):
    """An element around what is markup already; its attributes are texts, class_ and data_kl are written
    class and data-kl."""
    names = [key.rstrip("_").replace("_", "-") for key in attributes]
    written = "".join(f' {key}="{shown(str(value))}"' for key, value in zip(names, attributes.values()))
    return f"<{tag}{written}>{content}</{tag}>"


def nats(kl):
    """A divergence for the reader.

    >>> [nats(kl) for kl in (0.0004, 0.034, 2.5, 123.4)]
    ['0.00', '0.03', '2.50', '123']
    """
    return f"{kl:.0f}" if kl >= 100 else f"{kl:.2f}"


def short(p):
    """A probability with the digits that the card needs."""
    return float(f"{p:.3g}")


def level(kl):
    """How deep the shade of a token is, from 0."""
    return sum(kl >= least for least in LEVELS)


def total(tokens):
    """The KL of a turn: the sum over its tokens, in nats."""
    return sum(token.kl for token in tokens)


def token_html(tokenizer, token, text):
    """A token of the student's; what the card says of it stands in its attributes."""
    own = name(tokenizer, token.id)
    likeliest = [[[name(tokenizer, i), short(p)] for i, p in who] for who in token.likeliest]
    odds = dict(name=own, said=[short(p) for p in token.said], likeliest=likeliest)
    rest = text.lstrip(" ") or text or own  # what leads to a word is left unshaded
    breaks = " breaks" * ("\n" in text)
    return shown(text.removesuffix(rest)) + element(
        "span", shown(rest), class_=f"t k{level(token.kl)}{breaks}", role="button", tabindex=-1,
        data_kl=f"{token.kl:.6g}", data_odds=json.dumps(odds))


def game_html(text):
    """What the game said; much of it is folded away behind the first lines."""
    lines = text.split("\n")
    first, rest = lines[:LINES], lines[LINES:]
    if len(rest) < 3:
        return element("div", shown(text), class_="game")
    folded = element("summary", f"{len(rest)} more lines") + shown("\n".join(rest))
    return element("div", shown("\n".join(first)) + element("details", folded), class_="game")


def turn_html(number, turn, tokens, tokenizer):
    """A turn: its sum at its head, what the game said, what the student answered."""
    head = element("a", f"Turn {number}", href=f"#turn-{number}")
    head += element("span", f"{nats(total(tokens))} nats", class_="sum", data_sum=f"{total(tokens):.6g}")
    head += "".join(element("span", word, class_="fault") for word in faults(turn))
    pieces = texts(tokenizer, [token.id for token in tokens])
    answer = "".join(token_html(tokenizer, token, text) for token, text in zip(tokens, pieces))
    answer = element("p", answer, class_="said", role="group", aria_label=f"the student in turn {number}")
    return element(
        "section", element("h2", head) + game_html(turn.observation) + answer,
        id=f"turn-{number}", class_="turn" + " wrong" * bool(faults(turn)))


def bar_html(number, turn, tokens, highest):
    """A turn in the bar at the top: as high as its sum, as deep as the mean of its tokens."""
    says = ", ".join([f"turn {number}: {nats(total(tokens))} nats", *faults(turn)])
    fill = element(
        "i", "", class_=f"k{level(total(tokens) / max(1, len(tokens)))}",
        style=f"height: {total(tokens) / (highest or 1):.1%}")
    return element(
        "a", fill, href=f"#turn-{number}", class_="bar" + " wrong" * bool(faults(turn)), title=says,
        aria_label=says)


def legend_html():
    """The shades, and from how many nats on each is used."""
    names = [f"below {LEVELS[0]}", *map(str, LEVELS)]
    return "".join(element("li", text, class_=f"k{i}") for i, text in enumerate(names))


def render(episode, turns, tokenizer, facts):
    """The page of an episode. turns: from `judge`; facts: {name: value}, who played and how."""
    kl, tokens, played = sum(map(total, turns)), sum(map(len, turns)), len(turns)
    highest = max(map(total, turns), default=0.0)
    facts = {
        **facts,
        "KL of the trajectory": f"{nats(kl)} nats over {tokens} tokens",
        "mean, highest turn": f"{nats(kl / max(1, played))}, {nats(highest)} nats",
        "invalid actions": f"{sum(turn.invalid for turn in episode.turns)} in {played} turns"}
    pairs = [element("dt", shown(key)) + element("dd", shown(value)) for key, value in facts.items()]
    definitions = "".join(element("div", pair) for pair in pairs)
    numbered = list(zip(range(1, played + 1), episode.turns, turns))
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    script = re.search("<script>(.*?)</script>", template, re.DOTALL)[1]
    return Template(template).substitute(
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        task=shown(episode.task.id), kind=shown(episode.task.kind), facts=definitions,
        ending=shown(ending(episode).capitalize()), won="won" if episode.won else "not-won",
        legend=legend_html(), bars="".join(bar_html(*one, highest) for one in numbered),
        turns="".join(turn_html(*one, tokenizer) for one in numbered),
        last=game_html(episode.observation) if episode.observation else "")


def write(path, episode, actors, chat, temperature, facts):
    """Judge an episode and write its page to `path`; actors: {"student": model, "teacher": model}."""
    turns = judge(episode, actors["student"], actors["teacher"], chat.vocabulary, temperature)
    with replacing(path) as file:
        file.write(render(episode, turns, chat.tokenizer, facts))
