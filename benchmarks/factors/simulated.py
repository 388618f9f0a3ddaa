"""Simulated cells whose factors are known: dimensions by factor, and covariances against the truth.

``python -m benchmarks.factors.simulated [counts|coverage|table|images ...]``. Images vary in size, elongation,
intensity, texture and phase, each evenly over a range in which an image tells it: the phase through S, where DNA
doubles (an image of G1 is the same at every phase of G1). Counts cycle through the whole phase.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import numpy as np
import pandas as pd
from benchmarks.common import write

import latentcell as lc
from latentcell.cells.factors import read_factors
from latentcell.stats.association import correlation
from latentcell.stats.covariance import covariance_test
from latentcell.tl.effects import measured_variables
from latentcell.tl.relations import principal_components

SIZE = 48
RANGES = {
    "size": (8.25, 15.0),
    "elongation": (1.0, 2.2),
    "intensity": (0.6, 1.6),
    "texture": (0.0, 1.0),
    "phase": (0.45, 0.75),
}
UNGUIDED = ("elbo", "tc=5", "tc=10", "tc=20")
COUNT_FACTORS = ["cell_type", "phase:cyclic", "programme_3", "programme_4"]


def images(epochs: int, seeds: int, objectives: list[str]) -> None:
    """Largest correlation of one dimension with each factor, on cells that no fit has seen."""
    train = lc.cells.simulate.images(2000, size=SIZE, factors=RANGES, rng=0)
    test = lc.cells.simulate.images(500, size=SIZE, factors=RANGES, rng=1)
    factors = read_factors(test, list(RANGES))
    features = lc.stats.image_features(np.asarray(test.obsm["images"]))
    baseline = correlation(principal_components(features.to_numpy(), 12, rng=np.random.default_rng(0)), factors)
    rows = [{"codes": "PCA of hand-made features", "seed": 0, **dict(zip(RANGES, baseline.max(0), strict=True))}]
    # "align" adds noise to what the encoder sees, which drowns fine texture
    guided = lc.VAE(16, factors=lc.Factors(guided=list(RANGES)), orientation="augment")
    settings = [(text, guided if text == "guided" else lc.VAE(12, objective=text)) for text in objectives]
    for name, model in settings:
        for seed in range(1 if name == "guided" else seeds):
            fitted = model.unfitted().fit(train, epochs=epochs, rng=seed)
            found = correlation(fitted.encode(test).mu, factors)
            own = np.diag(found) if name == "guided" else found.max(0)
            row = {"codes": name, "seed": seed, **dict(zip(RANGES, own, strict=True))}
            distinct = len(set(found.argmax(0).tolist()))
            report = fitted.report_
            rows.append(
                row
                | {
                    "dimensions": distinct,
                    "total_correlation": report["total_correlation"],
                    "n_active": report["n_active"],
                    "epochs": report["epochs"],
                    "minutes": report["seconds"] / 60,
                }
            )
            write(pd.DataFrame(rows), "factors/simulated_images")


def counts() -> None:
    """Guided factors of counts on cells that no fit has seen, and the table of covariances of one whole run."""
    cells = lc.cells.simulate.counts(3000, 300, n_batches=3, rng=0)
    cells.obs["set"] = np.where(np.arange(3000) < 2000, "train", "new")
    new = cells[cells.obs["set"] == "new"]
    rows = []
    for guided in (COUNT_FACTORS, []):
        options = lc.Factors(guided=guided, nuisance=["batch"])
        for seed in range(3):
            model = lc.VAE(10, factors=options).fit(cells, exclude={"set": ["new"]}, rng=seed)
            codes = model.encode(new).mu
            row: dict[str, object] = {"codes": "guided" if guided else "elbo", "seed": seed}
            found = correlation(codes, read_factors(new, COUNT_FACTORS)).max(0)
            row |= dict(zip([name.partition(":")[0] for name in COUNT_FACTORS], found, strict=True))
            if guided:
                told = model.read_factors(new)
                row["phase_circular"] = circular_correlation(told["phase"], new.obs["phase"])
                row["cell_type_accuracy"] = float((told["cell_type"] == new.obs["cell_type"].astype(str)).mean())
            rows.append(row)
    write(pd.DataFrame(rows), "factors/simulated_counts")


def circular_correlation(a: pd.Series, b: pd.Series) -> float:
    """Of two uniform phases in turns (Jammalamadaka and SenGupta 2001, sec. 8.2, for means without direction)."""
    x, y = 2 * np.pi * np.asarray(a, dtype=float), 2 * np.pi * np.asarray(b, dtype=float)
    return float(np.abs(np.exp(1j * (x - y)).mean()) - np.abs(np.exp(1j * (x + y)).mean()))


def coverage(n_sets: int) -> None:
    """Share of the 95 % intervals of covariances that hold the population's covariance, of many small samples."""
    rows = []
    pool = lc.cells.simulate.counts(60_000, 150, rng=0)
    shapes = lc.cells.simulate.images(20_000, size=32, factors={n: r for n, r in RANGES.items() if n != "size"}, rng=0)
    for name, cells, names in (
        ("counts", pool, COUNT_FACTORS),
        ("image features", shapes, [n for n in RANGES if n != "size"]),
    ):
        model = _described_by(cells)
        variables = measured_variables(cells, model, np.arange(cells.n_obs)).to_numpy(np.float64)
        factors = read_factors(cells, names)
        rng = np.random.default_rng(0)
        for factor in factors:
            values, labels = factor.columns()
            for value, label in zip(values.T, labels, strict=True):
                centred = value - value.mean()
                truth = centred @ variables / len(value)
                for n in (200, 1000):
                    held, rejected, null = [], [], []
                    for _ in range(n_sets):
                        taken = rng.choice(len(value), n, replace=False)
                        found = covariance_test(value[taken], variables[taken], n_permutations=199, rng=rng)
                        varies = variables[taken].std(0) > 0
                        held.append(((found.low <= truth) & (truth <= found.high))[varies].mean())
                        moved = covariance_test(
                            rng.permutation(value[taken]), variables[taken], n_permutations=199, rng=rng
                        )
                        null.append((moved.p <= 0.05)[varies].mean())
                        rejected.append((found.p <= 0.05)[varies].mean())
                    rows.append(
                        {
                            "measured": name,
                            "factor": label,
                            "n": n,
                            "coverage": np.mean(held),
                            "rejected": np.mean(rejected),
                            "rejected_permuted": np.mean(null),
                        }
                    )
        write(pd.DataFrame(rows), "factors/simulated_coverage")


