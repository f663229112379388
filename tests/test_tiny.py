"""The tiny pairs: rows and labels, the tokenizer, the experts that are imitated, and the checkpoints that are
shipped."""

import json
import random
from pathlib import Path

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import curriculum
import envs
import load
import rollout
from chat import prompts
from chat.template import Chat
from harness.cli import UserError
from tasks import spread
from tiny import make
from tiny.alfworld import ALFWorldPlay
from tiny.scienceworld import ScienceWorldPlay
from tiny.webshop import WebShopPlay

ASSETS = Path(load.ROOT) / "assets"


def words(name, world="alfworld"):
    """The tokenizer of a shipped checkpoint."""
    return load.load_tokenizer(str(ASSETS / world / name))


# ---- rows

def test_label_is_followed_up_to_the_first_difference():
    """A target sits one place before the token it predicts; off by one and the model learns to repeat its
    input."""
    row = make.Row()
    row.say([1, 2])
    row.act([5, 6, 9], [5, 7, 9], 0.1)
    assert row.ids == [1, 2, 5, 6, 9]
    assert row.target == [0, 5, 7, 9, 0]
    assert row.weight == [0.0, 1.0, 1.0, 0.1, 0.0]


def test_label_longer_than_what_was_said():
    """A label that goes on behind the response, into what the game says next."""
    row = make.Row()
    row.say([1])
    row.act([5, 9], [5, 7, 8, 9], 0.0)
    assert row.target == [5, 7, 0]
    assert row.weight == [1.0, 1.0, 0.0]


SAID = ["outside", "dove", "beaver", "task", "animal", "red box", "<|act|>", "focus on", "beaver", "<|end|>"]
LABEL = ["focus on", "dove", "<|end|>"]
OF_ONE_AGE = {"beaver", "blue jay", "butterfly", "dove", "turtle", "wolf"}


@pytest.fixture
def naming():
    """A row of SAID, labelled LABEL; the function that renames it; the tokenizer."""
    tokenizer = words("student", "scienceworld")
    ids = tokenizer.get_vocab()
    said = [ids[word] for word in SAID]
    label = [ids[word] for word in LABEL]
    weight = [0.0] * 6 + [1.0] * 3 + [0.0]
    row = make.Row(said, [0] * 6 + label + [0], weight)
    rename = make.renamer(ScienceWorldPlay(), tokenizer, 1)
    return row, rename, tokenizer


def test_renaming_exchanges_names_everywhere(naming):
    """A label that still says the old name, or two things that become one."""
    row, rename, tokenizer = naming
    for _ in range(5):
        (new,), (target,), (weight,) = [part.tolist() for part in make.collate([row], rename)]
        said = tokenizer.convert_ids_to_tokens(new)
        label = tokenizer.convert_ids_to_tokens(target)[6:9]
        for i in (0, 3, 4, 6, 7, 9):
            assert said[i] == SAID[i]
        assert said[5].endswith(" box")
        assert said[1] != said[2] == said[8]
        assert label == ["focus on", said[1], "<|end|>"]
        assert weight == pytest.approx(row.weight)
    different = {tuple(table.tolist()) for table in rename([row] * 9)}
    assert len(different) > 1


def test_renaming_keeps_the_age(naming):
    """A short-lived animal where the longest-lived is asked for."""
    row, rename, tokenizer = naming
    row.ids[4] = tokenizer.get_vocab()["longest"]
    ids, _, _ = make.collate([row], rename)
    for i in (1, 2):
        assert tokenizer.decode(ids[0, i]) in OF_ONE_AGE


def test_rows_are_the_same_whoever_plays_them(house):
    """A player whose draws depend on what was played before it in the same process."""
    world, env, tasks = house
    chat = Chat(words("student"))
    found = []
    for jobs in (0, 2):
        args = make.Args(jobs=jobs)
        found.append(make.scripted_play(args, world, chat, tasks[:6], make.mixed_player, "test"))
    assert found[0] == found[1]
    assert len({tuple(row.ids) for row in found[0]}) == 6


def test_a_narrow_teacher_watches_the_expert_alone(house):
    """A dial that turns the wrong way."""
    world, env, tasks = house
    for mixed, alone in ((0.0, True), (1.0, False)):
        player = make.teaching_player(world, random.Random(0), mixed)
        turns = [turn for task in tasks for turn in make.turns(world, env, task, player)]
        assert all(label == action for _, _, label, action in turns) == alone


def test_every_row_is_used_once_per_pass():
    """Rows that are left out because they fill no batch."""
    rows = [make.Row([i] * (i % 7 + 1)) for i in range(100)]
    stream = make.batches(rows, 8, random.Random(0))
    seen = []
    while len(seen) < 100:
        seen += [row.ids[0] for row in next(stream)]
    assert sorted(seen) == list(range(100))


# ---- ALFWorld's words and expert

@pytest.fixture(scope="module")
def house():
    """ALFWorld's world, an environment and a few held-out tasks of every kind."""
    env = envs.make_env("alfworld", data="generated")
    tasks = envs.make_tasks("alfworld", "valid_unseen", "generated")
    return ALFWorldPlay(), env, tasks[:12]


