"""ALFWorld's own engine, TextWorld's `PddlEnv` over the ALFRED domain, with its repeated work cached.

The stock engine translates a problem from PDDL four times for one load and reset, parses the text grammar
again for every game, rebuilds every command at every step and deep-copies its contexts while it writes a
sentence. Here
- a problem is translated once per machine (alfworld_problems.py), and never for re-planning (nothing here
  asks for plans);
- the grammar is parsed once, with the task's sentence taken out of it;
- a command's text is written once for all operators that differ in nothing that its template names (ALFRED's
  templates depend on facts that never change): to go somewhere reads alike, wherever one stands;
- text is derived by a plain recursion over the same symbols, with contexts shared instead of copied.
Everything is done by subclasses; no module of a library is patched. What the agent sees (feedback, admissible
commands, won, score, done) equals the stock engine's, which `tests/test_alfworld.py` checks. Left out of a
state: facts, entity infos, the moves counter and policy commands.
"""

import ast
import functools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import fast_downward
import textworld.logic
from alfworld.agents.utils.misc import Demangler
from textworld.core import GameState
from textworld.envs import PddlEnv
from textworld.envs.pddl import logic as pddl_logic
from textworld.envs.pddl import textgen
from textworld.generator.game import EntityInfo
from textworld.logic import Rule, Signature, Variable

from worlds.alfworld_problems import Atom, compiled

TASK_SENTENCE = re.compile(r"(?<=Your task is to: )[^\"\\#{}\[\]|]*(?=\.\")")
PLACEHOLDER = "UNKNOWN GOAL"    # what the packaged grammar has in place of a task


# ---- text

class Grammar(textgen.ContextSensitiveGrammar):
    """The same grammar; a sentence is derived by recursion, without copying symbols or contexts."""

    def derive(self, start, context):
        return self._join(_symbols(start), context)

    def _join(self, symbols, context):
        return "".join(self._text(symbol, context) for symbol in symbols)

    def _text(self, symbol, context):
        if isinstance(symbol, textgen.NonterminalSymbol):
            return self._join(self._applicable(symbol, context).rhs, context)
        if isinstance(symbol, textgen.ListSymbol):
            return self._enumerate(self._texts(symbol.symbol, context), context)
        return "".join(self._texts(symbol, context))

    def _texts(self, symbol, context):
        """What a symbol yields, one text per match of its condition."""
        if isinstance(symbol, textgen.ConditionalSymbol):
            matches = _matches(symbol.given, context) if symbol.given else [context]
            return [self._text(symbol.expression, match) for match in matches]
        if isinstance(symbol, textgen.EvalSymbol):
            return [str(_value(_expression(symbol.expression), context["variables"]))]
        return [str(symbol)]

    def _enumerate(self, texts, context):
        """"a, b, and c", with the separators of the grammar."""
        if not texts:
            return self._text(textgen.NonterminalSymbol("list_empty"), context)
        if len(texts) == 1:
            return texts[0]
        comma = self._text(textgen.NonterminalSymbol("list_separator"), context)
        last = self._text(textgen.NonterminalSymbol("list_last_separator"), context)
        return comma.join(texts[:-1]) + last + texts[-1]

    def _applicable(self, symbol, context):
        for rule in self._rules.get(str(symbol), ()):
            if not rule.condition or _matches(rule.condition, context):
                return rule
        raise textgen.CSGUnknownSymbolError(symbol)


@functools.lru_cache(maxsize=None)
def _symbols(text):
    return textgen._parse_and_convert(text, rule_name="symbols")


@functools.lru_cache(maxsize=None)
def _words(text):
    return frozenset(re.findall(r"\w+", text))


@functools.lru_cache(maxsize=None)
def _query(condition):
    return Rule.parse_conjunctive_query(condition)


@functools.lru_cache(maxsize=None)
def _expression(text):
    return ast.parse(text.strip(), mode="eval").body


