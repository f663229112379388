"""WebShop: recordings of the official engine and of our own, rules written down by hand, search against an obvious
scoring of every document, bad input, the adapter and the scripted shopper.

    python tests/test_webshop.py      # records tests/data/webshop_recordings.json again, from the engine as it is
"""
import collections
import io
import json
import math
import os
import random
import resource
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from gymnasium.utils.env_checker import check_env

import envs
from worlds import webshop, webshop_catalogue, webshop_data, webshop_search
from worlds.webshop import Session, Shop, Shopper
from worlds.webshop_data import Catalogue, DataError

OFFICIAL = ROOT.parent / "shared" / "webshop_made_up"  # recordings of the official engine, where a developer has them
OURS = ROOT / "tests" / "data" / "webshop_recordings.json"


def item(asin, name, **more):
    return {"asin": asin, "name": name, "full_description": "", "small_description": [], "pricing": "$9.99",
            "customization_options": {}, "category": "garden", "query": "Lamp ", "product_category": "Home › Light › Lamp", **more}


def values(*texts):
    return [{"value": text} for text in texts]


ITEMS = [  # every odd thing that the loader meets
    item("LAMP01", "Tall Brass Lamp", full_description="A lamp <b> & more.", pricing="$20.00 - $35.50",
         small_description=["Folding stand ", "works\r\nanywhere", "  ", "\n"],
         customization_options={"Color": values("Black", "Navy/Red", "Crème"), "Size": values(' 6" ', "X-Large", "Small"), "Style": None}),
    item("LAMP01", "the same asin again"), item("nan", "no asin"), item("TOOLONGASIN", "eleven characters"),
    item("LAMP02", "Brass Lamp", pricing="", small_description="a plain string", customization_options={"Color": values("Black")}),
    item("SOAP03", "Mild Soap", pricing="$1,299.00", query="Soap", product_category="Beauty › Bath › Soap", category="beauty"),
    item("LAMP04", "Reading Lamp 三脚", pricing="$1 to $2 to $3", customization_options={"Trim": values("gold"), "Knob": values("gold", "search")}),
    {"asin": "BARE05", "name": "Bare Thing"},
    item("LAMP06", "", customization_options={"Color": []}),
]
ENTRIES = {
    "LAMP01": {"attributes": ["folding stand", "brass"], "instruction": "Find me folding stand lamp", "instruction_attributes": ["folding stand", "brass"]},
    "LAMP02": {"attributes": ["brass"], "instruction": "Find me brass lamp", "instruction_attributes": ["brass"]},
    "SOAP03": {"attributes": ["mild"], "instruction": "Find me mild soap", "instruction_attributes": ["mild"]},
    "LAMP04": {"attributes": []},
}
WISHES = {"LAMP01": [{"instruction": "a brass lamp in black.", "instruction_attributes": ["brass"], "instruction_options": ["black"]},
                     {"instruction": "nothing to look for", "instruction_attributes": [], "instruction_options": []}]}


def write_files(folder, items=ITEMS, entries=ENTRIES, wishes=WISHES):
    for name, value in (("items_shuffle_1000", items), ("items_ins_v2_1000", entries), ("items_human_ins", wishes)):
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
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


def visit(shop, product, index=None, options=None):
    """A session on that product's page."""
    number = next(i for i in range(len(shop.catalogue)) if shop.catalogue.product(i)["asin"] == product)
    index = next(i for i in range(len(shop)) if shop.goal(i).target == number and options in (None, shop.goal(i).options)) if index is None else index
    session = Session(shop, shop.goal(index))
    for action in (f"search[{shop.catalogue.product(number)['title']}]", f"click[{product}]"):
        assert session.step(action)
    return session


# ---------------------------------------------------------------- recordings

