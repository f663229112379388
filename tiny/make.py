"""The embedded default: a tiny teacher and a weak student, trained from scratch on scripted play and saved as
ordinary Hugging Face checkpoints with a tokenizer of their own, so that the first run of tcod.py starts at
once on any machine.

    export OMP_NUM_THREADS=1
    python -m tiny.make                    # assets/alfworld/student and assets/alfworld/teacher
    python -m tiny.make --make teacher-narrow
    python -m tiny.make --world webshop --games 1000 --student-steps 340 --teacher-steps 550 --refresh 140
    python -m tiny.make --world scienceworld --student-steps 300 --teacher-steps 450 --refresh 0
    python eval.py --model tiny-student --take-over 0,3,6,10

The student imitates a poor player: it has learned to copy names out of its context, and little else. The
teacher imitates an expert, also in states that others have led it into: play with random, invalid and
misguided actions, and play that the student or the teacher itself began; there the expert says what it would
do. The narrow teacher has seen the expert's own play only: what becomes of distillation where a student leads
its teacher astray can be watched with it. Left out on purpose: pre-training on text and reinforcement
learning; both would need more than minutes.

A world is one class with a few methods (see tiny/__init__.py). T = token, B = row of a batch, V = vocabulary.
"""

import random
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import curriculum
import envs
import load
import rollout
from chat import prompts
from chat.template import Chat
from harness.cli import UserError, check_knobs, command, knob
from harness.ranks import device
from model import hidden_states
from tiny.alfworld import ALFWorldPlay, DataSetPlay
from tiny.scienceworld import ScienceWorldPlay
from tiny.webshop import WebShopPlay

UNKNOWN, END, ACT = "<unk>", "<|end|>", "<|act|>"
TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|act|>' + m['content'] + '<|end|>' if m['role'] == 'assistant' else m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|act|>' }}{% endif %}")
PAIRS = {
    "alfworld": ALFWorldPlay, "alfworld-full": DataSetPlay, "webshop": WebShopPlay,
    "scienceworld": ScienceWorldPlay}
CONTEXT = 2048        # positions of the models
BARE = prompts.load("bare")  # what they are asked: the response is the action
AT_ONCE = 64          # games that are sampled at once
PLAYED_AGAIN = 1024   # games of a refresh, at most
TAKE_OVER = (0, 2, 4, 6, 8, 10, 12)  # turns that the student begins with in a refresh, or all of them
UNFINISHED = 0.1      # weight of what completes an action that is admissible, but not the expert's


@dataclass
class Args:
    """Make the tiny checkpoints of a world."""
    world: str = knob(
        "alfworld", "which pair: alfworld, alfworld-full (the data set's games), webshop or scienceworld")
    out: str = knob("assets", "folder to write WORLD/teacher and WORLD/student into", path=True)
    make: str = knob(
        "student,teacher",
        "which checkpoints, by commas: student, teacher, teacher-narrow (from the expert's own play only)")
    games: int = knob(1500, "training games", least=1)
    student_steps: int = knob(500, "optimizer steps of the student", least=1)
    teacher_steps: int = knob(900, "optimizer steps of the teacher", least=1)
    student_plays: int = knob(2, "times that each game is played for the student's rows", least=1)
    teacher_plays: int = knob(4, "times that each game is played for the teacher's rows", least=1)
    mixed: float = knob(
        1.0, "share of the teacher's rows that are of mixed play, the others are of the expert's own: how "
        "broad its support is", least=0.0)
    start: str = knob("", "checkpoint to begin from, in place of random weights", path=True)
    save_every: int = knob(
        0, "steps after which the model as it is then is saved as well, as NAME-STEP; 0: never", least=0)
    refresh: int = knob(
        150,
        "steps of the teacher after which student and teacher play again and the expert labels it; 0: never",
        least=0)
    batch: int = knob(32, "rows per step", least=1)
    jobs: int = knob(
        0, "processes that play what is learned from; 0: this one does. The rows are the same", least=0)
    width: int = knob(96, "width of the models", least=8)
    layers: int = knob(3, "layers of the models", least=1)
    muon_lr: float = knob(0.02, "learning rate of the matrices (Muon)", above=0.0)
    lr: float = knob(3e-3, "learning rate of the rest (AdamW)", above=0.0)
    seed: int = knob(0, "seed of everything drawn")


