"""WebShop's data: the benchmark's official files, read once into a catalogue that is opened memory-mapped.

The full catalogue has 1.18 million products and 5 GB of JSON. It is read as a stream; products, search index
and what goals and prices are made of go into a cache beside the data, with a version and checksums of its
inputs. After that a process opens the cache in milliseconds, and all processes share its pages.

    catalogue = Catalogue("data/")      # DataError, in one sentence, when a file is missing or broken
    catalogue.product(0)["title"]; catalogue.index.search("red shoes")
"""

import hashlib
import json
import math
import os
import re
from array import array
from collections import Counter
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from harness.cli import UserError
from harness.folder import cache_home
from worlds.cache import once
from worlds.webshop_search import Blobs, Index, write_index

VERSION = 1  # of what is cached on disk: raise it when the layout or the analyser changes
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

def elements(file, chunk=1 << 24, longest=1 << 26):
    """The elements of a JSON array in an open text file, one by one: 5 GB never stand in memory at once.

    `longest` (characters) ends the search for the end of a broken element. Raises ValueError.
    """
    decode = json.JSONDecoder().raw_decode
    separator = re.compile(r"[\s,]*")
    text, at = file.read(chunk).lstrip(), 1
    if not text.startswith("["):
        raise ValueError("it is not a list of products")
    while True:
        at = separator.match(text, at).end()
        if text.startswith("]", at):
            return
        try:
            element, at = decode(text, at)
        except json.JSONDecodeError:
            more = file.read(chunk) if len(text) - at < longest else ""
            if not more:
                raise
            text, at = text[at:] + more, 0
        else:
            yield element


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


def _json_object(path):
    """A whole JSON file whose top level must be an object; {} for no path. Raises DataError."""
    if path is None:
        return {}
    with _reading(path), open(path, encoding="utf-8") as file:
        value = json.load(file)
        if not isinstance(value, dict):
            raise ValueError("its top level is not an object")
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


def _bullets(value):
    """The texts of a product's short description, which may be one text or missing."""
    return [str(bullet) for bullet in value] if isinstance(value, list) else [str(value or "")]


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
    instruction = details.get("instruction")
    texts = {key: record.get(source) or "" for key, source in TEXTS.items()}
    wanted = _texts(details.get("instruction_attributes") or [])
    _texts([*texts.values(), instruction or ""])
    return {
        **texts,
        "asin": record["asin"],
        "query": texts["query"].lower().strip(),
        "bullets": _bullets(record.get("small_description")),
        "prices": _prices(record.get("pricing")),
        "options": _options(record.get("customization_options")),
        "attributes": _texts(details.get("attributes", ["DUMMY_ATTR"])),
        "instruction": instruction if wanted else None,
        "instruction_attributes": wanted,
        "human": _wishes(human),
    }


def read_products(files):
    """Every product of the files, in document order. Raises DataError."""
    attributes = _json_object(files["attributes"])
    human = _json_object(files.get("human"))
    seen = set()
    with _reading(files["items"]), open(files["items"], encoding="utf-8") as file:
        for record in elements(file):
            asin = record.get("asin") if isinstance(record, dict) else None
            if not isinstance(asin, str):
                raise ValueError(f"a product after {len(seen)} good ones has no asin")
            if asin == "nan" or len(asin) > 10 or asin in seen:
                continue
            seen.add(asin)
            try:
                yield _product(record, attributes.get(asin, {}), human.get(asin, []))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"product {asin} is malformed: {error}") from None


def price_tag(product):
    """$9.99, or $20.0 to $35.5"""
    return " to ".join(f"${price}" for price in product["prices"])


def document(product):
    """The text that is indexed: title, description, first bullet, options."""
    named = [f"{name}: {', '.join(values)}" for name, values in product["options"].items()]
    parts = [product["title"], product["description"], *product["bullets"][:1], ", and ".join(named)]
    return " ".join(parts).lower()


# ---------------------------------------------------------------- the catalogue on disk

