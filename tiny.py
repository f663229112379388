"""The embedded default: a tiny teacher and a weak student, trained from scratch on scripted play and saved as ordinary
Hugging Face checkpoints with a tokenizer of their own, so that the first run of tcod.py starts at once on any machine.

    OMP_NUM_THREADS=1 python tiny.py              # assets/alfworld/student and assets/alfworld/teacher
    OMP_NUM_THREADS=1 python tiny.py --narrow     # assets/alfworld/teacher-narrow, beside a student made before

The student imitates a poor player: it has learned to copy names out of its context, and little else. The teacher imitates
an expert, also in states that others have led it into: play with random, invalid and misguided actions, and play that the
student or the teacher itself began; there the expert says what it would do. The narrow teacher has seen the expert's own
play only, so that distillation can be watched to fail where the student leads it astray. Left out on purpose: pre-training
on text, reinforcement learning; both would need more than minutes.

A world is one class with a few methods (see ALFWorldPlay). T = token, B = row of a batch, V = vocabulary.
"""

import os
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import envs
import model as lm
import rollout
from eval import chat_of, command, evaluate, knob, summarise, table, take_over

UNKNOWN, END, ACT = "<unk>", "<|end|>", "<|act|>"
TEMPLATE = ("{% for m in messages %}{{ '<|act|>' + m['content'] + '<|end|>' if m['role'] == 'assistant' else m['content'] }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|act|>' }}{% endif %}")


@dataclass
class Args:
    """Make the tiny checkpoints of a world."""
    world: str = knob("alfworld", "which world: alfworld")
    out: str = knob("assets", "folder to write WORLD/teacher and WORLD/student into")
    narrow: bool = knob(False, "make the teacher of narrow support instead, from the expert's own play only")
    games: int = knob(3000, "training games")
    student_steps: int = knob(600, "optimizer steps of the student")
    teacher_steps: int = knob(1500, "optimizer steps of the teacher")
    rounds: int = knob(3, "times that student and teacher play and the expert says what it would have done")
    batch: int = knob(32, "rows per step")
    width: int = knob(96, "width of the models")
    layers: int = knob(3, "layers of the models")
    muon_lr: float = knob(0.02, "learning rate of the matrices (Muon)")
    lr: float = knob(3e-3, "learning rate of the rest (AdamW)")
    seed: int = knob(0, "seed of everything drawn")


# ---- a world: its games, its expert, its words

class ALFWorldPlay:
    """What tiny.py needs of ALFWorld. Games are those of level "small"."""
    turns = 20
    skill = 0.25                    # share of the poor player's turns that are the expert's
    verbs = ("take", "move", "open", "close", "heat", "cool", "clean")
    # Text that says nothing is dropped, so that what belongs together is adjacent: about 13 tokens a turn.
    phrases = ((r"-= welcome to textworld, alfred! =-", " "), (r"available commands:[\s\S]*?(?=task:|$)", "help "),
               (r"your task is to:[^\n]*", " "), (r"the middle of (a|the) room", "middle"),
               (r"you are in middle\. looking quickly around you, you see", "see"),
               (r"you arrive at [a-z]+ \d+\.", "arrive "), (r"(on|in) (the [a-z]+ \d+|it), you see", "see"),
               (r"the [a-z]+ \d+ is open\. ", " "),
               (r"\b(a|an|the|and|you|your|is|are|it|some|put|in|on|at|of|them|up|using|this|normal|there|s|special|about|next)\b", " "))
    tokens = r"go to|[a-z]+ \d+|[a-z]+"     # a thing with its number is one token, and so is a verb

    def tasks(self, games):
        """The first `games` games of the train split's seeds."""
        from worlds.alfworld_games import LEVELS, VERSION, write_splits
        folder = Path(os.environ.get("TCOD_CACHE") or "~/.cache/tcod").expanduser() / f"alfworld-tiny-{games}-{VERSION}"
        if not folder.exists():
            write_splits(folder.with_suffix(".part"), LEVELS["small"], {"train": games})
            folder.with_suffix(".part").rename(folder)
        return envs.make_tasks("alfworld", "train", str(folder))

    def expert(self, opening):
        """A new expert for a game that opens with this observation: act() -> action, observe(action, observation)."""
        from worlds.alfworld_games import MAY_LIE, TextExpert, class_of
        fits = {(thing.lower(), place.lower()) for place, things in MAY_LIE.items() for thing in things}

        class Expert(TextExpert):
            """Puts a wrong object down at once where such things may lie: a rule without memory, easier to imitate."""

            def _put_back(self):
                if self.at and (class_of(self.carried), class_of(self.at)) in fits:
                    return self._into(self.at, "move {} to {}", self.carried)
                return self._walk()

        return Expert(opening, revisit=True)

    def blunder(self, rng, expert, info):
        """An action that is probably invalid: things and places of the game put together without thought."""
        things = sorted(set().union(*expert.seen.values())) or [f"{expert.goal.thing} 1"]
        thing, place = rng.choice([*things, expert.carried or things[0]]), rng.choice([*expert.places, expert.at or expert.places[0]])
        return rng.choice(["take {0} from {1}", "move {0} to {1}", "open {1}", "go to {1}", "heat {0} with {1}", "cool {0} with {1}",
                           "clean {0} with {1}"]).format(thing, place)


