"""What may paint previews of videos in the making: named values of `validation_preview_decoder`.

Any other value is the path of a decoder file, read by the row "file".
"""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.core.catalog import Catalog

AUTO = "auto"
FILE = "file"
# A decoder that a checkpoint brings along, beside its component folders; "auto" takes it.
CHECKPOINT_DECODER = "preview_decoder.safetensors"


@dataclass(frozen=True)
class PreviewRow:
    """One kind of decoder.

    Attributes:
        target: Function `(PreviewSources) -> PreviewDecoder`; see `validation/preview_decoders.py`.
        help: One sentence for people.
    """

    target: str
    help: str


_MODULE = "simpletuner.validation.preview_decoders"

PREVIEWS: Catalog[PreviewRow] = Catalog(
    "preview decoder",
    {
        "linear": PreviewRow(
            f"{_MODULE}:open_linear",
            "A linear map from latents to colours, fitted once on the run's own cached latents and clips.",
        ),
        FILE: PreviewRow(f"{_MODULE}:open_tiny", "A TAE-type decoder in a safetensors file."),
        "autoencoder": PreviewRow(f"{_MODULE}:open_autoencoder", "The model's autoencoder, on two latent frames."),
    },
)
