"""ALFWorld's PDDL problems, translated once per machine: kept on disk, the last ones also in memory.

Translating costs 0.2 to 0.8 s of CPU, more than everything else that a game costs. What comes of it is kept
in a folder that all processes share: JSON and the planning task's own text, a file per problem, called by the
content of domain and problem and the version of what made it. A file is written beside and moved into place;
one that is not as it was written is made again. Where nothing can be written, games are translated as if
there were no folder.

Facts can be forgotten here: the library keeps every proposition that was ever made.
"""

import functools
import gc
import hashlib
import itertools
import json
import sys
import zlib
from collections import Counter, OrderedDict, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import fast_downward
from textworld.envs.pddl import logic as pddl_logic
from textworld.logic import Placeholder, Proposition, Signature, Variable

from harness.folder import cache_home
from worlds.cache import keep, kept, perhaps_alone

VERSION = f"2 {version('fast_downward_textworld')}"  # of a file: change it with anything that changes one
MOST_BYTES = 512 * 2**20        # on disk; the files that were not used for longest go first
SUBFOLDERS = 256                # each has its share; digests, by which they are named, fill them evenly
KEPT = 128                      # problems in memory, about 0.3 MB each


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
    sas: bytes                  # zlib-compressed planning task for the downward library
    types: dict                 # entity -> PDDL type
    hierarchy: list             # [type, its supertypes]
    parameters: dict            # action name -> its Placeholders
    # What is true at the start, by the fields of the library's State:
    facts: dict                 # Signature -> set of Facts
    variables: dict             # entity -> Variable
    by_type: dict               # PDDL type -> set of Variables
    counts: Counter             # entity -> in how many facts, the same fact twice counted twice


def translate(library, domain, problem):
    """(description, planning task) of PDDL texts: plain JSON values, and bytes for `library.load_sas`.

    library: a loaded downward library; its current task is replaced.
    """
    task, sas = _translate(domain, problem)
    sas = sas.encode()
    library.load_sas(sas)
    types = {o.name: o.type_name for o in task.objects}
    number = {name: i for i, name in enumerate(types)}
    facts = defaultdict(list)
    for name, args in _initial_facts(library, task, types):
        facts[name, tuple(types[arg] for arg in args)].append([number[arg] for arg in args])
    description = dict(
        objects=list(types.items()),
        facts=[[name, kinds, members] for (name, kinds), members in facts.items()],
        hierarchy=[[t.name, list(t.supertype_names)] for t in task.types],
        parameters={a.name: [[p.name.strip("?"), p.type_name] for p in a.parameters] for a in task.actions})
    return description, sas


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


def build(description, sas):
    """The Compiled problem of what `translate` gives; sas: compressed."""
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
        sas, types, description["hierarchy"], parameters, facts, variables, dict(by_type), counts)


# ---- kept in files

def folder():
    """Where the files lie; other versions' among them, which go when they were not used for longest."""
    return cache_home() / "alfworld-compiled"


def key_of(domain, problem):
    """The name of a problem's file."""
    return hashlib.sha256("\0".join([VERSION, domain, problem]).encode()).hexdigest()


def pack(key, description, sas):
    """The content of a file. Its first line: a digest of all that follows, the length of the description."""
    head = zlib.compress(json.dumps(description).encode())
    body = head + zlib.compress(sas)
    return f"{_seal(key, body)} {len(head)}\n".encode() + body


def unpack(key, content):
    """The Compiled problem of a file's content; raises ValueError unless `pack` wrote it for this key."""
    first, _, body = content.partition(b"\n")
    seal, _, length = first.decode("ascii").partition(" ")
    if seal != _seal(key, body):
        raise ValueError(f"{key} is not as it was written")
    length = int(length)
    return build(json.loads(zlib.decompress(body[:length])), body[length:])


def _seal(key, body):
    return hashlib.sha256(key.encode() + body).hexdigest()


def _path(key):
    return folder() / key[:2] / key


def _read(key):
    """The Compiled problem of that name; None where no whole file is there."""
    try:
        return unpack(key, kept(_path(key)) or b"")
    except ValueError:
        return None


# ---- kept in memory

_MEMORY = OrderedDict()         # key -> Compiled, the last used at the end


def compiled(library, domain, problem):
    """The Compiled problem of PDDL texts, from memory or disk, else made now. library: as in `translate`."""
    key = key_of(domain, problem)
    found = _MEMORY.pop(key, None) or _read(key) or _make(key, library, domain, problem)
    _MEMORY[key] = found
    while len(_MEMORY) > KEPT:
        _MEMORY.popitem(last=False)
    return found


def _make(key, library, domain, problem):
    """Translate and keep; processes that want problems of one subfolder wait for each other."""
    with perhaps_alone(_path(key).parent):
        found = _read(key)                      # another process may have made it meanwhile
        if found is None:
            content = pack(key, *translate(library, domain, problem))
            keep(_path(key), content, MOST_BYTES // SUBFOLDERS)
            found = unpack(key, content)
    return found


# ---- all at once

@functools.lru_cache(maxsize=None)
def _library():
    """This process's own copy of the downward library, for translating only."""
    return fast_downward.load_lib()


def keep_game(path):
    """Translate a game's file unless that is kept already; returns what is wrong with it, "" for nothing."""
    try:
        data = json.loads(Path(path).read_text())
        domain, problem = data["pddl_domain"], data["pddl_problem"]
        key = key_of(domain, problem)
        if _read(key) is None:
            _make(key, _library(), domain, problem)
    except Exception as error:
        return " ".join(f"{path}: {type(error).__name__}: {error}".split())
    return ""


def size():
    """(files, bytes) that are kept now."""
    sizes = [path.stat().st_size for path in folder().glob("*/*")]
    return len(sizes), sum(sizes)
