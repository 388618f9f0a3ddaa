"""The wide layers of models of counts: compiled loops and their analytic gradients against plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import stats
from torch import Tensor, nn

from latentcell import kernels
from latentcell.cells.counts import Counts
from latentcell.model import counted
from latentcell.model import likelihoods as lk

KINDS = {"nb": lk.NegativeBinomial, "zinb": lk.ZeroInflatedNegativeBinomial, "poisson": lk.Poisson}
# 0 to 17 are looked up, 18 and more computed; from 256 on the factorial is computed, too
EXTREME = (0, 1, 2, 16, 17, 18, 300, 1e5)
HIDDEN = 5

each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _kernels_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTCELL_KERNELS", raising=False)


@dataclass(frozen=True)
class Case:
    """Counts and all that their likelihood depends on, float32; `cell_weight` is what each cell weighs in the loss."""

    likelihood: lk.Likelihood
    x: Counts
    hidden: Tensor
    layer: nn.Linear
    size: Tensor
    cell_weight: Tensor

    def wide(self) -> Case:
        """The same in float64."""
        likelihood = type(self.likelihood)(self.x.n_genes).double()
        likelihood.load_state_dict(self.likelihood.state_dict())
        layer = nn.Linear(self.layer.in_features, self.layer.out_features).double()
        layer.load_state_dict(self.layer.state_dict())
        return replace(
            self,
            likelihood=likelihood,
            hidden=self.hidden.detach().double().requires_grad_(),
            layer=layer,
            size=self.size.double(),
            cell_weight=self.cell_weight.double(),
        )


@dataclass(frozen=True)
class Found:
    """Log p of each cell and the gradient of its weighted sum for everything learned, by name."""

    log_p: Tensor
    gradients: dict[str, Tensor]


def case(
    kind: str,
    *,
    n: int = 40,
    n_genes: int = 70,
    counts: tuple[float, ...] | None = None,
    log_theta: tuple[float, float] = (-10.5, 10.5),
    equal: bool = False,
    seed: int = 0,
) -> Case:
    """Counts, from `counts` or small ones, with some cells without any, and parameters of all magnitudes."""
    rng = np.random.default_rng(seed)
    values = rng.poisson(2.0, (n, n_genes)) if counts is None else rng.choice(counts, (n, n_genes))
    values = values * (rng.random((n, n_genes)) < 0.5)
    if n > 1:
        values[:: max(2, n // 3)] = 0
    likelihood = KINDS[kind](n_genes)
    outputs = likelihood.n_outputs(n_genes)
    torch.manual_seed(seed)
    layer = nn.Linear(HIDDEN, outputs)
    counted.lay_out(layer)
    with torch.no_grad():
        layer.bias[:n_genes] = torch.from_numpy(rng.normal(size=n_genes))
        if kind == "zinb":
            layer.bias[n_genes:] = torch.from_numpy(rng.permutation(np.linspace(-40, 40, n_genes)))
        if kind != "poisson":
            likelihood.log_theta.copy_(torch.from_numpy(rng.permutation(np.linspace(*log_theta, n_genes))))
    size = values.sum(1) * rng.uniform(0.5, 2, n)
    weight = np.full(n, 1 / n) if equal else rng.normal(size=n)
    return Case(
        likelihood,
        Counts.of(values),
        torch.from_numpy(rng.normal(size=(n, HIDDEN)).astype(np.float32)).requires_grad_(),
        layer,
        torch.from_numpy(size.astype(np.float32)),
        torch.from_numpy(weight.astype(np.float32)),
    )


def learned(given: Case) -> dict[str, Tensor]:
    return {
        "hidden": given.hidden,
        "weight": given.layer.weight,
        "bias": given.layer.bias,
        **dict(given.likelihood.named_parameters()),
    }


def differentiated(given: Case, log_p: Tensor) -> Found:
    tensors = learned(given)
    found = torch.autograd.grad((log_p * given.cell_weight).sum(), list(tensors.values()))
    return Found(log_p.detach(), dict(zip(tensors, found, strict=True)))


def evaluated(given: Case) -> Found:
    """By what models call."""
    log_p = counted.log_prob(given.likelihood, given.x, given.hidden, given.layer, given.size)
    return differentiated(given, log_p)


def reference(given: Case) -> Found:
    """By the dense formula and autograd in float64."""
    wide = given.wide()
    return differentiated(wide, wide.likelihood.log_prob(wide.x.dense().double(), wide.layer(wide.hidden), wide.size))


def check_close(found: Tensor, expected: Tensor, rtol: float = 1e-5, rounding: float = 0.0) -> None:
    """Relative to the largest entry, but for an error of `rounding`."""
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    error, largest = (found.double() - expected.double()).abs().max(), expected.abs().max()
    assert error <= rtol * largest + rounding, f"error {error:.2e}, largest entry {largest:.2e}"


def check_same(found: Found, expected: Found, rtol: float = 1e-5, rounding: float = 0.0) -> None:
    check_close(found.log_p, expected.log_p, rtol, rounding)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in found.gradients.items():
        check_close(gradient, expected.gradients[name], rtol, rounding)


def rounding(given: Case) -> float:
    """Error of terms in proportion to the counts of a cell where they cancel in float32."""
    return 1e-6 + 3e-6 * float(given.x.dense().sum(1).max())


def test_compiled_loops_are_in_use_on_a_cpu_unless_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.in_use(torch.device("cpu"))
    assert not kernels.in_use(torch.device("cuda"))
    assert not kernels.in_use(torch.device("meta"))
    monkeypatch.setenv("LATENTCELL_KERNELS", "off")
    assert not kernels.in_use(torch.device("cpu"))
    monkeypatch.setenv("LATENTCELL_KERNELS", "auto")
    assert kernels.in_use(torch.device("cpu"))


@each_kind
def test_the_switch_decides_what_computes_log_p(kind: str, off: Callable) -> None:
    def computed_by() -> str:
        given = case(kind)
        return counted.log_prob(given.likelihood, given.x, given.hidden, given.layer, given.size).grad_fn.name()

    assert "LogProb" in computed_by()
    assert "LogProb" not in off(computed_by)


def test_asking_for_the_kernels_leaves_the_number_of_threads_alone(with_threads: Callable) -> None:
    for n in (1, 2):
        assert with_threads(n, lambda: (kernels.in_use(torch.device("cpu")), torch.get_num_threads())) == (True, n)


@each_kind
@pytest.mark.parametrize("equal", [True, False], ids=["equal_cells", "weighted_cells"])
@pytest.mark.parametrize(
    "counts", [None, EXTREME, (0, 1), (0, 2, 16, 17, 18)], ids=["usual", "extreme", "binary", "table"]
)
def test_log_p_and_all_gradients_are_those_of_float64_autograd(kind: str, equal: bool, counts: tuple | None) -> None:
    given = case(kind, counts=counts, equal=equal)
    check_same(evaluated(given), reference(given))


@each_kind
@pytest.mark.parametrize("seed", range(1, 6))
def test_other_draws_of_counts_and_parameters_have_the_same_precision(kind: str, seed: int) -> None:
    given = case(kind, counts=EXTREME if seed % 2 else None, seed=seed)
    check_same(evaluated(given), reference(given))


@pytest.mark.parametrize("kind", ["nb", "zinb"])
@pytest.mark.parametrize("log_theta", [-10.0, -4.0, 0.0, 3.9, 6.0])
@pytest.mark.parametrize("counts", [None, EXTREME[:-1], EXTREME], ids=["usual", "to_300", "extreme"])
def test_gradients_of_genes_of_one_dispersion_are_off_by_rounding_at_most(
    kind: str, log_theta: float, counts: tuple | None
) -> None:
    given = case(kind, counts=counts, log_theta=(log_theta, log_theta))
    check_same(evaluated(given), reference(given), rounding=rounding(given))


@pytest.mark.parametrize("kind", ["nb", "zinb"])
@pytest.mark.parametrize("equal", [True, False])
def test_dispersions_beyond_their_bounds_have_no_gradient_and_act_as_the_bound(kind: str, equal: bool) -> None:
    given = case(kind, counts=EXTREME, log_theta=(-14.0, 14.0), equal=equal)
    found = evaluated(given)
    outside = given.likelihood.log_theta.abs() > 10
    assert 0 < outside.sum() < len(outside)
    assert (found.gradients["log_theta"][outside] == 0).all()
    assert (found.gradients["log_theta"][~outside] != 0).all()
    with torch.no_grad():
        given.likelihood.log_theta.clamp_(-10, 10)
    torch.testing.assert_close(evaluated(given).log_p, found.log_p, rtol=0, atol=0)


@each_kind
@pytest.mark.parametrize(("n", "n_genes"), [(1, 30), (2, 30), (17, 3), (40, 1), (1, 1), (3, 2500)])
@pytest.mark.parametrize("equal", [True, False])
def test_few_cells_and_few_or_many_genes(kind: str, n: int, n_genes: int, equal: bool) -> None:
    given = case(kind, n=n, n_genes=n_genes, counts=EXTREME[:-1], log_theta=(-3, 3), equal=equal, seed=4)
    check_same(evaluated(given), reference(given), rounding=rounding(given))


@each_kind
def test_cells_without_counts_have_finite_log_p_and_gradients(kind: str) -> None:
    given = case(kind, n=6)
    empty = replace(given, x=Counts.of(np.zeros((6, 70))), size=torch.zeros(6))
    found, expected = evaluated(empty), reference(empty)
    torch.testing.assert_close(found.log_p.double(), expected.log_p, rtol=1e-5, atol=1e-6)
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient.double(), expected.gradients[name], rtol=1e-4, atol=1e-6)


@each_kind
def test_cells_without_counts_among_others_have_the_log_p_of_zeros(kind: str) -> None:
    given = case(kind)
    empty = given.x.dense().sum(1) == 0
    assert empty.any()
    with_size = replace(given, size=given.size + 20)
    check_close(evaluated(with_size).log_p[empty], reference(with_size).log_p[empty])


@each_kind
def test_a_cells_log_p_does_not_depend_on_the_other_cells(kind: str) -> None:
    given = case(kind, n=19)
    together = evaluated(given).log_p
    dense = given.x.dense().numpy()
    for i in (0, 1, 18):
        alone = replace(
            given, x=Counts.of(dense[i : i + 1]), hidden=given.hidden[i : i + 1], size=given.size[i : i + 1]
        )
        log_p = counted.log_prob(alone.likelihood, alone.x, alone.hidden, alone.layer, alone.size).detach()
        torch.testing.assert_close(log_p, together[i : i + 1], rtol=1e-6, atol=1e-5)


@each_kind
def test_the_order_of_the_values_of_a_cell_does_not_matter(kind: str) -> None:
    given = case(kind, counts=EXTREME)
    starts, order = given.x.starts.numpy(), np.arange(len(given.x.values))
    for low, high in pairwise(starts):
        order[low:high] = order[low:high][::-1]
    reversed_ = replace(given, x=replace(given.x, columns=given.x.columns[order], values=given.x.values[order]))
    check_same(evaluated(reversed_), evaluated(given))


@each_kind
@pytest.mark.parametrize("counts", [None, EXTREME], ids=["usual", "extreme"])
@pytest.mark.parametrize("equal", [True, False])
def test_compiled_loops_and_plain_torch_agree(kind: str, counts: tuple | None, equal: bool, off: Callable) -> None:
    given = case(kind, counts=counts, equal=equal)
    check_same(evaluated(given), off(evaluated, given), rtol=1e-4)


def kept_by_threads(given: Case) -> list[Tensor]:
    """What the kernels alone make of a case of one hidden unit, whose products have one term each."""
    log_p = counted.log_prob(given.likelihood, given.x, given.hidden, given.layer, given.size)
    named = [value for name, value in learned(given).items() if name == "log_theta"]
    gradients = torch.autograd.grad((log_p * given.cell_weight).sum(), named) if named else ()
    return [log_p.detach(), *gradients]


@each_kind
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("n", [3, 16, 75])
def test_results_are_bitwise_the_same_with_any_number_of_threads(
    kind: str, equal: bool, n: int, with_threads: Callable
) -> None:
    given = case(kind, n=n, n_genes=90, counts=EXTREME, equal=equal)
    layer = nn.Linear(1, given.layer.out_features)
    narrow = replace(given, layer=layer, hidden=given.hidden.detach()[:, :1].clone().requires_grad_())
    one, two, again = (with_threads(threads, kept_by_threads, narrow) for threads in (1, 2, 1))
    for a, b, c in zip(one, two, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def at_means(kind: str, means: np.ndarray, theta: np.ndarray, x: np.ndarray, zero_logit: np.ndarray) -> np.ndarray:
    """Log p of one cell with these means by the compiled loops."""
    likelihood = KINDS[kind](len(means))
    layer = nn.Linear(1, likelihood.n_outputs(len(means)))
    with torch.no_grad():
        layer.bias[: len(means)] = torch.from_numpy(np.log(means))
        if kind == "zinb":
            layer.bias[len(means) :] = torch.from_numpy(zero_logit)
        if kind != "poisson":
            likelihood.log_theta.copy_(torch.from_numpy(np.log(theta)))
    size = torch.tensor([means.sum()], dtype=torch.float32)
    return counted.log_prob(likelihood, Counts.of(x[None]), torch.zeros(1, 1), layer, size).detach().numpy()


@each_kind
@pytest.mark.parametrize("seed", range(4))
def test_log_p_at_given_means_is_scipys(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    means, theta = rng.gamma(0.5, 6, 60) + 1e-3, np.exp(rng.uniform(-3, 6, 60))
    x, zero_logit = rng.poisson(rng.gamma(1, means)), rng.normal(0, 2, 60)
    with_zeros = stats.nbinom.logpmf(x, theta, theta / (theta + means))
    if kind == "zinb":
        log_kept = -np.logaddexp(0, zero_logit) + with_zeros
        with_zeros = np.where(x > 0, log_kept, np.logaddexp(-np.logaddexp(0, -zero_logit), log_kept))
    expected = stats.poisson.logpmf(x, means) if kind == "poisson" else with_zeros
    assert (x == 0).any()
    np.testing.assert_allclose(at_means(kind, means, theta, x, zero_logit), [expected.sum()], rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 16, 17, 18, 19, 255, 256, 300, 5000])
@pytest.mark.parametrize("log_theta", [-8.0, -1.0, 2.0, 5.0, 9.9])
def test_one_count_has_scipys_log_p_on_both_sides_of_every_table(count: int, log_theta: float) -> None:
    mean, theta = max(0.8, 0.9 * count), np.exp(log_theta)
    found = at_means("nb", np.array([mean]), np.array([theta]), np.array([float(count)]), np.zeros(1))
    # terms of about count times log mean cancel in float32
    expected = stats.nbinom.logpmf(count, theta, theta / (theta + mean))
    np.testing.assert_allclose(found, [expected], rtol=1e-5, atol=2e-6 + 3e-7 * count * np.log1p(mean))


def test_a_likelihood_without_compiled_loops_takes_the_plain_path() -> None:
    class Tempered(lk.Poisson):
        def pointwise(self, x: Tensor, params: Tensor, size: Tensor | None) -> Tensor:
            return 0.5 * super().pointwise(x, params, size)

    given = case("poisson")
    half = replace(given, likelihood=Tempered(70))
    check_close(evaluated(half).log_p, 0.5 * evaluated(given).log_p)


@each_kind
def test_without_a_library_size_expression_sums_to_one(kind: str) -> None:
    given = case(kind)
    found = counted.log_prob(given.likelihood, given.x, given.hidden, given.layer, None)
    expected = given.likelihood.log_prob(given.x.dense(), given.layer(given.hidden), None)
    torch.testing.assert_close(found, expected)


@each_kind
def test_log_p_without_gradients_is_the_same(kind: str) -> None:
    given = case(kind)
    expected = evaluated(given).log_p
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = counted.log_prob(given.likelihood, given.x, given.hidden, given.layer, given.size)
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


@each_kind
def test_evaluating_changes_none_of_what_it_is_given(kind: str) -> None:
    given = case(kind, counts=EXTREME)
    given_tensors = [*learned(given).values(), given.x.starts, given.x.columns, given.x.values, given.size]
    before = [each.detach().clone() for each in given_tensors]
    evaluated(given)
    for old, new in zip(before, given_tensors, strict=True):
        assert torch.equal(old, new)


@each_kind
def test_hidden_units_used_in_two_graphs_get_both_gradients(kind: str) -> None:
    first, second = case(kind, seed=0), case(kind, seed=1)
    second = replace(second, hidden=first.hidden)
    alone = [evaluated(given).gradients["hidden"] for given in (first, second)]
    log_p = [counted.log_prob(g.likelihood, g.x, g.hidden, g.layer, g.size) for g in (first, second)]
    loss = sum((each * given.cell_weight).sum() for each, given in zip(log_p, (first, second), strict=True))
    (together,) = torch.autograd.grad(loss, first.hidden)
    torch.testing.assert_close(together, alone[0] + alone[1])


@each_kind
@pytest.mark.parametrize("equal", [True, False])
def test_one_graph_can_be_differentiated_twice_with_other_weights_of_cells(kind: str, equal: bool) -> None:
    given = case(kind, equal=equal)
    log_p = counted.log_prob(given.likelihood, given.x, given.hidden, given.layer, given.size)
    tensors = list(learned(given).values())
    for weight in (given.cell_weight, torch.linspace(-1, 2, len(log_p)), torch.full_like(log_p, 3.0)):
        found = torch.autograd.grad((log_p * weight).sum(), tensors, retain_graph=True)
        expected = evaluated(replace(given, cell_weight=weight)).gradients.values()
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@each_kind
def test_a_sum_over_cells_backpropagates_as_equal_weights(kind: str) -> None:
    given = case(kind)
    counted.log_prob(given.likelihood, given.x, given.hidden, given.layer, given.size).sum().backward()
    expected = reference(replace(given, cell_weight=torch.ones(40)))
    for name, tensor in learned(given).items():
        check_close(tensor.grad, expected.gradients[name])


@each_kind
def test_gradients_add_up_over_backward_passes(kind: str) -> None:
    given = case(kind)
    for _ in range(2):
        log_p = counted.log_prob(given.likelihood, given.x, given.hidden, given.layer, given.size)
        (log_p * given.cell_weight).sum().backward()
    once = evaluated(given).gradients
    for name, tensor in learned(given).items():
        torch.testing.assert_close(tensor.grad, 2 * once[name])


def not_laid_out(layer: nn.Linear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features)
    plain.load_state_dict(layer.state_dict())
    assert plain.weight.is_contiguous()
    return plain


@each_kind
def test_log_p_of_a_layer_laid_out_is_that_of_one_not_laid_out(kind: str) -> None:
    given = case(kind, counts=EXTREME)
    assert given.layer.weight.t().is_contiguous()
    check_same(evaluated(given), evaluated(replace(given, layer=not_laid_out(given.layer))), rtol=1e-6)


def test_laying_out_changes_the_place_of_weights_and_not_their_values() -> None:
    layer = nn.Linear(7, 4)
    before, parameter = layer.weight.detach().clone(), layer.weight
    counted.lay_out(layer)
    assert layer.weight is parameter
    assert layer.weight.t().is_contiguous()
    assert layer.weight.shape == (4, 7)
    assert torch.equal(layer.weight, before)
    x = torch.randn(3, 7)
    torch.testing.assert_close(layer(x), x @ before.t() + layer.bias)


def rows(n: int, n_genes: int, density: float = 0.4) -> Counts:
    rng = np.random.default_rng(n + n_genes)
    values = rng.choice(EXTREME, (n, n_genes)) * (rng.random((n, n_genes)) < density)
    values[:: max(2, n // 3)] = 0
    return Counts.of(sp.csr_matrix(values))


def first_layer(x: Counts, layer: nn.Linear, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out = counted.log1p_linear(x, layer)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), [layer.weight, layer.bias])


def dense_first_layer(x: Counts, layer: nn.Linear, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = nn.Linear(layer.in_features, layer.out_features).double()
    wide.load_state_dict(layer.state_dict())
    out = wide(torch.log1p(x.dense().double()))
    return out.detach(), *torch.autograd.grad((out * weight.double()).sum(), [wide.weight, wide.bias])


@pytest.mark.parametrize(("n", "n_genes", "width"), [(30, 50, 8), (1, 50, 8), (100, 1, 3), (1, 1, 1), (5, 300, 17)])
@pytest.mark.parametrize("laid_out", [True, False])
def test_the_first_layer_and_its_gradients_are_those_of_dense_log_counts(
    n: int, n_genes: int, width: int, laid_out: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(n_genes, width)
    if laid_out:
        counted.lay_out(layer)
    x, weight = rows(n, n_genes), torch.randn(n, width)
    found = first_layer(x, layer, weight)
    for a, b in zip(found, dense_first_layer(x, layer, weight), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_the_first_layer_of_cells_without_counts_is_its_bias() -> None:
    layer = nn.Linear(6, 4)
    x = Counts.of(sp.csr_matrix((5, 6)))
    out, d_weight, d_bias = first_layer(x, layer, torch.ones(5, 4))
    assert torch.equal(out, layer.bias.detach().expand(5, 4))
    assert torch.equal(d_weight, torch.zeros(4, 6))
    assert torch.equal(d_bias, torch.full((4,), 5.0))


def test_the_first_layer_is_the_same_with_kernels_off(off: Callable) -> None:
    torch.manual_seed(0)
    layer, x, weight = nn.Linear(50, 8), rows(30, 50), torch.randn(30, 8)
    for a, b in zip(first_layer(x, layer, weight), off(first_layer, x, layer, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_first_layer_takes_gradients_of_any_layout() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(50, 8), rows(30, 50)
    weight = torch.randn(8, 30).t()
    assert not weight.is_contiguous()
    given = [weight, torch.ones(1, 1).expand(30, 8)]
    for each in given:
        found = torch.autograd.grad(counted.log1p_linear(x, layer), [layer.weight, layer.bias], each)
        for a, b in zip(found, dense_first_layer(x, layer, each)[1:], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_the_first_layer_is_bitwise_the_same_with_any_number_of_threads(with_threads: Callable) -> None:
    torch.manual_seed(0)
    layer, x, weight = nn.Linear(50, 8), rows(90, 50), torch.randn(90, 8)
    one, two = (with_threads(threads, first_layer, x, layer, weight) for threads in (1, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_the_first_layer_used_twice_in_one_graph_gets_both_gradients() -> None:
    torch.manual_seed(0)
    layer, weight = nn.Linear(50, 8), torch.randn(30, 8)
    both = (rows(30, 50), rows(30, 50, 0.1))
    alone = [first_layer(x, layer, weight)[1] for x in both]
    loss = sum((counted.log1p_linear(x, layer) * weight).sum() for x in both)
    (together,) = torch.autograd.grad(loss, [layer.weight])
    torch.testing.assert_close(together, alone[0] + alone[1])


@pytest.fixture
def with_stored_zeros() -> Case:
    """A case of the zero-inflated negative binomial in which every second stored count is a zero."""
    given = case("zinb", counts=(1, 2, 5), log_theta=(-2, 2))
    values = given.x.values.clone()
    values[::2] = 0
    return replace(given, x=replace(given.x, values=values))


@pytest.mark.parametrize("kind", ["nb", "poisson"])
def test_zeros_that_are_stored_count_as_zeros(kind: str) -> None:
    given = case(kind, counts=(1, 2, 5), log_theta=(-2, 2))
    given.x.values[::2] = 0
    check_same(evaluated(given), reference(given))


def test_zeros_that_are_stored_count_as_zeros_that_may_be_extra(with_stored_zeros: Case) -> None:
    check_same(evaluated(with_stored_zeros), reference(with_stored_zeros))
