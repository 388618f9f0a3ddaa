"""What of a model goes into its folder, and a model made from it again."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import torch
from torch import Tensor

from latentcell.model import objectives
from latentcell.model.guidance import Factors
from latentcell.model.population import Population
from latentcell.model.refiner import Refiner
from latentcell.model.schema import Schema

if TYPE_CHECKING:
    from latentcell.model.integrated import IntegratedCell
    from latentcell.model.vae import VAE

Model = TypeVar("Model", bound="VAE")
Integrated = TypeVar("Integrated", bound="IntegratedCell")

# start of the names of the refiner's weights
_REFINER = "_refiner."
# and of what else a model of structures has learnt
_LEARNT = "_learnt."


def weights(model: VAE) -> dict[str, Tensor]:
    """Weights by name, those of the refiner, if there is one, included."""
    refiner = {} if model._refiner is None else model._refiner.state_dict()
    return dict(model._module.state_dict()) | {f"{_REFINER}{name}": value for name, value in refiner.items()}


def packed(model: VAE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON-ready description of a fitted model."""
    tensors = weights(model)
    for name, values in (("_fitted", model._fitted), ("_held_out", model._held_out)):
        tensors[name] = torch.from_numpy(values.view("int64").copy())
    return tensors, {
        "n_latent": model.n_latent,
        "likelihood": model.likelihood,
        "likelihood_resolved": model._likelihood,
        "objective": objectives.describe(model.objective),
        "factors": asdict(model.factors),
        "orientation": model.orientation,
        "width": model.width,
        "schema": model.schema_.to_dict(),
        "report": model.report_,
        "history": model.history_.to_dict("list"),
    }


def unpacked(cls: type[Model], tensors: dict[str, Tensor], config: dict[str, Any]) -> Model:
    """Inverse of `packed`."""
    schema = Schema.from_dict(config["schema"])
    model = cls(
        config["n_latent"],
        likelihood=config["likelihood"],
        objective=objectives.from_description(config["objective"]),
        factors=Factors(**config.get("factors", {})),
        batch_key=schema.batch_key,
        layer=schema.layer,
        orientation=config["orientation"],
        width=config["width"],
    )
    model.schema_ = schema
    name, number = config["likelihood_resolved"]
    model._likelihood = (name, number)
    model._fitted = tensors.pop("_fitted").numpy().view("uint64")
    # older folders do not tell the cells of early stopping apart
    model._held_out = tensors.pop("_held_out", torch.empty(0, dtype=torch.int64)).numpy().view("uint64")
    refiner = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_REFINER)}
    if refiner:
        model._refiner = Refiner(schema.shape).eval()
        model._refiner.load_state_dict({name.removeprefix(_REFINER): value for name, value in refiner.items()})
    model._module = model._build(0)
    model._module.load_state_dict(tensors)
    model._module.eval()
    model.report_ = config["report"]
    model.history_ = pd.DataFrame(config["history"])
    model.latent_ = pd.DataFrame(model.report_["latent"])
    return model


def packed_structures(model: IntegratedCell) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON-ready description of the conditional model of a fitted `IntegratedCell`."""
    learnt = {"ranges": model.ranges_, "averages": model.averages_[0], "variances": model.averages_[1]}
    for i, each in enumerate([model._shapes, *model._organisations]):
        learnt |= {f"{i}.mean": each.mean, f"{i}.root": each.root}
    tensors = {f"{_LEARNT}{name}": torch.from_numpy(values) for name, values in learnt.items()}
    return dict(model._module.state_dict()) | tensors, {
        "settings": model._settings(),
        "objective": objectives.describe(model.objective),
        "structures": model.structures_,
        "report": model.report_,
        "history": model.history_.to_dict("list"),
    }


def unpacked_structures(
    cls: type[Integrated], tensors: dict[str, Tensor], config: dict[str, Any], shape: VAE
) -> Integrated:
    """Inverse of `packed_structures`; `shape` is the model of the shape."""
    model = cls(**config["settings"], objective=objectives.from_description(config["objective"]))
    model.reference_, model.structures_ = shape, config["structures"]
    names = [name for name in tensors if name.startswith(_LEARNT)]
    learnt = {name.removeprefix(_LEARNT): tensors.pop(name).numpy() for name in names}
    model.ranges_, model.averages_ = learnt["ranges"], (learnt["averages"], learnt["variances"])
    n = 1 + len(model.structures_)
    model._shapes, *model._organisations = [Population(learnt[f"{i}.mean"], learnt[f"{i}.root"]) for i in range(n)]
    model._module = model._build(0)
    model._module.load_state_dict(tensors)
    model._module.eval()
    model.report_, model.history_ = config["report"], pd.DataFrame(config["history"])
    model.latent_ = pd.DataFrame(model.report_["latent"])
    return model
