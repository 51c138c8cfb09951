"""Resolves a checkpoint: where each component lies and which release it is. Loads no weights.

The base checkpoint gives every component; three options replace the autoencoder, the transformer
or the text encoder. All that is missing is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.sections.model import ModelSection
from simpletuner.core.errors import Problem, UserError
from simpletuner.models.component_files import (
    TOKENIZER_FILES,
    WEIGHTS_SUFFIX,
    Component,
    Place,
    find_weights,
    read_json,
    weight_patterns,
)
from simpletuner.models.identity import fingerprint
from simpletuner.models.ltxvideo import versions
from simpletuner.models.ltxvideo.single_file import CLASS_NAME, read_autoencoder_kind, read_transformer_config
from simpletuner.models.ltxvideo.versions import Positions, Release

_STEM = {"vae": "diffusion_pytorch_model", "transformer": "diffusion_pytorch_model", "text_encoder": "model"}
_NOUN = {"vae": "autoencoder", "transformer": "transformer", "text_encoder": "text encoder"}
_EXPECTED_CLASS = {"vae": "AutoencoderKLLTXVideo", "transformer": CLASS_NAME, "text_encoder": "T5EncoderModel"}
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class LTXSource:
    """A resolved LTX-Video checkpoint.

    Attributes:
        version: Row of the release table.
        positions: Time positions of latent frames, the release's own unless forced.
        token_length: Text tokens per prompt.
        autoencoder, transformer, text: Files of the components.
        tokenizer: Folder of the tokenizer.
        attention: How its blocks attend, a name of the catalog.
        compiled: Whether its blocks will be compiled.
        notices: Sentences worth telling before step 1.
    """

    version: Release
    positions: Positions
    token_length: int
    autoencoder: Component
    transformer: Component
    text: Component
    tokenizer: Path
    attention: str = "diffusers"
    compiled: bool = False
    notices: tuple[str, ...] = ()

    @property
    def release(self) -> str:
        """Release of the model, such as "0.9.5"."""
        return self.version.name

    def identity(self, component: str) -> str:
        """Fingerprint of "autoencoder", "text" or "transformer" from its files, not their place.

        The text encoder's covers its tokenizer, but not the token length, which callers state.
        """
        part = {"autoencoder": self.autoencoder, "text": self.text, "transformer": self.transformer}[component]
        tokenizer = [self.tokenizer / name for name in TOKENIZER_FILES] if component == "text" else []
        return fingerprint(part.config, part.weights, [path for path in tokenizer if path.is_file()])

    def describe(self) -> tuple[tuple[str, str], ...]:
        """(label, value) lines for the story before step 1."""
        config = self.transformer.config
        blocks, heads, head_width = (config[k] for k in ("num_layers", "num_attention_heads", "attention_head_dim"))
        positions = "by the release" if self.positions == self.version.positions else "forced by ltx_positions"
        lines = [
            ("model", f"LTX-Video {self.release}"),
            ("transformer", f"{self.transformer.origin}: {blocks} blocks, {heads} heads of {head_width}"),
            ("autoencoder", f"{self.autoencoder.origin}: kind {self.version.autoencoder}"),
            ("text encoder", f"{self.text.origin}: {self.token_length} tokens"),
            ("time positions", f"{self.positions} ({positions})"),
        ]
        return (*lines, *(("note", notice) for notice in self.notices))


def resolve_source(settings: ModelSection) -> LTXSource:
    """Find the components and the release of a checkpoint; download what is missing from the Hub.

    Raises:
        UserError: With every component that is missing, of another family, or out of reach; or if
            autoencoder and transformer belong to different releases.
    """
    row = FAMILIES["ltxvideo"]
    name = settings.pretrained_model_name_or_path or row.checkpoint(settings.model_flavour)
    finder = _Finder(settings, Place(name, settings.revision))
    problems: list[Problem] = []
    autoencoder = _collect(problems, finder.autoencoder)
    transformer = _collect(problems, finder.transformer)
    text = _collect(problems, finder.text)
    tokenizer = _collect(problems, finder.tokenizer)
    if autoencoder is None or transformer is None or text is None or tokenizer is None:
        raise UserError.of(problems)
    _check_widths(transformer, text)
    evidence = versions.Evidence(
        autoencoder=versions.autoencoder_kind(autoencoder.config),
        autoencoder_from=autoencoder.origin,
        size=versions.transformer_size(transformer.config),
        transformer_from=transformer.origin,
        transformer_autoencoder=finder.kind_beside(transformer),
        dynamic_shift=finder.dynamic_shift(),
    )
    release = versions.recognise(evidence, settings.model_flavour)
    note = versions.schedule_note(release, evidence.dynamic_shift)
    positions: Positions = release.positions if settings.ltx_positions == "auto" else settings.ltx_positions
    return LTXSource(
        release,
        positions,
        settings.tokenizer_max_length,
        autoencoder,
        transformer,
        text,
        tokenizer,
        attention=settings.attention_mechanism,
        compiled=settings.dynamo_backend != "no",
        notices=(note,) if note else (),
    )


def find_transformer(place: str) -> Component:
    """The transformer of `place`: a checkpoint, a `transformer` folder, a Hub repository or a single file.

    Raises:
        UserError: If there is none.
    """
    if place.endswith(WEIGHTS_SUFFIX):
        path = Place(place).fetch_file()
        return Component(place, read_transformer_config(path, {}), (path,), path.parent)
    finder = _Finder(ModelSection(pretrained_model_name_or_path=place), Place(place))
    return finder.transformer_of_base()


class _Finder:
    """Looks each component up where the settings say."""

    def __init__(self, settings: ModelSection, base: Place) -> None:
        self._settings = settings
        self._base = base

    def autoencoder(self) -> Component:
        place = self._settings.pretrained_vae_model_name_or_path
        if place is None:
            return self._component(self._base, "vae", "vae", "pretrained_model_name_or_path")
        if place.endswith(WEIGHTS_SUFFIX):
            raise UserError(
                f"pretrained_vae_model_name_or_path is the file '{place}'",
                "The autoencoder is read from a folder in the Diffusers layout: its shape stands in config.json",
                "Give the folder, or a Hub repository such as Lightricks/LTX-Video-0.9.5",
            )
        return self._component(Place(place), "vae", "vae", "pretrained_vae_model_name_or_path", or_root=True)

    def transformer(self) -> Component:
        place = self._settings.pretrained_transformer_model_name_or_path or self._released_file()
        folder = self._settings.pretrained_transformer_subfolder
        folder = "" if folder.strip().lower() == "none" else folder
        if place is None:
            return self._component(self._base, folder, "transformer", "pretrained_model_name_or_path")
        if place.endswith(WEIGHTS_SUFFIX):
            path = Place(place).fetch_file()
            return Component(
                place, read_transformer_config(path, self._base_transformer_config()), (path,), path.parent
            )
        option = "pretrained_transformer_model_name_or_path"
        return self._component(Place(place), folder, "transformer", option)

    def transformer_of_base(self) -> Component:
        """The base's transformer, or the base itself where it is one."""
        return self._component(self._base, "transformer", "transformer", "--base", or_root=True)

    def text(self) -> Component:
        place, folder, option = self._text_place("text_encoder")
        return self._component(place, folder, "text_encoder", option, or_root=self._text_replaced)

    def tokenizer(self) -> Path:
        place, folder, option = self._text_place("tokenizer")
        patterns = [f"{folder}/{name}" for name in TOKENIZER_FILES]
        root = place.fetch([*patterns, *TOKENIZER_FILES] if self._text_replaced else patterns)
        for candidate in [root / folder, root] if self._text_replaced else [root / folder]:
            if any((candidate / name).is_file() for name in ("spiece.model", "tokenizer.json")):
                return candidate
        raise _missing(place.name, option, "the tokenizer", f"{folder}/ with spiece.model or tokenizer.json", root)

    def kind_beside(self, transformer: Component) -> versions.AutoencoderKind | None:
        """Kind of the autoencoder published together with the transformer, where its place tells."""
        if transformer.origin.endswith(WEIGHTS_SUFFIX):
            return read_autoencoder_kind(transformer.weights[0])
        replaced = self._settings.pretrained_transformer_model_name_or_path
        place = Place(replaced) if replaced else self._base
        config = place.fetch(["vae/config.json", "transformer/config.json"]) / "vae" / "config.json"
        return versions.autoencoder_kind(read_json(config)) if config.is_file() else None

    def dynamic_shift(self) -> bool | None:
        """What the base's scheduler file says, or None if there is no such file."""
        path = self._base.fetch(["scheduler/*.json"]) / "scheduler" / "scheduler_config.json"
        return bool(read_json(path).get("use_dynamic_shifting", False)) if path.is_file() else None

    @property
    def _text_replaced(self) -> bool:
        return self._settings.pretrained_t5_model_name_or_path is not None

    def _text_place(self, folder: str) -> tuple[Place, str, str]:
        replaced = self._settings.pretrained_t5_model_name_or_path
        if replaced is None:
            return self._base, folder, "pretrained_model_name_or_path"
        return Place(replaced), folder, "pretrained_t5_model_name_or_path"

    def _released_file(self) -> str | None:
        """The Hub file of a release that has no Diffusers layout, when the user named only the release."""
        flavour = self._settings.model_flavour
        if flavour is None or self._settings.pretrained_model_name_or_path is not None:
            return None
        return versions.find_release(flavour).transformer_file or None

    def _base_transformer_config(self) -> dict[str, Any]:
        path = self._base.fetch(["transformer/config.json"]) / "transformer" / "config.json"
        return read_json(path) if path.is_file() else {}

    def _component(self, place: Place, folder: str, kind: str, option: str, *, or_root: bool = False) -> Component:
        """The component `kind` in `folder` of `place`; `or_root` also looks at the place itself."""
        stem = _STEM[kind]
        places = [folder, ""] if or_root else [folder]
        # The named variant first; a component that has none of that variant is taken without.
        for variant in dict.fromkeys((self._settings.variant, None)):
            root = place.fetch([_join(at, name) for at in places for name in _wanted_files(stem, variant)])
            for at in places:
                weights = find_weights(root / at, stem, variant)
                if weights and (root / at / "config.json").is_file():
                    config = read_json(root / at / "config.json")
                    _check_class(config, kind, root / at, option)
                    return Component(_join(place.name, at), config, weights, root / at)
        raise _missing(
            place.name, option, f"the {_NOUN[kind]}", f"{_join(folder, 'config.json')} and {stem}{WEIGHTS_SUFFIX}", root
        )


