"""Gene sets: reading them, and whether the genes of a set move together, judged by permuted cells.

Genes of a set are correlated, so that by chance alone they move together far more often than genes drawn at random:
a p that permutes genes, or takes them as independent, calls such sets significant (Goeman and Buhlmann 2007; Wu and
Smyth 2012). Here the labels of cells were permuted, which leaves the genes as they are, and the score of each set is
compared with its scores under those permutations.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control, rankdata

from latentcell.errors import InputError, listed

Array = NDArray[np.float64]

SMALLEST, LARGEST = 10, 500
"""Genes that a set must have, and may have, among those measured."""
N_LEADING = 5
"""Genes named for each set."""

_FEW = 0.1  # share of the genes found without regard to case: exact matches below are chance
_NEIGHBOURS = 1.0  # rank sums this close may differ by rounding, which exchanges genes of nearly one statistic
_BLOCK_VALUES = 2_000_000

logger = logging.getLogger("latentcell")


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Gene sets of a GMT file: per line a name, a description and the genes, separated by tabs.

    Raises
    ------
    InputError
        If the file is missing, empty or not such a file.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a file of gene sets (GMT, a text file): {error}.") from error
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, *genes = [field.strip() for field in line.split("\t")] + [""] * ("\t" not in line)
        genes = list(dict.fromkeys(gene for gene in genes if gene))
        if not name or not genes:
            raise InputError(
                f"Line {number} of {file} is not a gene set: a name, a description and at least one gene, separated by "
                f"tabs, are needed. It begins with {line[:40]!r}."
            )
        if name in sets:
            raise InputError(
                f"Line {number} of {file} names the gene set {name!r} a second time; rename or remove one."
            )
        sets[name] = genes
    if not sets:
        raise InputError(f"{file} is empty: it holds no gene set.")
    return sets


def enrichment(
    statistic: ArrayLike,
    permuted: NDArray[Any],
    names: Sequence[str] | NDArray[Any],
    sets: Mapping[str, Sequence[str]],
    *,
    smallest: int = SMALLEST,
    largest: int = LARGEST,
) -> pd.DataFrame:
    """Gene sets whose genes rank higher, or lower, than the other genes.

    The score is the Wilcoxon rank sum of a set's genes among all genes, by signed statistic, minus its mean over
    permutations, in standard deviations that it would have were genes independent. They are not, and p does not take
    them to be: it is the share of permutations with a score as far from 0, ``(1 + #{>=}) / (1 + B)``.

    Parameters
    ----------
    statistic
        Studentised statistic of each gene, ``(G,)``.
    permuted
        The same under each permutation of the cells, ``(B, G)``; see `covariance.covariance_test`.
    names
        Name of each gene, ``(G,)``.
    sets
        Genes of each set by its name. Where almost none is found as written, case is disregarded: human names are
        upper-case, mouse names are not.
    smallest, largest
        Sets with fewer or more genes among those measured are left out.

    Returns
    -------
    DataFrame
        One row per set, the smallest p first: ``gene_set``, ``n_genes`` measured, ``score``, ``p``, ``q`` (Benjamini
        and Hochberg 1995), ``direction`` (``"up"`` or ``"down"``) and ``leading``, the genes that moved furthest in it.
    """
    observed, null, genes = _checked(statistic, permuted, names)
    members = usable_sets(genes, sets, smallest=smallest, largest=largest)
    size = np.array([len(found) for found in members.values()])
    every = np.hstack([_rank_sums(observed[None], members), _rank_sums(null, members)])
    # statistics of rarely detected genes are skewed, so that sets of such genes do not rank in the middle by chance
    every -= every.mean(axis=1, keepdims=True)
    sums = every[:, 0]
    p = np.mean(np.abs(every) >= np.abs(sums)[:, None] - _NEIGHBOURS, axis=1)
    table = pd.DataFrame(
        {
            "gene_set": list(members),
            "n_genes": size,
            "score": sums / np.sqrt(size * (len(genes) - size) * (len(genes) + 1) / 12),
            "p": p,
            "q": false_discovery_control(p),
            "direction": np.where(sums >= 0, "up", "down"),
            "leading": [
                _leading(observed, genes, found, up=total >= 0)
                for found, total in zip(members.values(), sums, strict=True)
            ],
        }
    )
    order = np.lexsort((-np.abs(table["score"]), table["p"]))
    return table.iloc[order].reset_index(drop=True)


def usable_sets(
    genes: list[str], sets: Mapping[str, Sequence[str]], *, smallest: int = SMALLEST, largest: int = LARGEST
) -> dict[str, NDArray[np.intp]]:
    """Columns of the measured genes of each set that has neither too few nor too many of them.

    Raises
    ------
    InputError
        If there is none.
    """
    kept = {name: found for name, found in _members(genes, sets).items() if smallest <= len(found) <= largest}
    kept = {name: found for name, found in kept.items() if len(found) < len(genes)}
    if not kept:
        raise InputError(
            f"None of the {len(sets)} gene sets has {smallest} to {largest} genes among the {len(genes)} measured; "
            "change the smallest or largest size, or measure more genes."
        )
    return kept


def _rank_sums(statistics: NDArray[Any], members: Mapping[str, NDArray[np.intp]]) -> Array:
    """Sum of the ranks of each set's genes, less the middle rank each, in each row of ``(b, G)``: ``(n_sets, b)``."""
    n_genes = statistics.shape[1]
    columns = np.concatenate(list(members.values()))
    starts = np.cumsum([0, *(len(found) for found in members.values())])
    chosen = csr_array((np.ones(len(columns)), columns, starts), shape=(len(members), n_genes))
    sums = np.empty((len(members), len(statistics)))
    step = max(1, _BLOCK_VALUES // n_genes)
    for start in range(0, len(statistics), step):
        rows = slice(start, start + step)
        sums[:, rows] = chosen @ (rankdata(statistics[rows], axis=1) - (n_genes + 1) / 2).T
    return sums


def _leading(statistic: NDArray[Any], genes: list[str], found: NDArray[np.intp], *, up: bool) -> str:
    """Genes that moved furthest in the direction of their set."""
    moved = statistic[found] if up else -statistic[found]
    furthest = np.argsort(-moved, kind="stable")[:N_LEADING]
    return ", ".join(genes[found[i]] for i in furthest if moved[i] > 0)


def _members(genes: list[str], sets: Mapping[str, Sequence[str]]) -> dict[str, NDArray[np.intp]]:
    """Columns of the measured genes of each set."""
    if not sets:
        raise InputError("There are no gene sets to test; a GMT file holds some.")
    wanted = {gene for each in sets.values() for gene in each}
    folded = {gene.upper() for gene in wanted}
    n_exact = len(wanted.intersection(genes))
    n_folded = len(folded.intersection(gene.upper() for gene in genes))
    if n_folded == 0:
        raise InputError(
            f"No gene of the gene sets was measured. The sets name {listed(sorted(wanted), 3)}; the measured genes are "
            f"{listed(genes, 3)}. Both must be names of the same kind, such as gene symbols."
        )
    ignore_case = n_exact < _FEW * n_folded
    if ignore_case:
        logger.info(
            "%d genes of the gene sets are found as written, %d without regard to case: case is disregarded",
            n_exact,
            n_folded,
        )
    columns: dict[str, list[int]] = {}
    for i, gene in enumerate(genes):
        columns.setdefault(gene.upper() if ignore_case else gene, []).append(i)
    found = {}
    for name, each in sets.items():
        keys = dict.fromkeys(gene.upper() if ignore_case else gene for gene in each)
        found[name] = np.array([i for key in keys for i in columns.get(key, [])], dtype=np.intp)
    return found


def _checked(
    statistic: ArrayLike, permuted: NDArray[Any], names: Sequence[str] | NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
    """Statistics in one precision, so that equal ones tie, and names as strings."""
    observed, null = np.asarray(statistic, dtype=np.float32), np.asarray(permuted, dtype=np.float32)
    genes = [str(name) for name in names]
    if observed.shape != (len(genes),) or null.ndim != 2 or null.shape[1] != len(genes):
        raise InputError(
            f"There are {len(genes)} gene names, statistics of shape {observed.shape} and permuted statistics of shape "
            f"{null.shape}; one statistic per gene, and permutations x genes, are needed."
        )
    if len(null) == 0:
        raise InputError(
            "There are no permuted statistics to judge gene sets by; compute them with keep_permuted=True."
        )
    if not (np.isfinite(observed).all() and np.isfinite(null).all()):
        raise InputError("Some statistics are missing or infinite; leave out the genes concerned.")
    return observed, null, genes
