"""WebShop's text environment: the benchmark's own data files, no Lucene, spaCy, Flask or JVM.

In the order of this file: goals, the shop that holds them, the reward; a `Session`, one visitor's way through
the pages; a `Shopper`, which knows the goal's product and says what to do next in any session. The catalogue
is in webshop_data.py, the search in webshop_search.py. Catalogue, index and goals are made once per process
and shared; a session holds a few strings.

Equal to the benchmark's engine (github.com/princeton-nlp/WebShop): pages in both renderings, available
actions, hits, goals, rewards. Different on purpose: what it draws at random (sale prices, price caps) comes
from a seed; an action after the purchase does nothing; the search prefixes <r> <a> <c> <q>, which can crash
the original, are dropped; so are a query's words after the first 1,024 distinct ones, where the original
raises; title nouns come from spaCy's en_core_web_sm only where that is installed, else from a stop-word list.

    shop = open_shop("data/")            # or open_shop(webshop_catalogue.default_folder())
    session = Session(shop, shop.goal(0))
    session.step("search[red shoes]"); print(session.rich())
"""

import hashlib
import importlib.util
import itertools
import json
import random
import re
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from rapidfuzz import fuzz
from rapidfuzz import utils as fuzz_utils

from worlds.cache import keep, kept, say
from worlds.webshop_data import FILES, SOURCE, Catalogue, DataError, price_tag
from worlds.webshop_search import STOP

PER_PAGE = 10  # products on a results page
NO_CAP = 1_000_000  # the price cap of a goal whose product is too dear for one
VERSION = 1  # of the scripted shopper's sessions: raise it with anything that changes one
SPLITS = {  # goal indices after the shuffle; the last two are those of the TCOD release
    "train": (1500, None), "dev": (500, 1500), "test": (0, 500),
    "tcod_train": (0, 4096), "tcod_test": (4096, 4196),
}


# ---------------------------------------------------------------- goals

@dataclass(frozen=True)
class Goal:
    """What a visitor shall buy. `options` is a dict for synthetic goals, a list for human ones."""
    index: int
    target: int            # number of the product it was made from
    product: dict          # that product
    text: str              # the instruction
    attributes: list
    options: dict | list
    price_upper: float
    weight: float


