"""The sampler: B episodes are played at once, in plain PyTorch, and the KV cache is kept from turn to turn.

One append-only token row per episode: the history h_t of Eq. 1 is literally the row's prefix. Two verbs write
it: `Row.say`, what is only read, and `Row.respond`, what was answered in a turn; a sampled token is never
tokenised again. Every turn, each model that acts is fed only the tokens that its cache has not seen; finished
episodes leave the batch. Where a method asks for it, the teacher reads the student's answers before the game
hears them.

Left out on purpose: asynchronous rollouts, a serving engine, top-p and top-k (they would change the
distribution that is distilled). Read before this: curriculum.py, envs.py; after it: batch.py.

B = episode, T = token, t = turn, V = vocabulary, D = width of the hidden states.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

import envs
from curriculum import Judgement, NextTurn, Role
from loss import judgement
from model import RaggedCache, extend, feed_one, read

LOOK = {"cpu": 1, "cuda": 8}  # tokens decoded between two looks at whether all have ended; each look waits


# ---- data

@dataclass
class Row:
    """Parallel lists over the tokens of one conversation: the id; the turn whose *trained* response the token
    belongs to (−1: not trained); and the log-probability with which the student sampled it (NaN where it did
    not)."""
    ids: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    replaced: int = 0   # first tokens that a teacher with a hint does not read
    hinted: list[int] = field(default_factory=list)     # what it reads instead

    def say(self, ids):
        """Append what is only read: the game's words, the template's."""
        self.respond(ids, -1, [math.nan] * len(ids))

    def respond(self, ids, turn, logp):
        """Append what was answered at `turn`; −1 for a response that is not trained."""
        self.ids += ids
        self.turn += [turn] * len(ids)
        self.logp += logp

    def for_teacher(self):
        """The row as the teacher reads it."""
        if not self.hinted:
            return self
        turn = [-1] * len(self.hinted) + self.turn[self.replaced:]
        return Row(self.hinted + self.ids[self.replaced:], turn)


@dataclass
class Turn:
    """One turn as it was played."""
    who: str                # "student", "teacher" or "expert"
    weight: float           # of its tokens in the loss; the method may change it when the episode is over
    loss: str               # a name in loss.LOSSES; "": the one that --loss names
    observation: str        # the prompt's text
    response: str
    ids: list[int]          # the response's tokens, and the token that ends it
    action: str             # "" where the response has none
    missing: bool           # no action in the response
    invalid: bool           # the game did not understand or allow it
    cut: bool               # the response was too long
    repeats: bool           # the action of the turn before, again
    judgement: Judgement = None     # of the student's answer, where it was asked for, also of a dropped one
    dropped: int = 0        # tokens of the student's answer, where the teacher's has taken its place
    taught: torch.Tensor = None     # (n, D') the teacher's states before the n tokens that were drawn


@dataclass(eq=False)
class Episode:
    """One game as it was played. `rows` holds one row (history "full"), or one per turn ("window:N")."""
    task: envs.Task
    index: int                 # its number within the step, over all ranks: seeds its draws
    env: Any = field(default=None, repr=False)
    chat: Any = field(default=None, repr=False)         # chat.template.Chat, by which its rows are written
    expert: Iterator = field(default=None, repr=False)  # replays the recorded episode, a turn at a time
    rows: list[Row] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    played: int = 0            # turns that a model played
    ahead: NextTurn = None     # what the method sees before the turn to come
    role: Role = None          # who acts in it
    observation: str = ""      # the prompt's text of it
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


class Answer(NamedTuple):
    """A response before the game has heard it."""
    ids: list[int]
    logp: list[float]               # of each token when it was drawn
    states: torch.Tensor = None     # (n, D) what each token was drawn from, by the model that answers
    taught: torch.Tensor = None     # (n, D') the same by the teacher
    judgement: Judgement = None
    dropped: int = 0                # tokens of the answer that was dropped for this one


@dataclass
class Player:
    """A model that acts or judges, and the cache of what it has read of every running episode."""
    who: str
    model: torch.nn.Module
    cache: RaggedCache

    def reads(self, episode):
        """The ids of an episode's present row."""
        return (episode.row.for_teacher() if self.who == "teacher" else episode.row).ids


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
    episode.env, episode.chat = game, chat
    try:
        obs, info = episode.env.reset(options={"task": episode.task})
    except envs.Unplayable as error:
        episode.give_up(error.reason)
        return
    episode.opening = episode.observation = chat.prompt.write(episode.env, obs, info, 1)
    episode.expert = envs.replay(episode.env, episode.task.expert)