def state(session):
    done = session.page == "done"
    return {"rich": session.rich(), "text": session.plain(), "avail": session.available(),
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
    return {"asin": product["asin"], "category": product["category"], "query": product["query"], "name": product["title"],
            "product_category": product["product_category"], "instruction_text": goal.text, "attributes": goal.attributes,
            "price_upper": goal.price_upper, "goal_options": goal.options, "weight": goal.weight}


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="recordings of the official engine are not beside the checkout")
@pytest.mark.parametrize("kind", ["synthetic", "human"])
def test_official_recordings(kind, tmp_path):
    """Goals, both renderings, available actions and rewards are the official engine's, given what it drew at random."""
    for file in OFFICIAL.glob("items_*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    recorded = json.loads((OFFICIAL / "recordings.json").read_text())[kind]
    nouns = lambda title: [word for word in webshop.title_words(title) if word != "running"]  # spaCy: a verb
    shop = Shop(Catalogue(tmp_path), kind, nouns=nouns)
    shop.prices[:] = [recorded["prices"][shop.catalogue.product(i)["asin"]] for i in range(len(shop.catalogue))]
    for i, goal in enumerate(recorded["goals"]):
        shop.caps[np.searchsorted(shop.first, shop.order[i], "right") - 1] = goal["price_upper"]
    assert [as_recorded(shop.goal(i)) for i in range(len(shop))] == recorded["goals"]
    assert_replays(shop, recorded["sessions"])


def test_our_recordings(shop):
    """The engine still does what it did when it matched the official recordings, on a catalogue of odd products.
    The prices and caps are recorded, so the test does not hang on Python's generator."""
    recorded = json.loads(OURS.read_text())
    shop = Shop(shop.catalogue)
    shop.prices[:], shop.caps[:] = recorded["prices"], recorded["caps"]
    assert [as_recorded(shop.goal(i)) for i in range(len(shop))] == recorded["goals"]
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
    OURS.parent.mkdir(exist_ok=True)
    OURS.write_text(json.dumps({"prices": shop.prices.tolist(), "caps": shop.caps.tolist(), "sessions": sessions,
                                "goals": [as_recorded(shop.goal(i)) for i in range(len(shop))]}, indent=0))


def random_action(session, rng):
    """Half of them sensible, some of them not actions at all."""
    if rng.random() < 0.5:
        return Shopper(session).act() or "click[buy now]"
    able = [action for action in session.admissible() if "<query>" not in action]
    odd = ["", "click[]", "[[[]]]", "click[[x]]", "search[ ]", "search[]", "buy now", "click[nope]", "search[lamp\n]", "CLICK[buy now]",
           "click[Buy Now]", "search[brass lamp]", "search[<r> lamp]", "search[the of]", "\udc80[\udc80]", "click[search]"]
    return rng.choice(able if able and rng.random() < 0.7 else odd)


# ---------------------------------------------------------------- search

@pytest.mark.parametrize("text, terms", [  # as Lucene's analyser answered
    ("the dogs' bone isn't u.s.a. 3.5-inch wi-fi o'neil's terribly apology 1,299.00 6\" x-large a_b __ size:10 t:shirt",
     "dog bone isn't u.s.a 3.5 inch wi fi o'neil terribl apolog 1,299.00 6 x larg a_b size 10 t:shirt"),
    ("women’s café crème 靴 の ブーツ ★★ 👍🏽 ™ naïve ﬁt", "women café crème 靴 の ブーツ ★ ★ 👍🏽 ™ naïv ﬁt"),
    ("yyyyyy relational generalizations oscillators  skies dying its by was", "yyyyyi relat gener oscil ski dy it")])
def test_analyser(text, terms):
    assert webshop_search.analyse(text) == terms.split()


def test_one_byte_lengths():
    """Lucene's lossy lengths: exact below 40, then steps of 2, 4, 8, …"""
    assert [webshop_search.one_byte(n) for n in (0, 39, 40, 41, 47, 55, 56, 59, 60, 1000)] == [0, 39, 40, 40, 46, 54, 56, 56, 60, 984]


def obvious_hits(texts, names, query, k1=0.9, b=0.4):
    """BM25 by its formula for every document, in double precision -> [(score, name)], best first."""
    docs = [collections.Counter(webshop_search.analyse(text)) for text in texts]
    mean = sum(sum(doc.values()) for doc in docs) / len(docs)
    scores = []
    for doc, name in zip(docs, names):
        norm = k1 * (1 - b + b * webshop_search.one_byte(sum(doc.values())) / mean)
        score = 0.0
        for term in webshop_search.analyse(query):
            frequency = sum(term in other for other in docs)
            score += math.log(1 + (len(docs) - frequency + 0.5) / (frequency + 0.5)) * doc[term] / (doc[term] + norm)
        scores.append((score, name))
    return sorted((pair for pair in scores if pair[0] > 0), key=lambda pair: (-pair[0], pair[1]))[:50]


def test_search_against_obvious_scoring(tmp_path):
    """200 queries, from one word to a whole description; hits within rounding of each other may change places."""
    webshop_catalogue.write(tmp_path, webshop_catalogue.Recipe(120, words=400, prose=40))
    catalogue, rng = Catalogue(tmp_path), random.Random(0)
    products = [catalogue.product(i) for i in range(len(catalogue))]
    texts, names = [webshop_data.document(p) for p in products], [p["asin"] for p in products]
    for number in range(200):
        words = texts[rng.randrange(len(texts))].split()
        query = " ".join(rng.sample(words, min(len(words), 1 + number % 12)))
        expected = obvious_hits(texts, names, query)
        got = [names[doc] for doc in catalogue.index.search(query)]
        score = dict((name, value) for value, name in expected)
        assert set(got) == set(score), query
        assert all(score[a] > score[b] or (math.isclose(score[a], score[b], rel_tol=1e-6) and (a < b or score[a] != score[b]))
                   for a, b in zip(got, got[1:])), query


def test_search_orders_ties_by_asin_and_cuts_at_fifty(tmp_path):
    """Equal scores: the asin decides, not the place in the file."""
    items = [item(f"Z{i:03}", "twin lamp") for i in reversed(range(60))]
    catalogue = Catalogue(write_files(tmp_path, items, {}))
    assert [catalogue.product(doc)["asin"] for doc in catalogue.index.search("twin")] == [f"Z{i:03}" for i in range(50)]
    assert catalogue.index.search("") == catalogue.index.search("the of") == catalogue.index.search("unknown") == ()


def test_long_lists_are_left_alone_without_changing_the_hits(tmp_path):
    """Where the common words are only looked up for the candidates, the hits are those of a full sum."""
    webshop_catalogue.write(tmp_path, webshop_catalogue.Recipe(3000, words=3000, prose=30))
    index, rng = Catalogue(tmp_path).index, random.Random(0)
    catalogue = Catalogue(tmp_path)
    for _ in range(60):
        query = " ".join(rng.sample(catalogue.product(rng.randrange(3000))["description"].split(), 8))
        total = np.zeros(index.size)
        for _, weight, span in index._terms(query):
            total[index.docs[span]] += weight - weight / index.ratios[span]
        total = total.astype(np.float32)
        best = sorted(np.flatnonzero(total).tolist(), key=lambda doc: (-total[doc], str(index.asins[doc])))[:50]
        assert list(index.search(query)) == best


# ---------------------------------------------------------------- loading and goals

def test_loader(shop):
    """Duplicates, 'nan' and long asins are skipped; prices, options and bullets as the official loader leaves them."""
    products = [shop.catalogue.product(i) for i in range(len(shop.catalogue))]
    assert [p["asin"] for p in products] == ["LAMP01", "LAMP02", "SOAP03", "LAMP04", "BARE05", "LAMP06"]
    assert [p["prices"] for p in products] == [[20.0, 35.5], [100.0], [1299.0], [1.0, 2.0], [100.0], [9.99]]
    assert [webshop_data.price_tag(p) for p in products[:3]] == ["$20.0 to $35.5", "$100.0", "$1299.0"]
    assert products[0]["options"] == {"color": ["black", "navy | red", "crème"], "size": ['6"', "x-large", "small"]}
    assert products[1]["bullets"] == ["a plain string"] and products[3]["attributes"] == []
    assert products[4]["attributes"] == ["DUMMY_ATTR"] and products[4]["options"] == {} and products[0]["query"] == "lamp"
    assert webshop_data.document(products[1]) == "brass lamp  a plain string color: black"


def test_goals(shop):
    """LAMP01 gives 3 x 3 goals, LAMP02 and SOAP03 one each; names sorted, weights over the goals of an attribute."""
    goals = [shop.goal(i) for i in range(len(shop))]
    counts = collections.Counter(goal.product["asin"] for goal in goals)
    assert counts == {"LAMP01": 9, "LAMP02": 1, "SOAP03": 1}
    soap = next(goal for goal in goals if goal.product["asin"] == "SOAP03")
    assert (soap.text, soap.options, soap.price_upper) == ("Find me mild soap", {}, webshop.NO_CAP)
    lamp = next(goal for goal in goals if goal.options == {"color": "navy | red", "size": "x-large"})
    assert lamp.text.startswith("Find me folding stand lamp with color: navy | red, and size: x-large, and price lower than ")
    assert lamp.weight == pytest.approx((1 / 9 + 1 / 10) / 2)  # folding stand: 9 goals, brass: 10
    assert len({goal.price_upper for goal in goals if goal.product["asin"] == "LAMP01"}) == 1  # one cap a product


def test_order_of_goals_is_official_and_what_is_drawn_is_seeded(shop):
    """The shuffle has the benchmark's own seed; prices and caps have ours."""
    order = list(range(len(shop)))
    random.seed(233)
    random.shuffle(order)
    assert shop.order.tolist() == order
    same, other = Shop(shop.catalogue, seed=0), [Shop(shop.catalogue, seed=seed) for seed in range(1, 8)]
    assert same.prices.tolist() == shop.prices.tolist() and same.caps.tolist() == shop.caps.tolist()
    assert len({s.prices[0] for s in other}) == 7 and all(20 <= s.prices[0] <= 35.5 for s in other)
    assert all(s.order.tolist() == order for s in other)


@pytest.mark.parametrize("price, caps", [(9.99, {20.0, 30.0, 40.0}), (10, {30.0, 40.0, 50.0}), (975, {990.0}), (985, {webshop.NO_CAP}), (2000, {webshop.NO_CAP})])
def test_price_caps(price, caps):
    """The larger of two of the first four multiples of ten above the price; fewer than two: none."""
    assert {webshop.price_cap(price, random.Random(seed)) for seed in range(100)} == caps
    assert webshop.cap_text(40.0) == ", and price lower than 40.00 dollars" and webshop.cap_text(webshop.NO_CAP) == ""


def test_human_goals(shop):
    """One per instruction with attributes; the full stop goes, options are a list, the weight is 1."""
    human = Shop(shop.catalogue, "human")
    goal = human.goal(0)
    assert len(human) == 1 and goal.text.startswith("a brass lamp in black, and price lower than ") and (goal.options, goal.weight) == (["black"], 1)


def test_splits(default):
    """The benchmark's, and those of the TCOD release."""
    assert [default.split(name) for name in webshop.SPLITS] == [
        range(1500, len(default)), range(500, 1500), range(500), range(4096), range(4096, 4196)]
    draws = [default.draw(range(500), i / 1000) for i in range(1000)]
    assert 0 <= min(draws) <= max(draws) < 500 and len(set(draws)) > 300


# ---------------------------------------------------------------- reward

def kind(product_title, goal_title, shelf="a", goal_shelf="b"):
    thing = lambda title, path: {"title": title, "query": title, "product_category": path}
    return webshop.type_reward(thing(product_title, shelf), thing(goal_title, goal_shelf), str.split)[0]


def test_type_reward():
    """1 for the query, two shelves or a fifth of the nouns; else 0.5, 0.1 below a tenth, 0 without a noun."""
    ten = "a b c d e f g h i j"
    assert kind("x", "x") == 1 and kind("a y", "a b c") == 1 and kind("a b", ten) == 0.5 and kind("a y", ten) == 0.5
    assert kind("a y", ten + " k") == 0.1 and kind("y", ten) == 0 and kind("y", ten, "p › q", "q › p") == 0
    assert kind("a b", ten, "p › q", "q › p") == 1 and kind("anything", "") == 0.5 and kind("a", "a a a a b c d e f g h") == 0.1


def test_attribute_hits():
    """Listed or nearly so, or anywhere in the lower-cased text."""
    product = {"title": "Soft Shirt", "bullets": ["EASY care", "100% cotton"], "description": "Made to LAST", "attributes": ["machine wash"]}
    hits = lambda *wanted: webshop.attribute_hits(product, wanted)
    assert hits("machine wash", "wash machine", "easy care", "100% cotton", "to last", "soft") == 6
    assert hits("hand stitched", "LAST", "care 100%") == 1  # bullets are joined by a blank


@pytest.mark.parametrize("bought, wanted, hits", [
    (["dark navy"], ["navy blue"], 0),         # the first colour in the list's order: dark is none of navy's, blue comes first
    (["deep blue"], ["sky blue"], 1),          # both are blue
    (["large"], ["x-large"], 1),               # token sets
    (["x-large"], [("size", "x-large")], 1), (["dark blue"], [("color", "dark blue")], 1),
    (["rectangular"], [("shape", "rectangular")], 0),   # contains tan; the pair does not
    (["black"], [("color", "black")], 1), ([], ["red"], 0), (["red"], [], 0), (["6\""], [("size", "6\"")], 1)])
def test_option_hits(bought, wanted, hits):
    """Colours first, then token sets; pairs as they print."""
    assert webshop.option_hits(bought, wanted) == hits


def test_reward_by_hand(shop):
    """LAMP01's two attributes, two options and the price: five terms."""
    goal = next(shop.goal(i) for i in range(len(shop)) if shop.goal(i).options == {"color": "black", "size": "small"})
    pay = lambda price, options: webshop.reward(goal.product, goal, price, options, webshop.title_words)[0]
    assert pay(1, {"color": "black", "size": "small"}) == 1 and pay(1, {"color": "black"}) == 0.8 and pay(1000, {}) == 0.4
    soap = next(shop.goal(i) for i in range(len(shop)) if shop.goal(i).product["asin"] == "SOAP03")
    total, details = webshop.reward(soap.product, soap, 1299.0, {}, webshop.title_words)
    assert total == 1 and "r_option" not in details and details["w_att"] == 0.5  # no option term
    assert webshop.reward(goal.product, soap, 1, {}, webshop.title_words)[0] == 0  # no noun in common


# ---------------------------------------------------------------- pages and actions

def test_pages_by_hand(shop):
    """Every page in rich text, written out."""
    index = next(i for i in range(len(shop)) if shop.goal(i).options == {"color": "crème", "size": '6"'})
    session, text = Session(shop, shop.goal(index)), shop.goal(index).text
    assert session.rich() == f"WebShop\nInstruction: \n{text}\n[button] Search [button_]\n"
    assert session.plain() == f"WebShop [SEP] Instruction: [SEP] {text} [SEP] Search"
    top = f"Instruction:\n{text}\n[button] Back to Search [button_]\n"
    session.step("search[folding]")
    assert session.rich() == (top + "Page 1 (Total results: 1)\n[button] Next > [button_]\n\n[button] LAMP01 [button_]\n"
                              "Tall Brass Lamp\n$20.0 to $35.5\n")
    session.step("click[Lamp01]")
    session.step("click[navy | red]")
    session.step("click[small]")
    item_page = (top + "[button] < Prev [button_]\ncolor\n  [button] black [button_]\n  [clicked button] navy | red [clicked button_]\n"
                 "  [button] crème [button_]\nsize\n  [button] 6\" [button_]\n  [button] x-large [button_]\n  [clicked button] small [clicked button_]\n"
                 "Tall Brass Lamp\nPrice: $20.0 to $35.5\nRating: N.A.\n[button] Description [button_]\n[button] Features [button_]\n"
                 "[button] Reviews [button_]\n[button] Buy Now [button_]\n")
    assert session.rich() == "You have clicked small.\nYou have clicked navy | red.\n" + item_page
    session.step("click[features]")
    assert session.rich() == top + "[button] < Prev [button_]\n Folding stand \n works\nanywhere\n \n"  # "\n" alone is dropped
    session.step("click[< prev]")
    session.step("click[description]")
    assert session.rich() == top + "[button] < Prev [button_]\nA lamp <b> & more.\n"
    session.step("click[< prev]")
    session.step("click[reviews]")
    assert session.rich() == top + "[button] < Prev [button_]\n"
    session.step("click[< prev]")
    session.step("click[< prev]")
    assert "[clicked button] LAMP01 [clicked button_]" in session.rich()
    session.step("click[next >]")
    assert session.rich() == top + "Page 2 (Total results: 1)\n[button] < Prev [button_]\n[button] Next > [button_]\n"


def test_what_prev_and_back_to_search_keep(shop):
    """Sub-pages keep the options, the results page clears them, Back to Search clears what was seen too."""
    session = visit(shop, "LAMP01")
    session.step("click[black]")
    session.step("click[description]")
    session.step("click[< prev]")
    assert session.options == {"color": "black"} and session.status().endswith("Chosen: black.")
    session.step("click[< prev]")
    session.step("click[lamp01]")
    assert session.options == {} and session.seen == {"LAMP01"} and session.status().endswith("Chosen: nothing.")
    session.step("search[lamp]")
    assert session.page == "results" and session.seen == {"LAMP01"}
    session.step("click[back to search]")
    assert session.page == "search" and session.seen == set()


def test_options_that_never_show_as_chosen(shop):
    """Quotes and letters beyond ASCII are escaped in the page's address; they count all the same."""
    session = visit(shop, "LAMP01", options={"color": "crème", "size": '6"'})
    session.step("click[crème]")
    session.step('click[6"]')
    assert "clicked" not in session.rich() and session.options == {"color": "crème", "size": '6"'}
    session.step("click[buy now]")
    assert session.reward == 1 and '{"color": "cr\\u00e8me", "size": "6\\""}' in session.rich()


def test_option_of_two_names_and_named_like_a_button(shop):
    """The last name that has the value is chosen; a click on "search" does nothing, whatever it names."""
    session = visit(shop, "LAMP04", index=0)
    session.step("click[gold]")
    assert session.options == {"knob": "gold"} and session.rich().startswith("You have clicked gold.\nYou have clicked gold.\n")
    assert not session.step("click[search]") and session.options == {"knob": "gold"}


@pytest.mark.parametrize("action, parsed", [
    ("search[Red Shoes]", ("search", "red shoes")), ("click[a[b]]", ("click[a", "b]")), ("[x]", (None, None)), ("a[]", (None, None)),
    ("a[]]", ("a", "]")), ("a[b]c", ("a", "b")), ("a[b\n]", (None, None)), ("a[b]\nc[d]", ("a", "b")), ("", (None, None)), ("]a[", (None, None)),
    ("a[[]", ("a", "[")), ("a[b][", ("a", "b")), ("a[b]x[", ("a", "b")), ("a][b]", ("a]", "b")), ("a[b]]", ("a", "b]"))])
def test_parse(action, parsed):
    """As the benchmark's pattern, which is checked here too."""
    import re
    match = re.match(r"(.+)\[(.+)\]", action)
    assert webshop.parse(action) == parsed == ((match[1], match[2].lower()) if match else (None, None))


def test_parse_equals_the_pattern_on_random_brackets():
    import re
    rng = random.Random(0)
    for _ in range(20_000):
        action = "".join(rng.choice("ab[]\n") for _ in range(rng.randint(0, 9)))
        match = re.match(r"(.+)\[(.+)\]", action)
        assert webshop.parse(action) == ((match[1], match[2].lower()) if match else (None, None)), repr(action)


@pytest.mark.parametrize("action", ["a" * 100_000, "[" * 100_000, "search[" + "y" * 100_000 + "]", "search[" + "[x] " * 25_000 + "]",
                                    "search[" + " ".join(map(str, range(20_000))) + "]", "click[" * 16_000 + "]", "search[ ]", "search[靴\udc80]", "\0[\0]"])
def test_wild_actions_are_answered_quickly(shop, action):
    session, start = Session(shop, shop.goal(0)), time.perf_counter()
    session.step(action)
    assert session.rich() and session.plain() and time.perf_counter() - start < 3


def test_random_visits_never_raise(shop, default):
    rng = random.Random(0)
    for place in (shop, default):
        for _ in range(25):
            session = Session(place, place.goal(rng.randrange(len(place))))
            for _ in range(30):
                before = state(session)
                if not session.step(random_action(session, rng)):
                    assert state(session) == before  # what is not understood changes nothing


# ---------------------------------------------------------------- bad data and the cache

@pytest.mark.parametrize("files, says", [
    (dict(items="[{\"asin\": \"A\""), "items_shuffle_1000.json cannot be read"), (dict(items="{}"), "not a list of products"),
    (dict(items="[]"), "holds no product"), (dict(items=[{"name": "x"}]), "has no asin"), (dict(items=["x"]), "has no asin"),
    (dict(items=[item("A", 7)]), "product A is malformed"), (dict(items=[item("A", "x", customization_options={"c": [{}]})]), "product A is malformed"),
    (dict(items=[item("A", "x", pricing="$1.2.3")]), "product A is malformed"), (dict(items=[item("A", "x", customization_options=[1])]), "product A is malformed"),
    (dict(entries="nonsense"), "items_ins_v2_1000.json cannot be read"), (dict(entries="[]"), "not an object"),
    (dict(wishes={"LAMP01": [{}]}), "product LAMP01 is malformed"), (dict(entries={"LAMP01": 3}), "product LAMP01 is malformed"),
    (dict(entries={"LAMP01": {"attributes": [1]}}), "product LAMP01 is malformed: .1. is not a list of texts"),
    (dict(entries={"LAMP01": {"instruction_attributes": "brass"}}), "product LAMP01 is malformed")])
def test_broken_files_are_one_sentence(tmp_path, files, says):
    with pytest.raises(DataError, match=says) as error:
        Catalogue(write_files(tmp_path, **files))
    assert "\n" not in str(error.value)


def test_elements_are_read_across_chunks(tmp_path):
    """An element may begin in one chunk and end in another."""
    value = [{"a": "x" * n, "b": [n, {"c": "]}"}]} for n in range(40)]
    for chunk in (1, 7, 64, 1 << 20):
        assert list(webshop_data.elements(io.StringIO(json.dumps(value, indent=1)), chunk=chunk)) == value


def test_missing_files_say_where_they_are_published(tmp_path):
    with pytest.raises(envs.UserError, match="items_shuffle.json or items_shuffle_1000.json .*princeton-nlp/WebShop"):
        envs.make_tasks("webshop", "test", str(tmp_path))
    write_files(tmp_path, wishes={})
    with pytest.raises(envs.UserError, match="no human goals"):
        envs.make_tasks("webshop", "test", str(tmp_path), goals="human")
    with pytest.raises(envs.UserError, match="split 'train' is empty"):
        envs.make_tasks("webshop", "train", str(tmp_path))
    with pytest.raises(envs.UserError, match="no goals called"):
        envs.make_tasks("webshop", "test", str(tmp_path), goals="robot")


def test_cache_is_kept_until_the_data_change(tmp_path, monkeypatch):
    """Built once; a file that was only touched is not rebuilt; a changed one is."""
    built = []
    build = webshop_data._build
    monkeypatch.setattr(webshop_data, "_build", lambda *a: (built.append(1), build(*a)))
    write_files(tmp_path)
    assert len(Catalogue(tmp_path)) == len(Catalogue(tmp_path)) == 6 and built == [1]
    os.utime(tmp_path / "items_shuffle_1000.json", ns=(0, 0))
    assert len(Catalogue(tmp_path)) == 6 and built == [1]
    write_files(tmp_path, ITEMS[:-1])
    assert len(Catalogue(tmp_path)) == 5 and built == [1, 1]
    (Catalogue(tmp_path).cache / "meta.json").write_text("{}")
    assert len(Catalogue(tmp_path)) == 5 and built == [1, 1, 1]


def test_damaged_cache_is_one_sentence(tmp_path):
    cache = Catalogue(write_files(tmp_path)).cache
    (cache / "docs.npy").write_bytes(b"")
    with pytest.raises(DataError, match="is damaged .*; remove it"):
        Catalogue(tmp_path)


def test_products_without_a_word(tmp_path):
    """Nothing to index is not an error."""
    catalogue = Catalogue(write_files(tmp_path, [item("A", ""), item("B", "the !")], {}))
    assert len(catalogue) == 2 and catalogue.index.search("lamp") == ()


def test_data_that_cannot_be_written_to_are_cached_at_home(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *a: False)
    assert Catalogue(write_files(tmp_path)).cache.parent == webshop_data.cache_home()


# ---------------------------------------------------------------- the embedded default, the shopper, the adapter

def test_made_up_catalogue_is_small_and_the_same_everywhere(default, tmp_path):
    """The shape a tiny word-level model can learn: few words, short titles, ids without letters."""
    webshop_catalogue.write(tmp_path)
    folder = webshop_catalogue.default_folder()
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in os.listdir(tmp_path))
    products = [default.catalogue.product(i) for i in range(len(default.catalogue))]
    assert len(products) == 300 and all(len(p["title"].split()) == 4 and p["asin"].isdigit() and p["title"].islower() for p in products)
    words = {word.strip(",.") for i in range(len(default)) for word in default.goal(i).text.split()} | {w for p in products for w in p["title"].split()}
    assert len(words) < 200 and len({p["prices"][0] for p in products}) <= 12
    assert len(default.split("train")) > 3000


