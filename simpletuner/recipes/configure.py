"""The wizard's flow: open what is there, take one answer after the other, try the draft, write the files.

The questions and the content of the files are pure data and functions of `config/surfaces/`; asking is done by
`cli/`. Nothing is written before the draft went through the same checks as a run, except the answers themselves,
which are kept so that nothing is lost.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simpletuner.config.documents import read_json
from simpletuner.config.draft import Draft as OptionDraft
from simpletuner.config.paths import check_paths
from simpletuner.config.resolve import examine
from simpletuner.config.sources import display_name
from simpletuner.config.surfaces import proposals, wizard_draft
from simpletuner.config.surfaces.wizard import (
    Known,
    Machine,
    Question,
    drop_stale,
    is_asked,
    next_question,
    read_answer,
    read_option,
    settled,
)
from simpletuner.config.surfaces.wizard_draft import Existing
from simpletuner.config.surfaces.wizard_findings import find_conflicts
from simpletuner.config.surfaces.wizard_questions import BY_KEY, QUESTIONS
from simpletuner.config.table import option_table
from simpletuner.config.values import UnreadableError
from simpletuner.core.errors import Problem, Severity, UserError
from simpletuner.core.files import write_atomic, write_json_atomic
from simpletuner.data.buckets import group_by_bucket
from simpletuner.events.types import Event
from simpletuner.recipes.check import check_run
from simpletuner.recipes.forecast import Forecast
from simpletuner.recipes.material import probe_material, tokens_that_fit
from simpletuner.recipes.survey import survey_data

KEPT_ANSWERS = ".configure-answers.json"
BACKUP = ".bak"
Emit = Callable[[Event], None]


@dataclass(frozen=True)
class Talk:
    """One conversation.

    Attributes:
        file: The configuration file that is written.
        known: What is known so far.
        existing: Content of the files that are there already.
        environment: Environment variables, which outrank the file in a run.
        again: Key of an answered question that is to be asked again; empty for none.
    """

    file: Path
    known: Known
    existing: Existing
    environment: Mapping[str, str]
    again: str = ""

    @property
    def folder(self) -> Path:
        return self.file.parent


@dataclass(frozen=True)
class Proposed:
    """Files ready to be written, and what the checks say of them.

    Attributes:
        files: Path -> content, the configuration first.
        problems: Findings of `check` on them; places name the files that will be written.
        forecast: The plan of the run; None when the draft cannot be read.
    """

    files: Mapping[Path, Any]
    problems: tuple[Problem, ...]
    forecast: Forecast | None


def open_talk(file: Path, machine: Machine, environment: Mapping[str, str]) -> Talk:
    """Begin, with the answers that existing files give.

    Raises:
        UserError: If one of them cannot be read; nothing of theirs is replaced unread.
    """
    existing = _read_existing(file)
    options = {question.key: question.option for question in QUESTIONS if question.option}
    offered = wizard_draft.answers_from(existing, options)
    return Talk(file, Known(machine, file.parent.as_posix(), offered=offered), existing, environment)


def _read_existing(file: Path) -> Existing:
    config = _read(file, dict)
    inner = config.get("config")
    if isinstance(inner, dict) and isinstance(config.get("_metadata"), dict):
        config = inner
    plain = {str(key).strip().lstrip("-"): value for key, value in config.items()}
    datasets = _named(plain.get("data_backend_config"), file, wizard_draft.DATASETS)
    prompts = _named(plain.get("user_prompt_library"), file, wizard_draft.PROMPTS)
    entries = tuple(entry for entry in _read(datasets, list) if isinstance(entry, dict))
    return Existing(plain, entries, _read(prompts, dict))


def _named(written: Any, file: Path, name: str) -> Path:
    """The file that a configuration names, else the one beside it."""
    candidates = [Path(written), file.parent / written] if isinstance(written, str) and written else []
    return next((path for path in candidates if path.is_file()), file.parent / name)


def _read(path: Path, kind: type) -> Any:
    if not path.is_file():
        return kind()
    value = read_json(path, path.as_posix()).value
    if not isinstance(value, kind):
        raise UserError(
            f"'{path}' is there already and is no configuration of this kind",
            "Nothing of yours is replaced unread",
            "Name another file, or move this one away",
        )
    return value


# Answers -----------------------------------------------------------------------------------------


def pending(talk: Talk) -> Question | None:
    """The question to ask now; None when all is known."""
    return BY_KEY[talk.again] if talk.again else next_question(QUESTIONS, talk.known)


def accept(talk: Talk, question: Question, raw: Any, emit: Emit) -> Talk:
    """Take one answer, with what follows from it: the folder's content, the room in memory, other proposals.

    Raises:
        UserError: If it breaks a rule; the talk goes on from where it was.
    """
    if problems := _unreadable(question, talk, raw):
        raise UserError.of(problems)
    value = read_answer(question, talk.known, raw)
    if question.option in option_table() and isinstance(value, str):
        _refuse_bad_path(question.option, value)
    if question.key == "held_out" and value:
        _refuse_trained_clips(str(value), talk.known)
    known = talk.known.with_answer(question.key, value)
    if question.kind == "folder" and (known.material is None or known.material.folder != value):
        known = replace(known, material=probe_material(value, emit))
    known = replace(known, token_limit=tokens_that_fit(known))
    return replace(talk, known=drop_stale(QUESTIONS, talk.known, known, question.key), again="")


def unreadable(talk: Talk, answers: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with answers as such, whatever else would follow from them."""
    given = {key: raw for key, raw in answers.items() if raw is not None}
    return [problem for key, raw in given.items() for problem in _unreadable(BY_KEY[key], talk, raw)]


