"""Settings of the documentation: `sphinx-build -W docs docs/_build/html`."""

from __future__ import annotations

from itertools import pairwise

import latentcell

project = "latentcell"
author = "The latentcell developers"
copyright = "the latentcell developers, BSD-3-Clause"
release = version = latentcell.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "benchmarks", "images"]
# names in docstrings stand in single backticks
default_role = "code"
html_theme = "furo"
html_title = "latentcell"
html_static_path: list[str] = []

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
# chapters run when the site is built; what they compute is kept until their text changes
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_typehints = "none"
autosummary_generate = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Returned"]


def _prose_of_returns(app, what, name, obj, options, lines: list[str]) -> None:
    """Call a section in which prose tells what is returned "Returned": in "Returns" each line would pass for a type."""
    starts = [i for i, line in enumerate(lines[:-1]) if line and lines[i + 1] and set(lines[i + 1]) == {"-"}]
    for start, end in pairwise([*starts, len(lines)]):
        if lines[start] == "Returns" and not any(line.startswith("    ") for line in lines[start + 2 : end]):
            lines[start : start + 2] = ["Returned", "--------"]


def setup(app) -> None:
    """Ask to see docstrings before napoleon does."""
    app.connect("autodoc-process-docstring", _prose_of_returns, priority=100)
