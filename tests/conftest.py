"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real development data: LATENTCELL_DATA, else ../shared/data; tests that need it skip without."""
    named = os.environ.get("LATENTCELL_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}; set LATENTCELL_DATA")
    return folder
