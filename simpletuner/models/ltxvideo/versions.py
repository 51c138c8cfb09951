"""One table for every LTX-Video release, and how a checkpoint's release is recognised.

All that differs between releases is a column here; no other file compares version numbers. Pure
data and pure functions over component configurations: this module opens no file and loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import UserError

AutoencoderKind = Literal["A", "B", "C"]
ModelSize = Literal["2B", "13B"]
Positions = Literal["plain", "causal"]
Schedule = Literal["shifted", "linear_quadratic"]

DECODE_TIMESTEP = 0.05  # Lightricks' recommendation; the Diffusers pipelines default to 0
DECODE_NOISE = 0.025  # share of noise mixed into the latents before decoding, ibid.


@dataclass(frozen=True)
class Release:
    """What is particular about one release.

    Attributes:
        name: Release number, with "-distilled" where that is a checkpoint of its own.
        sizes: Transformer sizes it exists in.
        autoencoder: Kind of autoencoder: A plain, B time-conditioned decoder, C the same on a new
            latent space. Latents of different kinds must never be mixed.
        positions: "plain": latent frame f sits at 8 f / fps; "causal": at max(0, 8 f - 7) / fps.
        schedule: Noise levels at inference.
        pipeline: Diffusers pipeline class that samples it.
        transformer_file: Hub file of the transformer where the repository holds no Diffusers layout.
    """

    name: str
    sizes: tuple[ModelSize, ...]
    autoencoder: AutoencoderKind
    positions: Positions
    schedule: Schedule
    pipeline: Literal["LTXPipeline", "LTXConditionPipeline"]
    transformer_file: str = ""

    @property
    def decode_timestep(self) -> float | None:
        """Time input of the decoder (not times 1000); None where the decoder takes none."""
        return None if self.autoencoder == "A" else DECODE_TIMESTEP

    @property
    def decode_noise(self) -> float:
        """Share of noise mixed into de-normalised latents before decoding."""
        return 0.0 if self.autoencoder == "A" else DECODE_NOISE


def _early(name: str, autoencoder: AutoencoderKind) -> Release:
    return Release(name, ("2B",), autoencoder, "plain", "shifted", "LTXPipeline")


def _later(name: str, *sizes: ModelSize, transformer_file: str = "") -> Release:
    return Release(name, sizes, "C", "causal", "linear_quadratic", "LTXConditionPipeline", transformer_file)


# Within one (autoencoder, size) the first row is the name given to a checkpoint that says no more.
RELEASES: Mapping[str, Release] = {
    row.name: row
    for row in (
        _early("0.9.0", "A"),
        _early("0.9.1", "B"),
        _later("0.9.5", "2B"),
        _later("0.9.6", "2B", transformer_file="Lightricks/LTX-Video/ltxv-2b-0.9.6-dev-04-25.safetensors"),
        _later("0.9.7", "13B"),
        _later("0.9.7-distilled", "13B"),
        _later("0.9.8", "13B", "2B"),
    )
}


def find_release(name: str) -> Release:
    """The row of a release by its name.

    Raises:
        UserError: If there is no such release.
    """
    if name not in RELEASES:
        raise UserError(
            f"unknown LTX-Video release '{name}'", f"Known: {', '.join(RELEASES)}", did_you_mean(name, list(RELEASES))
        )
    return RELEASES[name]


def autoencoder_kind(config: Mapping[str, Any]) -> AutoencoderKind:
    """Kind of an autoencoder by its Diffusers configuration.

    C is the first with the staged (space, time, both, both) downsampling; A is the only one whose
    decoder takes no time.
    """
    downsampling = config.get("downsample_type", ())
    if any(str(kind) != "conv" for kind in downsampling):
        return "C"
    return "B" if config.get("timestep_conditioning", False) else "A"


def transformer_size(config: Mapping[str, Any]) -> ModelSize:
    """2B or 13B by the transformer's configuration: both have 32 heads, of width 64 or 128."""
    return "13B" if int(config.get("attention_head_dim", 64)) >= 128 else "2B"


