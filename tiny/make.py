"""The embedded default: a tiny teacher and a weak student, trained from scratch on scripted play and saved as ordinary
Hugging Face checkpoints with a tokenizer of their own, so that the first run of tcod.py starts at once on any machine.

    OMP_NUM_THREADS=1 python tiny.py              # assets/alfworld/student and assets/alfworld/teacher
    OMP_NUM_THREADS=1 python tiny.py --make teacher-narrow
    OMP_NUM_THREADS=1 python tiny.py --world webshop --games 1000 --student_steps 250 --teacher_steps 550 --refresh 140
    OMP_NUM_THREADS=1 python tiny.py --world scienceworld --student_steps 300 --teacher_steps 450 --refresh 0
    python eval.py --model tiny-student --take-over 0,3,6,10

The student imitates a poor player: it has learned to copy names out of its context, and little else. The teacher imitates
an expert, also in states that others have led it into: play with random, invalid and misguided actions, and play that the
student or the teacher itself began; there the expert says what it would do. The narrow teacher has seen the expert's own
play only: what becomes of distillation where a student leads its teacher astray can be watched with it. Left out on
purpose: pre-training on text and reinforcement learning; both would need more than minutes.

A world is one class with a few methods (see ALFWorldPlay). T = token, B = row of a batch, V = vocabulary.
"""

import os
import random
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import envs
import model as lm
import rollout
from eval import command, knob

UNKNOWN, END, ACT = "<unk>", "<|end|>", "<|act|>"
TEMPLATE = ("{% for m in messages %}{{ '<|act|>' + m['content'] + '<|end|>' if m['role'] == 'assistant' else m['content'] }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|act|>' }}{% endif %}")


@dataclass
class Args:
    """Make the tiny checkpoints of a world."""
    world: str = knob("alfworld", "which world: alfworld, webshop or scienceworld")
    out: str = knob("assets", "folder to write WORLD/teacher and WORLD/student into")
    make: str = knob("student,teacher", "which checkpoints, by commas: student, teacher, teacher-narrow (from the expert's own play only)")
    games: int = knob(1500, "training games")
    student_steps: int = knob(500, "optimizer steps of the student")
    teacher_steps: int = knob(900, "optimizer steps of the teacher")
    refresh: int = knob(150, "steps of the teacher after which student and teacher play again and the expert labels it; 0: never")
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
    decoder = None                          # words of a response are joined by one space
    alike = ()                              # see `renamer`

    def tasks(self, games):
        """The first `games` games of the train split's seeds: floor plans of "train", none of the held-out games."""
        from worlds.alfworld_games import LEVELS, VERSION, write_splits
        cache = Path(os.environ.get("TCOD_CACHE") or "~/.cache/tcod").expanduser()
        folder = cache / f"alfworld-tiny-{games}-{VERSION}"
        if not folder.exists():     # written beside and moved into place: a killed process leaves no half set
            cache.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
            write_splits(beside, LEVELS["small"], {"train": games})
            beside.rename(folder)
        return envs.make_tasks("alfworld", "train", str(folder))

    def actions(self, info):
        """What those who act at random choose from: "help" is admissible, but not worth the words."""
        return [action for action in info["admissible"] if action != "help"]

    def expert(self, env, opening):
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

    def blunder(self, rng, expert):
        """An action that is probably invalid: things and places of the game put together without thought."""
        things = sorted(set().union(*expert.seen.values())) or [f"{expert.goal.thing} 1"]
        thing, place = rng.choice([*things, expert.carried or things[0]]), rng.choice([*expert.places, expert.at or expert.places[0]])
        return rng.choice(["take {0} from {1}", "move {0} to {1}", "open {1}", "go to {1}", "heat {0} with {1}", "cool {0} with {1}",
                           "clean {0} with {1}"]).format(thing, place)


