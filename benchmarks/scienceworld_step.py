"""ScienceWorld side by side: `envs.py`'s step against the package's own `env.step`, on the same actions.

    python benchmarks/scienceworld_step.py [--steps 50] [--tasks 10] [--as-shipped] [--gold 4]
    python benchmarks/scienceworld_step.py --steps 5 --tasks 1 --environments 2 --turns 2

Half of the actions are the task's gold path, the others are drawn from the list of valid actions that the
package makes at every step. Both JVMs get the same option for object hashes: without it the package does not
even repeat itself (but is faster: --as-shipped times it so). Compared are observation, score and the end of
the episode. The table says how many valid actions the package lists a step: its time grows with them, ours
does not. Then: environments at once in one JVM, interleaved, against the same episodes played alone, and that
JVM's memory. With --gold N: the gold paths of N variations of every task.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

from scienceworld import ScienceWorldEnv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import envs
from worlds.scienceworld import (
    JAVA_OPTIONS, KINDS, QUESTION, REFUSALS, Experts, Jvm, find_java, spread_tasks, task_list)

TASKS = (
    "boil", "find-plant", "lifespan-longest-lived", "chemistry-mix-paint-secondary-color", "power-component",
    "test-conductivity", "use-thermometer", "grow-plant", "inclined-plane-determine-angle",
    "identify-life-stages-1")


def task_of(name, variation, expert=()):
    return envs.Task(f"{name}/{variation}", name, (name, variation), expert)


def package(as_shipped):
    """The package's environment, with its limit of moves out of the way."""
    os.environ["PATH"] = f"{Path(find_java()).parent}{os.pathsep}{os.environ['PATH']}"
    hashes = [option for option in JAVA_OPTIONS if "hashCode" in option or "Unlock" in option]
    os.environ["JAVA_TOOL_OPTIONS"] = "" if as_shipped else " ".join(hashes)
    game = ScienceWorldEnv("", envStepLimit=10**9)
    del os.environ["JAVA_TOOL_OPTIONS"]
    return game


# ---- one episode, played by both

@dataclass
class Side:
    """What one of the two has used, and what it showed."""
    pid: int                                            # of its JVM
    wall: list = field(default_factory=list)            # seconds of each step
    shown: list = field(default_factory=list)           # (observation, score, done) of reset and of each step
    actions: list = field(default_factory=list)
    listed: list = field(default_factory=list)          # valid actions, where they are listed
    processor: float = 0.0                              # seconds, of Python and of its JVM

    def used(self):
        """Processor seconds until now, of this process and of the JVM, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def add(self, other):
        """Add an episode's."""
        self.wall += other.wall
        self.listed += other.listed
        self.processor += other.processor


def actions_for(rng, gold, seen, valid):
    """The next action: an answer to an open question, the next of the gold path, or any valid one."""
    if seen.startswith(QUESTION):
        return "0"
    if gold and rng.random() < 0.5:
        return gold.pop(0)
    return rng.choice([action for action in valid if action not in ("reset task", "task")])


def play_theirs(game, name, variation, simplification, steps, rng):
    """An episode of at most `steps` actions -> Side."""
    game.load(name, variation, simplification, generateGoldPath=True)
    gold = game.get_gold_action_sequence()
    game.load(name, variation, simplification)
    seen, info = game.reset()
    side, done = Side(game._gateway.java_process.pid), False
    side.shown.append((seen, max(0, info["score"]) / 100, False))
    before = side.used()
    while len(side.actions) < steps and not done:
        side.actions.append(actions_for(rng, gold, seen, info["valid"]))
        start = time.perf_counter()
        seen, _, done, info = game.step(side.actions[-1])
        side.wall.append(time.perf_counter() - start)
        side.shown.append((seen, max(0, info["score"]) / 100, done))
        side.listed.append(len(info["valid"]))
    side.processor = side.used() - before
    return side


def play_ours(game, name, variation, actions):
    """The same actions -> Side."""
    obs, _ = game.reset(options={"task": task_of(name, variation)})
    side = Side(Jvm.current.process.pid, actions=actions)
    side.shown.append((obs, 0.0, False))
    before = side.used()
    for action in actions:
        start = time.perf_counter()
        obs, reward, done, _, _ = game.step(action)
        side.wall.append(time.perf_counter() - start)
        side.shown.append((obs, reward, done))
    side.processor = side.used() - before
    return side


def differences(us, them, name):
    """The actions after which the two showed something else."""
    differ = [] if us.shown[0][0].endswith(them.shown[0][0]) else [f"reset of {name}"]
    steps = zip(them.actions, us.shown[1:], them.shown[1:])
    return differ + [action for action, ours, theirs in steps if ours != theirs]


# ---- steps side by side