class Columns:
    """What goals and prices are made of, a value per product."""

    def __init__(self):
        self.asins = []
        self.low = array("d")               # prices
        self.high = array("d")
        self.combinations = array("q")      # synthetic goals
        self.human = array("i")             # human goals
        self.attributes = []                # of the synthetic instruction
        self.ends = array("q", [0])         # boundaries of the products' JSON in products.bin

    def add(self, product, length):
        """length: bytes of the product's JSON."""
        values = math.prod(len(choices) for choices in product["options"].values())
        self.asins.append(product["asin"])
        self.low.append(product["prices"][0])
        self.high.append(product["prices"][-1])
        self.combinations.append(values if product["instruction"] is not None else 0)
        self.human.append(len(product["human"]))
        self.attributes.append(product["instruction_attributes"])
        self.ends.append(self.ends[-1] + length)

    def write(self, folder):
        """A .npy file per column."""
        for name in ("asins", "low", "high", "combinations", "human"):
            np.save(folder / f"{name}.npy", np.array(getattr(self, name)))
        np.save(folder / "products.npy", np.array(self.ends))
        np.save(folder / "weights.npy", np.array(self.weights()))

    def weights(self):
        """Per product the weight of each of its synthetic goals: the mean over its attributes of
        1 / (number of synthetic goals with that attribute)."""
        goals, weights = Counter(), []
        for names, number in zip(self.attributes, self.combinations):
            for name in names:
                goals[name] += number
        for names, number in zip(self.attributes, self.combinations):
            weights.append(sum(1 / goals[name] for name in names) / len(names) if number else 0.0)
        return weights


def _store(products, columns, file):
    """Writes products as they come, and yields their text for the index."""
    for product in products:
        columns.add(product, file.write(json.dumps(product).encode()))
        yield document(product)


def _build(files, folder):
    """Products, index and columns of the files, in the new folder `folder`."""
    columns = Columns()
    with open(folder / "products.bin", "wb") as file:
        write_index(_store(read_products(files), columns, file), folder)
    if not columns.asins:
        raise DataError(f"{files['items']} holds no product; {SOURCE}.")
    columns.write(folder)
    inputs = {path.name: [*_size_and_time(path), _fingerprint(path)] for path in files.values()}
    (folder / "meta.json").write_text(json.dumps({"version": VERSION, "inputs": inputs}))


def _size_and_time(path):
    known = path.stat()
    return [known.st_size, known.st_mtime_ns]


def _fingerprint(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_fresh(folder, files):
    """Whether the cache in `folder` was made by this version from these files. A file whose size and time
    are unchanged is not read again: hashing the full catalogue takes seconds."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["version"] != VERSION or set(meta["inputs"]) != {path.name for path in files.values()}:
            return False
        for path in files.values():
            *known, fingerprint = meta["inputs"][path.name]
            if _size_and_time(path) != known and _fingerprint(path) != fingerprint:
                return False
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def cached(folder):
    """The folder with the up-to-date cache of the data in `folder`; made when it is not there.

    It stands beside the data, or under `cache_home()` when the data cannot be written to. Raises DataError.
    """
    folder = Path(folder).resolve()
    files = find_files(folder)
    name = "webshop-" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    cache = folder / ".tcod" if os.access(folder, os.W_OK) else cache_home() / name
    return once(cache, lambda new: _build(files, new), lambda made: _is_fresh(made, files))


class Catalogue:
    """The products of a data folder: `product(i)` reads one from disk, `index` searches them.

    Raises DataError.
    """

    def __init__(self, folder):
        self.cache = cached(folder)
        try:
            self.low = self._column("low")
            self.high = self._column("high")
            self.weights = self._column("weights")
            self.combinations = self._column("combinations")
            self.human = self._column("human")
            self.index = Index(self.cache)
            self._records = Blobs(self.cache / "products")
        except (OSError, EOFError, ValueError) as error:
            mend = "remove it, it will be made again"
            raise DataError(f"The cache {self.cache} is damaged ({error}); {mend}.") from None
        self.product = lru_cache(4096)(self._read)

    def _column(self, name):
        return np.load(self.cache / f"{name}.npy", mmap_mode="r")

    def _read(self, number):
        return json.loads(self._records[number])

    def __len__(self):
        return len(self._records)
