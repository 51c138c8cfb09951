"""Whether uploads to the Hub will work, found out before anything is cached: login, rights, repository.

Who asks by the Hub's own client; a Hub that cannot be reached is no error, since uploads wait in the run
folder. The repository is made if it may be, so that its name is taken and its rights are proven; one that
exists is never made public or private, and never overwritten without having been named.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simpletuner.config.hub_name import choose_repository
from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.core.errors import Problem, Severity
from simpletuner.events.sinks.hub_client import limit_silence, refusal_of
from simpletuner.events.sinks.journal import read_journal

DEFAULT_ENDPOINT = "https://huggingface.co"
LOGIN = "Run `hf auth login`, or set HF_TOKEN"
_OWN_FILES = (".gitattributes", "README.md")  # of a repository that holds nothing yet
_WRITING = ("repo.write", "repo.content.write")


def examine_hub(
    reporting: ReportingSection, folder: Path, *, seconds: float, may_create: bool, where: str = "push_to_hub"
) -> list[Problem]:
    """What stands against uploads; errors for what waiting cannot mend.

    Args:
        reporting: The options about the Hub; nothing is asked when they want no upload.
        folder: The run folder; what was uploaded from it before may be uploaded to again.
        seconds: How long the Hub may take for all of it.
        may_create: Whether a missing repository is made.
        where: Place of the option, for messages.
    """
    if not (reporting.push_to_hub or reporting.push_checkpoints_to_hub):
        return []
    found: list[Problem] = []
    name = choose_repository(reporting.hub_model_id, reporting.tracker_project_name)
    visit = _Visit(name, reporting, folder, may_create=may_create, where=where)
    # The client has no time limit for a whole conversation.
    thread = threading.Thread(target=lambda: found.extend(visit.look(seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [_unreachable(f"no answer within {seconds:g} s", where)]
    return found


class _Visit:
    """One look at the Hub."""

    def __init__(self, name: str, reporting: ReportingSection, folder: Path, *, may_create: bool, where: str) -> None:
        self._name, self._reporting, self._folder = name, reporting, folder
        self._may_create, self._where = may_create, where

    def look(self, seconds: float) -> Iterator[Problem]:
        from huggingface_hub import HfApi, constants, get_token

        if not get_token():
            yield self._error("there is no token of the Hub on this machine", "An upload needs an account", LOGIN)
            return
        if constants.is_offline_mode():
            yield _unreachable("HF_HUB_OFFLINE is set", self._where)
            return
        limit_silence(seconds)
        api = HfApi()
        if api.endpoint != DEFAULT_ENDPOINT:
            yield self._note(f"the token of the Hub is sent to {api.endpoint} (HF_ENDPOINT)", Severity.WARNING)
        try:
            account = api.whoami()
        except Exception as error:  # noqa: BLE001 - the client's own errors and those of its transports
            refusal = refusal_of(error)
            if refusal.ends_all:
                yield self._error("the Hub does not accept the token", "It may have expired or been taken back", LOGIN)
            else:
                yield _unreachable(refusal.reason, self._where)
            return
        rights = list(self._rights(account))
        yield from rights
        if not any(problem.severity is Severity.ERROR for problem in rights):
            yield from self._repository(api, self._full_name(account))

    def _full_name(self, account: Mapping[str, Any]) -> str:
        return self._name if "/" in self._name else f"{account.get('name', '')}/{self._name}"

    def _rights(self, account: Mapping[str, Any]) -> Iterator[Problem]:
        """What the account and its token may do, as far as the Hub tells."""
        user, owner = str(account.get("name", "")), self._full_name(account).split("/")[0]
        token = account.get("auth", {}).get("accessToken", {})
        write = "Make one with write access at your account's settings, then `hf auth login`"
        if token.get("role") == "read":
            yield self._error(f"the token of '{user}' may only read", "An upload writes", write)
        elif token.get("role") == "fineGrained":
            scopes = token.get("fineGrained", {}).get("scoped", [])
            of_owner = [s for s in scopes if str(s.get("entity", {}).get("name", "")).split("/")[0] == owner]
            if not any(right in _WRITING for scope in of_owner for right in scope.get("permissions", [])):
                yield self._error(
                    f"the fine-grained token of '{user}' may not write to repositories of '{owner}'",
                    "An upload writes", write,
                )  # fmt: skip
        roles = {str(one.get("name")): str(one.get("roleInOrg", "")) for one in account.get("orgs", [])}
        if owner != user and owner not in roles:
            yield self._error(
                f"hub_model_id belongs to '{owner}', the token to '{user}'",
                "One uploads to one's own repositories or to those of one's organizations",
                f"Write for example {user}/{self._name.split('/')[-1]}",
            )
        elif roles.get(owner) == "read":
            yield self._error(f"'{user}' may only read in the organization '{owner}'", "An upload writes", "Ask for it")

    def _repository(self, api: Any, name: str) -> Iterator[Problem]:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            there = api.repo_info(name)
        except RepositoryNotFoundError:
            yield from self._create(api, name)
            return
        except Exception as error:  # noqa: BLE001 - see above
            refusal = refusal_of(error)
            yield _unreachable(refusal.reason, self._where)
            return
        if there.id != name:
            yield self._note(f"the Hub calls the repository '{name}' now '{there.id}'", Severity.WARNING)
        wanted = "private" if self._reporting.model_card_private else "public"
        found = "private" if there.private else "public"
        if wanted != found:
            yield self._note(f"'{there.id}' is {found} and stays so; model_card_private counts for new repositories")
        if "write" in inspect.signature(api.auth_check).parameters:
            try:
                api.auth_check(there.id, write=True)
            except Exception as error:  # noqa: BLE001 - see above
                refusal = refusal_of(error)
                if refusal.ends_all:
                    yield self._error(f"'{there.id}' cannot be written: {refusal.reason}", "An upload writes", LOGIN)
                    return
        foreign = [one.rfilename for one in there.siblings or [] if one.rfilename not in _OWN_FILES]
        if foreign and not self._reporting.hub_model_id and not self._was_here(there.id):
            yield self._error(
                f"'{there.id}' exists and holds {len(foreign)} files, such as {foreign[0]}",
                "It was not named: its name comes from tracker_project_name, and nothing is overwritten unasked",
                f"Set hub_model_id to {there.id} to upload there, or to another name",
            )

    def _create(self, api: Any, name: str) -> Iterator[Problem]:
        if not self._may_create:
            return
        try:
            api.create_repo(name, private=self._reporting.model_card_private, exist_ok=True)
        except Exception as error:  # noqa: BLE001 - see above
            refusal = refusal_of(error)
            if refusal.is_final:
                yield self._error(f"'{name}' cannot be made: {refusal.reason}", "An upload needs a repository", LOGIN)
            else:
                yield _unreachable(refusal.reason, self._where)

    def _was_here(self, name: str) -> bool:
        """Whether this run folder has uploaded to that repository before."""
        return any(
            line.get("kind") == "uploaded" and str(line.get("address", "")).endswith(f"/{name}")
            for line in read_journal(self._folder)
        )

    def _error(self, what: str, rule: str, fix: str) -> Problem:
        return Problem(what, rule, fix, self._where)

    def _note(self, what: str, severity: Severity = Severity.NOTE) -> Problem:
        return Problem(what, where=self._where, severity=severity)


def _unreachable(reason: str, where: str) -> Problem:
    return Problem(
        f"the Hub cannot be asked whether uploads will work ({reason})",
        "Training does not wait for it: what is to be uploaded waits in the run folder",
        "Check the connection and HF_ENDPOINT before the run ends",
        where,
        Severity.WARNING,
    )