def _unreadable(question: Question, talk: Talk, raw: Any) -> list[Problem]:
    """Problems of one answer; each of several options has its own."""
    several = raw if question.kind == "options" and isinstance(raw, Mapping) else None
    problems = []
    for name, value in ((question.key, raw),) if several is None else several.items():
        try:
            if several is None:
                read_answer(question, talk.known, value)
            else:
                read_option(talk.known, str(name), value)
        except UnreadableError as error:
            shown = json.dumps(value, ensure_ascii=False)
            problems.append(Problem(f"{name} = {shown}", error.rule, error.fix, question.key))
    return problems


def reconsider(talk: Talk, key: str) -> Talk:
    """Ask an answered question again; its answer is the proposal and holds until another is given."""
    offered = {**talk.known.offered, key: talk.known.answers[key]}
    return replace(talk, known=replace(talk.known, offered=offered), again=key)


def go_back(talk: Talk) -> Talk:
    """Ask the question before the pending one again; the first one has none before it."""
    answered = list(talk.known.answers)
    place = answered.index(talk.again) if talk.again else len(answered)
    return reconsider(talk, answered[place - 1]) if place > 0 else talk


def _refuse_bad_path(option: str, value: str) -> None:
    """A model that is neither here nor can be on the Hub is told at once, not at the end."""
    values = {name: spec.default for name, spec in option_table().items()}
    draft = OptionDraft({**values, option: value}, frozenset({option}), {option: option})
    found = [problem for problem in check_paths(draft, frozenset(), Path.cwd()) if problem.where == option]
    errors = [problem for problem in found if problem.severity is Severity.ERROR]
    if errors:
        raise UserError.of(errors)


def _refuse_trained_clips(folder: str, known: Known) -> None:
    """Clips set apart must be there, and must be others than the trained ones."""
    apart = Path(folder).expanduser()
    if not apart.is_dir():
        raise UserError(
            f"there is no folder '{folder}'", "It holds the clips set apart", "Correct it, or leave it empty"
        )
    trained = Path(known.material.folder if known.material else "").expanduser().resolve()
    if apart.resolve() == trained or trained in apart.resolve().parents or apart.resolve() in trained.parents:
        raise UserError(
            f"'{folder}' and the trained clips' folder lie within one another",
            "What is trained cannot show what is learnt; sub-folders are trained too",
            "Move some clips with their captions to a folder beside it",
        )


def keep_answers(talk: Talk) -> None:
    """Write the answers so far beside the configuration, so that an interrupted talk can go on."""
    answers = dict(talk.known.answers)
    write_json_atomic(talk.folder / KEPT_ANSWERS, {"file": talk.file.as_posix(), "answers": answers})