class WebShopPlay:
    """What tiny.py needs of WebShop: the goals of the made-up catalogue's train split."""
    turns = 15
    skill = 0.5
    verbs = ()
    alike = ()
    # Every page tells the instruction, which the status line repeats. What a click may name stays, the rest goes: a product is
    # its number and its name without the brand, an option is its value, a page is one word.
    phrases = ((r"instruction: ?\n[^\n]*\n", " "), (r"you have clicked [^\n]*\n", " "), (r"page \d+ \(total results: \d+\)", " page "),
               (r"\[button\] next > \[button_\]", " next "), (r"price: \$[\s\S]*\[button\] buy now \[button_\]", " buy now "),
               (r"\[button\] < prev \[button_\](?![\s\S]*(next|buy now))", " text "),
               (r"\[button\] (search|back to search|< prev) \[button_\]| next |\[(clicked )?button_?\]", " "),
               (r", and price lower than [\d.]+ dollars|\$[\d.]+", " "),
               (r"find me an? |\b(with|and|color|size|scent|length|flavor|pack|a|from|as well|nothing)\b", " "),
               (r"\b(norva|talbin|quessa|ridlow|mavenko|pellune) ", " "))
    decoder = decoders.Sequence([decoders.WordPiece("##", cleanup=False), decoders.Fuse(), decoders.Replace("[ ", "["),
                                 decoders.Replace(" ]", "]")])

    @property
    def tokens(self):
        """A product's name is one token, and so is its number, a button or an option."""
        from worlds.webshop_catalogue import SHELVES
        things = "|".join(thing for shelf in SHELVES.values() for thing in shelf[0].split())
        return rf"click\[|search\[|\]|back to search|buy now|< prev|next >|[a-z]+ [a-z]+ ({things})\b|[a-z]+|\d+"

    def tasks(self, games):
        """The first `games` goals of the train split."""
        return envs.make_tasks("webshop", "train")[:games]

    def actions(self, info):
        """What those who act at random choose from: queries made of the instruction's words, and any click but the purchase,
        which nobody can take back."""
        words = re.findall(r"find me an? (\w+) (\w+) (\w+)|: (\w+)", info["task"])
        name, values = list(words[0][:3]), [word[3] for word in words[1:]]
        queries = [" ".join(name), name[2], f"{name[0]} {name[2]}", f"{name[2]} {values[0]}"]
        clicks = [action for action in info["admissible"] if action.startswith("click[") and action != "click[buy now]"]
        return clicks or [f"search[{query}]" for query in queries]

    def expert(self, env, opening):
        """The scripted shopper of the session that is open."""
        from worlds.webshop import Shopper

        class Expert(Shopper):
            """Searches anew whenever the page does not show the product: a rule without memory, easier to imitate."""

            def observe(self, action, observation):
                pass

            def _on_results(self, session):
                seen = session.goal.target in session.shelf()
                return super()._on_results(session) if seen else "click[back to search]"

        return Expert(env.session)

    def blunder(self, rng, expert):
        """An action that is probably invalid here."""
        value = rng.choice(list(expert.session.goal.options.values()))
        return f"click[{rng.choice([value, '< prev', 'next >', 'back to search', 'features', expert.session.goal.product['asin']])}]"


class ScienceWorldPlay:
    """What tiny.py needs of ScienceWorld: the tasks of SHORT, in an order that mixes their types."""
    turns = 20
    skill = 0.25
    verbs = ("pick", "move")
    # The task is told by the status line; the doors are the same in every game.
    phrases = ((r"your task is to[^\n]*\n", " "), (r"you also see:[\s\S]*?(?=task:)", " "), (r"no known action matches that input", "unknown"),
               (r"it's not clear how to get there from here", "unknown"), (r"first, focus on the thing\. then, move it to|focus on the animal with|"
                r"the animals are in the", " "), (r"you are in the", "here"), (r"you focused on", "focus"))
    decoder = None

    @property
    def things(self):
        """Names of what may be looked for, and of boxes: each one token, whatever its age or contents."""
        from worlds.scienceworld import ANIMALS, LIFELESS, LONG_LIVED, SHORT_LIVED
        animals = sorted({*ANIMALS, *LONG_LIVED, *SHORT_LIVED})
        return rf"(?!the )[a-z]+ (?:box|tree|plant)|{'|'.join((*animals, *LIFELESS))}"

    @property
    def alike(self):
        """Names that could stand for each other; where the task is to know an animal's age, those of about the same age."""
        from worlds.scienceworld import ANIMALS, LIFELESS, LONG_LIVED, PLANTS, SHORT_LIVED
        boxes = [f"{colour} box" for colour in ("blue", "green", "orange", "purple", "red", "yellow")]
        ages = (LONG_LIVED, SHORT_LIVED, sorted(set(ANIMALS) - set(LONG_LIVED)))
        return (("longest", ages), ("shortest", ages), ("task", (ANIMALS, LIFELESS, PLANTS, boxes)))

    @property
    def tokens(self):
        """What is not listed here says nothing, and vanishes."""
        from worlds.scienceworld import DOORS
        return (rf"\b(?:go to|look around|focus on|focus|pick up|move|to|task|here|carrying|inventory|unknown|{'|'.join(DOORS)}|{self.things}|"
                r"non-living|living|animal|plant|longest|shortest)\b")

    def tasks(self, games):
        """The first `games` of the train split's short tasks, shuffled: the list goes from type to type."""
        tasks = envs.make_tasks("scienceworld", "train", "short")
        return random.Random(0).sample(tasks, min(games, len(tasks)))

    def actions(self, info):
        """What those who act at random choose from: everything but a focus, which nobody can take back."""
        harmless = re.compile(rf"look around|inventory|go to .*|(pick up|move) ({self.things})( to .* box)?")
        return [action for action in info["admissible"] if harmless.fullmatch(action)]

    def expert(self, env, opening):
        """The text expert, as it is."""
        from worlds.scienceworld import TextExpert
        return TextExpert(opening)

    def blunder(self, rng, expert):
        """An action that is probably invalid: rooms and things of the house put together without thought."""
        from worlds.scienceworld import ANIMALS, DOORS
        thing = rng.choice([*ANIMALS, "apple tree", expert.thing or "soap"])
        return rng.choice([f"go to {rng.choice(list(DOORS))}", f"pick up {thing}", f"move {thing} to {expert.box or 'red box'}"])