def autoencoder_kind_of_file(names: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> AutoencoderKind | None:
    """Kind of the autoencoder inside an original single file, or None if it holds none.

    Args:
        names: All tensor names of the file; the autoencoder's start with `vae.`.
        shapes: Their shapes.
    """
    if not any(name.startswith("vae.") for name in names):
        return None
    # Encoder width before the latent: 512 channels in A and B, 2048 in C.
    head = shapes.get("vae.encoder.conv_out.conv.weight", (0, 0))
    if head[1] >= 2048:
        return "C"
    timed = any(name.startswith("vae.decoder.") and "time_embedder" in name for name in names)
    return "B" if timed else "A"


@dataclass(frozen=True)
class Evidence:
    """What the files of a checkpoint say about its release.

    Attributes:
        autoencoder: Kind of the autoencoder that will be used.
        autoencoder_from: Where it comes from, for messages.
        size: Size of the transformer that will be used.
        transformer_from: Where it comes from, for messages.
        transformer_autoencoder: Kind of the autoencoder that the transformer was published with,
            or None where its place does not tell.
        dynamic_shift: `use_dynamic_shifting` of the base's scheduler, or None without a scheduler.
    """

    autoencoder: AutoencoderKind
    autoencoder_from: str
    size: ModelSize
    transformer_from: str
    transformer_autoencoder: AutoencoderKind | None
    dynamic_shift: bool | None


def recognise(evidence: Evidence, flavour: str | None) -> Release:
    """The release of a checkpoint.

    Args:
        evidence: What its files say.
        flavour: The release the user named, if any; it decides between releases whose files look
            alike (0.9.5, 0.9.6 and so on) and must not contradict the files.

    Raises:
        UserError: If autoencoder and transformer do not belong together, or the named release is
            another than the files show.
    """
    _check_fit(evidence)
    possible = [r for r in RELEASES.values() if r.autoencoder == evidence.autoencoder and evidence.size in r.sizes]
    if flavour is None:
        return possible[0]
    named = find_release(flavour)
    if named in possible:
        return named
    raise UserError(
        f"model_flavour says {named.name}, but the checkpoint is {_listed(possible)}",
        f"{named.name} has autoencoder {named.autoencoder} and a transformer of {' or '.join(named.sizes)}; found are "
        f"autoencoder {evidence.autoencoder} in '{evidence.autoencoder_from}' "
        f"and {evidence.size} in '{evidence.transformer_from}'",
        "Remove model_flavour, or point the paths at the release you mean",
    )


def schedule_note(release: Release, dynamic_shift: bool | None) -> str:
    """A sentence if the checkpoint's scheduler contradicts the release; empty when it agrees.

    The schedule always follows the release: some conversions of 0.9.5 carry an older scheduler
    file, with which the condition pipeline does not even start.
    """
    if dynamic_shift is None or dynamic_shift == (release.schedule == "shifted"):
        return ""
    found = "shifts with the token count" if dynamic_shift else "does not shift with the token count"
    return f"the scheduler file {found}, unlike LTX-Video {release.name}; the release's own schedule is used"


def _check_fit(evidence: Evidence) -> None:
    published = evidence.transformer_autoencoder
    if evidence.size == "13B" and evidence.autoencoder != "C":
        published = "C"  # every 13B release came with C
    if published is None or published == evidence.autoencoder:
        return
    raise UserError(
        f"the transformer in '{evidence.transformer_from}' and the autoencoder in '{evidence.autoencoder_from}' "
        "do not belong together",
        f"The transformer works on latents of autoencoder {_named_kind(published)}; "
        f"this one is autoencoder {_named_kind(evidence.autoencoder)}, another latent space of the same shape",
        "Give both from one release: correct pretrained_model_name_or_path or pretrained_vae_model_name_or_path",
    )


def _named_kind(kind: AutoencoderKind) -> str:
    return f"{kind} ({_listed([r for r in RELEASES.values() if r.autoencoder == kind])})"


def _listed(releases: Sequence[Release]) -> str:
    return "LTX-Video " + " or ".join(r.name for r in releases) if releases else "of no known release"
