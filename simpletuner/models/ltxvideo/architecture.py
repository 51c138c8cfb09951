"""The shapes of LTX-Video's parts: layers and parameters from a configuration, without torch.

A checkpoint on this machine tells its own configuration; for one that is still on the Hub the shape
Lightricks published under that name stands in. Nothing is downloaded here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.sections.model import ModelSection
from simpletuner.core.errors import UserError
from simpletuner.models.ltxvideo.versions import RELEASES, AutoencoderKind, ModelSize, Release

TIME_CHANNELS = 256  # width of the sinusoidal time embedding, fixed in Diffusers' PixArt embedding
FEED_FORWARD = 4  # width of the feed-forward layer in widths of the model

# Published configurations: Lightricks' repositories in the Diffusers layout. Diffusers' own defaults
# of the transformer are the 2B ones; the autoencoders are listed in full.
TRANSFORMERS: Mapping[ModelSize, Mapping[str, Any]] = {
    "2B": {"num_layers": 28, "num_attention_heads": 32, "attention_head_dim": 64, "cross_attention_dim": 2048},
    "13B": {"num_layers": 48, "num_attention_heads": 32, "attention_head_dim": 128, "cross_attention_dim": 4096},
}
_EARLY = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": (4, 3, 3, 3, 4),
    "spatio_temporal_scaling": (True, True, True, False),
    "down_block_types": ("LTXVideoDownBlock3D",) * 4,
    "downsample_type": ("conv",) * 4,
}
_TIMED = {
    "decoder_block_out_channels": (256, 512, 1024),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
}
AUTOENCODERS: Mapping[AutoencoderKind, Mapping[str, Any]] = {
    "A": {
        **_EARLY,
        "decoder_block_out_channels": (128, 256, 512, 512),
        "decoder_layers_per_block": (4, 3, 3, 3, 4),
        "decoder_spatio_temporal_scaling": (True, True, True, False),
        "decoder_inject_noise": (False,) * 5,
        "upsample_residual": (False,) * 4,
        "upsample_factor": (1,) * 4,
        "timestep_conditioning": False,
    },
    "B": {
        **_EARLY,
        **_TIMED,
        "decoder_layers_per_block": (5, 6, 7, 8),
        "decoder_inject_noise": (True, True, True, False),
    },
    "C": {
        **_TIMED,
        "block_out_channels": (128, 256, 512, 1024, 2048),
        "layers_per_block": (4, 6, 6, 2, 2),
        "spatio_temporal_scaling": (True,) * 4,
        "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "decoder_layers_per_block": (5, 5, 5, 5),
        "decoder_inject_noise": (False,) * 4,
    },
}
# T5 v1.1 XXL, encoder half.
TEXT: Mapping[str, Any] = {
    "d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 24, "vocab_size": 32128,
    "relative_attention_num_buckets": 32,
}  # fmt: skip


@dataclass(frozen=True)
class TransformerShape:
    """The numbers of the transformer that decide its cost.

    Attributes:
        layers: Blocks.
        width: Heads times width of a head.
        text_channels: Width of the text features it is given.
        cross_channels: Width of the projected text inside the blocks.
        in_channels, out_channels: Latent channels.
    """

    layers: int
    width: int
    text_channels: int
    cross_channels: int
    in_channels: int
    out_channels: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TransformerShape:
        """From a Diffusers configuration; what it leaves out has the class's default (the 2B numbers)."""
        full = {**TRANSFORMERS["2B"], "caption_channels": 4096, "in_channels": 128, **config}
        return cls(
            layers=int(full["num_layers"]),
            width=int(full["num_attention_heads"]) * int(full["attention_head_dim"]),
            text_channels=int(full["caption_channels"]),
            cross_channels=int(full["cross_attention_dim"]),
            in_channels=int(full["in_channels"]),
            out_channels=int(full.get("out_channels") or full["in_channels"]),
        )

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Full name -> (inputs, outputs) of every linear layer, in the order of the modules."""
        return dict(self._linear_layers())

    def parameters(self) -> int:
        """All values: weights and biases of the linear layers, norms of queries and keys, modulation tables."""
        linear = sum(inputs * outputs + outputs for inputs, outputs in self.linear_layers().values())
        norms = self.layers * 4 * self.width
        tables = self.layers * 6 * self.width + 2 * self.width
        return linear + norms + tables

    def block_parameters(self) -> int:
        """All values of one block."""
        first = [sizes for name, sizes in self.linear_layers().items() if name.startswith("transformer_blocks.0.")]
        return sum(inputs * outputs + outputs for inputs, outputs in first) + 10 * self.width

    def _linear_layers(self) -> Iterator[tuple[str, tuple[int, int]]]:
        d = self.width
        yield "proj_in", (self.in_channels, d)
        yield "time_embed.emb.timestep_embedder.linear_1", (TIME_CHANNELS, d)
        yield "time_embed.emb.timestep_embedder.linear_2", (d, d)
        yield "time_embed.linear", (d, 6 * d)
        yield "caption_projection.linear_1", (self.text_channels, d)
        yield "caption_projection.linear_2", (d, d)
        for block in range(self.layers):
            for attention, source in (("attn1", d), ("attn2", self.cross_channels)):
                name = f"transformer_blocks.{block}.{attention}"
                yield f"{name}.to_q", (d, d)
                yield f"{name}.to_k", (source, d)
                yield f"{name}.to_v", (source, d)
                yield f"{name}.to_out.0", (d, d)
            yield f"transformer_blocks.{block}.ff.net.0.proj", (d, FEED_FORWARD * d)
            yield f"transformer_blocks.{block}.ff.net.2", (FEED_FORWARD * d, d)
        yield "proj_out", (d, self.out_channels)


@dataclass(frozen=True)
class Architecture:
    """All three parts of a checkpoint.

    Attributes:
        name: What it is, for people.
        basis: Where the shapes are known from.
        transformer: Its shape.
        autoencoder: Diffusers configuration of the autoencoder.
        text: Transformers configuration of the text encoder.
    """

    name: str
    basis: str
    transformer: TransformerShape
    autoencoder: Mapping[str, Any]
    text: Mapping[str, Any]

    def text_parameters(self) -> int:
        """Values of the T5 encoder: embedding, attention, gated feed-forward, norms, position buckets."""
        t = self.text
        positions = t.get("relative_attention_num_buckets", 32) * t["num_heads"]
        blocks = t["num_layers"] * self.text_block_parameters()
        return int(t["vocab_size"] * t["d_model"] + blocks + t["d_model"] + positions)

    def text_block_parameters(self) -> int:
        """Values of one block of it, the position buckets of the first left out."""
        t = self.text
        inner = t["num_heads"] * t["d_kv"]
        return int(4 * t["d_model"] * inner + 3 * t["d_model"] * t["d_ff"] + 2 * t["d_model"])

    def text_linear_layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of T5 that may be stored in fewer bits: all but `wo`."""
        t = self.text
        width, inner = int(t["d_model"]), int(t["num_heads"] * t["d_kv"])
        layer = [(width, inner)] * 3 + [(inner, width)] + [(width, int(t["d_ff"]))] * 2
        return layer * int(t["num_layers"])


