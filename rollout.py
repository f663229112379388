"""The sampler: B episodes are played at once, in plain PyTorch, and the KV cache is kept from turn to turn.

One append-only token row per episode: the history h_t of Eq. 1 is literally the row's prefix. Two verbs write it: what the game
said (`Row.say`) and what the model said (`Row.respond`); a sampled token is never tokenised again. Every turn, each model that acts
is fed only the tokens that its cache has not seen; finished episodes leave the batch.

Left out on purpose: asynchronous rollouts, a serving engine, top-p and top-k (they would change the distribution that is distilled).
B = episode, T = token, t = turn, V = vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import envs
import model as lm

SENTINELS = ("<first observation>", "<first response>", "<next observation>")


class Chat:
    """A tokenizer's chat template, cut once into the pieces that an append-only row needs.

    opening text = before + first observation + behind;  next turn = between + observation + behind.
    `between` begins behind the token with which the template ends a response; the model samples it itself. A template that rewrites history (some strip
    the reasoning of past turns) is not asked again: the row keeps what was sampled, which is the exact on-policy prefix.
    """

    def __init__(self, tokenizer, stop=()):
        """stop: ids that end a response besides the tokenizer's end token (a checkpoint's generation_config may name several)."""
        self.tokenizer = tokenizer
        self.style = tokenizer.init_kwargs.get("prompt_style", "react")  # the tiny tokenizers say "bare": the response is the action
        self.vocabulary = len(tokenizer)  # a head may be padded beyond it; those ids are never sampled nor compared
        user, reply, then = ({"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), SENTINELS))
        self.before, self.behind = self.render([user]).split(SENTINELS[0])
        between = self.render([user, reply, then]).split(SENTINELS[1])[1].split(SENTINELS[2])[0]
        ends = [token for token in tokenizer.all_special_tokens + list(tokenizer.get_added_vocab()) if token and between.startswith(token)]
        if not ends:
            raise envs.UserError(f"the chat template of {tokenizer.name_or_path!r} ends a response without a special token")
        self.end = tokenizer.convert_tokens_to_ids(max(ends, key=len))
        self.between = between.removeprefix(max(ends, key=len))
        self.stop = {self.end, tokenizer.eos_token_id, *stop} - {None}

    def render(self, messages):
        """The template's text, ready for the model to answer. Hybrid reasoning models answer without their thinking block."""
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)

    def observation(self, text, first):
        """Token ids of one observation with the template's text around it."""
        whole = (self.before if first else self.between) + text + self.behind
        return self.tokenizer.encode(whole, add_special_tokens=False)

    def response(self, text):
        """Token ids of a scripted response (a replayed expert action), with the end token."""
        return self.tokenizer.encode(text, add_special_tokens=False) + [self.end]

    def text(self, ids):
        """What a sampled response says, without its end token."""
        return self.tokenizer.decode([i for i in ids if i not in self.stop], skip_special_tokens=True).strip()


@dataclass
class Row:
    """Parallel lists over the tokens of one conversation: the id, the turn whose *trained* response the token belongs to (-1: prompt,
    observation, replayed turn), and its log-probability under the student when it was sampled (0 where none was)."""
    ids: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)

    def say(self, ids):
        """Append what the game said, or an expert's replayed response: read, never trained on."""
        self.respond(ids, -1, [0.0] * len(ids))

    def respond(self, ids, turn, logp):
        """Append what the model said at `turn`."""
        self.ids += ids
        self.turn += [turn] * len(ids)
        self.logp += logp


