"""The comparison of methods by one command: runs, their table, their figure.

    python studies/compare.py --lines opd f2b --teacher tiny-narrow --seeds 0,1,2 --jobs 2 --out runs/narrow
    python studies/compare.py --lines f2b "slow=--method f2b --eta 16" --flags '--steps 250' --out runs/slow
    python studies/compare.py --study factors --teacher tiny-narrow --out runs/factors
    python studies/compare.py --draw true --out results/alfworld-full          # again from the results alone

A line of the table is a label and flags of tcod.py: one of LINES in studies/tables.py, or your own. Each line
is run with each seed, seeds outermost, so that a comparison stopped early is complete for its first ones. A
run is `python tcod.py FLAGS --out OUT/runs/LABEL-SEED`; the same command again goes on with what was
interrupted. A finished run leaves `OUT/results/LABEL-SEED.json` (what was asked for, fingerprints of tasks
and weights, its curve), which is all that table and figure need.

With `--experts teacher` the teacher first plays the train split `--samples` times: its won episodes are the
experts of b2f and sft, and the tasks that it never wins are the hard split, which is left out of training.

The table: success with its 95 % interval over games and the lowest and highest seed, and mean rounds, on
every held-out split; invalid actions on the first; the KL of a trajectory in the first and the last tenth of
the steps; trained tokens; the mean success over the run, speed and end in one figure; what its last quarter
brought, which says whether the curve is flat; the differences to the base, paired by seed and by game. A
second table says what each took: tokens trained; tokens that the teacher was asked for, those that it scored,
dropped answers among them, and those that it drew; answers that it read before the game did; seconds; and the
differences over equal tokens of both kinds: where both lines have trained, or asked for, as many, from the
first to the last that both did. With `field` a third table says how was played in training: repeated and
refused turns, and the KL. A note says in what else the lines differ. Within a line all is the same but the
seed, between lines the models and the evaluation are: other results are refused. docs/results.md says what
the intervals are.

`field` sets all methods and their controls beside OPD, and its figure has the differences. Three studies run
nothing. `gains` sets F2B beside OPD, a row for each comparison that is kept, and in the figure over what the
teacher wins after six turns of the student, its support (`--study gains --out results`). Two set comparisons
side by side, `--out` being beside their folders: `methods` (`--study methods --out results/methods`), and
`support` (results/support), some lines from seven teachers, in its figure over their support.

What runs have left is read by studies/differences.py, and shown by studies/tables.py.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import plot
from differences import EQUAL_TOKENS, EVALUATION, read, tokens
from harness import stops
from harness.cli import UserError, check_knobs, command, knob, parse
from harness.folder import LOG, read_args, read_log, write_lines
from methods import METHODS
from tables import CHOSEN, LINES, STUDIES, Study, drawn

OWNED = ("env", "data", "student", "teacher", "seed", "out", "resume", "plan")  # for the comparison to say
KEPT = (  # of a step's record in a result
    "step", "k", "loss", "kl", "kl_turn", "entropy_turn", "success", "rounds", "invalid", "repeats",
    "missing", "tokens", "weighed", "judged", "teacher_tokens", "dropped_tokens", "seconds", "grad_norm",
    "eval")


@dataclass
class Args:
    """Which runs, and where."""
    study: str = knob("paper", f"one of {', '.join(STUDIES)}", choices=tuple(STUDIES))
    lines: list = knob(None, "its lines, instead of the study's own: labels, or LABEL='FLAGS OF tcod.py'")
    env: str = knob("alfworld", "alfworld, webshop or scienceworld")
    data: str = knob("", "as for tcod.py", path=True)
    student: str = knob("tiny-student", "checkpoint", path=True)
    teacher: str = knob("tiny-teacher", "checkpoint", path=True)
    seeds: str = knob("0,1,2", "whole numbers, by commas")
    experts: str = knob(
        "own", "own: the environment's; teacher: its own successes, collected first",
        choices=("own", "teacher"))
    samples: int = knob(10, "how often the teacher plays each train task, with --experts teacher", least=1)
    collect: int = knob(0, "train tasks that the teacher plays; 0: all", least=0)
    jobs: int = knob(1, "runs at once", least=1)
    flags: str = knob("", "further flags for every run of tcod.py, in quotes: '--steps 250 --lr 1e-6'")
    draw: bool = knob(False, "no runs: table and figure from the results that are there")
    out: str = knob("runs/compare", "folder of everything", path=True)


# ---- what is asked for

def parse_seeds(text):
    """'0,1,2' -> ['0', '1', '2']; raises UserError for anything else."""
    seeds = [seed.strip() for seed in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds are whole numbers, each once, by commas, not {text!r}")
    return seeds


def parse_lines(texts):
    """['f2b', 'slow=--method f2b --eta 16'] -> {label: flags}, those that wait for others last; raises
    UserError for a label that is not known, or twice there."""
    lines = {}
    for text in texts:
        label, given, flags = text.partition("=")
        if not re.fullmatch(r"[\w.-]+", label) or label in lines or given and label in LINES:
            raise UserError(f"--lines wants each label once, in letters, digits, . and -, and not {label!r}")
        if not given and label not in LINES:
            raise UserError(f"--lines knows {', '.join(LINES)}; another one is LABEL='FLAGS', not {text!r}")
        lines[label] = shlex.split(flags if given else LINES[label])
    for label in set(lines) & set(EQUAL_TOKENS):
        if not set(EQUAL_TOKENS[label]) <= set(lines):
            raise UserError(f"--lines: {label} wants {' and '.join(EQUAL_TOKENS[label])} beside it")
    return dict(sorted(lines.items(), key=lambda line: line[0] in EQUAL_TOKENS))


def refuse(flags, owned, where, whose):
    """Raises UserError for flags that are for others to say."""
    given = [flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in flags]
    wrong = [f"--{name.replace('_', '-')}" for name in given if name in owned]
    if wrong:
        raise UserError(f"{where} cannot give {', '.join(wrong)}: that is for {whose} to say")


def asked(args):
    """The study, its lines being those of --lines where these are given; raises UserError for what cannot be
    asked."""
    check_knobs(args)
    parse_seeds(args.seeds)
    ours = ("experts", "without", "eval_splits") if args.experts == "teacher" else ()
    refuse(shlex.split(args.flags), (*OWNED, *CHOSEN, *ours), "--flags", "the comparison or its --lines")
    for label, flags in parse_lines(args.lines or ()).items():
        owned = (*OWNED, *EVALUATION, "eval_games", "eval_splits", *ours)
        refuse(flags, owned, f"--lines {label}", "the whole comparison")
    study = STUDIES[args.study]
    if not args.lines:
        return study
    if not isinstance(study, Study):
        raise UserError(f"--study {args.study} has lines of its own: leave out --lines")
    return study._replace(lines=tuple(parse_lines(args.lines)))


# ---- the runs

CHILDREN = set()    # programs of ours that run


def hand_on(stop):
    """A SIGTERM, to the programs that run; a Ctrl-C reaches them by itself."""
    if stop.status == 128 + signal.SIGTERM:
        for child in list(CHILDREN):
            child.terminate()


def start(program, flags, screen=None):
    """Run a program of ours to its end, also after a stop; its screen is added to a file, else it is ours.
    Raises UserError where it fails."""
    asked = [sys.executable, os.path.join(ROOT, program), *flags]
    found = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    variables = {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": threads}
    with open(screen, "a", encoding="utf-8") if screen else nullcontext() as file, subprocess.Popen(
            asked, stdout=file, stderr=file, env=variables) as child:
        CHILDREN.add(child)
        try:
            child.wait()
        except stops.Stopped as stop:
            hand_on(stop)
            raise
        finally:
            CHILDREN.remove(child)
    if child.returncode:
        where = f": see the end of {screen}" if screen else ""
        raise UserError(f"{program} ended with status {child.returncode}{where}")


def played_on(args):
    """The flags that say by whom and on what is played, for tcod.py and eval.py."""
    return ["--env", args.env, "--data", args.data, "--teacher", args.teacher]


def collect(args):
    """The teacher's own successes and the hard split, by the prompt, history, horizon and context of the
    runs, the student's own defaults among them; returns the flags that leave its tasks out of training and
    evaluate on them.

    Interrupted, it goes on; finished, eval.py finds nothing left to play, or says that what it finds is of
    another teacher, other games or samples.
    """
    import envs  # the engines and torch: not for --draw
    import tcod
    from eval import PlayArgs

    hard, game = os.path.join(args.out, "hard.jsonl"), envs.game_type(args.env)
    common = parse(tcod.Args, [*played_on(args), "--student", args.student, *shlex.split(args.flags)])
    tcod.resolve(common)
    start("eval.py", [
        *(f"--{f.name}={getattr(common, f.name)}" for f in fields(PlayArgs)),
        "--model", args.teacher, "--split", common.train_split or game.train_split,
        "--games", str(args.collect or 10**9), "--samples", str(args.samples), "--temperature", "1.0",
        "--save-expert", os.path.join(args.out, "experts.jsonl"), "--save-hard", hard,
        "--out", os.path.join(args.out, "teacher.json")], os.path.join(args.out, "teacher.txt"))
    with open(hard, encoding="utf-8") as file:
        if not file.read().strip():
            return []
    return ["--without", hard, "--eval-splits", ",".join([*game.eval_splits, f"hard={hard}"])]


def short(value):
    """Numbers with five digits: a curve is drawn from them."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: short(part) for key, part in value.items()}
    return [short(part) for part in value] if isinstance(value, list) else value


