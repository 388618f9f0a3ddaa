"""Command line: the public functions by name; no logic of its own."""

from __future__ import annotations

from latentcell.cli import datasets, integrate, models, questions
from latentcell.cli.app import app

__all__ = ["app", "datasets", "integrate", "models", "questions"]
