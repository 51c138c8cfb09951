"""What a folder of clips holds and what the machine can carry: the facts from which a wizard proposes.

Reads headers only, and remembers them where the run will look for them, so that nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.dataset import ClipDataset, MediaKind, VideoRules
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.surfaces import wizard
from simpletuner.config.surfaces.wizard import Known, Material, MediaFacts
from simpletuner.config.surfaces.wizard_draft import cache_folder, entry_id, model_source
from simpletuner.config.surfaces.wizard_estimates import FAMILY
from simpletuner.core.counting import counted
from simpletuner.core.errors import Problem, UserError
from simpletuner.data.find import FoundSamples, find_samples
from simpletuner.data.listing import EXTENSIONS
from simpletuner.data.notes import summarize_reasons
from simpletuner.data.sample import LeftOut
from simpletuner.data.storage import Listing, Storage, open_storage
from simpletuner.events.types import Event
from simpletuner.models.cost import TrainedPart, cost_source
from simpletuner.runtime.machine import find_machine

PROBE_THREADS = 8
CAPTIONS_READ, CAPTIONS_KEPT = 40, 4
LONGEST_CAPTION_BYTES = 4096
# What the driver and its libraries take, and the share that fragmentation leaves: performance notes, section 5.2.
CONTEXT_BYTES = 0.8e9
USABLE = 0.92
MOST_TOKENS = 1 << 20


def probe_material(folder: str, emit: Callable[[Event], None]) -> Material:
    """Look at every clip and picture of a folder.

    Args:
        folder: As the person wrote it; relative to the working folder.
        emit: Receives the progress of reading headers.
    Raises:
        UserError: If the folder is missing, or holds nothing that can be trained.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(
            f"there is no folder '{folder}'",
            f"Looked at {path.absolute()}",
            "Name the folder that holds your clips",
        )
    kinds: tuple[MediaKind, ...] = ("video", "image")
    entries = {kind: _entry(str(path), kind) for kind in kinds}
    storage = open_storage(entries["video"])
    listing = storage.list_files()
    endings = {PurePosixPath(file.path).suffix.lower() for file in listing.files}
    present = [kind for kind in kinds if endings & EXTENSIONS[kind]]
    if not present:
        wanted = " ".join(sorted(EXTENSIONS["video"]))
        raise UserError(
            f"the folder '{folder}' holds no clips and no pictures", f"Clips end in {wanted}", "Name another folder"
        )
    return _gather(folder, [entries[kind] for kind in present], storage, listing, emit)


def _entry(folder: str, kind: str) -> ClipDataset:
    """An entry that takes every file as it is: any size, any length, at its own speed, without captions."""
    whole = VideoRules(num_frames=1, min_frames=1, frame_rate="source")
    return ClipDataset(
        id=entry_id(folder, kind),
        dataset_type="video" if kind == "video" else "image",
        instance_data_dir=folder,
        cache_dir_vae=cache_folder(entry_id(folder, kind)).replace("{model_family}", FAMILY),
        caption_strategy="filename",
        video=whole,
    )


def _gather(
    folder: str, entries: list[ClipDataset], storage: Storage, listing: Listing, emit: Callable[[Event], None]
) -> Material:
    texts = {PurePosixPath(file.path).with_suffix("") for file in listing.files if file.path.lower().endswith(".txt")}
    media: list[MediaFacts] = []
    left_out: list[LeftOut] = []
    problems: list[Problem] = []
    for entry in entries:
        try:
            found = _find(entry, storage, emit)
        except UserError as error:
            problems += error.problems
            continue
        left_out += found.left_out
        for sample in found.samples:
            facts, captioned = sample.info, PurePosixPath(sample.path).with_suffix("") in texts
            media.append(MediaFacts(facts.width, facts.height, facts.num_frames, facts.frame_rate, captioned))
    if not media:
        raise UserError.of(problems)
    reasons = summarize_reasons(left_out) if left_out else ()
    return Material(folder, tuple(media), tuple(reasons), _captions(storage, listing))


def _find(entry: ClipDataset, storage: Storage, emit: Callable[[Event], None]) -> FoundSamples:
    grid = FAMILIES[FAMILY].grid
    return find_samples([entry], {entry.id: storage}, grid, workers=PROBE_THREADS, emit=emit)


def _captions(storage: Storage, listing: Listing) -> tuple[str, ...]:
    """First lines of some caption files, the longest of them first."""
    found = []
    for file in [file for file in listing.files if file.path.lower().endswith(".txt")][:CAPTIONS_READ]:
        try:
            with storage.open(file.path) as handle:
                text = handle.read(LONGEST_CAPTION_BYTES).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            continue  # such a file is told as left out when it is trained
        found.append(next((line.strip() for line in text.splitlines() if line.strip()), ""))
    ordered = sorted(filter(None, dict.fromkeys(found)), key=lambda text: (-len(text), text))
    return tuple(ordered[:CAPTIONS_KEPT])


# The machine -------------------------------------------------------------------------------------


def find_wizard_machine() -> wizard.Machine:
    """The machine in the wizard's terms."""
    machine = find_machine()
    if not machine.card_name:
        return wizard.Machine(f"CPU, {counted(machine.cores, 'core')}", "cpu", int(machine.memory_bytes))
    memory = int(machine.card_bytes or machine.memory_bytes)
    return wizard.Machine(machine.card_name, "mps" if machine.card_name.startswith("Apple") else "cuda", memory)


def tokens_that_fit(known: Known) -> int:
    """Latent tokens one step can hold in the memory that was named; 0 while model or memory are unknown.

    Every block is computed again in the backward pass; a LyCORIS adapter counts as a LoRA of rank 16.
    """
    answers = known.answers
    named = answers.get("model_path") if answers.get("model") == "path" else answers.get("model")
    if not answers.get("memory") or not named:
        return 0
    cost = cost_source(FAMILY).find(ModelSection(pretrained_model_name_or_path=model_source(known)))
    targets, _ = cost_source(FAMILY).match_targets(cost.linear_layers, ("attention",))
    full, rank = answers.get("training") == "full", int(answers.get("rank") or 16)
    stored = str(answers.get("quantize") or "no_change")
    trained = TrainedPart(
        kind="full" if full else "lora", targets=() if full else targets, lora_rank=rank, stored=stored
    )
    parameters = cost.parameters["transformer"]
    values = parameters if full else cost.adapter_parameters(targets, rank)
    weights = cost.stored_bytes("transformer", stored, trained.weight_bytes)
    fixed = weights + values * (2 * trained.parameter_bytes + trained.state_bytes) + CONTEXT_BYTES
    room = float(answers["memory"]) * 1e9 * USABLE - fixed
    low, high = 0, MOST_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost.activation_bytes(middle, trained) <= room else (low, middle - 1)
    return max(low, 1)
