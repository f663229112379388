"""ScienceWorld side by side: `envs.py`'s step against the package's own `env.step`, on the same actions in one run.

Half of the actions are the task's gold path, the others are drawn from the list of valid actions that the package makes at
every step. Both JVMs get the same option for object hashes: without it the package does not even repeat itself (but is
faster: --as-shipped times it so). Compared are observation, score and the end of the episode. The table says how many valid
actions the package lists a step: its time grows with them, ours does not. Then: sixteen environments at once in one JVM,
interleaved, against the same episodes played alone, and that JVM's memory. With --gold N: the gold paths of N variations of
every task.

    python benchmarks/scienceworld_step.py [--steps 50] [--tasks 10] [--as-shipped] [--gold 4]
"""
import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import envs
from worlds.scienceworld import JAVA_OPTIONS, KINDS, REFUSALS, Experts, Jvm, find_java, spread_tasks, task_list

TASKS = ("boil", "find-plant", "lifespan-longest-lived", "chemistry-mix-paint-secondary-color", "power-component",
         "test-conductivity", "use-thermometer", "grow-plant", "inclined-plane-determine-angle", "identify-life-stages-1")


def package(as_shipped):
    """The package's environment, with its limit of moves out of the way."""
    os.environ["PATH"] = f"{Path(find_java()).parent}{os.pathsep}{os.environ['PATH']}"
    hashes = [option for option in JAVA_OPTIONS if "hashCode" in option or "Unlock" in option]
    os.environ["JAVA_TOOL_OPTIONS"] = "" if as_shipped else " ".join(hashes)
    from scienceworld import ScienceWorldEnv
    game = ScienceWorldEnv("", envStepLimit=10**9)
    del os.environ["JAVA_TOOL_OPTIONS"]
    return game


def actions_for(rng, gold, seen, valid):
    """The next action: an answer to an open question, the next of the gold path, or any valid one."""
    if seen.startswith("Ambiguous request"):
        return "0"
    if gold and rng.random() < 0.5:
        return gold.pop(0)
    return rng.choice([action for action in valid if action not in ("reset task", "task")])


def play_theirs(game, name, variation, simplification, steps, rng):
    """An episode of at most `steps` actions -> [(action, what it showed, seconds, valid actions listed)], processor time
    before and after."""
    game.load(name, variation, simplification, generateGoldPath=True)
    gold = game.get_gold_action_sequence()
    game.load(name, variation, simplification)
    seen, info = game.reset()
    played = [("", (seen, max(0, info["score"]) / 100, False), 0, 0)]
    before = time.process_time() + processor(game._gateway.java_process.pid)
    while len(played) <= steps and not played[-1][1][2]:
        action = actions_for(rng, gold, played[-1][1][0], info["valid"])
        start = time.perf_counter()
        seen, _, done, info = game.step(action)
        played.append((action, (seen, max(0, info["score"]) / 100, done), time.perf_counter() - start, len(info["valid"])))
    return played, (before, time.process_time() + processor(game._gateway.java_process.pid))


def play_ours(game, name, variation, played):
    """The same actions -> (seconds of each, the actions that showed something else, processor time before and after)."""
    obs, _ = game.reset(options={"task": envs.Task(name, name, (name, variation))})
    times, differ = [], [] if obs.endswith(played[0][1][0]) else [f"reset of {name}"]
    before = time.process_time() + processor(Jvm.current.process.pid)
    for action, shown, *_ in played[1:]:
        start = time.perf_counter()
        obs, reward, done, _, _ = game.step(action)
        times.append(time.perf_counter() - start)
        differ += [action] if (obs, reward, done) != shown else []
    return times, differ, (before, time.process_time() + processor(Jvm.current.process.pid))