def say_first(episode, text):
    """The first message of a row; the teacher may have a hint in front of it."""
    row, hint, encode = episode.row, episode.task.hint, episode.chat.encode_observation
    row.say(encode(text, True))
    if hint:
        row.replaced, row.hinted = len(row.ids), encode(f"{hint}\n\n{text}", True)


def open_row(episode, keep):
    """The row of a turn with history "window:N", N = keep.

    The opening, the last N (observation, response) pairs in their order, the observation of now. The opening
    and the first kept observation are one message: many templates want users and assistants to alternate.
    """
    chat, shown = episode.chat, episode.turns[-keep:]
    first = len(episode.turns) - len(shown)
    said = [turn.observation for turn in shown] + [episode.observation]
    episode.rows.append(Row())
    say_first(episode, said[0] if first == 0 else f"{episode.opening}\n\n{said[0]}")
    for turn, answer in zip(shown, said[1:]):
        episode.row.say(turn.ids)
        episode.row.say(chat.encode_observation(answer, False))


def open_turn(episode, room, limits):
    """Write what the game said; the episode is cut where `room` more tokens, the response, would not fit.

    Not even the first response fits: then the task cannot be played. The expert's turns alone were too long:
    then there is nothing that the student did, nor a whole episode to imitate.
    """
    if limits.history != "full":
        open_row(episode, keep=int(limits.history.split(":")[1]))
    elif episode.rows:
        episode.row.say(episode.chat.encode_observation(episode.observation, False))
    else:
        episode.rows.append(Row())
        say_first(episode, episode.observation)
    row = episode.row
    longest = len(row.ids) + max(0, len(row.hinted) - row.replaced)
    if longest + room <= limits.max_context:
        return
    if not episode.turns:
        episode.give_up(
            f"its first prompt has {longest} tokens, and {room} more for a response are beyond "
            f"--max-context {limits.max_context}")
        return
    episode.context_cut = episode.done = True
    episode.filled = not episode.played


def close_turn(episode, ids, response, action, step, cut=False, answer=None):
    """Note one turn, and what the game said to it: step = (obs, terminated, info)."""
    obs, terminated, info = step
    said = action or ""
    who, weight, loss = episode.role
    turn = Turn(
        who, weight, loss, episode.observation, response, ids, said, missing=action is None,
        invalid=bool(info["invalid"]) or action is None, cut=cut,
        repeats=bool(episode.turns) and said == episode.turns[-1].action)
    if answer and answer.taught is not None:
        turn.judgement, turn.dropped = answer.judgement, answer.dropped
        turn.taught = answer.taught.clone()  # a view would keep the whole pass, all rows' prompts, in memory
    episode.turns.append(turn)
    episode.played += episode.role.who != "expert"
    episode.won, episode.lost = bool(info["won"]), bool(info["lost"])
    episode.crashed, episode.unplayable = bool(info.get("crashed")), info.get("fault", "")
    episode.done = terminated or episode.crashed
    write, number = episode.chat.prompt.write, len(episode.turns) + 1  # of the turn to come
    episode.observation = "" if episode.done else write(episode.env, obs, info, number)


