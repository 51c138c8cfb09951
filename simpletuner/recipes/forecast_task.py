"""What a forecast is made from: the run, what it trains on and how long, and the arithmetic of its model.

`memory_forecast.py` and `time_forecast.py` turn it into bytes and seconds for one card. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.run_config import RunConfig
from simpletuner.data.sample import BucketKey
from simpletuner.models.cost import ModelCost, TrainedPart
from simpletuner.recipes.run_length import DataPlan, RunLength
from simpletuner.recipes.streaming_plan import StreamingPlan
from simpletuner.runtime.machine import Machine


@dataclass(frozen=True)
class Task:
    """One run as a forecast sees it.

    Attributes:
        config: Its options.
        cost: The model's arithmetic.
        trained: What is trained.
        data: Its data plan; None without a data set.
        length: Steps and validations.
        machine: Cores, and memory where a card is the CPU.
        streaming: Where the frozen weights are.
    """

    config: RunConfig
    cost: ModelCost
    trained: TrainedPart
    data: DataPlan | None
    length: RunLength
    machine: Machine
    streaming: StreamingPlan

    @property
    def text_tokens(self) -> int:
        return self.config.model.tokenizer_max_length

    @property
    def text_bytes(self) -> int:
        """Bytes per value of the text encoder where it is not stored in fewer bits."""
        return 2 if self.config.precision.mixed_precision == "bf16" else 4

    @property
    def vae_bytes(self) -> int:
        """Bytes per value of the autoencoder."""
        return 2 if self.config.precision.vae_dtype == "bf16" else 4

    @property
    def tiling(self) -> bool:
        return self.config.caching.vae_enable_tiling

    @property
    def autoencoder_bytes(self) -> float:
        return (self.cost.parameters["encoder"] + self.cost.parameters["decoder"]) * self.vae_bytes

    def tokens_of(self, bucket: BucketKey) -> int:
        """Tokens of one clip of this shape."""
        grid = FAMILIES[str(self.config.model.model_family)].grid
        return math.prod(grid.latent_shape(bucket.width, bucket.height, bucket.num_frames)[1:])

    def video_tokens(self, width: int, height: int) -> int:
        """Tokens of one validation video."""
        return self.tokens_of(BucketKey(width, height, self.config.validation.num_frames))
