"""Trained weights as somebody hands them over: what kind they are and whether they go together.

Reads headers only and needs no torch, so that a wrong file shows before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.core.errors import Problem, UserError
from simpletuner.models.tensor_file import TensorFacts, read_header

ADAPTER_FILE: Final = "pytorch_lora_weights.safetensors"  # the name under which pipelines look for adapters
TRANSFORMER_FOLDER: Final = "transformer"
BEST_FOLDER: Final = "best"  # in a run folder: the weights of the lowest evaluation loss
LYCORIS_SETTINGS: Final = "lycoris_config"  # key of a LyCORIS file's metadata
# LyCORIS kinds that put another weight in the place of the layer's own.
REPLACING_KINDS: Final = frozenset({"full"})
_LORA_PARTS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.")
_DORA_PARTS = (".lora_magnitude_vector", ".dora_scale")

Kind = Literal["lora", "lycoris", "whole"]


@dataclass(frozen=True)
class WeightsFile:
    """Trained weights, judged by their header.

    Attributes:
        path: The file, or the folder of a whole transformer.
        kind: "lora" in any layout, "lycoris" as our runs write it, or a "whole" transformer.
        strength: Factor on what the adapter adds; always 1 for a whole transformer.
        uses_dora: Whether a LoRA also sets the lengths of the weights' rows.
        lycoris: The LyCORIS settings of the file; None for other kinds.
        metadata: Texts in the file's header.
        ranks: Ranks of a LoRA's layers; empty for other kinds.
    """

    path: Path
    kind: Kind
    strength: float = 1.0
    uses_dora: bool = False
    lycoris: LycorisFile | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    ranks: frozenset[int] = frozenset()

    @property
    def replaces_weights(self) -> bool:
        """Whether it puts another weight in the place of a layer's own."""
        return self.lycoris is not None and not REPLACING_KINDS.isdisjoint(self.lycoris.kinds)


def split_strength(text: str) -> tuple[Path, float]:
    """Read "FILE" or "FILE:STRENGTH"; a file whose own name ends so is taken as it is.

    Raises:
        UserError: If the strength is not a finite number.
    """
    front, colon, back = text.rpartition(":")
    if not colon or Path(text).expanduser().exists():
        return Path(text).expanduser(), 1.0
    try:
        strength = float(back)
    except ValueError:
        return Path(text).expanduser(), 1.0
    if strength - strength != 0:
        raise UserError(f"adapter strength {back}", "It must be a finite number", "Write for example FILE:0.8")
    return Path(front).expanduser(), strength


def find_weights(place: Path) -> Path:
    """The weights behind a path: the file itself, or what a run folder, checkpoint or `transformer` folder holds.

    Raises:
        UserError: If there is nothing.
    """
    if place.is_file():
        return place
    if (place / ADAPTER_FILE).is_file():
        return place / ADAPTER_FILE
    for folder in (place / TRANSFORMER_FOLDER, place):
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    if not place.exists():
        raise UserError(
            f"there is no file or folder '{place}'",
            "An adapter is a safetensors file, a run folder, a checkpoint or a `transformer` folder",
            "Correct the path",
        )
    checkpoints = sorted(path.name for path in place.glob("checkpoint-*") if path.is_dir())
    raise UserError(
        f"'{place}' holds no trained weights",
        f"Looked for {ADAPTER_FILE} and {TRANSFORMER_FOLDER}/",
        f"Name one of its checkpoints: {', '.join(checkpoints)}" if checkpoints else "Name the file itself",
    )


def read_weights_file(place: Path, strength: float = 1.0) -> WeightsFile:
    """Judge what lies at `place` by its header.

    Raises:
        UserError: If there is nothing, or nothing that can be used.
    """
    path = find_weights(place)
    if path.is_dir():
        return _whole(path, strength, {})
    metadata, tensors = read_header(path)
    if LYCORIS_SETTINGS in metadata:
        return WeightsFile(path, "lycoris", strength, lycoris=_lycoris(path, metadata), metadata=metadata)
    if any(part in name for name in tensors for part in _LORA_PARTS):
        uses_dora = any(part in name for name in tensors for part in _DORA_PARTS)
        ranks = {facts.shape[0] for name, facts in tensors.items() if facts.shape and _is_down(name)}
        return WeightsFile(path, "lora", strength, uses_dora=uses_dora, metadata=metadata, ranks=frozenset(ranks))
    if any(name.endswith("transformer_blocks.0.attn1.to_q.weight") for name in tensors):
        return _whole(path, strength, metadata)
    raise UserError(
        f"'{path}' holds no weights that can be used: {_told_names(tensors)}",
        "A LoRA of any layout, a LyCORIS file that a run of ours wrote, and a whole transformer can be",
        "Name another file"
        if not any(name.startswith("lycoris_") for name in tensors)
        else "It is a LyCORIS file without its settings; use one whose metadata holds `lycoris_config`",
    )


def _is_down(name: str) -> bool:
    return ".lora_A." in name or ".lora_down." in name


def check_together(files: Sequence[WeightsFile]) -> Iterator[Problem]:
    """Findings about weights that cannot be used at once."""
    whole = [file for file in files if file.kind == "whole"]
    replacing = [file for file in files if file.replaces_weights]
    dora = [file for file in files if file.uses_dora]
    adapters = [file for file in files if file.kind != "whole"]
    if len(whole) > 1:
        yield Problem(
            f"{len(whole)} whole transformers: {_told(whole)}", "Each is all the weights there are", "Name one of them"
        )
    if replacing and len(adapters) > 1:
        yield Problem(
            f"{_told(replacing[:1])} replaces weights of the model, which the other adapters change as well",
            "Such an adapter can be used only alone",
            "Put it into the base with `simpletuner export FILE --base MODEL --merge`, and name the result as --model",
        )
    if dora and (len(dora) > 1 or any(file.kind == "lycoris" for file in adapters)):
        yield Problem(
            f"{_told(dora)}: DoRA sets the lengths of the base model's weights",
            "One DoRA can be used at a time, with LoRAs but not with LyCORIS",
            "Put it into the base with `simpletuner export FILE --base MODEL --merge`, and name the result as --model",
        )


def _whole(path: Path, strength: float, metadata: Mapping[str, str]) -> WeightsFile:
    if strength != 1.0:
        raise UserError(
            f"'{path}' is a whole transformer; a strength of {strength:g} has no meaning for it",
            "A strength scales what an adapter adds to the base model",
            "Remove the strength",
        )
    return WeightsFile(path, "whole", metadata=metadata)


def read_settings(path: Path, metadata: Mapping[str, str]) -> LycorisFile | None:
    """The LyCORIS settings in the metadata of a file; None where there are none.

    Raises:
        UserError: If they cannot be read.
    """
    return _lycoris(path, metadata) if LYCORIS_SETTINGS in metadata else None


def _lycoris(path: Path, metadata: Mapping[str, str]) -> LycorisFile:
    try:
        return LycorisFile.model_validate(json.loads(metadata[LYCORIS_SETTINGS]))
    except ValueError as error:
        raise UserError(
            f"the LyCORIS settings in '{path}' cannot be read ({str(error).splitlines()[0]})",
            "They say how the file's tensors act on the model",
            "Use the file as the run wrote it",
        ) from error


def _told_names(tensors: Mapping[str, TensorFacts]) -> str:
    names = ", ".join(list(tensors)[:3])
    return f"its tensors are called {names}" if names else "it has no tensors"


def _told(files: Sequence[WeightsFile]) -> str:
    return ", ".join(f"'{file.path}'" for file in files)
