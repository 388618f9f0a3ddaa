"""What the question for factors must show on real cells; trains for minutes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold

import latentcell as lc

pytestmark = pytest.mark.slow


def test_line_and_phase_of_a_full_factorial_lie_on_dimensions_of_their_own_and_phase_moves_its_genes(
    data_dir: Path,
) -> None:
    cells = lc.read(data_dir / "rna" / "mcdavid2014_cellcycle.h5ad")
    cells.obs["phase"] = pd.Categorical(cells.obs["phase"], ["g0/g1", "s", "g2/m"], ordered=True)
    model = lc.VAE(8, factors=lc.Factors(guided=["cell_line", "phase"])).fit(cells, rng=0)
    lines = (data_dir / "genesets" / "regev_lab_cell_cycle_genes.txt").read_text().split()
    sets = {"Regev S": lines[:43], "Regev G2M": lines[43:97]}
    lc.tl.factors(cells, model, ["cell_line", "phase"], seeds=3, gene_sets=sets, rng=0)
    found = cells.uns["factors"]
    best = found["relations"].sort_values("correlation").drop_duplicates("factor", keep="last").set_index("factor")
    assert (best["p"] <= 0.01).all()
    assert best["dimension"].nunique() == 2
    assert best.loc["cell_line", "correlation"] > 0.9
    own = {guide.name: guide.dimensions for guide in model.schema_.guidance.guides}
    assert all(best.loc[name, "dimension"] in dimensions for name, dimensions in own.items())
    g2m = found["gene_sets"].query("name == 'phase' and gene_set == 'Regev G2M'").iloc[0]
    assert g2m["p"] <= 0.01
    assert g2m["direction"] == "up"
    metrics = found["metrics"].query("metric == 'mig' and factor == 'all'").set_index("codes")["value"]
    assert metrics["cross-fitted"] > metrics["PCA"]


def test_the_phase_of_cells_that_no_fit_has_seen_is_read_from_their_code(data_dir: Path) -> None:
    cells = lc.read(data_dir / "rna" / "buettner2015_mesc.h5ad")
    truth = cells.obs["phase"].astype(str)
    told = pd.Series("", cells.obs_names)
    model = lc.VAE(8, factors=lc.Factors(guided=["phase"]))
    for _, test in StratifiedKFold(5, shuffle=True, random_state=0).split(np.zeros(cells.n_obs), truth):
        cells.obs["fold"] = np.where(np.isin(np.arange(cells.n_obs), test), "out", "in")
        fitted = model.unfitted().fit(cells, exclude={"fold": ["out"]}, rng=0)
        assert not fitted.seen(cells[test]).any()
        told.iloc[test] = fitted.read_factors(cells[test])["phase"].astype(str)
    assert balanced_accuracy_score(truth, told) >= 0.85