def act(episode, answer):
    """A model's response: append it to the row, act in the game."""
    role, turn, chat = episode.role, len(episode.turns), episode.chat
    ids, logp = answer.ids, answer.logp
    if role.who != "student":
        logp = [math.nan] * len(ids)
    episode.row.respond(ids, turn if role.weight else -1, logp)
    cut = ids[-1] not in chat.stop
    if ids[-1] != chat.end:
        episode.row.say([chat.end])  # cut off, or stopped with another token: the template needs it
        ids = ids + [chat.end]
    response, action = chat.decode(ids)
    obs, _, terminated, _, info = episode.env.step(action or "")
    close_turn(episode, ids, response, action, (obs, terminated, info), cut, answer)


def replay(episode, limits):
    """The expert's recorded response, whole: reasoning and action; where a script gave it, the action
    alone."""
    task, turn = episode.task, len(episode.turns)
    action = task.expert[turn]
    response = task.responses[turn] if task.responses else episode.chat.prompt.response(action)
    ids = episode.chat.encode_response(response)
    open_turn(episode, len(ids), limits)
    if episode.done:
        return
    episode.row.respond(ids, turn if episode.role.weight else -1, [math.nan] * len(ids))
    try:
        answered = next(episode.expert)
    except envs.ReplayError as error:
        episode.give_up(error.reason)
        return
    close_turn(episode, ids, response, action, answered)


def to_model(episode, rules, seed, limits):
    """Replay the expert's turns up to the next one that a model plays. False where there is none."""
    while not episode.done:
        episode.ahead = rules.ahead(episode, partial(coin, seed, episode))
        episode.role = rules.act(episode, episode.ahead)
        if episode.role is None:
            episode.done = True
        elif episode.role.who == "expert":
            replay(episode, limits)
        else:
            open_turn(episode, limits.max_response, limits)
            return not episode.done
    return False


# ---- all episodes: draw, decode, judge, play

def generator(seed, episode, *stream):
    """Numbers for this turn of this episode: a function of (seed, step, episode, turn) alone, whoever else is
    in the batch. Streams: none, the tokens; 1, the turn's coin; 2, the tokens of an answer that takes a
    dropped one's place; 3 is the episode's (`coin`)."""
    return np.random.default_rng((*seed, episode.index, len(episode.turns), *stream))


def coin(seed, episode, stream):
    """A number in [0, 1) for this turn ("turn"), or for this whole episode ("episode")."""
    if stream == "turn":
        return generator(seed, episode, 1).random()
    return np.random.default_rng((*seed, episode.index, 0, 3)).random()


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


