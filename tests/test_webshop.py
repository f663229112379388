"""WebShop: recordings of the official engine and of our own, rules written down by hand, search against an
obvious scoring of every document, bad input, the adapter and the scripted shopper.

    python tests/test_webshop.py      # records tests/data/webshop_recordings.json again, from this engine
"""

import collections
import json
import math
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import envs
from harness.cli import UserError
from worlds import webshop, webshop_catalogue, webshop_data, webshop_search
from worlds.webshop import Session, Shop, Shopper
from worlds.webshop_data import Catalogue, DataError

OFFICIAL = ROOT.parent / "shared" / "webshop_made_up"  # recordings of the official engine, if any
OURS = ROOT / "tests" / "data" / "webshop_recordings.json"


def item(asin, name, **more):
    known = {
        "asin": asin, "name": name, "full_description": "", "small_description": [], "pricing": "$9.99",
        "customization_options": {}, "category": "garden", "query": "Lamp ",
        "product_category": "Home › Light › Lamp"}
    return {**known, **more}


def values(*texts):
    return [{"value": text} for text in texts]


def entry(*attributes, instruction):
    """A product's attributes, all of which its instruction asks for."""
    attributes = list(attributes)
    return {"attributes": attributes, "instruction": instruction, "instruction_attributes": attributes}


def wish(instruction, attributes, options):
    return {
        "instruction": instruction, "instruction_attributes": attributes, "instruction_options": options}


ITEMS = [  # every odd thing that the loader meets
    item(
        "LAMP01", "Tall Brass Lamp", full_description="A lamp <b> & more.", pricing="$20.00 - $35.50",
        small_description=["Folding stand ", "works\r\nanywhere", "  ", "\n"],
        customization_options={
            "Color": values("Black", "Navy/Red", "Crème"),
            "Size": values(' 6" ', "X-Large", "Small"),
            "Style": None}),
    item("LAMP01", "the same asin again"),
    item("nan", "no asin"),
    item("TOOLONGASIN", "eleven characters"),
    item(
        "LAMP02", "Brass Lamp", pricing="", small_description="a plain string",
        customization_options={"Color": values("Black")}),
    item(
        "SOAP03", "Mild Soap", pricing="$1,299.00", query="Soap", product_category="Beauty › Bath › Soap",
        category="beauty"),
    item(
        "LAMP04", "Reading Lamp 三脚", pricing="$1 to $2 to $3",
        customization_options={"Trim": values("gold"), "Knob": values("gold", "search")}),
    {"asin": "BARE05", "name": "Bare Thing"},
    item("LAMP06", "", customization_options={"Color": []}),
]
ENTRIES = {
    "LAMP01": entry("folding stand", "brass", instruction="Find me folding stand lamp"),
    "LAMP02": entry("brass", instruction="Find me brass lamp"),
    "SOAP03": entry("mild", instruction="Find me mild soap"),
    "LAMP04": {"attributes": []},
}
WISHES = {
    "LAMP01": [wish("a brass lamp in black.", ["brass"], ["black"]), wish("nothing to look for", [], [])]}


def write_files(folder, items=ITEMS, entries=ENTRIES, wishes=WISHES):
    """The official files; a text is written as it is."""
    files = {"items_shuffle_1000": items, "items_ins_v2_1000": entries, "items_human_ins": wishes}
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / f"{name}.json").write_text(text)
    return folder


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """No test touches the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TCOD_CACHE", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def shop(odd):
    return Shop(Catalogue(odd))


@pytest.fixture(scope="module")
def default():
    """The embedded default."""
    return webshop.open_shop(str(webshop_catalogue.default_folder()))


def goals(shop):
    return [shop.goal(i) for i in range(len(shop))]


def goal_with(shop, options):
    """The goal of these options."""
    return next(goal for goal in goals(shop) if goal.options == options)


def visit(shop, asin, index=None, options=None):
    """A session on that product's page, for goal `index`, else for one of its own (with these options)."""
    catalogue = shop.catalogue
    product = next(product for product in catalogue.products if product["asin"] == asin)
    if index is None:
        own = [goal for goal in goals(shop) if goal.product["asin"] == asin]
        index = next(goal.index for goal in own if options in (None, goal.options))
    session = Session(shop, shop.goal(index))
    assert session.step(f"search[{product['title']}]")
    assert session.step(f"click[{asin}]")
    return session


