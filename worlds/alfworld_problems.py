"""ALFWorld's PDDL problems, translated once per machine and kept on disk.

    python -m worlds.alfworld_problems      # those of all the data set's games beforehand

Translating costs 0.1 to 0.9 s of CPU, more than everything else that a game costs; reading what came of it
costs 4 ms. A file per problem is called by the content of domain and problem and the version of what made
it; all processes share them (worlds/cache.py).

Facts can be forgotten here: the library keeps every proposition that was ever made.
"""

import functools
import gc
import hashlib
import itertools
import json
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import fast_downward
from textworld.envs.pddl import logic as pddl_logic
from textworld.logic import Placeholder, Proposition, Signature, Variable

from harness.cli import UserError, command, knob
from harness.folder import cache_home
from worlds.alfworld_data import RELEASE, check_folder, data_folder, list_games
from worlds.cache import in_processes, keep, kept

SPLITS = ("train", "valid_seen", "valid_unseen")
VERSION = f"3 {version('fast_downward_textworld')}"  # of a file: change it with anything that changes one


# ---- facts

class _Forgotten(type(Proposition)):
    """The metaclass of propositions without the library's memory of all that were ever made."""
    __call__ = type.__call__


class Fact(Proposition, metaclass=_Forgotten):
    """A proposition that is freed when nobody needs it, and is quick to sort; in all else the stock one."""
    __slots__ = ("_key",)

    def __init__(self, name, arguments, signature=None):
        """signature: of the name and the arguments' types, where it is known already."""
        self.name, self.arguments = name, tuple(arguments)
        self.signature = signature or Signature(name, [variable.type for variable in arguments])
        self._hash = hash((name, self.arguments))
        self._key = name, [(variable.name, variable.type) for variable in arguments]

    def __lt__(self, other):
        return self._key < other._key           # the stock order

    def negate(self):
        name = self.name.split("not_", 1)[1] if self.is_negation else "not_" + self.name
        return Fact(name, self.arguments)


class Atom(pddl_logic.Atom):
    """An atom of the downward library, read as a Fact."""

    def get_fact(self, types):
        """types: entity -> PDDL type."""
        kind, rest = self.name.split(" ", 1)
        name, arguments = rest.split("(", 1)
        variables = [Variable(entity, types[entity]) for entity in arguments[:-1].split(", ") if entity]
        return Fact("not_" + name if kind == "NegatedAtom" else name, variables)


# ---- a problem

class Compiled(NamedTuple):
    """A problem after translation: what a state needs, without the planner's task (20 times larger)."""
    sas: bytes                  # planning task for the downward library
    types: dict                 # entity -> PDDL type
    hierarchy: list             # [type, its supertypes]
    parameters: dict            # action name -> its Placeholders
    # What is true at the start, by the fields of the library's State:
    facts: dict                 # Signature -> set of Facts
    variables: dict             # entity -> Variable
    by_type: dict               # PDDL type -> set of Variables
    counts: Counter             # entity -> in how many facts, the same fact twice counted twice


def compiled(library, domain, problem):
    """The Compiled problem of PDDL texts, as it was kept, else made now.

    library: a loaded downward library; its current task may be replaced.
    """
    name = _name(domain, problem)
    description = kept(name)
    if description is None:
        description = describe(library, domain, problem)
        keep(name, description)
    return build(description)


def _name(domain, problem):
    """What a problem's file is called."""
    key = hashlib.sha256("\0".join([VERSION, domain, problem]).encode()).hexdigest()
    return f"alfworld-problems/{key[:2]}/{key}"


def describe(library, domain, problem):
    """What PDDL texts say, as JSON values: the planning task, and what the state is made of beside it."""
    task, sas = _translate(domain, problem)
    library.load_sas(sas.encode())
    types = {o.name: o.type_name for o in task.objects}
    number = {name: i for i, name in enumerate(types)}
    facts = defaultdict(list)
    for name, args in _initial_facts(library, task, types):
        facts[name, tuple(types[arg] for arg in args)].append([number[arg] for arg in args])
    return dict(
        sas=sas,
        objects=list(types.items()),
        facts=[[name, kinds, members] for (name, kinds), members in facts.items()],
        hierarchy=[[t.name, list(t.supertype_names)] for t in task.types],
        parameters={a.name: [[p.name.strip("?"), p.type_name] for p in a.parameters] for a in task.actions})


def _translate(domain, problem):
    """The translator's (task, SAS text).

    It replaces sys.argv, and runs a quarter faster without garbage collection.
    """
    argv, collecting = sys.argv, gc.isenabled()
    gc.disable()
    try:
        return fast_downward.pddl2sas(domain, problem)
    except SystemExit as error:     # it leaves the process where the PDDL is wrong
        raise ValueError(f"the PDDL translator gave up ({error})") from error
    finally:
        sys.argv = argv
        if collecting:
            gc.enable()


def _initial_facts(library, task, types):
    """(predicate, entities) of the facts of the problem file, then of those that the library derives."""
    for atom in task.init:
        if getattr(atom, "predicate", "=") != "=":          # "=" and the numeric assignments are not facts
            yield atom.predicate, atom.args
    atoms = (Atom * library.get_state_size())()
    library.get_state(atoms)
    for fact in (atom.get_fact(types) for atom in atoms):
        if not fact.is_negation:
            yield fact.name, fact.names


def build(description):
    """The Compiled problem of what `describe` gives."""
    entities = [Variable(sys.intern(name), sys.intern(kind)) for name, kind in description["objects"]]
    facts, by_type, used = {}, defaultdict(set), []
    for name, kinds, members in description["facts"]:
        signature = Signature(name, kinds)
        facts[signature] = {Fact(name, [entities[i] for i in numbers], signature) for numbers in members}
        used += itertools.chain.from_iterable(members)
    counts = Counter({entities[i].name: count for i, count in Counter(used).items()})
    variables = {entities[i].name: entities[i] for i in set(used)}
    for variable in variables.values():
        by_type[variable.type].add(variable)
    parameters = {
        action: tuple(Placeholder(*parameter) for parameter in listed)
        for action, listed in description["parameters"].items()}
    types = {variable.name: variable.type for variable in entities}
    return Compiled(
        description["sas"].encode(), types, description["hierarchy"], parameters, facts, variables,
        dict(by_type), counts)


# ---- the command

@functools.lru_cache(maxsize=None)
def _library():
    """This process's downward library."""
    return fast_downward.load_lib()


def _prepare(path):
    """Translate the problem of a game file, unless it was kept; says whether it is kept now. Why a game
    cannot be played is said when it is drawn."""
    with suppress(Exception):
        game = json.loads(Path(path).read_text())
        texts = game["pddl_domain"], game["pddl_problem"]
        compiled(_library(), *texts)
        return kept(_name(*texts)) is not None
    return False


@dataclass
class Args:
    """Whose games."""
    data: str = knob("", "the data set's folder (empty: where a run finds it)", path=True)


def main(args):
    folder = data_folder(args.data)
    if folder is None:
        raise UserError("There is no data set: `alfworld-download` fetches it.")
    check_folder(folder)
    splits = [split for split in SPLITS if (folder / RELEASE / split).is_dir()]
    games = [game["source"] for split in splits for game in list_games(folder, split)]
    done = sum(in_processes(_prepare, games, "ALFWorld problems"))
    print(f"{done} of {len(games)} problems are kept in {cache_home()}")
    if done < len(games):
        raise UserError(f"{len(games) - done} games could not be translated, or not be kept.")


if __name__ == "__main__":
    command(main, Args)