def table() -> None:
    """The table of effects of one whole run against the population that its cells are a sample of."""
    pool = lc.cells.simulate.counts(60_000, 150, rng=0)
    cells = pool[np.random.default_rng(1).choice(pool.n_obs, 2000, replace=False)].copy()
    model = lc.VAE(10, factors=lc.Factors(guided=COUNT_FACTORS)).fit(cells, rng=0)
    lc.tl.factors(cells, model, COUNT_FACTORS, seeds=3)
    effects = cells.uns["factors"]["effects"].query("of == 'factor'")
    variables = measured_variables(pool, model, np.arange(pool.n_obs))
    rows = []
    for factor in read_factors(pool, COUNT_FACTORS):
        values, labels = factor.columns()
        for value, label in zip(values.T, labels, strict=True):
            truth = (value - value.mean()) @ variables.to_numpy(np.float64) / len(value)
            found = effects[effects["name"] == label].set_index("variable").loc[variables.columns]
            implied = found["covariance_model"].to_numpy()
            rows.append(
                {
                    "factor": label,
                    "coverage": ((found["low"] <= truth) & (truth <= found["high"])).mean(),
                    "r_measured": np.corrcoef(found["covariance"], truth)[0, 1],
                    "r_model": np.corrcoef(implied, truth)[0, 1],
                    "slope_model": implied @ truth / (truth @ truth),
                }
            )
    write(pd.DataFrame(rows), "factors/simulated_table")


def _described_by(cells: object) -> lc.VAE:
    """A model that knows how these cells are measured; its fit does not matter."""
    few = cells[:200].copy()  # type: ignore[index]
    return lc.VAE(2, width=4).fit(few, epochs=1, rng=0)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("which", nargs="*", default=["counts", "coverage", "table", "images"])
    options.add_argument("--objectives", nargs="+", default=["guided", *UNGUIDED])
    options.add_argument("--epochs", type=int, default=100)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--sets", type=int, default=50)
    asked = options.parse_args()
    logging.basicConfig(level=logging.WARNING)
    warnings.simplefilter("ignore")
    for which in asked.which:
        if which == "images":
            images(asked.epochs, asked.seeds, asked.objectives)
        elif which == "counts":
            counts()
        elif which == "table":
            table()
        else:
            coverage(asked.sets)


if __name__ == "__main__":
    main()
