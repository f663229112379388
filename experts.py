"""Experts' episodes in a file: the shortest won one of each task, written by eval.py --save-expert as it
goes, replayed (B2F) or imitated (SFT) by tcod.py --experts.

A line is a task's id, the digest of its game, the actions, and the responses that they stood in. A file is
refused where it belongs to other games or to another prompt. No torch here.
"""

import json
import os
from dataclasses import replace

from harness.cli import UserError
from harness.folder import append, read_log, write_lines


def expert_line(episode):
    """A won episode as a line of the experts' file; None for any other."""
    if not episode.won:
        return None
    return dict(
        task=episode.task.id, digest=episode.task.digest,
        actions=[turn["action"] for turn in episode.turns],
        responses=[turn["response"] for turn in episode.turns])  # whole: reasoning and action


def keep_shortest(best, line):
    """Put an expert's line into best {task id: line} unless one as short is there; returns whether it was
    put."""
    known = best.get(line["task"])
    if known and len(known["actions"]) <= len(line["actions"]):
        return False
    best[line["task"]] = line
    return True


class Experts:
    """The experts' file as it grows: a shorter episode is written behind the one that it replaces, and who
    reads the file takes the last of a task."""

    def __init__(self, path, journal):
        """Take up what is there; raises UserError where the journal's experts are gone."""
        self.path, self.best = path, {}
        if path and journal.records and not os.path.exists(path):
            raise UserError(f"{path} is gone, and {journal.path} counts on it: bring it back, or remove both")
        if path:
            for line in read_log(path):
                keep_shortest(self.best, line)
            self.write()

    def add(self, lines):
        """Write those that are the shortest so far."""
        lines = [line for line in lines if line and keep_shortest(self.best, line)]
        if self.path:
            append(self.path, lines)

    def write(self):
        """Write the file anew, a line for each task."""
        if self.path:
            write_lines(self.path, self.best.values())


def are_texts(value):
    """Whether it is a list of strings."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def parse_expert(line):
    """A line of the file -> (task id, (digest, actions, responses)); raises ValueError."""
    entry = json.loads(line)
    if not isinstance(entry, dict) or not are_texts(entry.get("actions")) or "task" not in entry:
        raise ValueError("a line that holds no episode")
    if "digest" not in entry or "responses" not in entry:
        raise ValueError("an older version, without the expert's responses")
    actions, responses = entry["actions"], entry["responses"]
    if not are_texts(responses) or len(responses) != len(actions) or not actions:
        raise ValueError("a line without a response for each action")
    return entry["task"], (entry["digest"], tuple(actions), tuple(responses))


def read_experts(path):
    """{task id: (digest, actions, responses)} from a file that --save-expert wrote.

    Raises UserError for any other file; also for one of a version that wrote the bare actions: it says
    neither which games they belong to nor what the expert said.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return dict(parse_expert(line) for line in file)
    except (OSError, ValueError) as error:
        reason = f"{path} is not a file as eval.py --save-expert writes it now ({error})"
        raise UserError(f"{reason}: write it again") from None


def give_experts(tasks, path, prompt):
    """Those of the tasks that have an expert's episode in the file, with it filled in.

    Raises UserError where the file belongs to other games: a task has the same id and other content, or none
    of its episodes is of a task here; and where its responses do not hold their actions as this prompt asks,
    since then they were said by a model that writes otherwise than the student is asked to.
    """
    experts = read_experts(path)
    known = [task for task in tasks if task.id in experts]
    if not known:
        raise UserError(
            f"none of the {len(experts)} experts' episodes in {path} is of one of these {len(tasks)} tasks: "
            "write them with eval.py --save-expert on the same --env, --data and --split")
    strange = [task.id for task in known if task.digest != experts[task.id][0]]
    if strange:
        raise UserError(
            f"{len(strange)} of the {len(known)} experts' episodes in {path} were won in other games than "
            f"these, the first one of {strange[0]}: write them again with eval.py --save-expert")
    able = []
    for task in known:
        _, actions, responses = experts[task.id]
        if [prompt.action(response) or "" for response in responses] != list(actions):
            raise UserError(
                f"the expert's responses to {task.id} in {path} do not hold its actions as the prompt "
                f"{prompt.name!r} asks for them: write them again with an expert of the student's prompt")
        able.append(replace(task, expert=actions, responses=responses))
    return able