# ---------------------------------------------------------------- recordings

def state(session):
    done = session.page == "done"
    return {
        "rich": session.rich(), "text": session.plain(), "avail": session.available(),
        "reward": session.reward if done else 0.0, "done": done, "info": session.details}


def assert_replays(shop, sessions):
    for recorded in sessions:
        session = Session(shop, shop.goal(recorded["goal_index"]))
        for step in recorded["steps"]:
            if step["action"] is not None:
                session.step(step["action"])
            now = state(session)
            for key in step.keys() - {"action"}:
                assert now[key] == step[key], (recorded["goal_index"], step["action"], key)


def as_recorded(goal):
    product = goal.product
    return {
        "asin": product["asin"], "category": product["category"], "query": product["query"],
        "name": product["title"], "product_category": product["product_category"],
        "instruction_text": goal.text, "attributes": goal.attributes, "price_upper": goal.price_upper,
        "goal_options": goal.options, "weight": goal.weight}


def tagged_nouns(title):
    """What spaCy finds in the titles of the recordings: one of their words is a verb to it."""
    return [word for word in webshop.title_words(title) if word != "running"]


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no recordings of the official engine beside the checkout")
@pytest.mark.parametrize("kind", ["synthetic", "human"])
def test_official_recordings(kind):
    """Goals, renderings, available actions or rewards that are not the official engine's, given its draws."""
    recorded = json.loads((OFFICIAL / "recordings.json").read_text())[kind]
    shop = Shop(Catalogue(OFFICIAL), kind, nouns=tagged_nouns)
    shop.prices = [recorded["prices"][product["asin"]] for product in shop.catalogue.products]
    for (wish, _), goal in zip(shop.order, recorded["goals"]):
        shop.caps[wish] = goal["price_upper"]
    assert [as_recorded(goal) for goal in goals(shop)] == recorded["goals"]
    assert_replays(shop, recorded["sessions"])


def test_our_recordings(shop):
    """An engine that no longer does what it did when it matched the official recordings, on odd products.
    The prices and caps are recorded, so the test does not hang on Python's generator."""
    recorded = json.loads(OURS.read_text())
    shop = Shop(shop.catalogue)
    shop.prices, shop.caps = recorded["prices"], recorded["caps"]
    assert [as_recorded(goal) for goal in goals(shop)] == recorded["goals"]
    assert_replays(shop, recorded["sessions"])


def record(folder):
    """tests/data/webshop_recordings.json: random visits to the odd catalogue."""
    shop, rng = Shop(Catalogue(write_files(folder))), random.Random(0)
    sessions = []
    for index in range(len(shop)):
        session, steps = Session(shop, shop.goal(index)), []
        for turn in range(16):
            action = None if turn == 0 else random_action(session, rng)
            if action is not None:
                session.step(action)
            steps.append({"action": action, **state(session)})
        sessions.append({"goal_index": index, "steps": steps})
    drawn = {"prices": shop.prices, "caps": shop.caps}
    listed = [as_recorded(goal) for goal in goals(shop)]
    OURS.parent.mkdir(exist_ok=True)
    OURS.write_text(json.dumps({**drawn, "sessions": sessions, "goals": listed}, indent=0))


ODD_ACTIONS = (
    "", "click[]", "[[[]]]", "click[[x]]", "search[ ]", "search[]", "buy now", "click[nope]",
    "search[lamp\n]", "CLICK[buy now]", "click[Buy Now]", "search[brass lamp]", "search[<r> lamp]",
    "search[the of]", "\udc80[\udc80]", "click[search]")


def random_action(session, rng):
    """Half of them sensible, some of them not actions at all."""
    if rng.random() < 0.5:
        return Shopper(session).act() or "click[buy now]"
    able = [action for action in session.admissible() if "<query>" not in action]
    return rng.choice(able if able and rng.random() < 0.7 else ODD_ACTIONS)


# ---------------------------------------------------------------- search

