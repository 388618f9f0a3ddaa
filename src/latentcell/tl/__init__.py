"""The questions: where cells lie (`embed`), what lies between (`interpolate`), what drives (`factors`) and deviates."""

from latentcell.tl.arithmetic import arithmetic
from latentcell.tl.coupling import coupling, recognised
from latentcell.tl.course import Pairing
from latentcell.tl.embed import embed
from latentcell.tl.factors import factors
from latentcell.tl.interpolate import interpolate
from latentcell.tl.leave_one_out import leave_one_out
from latentcell.tl.plane import reconstruction_kl
from latentcell.tl.screen import screen
from latentcell.tl.trade_off import trade_off

__all__ = [
    "Pairing", "arithmetic", "coupling", "embed", "factors", "interpolate", "leave_one_out", "recognised",
    "reconstruction_kl", "screen", "trade_off",
]  # fmt: skip