def _value(node, variables):
    """What a grammar's expression says, e.g. "o.indefinite + ' ' + o.name" or "r.name or r.id".

    The stock engine hands such text, which comes out of the game's file, to eval(); here a file can only
    name, add and choose.
    """
    if isinstance(node, ast.Name):
        return variables[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if not node.attr.startswith("_"):
            return getattr(variables[node.value.id], node.attr)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _value(node.left, variables) + _value(node.right, variables)
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        values = (_value(part, variables) for part in node.values)
        return next(filter(None, values), "")
    asked = ast.unparse(node)
    raise ValueError(f"the grammar asks to evaluate {asked!r}, which is more than names, + and or")


def _matches(condition, context):
    """Contexts that extend `context` by every way to satisfy the condition, sorted as the engine does."""
    infos, found = context["entity_infos"], []
    for mapping in context["state"].all_assignments(_query(condition), context["mapping"]):
        names = {placeholder.name: infos[variable.name] for placeholder, variable in mapping.items()}
        found.append({
            **context,
            "mapping": {**context["mapping"], **mapping},
            "variables": {**context["variables"], **names}})
    return found


@functools.lru_cache(maxsize=8)
def _parse_logic(domain, grammar):
    """The game logic of a grammar without its task sentence: one for all games of a data set."""
    logic = pddl_logic.GameLogic(domain, grammar)
    fast = Grammar()
    fast.update(logic.grammar)
    logic.grammar = fast
    return logic


# ---- the engine

def _copied(sets):
    return defaultdict(set, {key: set(members) for key, members in sets.items()})


class State(pddl_logic.PddlState):
    """The stock state, built from a Compiled problem; actions are made once per operator."""

    def __init__(self, library, problem, logic):
        # The stock constructor would translate the problem twice; these are the fields that its methods use.
        self._facts = _copied(problem.facts)
        self._vars_by_type = _copied(problem.by_type)
        self._vars_by_name = dict(problem.variables)
        self._var_counts = Counter(problem.counts)
        self._logic = logic
        self.downward_lib = library
        self.name2type = problem.types
        self._parameters = problem.parameters
        library.load_sas(problem.sas)

    def apply(self, action):
        """The stock method, with facts that can be forgotten."""
        operator = self._operators[action.id]
        effects = (Atom * operator.nb_effect_atoms)()
        self.downward_lib.apply_operator(operator.id, effects)
        for fact in [effect.get_fact(self.name2type) for effect in effects]:
            self.remove_fact(fact.negate())
            self.add_fact(fact)

    def all_applicable_actions(self, actions):
        """Applicable actions in the engine's order. `actions`: operator id -> action, filled here."""
        operators = (fast_downward.Operator * self.downward_lib.get_applicable_operators_count())()
        self.downward_lib.get_applicable_operators(operators)
        self._operators = {operator.id: operator for operator in operators}
        for operator in operators:
            if operator.id not in actions:
                actions[operator.id] = self._action(operator)
        unique = {}             # operators of the same name do the same: the first one stands for all
        for i in self._operators:
            unique.setdefault(actions[i].full_name, actions[i])
        return list(unique.values())

    def _action(self, operator):
        name, *arguments = operator.name.split()
        action = textworld.logic.Action(name=name, preconditions=[], postconditions=[])
        action.id = operator.id
        action.full_name = operator.name
        pairs = zip(self._parameters[name], arguments)
        action.mapping = {parameter: Variable(arg, parameter.type) for parameter, arg in pairs}
        action.command_template = self._logic.actions[name].template
        action.feedback_rule = self._logic.actions[name].feedback_rule
        return action

    def named(self, predicate, *types):
        """The facts of a predicate, e.g. named("holds", "agent", "object")."""
        return sorted(self.facts_with_signature(Signature(predicate, types)))


class Engine(PddlEnv):
    """`textworld.start(game, wrappers=[AlfredDemangler()])`, faster. `load` takes a path or a dictionary.

    reset() -> state; step(command) -> state, score, done. state: feedback, won, lost, admissible_commands.
    `task` is the task's sentence; `place` and `carried` say what is true now, for a status line.
    Errors: a file that is not a game raises KeyError or ValueError, as the stock engine does.
    """

    def load(self, game):
        data = game if isinstance(game, dict) else json.loads(Path(game).read_text())
        found = TASK_SENTENCE.search(data["grammar"])
        self.task = found.group() if found else ""
        grammar = TASK_SENTENCE.sub(PLACEHOLDER, data["grammar"])
        self._logic = _parse_logic(data["pddl_domain"], grammar)
        self._compiled = compiled(self.downward_lib, data["pddl_domain"], data["pddl_problem"])
        self._add_types()
        self._pddl_state = State(self.downward_lib, self._compiled, self._logic)
        self._entity_infos = {v.name: EntityInfo(v.name, v.type) for v in self._pddl_state.variables}
        names = Demangler(game_infos=self._entity_infos, shuffle=False)
        for info in self._entity_infos.values():
            info.definite, info.indefinite, info.name = "the", "a", names.demangle_alfred_name(info.id)
        self._names = {key: info.name for key, info in self._entity_infos.items()}
        self._actions, self._commands = {}, {}
        self._fresh = True      # load() made the first state: the next reset need not

    def _add_types(self):
        """The problem's types, where the logic, which games share, does not have them yet."""
        known = {kind.name for kind in self._logic.types}
        for kind, parents in self._compiled.hierarchy:
            if kind not in known:
                known.add(kind)
                self._logic.types.add(textworld.logic.Type(kind, parents))

    def reset(self):
        if not self._fresh:
            self._pddl_state = State(self.downward_lib, self._compiled, self._logic)
        self._fresh = False
        self.prev_state = None
        self.state = GameState()
        self._last_action = None
        self._moves = 0
        intro = self._logic.grammar.derive("#intro#", self._context({}))
        self.state.raw = self.state.feedback = intro.replace(PLACEHOLDER, self.task)
        self._gather_infos()
        return self.state

    def _context(self, mapping):
        variables = {p.name: self._entity_infos[v.name] for p, v in mapping.items()}
        return {
            "state": self._pddl_state, "mapping": mapping,
            "entity_infos": self._entity_infos, "variables": variables}

    def _command(self, action):
        """The command's text. In ALFRED's grammar it depends on nothing but what its template names."""
        template = action.command_template
        named = _words(template)
        key = template, *((p.name, v.name) for p, v in action.mapping.items() if p.name in named)
        if key not in self._commands:
            action.command_template = self._logic.grammar.derive(template, self._context(action.mapping))
            self._commands[key] = action.format_command(self._names)
        return self._commands[key]

    def _gather_infos(self):
        actions = self._pddl_state.all_applicable_actions(self._actions)
        for action in actions:
            if not hasattr(action, "command"):
                action.command = self._command(action)
        commands = [action.command for action in actions]
        self.state["won"] = self._pddl_state.check_goal()
        self.state["lost"] = False
        self.state["_valid_actions"] = actions
        self.state["_valid_commands"] = commands
        self.state["admissible_commands"] = sorted(set(commands))

    @property
    def putting(self):
        """The command for putting an object down, e.g. "move {o} to {r}"; older releases write another."""
        return self._logic.actions["putobject"].template

    @property
    def place(self):
        """The receptacle where the agent stands, e.g. "fridge 1"; "" in the middle of the room."""
        here = {fact.arguments[1] for fact in self._pddl_state.named("atlocation", "agent", "location")}
        facts = self._pddl_state.named("receptacleatlocation", "receptacle", "location")
        return " and ".join(self._names[f.arguments[0].name] for f in facts if f.arguments[1] in here)

    @property
    def carried(self):
        """The object in the agent's hands, e.g. "mug 2"; "" for nothing."""
        held = self._pddl_state.named("holds", "agent", "object")
        return self._names[held[0].arguments[1].name] if held else ""