@pytest.mark.parametrize("text, terms", [  # as Lucene's analyser answered
    ("the dogs' bone isn't u.s.a. 3.5-inch wi-fi o'neil's terribly apology 1,299.00 6\" x-large a_b __ "
     "size:10 t:shirt",
     "dog bone isn't u.s.a 3.5 inch wi fi o'neil terribl apolog 1,299.00 6 x larg a_b size 10 t:shirt"),
    ("women’s café crème 靴 の ブーツ ★★ 👍🏽 ™ naïve ﬁt",
     "women café crème 靴 の ブーツ ★ ★ 👍🏽 ™ naïv ﬁt"),
    ("yyyyyy relational generalizations oscillators  skies dying its by was",
     "yyyyyi relat gener oscil ski dy it"),
    (f"{'x' * 255} {'z' * 256}", f"{'x' * 255} {'z' * 255} z")])
def test_analyser(text, terms):
    """A term that Lucene does not have, so that a product is not found by it."""
    assert webshop_search.analyse(text) == terms.split()


def test_one_byte_lengths():
    """Lucene's lossy lengths taken for exact ones: exact below 40, then steps of 2, 4, 8, …"""
    lengths = (0, 39, 40, 41, 47, 55, 56, 59, 60, 1000)
    stored = [webshop_search.one_byte(n) for n in lengths]
    assert stored == [0, 39, 40, 40, 46, 54, 56, 56, 60, 984]


def obvious_hits(docs, names, query, k1=0.9, b=0.4):
    """BM25 by its formula for every document, in double precision -> {name: score} of the best fifty. docs: a
    Counter of terms for each."""
    mean = sum(sum(doc.values()) for doc in docs) / len(docs)
    scores = []
    for doc, name in zip(docs, names):
        norm = k1 * (1 - b + b * webshop_search.one_byte(sum(doc.values())) / mean)
        score = 0.0
        for term in webshop_search.analyse(query):
            frequency = sum(term in other for other in docs)
            idf = math.log(1 + (len(docs) - frequency + 0.5) / (frequency + 0.5))
            score += idf * doc[term] / (doc[term] + norm)
        scores.append((-score, name))
    return {name: -score for score, name in sorted(scores)[:50] if score < 0}


def in_order(score, a, b):
    """Whether a may stand before b: a higher score, or one within rounding of it, equal ones by name."""
    if score[a] > score[b]:
        return True
    near = math.isclose(score[a], score[b], rel_tol=1e-6)
    return near and (a < b or score[a] != score[b])


def test_search_against_obvious_scoring():
    """A hit that is lost, or in the wrong place: 60 queries, from one word to many."""
    rng = random.Random(0)
    texts = [" ".join(f"w{int(400 ** rng.random())}" for _ in range(rng.randint(0, 90))) for _ in range(120)]
    names = [f"{number:03}" for number in rng.sample(range(1000), 120)]
    index = webshop_search.Index(texts, names)
    docs = [collections.Counter(webshop_search.analyse(text)) for text in texts]
    for number in range(60):
        query = " ".join(rng.choice(texts).split()[:1 + number % 12])
        score, got = obvious_hits(docs, names, query), [names[doc] for doc in index.search(query)]
        assert set(got) == set(score), query
        assert all(in_order(score, a, b) for a, b in zip(got, got[1:])), query


def test_search_orders_ties_by_name_and_cuts_at_fifty():
    """Equal scores in the order of the file: the asin decides."""
    names = [f"Z{i:03}" for i in reversed(range(60))]
    index = webshop_search.Index(["twin lamp"] * 60, names)
    assert [names[doc] for doc in index.search("twin")] == [f"Z{i:03}" for i in range(50)]
    assert [index.search(query) for query in ("", "the of", "unknown")] == [(), (), ()]
    assert webshop_search.Index(["", "the !"], "AB").search("lamp") == ()   # products without a word


# ---------------------------------------------------------------- loading and goals

def test_loader(shop):
    """Duplicates, 'nan' and long asins are skipped; the rest is as the official loader leaves it."""
    found = shop.catalogue.products
    assert [p["asin"] for p in found] == ["LAMP01", "LAMP02", "SOAP03", "LAMP04", "BARE05", "LAMP06"]
    assert [p["prices"] for p in found] == [[20.0, 35.5], [100.0], [1299.0], [1.0, 2.0], [100.0], [9.99]]
    tags = [webshop_data.price_tag(p) for p in found[:3]]
    assert tags == ["$20.0 to $35.5", "$100.0", "$1299.0"]
    lamp, plain, _, reading, bare, _ = found
    assert lamp["options"] == {"color": ["black", "navy | red", "crème"], "size": ['6"', "x-large", "small"]}
    assert lamp["query"] == "lamp"
    assert plain["bullets"] == ["a plain string"]
    assert reading["attributes"] == []
    assert (bare["attributes"], bare["options"]) == (["DUMMY_ATTR"], {})
    assert webshop_data.document(plain) == "brass lamp  a plain string color: black"


