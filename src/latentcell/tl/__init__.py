"""The questions: where a cell lies (`embed`) and what lies between (`interpolate`)."""

from latentcell.tl.embed import embed
from latentcell.tl.interpolate import interpolate

__all__ = ["embed", "interpolate"]
