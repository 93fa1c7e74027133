"""Imported by the examples before all that may be missing: says how to install it."""

import importlib.util
import sys

missing = [
    name
    for name in ("matplotlib", "numpy", "rich", "scipy", "sklearn", "typer")
    if importlib.util.find_spec(name) is None
]
if missing:
    sys.exit(
        f"The examples need {', '.join(missing)}, not installed here: pip install '.[examples]'"
    )