def _wanted_files(stem: str, variant: str | None) -> list[str]:
    return ["config.json", *weight_patterns(stem, variant)]


def _join(folder: str, name: str) -> str:
    return "/".join(part for part in (folder, name) if part)


def _check_class(config: Mapping[str, Any], kind: str, folder: Path, option: str) -> None:
    expected = _EXPECTED_CLASS[kind]
    # T5 stores its class under another key, and repositories of the bare encoder name the whole model.
    found = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if found == expected or (kind == "text_encoder" and config.get("model_type") in ("t5", "mt5", "umt5")):
        return
    raise UserError(
        f"'{folder}' holds a {found or 'component without a class name'}",
        f"LTX-Video's {_NOUN[kind]} is a {expected}",
        f"Point {option} at an LTX-Video 0.9 checkpoint",
    )


def _missing(name: str, option: str, noun: str, expected: str, root: Path) -> UserError:
    found = (
        sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in root.iterdir()) if root.is_dir() else []
    )
    shown = ", ".join(found[:12]) + (", …" if len(found) > 12 else "")
    return UserError(
        f"{noun} is not in '{name}' ({option}); found there: {shown or 'nothing'}",
        f"Expected {expected}",
        "Give a complete checkpoint in the Diffusers layout",
    )


def _check_widths(transformer: Component, text: Component) -> None:
    wanted, given = transformer.config["caption_channels"], text.config["d_model"]
    if wanted != given:
        raise UserError(
            f"the transformer in '{transformer.origin}' reads text features of width {wanted}, "
            f"the text encoder in '{text.origin}' gives {given}",
            "Both must have the same width",
            "Use the text encoder of the same checkpoint",
        )


def _collect(problems: list[Problem], find: Callable[[], _Found]) -> _Found | None:
    try:
        return find()
    except UserError as error:
        problems.extend(problem for problem in error.problems if problem not in problems)
        return None