def test_goals(shop):
    """LAMP01 gives 3 x 3 goals, the others one each; names sorted, weights over an attribute's goals."""
    counts = collections.Counter(goal.product["asin"] for goal in goals(shop))
    assert counts == {"LAMP01": 9, "LAMP02": 1, "SOAP03": 1}
    soap = next(goal for goal in goals(shop) if goal.product["asin"] == "SOAP03")
    assert (soap.text, soap.options, soap.price_upper) == ("Find me mild soap", {}, webshop.NO_CAP)
    lamp = goal_with(shop, {"color": "navy | red", "size": "x-large"})
    assert lamp.text.startswith(
        "Find me folding stand lamp with color: navy | red, and size: x-large, and price lower than ")
    assert lamp.weight == pytest.approx((1 / 9 + 1 / 10) / 2)   # folding stand: 9 goals, brass: 10
    caps = {goal.price_upper for goal in goals(shop) if goal.product["asin"] == "LAMP01"}
    assert len(caps) == 1                                       # one cap a product


def test_order_of_goals_is_official_and_what_is_drawn_is_seeded(shop):
    """The shuffle has the benchmark's own seed; prices and caps have ours."""
    order = [(number, options) for number, wish in enumerate(shop.wishes) for options in wish.options]
    random.seed(233)
    random.shuffle(order)
    assert shop.order == order
    same = Shop(shop.catalogue, seed=0)
    assert (same.prices, same.caps) == (shop.prices, shop.caps)
    others = [Shop(shop.catalogue, seed=seed) for seed in range(1, 8)]
    drawn = {other.prices[0] for other in others}
    assert len(drawn) == 7 and all(20 <= price <= 35.5 for price in drawn)
    assert all(other.order == order for other in others)


@pytest.mark.parametrize("price, caps", [
    (9.99, {20.0, 30.0, 40.0}),
    (10, {30.0, 40.0, 50.0}),
    (975, {990.0}),
    (985, {webshop.NO_CAP}),
    (2000, {webshop.NO_CAP})])
def test_price_caps(price, caps):
    """The larger of two of the first four multiples of ten above the price; fewer than two: none."""
    assert {webshop.price_cap(price, random.Random(seed)) for seed in range(100)} == caps


def test_human_goals(shop):
    """One per instruction with attributes; the full stop goes, options are a list, the weight is 1."""
    goal, = goals(Shop(shop.catalogue, "human"))
    assert goal.text.startswith("a brass lamp in black, and price lower than ")
    assert (goal.options, goal.weight) == (["black"], 1)


def test_splits(default):
    """Goals of test in train: the benchmark's splits, and those of the TCOD release."""
    ranges = [default.split(name) for name in webshop.SPLITS]
    official = [range(1500, len(default)), range(500, 1500), range(500)]
    assert ranges == [*official, range(4096), range(4096, 4196)]
    draws = [default.draw(range(500), i / 1000) for i in range(1000)]
    assert min(draws) >= 0 and max(draws) < 500
    assert len(set(draws)) > 300


# ---------------------------------------------------------------- reward

def type_reward(title, goal_title, shelf="a", goal_shelf="b"):
    """The reward of the type for two products whose query is their title; every word is a noun."""
    bought, wanted = (
        {"title": text, "query": text, "product_category": path}
        for text, path in ((title, shelf), (goal_title, goal_shelf)))
    return webshop.type_reward(bought, wanted, str.split)[0]


TEN = "a b c d e f g h i j"


@pytest.mark.parametrize("title, goal_title, shelves, expected", [
    ("x", "x", (), 1),                                  # the query
    ("a y", "a b c", (), 1),                            # more than a fifth of the nouns
    ("anything", "", (), 0.5),
    ("a b", TEN, (), 0.5),
    ("a y", TEN, (), 0.5),
    ("a y", TEN + " k", (), 0.1),                       # less than a tenth
    ("a", "a a a a b c d e f g h", (), 0.1),            # a noun counts once, of all words
    ("y", TEN, (), 0),
    ("a b", TEN, ("p › q", "q › p"), 1),                # two shelves
    ("y", TEN, ("p › q", "q › p"), 0)])
