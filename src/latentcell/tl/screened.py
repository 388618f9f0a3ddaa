"""Replicates of a screen as measured, and how a group of them is held against its controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from latentcell.stats.relabelling import Array, Layout, Relabelled, accounted_for, relabelling_test
from latentcell.tl.wells import CENTROID, Views

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from latentcell.tl.calibrate import Validity
    from latentcell.tl.design import Design


CENTROID_SHARE = 0.5
"""Weight of the mean code in the joint test; the other views share the rest. Most perturbations move the mean code."""


@dataclass(frozen=True)
class Screened:
    """Replicates of a screen as measured, and what is known of their validity.

    Attributes
    ----------
    design
        Who they are.
    views
        Their descriptions.
    variables
        Their mean measured variables, ``(n_wells, variables)``.
    variable_sd
        SD of cells within a replicate, ``(variables,)``.
    calibrating
        Controls that trained nothing, ``(n_wells,)``.
    validity
        What makes p-values impossible, and the calibration.
    n_relabellings, seed
        For the tests; every group starts from the same seed, so that its p does not depend on the others.
    """

    design: Design
    views: Views
    variables: pd.DataFrame
    variable_sd: Array
    calibrating: NDArray[np.bool_]
    validity: Validity
    n_relabellings: int
    seed: int

    @property
    def counted(self) -> bool:
        """Whether rows are cells, so that their numbers mean something."""
        return bool((self.design.wells["n_cells"] > 1).any())

    @property
    def log_count(self) -> Array:
        """Log of the number of cells of each replicate, ``(n_wells,)``."""
        return np.log(self.design.wells["n_cells"].to_numpy(np.float64))

    def other_controls(self, plan: Layout) -> list[NDArray[np.intp]]:
        """Rows of the calibrating controls of each block that a layout leaves out."""
        block = self.design.block
        ours = {block[rows[0]] for rows in plan.rows}
        names = [name for name in dict.fromkeys(block[self.calibrating].tolist()) if name not in ours]
        return [np.flatnonzero(self.calibrating & (block == name)) for name in names]

    def adjusted(self, values: Array, plan: Layout) -> Array:
        """Values after accounting for the covariates."""
        covariates = self.design.covariates
        if covariates.shape[1] == 0:
            return values
        return accounted_for(values, covariates, [*plan.rows, *self.other_controls(plan)])

    def joint_test(self, plan: Layout, control: NDArray[np.bool_] | None = None) -> tuple[Relabelled, list[str]]:
        """Test all views of a group jointly, at matched numbers of cells; the result and the names of the views.

        Parameters
        ----------
        plan
            Rows of the group and of its controls.
        control
            Replicates that are controls, ``(n_wells,)``; by default those that calibrate.
        """
        views = self.views.matched(plan)
        weights = [CENTROID_SHARE if name == CENTROID else (1 - CENTROID_SHARE) / (len(views) - 1) for name in views]
        tested = self._test([self.adjusted(view, plan) for view in views.values()], plan, control, weights)
        return tested, list(views)

    def count_test(self, plan: Layout) -> Relabelled:
        """Test whether the number of cells per replicate differs from that of controls."""
        return self._test([self.log_count[:, None]], plan)

    def _test(
        self,
        views: list[Array],
        plan: Layout,
        control: NDArray[np.bool_] | None = None,
        weights: list[float] | None = None,
    ) -> Relabelled:
        return relabelling_test(
            views,
            plan,
            control=self.calibrating if control is None else control,
            block=self.design.block,
            weights=weights,
            n_relabellings=self.n_relabellings,
            rng=self.seed,
        )