def test_shopper_wins_every_goal_of_the_default(default):
    """In 5 or 6 turns, from words that the instruction shows."""
    goals = list(range(0, len(default), 17))
    experts = default.experts(goals)
    assert list(experts) == goals and {len(actions) for actions in experts.values()} == {5, 6}
    for index, actions in experts.items():
        asked = actions[0].removeprefix("search[").removesuffix("]")
        assert asked in default.goal(index).text
    assert default.experts(goals) == experts  # read back from the cache


def test_shopper_recovers_from_anything(default):
    """After ten random actions it still buys the right thing."""
    rng = random.Random(0)
    for index in range(0, 2000, 20):
        session = Session(default, default.goal(index))
        for _ in range(10):
            able = [action for action in session.admissible() if action != "click[buy now]"]
            session.step(rng.choice(able).replace("<query>", rng.choice(["red", "shirt", "soft lamp", "of"])))
        for _ in range(15):
            if session.page != "done":
                assert session.step(Shopper(session).act())
        assert session.reward == 1 and Shopper(session).act() is None


def test_goal_without_an_expert(tmp_path):
    """A goal that the benchmark's own reward cannot give 1 has no expert trajectory, and says so by ()."""
    items = [item("A", "round lamp", customization_options={"shape": values("rectangular")})]
    entries = {"A": {"attributes": ["round"], "instruction": "Find me round lamp", "instruction_attributes": ["round"]}}
    assert [task.expert for task in envs.make_tasks("webshop", "test", str(write_files(tmp_path, items, entries)))] == [()]


