"""Compiled inner loops of models of counts, and the one switch between them and plain torch.

The compiler (numba) comes as a wheel and needs no other; what it makes is kept on disk, so that the first fit after an
install takes some seconds longer and no other. Without it, on a GPU, and where the environment variable
``LATENTCELL_KERNELS`` is ``off``, the same numbers come from plain torch operators.
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from importlib.util import find_spec

import torch


def in_use(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether compiled loops serve tensors of a dtype on `device`."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and os.environ.get("LATENTCELL_KERNELS", "auto") != "off"
        and _ready()
    )


def share_threads() -> None:
    """Let compiled loops use as many threads as torch does."""
    n = torch.get_num_threads()
    if getattr(_shared, "threads", None) != n:
        from numba import config, set_num_threads

        set_num_threads(min(n, int(vars(config)["NUMBA_NUM_THREADS"])))
        _shared.threads = n


# numba keeps the number for each thread of Python
_shared = threading.local()


@lru_cache(maxsize=1)
def _ready() -> bool:
    if find_spec("numba") is None:
        return False
    import numba

    # both use one pool of threads, and numba sets its size to the number of cores when it first looks
    before = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(before)
    return True
