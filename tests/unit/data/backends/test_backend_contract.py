"""Every place lists, tells, reads and decodes the same clip alike, and says so when it has gone."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from place_contract import HASTY, examine, vanish
from small_servers import Place

from simpletuner.config.dataset import ClipDataset
from simpletuner.data.backends.lists import ListStorage
from simpletuner.data.backends.object_store import ObjectStore
from simpletuner.data.backends.patience import Patience, UnreachableError
from simpletuner.data.backends.remote import Faults, open_blocks
from simpletuner.data.decode import decode_sample
from simpletuner.data.probe import probe
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample, UnreadMedia
from simpletuner.data.storage import LocalStorage, Storage, open_storage

PLACES = ("local", "s3", "list of paths", "list of web addresses", "list of s3 addresses")


@pytest.fixture
def expected(clip: Path) -> dict[str, Any]:
    """What the folder of this machine says."""
    return examine(LocalStorage(clip.parent))


def list_of(folder: Path, source: str, **settings: Any) -> ListStorage:
    path = folder / "list.csv"
    path.write_text(f"url,caption\n{source},a\n", encoding="utf-8")
    kept = str(folder / "kept")
    return ListStorage(ClipDataset(id="listed", type="csv", csv_file=str(path), csv_cache_dir=kept, **settings), HASTY)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, clip: Path) -> tuple[Storage, Callable[[], None]]:
    """A storage that holds the clip, and how to take the clip away."""
    kind, content = request.param, clip.read_bytes()
    if kind == "local":
        copied = Path(shutil.copy(clip, tmp_path))
        return LocalStorage(tmp_path), copied.unlink
    if kind == "list of paths":
        (tmp_path / "clips").mkdir()
        copied = Path(shutil.copy(clip, tmp_path / "clips"))
        return list_of(tmp_path, "clips/a clip.mp4"), copied.unlink
    if kind == "list of web addresses":
        web: Place = request.getfixturevalue("web")
        web.files["/clips/a.mp4"] = content
        return list_of(tmp_path, f"{web.url}/clips/a.mp4?key=1"), web.files.clear
    bucket, entry = request.getfixturevalue("bucket"), request.getfixturevalue("s3_entry")
    bucket.put_object(Key="some/clips/a clip.mp4", Body=content)
    gone = bucket.Object("some/clips/a clip.mp4").delete
    if kind == "s3":
        return ObjectStore(entry(aws_data_prefix="some"), HASTY), gone
    connection = entry().model_dump(include={"aws_endpoint_url", "aws_access_key_id", "aws_secret_access_key"})
    return list_of(tmp_path, "s3://clips/some/clips/a clip.mp4", **connection), gone


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_a_place_gives_the_clip(place: tuple[Storage, Callable[[], None]], expected: dict[str, Any]) -> None:
    assert examine(place[0]) == expected
    assert expected["version_known"]
    assert expected["listing_agrees"]


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_a_vanished_file_is_left_out(place: tuple[Storage, Callable[[], None]]) -> None:
    reason = vanish(*place)
    assert "cannot be reached" in reason
    assert "canary" not in reason


@pytest.mark.parametrize("streaming", [True, False])
def test_the_hub_gives_the_clip(
    hub: Place, clip: Path, in_own_process: Callable[..., Any], expected: dict[str, Any], streaming: bool
) -> None:
    hub.files |= {"/me/clips/train/a.mp4": clip.read_bytes(), "/me/clips/README.md": b"# Clips"}
    dataset = ClipDataset(id="hub", type="huggingface", dataset_name="me/clips", streaming=streaming)
    assert in_own_process(dataset, "examine", hub) == expected


def test_a_file_vanished_from_the_hub_is_left_out(hub: Place, clip: Path, in_own_process: Callable[..., Any]) -> None:
    hub.files |= {"/me/clips/train/a.mp4": clip.read_bytes(), "/me/clips/README.md": b"# Clips"}
    dataset = ClipDataset(id="hub", type="huggingface", dataset_name="me/clips", streaming=True)
    reason = in_own_process(dataset, "vanish", hub, lambda: hub.files.pop("/me/clips/train/a.mp4"))
    assert "cannot be reached" in reason


@pytest.mark.parametrize("streaming", [True, False])
def test_a_row_of_a_table_gives_the_clip(tmp_path: Path, clip: Path, expected: dict[str, Any], streaming: bool) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    table = arrow.table({"video": [{"bytes": clip.read_bytes(), "path": "a.mp4"}], "caption": ["a"]})
    (tmp_path / "rows").mkdir()
    parquet.write_table(table, tmp_path / "rows" / "train-00000.parquet")
    dataset = ClipDataset(
        id="rows", type="huggingface", dataset_name=str(tmp_path / "rows"), streaming=streaming,
        cache_dir=str(tmp_path / "cache"), cache_dir_vae=str(tmp_path / "vae"),
    )  # fmt: skip
    assert examine(open_storage(dataset)) == expected


class Failing(LocalStorage):
    """A folder as if it lay elsewhere, whose service goes away after some requests."""

    requests_left = 1_000_000

    def local_path(self, path: str) -> Path | None:
        return None

    def open(self, path: str) -> BinaryIO:
        return open_blocks(lambda: _Counted((self._root / path).read_bytes(), self), Patience(1), FAULTS)


class _Counted(io.BytesIO):
    def __init__(self, content: bytes, storage: Failing) -> None:
        super().__init__(content)
        self.size = len(content)
        self._storage = storage

    def read(self, count: int | None = -1) -> bytes:
        self._storage.requests_left -= 1
        if self._storage.requests_left < 0:
            raise ConnectionError
        return super().read(count)


FAULTS = Faults((ConnectionError,), lambda error: UnreachableError("the service went away"))


def test_a_service_that_goes_away_at_any_point_blames_no_file(
    write_clip: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(
        tmp_path / "a.mkv", frames=60, width=256, height=192, options={"crf": "4", "g": "12", "preset": "ultrafast"},
        paint=lambda number: np.random.default_rng(number).integers(0, 256, (192, 256, 3), dtype=np.uint8),
    )  # fmt: skip
    storage = Failing(tmp_path)
    info = probe(storage, clip.name)
    sample = Sample("s", clip.name, info, FramePlan(9, 25.0, 1.0), CropPlan(256, 192, 0, 0, 256, 192), ("a",), 1)
    frames = decode_sample(storage, sample)
    outcomes: list[str] = []
    for act in (lambda: probe(storage, clip.name), lambda: decode_sample(storage, sample)):
        for requests in range(8):
            storage.requests_left = requests
            try:
                found = act()
            except UnreadMedia as unread:
                outcomes.append(unread.reason)
            else:
                assert found == info if isinstance(found, MediaInfo) else np.array_equal(found, frames)
                outcomes.append("read")
    unread = [outcome for outcome in outcomes if outcome != "read"]
    assert len(unread) > 6
    assert all("the service went away" in reason for reason in unread)
    assert "Traceback" not in capfd.readouterr().err
