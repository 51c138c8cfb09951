"""Further files that a configuration names: LyCORIS settings, adapters, layer lists, webhooks and the like.

They are looked at even where the feature behind them is not built, so that a file is in order on the
day it is. It must not know what is done with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner.config.documents import parse_json, read_json
from simpletuner.config.draft import Draft
from simpletuner.config.lycoris_file import LycorisFile, LycorisReading, read_lycoris
from simpletuner.config.lycoris_rules import check_lycoris
from simpletuner.config.publishing_file import PublishingPlace, PublishingReading, read_publishing
from simpletuner.config.sections.adapter import SLIDER_LAYERS
from simpletuner.config.sections.reporting import CUSTOM_TRACKER, tracker_names
from simpletuner.config.validation_adapters import place_entries
from simpletuner.config.webhook_file import Webhook, WebhookReading, read_webhooks
from simpletuner.core.errors import Problem, UserError

TRACKER_FOLDERS = ("custom-trackers/", "config/custom-trackers/", "")
FindFile = Callable[[str], "Path | None"]
LYCORIS_PLACES = ["lycoris_config.json", "config/lycoris_config.json"]  # looked at when no path is given
Missing = Callable[[str, str, str], Problem]  # option, path as written, pattern of files near by


@dataclass(frozen=True)
class NamedFiles:
    """What the files say (None or empty where there is none or it has errors), and the findings.

    `replaced` are options whose value is not what was written: a path as it was found, a list from its file.
    """

    lycoris: LycorisFile | None
    webhooks: tuple[Webhook, ...]
    places: tuple[PublishingPlace, ...]
    problems: tuple[Problem, ...]
    replaced: Mapping[str, Any] = field(default_factory=dict)


def read_named_files(draft: Draft, find: FindFile, missing: Missing, name_of: Callable[[Path], str]) -> NamedFiles:
    """Open and check the files behind `lycoris_config`, `webhook_config`, `peft_lora_target_modules`, `init_lora`.

    Args:
        draft: The options, those that are refused as not built included.
        find: The file behind a path as written, or None.
        missing: The problem to tell when there is none.
        name_of: How messages call a file.
    """
    lycoris = _lycoris(draft, find, missing, name_of)
    webhooks, told = _document(draft, "webhook_config", find, missing, name_of)
    heard = read_webhooks(webhooks, told) if told else WebhookReading((), webhooks)
    published, told = _document(draft, "publishing_config", find, missing, name_of)
    places = read_publishing(published, told) if told else PublishingReading((), published)
    replaced: dict[str, Any] = {}
    problems = [*lycoris.problems, *heard.problems, *places.problems]
    if lycoris.settings is not None and draft.values["lora_type"] == "lycoris" and draft.values["model_type"] != "full":
        problems += check_lycoris(lycoris.settings, draft)
    for read in (_layer_list, _adapter_file, _further_adapters, _tracker_file, _preview_decoder):
        try:
            replaced.update(read(draft, find, missing, name_of))
        except UserError as error:
            problems.extend(error.problems)
    return NamedFiles(lycoris.settings, heard.webhooks, places.places, tuple(problems), replaced)


def _layer_list(
    draft: Draft, find: FindFile, missing: Missing, name_of: Callable[[Path], str]
) -> Mapping[str, list[str]]:
    """The list behind `peft_lora_target_modules` where its one entry is the name of a JSON file; that of sliders where
    they are asked for."""
    written = draft.values["peft_lora_target_modules"]
    if not written and draft.values["slider_lora_target"]:
        return {"peft_lora_target_modules": list(SLIDER_LAYERS)}
    if not written or len(written) != 1 or not written[0].lower().endswith(".json"):
        return {}
    path = find(written[0])
    if path is None:
        raise UserError.of([missing("peft_lora_target_modules", written[0], "*target*.json")])
    document = read_json(path, name_of(path))
    names = document.value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(
            "this is no list of layer names",
            "peft_lora_target_modules names a JSON file with one list of texts",
            'Write for example ["to_q", "to_k", "to_v", "to_out.0"]',
            where=document.name,
        )
    return {"peft_lora_target_modules": names}


def _adapter_file(draft: Draft, find: FindFile, missing: Missing, name_of: Callable[[Path], str]) -> Mapping[str, str]:
    """The adapter files that the run starts from, as they were found."""
    found, problems = {}, []
    for option in ("init_lora", "init_lora_ema"):
        if not (written := draft.values[option]):
            continue
        path = find(written)
        if path is None:
            problems.append(missing(option, written, "*.safetensors"))
        else:
            found[option] = str(path)
    if problems:
        raise UserError.of(problems)
    return found


def _further_adapters(
    draft: Draft, find: FindFile, missing: Missing, name_of: Callable[[Path], str]
) -> Mapping[str, Any]:
    """The adapters that are put on for validation, as they were found."""
    found: dict[str, Any] = {}
    written = draft.values["validation_adapter_path"]
    if written:
        path = find(written)
        if path is None:
            raise UserError.of([missing("validation_adapter_path", written, "*.safetensors")])
        found["validation_adapter_path"] = str(path)
    entries, told = _document(draft, "validation_adapter_config", find, missing, name_of)
    if told:
        found["validation_adapter_config"] = place_entries(entries, told, find)
    elif entries:
        raise UserError.of(entries)
    return found


def _tracker_file(draft: Draft, find: FindFile, missing: Missing, name_of: Callable[[Path], str]) -> Mapping[str, str]:
    """The file of the user's own tracker, as it was found."""
    written = draft.values["custom_tracker"]
    if not written or CUSTOM_TRACKER not in tracker_names(str(draft.values["report_to"])):
        return {}
    places = [written] if written.endswith(".py") else [f"{folder}{written}.py" for folder in TRACKER_FOLDERS]
    path = next((found for text in places if (found := find(text)) is not None), None)
    if path is None:
        raise UserError.of([missing("custom_tracker", places[0], "*tracker*.py")])
    return {"custom_tracker": str(path)}


