"""Whether the p-values of a screen hold: its layout, and its controls posing as perturbations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from latentcell.errors import listed
from latentcell.progress import progress_bar
from latentcell.stats.exchangeability import (
    controls_apart,
    nearest_places,
    place_effect,
    places_kept,
    rejection_interval,
)
from latentcell.stats.relabelling import Array, Layout, layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from latentcell.tl.design import Design
    from latentcell.tl.screened import Screened

LEVEL = 0.05
_APART = 0.01  # of the layout's geometry: a random layout is taken for a contiguous one once in a hundred screens
_POSE_COLUMNS = ("pose", "like", "n_wells", "statistic", "p")
_MOST_POSERS, _POSING_RELABELLINGS = 200, 999


@dataclass
class Validity:
    """What was found about a screen's p-values.

    Attributes
    ----------
    reasons
        Why no p-value of the screen holds, in words; empty where they may.
    by_label
        The same for single labels.
    remarks
        What to know besides.
    calibration
        One row per pose: ``pose``, ``like`` (the label whose design it takes), ``n_wells``, ``statistic``, ``p``.
    rate, low, high
        Share of poses with p <= 0.05 and its 95 % interval, counting poses that share no control well; NaN without.
    """

    reasons: list[str] = field(default_factory=list)
    by_label: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    calibration: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(_POSE_COLUMNS)))
    rate: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")

    def holds(self, label: str) -> bool:
        """Whether a label's p-value may be believed."""
        return not self.reasons and label not in self.by_label


def check_design(design: Design, calibrating: NDArray[np.bool_], *, split_within: bool) -> Validity:
    """Find what makes p-values impossible before any cell is measured.

    Parameters
    ----------
    calibrating
        Control replicates that trained nothing, ``(n_wells,)``.
    split_within
        Whether some control replicate both trains and calibrates, by its cells.
    """
    found = Validity()
    wells, control = design.wells, design.control
    tested = wells.loc[~control, "block"].unique().tolist()
    n_controls, n_left = (
        wells[which].groupby("block").size().reindex(tested).fillna(0) for which in (control, calibrating)
    )
    unseen = "have no control that the model has not seen"
    for missing, what in ((n_controls == 0, "have no control"), ((n_controls > 0) & (n_left == 0), unseen)):
        if missing.any():
            found.remarks.append(
                f"{missing.sum()} of {len(tested)} blocks {what} ({listed(missing.index[missing])}): what their plate "
                "does and what their perturbations do cannot be told apart, so their replicates are not tested."
            )
    if split_within and design.paired:
        found.reasons.append(
            "every block has a single control arm, which had to train the model: with its cells on both sides "
            "nothing is left to calibrate with. Give a model fitted on other controls to get p-values"
        )
    elif not design.paired and (n_controls <= 1).all() and (n_controls == 1).any():
        found.reasons.append(
            f"the blocks ({listed(n_controls.index)}) have a single control replicate each: what a plate or a well "
            "does by itself cannot be told from what a perturbation does. More control wells per plate are needed for "
            "p-values"
        )
    if design.paired:
        found.remarks.append(
            "Every block counts as an independent individual with an arm of each: that holds for donors, animals or "
            "embryos, not for cell types or clusters of the same ones."
        )
    if recurring := _recurring(design):
        found.reasons.append(
            f"replicates of the same name are in several blocks and have the same treatment in all, such as "
            f"{recurring!r}: if they are the same donors or animals, each would count several times; leave out block, "
            "or screen one block at a time. If they are wells, give their places (position), so that the layout can be "
            "checked"
        )
    for label in design.labels:
        plan = design.layout(label, calibrating)
        if not plan.rows:
            found.by_label[label] = "no control in its blocks"
        elif sum(plan.n_treated) == 1:
            found.by_label[label] = "a single replicate: a well that is odd by itself looks the same"
    return found


def _recurring(design: Design) -> str | None:
    """Name of a replicate in several blocks, where all such have one treatment each; None if places are known."""
    if design.paired or design.has_positions:
        return None
    names = design.wells.groupby("replicate", sort=False)["label"].agg(["size", "nunique"])
    names = names[names["size"] > 1]
    alike = len(names) > 1 and (names["nunique"] == 1).all()
    return str(names.index[0]) if alike else None


