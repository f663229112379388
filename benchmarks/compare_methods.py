"""Methods side by side: equal steps, several seeds, one table and one figure for each teacher.

    python benchmarks/compare_methods.py --seeds 0,1,2 --jobs 2
    python benchmarks/compare_methods.py --teachers tiny-narrow --seeds 0,1,2 --jobs 2 -- --steps 120

Every run is `tcod.py` with one flag changed; what stands behind `--` goes to all of them. Runs that a kill
interrupted are resumed, finished ones are not repeated. The table says success on every held-out split (mean
over seeds, lowest and highest, and the 95 % interval of all games together), the KL per trajectory at the
start and at the end of training (mean of the first and the last tenth of the steps; none where no teacher is
asked), and the seconds that the training steps took.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import curriculum
import plot
from harness.folder import LOG, read_log
from harness.report import wilson


def run_folder(args, teacher, method, seed):
    """Where a run of the comparison lies."""
    return os.path.join(args.out, f"{os.path.basename(teacher.rstrip('/'))}-{method}-{seed}")


def run(args, teacher, method, seed):
    """Train once, in a process of its own, or go on, or find it done; its screen goes to a file beside its
    folder."""
    out = run_folder(args, teacher, method, seed)
    if os.path.isdir(os.path.join(out, "student")):
        return
    flags = ["--env", args.env, "--teacher", teacher, "--method", method, "--seed", seed, "--out", out]
    flags += args.rest
    if os.path.exists(os.path.join(out, "args.json")):
        flags = ["--resume", out]
    command = [sys.executable, os.path.join(ROOT, "tcod.py"), *flags]
    with open(f"{out}.txt", "a", encoding="utf-8") as screen:
        subprocess.run(
            command, check=True, stdout=screen, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"})
    print("finished", out, flush=True)


def run_all(args):
    """Train what is not there yet, some at once; seeds outermost, so that a comparison stopped early is
    complete for its first seeds."""
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = []
        for seed in args.seeds:
            for teacher in args.teachers:
                for method in args.methods:
                    futures.append(pool.submit(run, args, teacher, method, seed))
        for future in futures:
            future.result()  # raises what its run raised


# ---- the table

def figures(out):
    """What the table needs of one run."""
    steps = [record for record in read_log(os.path.join(out, LOG)) if "kl" in record]
    tenth = max(1, len(steps) // 10)
    return dict(
        splits=steps[-1].get("eval", {}).get("after", {}),  # empty with --eval-every 0
        early=[r["kl"] for r in steps[:tenth]], late=[r["kl"] for r in steps[-tenth:]],
        tokens=sum(r["tokens"] for r in steps),
        seconds=sum(sum(r["seconds"].values()) for r in steps))


def success_cell(summaries):
    """'85.0% (81%–88%) [80%–89%]': mean over seeds, lowest to highest, interval of all games together."""
    each = [s["success"] for s in summaries]
    won = sum(s["won"] for s in summaries)
    low, high = wilson(won, sum(s["games"] for s in summaries))
    return f"{np.mean(each):.1%} ({min(each):.0%}–{max(each):.0%}) [{low:.0%}–{high:.0%}]"


def kl_cell(runs):
    """'95.5 → 15.30', mean over seeds; a dash where a run has none."""
    early = [value for run in runs for value in run["early"]]
    late = [value for run in runs for value in run["late"]]
    return "–" if None in early + late else f"{np.mean(early):.1f} → {np.mean(late):.2f}"


def row(teacher, method, runs):
    """A line of the table; runs: the `figures` of each seed."""
    cells = [teacher, method]
    for split in runs[0]["splits"]:
        cells.append(success_cell([run["splits"][split] for run in runs]))
    cells.append(kl_cell(runs))
    cells.append(f"{np.mean([run['tokens'] for run in runs]):,.0f}")
    cells.append(f"{np.mean([run['seconds'] for run in runs]):.0f}")
    return "| " + " | ".join(cells) + " |"


def table(args):
    """The Markdown table of all runs."""
    lines, splits = [], ()
    for teacher in args.teachers:
        for method in args.methods:
            runs = [figures(run_folder(args, teacher, method, seed)) for seed in args.seeds]
            splits = list(runs[0]["splits"])
            lines.append(row(teacher, method, runs))
    head = ["teacher", "method", *splits, "KL start → end", "tokens trained", "seconds"]
    lines[:0] = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines) + "\n"


def draw(args):
    """A figure for each teacher."""
    for teacher in args.teachers:
        runs = []
        for method in args.methods:
            runs += [run_folder(args, teacher, method, seed) for seed in args.seeds]
        picture = os.path.join(args.out, f"{os.path.basename(teacher.rstrip('/'))}.png")
        plot.main(plot.Args(runs=runs, out=picture))


def parse():
    """The command line, its lists as lists."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    known = ", ".join(curriculum.METHODS)
    parser.add_argument("--env", default="alfworld", help="alfworld, webshop or scienceworld")
    parser.add_argument("--methods", default="opd,f2b,b2f", help=f"by commas: {known}")
    parser.add_argument("--teachers", default="tiny-teacher,tiny-narrow", help="teachers, by commas")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, by commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--out", default="runs/compare", help="folder of the runs, the table and the figures")
    parser.add_argument("rest", nargs="*", help="behind --: flags for tcod.py")
    args = parser.parse_args()
    for name in ("methods", "teachers", "seeds"):
        setattr(args, name, getattr(args, name).split(","))
    for method in args.methods:
        if method not in curriculum.METHODS:
            parser.error(f"unknown method {method!r}: {known}")
    if not all(seed.isdecimal() for seed in args.seeds):
        parser.error(f"seeds are whole numbers, by commas, not {','.join(args.seeds)!r}")
    if args.jobs < 1:
        parser.error(f"--jobs is at least 1, not {args.jobs}")
    return args


def main():
    args = parse()
    os.makedirs(args.out, exist_ok=True)
    run_all(args)
    text = table(args)
    with open(os.path.join(args.out, "table.md"), "w", encoding="utf-8") as file:
        file.write(text)
    print(text)
    draw(args)


if __name__ == "__main__":
    main()
