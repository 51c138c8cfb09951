"""The wizard as data: what a question is, what is known so far, which question comes next, what an answer means.

Pure: nothing is asked, probed or written here. The list of questions is `wizard_questions.py`, the files that
follow from the answers are `wizard_draft.py`; `recipes/configure.py` runs the flow and `cli/configure.py` talks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from simpletuner.config.surfaces.cli import canonical_name
from simpletuner.config.table import OptionSpec, dataset_tables, option_table
from simpletuner.config.values import FALSE, TRUE, UnreadableError, read_value, refusal
from simpletuner.core.catalog import did_you_mean

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
Kind = Literal["folder", "text", "number", "choice", "yes or no", "options"]


@dataclass(frozen=True)
class Words:
    """One text in both languages."""

    en: str
    zh: str

    def told(self, language: Language) -> str:
        """The text in `language`."""
        return self.zh if language == "zh" else self.en


NO_WORDS = Words("", "")
AS_IT_STANDS = Words("as it stands in the file", "保持文件中的值")


@dataclass(frozen=True)
class MediaFacts:
    """Header facts of one clip (or picture, which has one frame and no rate)."""

    width: int
    height: int
    num_frames: int
    frame_rate: float
    captioned: bool

    @property
    def is_clip(self) -> bool:
        return self.num_frames > 1


@dataclass(frozen=True)
class Material:
    """What a folder holds.

    Attributes:
        folder: As the person wrote it.
        media: Usable clips and pictures.
        left_out: Why files cannot be used, one line per kind of reason.
        captions: Some captions found beside the files, longest first.
    """

    folder: str
    media: tuple[MediaFacts, ...]
    left_out: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()

    @property
    def clips(self) -> tuple[MediaFacts, ...]:
        return tuple(item for item in self.media if item.is_clip)

    @property
    def pictures(self) -> tuple[MediaFacts, ...]:
        return tuple(item for item in self.media if not item.is_clip)

    @property
    def captioned(self) -> int:
        """How many of the files have a caption beside them."""
        return sum(item.captioned for item in self.media)


@dataclass(frozen=True)
class Machine:
    """Where the run will be computed.

    Attributes:
        name: For people ("NVIDIA H200", "CPU").
        kind: Which rules hold.
        memory_bytes: Memory of one accelerator; of the machine without one.
        count: Accelerators of this kind.
    """

    name: str
    kind: Literal["cuda", "rocm", "mps", "cpu"]
    memory_bytes: int
    count: int = 1

    @property
    def memory_gb(self) -> float:
        return self.memory_bytes / 1e9


@dataclass(frozen=True)
class Known:
    """All the wizard knows at one moment.

    Attributes:
        machine: Where it will run.
        folder: Folder of the configuration files, as written.
        answers: Answers given so far, typed, in the order in which they were given.
        offered: Answers of an earlier talk or of an existing configuration; they replace the proposals.
        material: What the folder of clips holds, once it was named.
        token_limit: Latent tokens one step can hold in the memory that was named; 0 while unknown.
        options: The option table; features that are built decide which questions and choices appear.
    """

    machine: Machine
    folder: str = "config"
    answers: Mapping[str, Any] = field(default_factory=dict)
    offered: Mapping[str, Any] = field(default_factory=dict)
    material: Material | None = None
    token_limit: int = 0
    options: Mapping[str, OptionSpec] = field(default_factory=option_table)

    def with_answer(self, key: str, value: Any) -> Known:
        """The same with one more answer."""
        return replace(self, answers={**self.answers, key: value})

    def without(self, *keys: str) -> Known:
        """The same without these answers; they are offered again."""
        taken = {key: self.answers[key] for key in keys if key in self.answers}
        rest = {key: value for key, value in self.answers.items() if key not in taken}
        return replace(self, answers=rest, offered={**self.offered, **taken})

    def is_built(self, option: str, value: Any = None) -> bool:
        """Whether an option, or one of its words, does something today."""
        spec = self.options[option]
        if spec.facts.planned or spec.facts.refused or value in spec.facts.planned_values:
            return False
        return value is None or refusal(spec, value) is None


@dataclass(frozen=True)
class Choice:
    """One answer to choose.

    Attributes:
        value: What the answers file and the configuration hold.
        text: What it means, on one line.
        needs: (option, value) without which it is not offered; empty when nothing is needed.
        machines: Kinds of machines it works on; empty for all.
    """

    value: str
    text: Words
    needs: tuple[str, str] | tuple[()] = ()
    machines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        key: Its name in an answers file.
        kind: How it is answered.
        text: The question.
        why: One line that explains what depends on it.
        default: Proposal from what is known; None when only the person can know.
        asked: Whether it is to be asked.
        needs: Option of the feature it is about; it appears when that feature is built. Empty for none.
        choices: For the kind "choice".
        option: Option whose row of the table reads the answer, and which an existing configuration answers with.
        hint: A line computed from what is known.
        group: Heading under which it is asked; empty continues the one before.
    """

    key: str
    kind: Kind
    text: Words
    why: Words = NO_WORDS
    default: Callable[[Known], Any] = lambda known: None
    asked: Callable[[Known], bool] = lambda known: True
    needs: str = ""
    choices: tuple[Choice, ...] = ()
    option: str = ""
    hint: Callable[[Known], Words] = lambda known: NO_WORDS
    group: Words = NO_WORDS