WORLDS = {"alfworld": ALFWorldPlay, "webshop": WebShopPlay, "scienceworld": ScienceWorldPlay}


# ---- players: choose(turn, expert, info) -> action

def expert_player(turn, expert, info):
    return expert.act()


def poor_player(world, rng):
    """The expert now and then, else any admissible action: what the student imitates."""
    return lambda turn, expert, info: expert.act() if rng.random() < world.skill else rng.choice(info["admissible"])


def mixed_player(world, rng):
    """Draws the player of one episode: the expert; the expert with slips; or someone clumsy whom the expert replaces."""
    kind, slips, invalid = rng.random(), rng.choice([0.15, 0.3, 0.5]), rng.choice([0, 0.1, 0.3, 0.6])
    until, skill = (world.turns, 1 - slips) if kind < 0.5 else (rng.randint(1, 12), rng.choice([0, 0.3, 0.5]))

    def choose(turn, expert, info):
        if kind < 0.25 or turn >= until or rng.random() < skill:
            return expert.act()
        if rng.random() < invalid:
            return world.blunder(rng, expert)
        handy = [action for action in info["admissible"] if action.split()[0] in world.verbs]
        return rng.choice(handy if handy and rng.random() < 0.5 else info["admissible"])
    return choose


def recorded(actions):
    """Repeats an episode that was played before."""
    return lambda turn, expert, info: actions[turn] or ""


def turns(world, env, task, choose):
    """Play one episode; yields per turn the prompt, the actions admissible, what the expert would do, what was done."""
    obs, info = env.reset(options={"task": task})
    expert = world.expert(env, obs)
    for turn in range(world.turns):
        info["admissible"] = world.actions(info)
        action = choose(turn, expert, info)
        yield envs.prompt(env, obs, info, "bare", turn == 0), info["admissible"], expert.act(), action
        obs, _, ended, _, info = env.step(action)
        if ended:
            return
        expert.observe(action, obs)


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


def play(world, chat, env, task, choose, imitate=False):
    """One episode by a player, as a row: labelled by the expert, or by the player itself when it is to be imitated.

    The teacher is also asked in the middle of what a student says, when that began otherwise than the expert would: from there
    on it learns, with a small weight, to finish any admissible action.
    """
    row = Row()
    for turn, (prompt, admissible, label, action) in enumerate(turns(world, env, task, choose)):
        row.say(chat.observation(prompt, turn == 0))
        row.act(chat.response(action), chat.response(action if imitate else label), 0.1 * (action in admissible))
    return row


def sampled_play(world, chat, games, tasks, student, teacher, rng):
    """Rows of episodes that the student began and the teacher went on with, both sampled; every turn labelled by the expert."""
    limits, rows = rollout.Limits(16, 2048, 1.0, chat.style), []
    for i in range(0, len(tasks), len(games)):
        batch, start = tasks[i:i + len(games)], rng.choice([0, 2, 4, 6, 8, 10, 12, world.turns])
        episodes = rollout.play(lambda turn: student if turn < start else teacher, chat, games, batch, [(0, world.turns)] * len(batch),
                                limits, seed=(rng.randrange(2 ** 31),))
        rows += [play(world, chat, games[0], e.task, recorded([turn["action"] for turn in e.turns])) for e in episodes]
    return rows


# ---- tokenizer and models

def make_tokenizer(world, env, tasks, rng):
    """A word-level tokenizer of what a poor player reads and may say."""
    normalizer = normalizers.Sequence([normalizers.Lowercase()] + [normalizers.Replace(Regex(p), to) for p, to in world.phrases])
    splitter, words = pre_tokenizers.Split(Regex(world.tokens), behavior="removed", invert=True), set()
    for task in tqdm(tasks, desc="words", mininterval=10):
        for prompt, admissible, *_ in turns(world, env, task, poor_player(world, rng)):
            for text in (prompt, *admissible):
                words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([UNKNOWN, END, ACT, *sorted(words)])}, UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    if world.decoder:
        tokenizer.decoder = world.decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, eos_token=END, pad_token=END, prompt_style="bare",
                                   additional_special_tokens=[ACT], chat_template=TEMPLATE, clean_up_tokenization_spaces=False)


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

