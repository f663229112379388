"""Speed and memory: decoding beside transformers' `generate`, and one training step. Random weights of real
sizes, made on the device, in bf16 on a GPU.

    python studies/bench.py                                  # the tiny pair's sizes, anywhere, in seconds
    python studies/bench.py --student 1.5B --teacher 3B --rows 16 --context 2048 --length 4096  # on a GPU

*Talk*: conversations of `--turns` turns at once. Ours keeps a ragged cache from turn to turn; `generate` is
called on the whole conversation each turn, as a loop around a chat model does, and once more with its own
cache kept, which only rows of equal length, as here, allow. The ratios are what to look at: what is saved is
the prefill of all that was said before.

*Token*: one more token behind `--context` tokens a row, and on a GPU the same as a graph, whose samples must
be equal. It reads every weight and every cached key and value once: these bytes over the bandwidth of a large
copy are the least that it can take.

*Judge*: playing ALFWorld's small games with and without a teacher that reads the student's answers before the
game hears them (curriculum.Method.judged).

*Step*: what one training step takes, two micro-batches of `--batch-tokens`, and beside what is measured the
bytes that the numbers of weights say. What a peak has beyond those is activations and logits, or the
optimizer's own. On a CPU it is resident memory, roughly, with what libraries and the allocator keep.

*Rows*: the forward and backward of a step over one episode of `--turns` turns as a row, and as the released
code and most frameworks have it: a row for each turn, with all that was said before.
"""

import os
import random
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

# Last, so that PYTHONPATH may name another version's folder.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import envs
import load
import rollout
import tcod
from chat.template import Chat
from curriculum import Method, Rules
from harness.cli import UserError, check_knobs, command, fill_presets, knob
from harness.ranks import Ranks
from model import RaggedCache, Vocabulary, extend
from training import Student

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
COPIED = 2**30 if GPU else 2**25    # bytes of the copy whose bandwidth is the least time's measure
TOKENS = 32                         # decoded behind the context
REPEATS = 3                         # of what is timed; the fastest counts
ROOM = 2**20                        # tokens that a row may have


class Size(NamedTuple):
    """Of a model; known: ids that the tokenizer has."""
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    known: int


SIZES = {
    "tiny": Size(96, 288, 3, 3, 1, 4096, 4096),
    "135M": Size(576, 1536, 30, 9, 3, 49152, 49152),        # SmolLM2's
    "1.5B": Size(1536, 8960, 28, 12, 2, 151936, 151665),    # Qwen2.5's
    "3B": Size(2048, 11008, 36, 16, 2, 151936, 151665),
    "7B": Size(3584, 18944, 28, 28, 4, 152064, 151665)}


@dataclass
class Args:
    """What is measured, and how large."""
    what: str = knob("talk,token,judge,step,rows", "by commas")
    student: str = knob("tiny", "its size, and that of who talks", choices=tuple(SIZES))
    teacher: str = knob("tiny", "its size", choices=tuple(SIZES))
    rows: int = knob(16, "conversations at once", least=1)
    turns: int = knob(30, "of a conversation", least=1)
    said: int = knob(25, "tokens of an observation; the first has four times as many", least=1)
    response: int = knob(4, "tokens of a response", least=1)
    context: int = knob(256, "tokens of a row that are cached before --what token", least=1)
    batch_tokens: int = knob(2048, "of a micro-batch of the step", least=1)
    length: int = knob(512, "of a row of the step, half of it trained", least=2)


# ---- measuring

def seconds(work):
    """How long `work` takes, on the device too."""
    if GPU:
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def bandwidth():
    """Bytes a second that a large copy reads and writes."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * COPIED / min(seconds(lambda: target.copy_(source)) for _ in range(20))


def resident(field):
    """A line of the process's own status in bytes: VmRSS, VmHWM (its peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def held():
    """Bytes in use now."""
    return torch.cuda.memory_allocated() if GPU else resident("VmRSS")


def peak(work):
    """The most bytes that were in use during `work`."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return resident("VmHWM")


def make_model(size, dtype=DTYPE):
    """A random model, weights made where they stay."""
    config = Qwen2Config(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.inner,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        max_position_embeddings=ROOM, tie_word_embeddings=True)
    with DEVICE:
        model = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa", dtype=dtype)
    return model.eval()


# ---- decoding

class Plain(rollout.Drawing):
    """Decoding without a graph."""

    def run(self):
        self.cache.advance()
        self.step()


class Ours:
    """The sampler on a ragged cache that is kept; no response ever ends early."""

    def __init__(self, model, size, rows, room=ROOM):
        self.model, self.cache = model, RaggedCache(model, range(rows), room)
        self.chat = SimpleNamespace(vocabulary=Vocabulary(size.known, []), stop={-1})

    def answer(self, rows, count):
        """`count` new ids for each row."""
        u = torch.rand(len(rows), count, device=DEVICE, dtype=torch.float64)
        limits = rollout.Limits(max_response=count, max_context=ROOM)
        said = rollout.decode(self.model, self.cache, rows, [True] * len(rows), u, self.chat, limits)
        return [answer.ids for answer in said]

    def note(self, rows, said):
        """Add the TOKENS new ids of each row to a list."""
        said.append(self.answer(rows, TOKENS))


class Theirs:
    """transformers' `generate`, with its cache kept or without."""

    def __init__(self, model, kept):
        self.model = model
        self.more = dict(cache=DynamicCache(config=model.config)) if kept else {}

    def answer(self, rows, count):
        """`count` new ids for each row; rows are of one length."""
        ids = torch.tensor(rows, device=DEVICE)
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, do_sample=True, top_k=0,
            max_new_tokens=count, min_new_tokens=count, **self.more)
        return out[:, ids.shape[1]:].tolist()


