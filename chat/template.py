"""The chat template, cut once into the pieces that an append-only row needs; text to tokens and back.

A conversation's tokens are those of the template's own text, compared at loading; a sampled token is never
tokenised again, and what a game says is text: no string in it becomes a control token.
"""

import datetime
import json
import re
from itertools import pairwise

import jinja2

import load
from chat import prompts
from envs import digest, readable
from harness.cli import UserError

DAY = datetime.date(2026, 1, 1)  # the present day of templates that write one: a run must not depend on it

OBSERVATIONS = ("<first observation>", "<next observation>", "<last observation>")
RESPONSES = ("<first response>", "<next response>")
SYSTEM = "You are a helpful assistant."  # only for a template that demands a system message


def control_tokens(tokenizer, stop):
    """(special, markup): sets of the ids that no text of a game's may become.

    special: what the tokenizer calls so, and what ends a response. markup: what else was added to its
    vocabulary and stands in brackets, as <think>; other additions are words or white space.
    """
    added = tokenizer.added_tokens_decoder.items()
    special = {i for i, token in added if token.special} | {*tokenizer.all_special_ids, *stop}
    markup = {i for i, token in added if re.fullmatch(r"[^\w\s].*[^\w\s]", token.content.strip())}
    unknown = {tokenizer.unk_token_id}  # stands for any text
    return special - unknown, markup - unknown


# ---- the template's text

def messages(said, parts, system):
    """A conversation for apply_chat_template: texts of user and assistant in turn.

    parts: each content is a list with one part, as some templates ask for; system: with a system message.
    """
    roles = ["user", "assistant"] * len(said)
    talk = [dict(role=role, content=text) for role, text in zip(roles, said)]
    if system:
        talk.insert(0, dict(role="system", content=SYSTEM))
    for message in talk if parts else ():
        message["content"] = [dict(type="text", text=message["content"])]
    return talk


def dated(text):
    """A chat template that writes DAY wherever it writes the present one."""
    return re.sub(r"strftime_now\((['\"])(.*?)\1\)", lambda call: repr(DAY.strftime(call[2])), text)


def pieces(text, said):
    """A rendered conversation cut at what was said in it; None unless each stands there once, in order."""
    found = []
    for sentence in said:
        if text.count(sentence) != 1:
            return None
        piece, text = text.split(sentence)
        found.append(piece)
    return [*found, text]