def check_layout(
    found: Validity, design: Design, values: Array, calibrating: NDArray[np.bool_], *, rng: np.random.Generator
) -> None:
    """Add to `found` whether places on the plates can pass for perturbations.

    Parameters
    ----------
    values
        Mean codes of the replicates ``(n_wells, d)``.
    """
    if not design.has_positions:
        if not design.paired and not found.reasons:
            found.remarks.append(
                "Places on plates were not given (position), so the layout was not checked: p-values assume that "
                "treatments were assigned to replicates at random within blocks."
            )
        return
    places, control, block = design.wells[["row", "column"]].to_numpy(float), design.control, design.block
    if controls_apart(places, control, block, rng=rng) <= _APART:
        found.reasons.append(
            "controls stand at places of their own on the plates, apart from the perturbations: an effect of the "
            "place, such as edges or a gradient, cannot be told from an effect of a perturbation. Spread controls over "
            "the plate to get p-values"
        )
        return
    kept = places_kept(places[~control], design.wells["label"].to_numpy(object)[~control], block[~control], rng=rng)
    if kept > _APART:
        return
    effect = place_effect(values[calibrating], places[calibrating], block[calibrating], rng=rng)
    words = "replicates of a perturbation keep their place, or stand side by side,"
    if effect <= LEVEL:
        found.reasons.append(
            f"{words} and control wells at near places resemble each other (p = {effect:.2g}): place and perturbation "
            "cannot be told apart. Draw places anew on every plate to get p-values"
        )
    else:
        found.remarks.append(
            f"In this layout {words} so that p-values assume that places have no effect; none was found among the "
            f"controls (p = {effect:.2g}), which a weak one may escape."
        )


def pose_controls(screened: Screened, *, rng: np.random.Generator) -> None:
    """Test controls as if they were perturbations, in the perturbations' own places, and add to `screened.validity`.

    Each pose takes as many controls per block as a perturbation has wells there; where places are known, those that
    lie to each other as the perturbation's wells do. The other controls calibrate it.
    """
    found, design, calibrating = screened.validity, screened.design, screened.calibrating
    screened = replace(screened, n_relabellings=min(screened.n_relabellings, _POSING_RELABELLINGS))
    outcomes, sizes = [], []
    plans = [(label, plan) for label in design.labels if (plan := design.layout(label, calibrating)).rows]
    plans = [(label, plan) for label, plan in plans if all(_spare(plan))]
    n = min(_MOST_POSERS, 8 * int(calibrating.sum())) if plans else 0
    with progress_bar("controls pose", max(n, 1)) as advance:
        for i in range(n):
            label, plan = plans[rng.integers(len(plans))]
            posing = _pose(design, label, plan, calibrating, rng)
            others = calibrating & ~posing
            tested, _ = screened.joint_test(layout(posing, others, design.block), others)
            sizes.append(int(posing.sum()))
            outcomes.append((i, label, sizes[-1], tested.statistic, tested.p))
            advance(i + 1, "poses")
    found.calibration = pd.DataFrame(outcomes, columns=list(_POSE_COLUMNS))
    if not outcomes:
        found.remarks.append("There are too few controls to pose as perturbations: the calibration was not checked.")
        return
    found.rate = float((found.calibration["p"] <= LEVEL).mean())
    found.low, found.high = rejection_interval(found.rate, min(n, calibrating.sum() / np.mean(sizes)))
    if found.low > LEVEL:
        found.reasons.append(
            f"controls posing as perturbations are called at p <= {LEVEL:g} in {found.rate:.0%} of cases (95 % "
            f"interval {found.low:.0%} to {found.high:.0%}): the controls are not exchangeable within their blocks"
        )


def _spare(plan: Layout) -> list[bool]:
    """Per block, whether at least one control is left beside as many as the perturbation has wells."""
    return [len(rows) > 2 * m for rows, m in zip(plan.rows, plan.n_treated, strict=True)]


def _pose(
    design: Design, label: str, plan: Layout, calibrating: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose controls that stand for a label's replicates."""
    posing = np.zeros(len(design.wells), dtype=bool)
    if not design.has_positions:
        for rows, m in zip(plan.rows, plan.n_treated, strict=True):
            posing[rng.choice(rows[m:], m, replace=False)] = True
        return posing
    places = design.wells[["row", "column"]].to_numpy(float)
    taken: set[int] = set()
    start: Array | None = None
    for rows, m in zip(plan.rows, plan.n_treated, strict=True):
        for treated in rows[:m]:
            candidates = rows[m:]
            if start is None:
                chosen: int | None = int(rng.choice(candidates))
                start = places[chosen] - places[treated]
            else:
                chosen = nearest_places(places[treated] + start, places, candidates, taken)
            assert chosen is not None  # `_spare` made sure
            taken.add(chosen)
    posing[list(taken)] = True
    return posing
