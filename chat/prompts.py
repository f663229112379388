"""What a model is asked in a turn, and where the action stands in its response: text files with named fields.

`react.txt`, `bare.txt` and `household.txt` in this folder are ours, `--prompt FILE` takes another: a teacher
that was tuned under another prompt is no teacher under ours. A file has up to three parts, each below a line
of its own:

    [first turn]  the message of the first turn, where it is another than that of the others
    [turn]        the message of every turn
    [action]      one line: how {action} is marked in a response; what stands around it is taken literally

Lines before the first part that begin with # say nothing. FIELDS names what may stand in braces; other
braces are text. A line with a field of which there is none (`unsaid_task` where the observation says the
task, `carried` in a world without such a thing) is left out, and so is a paragraph of such lines. No torch
here.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from harness.cli import UserError

SHIPPED = ("react", "bare", "household")
FIELDS = {
    "instructions": "what the game is and how actions are written",
    "task": "the task",
    "unsaid_task": "the task, where the observation does not say it",
    "observation": "what the game said",
    "actions": "the admissible actions, one a line",
    "objects": "what OBJ in an action may be, by commas (ScienceWorld)",
    "carried": "what the player carries (ALFWorld, ScienceWorld)",
    "status": "the task, and what a player may have lost track of, on one line",
    "turn": "the number of the turn, from 1"}
PARTS = ("[first turn]", "[turn]", "[action]")
FIELD = re.compile(r"\{([\w -]*)\}")


def explained():
    """What --help says of the fields."""
    return ", ".join(f"{{{name}}} {text}" for name, text in FIELDS.items())


def values(env, obs, info, turn):
    """{field: text}, None where there is none; obs and info of an environment (envs.py), turn from 1."""
    task = info["task"]
    return {
        "instructions": env.instructions,
        "task": task,
        "unsaid_task": None if task in obs else task,
        "observation": obs,
        "actions": "\n".join(info["admissible"]),
        "objects": ", ".join(info.get("objects") or ()) or None,
        "carried": info.get("carried"),
        "status": info["status"],
        "turn": str(turn)}


def fill(text, known):
    """A part of a file with its fields filled in, in one pass: what a game says is never filled in again.

    known: {field: text or None}.

    >>> fill("It is {a}.\\n\\nYou have:\\n{b}\\n{c}\\n\\n{c}\\n\\n{d}", dict(a="{b}", b="1", c=None, d=""))
    'It is {b}.\\n\\nYou have:\\n1\\n\\n'
    """
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        said = [line for line in lines if all(known[name] is not None for name in FIELD.findall(line))]
        if said:
            paragraphs.append("\n".join(said))
    return FIELD.sub(lambda field: known[field[1]], "\n\n".join(paragraphs))


@dataclass(frozen=True)
class Prompt:
    """The parts of a file: the message of the first turn and of the others, and the line of the action."""
    first: str
    turn: str
    line: str
    name: str = ""  # for the screen

    @property
    def digest(self):
        """12 hex digits that stand for its parts, wherever the file lies."""
        return hashlib.sha256("\0".join((self.first, self.turn, self.line)).encode()).hexdigest()[:12]

    def write(self, env, obs, info, turn):
        """The user's message of a turn; turn: from 1."""
        return fill(self.first if turn == 1 else self.turn, values(env, obs, info, turn))

    def response(self, action):
        """The response that stands for an expert's action: what `action` turns back into it."""
        return self.line.replace("{action}", action)

    def action(self, response):
        """The action in a response; None if it has none.

        Without a mark all of it. Else what stands between the last pair of marks that hold something, in
        whatever case; a mark that is only mentioned opens nothing. With a mark before the action alone, what
        stands up to the line's end. The time grows with the response's length, whatever it repeats.
        """
        before, behind = marks(self.line)
        if not before:
            return response.strip() or None
        action = None
        for piece in split(response + "\n", behind or "\n")[:-1]:
            opened = split(piece, before)
            if len(opened) > 1:
                action = opened[-1].strip() or action
        return action


def split(text, mark):
    """A text cut at a mark, in whatever case."""
    return re.split(re.escape(mark), text, flags=re.IGNORECASE)


def marks(line):
    """What stands before and behind the action, without white space around it."""
    before, behind = line.split("{action}")
    return before.strip(), behind.strip()


# ---- reading a file

def load(name):
    """The prompt of a file, or of a name in SHIPPED. Raises UserError for what is no such file."""
    path = Path(__file__).parent / f"{name}.txt" if name in SHIPPED else Path(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"the prompt {name!r} cannot be read ({error}): name a text file, or one of "
                        f"{', '.join(SHIPPED)}") from None
    found = parts(text, name)
    turn = found["[turn]"]
    prompt = Prompt(found.get("[first turn]", turn), turn, found["[action]"], name)
    check(prompt)
    return prompt


def hint(name):
    """What --hint says: "" for none, the text of chat/hint.txt for "expert", else that of a file. Raises
    UserError for a file that cannot be read, is empty or has another field than {expert}."""
    if not name:
        return ""
    path = Path(__file__).parent / "hint.txt" if name == "expert" else Path(name)
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"the hint {name!r} cannot be read ({error}): name a text file, or expert") from None
    strange = [field for field in FIELD.findall(text) if field != "expert"]
    if strange or not text:
        fault = f"has a field {{{strange[0]}}}, and there is only {{expert}}" if strange else "is empty"
        raise UserError(f"the hint {name!r} {fault}")
    return text


def hinted(hint, expert):
    """The hint of a task. expert: its expert's actions."""
    return hint.replace("{expert}", "\n".join(expert))


def parts(text, name):
    """{heading: its text, without blank lines around it}; raises UserError where one lacks or comes twice."""
    found, heading = {}, None
    for line in text.split("\n"):
        if line.strip() in PARTS:
            heading = line.strip()
            if heading in found:
                raise UserError(f"the prompt {name!r} has two parts {heading}")
            found[heading] = []
        elif heading:
            found[heading].append(line)
        elif line.strip() and not line.startswith("#"):
            raise UserError(
                f"the prompt {name!r} begins with {line[:40]!r}, not with one of {', '.join(PARTS)}")
    for heading in PARTS[1:]:
        if heading not in found:
            raise UserError(f"the prompt {name!r} has no part {heading}, a line of its own")
    return {heading: "\n".join(lines).strip("\n") for heading, lines in found.items()}


def check(prompt):
    """Raises UserError for fields that do not exist, a message without what the game said, and an action that
    could not be found in a response."""
    whose, known = f"the prompt {prompt.name!r}", ", ".join(f"{{{name}}}" for name in FIELDS)
    for text in (prompt.first, prompt.turn):
        fields = FIELD.findall(text)
        strange = [name for name in fields if name not in FIELDS]
        if strange:
            raise UserError(f"{whose} has a field {{{strange[0]}}}, and there are only {known}")
        if "observation" not in fields:
            raise UserError(f"{whose} has a turn without {{observation}}, what the game said")
    if FIELD.findall(prompt.line) != ["action"] or "\n" in prompt.line:
        raise UserError(f"{whose} needs as its part [action] one line with {{action}} in it, once")
    before, behind = marks(prompt.line)
    if behind and (not before or behind.lower() in before.lower()):
        raise UserError(
            f"{whose} needs a mark before the action that does not hold the one behind it, or none at all")
