"""WebShop's data: the benchmark's official files, read once into a catalogue on disk that is opened memory-mapped.

The full catalogue has 1.18 million products and 5 GB of JSON. It is read as a stream; products, search index and
what goals and prices are made of go into a cache beside the data, with a version and checksums of its inputs. After
that a process opens the cache in milliseconds, and all processes share its pages.

    catalogue = Catalogue("data/")      # DataError, in one sentence, when a file is missing or broken
    catalogue.product(0)["title"]; catalogue.index.search("red shoes")
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import sys
from array import array
from collections import Counter
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from worlds.webshop_search import Blobs, Index, write_index

VERSION = 1  # of what is cached on disk: raise it when the layout or the analyser changes
SOURCE = "the benchmark publishes it: run setup.sh of github.com/princeton-nlp/WebShop, or fetch the links in it"
FILES = {  # role: names in the order of preference; the first is the full catalogue
    "items": ("items_shuffle.json", "items_shuffle_1000.json"),
    "attributes": ("items_ins_v2.json", "items_ins_v2_1000.json"),
    "human": ("items_human_ins.json",),
}


class DataError(Exception):
    """The data cannot be used; the text is one sentence that says which file and what to do."""


# ---------------------------------------------------------------- reading the official files

def elements(file, chunk=1 << 24, longest=1 << 26):
    """The elements of a JSON array in an open text file, one by one: 5 GB never stand in memory at once.

    `longest` (characters) ends the search for the end of a broken element. Raises ValueError."""
    decode, separator = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*")
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
    folder, found = Path(folder), {}
    for role, names in FILES.items():
        found[role] = next((folder / name for name in names if (folder / name).is_file()), None)
        if found[role] is None and role != "human":
            raise DataError(f"WebShop needs {' or '.join(names)} in {folder}; {SOURCE}.")
    return {role: path for role, path in found.items() if path}


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
    numbers = [float(re.sub(r"[^\d.]", "", part)) for part in (pricing or "").split("$")[1:]]
    return numbers[:2] or [100.0]


def _options(customization):
    """{"Color": [{"value": "Navy/Red"}]} -> {"color": ["navy | red"]}; lists that are null are skipped."""
    return {name.lower(): [choice["value"].strip().replace("/", " | ").lower() for choice in choices]
            for name, choices in (customization or {}).items() if choices is not None}


def _texts(value):
    """A list of texts as it is. Raises ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{str(value)[:80]} is not a list of texts")
    return value


def _product(record, details, human):
    """One product as the official loader leaves it. Raises ValueError, KeyError, TypeError, AttributeError."""
    bullets, instruction = record.get("small_description"), details.get("instruction")
    texts = {key: record.get(source) or "" for key, source in (
        ("title", "name"), ("description", "full_description"), ("category", "category"),
        ("query", "query"), ("product_category", "product_category"))}
    wanted = _texts(details.get("instruction_attributes") or [])
    _texts([*texts.values(), instruction or ""])
    return {
        **texts, "asin": record["asin"], "query": texts["query"].lower().strip(),
        "bullets": [str(b) for b in bullets] if isinstance(bullets, list) else [str(bullets or "")],
        "prices": _prices(record.get("pricing")), "options": _options(record.get("customization_options")),
        "attributes": _texts(details.get("attributes", ["DUMMY_ATTR"])),
        "instruction": instruction if wanted else None, "instruction_attributes": wanted,
        "human": [[h["instruction"].strip("."), _texts(h["instruction_attributes"]), _texts(h["instruction_options"])]
                  for h in human if h["instruction_attributes"]],
    }


def read_products(files):
    """Every product of the files, in document order. Raises DataError."""
    attributes, human, seen = _json_object(files["attributes"]), _json_object(files.get("human")), set()
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
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product["options"].items())
    return " ".join([product["title"], product["description"], *product["bullets"][:1], options]).lower()


# ---------------------------------------------------------------- the catalogue on disk

def cache_home():
    """Where this project keeps what it makes itself: $TCOD_CACHE, or ~/.cache/tcod."""
    return Path(os.environ.get("TCOD_CACHE") or "~/.cache/tcod").expanduser()


@contextmanager
def alone(path):
    """Lets one process at a time make `path`; the ranks of a run wait for the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text):
    """A line on the screen, from one rank only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"WebShop: {text}", file=sys.stderr)


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
            known, now = meta["inputs"][path.name], path.stat()
            if [now.st_size, now.st_mtime_ns] != known[:2] and _fingerprint(path) != known[2]:
                return False
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _build(files, folder):
    """Products, index and per-product columns of the files, in the new folder `folder`."""
    columns = {"asins": [], "low": array("d"), "high": array("d"), "combinations": array("q"), "human": array("i")}
    attributes = []

    def store(products, file, ends):
        for product in products:
            ends.append(ends[-1] + file.write(json.dumps(product).encode()))
            values = math.prod(len(choices) for choices in product["options"].values())
            columns["asins"].append(product["asin"])
            columns["low"].append(product["prices"][0])
            columns["high"].append(product["prices"][-1])
            columns["combinations"].append(values if product["instruction"] is not None else 0)
            columns["human"].append(len(product["human"]))
            attributes.append(product["instruction_attributes"])
            yield document(product)

    ends = array("q", [0])
    with open(folder / "products.bin", "wb") as file:
        write_index(store(read_products(files), file, ends), folder)
    if len(ends) == 1:
        raise DataError(f"{files['items']} holds no product; {SOURCE}.")
    np.save(folder / "products.npy", np.array(ends))
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", np.array(column))
    np.save(folder / "weights.npy", _goal_weights(attributes, columns["combinations"]))
    inputs = {path.name: [path.stat().st_size, path.stat().st_mtime_ns, _fingerprint(path)] for path in files.values()}
    (folder / "meta.json").write_text(json.dumps({"version": VERSION, "inputs": inputs}))


def _goal_weights(attributes, combinations):
    """Per product the weight of each of its synthetic goals: the mean over its attributes of
    1 / (number of synthetic goals with that attribute)."""
    goals = Counter()
    for names, number in zip(attributes, combinations):
        for name in names:
            goals[name] += number
    return np.array([sum(1 / goals[name] for name in names) / len(names) if number else 0.0
                     for names, number in zip(attributes, combinations)])


def cached(folder):
    """The folder with the up-to-date cache of the data in `folder`; made when it is not there.

    It stands beside the data, or under `cache_home()` when the data cannot be written to. Raises DataError."""
    folder = Path(folder).resolve()
    files = find_files(folder)
    name = "webshop-" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    cache = folder / ".tcod" if os.access(folder, os.W_OK) else cache_home() / name
    if _is_fresh(cache, files):
        return cache
    with alone(cache):
        if not _is_fresh(cache, files):
            new = Path(f"{cache}.new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            _build(files, new)
            shutil.rmtree(cache, ignore_errors=True)
            new.rename(cache)
    return cache


class Catalogue:
    """The products of a data folder: `product(i)` reads one from disk, `index` searches them. Raises DataError."""

    def __init__(self, folder):
        self.cache = cached(folder)
        load = lambda name: np.load(self.cache / f"{name}.npy", mmap_mode="r")
        try:
            self.low, self.high, self.weights = map(load, ("low", "high", "weights"))
            self.combinations, self.human = map(load, ("combinations", "human"))
            self.index, self._records = Index(self.cache), Blobs(self.cache / "products")
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"The cache {self.cache} is damaged ({error}); remove it, it will be made again.") from None
        self.product = lru_cache(4096)(lambda i: json.loads(self._records[i]))

    def __len__(self):
        return len(self._records)
