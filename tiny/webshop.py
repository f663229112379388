"""What a tiny pair is made of in WebShop: the goals of the made-up catalogue, their words, their shopper."""

import re

from tokenizers import decoders

import envs
from tiny import Play
from worlds.webshop import Shopper
from worlds.webshop_catalogue import SHELVES

# Every page tells the instruction, which the status line repeats. What a click may name stays, the rest
# goes: a product is its number and its name without the brand, an option is its value, a page is one word.
PHRASES = (
    (r"instruction: ?\n[^\n]*\n", " "),
    (r"you have clicked [^\n]*\n", " "),
    (r"page \d+ \(total results: \d+\)", " page "),
    (r"\[button\] next > \[button_\]", " next "),
    (r"price: \$[\s\S]*\[button\] buy now \[button_\]", " buy now "),
    (r"\[button\] < prev \[button_\](?![\s\S]*(next|buy now))", " text "),
    (r"\[button\] (search|back to search|< prev) \[button_\]| next |\[(clicked )?button_?\]", " "),
    (r", and price lower than [\d.]+ dollars|\$[\d.]+", " "),
    (r"find me an? |\b(with|and|color|size|scent|length|flavor|pack|a|from|as well|nothing)\b", " "),
    (r"\b(norva|talbin|quessa|ridlow|mavenko|pellune) ", " "))
THINGS = "|".join(name for names, *_ in SHELVES.values() for name in names.split())  # what it sells
INSTRUCTION = re.compile(r"find me an? (\w+) (\w+) (\w+)|: (\w+)")  # the product's name; an option's value


class Expert(Shopper):
    """Searches anew whenever the page does not show the product: a rule without memory, easier to
    imitate."""

    def observe(self, action, observation):
        """It looks at the session itself."""

    def _on_results(self, session):
        if session.goal.target in session.shelf():
            return super()._on_results(session)
        return "click[back to search]"


class WebShopPlay(Play):
    """A pair as tiny/__init__.py describes it."""
    env = "webshop"
    defaults = dict(Play.defaults, steps=150, eval_every=50)
    turns = 15
    skill = 0.5
    verbs = ()
    phrases = PHRASES
    # A product's name is one token, and so is its number, a button or an option.
    tokens = (r"click\[|search\[|\]|back to search|buy now|< prev|next >|"
              rf"[a-z]+ [a-z]+ ({THINGS})\b|[a-z]+|\d+")
    # The shop knows "click[< prev]" by the letter: no blank beside a bracket.
    decoder = decoders.Sequence([
        decoders.WordPiece("##", cleanup=False), decoders.Fuse(),
        decoders.Replace("[ ", "["), decoders.Replace(" ]", "]")])

    def tasks(self, games):
        """The first `games` goals of the train split."""
        return envs.make_tasks("webshop", "train")[:games]

    def actions(self, info):
        """Queries made of the instruction's words, and any click but the purchase, which nobody can take
        back."""
        clicks = [action for action in info["admissible"] if action.startswith("click[")]
        clicks = [click for click in clicks if click != "click[buy now]"]
        if clicks:
            return clicks
        name, option, *_ = INSTRUCTION.findall(info["task"])
        first, second, thing, _ = name
        queries = (f"{first} {second} {thing}", thing, f"{first} {thing}", f"{thing} {option[3]}")
        return [f"search[{query}]" for query in queries]

    def expert(self, env, opening):
        """The scripted shopper of the session that is open."""
        return Expert(env.session)

    def blunder(self, rng, expert):
        """A click on something that is elsewhere."""
        goal = expert.session.goal
        value = rng.choice(list(goal.options.values()))
        names = [value, "< prev", "next >", "back to search", "features", goal.product["asin"]]
        return f"click[{rng.choice(names)}]"
