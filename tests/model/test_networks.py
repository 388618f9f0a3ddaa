"""Networks: any image size, and codes that belong to one cell alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcell.cells.counts import Counts
from latentcell.model.levels import level_strides
from latentcell.model.networks import MLP, ConvNet

SIDES = st.integers(5, 70)


def check_shapes(shape: tuple[int, ...], n_outputs: int) -> None:
    torch.manual_seed(0)
    network = ConvNet(shape, n_outputs, 2, width=2).eval()
    with torch.no_grad():
        posterior = network.encode(torch.randn(2, *shape))
        decoded = network.decode(posterior.mu)
    assert posterior.mu.shape == posterior.log_var.shape == (2, 2)
    assert decoded.shape == (2, n_outputs, *shape[1:])
    assert torch.isfinite(posterior.mu).all()
    assert torch.isfinite(decoded).all()


@settings(max_examples=25, deadline=None)
@given(SIDES, SIDES, st.integers(1, 4), st.integers(1, 4))
def test_images_of_any_size_come_back_at_their_size(height: int, width: int, channels: int, outputs: int) -> None:
    check_shapes((channels, height, width), outputs)


@settings(max_examples=8, deadline=None)
@given(st.integers(5, 20), st.integers(5, 40), st.integers(5, 40), st.integers(1, 4))
def test_volumes_of_any_size_come_back_at_their_size(depth: int, height: int, width: int, channels: int) -> None:
    check_shapes((channels, depth, height, width), channels)


@pytest.mark.parametrize("shape", [(1, 6, 32, 40), (2, 1, 17, 16), (1, 3, 9, 64), (1, 2, 3), (3, 4, 70)])
def test_anisotropic_and_tiny_images_come_back_at_their_size(shape: tuple[int, ...]) -> None:
    check_shapes(shape, shape[0])


@given(st.lists(st.integers(1, 300), min_size=2, max_size=3))
def test_strides_bring_every_axis_to_at_most_four_without_halving_short_ones(size: list[int]) -> None:
    strides = level_strides(size)
    assert len(strides) >= 1
    length = np.array(size)
    for level in strides:
        np.testing.assert_array_equal(np.array(level) == 2, length > 4)
        length = -(-length // np.array(level))
    assert length.max() <= 4


def test_strides_of_known_sizes() -> None:
    assert level_strides((64, 64)) == [(2, 2)] * 4
    assert level_strides((6, 32, 40)) == [(2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 1, 2)]
    assert level_strides((3, 3)) == [(1, 1)]


def test_default_width_gives_16_to_128_channels_at_64_pixels() -> None:
    network = ConvNet((1, 64, 64), 1, 4)
    convolutions = [m for m in network.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [16, 32, 64, 128]


def build(kind: str, n_covariates: int = 0) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    if kind == "mlp":
        return MLP(7, 7, 3, hidden=(9, 8), n_covariates=n_covariates, dropout=0.0).eval(), torch.randn(11, 7)
    return ConvNet((2, 13, 10), 2, 3, width=4, n_covariates=n_covariates).eval(), torch.randn(11, 2, 13, 10)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("training", [False, True])
def test_a_cells_code_does_not_depend_on_the_other_cells_or_their_order(kind: str, training: bool) -> None:
    network, x = build(kind)
    network.train(training)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = network.encode(x)
        permuted = network.encode(x[order])
        alone = network.encode(x[3:4])
    torch.testing.assert_close(permuted.mu, whole.mu[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(permuted.log_var, whole.log_var[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone.mu, whole.mu[3:4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_covariates_reach_the_decoder_only(kind: str) -> None:
    network, x = build(kind, n_covariates=2)
    first, second = torch.tensor([[1.0, 0.0]]).expand(11, 2), torch.tensor([[0.0, 1.0]]).expand(11, 2)
    with torch.no_grad():
        assert torch.equal(network.encode(x, first).mu, network.encode(x, second).mu)
        z = torch.randn(11, 3)
        assert not torch.allclose(network.decode(z, first), network.decode(z, second))


def test_counts_are_log_transformed_before_the_encoder() -> None:
    torch.manual_seed(0)
    network = MLP(4, 4, 2, counts=True).eval()
    counts = torch.tensor([[0.0, 1.0, 10.0, 1e6]])
    plain = MLP(4, 4, 2).eval()
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(network.encode(Counts.of(counts.numpy())).mu, plain.encode(torch.log1p(counts)).mu)


def test_dropout_acts_in_training_only() -> None:
    network, x = MLP(7, 7, 3, dropout=0.5), torch.randn(11, 7)
    assert not torch.equal(network.encode(x).mu, network.encode(x).mu)
    network.eval()
    assert torch.equal(network.encode(x).mu, network.encode(x).mu)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_posterior_variance_stays_within_bounds_for_extreme_input(kind: str) -> None:
    network, x = build(kind)
    for scale in (1e-12, 1e12):
        log_var = network.encode(x * scale).log_var.detach()
        assert torch.isfinite(log_var).all()
        assert float(log_var.min()) >= -15
        assert float(log_var.max()) <= 5


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_every_weight_receives_a_gradient(kind: str) -> None:
    network, x = build(kind)
    posterior = network.encode(x)
    (network.decode(posterior.mu).square().sum() + posterior.log_var.square().sum()).backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