def digest(folder, label, seed, flags):
    """All that table and figures need of a finished run."""
    args, curve = read_args(folder), []
    for record in read_log(os.path.join(folder, LOG)):
        curve.append(short({key: record[key] for key in KEPT if key in record}))
    prints = args.pop("fingerprint", {})
    for place in ("out", "resume"):  # of this machine
        args.pop(place, None)
    return dict(
        label=label, method=args["method"], loss=args["loss"], seed=int(seed), asked=flags, args=args,
        fingerprint=prints, curve=curve)


def steps_for(wanted, result):
    """How many steps of a run train so many tokens, or all of its steps."""
    until = plot.tokens_until(result["curve"])
    return next((step for step, trained in until.items() if trained >= wanted), max(until))


def run(args, label, flags, seed, made):
    """A run to its end, in a process of its own, which goes on with what is there; returns the result, which
    is left only then. made: {(label, seed): the future of a result}."""
    if label in EQUAL_TOKENS:
        own, other = (made[name, seed].result() for name in EQUAL_TOKENS[label])
        flags = [*flags, "--steps", str(steps_for(tokens(other), own))]
    name = f"{label}-{seed}"
    path, folder = os.path.join(args.out, "results", f"{name}.json"), os.path.join(args.out, "runs", name)
    if not os.path.exists(path) or read(path)["asked"] != flags:
        start("tcod.py", [*flags, "--out", folder], f"{folder}.txt")
        write_lines(path, [digest(folder, label, seed, flags)])  # one line: thousands of short numbers
        print("finished", folder, flush=True)
    return read(path)


