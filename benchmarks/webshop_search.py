"""WebShop's search as the catalogue grows: build time, peak memory, size on disk, milliseconds a query.

    python benchmarks/webshop_search.py [--sizes 1000 10000 50000 200000] [--queries 200] [--folder /tmp]
    python benchmarks/webshop_search.py --sizes 200 --queries 5

Catalogues are made up (worlds/webshop_catalogue.py) with texts as long as the benchmark's: about 108 words a
product, 68 of them distinct, on its 1,000-product set. Each size runs in a process of its own, once to build
the cache and once to open it and search. The last row extrapolates in a straight line to the full catalogue.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from worlds.webshop_catalogue import Recipe, write
from worlds.webshop_data import Catalogue, cached

FULL = 1_180_000  # products of the benchmark's full catalogue
WORDS, PROSE = 200_000, 100
QUERY_WORDS = {"title": 0, "10 words": 10, "25 words": 25}  # title: the product's, 4 words


def peak_mb():
    """Peak resident memory of this process, with the pages of mapped files that it touched."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def megabytes(folder):
    return sum(file.stat().st_size for file in folder.iterdir()) / 2**20


# ---- what is measured, each in a process of its own

def build(folder):
    base, start = peak_mb(), time.perf_counter()
    cache = cached(folder)
    seconds = time.perf_counter() - start
    return {"build s": seconds, "build MB": peak_mb() - base, "disk MB": megabytes(cache)}


def search(folder, number):
    """Milliseconds a query by kind (mean; the slowest of all), over products drawn at random."""
    base, start = peak_mb(), time.perf_counter()
    catalogue = Catalogue(folder)
    row = {"open s": time.perf_counter() - start}
    rng, slowest = random.Random(0), 0.0
    for kind, words in QUERY_WORDS.items():
        seconds = [search_once(catalogue, words, rng) for _ in range(number)]
        row[f"{kind} ms"] = 1000 * sum(seconds) / number
        slowest = max(slowest, *seconds)
    return {**row, "slowest ms": 1000 * slowest, "use MB": peak_mb() - base}


def search_once(catalogue, words, rng):
    """Seconds of a query of so many words of a product's description; 0: of its title."""
    product = catalogue.product(rng.randrange(len(catalogue)))
    text = product["description"].split()
    query = " ".join(rng.sample(text, words)) if words else product["title"]
    start = time.perf_counter()
    catalogue.index.search(query)
    return time.perf_counter() - start


# ---- the table

def in_process(*command):
    """What this file prints when it is started so."""
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(size, number, home):
    """A row of the table. home: where the catalogue is written; None: where the system keeps such things."""
    folder = Path(tempfile.mkdtemp(dir=home))
    try:
        write(folder, Recipe(size, words=WORDS, prose=PROSE))
        row = {"products": size, "json MB": megabytes(folder)}
        row.update(in_process("--build", folder))
        row.update(in_process("--search", folder, "--queries", number))
    finally:
        shutil.rmtree(folder)
    return row


def cells(values):
    return " | ".join(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in values)


def extrapolate(low, high):
    """Two rows continued in a straight line to the full catalogue."""
    share = (FULL - low["products"]) / (high["products"] - low["products"])
    return [max(0, low[key] + share * (high[key] - low[key])) for key in high]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [1000, 10_000, 50_000, 200_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="products of each catalogue")
    parser.add_argument("--queries", type=int, default=200, help="of each kind (default: 200)")
    parser.add_argument("--folder", default=None, help="where the catalogues are written (and removed again)")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    parser.add_argument("--search", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        return print(json.dumps(build(args.build)))
    if args.search:
        return print(json.dumps(search(args.search, args.queries)))
    rows = []
    for size in args.sizes:
        rows.append(measure(size, args.queries, args.folder))
        if len(rows) == 1:
            print(" | ".join(rows[0]))
        print(cells(rows[-1].values()), flush=True)
    if len(rows) > 1:
        print("extrapolated: " + cells(extrapolate(*rows[-2:])))


if __name__ == "__main__":
    main()
