"""How to train: what a user may set."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latentcell.errors import InputError


@dataclass(frozen=True)
class Settings:
    """How to train.

    Parameters
    ----------
    batch_size
        Cells per optimiser step; by default 128, or 32 to 64 of fewer than about 1,000 cells. Of images 32, unless the
        objective compares the cells of a batch (``tc``, ``dip``, ``mmd``, ``factorvae``, factors as nuisance).
    learning_rate
        Peak rate of Adam; see the function `learning_rate`.
    patience
        Epochs without a better held-out ELBO after which training returns to the best weights and goes on at a third
        of the rate; after the third such cut it stops.
    validation
        Share of cells (or of the groups of `split_key`) held out for early stopping.
    clip
        Largest gradient norm of the loss per measured value.
    threads
        CPU threads; by default as many as the process may use and the machine has free (`free_threads`). Sums depend
        on the number in the last digits: to repeat on a busy machine what an idle one gave, name the number that the
        report holds.
    device
        ``"cpu"``, ``"cuda"``, or None for a GPU where there is one.
    """

    batch_size: int | None = None
    learning_rate: float = 2e-3
    patience: int = 30
    validation: float = 0.1
    clip: float = 1.0
    threads: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if (self.batch_size or 2) < 2 or self.learning_rate <= 0 or self.patience < 1 or not 0 < self.validation < 0.9:
            raise InputError(
                f"{self}: batch_size must be at least 2, learning_rate and patience positive and validation a share "
                "between 0 and 0.9."
            )

    def torch_device(self) -> torch.device:
        """Device asked for, or the best there is."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def checked(settings: Settings | None) -> Settings:
    """The settings given, or those of a default fit.

    Raises
    ------
    InputError
        If they are something else.
    """
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise InputError(
            f"settings is {settings!r}; give latentcell.Settings(batch_size=32, learning_rate=1e-3) or the like."
        )
    return settings
