"""Model files: safetensors and JSON, written whole or not at all, read without running code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentcell.atomic import replacing
from latentcell.errors import InputError

FORMAT_VERSION = 1
_CONFIG, _WEIGHTS = "model.json", "weights.safetensors"


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors with a JSON description in the header, atomically."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"about": json.dumps(about)})
        # safetensors writes for the owner alone, but labs share folders
        temporary.chmod(0o644)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `write_tensors`.

    Raises
    ------
    InputError
        If the file is missing, truncated or no safetensors file (a pickle is never opened).
    """
    if not path.is_file():
        raise InputError(f"There is no model file at {path}.")
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
            about = json.loads((stored.metadata() or {}).get("about", "{}"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as a latentcell model: it is truncated, damaged or another kind of file "
            f"({error}). Files that run code when loaded, such as pickles, are never opened. Copy the file again or "
            "refit."
        ) from None
    return tensors, about


def write_model(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> str:
    """Write a model folder (``model.json`` and ``weights.safetensors``) atomically; returns the weights' sha256."""
    with replacing(Path(folder)) as temporary:
        temporary.mkdir()
        write_tensors(temporary / _WEIGHTS, tensors, {"format_version": FORMAT_VERSION})
        digest = sha256(temporary / _WEIGHTS)
        stored = {"format_version": FORMAT_VERSION, "weights_sha256": digest, **config}
        (temporary / _CONFIG).write_text(json.dumps(stored, indent=1))
    return digest


def read_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a model folder.

    Raises
    ------
    InputError
        If files are missing, damaged, do not belong together, or come from a newer latentcell.
    """
    folder = Path(folder)
    config_file = folder / _CONFIG
    if not config_file.is_file():
        found = "is a file" if folder.is_file() else "holds none" if folder.is_dir() else "does not exist"
        raise InputError(f"Expected a latentcell model folder with {_CONFIG}, but {folder} {found}.")
    try:
        config = json.loads(config_file.read_text())
        version, digest = int(config["format_version"]), str(config["weights_sha256"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise InputError(f"{config_file} is damaged: it is no model description. Copy the folder again.") from None
    if version > FORMAT_VERSION:
        raise InputError(
            f"{folder} was written by a newer latentcell (format {version}, this one reads up to {FORMAT_VERSION}). "
            "Update latentcell: pip install -U latentcell."
        )
    tensors, _ = read_tensors(folder / _WEIGHTS)
    if sha256(folder / _WEIGHTS) != digest:
        raise InputError(
            f"The weights in {folder} are not those that {_CONFIG} describes. Copy the whole folder again."
        )
    return tensors, config


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Hex digest of named tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