def _preview_decoder(
    draft: Draft, find: FindFile, missing: Missing, name_of: Callable[[Path], str]
) -> Mapping[str, str]:
    """The decoder file of previews, as it was found."""
    written = str(draft.values["validation_preview_decoder"])
    if not written.lower().endswith(".safetensors"):
        return {}
    path = find(written)
    if path is None:
        raise UserError.of([missing("validation_preview_decoder", written, "*.safetensors")])
    return {"validation_preview_decoder": str(path)}


def _lycoris(draft: Draft, find: FindFile, missing: Missing, name_of: Callable[[Path], str]) -> LycorisReading:
    written, wanted = draft.values["lycoris_config"], draft.values["lora_type"] == "lycoris"
    if not written and not wanted:
        return LycorisReading(None, ())
    candidates = [written] if written else LYCORIS_PLACES
    path = next((found for text in candidates if (found := find(text)) is not None), None)
    if path is not None:
        return read_lycoris(path, name_of(path), draft.values["model_family"] or "ltxvideo")
    if written:
        return LycorisReading(None, (missing("lycoris_config", written, "*lycoris*.json"),))
    problem = Problem(
        "lora_type = lycoris without lycoris_config",
        "The file says which kind of adapter, and how large",
        'Write it and add "lycoris_config": "config/lycoris_config.json"',
        draft.place("lora_type"),
    )
    return LycorisReading(None, (problem,))


def _document(
    draft: Draft, option: str, find: FindFile, missing: Missing, name_of: Callable[[Path], str]
) -> tuple[Any, str]:
    """The document behind an option that is written inline or names a file, and how messages call it.

    Where there is none the name is empty, and the findings stand in place of the document.
    """
    written: Any = draft.values[option]
    if not written or option not in draft.given:
        return (), ""
    place = f"{draft.place(option)}: {option}"
    try:
        if isinstance(written, str) and written.lstrip().startswith(("{", "[")):
            return parse_json(written, place).value, place
        if not isinstance(written, str):
            return written, place
        path = find(written)
        if path is None:
            return (missing(option, written, f"*{option.partition('_')[0]}*.json"),), ""
        return read_json(path, name_of(path)).value, name_of(path)
    except UserError as error:
        return error.problems, ""