def choices_of(question: Question, known: Known) -> tuple[Choice, ...]:
    """The choices that can be taken today, on this machine; and what an existing file holds besides them."""
    usual = tuple(
        choice
        for choice in question.choices
        if (not choice.needs or known.is_built(*choice.needs))
        and (not choice.machines or known.machine.kind in choice.machines)
    )
    earlier = known.offered.get(question.key)
    if not question.option or not isinstance(earlier, str) or earlier.lower() in [choice.value for choice in usual]:
        return usual
    try:
        return (*usual, Choice(str(read_option(known, question.option, earlier)), AS_IT_STANDS))
    except UnreadableError:
        return usual


def is_asked(question: Question, known: Known) -> bool:
    """Whether the question makes sense now; one with a single choice answers itself."""
    return is_there(question, known) and question.asked(known)


def is_there(question: Question, known: Known) -> bool:
    """Whether the question exists at all: its feature is built, and there is something to choose."""
    built = not question.needs or known.is_built(question.needs)
    return built and (question.kind != "choice" or len(choices_of(question, known)) > 1)


def proposal(question: Question, known: Known) -> Any:
    """What an empty answer means: what was answered before if it still can be, else the computed default."""
    earlier = known.offered.get(question.key)
    if not _is_blank(question, earlier):
        try:
            return read_answer(question, known, earlier)
        except UnreadableError:
            pass  # an older answer that no longer fits is not offered
    return question.default(known)


def _is_blank(question: Question, raw: Any) -> bool:
    """Whether this is no answer; an empty text is one, where texts are asked for."""
    return raw is None or (isinstance(raw, str) and not raw.strip() and question.kind != "text")


def next_question(questions: Sequence[Question], known: Known) -> Question | None:
    """The first question that is to be asked and has no answer; None when all is known."""
    return next((item for item in questions if item.key not in known.answers and is_asked(item, known)), None)


def settled(questions: Sequence[Question], known: Known) -> dict[str, Any]:
    """Every answer; questions that were not asked answer with their default, those that make no sense are absent."""
    filled = known
    for question in questions:
        if question.key in filled.answers and is_asked(question, filled):
            continue
        filled = filled.without(question.key)
        exists = not question.needs or filled.is_built(question.needs)
        if exists and question.asked(filled) and (question.kind != "choice" or choices_of(question, filled)):
            filled = filled.with_answer(question.key, question.default(filled))
    return dict(filled.answers)


def drop_stale(questions: Sequence[Question], before: Known, after: Known, changed: str) -> Known:
    """What is left after one answer was changed: others that only took a default which is now another go.

    Args:
        questions: All of them.
        before: What was known before the change.
        after: What is known with it.
        changed: Key of the changed answer, which stays.
    """
    stale = {
        question.key
        for question in questions
        if question.key != changed
        and question.key in before.answers
        and question.default(before) == before.answers[question.key] != question.default(after)
    }
    kept = {key: answer for key, answer in after.answers.items() if key not in stale}
    offered = {key: answer for key, answer in after.offered.items() if key not in stale}
    return replace(after, answers=kept, offered=offered)


