"""OPD, F2B and B2F side by side: equal steps, several seeds, one table and one figure.

    python benchmarks/compare_methods.py --seeds 0,1,2 --jobs 2
    python benchmarks/compare_methods.py --teachers tiny-narrow --seeds 0,1,2 --jobs 2 -- --steps 120

Every run is `tcod.py` with one flag changed; what stands behind `--` goes to all of them. Runs that a kill interrupted are resumed,
finished ones are not repeated. The table says success on every held-out split (mean over seeds, lowest and highest, and the 95 %
interval of all games together), the KL per trajectory at the start and at the end of training (mean of the first and the last tenth of
the steps), and the seconds that the training steps took.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import plot
from eval import wilson
from run import read_log


def folder(args, teacher, method, seed):
    """Where a run of the comparison lies."""
    return os.path.join(args.out, f"{os.path.basename(teacher)}-{method}-{seed}")


def run(args, teacher, method, seed):
    """Train once, in a process of its own, or go on, or find it done; its screen goes to a file in its folder."""
    out = folder(args, teacher, method, seed)
    if os.path.isdir(os.path.join(out, "student")):
        return out
    fresh = ["--env", args.env, "--teacher", teacher, "--method", method, "--seed", str(seed), "--out", out, *args.rest]
    flags = ["--resume", out] if os.path.exists(os.path.join(out, "args.json")) else fresh
    with open(out + ".txt", "a", encoding="utf-8") as screen:
        subprocess.run([sys.executable, os.path.join(ROOT, "tcod.py"), *flags], check=True, stdout=screen, stderr=subprocess.STDOUT,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
    print("finished", out, flush=True)
    return out


def figures(out):
    """What the table needs of one run."""
    records = read_log(os.path.join(out, "log.jsonl"))
    steps = [r for r in records if "kl" in r]
    tenth = max(1, len(steps) // 10)
    final = steps[-1]["eval"]
    seconds = sum(sum(r["seconds"].values()) for r in steps)
    return dict(splits={label.split(" · ")[1]: s for label, s in final.items()}, seconds=seconds, tokens=sum(r["tokens"] for r in steps),
                early=np.mean([r["kl"] for r in steps[:tenth]]), late=np.mean([r["kl"] for r in steps[-tenth:]]))


def cell(summaries):
    """'85 % (81–88) [80–89]': mean over seeds, lowest to highest, interval of all games together."""
    each = [s["success"] for s in summaries]
    low, high = wilson(sum(s["won"] for s in summaries), sum(s["games"] for s in summaries))
    return f"{np.mean(each):.1%} ({min(each):.0%}–{max(each):.0%}) [{low:.0%}–{high:.0%}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="alfworld", help="alfworld, webshop or scienceworld")
    parser.add_argument("--methods", default="opd,f2b,b2f", help="methods, by commas")
    parser.add_argument("--teachers", default="tiny-teacher,tiny-narrow", help="teachers, by commas")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, by commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--out", default="runs/compare", help="folder of the runs, the table and the figures")
    parser.add_argument("rest", nargs="*", help="behind --: flags for tcod.py")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    methods, teachers, seeds = args.methods.split(","), args.teachers.split(","), [int(seed) for seed in args.seeds.split(",")]
    with ThreadPoolExecutor(args.jobs) as pool:  # seeds outermost: a comparison stopped early is complete for its first seeds
        list(pool.map(lambda job: run(args, *job), [(t, m, s) for s in seeds for t in teachers for m in methods]))
    lines = []
    for teacher in teachers:
        for method in methods:
            runs = [figures(folder(args, teacher, method, seed)) for seed in seeds]
            splits = list(runs[0]["splits"])
            if not lines:
                lines = [f"| teacher | method | {' | '.join(splits)} | KL start → end | tokens trained | seconds |", "|---" * (len(splits) + 5) + "|"]
            lines.append(f"| {teacher} | {method} | " + " | ".join(cell([r["splits"][split] for r in runs]) for split in splits)
                         + f" | {np.mean([r['early'] for r in runs]):.1f} → {np.mean([r['late'] for r in runs]):.2f}"
                         + f" | {np.mean([r['tokens'] for r in runs]):,.0f} | {np.mean([r['seconds'] for r in runs]):.0f} |")
        plot.main(plot.Args([folder(args, teacher, method, seed) for method in methods for seed in seeds],
                            os.path.join(args.out, f"{os.path.basename(teacher)}.png")))
    table = "\n".join(lines) + "\n"
    with open(os.path.join(args.out, "table.md"), "w", encoding="utf-8") as file:
        file.write(table)
    print(table)


if __name__ == "__main__":
    main()
