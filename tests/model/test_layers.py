"""Layer normalisation, SiLU, dropout and the linear layers between them, as one step of differentiation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from latentcell.model.layers import GroupNormSiLU, Layers, NormSiLU


@pytest.fixture(autouse=True)
def _kernels_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTCELL_KERNELS", raising=False)


def normed(width: int) -> NormSiLU:
    layer = NormSiLU(width)
    with torch.no_grad():
        layer.weight.normal_(1, 0.5)
        layer.bias.normal_(0, 0.5)
    return layer


Modules = list[NormSiLU | nn.Linear]
ARRANGEMENTS: dict[str, Callable[[], Modules]] = {
    "activation": lambda: [normed(9)],
    "linear": lambda: [nn.Linear(9, 4)],
    "encoder": lambda: [normed(9), nn.Linear(9, 7), normed(7), nn.Linear(7, 6)],
    "decoder": lambda: [nn.Linear(9, 8), normed(8), nn.Linear(8, 11), normed(11)],
    "two_activations": lambda: [normed(9), normed(9)],
    "two_linear": lambda: [nn.Linear(9, 5), nn.Linear(5, 3)],
    "wide": lambda: [nn.Linear(9, 130), normed(130)],
    "narrow": lambda: [nn.Linear(9, 3), normed(3), nn.Linear(3, 1)],
}

each_arrangement = pytest.mark.parametrize("name", ARRANGEMENTS)


def modules(name: str) -> Modules:
    torch.manual_seed(0)
    return ARRANGEMENTS[name]()


def build(name: str, dropout: float = 0.0) -> Layers:
    return Layers(*modules(name), dropout=dropout)


def inputs(n: int = 21, width: int = 9) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1)) * 2 + 1


def differentiated(layers: nn.Module, x: Tensor, seed: int = 3) -> list[Tensor]:
    """Outputs, and the gradients of a weighted sum of them for the inputs and all parameters."""
    x = x.detach().requires_grad_() if x.is_leaf else x
    torch.manual_seed(seed)
    out = layers(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), [x, *layers.parameters()])]


def in_float64(modules: Modules, x: Tensor) -> list[Tensor]:
    """The same by torch's own operators and autograd in double precision, without dropout."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(copy.deepcopy(modules)).double()

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                linear = isinstance(layer, nn.Linear)
                x = layer(x) if linear else F.silu(F.layer_norm(x, x.shape[1:], layer.weight, layer.bias, 1e-5))
            return x

    out, d_x, *gradients = differentiated(Plain(), x.double())
    return [out, d_x, torch.cat([each.flatten() for each in gradients])]