def template(questions: Sequence[Question], language: Language) -> str:
    """An answers file to fill in: every question as a comment, null where the proposal is to be taken."""
    known = Known(Machine("", "cpu", 0))
    head = Words(
        "Answers for `simpletuner configure --answers FILE`. null takes what is proposed for your clips and card.",
        "`simpletuner configure --answers FILE` 的回答。null 表示采用根据视频与显卡给出的建议值。",
    )
    lines = ["{", f"  // {head.told(language)}"]
    for question in questions:
        if not is_there(question, known):
            continue
        if question.group != NO_WORDS:
            lines += ["", f"  // --- {question.group.told(language)} ---"]
        lines += [f"  // {question.text.told(language)} {question.why.told(language)}".rstrip()]
        lines += [f"  //   {choice.value}: {choice.text.told(language)}" for choice in choices_of(question, known)]
        value = {"folder": '"datasets/mine"', "options": "{}"}.get(question.kind, "null")
        lines.append(f'  "{question.key}": {value},')
    last = Words(
        "Whether files that are there already may be replaced; a copy with .bak stays beside each.",
        "是否允许替换已有文件；旁边会保留 .bak 副本。",
    )
    return "\n".join([*lines, f"  // {last.told(language)}", '  "overwrite": false', "}", ""])


def read_answer(question: Question, known: Known, raw: Any) -> Any:
    """The typed answer; an empty one is the proposal.

    Raises:
        UnreadableError: If it breaks a rule, or if only the person can know the answer and gave none.
    """
    if _is_blank(question, raw):
        raw = proposal(question, known)
    if isinstance(raw, str):
        raw = raw.strip()
    if question.kind == "options":
        return _read_options(known, raw)
    if raw is None or (question.kind == "folder" and not raw):
        raise UnreadableError("An answer is needed")
    if question.kind == "choice":
        return _read_choice([choice.value for choice in choices_of(question, known)], raw)
    if question.kind == "yes or no":
        return _read_yes(raw)
    if question.option:
        return read_option(known, question.option, raw)
    if question.kind == "number":
        return _read_number(raw)
    if not isinstance(raw, str):
        raise UnreadableError("It must be a text")
    return raw


def read_option(known: Known, name: str, raw: Any) -> Any:
    """A value of an option ("lora_rank") or of a key of the data set file ("video.num_frames").

    Raises:
        UnreadableError: If there is no such option, or the value cannot be read or used.
    """
    block, _, key = name.rpartition(".")
    table = dataset_tables().get(block, known.options)
    name = canonical_name(key)
    if name not in table:
        raise UnreadableError(f"There is no option '{name}'", did_you_mean(name, list(table)))
    value = read_value(table[name], raw)
    refused = refusal(table[name], value)
    if refused:
        raise UnreadableError(*refused)
    return value


def _read_options(known: Known, raw: Any) -> dict[str, Any]:
    if raw in (None, ""):
        return {}
    if not isinstance(raw, Mapping):
        raise UnreadableError('It must be an object of options: {"lora_alpha": 8}')
    values = {}
    for name, value in raw.items():
        try:
            values[canonical_name(str(name))] = read_option(known, str(name), value)
        except UnreadableError as error:
            raise UnreadableError(f"{name}: {error.rule}", error.fix) from None
    return values


def _read_choice(words: Sequence[str], raw: Any) -> str:
    for word in words:
        if str(raw).lower() == word.lower():
            return word
    raise UnreadableError(f"It must be one of: {', '.join(words)}", did_you_mean(str(raw), list(words)))


def _read_yes(raw: Any) -> bool:
    word = str(raw).lower()
    if word in (*TRUE, "是"):
        return True
    if word in (*FALSE, "否"):
        return False
    raise UnreadableError("It must be yes or no")


def _read_number(raw: Any) -> float:
    try:
        number = float(str(raw))
    except ValueError:
        raise UnreadableError("It must be a number") from None
    if isinstance(raw, bool) or not 0 < number < float("inf"):
        raise UnreadableError("It must be a number above 0")
    return number