# ---- players: choose(turn, expert, info) -> action

def expert_player(world, rng):
    """The expert alone."""
    def choose(turn, expert, info):
        return expert.act()
    return choose


def poor_player(world, rng):
    """The expert now and then, else any admissible action: what the student imitates."""
    def choose(turn, expert, info):
        if rng.random() < world.skill:
            return expert.act()
        return rng.choice(info["admissible"])
    return choose


def mixed_player(world, rng):
    """Draws the player of one episode: the expert (a quarter of them); the expert with slips (a quarter); or
    someone clumsy whom the expert replaces."""
    kind = rng.random()
    slips = rng.choice([0.15, 0.3, 0.5])
    invalid = rng.choice([0, 0.1, 0.3, 0.6])
    until, skill = world.turns, 1 - slips
    if kind >= 0.5:
        until = rng.randint(1, 12)
        skill = rng.choice([0, 0.3, 0.5])

    def choose(turn, expert, info):
        if kind < 0.25 or turn >= until or rng.random() < skill:
            return expert.act()
        if rng.random() < invalid:
            return world.blunder(rng, expert)
        handy = [action for action in info["admissible"] if action.split()[0] in world.verbs]
        if handy and rng.random() < 0.5:
            return rng.choice(handy)
        return rng.choice(info["admissible"])
    return choose


def teaching_player(world, rng, mixed):
    """Whom a teacher watches in one episode: with probability `mixed` someone of mixed play, else the
    expert."""
    player = mixed_player if rng.random() < mixed else expert_player
    return player(world, rng)


def recorded(actions):
    """Repeats an episode that was played before."""
    def choose(turn, expert, info):
        return actions[turn] or ""
    return choose


def turns(world, env, task, choose):
    """Play one episode; yields per turn the prompt, the actions admissible, what the expert would do, what
    was done."""
    obs, info = env.reset(options={"task": task})
    expert = world.expert(env, obs)
    for turn in range(world.turns):
        admissible = info["admissible"] = world.actions(info)
        action = choose(turn, expert, info)
        prompt = BARE.write(env, obs, info, turn + 1)
        yield prompt, admissible, expert.act(), action
        obs, _, ended, _, info = env.step(action)
        if ended:
            return
        expert.observe(action, obs)


# ---- rows

@dataclass
class Row:
    """Parallel lists over the tokens of an episode: the id; the token to predict behind it, and that
    prediction's weight."""
    ids: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)

    def say(self, ids):
        """Append what is only read."""
        self.ids += ids
        self.target += [0] * len(ids)
        self.weight += [0.0] * len(ids)

    def act(self, said, label, rest):
        """Append a response. It is predicted from one place earlier: where it agrees with the label, and at
        the first token where it does not, the label's token with weight 1; behind that the response's own,
        with weight `rest`.

        said [5, 6, 9], label [5, 7, 9] -> targets 5, 7 with weight 1, then 9 with weight `rest`
        """
        start = len(self.ids) - 1
        self.say(said)
        same = True
        for j, token in enumerate(said):
            follow = same and j < len(label)
            self.target[start + j] = label[j] if follow else token
            self.weight[start + j] = 1.0 if follow else rest
            same = follow and label[j] == token


def play(world, chat, env, task, choose, imitate=False):
    """One episode by a player, as a row: labelled by the expert, or by the player itself when it is to be
    imitated.

    The teacher is also asked in the middle of what a student says, when that began otherwise than the expert
    would: from there on it learns, with a small weight, to finish any admissible action.
    """
    row = Row()
    for prompt, admissible, label, action in turns(world, env, task, choose):
        opens = not row.ids
        row.say(chat.encode_observation(prompt, opens))
        said = chat.encode_response(action)
        wanted = chat.encode_response(action if imitate else label)
        row.act(said, wanted, UNFINISHED if action in admissible else 0.0)
    return row


