"""The package alfworld, imported before anything of it is.

On import it makes its data folder, in a home that may not be writable, and sets $ALFWORLD_DATA, as if the
user had. Here it is shown a folder that is there already.
"""

import os

_named = os.environ.get("ALFWORLD_DATA")
os.environ["ALFWORLD_DATA"] = os.path.dirname(os.path.abspath(__file__))
try:
    import alfworld  # noqa: F401
finally:
    del os.environ["ALFWORLD_DATA"]
    if _named is not None:
        os.environ["ALFWORLD_DATA"] = _named
