"""What follows from the answers so far: tokens, samples per epoch, steps, and the proposals that need them.

Pure functions of `Known`; an answer wins over the proposal for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.prompts import safe_nickname
from simpletuner.config.surfaces import proposals
from simpletuner.config.surfaces.wizard import Known

FAMILY = "ltxvideo"
# Answer to "model" -> release; the repository of each stands in the family catalog.
RELEASES = {"2b": "0.9.5", "13b": "0.9.7", "13b-distilled": "0.9.8"}
EIGHT_BITS = "int8-quanto"  # of the 8-bit levels the one that runs on every kind of machine
FEW_TOKENS = 2500  # a clip of usual size and 49 frames; below it the model is stored smaller
FOUND_RATE = 1.0  # factor on the rate that an optimizer finds by itself
USUAL_EDGE = 480  # pixels; from there on previews have the size that people look at
LONG = 2.0  # a clip this many times longer than what is trained of it is worth cutting into windows
GRID = FAMILIES[FAMILY].grid


def moving(known: Known) -> bool:
    """Whether there are clips, not only pictures."""
    return known.material is not None and bool(known.material.clips)


def frames(known: Known) -> int:
    """Frames trained per clip; 1 when there are only pictures."""
    return int(known.answers.get("num_frames") or (proposed_frames(known) if moving(known) else 1))


def edge(known: Known) -> float:
    """Edge of the square of equal area that is trained."""
    return float(known.answers.get("resolution") or proposed_edge(known))


def tokens(known: Known) -> float:
    """Latent tokens of one trained clip, about."""
    return (edge(known) / GRID.spatial) ** 2 * _latent_frames(frames(known))


def draws(known: Known) -> int:
    """Samples per epoch before any repeats."""
    if known.material is None:
        return 0
    pictures = len(known.material.pictures) if known.answers.get("pictures", True) else 0
    usable = [clip.num_frames for clip in known.material.clips if clip.num_frames >= frames(known)]
    split = known.answers.get("long_clips") == "split"
    return pictures + sum(count // frames(known) if split else 1 for count in usable)


def batch(known: Known) -> int:
    """Clips per step."""
    return int(known.answers.get("batch_size") or proposed_batch(known))


def steps(known: Known) -> int:
    """Optimizer steps of the run, also when it is told in epochs."""
    if known.answers.get("length") == "epochs" and known.answers.get("epochs"):
        return max(1, round(float(known.answers["epochs"]) * draws(known) / batch(known)))
    return int(known.answers.get("steps") or proposals.steps_for(draws(known), batch(known)))


def _latent_frames(count: int) -> int:
    return (count - 1) // GRID.temporal + 1


def proposed_frames(known: Known) -> int:
    """Frames that most clips can supply."""
    return proposals.frames_for([clip.num_frames for clip in known.material.clips] if known.material else [])


def proposed_edge(known: Known) -> int:
    """Size that most clips have and that fits into the memory."""
    media = known.material.media if known.material else ()
    per_pixel = _latent_frames(frames(known)) / GRID.spatial**2
    return proposals.edge_for([(item.width * item.height) ** 0.5 for item in media], per_pixel, known.token_limit)


def proposed_batch(known: Known) -> int:
    """Clips per step that memory and the number of clips allow."""
    return proposals.batch_for(tokens(known), known.token_limit, draws(known), known.machine.kind)


def proposed_captions(known: Known) -> str:
    """Where most captions can come from."""
    assert known.material is not None
    return "textfile" if known.material.captioned else "instanceprompt"


def needs_captions(known: Known) -> bool:
    """Whether it has to be asked where captions come from: some lack a text file, or another source was chosen."""
    material = known.material
    chosen = known.offered.get("captions", "textfile") != "textfile"
    return material is not None and (chosen or material.captioned < len(material.media))


def proposed_rate(known: Known) -> float:
    """Learning rate for what is trained, and by which optimizer."""
    chosen = str(known.answers.get("optimizer"))
    if chosen in OPTIMIZERS and OPTIMIZERS[chosen].finds_rate:
        return FOUND_RATE
    if known.answers.get("training") == "full":
        return proposals.FULL_RATE
    return proposals.rate_for(int(known.answers.get("rank") or proposals.rank_for(known.answers.get("subject", ""))))


def proposed_storage(known: Known) -> str:
    """8 bits for the frozen model where bf16 leaves no room for a clip of usual size."""
    small = 0 < known.token_limit < FEW_TOKENS
    return EIGHT_BITS if small and known.is_built("base_model_precision", EIGHT_BITS) else "no_change"


def has_long_clips(known: Known) -> bool:
    """Whether most clips hold several windows of the trained length."""
    lengths = sorted(clip.num_frames for clip in known.material.clips) if known.material else []
    return bool(lengths) and lengths[len(lengths) // 2] >= LONG * frames(known)


def safe_name(text: str) -> str:
    """The last part of a path or name, as a part of file names."""
    return safe_nickname(text.replace("\\", "/").rstrip("/").split("/")[-1])


def proposed_name(known: Known) -> str:
    """Name of the run: that of the folder."""
    return safe_name(known.material.folder if known.material else "")


def looking_interval(known: Known) -> int:
    """Steps between looks at what is learnt: five in a run, each where a checkpoint is."""
    return max(1, int(known.answers.get("checkpoint_interval") or 0), steps(known) // 5)


def proposed_preview_size(known: Known) -> str:
    """The usual size, or 3:2 of the trained area where that is smaller: larger previews take longer and show less."""
    usual = str(option_default("validation_resolution")(known))
    trained = edge(known)
    if trained >= USUAL_EDGE:
        return usual
    width, height = (max(64, round(trained * share / 32) * 32) for share in (math.sqrt(1.5), math.sqrt(1 / 1.5)))
    return f"{width}x{height}"


def option_default(name: str) -> Callable[[Known], Any]:
    """A proposal: the default that an option has for the family."""
    return lambda known: FAMILIES[FAMILY].defaults.get(name, known.options[name].default)


def trains_lora(known: Known) -> bool:
    """Whether a LoRA is trained."""
    return bool(known.answers.get("training", "lora") == "lora")


def wants_previews(known: Known) -> bool:
    """Whether previews are generated."""
    return bool(known.answers.get("previews", True))