def check_close(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-5) -> None:
    """Relative to the largest entry of each."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        # an input that normalisation takes out again has a gradient of rounding errors only
        assert (a.double() - b.double()).abs().max() <= rtol * b.abs().max() + 1e-5


@each_arrangement
def test_the_switch_decides_what_computes_the_layers(name: str, off: Callable) -> None:
    def computed_by() -> str:
        return build(name)(inputs().requires_grad_()).grad_fn.name()

    assert computed_by() == "_LayersBackward"
    assert off(computed_by) != "_LayersBackward"


@each_arrangement
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 100])
def test_outputs_and_gradients_are_those_of_float64_autograd(name: str, n: int) -> None:
    layers, x = build(name), inputs(n)
    check_close(differentiated(layers, x), in_float64(modules(name), x))


def test_a_single_unit_is_normalised_away() -> None:
    torch.manual_seed(0)
    made, x = [nn.Linear(9, 1), normed(1), nn.Linear(1, 2)], inputs()
    layers = Layers(*made)
    assert (layers(x) == layers(x)[0]).all()
    check_close(differentiated(layers, x), in_float64(made, x))


@each_arrangement
def test_layers_with_kernels_off_are_those_of_float64_autograd(name: str, off: Callable) -> None:
    layers, x = build(name), inputs()
    check_close(off(differentiated, layers, x), in_float64(modules(name), x))


@each_arrangement
@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.5, 0.9])
def test_both_paths_give_the_same_with_the_same_seed_of_torch(name: str, dropout: float, off: Callable) -> None:
    layers, x = build(name, dropout).train(), inputs(41)
    check_close(differentiated(layers, x), off(differentiated, layers, x))


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 129])
@pytest.mark.parametrize("n", [1, 2, 3, 33])
def test_both_paths_drop_the_same_units_of_any_number(n: int, width: int, off: Callable) -> None:
    def dropped() -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        # the bias keeps the activation of a unit that is not dropped away from zero
        layer = NormSiLU(width)
        with torch.no_grad():
            layer.bias.fill_(10.0)
        out = Layers(layer, dropout=0.4).train()(inputs(n, width))
        return out.detach() == 0, torch.rand(4)

    (compiled, next_drawn), (plain, next_drawn_plain) = dropped(), off(dropped)
    assert torch.equal(compiled, plain)
    assert torch.equal(next_drawn, next_drawn_plain)


def test_gradients_match_finite_differences() -> None:
    layers, x = build("encoder", 0.3).train(), inputs(6)
    tensors = [x.clone().requires_grad_(), *layers.parameters()]
    analytic = differentiated(layers, x)[1:]

    def total() -> float:
        torch.manual_seed(3)
        out = layers(tensors[0]).detach().double()
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).double()
        return float((out * weight).sum())

    for tensor, gradient in zip(tensors, analytic, strict=True):
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(4))
        moved = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                before = tensor.clone()
                tensor += step * direction
                moved.append(total())
                tensor.copy_(before)
        expected = float((gradient * direction).double().sum())
        assert (moved[0] - moved[1]) / 2e-3 == pytest.approx(expected, rel=5e-3, abs=2e-2)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("path", ["compiled", "plain"])
def test_the_share_of_dropped_units_is_the_one_asked_for(share: float, path: str, off: Callable) -> None:
    torch.manual_seed(0)
    layer = NormSiLU(97)
    with torch.no_grad():
        layer.bias.fill_(10.0)
    layers, x = Layers(layer, dropout=share).train(), inputs(600, 97)
    out = layers(x) if path == "compiled" else off(layers, x)
    dropped = out == 0
    low, high = stats.binom.interval(1 - 1e-9, dropped.numel(), share)
    assert low <= int(dropped.sum()) <= high
    # nor does a cell or a unit lose all the time
    for axis in (0, 1):
        low, high = stats.binom.interval(1 - 1e-9, dropped.shape[axis], share)
        assert ((low <= dropped.sum(axis)) & (dropped.sum(axis) <= high)).all()


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_dropout_scales_what_it_keeps_so_that_the_expectation_stays(share: float) -> None:
    torch.manual_seed(0)
    layers, x = Layers(normed(8), dropout=share), inputs(1, 8)
    expected = layers.eval()(x).detach()
    drawn = layers.train()(x.expand(20_000, 8)).detach()
    kept = drawn != 0
    torch.testing.assert_close(drawn[kept], (expected.expand_as(drawn) / (1 - share))[kept], rtol=1e-5, atol=1e-7)
    error = expected.abs() * (share / (1 - share) / len(drawn)) ** 0.5
    assert ((drawn.mean(0, keepdim=True) - expected).abs() < 6 * error).all()


@pytest.mark.parametrize("path", ["compiled", "plain"])
def test_nothing_is_dropped_in_evaluation_and_no_random_number_drawn(path: str, off: Callable) -> None:
    layers, x = build("encoder", 0.5).eval(), inputs()
    without = build("encoder", 0.0).train()

    def evaluated() -> Tensor:
        torch.manual_seed(9)
        out = layers(x)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(9)))
        return out

    out = evaluated() if path == "compiled" else off(evaluated)
    torch.testing.assert_close(out, without(x), rtol=1e-5, atol=1e-6)


def test_dropped_units_pass_no_gradient_on() -> None:
    torch.manual_seed(0)
    layers = Layers(NormSiLU(50), dropout=0.5).train()
    x = inputs(1, 50).requires_grad_()
    out = layers(x)
    out.sum().backward()
    dropped = out.detach()[0] == 0
    assert 0 < dropped.sum() < 50
    bias = layers.values.grad[50:]
    assert (bias[dropped] == 0).all()
    assert (bias[~dropped] != 0).all()


VIEWS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: inputs(9, 21).t(),
    "columns": lambda: inputs(21, 18)[:, ::2],
    "rows": lambda: inputs(42)[::2],
    "one_cell_many_times": lambda: inputs(1).expand(21, 9),
    "from_the_middle": lambda: inputs(40, 20)[3:24, 5:14],
}


@each_arrangement
@pytest.mark.parametrize("view", VIEWS)
def test_inputs_of_any_layout_give_the_same(name: str, view: str) -> None:
    layers, x = build(name), VIEWS[view]()
    assert not x.is_contiguous()
    check_close(differentiated(layers, x), differentiated(layers, x.contiguous()), rtol=1e-6)


@each_arrangement
def test_gradients_of_any_layout_give_the_same_and_are_left_alone(name: str) -> None:
    layers, x = build(name), inputs().requires_grad_()
    out = layers(x)
    strided = torch.randn(out.shape[::-1], generator=torch.Generator().manual_seed(6)).t()
    for given in (strided, torch.ones(1, 1).expand_as(out), torch.randn(out.shape)):
        before = given.clone()
        found = torch.autograd.grad(out, [x, *layers.parameters()], given, retain_graph=True)
        expected = torch.autograd.grad(layers(x), [x, *layers.parameters()], given.contiguous().clone())
        assert torch.equal(given, before)
        check_close(list(found), list(expected), rtol=1e-6)


@each_arrangement
def test_inputs_are_left_alone(name: str) -> None:
    layers, x = build(name, 0.5).train(), inputs()
    before = x.clone()
    differentiated(layers, x)
    assert torch.equal(x, before)


@each_arrangement
def test_one_graph_can_be_differentiated_twice(name: str) -> None:
    layers, x = build(name, 0.3).train(), inputs().requires_grad_()
    out = layers(x)
    tensors = [x, *layers.parameters()]
    first, second = (torch.autograd.grad(out.square().sum(), tensors, retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_layers_used_twice_in_one_graph_get_both_gradients() -> None:
    layers = build("encoder")
    both = (inputs(21), inputs(21, 9) * 0.5 - 1)
    alone = [torch.autograd.grad(layers(x).square().sum(), list(layers.parameters())) for x in both]
    together = torch.autograd.grad(sum(layers(x).square().sum() for x in both), list(layers.parameters()))
    for a, b, c in zip(together, *alone, strict=True):
        torch.testing.assert_close(a, b + c, rtol=1e-5, atol=1e-5)


def test_gradients_add_up_over_backward_passes() -> None:
    layers, x = build("decoder"), inputs()
    for _ in range(3):
        layers(x).square().sum().backward()
    once = torch.autograd.grad(layers(x).square().sum(), list(layers.parameters()))
    for parameter, gradient in zip(layers.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * gradient)


@each_arrangement
def test_layers_are_bitwise_the_same_with_any_number_of_threads(name: str, with_threads: Callable) -> None:
    layers, x = build(name, 0.3).train(), inputs(75)
    one, two = (with_threads(threads, differentiated, layers, x) for threads in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


def test_constant_and_extreme_rows_stay_finite() -> None:
    layer = normed(6)
    x = torch.zeros(6, 6)
    x[1] = 3.0
    x[2] = 1e12 * torch.arange(6)
    x[3, 0] = 1e15
    x[4] = 1e-30 * torch.arange(6)
    with torch.no_grad():
        layer.bias += torch.tensor([-500.0, 500.0, -90.0, 90.0, 0.0, 1.0])
    layers = Layers(layer)
    for each in differentiated(layers, x):
        assert torch.isfinite(each).all()
    check_close(differentiated(layers, x[:2]), in_float64([layer], x[:2]))


def test_a_cells_outputs_do_not_depend_on_the_other_cells_or_their_order() -> None:
    layers, x = build("encoder"), inputs(37)
    whole = layers(x)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layers(x[order]), whole[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layers(x[5:6]), whole[5:6], rtol=1e-5, atol=1e-6)


def test_float64_is_computed_in_float64() -> None:
    layers = build("encoder").double()
    x = inputs().double()
    expected = in_float64(modules("encoder"), x)
    for a, b in zip(differentiated(layers, x), expected, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@each_arrangement
def test_layers_without_cells_give_none(name: str) -> None:
    layers = build(name, 0.2).train()
    assert layers(torch.empty(0, 9)).shape == (0, layers(inputs()).shape[1])


@each_arrangement
def test_a_copy_trains_on_its_own_parameters(name: str) -> None:
    original = build(name)
    copied, x = copy.deepcopy(original), inputs()
    before = original(x).detach()
    assert torch.equal(copied(x), before)
    copied(x).square().sum().backward()
    assert all(each.grad is None for each in original.parameters())
    assert all(each.grad is not None for each in copied.parameters())
    with torch.no_grad():
        for each in copied.parameters():
            each += 0.5
    assert torch.equal(original(x), before)
    assert not torch.equal(copied(x), before)


def test_a_copy_of_a_module_of_layers_trains_on_its_own_parameters() -> None:
    original = nn.ModuleDict({"a": build("encoder"), "b": build("decoder")})
    copied = copy.deepcopy(original)
    (copied["a"](inputs()).sum() + copied["b"](inputs()).sum()).backward()
    assert all(each.grad is None for each in original.parameters())
    assert all(each.grad is not None for each in copied.parameters())


@each_arrangement
def test_weights_come_back_from_a_state_dict(name: str) -> None:
    original, x = build(name), inputs()
    torch.manual_seed(99)
    other = Layers(*ARRANGEMENTS[name]())
    assert not torch.equal(other(x), original(x))
    other.load_state_dict(original.state_dict())
    assert torch.equal(other(x), original(x))
    check_close(differentiated(other, x), differentiated(original, x), rtol=0)


@each_arrangement
def test_every_parameter_gets_a_gradient_of_its_own_shape(name: str) -> None:
    layers = build(name)
    layers(inputs()).square().sum().backward()
    for parameter in layers.parameters():
        assert parameter.grad.shape == parameter.shape


def test_parameters_that_need_no_gradient_get_none() -> None:
    layers, x = build("encoder").requires_grad_(False), inputs().requires_grad_()
    layers(x).square().sum().backward()
    assert layers.values.grad is None
    assert x.grad is not None


def test_outputs_without_gradients_are_the_same() -> None:
    layers, x = build("encoder"), inputs()
    expected = layers(x).detach().numpy()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            np.testing.assert_array_equal(layers(x).numpy(), expected)


IMAGES = {
    "plane": (5, 16, 32, 32),
    "odd": (3, 3, 7, 5),
    "volume": (2, 24, 5, 6, 7),
    "bottom": (4, 128, 4, 4),
    "many_channels": (2, 300, 3, 3),
    "one_image": (1, 8, 9, 4),
}


def images(name: str) -> Tensor:
    x = torch.randn(IMAGES[name], generator=torch.Generator().manual_seed(1)) * 3 + 10
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def grouped(name: str) -> GroupNormSiLU:
    torch.manual_seed(0)
    channels = IMAGES[name][1]
    layer = GroupNormSiLU(math.gcd(8, channels), channels)
    with torch.no_grad():
        layer.weight.normal_(1, 0.5)
        layer.bias.normal_(0, 0.5)
    return layer


@pytest.mark.parametrize("name", IMAGES)
def test_group_norm_of_images_is_that_of_float64_autograd_on_both_paths(name: str, off: Callable) -> None:
    layer, x = grouped(name), images(name)
    assert layer(x.requires_grad_()).grad_fn.name() == "_GroupNormSiLUBackward"
    expected = differentiated(copy.deepcopy(layer).double(), x.detach().double())
    check_close(differentiated(layer, x.detach()), expected)
    check_close(off(differentiated, layer, x.detach()), expected)


@pytest.mark.parametrize("name", IMAGES)
def test_group_norm_is_bitwise_the_same_with_any_number_of_threads(name: str, with_threads: Callable) -> None:
    layer, x = grouped(name), images(name)
    one, two = (with_threads(threads, differentiated, layer, x) for threads in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


def test_group_norm_takes_images_of_any_layout() -> None:
    layer, x = grouped("plane"), images("plane")
    check_close(differentiated(layer, x.contiguous()), differentiated(layer, x))
