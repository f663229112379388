"""WebShop as an environment: the shop and the sessions of worlds/webshop.py."""

import functools
import json
import os

from envs import Task, TextGame, digest
from harness.cli import UserError
from worlds.webshop import Session, open_shop
from worlds.webshop_catalogue import default_folder


class WebShop(TextGame):
    """WebShop's text environment (worlds/webshop.py), in rich text; the reward is the benchmark's.

    data: a folder with the benchmark's files; the default is a made-up catalogue. Knobs: goals ("synthetic"
    or "human"), seed (of sale prices and price caps, which the benchmark draws unseeded), most (goals that a
    split lists).
    """
    name = "webshop"
    horizon = 15
    splits = ("train", "dev", "test", "tcod_train", "tcod_test")    # the last two are TCOD's release
    train_split = "train"
    eval_splits = ("test",)
    knob_types = {"goals": str, "seed": int, "most": int}
    experts = "the scripted shopper's, where they earn reward 1"
    instructions = (
        "You are a visitor of a web shop, shown as text. Buy what the instruction asks for: the right kind "
        "of product, with every quality and option that it names, for no more than its price limit.\n"
        "Actions: search[words] looks for products; click[name] presses the button, opens the product or "
        "chooses the option of that name on the page. Choose the options before click[buy now], which ends "
        "the visit.")

    def __init__(self, split="", data="", **knobs):
        super().__init__(split, data, **knobs)
        self.session = None
        self._invalid = False

    @classmethod
    def tasks(cls, split, data="", *, goals="synthetic", seed=0, most=10_000):
        cls.check_split(split)
        return list(tasks_of(shop_of(data, goals, seed), split, most))

    @classmethod
    def shared(cls, data="", *, goals="synthetic", seed=0, most=0):
        shop = shop_of(data, goals, seed)
        return {"catalogue": shop.catalogue.digest[:12], "tagger of titles": shop.tagger}

    @property
    def shop(self):
        return shop_of(self.data, self.knobs.get("goals", "synthetic"), self.knobs.get("seed", 0))

    def _draw(self):
        shop = self.shop
        goal = shop.draw(shop.split(self.split), self.np_random.random())   # the benchmark's weights
        return task_of(shop, self.split, goal, ())

    def _start(self, task):
        shop = self.shop
        self.session = Session(shop, shop.goal(task.source))
        self._invalid = False
        return self.session.rich()

    def _act(self, action):
        self._invalid = not self.session.step(action)
        done = self.session.page == "done"
        reward = self.session.reward if done and not self._invalid else 0.0
        return self.session.rich(), reward, done

    def _info(self):
        done, won = self.session.page == "done", self.session.reward == 1
        return {
            "task": self.session.goal.text,
            "kind": self.task.kind,
            "admissible": self.session.admissible(),
            "won": done and won,
            "lost": done and not won,
            "invalid": self._invalid,
            "status": self.session.status()}


def shop_of(data, goals, seed):
    """The shop of a data folder, shared by all environments of the process."""
    folder = os.path.expanduser(data) if data else default_folder()
    return open_shop(str(folder), goals, seed)


def task_of(shop, split, number, expert):
    goal = shop.goal(number)
    content = json.dumps([goal.text, goal.product["asin"], goal.options])
    return Task(
        f"{split}/{number:06d}", goal.product["category"], number, expert, digest=digest(content.encode()))


@functools.lru_cache(maxsize=None)
def tasks_of(shop, split, most):
    """The first `most` goals of a split, with the scripted shopper's actions where those earn reward 1."""
    goals = shop.split(split)[:most]
    if not goals:
        given = f"{shop.catalogue.folder} gives {len(shop)} {shop.kind} goals"
        raise UserError(
            f"WebShop's split '{split}' is empty: {given}, and the first 1,500 are for test and dev.")
    experts = shop.experts(goals)
    return tuple(task_of(shop, split, goal, experts.get(goal, ())) for goal in goals)
