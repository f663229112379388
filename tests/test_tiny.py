"""tiny.py: rows and labels, the tokenizer, the expert that it imitates, and the checkpoints that are shipped."""

import json
import random
from pathlib import Path

import pytest
import torch

import envs
import model as lm
import rollout
import tiny
from eval import spread

ASSETS = Path(tiny.__file__).parent / "assets"
NAMES = ("teacher", "student", "teacher-narrow")


@pytest.fixture(scope="module")
def world():
    return tiny.ALFWorldPlay()


@pytest.fixture(scope="module")
def games():
    """An environment and a few held-out tasks of every kind."""
    return envs.make_env("alfworld"), envs.make_tasks("alfworld", "valid_unseen")[:12]


def shipped(name, world="alfworld"):
    return lm.load(str(ASSETS / world / name))


def test_label_is_followed_up_to_the_first_difference():
    """A target sits one place before the token it predicts; off by one and the model learns to repeat its input."""
    row = tiny.Row()
    row.say([1, 2])
    row.act([5, 6, 9], [5, 7, 9], 0.1)
    assert row.ids == [1, 2, 5, 6, 9]
    assert row.target == [0, 5, 7, 9, 0]
    assert row.weight == [0.0, 1.0, 1.0, 0.1, 0.0]


def test_label_longer_than_what_was_said():
    row = tiny.Row()
    row.say([1])
    row.act([5, 9], [5, 7, 8, 9], 0.0)
    assert (row.target, row.weight) == ([5, 7, 0], [1.0, 1.0, 0.0])


def test_renaming_exchanges_names_everywhere():
    """A label that still says the old name, two things that become one, or a short-lived animal where the longest-lived is asked for."""
    tokenizer = shipped("student", "scienceworld")[1]
    rename, ids = tiny.renamer(tiny.ScienceWorldPlay(), tokenizer, random.Random(1)), tokenizer.get_vocab()
    words = ["outside", "dove", "beaver", "task", "animal", "red box", "<|act|>", "focus on", "beaver", "<|end|>"]
    row = tiny.Row([ids[word] for word in words], [0] * 6 + [ids["focus on"], ids["dove"], ids["<|end|>"], 0], [0.0] * 6 + [1.0] * 3 + [0.0])
    for _ in range(5):
        new = rename(row)
        said, label = (tokenizer.convert_ids_to_tokens(part) for part in (new.ids, new.target))
        assert [said[i] for i in (0, 3, 4, 6, 7, 9)] == ["outside", "task", "animal", "<|act|>", "focus on", "<|end|>"] and said[5].endswith(" box")
        assert said[2] == said[8] != said[1] == label[7] and label[6::2] == ["focus on", "<|end|>"] and new.weight == row.weight
    assert len({tuple(rename(row).ids) for _ in range(9)}) > 1
    row.ids[4] = ids["longest"]
    assert all(tokenizer.decode(rename(row).ids[i]) in ("beaver", "blue jay", "butterfly", "dove", "turtle", "wolf") for i in (1, 2))


def test_every_row_is_used_once_per_pass():
    rows = [tiny.Row([i] * (i % 7 + 1)) for i in range(100)]
    stream = tiny.batches(rows, 8, random.Random(0))
    seen = []
    while len(seen) < 100:
        seen += [row.ids[0] for row in next(stream)]
    assert sorted(seen) == list(range(100))


def test_shipped_tokenizer_gives_actions_back(world, games):
    """The response is the action itself: what is decoded must be what the game understands, to the letter."""
    env, tasks = games
    rng, tokenizer = random.Random(0), shipped("student")[1]
    for task in tasks:
        for prompt, admissible, label, _ in tiny.turns(world, env, task, tiny.poor_player(world, rng)):
            assert tokenizer.unk_token_id not in tokenizer.encode(prompt)
            for action in (*admissible, label):
                assert tokenizer.decode(tokenizer.encode(action)) == action


def test_shipped_tokenizer_makes_neighbours_of_what_belongs_together():
    """A thing with its number is one token, and nothing stands between the things that lie in one place."""
    tokenizer = shipped("student")[1]
    ids = tokenizer.encode("On the countertop 1, you see a bread 1, and a mug 2.\nTask: xyzzy. You are at fridge 1")
    assert tokenizer.convert_ids_to_tokens(ids) == ["see", "bread 1", "mug 2", "task", "<unk>", "fridge 1"]


