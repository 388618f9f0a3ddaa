"""Model folders: what is loaded is what was saved, and nothing in a folder is ever run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import count_cells, fit

import latentcell as lc
from latentcell.atomic import replacing, write_json
from latentcell.errors import InputError
from latentcell.model import files


@pytest.fixture
def saved(counts, tmp_path: Path) -> Path:
    counts[0].save(tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, **changes) -> None:
    """Change entries of model.json; None removes one."""
    file = folder / "model.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_loaded_model_gives_the_same_answers(model_and_cells, tmp_path: Path) -> None:
    model, cells = model_and_cells
    model.save(tmp_path / "model")
    loaded = lc.VAE.load(tmp_path / "model")
    z = model.encode(cells)
    for ours, theirs in zip(z, loaded.encode(cells), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(model.decode(z.mu), loaded.decode(z.mu))
    np.testing.assert_array_equal(model.decode(z.mu, noise=True, rng=1), loaded.decode(z.mu, noise=True, rng=1))
    pd.testing.assert_frame_equal(model.elbo(cells), loaded.elbo(cells))
    np.testing.assert_array_equal(model.seen(cells), loaded.seen(cells))
    assert loaded.report_ == model.report_
    assert loaded.sha256() == model.sha256()
    assert loaded.schema_ == model.schema_
    pd.testing.assert_frame_equal(model.history_, loaded.history_, check_dtype=False)
    pd.testing.assert_frame_equal(model.latent_, loaded.latent_, check_dtype=False)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "beta=3,free_bits=0.1"},
        {"objective": "capacity=5"},
        {"batch_key": "plate"},
        {"likelihood": "zinb"},
        {"layer": "counts"},
    ],
    ids=str,
)
def test_a_loaded_model_remembers_its_options(tmp_path: Path, options: dict) -> None:
    cells = count_cells()
    cells.layers["counts"] = cells.X.copy()
    model = fit(cells, epochs=1, **options)
    model.save(tmp_path / "model")
    loaded = lc.VAE.load(tmp_path / "model")
    for name in ("n_latent", "likelihood", "objective", "batch_key", "layer", "orientation", "width"):
        assert getattr(loaded, name) == getattr(model, name)
    np.testing.assert_array_equal(loaded.reconstruct(cells), model.reconstruct(cells))


def test_a_loaded_model_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    lc.VAE.load(saved).save(tmp_path / "again")
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == (saved / "weights.safetensors").read_bytes()
    assert lc.VAE.load(tmp_path / "again").sha256() == lc.VAE.load(saved).sha256()


def test_saving_replaces_an_older_model(saved: Path) -> None:
    newer = fit(count_cells(), rng=9)
    newer.save(saved)
    assert lc.VAE.load(saved).sha256() == newer.sha256()
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_refused(saved: Path, kept: int) -> None:
    weights = saved / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"truncated|not those"):
        lc.VAE.load(saved)


def test_weights_of_another_model_are_refused(saved: Path, tmp_path: Path) -> None:
    fit(count_cells(), rng=9).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "weights.safetensors", saved / "weights.safetensors")
    with pytest.raises(InputError, match="not those"):
        lc.VAE.load(saved)


class CreatesFile:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json"])
def test_a_pickle_posing_as_a_model_is_refused_and_not_run(saved: Path, tmp_path: Path, name: str) -> None:
    trap = tmp_path / "executed"
    (saved / name).write_bytes(pickle.dumps(CreatesFile(trap)))
    if name == "weights.safetensors":
        edit(saved, weights_sha256=files.sha256(saved / name))
    with pytest.raises(InputError):
        lc.VAE.load(saved)
    assert not trap.exists()
    pickle.loads(pickle.dumps(CreatesFile(trap)))
    assert trap.exists(), "the trap itself must work"


def test_a_pickle_given_as_the_model_folder_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    (tmp_path / "model.pt").write_bytes(pickle.dumps(CreatesFile(trap)))
    with pytest.raises(InputError, match="is a file"):
        lc.VAE.load(tmp_path / "model.pt")
    assert not trap.exists()


@pytest.mark.parametrize("content", ["", "{", '{"format_version": 1', "[]", "null", '"text"', "{}", "\x00\xff"])
def test_a_damaged_description_is_refused(saved: Path, content: str) -> None:
    (saved / "model.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.json"):
        lc.VAE.load(saved)


def test_a_description_that_is_no_text_is_refused(saved: Path) -> None:
    (saved / "model.json").write_bytes(b"\xff\xfe\x00\x81" * 10)
    with pytest.raises(InputError, match=r"model\.json"):
        lc.VAE.load(saved)


@pytest.mark.parametrize(
    "key", ["weights_sha256", "schema", "n_latent", "likelihood_resolved", "objective", "report", "history", "width"]
)
def test_a_description_that_lacks_an_entry_is_refused(saved: Path, key: str) -> None:
    edit(saved, **{key: None})
    assert key not in json.loads((saved / "model.json").read_text())
    with pytest.raises(InputError):
        lc.VAE.load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_latent": 7},
        {"width": 16},
        {"likelihood_resolved": ["zinb", None]},
        {"likelihood_resolved": ["typo", None]},
        {"objective": {"name": "typo"}},
        {"schema": {"modality": "counts"}},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_the_weights_is_refused(saved: Path, changes: dict) -> None:
    edit(saved, **changes)
    with pytest.raises(InputError):
        lc.VAE.load(saved)


def test_a_model_of_a_newer_version_says_to_update(saved: Path) -> None:
    edit(saved, format_version=files.FORMAT_VERSION + 1)
    with pytest.raises(InputError, match="newer latentcell"):
        lc.VAE.load(saved)


@pytest.mark.parametrize("missing", ["model.json", "weights.safetensors"])
def test_a_missing_file_is_named(saved: Path, missing: str) -> None:
    (saved / missing).unlink()
    with pytest.raises(InputError, match=missing.replace(".", r"\.")):
        lc.VAE.load(saved)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        lc.VAE.load(tmp_path / "nowhere")


def assert_intact(folder: Path, sha256: str) -> None:
    assert lc.VAE.load(folder).sha256() == sha256
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]


def full_disk(tensors, path, **_) -> None:
    Path(path).write_bytes(b"half of the wei")
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_no_partial_model(counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        counts[0].save(tmp_path / "runs" / "model")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_full_disk_leaves_the_old_model_as_it_was(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lc.VAE.load(saved).sha256()
    newer = fit(count_cells(), rng=9, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            newer.save(saved)
    assert lc.VAE.load(saved).sha256() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "weights.safetensors"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_when_the_last_step_fails_the_old_content_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    target = tmp_path / "target"
    content = target / "content" if kind == "folder" else target
    content.parent.mkdir(exist_ok=True)
    content.write_text("old")

    def fail(source, path) -> None:
        raise OSError(5, "Input/output error")

    def write_new() -> None:
        with replacing(target) as temporary:
            written = temporary / "content" if kind == "folder" else temporary
            written.parent.mkdir(exist_ok=True)
            written.write_text("new")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="Input/output"):
            write_new()
    assert content.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_paths_may_be_text(counts, tmp_path: Path) -> None:
    counts[0].save(str(tmp_path / "model"))
    assert lc.VAE.load(str(tmp_path / "model")).sha256() == counts[0].sha256()