def run_all(args, lines):
    """What is not there yet, some runs at once. lines: {label: flags}, those of EQUAL_TOKENS last."""
    for name in ("results", "runs"):
        os.makedirs(os.path.join(args.out, name), exist_ok=True)
    common = [*played_on(args), "--student", args.student, *shlex.split(args.flags)]
    if args.experts == "teacher":
        common += collect(args)
    made = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        for seed in parse_seeds(args.seeds):
            for label, own in lines.items():
                flags = [*common, *own, "--seed", seed]
                expert = any(METHODS[word].expert for word in own if word in METHODS)
                if args.experts == "teacher" and expert:
                    flags += ["--experts", os.path.join(args.out, "experts.jsonl")]
                made[label, seed] = pool.submit(run, args, label, flags, seed, made)
        try:
            for future in made.values():
                future.result()  # raises what its run raised
        except BaseException as error:  # no further run begins
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, stops.Stopped):
                hand_on(error)
            raise


# ---- the whole

def main(args):
    study = asked(args)
    if not args.draw and isinstance(study, Study):
        run_all(args, parse_lines(args.lines or study.lines))
    text, figure = drawn(args, study)
    table, picture = os.path.join(args.out, "table.md"), os.path.join(args.out, "figure.png")
    with open(table, "w", encoding="utf-8") as file:
        file.write(text)
    figure.savefig(picture)
    print(f"{text}\nwrote {table} and {picture}")


if __name__ == "__main__":
    command(main, Args)