def test_template_appends():
    """A later turn begins with the earlier conversation unchanged, so that a row can grow."""
    tokenizer = shipped("student")[1]
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "look"}, {"role": "user", "content": "b"}]
    first = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert first == "a<|act|>"
    assert tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) == first + "look<|end|>b<|act|>"


def assert_recovers(world, env, tasks, clumsy):
    """The labels are worth imitating in states that others led to: after so many random actions the expert still wins, without
    an invalid action."""
    rng = random.Random(clumsy)
    for task in tasks:
        def choose(turn, expert, info):
            return rng.choice(info["admissible"]) if turn < clumsy else expert.act()
        for turn, _ in enumerate(tiny.turns(world, env, task, choose)):
            assert turn < clumsy or not env._info()["invalid"]
        assert env._info()["won"], task


@pytest.mark.parametrize("clumsy", [0, 3, 6])
def test_expert_recovers(world, games, clumsy):
    env, tasks = games
    assert_recovers(world, env, tasks, clumsy)


@pytest.fixture(scope="module")
def shop():
    """WebShop's world, an environment, a few goals of the train split and a tokenizer made from them."""
    world, env = tiny.WebShopPlay(), envs.make_env("webshop")
    tasks = world.tasks(250)     # enough to meet every product
    return world, env, tasks, tiny.make_tokenizer(world, env, tasks, random.Random(0))


def test_webshop_actions_come_back_to_the_letter(shop):
    """No blank beside a bracket: "click[ < prev ]" means nothing to the shop."""
    world, env, tasks, tokenizer = shop
    rng = random.Random(0)
    for task in tasks[:12]:
        for prompt, admissible, label, _ in tiny.turns(world, env, task, tiny.poor_player(world, random.Random(0))):
            assert tokenizer.unk_token_id not in tokenizer.encode(prompt)
            for action in (*admissible, label, "click[buy now]"):
                assert tokenizer.decode(tokenizer.encode(action)) == action
            assert not any("<query>" in action for action in admissible)
            assert world.blunder(rng, world.expert(env, "")).startswith("click[")


def test_webshop_pages_are_short(shop):
    """What is left of a page: its kind, products with their numbers or options, what is wanted, what is chosen."""
    world, env, tasks, tokenizer = shop
    for task in tasks[:12]:
        seen = [tokenizer.tokenize(prompt) for prompt, *_ in tiny.turns(world, env, task, tiny.expert_player)]
        goal = env.session.goal
        wanted = ["task", f"{' '.join(goal.attributes)} {goal.product['query']}", *goal.options.values(), "chosen"]
        assert seen[0] == ["webshop", *wanted]
        assert seen[1][0] == "page" and len(seen[1]) == 21 + len(wanted)
        assert goal.product["asin"] == seen[1][seen[1].index(wanted[1]) - 1]
        for number, page in enumerate(seen[2:]):
            assert page[-len(wanted) - number:] == [*wanted, *list(goal.options.values())[:number]]
            assert page[-len(wanted) - number - 2:][:2] == [wanted[1], "buy now"]


@pytest.mark.parametrize("clumsy", [0, 3, 6])
def test_webshop_expert_recovers(shop, clumsy):
    world, env, tasks, _ = shop
    assert_recovers(world, env, tasks[:40], clumsy)


@pytest.fixture(scope="module")
def lab():
    """ScienceWorld's world, an environment and a few tasks of every type."""
    world = tiny.ScienceWorldPlay()
    tasks = world.tasks(1000)
    assert len(tasks) == 724 and tasks == world.tasks(1000)
    chosen = {kind: [task for task in tasks if task.kind == kind][:3] for kind in sorted({task.kind for task in tasks})}
    return world, envs.make_env("scienceworld", data="short"), sum(chosen.values(), [])


def test_scienceworld_actions_come_back_to_the_letter(lab):
    """Words that the tokenizer drops must not be part of an action, and none that is needed may be unknown to the shipped one."""
    world, env, tasks = lab
    rng, tokenizer = random.Random(0), shipped("student", "scienceworld")[1]
    for task in tasks:
        for prompt, admissible, label, _ in tiny.turns(world, env, task, tiny.poor_player(world, rng)):
            assert tokenizer.unk_token_id not in tokenizer.encode(prompt)
            assert not any("focus" in action for action in admissible)
            for action in (*admissible, label, world.blunder(rng, world.expert(env, f"{env._game.task}\n"))):
                assert tokenizer.decode(tokenizer.encode(action)) == action


