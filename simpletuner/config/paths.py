"""Paths that a configuration names: is there something, or can the Hub be meant? Plain file tests only.

Tells before a run what the loaders would refuse after a minute of imports. It must not know what a
checkpoint holds, and never asks the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from simpletuner.config.draft import Draft
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity

WEIGHTS_SUFFIX = ".safetensors"
TRANSFORMER = "pretrained_transformer_model_name_or_path"
SOURCES = (
    "pretrained_model_name_or_path",
    "pretrained_vae_model_name_or_path",
    TRANSFORMER,
    "pretrained_t5_model_name_or_path",
)


def expand(text: str) -> Path:
    """The path with `~` filled in; as written when it names an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def check_paths(draft: Draft, unreadable: frozenset[str], working_folder: Path) -> list[Problem]:
    """All findings about the model's parts, `output_dir` and `resume_from_checkpoint`."""
    problems = check_sources(draft, unreadable, working_folder)
    if "output_dir" not in unreadable:
        problems.extend(_output(draft, working_folder))
        if "resume_from_checkpoint" not in unreadable:
            problems.extend(_resume(draft, working_folder))
    return problems


def check_sources(draft: Draft, unreadable: frozenset[str], working_folder: Path) -> list[Problem]:
    """All findings about where the model's parts come from."""
    return [problem for name in SOURCES if name not in unreadable for problem in _source(draft, name, working_folder)]


def _source(draft: Draft, name: str, working_folder: Path) -> Iterator[Problem]:
    text = draft.values[name]
    if not text or _exists(working_folder / expand(text)):
        return
    parts = text.replace("\\", "/").split("/")
    single = text.endswith(WEIGHTS_SUFFIX)
    on_hub = len(parts) >= 3 if single and name == TRANSFORMER else len(parts) == 2 and not single
    if parts[0] in ("", ".", "..") or text.startswith("~") or "\\" in text or not on_hub:
        form = "owner/repository/file.safetensors" if single and name == TRANSFORMER else "owner/name"
        yield Problem(
            f"{name} = {show(text)}: there is no such {'file' if single else 'folder'}",
            f"It must be a path that exists (relative ones start at the working folder), or be on the Hub: `{form}`",
            _near(working_folder / expand(text)),
            draft.place(name),
        )
    elif (working_folder / parts[0]).is_dir():
        yield Problem(
            f"{name} = {show(text)} is not here, though there is a folder '{parts[0]}': the Hub will be asked for it",
            "Only a name that is no path here is looked for on the Hub",
            _near(working_folder / expand(text)),
            draft.place(name),
            Severity.WARNING,
        )


def _output(draft: Draft, working_folder: Path) -> Iterator[Problem]:
    text = draft.values["output_dir"]
    path = working_folder / text
    for folder in (path, *path.parents):
        if _exists(folder):
            if not folder.is_dir():
                yield Problem(
                    f"output_dir = {show(text)}: '{folder}' is a file",
                    "The run needs a folder for what it makes",
                    "Name another folder, or move the file away",
                    draft.place("output_dir"),
                )
            return


def _resume(draft: Draft, working_folder: Path) -> Iterator[Problem]:
    request = (draft.values["resume_from_checkpoint"] or "").strip()
    if request == "latest" or request.lower() in ("", "none"):
        return
    output = working_folder / draft.values["output_dir"]
    candidates = (working_folder / expand(request), output / request)
    if any(_exists(path) and path.is_dir() for path in candidates):
        return
    known = sorted(path.name for path in output.glob("checkpoint-*") if path.is_dir()) if _exists(output) else []
    yield Problem(
        f"resume_from_checkpoint = {show(request)}: there is no such checkpoint",
        f"It must be latest, none, a path, or a folder in '{draft.values['output_dir']}' "
        f"(there: {', '.join(known) or 'none'})",
        did_you_mean(request, [*known, "latest", "none"]) or "Correct the path, or use latest",
        draft.place("resume_from_checkpoint"),
    )


def _exists(path: Path) -> bool:
    """Whether something is there; a name that the file system cannot hold is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _near(path: Path) -> str:
    """What lies where `path` was looked for."""
    parent = path.parent
    try:
        names = sorted(child.name for child in parent.iterdir() if not child.name.startswith("."))
    except (OSError, ValueError):
        return f"Correct the path; '{parent}' is not there either"
    return did_you_mean(path.name, names) or "Correct the path"
