"""The design of a screen: which cells make a replicate, which replicates a group, and what stands against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latentcell.cells.levels import column, level_rows, times
from latentcell.errors import InputError, listed
from latentcell.stats.relabelling import Layout, layout

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

ONE_BLOCK = "all"
_ARMS = 2  # treatments that a donor may have an arm of each of; more are a plate's
_PLATES = ("plate", "batch")
_INDIVIDUALS = ("donor", "patient", "individual", "subject", "animal", "mouse", "embryo")  # may be on several plates


@dataclass(frozen=True)
class Design:
    """Replicates of a screen.

    Attributes
    ----------
    wells
        One row per replicate (well, donor, embryo): ``block``, ``replicate``, ``group``, ``dose`` (NaN without),
        ``label`` (group and dose; what is tested), ``is_control``, ``n_cells``, and where known ``row`` and ``column``.
    well
        Row of `wells` of each cell, ``(n,)``.
    covariates
        Means over the cells of each replicate of what is to be accounted for, ``(n_wells, k)``; k may be 0.
    paired
        Whether the block is the replicate itself: an arm of a donor or embryo against its own control arm.
    """

    wells: pd.DataFrame
    well: NDArray[np.intp]
    covariates: NDArray[np.float64]
    paired: bool

    @property
    def control(self) -> NDArray[np.bool_]:
        """Which replicates are controls, ``(n_wells,)``."""
        return self.wells["is_control"].to_numpy(bool)

    @property
    def block(self) -> NDArray[Any]:
        """Block of each replicate, ``(n_wells,)``."""
        return self.wells["block"].to_numpy(object)

    @property
    def labels(self) -> list[str]:
        """What is tested: groups, or groups at each dose, in order of appearance."""
        return list(dict.fromkeys(self.wells.loc[~self.control, "label"]))

    @property
    def has_positions(self) -> bool:
        """Whether the places of the replicates on their blocks are known."""
        return "row" in self.wells

    def of(self, label: str) -> NDArray[np.bool_]:
        """Which replicates bear a label, ``(n_wells,)``."""
        return (self.wells["label"] == label).to_numpy()

    def layout(self, label: str, calibrating: NDArray[np.bool_]) -> Layout:
        """Rows of a label's replicates and of the controls `calibrating` in the same blocks."""
        return layout(self.of(label), calibrating, self.block)


def read_design(
    cells: AnnData,
    *,
    group: str,
    control: Any,
    replicate: str,
    block: str | None = None,
    dose: str | None = None,
    position: Sequence[str] | None = None,
    covariates: Sequence[str] = (),
) -> Design:
    """Read from ``cells.obs`` what the replicates of a screen are.

    Parameters
    ----------
    group, control
        Column with the perturbations and its level for controls.
    replicate
        Column with the unit of replication; its levels need to be unique within a block only.
    block
        Column with what is compared within: plate, batch, donor.
    dose
        Numeric column; every dose of a group is tested by itself.
    position
        Columns with row and column (numbers from 1), or one column with names such as B07; by default the names of the
        replicates where all are such names and their column is called well.
    covariates
        Columns to account for; numbers, or names (one-hot).

    Raises
    ------
    InputError
        If a column is missing or incomplete, no cell is a control, the replicate is the group or holds several, or
        replicate names recur across plates that were not named as blocks.
    """
    level_rows(cells, group, control)  # refuses an unknown control, naming the levels
    if replicate == group:
        raise InputError(
            f"replicate and group are the same column, {group!r}: name the column of wells, donors or embryos, of "
            "which several bear the same perturbation."
        )
    keys = {"group": group, "replicate": replicate} | ({} if block is None else {"block": block})
    cell = pd.DataFrame({name: _complete(cells, key) for name, key in keys.items()})
    if block is None:
        cell["block"] = ONE_BLOCK
    cell["is_control"] = False
    cell.loc[level_rows(cells, group, control), "is_control"] = True
    cell["dose"] = np.nan if dose is None else _doses(cells, dose, cell["is_control"].to_numpy())
    cell["label"] = cell["group"]
    if dose is not None:
        dosed = (~cell["is_control"]).to_numpy()
        cell.loc[dosed, "label"] = [
            f"{g} {d:.10g}" for g, d in zip(cell["group"][dosed], cell["dose"][dosed], strict=True)
        ]
    paired = block == replicate
    identity = ["block", "label"] if paired else ["block", "replicate"]
    if not paired:
        _refuse_mixed(cells, cell, replicate, block)
    well, first = pd.factorize(pd.MultiIndex.from_frame(cell[identity]))
    wells = cell.iloc[pd.Series(well).drop_duplicates().index].reset_index(drop=True)
    if position is not None:
        _add_positions(wells, cells, position, well)
    elif "well" in replicate.lower() and (named := _parsed(wells["replicate"])) is not None:
        wells["row"], wells["column"] = named
    wells["n_cells"] = np.bincount(well, minlength=len(first))
    if wells["is_control"].all():
        raise InputError(f"All cells are controls ({group!r} is {control!r}): there is no group to test.")
    return Design(wells, np.asarray(well, dtype=np.intp), _covariates(cells, covariates, well), paired)


