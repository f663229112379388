"""The sampler: B episodes are played at once, in plain PyTorch, and the KV cache is kept from turn to turn.

One append-only token row per episode: the history h_t of Eq. 1 is literally the row's prefix. Two verbs write
it: what is only read (`Row.say`) and what was answered in a turn (`Row.respond`); a sampled token is never
tokenised again. Every turn, each model that acts is fed only the tokens that its cache has not seen; finished
episodes leave the batch.

Left out on purpose: asynchronous rollouts, a serving engine, top-p and top-k (they would change the
distribution that is distilled).

B = episode, T = token, t = turn, V = vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import envs
import model as lm
from template import Chat  # noqa: F401, who plays finds it here

LOOK = {"cpu": 1, "cuda": 8}  # tokens decoded between two looks at whether all have ended; each look waits


@dataclass
class Row:
    """Parallel lists over the tokens of one conversation: the id; the turn whose *trained* response the token
    belongs to (−1: not trained); and the log-probability with which the student sampled it (NaN where it did
    not)."""
    ids: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)

    def say(self, ids):
        """Append what is only read: the game's words, the template's."""
        self.respond(ids, -1, [math.nan] * len(ids))

    def respond(self, ids, turn, logp):
        """Append what was answered at `turn`; −1 for a response that is not trained."""
        self.ids += ids
        self.turn += [turn] * len(ids)
        self.logp += logp


@dataclass
class Episode:
    """One game as it was played. `rows` holds one row (history "full"), or one per turn ("window:N")."""
    task: envs.Task
    index: int                 # its number within the step, over all ranks: seeds its draws
    env: Any = field(default=None, repr=False)
    expert: Iterator = field(default=None, repr=False)  # replays the recorded episode, a turn at a time
    rows: list[Row] = field(default_factory=list)
    turns: list[dict] = field(default_factory=list)  # see `close_turn`
    played: int = 0            # turns that a model played
    role: Any = None           # who acts in the turn to come (curriculum.Role)
    observation: str = ""      # the prompt's text of the turn to come
    opening: str = ""          # the prompt's text of the first turn
    done: bool = False
    won: bool = False
    lost: bool = False
    crashed: bool = False      # the world died and could not be brought back
    context_cut: bool = False  # ended because the next turn would not have fitted the context
    filled: bool = False       # the same, when the expert's turns alone had been replayed
    unplayable: str = ""       # why the task could not be played: the fault of its game, or of its expert

    @property
    def row(self):
        return self.rows[-1]

    @property
    def sound(self):
        """Whether there is something to learn from: nothing of the task's or the world's own ended it."""
        return not (self.crashed or self.filled or self.unplayable)

    def give_up(self, reason):
        """End the episode: its task cannot be played."""
        self.unplayable, self.done = reason, True


@dataclass(frozen=True)
class Limits:
    """What bounds an episode and how it is sampled. history: "full" or "window:N" (see `open_row`)."""
    max_response: int
    max_context: float = math.inf
    temperature: float = 1.0
    history: str = "full"


# ---- one episode: open a turn, answer it

def begin(episode, game, chat):
    """Reset the environment in which the episode is played; a game that cannot be played ends it here."""
    episode.env = game
    try:
        obs, info = episode.env.reset(options={"task": episode.task})
    except envs.Unplayable as error:
        episode.give_up(error.reason)
        return
    episode.opening = episode.observation = chat.prompt.write(episode.env, obs, info, 1)
    episode.expert = envs.replay(episode.env, episode.task.expert)


def open_row(episode, chat, keep):
    """The row of a turn with history "window:N", N = keep.

    The opening, the last N (observation, response) pairs in their order, the observation of now. The opening
    and the first kept observation are one message: many templates want users and assistants to alternate.
    """
    shown = episode.turns[-keep:]
    first = len(episode.turns) - len(shown)
    said = [turn["observation"] for turn in shown] + [episode.observation]
    episode.rows.append(Row())
    opening = said[0] if first == 0 else f"{episode.opening}\n\n{said[0]}"
    episode.row.say(chat.encode_observation(opening, True))
    for turn, answer in zip(shown, said[1:]):
        episode.row.say(turn["ids"])
        episode.row.say(chat.encode_observation(answer, False))


def open_turn(episode, room, chat, limits):
    """Write what the game said; the episode is cut where `room` more tokens, the response, would not fit.

    Not even the first response fits: then the task cannot be played. The expert's turns alone were too long:
    then there is nothing that the student did, nor a whole episode to imitate.
    """
    if limits.history != "full":
        open_row(episode, chat, keep=int(limits.history.split(":")[1]))
    elif episode.rows:
        episode.row.say(chat.encode_observation(episode.observation, False))
    else:
        episode.rows.append(Row())
        episode.row.say(chat.encode_observation(episode.observation, True))
    if len(episode.row.ids) + room <= limits.max_context:
        return
    if not episode.turns:
        episode.give_up(
            f"its first prompt has {len(episode.row.ids)} tokens, and {room} more for a response are beyond "
            f"--max-context {limits.max_context}")
        return
    episode.context_cut = episode.done = True
    episode.filled = not episode.played


def close_turn(episode, ids, response, action, cut, step, chat):
    """Note one turn, and what the game answered: step = (obs, terminated, info)."""
    obs, terminated, info = step
    role = episode.role
    episode.turns.append(dict(
        who=role.who, weight=role.weight, loss=role.loss,
        observation=episode.observation, response=response, ids=ids, action=action or "",
        missing=action is None, invalid=bool(info["invalid"]) or action is None, cut=cut))
    episode.played += role.who != "expert"
    episode.won, episode.lost = bool(info["won"]), bool(info["lost"])
    episode.crashed, episode.unplayable = bool(info.get("crashed")), info.get("fault", "")
    episode.done = terminated or episode.crashed
    number = len(episode.turns) + 1  # of the turn to come
    episode.observation = "" if episode.done else chat.prompt.write(episode.env, obs, info, number)


def answer(episode, ids, logp, chat, limits):
    """A model's response: append it, act in the game."""
    role, turn, cut = episode.role, len(episode.turns), ids[-1] not in chat.stop
    if role.who != "student":
        logp = [math.nan] * len(ids)
    episode.row.respond(ids, turn if role.weight else -1, logp)
    if ids[-1] != chat.end:
        episode.row.say([chat.end])  # cut off, or stopped with another token: the template needs it
        ids = ids + [chat.end]
    response = chat.decode_response(ids)
    action = chat.prompt.action(response)
    obs, _, terminated, _, info = episode.env.step(action or "")
    close_turn(episode, ids, response, action, cut, (obs, terminated, info), chat)