def assert_says(tokenizer, actions):
    """What is decoded must be what the game understands, to the letter."""
    for action in actions:
        assert tokenizer.decode(tokenizer.encode(action)) == action


def test_shipped_tokenizer_gives_actions_back(house):
    """The response is the action itself: an action that comes back otherwise can never be taken."""
    world, env, tasks = house
    tokenizer = words("student")
    player = make.poor_player(world, random.Random(0))
    for task in tasks:
        for prompt, admissible, label, _ in make.turns(world, env, task, player):
            assert tokenizer.unk_token_id not in tokenizer.encode(prompt)
            assert_says(tokenizer, [*admissible, label])


def test_shipped_tokenizer_makes_neighbours_of_what_belongs_together():
    """A thing with its number is one token, and nothing stands between the things that lie in one place."""
    tokenizer = words("student")
    text = "On the countertop 1, you see a bread 1, and a mug 2.\nTask: xyzzy. You are at fridge 1"
    wanted = ["see", "bread 1", "mug 2", "task", "<unk>", "fridge 1"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == wanted


def test_template_appends():
    """A later turn begins with the earlier conversation unchanged, so that a row can grow."""
    tokenizer = words("student")
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "look"},
        {"role": "user", "content": "b"}]

    def render(messages):
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render(talk[:1]) == "a<|act|>"
    assert render(talk) == "a<|act|>look<|end|>b<|act|>"


# ---- WebShop's words and shopper

@pytest.fixture(scope="module")
def shop():
    """WebShop's world, an environment, a few goals of the train split and a tokenizer made from them."""
    world, env = WebShopPlay(), envs.make_env("webshop")
    tasks = world.tasks(250)  # enough to meet every product
    tokenizer = make.make_tokenizer(world, env, tasks, random.Random(0))
    return world, env, tasks[:40], tokenizer


def test_webshop_actions_come_back_to_the_letter(shop):
    """No blank beside a bracket: "click[ < prev ]" means nothing to the shop."""
    world, env, tasks, tokenizer = shop
    rng = random.Random(0)
    for task in tasks[:12]:
        player = make.poor_player(world, random.Random(0))
        for prompt, admissible, label, _ in make.turns(world, env, task, player):
            assert tokenizer.unk_token_id not in tokenizer.encode(prompt)
            assert_says(tokenizer, [*admissible, label, "click[buy now]"])
            assert not any("<query>" in action for action in admissible)
            blunder = world.blunder(rng, world.expert(env, ""))
            assert blunder.startswith("click[")


def test_webshop_pages_are_short(shop):
    """What is left of a page: its kind, products with their numbers or options, what is wanted, what is
    chosen."""
    world, env, tasks, tokenizer = shop
    for task in tasks[:12]:
        played = make.turns(world, env, task, make.expert_player(world, None))
        search, results, *pages = [tokenizer.tokenize(prompt) for prompt, *_ in played]
        goal = env.session.goal
        options = list(goal.options.values())
        name = f"{' '.join(goal.attributes)} {goal.product['query']}"
        wanted = ["task", name, *options, "chosen"]
        assert search == ["webshop", *wanted]
        assert results[0] == "page"
        assert len(results) == 21 + len(wanted)
        assert results[results.index(name) - 1] == goal.product["asin"]
        for chosen, page in enumerate(pages):
            assert_ends(page, [name, "buy now", *wanted, *options[:chosen]])


def assert_ends(words, end):
    """The last of some words."""
    assert words[-len(end):] == end


# ---- ScienceWorld's words and expert

@pytest.fixture(scope="module")
def lab():
    """ScienceWorld's world, an environment and three tasks of every type."""
    world = ScienceWorldPlay()
    tasks = world.tasks(1000)
    assert len(tasks) == 724
    assert tasks == world.tasks(1000)
    chosen = []
    for kind in sorted({task.kind for task in tasks}):
        chosen += [task for task in tasks if task.kind == kind][:3]
    return world, envs.make_env("scienceworld", data="short"), chosen


def test_scienceworld_actions_come_back_to_the_letter(lab):
    """Words that the tokenizer drops must not be part of an action, and none that is needed may be unknown to
    the shipped one."""
    world, env, tasks = lab
    rng, tokenizer = random.Random(0), words("student", "scienceworld")
    player = make.poor_player(world, rng)
    for task in tasks[::3]:  # one of each type
        for prompt, admissible, label, _ in make.turns(world, env, task, player):
            assert tokenizer.unk_token_id not in tokenizer.encode(prompt)
            assert not any("focus" in action for action in admissible)
            expert = world.expert(env, f"{env._game.task}\n")
            blunder = world.blunder(rng, expert)
            assert_says(tokenizer, [*admissible, label, blunder])


def test_scienceworld_prompts_are_short(lab):
    """What is left of a page of text: what lies there, what is wanted, where the player is, what it
    carries."""
    _, env, _ = lab
    task = envs.Task("find-animal/3", "find-animal", ("find-animal", 3))
    obs, info = env.reset(options={"task": task})
    prompt = prompts.load("bare").write(env, obs, info, 1)
    assert words("student", "scienceworld").tokenize(prompt) == [
        "outside", "outside", "here", "blue jay", "butterfly", "dove",
        "task", "animal", "orange box", "kitchen", "here", "outside", "carrying"]


