"""An episode's row as text: each token with its turn, and of the trained ones what a step says of them.

A run writes one into its folder, row.txt: the first episode of its last step, a fork's first debugger.
"""

from harness.folder import replacing

HEAD = f"{'place':>5} {'id':>7} {'turn':>4} {'log q':>9} {'log p':>9} {'KL':>9} {'loss':>9}  text"


def cell(number):
    """A number of the table; a dot where there is none."""
    return f"{number:9.4f}" if number == number else f"{'·':>9}"


def table(episode, tokens, tokenizer):
    """The rows of an episode, a token a line.

    tokens: {name: values (N,)} of its trained tokens in their order, as `tcod.backward` returns them.
    """
    lines, trained = [HEAD], zip(*(tokens[name] for name in ("logp", "kl", "loss")))
    for row in episode.rows:
        for place, (i, turn, logq) in enumerate(zip(row.ids, row.turn, row.logp)):
            logp, kl, loss = next(trained) if turn >= 0 else [float("nan")] * 3
            text = tokenizer.decode([i], skip_special_tokens=False)
            figures = " ".join(map(cell, (logq, logp, kl, loss)))
            lines.append(f"{place:5} {i:7} {turn if turn >= 0 else '·':>4} {figures}  {text!r}")
    return "\n".join(lines) + "\n"


def write(path, episode, tokens, tokenizer):
    """Write the table of an episode; tokens: of all episodes of the step, of which this is the first."""
    own = (tokens["episode"] == 0).nonzero()[0]
    own = own[tokens["turn"][own].argsort(kind="stable")]  # rows of one turn each come in any order
    with replacing(path) as file:
        file.write(table(episode, {name: values[own] for name, values in tokens.items()}, tokenizer))