class Plays(Dataset):
    """An episode per task, as rows: a function of its number alone, whichever process plays it."""

    def __init__(self, world, chat, tasks, player, seed, imitate=False):
        """player(world, rng): the player of one episode."""
        self.world, self.chat, self.tasks = world, chat, tasks
        self.player, self.seed, self.imitate = player, seed, imitate
        self.env = None  # made where it is played: an engine does not move to another process

    def __len__(self):
        return len(self.tasks)

    def __getitem__(self, number):
        if self.env is None:
            self.env = make_env(self.world)
        choose = self.player(self.world, random.Random(f"{self.seed} {number}"))
        return play(self.world, self.chat, self.env, self.tasks[number], choose, self.imitate)


def make_env(world):
    """An environment with the games of this pair."""
    return envs.make_env(world.env, data=world.defaults.get("data", ""))


def scripted_play(args, world, chat, tasks, player, label, imitate=False):
    """A row per task, under a bar with that label."""
    plays = Plays(world, chat, tasks, player, f"{label} {args.seed}", imitate)
    played = DataLoader(plays, batch_size=None, num_workers=args.jobs)
    return list(tqdm(played, desc=label, mininterval=10))


def sampled_play(world, chat, games, tasks, student, teacher, rng):
    """Rows of episodes that the student began and the teacher went on with, both sampled; every turn labelled
    by the expert."""
    limits = rollout.Limits(16, CONTEXT, 1.0)
    actors = {"student": student, "teacher": teacher}
    rows = []
    for batch in pieces(tasks, len(games)):
        begun = rng.choice([*TAKE_OVER, world.turns])
        rules = curriculum.Rules(curriculum.TakeOver(), begun, world.turns)
        seed = (rng.randrange(2 ** 31),)
        episodes = rollout.play(actors, chat, games, batch, rules, limits, seed=seed)
        for episode in episodes:
            again = recorded([turn.action for turn in episode.turns])
            rows.append(play(world, chat, games[0], episode.task, again))
    return rows


# ---- tokenizer and models

def make_tokenizer(world, env, tasks, rng):
    """A word-level tokenizer of what a poor player reads and may say."""
    steps = [normalizers.Lowercase()]
    for pattern, text in world.phrases:
        steps.append(normalizers.Replace(Regex(pattern), text))
    normalizer = normalizers.Sequence(steps)
    splitter = pre_tokenizers.Split(Regex(world.tokens), behavior="removed", invert=True)
    words = set(world.words())
    for text in texts(world, env, tasks, rng):
        plain = normalizer.normalize_str(text)
        words.update(word for word, _ in splitter.pre_tokenize_str(plain))
    vocabulary = [UNKNOWN, END, ACT, *sorted(words)]
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    if world.decoder:
        tokenizer.decoder = world.decoder
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, eos_token=END, pad_token=END,
        additional_special_tokens=[ACT], chat_template=TEMPLATE, prompt_style="bare",
        clean_up_tokenization_spaces=False)


def texts(world, env, tasks, rng):
    """What a poor player reads and may say, turn by turn."""
    for task in tqdm(tasks[:world.heard], desc="words", mininterval=10):
        player = poor_player(world, rng)
        for prompt, admissible, _, _ in turns(world, env, task, player):
            yield prompt
            yield from admissible


def make_model(args, tokenizer):
    """The checkpoint to start from, else a Qwen3 of about 0.3 M parameters. Keys start equal to queries:
    attention begins by looking for the token it stands on."""
    if args.start:
        load.same_vocabulary(tokenizer, load.load_tokenizer(args.start))
        return load.load_model(args.start, device())
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=args.width, num_hidden_layers=args.layers,
        num_attention_heads=4, num_key_value_heads=4, head_dim=args.width // 4,
        intermediate_size=args.width * 8 // 3, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    model = Qwen3ForCausalLM(config).to(device())
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.k_proj.weight.data.copy_(attention.q_proj.weight.data)
    return model


# ---- training