def find_architecture(settings: ModelSection) -> Architecture:
    """The shapes of the checkpoint that `settings` name.

    Each part is read from its own config.json where that is on this machine, in a folder or in the
    Hub's cache; else the published shape of the named release is taken, else that of the default one.
    """
    row = FAMILIES["ltxvideo"]
    base = settings.pretrained_model_name_or_path or row.checkpoint(settings.model_flavour)
    published, told = _published(settings.model_flavour, base)
    replaced = settings.pretrained_vae_model_name_or_path
    latents = _published(None, replaced)[0] if replaced and replaced in row.checkpoints.values() else published
    folder = settings.pretrained_transformer_subfolder
    folder = "" if folder.strip().lower() == "none" else folder
    transformer = _transformer_config(settings, base, folder)
    autoencoder = _part(replaced or base, "vae", settings.revision)
    text = _part(settings.pretrained_t5_model_name_or_path or base, "text_encoder", settings.revision)
    size: ModelSize = published.sizes[0]
    read = [name for name, found in (("transformer", transformer), ("autoencoder", autoencoder)) if found]
    shape = TransformerShape.of(transformer or TRANSFORMERS[size])
    basis = f"{' and '.join(read)} read from the checkpoint" if read else "published shape; the checkpoint is not here"
    return Architecture(
        name=f"{told}: {shape.layers} blocks of width {shape.width:,}",
        basis=basis,
        transformer=shape,
        autoencoder=autoencoder or AUTOENCODERS[latents.autoencoder],
        text={**TEXT, **(text or {})},
    )


