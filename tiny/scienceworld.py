"""What a tiny pair is made of in ScienceWorld: the short tasks, in an order that mixes their types, their
words, their expert."""

import random
import re

import envs
from tiny import Play
from worlds.scienceworld import ANIMALS, DOORS, LIFELESS, LONG_LIVED, PLANTS, SHORT_LIVED, TextExpert

# The task is told by the status line; the doors are the same in every game.
PHRASES = (
    (r"your task is to[^\n]*\n", " "),
    (r"you also see:[\s\S]*?(?=task:)", " "),
    (r"no known action matches that input", "unknown"),
    (r"it's not clear how to get there from here", "unknown"),
    (r"first, focus on the thing\. then, move it to|focus on the animal with|the animals are in the", " "),
    (r"you are in the", "here"),
    (r"you focused on", "focus"))
BEASTS = "|".join(sorted({*ANIMALS, *LONG_LIVED, *SHORT_LIVED}))
# Names of what may be looked for, and of boxes: each one token, whatever its age or contents.
THINGS = rf"(?!the )[a-z]+ (?:box|tree|plant)|{BEASTS}|{'|'.join(LIFELESS)}"
WORDS = "go to|look around|focus on|focus|pick up|move|to|task|here|carrying|inventory|unknown"
KINDS = "non-living|living|animal|plant|longest|shortest"
HARMLESS = re.compile(rf"look around|inventory|go to .*|(pick up|move) ({THINGS})( to .* box)?")
# Names that could stand for each other; where the task is to know an animal's age, those of about the same.
BOXES = tuple(f"{colour} box" for colour in ("blue", "green", "orange", "purple", "red", "yellow"))
AGES = (LONG_LIVED, SHORT_LIVED, sorted(set(ANIMALS) - set(LONG_LIVED)))


class ScienceWorldPlay(Play):
    """A pair as tiny/__init__.py describes it."""
    env = "scienceworld"
    # Its games take 0.2 s each.
    defaults = dict(Play.defaults, data="short", eval_games=100, eval_every=60)
    turns = 20
    skill = 0.25
    verbs = ("pick", "move")
    phrases = PHRASES
    tokens = rf"\b(?:{WORDS}|{'|'.join(DOORS)}|{THINGS}|{KINDS})\b"
    alike = (
        ("longest", AGES), ("shortest", AGES),
        ("task", (ANIMALS, LIFELESS, PLANTS, BOXES)))

    def tasks(self, games):
        """The first `games` of the train split's short tasks, shuffled: the list goes from type to type."""
        tasks = envs.make_tasks("scienceworld", "train", "short")
        return random.Random(0).sample(tasks, min(games, len(tasks)))

    def actions(self, info):
        """Everything but a focus, which nobody can take back."""
        return [action for action in info["admissible"] if HARMLESS.fullmatch(action)]

    def expert(self, env, opening):
        """The text expert, as it is."""
        return TextExpert(opening)

    def blunder(self, rng, expert):
        """Rooms and things of the house put together without thought."""
        thing = rng.choice([*ANIMALS, "apple tree", expert.thing or "soap"])
        room = rng.choice(list(DOORS))
        box = expert.box or "red box"
        return rng.choice([f"go to {room}", f"pick up {thing}", f"move {thing} to {box}"])