def test_type_reward(title, goal_title, shelves, expected):
    """1 for the query, two shelves or a fifth of the nouns; else 0.5, 0.1 below a tenth, 0 without a noun."""
    assert type_reward(title, goal_title, *shelves) == expected


def test_attribute_hits():
    """Listed or nearly so, or anywhere in the lower-cased text."""
    product = {
        "title": "Soft Shirt", "bullets": ["EASY care", "100% cotton"], "description": "Made to LAST",
        "attributes": ["machine wash"]}
    have = ["machine wash", "wash machine", "easy care", "100% cotton", "to last", "soft"]
    assert webshop.attribute_hits(product, have) == 6
    lack = ["hand stitched", "LAST", "care 100%"]       # the last is there: bullets are joined by a blank
    assert webshop.attribute_hits(product, lack) == 1


@pytest.mark.parametrize("bought, wanted, hits", [
    (["dark navy"], ["navy blue"], 0),                  # by the list's order the one is dark, the other blue
    (["deep blue"], ["sky blue"], 1),                   # both are blue
    (["large"], ["x-large"], 1),                        # token sets
    (["x-large"], [("size", "x-large")], 1),
    (["dark blue"], [("color", "dark blue")], 1),
    (["rectangular"], [("shape", "rectangular")], 0),   # contains tan; the pair does not
    (["black"], [("color", "black")], 1),
    ([], ["red"], 0),
    (["red"], [], 0),
    (["6\""], [("size", "6\"")], 1)])
def test_option_hits(bought, wanted, hits):
    """Colours first, then token sets; pairs as they print."""
    assert webshop.option_hits(bought, wanted) == hits


def test_reward_by_hand(shop):
    """LAMP01's two attributes, two options and the price: five terms."""
    goal = goal_with(shop, {"color": "black", "size": "small"})

    def pay(price, options):
        return webshop.reward(goal.product, goal, price, options, webshop.title_words)[0]

    assert pay(1, {"color": "black", "size": "small"}) == 1
    assert pay(1, {"color": "black"}) == 0.8
    assert pay(1000, {}) == 0.4
    soap = next(goal for goal in goals(shop) if goal.product["asin"] == "SOAP03")
    total, details = webshop.reward(soap.product, soap, 1299.0, {}, webshop.title_words)
    assert total == 1
    assert "r_option" not in details and details["w_att"] == 0.5    # no option term
    wrong, _ = webshop.reward(goal.product, soap, 1, {}, webshop.title_words)
    assert wrong == 0                                               # no noun in common


# ---------------------------------------------------------------- pages and actions

ITEM_PAGE = """\
[button] < Prev [button_]
color
  [button] black [button_]
  [clicked button] navy | red [clicked button_]
  [button] crème [button_]
size
  [button] 6" [button_]
  [button] x-large [button_]
  [clicked button] small [clicked button_]
Tall Brass Lamp
Price: $20.0 to $35.5
Rating: N.A.
[button] Description [button_]
[button] Features [button_]
[button] Reviews [button_]
[button] Buy Now [button_]
"""


def test_pages_by_hand(shop):
    """Every page in rich text, written out: what a model was never shown."""
    goal = goal_with(shop, {"color": "crème", "size": '6"'})
    session, text = Session(shop, goal), goal.text
    assert session.rich() == f"WebShop\nInstruction: \n{text}\n[button] Search [button_]\n"
    assert session.plain() == f"WebShop [SEP] Instruction: [SEP] {text} [SEP] Search"
    top = f"Instruction:\n{text}\n[button] Back to Search [button_]\n"
    back = top + "[button] < Prev [button_]\n"

    def page(*actions):
        for action in actions:
            session.step(action)
        return session.rich()

    assert page("search[folding]") == (
        top + "Page 1 (Total results: 1)\n[button] Next > [button_]\n\n"
        "[button] LAMP01 [button_]\nTall Brass Lamp\n$20.0 to $35.5\n")
    chosen = "You have clicked small.\nYou have clicked navy | red.\n"
    assert page("click[Lamp01]", "click[navy | red]", "click[small]") == chosen + top + ITEM_PAGE
    features = " Folding stand \n works\nanywhere\n \n"             # "\n" alone is dropped
    assert page("click[features]") == back + features
    assert page("click[< prev]", "click[description]") == back + "A lamp <b> & more.\n"
    assert page("click[< prev]", "click[reviews]") == back
    assert "[clicked button] LAMP01 [clicked button_]" in page("click[< prev]", "click[< prev]")
    assert page("click[next >]") == (
        top + "Page 2 (Total results: 1)\n[button] < Prev [button_]\n[button] Next > [button_]\n")


