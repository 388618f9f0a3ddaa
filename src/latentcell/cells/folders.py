"""Which image files of a folder are cells, and which row of a table describes each."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from latentcell.cells.image_files import IMAGE_SUFFIXES, image_size
from latentcell.cells.tables import TABLE_SUFFIXES, read_table
from latentcell.errors import InputError, listed

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image_file", "image", "file", "path", "filename", "file_name")
LABEL_COLUMNS = ("labels", "label_file", "labels_file", "mask", "mask_file", "masks")
_LABEL_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")


@dataclass(frozen=True)
class CropFolder:
    """Image files of a folder in the order of their table, one row per file.

    ``labels`` holds the label image of each file where the files are whole fields, else None.
    """

    files: list[Path]
    table: pd.DataFrame
    labels: list[Path] | None
    names: list[str]


def list_crops(folder: Path, table: pd.DataFrame | None = None) -> CropFolder:
    """Match the image files of a folder (sub-folders included) with the rows of a table.

    Without `table`, the only table file of the folder is used; without one, every image file is a cell and
    ``obs["folder"]`` names its sub-folder. The column of files is the one whose values name existing images: by
    relative path, else file name, else file name without suffix. A second column named like ``labels`` or ``mask``
    makes the files whole fields.

    Raises
    ------
    InputError
        If there are no images, several tables, no column of files, or files that do not exist.
    """
    images = _files(folder, _LABEL_SUFFIXES)
    if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in images):
        raise InputError(
            f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); a table alone is read by its own path."
        )
    if table is None:
        found = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(TABLE_SUFFIXES)]
        found = [path for path in found if not path.name.startswith(".")]
        if len(found) > 1:
            raise InputError(
                f"{folder} holds {len(found)} tables ({listed([p.name for p in found])}): name the one to use "
                "with table (--table)."
            )
        table = read_table(found[0]) if found else None
    if table is None:
        files = [path for path in images if path.suffix.lower() in IMAGE_SUFFIXES]
        parents = [path.parent.relative_to(folder).as_posix() for path in files]
        described = (
            pd.DataFrame({"folder": parents}) if set(parents) != {"."} else pd.DataFrame(index=range(len(files)))
        )
        return CropFolder(files, described, None, _file_names(files, folder))
    known = _Known(images, folder)
    label_column = next((c for c in table if str(c).lower() in LABEL_COLUMNS and known.named_by(table[c])), None)
    image_column = _image_column(table.drop(columns=[label_column] if label_column else []), known, folder)
    files = known.resolve(table[image_column], image_column)
    labels = known.resolve(table[label_column], str(label_column)) if label_column else None
    left_out = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in images) - len({*files, *(labels or ())})
    if left_out:
        logger.warning("%d images of %s are not named in the table and are left out", left_out, folder)
    return CropFolder(files, table.reset_index(drop=True), labels, _file_names(files, folder))


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _file_names(files: Sequence[Path], folder: Path) -> list[str]:
    stems = [path.name.removesuffix(path.suffix).removesuffix(".ome") for path in files]
    if len(set(stems)) == len(stems):
        return stems
    return [path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path) for path in files]


class _Known:
    """Image files of a folder, found by relative path, file name or stem where that is unambiguous."""

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        found: dict[str, set[Path]] = defaultdict(set)
        for path in files:
            for key in (path.relative_to(folder).as_posix(), path.name, path.stem, path.stem.removesuffix(".ome")):
                found[key].add(path)
            if path.stem.isdigit():
                # a table that was read as numbers has lost leading zeros
                found[str(int(path.stem))].add(path)
            found[str(path.resolve())].add(path)
        self.by_key: Mapping[str, Path] = {key: next(iter(paths)) for key, paths in found.items() if len(paths) == 1}

    def find(self, value: object) -> Path | None:
        key = str(value).strip().replace("\\", "/").removeprefix("./")
        return self.by_key.get(key)

    def count(self, column: pd.Series) -> int:
        return len({self.find(value) for value in column} - {None})

    def named_by(self, column: pd.Series) -> bool:
        suffixed = column.astype(str).str.lower().str.endswith(_LABEL_SUFFIXES).all()
        return bool(suffixed) or self.count(column) == len(column)

    def resolve(self, column: pd.Series, name: str) -> list[Path]:
        files = [self.find(value) for value in column]
        missing = [str(value) for value, path in zip(column, files, strict=True) if path is None]
        if missing:
            raise InputError(
                f"Column {name!r} of the table names {len(missing)} of {len(files)} files that do not exist in the "
                f"folder (or exist more than once): {listed(missing)}. Correct the table or add the files."
            )
        return [path for path in files if path is not None]


def _image_column(table: pd.DataFrame, known: _Known, folder: Path) -> str:
    scores = {str(column): known.count(table[column]) for column in table.columns}
    best = max(scores.values(), default=0)
    if best == 0:
        raise InputError(
            f"No column of the table names the images of {folder}; it has {listed(table.columns)}. One column must "
            "hold each image's path relative to the folder, its file name, or its name without suffix."
        )
    candidates = [column for column, score in scores.items() if score == best]
    return min(candidates, key=lambda c: IMAGE_COLUMNS.index(c) if c in IMAGE_COLUMNS else len(IMAGE_COLUMNS))


def survey(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by size and dtype (``"2 x 64 x 64 uint8"``) or ``"unreadable"``, the most frequent first."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        try:
            shape, dtype = image_size(path)
            groups[f"{' x '.join(map(str, shape))} {dtype}"].append(path)
        except InputError:
            groups["unreadable"].append(path)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def sizes_message(groups: Mapping[str, Sequence[Path]]) -> str:
    """How many files there are of each size, and the first names of the rarer ones."""
    parts = [f"{len(paths)} {'' if size == 'unreadable' else 'of '}{size}" for size, paths in groups.items()]
    rare = [path.name for paths in list(groups.values())[1:] for path in paths]
    return f"Images must all have one size and dtype, found {', '.join(parts)}; the rarer are {listed(rare)}."
