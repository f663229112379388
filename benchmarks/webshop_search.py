"""WebShop's search as the catalogue grows: build time, peak memory, size on disk, milliseconds a query.

Catalogues are made up (worlds/webshop_catalogue.py) with texts as long as the benchmark's: about 108 words a
product, 68 of them distinct, on its 1,000-product set. Each size runs in a process of its own, once to build the
cache and once to open it and search. The last row extrapolates in a straight line to the full catalogue.

    python benchmarks/webshop_search.py [--sizes 1000 10000 50000 200000] [--queries 200] [--folder /tmp]
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
FULL = 1_180_000  # products of the benchmark's full catalogue
WORDS, PROSE = 200_000, 100
QUERY_WORDS = {"title": 0, "10 words": 10, "25 words": 25}  # title: the product's, 4 words


def peak_mb():
    """Peak resident memory of this process, with the pages of mapped files that it touched."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(folder):
    from worlds.webshop_data import cached
    base, start = peak_mb(), time.perf_counter()
    cache = cached(folder)
    size = sum(file.stat().st_size for file in cache.iterdir()) / 2**20
    return {"build s": time.perf_counter() - start, "build MB": peak_mb() - base, "disk MB": size}


def search(folder, number):
    """Milliseconds a query by kind (mean; the slowest of all), over products drawn at random."""
    from worlds.webshop_data import Catalogue
    base, start = peak_mb(), time.perf_counter()
    catalogue = Catalogue(folder)
    row, rng, slowest = {"open s": time.perf_counter() - start}, random.Random(0), 0.0
    for kind, words in QUERY_WORDS.items():
        seconds = []
        for _ in range(number):
            product = catalogue.product(rng.randrange(len(catalogue)))
            text = product["description"].split()
            query = " ".join(rng.sample(text, words)) if words else product["title"]
            start = time.perf_counter()
            catalogue.index.search(query)
            seconds.append(time.perf_counter() - start)
        row[f"{kind} ms"], slowest = 1000 * sum(seconds) / number, max(slowest, *seconds)
    return {**row, "slowest ms": 1000 * slowest, "use MB": peak_mb() - base}


def in_process(*command):
    done = subprocess.run([sys.executable, __file__, *map(str, command)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(size, number, home):
    from worlds.webshop_catalogue import Recipe, write
    folder = Path(tempfile.mkdtemp(dir=home))
    try:
        write(folder, Recipe(size, words=WORDS, prose=PROSE))
        json_mb = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        return {"json MB": json_mb, **in_process("--build", folder), **in_process("--search", folder, "--queries", number)}
    finally:
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 50_000, 200_000])
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--folder", default=None, help="where the catalogues are written (and removed again)")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    parser.add_argument("--search", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build or args.search:
        print(json.dumps(build(args.build) if args.build else search(args.search, args.queries)))
        return
    rows = []
    for size in args.sizes:
        rows.append({"products": size, **measure(size, args.queries, args.folder)})
        if len(rows) == 1:
            print(" | ".join(rows[0]))
        print(" | ".join(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in rows[-1].values()), flush=True)
    if len(rows) > 1:
        (low, high), share = rows[-2:], (FULL - rows[-2]["products"]) / (rows[-1]["products"] - rows[-2]["products"])
        full = [max(0, low[key] + share * (high[key] - low[key])) for key in high]
        print("extrapolated: " + " | ".join(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in full))


if __name__ == "__main__":
    main()
