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
import os
import random
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rapidfuzz import fuzz, utils as fuzz_utils

from worlds.webshop_data import FILES, SOURCE, VERSION, Catalogue, DataError, alone, price_tag, say
from worlds.webshop_search import STOP

PER_PAGE = 10  # products on a results page
NO_CAP = 1_000_000  # the price cap of a goal whose product is too dear for one
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


def official_order(number, cache):
    """The benchmark's order of so many goals, by its own seed; kept on disk: to shuffle millions takes seconds."""
    path = cache / f"order-{number}.npy"
    with alone(path):
        if not path.exists():
            order = list(range(number))
            random.Random(233).shuffle(order)
            np.save(path.with_suffix(".new.npy"), np.array(order, np.int64))
            os.replace(path.with_suffix(".new.npy"), path)
    return np.load(path, mmap_mode="r")


class Shop:
    """A catalogue with sale prices and goals: all that the environments of a process share.

    Goals are stored by family (a product for synthetic goals, an instruction for human ones) and put
    together when asked for: the full catalogue has millions. `prices` (products,) and `caps` (families,)
    are what the original draws unseeded; assign to them to replay a recording."""

    def __init__(self, catalogue, goals="synthetic", seed=0, nouns=None):
        self.catalogue, self.index, self.kind, self.seed = catalogue, catalogue.index, goals, seed
        self.tagger, self.nouns = (getattr(nouns, "__name__", "given"), nouns) if nouns else noun_tagger()
        rng = random.Random(f"prices {seed}")
        self.prices = np.array(catalogue.low)
        for i in np.flatnonzero(catalogue.low != catalogue.high):
            self.prices[i] = rng.uniform(float(catalogue.low[i]), float(catalogue.high[i]))
        synthetic = goals == "synthetic"
        counts = np.asarray(catalogue.combinations if synthetic else catalogue.human)
        owners = np.flatnonzero(counts)
        self.family = owners if synthetic else np.repeat(owners, counts[owners])  # family -> product
        sizes = counts[owners] if synthetic else np.ones(len(self.family), np.int64)
        self.first = np.concatenate([[0], np.cumsum(sizes)])  # family -> its first goal, before the shuffle
        self.family_weight = catalogue.weights[owners] if synthetic else np.ones(len(self.family))
        rng = random.Random(f"caps {seed}")
        self.caps = np.array([price_cap(float(self.prices[i]), rng) for i in self.family], np.float64)
        self.order = official_order(int(self.first[-1]), catalogue.cache)

    def __len__(self):
        """Number of goals."""
        return len(self.order)

    def goal(self, index):
        """Goal `index` of the official order."""
        place = int(self.order[index])
        family = int(np.searchsorted(self.first, place, "right")) - 1
        number, cap = int(self.family[family]), float(self.caps[family])
        product, weight = self.catalogue.product(number), float(self.family_weight[family])
        if self.kind == "human":
            text, attributes, options = product["human"][family - int(np.searchsorted(self.family, number))]
        else:
            names, attributes = sorted(product["options"]), product["instruction_attributes"]
            combinations = itertools.product(*(product["options"][name] for name in names))
            chosen = next(itertools.islice(combinations, place - int(self.first[family]), None))
            options, text = dict(zip(names, chosen)), product["instruction"]
            text += " with " * bool(options) + ", and ".join(f"{k}: {v}" for k, v in options.items())
        return Goal(index, number, product, text + cap_text(cap), attributes, options, cap, weight)

    def split(self, name):
        """range of goal indices."""
        start, stop = SPLITS[name]
        return range(len(self))[start:stop]

    @lru_cache(len(SPLITS))
    def _cumulative(self, split):
        family = np.searchsorted(self.first, self.order[split.start:split.stop], "right") - 1
        return np.cumsum(self.family_weight[family])

    def draw(self, split, uniform):
        """A goal index of the split (a range), rare attributes first; `uniform` in [0, 1) decides."""
        weights = self._cumulative(split)
        return split[min(int(np.searchsorted(weights, uniform * weights[-1], "right")), len(split) - 1)]

    def experts(self, indices):
        """{goal index: actions of the scripted shopper's session that rewards 1}; without an entry: none.
        Found once, then read from the catalogue's cache, which is thrown away when the data change."""
        path = self.catalogue.cache / f"experts-{self.kind}-{self.seed}.json"
        drawn = hashlib.sha256(self.prices.tobytes() + self.caps.tobytes()).hexdigest()
        key = f"{VERSION} {self.tagger} {drawn}"
        with alone(path):
            known = json.loads(path.read_text()) if path.exists() else {}
            known = known if known.get("key") == key else {"key": key}
            missing = [i for i in indices if str(i) not in known]
            if len(missing) > 1000:
                say(f"the scripted shopper plays {len(missing):,} goals, once; {path} keeps its actions.")
            known.update((str(i), solve(self, i)) for i in missing)
            if missing:
                new = path.with_suffix(".new")
                new.write_text(json.dumps(known))
                os.replace(new, path)
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
    say(f"{len(shop.catalogue):,} products, {len(shop):,} {goals} goals; title nouns by {shop.tagger}.")
    return shop


