"""What a command leaves in its folder: tables, cells and figures, and a line on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console

from latentcell import keys
from latentcell.atomic import replacing, write_json

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.integrated import IntegratedCell
    from latentcell.model.vae import VAE

# structures that get a figure of their organisation
_MOST_WALKED = 6
# effective draws below which an importance-weighted likelihood rests on hardly more than one
_FEW_DRAWS = 5
console = Console(stderr=True, highlight=False)


def write_run(cells: AnnData, model: VAE, out: Path, *, data: Path, color: str | None, seed: int) -> None:
    """Write what a fit leaves beside the model: embedding, report and figures."""
    import latentcell as lc

    lc.tl.embed(cells, model, rng=seed)
    write_cells(cells, out / "cells.h5ad")
    write_json(out / "report.json", {"data": str(data), **model.report_})
    console.print(f"wrote {out / 'report.json'}; drawing figures")
    draw(
        out / "figures",
        **({"latent_grid": lc.pl.latent_grid(model)} if model.n_latent > 1 else {}),
        traversal=lc.pl.traversal(model),
        reconstruction=lc.pl.reconstruction(model, cells, rng=seed),
        latent=lc.pl.latent(cells, color=color or _first_label(cells)),
        training=lc.pl.training(model),
    )
    console.print(_summary(model.report_))


def write_prediction(predicted: AnnData, cells: AnnData, model: VAE, out: Path) -> None:
    """Write predicted cells, plausibility, evaluation and figures, and say the verdict."""
    import latentcell as lc

    write_cells(predicted, out / "predicted.h5ad", images=True)
    result = predicted.uns[keys.INTERPOLATE]
    _write_table(result["plausibility"], out / "plausibility.csv")
    evaluation = out / "evaluation.csv"
    if "evaluation" in result:
        _write_table(result["evaluation"], evaluation)
        for sentence in result["verdict"].values():
            console.print(sentence, markup=False)
    else:
        evaluation.unlink(missing_ok=True)  # of an earlier prediction
        params = result["params"]
        console.print(
            f"{predicted.n_obs} cells predicted between {params['source']} and {params['target']}; no truth to compare "
            "with."
        )
    figures = {
        "interpolation": lc.pl.interpolation(predicted, cells, model, sharp=result["params"]["sharp"]),
        "path": lc.pl.path(predicted, cells, model),
    }
    if model.modality_ != "images":
        figures["changes"] = lc.pl.changes(predicted, cells, model)
    draw(out / "figures", **figures)


def write_leave_one_out(tested: pd.DataFrame, out: Path) -> None:
    """Write the evaluations of all levels left out and their figure, and say the verdicts."""
    import latentcell as lc

    _write_table(tested, out / "evaluation.csv")
    won = sum("better than every baseline" in verdict.get("model", "") for verdict in tested.attrs["verdicts"].values())
    for level, verdict in tested.attrs["verdicts"].items():
        for sentence in verdict.values():
            console.print(f"{level}: {sentence}", markup=False)
    console.print(
        f"better than every baseline in model space: {won} of {len(tested.attrs['verdicts'])} levels left out"
    )
    draw(out / "figures", leave_one_out=lc.pl.evaluation(tested))


def write_screen(cells: AnnData, model: VAE, out: Path, *, sheets: int) -> None:
    """Write the tables of a screen, its cells, model and figures, and say the verdict."""
    import latentcell as lc

    model.save(out / "model")
    write_cells(cells, out / "cells.h5ad")
    result = cells.uns[keys.SCREEN]
    for name in ("hits", "wells", "calibration", "reasons"):
        _write_table(result[name], out / f"{name}.csv")
    labels, cosine = pd.Index(result["hits"]["label"], name="label"), np.asarray(result["similarity"])
    _write_table(pd.DataFrame(cosine, labels, list(labels)).reset_index(), out / "similarity.csv")
    write_json(out / "screen.json", {"verdict": list(result["verdict"]), **_plain(result["params"])})
    for stale in (out / "figures").glob("rank_*"):  # of an earlier screen
        stale.unlink()
    figures = {"screen": lc.pl.screen(cells)}
    if np.isfinite(cosine.diagonal()).sum() > 1:
        figures["similarity"] = lc.pl.similarity(cells)
    draw(out / "figures", **figures)
    for rank, label in enumerate(labels[:sheets], start=1):
        draw(out / "figures", **{f"rank_{rank:02d}_{_as_name(label)}": lc.pl.contact_sheet(cells, model, label)})
    for sentence in result["verdict"]:
        console.print(sentence, markup=False)
    console.print(f"start with {out / 'hits.csv'} and {out / 'figures' / 'screen.png'}", markup=False)


def write_factors(cells: AnnData, model: VAE, out: Path) -> None:
    """Write the tables, maps and figures of the question for factors, and say the verdict."""
    import latentcell as lc
    from latentcell.cells.stores import write_maps

    write_cells(cells, out / "cells.h5ad")
    result = cells.uns[keys.FACTORS]
    for name in ("metrics", "relations", "dimensions", "effects", "read_back", "leak", "gene_sets"):
        if name in result and len(result[name]):
            _write_table(result[name], out / f"{name}.csv")
        else:
            (out / f"{name}.csv").unlink(missing_ok=True)  # of an earlier question
    for name in ("stability", "association"):
        _write_table(
            result[name].reset_index(names="dimension" if name == "stability" else "factor"), out / f"{name}.csv"
        )
    write_json(out / "factors.json", {"verdict": list(result["verdict"]), **_plain(result["params"])})
    figures = {"factors": lc.pl.factors(cells)}
    if result["stability"].shape[1]:
        figures["stability"] = lc.pl.stability(cells)
    figures["volcano"] = lc.pl.volcano(cells)
    titles = lc.pl.dimension_titles(cells)
    figures["traversal"] = lc.pl.traversal(model, n_dims=max(1, min(len(titles), 16)), titles=titles)
    if "maps" in result:
        write_maps(out / "effects.zarr", result["maps"], list(result["map_names"]), model.names_)
        console.print(f"wrote {out / 'effects.zarr'}", markup=False)
        figures["effects"] = lc.pl.effects(cells, model)
    draw(out / "figures", **figures)
    for sentence in result["verdict"]:
        console.print(sentence, markup=False)
    console.print(f"start with {out / 'dimensions.csv'} and {out / 'figures' / 'factors.png'}", markup=False)


def write_integrated(
    cells: AnnData,
    model: IntegratedCell,
    out: Path,
    *,
    away: Mapping[str, Sequence[Any]],
    replicate: str | None,
    seed: int,
) -> None:
    """Write the codes, coupling and figures of an Integrated Cell, measured on the cells kept `away` from its fit."""
    import latentcell as lc
    from latentcell.model.split import is_excluded

    write_json(out / "report.json", {"shape": model.reference_.report_, "organisation": model.report_})
    kept = cells[is_excluded(cells, away)].copy()
    figures = {
        "sampled": lc.pl.integrated(model.sample(6, rng=seed)),
        "latent_grid": lc.pl.latent_grid(model.reference_),
    }
    for structure in model.structures_[:_MOST_WALKED]:
        figures[f"organisation_{_as_name(structure)}"] = lc.pl.organisation(model, kept, structure, rng=seed)
    few = kept[:5].copy()
    figures["predicted"] = lc.pl.predicted(model.predict(few, rng=seed), few, structure_key=model.structure_key)
    coupled = lc.tl.coupling(kept, model, replicate=replicate, rng=seed)
    _write_table(coupled, out / "coupling.csv")
    figures["coupling"] = lc.pl.coupling(coupled)
    draw(out / "figures", **figures)
    model.embed(cells)
    write_cells(cells, out / "cells.h5ad")
    for what, report in (("shape", model.reference_.report_), ("organisation", model.report_)):
        console.print(f"{what}: {report['verdict']}", markup=False)
    for row in coupled[(coupled["question"] == "mean") & (coupled["nats"] <= 0)].itertuples():
        console.print(f"{row.structure} is drawn no better than its average image: train for longer", markup=False)
    for row in coupled[coupled["question"] == "all"].sort_values("nats", ascending=False).itertuples():
        console.print(
            f"{row.structure}: {row.nats:.1f} nats ({row.low:.1f} to {row.high:.1f}) of its image are told by "
            f"{' and '.join(model.reference)}, in {row.n_cells} cells that the model has not seen",
            markup=False,
        )


def write_trade_off(swept: pd.DataFrame, out: Path) -> None:
    """Write the table and figure of a sweep, and say the recommendation."""
    import latentcell as lc

    _write_table(swept, out / "sweep.csv")
    draw(out / "figures", sweep=lc.pl.trade_off(swept))
    for sentence in swept.attrs["verdict"]:
        console.print(sentence, markup=False)


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters as JSON knows them: lists, and null for what is not known."""
    listed = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in params.items()}
    return {name: None if value != value else value for name, value in listed.items()}


