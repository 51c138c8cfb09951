"""Files of the web: fetched once, resumed, checked, shared between workers."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
from place_contract import HASTY
from small_servers import Fault, Place, web_server

from simpletuner.data.backends.downloads import Downloads
from simpletuner.data.backends.patience import MissingError, Patience, UnreachableError

CONTENT = random.Random(1).randbytes(700_000)


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    return Downloads(tmp_path / "kept", HASTY)


@pytest.fixture
def url(web: Place) -> str:
    web.files["/clips/a.mp4"] = CONTENT
    return f"{web.url}/clips/a.mp4"


def test_a_file_is_fetched_once(downloads: Downloads, web: Place, url: str) -> None:
    before = downloads.look(url)
    assert before.size_bytes == len(CONTENT)
    assert downloads.kept(url) is None
    path = downloads.fetch(url)
    assert path.read_bytes() == CONTENT
    assert path.suffix == ".mp4"
    assert downloads.look(url) == before, "known before and after in the same words"
    assert downloads.fetch(url) == path
    assert len(web.requests()) == 1


def test_names_come_from_the_whole_url(downloads: Downloads, web: Place) -> None:
    for name in ("/a/clip.mp4", "/b/clip.mp4"):
        web.files[name] = name.encode()
    urls = [f"{web.url}/a/clip.mp4", f"{web.url}/b/clip.mp4", f"{web.url}/a/clip.mp4?v=2", f"{web.url}/a/clip.mp4?v=3"]
    paths = [downloads.fetch(url) for url in urls]
    assert len(set(paths)) == 4
    assert {path.suffix for path in paths} == {".mp4"}


def test_a_broken_connection_is_continued(downloads: Downloads, web: Place, url: str) -> None:
    web.faults.extend([Fault(cut_after=300_000), Fault(cut_after=100_000)])
    assert downloads.fetch(url).read_bytes() == CONTENT
    assert [request.headers.get("Range") for request in web.requests()] == [None, "bytes=300000-", "bytes=400000-"]
    assert web.sent_bytes == len(CONTENT)


def test_progress_renews_patience(downloads: Downloads, web: Place, url: str) -> None:
    web.faults.extend([Fault(cut_after=50_000)] * 12)
    assert downloads.fetch(url).read_bytes() == CONTENT


def test_a_busy_server_is_waited_for(downloads: Downloads, web: Place, url: str) -> None:
    web.faults.extend([Fault(503), Fault(503, {"Retry-After": "1"})])
    assert downloads.fetch(url).read_bytes() == CONTENT


@pytest.mark.parametrize("interruption", ["killed", "given up"])
def test_another_process_continues(tmp_path: Path, web: Place, url: str, interruption: str) -> None:
    first = Downloads(tmp_path / "kept", Patience(attempts=1))
    web.faults.append(Fault(cut_after=400_000))
    with pytest.raises(UnreachableError, match="400000 of 700000 bytes"):
        first.fetch(url)
    if interruption == "killed":  # some bytes of the last piece did not reach the disk
        (part,) = (tmp_path / "kept").rglob("*.part")
        part.write_bytes(part.read_bytes()[:-1000])
    assert Downloads(tmp_path / "kept", HASTY).fetch(url).read_bytes() == CONTENT
    assert web.sent_bytes == len(CONTENT) + (1000 if interruption == "killed" else 0)
    assert not list((tmp_path / "kept").rglob("*.part"))


def test_a_rest_is_never_added_to_other_content(tmp_path: Path, web: Place, url: str) -> None:
    first = Downloads(tmp_path, Patience(attempts=1))
    web.faults.append(Fault(cut_after=400_000))
    with pytest.raises(UnreachableError):
        first.fetch(url)
    web.files["/clips/a.mp4"] = other = bytes(700_000)
    assert Downloads(tmp_path, HASTY).fetch(url).read_bytes() == other


@pytest.mark.parametrize("lacking", ["with_ranges", "with_tags", "with_head", "with_length"])
def test_plain_servers_do(downloads: Downloads, web: Place, url: str, lacking: str) -> None:
    setattr(web, lacking, False)
    facts = downloads.look(url)
    if lacking != "with_length":  # there, a short file and a broken connection cannot be told apart
        web.faults.append(Fault(cut_after=300_000))
    assert downloads.fetch(url).read_bytes() == CONTENT
    assert downloads.look(url) == facts
    assert facts.size_bytes == len(CONTENT)
    assert facts.version


def test_a_shortened_file_is_fetched_anew(downloads: Downloads, web: Place, url: str) -> None:
    path = downloads.fetch(url)
    path.write_bytes(CONTENT[:-1])
    assert downloads.kept(url) is None
    assert downloads.fetch(url).read_bytes() == CONTENT


def test_what_is_gone_is_told_at_once_without_secrets(downloads: Downloads, web: Place) -> None:
    address = web.url.replace("http://", "http://name:canary@")
    with pytest.raises(MissingError) as caught:
        downloads.fetch(f"{address}/none.mp4?token=canary")
    assert "404" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert len(web.requests()) == 1
    assert "canary" not in "".join(path.read_text() for path in Path(downloads._folder).rglob("*.json"))


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/a.mp4", "http://name.invalid/a.mp4", "http://[::/a.mp4", "http:///a"]
)
def test_unreachable_addresses_are_told(downloads: Downloads, address: str) -> None:
    with pytest.raises(UnreachableError):
        downloads.fetch(address)


def test_a_password_is_sent_to_its_own_host_only(downloads: Downloads, web: Place) -> None:
    with web_server() as other:
        other.files["/b.mp4"] = b"x"
        web.faults.append(Fault(302, {"Location": f"{other.url}/b.mp4"}))
        downloads.fetch(web.url.replace("http://", "http://name:canary@") + "/a.mp4")
        assert web.seen[0].headers["Authorization"] == "Basic bmFtZTpjYW5hcnk="
        assert "Authorization" not in other.seen[0].headers


def test_a_redirect_cannot_leave_the_web(downloads: Downloads, web: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary")
    for target in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x"):
        web.faults.append(Fault(302, {"Location": target}))
        with pytest.raises(UnreachableError):
            downloads.fetch(f"{web.url}/{target[:3]}.mp4")


def test_workers_share_one_download(tmp_path: Path, web: Place, url: str) -> None:
    found: list[bytes] = []

    def fetch() -> None:
        found.append(Downloads(tmp_path, HASTY).fetch(url).read_bytes())

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 6
    assert len(web.requests()) == 1


def test_a_full_disk_is_told(downloads: Downloads, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from simpletuner.core.errors import ExitCode, UserError
    from simpletuner.data.backends import downloads as module

    def full(*words: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(UserError, match="no space left") as caught:
        downloads.fetch(url)
    assert caught.value.exit_code == ExitCode.DISK
