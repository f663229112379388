"""Commands and their arguments: one dataclass per entry point, every knob once, with its bounds and its help.

A user's mistake ends in one sentence and exit status 2. No torch here: `--help` comes at once.
"""

import argparse
import codecs
import math
import os
import sys
from dataclasses import MISSING, field, fields

from harness import stops

PLAIN = str.maketrans("·–…²θφ‖Σℓλκτ", "--.2tf|Sllkt")  # what a screen shows that has no such signs


class UserError(Exception):
    """A mistake of the user: its text is one sentence; entry points print it and exit with status 2."""


def knob(default, text, **bounds):
    """A field of an Args dataclass.

    bounds: choices=…, least=…, above=… and below=…, which `check_knobs` checks; path=True: a ~ is one's home.
    """
    shown = "" if default in ("", None) or default is False else f" (default: {default})"
    return field(default=default, metadata=dict(help=text + shown, **bounds))


def preset(paper, text, **bounds):
    """A knob whose default is the paper's, unless the checkpoint brings its own (see `fill_presets`)."""
    return field(default=None, metadata=dict(help=text, paper=paper, **bounds))


def usual(kind):
    """{knob: value} of a dataclass of arguments: what each was before there was such a knob."""
    return {f.name: f.metadata.get("paper", f.default) for f in fields(kind)}


def fits(value, kind):
    """Whether a value of a JSON file is one of this type: 1 is a float too, true is no number."""
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def fill_presets(args, own=()):
    """Give every preset that the user left open its value: the checkpoint's own, else the paper's.

    own: {knob: value} out of a checkpoint's file; knobs of another command are left alone. Raises UserError
    for a value of the wrong type; its bounds are for `check_knobs`.
    """
    own = dict(own)
    for f in fields(args):
        if "paper" not in f.metadata or getattr(args, f.name) not in (None, ""):
            continue
        value = own.get(f.name, f.metadata["paper"])
        if not fits(value, f.type):
            raise UserError(f"the checkpoint's own {f.name} is no {f.type.__name__}, but {value!r}")
        setattr(args, f.name, f.type(value))


def check_knobs(args):
    """Raises UserError for a value outside its knob's bounds; infinity and NaN are outside of any."""
    for f in fields(args):
        value, bounds, name = getattr(args, f.name), f.metadata, "--" + f.name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, float) and math.isinf(value):
            raise UserError(f"{name} is a finite number, not {value}")
        if "choices" in bounds and value not in bounds["choices"]:
            raise UserError(f"unknown {name} {value!r}: {', '.join(bounds['choices'])}")
        if "least" in bounds and not value >= bounds["least"]:
            raise UserError(f"{name} is at least {bounds['least']}, not {value}")
        if "above" in bounds and not value > bounds["above"]:
            raise UserError(f"{name} is above {bounds['above']}, not {value}")
        if "below" in bounds and not value < bounds["below"]:
            raise UserError(f"{name} is below {bounds['below']}, not {value}")


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake said in one sentence instead of a page of usage."""

    def error(self, message):
        raise UserError(f"{message}; --help lists the options")


def yes_or_no(text):
    """'true' -> True, for a switch that is written with its value."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() == "true"


def home_path(text):
    """'~/x' -> the x in one's home."""
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise argparse.ArgumentTypeError(f"nobody's home is {text.split('/')[0]!r}")
    return path


def explained(f, own):
    """What --help says of a field: of a preset the value that a run will have, beside the paper's."""
    text = f.metadata["help"]
    if "paper" not in f.metadata:
        return text
    value = own.get(f.name, f.metadata["paper"])
    if value == "":
        return text
    papers = f.metadata["paper"]
    return f"{text} (default: {value}{f'; the paper: {papers}' * (value != papers and papers != '')})"


def parser(args_type, description=None, own=()):
    """A parser of args_type: a field `k_start` is the option --k-start or --k_start, a bool is a switch.

    own: {knob: value} that the checkpoint brings, for --help.
    """
    layout = argparse.RawDescriptionHelpFormatter  # the description's own lines
    made = Parser(description=description, formatter_class=layout, allow_abbrev=False)
    for f in fields(args_type):
        how = dict(type=f.type, metavar=f.type.__name__.upper())
        if f.type is bool:
            how = dict(type=yes_or_no, nargs="?", const=True, metavar="true|false")
        elif f.type is list:
            how = dict(nargs="+", metavar=f.name.upper())
        if f.metadata.get("path"):
            how["type"] = home_path
        default = f.default if f.default is not MISSING else None
        text = explained(f, dict(own)).replace("%", "%%")
        made.add_argument("--" + f.name.replace("_", "-"), default=default, help=text, **how)
        if "_" in f.name:
            made.add_argument(f"--{f.name}", default=argparse.SUPPRESS, help=argparse.SUPPRESS, **how)
    return made


def parse(args_type, argv=None, description=None):
    """argv -> args_type(...). --help shows the values that a run with the other options would have: by
    args_type's `own`, where it has one, a method that returns what the checkpoint brings."""
    argv = sys.argv[1:] if argv is None else argv
    own, rest = {}, [word for word in argv if word not in ("-h", "--help")]
    if len(rest) < len(argv) and hasattr(args_type, "own"):
        own = args_type(**vars(parser(args_type).parse_args(rest))).own()
    return args_type(**vars(parser(args_type, description, own).parse_args(argv)))


def plain_signs():
    """A screen that cannot show a sign of ours (LANG=C, a log in ASCII) shows one that looks like it."""
    def instead(error):
        shown = error.object[error.start: error.end].translate(PLAIN)
        return shown.encode("ascii", "replace").decode(), error.end

    codecs.register_error("plain", instead)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="plain")


def command(main, args_type):
    """Run an entry point: its module's docstring and its dataclass of arguments are its --help.

    A user's mistake, and a place that cannot be read or written, end in one sentence and exit status 2, a
    Ctrl-C and SIGTERM in one and 130 and 143.
    """
    plain_signs()
    stops.catch()
    try:
        with stops.running():
            args = parse(args_type, description=sys.modules["__main__"].__doc__)
            if os.path.expanduser("~") == "~":  # libraries end in a traceback, or make a folder called ~
                raise UserError("this user has no home: set HOME to a folder to write in")
            main(args)
    except UserError as error:
        fail(error)
    except OSError as error:
        fail(f"{error.strerror or error}" + f": {error.filename}" * bool(error.filename))
    except stops.Stopped as stop:
        stops.say(stop)
        sys.exit(stop.status)


def fail(sentence):
    """The end after a user's mistake."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(2)
