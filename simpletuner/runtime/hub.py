"""Whether the Hub can be asked, within a second: one small request, no download, no torch.

The Hub's own client decides the address (`HF_ENDPOINT`) and whether it may be asked at all
(`HF_HUB_OFFLINE`); proxies of the environment are respected.
"""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

PATIENCE_SECONDS = 1.0


class HubProbe:
    """Asks in the background, so that other checks need not wait."""

    def __init__(self) -> None:
        """Send the request; `answer` collects the result."""
        from huggingface_hub import constants

        self.endpoint: str = constants.ENDPOINT
        self.is_offline: bool = constants.is_offline_mode()
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        if not self.is_offline:
            self._thread.start()

    @property
    def host(self) -> str:
        """Name of the machine that was asked."""
        return urlsplit(self.endpoint).hostname or self.endpoint

    def answer(self) -> str:
        """Why the Hub cannot be reached; empty when it answered, whatever it said."""
        if self.is_offline:
            return "HF_HUB_OFFLINE is set"
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            return f"no answer within {PATIENCE_SECONDS:g} s"
        return self._trouble or ""

    def _ask(self) -> None:
        import urllib.error
        import urllib.request

        request = urllib.request.Request(self.endpoint, method="HEAD")  # noqa: S310 - the address of the Hub's client
        try:
            urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()  # noqa: S310
        except urllib.error.HTTPError:
            return  # it answered
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            self._trouble = str(reason)
