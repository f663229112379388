"""The embedded pairs: make.py trains them, and a file per world says which words they know and whose play
they imitate.

A pair is made of one class, a Play:

    env                     name of the environment
    defaults                what tcod.py and eval.py take for these checkpoints where nothing else is said
    prefix                  what the names of its checkpoints begin with
    turns                   turns of an episode
    skill                   share of the poor player's turns that are the expert's
    verbs                   first words of the actions that clumsy players like
    phrases                 pairs (pattern, text): what is replaced in whatever the models read
    tokens                  pattern of a token; what it does not match says nothing, and vanishes
    decoder                 how the tokens of a response are joined; None: by one blank
    alike                   names that may be exchanged for each other, see `make.renamer`
    heard                   games of which the words are taken
    words()                 further words, which those games may not have
    tasks(games)            the training games, at most so many
    actions(info)           what those who act at random choose from
    expert(env, opening)    a new expert for the game that opens with this observation:
                            act() -> action, observe(action, observation)
    blunder(rng, expert)    an action that is probably invalid
"""


class Play:
    """What most pairs have in common."""
    defaults = dict(
        max_response=16, max_context=2048, lr=1e-3, steps=120, eval_every=40)
    prefix = ""
    decoder = None
    alike = ()
    heard = 500

    def words(self):
        """No further words."""
        return ()