WORLDS = {"alfworld": ALFWorldPlay}


# ---- players: choose(rng, turn, expert, info) -> action

def expert_player(rng, turn, expert, info):
    return expert.act()


def poor_player(world):
    """The expert now and then, else any admissible action: what the student imitates."""
    def choose(rng, turn, expert, info):
        return expert.act() if rng.random() < world.skill else rng.choice(admissible(info))
    return choose


def mixed_player(world, rng):
    """Draws the player of one episode: the expert; the expert with slips; or someone clumsy whom the expert replaces."""
    kind, slips, invalid = rng.random(), rng.choice([0.15, 0.3, 0.5]), rng.choice([0, 0.1, 0.3, 0.6])
    start, skill = (0, 1 - slips) if kind < 0.5 else (rng.randint(1, 12), rng.choice([0, 0.3, 0.5]))

    def choose(rng, turn, expert, info):
        if kind < 0.25 or (kind > 0.5 and turn >= start) or rng.random() < skill:
            return expert.act()
        if rng.random() < invalid:
            return world.blunder(rng, expert, info)
        handy = [action for action in admissible(info) if action.split()[0] in world.verbs]
        return rng.choice(handy if handy and rng.random() < 0.5 else admissible(info))
    return choose


def recorded(actions):
    """Repeats an episode that was played before."""
    return lambda rng, turn, expert, info: actions[turn] or "" if turn < len(actions) else expert.act()


def admissible(info):
    return [action for action in info["admissible"] if action != "help"]


# ---- rows

@dataclass
class Row:
    """Parallel lists over the tokens of an episode: the id; the token to predict behind it, and that prediction's weight."""
    ids: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)

    def say(self, ids):
        self.ids += ids
        self.target += [0] * len(ids)
        self.weight += [0.0] * len(ids)

    def act(self, said, label, rest):
        """Append a response. It is predicted from one place earlier: where it agrees with the label, and at the first token where
        it does not, the label's token with weight 1; behind that the response's own, with weight `rest`.

        said [5, 6, 9], label [5, 7, 9] -> targets 5, 7 with weight 1, then 9 with weight `rest`
        """
        at, same = len(self.ids) - 1, True
        self.say(said)
        for j, token in enumerate(said):
            use = same and j < len(label)
            self.target[at + j], self.weight[at + j] = (label[j], 1.0) if use else (token, rest)
            same = use and label[j] == token