def test_scienceworld_prompts_are_short(lab):
    """What is left of a page of text: what lies there, what is wanted, where the player is, what it carries."""
    _, env, _ = lab
    obs, info = env.reset(options={"task": envs.Task("find-animal/3", "find-animal", ("find-animal", 3))})
    seen = shipped("student", "scienceworld")[1].tokenize(envs.prompt(env, obs, info, "bare", True))
    assert seen == ("outside|outside|here|blue jay|butterfly|dove|task|animal|orange box|kitchen|here|outside|carrying").split("|")


@pytest.mark.parametrize("clumsy", [0, 3, 6])
def test_scienceworld_expert_recovers(lab, clumsy):
    assert_recovers(*lab, clumsy)


def test_training_is_repeatable():
    """Same seed, same weights, bit for bit on one thread; and the loss falls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _, tokenizer = shipped("student")
    args, found = tiny.Args(width=32, layers=1, batch=4), []
    for _ in range(2):
        torch.manual_seed(0)
        rows = [tiny.Row([i, i + 1, i + 2], [i + 1, i + 2, 0], [1.0, 1.0, 0.0]) for i in range(3, 15)]
        model = tiny.make_model(args, tokenizer)
        before = tiny.cross_entropy(model, rows)[0].item()
        tiny.fit(model, rows, 30, args, random.Random(0), "test")
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert tiny.cross_entropy(model, rows)[0].item() < before - 1
    torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("wrong, words", [(dict(world="chess"), "no tiny pair for --world 'chess'"), (dict(make="pupil"), "unknown --make 'pupil'")])
def test_a_users_mistake_is_one_sentence(wrong, words):
    with pytest.raises(envs.UserError, match=words):
        tiny.main(tiny.Args(**wrong))


def test_shipped_checkpoints_are_small_and_share_a_vocabulary():
    tokenizers = [shipped(name)[1] for name in NAMES]
    for other in tokenizers[1:]:
        lm.same_vocabulary(tokenizers[0], other)
    assert rollout.Chat(tokenizers[0]).style == "bare"
    assert sum(file.stat().st_size for file in (ASSETS / "alfworld").rglob("*.safetensors")) < 6e6
    for name in NAMES:
        config = json.loads((ASSETS / "alfworld" / name / "config.json").read_text())
        assert config["architectures"] == ["Qwen3ForCausalLM"]


@pytest.mark.parametrize("name, low, high", [("teacher", 0.9, 1.0), ("student", 0.0, 0.4)])
def test_shipped_checkpoints_play(name, low, high):
    """Far below the measured figures there is a mistake in loading, prompting or sampling."""
    model, tokenizer = shipped(name)
    tasks = envs.make_tasks("alfworld", "valid_seen")[:24]
    played = rollout.play(model, rollout.Chat(tokenizer), [envs.make_env("alfworld") for _ in tasks], tasks, [(0, 20)] * len(tasks),
                          rollout.Limits(16, 2048, 0.4, "bare"))
    assert low <= sum(e.won for e in played) / len(played) <= high


@pytest.mark.parametrize("world", ["webshop", "scienceworld"])
def test_other_shipped_pairs_share_a_vocabulary(world):
    (_, teacher), (_, student) = shipped("teacher", world), shipped("student", world)
    lm.same_vocabulary(teacher, student)
    assert rollout.Chat(student).style == "bare"


@pytest.mark.parametrize("world, data", [("webshop", ""), ("scienceworld", "short")])
@pytest.mark.parametrize("name, low, high", [("teacher", 0.75, 1.0), ("student", 0.0, 0.4)])
def test_other_shipped_pairs_play(world, data, name, low, high):
    model, tokenizer = shipped(name, world)
    tasks, games = spread(envs.make_tasks(world, "test", data), 24), [envs.make_env(world, data=data) for _ in range(24)]
    played = rollout.play(model, rollout.Chat(tokenizer), games, tasks, [(0, games[0].horizon)] * len(tasks), rollout.Limits(16, 2048, 0.4, "bare"))
    assert low <= sum(e.won for e in played) / len(played) <= high
