"""Fits as processes of their own, so that none finds warm what another left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def run(python: str, module: str, *arguments: object) -> dict[str, Any]:
    """Run a module of the benchmarks and return the JSON of its last line; it sees latentcell's source."""
    command = [python, "-m", module, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": "src"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_kb() -> int:
    """Largest resident memory of this process so far (that of `getrusage` includes its parent's)."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