def play(world, chat, env, task, choose, rng, imitate=False):
    """One episode by a player, as a row: labelled by the expert, or by the player itself when it is to be imitated.

    The teacher is also asked in the middle of what a student says, when that began otherwise than the expert would: from there
    on it learns, with a small weight, to finish any admissible action.
    """
    obs, info = env.reset(options={"task": task})
    expert, row = world.expert(obs), Row()
    for turn in range(world.turns):
        row.say(chat.observation(envs.prompt(env, obs, info, "bare", turn == 0), turn == 0))
        label, action = expert.act(), choose(rng, turn, expert, info)
        said = chat.response(action)
        row.act(said, said if imitate else chat.response(label), 0.1 * (action in info["admissible"]))
        obs, _, won, _, info = env.step(action)
        expert.observe(action, obs)
        if won:
            break
    return row, info["won"]


def sampled_play(world, chat, games, tasks, student, teacher, rng):
    """Rows of episodes that the student began and the teacher went on with, both sampled; every turn labelled by the expert."""
    limits, rows = rollout.Limits(16, 2048, 1.0, chat.style), []
    for i in range(0, len(tasks), len(games)):
        start = rng.choice([0, 2, 4, 6, 8, 10, 12, world.turns])
        batch = tasks[i:i + len(games)]
        episodes = rollout.play(lambda turn: student if turn < start else teacher, chat, games, batch, [(0, world.turns)] * len(batch),
                                limits, seed=(rng.randrange(2 ** 31),), first_index=i)
        rows += [play(world, chat, games[0], e.task, recorded([turn["action"] for turn in e.turns]), rng)[0] for e in episodes]
    return rows


# ---- tokenizer and models

def make_tokenizer(world, texts):
    """A word-level tokenizer of these texts. Decoding a response gives its words with one space between them."""
    normalizer = normalizers.Sequence([normalizers.Lowercase()] + [normalizers.Replace(Regex(p), to) for p, to in world.phrases])
    splitter = pre_tokenizers.Split(Regex(world.tokens), behavior="removed", invert=True)
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([UNKNOWN, END, ACT, *sorted(words)])}, UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, eos_token=END, pad_token=END, prompt_style="bare",
                                   additional_special_tokens=[ACT], chat_template=TEMPLATE, clean_up_tokenization_spaces=False)


def game_texts(world, env, tasks, rng):
    """Everything that a poor player reads and might say."""
    texts = []
    for task in tasks:
        obs, info = env.reset(options={"task": task})
        expert = world.expert(obs)
        for turn in range(world.turns):
            texts += [envs.prompt(env, obs, info, "bare", turn == 0), *info["admissible"]]
            action = poor_player(world)(rng, turn, expert, info)
            obs, _, won, _, info = env.step(action)
            expert.observe(action, obs)
            if won:
                break
    return texts


