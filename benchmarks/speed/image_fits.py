"""One timed fit of images, by latentcell, pythae or a plain loop, as a process of its own that prints JSON.

``python -m benchmarks.speed.image_fits latentcell|pythae|loop FILE EPOCHS``; the file is an npy of uint8 crops. All
train latentcell's convolutional networks; pythae runs in an environment that sees latentcell's source (PYTHONPATH=src).
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from dataclasses import replace

import numpy as np
import torch
from benchmarks.speed.processes import peak_kb
from torch import Tensor

LATENT, BATCH, HELD_OUT = 16, 128, 0.1


def r2(x: np.ndarray, y: np.ndarray) -> float:
    """Share of the variance over cells that reconstructions explain, all pixels together."""
    return float(1 - ((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def latentcell(images: np.ndarray, epochs: int) -> tuple[float, float]:
    """The training loop; the report of a fit decodes held-out cells for seconds more, whatever its length."""
    import anndata as ad

    import latentcell as lc

    cells = ad.AnnData(obsm={"images": images})
    model = lc.VAE(LATENT, orientation="as_is")
    settings = lc.Settings(batch_size=BATCH)
    seconds = model.fit(cells, epochs=epochs, settings=settings, rng=0).report_["seconds"]
    new = cells[~model.seen(cells)] if (~model.seen(cells)).any() else cells[-500:]
    return seconds, r2(new.obsm["images"].astype(float), model.reconstruct(new).astype(float))


def _networks(images: np.ndarray):
    from latentcell.model.networks import ConvNet

    torch.manual_seed(0)
    net = ConvNet(images.shape[1:], images.shape[1], LATENT)
    for weights in net.parameters():
        weights.data = weights.data.contiguous()
    net.levels = replace(net.levels, layout=torch.contiguous_format)
    return net


def loop(images: np.ndarray, epochs: int) -> tuple[float, float]:
    """What a careful student writes: floats in memory, a DataLoader, Adam, no memory format."""
    net = _networks(images)
    held_out = int(HELD_OUT * len(images))
    x = torch.from_numpy(images.astype(np.float32) / 255)
    started = time.perf_counter()
    data = torch.utils.data.TensorDataset(x[:-held_out])
    batches = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for (batch,) in batches:
            posterior = net.encode(batch)
            decoded = net.decode(posterior.draw())
            loss = ((batch - decoded) ** 2).sum() / 0.02 + posterior.kl().sum()
            optimiser.zero_grad()
            (loss / len(batch)).backward()
            optimiser.step()
        with torch.no_grad():
            for batch in x[-held_out:].split(BATCH):
                net.decode(net.encode(batch).mu)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        decoded = net.decode(net.encode(x[-held_out:]).mu)
    return seconds, r2(x[-held_out:].numpy(), decoded.numpy())


def pythae(images: np.ndarray, epochs: int) -> tuple[float, float]:
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.WARNING)
    net = _networks(images)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = net.encoder

        def forward(self, x: Tensor) -> ModelOutput:
            mu, log_var = self.net(x).chunk(2, 1)
            return ModelOutput(embedding=mu, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.net = net.decoder_input, net.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            start = net.levels.at_bottom(self.first(z))
            return ModelOutput(reconstruction=self.net(start))

    held_out = int(HELD_OUT * len(images))
    x = torch.from_numpy(images.astype(np.float32) / 255)
    config = VAEConfig(input_dim=tuple(images.shape[1:]), latent_dim=LATENT, reconstruction_loss="mse")
    model = VAE(config, encoder=Encoder(), decoder=Decoder())
    with tempfile.TemporaryDirectory() as folder:
        training = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=epochs,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            learning_rate=1e-3,
            no_cuda=True,
        )
        sets = [BaseDataset(part, torch.ones(len(part))) for part in (x[:-held_out], x[-held_out:])]
        trainer = BaseTrainer(model, train_dataset=sets[0], eval_dataset=sets[1], training_config=training)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    with torch.no_grad():
        decoded = model.decoder(model.encoder(x[-held_out:]).embedding).reconstruction
    return seconds, r2(x[-held_out:].numpy(), decoded.numpy())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    who, path, epochs = sys.argv[1:]
    images = np.load(path)
    before = peak_kb()
    seconds, explained = {"latentcell": latentcell, "pythae": pythae, "loop": loop}[who](images, int(epochs))
    peak = peak_kb() - before
    print()
    print(json.dumps({"seconds": seconds, "r2": explained, "peak": peak}))