# ---------------------------------------------------------------- reward

COLOURS = tuple(  # the benchmark's colour words: the first one that an option contains stands for it
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo "
    "caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream crystal "
    "dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather indigo "
    "ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha "
    "multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal "
    "rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise "
    "violet walnut wheat white wine yellow".split())
LATIN_1 = dict.fromkeys(range(128, 256))
NOT_NOUNS = STOP | frozenset(
    "from up out off over under our your you my its his her we i all any each more most very new great best good "
    "only so than too can has have had do does made make makes per w x".split())


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
    nouns = lru_cache(4096)(lambda title: [w.text.lower() for w in tag(title) if w.pos_ in ("NOUN", "PROPN")])
    return "spaCy's en_core_web_sm", nouns


def similar(a, b):
    """thefuzz's token_set_ratio > 85. Anything but a str is compared as it prints."""
    clean = lambda x: fuzz_utils.default_process(str(x).translate(LATIN_1))
    return round(fuzz.token_set_ratio(clean(a), clean(b))) > 85


def plain_colour(option):
    """The first colour word in an option, else the option. A (name, value) pair is a tuple, as officially:
    there a colour must be the whole name or value."""
    return next((colour for colour in COLOURS if colour in option), option)


def type_reward(product, goal_product, nouns):
    """(r_type, its details): whether the right kind of thing was bought."""
    wanted, got = nouns(goal_product["title"]), nouns(product["title"])
    title = len(set(wanted) & set(got)) / len(wanted) if wanted else 0.2
    shelves = [{part.strip() for part in p["product_category"].split("›")} for p in (product, goal_product)]
    query, category = product["query"] == goal_product["query"], len(shelves[0] & shelves[1]) >= 2
    r_type = 1.0 if query or category or title > 0.2 else 0.5
    r_type = 0.0 if title == 0 else 0.1 if title < 0.1 else r_type
    return r_type, {"query_match": query, "category_match": category, "title_score": title}


def attribute_hits(product, attributes):
    """How many of the goal's attributes the product has, listed or in its text."""
    texts = [product["title"].lower(), " ".join(product["bullets"]).lower(), product["description"].lower()]
    return sum(any(similar(own, wanted) for own in product["attributes"]) or any(wanted in text for text in texts)
               for wanted in attributes)


def option_hits(bought, wanted):
    """How many of the goal's options (values, or (name, value) pairs) are among the values bought."""
    bought, wanted = [plain_colour(o) for o in bought], [plain_colour(o) for o in wanted]
    return sum(any(similar(own, option) for own in bought) for option in wanted)


def reward(product, goal, price, options, nouns):
    """(reward in [0, 1], details) of buying `product` at `price` with `options` {name: value} for `goal`.

    r_type · (attribute hits + option hits + [price ≤ cap]) / (attributes + options + 1); the details carry
    the official names."""
    wanted = list(goal.options.items()) if isinstance(goal.options, dict) else goal.options
    r_type, details = type_reward(product, goal.product, nouns)
    attributes, chosen = attribute_hits(product, goal.attributes), option_hits(options.values(), wanted)
    total, cheap = len(goal.attributes) + len(wanted) + 1, bool(price <= goal.price_upper)
    details.update(r_type=r_type, r_att=attributes / len(goal.attributes), w_att=len(goal.attributes) / total,
                   r_price=cheap, w_price=1 / total)
    if wanted:
        details.update(r_option=chosen / len(wanted), w_option=len(wanted) / total)
    return (attributes + chosen + cheap) / total * r_type, details


# ---------------------------------------------------------------- a visit