def make_model(args, tokenizer):
    """A Qwen3 of about 0.3 M parameters. Keys start equal to queries: attention begins by looking for the token it stands on."""
    config = Qwen3Config(vocab_size=len(tokenizer), hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=4,
                         num_key_value_heads=4, head_dim=args.width // 4, intermediate_size=args.width * 8 // 3, max_position_embeddings=2048,
                         tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    model = Qwen3ForCausalLM(config)
    for layer in model.model.layers:
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
    return model


# ---- training

def batches(rows, size, rng):
    """Endless batches of rows of about equal length; `rows` may grow from one pass to the next."""
    while True:
        order = rng.sample(range(len(rows)), len(rows))
        for i in range(0, len(order), 32 * size):
            near = sorted(order[i:i + 32 * size], key=lambda j: len(rows[j].ids))
            groups = [near[j:j + size] for j in range(0, len(near), size)]
            yield from ([rows[j] for j in group] for group in rng.sample(groups, len(groups)))


def cross_entropy(model, rows):
    """Weighted mean over the labelled tokens of B rows; also the share of them that the model would have chosen."""
    width = max(len(row.ids) for row in rows)
    ids, target, weight = (torch.tensor([getattr(row, name) + [0] * (width - len(row.ids)) for row in rows])  # (B, T) each
                           for name in ("ids", "target", "weight"))
    chosen = weight > 0
    logits = model.lm_head(lm.hidden_states(model, ids)[chosen])  # (labelled tokens, V)
    target, weight = target[chosen], weight[chosen]
    loss = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
    return loss, (logits.argmax(-1) == target)[weight == 1].float().mean()


def fit(model, rows, steps, args, rng, label, more=None, every=0):
    """Train in place; `more()` returns further rows every so many steps. Warm-up, then constant, then down to 0 over 40 % of the steps."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.0), torch.optim.AdamW(others, lr=args.lr, weight_decay=0.0)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda n: min(1, (n + 1) / 50, 2.5 * (1 - n / steps))) for o in optimizers]
    stream, bar = batches(rows, args.batch, rng), tqdm(range(steps), desc=label, mininterval=10)
    for step in bar:
        if more and step and step % every == 0:
            rows += more()
            stream = batches(rows, args.batch, rng)
        loss, right = cross_entropy(model, next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss:.3f}", right=f"{right:.1%}", rows=len(rows), refresh=False)


# ---- the three checkpoints

def scripted(world, chat, env, tasks, player, rng, label, imitate=False):
    """A row per task, played by player()."""
    return [play(world, chat, env, task, player(), rng, imitate)[0] for task in tqdm(tasks, desc=label, mininterval=10)]


def main(args):
    torch.manual_seed(args.seed)
    rng, world, out = random.Random(args.seed), WORLDS[args.world](), Path(args.out) / args.world
    tasks, games = world.tasks(args.games), [envs.make_env(args.world) for _ in range(64)]
    tokenizer = make_tokenizer(world, game_texts(world, games[0], tasks[:500], rng))
    chat = rollout.Chat(tokenizer)
    if args.narrow:
        rows = scripted(world, chat, games[0], tasks, lambda: expert_player, rng, "expert play")
        teacher, student = make_model(args, tokenizer), lm.load(str(out / "student"))[0]
        fit(teacher, rows, args.teacher_steps, args, rng, "narrow teacher")
        lm.save(teacher, tokenizer, str(out / "teacher-narrow"))
    else:
        rows = scripted(world, chat, games[0], tasks * 2, lambda: poor_player(world), rng, "poor play", imitate=True)
        student, teacher = make_model(args, tokenizer), make_model(args, tokenizer)
        fit(student, rows, args.student_steps, args, rng, "student")
        lm.save(student, tokenizer, str(out / "student"))
        rows = scripted(world, chat, games[0], tasks * 4, lambda: mixed_player(world, rng), rng, "mixed play")
        fit(teacher, rows, args.teacher_steps, args, rng, "teacher", every=args.teacher_steps // (2 * args.rounds),
            more=lambda: sampled_play(world, chat, games, rng.sample(tasks, min(1024, len(tasks))), student, teacher, rng))
        lm.save(teacher, tokenizer, str(out / "teacher"))
    report(args, chat, games, {"student": student, "teacher": teacher})


def report(args, chat, games, trained):
    """Success of both models on the held-out splits, and the take-over test."""
    kind, summaries, turns = envs.game_type(args.world), {}, games[0].horizon
    held_out = {split: envs.make_tasks(args.world, split) for split in kind.eval_splits}
    for name, model in trained.items():
        for split, temperature in [(split, t) for split in kind.eval_splits for t in (0.4, 1.0)]:
            limits = rollout.Limits(16, 2048, temperature, chat.style)
            outcomes = evaluate(model.eval(), chat, games, held_out[split], turns, limits, seed=args.seed)
            summaries[f"{name}, {split}, temperature {temperature}"] = summarise(outcomes)
    print(table(summaries))
    limits = rollout.Limits(16, 2048, 1.0, chat.style)
    for n in (0, 3, 6, 10):
        result = take_over(trained["student"], trained["teacher"], chat, games, held_out[kind.eval_splits[0]], turns, limits, n, args.seed)
        print(f"after {n:2} student turns the teacher wins {result['success']:.1%}, its invalid actions {result['teacher_invalid']:.1%}")


if __name__ == "__main__":
    command(main, Args)