@pytest.mark.parametrize("place", ["house", "shop", "lab"])
def test_experts_recover(place, request):
    """An expert that knows its own way only, or forgets what others carried away: labels that are not worth
    imitating in states that students reach. After six random actions it wins, without an invalid one."""
    world, env, tasks, *_ = request.getfixturevalue(place)
    rng = random.Random(6)

    def choose(turn, expert, info):
        return rng.choice(info["admissible"]) if turn < 6 else expert.act()

    for task in tasks[::2]:
        for turn, _ in enumerate(make.turns(world, env, task, choose)):
            assert turn < 6 or not env._info()["invalid"]
        assert env._info()["won"], task


# ---- training

@pytest.fixture
def one_thread():
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_training_is_repeatable(one_thread):
    """Same seed, same weights, bit for bit on one thread; and the loss falls."""
    tokenizer = words("student")
    args = make.Args(width=32, layers=1, batch=4)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        rows = []
        for i in range(3, 15):
            target = [i + 1, i + 2, 0]
            rows.append(make.Row([i, i + 1, i + 2], target, [1.0, 1.0, 0.0]))
        model = make.make_model(args, tokenizer)
        before, _ = make.cross_entropy(model, make.collate(rows))
        make.fit(model, rows, 30, args, random.Random(0), "test")
        after, _ = make.cross_entropy(model, make.collate(rows))
        assert after.item() < before.item() - 1
        found.append(parameters_to_vector(model.parameters()))
    assert torch.equal(*found)


@pytest.mark.parametrize("shape", [(8, 8), (12, 8), (8, 12)])
def test_muon_is_torchs(shape):
    """A step that is transposed, scaled by the wrong side or without its momentum."""
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    optimizers = make.Muon([ours], 0.02), torch.optim.Muon([theirs], 0.02, weight_decay=0.0)
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    apart = (ours - theirs).norm() / (ours - start).norm()
    assert apart < 0.05                 # theirs is computed in bf16


@pytest.mark.parametrize("wrong, sentence", [
    (dict(world="chess"), "no tiny pair for --world 'chess'"),
    (dict(make="pupil"), "unknown --make 'pupil'"),
    (dict(mixed=2.0), "--mixed is a share, at most 1, not 2.0"),
    (dict(student_steps=0), "--student-steps is at least 1, not 0")])
def test_a_users_mistake_is_one_sentence(wrong, sentence):
    """A traceback, or one after minutes of play."""
    with pytest.raises(UserError, match=sentence):
        make.main(make.Args(**wrong))


# ---- the shipped checkpoints

@pytest.mark.parametrize("world, others", [
    ("alfworld", ("teacher", "teacher-narrow")), ("webshop", ("teacher",)), ("scienceworld", ("teacher",))])
def test_shipped_checkpoints_share_a_vocabulary(world, others):
    """A checkpoint that was made with another's tokenizer."""
    for name in ("student", *others):
        load.same_vocabulary(words("student", world), words(name, world))
        config = json.loads((ASSETS / world / name / "config.json").read_text())
        assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert Chat(words("student", world)).prompt.name == "bare"


@pytest.mark.parametrize("pair", make.PAIRS)
def test_shipped_checkpoints_bring_their_defaults(pair):
    """A pair that is trained by the paper's settings, on games whose words it does not know, or too large to
    ship."""
    play = make.PAIRS[pair]
    made = [file.parent for file in (ASSETS / play.env).glob(f"{play.prefix}*/model.safetensors")]
    mine = [folder for folder in made if play.prefix or not folder.name.startswith("full-")]
    assert mine
    for folder in mine:
        assert load.defaults(str(folder)) == play.defaults
        assert (folder / "model.safetensors").stat().st_size < 5e6


@pytest.mark.parametrize("world, data, number, teacher, student", [
    ("alfworld", "generated", 24, 0.9, (0.0, 0.4)), ("webshop", "", 24, 0.75, (0.2, 0.7)),
    ("scienceworld", "short", 6, 0.75, (0.0, 0.4))])
def test_shipped_checkpoints_play(world, data, number, teacher, student):
    """Far from the measured figures there is a mistake in loading, prompting or sampling."""
    tasks = spread(envs.make_tasks(world, envs.game_type(world).eval_splits[-1], data), number)
    games, won = [envs.make_env(world, data=data) for _ in tasks], {}
    rules = curriculum.Rules(curriculum.Method(), 0, games[0].horizon)
    for name in ("teacher", "student"):
        model = load.load_model(str(ASSETS / world / name))
        played = rollout.play(
            {"student": model}, Chat(words(name, world)), games, tasks, rules, rollout.Limits(16, 2048, 0.4))
        won[name] = sum(episode.won for episode in played) / len(played)
    print(f"{world}: won {won}")
    assert won["teacher"] >= teacher and student[0] <= won["student"] <= student[1]
