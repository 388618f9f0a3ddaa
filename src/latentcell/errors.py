"""The one exception for input that cannot give a true answer."""

from __future__ import annotations


class InputError(ValueError):
    """Data, files or arguments that latentcell refuses.

    The message is one paragraph for a biologist: what was found, where (cell, gene, file, key), and what to do.
    The command line prints it and exits with status 2.
    """
