"""WebShop's data: the benchmark's official files, read into a catalogue in memory.

    catalogue = Catalogue("data/")      # DataError, in one sentence, when a file is missing or broken
    catalogue.products[0]["title"]; catalogue.index.search("red shoes")
"""

import hashlib
import json
import re
from contextlib import contextmanager
from pathlib import Path

from harness.cli import UserError
from worlds.webshop_search import Index

SOURCE = (
    "the benchmark publishes it: run setup.sh of github.com/princeton-nlp/WebShop, or fetch the links in it")
FILES = {  # role: names in the order of preference; the first is the full catalogue
    "items": ("items_shuffle.json", "items_shuffle_1000.json"),
    "attributes": ("items_ins_v2.json", "items_ins_v2_1000.json"),
    "human": ("items_human_ins.json",),
}
TEXTS = {  # what a product calls a text: what the files call it
    "title": "name",
    "description": "full_description",
    "category": "category",
    "query": "query",
    "product_category": "product_category",
}


class DataError(UserError):
    """The data cannot be used; the text is one sentence that says which file and what to do."""


# ---------------------------------------------------------------- reading the official files

def find_files(folder):
    """The official files in `folder` by role; human instructions may be missing. Raises DataError."""
    found = {}
    for role, names in FILES.items():
        present = [Path(folder, name) for name in names if Path(folder, name).is_file()]
        if present:
            found[role] = present[0]
        elif role != "human":
            raise DataError(f"WebShop needs {' or '.join(names)} in {Path(folder)}; {SOURCE}.")
    return found


@contextmanager
def _reading(path):
    """Turns whatever a broken file raises into one sentence."""
    try:
        yield
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read ({reason}); {SOURCE}.") from None


def _read(path, kind):
    """The value of a JSON file, which must be of that kind (list or dict). Raises DataError."""
    with _reading(path), open(path, encoding="utf-8") as file:
        value = json.load(file)
        if not isinstance(value, kind):
            wanted = "an object" if kind is dict else "a list of products"
            raise ValueError(f"its top level is not {wanted}")
    return value


def _prices(pricing):
    """"$20.00 - $35.50" -> [20.0, 35.5]; no price at all -> [100.0]; more than two: the first two."""
    parts = (pricing or "").split("$")[1:]
    numbers = [float(re.sub(r"[^\d.]", "", part)) for part in parts]
    return numbers[:2] or [100.0]


def _options(customization):
    """{"Color": [{"value": "Navy/Red"}]} -> {"color": ["navy | red"]}; lists that are null are skipped."""
    options = {}
    for name, choices in (customization or {}).items():
        if choices is not None:
            values = [choice["value"].strip() for choice in choices]
            options[name.lower()] = [value.replace("/", " | ").lower() for value in values]
    return options


def _texts(value):
    """A list of texts as it is. Raises ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{str(value)[:80]} is not a list of texts")
    return value


def _wishes(human):
    """[text, attributes, options] of every human instruction that names an attribute."""
    wishes = []
    for wish in human:
        if wish["instruction_attributes"]:
            text = wish["instruction"].strip(".")
            wishes.append([text, _texts(wish["instruction_attributes"]), _texts(wish["instruction_options"])])
    return wishes


def _product(record, details, human):
    """One product as the official loader leaves it.

    Raises ValueError, KeyError, TypeError, AttributeError.
    """
    instruction, bullets = details.get("instruction"), record.get("small_description") or ""
    texts = {key: record.get(source) or "" for key, source in TEXTS.items()}
    wanted = _texts(details.get("instruction_attributes") or [])
    _texts([*texts.values(), instruction or ""])
    return {
        **texts,
        "asin": record["asin"],
        "query": texts["query"].lower().strip(),
        "bullets": list(map(str, bullets if isinstance(bullets, list) else [bullets])),
        "prices": _prices(record.get("pricing")),
        "options": _options(record.get("customization_options")),
        "attributes": _texts(details.get("attributes", ["DUMMY_ATTR"])),
        "instruction": instruction if wanted else None,
        "instruction_attributes": wanted,
        "human": _wishes(human),
    }


def read_products(files):
    """The products of the files, in document order. Raises DataError."""
    attributes = _read(files["attributes"], dict)
    human = _read(files["human"], dict) if "human" in files else {}
    records = _read(files["items"], list)
    products = {}
    with _reading(files["items"]):
        for record in records:
            asin = record.get("asin") if isinstance(record, dict) else None
            if not isinstance(asin, str):
                raise ValueError(f"a product after {len(products)} good ones has no asin")
            if asin == "nan" or len(asin) > 10 or asin in products:
                continue
            try:
                products[asin] = _product(record, attributes.get(asin, {}), human.get(asin, []))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"product {asin} is malformed: {error}") from None
    if not products:
        raise DataError(f"{files['items']} holds no product; {SOURCE}.")
    return list(products.values())


def price_tag(product):
    """$9.99, or $20.0 to $35.5"""
    return " to ".join(f"${price}" for price in product["prices"])


def document(product):
    """The text that is indexed: title, description, first bullet, options."""
    named = [f"{name}: {', '.join(values)}" for name, values in product["options"].items()]
    parts = [product["title"], product["description"], *product["bullets"][:1], ", and ".join(named)]
    return " ".join(parts).lower()


class Catalogue:
    """The products of a data folder, and their search index. Raises DataError."""

    def __init__(self, folder):
        files = find_files(folder)
        self.folder = folder
        self.products = read_products(files)
        self.index = Index([document(p) for p in self.products], [p["asin"] for p in self.products])
        content = json.dumps(self.products).encode()
        self.digest = hashlib.sha256(content).hexdigest()   # of all that is known of the products