def renamer(world, tokenizer, seed):
    """A function from B rows to a table of new ids (B, V): names that are alike are exchanged at random, for
    each row anew, in what the game says, what was done and what should have been done. Where a world has few
    games this leaves nothing to learn by heart: a name can only be read off the page.

    world.alike: pairs of a word and groups of names; the first whose word is in the row holds for it.
    """
    ids, rng = tokenizer.get_vocab(), np.random.default_rng(seed)
    nobody = np.arange(len(ids))  # every id is a group of its own
    alike = []
    for word, names in world.alike:
        group = nobody.copy()
        for number, members in enumerate(names):
            group[[ids[name] for name in members if name in ids]] = len(ids) + number
        alike.append((ids[word], group))

    def group_of(row):
        return next((group for word, group in alike if word in row.ids), nobody)

    def table(rows):
        group = np.stack([group_of(row) for row in rows])  # (B, V)
        old = group.argsort(1, kind="stable")  # the ids, group by group
        drawn = (group + rng.random(group.shape)).argsort(1)  # the same, in every group at random
        new = np.empty_like(old)
        np.put_along_axis(new, old, drawn, 1)
        return torch.from_numpy(new)
    return table


def batches(rows, size, rng):
    """Endless batches of rows of about equal length; `rows` may grow from one pass to the next."""
    while True:
        order = rng.sample(rows, len(rows))
        for part in pieces(order, 32 * size):
            near = sorted(part, key=lambda row: len(row.ids))
            groups = pieces(near, size)
            yield from rng.sample(groups, len(groups))


def pieces(items, size):
    """A list cut into lists of `size`; the last may be shorter."""
    return [items[i:i + size] for i in range(0, len(items), size)]


def collate(rows, rename=None):
    """B rows -> ids, targets and weights, (B, T) each with zeros behind their ends, under the names that
    `rename` draws."""
    ids, target, weight = (
        pad_sequence([torch.tensor(getattr(row, part)) for row in rows], batch_first=True)
        for part in ("ids", "target", "weight"))
    if rename:
        new = rename(rows)  # (B, V)
        ids, target = new.gather(1, ids), new.gather(1, target)
    return ids, target, weight


def cross_entropy(model, batch):
    """Weighted mean over the labelled tokens of a batch from `collate`; also the share of them that the model
    would have chosen."""
    ids, target, weight = [part.to(model.device) for part in batch]
    labelled = weight > 0
    logits = model.lm_head(hidden_states(model, ids)[labelled])  # (labelled tokens, V)
    target, weight = target[labelled], weight[labelled]
    losses = F.cross_entropy(logits, target, reduction="none")
    loss = (losses * weight).sum() / weight.sum()
    right = (logits.argmax(-1) == target)[weight == 1]
    return loss, right.float().mean()


def orthogonal(gradient):
    """The nearest matrix whose singular values are about 1, by Newton–Schulz: (rows, columns), in fp32.

    torch.optim.Muon computes it in bf16, which a CPU without such instructions does 20 times slower.
    """
    wide = gradient.T if gradient.shape[0] > gradient.shape[1] else gradient
    near = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = near @ near.T
        gram = torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        near = torch.addmm(near, gram, near, beta=3.4445)
    return near.T if wide is not gradient else near


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal, as torch.optim.Muon takes them."""

    def __init__(self, matrices, lr):
        super().__init__(matrices, dict(lr=lr, momentum=0.95))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                mean = state.setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                direction = orthogonal(matrix.grad.lerp(mean, group["momentum"]))
                tall = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.add_(direction, alpha=-group["lr"] * tall)


def make_optimizers(model, args, steps):
    """Muon for the matrices, AdamW for the embedding and the vectors; and a schedule for each: warm-up, then
    constant, then down to 0 over 40 % of the steps."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            matrices.append(parameter)
        else:
            others.append(parameter)
    optimizers = [
        Muon(matrices, lr=args.muon_lr),
        torch.optim.AdamW(others, lr=args.lr, weight_decay=0.0)]

    def rate(n):
        left = 1 - n / steps
        return min(1, (n + 1) / 50, 2.5 * left)
    return optimizers, [LambdaLR(optimizer, rate) for optimizer in optimizers]


