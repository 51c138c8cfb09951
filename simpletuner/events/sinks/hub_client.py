"""One repository on the Hub through the Hub's own client: made when missing, changed by commits.

HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the stored login are the client's affair. Nothing here repeats
anything or raises for what the network does: a `Refusal` says why, and whether trying again can help.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from simpletuner.events.sinks.publisher import Refusal

SILENCE_SECONDS = 60.0
_FINAL = (400, 401, 403, 404, 413, 422)
_WORDS = {
    401: "the token is not accepted: run `hf auth login`",
    403: "the token may not write there: make one with write access",
    404: "there is no such owner, or the token may not see it",
}


class HubRepository:
    """The repository called `name`; its owner is filled in once the Hub has told it."""

    def __init__(self, name: str, *, is_private: bool) -> None:
        """`is_private` counts for a repository that is made, not for one that exists."""
        self.name = name
        self._is_private = is_private
        self._is_made = False

    def make(self) -> Refusal | None:
        """Make the repository unless it exists; None when it is there."""
        if self._is_made:
            return None
        from huggingface_hub import HfApi, get_token

        if not get_token():
            return Refusal("there is no token of the Hub: run `hf auth login`, or set HF_TOKEN", True, ends_all=True)
        refusal = None
        try:
            limit_silence()
            self.name = HfApi().create_repo(self.name, private=self._is_private, exist_ok=True).repo_id
        except Exception as error:  # noqa: BLE001 - beside its own errors, those of its transports come through
            refusal = refusal_of(error)
        self._is_made = refusal is None
        return refusal

    def commit(self, files: Mapping[str, Path | bytes], title: str) -> tuple[str, Refusal | None]:
        """Put files into the repository, all or none; content it already has is not sent again.

        Returns:
            The address of the repository, and why nothing was changed, if so.
        """
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # the terminal belongs to training; downloads are over by now
        refusal = None
        try:
            operations = [CommitOperationAdd(name, content) for name, content in files.items()]
            HfApi().create_commit(self.name, operations, commit_message=title)
        except Exception as error:  # noqa: BLE001 - see above
            refusal = refusal_of(error)
        return f"{HfApi().endpoint}/{self.name}", refusal


def limit_silence(seconds: float = SILENCE_SECONDS) -> None:
    """A connection that says nothing ends after a while; by itself the client would wait for ever."""
    from huggingface_hub import get_session

    get_session().timeout = seconds


def refusal_of(error: BaseException) -> Refusal:
    """What an error of the Hub's client means."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return Refusal("HF_HUB_OFFLINE is set", True, ends_all=True)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    lines = str(error).strip().splitlines()
    # What follows a question mark may sign a request for a while.
    first = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", lines[0])[:200] if lines else ""
    reason = (_WORDS.get(status) or first or type(error).__name__).rstrip(".")
    return Refusal(reason, status in _FINAL or isinstance(error, ValueError), ends_all=status in _WORDS)
