"""What the benchmarks share: where the data lie and how results are written.

Benchmarks run from the root of the project: ``python -m benchmarks.interpolate.rna``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def data_dir() -> Path:
    """LATENTCELL_DATA, else ../shared/data beside the project."""
    named = os.environ.get("LATENTCELL_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        sys.exit(f"no development data at {folder}; set LATENTCELL_DATA")
    return folder


def write(table: pd.DataFrame, name: str) -> None:
    """Print a table and keep it as CSV beside the documentation, under ``<question>/<name>``."""
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print(f"wrote {path}")