def test_what_prev_and_back_to_search_keep(shop):
    """Sub-pages keep the options, the results page clears them, Back to Search clears what was seen too."""
    session = visit(shop, "LAMP01")
    for action in ("click[black]", "click[description]", "click[< prev]"):
        session.step(action)
    assert session.options == {"color": "black"}
    assert session.status().endswith("Chosen: black.")
    session.step("click[< prev]")
    session.step("click[lamp01]")
    assert session.options == {} and session.seen == {"LAMP01"}
    assert session.status().endswith("Chosen: nothing.")
    session.step("search[lamp]")
    assert session.page == "results" and session.seen == {"LAMP01"}
    session.step("click[back to search]")
    assert session.page == "search" and session.seen == set()


def test_options_that_never_show_as_chosen(shop):
    """Quotes and letters beyond ASCII are escaped in the page's address; they count all the same."""
    session = visit(shop, "LAMP01", options={"color": "crème", "size": '6"'})
    session.step("click[crème]")
    session.step('click[6"]')
    assert "clicked" not in session.rich()
    assert session.options == {"color": "crème", "size": '6"'}
    session.step("click[buy now]")
    assert session.reward == 1
    assert '{"color": "cr\\u00e8me", "size": "6\\""}' in session.rich()


def test_option_of_two_names_and_named_like_a_button(shop):
    """The last name that has the value is chosen; a click on "search" does nothing, whatever it names."""
    session = visit(shop, "LAMP04", index=0)
    session.step("click[gold]")
    assert session.options == {"knob": "gold"}
    assert session.rich().startswith("You have clicked gold.\nYou have clicked gold.\n")
    assert not session.step("click[search]")
    assert session.options == {"knob": "gold"}


def test_an_action_is_read_as_by_the_benchmarks_pattern():
    """Brackets within brackets, several actions or lines in one, capitals."""
    rng = random.Random(0)
    for _ in range(20_000):
        action = "".join(rng.choice("aB[]\n") for _ in range(rng.randint(0, 9)))
        match = re.match(r"(.+)\[(.+)\]", action)
        expected = (match[1], match[2].lower()) if match else (None, None)
        assert webshop.parse(action) == expected, repr(action)


def test_wild_actions_are_answered_quickly(shop):
    """A model that repeats itself holds the whole batch up: the official pattern is quadratic."""
    start = time.perf_counter()
    for action in (
            "a" * 100_000, "[" * 100_000, "search[" + "y" * 100_000 + "]", "search[" + "[x] " * 25_000 + "]",
            "search[" + " ".join(map(str, range(20_000))) + "]", "click[" * 16_000 + "]"):
        session = Session(shop, shop.goal(0))
        session.step(action)
        assert session.rich() and session.plain()
    assert time.perf_counter() - start < 9


def test_random_visits_never_raise(shop, default):
    """An action that raises, or that is not understood and changes something all the same."""
    rng = random.Random(0)
    for place in [shop] * 25 + [default] * 25:
        session = Session(place, place.goal(rng.randrange(len(place))))
        for _ in range(30):
            before = state(session)
            if not session.step(random_action(session, rng)):
                assert state(session) == before


# ---------------------------------------------------------------- bad data