def rank_within(well: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many cells of the same replicate come before each cell, ``(n,)``."""
    return np.asarray(pd.Series(well).groupby(well).cumcount(), dtype=np.intp)


def _complete(cells: AnnData, key: str) -> NDArray[Any]:
    values = column(cells, key)
    empty = (values.isna() | (values.astype(str) == "")).to_numpy()
    if empty.any():
        named = cells.obs_names[empty]
        raise InputError(
            f"obs[{key!r}] is empty for {len(named)} cells ({listed(named)}): it is not known to which {key} they "
            "belong. Fill it in or leave these cells out."
        )
    return values.astype(str).to_numpy(object)


def _doses(cells: AnnData, key: str, is_control: NDArray[np.bool_]) -> NDArray[np.float64]:
    doses = times(cells, key)
    if doses is None:
        raise InputError(f"obs[{key!r}] holds no numbers; doses must be numeric, in any one unit.")
    missing = ~np.isfinite(doses) & ~is_control
    if missing.any():
        raise InputError(
            f"obs[{key!r}] is empty or infinite for {missing.sum()} treated cells ({listed(cells.obs_names[missing])})."
        )
    return np.where(is_control, np.nan, doses)


def _refuse_mixed(cells: AnnData, cell: pd.DataFrame, replicate: str, block: str | None) -> None:
    """Refuse replicates that hold several groups, and names that recur across plates nobody mentioned."""
    n_labels = cell.groupby(["block", "replicate"], sort=False)["label"].nunique()
    mixed = n_labels[n_labels > 1]
    advice = "" if block is not None else f"If names of {replicate!r} recur across plates, name those with block. "
    if len(mixed):
        where = mixed.index[0]
        within = cell[(cell["block"] == where[0]) & (cell["replicate"] == where[1])]["label"].unique()
        if len(within) > _ARMS:
            advice += (
                f"A replicate is one well, donor or embryo with one treatment; if {replicate!r} has more, name another."
            )
        else:
            advice += f"If every {replicate} has an arm of each, give block={replicate!r} too."
        place = "" if block is None else f" of {block} {where[0]!r}"
        raise InputError(
            f"{len(mixed)} replicates hold cells of several groups, such as {where[1]!r}{place} ({listed(within)}). "
            f"{advice}"
        )
    if block is not None or any(word in replicate.lower() for word in _INDIVIDUALS):
        return
    for name in cells.obs:
        if any(word in str(name).lower() for word in _PLATES) and name != replicate:
            spread = pd.Series(cell["replicate"]).groupby(cells.obs[name].astype(str).to_numpy()).unique().explode()
            repeated = spread[spread.duplicated()]
            if len(repeated):
                raise InputError(
                    f"{replicate} {repeated.iloc[0]!r} occurs at several levels of {str(name)!r}, so its cells would "
                    f"be taken for one replicate. Give block={str(name)!r}, or, if it is one and the same, rename "
                    f"{str(name)!r}."
                )


def _parsed(names: pd.Series[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Row and column, from 1, of places such as B07; None where a name is none."""
    text = names.astype(str).str.extract(r"^([A-Za-z]{1,2})0*([1-9]\d?)$")
    if text.isna().any(axis=None):
        return None
    letters = [sum(26**i * (ord(c) - 64) for i, c in enumerate(reversed(each.upper()))) for each in text[0]]
    return np.asarray(letters, np.float64), text[1].to_numpy(np.float64)


def _add_positions(wells: pd.DataFrame, cells: AnnData, position: Sequence[str], well: NDArray[np.intp]) -> None:
    first = pd.Series(well).drop_duplicates().index
    named = [position] if isinstance(position, str) else list(position)
    if len(named) == 1:
        names = column(cells, named[0]).astype(str).iloc[first]
        places = _parsed(names)
        if places is None:
            example = next(name for name in names if _parsed(pd.Series([name])) is None)
            raise InputError(
                f"obs[{named[0]!r}] holds {example!r}, which is no place on a plate: write row letter and column "
                "number, such as B07, or name two columns, row and column."
            )
        wells["row"], wells["column"] = places
        return
    if len(named) != 2:
        raise InputError(f"position names {len(named)} columns; give one with names such as B07, or row and column.")
    for name, key in zip(("row", "column"), named, strict=True):
        numbers = times(cells, key)
        if numbers is None or np.isnan(numbers[first]).any():
            raise InputError(f"obs[{key!r}] does not hold a number for every cell; rows and columns count from 1.")
        wells[name] = numbers[first]


def _covariates(cells: AnnData, names: Sequence[str], well: NDArray[np.intp]) -> NDArray[np.float64]:
    """Means over cells of numeric columns and of one-hot levels, by replicate."""
    parts = []
    for name in [names] if isinstance(names, str) else names:
        numbers = times(cells, name)
        if numbers is None:
            numbers = pd.get_dummies(pd.Series(_complete(cells, name))).to_numpy(np.float64)[:, 1:]
        if np.isnan(numbers).any():
            raise InputError(f"obs[{name!r}] has empty cells; a covariate must be known for every cell.")
        parts.append(pd.DataFrame(numbers).groupby(well).mean().to_numpy())
    n_wells = int(well.max()) + 1
    return np.concatenate(parts, axis=1) if parts else np.empty((n_wells, 0))