def kept_answers(file: Path) -> dict[str, Any]:
    """Answers of an interrupted talk about `file`; empty when there was none."""
    try:
        content = json.loads((file.parent / KEPT_ANSWERS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    told = content.get("answers") if isinstance(content, dict) and content.get("file") == file.as_posix() else None
    return told if isinstance(told, dict) else {}


def offer(talk: Talk, kept: Mapping[str, Any]) -> Talk:
    """The talk with the kept answers as proposals."""
    return replace(talk, known=replace(talk.known, offered={**talk.known.offered, **kept}))


def take_up(talk: Talk, kept: Mapping[str, Any], emit: Emit) -> Talk:
    """The talk with the kept answers given again; one that no longer holds is asked."""
    for question in QUESTIONS:
        if question.key in kept and is_asked(question, talk.known):
            with contextlib.suppress(UserError):
                talk = accept(talk, question, kept[question.key], emit)
    return talk


def forget_answers(talk: Talk) -> None:
    """Remove the kept answers once their files are written."""
    (talk.folder / KEPT_ANSWERS).unlink(missing_ok=True)


# The draft ---------------------------------------------------------------------------------------


def propose(talk: Talk, emit: Emit) -> Proposed:
    """Draw up the files, and check them as `simpletuner check` would."""
    known = replace(talk.known, answers=settled(QUESTIONS, talk.known))
    files = _files(known, talk, repeats=_repeats(known, talk, emit))
    with _staged(files, talk) as (words, placed):
        checked = check_run(words, talk.environment, Path.cwd(), emit)
        problems = tuple(placed(problem) for problem in checked.problems)
    problems = (*problems, *find_conflicts(known), *_other_sources(talk))
    return Proposed(files, problems, checked.forecast)


def _other_sources(talk: Talk) -> list[Problem]:
    """A file of another kind beside the one that is written: only one of them is read."""
    others = [path for path in (talk.file.with_suffix(".toml"), talk.file.with_suffix(".env")) if path.is_file()]
    return [
        Problem(
            f"{path} is there too",
            "A JSON file is read before it",
            "Remove the one you do not use",
            str(path),
            Severity.WARNING,
        )
        for path in others
    ]


def _repeats(known: Known, talk: Talk, emit: Emit) -> int:
    """Extra passes that fill the buckets; 0 while the draft cannot be read."""
    with _staged(_files(known, talk, repeats=0), talk) as (words, _):
        config = examine(
            [*words, "train_batch_size=1", "gradient_accumulation_steps=1"], talk.environment, Path.cwd()
        ).config
        if config is None:
            return 0
        try:
            samples = survey_data(config, emit).samples
        except UserError:
            return 0  # told by the check that follows
    counts = {str(bucket): len(members) for bucket, members in group_by_bucket(samples).items()}
    accumulation = int(known.answers["options"].get("gradient_accumulation_steps", 1))
    return proposals.repeats_for(counts, int(known.answers["batch_size"]) * accumulation)


def _files(known: Known, talk: Talk, repeats: int) -> dict[Path, Any]:
    found = {
        talk.file: wizard_draft.draft_config(known, talk.existing),
        talk.folder / wizard_draft.DATASETS: wizard_draft.draft_datasets(known, repeats, talk.existing),
        talk.folder / wizard_draft.PROMPTS: wizard_draft.draft_prompts(known, talk.existing),
        talk.folder / wizard_draft.LYCORIS: wizard_draft.draft_lycoris(known),
        talk.folder / wizard_draft.WEBHOOK: wizard_draft.draft_webhook(known),
    }
    return {path: content for path, content in found.items() if content is not None}


@contextlib.contextmanager
def _staged(files: Mapping[Path, Any], talk: Talk) -> Iterator[tuple[list[str], Callable[[Problem], Problem]]]:
    """Lend the draft in a folder of its own: the arguments that select it, and what names final files in findings."""
    with tempfile.TemporaryDirectory(prefix="simpletuner-configure-") as folder:
        staged = {path: Path(folder, path.name) for path in files}
        names = {path.as_posix(): copy.as_posix() for path, copy in staged.items()}
        for path, content in files.items():
            staged[path].write_text(
                json.dumps(_renamed(content, names), ensure_ascii=False, indent=2), encoding="utf-8"
            )
        back = {copy: path for path, copy in names.items()} | {folder: display_name(talk.folder, Path.cwd())}
        yield ["--config", str(staged[talk.file])], lambda problem: _placed(problem, back)


def _renamed(content: Any, names: Mapping[str, str]) -> Any:
    """The content with the names of staged files in the place of the final ones."""
    if not isinstance(content, dict):
        return content
    return {key: names.get(value, value) if isinstance(value, str) else value for key, value in content.items()}


def _placed(problem: Problem, back: Mapping[str, str]) -> Problem:
    def told(text: str) -> str:
        for staged, final in back.items():
            text = text.replace(staged, final)
        return text

    return replace(
        problem, what=told(problem.what), rule=told(problem.rule), fix=told(problem.fix), where=told(problem.where)
    )


# Writing -----------------------------------------------------------------------------------------


def replaced_files(proposed: Proposed) -> list[Path]:
    """Files that are there already and would get another content."""
    return [path for path, content in proposed.files.items() if path.is_file() and _parsed(path) != content]


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # comments and other liberties: written anew
        return None


def write_files(proposed: Proposed) -> list[Path]:
    """Write all files; of each that is replaced a copy stays beside it with `.bak` added to its name.

    Returns:
        The copies.
    Raises:
        UserError: If a folder cannot be written; a file is replaced whole or not at all.
    """
    copies = []
    for path in replaced_files(proposed):
        copies.append(path.with_name(path.name + BACKUP))
        write_atomic(copies[-1], path.read_bytes())
    for path, content in proposed.files.items():
        write_json_atomic(path, content)
    return copies


def selector(file: Path) -> str:
    """What `check` and `train` must be told to take this file; empty where they find it by themselves."""
    if file in (Path("config/config.json"), Path("config.json")):
        return ""
    if file.name == "config.json" and file.parent.parent == Path("config"):
        return f" --env {file.parent.name}"
    return f" --config {file}"