def update(model, batch, optimizers, schedules):
    """One step on a batch; returns what `cross_entropy` does."""
    loss, right = cross_entropy(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for part in (*optimizers, *schedules):
        part.step()
    for optimizer in optimizers:
        optimizer.zero_grad()
    return loss, right


def fit(model, rows, steps, args, rng, label, rename=None, more=None, save=None):
    """Train in place on rows, renamed by `rename`; `more()` returns further rows every args.refresh steps,
    `save(model, step)` keeps what there is every args.save_every."""
    optimizers, schedules = make_optimizers(model, args, steps)
    stream = batches(rows, args.batch, rng)
    bar = tqdm(range(steps), desc=label, mininterval=10)
    for step in bar:
        if more and step and step % args.refresh == 0:
            rows += more()
            stream = batches(rows, args.batch, rng)
        batch = collate(next(stream), rename)
        loss, right = update(model, batch, optimizers, schedules)
        bar.set_postfix(
            loss=f"{loss:.3f}", right=f"{right:.1%}", rows=len(rows), refresh=False)
        if args.save_every and (step + 1) % args.save_every == 0:
            save(model, step + 1)
    return model.eval()


# ---- the three checkpoints

def folder(args, name):
    """Where the checkpoint of that name lies."""
    pair = PAIRS[args.world]
    return str(Path(args.out) / pair.env / f"{pair.prefix}{name}")


def keep(model, step, args, tokenizer, name):
    """Save a model with its own defaults; step: as it is after so many, 0 as it is in the end."""
    own = PAIRS[args.world].defaults
    load.save(model, tokenizer, folder(args, f"{name}-{step}" if step else name), own)


def make_student(args, world, chat, games, tasks, rng, save):
    """A model that imitates the poor player."""
    model = make_model(args, chat.tokenizer)

    rows = scripted_play(
        args, world, chat, tasks * args.student_plays, poor_player, "poor play", imitate=True)
    rename = renamer(world, chat.tokenizer, args.seed)
    return fit(model, rows, args.student_steps, args, rng, "student", rename, save=save)


def make_teacher(args, world, chat, games, tasks, rng, save):
    """A model that does what the expert would, in the states of mixed play (`args.mixed` of the rows) and of
    the student's and its own play; of its own alone where there is no student yet."""
    student = model = make_model(args, chat.tokenizer)
    if args.refresh and Path(folder(args, "student")).is_dir():
        student = load.load_model(folder(args, "student"), device())

    def more():
        chosen = rng.sample(tasks, min(PLAYED_AGAIN, len(tasks)))
        return sampled_play(world, chat, games, chosen, student, model, rng)
    player = partial(teaching_player, mixed=args.mixed)
    rows = scripted_play(args, world, chat, tasks * args.teacher_plays, player, "play to learn from")
    rename = renamer(world, chat.tokenizer, args.seed)
    again = more if args.refresh else None
    return fit(
        model, rows, args.teacher_steps, args, rng, "teacher", rename, again, save)


def make_narrow_teacher(args, *rest):
    """A model that imitates the expert in the expert's own states, each game played once."""
    return make_teacher(replace(args, mixed=0.0, refresh=0, teacher_plays=1), *rest)


MAKERS = {"student": make_student, "teacher": make_teacher, "teacher-narrow": make_narrow_teacher}


def main(args):
    """Make what is asked for; raises UserError for what nobody can make."""
    check_knobs(args)
    names = args.make.split(",")
    if not set(names) <= set(MAKERS):
        raise UserError(f"unknown --make {args.make!r}: {', '.join(MAKERS)}, by commas")
    if args.mixed > 1:
        raise UserError(f"--mixed is a share, at most 1, not {args.mixed}")
    if args.world not in PAIRS:
        raise UserError(
            f"there is no tiny pair for --world {args.world!r}; there is one for {', '.join(PAIRS)}")
    world = PAIRS[args.world]()
    tasks = world.tasks(args.games)
    games = [make_env(world) for _ in range(AT_ONCE)]
    rng = random.Random(args.seed)
    tokenizer = make_tokenizer(world, games[0], tasks, rng)
    chat = Chat(tokenizer)
    for name in names:
        torch.manual_seed(args.seed)
        rng = random.Random(f"{name} {args.seed}")
        save = partial(keep, args=args, tokenizer=tokenizer, name=name)
        save(MAKERS[name](args, world, chat, games, tasks, rng, save), 0)


if __name__ == "__main__":
    command(main, Args)
