"""The questions: where a cell lies (`embed`) and what lies between (`interpolate`, `leave_one_out`, `arithmetic`)."""

from latentcell.tl.arithmetic import arithmetic
from latentcell.tl.course import Pairing
from latentcell.tl.embed import embed
from latentcell.tl.interpolate import interpolate
from latentcell.tl.leave_one_out import leave_one_out

__all__ = ["Pairing", "arithmetic", "embed", "interpolate", "leave_one_out"]