class Drawing:
    """The responses of B rows as they are drawn, in tensors that stay where they are.

    A step has the shapes of the one before, and sends nothing to the device. So on a GPU it is captured as a
    graph, which the host starts at once, instead of each of a thousand small kernels.
    """

    def __init__(self, model, cache, chat, limits):
        rows, device = len(cache.owners), model.device
        shape = rows, limits.max_response  # (B, t)
        self.model, self.cache, self.limits = model, cache, limits
        self.vocabulary = chat.vocabulary.on(device)
        self.stop = torch.tensor(list(chat.stop), device=device)
        self.u = torch.zeros(shape, dtype=torch.float64, device=device)
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.logps = torch.zeros(shape, device=device)
        self.states = None  # (B, t, D)
        self.token = torch.zeros(rows, dtype=torch.long, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.j = torch.zeros(1, dtype=torch.long, device=device)
        self.shapes, self.replay = None, None

    def begin(self, state, acts, u):
        """Draw the first tokens, behind the states (B, D) of an `extend`; acts: B bools, u (B, t)."""
        if self.states is None:
            self.states = state.new_empty(len(state), *self.u.shape[1:], state.shape[1])  # (B, t, D)
        self.u.copy_(u)
        self.ended.copy_(torch.tensor([not act for act in acts]))
        self.j.zero_()
        self.draw(state)

    def draw(self, state):
        """Draw a token of every row behind its state (B, D), and note it."""
        logits = self.vocabulary.logits(state, self.cache.head)  # (B, V)
        u = self.u.index_select(1, self.j)[:, 0]  # (B,)
        token, logp = sample(logits, self.limits.temperature, u)  # (B,), (B,)
        for kept, new in ((self.states, state), (self.tokens, token), (self.logps, logp)):
            kept.index_copy_(1, self.j, new[:, None])
        self.ended |= (token[:, None] == self.stop).any(-1)
        self.token.copy_(token)
        self.j += 1

    def step(self):
        """Feed the last tokens, draw the next."""
        self.draw(feed_one(self.model, self.cache, self.token, ~self.ended))

    def run(self):
        """A step; on a GPU the first one of its shapes warms up, then there is a graph of it."""
        self.cache.advance()
        shapes = self.cache.span, self.cache.capacity
        if self.model.device.type == "cuda" and self.shapes == shapes:
            self.replay = self.replay or captured(self.step)
            self.replay()
        else:
            self.shapes, self.replay = shapes, None
            self.step()


def captured(step):
    """A step that has run before, as the replay of a CUDA graph; capturing runs nothing. The step itself
    where it cannot be captured: some ways to compute experts look at which of them were chosen."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            step()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.set_stream(stream)  # a failed capture leaves its own behind
        warnings.warn(f"decoding is slower than it could be: it cannot be captured ({error})", stacklevel=2)
        return step
    return graph.replay


def decode(model, cache, rows, acts, u, chat, limits):
    """One response per row that acts: feed what the cache has not seen, then decode until all have ended or
    the limit is reached.

    rows: B lists of ids; acts: B bools; u (B, max_response) -> list of B Answers, None where a row does not
    act. Such a row, and one that has ended, is carried along: it is fed nothing, and what it says is dropped.
    All stays on the device, except for a look now and then at whether all have ended.
    """
    seen, look = cache.length, LOOK[model.device.type]
    new = [ids[n:] if act else [] for ids, n, act in zip(rows, seen, acts)]
    if cache.drawing is None or cache.drawing.limits != limits:
        cache.drawing = Drawing(model, cache, chat, limits)
    drawing = cache.drawing
    drawing.begin(extend(model, cache, new), acts, u)
    for n in range(1, limits.max_response + 1):
        if n == limits.max_response or n % look == 0 and drawing.ended.all():
            break
        drawing.run()
    states = drawing.states[:, :n].clone()  # (B, n, D)
    drawn = zip(drawing.tokens[:, :n].tolist(), drawing.logps[:, :n].tolist(), states, acts)
    said = [until_stop(*parts, chat.stop) if act else None for *parts, act in drawn]
    # A response's last token is fed in the turn to come.
    cache.length = [
        n if answer is None else len(row) + len(answer.ids) - 1 for row, answer, n in zip(rows, said, seen)]
    return said


def until_stop(ids, logp, states, stop):
    """The Answer up to the first token that ends a response."""
    end = next((j + 1 for j, i in enumerate(ids) if i in stop), len(ids))
    return Answer(ids[:end], logp[:end], states[:end])


def respond(player, going, acting, seed, stream, chat, limits):
    """{episode: Answer} of the `acting` ones among all running episodes, by this player."""
    player.cache.select(going)
    owners, u = player.cache.owners, np.zeros((len(player.cache.owners), limits.max_response))
    for i, episode in enumerate(owners):
        if episode in acting:
            u[i] = generator(seed, episode, *stream).random(limits.max_response)
    acts, rows = [episode in acting for episode in owners], [player.reads(episode) for episode in owners]
    answers = decode(player.model, player.cache, rows, acts, torch.tensor(u), chat, limits)
    return {episode: answer for episode, answer in zip(owners, answers) if answer}


def judge(teacher, student, going, said, chat, limits):
    """The student's Answers {episode: Answer} with the teacher's judgement, before the game hears them.

    The states that predict an answer's tokens all come from the pass that fills the teacher's cache, the
    first of them from what stands before it: that token was not fed before.
    """
    cache, vocabulary = teacher.cache, chat.vocabulary.on(teacher.model.device)
    cache.select(going)
    unread = [teacher.reads(episode)[n:] for episode, n in zip(cache.owners, cache.length)]
    new = [ids + said[e].ids if e in said else [] for e, ids in zip(cache.owners, unread)]
    before = {}  # (n, D') of each answer
    for episode, ids, behind in zip(cache.owners, new, read(teacher.model, cache, new)):  # …, (T, D')
        if episode in said:
            before[episode] = behind[len(ids) - len(said[episode].ids) - 1: len(ids) - 1]
    answers = [said[episode] for episode in before]
    values = judgement(
        (torch.cat([answer.states for answer in answers]), student.cache.head),
        (torch.cat(list(before.values())), cache.head),
        [i for answer in answers for i in answer.ids], vocabulary, limits.temperature)  # (4, N)
    means = [part.mean(1) for part in values.split([len(answer.ids) for answer in answers], 1)]
    return {
        episode: said[episode]._replace(taught=before[episode], judgement=Judgement(*mean))
        for episode, mean in zip(before, torch.stack(means).tolist())}


def revise(rules, teacher, student, going, said, seed, chat, limits):
    """Judge the student's Answers; where the method drops one, the teacher answers in its place.

    A dropped answer leaves no trace: both caches end one token before the row, since what predicts the next
    token has to come from the next pass; with states they begin anew.
    """
    said = judge(teacher, student, going, said, chat, limits)
    if not rules.method.revise:
        return said
    dropped = {}
    for episode, answer in said.items():
        role = rules.method.revise(episode.ahead, answer.judgement)
        if role:
            episode.role, dropped[episode] = role, answer
    if dropped:
        for player in (student, teacher):
            player.cache.set_back([
                len(player.reads(episode)) - 1 if episode in dropped else n
                for episode, n in zip(player.cache.owners, player.cache.length)])
        instead = respond(teacher, going, dropped, seed, (2,), chat, limits)
        for episode, answer in instead.items():
            old = dropped[episode]
            said[episode] = answer._replace(
                taught=answer.states, judgement=old.judgement, dropped=len(old.ids))
    return said


@torch.no_grad()
def play(actors, chat, games, tasks, rules, limits, *,
         seed=(0,), step=0, first_index=0, stride=1):
    """Play one episode per task, all at once, and return them in order.

    actors    {"student": model, "teacher": model}: those that act or judge
    games     at least as many environments as tasks; they are reset and used again
    rules     who acts in which turn: curriculum.Rules
    seed      tuple of ints; with step and the episode's index (first_index + i · stride) it seeds every draw
    """
    if len(games) < len(tasks):
        raise ValueError(f"{len(tasks)} tasks want as many games, not {len(games)}")
    episodes = [Episode(task, first_index + i * stride) for i, task in enumerate(tasks)]
    for episode, game in zip(episodes, games):
        begin(episode, game, chat)
    seed, players = (*seed, step), {}
    going = episodes
    while going := [e for e in going if to_model(e, rules, seed, limits)]:
        acting, answers = {}, {}
        for episode in going:
            acting.setdefault(episode.role.who, set()).add(episode)
        present = {*acting, "teacher"} if rules.judged else {*acting}
        for who in present:
            if who not in players:
                cache = RaggedCache(actors[who], going, limits.max_context)
                players[who] = Player(who, actors[who], cache)
        if limits.history != "full":  # every turn is a row of its own
            for player in players.values():
                player.cache.set_back([0] * len(player.cache.owners))
        for who, own in acting.items():
            said = respond(players[who], going, own, seed, (), chat, limits)
            if rules.judged and who == "student":
                said = revise(
                    rules, players["teacher"], players["student"], going, said, seed, chat, limits)
            elif rules.judged:
                said = {e: answer._replace(taught=answer.states) for e, answer in said.items()}
            answers.update(said)
        for episode, answer in answers.items():
            act(episode, answer)
    for player in players.values():
        player.cache.free()
    return episodes
