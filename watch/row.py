"""An episode's row as text: each token with its turn, and of the trained ones what a step says of them.

A run writes one into its folder, row.txt: the first episode of its last step, a fork's first debugger.
docs/tour.md goes through one by hand.
"""

from harness.folder import replacing

COLUMNS = ("log q", "log p", "KL", "weight")


def cell(number):
    """A number of the table; a dot where there is none."""
    return f"{number:9.4f}" if number == number else f"{'·':>9}"


def table(episode, tokens, tokenizer):
    """The rows of an episode, a token a line.

    tokens: {name: values (N,)} of its trained tokens in their order, as `tcod.backward` returns them.
    """
    lines = [f"{'id':>6}  {'text':14} {'turn':>4}" + "".join(f"{name:>10}" for name in COLUMNS)]
    trained = zip(*(tokens[name] for name in ("logp", "kl", "weight")))
    for row in episode.rows:
        for i, turn, logq in zip(row.ids, row.turn, row.logp):
            figures = [logq, *(next(trained) if turn >= 0 else [float("nan")] * 3)]
            text = repr(tokenizer.decode([i], skip_special_tokens=False))[1:-1]
            at = turn if turn >= 0 else "·"
            lines.append(f"{i:6}  {text:14} {at:>4} " + " ".join(map(cell, figures)))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def write(path, episode, tokens, tokenizer):
    """Write the table of an episode; tokens: of all episodes of the step, of which this is the first."""
    own = (tokens["episode"] == 0).nonzero()[0]
    own = own[tokens["turn"][own].argsort(kind="stable")]  # rows of one turn each come in any order
    with replacing(path) as file:
        file.write(table(episode, {name: values[own] for name, values in tokens.items()}, tokenizer))
