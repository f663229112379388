"""Made-up WebShop catalogues in the benchmark's own file formats, from a seed.

The default recipe is the embedded default of `--env webshop`: few words, short lower-case titles, numbers as
product ids (their case cannot differ between a page and an action), so that a word-level model of 0.3 M
parameters can play it. In each kind of thing two adjectives name one product as long as the pairs last, so
an instruction tells which one is meant. `words` and `prose` turn the same recipe into a large catalogue with
long texts, to measure the search on. Every word here is our own or a plain dictionary word.

    python -m worlds.webshop_catalogue FOLDER [PRODUCTS [WORDS [PROSE]]]
"""

import dataclasses
import hashlib
import itertools
import json
import random
import sys
from pathlib import Path

from harness.folder import cache_home
from worlds.cache import once

VERSION = 1  # raise it when the same recipe gives another catalogue


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a catalogue is made of."""
    products: int = 300
    seed: int = 0
    values: int = 3             # values an option offers
    third_option: float = 0.5   # share of products with three options instead of two
    price_ranges: float = 0.0   # share of products with two prices, so that the sale price is drawn
    human: float = 0.3          # share of products with a human instruction
    words: int = 0              # further made-up words: brands and prose are drawn from them
    prose: int = 0              # words of prose per description, Zipf-distributed


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
SYLLABLES = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]


def made_up_word(number):
    """0 -> "bababa": a pronounceable word per number below 343,000, four syllables from there on."""
    parts = []
    while number or len(parts) < 3:
        number, last = divmod(number, len(SYLLABLES))
        parts.append(SYLLABLES[last])
    return "".join(parts)


def _zipf_words(rng, recipe, number):
    """`number` words; the word of rank r comes with a chance of about 1/r."""
    return [made_up_word(int(recipe.words ** rng.random()) - 1) for _ in range(number)]


def _adjectives(rng, words):
    """Pairs of adjectives for the products of one thing, in an order of its own, over and over."""
    pairs = list(itertools.combinations(words.split(), 2))
    rng.shuffle(pairs)
    return itertools.cycle(pairs)


def _identities(recipe):
    """(category, thing, two adjectives) per product: the things in turn, so that all have equally many."""
    things = []
    for category, shelf in SHELVES.items():
        for thing in shelf[0].split():
            rng = random.Random(f"{recipe.seed} {thing}")
            things.append((category, thing, _adjectives(rng, shelf[1])))
    random.Random(recipe.seed).shuffle(things)
    for category, thing, pairs in itertools.islice(itertools.cycle(things), recipe.products):
        yield category, thing, next(pairs)


def _options(rng, recipe, category):
    """{name: values} of a product, by name as in instructions; the values keep their usual order."""
    offered = list(SHELVES[category][2:])
    if rng.random() < recipe.third_option:
        offered.append(PACKS)
    options = {}
    for name, values in sorted(offered):
        some = rng.sample(values, min(recipe.values, len(values)))
        options[name] = sorted(some, key=values.index)
    return options


def _pricing(rng, recipe):
    if rng.random() < recipe.price_ranges:
        low, high = sorted(rng.sample(PRICES, 2), key=float)
        return f"${low} - ${high}"
    return f"${rng.choice(PRICES)}"


def _customization(options):
    return {name: [{"value": value} for value in values] for name, values in options.items()}


def make_products(recipe):
    """(item, attribute entry, human instructions) of every product, in the official formats."""
    width = max(4, len(str(recipe.products)) + 1)
    for number, (category, thing, pair) in enumerate(_identities(recipe)):
        rng = random.Random(f"{recipe.seed} {number}")
        asin = str(10 ** (width - 1) + number)
        yield _make_product(rng, recipe, asin, category, thing, list(pair))


def _make_product(rng, recipe, asin, category, thing, pair):
    """pair: its two adjectives. The order in which `rng` is asked is part of the recipe."""
    brand = made_up_word(rng.randrange(recipe.words)) if recipe.words else rng.choice(BRANDS)
    what = f"{' '.join(pair)} {thing}"
    options = _options(rng, recipe, category)
    prose = ["a", *pair, thing, "from", brand, *_zipf_words(rng, recipe, recipe.prose)]
    item = {
        "asin": asin,
        "name": f"{brand} {what}",
        "full_description": " ".join(prose) + ".",
        "small_description": [f"{pair[0]} {thing}", f"{pair[1]} as well"],
        "pricing": _pricing(rng, recipe),
        "customization_options": _customization(options),
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
    return item, entry, [wish] if rng.random() < recipe.human else []


# ---------------------------------------------------------------- files

class JsonFile:
    """A JSON list or object, written element by element."""

    def __init__(self, path, brackets):
        self.file = open(path, "w")
        self.end = brackets[1]
        self.file.write(brackets[0])
        self.separator = ""

    def add(self, text):
        self.file.write(self.separator + text)
        self.separator = ",\n"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.write(self.end)
        self.file.close()


def write(folder, recipe=Recipe()):
    """Writes the three official files of a catalogue into `folder`, product by product."""
    with JsonFile(Path(folder, "items_shuffle.json"), "[]") as items, \
            JsonFile(Path(folder, "items_ins_v2.json"), "{}") as attributes, \
            JsonFile(Path(folder, "items_human_ins.json"), "{}") as human:
        for item, entry, wishes in make_products(recipe):
            items.add(json.dumps(item))
            attributes.add(f'"{item["asin"]}": {json.dumps(entry)}')
            if wishes:
                human.add(f'"{item["asin"]}": {json.dumps(wishes)}')


def default_folder(recipe=Recipe()):
    """The folder with the recipe's files, in this project's cache; made on first use, in 0.1 s by default."""
    key = hashlib.sha256(f"{VERSION} {recipe}".encode()).hexdigest()[:12]
    return once(cache_home() / f"webshop-made-up-{key}", lambda new: write(new, recipe))


def main(folder, products=300, words=0, prose=0):
    Path(folder).mkdir(parents=True, exist_ok=True)
    write(folder, Recipe(int(products), words=int(words), prose=int(prose)))


if __name__ == "__main__":
    main(*sys.argv[1:])
