"""Simulated cells whose true factors are known: for tests, the demo and learning.

One idea: draw factors, then measure them. `images`, `time_course`, `organisation`, `counts`, `count_course` and
`screen` return AnnData; `render`, `expose` and `expected_expression` are the measurements, to be used again on changed
factors.
"""

from __future__ import annotations

from latentcell.cells.simulate.expression import count_course, counts, expected_expression
from latentcell.cells.simulate.imaging import images, time_course
from latentcell.cells.simulate.organisation import STRUCTURES, organisation
from latentcell.cells.simulate.plates import KINDS, screen
from latentcell.cells.simulate.render import CHANNELS, Optics, expose, render

__all__ = [
    "CHANNELS", "KINDS", "STRUCTURES", "Optics", "count_course", "counts", "expected_expression", "expose", "images",
    "organisation", "render", "screen", "time_course",
]  # fmt: skip