def wanted_places(settings: ModelSection) -> tuple[str, ...]:
    """Every folder, file or repository that parts of the checkpoint come from, the base first."""
    base = settings.pretrained_model_name_or_path or FAMILIES["ltxvideo"].checkpoint(settings.model_flavour)
    others = (
        settings.pretrained_transformer_model_name_or_path,
        settings.pretrained_vae_model_name_or_path,
        settings.pretrained_t5_model_name_or_path,
    )
    return tuple(dict.fromkeys([base, *(place for place in others if place)]))


def is_missing_repository(place: str, revision: str | None) -> bool:
    """Whether `place` is a Hub repository of which nothing is in the local cache."""
    if Path(place).expanduser().exists() or place.count("/") != 1:
        return False
    owner, name = place.split("/")
    names = ("model_index.json", "transformer/config.json", "vae/config.json", "config.json")
    return not any(_cached(f"{owner}/{name}", known, revision) for known in names)


def _published(flavour: str | None, base: str) -> tuple[Release, str]:
    """The release a name stands for, and how to call it; the family's default for any other name."""
    row = FAMILIES["ltxvideo"]
    flavour = flavour or next((name for name, repository in row.checkpoints.items() if repository == base), None)
    if flavour is not None and flavour in RELEASES:
        return RELEASES[flavour], f"LTX-Video {flavour}"
    return RELEASES["0.9.7" if "13b" in base.lower() else row.default_flavour], base


def _transformer_config(settings: ModelSection, base: str, folder: str) -> dict[str, Any] | None:
    place = settings.pretrained_transformer_model_name_or_path
    if place is not None and place.endswith(".safetensors"):
        path = Path(place).expanduser()
        if not path.is_file():
            return None
        from simpletuner.models.ltxvideo.single_file import read_transformer_config

        try:
            return read_transformer_config(path, _part(base, "transformer", settings.revision) or {})
        except UserError:
            return None  # planning the run tells what is wrong with the file
    return _part(place or base, folder, settings.revision if place is None else None, or_root=place is not None)


def _part(place: str, folder: str, revision: str | None, *, or_root: bool = True) -> dict[str, Any] | None:
    """config.json of one part, from a folder or the Hub's cache; None where neither has it."""
    names = [f"{folder}/config.json" if folder else "config.json", *(["config.json"] if or_root else [])]
    root = Path(place).expanduser()
    if root.is_dir():
        candidates = [root / name for name in names]
    elif place.count("/") == 1:
        candidates = [path for name in names if (path := _cached(place, name, revision)) is not None]
    else:
        candidates = []
    for path in candidates:
        if path.is_file():
            return _read(path)
    return None


def _cached(repository: str, name: str, revision: str | None) -> Path | None:
    """A file of the Hub's local cache, by the layout its client documents; the client itself starts slowly."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    try:
        commit = reference.read_text().strip() if reference.is_file() else revision or ""
    except OSError:
        return None
    path = folder / "snapshots" / commit / name
    return path if commit and path.is_file() else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # planning the run tells that the file is damaged
    return content if isinstance(content, dict) else None