def talk(player, args, size, turns):
    """A conversation of every row, to its end."""
    draw, rows = random.Random(0), [[] for _ in range(args.rows)]
    for turn in range(turns):
        for row in rows:
            row += draw.choices(range(size.known), k=args.said * (4 if turn == 0 else 1))
        for row, new in zip(rows, player.answer(rows, args.response)):
            row += new


@torch.no_grad()
def measure_talk(args):
    """Print tokens per second of the three, and the ratios."""
    size = SIZES[args.student]
    model, speeds = make_model(size), {}
    players = {
        "ours": partial(Ours, model, size, args.rows), "generate": partial(Theirs, model, False),
        "generate, cache kept": partial(Theirs, model, True)}
    for name, player in players.items():
        talk(player(), args, size, 2)  # warms up
        took = min(seconds(partial(talk, player(), args, size, args.turns)) for _ in range(REPEATS))
        speeds[name] = args.rows * args.turns * args.response / took
        print(f"{name:20} {took:8.2f} s, {speeds[name]:8.0f} tokens/s", flush=True)
    ours, again, kept = speeds.values()
    print(f"ours is {ours / again:.1f} times as fast as generate, {ours / kept:.2f} as with its cache kept")


@torch.no_grad()
def measure_token(args):
    """Print what the prefill and then a token of all rows take, and the least that its bytes do."""
    size = SIZES[args.student]
    model, rows = make_model(size), [[5 + i % 100 for i in range(args.context)]] * args.rows
    limits, said = rollout.Limits(max_response=TOKENS, max_context=ROOM), {}
    entry = 2 * size.layers * size.kv_heads * (size.width // size.heads) * DTYPE.itemsize
    read = DTYPE.itemsize * model.num_parameters() + args.rows * args.context * entry
    print(f"{args.rows} rows of {args.context} tokens; a token of all of them takes at least "
          f"{1e3 * read / bandwidth():.3f} ms by {read / 1e9:.2f} GB")
    for drawing in (Plain, rollout.Drawing)[: 1 + GPU]:
        room = args.context + (1 + REPEATS) * TOKENS    # a cache grows by doubling, up to it
        player, grown, said[drawing] = Ours(model, size, args.rows, room), rows, []
        player.cache.drawing = drawing(model, player.cache, player.chat, limits)
        prefill = seconds(partial(extend, model, player.cache, rows))
        player.cache.length, took = [args.context - 1] * args.rows, []
        for _ in range(1 + REPEATS):  # the first warms up, and makes the graph
            torch.manual_seed(len(took))
            took.append(seconds(partial(player.note, grown, said[drawing])))
            grown = [row + new for row, new in zip(grown, said[drawing][-1])]
        print(f"{'plain' if drawing is Plain else 'as a graph':10} prefill {1e3 * prefill:.1f} ms, "
              f"a token {1e3 * min(took[1:]) / TOKENS:.2f} ms", flush=True)
    if GPU:
        print(f"their samples are {'' if said[Plain] == said[rollout.Drawing] else 'NOT '}equal")


class Judged(Method):
    """On-policy distillation in which the teacher reads along."""
    judged = True


def measure_judge(args):
    """Print the seconds of playing with and without judgement, one after the other, the fastest of each."""
    tokenizer = load.load_tokenizer(load.resolve("tiny-student", "alfworld"))
    actors = {"student": make_model(SIZES[args.student]), "teacher": make_model(SIZES[args.teacher])}
    chat = Chat(tokenizer, vocabulary=load.vocabulary(tokenizer, *actors.values()))
    tasks = envs.make_tasks("alfworld", "train", "generated")[: args.rows]
    games = [envs.make_env("alfworld", data="generated") for _ in tasks]
    limits, took = rollout.Limits(max_response=args.response), {Method: [], Judged: []}
    for _ in range(1 + REPEATS):  # the first warms up
        for method, found in took.items():
            rules = Rules(method(), 0, args.turns)
            found.append(seconds(partial(rollout.play, actors, chat, games, tasks, rules, limits)))
    plain, judged = (min(found[1:]) for found in took.values())
    print(f"{args.rows} games of {args.turns} turns, {args.response} tokens a response: {plain:.2f} s, with "
          f"judgement {judged:.2f} s, {judged / plain:.2f} times as long", flush=True)


# ---- one training step

TURN = SimpleNamespace(weight=1.0, loss="", taught=None)    # all that learning asks of one


def respond(row, turn, count, vocabulary, draw):
    """Add a response of so many random ids to a row."""
    row.respond(draw.choices(range(vocabulary), k=count), turn, [-1.0] * count)


def episodes(tokens, length, vocabulary):
    """Two micro-batches of played episodes, rows of `length` tokens: an observation, a response as long."""
    draw, found = random.Random(0), []
    for i in range(max(1, 2 * tokens // length)):
        row = rollout.Row()
        row.say(draw.choices(range(vocabulary), k=length - length // 2))
        respond(row, 0, length // 2, vocabulary, draw)
        found.append(rollout.Episode(None, i, rows=[row], turns=[TURN]))
    return found


def arguments(args):
    """Those of a run that takes such a step."""
    run = tcod.Args(batch_tokens=args.batch_tokens)
    fill_presets(run)
    run.precision = load.precision(run.precision)
    return run


def measure_step(args):
    """Print what is held and used, in GB, and the seconds."""
    run, ranks, size = arguments(args), Ranks(), SIZES[args.student]
    start, rows = held(), []

    def note(what, should):
        rows.append((what, should, held() - start - sum(found for _, _, found in rows)))

    model = make_model(size, torch.float32)
    count, dtype = model.num_parameters(), load.play_dtype(run.precision)
    note("student's weights, fp32", 4 * count)
    teacher = make_model(SIZES[args.teacher], dtype)
    note("teacher's weights", dtype.itemsize * teacher.num_parameters())
    student = Student(model, Vocabulary(size.known, []), run, ranks)
    played, took = episodes(args.batch_tokens, args.length, size.known), []
    student.learns()
    note("playing copy, given up", 0)

    def learn():
        tcod.backward(student, teacher, played, run, ranks)

    learn()
    note("gradients", 4 * count)
    student.optimizer.step()
    note("AdamW's moments", 8 * count)
    together = sum(found for _, _, found in rows)
    rows.append(("together", sum(should for _, should, _ in rows), together))
    rows.append(("peak of forward and backward", None, peak(lambda: took.append(seconds(learn))) - start))
    rows.append(("peak of AdamW's step", None, peak(student.optimizer.step) - start))
    print(f"{'GB':34} {'by number':>10} {'measured':>10}")
    for what, should, found in rows:
        print(f"{what:34} {'' if should is None else f'{should / 1e9:.3f}':>10} {found / 1e9:10.3f}")
    print(f"forward and backward: {took[0]:.2f} s for {len(played)} rows of {args.length} tokens, half "
          f"of them trained, {args.batch_tokens} a micro-batch")


def episode(args, vocabulary, split):
    """One of `--turns` turns, in one row, or in one a turn of which only its response is trained."""
    draw, rows = random.Random(0), [rollout.Row()]
    for turn in range(args.turns):
        if split and turn:
            rows.append(rollout.Row())
            rows[-1].say(rows[-2].ids)
        rows[-1].say(draw.choices(range(vocabulary), k=args.said * (1 if turn else 4)))
        respond(rows[-1], turn, args.response, vocabulary, draw)
    return rollout.Episode(None, 0, rows=rows, turns=[TURN] * args.turns)


def measure_rows(args):
    """Print the seconds over both, and their ratio."""
    run, ranks, size, took = arguments(args), Ranks(), SIZES[args.student], []
    student = Student(make_model(size, torch.float32), Vocabulary(size.known, []), run, ranks)
    teacher = make_model(SIZES[args.teacher], load.play_dtype(run.precision))
    student.learns()
    for split in (False, True):
        played = episode(args, size.known, split)
        step = partial(tcod.backward, student, teacher, [played], run, ranks)
        step()  # warms up
        took.append(seconds(step))
        print(f"{len(played.rows)} rows, {sum(len(row.ids) for row in played.rows)} tokens: {took[-1]:.2f} s",
              flush=True)
    print(f"a row a turn takes {took[1] / took[0]:.1f} times as long")


MEASURES = {
    "talk": measure_talk, "token": measure_token, "judge": measure_judge, "step": measure_step,
    "rows": measure_rows}


def main(args):
    check_knobs(args)
    asked = args.what.split(",")
    if not set(asked) <= set(MEASURES):
        raise UserError(f"--what wants some of {', '.join(MEASURES)}, by commas, not {args.what!r}")
    torch.set_num_threads(1)    # two that share a machine with others wait for one another
    print(f"{args.student}, {torch.cuda.get_device_name() if GPU else 'a CPU'}, {DTYPE}, torch "
          f"{torch.__version__}", flush=True)
    for name in asked:
        MEASURES[name](args)


if __name__ == "__main__":
    command(main, Args)
