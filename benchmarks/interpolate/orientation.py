"""What orientation does to interpolated images: aligned (default), augmented, and taken as they come.

    python -m benchmarks.interpolate.orientation

HeLa cells from prometaphase to early anaphase with metaphase hidden, and simulated growing cells; energy distance of
the prediction in data space at coarse scale (the measurement turned as the model turns it), beside the mixture of the
ends turned the same way. Roundness: long over short axis of predicted and true chromatin, which averages of cells at
different angles lose.
"""

from __future__ import annotations

import warnings

import pandas as pd
from benchmarks.common import data_dir, write

import latentcell as lc


def main() -> None:
    hela = lc.read(data_dir() / "images" / "hela_h2b_mitosis", channel_names=["H2B", "tubulin"])
    hela = hela[hela.obs["stage"] != "apoptosis"].copy()
    grown = lc.cells.simulate.time_course(300, size=40, rng=0)
    cases = {
        "HeLa": (hela, "prometaphase", "early_anaphase", "metaphase", "H2B", "track"),
        "simulated": (grown, "early", "late", "middle", "cell", None),
    }
    rows = []
    for name, (cells, source, target, truth, channel, split_key) in cases.items():
        for orientation in ("align", "augment", "as_is"):
            model = lc.VAE(16, orientation=orientation).fit(
                cells, exclude={"stage": [truth]}, split_key=split_key, epochs=100, rng=0
            )
            predicted = lc.tl.interpolate(cells, model, "stage", source=source, target=target, truth=truth, rng=0)
            table = predicted.uns["interpolate"]["evaluation"].query("metric == 'energy distance'")
            energy = table.set_index(["space", "method"])["value"]
            true = model.measurements(cells[cells.obs["stage"] == truth])
            aspect = [
                lc.stats.image_features(x, channel_names=model.names_)[f"{channel}_elongation"].median()
                for x in (predicted.obsm["images"], model.reconstruct(cells[cells.obs["stage"] == truth]), true)
            ]
            rows.append(
                {
                    "cells": name,
                    "orientation": orientation,
                    "held-out ELBO": model.report_["held_out_elbo"],
                    "prediction, model space": energy["model", "prediction"],
                    "mixture, model space": energy["model", "mixture"],
                    "prediction, coarse": energy["data, coarse", "prediction"],
                    "mixture, coarse": energy["data, coarse", "mixture"],
                    "elongation predicted": aspect[0],
                    "elongation reconstructed": aspect[1],
                    "elongation true": aspect[2],
                }
            )
            print(rows[-1], flush=True)
    write(pd.DataFrame(rows), "interpolate/orientation")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
