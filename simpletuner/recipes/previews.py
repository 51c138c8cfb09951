"""Which decoder paints this run's previews."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from simpletuner.config.catalogs.previews import AUTO, CHECKPOINT_DECODER, FILE, PREVIEWS
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import UserError
from simpletuner.data.sample import Sample
from simpletuner.events.run import Run
from simpletuner.events.types import Noticed
from simpletuner.recipes.encode import AutoencoderShelf, autoencoder_identity
from simpletuner.recipes.plan import RunPlan
from simpletuner.runtime.host import Host
from simpletuner.validation.names import PREVIEW_FOLDER
from simpletuner.validation.preview import Previewer
from simpletuner.validation.preview_decoders import PreviewDecoder, PreviewSources


def open_previewer(
    config: RunConfig,
    plan: RunPlan,
    host: Host,
    run: Run,
    autoencoders: AutoencoderShelf,
    samples: Sequence[Sample],
    read_latents: Callable[[Sample], Tensor],
) -> Previewer | None:
    """What shows this run's videos in the making; None where nobody wants to see them.

    Args:
        autoencoders: Where the run gets its autoencoder.
        samples: What is trained.
        read_latents: Cached latents of a sample.

    Raises:
        UserError: If the decoder that is asked for cannot be used.
    """
    settings = config.validation
    if not settings.validation_preview or not settings.makes_videos or not config.prompts:
        return None
    kind, file = choose_decoder(settings.validation_preview_decoder, config.model.pretrained_model_name_or_path)
    sources = PreviewSources(
        family=plan.family,
        device=host.device,
        folder=run.folder,
        autoencoder=autoencoder_identity(config, plan),
        load_autoencoder=autoencoders,
        samples=samples,
        read_latents=read_latents,
        storages=dict(plan.storages),
        file=file,
    )
    try:
        decoder: PreviewDecoder = PREVIEWS.load(kind)(sources)
    except UserError:
        if settings.validation_preview_decoder != AUTO:
            raise
        decoder = PREVIEWS.load("autoencoder")(sources)
    run.emit(Noticed("note", f"previews are painted by {decoder.told}"))
    return Previewer(decoder, run.folder / PREVIEW_FOLDER, settings.validation_preview_steps, run.emit)


def choose_decoder(written: str, checkpoint: str | None) -> tuple[str, Path | None]:
    """(row of `PREVIEWS`, decoder file) for a value of `validation_preview_decoder`.

    Args:
        written: "auto", a row's name, or the path of a file.
        checkpoint: Value of `pretrained_model_name_or_path`; a decoder beside its components is taken by "auto".
    """
    if written == AUTO:
        own = Path(checkpoint or "") / CHECKPOINT_DECODER
        return (FILE, own) if checkpoint and own.is_file() else ("linear", None)
    return (written, None) if written in PREVIEWS else (FILE, Path(written))
