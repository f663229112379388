"""Resident memory while games are reset again and again, and while a tiny student is trained: is it flat?

    python benchmarks/memory.py                                     # 300 resets a world, 300 training steps
    python benchmarks/memory.py --worlds webshop --resets 30 --steps 30

Every world's games are gone through in the order of its train split, a few random admissible actions each, in
a process of its own; so is every run of tcod.py. ScienceWorld's JVM is counted with the process that started
it.
"""

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import envs
import model as lm
from harness.folder import LOG, read_log

WORLDS = tuple(envs.ENVS)
POINTS = 3          # the memory is told after every third of the work
TURNS = 5           # actions after a reset


def memory_mb(pid):
    """Resident memory of a process and its children."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20 + sum(map(memory_mb, children))


def visit(env, task, rng):
    """A game from its start, for a few turns."""
    _, info = env.reset(options={"task": task})
    for _ in range(TURNS):
        action = rng.choice(info["admissible"]).replace("<query>", "red shirt")
        _, _, terminated, _, info = env.step(action)
        if terminated:
            return


def resets(world, number):
    """Print what `number` resets of a world leave in memory."""
    data = lm.defaults(lm.resolve("tiny-student", world)).get("data", "")
    env, rng = envs.make_env(world, data=data), random.Random(0)
    tasks = envs.make_tasks(world, env.train_split, data)
    visit(env, tasks[0], rng)
    seen = [memory_mb(os.getpid())]
    for i in range(number):
        visit(env, tasks[i % len(tasks)], rng)
        if (i + 1) % (number // POINTS) == 0:
            seen.append(memory_mb(os.getpid()))
    print(f"{world}, {number} resets: " + " ".join(f"{mb:.0f}" for mb in seen) + " MB", flush=True)


def training(world, number):
    """Print what a training run of `number` steps holds after its first step and every third of them."""
    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(folder, "run")
        options = (
            f"--env {world} --method opd --episodes 4 --max-turns {TURNS} --eval-every 0 "
            f"--steps {number + 1} --out {run}")
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tcod.py"), *options.split()],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen = []
        for step in [1, *range(number // POINTS, number + 1, number // POINTS)]:
            while process.poll() is None and len(read_log(os.path.join(run, LOG))) < step:
                time.sleep(0.1)
            if process.poll() is None:
                seen.append(memory_mb(process.pid))
        process.wait()
    print(f"{world}, {number} training steps: " + " ".join(f"{mb:.0f}" for mb in seen) + " MB", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=WORLDS, choices=WORLDS, help="which (default: all)")
    parser.add_argument("--resets", type=int, default=300, help="of each world (default: 300)")
    parser.add_argument("--steps", type=int, default=300, help="of training (default: 300)")
    args = parser.parse_args()
    for world in args.worlds:
        for measure, number in ((resets, args.resets), (training, args.steps)):
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(world, number))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
