"""Model families: the values of `model_family`, where each lives, and its raster.

Everything a plan needs before a weight is loaded stands here, so that clips can be planned and a
configuration checked without importing torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simpletuner.core.catalog import Catalog, did_you_mean
from simpletuner.core.errors import UserError


@dataclass(frozen=True)
class Grid:
    """The family's raster, used to plan clips before any weight is loaded.

    Pixel sizes must be multiples of `spatial`, frame counts of the form `temporal` * k + 1; a clip
    becomes [channels, (frames - 1) / temporal + 1, height / spatial, width / spatial] latent cells.
    """

    spatial: int
    temporal: int
    channels: int

    def latent_shape(self, width: int, height: int, num_frames: int) -> tuple[int, int, int, int]:
        """Latent [C, F, H, W] of a clip of this pixel size."""
        return (self.channels, (num_frames - 1) // self.temporal + 1, height // self.spatial, width // self.spatial)


@dataclass(frozen=True)
class FamilyRow:
    """One model family.

    Attributes:
        target: The object that fulfils `models.family.ModelFamily`.
        spatial: Pixels per latent cell; widths and heights must be multiples of it.
        temporal: Frames per latent frame; frame counts must be of the form temporal * k + 1.
        channels: Latent channels.
        frame_rate: Frames per second the family was trained on.
        default_flavour: Flavour when neither a flavour nor a path is given.
        checkpoints: Flavour -> Hub repository in the Diffusers layout that carries its components.
        cost: The object that fulfils `models.cost.CostSource`; importing it needs no torch.
        module_classes: Classes inside its transformer, which adapter files may name.
        class_aliases: What files written for other models call such a class -> its name here.
        defaults: Option -> value that stands in for the general default while this family is trained.
        help: One sentence for people.
    """

    target: str
    spatial: int
    temporal: int
    channels: int
    frame_rate: float
    default_flavour: str
    checkpoints: Mapping[str, str]
    cost: str
    module_classes: tuple[str, ...] = ()
    class_aliases: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    help: str = ""

    @property
    def grid(self) -> Grid:
        """Its raster."""
        return Grid(self.spatial, self.temporal, self.channels)

    def checkpoint(self, flavour: str | None) -> str:
        """The Hub repository of `flavour`, or of the default one.

        Raises:
            UserError: If the family has no such flavour.
        """
        name = flavour or self.default_flavour
        if name not in self.checkpoints:
            raise UserError(
                f"unknown model_flavour '{name}'",
                f"Available: {', '.join(self.checkpoints)}",
                did_you_mean(name, list(self.checkpoints)),
            )
        return self.checkpoints[name]


FAMILIES: Catalog[FamilyRow] = Catalog(
    "model family",
    {
        "ltxvideo": FamilyRow(
            target="simpletuner.models.ltxvideo.family:FAMILY",
            spatial=32,
            temporal=8,
            channels=128,
            frame_rate=25.0,
            default_flavour="0.9.5",
            checkpoints={
                "0.9.0": "Lightricks/LTX-Video",
                "0.9.1": "Lightricks/LTX-Video-0.9.1",
                "0.9.5": "Lightricks/LTX-Video-0.9.5",
                # 0.9.6 exists only as one file with the transformer; the other parts are those of 0.9.5.
                "0.9.6": "Lightricks/LTX-Video-0.9.5",
                "0.9.7": "Lightricks/LTX-Video-0.9.7-dev",
                "0.9.7-distilled": "Lightricks/LTX-Video-0.9.7-distilled",
                "0.9.8": "Lightricks/LTX-Video-0.9.8-13B-distilled",
            },
            cost="simpletuner.models.ltxvideo.cost:COST",
            module_classes=(
                "LTXAttention",
                "FeedForward",
                "LTXVideoTransformerBlock",
                "AdaLayerNormSingle",
                "PixArtAlphaTextProjection",
                "GELU",
                "Linear",
            ),
            # The widely copied presets name Diffusers' general class, which this transformer does not have.
            class_aliases={"Attention": "LTXAttention"},
            defaults={
                # The autoencoder's raster; other families want coarser buckets.
                "aspect_bucket_alignment": 32,
                # What people generate with this model, and what it gets wrong without a hint.
                "validation_resolution": "768x512",
                "validation_num_video_frames": 121,
                "validation_guidance": 3.0,
                "validation_negative_prompt": "worst quality, inconsistent motion, blurry, jittery, distorted",
            },
            help="LTX-Video 0.9.0 to 0.9.8, 2B and 13B: text and image to video.",
        ),
    },
)

# What `model_flavour` may be: the flavours of all families, each once.
FLAVOURS: tuple[str, ...] = tuple(dict.fromkeys(name for family in FAMILIES for name in FAMILIES[family].checkpoints))


def family_defaults(family: str | None) -> Mapping[str, Any]:
    """Option -> default that `family` puts in the place of the general one; empty for None and unknown names."""
    return FAMILIES[family].defaults if family is not None and family in FAMILIES else {}


def default_origin(family: str) -> str:
    """How records and messages call the place where a family's default comes from."""
    return f"default of {family}"
