"""How many CPU threads to use."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path

# beyond this a model of cells gains nothing
_MOST = 16
# seconds over which a machine is looked at; again and for longer where it seems busy, which may be a moment's work
_LOOKS = (0.1, 0.4)


@lru_cache(maxsize=1)
def free_threads() -> int:
    """CPU threads that this process may use and that the machine has free, between 1 and 16.

    Threads that wait for a core that others use hold up all the rest: two threads on a machine with no core free train
    at half the speed of one. The answer is found once per process, so that fits in one process repeat exactly.
    """
    allowed = min(allowed_threads(), _MOST)
    free = 1
    for seconds in _LOOKS:
        before = _idle_and_total()
        if allowed == 1 or before is None:
            return allowed
        time.sleep(seconds)
        after = _idle_and_total()
        if after is None or after[1] <= before[1]:
            return allowed
        idle_share = (after[0] - before[0]) / (after[1] - before[1])
        # this process was asleep, so the core it runs on counts among the idle
        free = max(1, min(allowed, round(idle_share * (os.cpu_count() or allowed))))
        if free == allowed:
            break
    return free


def allowed_threads() -> int:
    """CPU threads that affinity and container limits leave to this process."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, int(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed  # no container limit


def _idle_and_total() -> tuple[int, int] | None:
    """Clock ticks that all cores spent idle and altogether since the machine started; None where not told."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError, IndexError):
        return None
    return ticks[3] + ticks[4], sum(ticks[:8])
