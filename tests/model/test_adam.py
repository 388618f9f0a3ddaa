"""Adam on weights of any size and memory layout, against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentcell.model import counted
from latentcell.model.adam import Adam
from latentcell.model.files import read_tensors, write_tensors

RATE = 0.01
PATHS = ("compiled", "plain")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compiled loops and plain torch in turn."""
    monkeypatch.setenv("LATENTCELL_KERNELS", "auto" if request.param == "compiled" else "off")
    return request.param


def channels_last(*shape: int) -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.randn(shape).contiguous(memory_format=layout)


# what stays on its own has 8,192 values or more; chunks of compiled loops have 16,384
SETS: dict[str, Callable[[], list[Tensor]]] = {
    "mixed": lambda: [
        torch.randn(7),
        torch.randn(130, 70).t(),
        torch.randn(()),
        torch.randn(4, 5).t(),
        channels_last(64, 16, 3, 3),
        torch.randn(100, 100),
        channels_last(8, 4, 3, 3),
        torch.randn(3, 1),
    ],
    "small": lambda: [torch.randn(5), torch.randn(3, 4), torch.randn(8191)],
    "large": lambda: [torch.randn(8192), torch.randn(90, 130).t(), channels_last(16, 16, 4, 3, 3), torch.randn(20_000)],
    "one_by_one_kernels": lambda: [channels_last(128, 64, 1, 1), torch.randn(1, 9000).t(), torch.randn(2)],
}

each_set = pytest.mark.parametrize("name", SETS)


def weights(name: str, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [each.requires_grad_() for each in SETS[name]()]


def same(tensors: list[Tensor]) -> list[Tensor]:
    """Copies that are trained apart, in the same layout."""
    return [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in tensors]


def differentiate(tensors: list[Tensor], step: int, scale: float = 1.0) -> None:
    """Backpropagate a loss whose gradients depend on the weights, differ in size and are 0 for some."""
    generator = torch.Generator().manual_seed(step)
    loss = torch.zeros(())
    for i, each in enumerate(tensors):
        slope = torch.randn(each.shape, generator=generator) * 10.0 ** (i % 4 - 3)
        slope = slope * (torch.rand(each.shape, generator=generator) < 0.8)
        loss = loss + (slope * (each + 0.1 * each.square())).sum()
    (loss * scale).backward()


def trained(tensors: list[Tensor], optimiser: Adam, steps: range) -> None:
    for step in steps:
        optimiser.clear()
        differentiate(tensors, step)
        optimiser.step(RATE / (1 + 0.1 * step), 0.7)


def check_close(found: list[Tensor], expected: list[Tensor], atol: float = 2e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=atol)


def check_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def norm_of(gradients: list[Tensor]) -> float:
    return float(torch.stack([each.double().square().sum() for each in gradients]).sum().sqrt())


@each_set
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)], ids=str)
def test_twenty_steps_are_those_of_torchs_adam(name: str, betas: tuple[float, float], path: str) -> None:
    ours = weights(name)
    theirs = same(ours)
    start = same(ours)
    optimiser, reference = Adam(ours, betas), torch.optim.Adam(theirs, RATE, betas)
    for step in range(20):
        rate = RATE / (1 + 0.1 * step)
        reference.param_groups[0]["lr"] = rate
        optimiser.clear()
        reference.zero_grad()
        differentiate(ours, step)
        differentiate(theirs, step)
        optimiser.step(rate)
        reference.step()
        check_close(ours, theirs)
    assert not any(torch.equal(a, b) for a, b in zip(ours, start, strict=True))


@each_set
def test_the_first_step_is_the_rate_against_the_direction_of_each_gradient(name: str, path: str) -> None:
    tensors = weights(name)
    start = same(tensors)
    optimiser = Adam(tensors)
    differentiate(tensors, 0)
    directions = [each.grad / (each.grad.abs() + 1e-8) for each in tensors]
    optimiser.step(RATE)
    for now, before, direction in zip(tensors, start, directions, strict=True):
        torch.testing.assert_close(now.detach(), before.detach() - RATE * direction, rtol=1e-5, atol=1e-6)


@each_set
def test_scaled_gradients_are_clipped_gradients(name: str, path: str) -> None:
    ours = weights(name)
    theirs = same(ours)
    optimiser, reference = Adam(ours), torch.optim.Adam(theirs, RATE)
    for step in range(10):
        # every second gradient is short enough
        size = 1e-4 if step % 2 else 10.0
        optimiser.clear()
        reference.zero_grad()
        differentiate(ours, step, size)
        differentiate(theirs, step, size)
        norm = float(nn.utils.clip_grad_norm_(theirs, 1.0))
        assert (norm > 1) == (step % 2 == 0)
        assert optimiser.gradient_norm() == pytest.approx(norm, rel=1e-5)
        optimiser.step(RATE, min(1.0, 1.0 / (optimiser.gradient_norm() + 1e-6)))
        reference.step()
    check_close(ours, theirs)


