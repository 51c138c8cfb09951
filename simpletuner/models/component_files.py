"""Finds the files of one component, in a local folder or on the Hub.

Knows folders, repositories and file names; what the components mean is decided by the families.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.core.errors import UserError

WEIGHTS_SUFFIX = ".safetensors"
TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class Component:
    """The files of one part of a checkpoint.

    Attributes:
        origin: Where it comes from, as the user would write it.
        config: Its configuration; empty for an original single file.
        weights: Its safetensors files.
        folder: The folder they lie in.
    """

    origin: str
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    folder: Path


@dataclass(frozen=True)
class Place:
    """A local folder, or a Hub repository at a revision."""

    name: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        return self.path.exists()

    @property
    def path(self) -> Path:
        return Path(self.name).expanduser()

    def fetch(self, patterns: Sequence[str]) -> Path:
        """The local folder; files matching `patterns` are downloaded first if the place is on the Hub.

        Raises:
            UserError: If there is neither such a folder nor such a repository, or it cannot be reached.
        """
        if self.is_local:
            return self.path
        self._refuse_paths()
        # Imported here, for the Hub client takes longer to import than a local checkpoint to find.
        from huggingface_hub import snapshot_download

        with _told_hub_errors(self.name):
            return Path(snapshot_download(self.name, revision=self.revision, allow_patterns=list(patterns)))

    def fetch_file(self) -> Path:
        """The local file; `owner/repository/path/in/it` is downloaded from the Hub."""
        if self.is_local:
            return self.path
        owner, _, rest = self.name.partition("/")
        repository, _, inside = rest.partition("/")
        if not inside or self.path.is_absolute() or owner in (".", "..", "~"):
            raise UserError(
                f"there is no file '{self.name}'",
                "A weights file is a local path, or `owner/repository/file.safetensors` on the Hub",
                "Correct the path",
            )
        from huggingface_hub import hf_hub_download

        with _told_hub_errors(self.name):
            return Path(hf_hub_download(f"{owner}/{repository}", inside, revision=self.revision))

    def _refuse_paths(self) -> None:
        parts = self.name.replace("\\", "/").split("/")
        if len(parts) != 2 or parts[0] in ("", ".", "..", "~"):
            raise UserError(
                f"there is no folder '{self.name}'",
                "A checkpoint is a local folder in the Diffusers layout, or a Hub repository written `owner/name`",
                "Correct the path",
            )


@contextlib.contextmanager
def _told_hub_errors(name: str) -> Iterator[None]:
    """Turn the Hub client's failures into sentences; the cause stays attached."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"the Hub does not give out '{name}'",
            "It is no local folder, and as a Hub repository it does not exist, is private, or asks for consent",
            "Correct the name, or log in with `hf auth login` and accept its terms on its page",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"'{name}' has no such revision", "", "Correct or remove `revision`") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, ConnectionError) as error:
        raise UserError(
            f"'{name}' is no local folder and could not be fetched from the Hub ({_first_line(error)})",
            "The checkpoint must be on this machine, or reachable",
            "Correct the path, or check the connection (a mirror: HF_ENDPOINT=https://hf-mirror.com); what is there "
            "already is kept",
        ) from error


def weight_patterns(stem: str, variant: str | None) -> list[str]:
    """Hub file patterns of a component's weights; whole or in shards."""
    name = f"{stem}.{variant}" if variant else stem
    shards = f"-?????-of-?????{WEIGHTS_SUFFIX}"
    patterns = [f"{name}{WEIGHTS_SUFFIX}", f"{name}{shards}", f"{stem}{WEIGHTS_SUFFIX}.index*.json"]
    if variant:
        patterns.append(f"{stem}-?????-of-?????.{variant}{WEIGHTS_SUFFIX}")
    return patterns


def find_weights(folder: Path, stem: str, variant: str | None) -> tuple[Path, ...]:
    """The weight files of a component, in order; empty if there are none.

    Raises:
        UserError: If an index names shards that are not there.
    """
    infix = f".{variant}" if variant else ""
    whole = folder / f"{stem}{infix}{WEIGHTS_SUFFIX}"
    index = folder / f"{stem}{WEIGHTS_SUFFIX}.index{infix}.json"
    if whole.is_file():
        return (whole,)
    return _shards(index) if index.is_file() else ()


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(read_json(index)["weight_map"].values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} weight files are missing in '{index.parent}': {', '.join(missing[:3])}",
            f"'{index.name}' names them",
            "Download the checkpoint again; what is complete is kept",
        )
    return tuple(index.parent / name for name in names)


def read_json(path: Path) -> dict[str, Any]:
    """A component's JSON file.

    Raises:
        UserError: If it is not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not valid JSON ({error})", "", "Download the checkpoint again") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds no JSON object", "", "Download the checkpoint again")
    return content


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