def test_adapter():
    """Gymnasium's own checks; tasks with experts that replay to reward 1."""
    env = gymnasium.make("tcod/WebShop-v0", split="test").unwrapped
    check_env(env, skip_render_check=True)
    tasks = envs.make_tasks("webshop", "test")
    assert len(tasks) == len({task.id for task in tasks}) == 500 and all(task.expert for task in tasks)
    assert {task.kind for task in tasks} == set(webshop_catalogue.SHELVES)
    for task in tasks[:5]:
        obs, info = env.reset(options={"task": task})
        assert info["task"] in obs and info["admissible"] == ["search[<query>]"] and not info["won"]
        turns = envs.replay(env, task.expert)
        assert turns[-1][1]["won"] and not any(info["invalid"] for _, info in turns)
    obs, reward, terminated, truncated, info = env.step("click[buy now]")
    assert (reward, terminated, info["invalid"]) == (0, True, True)  # nothing is bought twice


def test_invalid_actions_are_told(default):
    env = envs.make_env("webshop", split="test")
    before, _ = env.reset(seed=3)
    for action in ("click[buy now]", "click[search]", "hello", "", "search[]"):
        obs, reward, terminated, _, info = env.step(action)
        assert (obs, reward, terminated, info["invalid"]) == (before, 0, False, True)
    assert not env.step("search[of the]")[4]["invalid"]
    env.step("search[shirt]")
    bought = env.step(next(a for a in env.session.admissible() if a[6:].rstrip("]").isdigit()))[4]
    assert "click[buy now]" in bought["admissible"]
    _, reward, terminated, _, info = env.step("click[buy now]")
    assert terminated and 0 <= reward < 1 and info["lost"] and not info["won"]


def test_environments_share_the_catalogue():
    """Sixty-three further environments cost less than a megabyte each."""
    first = envs.make_env("webshop", split="test")
    first.reset(seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    others = [envs.make_env("webshop", split="test") for _ in range(63)]
    for number, env in enumerate(others):
        env.reset(seed=number)
        env.step("search[shirt]")
    assert all(env.shop is first.shop for env in others)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 63 < 1024


if __name__ == "__main__":
    import tempfile
    with tempfile.TemporaryDirectory() as temporary:
        record(Path(temporary))
