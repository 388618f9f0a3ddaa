"""The tables of a screen: a row per group with its test and its reasons, and what it all says in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from latentcell.errors import listed
from latentcell.progress import progress_bar
from latentcell.stats.relabelling import precision, shift
from latentcell.tl.explain import count_share, distance, dose_trend, effects, group_profiles, similarity
from latentcell.tl.wells import CENTROID, ENERGY, RESIDUAL

if TYPE_CHECKING:
    from latentcell.tl.calibrate import Validity
    from latentcell.tl.screened import Screened

FDR = 0.05
_N_NEAREST, _FEWEST_DOSES = 3, 3
_TOP_LATENTS, _TOP_VARIABLES = 5, 20
_MOSTLY_COUNT = 0.5
_NO_VIEW = ("p_count", "p_dose_trend")
_TELLING = 0.05  # smallest p of a design whose relabellings are enough to compare groups by
_MEASURED = ("statistic", "p", "min_p", "effect", "effect_noise", "count_effect", "p_count", "count_share")


def hit_table(screened: Screened) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test every group, or group at a dose.

    Returns
    -------
    hits
        A row per label, best first: ``label``, ``group``, ``dose``, ``n_wells``, ``n_blocks`` (with controls to compare
        with), ``n_cells``, ``statistic`` (see `latentcell.stats.relabelling.combined`), ``p``, ``q``
        (Benjamini-Hochberg), ``min_p`` (smallest that the design can give), ``valid`` (False: p and q are left out),
        ``rank`` (by p, then statistic; see `ranked_by` where no p holds), ``effect`` (distance of the mean code from
        controls in SD of replicates, or of cells where replicates are too few: ``effect_unit``), ``effect_noise`` (what
        noise alone gives), ``p_<view>`` (each view by itself, uncorrected), ``count_effect`` (log2 of cells per
        replicate against controls), ``p_count``, ``q_count``, ``count_share`` (share of the effect that cell count
        alone explains), ``dose_trend`` (Spearman) and ``p_dose_trend``, ``nearest_groups`` with their cosine.
    similarity
        Cosine between the sphered shifts of all labels.
    """
    labels = screened.design.labels
    rows = []
    with progress_bar("test", len(labels)) as advance:
        for i, label in enumerate(labels):
            rows.append(_tested(screened, label))
            advance(i + 1, "groups")
    hits = pd.DataFrame(rows)
    views = screened.views.everything
    described = [views[name] for name in (CENTROID, RESIDUAL, ENERGY) if name in views]
    # no p-value rests on likeness, so that all controls may serve
    profiles = group_profiles(described, screened.design, screened.design.control, labels)
    similar = pd.DataFrame(similarity(profiles), index=labels, columns=labels)
    hits["nearest_groups"] = [_nearest(similar, label) for label in labels]
    hits = hits.merge(_trends(screened), on="group", how="left")
    by, ascending = ["p", "statistic"], [True, False]
    if screened.validity.reasons:
        by, ascending = [ranked_by(hits)], [False]
    order = hits.sort_values(by, ascending=ascending, na_position="last", kind="stable").index
    hits.loc[order, "rank"] = np.arange(1, len(hits) + 1)
    unsure = [name for name in hits if str(name).split("_")[0] == "p" and name != "p_dose_trend"]
    hits.loc[~hits["valid"], unsure] = np.nan
    if screened.validity.reasons:
        hits["p_dose_trend"] = np.nan
    for p, q in (("p", "q"), ("p_count", "q_count")):
        hits[q] = np.nan
        known = hits[p].notna()
        if known.any():
            hits.loc[known, q] = false_discovery_control(hits.loc[known, p])
    hits = hits.loc[order].reset_index(drop=True).astype({"rank": int})
    return hits, similar.loc[hits["label"], hits["label"]]


def ranked_by(hits: pd.DataFrame) -> str:
    """Column that ranks groups whose p-values do not hold: how far, where it cannot be said how surely.

    The statistic, which sees all views, where designs have relabellings enough to measure it; else the effect.
    """
    return "statistic" if hits["min_p"].max() <= _TELLING else "effect"


