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
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from worlds.webshop_data import cache_home

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


# category: (things, adjectives, the option besides the size-like one, the size-like one)
COLOURS = ("color", "red blue green black white yellow pink brown".split())
SIZES = ("size", "small medium large".split())
SHELVES = {
    "fashion": ("shirt jacket scarf skirt sweater sandal glove hat",
                "soft warm striped stretchy washable thick casual formal", COLOURS, SIZES),
    "beauty": ("soap shampoo lotion balm brush perfume mask comb",
               "gentle vegan organic fragrant creamy soothing fresh mild",
               ("scent", "rose lemon vanilla cedar mint lavender".split()), SIZES),
    "electronics": ("cable charger speaker headset camera keyboard mouse router",
                    "wireless portable fast compact durable waterproof foldable quiet",
                    COLOURS, ("length", "short middle long".split())),
    "garden": ("lamp chair table rug vase shelf curtain pillow",
               "wooden modern rustic sturdy round tall handmade simple", COLOURS, SIZES),
    "grocery": ("tea honey cookie soup cereal jam noodle cracker",
                "sweet salty spicy crunchy roasted raw smoked tangy",
                ("flavor", "apple cherry mint vanilla ginger lemon".split()), SIZES),
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
    things = [(category, thing, _adjectives(random.Random(f"{recipe.seed} {thing}"), shelf[1]))
              for category, shelf in SHELVES.items() for thing in shelf[0].split()]
    random.Random(recipe.seed).shuffle(things)
    for category, thing, pairs in itertools.islice(itertools.cycle(things), recipe.products):
        yield category, thing, next(pairs)


def _options(rng, recipe, category):
    """[(name, values)] of a product, by name as in instructions; the values keep their usual order."""
    offered = sorted([*SHELVES[category][2:], *([PACKS] if rng.random() < recipe.third_option else [])])
    return [(name, sorted(rng.sample(values, min(recipe.values, len(values))), key=values.index))
            for name, values in offered]


def _pricing(rng, recipe):
    if rng.random() < recipe.price_ranges:
        low, high = sorted(rng.sample(PRICES, 2), key=float)
        return f"${low} - ${high}"
    return f"${rng.choice(PRICES)}"


def make_products(recipe):
    """(item, attribute entry, human instructions) of every product, in the official formats."""
    width = max(4, len(str(recipe.products)) + 1)
    for number, (category, thing, pair) in enumerate(_identities(recipe)):
        rng = random.Random(f"{recipe.seed} {number}")
        asin = str(10 ** (width - 1) + number)
        brand = made_up_word(rng.randrange(recipe.words)) if recipe.words else rng.choice(BRANDS)
        what, options = f"{' '.join(pair)} {thing}", _options(rng, recipe, category)
        prose = ["a", *pair, thing, "from", brand, *_zipf_words(rng, recipe, recipe.prose)]
        item = {
            "asin": asin, "name": f"{brand} {what}", "full_description": " ".join(prose) + ".",
            "small_description": [f"{pair[0]} {thing}", f"{pair[1]} as well"], "pricing": _pricing(rng, recipe),
            "customization_options": {name: [{"value": value} for value in values] for name, values in options},
            "category": category, "query": thing, "product_category": f"{category} › {thing}",
        }
        entry = {"attributes": list(pair), "instruction": f"find me a {what}", "instruction_attributes": list(pair)}
        wish = {"asin": asin, "instruction": f"i need a {what}, please make it {options[0][1][0]}.",
                "instruction_attributes": list(pair), "instruction_options": [options[0][1][0]]}
        yield item, entry, [wish] * (rng.random() < recipe.human)


def write(folder, recipe=Recipe()):
    """Writes the three official files of a catalogue into `folder`, product by product."""
    folder = Path(folder)
    with open(folder / "items_shuffle.json", "w") as items, open(folder / "items_ins_v2.json", "w") as attributes, \
            open(folder / "items_human_ins.json", "w") as human:
        separator, human_separator = "", ""
        items.write("["), attributes.write("{"), human.write("{")
        for item, entry, wishes in make_products(recipe):
            items.write(separator + json.dumps(item))
            attributes.write(f'{separator}"{item["asin"]}": {json.dumps(entry)}')
            separator = ",\n"
            if wishes:
                human.write(f'{human_separator}"{item["asin"]}": {json.dumps(wishes)}')
                human_separator = ",\n"
        items.write("]"), attributes.write("}"), human.write("}")


def default_folder(recipe=Recipe()):
    """The folder with the recipe's files, in this project's cache; made on first use (0.1 s for the default)."""
    key = hashlib.sha256(f"{VERSION} {recipe}".encode()).hexdigest()[:12]
    folder = cache_home() / f"webshop-made-up-{key}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = tempfile.mkdtemp(dir=folder.parent)
        write(new, recipe)
        try:
            os.rename(new, folder)  # whole or not at all; another process may have been first
        except OSError:
            shutil.rmtree(new)
    return folder


def main(folder, products=300, words=0, prose=0):
    Path(folder).mkdir(parents=True, exist_ok=True)
    write(folder, Recipe(int(products), words=int(words), prose=int(prose)))


if __name__ == "__main__":
    main(*sys.argv[1:])
