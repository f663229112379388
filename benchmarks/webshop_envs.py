"""WebShop environments in one process: memory and start-up of 1, 16 and 64 of them, and steps per second.

    python benchmarks/webshop_envs.py [--data FOLDER]       # default: the made-up catalogue
    python benchmarks/webshop_envs.py --environments 1 --seconds 0.1
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import envs


def memory_mb():
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def play(env, rng, turns=15):
    """Random admissible actions after a search with the instruction's words; returns the steps taken."""
    _, info = env.reset(seed=rng.randrange(2**31))
    action = f"search[{' '.join(info['task'].split()[2:6])}]"
    for turn in range(turns):
        _, _, terminated, _, info = env.step(action)
        if terminated:
            return turn + 1
        action = rng.choice(info["admissible"]).replace("<query>", "shirt")
    return turns


def start_up(numbers, data, rng):
    """Makes environments, up to each of the numbers (ascending) in turn; prints what so many cost."""
    made, seconds = [], 0.0
    before = memory_mb()
    for number in numbers:
        start = time.perf_counter()
        while len(made) < number:
            made.append(envs.make_env("webshop", split="test", data=data))
            play(made[-1], rng)
            if len(made) == 1:
                first = memory_mb()
        seconds += time.perf_counter() - start
        line = f"{number:3} environments: {seconds:.2f} s from the start, a first visit each"
        line += f"; {memory_mb() - before:.1f} MB"
        if number > 1:
            line += f", each further one {(memory_mb() - first) / (number - 1):.2f} MB"
        print(line)
    return made


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="a folder with the benchmark's files")
    parser.add_argument(
        "--environments", type=int, nargs="+", default=[1, 16, 64], help="how many (default: 1 16 64)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of play, for the steps per second (default: 5)")
    args = parser.parse_args()
    rng = random.Random(0)
    made = start_up(sorted(args.environments), args.data, rng)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < args.seconds:
        steps += play(rng.choice(made), rng)
    print(f"{steps / (time.perf_counter() - start):,.0f} steps per second, one thread")


if __name__ == "__main__":
    main()
