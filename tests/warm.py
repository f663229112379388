"""Programs of ours in processes of their own that import torch in no time: each is forked from a server that
has imported what takes seconds, and nothing of ours."""

import os
import runpy
import signal
import sys
from multiprocessing import current_process, get_context
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload([
    "transformers.models.qwen3.modeling_qwen3", "transformers.models.auto.modeling_auto", "gymnasium",
    "textworld.envs.pddl", "torch.distributed.optim"])


def run(program, flags, said, folder, variables):
    """In the new process: the program, as if it were started by these words in that folder, with this
    environment: the server has that of its own start."""
    current_process().daemon = False  # who starts a program by hand lets it have processes of its own
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell's background job ignores some
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    import torch

    torch.set_num_threads(1)
    sys.argv = [program, *flags]
    ours = ("", ROOT, f"{ROOT}/tests")  # the program may be a copy's, which finds its own modules
    sys.path[:] = [os.path.dirname(program), *(place for place in sys.path if place not in ours)]
    runpy.run_path(program, run_name="__main__")


def start(program, flags, said, folder=ROOT, **variables):
    """A process (`pid`, `is_alive`, `join`, `exitcode`) of a program; what it says, errors too, goes to the
    file `said`."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    process = SERVER.Process(
        target=run, args=(str(program), list(flags), str(said), str(folder), variables), daemon=True)
    process.start()
    return process