class Chat:
    """The pieces of a tokenizer's chat template, and a conversation's tokens.

    opening = before + first observation + behind;  next turn = between + observation + behind. In ChatML, for
    one, before is "<|im_start|>user\\n", behind "<|im_end|>\\n<|im_start|>assistant\\n", a response ends with
    "<|im_end|>", and between is "\\n<|im_start|>user\\n".

    `between` begins behind the token with which the template ends a response; the model samples it itself. An
    expert's response gets what the template writes around one, a `lead` and a `tail` of white space mostly. A
    template that rewrites history (some strip the reasoning of past turns) is not asked again: the row keeps
    what was sampled, the exact on-policy prefix.
    """

    def __init__(self, tokenizer, stop=(), vocabulary=None, prompt=""):
        """stop: ids that end a response besides the tokenizer's end token (`load.end_tokens`); vocabulary:
        the ids that may be sampled (`load.vocabulary`), by default all of the tokenizer's; prompt: a file
        (--prompt), by default the one that the tokenizer wants."""
        self.tokenizer = tokenizer
        self.prompt = prompts.load(prompt or load.style(tokenizer))
        self.vocabulary = vocabulary or load.vocabulary(tokenizer)
        if not getattr(tokenizer, "is_fast", False):
            raise self.refused(
                "its tokenizer does not say which letters a token stands for, so that a game's text could "
                "not be kept from becoming control tokens: it needs a tokenizer.json")
        self.before, self.behind, self.lead, turn = self.cut()
        self.end, self.tail, self.between = self.ending(turn)
        self.stop = {self.end, tokenizer.eos_token_id, *stop} - {None}
        self.special, markup = control_tokens(tokenizer, self.stop)
        self.control = self.special | markup
        self.check()

    def refused(self, reason):
        """The UserError for a template that cannot be cut."""
        return UserError(f"the chat template of {self.tokenizer.name_or_path!r} cannot be used: {reason}")

    def render(self, said, parts=False, system=False):
        """The template's text, ready for the model to answer. Hybrid reasoning models answer without their
        thinking block."""
        return self.tokenizer.apply_chat_template(
            messages(said, parts, system), chat_template=dated(self.tokenizer.get_chat_template()),
            tokenize=False, add_generation_prompt=True, enable_thinking=False)

    def cut(self):
        """(before, behind, lead, what stands between a response and the next observation) by a conversation
        of one turn and one of three.

        Contents are plain texts, or lists of parts where the template wants those; a system message is given
        where one is demanded. Raises UserError where the template shows no such conversation.
        """
        first, second, third = OBSERVATIONS
        said = [first, RESPONSES[0], second, RESPONSES[1], third]
        if "strftime_now(" in dated(str(self.tokenizer.chat_template)):
            raise self.refused("it writes the present time in a way that cannot be held fast")
        reason = ""
        for system in (False, True):
            for parts in (False, True):
                try:
                    opening = pieces(self.render(said[:1], parts, system), said[:1])
                    whole = pieces(self.render(said, parts, system), said)
                except (jinja2.TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
                    reason = reason or str(error).split("\n")[0]
                    continue
                if opening and whole:
                    return self.consistent(opening, whole)
                reason = "it does not show all of a conversation's messages as they are"
        raise self.refused(reason)

    def consistent(self, opening, whole):
        """What `cut` returns; raises UserError where a turn is written otherwise in a longer conversation."""
        before, behind = opening
        start, history, turn, later, again, last = whole
        shown = behind.startswith(history) or history.startswith(behind)  # the reasoning's marks may differ
        if (start, turn, history, last) != (before, again, later, behind) or not shown:
            raise self.refused("it writes a turn otherwise in a longer conversation")
        lead = history.removeprefix(behind) if history.startswith(behind) else ""
        return before, behind, lead, turn

    def ending(self, turn):
        """(id of the token that ends a response, white space in front of it, what stands behind it).

        turn: what stands between a response and the next observation.
        """
        text, tokenizer = turn.lstrip(), self.tokenizer
        special = tokenizer.all_special_tokens + list(tokenizer.get_added_vocab())
        ends = [token for token in special if token and text.startswith(token)]
        if not ends:
            raise self.refused("it ends a response without a special token")
        end = max(ends, key=len)
        tail = turn[: len(turn) - len(text)]
        return tokenizer.convert_tokens_to_ids(end), tail, text.removeprefix(end)

    def check(self):
        """Raises UserError unless a conversation of three turns has the tokens of its whole text, all of them
        in the vocabulary.

        Where the tokenizer joins a response's first letters to the template's text before them no row can:
        the model answers behind the prompt's own tokens.
        """
        (first, second, third), (answer, reply) = OBSERVATIONS, RESPONSES
        end = self.tail + self.tokenizer.convert_ids_to_tokens(self.end) + self.between
        text, row = self.before + first + self.behind, self.encode_observation(first, True)
        starts = []
        for response, observation in ((answer, second), (reply, third)):
            starts.append(len(text))
            text += self.lead + response + end + observation + self.behind
            row += self.encode_response(response) + self.encode_observation(observation, False)
        whole = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        joined = any(a < start < b for a, b in whole["offset_mapping"] for start in starts)
        if row != whole["input_ids"] and not joined:
            raise self.refused("pieces of a conversation have other tokens than the whole")
        if max(row) >= self.vocabulary.size:
            raise self.refused("it writes tokens that the model's head lacks")

    def unlike(self, other):
        """In what another chat differs for who reads this one's rows: a list of words."""
        parts = {
            "chat templates": ("before", "behind", "lead", "tail", "between"),
            "end tokens": ("end", "stop"),
            "prompts": ("prompt",)}
        return [
            what for what, names in parts.items()
            if any(getattr(self, name) != getattr(other, name) for name in names)]

    def identity(self):
        """{part: what it is, in few letters} of all that a model reads and says by this chat, but the words
        of the prompt."""
        core = json.loads(self.tokenizer.backend_tokenizer.to_str())  # vocabulary, additions, normaliser, ...
        texts = [self.before, self.behind, self.lead, self.tail, self.between]
        return {
            "end tokens": sorted(self.stop),
            "tokenizer": digest(json.dumps(core, sort_keys=True).encode()),
            "template": digest(json.dumps(texts).encode())}

    # ---- text to tokens and back

    def encode_observation(self, text, first):
        """Token ids of one observation with the template's text around it; first: it opens a row. No control
        token in it but the template's."""
        anchor = "" if first else self.tokenizer.convert_ids_to_tokens(self.end)
        before = self.before if first else self.between
        end = len(before) + len(text)
        return self.tokens(before + text + self.behind, self.control, len(before), end, anchor)

    def encode_response(self, text):
        """Token ids of an expert's response, with the end token; it may use markup such as <think>."""
        text = self.lead + text
        return self.tokens(text + self.tail, self.special, 0, len(text), self.behind) + [self.end]

    def tokens(self, text, control, start, stop, anchor=""):
        """Token ids of a text whose characters from `start` up to `stop` are plain.

        anchor: what stands before the text in its row, since some tokenizers mark the beginning of whatever
        they are given. Where the tokenizer finds a token of `control` in the plain part, the text is cut
        behind that token's first character, and the pieces are encoded each on its own.
        """
        text = readable(text)  # as long as before
        ids, places = self.behind_anchor(text, anchor)
        cuts = [a + 1 for i, (a, b) in zip(ids, places) if i in control and start <= a < b - 1 < stop]
        if not cuts:
            return ids
        parts = pairwise([0, *cuts, len(text)])
        return [i for a, b in parts for i in self.tokens(text[a:b], control, max(start - a, 0), stop - a)]

    def behind_anchor(self, text, anchor):
        """(token ids, their places as (start, stop) characters) of a text that stands behind another; of the
        text alone where a token would belong to both."""
        skip = self.tokenizer.encode(anchor, add_special_tokens=False) if anchor else []
        for n, prefix in ((len(skip), anchor), (0, "")):
            found = self.tokenizer(prefix + text, add_special_tokens=False, return_offsets_mapping=True)
            ids, places = found["input_ids"], found["offset_mapping"]
            if ids[:n] == skip[:n] and all(b <= len(prefix) for a, b in places[:n]):
                break
        shift = len(prefix)
        return ids[n:], [(a - shift, b - shift) for a, b in places[n:]]

    def decode(self, ids):
        """(response, action) of sampled ids: what they say without the end token, and the action in it, None
        if it has none."""
        said = [i for i in ids if i not in self.stop]
        response = self.tokenizer.decode(said, skip_special_tokens=True).strip()
        return response, self.prompt.action(response)