class Comparison:
    """Both sides on one task after the other: at once they would compete for the processor."""

    def __init__(self, simplification, steps, as_shipped):
        self.simplification = simplification
        self.steps = steps
        self.ours = envs.make_env("scienceworld", simplification=simplification)
        self.theirs = package(as_shipped)
        self.rng = random.Random(0)

    def play(self, name):
        """At least so many steps of a task, on its next variation where an episode ends early -> (Side of
        ours, Side of theirs, actions that differ)."""
        us, them, differ = Side(0), Side(0), []
        for variation in range(1000):
            left = self.steps - len(us.wall)
            if left <= 0:
                break
            source = (name, variation % KINDS[name])
            their = play_theirs(self.theirs, *source, self.simplification, left, self.rng)
            our = play_ours(self.ours, *source, their.actions)
            differ += differences(our, their, name)
            us.add(our)
            them.add(their)
        return us, them, differ

    def run(self, names):
        """Two rounds, of which the first warms up; prints a line for each task of the second, then all."""
        for name in names:
            self.play(name)
        us, them, differ = Side(0), Side(0), []
        for name in names:
            our, their, wrong = self.play(name)
            us.add(our)
            them.add(their)
            differ += wrong
            ratio = sum(their.wall) / sum(our.wall)
            print(f"{name:<50} {1000 * mean(our.wall):7.1f} ms {1000 * mean(their.wall):7.1f} ms, "
                  f"ratio {ratio:4.1f}, {mean(their.listed):5.0f} valid actions", flush=True)
        self.theirs.close()
        report(us, them, differ, len(names))


def report(us, them, differ, tasks):
    """All tasks together."""
    count = len(us.wall)
    wall = [1000 * sum(side.wall) / count for side in (us, them)]
    processor = [1000 * side.processor / count for side in (us, them)]
    print(f"{count} steps on {tasks} tasks, {mean(them.listed):.0f} valid actions a step: "
          f"ours {wall[0]:.1f} ms, the package's {wall[1]:.1f} ms, ratio {wall[1] / wall[0]:.1f} "
          f"(of medians {median(them.wall) / median(us.wall):.1f}); "
          f"processor time {processor[0]:.1f} and {processor[1]:.1f} ms, "
          f"ratio {processor[1] / max(1e-9, processor[0]):.1f}; {len(differ)} differ {differ[:3]}")


# ---- many environments in one JVM

def resident_mb(pid):
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def random_action(rng, info):
    """An admissible template with random objects."""
    words = rng.choice(info["admissible"]).split()
    return " ".join(rng.choice(info["objects"]) if word == "OBJ" else word for word in words)


def interleave(count, turns):
    """Random admissible actions in `count` environments at once, then each of the episodes again alone."""
    games = [envs.make_env("scienceworld") for _ in range(count)]
    sources = spread_tasks(task_list("train"), 1) * count
    tasks = [task_of(*source) for source in sources[:count]]
    rng = random.Random(1)
    traces = [[("", *game.reset(options={"task": task}))] for game, task in zip(games, tasks)]
    for _ in range(turns):
        for game, trace in zip(games, traces):
            action = random_action(rng, trace[-1][2])
            obs, _, _, _, info = game.step(action)
            trace.append((action, obs, info))
    memory, differ = resident_mb(Jvm.current.process.pid), 0
    for task, trace in zip(tasks, traces):
        differ += differences_alone(games[0], task, trace)
    refused = sum(obs.startswith(REFUSALS) for trace in traces for _, obs, _ in trace)
    print(f"{count} environments x {turns} interleaved random actions ({refused} not understood): {differ} "
          f"differ from the same episodes alone; the JVM has {memory:.0f} MB resident")


def differences_alone(game, task, trace):
    """How many steps of an episode, [(action, obs, info)], show something else when it is played alone."""
    shown = [game.reset(options={"task": task})]
    for action, _, _ in trace[1:]:
        obs, _, _, _, info = game.step(action)
        shown.append((obs, info))
    return sum(alone != step[1:] for alone, step in zip(shown, trace))


# ---- gold paths

def gold(per_kind):
    """Every task's gold path through the adapter; an episode is only kept where it ended with score 100."""
    game, start = envs.make_env("scienceworld"), time.time()
    sources = spread_tasks(task_list("train") + task_list("test"), per_kind)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TCOD_CACHE"] = folder
        experts = Experts()
        experts.make(sources)
    won, lengths = 0, {}
    for source in sources:
        task = task_of(*source, experts.get(*source))
        game.reset(options={"task": task})
        turns = list(envs.replay(game, task.expert))
        won += bool(turns) and turns[-1][2]["won"]
        lengths.setdefault(task.kind, []).append(len(task.expert))
    for name, found in lengths.items():
        print(f"{name:<50} {min(found):4d} to {max(found)} actions")
    print(f"gold paths replayed through the adapter: {won} of {len(sources)} reach score 100 "
          f"({time.time() - start:.0f} s)")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="of each task (default: 50)")
    parser.add_argument("--tasks", type=int, default=len(TASKS), help=f"how many (default: {len(TASKS)})")
    parser.add_argument("--environments", type=int, default=16, help="interleaved in one JVM (default: 16)")
    parser.add_argument("--turns", type=int, default=20, help="of each of them (default: 20)")
    parser.add_argument(
        "--simplification", default="easy", help="of both; the package's own default is none: ''")
    parser.add_argument(
        "--as-shipped", action="store_true",
        help="the package without our option for hashes; texts may then differ")
    parser.add_argument(
        "--gold", type=int, default=0, help="variations of each task whose gold paths are replayed")
    args = parser.parse_args()
    if args.gold:
        gold(args.gold)
    Comparison(args.simplification, args.steps, args.as_shipped).run(TASKS[:args.tasks])
    interleave(args.environments, args.turns)


if __name__ == "__main__":
    main()
