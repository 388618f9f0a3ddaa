"""What `info` reports: the summary of cells and the problems found in them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from latentcell.cells.images import Modality

_MAX_LEVELS = 20
_EXAMPLES = 3


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes
    ----------
    severity
        ``"error"``: the cells cannot be fitted as they are; ``"warning"``: they can, but read this.
    what
        What was found, in one clause.
    where
        The first cells, variables, channels or files concerned.
    advice
        What to do.
    """

    severity: Literal["error", "warning"]
    what: str
    where: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        place = f" ({', '.join(self.where)})" if self.where else ""
        return f"{self.what}{place}. {self.advice}"


@dataclass(frozen=True)
class Report:
    """Summary of cells; ``str()`` is readable text, `to_dict` can be stored as JSON.

    Attributes
    ----------
    shape
        Shape of one cell's measurement, ``(C, H, W)``, ``(C, Z, H, W)`` or ``(G,)``; None where crops differ.
    value_range
        Lowest and highest finite value by channel name, or under ``"all"`` for a matrix.
    sparsity
        Share of zeros in a matrix, None for images.
    obs
        For each column ``{"levels": {...}, "n_levels": int}`` (the 20 most frequent) or
        ``{"low": float, "high": float}``, and ``"missing"`` (infinite values included).
    """

    source: str
    modality: Modality
    n_cells: int
    n_vars: int
    shape: tuple[int, ...] | None
    dtype: str
    value_range: dict[str, tuple[float, float]] = field(default_factory=dict)
    sparsity: float | None = None
    layers: tuple[str, ...] = ()
    obs: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and text."""
        plain = asdict(self)
        plain["shape"] = list(self.shape) if self.shape else None
        plain["layers"] = list(self.layers)
        plain["value_range"] = {name: list(pair) for name, pair in self.value_range.items()}
        plain["problems"] = [{**asdict(problem), "where": list(problem.where)} for problem in self.problems]
        return plain

    def __str__(self) -> str:
        size = " x ".join(map(str, self.shape)) if self.shape else "several sizes"
        lines = [f"{self.source}: {self.n_cells:,} cells, {self.modality}, each {size}, {self.dtype}"]
        lines += [
            f"  {name}: {low:.4g} to {high:.4g}" for name, (low, high) in list(self.value_range.items())[:_MAX_LEVELS]
        ]
        if self.sparsity is not None:
            lines.append(f"  zeros: {self.sparsity:.1%}")
        if self.layers:
            lines.append(f"  layers: {', '.join(self.layers)}")
        if self.obs:
            lines.append("annotations (obs):")
            lines += [f"  {name}: {_described(column)}" for name, column in self.obs.items()]
        lines.append("problems:" if self.problems else "no problems found")
        lines += [f"  {problem.severity}: {problem}" for problem in self.problems]
        return "\n".join(lines)


def summarised(obs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Levels or range of every column, as `Report.obs` holds them."""
    summary: dict[str, dict[str, Any]] = {}
    for name, column in obs.items():
        numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        if numeric:
            column = column.replace([np.inf, -np.inf], np.nan)
        described: dict[str, Any] = {"missing": int(column.isna().sum())}
        if numeric and column.nunique() > _MAX_LEVELS:
            described |= {"low": float(column.min()), "high": float(column.max())}
        else:
            counts = column.astype(str)[column.notna()].value_counts()
            levels = {str(level): int(n) for level, n in counts.head(_MAX_LEVELS).items()}
            described |= {"levels": levels, "n_levels": len(counts)}
        summary[str(name)] = described
    return summary


def _described(column: dict[str, Any]) -> str:
    missing = f", {column['missing']} missing" if column["missing"] else ""
    if "low" in column:
        return f"{column['low']:.4g} to {column['high']:.4g}{missing}"
    if column["n_levels"] > _MAX_LEVELS:
        examples = ", ".join(list(column["levels"])[:_EXAMPLES])
        return f"{column['n_levels']:,} different values, for example {examples}{missing}"
    return ", ".join(f"{level} ({n:,})" for level, n in column["levels"].items()) + missing