@each_set
def test_compiled_loops_and_plain_torch_take_the_same_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for value in ("auto", "off"):
        monkeypatch.setenv("LATENTCELL_KERNELS", value)
        tensors = weights(name)
        optimiser = Adam(tensors)
        assert optimiser.compiled == (value == "auto")
        trained(tensors, optimiser, range(20))
        found.append(tensors)
    check_close(*found)


@each_set
def test_the_norm_of_the_gradient_is_that_of_all_weights_together(name: str, path: str) -> None:
    tensors = weights(name)
    optimiser = Adam(tensors)
    differentiate(tensors, 0)
    gradients = [each.grad for each in tensors]
    assert optimiser.gradient_norm() == pytest.approx(norm_of(gradients), rel=1e-5)
    assert optimiser.gradient_norm() == pytest.approx(float(nn.utils.get_total_norm(gradients)), rel=1e-5)


@each_set
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_the_norm_of_a_gradient_that_is_not_finite_is_not_finite(name: str, value: float, path: str) -> None:
    for i in range(len(SETS[name]())):
        tensors = weights(name)
        optimiser = Adam(tensors)
        differentiate(tensors, 0)
        tensors[i].grad[(-1,) * tensors[i].dim()] = value
        assert not torch.isfinite(torch.tensor(optimiser.gradient_norm()))


def test_the_norm_of_no_gradient_is_zero(path: str) -> None:
    optimiser = Adam(weights("mixed"))
    assert optimiser.gradient_norm() == 0
    differentiate(weights("mixed"), 0)
    optimiser.clear()
    assert optimiser.gradient_norm() == 0


def test_clearing_forgets_all_gradients(path: str) -> None:
    tensors = weights("mixed")
    optimiser = Adam(tensors)
    differentiate(tensors, 0)
    optimiser.clear()
    assert all(each.grad is None or not each.grad.any() for each in tensors)
    differentiate(tensors, 1)
    once = [each.grad.clone() for each in tensors]
    optimiser.clear()
    differentiate(tensors, 1)
    check_equal([each.grad for each in tensors], once)


def test_gradients_of_several_backward_passes_add_up(path: str) -> None:
    ours = weights("mixed")
    theirs = same(ours)
    optimiser, reference = Adam(ours), torch.optim.Adam(theirs, RATE)
    for step in range(3):
        optimiser.clear()
        reference.zero_grad()
        for part in range(2):
            differentiate(ours, 10 * step + part)
            differentiate(theirs, 10 * step + part)
        optimiser.step(RATE)
        reference.step()
    check_close(ours, theirs)


@each_set
@pytest.mark.parametrize("strided", [False, True])
def test_gradients_that_are_set_and_not_added_to_count(name: str, strided: bool, path: str) -> None:
    ours = weights(name)
    theirs = same(ours)
    optimiser, reference = Adam(ours), torch.optim.Adam(theirs, RATE)
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            gradient = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            if strided:
                backwards = tuple(range(a.dim()))[::-1]
                gradient = gradient.permute(backwards).contiguous().permute(backwards)
            a.grad, b.grad = gradient, gradient.clone()
        assert optimiser.gradient_norm() == pytest.approx(norm_of([each.grad for each in theirs]), rel=1e-5)
        optimiser.step(RATE)
        reference.step()
    check_close(ours, theirs)


def test_a_gradient_of_one_repeated_value_counts(path: str) -> None:
    tensors = weights("mixed")
    start = same(tensors)
    optimiser = Adam(tensors)
    for each in tensors:
        each.grad = torch.ones(()).expand(each.shape)
    assert optimiser.gradient_norm() == pytest.approx(sum(each.numel() for each in tensors) ** 0.5, rel=1e-5)
    optimiser.step(RATE)
    for now, before in zip(tensors, start, strict=True):
        torch.testing.assert_close(now.detach(), before.detach() - RATE, rtol=1e-5, atol=1e-6)


def test_gradients_that_are_set_and_then_added_to_count(path: str) -> None:
    ours = weights("mixed")
    theirs = same(ours)
    optimiser, reference = Adam(ours), torch.optim.Adam(theirs, RATE)
    for step in range(3):
        for tensors in (ours, theirs):
            for each in tensors:
                each.grad = torch.ones_like(each)
            differentiate(tensors, step)
        optimiser.step(RATE)
        reference.step()
    check_close(ours, theirs)


@each_set
def test_weights_that_never_had_a_gradient_stay(name: str, path: str) -> None:
    tensors = weights(name)
    start = same(tensors)
    optimiser = Adam(tensors)
    for _ in range(3):
        optimiser.clear()
        optimiser.step(RATE)
    check_equal(tensors, start)


@each_set
@pytest.mark.parametrize("removed", [False, True], ids=["cleared", "set_to_none"])
def test_weights_whose_gradient_ends_go_on_as_with_a_gradient_of_zero(name: str, removed: bool, path: str) -> None:
    ours = weights(name)
    theirs = same(ours)
    optimiser, reference = Adam(ours), torch.optim.Adam(theirs, RATE)
    for step in range(10):
        optimiser.clear()
        if removed:
            for each in ours:
                each.grad = None
        reference.zero_grad(set_to_none=False)
        if step < 4:
            differentiate(ours, step)
            differentiate(theirs, step)
        optimiser.step(RATE)
        reference.step()
    check_close(ours, theirs)