def renamer(world, tokenizer, rng):
    """A function from a row to the same episode with other names: names that are alike are exchanged at random, in what the game says,
    what was done and what should have been done. Where a world has few games this leaves nothing to learn by heart: a name can
    only be read off the page. world.alike: pairs of a word and groups of names; the first whose word is in the row holds for it.
    """
    ids = tokenizer.get_vocab()
    alike = [(ids[word], [[ids[name] for name in group if name in ids] for group in groups]) for word, groups in world.alike]

    def rename(row):
        groups = next((groups for word, groups in alike if word in row.ids), ())
        new = {old: other for group in groups for old, other in zip(group, rng.sample(group, len(group)))}
        return Row([new.get(i, i) for i in row.ids], [new.get(i, i) for i in row.target], row.weight)
    return rename


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


def fit(model, rows, steps, args, rng, label, rename=lambda row: row, more=None, every=0):
    """Train in place on rows as `rename` gives them; `more()` returns further rows every so many steps. Warm-up, then constant, then
    down to 0 over 40 % of the steps."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.0), torch.optim.AdamW(others, lr=args.lr, weight_decay=0.0)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda n: min(1, (n + 1) / 50, 2.5 * (1 - n / steps))) for o in optimizers]
    stream, bar = batches(rows, args.batch, rng), tqdm(range(steps), desc=label, mininterval=10)
    for step in bar:
        if more and step and step % every == 0:
            rows += more()
            stream = batches(rows, args.batch, rng)
        loss, right = cross_entropy(model, [rename(row) for row in next(stream)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss:.3f}", right=f"{right:.1%}", rows=len(rows), refresh=False)
    return model.eval()


# ---- the three checkpoints

def make_student(args, world, chat, games, tasks, rng):
    """A model that imitates the poor player."""
    model = make_model(args, chat.tokenizer)
    rows = [play(world, chat, games[0], task, poor_player(world, rng), imitate=True) for task in tqdm(tasks * 2, desc="poor play", mininterval=10)]
    return fit(model, rows, args.student_steps, args, rng, "student", renamer(world, chat.tokenizer, rng))


def make_teacher(args, world, chat, games, tasks, rng):
    """A model that does what the expert would, in the states of mixed play and of the student's and its own play."""
    student = lm.load(str(Path(args.out) / args.world / "student"))[0] if args.refresh else None
    model = make_model(args, chat.tokenizer)
    rows = [play(world, chat, games[0], task, mixed_player(world, rng)) for task in tqdm(tasks * 4, desc="mixed play", mininterval=10)]

    def more():
        return sampled_play(world, chat, games, rng.sample(tasks, min(1024, len(tasks))), student, model, rng)
    rename = renamer(world, chat.tokenizer, rng)
    return fit(model, rows, args.teacher_steps, args, rng, "teacher", rename, more if args.refresh else None, args.refresh)


def make_narrow_teacher(args, world, chat, games, tasks, rng):
    """A model that imitates the expert in the expert's own states."""
    model = make_model(args, chat.tokenizer)
    rows = [play(world, chat, games[0], task, expert_player) for task in tqdm(tasks, desc="expert play", mininterval=10)]
    return fit(model, rows, args.teacher_steps, args, rng, "narrow teacher", renamer(world, chat.tokenizer, rng))


MAKERS = {"student": make_student, "teacher": make_teacher, "teacher-narrow": make_narrow_teacher}


def main(args):
    if not set(args.make.split(",")) <= set(MAKERS):
        raise envs.UserError(f"unknown --make {args.make!r}: {', '.join(MAKERS)}, by commas")
    if args.world not in WORLDS:
        raise envs.UserError(f"there is no tiny pair for --world {args.world!r}; there is one for {', '.join(WORLDS)}")
    world, out = WORLDS[args.world](), Path(args.out) / args.world
    data = envs.game_type(args.world).tiny_defaults.get("data", "")
    tasks, games = world.tasks(args.games), [envs.make_env(args.world, data=data) for _ in range(64)]
    tokenizer = make_tokenizer(world, games[0], tasks[:500], random.Random(args.seed))
    for name in args.make.split(","):
        torch.manual_seed(args.seed)
        made = MAKERS[name](args, world, rollout.Chat(tokenizer), games, tasks, random.Random(f"{name} {args.seed}"))
        lm.save(made, tokenizer, str(out / name))


if __name__ == "__main__":
    command(main, Args)
