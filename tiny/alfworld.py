"""What a tiny pair is made of in ALFWorld: generated games of level "small", their words, their expert."""

import envs
from harness.folder import cache_home
from worlds.alfworld_games import LEVELS, MAY_LIE, VERSION, TextExpert, class_of, write_splits
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


def fitting():
    """Pairs (thing, place) of classes, in lower case: what may lie where."""
    pairs = set()
    for place, things in MAY_LIE.items():
        pairs.update((thing.lower(), place.lower()) for thing in things)
    return pairs


FITTING = fitting()


class Expert(TextExpert):
    """Puts a wrong object down at once where such things may lie: a rule without memory, easier to
    imitate."""

    def _put_back(self):
        if self.at and (class_of(self.carried), class_of(self.at)) in FITTING:
            return self._into(self.at, "move {} to {}", self.carried)
        return self._walk()


class ALFWorldPlay:
    """A world as tiny/__init__.py describes it."""
    turns = 20
    skill = 0.25
    verbs = ("take", "move", "open", "close", "heat", "cool", "clean")
    phrases = PHRASES
    tokens = r"go to|[a-z]+ \d+|[a-z]+"  # a thing with its number is one token, and so is a verb
    decoder = None
    alike = ()

    def tasks(self, games):
        """The first `games` games of the train split's seeds: floor plans of "train", none of the held-out
        games."""
        def write(folder):
            write_splits(folder, LEVELS["small"], {"train": games})
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
