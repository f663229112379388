"""What the tiny pairs are made of in ALFWorld: games, words, experts. One pair is of generated games, the
other of the benchmark's own."""

import json
import random
from collections import Counter
from functools import partial
from pathlib import Path

import envs
from harness.cli import UserError
from harness.folder import cache_home
from tiny import Play
from worlds.alfworld_games import MAY_LIE, VERSION, TextExpert, class_of, write_splits
from worlds.alfworld_search import classes, counts
from worlds.cache import once

# Text that says nothing is dropped, so that what belongs together is adjacent: about 13 tokens a turn.
IDLE = ("a|an|the|and|you|your|is|are|it|some|put|in|on|at|of|them|up|using|this|normal|there|s|special"
        "|about|next")
PHRASES = (
    (r"-= welcome to textworld, alfred! =-", " "),
    (r"available commands:[\s\S]*?(?=task:|$)", "help "),
    (r"your task is to:[^\n]*", " "),  # the status line repeats it
    (r"the middle of (a|the) room", "middle"),
    (r"you are in middle\. looking quickly around you, you see", "see"),
    (r"you arrive at [a-z]+ \d+\.", "arrive "),
    (r"(on|in) (the [a-z]+ \d+|it), you see", "see"),
    (r"the [a-z]+ \d+ is open\. ", " "),
    (rf"\b({IDLE})\b", " "))
BLUNDERS = (
    "take {0} from {1}", "move {0} to {1}", "open {1}", "go to {1}",
    "heat {0} with {1}", "cool {0} with {1}", "clean {0} with {1}")


# What may lie where: (thing, place) of classes, in lower case.
FITTING = {(thing.lower(), place.lower()) for place, things in MAY_LIE.items() for thing in things}


class Expert(TextExpert):
    """Puts a wrong object down at once where such things may lie: a rule without memory, easier to
    imitate."""

    def _put_back(self):
        if self.at and (class_of(self.carried), class_of(self.at)) in FITTING:
            return self._into(self.at, "move {} to {}", self.carried)
        return self._walk()


class ALFWorldPlay(Play):
    """A pair as tiny/__init__.py describes it."""
    env = "alfworld"
    defaults = dict(Play.defaults, data="generated")  # it knows the words of these games only
    turns = 20
    skill = 0.25
    verbs = ("take", "move", "open", "close", "heat", "cool", "clean")
    phrases = PHRASES
    tokens = r"go to|[a-z]+ \d+|[a-z]+"  # a thing with its number is one token, and so is a verb

    def words(self):
        """What is left of the answer to "help", which nobody asks for while the words are gathered."""
        return ("help",)

    def tasks(self, games):
        """The first `games` games of the train split's seeds: floor plans of "train", none of the held-out
        games."""
        write = partial(write_splits, sizes={"train": games})
        folder = once(cache_home() / f"alfworld-tiny-{games}-{VERSION}", write)
        return envs.make_tasks("alfworld", "train", str(folder))

    def actions(self, info):
        """All that is admissible but "help", which is not worth the words."""
        return [action for action in info["admissible"] if action != "help"]

    def expert(self, env, opening):
        """The text expert that searches in one order, without memory."""
        return Expert(opening, revisit=True)

    def blunder(self, rng, expert):
        """Things and places of the game put together without thought."""
        things = sorted(set().union(*expert.seen.values())) or [f"{expert.goal.thing} 1"]
        places = expert.places
        thing = rng.choice([*things, expert.carried or things[0]])
        place = rng.choice([*places, expert.at or places[0]])
        return rng.choice(BLUNDERS).format(thing, place)


MOST = 30                       # of one class in a game
CLASSES = sorted({*counts(), *(place.lower() for place in MAY_LIE)})
NAMES = tuple([f"{name} {n + 1}" for n in range(MOST)] for name in CLASSES)


def _train_split():
    """The benchmark's training games; raises UserError where they are not at hand."""
    tasks = envs.make_tasks("alfworld", "train")
    if any(task.expert for task in tasks):
        raise UserError(
            "the pair alfworld-full is made of the benchmark's own games: fetch them by alfworld-download")
    return tasks


class DataSetPlay(ALFWorldPlay):
    """The pair of the benchmark's own games: long rooms, all task types, the data set's order of search."""
    defaults = Play.defaults
    prefix = "full-"
    turns = 30
    skill = 0.3
    alike = (("carrying", NAMES),)
    heard = 100

    def tasks(self, games):
        """`games` games of the benchmark's train split, drawn once and for all."""
        tasks = _train_split()
        return random.Random(0).sample(tasks, min(games, len(tasks)))

    def words(self):
        """The name of every thing and place of the split, with as many numbers as a game has at most, and
        alone as a task says it: the same words whatever games are chosen."""
        most = Counter()
        for task in _train_split():
            named = classes(json.loads(Path(task.source).read_text())["pddl_problem"])
            most |= Counter(named)
        numbered = [f"{name} {n + 1}" for name in most for n in range(most[name])]
        return [*super().words(), *most, *numbered]

    def expert(self, env, opening):
        """The text expert that looks where things lie most often, and remembers where it has been."""
        return Expert(opening)