TEXT, BUTTON, OPTION, PRODUCT = "text", "button", "option", "product"
SUBPAGES = ("description", "features", "reviews", "attributes")
DONE_ROWS = ("Thank you for shopping with us!|Your code: |None| (Paste it in your MTurk interface.)|Purchased|asin|{}|"
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

    page: search -> results -> item -> sub (description, features, reviews) -> … -> done."""

    def __init__(self, shop, goal):
        self.shop, self.goal, self.reward, self.details = shop, goal, 0.0, None
        self._home()

    def _home(self):
        self.page, self.words, self.number, self.hits = "search", [], 0, ()
        self.product, self.bought, self.options, self.seen, self.sub = None, None, {}, set(), ""

    def _results(self, number):
        self.page, self.number, self.product, self.options = "results", number, None, {}
        self.hits = self.shop.index.search(" ".join(self.words))

    def shelf(self):
        """Numbers of the products on the results page that is open."""
        return self.hits[(self.number - 1) * PER_PAGE:self.number * PER_PAGE]

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
        for product in map(self.shop.catalogue.product, self.shelf()):
            rows += [(PRODUCT, product["asin"]), (TEXT, product["title"]), (TEXT, price_tag(product))]
        return rows

    def _item_rows(self):
        rows = []
        for name, values in self.product["options"].items():
            rows += [(TEXT, name), *((OPTION, value) for value in values)]
        rows += [(TEXT, text) for text in (self.product["title"], f"Price: {price_tag(self.product)}", "Rating: N.A.")]
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
        in the options as JSON; so values with quotes or letters beyond ASCII never show as chosen."""
        lines, chosen = [], []
        address = f"{'+'.join(self.words)}/{self.number}/{json.dumps(self.options)}"
        for kind, text in self._visible():
            clicked = text in self.seen if kind == PRODUCT else kind == OPTION and f'"{text}"' in address
            if kind == OPTION and clicked:
                chosen.append(f"You have clicked {text}.")
            if kind != TEXT:
                text = f"[clicked button] {text} [clicked button_]" if clicked else f"[button] {text} [button_]"
            lines.append({OPTION: "  ", PRODUCT: "\n"}.get(kind, "") + text)
        return "\n".join([*reversed(chosen), *lines, ""])

    def plain(self):
        """The page in the benchmark's plain text."""
        return " [SEP] ".join(text.strip() for _, text in self._visible())

    def targets(self):
        """{what a click may name: kind}, in the official order: buttons, products, options."""
        rows = [] if self.page == "done" else self.rows()
        return {text if kind == OPTION else text.lower(): kind
                for wanted in (BUTTON, PRODUCT, OPTION) for kind, text in rows if kind == wanted}

    def available(self):
        """The benchmark's get_available_actions()."""
        return {"has_search_bar": self.page == "search", "clickables": list(self.targets())}

    def admissible(self):
        """Actions that do something here, ready to be sent but for the query."""
        clicks = [f"click[{name}]" for name in self.targets() if name != "search"]
        return ["search[<query>]"] * (self.page == "search") + clicks

    def step(self, action):
        """Acts; returns whether the action was understood. What is not understood changes nothing; a purchase
        sets `reward` and ends the visit (page "done")."""
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
            self._buy()
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
            named = (n for n in self.shelf() if self.shop.catalogue.product(n)["asin"].lower() == name)
            self.bought = next(named)
            self.product = self.shop.catalogue.product(self.bought)
            self.seen.add(self.product["asin"])
        elif kind == OPTION:
            self.options[[key for key, values in self.product["options"].items() if name in values][-1]] = name
        self.page = "item"

    def _buy(self):
        price = float(self.shop.prices[self.bought])
        self.reward, self.details = reward(self.product, self.goal, price, self.options, self.shop.nouns)
        self.page = "done"

    def status(self):
        """The instruction and what has been chosen, on one line."""
        chosen = ", ".join(self.options.values()) or "nothing"
        return f"Task: {self.goal.text}. Chosen: {chosen}."


# ---------------------------------------------------------------- the scripted shopper

def _queries(goal):
    """Search texts for a goal's product, the first that finds it is used: what the instruction asks for
    without its options and its cap (words that an agent can see), that with the options, the title."""
    asked = goal.text.removesuffix(cap_text(goal.price_upper)).lower()
    values = list(goal.options.values()) if isinstance(goal.options, dict) else goal.options
    if isinstance(goal.options, dict):
        asked = goal.product["instruction"].lower()
    asked = re.sub(r"^(find me|i want|i need|i am looking for|i'm looking for) (an? )?", "", asked).strip(" .")
    return asked, " ".join([asked, *values]).lower(), goal.product["title"].lower()


def _options_wanted(goal):
    """The values to click on the goal's product, in the order of the instruction; for a human goal the offered
    value that is or resembles each wish, if there is one."""
    if isinstance(goal.options, dict):
        return list(goal.options.values())
    offered = [value for values in goal.product["options"].values() for value in values]
    resembling = lambda wish: (v for v in offered if similar(plain_colour(v), plain_colour(wish)))
    found = [wish if wish in offered else next(resembling(wish), None) for wish in goal.options]
    return [value for value in found if value is not None]


class Shopper:
    """Knows the goal's product and buys it: `act()` is the next action in whatever state the session is, also one
    that somebody else brought about. It holds nothing between calls."""

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
        missing = [value for value in _options_wanted(session.goal) if value not in session.options.values()]
        return f"click[{missing[0]}]" if missing else "click[buy now]"

    def _on_results(self, session):
        target = session.goal.target
        if target in session.shelf():
            return f"click[{session.goal.product['asin'].lower()}]"
        if target not in session.hits or " ".join(session.words) != self.query():
            return "click[back to search]"  # turning the pages of somebody else's query would be a guess
        return "click[next >]" if session.hits.index(target) // PER_PAGE >= session.number else "click[< prev]"


def solve(shop, index, turns=15):
    """The scripted shopper's actions for a goal if they earn reward 1 within `turns`, else ()."""
    session, actions = Session(shop, shop.goal(index)), []
    while session.page != "done" and len(actions) < turns:
        actions.append(Shopper(session).act())
        session.step(actions[-1])
    return tuple(actions) if session.reward == 1 else ()