def replay(episode, chat, limits):
    """The expert's recorded response, whole: reasoning and action; where a script gave it, the action
    alone."""
    task, turn = episode.task, len(episode.turns)
    action = task.expert[turn]
    response = task.responses[turn] if task.responses else chat.prompt.response(action)
    ids = chat.encode_response(response)
    open_turn(episode, len(ids), chat, limits)
    if episode.done:
        return
    episode.row.respond(ids, turn if episode.role.weight else -1, [math.nan] * len(ids))
    try:
        answered = next(episode.expert)
    except envs.ReplayError as error:
        episode.give_up(error.reason)
        return
    close_turn(episode, ids, response, action, False, answered, chat)


def to_model(episode, plan, seed, chat, limits):
    """Replay the expert's turns up to the next one that a model plays. False where there is none."""
    while not episode.done:
        turn = len(episode.turns)
        coin = generator(seed, episode, 1).random()
        episode.role = plan(turn, len(episode.task.expert), episode.played, coin)
        if episode.role is None:
            episode.done = True
        elif episode.role.who == "expert":
            replay(episode, chat, limits)
        else:
            open_turn(episode, limits.max_response, chat, limits)
            return not episode.done
    return False


# ---- all episodes: draw, decode, play

def generator(seed, episode, *stream):
    """Numbers for this turn of this episode: a function of (seed, step, episode, turn) alone, whoever else is
    in the batch."""
    return np.random.default_rng((*seed, episode.index, len(episode.turns), *stream))


def sample(logits, temperature, u):
    """Draw one token per row by inverting the cumulative distribution at u.

    logits (B, V) fp32, u (B,) in [0, 1) -> token (B,), log-probability (B,) at that temperature. Temperature
    0 is greedy and returns the log-probability at temperature 1. The sum is carried in fp64: in fp32 the tail
    of 150,000 tokens would be lost.
    """
    logp = torch.log_softmax(logits / (temperature or 1.0), -1)  # (B, V)
    if temperature == 0:
        token = logp.argmax(-1)  # (B,)
    else:
        cdf = logp.double().exp().cumsum(-1)
        token = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]  # (B,)
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, logp.gather(-1, token[:, None])[:, 0]  # (B,), (B,)