def _tested(screened: Screened, label: str) -> dict[str, Any]:
    """One row of the table of hits, without what needs the others."""
    design, ours = screened.design, screened.design.of(label)
    plan = design.layout(label, screened.calibrating)
    first = design.wells[ours].iloc[0]
    row: dict[str, Any] = {
        "label": label,
        "group": first["group"],
        "dose": first["dose"],
        "n_wells": int(ours.sum()),
        "n_blocks": len(plan.rows),
        "n_cells": int(design.wells.loc[ours, "n_cells"].sum()),
        "valid": screened.validity.holds(label),
    }
    if not plan.rows:
        return row | dict.fromkeys(_MEASURED, np.nan) | {"effect_unit": ""}
    joint, views = screened.joint_test(plan)
    code, others = screened.views[CENTROID], screened.other_controls(plan)
    effect, unit = distance(screened.adjusted(code, plan), plan, others, screened.views.code_sd)
    row |= {
        "statistic": joint.statistic,
        "p": joint.p,
        "min_p": joint.smallest_p,
        "effect": effect,
        "effect_unit": unit,
        "effect_noise": float(np.sqrt(code.shape[1] / precision(plan).sum())) if unit == "replicates" else np.nan,
        **{f"p_{name}": p for name, p in zip(views, joint.p_views, strict=True)},
        "count_effect": np.nan,
        "p_count": np.nan,
        "count_share": np.nan,
    }
    if screened.counted:
        count = screened.count_test(plan)
        row |= {
            "count_effect": float(shift(screened.log_count[:, None], plan)[0] / np.log(2)),
            "p_count": count.p,
            "count_share": count_share(code, screened.log_count, plan, others),
        }
    return row


def _nearest(similar: pd.DataFrame, label: str) -> str:
    others = similar[label].drop(label).dropna().sort_values(ascending=False).head(_N_NEAREST)
    return ", ".join(f"{name} ({cosine:.2f})" for name, cosine in others.items())


def _trends(screened: Screened) -> pd.DataFrame:
    """Trend of the effect with dose, for every group of three or more doses."""
    wells, block, code = screened.design.wells, screened.design.block, screened.views[CENTROID]
    rows = []
    for group, mine in wells[~screened.design.control].groupby("group", sort=False):
        places = mine.index.to_numpy()
        shifts, kept = [], []
        for place in places:
            controls = screened.calibrating & (block == block[place])
            if controls.any():
                shifts.append(code[place] - code[controls].mean(axis=0))
                kept.append(place)
        dose = wells.loc[kept, "dose"].to_numpy(np.float64)
        rho, p = np.nan, np.nan
        if len(np.unique(dose[~np.isnan(dose)])) >= _FEWEST_DOSES:
            rho, p = dose_trend(np.stack(shifts), dose, block[kept], rng=np.random.default_rng(screened.seed))
        rows.append({"group": group, "dose_trend": rho, "p_dose_trend": p})
    return pd.DataFrame(rows)


