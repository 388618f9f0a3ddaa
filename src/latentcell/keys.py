"""Every AnnData key that latentcell reads or writes, in one place.

==========================  =====================================================================
``obsm["images"]``          single-cell crops, ``(n, C, H, W)`` or ``(n, C, Z, H, W)``, as stored
``obsm["masks"]``           optional cell masks, ``(n, H, W)`` or ``(n, Z, H, W)``, nonzero inside the cell
``uns["images"]``           ``{"channel_names": [...]}``
``obsm[key_added]``         posterior mean, ``(n, d)`` float32 (default ``key_added="vae"``)
``obsm[key_added_var]``     posterior variance, ``(n, d)`` float32
``obs[key_added_elbo]``     evidence lower bound per cell in nats, float32 (also ``_log_px``, ``_kl``)
``obs[key_added_seen]``     whether the model was fitted on the cell, boolean
``uns[key_added]``          ``{params, versions, rng, model_sha256, var_names_sha256}``
``uns["interpolate"]``      parameters, plausibility, evaluation and verdict of the last interpolation
``uns["arithmetic"]``       expression and terms behind decoded cells
``uns["factors"]``          tables, maps, verdict and parameters of the last question for factors
``obsm["factors"]``         codes that its factors were held against, ``(n, d)`` float32
``uns["screen"]``           tables, verdict and parameters of the last screen
``obsm["screen_residual"]`` mean squared residual per cell, ``(n, k)`` float32 (``obs``: ``screen_log_var``,
                            ``screen_typicality``, ``screen_label``, ``screen_role``)
``obsm["sampled"]``         of decoded images, ``layers["sampled"]`` of others: one draw with noise
``obsm["shape"]``           of an Integrated Cell: codes of the reference, ``(n, d)`` float32 (also ``shape_var``)
``obsm["organisation"]``    codes of the structure that a cell shows, ``(n, d)`` float32 (also ``organisation_var``;
                            with several targets ``organisation_NAME``)
``obsm["spread"]``          of predicted structures: SD over the organisation, ``(n, S, ...)`` float32
``uns["dataset"]``          of a public data set: name, licence, paper to cite and page
``obs["kept_out"]``         cells that no fit may see: ``"yes"`` or ``"no"``
``layers["moved"]``         of predicted counts and profiles: measurements moved without the decoder
==========================  =====================================================================
"""

from __future__ import annotations

from latentcell.errors import InputError

IMAGES = "images"
MASKS = "masks"
CHANNEL_NAMES = "channel_names"
# columns of images on disk that are meant, where not all are; only between models, never in a file of cells
CHANNELS_TAKEN = "channels_taken"
VAE = "vae"
INTERPOLATE = "interpolate"
ARITHMETIC = "arithmetic"
SCREEN = "screen"
FACTORS = "factors"
SAMPLED = "sampled"
SHAPE = "shape"
ORGANISATION = "organisation"
SPREAD = "spread"
KEPT_OUT = "kept_out"
MOVED = "moved"
DATASET = "dataset"


def variance(key_added: str) -> str:
    """Key of the posterior variance in ``obsm``."""
    return f"{key_added}_var"


def elbo_terms(key_added: str) -> dict[str, str]:
    """Columns of ``obs`` that hold the per-cell ELBO terms, by term name."""
    return {term: f"{key_added}_{term}" for term in ("elbo", "log_px", "kl")}


def seen(key_added: str) -> str:
    """Column of ``obs`` that tells which cells the model was fitted on."""
    return f"{key_added}_seen"


def checked(key_added: str) -> str:
    """Return `key_added`, refusing names that AnnData cannot store."""
    if not key_added or "/" in key_added:
        raise InputError(f"key_added={key_added!r} cannot be an AnnData key: use a non-empty name without '/'.")
    return key_added
