"""Tables of cells or wells: delimited text and parquet, split into measurements and annotations."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from latentcell.errors import InputError, listed

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".parquet")
NAME_COLUMNS = ("cell", "cell_id", "name")
_MISSING = ("", "na", "n/a", "nan", "none", "null", "-nan", "#n/a", "<na>")
# CellProfiler and pycytominer mark annotations as Metadata_Plate, Image_Metadata_Plate, ...
_METADATA = re.compile(r"^(?:[A-Za-z]+_)?Metadata_(?=.)")
# pandas writes its row names under an empty header
_UNNAMED = "Unnamed: 0"


def read_table(path: str | Path) -> pd.DataFrame:
    """Read delimited text or parquet; numeric columns with missing values written as text become float with NaN.

    Text columns keep their text: a treatment called "None" or "NA" stays a treatment. Semicolons and decimal commas,
    as spreadsheet programs write them in many countries, are recognised.

    Raises
    ------
    InputError
        If the file is missing, of another kind, empty or unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no table {path}.")
    if not path.name.lower().endswith(TABLE_SUFFIXES):
        raise InputError(f"{path.name} is not a table that can be read; supported: {', '.join(TABLE_SUFFIXES)}.")
    try:
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)
    except ImportError as error:
        raise InputError(f"Reading {path.name} needs pyarrow: pip install 'latentcell[parquet]'.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text ({error.reason}); save it as 'CSV UTF-8'.") from error
    except Exception as error:
        raise InputError(f"The table {path} cannot be read: {error}.") from error
    if not len(table):
        raise InputError(f"The table {path} has no rows.")
    return with_numbers(table)


def _read_text(path: Path) -> pd.DataFrame:
    name = path.name.lower()
    delimiter, decimal = ("\t" if ".tsv" in name or ".txt" in name else ","), "."
    head = pd.read_csv(path, sep="\x01", nrows=20, header=None, dtype=str, encoding="utf-8-sig", quoting=csv.QUOTE_NONE)
    lines = head[0].astype(str).tolist()
    if delimiter == "," and lines[0].count(";") > lines[0].count(","):
        delimiter, decimal = ";", "," if any(re.search(r"\d,\d", line) for line in lines[1:]) else "."
    # only empty fields are missing here: what else stands for "missing" depends on the column (with_numbers)
    return pd.read_csv(
        path,
        sep=delimiter,
        decimal=decimal,
        keep_default_na=False,
        na_values=[""],
        low_memory=False,
        encoding="utf-8-sig",
    )


def with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Turn text columns that hold only numbers and words for "missing" into float columns with NaN."""
    converted: dict[str, pd.Series] = {}
    for column in table.columns:
        values = table[column]
        if values.dtype != object and not isinstance(values.dtype, pd.StringDtype):
            continue
        numbers = pd.to_numeric(values, errors="coerce")
        unparsed = numbers.isna()
        words = values[unparsed].dropna().astype(str).str.strip()
        if words.str.lower().isin(_MISSING).all() and not unparsed.all():
            converted[column] = numbers.astype(np.float64)
        elif (~unparsed).mean() > 0.5:
            other = [word for word in words.unique() if word.lower() not in _MISSING]
            logger.warning(
                "column %r is mostly numbers but holds text (%s): kept as an annotation, not as a measurement",
                column,
                ", ".join(map(repr, other[:3])),
            )
    return table.assign(**converted)


def profiles(
    table: pd.DataFrame, *, obs_columns: Sequence[str] | None = None, name_column: str | None = None
) -> AnnData:
    """Split a table into measured features and annotations.

    ``Metadata_*`` and ``Image_Metadata_*`` columns (stored without the prefix unless two would share a name), columns
    that are not numeric and `obs_columns` become ``obs``; every other column becomes a variable of ``X`` (float32).
    Missing values stay NaN.

    Parameters
    ----------
    obs_columns
        Numeric columns that annotate rather than measure: identifiers, doses, replicate numbers.
    name_column
        Column of unique names for ``obs_names``; by default ``cell``, ``cell_id`` or ``name`` where such an
        annotation is unique, else row numbers.

    Raises
    ------
    InputError
        If a named column does not exist or no measured column is left.
    """
    from anndata import AnnData

    wanted = [*(obs_columns or ()), *([name_column] if name_column else ())]
    absent = [column for column in wanted if column not in table.columns]
    if absent:
        raise InputError(f"The table has no column {', '.join(map(repr, absent))}; it has {listed(table.columns)}.")
    numeric = {c for c in table.columns if table[c].dtype.kind in "iuf"}
    annotations = [
        c for c in table.columns if c not in numeric or c in wanted or c == _UNNAMED or _METADATA.match(str(c))
    ]
    features = [c for c in table.columns if c not in set(annotations)]
    if not features:
        raise InputError(f"The table holds no measured (numeric) columns; it has {listed(table.columns)}.")
    obs = annotation(table[annotations], name_column=name_column)
    values = table[features].to_numpy(dtype=np.float32)
    return AnnData(X=values, obs=obs, var=pd.DataFrame(index=pd.Index(list(map(str, features)))))


def annotation(
    columns: pd.DataFrame, *, name_column: str | None = None, fallback: Sequence[str] | None = None
) -> pd.DataFrame:
    """Table for ``obs``: prefixes removed, indexed by `name_column`, a unique name-like column, or `fallback`.

    Raises
    ------
    InputError
        If `name_column` is absent, incomplete or not unique.
    """
    obs = columns.copy()
    names = _row_names(obs, name_column, fallback)
    if _UNNAMED in obs:
        obs = obs.drop(columns=_UNNAMED)
    short = [_METADATA.sub("", str(column)) for column in obs.columns]
    obs.columns = pd.Index([s if short.count(s) == 1 else str(c) for s, c in zip(short, obs.columns, strict=True)])
    obs.index = pd.Index(names)
    return obs


def _row_names(obs: pd.DataFrame, name_column: str | None, fallback: Sequence[str] | None) -> list[str]:
    if name_column is not None:
        if name_column not in obs:
            raise InputError(f"The table has no column {name_column!r}; it has {listed(obs.columns)}.")
        if obs[name_column].isna().any() or not obs[name_column].is_unique:
            repeated = obs.loc[obs[name_column].duplicated(), name_column].astype(str).unique()
            raise InputError(
                f"Column {name_column!r} cannot name the cells: "
                + (f"{listed(repeated)} occur more than once." if len(repeated) else "some values are missing.")
            )
        return [str(name) for name in obs[name_column]]
    candidates = [*NAME_COLUMNS, *(() if fallback is not None else (_UNNAMED,))]
    for candidate in candidates:
        if candidate in obs and obs[candidate].notna().all() and obs[candidate].is_unique:
            return [str(name) for name in obs[candidate]]
    return [str(name) for name in (fallback if fallback is not None else range(len(obs)))]
