"""What the pages with figures need: their script, and the data that is too plain to keep in the repository.

A page asks for its script in its front matter: ``figure: interpolation`` loads
``_static/js/interpolation_page.js``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

LIBRARIES = ("d3.min.js", "plot.umd.min.js")


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """The libraries first, then the page's own module."""
    figure = (context.get("meta") or {}).get("figure")
    if figure is None:
        return
    for library in LIBRARIES:
        app.add_js_file(library)
    app.add_js_file(f"js/{figure}_page.js", type="module")


def check_libraries(app: Sphinx) -> None:
    """Say how to get what is missing: Sphinx itself would only warn."""
    for path in app.config.html_static_path:
        if path.startswith("node_modules") and not (Path(app.srcdir) / path).exists():
            raise ExtensionError(
                f"docs/{path} is missing: run `make docs`, or `npm ci --prefix docs` once"
            )


def digits() -> dict[str, Any]:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: a letter, "A" (0) to "Q" (16), for a pixel."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return {
        "n_features": images.shape[1],
        "pixels": "".join(chr(ord("A") + int(v)) for v in images.ravel()),
        "labels": "".join(str(int(label)) for label in labels),
    }


CURVES = {  # files of docs/data/curves, as examples/anytime.py wrote them: how the page calls them
    "31k-b1-schedule-free-plus-t100-1847c9-s0": "ScheduleFree+, lr 0.3",
    "31k-b1-schedule-free-plus-t100-f6e17d-s0": "ScheduleFree+, lr 0.1",
    "31k-b1-adamw-schedulefree-t300-c2ea49-s0": "AdamWScheduleFree, 4,514 steps",
    "31k-b1-adamw-linear-t100-68b317-s0": "AdamW, linear decay",
}


def curves(folder: Path) -> list[dict[str, Any]]:
    """The shipped runs; a learning rate stands beside the loss where a schedule made it."""
    found = []
    for stem, name in CURVES.items():
        run = json.loads((folder / f"{stem}.json").read_text())
        curve = {"name": name, "step": run["curve"]["step"], "loss": run["curve"]["loss"]}
        if run["point"]["schedule"] is not None:
            curve["rate"] = run["curve"]["rate"]
        found.append(curve)
    return found


def write_data(app: Sphinx, exception: Exception | None) -> None:
    """Beside the static files of the built site."""
    if exception is None:
        folder = Path(app.outdir) / "_static" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "digits.json").write_text(json.dumps(digits()))
        (folder / "curves.json").write_text(
            json.dumps(curves(Path(app.srcdir) / "data" / "curves"))
        )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", check_libraries)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", write_data)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
