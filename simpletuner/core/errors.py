"""What a person did wrong, said so that it can be mended.

A `Problem` is one finding: what was found, which rule it breaks, what to do. A `UserError` carries
one or many of them to the command line, which prints them without a traceback. Faults of our own
stay ordinary exceptions and keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Severity(str, Enum):
    """How much a finding matters: an error stops the run, a warning and a note do not."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class ExitCode:
    """Exit codes of the program; a scheduler may branch on them."""

    OK = 0
    USER = 2  # configuration, data set or command line: the user can mend it
    NUMERICS = 5  # loss or gradients stopped being numbers
    DISK = 6  # no space, no permission, or the disk failed
    SIGNALLED = 128  # plus the number of the signal that asked to stop; the state is saved
    INTERRUPTED = 130  # ended by Ctrl-C


@dataclass(frozen=True)
class Problem:
    """One finding about the user's input.

    Attributes:
        what: What was found, with the value ("lora_rank is -4").
        rule: The rule it breaks ("must be at least 1"); may be empty when `what` says it.
        fix: What to do now; may be empty only for notes.
        where: Place of the finding, e.g. "config/config.json:12: lora_rank"; may be empty.
        severity: Whether it stops the run.
    """

    what: str
    rule: str = ""
    fix: str = ""
    where: str = ""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        sentences = [place + self.what, self.rule, self.fix]
        return " ".join(_as_sentence(text) for text in sentences if text)


class UserError(Exception):
    """One or several problems that stop the run and that the user can mend."""

    def __init__(
        self, what: str, rule: str = "", fix: str = "", *, where: str = "", exit_code: int = ExitCode.USER
    ) -> None:
        self.problems: tuple[Problem, ...] = (Problem(what, rule, fix, where),)
        self.exit_code = exit_code
        super().__init__(str(self.problems[0]))

    @classmethod
    def of(cls, problems: Iterable[Problem], exit_code: int = ExitCode.USER) -> UserError:
        """Bundle several problems, so that all are told at once.

        Raises:
            ValueError: If there is no problem to tell.
        """
        found = tuple(problems)
        if not found:
            raise ValueError("a UserError needs at least one problem")
        error = cls(found[0].what, exit_code=exit_code)
        error.problems = found
        error.args = ("\n".join(str(problem) for problem in found),)
        return error


def _as_sentence(text: str) -> str:
    text = text.rstrip()
    return text if text.endswith((".", "!", "?", ":", "…")) else text + "."