@dataclass
class Episode:
    """One game as it was played. `rows` holds one row (history "full") or one per turn (history "window:N")."""
    task: envs.Task
    index: int                # its number within the step, over all ranks: seeds its generator
    start: int                # the student's first turn; earlier turns replay the expert
    stop: int                 # the turn at which the episode ends
    env: Any = field(default=None, repr=False)
    rows: list[Row] = field(default_factory=list)
    turns: list[dict] = field(default_factory=list)  # per turn: observation, response, action, and what went wrong
    observation: str = ""     # the prompt text of the turn to come
    opening: str = ""
    done: bool = False
    won: bool = False
    lost: bool = False
    crashed: bool = False     # the world died and could not be brought back
    context_cut: bool = False  # ended because the next turn would not have fitted the context

    @property
    def row(self):
        return self.rows[-1]

    @property
    def played(self):
        """The student's own turns, replayed ones left out."""
        return self.turns[self.start:]

    def count(self, what):
        """How many of the student's turns were "invalid", "missing" an action, or "cut" at the response limit."""
        return sum(turn[what] for turn in self.played)


@dataclass(frozen=True)
class Limits:
    """What bounds an episode and how it is sampled. history: "full" or "window:N" (see `start_row`)."""
    max_response: int = 512
    max_context: int = 10240
    temperature: float = 1.0
    style: str = "react"
    history: str = "full"


def begin(episode, chat, limits):
    """Reset the episode's environment, replay the expert up to the window, and write the row's first tokens."""
    first, info = episode.env.reset(options={"task": episode.task})
    episode.opening = episode.observation = envs.prompt(episode.env, first, info, limits.style, True)
    start_row(episode, chat, limits)
    if len(episode.row.ids) + limits.max_response > limits.max_context:
        raise envs.UserError(f"--max-context {limits.max_context} is too short: the first prompt of {episode.task.id} has "
                             f"{len(episode.row.ids)} tokens and --max-response asks for {limits.max_response} more")
    actions = episode.task.expert[: episode.start]
    for action, (obs, info) in zip(actions, envs.replay(episode.env, actions)):
        text = envs.format_action(action, limits.style)
        ids = chat.response(text)
        episode.row.say(ids)
        record(episode, text, ids, action, info, cut=False)
        next_turn(episode, envs.prompt(episode.env, obs, info, limits.style, False), chat, limits)
    episode.context_cut = len(episode.row.ids) + limits.max_response > limits.max_context  # a replay may fill the context
    episode.done = episode.context_cut or episode.crashed


def start_row(episode, chat, limits):
    """A fresh row: the opening; with history "window:N" also the last N turns, each response followed by what the game said then."""
    episode.rows.append(Row())
    episode.row.say(chat.observation(episode.opening, True))
    keep = 0 if limits.history == "full" else int(limits.history.split(":")[1])
    for turn, after in list(zip(episode.turns, [*episode.turns[1:], {"observation": episode.observation}]))[-keep:] if keep else ():
        episode.row.say(turn["ids"] + chat.observation(after["observation"], False))


def next_turn(episode, text, chat, limits):
    """The game's answer opens the next turn: behind the row ("full"), or on a row of its own ("window:N")."""
    episode.observation = text
    if limits.history == "full":
        episode.row.say(chat.observation(text, False))
    else:
        start_row(episode, chat, limits)


def record(episode, response, ids, action, info, cut):
    """Note one turn and whether the game is over."""
    episode.turns.append(dict(observation=episode.observation, response=response, ids=ids, action=action or "", missing=action is None,
                              invalid=bool(info["invalid"]) or action is None, cut=cut))
    episode.won, episode.lost = bool(info["won"]), bool(info["lost"])
    episode.crashed = bool(info.get("crashed"))


def advance(episode, ids, logp, chat, limits):
    """One turn of one episode: append the response, act in the game, append the game's answer."""
    turn, cut = len(episode.turns), ids[-1] not in chat.stop
    episode.row.respond(ids, turn, logp)
    if ids[-1] != chat.end:
        episode.row.say([chat.end])  # the template needs it; the student was cut off, or stopped with another token
    response = chat.text(ids)
    action = envs.parse_action(response, limits.style)
    obs, _, terminated, _, info = episode.env.step(action or "")
    record(episode, response, ids + [chat.end] * (ids[-1] != chat.end), action, info, cut)
    episode.done = terminated or len(episode.turns) >= episode.stop
    if not episode.done:
        next_turn(episode, envs.prompt(episode.env, obs, info, limits.style, False), chat, limits)
        episode.context_cut = len(episode.row.ids) + limits.max_response > limits.max_context
        episode.done = episode.context_cut


