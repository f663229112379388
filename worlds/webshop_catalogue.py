"""The made-up WebShop catalogue in the benchmark's own file formats: the embedded default of `--env webshop`.

Few words, short lower-case titles, numbers as product ids (their case cannot differ between a page and an
action), so that a word-level model of 0.3 M parameters can play it. In each kind of thing two adjectives name
one product as long as the pairs last, so an instruction tells which one is meant. Every word here is our own
or a plain dictionary word. It is the same everywhere: the order of all draws is part of it.
"""

import itertools
import json
import random
from pathlib import Path

from harness.folder import cache_home
from worlds.cache import once

VERSION = 2                     # raise it when another catalogue is made
PRODUCTS = 300
VALUES = 3                      # that an option offers
THIRD_OPTION = 0.5              # share of products with three options instead of two
HUMAN = 0.3                     # share of products with a human instruction
COLOURS = ("color", "red blue green black white yellow pink brown".split())
SCENTS = ("scent", "rose lemon vanilla cedar mint lavender".split())
FLAVORS = ("flavor", "apple cherry mint vanilla ginger lemon".split())
SIZES = ("size", "small medium large".split())
LENGTHS = ("length", "short middle long".split())
SHELVES = {  # category: (things, adjectives, the option besides the size-like one, the size-like one)
    "fashion": (
        "shirt jacket scarf skirt sweater sandal glove hat",
        "soft warm striped stretchy washable thick casual formal", COLOURS, SIZES),
    "beauty": (
        "soap shampoo lotion balm brush perfume mask comb",
        "gentle vegan organic fragrant creamy soothing fresh mild", SCENTS, SIZES),
    "electronics": (
        "cable charger speaker headset camera keyboard mouse router",
        "wireless portable fast compact durable waterproof foldable quiet", COLOURS, LENGTHS),
    "garden": (
        "lamp chair table rug vase shelf curtain pillow",
        "wooden modern rustic sturdy round tall handmade simple", COLOURS, SIZES),
    "grocery": (
        "tea honey cookie soup cereal jam noodle cracker",
        "sweet salty spicy crunchy roasted raw smoked tangy", FLAVORS, SIZES),
}
PACKS = ("pack", "single double triple".split())
BRANDS = "norva talbin quessa ridlow mavenko pellune".split()
PRICES = "4.99 9.99 12.00 15.00 19.99 24.99 30.00 35.00 45.00 49.99 60.00 75.00".split()


def _identities():
    """(category, thing, two adjectives) per product: the things in turn, so that all have equally many."""
    things = []
    for category, (names, adjectives, *_) in SHELVES.items():
        for thing in names.split():
            pairs = list(itertools.combinations(adjectives.split(), 2))
            random.Random(f"0 {thing}").shuffle(pairs)
            things.append((category, thing, itertools.cycle(pairs)))
    random.Random(0).shuffle(things)
    for category, thing, pairs in itertools.islice(itertools.cycle(things), PRODUCTS):
        yield category, thing, list(next(pairs))


def _options(rng, category):
    """{name: values} of a product, by name as in instructions; the values keep their usual order."""
    offered = list(SHELVES[category][2:])
    if rng.random() < THIRD_OPTION:
        offered.append(PACKS)
    return {name: sorted(rng.sample(values, VALUES), key=values.index) for name, values in sorted(offered)}


def _product(number, category, thing, pair):
    """(item, attribute entry, human instructions) in the official formats; pair: its two adjectives."""
    rng = random.Random(f"0 {number}")
    asin = str(1000 + number)
    brand = rng.choice(BRANDS)
    what = f"{' '.join(pair)} {thing}"
    options = _options(rng, category)
    rng.random()                # nothing hangs on it but the draws that follow
    item = {
        "asin": asin,
        "name": f"{brand} {what}",
        "full_description": f"a {what} from {brand}.",
        "small_description": [f"{pair[0]} {thing}", f"{pair[1]} as well"],
        "pricing": f"${rng.choice(PRICES)}",
        "customization_options": {
            name: [{"value": value} for value in values] for name, values in options.items()},
        "category": category,
        "query": thing,
        "product_category": f"{category} › {thing}",
    }
    entry = {"attributes": pair, "instruction": f"find me a {what}", "instruction_attributes": pair}
    first = next(iter(options.values()))[0]
    wish = {
        "asin": asin,
        "instruction": f"i need a {what}, please make it {first}.",
        "instruction_attributes": pair,
        "instruction_options": [first],
    }
    return item, entry, [wish] if rng.random() < HUMAN else []


def write(folder):
    """Writes the three official files into `folder`."""
    items, attributes, human = [], {}, {}
    for number, identity in enumerate(_identities()):
        item, entry, wishes = _product(number, *identity)
        items.append(item)
        attributes[item["asin"]] = entry
        if wishes:
            human[item["asin"]] = wishes
    files = {"items_shuffle": items, "items_ins_v2": attributes, "items_human_ins": human}
    for name, content in files.items():
        Path(folder, f"{name}.json").write_text(json.dumps(content))


def default_folder():
    """The folder with these files, in this project's cache; made on first use, in 0.1 s."""
    return once(cache_home() / f"webshop-made-up-v{VERSION}", write)