@pytest.mark.parametrize("files, says", [
    (dict(items="[{\"asin\": \"A\""), "items_shuffle_1000.json cannot be read"),
    (dict(items="{}"), "not a list of products"),
    (dict(items="[]"), "holds no product"),
    (dict(items=[{"name": "x"}]), "has no asin"),
    (dict(items=["x"]), "has no asin"),
    (dict(items=[item("A", 7)]), "product A is malformed"),
    (dict(items=[item("A", "x", pricing="$1.2.3")]), "product A is malformed"),
    (dict(items=[item("A", "x", customization_options=[1])]), "product A is malformed"),
    (dict(entries="[]"), "not an object"),
    (dict(wishes={"LAMP01": [{}]}), "product LAMP01 is malformed"),
    (dict(entries={"LAMP01": {"attributes": [1]}}), "LAMP01 is malformed: .1. is not a list of texts"),
    (dict(entries={"LAMP01": {"instruction_attributes": "brass"}}), "product LAMP01 is malformed")])
def test_broken_files_are_one_sentence(tmp_path, files, says):
    """A traceback from the middle of 5 GB of JSON that names neither the file nor the product."""
    with pytest.raises(DataError, match=says) as error:
        Catalogue(write_files(tmp_path, **files))
    assert "\n" not in str(error.value)


def test_missing_files_say_where_they_are_published(tmp_path):
    """A user who named the wrong folder, or goals that it does not have, and learns nothing of it."""
    missing = "items_shuffle.json or items_shuffle_1000.json .*princeton-nlp/WebShop"
    with pytest.raises(UserError, match=missing):
        envs.make_tasks("webshop", "test", str(tmp_path))
    write_files(tmp_path, wishes={})
    with pytest.raises(UserError, match="no human goals"):
        envs.make_tasks("webshop", "test", str(tmp_path), goals="human")
    with pytest.raises(UserError, match="split 'train' is empty"):
        envs.make_tasks("webshop", "train", str(tmp_path))
    with pytest.raises(UserError, match="no goals called"):
        envs.make_tasks("webshop", "test", str(tmp_path), goals="robot")


def test_other_data_of_the_same_size_and_time_are_other_data(tmp_path):
    """What was kept of one catalogue taken for another's, whose files look the same from outside."""
    found = []
    for word in ("round", "plain"):
        items = [item("A", f"{word} lamp", query=word)]
        write_files(tmp_path, items, {"A": entry(word, instruction=f"find me a {word} lamp")}, {})
        for file in tmp_path.iterdir():
            os.utime(file, ns=(0, 0))
        shop = Shop(Catalogue(tmp_path))
        found.append((shop.goal(0).text.partition(",")[0], shop.experts([0])[0][0]))
    assert found == [(f"find me a {word} lamp", f"search[{word} lamp]") for word in ("round", "plain")]


# ---------------------------------------------------------------- the default, the shopper, the adapter

def test_made_up_catalogue_is_the_same_everywhere(default):
    """A draw more or in another order, or one that depends on the process, other words or longer titles: a
    shipped model plays in a shop that it never saw."""
    assert default.catalogue.digest[:12] == "2b1e20d7a538" and len(default.split("train")) > 3000


def test_shopper_wins_every_goal_of_the_default(default, monkeypatch):
    """In 5 or 6 turns, from words that the instruction shows."""
    chosen = list(range(0, len(default), 17))
    experts = default.experts(chosen)
    assert list(experts) == chosen
    assert {len(actions) for actions in experts.values()} == {5, 6}
    for index, actions in experts.items():
        asked = actions[0].removeprefix("search[").removesuffix("]")
        assert asked in default.goal(index).text
    monkeypatch.setattr(webshop, "solve", None)         # nothing is played again
    assert default.experts(chosen) == experts


def test_shopper_recovers_from_anything(default):
    """After ten random actions it still buys the right thing."""
    rng = random.Random(0)
    for index in range(0, 2000, 20):
        session = Session(default, default.goal(index))
        for _ in range(10):
            able = [action for action in session.admissible() if action != "click[buy now]"]
            query = rng.choice(["red", "shirt", "soft lamp", "of"])
            session.step(rng.choice(able).replace("<query>", query))
        for _ in range(15):
            if session.page != "done":
                assert session.step(Shopper(session).act())
        assert session.reward == 1
        assert Shopper(session).act() is None


def test_goal_without_an_expert(tmp_path):
    """A goal that the benchmark's own reward cannot give 1 has no expert trajectory, and says so by ()."""
    items = [item("A", "round lamp", customization_options={"shape": values("rectangular")})]
    entries = {"A": entry("round", instruction="Find me round lamp")}
    tasks = envs.make_tasks("webshop", "test", str(write_files(tmp_path, items, entries)))
    assert [task.expert for task in tasks] == [()]


