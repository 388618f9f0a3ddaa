"""The package as a whole: light to import, documented, and free of formats that run code."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentcell as lc

SOURCE = Path(lc.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(lc.__path__, "latentcell."))
HEAVY = ["torch", "matplotlib", "scanpy", "anndata", "pandas", "scipy", "sklearn", "zarr", "ot", "skimage", "numpy"]


def loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter holds after `statement`."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(found.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import latentcell; dir(latentcell); latentcell.__version__").isdisjoint(HEAVY)


def test_the_error_and_the_command_line_load_without_torch_or_matplotlib() -> None:
    loaded = loaded_by("import latentcell, latentcell.cli; latentcell.InputError")
    assert loaded.isdisjoint({"torch", "matplotlib"})


def test_the_model_loads_without_matplotlib_or_scanpy() -> None:
    assert loaded_by("import latentcell; latentcell.VAE").isdisjoint({"matplotlib", "scanpy"})


@pytest.mark.parametrize("name", lc.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(lc, name) is not None
    assert name in dir(lc)


def test_the_names_of_the_examples_resolve_without_further_imports() -> None:
    loaded_by("import latentcell as lc; lc.cells.simulate.counts; lc.tl.embed; lc.objectives.Beta(4.0)")


def test_a_function_keeps_its_name_when_the_module_behind_it_is_imported() -> None:
    program = "import latentcell; import latentcell.stats.features; print(latentcell.stats.image_features)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("<function image_features")


def test_a_fit_needs_no_statistics_of_scipy() -> None:
    assert loaded_by("import latentcell.model.vae").isdisjoint({"scipy.stats", "scipy.interpolate", "sklearn"})


def test_unknown_names_raise_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        lc.nothing  # noqa: B018


def public_members() -> Iterator[tuple[str, object]]:
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, member in vars(module).items():
            if name.startswith("_") or getattr(member, "__module__", None) != module_name:
                continue
            if inspect.isfunction(member) or inspect.isclass(member):
                yield f"{module_name}.{name}", member
            if inspect.isclass(member):
                for attribute, value in vars(member).items():
                    if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                        yield f"{module_name}.{name}.{attribute}", value


def test_everything_public_has_a_docstring() -> None:
    undocumented = [name for name, member in public_members() if not inspect.getdoc(member)]
    modules = [name for name in ["latentcell", *MODULES] if not importlib.import_module(name).__doc__]
    assert undocumented + modules == []


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_module_uses_a_format_that_runs_code(file: Path) -> None:
    text = file.read_text()
    found = re.findall(r"import pickle|torch\.load\b|allow_pickle=True|joblib|\beval\(|\bexec\(", text)
    # module.eval() of torch only switches the mode
    assert [hit for hit in found if hit != "eval("] == []
    assert not re.search(r"(?<!\.)\beval\(", text)


def test_the_error_is_a_value_error_so_that_callers_need_no_import() -> None:
    assert issubclass(lc.InputError, ValueError)