def decode(model, cache, rows, acts, u, chat, limits):
    """One response per row that acts: feed what the cache has not seen, then decode until all have ended or
    the limit is reached.

    rows: B lists of ids; acts: B bools; u (B, max_response) -> list of B pairs (ids, log-probabilities). A
    row that does not act, or has ended, is carried along: what it says then is dropped, and its cache is as
    long afterwards as if it had not. Meanwhile all stays on the device, but for a look now and then at
    whether all have ended.
    """
    device, seen = model.device, cache.length
    look, vocabulary = LOOK[device.type], chat.vocabulary.on(device)
    stop = torch.tensor(list(chat.stop), device=device)
    ended = torch.tensor([not act for act in acts], device=device)  # (B,)
    logits = lm.extend(model, cache, [ids[n:] if act else [0] for ids, n, act in zip(rows, seen, acts)])
    tokens, logps = [], []
    for j in range(limits.max_response):
        if j:
            logits = lm.step(model, cache, tokens[-1])  # (B, V)
        token, logp = sample(vocabulary.among(logits), limits.temperature, u[:, j])  # (B,), (B,)
        tokens.append(token)
        logps.append(logp)
        ended |= (token[:, None] == stop).any(-1)
        if (j + 1) % look == 0 and ended.all():
            break
    drawn = zip(torch.stack(tokens, 1).tolist(), torch.stack(logps, 1).tolist(), acts)
    said = [until_stop(ids, logp, chat.stop) if act else ([], []) for ids, logp, act in drawn]
    # A response's last token is fed in the turn to come, whether or not it was fed here.
    cache.length = [
        len(row) + len(ids) - 1 if act else n for row, (ids, _), act, n in zip(rows, said, acts, seen)]
    return said


def until_stop(ids, logp, stop):
    """What was said up to the first token that ends a response: (ids, log-probabilities)."""
    end = next((j + 1 for j, i in enumerate(ids) if i in stop), len(ids))
    return ids[:end], logp[:end]


def respond_all(model, cache, who, going, seed, chat, limits):
    """A turn of every running episode in which `who` acts, played by `model`."""
    cache.select(going)
    if limits.history != "full":  # every turn is a row of its own
        cache.length = [0] * len(going)
    u = np.stack([generator(seed, episode).random(limits.max_response) for episode in going])
    u = torch.tensor(u, device=model.device)  # (B, max_response)
    acts = [episode.role.who == who for episode in going]
    responses = decode(model, cache, [episode.row.ids for episode in going], acts, u, chat, limits)
    return [(e, *response) for e, act, response in zip(going, acts, responses) if act]


@torch.no_grad()
def play(actors, chat, games, tasks, plan, limits, *,
         seed=(0,), step=0, first_index=0, stride=1, progress=None):
    """Play one episode per task, all at once, and return them in order.

    actors    {"student": model, "teacher": model}: those that act
    games     at least as many environments as tasks; they are reset and used again
    plan      who acts in which turn, from `curriculum.plan`
    seed      tuple of ints; with step and the episode's index (first_index + i · stride) it seeds every draw
    progress  called once a turn with the number of episodes still going
    """
    if len(games) < len(tasks):
        raise ValueError(f"{len(tasks)} tasks want as many games, not {len(games)}")
    episodes = [Episode(task, first_index + i * stride) for i, task in enumerate(tasks)]
    for episode, game in zip(episodes, games):
        begin(episode, game, chat)
    seed, caches, going = (*seed, step), {}, episodes
    while going := [e for e in going if to_model(e, plan, seed, chat, limits)]:
        answers = []
        for who in dict.fromkeys(episode.role.who for episode in going):
            model = actors[who]
            if who not in caches:
                caches[who] = lm.RaggedCache(model, going, limits.max_context)
            answers += respond_all(model, caches[who], who, going, seed, chat, limits)
        for episode, ids, logp in answers:
            answer(episode, ids, logp, chat, limits)
        if progress:
            progress(len(going))
    return episodes
