"""The one exception for input that cannot give a true answer."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """Data, files or arguments that latentcell refuses.

    The message is one paragraph for a biologist: what was found, where (cell, gene, file, key), and what to do.
    The command line prints it and exits with status 2.
    """


class NotFittedError(InputError, AttributeError):
    """A model was asked before it was fitted."""


def listed(names: Iterable[object], limit: int = 5) -> str:
    """First `limit` names in quotes and how many more there are, for a message; ``none`` where there are none."""
    every = [repr(str(name)) for name in names]
    shown = ", ".join(every[:limit]) or "none"
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"
