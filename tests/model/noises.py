"""Builders of likelihoods of one channel with given noise."""

from __future__ import annotations

import torch

from latentcell.model import likelihoods as lk

WIDTH = 1 / 255


def gaussian(variance: float) -> lk.Gaussian:
    likelihood = lk.Gaussian(1)
    likelihood.variance.fill_(variance)
    return likelihood


def poisson_gaussian(gain: float, variance: float) -> lk.PoissonGaussian:
    likelihood = lk.PoissonGaussian([gain])
    likelihood.variance.fill_(variance)
    return likelihood


def with_theta(kind: type[lk.Likelihood], log_theta: float) -> lk.Likelihood:
    likelihood = kind(1)
    with torch.no_grad():
        likelihood.log_theta.fill_(log_theta)
    return likelihood


def logistic(log_scale: float) -> lk.DiscretizedLogistic:
    likelihood = lk.DiscretizedLogistic([WIDTH], [0.0], [1.0])
    with torch.no_grad():
        likelihood.log_scale.fill_(log_scale)
    return likelihood
