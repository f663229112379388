"""What a start costs on ALFWorld's games: with nothing kept, by two processes at once, and the next time.

    python benchmarks/alfworld_start.py                         # 200 games of the data set's train split
    python benchmarks/alfworld_start.py --games 3553            # all of them: 12 minutes of CPU and more
    python benchmarks/alfworld_start.py --data generated        # generated games of level full
    python benchmarks/alfworld_start.py --kept                  # the next start only, on what is kept already

Each process lists the split, then loads every game, resets it and looks around. The cache is a new folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SEVERAL = 50                    # games between two looks at the memory


def memory():
    """MB that this process has resident; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def play(data, games):
    """The figures of one process."""
    import fast_downward

    import envs
    translate, translated = fast_downward.pddl2sas, []
    fast_downward.pddl2sas = lambda *args, **more: translated.append(1) or translate(*args, **more)
    began = time.perf_counter()
    tasks = envs.make_tasks("alfworld", "train", data)
    listed = time.perf_counter() - began
    env, loads, peak = envs.make_env("alfworld", data=data), [], memory()
    for number, task in enumerate(tasks[:games]):
        start = time.perf_counter()
        env.reset(options={"task": task})
        loads.append(time.perf_counter() - start)
        env.step("look")
        first = first if number else time.perf_counter() - began
        peak = max(peak, memory()) if number % SEVERAL == 0 else peak
    return dict(
        tasks=len(tasks), games=len(loads), listed=listed, first=first, median=sorted(loads)[len(loads) // 2],
        mean=sum(loads) / len(loads), translated=len(translated), memory=max(peak, memory()))


def several(count, cache, args):
    """The figures of `count` processes that start at once."""
    command = [sys.executable, __file__, "--one", "--data", args.data, "--games", str(args.games)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    if cache:
        variables["TCOD_CACHE"] = cache
    how = dict(env=variables, stdout=subprocess.PIPE, text=True)
    started = [subprocess.Popen(command, **how) for _ in range(count)]
    return [json.loads(process.communicate()[0]) for process in started]


def show(name, figures):
    for f in figures:
        print(
            f"{name}: {f['tasks']} tasks listed in {f['listed']:.2f} s, first step after {f['first']:.2f} s, "
            f"load and reset {1e3 * f['median']:.1f} ms (mean {1e3 * f['mean']:.1f}), {f['translated']} of "
            f"{f['games']} games translated, {f['memory']:.0f} MB", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="the data set's folder, or generated")
    parser.add_argument("--games", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--kept", action="store_true", help="use the cache that is there, once")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(play(args.data, args.games)))
    if args.kept:
        return show("kept", several(1, "", args))
    with tempfile.TemporaryDirectory() as folder:
        if args.data == "generated":
            from worlds.alfworld_games import write_splits
            write_splits(folder, "full", {"train": args.games})
            args.data = folder
        show("two at once, nothing kept", several(2, str(Path(folder, "cache")), args))
        show("the next start", several(1, str(Path(folder, "cache")), args))


if __name__ == "__main__":
    main()