def price_cap(price, rng):
    """A multiple of 10 above the price, by drawing two of the first four and taking the larger."""
    first = int(price // 10) + 1
    above = [10.0 * i for i in range(first, min(first + 4, 100))]  # 10, 20, …, 990
    return max(rng.sample(above, 2)) if len(above) > 1 else NO_CAP


def cap_text(cap):
    return "" if cap == NO_CAP else f", and price lower than {cap:.2f} dollars"


class Wish(NamedTuple):
    """What the goals of a product, or of a human instruction, have in common."""
    product: int           # its number
    text: str
    attributes: list
    options: list          # those of each goal


class Shop:
    """A catalogue with sale prices and goals: all that the environments of a process share.

    `prices`, one for each product, and `caps`, one for each wish, are what the original draws unseeded;
    assign to them to replay a recording.
    """

    def __init__(self, catalogue, goals="synthetic", seed=0, nouns=None):
        self.catalogue = catalogue
        self.index = catalogue.index
        self.kind = goals
        given = getattr(nouns, "__name__", "given"), nouns
        self.tagger, self.nouns = given if nouns else noun_tagger()
        rng, self.prices = random.Random(f"prices {seed}"), []
        for product in catalogue.products:
            low, high = product["prices"][0], product["prices"][-1]
            self.prices.append(low if low == high else rng.uniform(low, high))
        self.wishes = list(self._wishes())
        self.weights = self._weights()
        rng = random.Random(f"caps {seed}")
        self.caps = [price_cap(self.prices[wish.product], rng) for wish in self.wishes]
        self.order = [(n, options) for n, wish in enumerate(self.wishes) for options in wish.options]
        random.Random(233).shuffle(self.order)      # the benchmark's own seed

    def _wishes(self):
        for number, product in enumerate(self.catalogue.products):
            if self.kind == "human":
                for text, attributes, options in product["human"]:
                    yield Wish(number, text, attributes, [options])
            elif product["instruction"] is not None:
                names = sorted(product["options"])
                combinations = itertools.product(*(product["options"][name] for name in names))
                options = [dict(zip(names, values)) for values in combinations]
                if options:
                    yield Wish(number, product["instruction"], product["instruction_attributes"], options)

    def _weights(self):
        """Of the goals of each wish: the mean over its attributes of 1 / (number of goals with that
        attribute)."""
        if self.kind == "human":
            return [1.0] * len(self.wishes)
        goals = Counter()
        for wish in self.wishes:
            for name in wish.attributes:
                goals[name] += len(wish.options)
        rarity = {name: 1 / number for name, number in goals.items()}
        return [sum(map(rarity.get, wish.attributes)) / len(wish.attributes) for wish in self.wishes]

    def __len__(self):
        """Number of goals."""
        return len(self.order)

    def goal(self, index):
        """Goal `index` of the official order."""
        number, options = self.order[index]
        wish, cap = self.wishes[number], self.caps[number]
        text = wish.text
        if self.kind == "synthetic" and options:
            text += " with " + ", and ".join(f"{name}: {value}" for name, value in options.items())
        product = self.catalogue.products[wish.product]
        return Goal(
            index, wish.product, product, text + cap_text(cap), wish.attributes, options, cap,
            self.weights[number])

    def split(self, name):
        """range of goal indices."""
        start, stop = SPLITS[name]
        return range(len(self))[start:stop]

    @lru_cache(len(SPLITS))
    def _cumulative(self, split):
        return list(itertools.accumulate(self.weights[self.order[index][0]] for index in split))

    def draw(self, split, uniform):
        """A goal index of the split (a range), rare attributes first; `uniform` in [0, 1) decides."""
        weights = self._cumulative(split)
        place = bisect_right(weights, uniform * weights[-1])
        return split[min(place, len(split) - 1)]

    def experts(self, indices):
        """{goal index: actions of the scripted shopper's session that rewards 1}; without an entry: none.
        Found once, then read from the file that is called by all that they depend on."""
        made_of = [VERSION, self.catalogue.digest, self.kind, self.tagger, self.prices, self.caps]
        name = f"webshop-experts/{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()}"
        known = kept(name) or {}
        missing = [i for i in indices if str(i) not in known]
        if len(missing) > 1000:
            say("WebShop", f"the scripted shopper plays {len(missing):,} goals, once.")
        for i in missing:
            known[str(i)] = solve(self, i)
        if missing:
            keep(name, known)
        return {i: tuple(known[str(i)]) for i in indices if known[str(i)]}


@lru_cache(8)
def _catalogue(folder):
    return Catalogue(folder)


@lru_cache(8)
def open_shop(folder, goals="synthetic", seed=0):
    """The shop of a data folder, the same object for every environment of the process. Raises DataError."""
    if goals not in ("synthetic", "human"):
        raise DataError(f"WebShop has no goals called {goals!r}; there are synthetic and human.")
    shop = Shop(_catalogue(str(folder)), goals, seed)
    if not len(shop):
        file = FILES["human" if goals == "human" else "attributes"][0]
        raise DataError(f"{folder} has no {goals} goals: no product has an instruction in {file}; {SOURCE}.")
    products, number = len(shop.catalogue.products), len(shop)
    say("WebShop", f"{products:,} products, {number:,} {goals} goals; title nouns by {shop.tagger}.")
    return shop


# ---------------------------------------------------------------- reward

COLOURS = tuple(  # the benchmark's colour words: the first one that an option contains stands for it
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy "
    "camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral "
    "cranberry cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass "
    "gray green grey heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon "
    "mauve merlot midnight mint mocha multicolor mushroom mustard natural navy nude olive orange peach "
    "pewter pink plum purple rainbow red rose royal rust sand sapphire seashell silver skull slate steel "
    "stone stonewash sunflower tan taupe teal tiger turquoise violet walnut wheat white wine yellow".split())
LATIN_1 = dict.fromkeys(range(128, 256))
NOT_NOUNS = STOP | frozenset(
    "from up out off over under our your you my its his her we i all any each more most very new great best "
    "good only so than too can has have had do does made make makes per w x".split())


@lru_cache(4096)
def title_words(title):
    """Nouns of a title without a tagger: its words that begin with a letter and are no function words.
    With such a list instead of spaCy the type reward was another for no correct product and for 13 % of the
    wrong ones in the top ten, by 0.07 on average."""
    words = re.findall(r"(?<![\w-])[^\W\d_][\w'-]*", title.lower())
    return [word for word in words if word not in NOT_NOUNS]


@lru_cache(1)
def noun_tagger():
    """(name, function from a title to its nouns, lower case, repeats kept): the official spaCy model where
    it is installed, else `title_words`."""
    if importlib.util.find_spec("en_core_web_sm") is None:
        return "a stop-word list (spaCy's en_core_web_sm is not installed)", title_words
    import spacy
    tag = spacy.load("en_core_web_sm")

    @lru_cache(4096)
    def nouns(title):
        return [word.text.lower() for word in tag(title) if word.pos_ in ("NOUN", "PROPN")]

    return "spaCy's en_core_web_sm", nouns


def similar(a, b):
    """thefuzz's token_set_ratio > 85. Anything but a str is compared as it prints."""
    return round(fuzz.token_set_ratio(_clean(a), _clean(b))) > 85


def _clean(value):
    return fuzz_utils.default_process(str(value).translate(LATIN_1))


def plain_colour(option):
    """The first colour word in an option, else the option. A (name, value) pair is a tuple, as officially:
    there a colour must be the whole name or value."""
    return next((colour for colour in COLOURS if colour in option), option)


def _shelves(product):
    return {part.strip() for part in product["product_category"].split("›")}


def type_reward(product, goal_product, nouns):
    """(r_type, its details): whether the right kind of thing was bought."""
    wanted, got = nouns(goal_product["title"]), nouns(product["title"])
    title = len(set(wanted) & set(got)) / len(wanted) if wanted else 0.2
    query = product["query"] == goal_product["query"]
    category = len(_shelves(product) & _shelves(goal_product)) >= 2
    r_type = 1.0 if query or category or title > 0.2 else 0.5
    if title < 0.1:
        r_type = 0.1 if title else 0.0
    return r_type, {"query_match": query, "category_match": category, "title_score": title}


def attribute_hits(product, attributes):
    """How many of the goal's attributes the product has, listed or in its text."""
    texts = [product["title"].lower(), " ".join(product["bullets"]).lower(), product["description"].lower()]
    hits = 0
    for wanted in attributes:
        listed = any(similar(own, wanted) for own in product["attributes"])
        hits += listed or any(wanted in text for text in texts)
    return hits


def option_hits(bought, wanted):
    """How many of the goal's options (values, or (name, value) pairs) are among the values bought."""
    bought = [plain_colour(option) for option in bought]
    wanted = [plain_colour(option) for option in wanted]
    return sum(any(similar(own, option) for own in bought) for option in wanted)


def reward(product, goal, price, options, nouns):
    """(reward in [0, 1], details) of buying `product` at `price` with `options` {name: value} for `goal`.

    r_type · (attribute hits + option hits + [price ≤ cap]) / (attributes + options + 1); the details carry
    the official names.
    """
    wanted = list(goal.options.items()) if isinstance(goal.options, dict) else goal.options
    r_type, details = type_reward(product, goal.product, nouns)
    attributes = attribute_hits(product, goal.attributes)
    chosen = option_hits(options.values(), wanted)
    cheap = bool(price <= goal.price_upper)
    total = len(goal.attributes) + len(wanted) + 1
    details["r_type"] = r_type
    details["r_att"] = attributes / len(goal.attributes)
    details["w_att"] = len(goal.attributes) / total
    details["r_price"] = cheap
    details["w_price"] = 1 / total
    if wanted:
        details["r_option"] = chosen / len(wanted)
        details["w_option"] = len(wanted) / total
    return (attributes + chosen + cheap) / total * r_type, details


# ---------------------------------------------------------------- a visit

TEXT, BUTTON, OPTION, PRODUCT = "text", "button", "option", "product"
SUBPAGES = ("description", "features", "reviews", "attributes")
DONE_ROWS = (
    "Thank you for shopping with us!|Your code: |None| (Paste it in your MTurk interface.)|Purchased|asin|{}|"
    "options|{}|attrs|None|category|None|query|None|product category|None|Target|asin|options|attrs|"
    "price upper|instuction text|category|product category|query|Goal |None|Reward|"
    "Your score (min 0.0, max 1.0)|{}|Reward Details |None").split("|")


def parse(action):
    """"search[red shoes]" -> ("search", "red shoes"), the argument lower-cased; None, None for anything else.

    The official pattern (.+)\\[(.+)\\], found without its quadratic search: the last bracket that still
    closes, the last that opens before it, nothing beyond the first line."""
    line = action.split("\n", 1)[0]
    close = line.rfind("]")
    start = line.rfind("[", 1, max(close - 1, 0))
    return (line[:start], line[start + 1:close].lower()) if start > 0 else (None, None)


def _shown(text):
    """A text as a browser's parser hands it on: white space alone becomes a blank or a line break."""
    if text and not text.strip(" \n\t\r\f"):
        return "\n" if "\n" in text else " "
    return text.replace("\r\n", "\n").replace("\r", "\n")


class Session:
    """One visit: the page that is open and what has been chosen. `step` acts, `rich` and `plain` show.

    page: search -> results -> item -> sub (description, features, reviews) -> … -> done.
    """

    def __init__(self, shop, goal):
        self.shop = shop
        self.goal = goal
        self.reward = 0.0
        self.details = None         # of the reward
        self._home()

    def _home(self):
        self.page = "search"
        self.words = []             # of the query
        self.number = 0             # of the results page
        self.hits = ()              # numbers of the products found
        self.product = None         # the product that is open
        self.bought = None          # its number
        self.options = {}           # what was chosen
        self.seen = set()           # asins of the products opened
        self.sub = ""               # the sub-page that is open

    # -- what a page shows

    def _results(self, number):
        self.page = "results"
        self.number = number
        self.product = None
        self.options = {}
        self.hits = self.shop.index.search(" ".join(self.words))

    def shelf(self):
        """Numbers of the products on the results page that is open."""
        return self.hits[(self.number - 1) * PER_PAGE:self.number * PER_PAGE]

    def _shelf_products(self):
        return [self.shop.catalogue.products[number] for number in self.shelf()]

    def rows(self):
        """[(kind, text)] of the open page, from top to bottom."""
        goal = self.goal.text
        if self.page == "search":
            return [(TEXT, "WebShop"), (TEXT, "Instruction: "), (TEXT, goal), (BUTTON, "Search")]
        if self.page == "done":
            return self._done_rows()
        rows = [(TEXT, "Instruction:"), (TEXT, goal), (BUTTON, "Back to Search")]
        if self.page == "results":
            return rows + self._result_rows()
        rows.append((BUTTON, "< Prev"))
        if self.page == "item":
            return rows + self._item_rows()
        if self.sub == "description":
            return [*rows, (TEXT, self.product["description"])]
        return rows + [(TEXT, " " + bullet) for bullet in self.product["bullets"] if self.sub == "features"]

    def _result_rows(self):
        rows = [(TEXT, f"Page {self.number} (Total results: {len(self.hits)})")]
        rows += [(BUTTON, "< Prev")] * (self.number > 1) + [(BUTTON, "Next >")]
        for product in self._shelf_products():
            rows += [(PRODUCT, product["asin"]), (TEXT, product["title"]), (TEXT, price_tag(product))]
        return rows

    def _item_rows(self):
        rows = []
        for name, values in self.product["options"].items():
            rows.append((TEXT, name))
            rows += [(OPTION, value) for value in values]
        price = f"Price: {price_tag(self.product)}"
        rows += [(TEXT, text) for text in (self.product["title"], price, "Rating: N.A.")]
        return rows + [(BUTTON, name) for name in ("Description", "Features", "Reviews", "Buy Now")]

    def _done_rows(self):
        options = json.dumps(self.options, sort_keys=True)
        for sign in "&'<>":  # escaped for a script tag
            options = options.replace(sign, f"\\u{ord(sign):04x}")
        values = iter((self.product["asin"], options, str(self.reward)))
        return [(TEXT, next(values) if row == "{}" else row) for row in DONE_ROWS]

    def _visible(self):
        rows = self.rows()
        if self.page != "done":
            rows = [(kind, _shown(text)) for kind, text in rows]
        return [(kind, text) for kind, text in rows if text and text != "\n"]

    def rich(self):
        """The page in the benchmark's rich text, its observation for agents.

        An option counts as chosen when "value" occurs, with its quotes, in the page's address, which ends
        in the options as JSON; so values with quotes or letters beyond ASCII never show as chosen.
        """
        lines, chosen = [], []
        address = f"{'+'.join(self.words)}/{self.number}/{json.dumps(self.options)}"
        for kind, text in self._visible():
            clicked = kind == OPTION and f'"{text}"' in address
            if clicked:
                chosen.append(f"You have clicked {text}.")
            if kind == PRODUCT:
                clicked = text in self.seen
            if kind != TEXT:
                button = "clicked button" if clicked else "button"
                text = f"[{button}] {text} [{button}_]"
            lines.append({OPTION: "  ", PRODUCT: "\n"}.get(kind, "") + text)
        return "\n".join([*reversed(chosen), *lines, ""])

    def plain(self):
        """The page in the benchmark's plain text."""
        return " [SEP] ".join(text.strip() for _, text in self._visible())

    def targets(self):
        """{what a click may name: kind}, in the official order: buttons, products, options."""
        rows = [] if self.page == "done" else self.rows()
        targets = {}
        for wanted in (BUTTON, PRODUCT, OPTION):
            for kind, text in rows:
                if kind == wanted:
                    targets[text if kind == OPTION else text.lower()] = kind
        return targets

    def available(self):
        """The benchmark's get_available_actions()."""
        return {"has_search_bar": self.page == "search", "clickables": list(self.targets())}

    def admissible(self):
        """Actions that do something here, ready to be sent but for the query."""
        clicks = [f"click[{name}]" for name in self.targets() if name != "search"]
        return ["search[<query>]"] * (self.page == "search") + clicks

    # -- what an action does

    def step(self, action):
        """Acts; returns whether the action was understood. What is not understood changes nothing; a
        purchase sets `reward` and ends the visit (page "done")."""
        name, argument = parse(action)
        if self.page == "done" or not argument:
            return False
        if name == "search":
            words = argument.split(" ")
            self.words = words[words[0] in ("<r>", "<a>", "<c>", "<q>"):]
            self._results(1)
            return True
        kind = self.targets().get(argument) if name == "click" else None
        if kind is None or argument == "search":
            return False
        self._click(argument, kind)
        return True

    def _click(self, name, kind):
        if name == "buy now":
            price = self.shop.prices[self.bought]
            self.reward, self.details = reward(
                self.product, self.goal, price, self.options, self.shop.nouns)
            self.page = "done"
        elif name == "back to search":
            self._home()
        elif name == "next >" and self.page == "results":
            self._results(self.number + 1)
        elif name == "< prev" and self.page in ("results", "item"):
            self._results(self.number - (self.page == "results"))
        elif name in SUBPAGES:
            self.page, self.sub = "sub", name
        else:
            self._choose(name, kind)

    def _choose(self, name, kind):
        """Opens a product, chooses an option (of the last name that has it), or leaves a sub-page."""
        if kind == PRODUCT:
            asins = [product["asin"].lower() for product in self._shelf_products()]
            self.bought = self.shelf()[asins.index(name)]
            self.product = self.shop.catalogue.products[self.bought]
            self.seen.add(self.product["asin"])
        elif kind == OPTION:
            having = [key for key, values in self.product["options"].items() if name in values]
            self.options[having[-1]] = name
        self.page = "item"

    def status(self):
        """The instruction and what has been chosen, on one line."""
        chosen = ", ".join(self.options.values()) or "nothing"
        return f"Task: {self.goal.text}. Chosen: {chosen}."


# ---------------------------------------------------------------- the scripted shopper

OPENING = re.compile(r"^(find me|i want|i need|i am looking for|i'm looking for) (an? )?")


def _queries(goal):
    """Search texts for a goal's product, the first that finds it is used: what the instruction asks for
    without its options and its cap (words that an agent can see), that with the options, the title."""
    if isinstance(goal.options, dict):
        asked, values = goal.product["instruction"], goal.options.values()
    else:
        asked, values = goal.text.removesuffix(cap_text(goal.price_upper)), goal.options
    asked = OPENING.sub("", asked.lower()).strip(" .")
    return asked, " ".join([asked, *values]).lower(), goal.product["title"].lower()


def _options_wanted(goal):
    """The values to click on the goal's product, in the order of the instruction; for a human goal the
    offered value that is or resembles each wish, if there is one."""
    if isinstance(goal.options, dict):
        return list(goal.options.values())
    offered, found = [value for values in goal.product["options"].values() for value in values], []
    for wish in goal.options:
        alike = (value for value in offered if similar(plain_colour(value), plain_colour(wish)))
        found.append(wish if wish in offered else next(alike, None))
    return [value for value in found if value is not None]


class Shopper:
    """Knows the goal's product and buys it: `act()` is the next action in whatever state the session is, also
    one that somebody else brought about. It holds nothing between calls."""

    def __init__(self, session):
        self.session = session

    def query(self):
        """The first query that puts the product on page 1, else the one that puts it nearest to the top."""
        target, found = self.session.goal.target, {}
        for query in _queries(self.session.goal):
            hits = self.session.shop.index.search(query)
            if target in hits:
                found.setdefault(hits.index(target) // PER_PAGE, query)
        return found[min(found)] if found else _queries(self.session.goal)[0]

    def act(self):
        """The next action, or None after the purchase."""
        session = self.session
        if session.page == "done":
            return None
        if session.page == "search":
            return f"search[{self.query()}]"
        if session.page == "results":
            return self._on_results(session)
        if session.page == "sub" or session.bought != session.goal.target:
            return "click[< prev]"
        chosen = session.options.values()
        missing = [value for value in _options_wanted(session.goal) if value not in chosen]
        return f"click[{missing[0]}]" if missing else "click[buy now]"

    def _on_results(self, session):
        target = session.goal.target
        if target in session.shelf():
            return f"click[{session.goal.product['asin'].lower()}]"
        if target not in session.hits or " ".join(session.words) != self.query():
            return "click[back to search]"  # turning the pages of somebody else's query would be a guess
        ahead = session.hits.index(target) // PER_PAGE >= session.number
        return "click[next >]" if ahead else "click[< prev]"


def solve(shop, index, turns=15):
    """The scripted shopper's actions for a goal if they earn reward 1 within `turns`, else ()."""
    session, actions = Session(shop, shop.goal(index)), []
    while session.page != "done" and len(actions) < turns:
        actions.append(Shopper(session).act())
        session.step(actions[-1])
    return tuple(actions) if session.reward == 1 else ()