def reasons_table(screened: Screened) -> pd.DataFrame:
    """What moved: for every label the latent dimensions and variables that moved most, and the cell count.

    Columns ``label``, ``kind`` (``"latent"``, ``"variable"``, ``"count"``), ``name``, ``effect`` (shift in SD of
    replicates), ``low``, ``high`` (95 % interval), ``sd`` (that SD, in the variable's own unit),
    ``unit`` (whose SD it is: ``"replicates"``, or ``"cells"`` where replicates are too few to tell).
    """
    variables = screened.variables.to_numpy(), screened.variable_sd, screened.variables.columns.to_numpy()
    tables = {
        "latent": (screened.views[CENTROID], screened.views.code_sd, screened.views.dimensions, _TOP_LATENTS),
        "variable": (*variables, _TOP_VARIABLES),
    }
    if screened.counted:
        tables["count"] = (screened.log_count[:, None], np.full(1, np.nan), np.array(["log cells"]), 1)
    parts = []
    for label in screened.design.labels:
        plan = screened.design.layout(label, screened.calibrating)
        if not plan.rows:
            continue
        for kind, (values, cell_sd, names, most) in tables.items():
            moved = effects(screened.adjusted(values, plan), plan, screened.other_controls(plan), cell_sd)
            top = np.argsort(-np.nan_to_num(np.abs(moved.value), nan=-1.0), kind="stable")[:most]
            parts.append(
                pd.DataFrame({
                    "label": label, "kind": kind, "name": names[top].astype(str), "effect": moved.value[top],
                    "low": moved.low[top], "high": moved.high[top], "sd": moved.sd[top],
                    "unit": moved.unit,
                })
            )  # fmt: skip
    columns = ["label", "kind", "name", "effect", "low", "high", "sd", "unit"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def in_words(hits: pd.DataFrame, reasons: pd.DataFrame, validity: Validity) -> list[str]:
    """Why each label is called or not, a sentence per row of `hits`."""
    by_label = dict(iter(reasons[reasons["effect"].notna()].groupby("label")))
    views = [name for name in hits if str(name).startswith("p_") and name not in _NO_VIEW]
    sentences = []
    rows = zip(hits["label"], hits["q"], hits["count_share"], hits[views].to_numpy(float), strict=True)
    for label, q, share, p_views in rows:
        words = [f"no p-value: {validity.by_label[label]}"] if label in validity.by_label else []
        seen = [str(name).removeprefix("p_") for name, p in zip(views, p_views, strict=True) if p <= FDR]
        called = q <= FDR
        if called and seen and CENTROID not in seen:
            words.append(f"mean code unmoved, seen in {' and '.join(seen)}")
        if label in by_label:
            moved = by_label[label]
            for kind, prefix, most in (("variable", "", 3), ("latent", "latent ", 2)):
                top = moved[moved["kind"] == kind].head(most)
                sd = np.where(top["unit"] == "cells", "cell SD", "SD")
                each = zip(top["name"], top["effect"], sd, strict=True)
                words.append(", ".join(f"{prefix}{name} {effect:+.1f} {unit}" for name, effect, unit in each))
        if share > _MOSTLY_COUNT and not q > FDR:
            words.append(f"cell count alone explains {share:.0%}")
        sentences.append("; ".join(filter(None, words)))
    return sentences


def verdict(screened: Screened, hits: pd.DataFrame) -> list[str]:
    """What the screen says, whether it may say so, and what stands against it."""
    found, tested = screened.validity, hits[hits["p"].notna()]
    words = []
    if found.reasons:
        words.append(
            f"No p-values: {'; '.join(found.reasons)}. Groups are ranked by how far they lie from controls, no more."
        )
    elif len(tested):
        called = int((tested["q"] <= FDR).sum())
        words.append(
            f"{called} of {len(tested)} groups tested leave the control distribution at a false discovery rate of "
            f"{FDR:g}."
        )
        words.append(_attainable(tested))
    if found.by_label and not found.reasons:
        listing, n = listed(list(found.by_label)), len(found.by_label)
        words.append(f"No p-value for {n} of {len(hits)} groups ({listing}); column 'why' tells the reason.")
    if np.isfinite(found.rate):
        words.append(
            f"Controls posing as perturbations reach p <= 0.05 in {found.rate:.1%} of {len(found.calibration)} poses "
            f"(95 % interval {found.low:.1%} to {found.high:.1%}; 5 % expected)."
        )
    if not screened.counted:
        words.append(
            "Every replicate is a single row: cell counts are not known, so nothing is said about them. If rows are "
            "cells, name the column of wells (or donors) as replicate: p-values over cells do not hold."
        )
    elif len(tested):
        fewer = tested.loc[tested["q_count"] <= FDR, "label"]
        named = f" ({listed(fewer)})" if len(fewer) else ""
        words.append(f"{len(fewer)} of {len(tested)} groups change the number of cells{named}, by a test of its own.")
    return [*words, *found.remarks]


def _attainable(tested: pd.DataFrame) -> str:
    least, n = float(tested["min_p"].min()), len(tested)
    together = int(np.ceil(least * n / FDR - 1e-9))
    said = f"The smallest p that this design can give is {least:.2g}"
    if least > FDR:
        return f"{said}: no group can pass; more controls or more blocks are needed."
    if together > 1:
        return f"{said}: with {n} groups tested one alone cannot pass, {together} or more together can."
    return f"{said}: even one group alone could pass."
