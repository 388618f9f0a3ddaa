"""One timed fit of counts, by latentcell or by scvi-tools, as a process of its own that prints JSON.

``python -m benchmarks.speed.fits latentcell|scvi FILE LIKELIHOOD EPOCHS``; the file is an h5ad with obs["held_out"]. It
runs in either environment and imports only what the fit needs.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings

import anndata as ad
import numpy as np
from benchmarks.speed.processes import peak_kb
from scipy.special import expit, gammaln

HIDDEN, LATENT, BATCH, DRAWS = 128, 10, 128, 5


def log_p(x: np.ndarray, mu: np.ndarray, theta: np.ndarray, logit: np.ndarray | None) -> np.ndarray:
    """Log likelihood of counts per cell in float64: the one evaluator of both."""
    x, mu, theta = (np.asarray(each, dtype=np.float64) for each in (x, mu, theta))
    mu = np.maximum(mu, 1e-12)
    log_ratio = np.log1p(mu / theta)
    log_nb = gammaln(x + theta) - gammaln(theta) - gammaln(x + 1) - (x + theta) * log_ratio + x * np.log(mu / theta)
    if logit is None:
        return log_nb.sum(1)
    kept, extra = -np.logaddexp(0, logit), np.log(expit(np.maximum(logit, -700)))
    return np.where(x > 0, kept + log_nb, np.logaddexp(extra, kept + log_nb)).sum(1)


def kl(mu: np.ndarray, var: np.ndarray) -> np.ndarray:
    return 0.5 * (mu**2 + var - 1 - np.log(var)).sum(1)


def latentcell(cells: ad.AnnData, held_out: ad.AnnData, likelihood: str, epochs: int) -> dict[str, float]:
    import torch

    import latentcell as lc

    model = lc.VAE(LATENT, likelihood=likelihood, batch_key="batch")
    before = peak_kb()
    started = time.perf_counter()
    model.fit(cells, epochs=epochs, rng=0)
    seconds = time.perf_counter() - started
    peak_after = peak_kb()
    peak = peak_after - before
    encode = timed(lambda: model.encode(cells))
    latent, rng = model.encode(held_out), np.random.default_rng(0)
    source, x = model.schema_.source(held_out), held_out.X.toarray()
    theta = model._module.likelihood.log_theta.detach().clamp(-10, 10).exp().numpy()
    elbo = np.zeros(len(x))
    for _ in range(DRAWS):
        z = (latent.mu + np.sqrt(latent.var) * rng.standard_normal(latent.mu.shape)).astype(np.float32)
        with torch.inference_mode():
            raw = model._module.network.decode(torch.from_numpy(z), torch.from_numpy(source.covariates))
            scores = raw[:, : x.shape[1]].double()
            mu = torch.softmax(scores, 1).numpy() * source.size[:, None]
        logit = raw[:, x.shape[1] :].double().numpy() if likelihood == "zinb" else None
        elbo += log_p(x, mu, theta, logit) / DRAWS
    return {
        "seconds": seconds,
        "loop_seconds": model.report_["seconds"],
        "growth": peak,
        "peak": peak_after,
        "encode": encode,
        "elbo": float((elbo - kl(latent.mu, latent.var)).mean()),
        "threads": model.report_["threads"],
    }


def scvi(cells: ad.AnnData, held_out: ad.AnnData, likelihood: str, epochs: int) -> dict[str, float]:
    import scvi
    import torch

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.seed, scvi.settings.verbosity = 0, logging.ERROR
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    sizes = {"n_hidden": HIDDEN, "n_layers": 2, "n_latent": LATENT}
    model = scvi.model.SCVI(cells, gene_likelihood=likelihood, **sizes)
    steps = epochs * -(-int(0.9 * cells.n_obs) // BATCH)
    before = peak_kb()
    started = time.perf_counter()
    model.train(
        max_epochs=epochs,
        accelerator="cpu",
        train_size=0.9,
        batch_size=BATCH,
        enable_progress_bar=False,
        plan_kwargs={"n_epochs_kl_warmup": None, "n_steps_kl_warmup": max(1, min(1000, steps // 3))},
    )
    seconds = time.perf_counter() - started
    peak_after = peak_kb()
    peak = peak_after - before
    encode = timed(lambda: model.get_latent_representation(cells))
    scvi.model.SCVI.setup_anndata(held_out, batch_key="batch")
    mean, var = model.get_latent_representation(held_out, return_dist=True)
    rng, x = np.random.default_rng(0), held_out.X.toarray()
    module = model.module.eval()
    batch = torch.from_numpy(held_out.obs["batch"].astype(int).to_numpy()[:, None])
    size = torch.from_numpy(x.sum(1, keepdims=True)).log()
    elbo = np.zeros(len(x))
    for _ in range(DRAWS):
        z = torch.from_numpy((mean + np.sqrt(var) * rng.standard_normal(mean.shape)).astype(np.float32))
        with torch.inference_mode():
            px = module.generative(z, size, batch)["px"]
        logit = px.zi_logits.double().numpy() if likelihood == "zinb" else None
        elbo += log_p(x, px.mu.double().numpy(), px.theta.double().numpy(), logit) / DRAWS
    return {
        "seconds": seconds,
        "loop_seconds": seconds,
        "growth": peak,
        "peak": peak_after,
        "encode": encode,
        "elbo": float((elbo - kl(mean, var)).mean()),
        "threads": torch.get_num_threads(),
    }


def timed(call) -> float:
    """Median seconds of five calls after one."""
    call()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    who, path, likelihood, epochs = sys.argv[1:]
    everything = ad.read_h5ad(path)
    out = everything.obs["held_out"].to_numpy(bool)
    train, test = everything[~out].copy(), everything[out].copy()
    del everything
    print(json.dumps({"latentcell": latentcell, "scvi": scvi}[who](train, test, likelihood, int(epochs))))