def write_cells(cells: AnnData, path: Path, *, images: bool = False) -> None:
    """Write an h5ad file; without the images unless asked."""
    from latentcell.cells.stores import write_h5ad

    write_h5ad(cells, path, images=images)
    console.print(f"wrote {path}")


def draw(folder: Path, **figures: Any) -> None:
    """Save figures under their names, as PNG and SVG."""
    from latentcell.pl import save

    for name, figure in figures.items():
        written = save(figure, folder / name)
        console.print(f"wrote {' and '.join(map(str, written))}")


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)
    console.print(f"wrote {path}")


def _as_name(label: str) -> str:
    """Label as part of a file name."""
    return "".join(each if each.isalnum() or each in "-." else "_" for each in label)[:60]


def _first_label(cells: AnnData) -> str | None:
    """Return a column of obs with a handful of levels to colour by; text before numbers, and not what was added."""
    columns = [str(name) for name in cells.obs if 2 <= cells.obs[name].nunique() <= 20 and name != keys.seen(keys.VAE)]
    return min(columns, key=lambda name: cells.obs[name].dtype.kind in "iufb", default=None)


def _summary(report: dict[str, Any]) -> str:
    effective = report["nll_median_effective_draws"]
    loose = ", too few to trust: the true NLL is lower" if effective < _FEW_DRAWS else ""
    return (
        f"Held-out ELBO {report['held_out_elbo']:.1f} nats per cell (log p(x|z) {report['held_out_log_px']:.1f}, KL "
        f"{report['held_out_kl']:.1f}); importance-weighted NLL {report['held_out_nll']:.1f} "
        f"({effective:.1f} effective of {report['nll_draws']} draws{loose}). {report['verdict']} "
        f"{report['seconds']:.0f} s, {report['cells_per_second']:,.0f} cells/s, seed {report['seed']}."
    )