def processor(pid):
    """Seconds that a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Side:
    """Wall-clock and processor time (of Python and of its JVM) that one of the two has used."""

    def __init__(self):
        self.wall, self.processor, self.listed = [], 0.0, []

    def add(self, times, before, after, listed=()):
        self.wall += times
        self.processor += after - before
        self.listed += listed


def compare(names, simplification, steps, as_shipped):
    """One after the other, a task at a time: at once they would compete for the processor. The first of two rounds warms up."""
    ours, theirs, rng = envs.make_env("scienceworld", simplification=simplification), package(as_shipped), random.Random(0)
    for round_ in range(2):
        us, them, differ = Side(), Side(), []
        for name in names:
            left, start = steps, len(us.wall)
            for variation in range(1000):           # the next variation where an episode ends early
                source = (name, variation % KINDS[name])
                played, spent = play_theirs(theirs, *source, simplification, left, rng)
                them.add([seconds for *_, seconds, _ in played[1:]], *spent, [count for *_, count in played[1:]])
                times, wrong, spent = play_ours(ours, *source, played)
                us.add(times, *spent)
                differ, left = differ + wrong, left - len(times)
                if left <= 0:
                    break
            if round_:
                print(f"{name:<50} {1000 * statistics.mean(us.wall[start:]):7.1f} ms "
                      f"{1000 * statistics.mean(them.wall[start:]):7.1f} ms, ratio {sum(them.wall[start:]) / sum(us.wall[start:]):4.1f}, "
                      f"{statistics.mean(them.listed[start:]):5.0f} valid actions", flush=True)
    theirs.close()
    count = len(us.wall)
    print(f"{count} steps on {len(names)} tasks, {statistics.mean(them.listed):.0f} valid actions a step: ours {1000 * sum(us.wall) / count:.1f} ms, the package's "
          f"{1000 * sum(them.wall) / count:.1f} ms, ratio {sum(them.wall) / sum(us.wall):.1f} (of medians "
          f"{statistics.median(them.wall) / statistics.median(us.wall):.1f}); processor time "
          f"{1000 * us.processor / count:.1f} and {1000 * them.processor / count:.1f} ms, ratio "
          f"{them.processor / us.processor:.1f}; {len(differ)} differ {differ[:3]}")


def resident_mb(pid):
    return int(next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS")).split()[1]) / 1024


def interleave(count, turns):
    """Random admissible actions in `count` environments at once, then each of the episodes again alone."""
    games = [envs.make_env("scienceworld") for _ in range(count)]
    tasks = spread_tasks(task_list("train"), 1)
    tasks = [envs.Task(name, name, (name, variation)) for name, variation in (tasks * count)[:count]]
    rng = random.Random(1)
    seen = [game.reset(options={"task": task}) for game, task in zip(games, tasks)]
    traces = [[("", *start)] for start in seen]
    for _ in range(turns):
        for game, trace in zip(games, traces):
            info = trace[-1][2]
            words = [rng.choice(info["objects"]) if word == "OBJ" else word for word in rng.choice(info["admissible"]).split()]
            obs, _, _, _, info = game.step(" ".join(words))
            trace.append((" ".join(words), obs, info))
    memory, differ = resident_mb(Jvm.current.process.pid), 0
    for task, trace in zip(tasks, traces):
        again = [games[0].reset(options={"task": task})]
        again += [games[0].step(action)[::4] for action, _, _ in trace[1:]]
        differ += sum((obs, info) != step[1:] for (obs, info), step in zip(again, trace))
    refused = sum(obs.startswith(REFUSALS) for trace in traces for _, obs, _ in trace)
    print(f"{count} environments x {turns} interleaved random actions ({refused} not understood): {differ} differ from the "
          f"same episodes alone; the JVM has {memory:.0f} MB resident")


def gold(per_kind):
    """Every task's gold path through the adapter; an episode is only kept where it ended with score 100."""
    game, tasks, start = envs.make_env("scienceworld"), spread_tasks(task_list("train") + task_list("test"), per_kind), time.time()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TCOD_CACHE"] = folder
        experts = Experts()
        experts.make(tasks)
    won, lengths = 0, {}
    for name, variation in tasks:
        task = envs.Task(f"{name}/{variation}", name, (name, variation), experts.get(name, variation))
        game.reset(options={"task": task})
        won += bool(task.expert) and envs.replay(game, task.expert)[-1][1]["won"]
        lengths.setdefault(name, []).append(len(task.expert))
    print("\n".join(f"{name:<50} {min(found):4d} to {max(found)} actions" for name, found in lengths.items()))
    print(f"gold paths replayed through the adapter: {won} of {len(tasks)} reach score 100 ({time.time() - start:.0f} s)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="of each task")
    parser.add_argument("--tasks", type=int, default=len(TASKS))
    parser.add_argument("--simplification", default="easy", help="of both; the package's own default is none: ''")
    parser.add_argument("--as-shipped", action="store_true", help="the package without our option for hashes; texts may then differ")
    parser.add_argument("--gold", type=int, default=0, help="variations of each task whose gold paths are replayed")
    args = parser.parse_args()
    if args.gold:
        gold(args.gold)
    compare(TASKS[:args.tasks], args.simplification, args.steps, args.as_shipped)
    interleave(16, 20)


if __name__ == "__main__":
    main()
