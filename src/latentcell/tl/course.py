"""The way from one population to another: cells of both ends, how they are paired, and where they are at each step."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from latentcell.cells.levels import Level, column, level_rows, times
from latentcell.errors import InputError, listed
from latentcell.stats.curves import turn
from latentcell.stats.transport import displace, pair, shift
from latentcell.tl.evaluate import log_normalised

if TYPE_CHECKING:
    from latentcell.model.vae import VAE

Method = Literal["ot", "random", "centroid"]
Path = Literal["auto", "linear", "curve", "slerp", "shift", "shift_source", "shift_target", "geodesic"]
Index = NDArray[np.intp]
Floats = NDArray[np.floating]

MISSING = "(missing)"
_BLOCK = 1_000  # cells whose counts are dense at once


@dataclass(frozen=True)
class Pairing:
    """How cells of the two ends are matched.

    Attributes
    ----------
    method
        ``"ot"`` (optimal transport between latent positions), ``"random"``, or ``"centroid"``: every cell at the mean
        position of its end, which makes one cell and no population; for comparison only.
    within
        Column of ``obs`` (cell type, donor): only cells of the same level are paired. Levels that one end lacks are
        left out, with a warning; the others keep the average of their shares in the two ends.
    growth
        Numeric column of ``obs``: descendants that a source cell has at the target, up to a factor.
    unbalanced
        Lets cells gain or lose mass, for proliferation and death that nobody counted; see `latentcell.stats.pair`.
    """

    method: Method = "ot"
    within: str | None = None
    growth: str | None = None
    unbalanced: float | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"pairing={self.method!r} is unknown; choose one of {', '.join(get_args(Method))}.")
        if self.method != "ot" and (self.growth is not None or self.unbalanced is not None):
            raise InputError(f"Growth and unbalanced masses need pairing 'ot', not {self.method!r}.")


@dataclass(frozen=True)
class Population:
    """Cells of one level: their rows, latent positions (n, d) and, for counts, library sizes (n,)."""

    rows: Index
    z: Floats
    library_size: Floats | None

    @classmethod
    def of(cls, cells: AnnData, model: VAE, rows: Index) -> Population:
        """Encode the cells of `rows`."""
        sizes = None
        if model.modality_ == "counts":
            blocks = np.array_split(rows, -(-len(rows) // _BLOCK))
            sizes = np.concatenate([np.asarray(model.measurements(cells[block]).sum(axis=1)) for block in blocks])
        return cls(rows, np.asarray(model.encode(cells[rows]).mu, dtype=np.float64), sizes)

    def take(self, index: Index) -> Population:
        """Population of some of the cells, by their place in this one."""
        sizes = None if self.library_size is None else self.library_size[index]
        return Population(self.rows[index], self.z[index], sizes)

    def gathered(self) -> Population:
        """Return the same cells, all at their mean position."""
        return replace(self, z=np.broadcast_to(self.z.mean(axis=0), self.z.shape))


@dataclass(frozen=True)
class Pairs:
    """Paired cells, row by row, and the difference between the means of their two populations ``(n, d)``."""

    source: Population
    target: Population
    delta: Floats

    def __len__(self) -> int:
        return len(self.source.rows)

    @property
    def gathered(self) -> bool:
        """Whether all cells stand at one place per end, as pairs of centroids do."""
        return len(self) > 1 and bool((self.source.z == self.source.z[0]).all())

    def take(self, index: Index) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.source.take(index), self.target.take(index), self.delta[index])


class Knots(NamedTuple):
    """Known levels of a time course, in ascending order of their time.

    Attributes
    ----------
    places
        Time relative to the ends, source 0 and target 1, ``(k,)``.
    z
        Mean latent position ``(k, d)``.
    measured
        Mean in which progress and bend are found ``(k, p)``: of the comparable measurements, for images of the
        latent positions.
    """

    places: Floats
    z: Floats
    measured: Floats


@dataclass(frozen=True)
class Course:
    """The two ends, the path between them, and the model that decodes what lies on it.

    Attributes
    ----------
    knots
        For the path ``"curve"``: the known levels.
    library_size
        Total counts of decoded cells; by default the geometric interpolation of the two paired cells' own.
    """

    cells: AnnData
    model: VAE
    source: Population
    target: Population
    path: Path = "linear"
    knots: Knots | None = None
    library_size: float | None = None

    def __post_init__(self) -> None:
        if self.path not in get_args(Path):
            raise InputError(f"path={self.path!r} is unknown; choose one of {', '.join(get_args(Path))}.")

    def pairs(self, pairing: Pairing, n_pairs: int | None, rng: np.random.Generator) -> Pairs:
        """Pair cells of the two ends."""
        n_pairs = max(len(self.source.rows), len(self.target.rows)) if n_pairs is None else n_pairs
        if n_pairs < 1:
            raise InputError(f"n_cells={n_pairs}: ask for at least one cell.")
        strata = self._strata(pairing.within)
        numbers = _apportioned(np.array([share for _, _, share in strata]), n_pairs)
        found = [self._matched(a, b, pairing, int(n), rng) for (a, b, _), n in zip(strata, numbers, strict=True) if n]
        i, j = (np.concatenate(indices) for indices in zip(*found, strict=True))
        order = rng.permutation(len(i)) if len(found) > 1 else np.arange(len(i))
        return self.matched(i[order], j[order], pairing)

    def matched(self, i: Index, j: Index, pairing: Pairing) -> Pairs:
        """Pairs of given cells, by their places in source and target."""
        source, target = self.source, self.target
        delta = np.broadcast_to(target.z.mean(axis=0) - source.z.mean(axis=0), (len(i), source.z.shape[1])).copy()
        if pairing.within is not None:
            values = labels(self.cells, pairing.within)
            a, b = values[source.rows], values[target.rows]
            for level in np.unique(a[i]):
                delta[a[i] == level] = target.z[b == level].mean(axis=0) - source.z[a == level].mean(axis=0)
        if pairing.method == "centroid":
            source, target = source.gathered(), target.gathered()
        return Pairs(source.take(i), target.take(j), delta)

    def positions(self, pairs: Pairs, t: float) -> NDArray[np.float32]:
        """Latent positions ``(n, d)`` of the pairs at `t`."""
        a, b = pairs.source.z, pairs.target.z
        if self.path in ("shift", "shift_source", "shift_target"):
            side: Any = self.path.removeprefix("shift").removeprefix("_") or "both"
            return shift(a, b, t, pairs.delta, side).astype(np.float32)
        if self.path == "geodesic":
            return self.model.geodesic(a, b, t, batch=self.batch(pairs))
        progress, bend = self._turn(t)
        line = displace(a, b, progress, "slerp" if self.path == "slerp" else "linear")
        return (line if bend is None or self.knots is None else line + bend @ self.knots.z).astype(np.float32)

    def moved(self, pairs: Pairs, t: float) -> Floats:
        """Measurements of the paired cells themselves, averaged along the path, ``(n, F)``, without the decoder.

        Counts are averaged as log1p of counts scaled to `depth`. The averages of a path that starts from one end only
        are those of the line.
        """
        progress, bend = self._turn(t)
        blocks = []
        for rows in np.array_split(np.arange(len(pairs)), -(-len(pairs) // _BLOCK)):
            a, b = (self.comparable(end.rows[rows]) for end in (pairs.source, pairs.target))
            line = (1 - progress) * a + progress * b
            blocks.append(line if bend is None or self.knots is None else line + bend @ self.knots.measured)
        return np.concatenate(blocks).astype(np.float32)

    def comparable(self, rows: Index) -> Floats:
        """Measurements of cells on the scale on which they may be averaged, ``(n, F)``: counts as log-normalised."""
        measured = self.model.measurements(self.cells[rows])
        return log_normalised(measured, self.depth) if self.model.modality_ == "counts" else measured

    def mean_measured(self, rows: Index) -> Floats:
        """Mean of the comparable measurements of cells, ``(F,)``."""
        blocks = np.array_split(rows, -(-len(rows) // _BLOCK))
        return np.asarray(sum(self.comparable(block).sum(axis=0, dtype=np.float64) for block in blocks) / len(rows))

    @property
    def depth(self) -> float:
        """Median total counts of the cells of both ends; 1 where cells have none."""
        sizes = [end.library_size for end in (self.source, self.target) if end.library_size is not None]
        return float(np.median(np.concatenate(sizes))) if sizes else 1.0

    def _turn(self, t: float) -> tuple[float, Floats | None]:
        """Progress from source to target at `t`, and weights of the known levels that bend the line."""
        if self.path != "curve" or self.knots is None:
            return t, None
        found = turn(self.knots.places, self.knots.measured, t)
        return float(found.line[self.knots.places == 1.0][0]), found.bend

    def batch(self, pairs: Pairs) -> Any:
        """Batch in which each pair is decoded: that of its source cell."""
        if self.model.batch_key is None:
            return None
        return self.cells.obs[self.model.batch_key].to_numpy()[pairs.source.rows]

    def decode(
        self,
        pairs: Pairs,
        t: float,
        *,
        z: Floats | None = None,
        noise: np.random.Generator | None = None,
        sharp: bool = False,
    ) -> Floats:
        """Mean of the cells at `t`, or one draw when given a generator: of the likelihood, or sharp.

        `z` are their positions there where these are known, which on a geodesic take long to find.
        """
        options: dict[str, Any] = {"batch": self.batch(pairs)}
        sizes = pairs.source.library_size, pairs.target.library_size
        if self.library_size is not None:
            options["library_size"] = self.library_size
        elif sizes[0] is not None and sizes[1] is not None:
            options["library_size"] = np.maximum(sizes[0], 1.0) ** (1 - t) * np.maximum(sizes[1], 1.0) ** t
        if noise is not None:
            options |= {"sharp": True} if sharp else {"noise": True}
        z = self.positions(pairs, t) if z is None else z
        return np.asarray(self.model.decode(z, rng=noise, **options), dtype=np.float32)

    def reconstruct(
        self, population: Population, *, noise: np.random.Generator | None = None, sharp: bool = False
    ) -> Floats:
        """Decode cells where they are, at their own batch and library size; as a mean or one draw."""
        still = Pairs(population, population, np.zeros_like(population.z))
        return replace(self, path="linear", library_size=None).decode(still, 0.0, noise=noise, sharp=sharp)

    def curved(self, t: float) -> tuple[float, Floats] | None:
        """Progress at `t` and the bend of measurements ``(F,)``; None on a path that does not bend those."""
        progress, bend = self._turn(t)
        if bend is None or self.knots is None or self.model.modality_ == "images":
            return None
        return progress, bend @ self.knots.measured

    def _matched(self, a: Index, b: Index, pairing: Pairing, n: int, rng: np.random.Generator) -> tuple[Index, Index]:
        """Pair the cells at places `a` of the source with those at places `b` of the target."""
        i, j = pair(
            self.source.z[a],
            self.target.z[b],
            method="ot" if pairing.method == "ot" else "random",
            n_pairs=n,
            growth=None if pairing.growth is None else _descendants(self.cells, pairing.growth, self.source.rows[a]),
            unbalanced=pairing.unbalanced,
            rng=rng,
        )
        return a[i], b[j]

    def _strata(self, within: str | None) -> list[tuple[Index, Index, float]]:
        """Places of cells in source and target that may be paired with one another, and their share of all pairs."""
        if within is None:
            return [(np.arange(len(self.source.rows)), np.arange(len(self.target.rows)), 1.0)]
        values = labels(self.cells, within)
        a, b = values[self.source.rows], values[self.target.rows]
        common = sorted(set(a) & set(b) - {MISSING})
        lost = sorted((set(a) | set(b)) - set(common))
        if not common:
            raise InputError(f"No level of {within!r} has cells at both ends, so nothing can be paired within it.")
        if lost:
            share = float(np.isin(np.concatenate([a, b]), lost).mean())
            warnings.warn(
                f"Levels of {within!r} without cells at both ends are left out of the interpolation: "
                f"{listed(lost)} ({share:.0%} of the cells).",
                UserWarning,
                stacklevel=4,
            )
        shares = np.array([(np.mean(a == level) + np.mean(b == level)) / 2 for level in common])
        return [
            (np.flatnonzero(a == level), np.flatnonzero(b == level), float(share))
            for level, share in zip(common, shares / shares.sum(), strict=True)
        ]


def population_rows(cells: AnnData, key: str, level: Level, least: int, few: int) -> Index:
    """Rows of the cells at a level, refused below `least` cells and with a warning below `few`."""
    rows = level_rows(cells, key, level)
    if len(rows) < least:
        raise InputError(
            f"{level!r} has {len(rows)} cells; at least {least} are needed, and {few} or more to mean anything."
        )
    if len(rows) < few:
        warnings.warn(
            f"{level!r} has only {len(rows)} cells: what is predicted or compared with so few says little about a "
            "population.",
            UserWarning,
            stacklevel=4,
        )
    return rows


def labels(cells: AnnData, key: str) -> NDArray[Any]:
    """Levels of a column as text ``(n,)``, `MISSING` where there is none."""
    values = column(cells, key)
    return np.asarray(values.astype(str).where(values.notna(), MISSING), dtype=object)


def _descendants(cells: AnnData, key: str, rows: Index) -> NDArray[np.float64]:
    numbers = times(cells, key)
    if numbers is None:
        raise InputError(f"The column {key!r} must hold numbers, descendants per cell, but holds names.")
    found = numbers[rows]
    bad = ~(np.isfinite(found) & (found >= 0))
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} source cells have no number of descendants, 0 or more, in {key!r}: "
            f"{listed(cells.obs_names[rows[bad]])}."
        )
    return found


def _apportioned(shares: Floats, n: int) -> NDArray[np.intp]:
    """Whole numbers in proportion to shares that sum to `n` (largest remainders)."""
    exact = shares * n
    whole = np.floor(exact).astype(np.intp)
    whole[np.argsort(whole - exact, kind="stable")[: n - whole.sum()]] += 1
    return whole