@each_set
def test_taking_weights_over_keeps_their_values_shapes_and_identity(name: str, path: str) -> None:
    tensors = weights(name)
    before = same(tensors)
    optimiser = Adam(tensors)
    check_equal(tensors, before)
    assert [each.shape for each in tensors] == [each.shape for each in before]
    assert {id(each) for each in tensors} == {id(each) for each in (*optimiser.small, *optimiser.large)}
    assert all(each.is_leaf and each.requires_grad for each in tensors)


@each_set
def test_large_weights_keep_their_layout(name: str, path: str) -> None:
    tensors = weights(name)
    strides = {id(each): each.stride() for each in tensors if each.numel() >= 8192}
    optimiser = Adam(tensors)
    trained(tensors, optimiser, range(3))
    assert {id(each): each.stride() for each in tensors if each.numel() >= 8192} == strides
    assert len(optimiser.large) == len(strides)


@each_set
def test_weights_changed_in_place_are_moved_from_where_they_are(name: str, path: str) -> None:
    tensors = weights(name)
    optimiser = Adam(tensors)
    trained(tensors, optimiser, range(2))
    with torch.no_grad():
        for each in tensors:
            each.copy_(torch.ones_like(each))
    optimiser.clear()
    optimiser.step(1e-9)
    for each in tensors:
        torch.testing.assert_close(each.detach(), torch.ones_like(each), rtol=0, atol=1e-6)


@each_set
@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_resumed_optimiser_goes_on_exactly(name: str, through_a_file: bool, path: str, tmp_path: Path) -> None:
    unbroken = weights(name)
    optimiser = Adam(unbroken)
    trained(unbroken, optimiser, range(6))
    stored = optimiser.state() | {f"weights.{i}": each for i, each in enumerate(unbroken)}
    if through_a_file:
        write_tensors(tmp_path / "state", stored, {})
        stored = read_tensors(tmp_path / "state")[0]
    else:
        stored = {key: each.detach().clone() for key, each in stored.items()}
    trained(unbroken, optimiser, range(6, 12))

    resumed = weights(name, seed=1)
    other = Adam(resumed)
    with torch.no_grad():
        for i, each in enumerate(resumed):
            each.copy_(stored[f"weights.{i}"])
    other.load(stored)
    assert other.n_steps == 6
    trained(resumed, other, range(6, 12))
    check_equal(resumed, unbroken)
    for key, each in other.state().items():
        assert torch.equal(each, optimiser.state()[key])


def test_an_optimiser_that_has_moved_takes_over_the_state_of_another(path: str) -> None:
    first, second = weights("mixed"), weights("mixed", seed=1)
    one, two = Adam(first), Adam(second)
    trained(first, one, range(4))
    trained(second, two, range(9))
    two.load({key: each.clone() for key, each in one.state().items()})
    with torch.no_grad():
        for a, b in zip(second, first, strict=True):
            a.copy_(b)
    for tensors, optimiser in ((first, one), (second, two)):
        trained(tensors, optimiser, range(4, 8))
    check_equal(first, second)


@each_set
def test_steps_are_bitwise_the_same_with_any_number_of_threads(name: str, path: str, with_threads: Callable) -> None:
    found = []
    for n_threads in (1, 2):
        tensors = weights(name)
        optimiser = Adam(tensors)
        gradients = [torch.randn(each.shape, generator=torch.Generator().manual_seed(8)) for each in tensors]
        for each, gradient in zip(tensors, gradients, strict=True):
            each.grad = gradient
        if path == "compiled":
            found.append([torch.tensor(with_threads(n_threads, optimiser.gradient_norm), dtype=torch.float64)])
        else:
            found.append([])
        with_threads(n_threads, optimiser.step, RATE)
        found[-1] += tensors
    check_equal(*found)


def test_a_module_trains_as_with_torchs_adam(path: str) -> None:
    def module() -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(2, 16, 4, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.Flatten(), nn.Linear(512, 20)
        )
        for each in layers.parameters():
            if each.dim() == 4:
                each.data = each.data.contiguous(memory_format=torch.channels_last)
        counted.lay_out(layers[-1])
        return layers

    ours, theirs = module(), module()
    optimiser, reference = Adam(ours.parameters()), torch.optim.Adam(theirs.parameters(), RATE)
    assert len(optimiser.large) == 2
    assert not any(each.is_contiguous() for each in optimiser.large)
    x = torch.randn(8, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    for _ in range(8):
        optimiser.clear()
        reference.zero_grad()
        ours(x).square().mean().backward()
        theirs(x).square().mean().backward()
        optimiser.step(RATE)
        reference.step()
    assert ours(x).square().mean().item() < 0.1
    check_close(list(ours.parameters()), list(theirs.parameters()), atol=2e-4)
    stored, copied = ours.state_dict(), module()
    copied.load_state_dict(stored)
    torch.testing.assert_close(copied(x), ours(x))


def test_large_weights_alone_on_another_device_take_the_plain_path() -> None:
    assert not Adam([torch.zeros(10_000, device="meta")]).compiled