def uniforms(seed, step, episodes, count):
    """(B, count) numbers in [0, 1): a function of (seed, step, episode, turn) alone, whoever else is in the batch."""
    return np.stack([np.random.default_rng((*seed, step, e.index, len(e.turns))).random(count) for e in episodes])


def sample(logits, temperature, u):
    """Draw one token per row by inverting the cumulative distribution at u.

    logits (B, V) fp32, u (B,) in [0, 1) -> token (B,), log-probability (B,) at that temperature. Temperature 0 is greedy and
    returns the log-probability at temperature 1. The sum is carried in fp64: in fp32 the tail of 150,000 tokens would be lost.
    """
    logp = torch.log_softmax(logits / (temperature or 1.0), -1)  # (B, V)
    if temperature == 0:
        token = logp.argmax(-1)
    else:
        cdf = logp.double().exp().cumsum(-1)
        token = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return token, logp.gather(-1, token[:, None])[:, 0]  # (B,), (B,)


def respond(model, cache, episodes, u, chat, limits):
    """One response per episode: feed what the cache has not seen, then decode until every row has ended or the limit is reached.

    u (B, max_response) -> list of B pairs (ids, log-probabilities). A row that has ended is carried along without growing.
    """
    pending = [e.row.ids[seen:] for e, seen in zip(episodes, cache.length)]
    logits = lm.extend(model, cache, pending)  # (B, V)
    said, alive = [([], []) for _ in episodes], [True] * len(episodes)
    for j in range(limits.max_response):
        token, logp = sample(logits[:, : chat.vocabulary], limits.temperature, u[:, j])
        tokens, logps = token.tolist(), logp.tolist()
        for i in (i for i, going in enumerate(alive) if going):
            said[i][0].append(tokens[i])
            said[i][1].append(logps[i])
            alive[i] = tokens[i] not in chat.stop
        if not any(alive) or j + 1 == limits.max_response:
            return said
        logits = lm.extend(model, cache, [[i] for i in tokens], grow=alive)


@torch.no_grad()
def play(actor, chat, games, tasks, windows, limits, *, seed=(0,), step=0, first_index=0, stride=1, progress=None):
    """Play one episode per task, all at once, and return them in order.

    actor     a model, or a function from the number of turns already sampled to the model that acts (the take-over test)
    games     at least as many environments as tasks; they are reset and used again
    windows   per task (start, stop), from `curriculum.window`
    seed      tuple of ints; with step and the episode's index (first_index + i · stride) it seeds every draw
    progress  called once a turn with the number of episodes still going
    """
    if isinstance(actor, torch.nn.Module):
        model, actor = actor, lambda turn: model
    episodes = [Episode(task, first_index + i * stride, *window, env=game)
                for i, (task, window, game) in enumerate(zip(tasks, windows, games[: len(tasks)], strict=True))]
    for episode in episodes:
        begin(episode, chat, limits)
    caches, turn, going = {}, 0, [e for e in episodes if not e.done]
    while going:
        model = actor(turn)
        cache = caches.setdefault(id(model), lm.RaggedCache(model, going))
        cache.select(going)
        if limits.history != "full":  # every turn is a row of its own
            cache.length = [0] * len(going)
        u = torch.tensor(uniforms(seed, step, going, limits.max_response), device=lm.head(model).device)  # (B, max_response)
        for episode, (ids, logp) in zip(going, respond(model, cache, going, u, chat, limits)):
            advance(episode, ids, logp, chat, limits)
        going, turn = [e for e in going if not e.done], turn + 1
        if progress:
            progress(len(going))
    return episodes
