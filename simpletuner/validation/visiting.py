"""An autoencoder that is on the computing device only while it works there, or alone with the trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from simpletuner.models.family import Autoencoder
from simpletuner.runtime.absence import Absence

_AWAY = torch.device("cpu")


class VisitingAutoencoder:
    """Fulfils `Autoencoder`; between two calls its weights wait in the machine's memory.

    Denoising then has the device to itself, and training too if the autoencoder is kept.
    """

    def __init__(self, autoencoder: Autoencoder, device: torch.device) -> None:
        """Send it away from `device`, where it is."""
        self._autoencoder, self._device = autoencoder, device
        self.move(_AWAY)

    def encode(self, pixels: Tensor) -> Tensor:
        with self._here():
            return self._autoencoder.encode(pixels)

    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        with self._here():
            return self._autoencoder.decode(latents, seed)

    def drop_encoder(self) -> None:
        self._autoencoder.drop_encoder()

    def move(self, device: torch.device) -> None:
        self._autoencoder.move(device)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # what it left behind is free for others

    def weights(self) -> Iterable[Tensor]:
        return self._autoencoder.weights()

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        self._autoencoder.move(self._device)
        try:
            yield
        finally:
            self.move(_AWAY)


class LonelyAutoencoder:
    """Fulfils `Autoencoder`; while it decodes, the transformer's frozen weights wait in RAM."""

    def __init__(self, autoencoder: Autoencoder, absence: Absence) -> None:
        self._autoencoder, self._absence = autoencoder, absence

    def encode(self, pixels: Tensor) -> Tensor:
        return self._autoencoder.encode(pixels)

    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        with self._absence.away():
            return self._autoencoder.decode(latents, seed)

    def drop_encoder(self) -> None:
        self._autoencoder.drop_encoder()

    def move(self, device: torch.device) -> None:
        self._autoencoder.move(device)

    def weights(self) -> Iterable[Tensor]:
        return self._autoencoder.weights()