def digests(folder, **knobs):
    """{id: digest} of the test split."""
    return {task.id: task.digest for task in envs.make_tasks("webshop", "test", str(folder), **knobs)}


def test_a_digest_tells_goals_of_one_number_apart(tmp_path):
    """Ids are numbers: those of another catalogue, kind of goals or seed agree, and the goals are others."""
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, name in zip(folders, ("round lamp", "round lamp", "round vase")):
        folder.mkdir()
        products = [item("A", name, pricing="$20 - $35", customization_options={"size": values("s", "m")})]
        wishes = {"A": [wish("a round one", ["round"], ["s"])] * 2}
        write_files(folder, products, {"A": entry("round", instruction=f"Find me {name}")}, wishes)
    one, same, other = map(digests, folders)
    assert one == same
    human, seeded = digests(folders[0], goals="human"), digests(folders[0], seed=1)
    for changed in (other, human, seeded):
        assert changed.keys() == one.keys() == {"test/000000", "test/000001"}
        assert not set(changed.values()) & set(one.values())
    assert len(set(one.values())) == 2                  # options differ


def test_a_catalogue_is_told_by_all_of_it(tmp_path):
    """A run that goes on in a shop with another price or product that no goal names, since its goals are the
    same; files of the same size and time."""
    def shop(folder, pricing):
        folder.mkdir(exist_ok=True)
        write_files(folder, items=[*ITEMS[:-1], {**ITEMS[-1], "pricing": pricing}])
        for path in folder.iterdir():
            os.utime(path, (1, 1))
        return envs.game_type("webshop").shared(str(folder))

    one, same, other = (
        shop(tmp_path / name, price) for name, price in (("a", "$75.00"), ("b", "$75.00"), ("c", "$99.99")))
    assert one == same and one["tagger of titles"]
    assert {name for name in one if one[name] != other[name]} == {"catalogue"}
    assert Catalogue(tmp_path / "a").digest[:12] == one["catalogue"]
    shop(tmp_path / "a", "$99.99")
    assert Catalogue(tmp_path / "a").digest[:12] == other["catalogue"]


def test_adapter():
    """Tasks without an expert that replays to reward 1; a game that goes on when all is bought."""
    env = envs.make_env("webshop", split="test")
    tasks = envs.make_tasks("webshop", "test")
    assert len(tasks) == len({task.id for task in tasks}) == 500
    assert all(task.expert for task in tasks)
    assert {task.kind for task in tasks} == set(webshop_catalogue.SHELVES)
    for task in tasks[:5]:
        obs, info = env.reset(options={"task": task})
        assert info["task"] in obs and info["admissible"] == ["search[<query>]"] and not info["won"]
        turns = list(envs.replay(env, task.expert))
        assert turns[-1][2]["won"] and turns[-1][1]
        assert not any(info["invalid"] for _, _, info in turns)
    obs, reward, terminated, truncated, info = env.step("click[buy now]")
    assert (reward, terminated, info["invalid"]) == (0, True, True)     # nothing is bought twice


def test_invalid_actions_are_told():
    """An action that is not understood counted as one; one that is understood counted as invalid."""
    env = envs.make_env("webshop", split="test")
    before, _ = env.reset(seed=3)
    for action in ("click[buy now]", "click[search]", "hello", "", "search[]"):
        obs, reward, terminated, _, info = env.step(action)
        assert (obs, reward, terminated, info["invalid"]) == (before, 0, False, True)
    assert not env.step("search[of the]")[4]["invalid"]
    env.step("search[shirt]")
    products = [action for action in env.session.admissible() if action[6:].rstrip("]").isdigit()]
    *_, info = env.step(products[0])
    assert "click[buy now]" in info["admissible"]
    _, reward, terminated, _, info = env.step("click[buy now]")
    assert terminated and 0 <= reward < 1
    assert info["lost"] and not info["won"]


def test_environments_share_the_catalogue():
    """A catalogue for each of sixty-four environments."""
    one, other = (envs.make_env("webshop", split="test") for _ in range(2))
    for env in (one, other):
        env.reset(seed=0)
    assert one.shop is other.shop


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        record(Path(temporary))
