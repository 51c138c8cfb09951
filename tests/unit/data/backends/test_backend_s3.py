"""Buckets of a real S3 service on this machine: listing, ranges, faults, and what messages say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from place_contract import HASTY
from small_servers import Fault, Place, go_between

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.backends.object_store import ObjectStore
from simpletuner.data.backends.patience import MissingError, Patience, UnreachableError
from simpletuner.data.decode import decode_sample
from simpletuner.data.probe import probe
from simpletuner.data.sample import CropPlan, FramePlan, Sample, Unfit
from simpletuner.data.storage import LocalStorage

SECRETS = ("canary-secret", "canary-token", "AKIDTESTING")


@pytest.fixture
def between(s3_address: str) -> Iterator[Place]:
    with go_between(s3_address) as place:
        yield place


@pytest.fixture
def store(bucket: Any, between: Place, s3_entry: Callable[..., ClipDataset]) -> ObjectStore:
    """The bucket, seen through the go-between."""
    return ObjectStore(s3_entry(aws_endpoint_url=between.url, aws_session_token="canary-token"), HASTY)


def refused(store: ObjectStore) -> str:
    with pytest.raises(UserError) as caught:
        store.list_files()
    text = str(caught.value)
    assert not any(secret in text for secret in SECRETS)
    return text


def test_a_listing_has_sizes_and_tags_and_leaves_out_what_is_hidden(bucket: Any, store: ObjectStore) -> None:
    for key in ("b.mp4", "a/ü x.mp4", "a/.cache/x.mp4", ".hidden.mp4", "a/folder/"):
        bucket.put_object(Key=key, Body=key.encode())
    listing = store.list_files()
    assert [(file.path, file.size_bytes) for file in listing.files] == [("a/ü x.mp4", 10), ("b.mp4", 5)]
    assert listing.passed_over == {"hidden files": 2}
    assert all(store.stat(file.path) == file for file in listing.files)
    before = listing.files[1].version
    bucket.put_object(Key="b.mp4", Body=b"other")
    assert store.stat("b.mp4").version != before


def test_a_prefix_is_a_folder(bucket: Any, s3_entry: Callable[..., ClipDataset]) -> None:
    for key in ("clips/a.mp4", "clips2/b.mp4"):
        bucket.put_object(Key=key, Body=b"x")
    store = ObjectStore(s3_entry(aws_data_prefix="/clips/"), HASTY)
    assert [file.path for file in store.list_files().files] == ["a.mp4"]
    assert store.place.startswith("s3://clips/clips/ at 127.0.0.1")
    assert ObjectStore(s3_entry(aws_data_prefix="nothing"), HASTY).list_files().files == ()


@pytest.mark.slow
def test_more_than_a_thousand_objects_are_listed(bucket: Any, store: ObjectStore) -> None:
    for number in range(1003):
        bucket.put_object(Key=f"{number}.mp4", Body=b"x")
    assert len(store.list_files().files) == 1003


def test_only_the_needed_parts_travel(
    bucket: Any, store: ObjectStore, between: Place, write_clip: Callable[..., Path], tmp_path: Path
) -> None:
    """A clip of 30 MB whose index lies at its end: its header, and a window in its middle, cost some blocks each."""
    clip = write_clip(
        tmp_path / "long.mp4", frames=150, width=512, height=384, paint=noise,
        options={"crf": "12", "g": "12", "bf": "0", "preset": "ultrafast", "threads": "1"},
    )  # fmt: skip
    size = clip.stat().st_size
    assert size > 20e6
    bucket.put_object(Key="long.mp4", Body=clip.read_bytes())
    between.seen.clear()
    info = probe(store, "long.mp4")
    assert info.num_frames == 150
    assert between.sent_bytes < 0.1 * size
    between.seen.clear()
    sample = Sample("s", "long.mp4", info, FramePlan(9, 25.0, 3.0), CropPlan(512, 384, 0, 0, 512, 384), ("a",), 1)
    frames = decode_sample(store, sample)
    here = LocalStorage(tmp_path)
    assert np.array_equal(frames, decode_sample(here, replace(sample, info=probe(here, "long.mp4"))))
    assert between.sent_bytes < 0.35 * size


def noise(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (384, 512, 3), dtype=np.uint8)


@pytest.mark.parametrize("fault", [Fault(503), Fault(500), Fault(429), Fault(cut_after=100)], ids=str)
def test_passing_faults_are_sat_out(bucket: Any, store: ObjectStore, between: Place, fault: Fault) -> None:
    bucket.put_object(Key="a.mp4", Body=b"x" * 1000)
    between.faults.extend([fault, fault])
    assert len(store.list_files().files) == 1
    between.faults.extend([fault, fault])
    if fault.status:  # the answer to this question has no body that could break off
        assert store.stat("a.mp4").size_bytes == 1000
    with store.open("a.mp4") as handle:
        between.faults.extend([fault, fault])
        assert handle.read() == b"x" * 1000


def test_lasting_faults_are_told_at_once(bucket: Any, store: ObjectStore, between: Place) -> None:
    bucket.put_object(Key="a.mp4", Body=b"x" * 1000)
    for status, said in ((403, "access denied"), (404, "not found")):
        between.seen.clear()
        between.faults.append(Fault(status))
        with pytest.raises(Unfit, match=said):
            store.stat("a.mp4")
        assert len(between.requests("HEAD")) == 1
    with pytest.raises(MissingError):
        store.open("b.mp4")
    between.faults.append(Fault(403))
    assert "access denied" in refused(store)


def test_a_service_that_stays_busy_is_given_up(bucket: Any, store: ObjectStore, between: Place) -> None:
    between.faults.extend([Fault(503)] * HASTY.attempts)
    assert "busy (503" in refused(store)
    assert not between.faults


def test_an_object_that_changes_while_it_is_read_is_not_mixed(bucket: Any, store: ObjectStore) -> None:
    bucket.put_object(Key="a.mp4", Body=b"a" * 1_000_000)
    with store.open("a.mp4") as handle:
        assert handle.read(10) == b"a" * 10
        bucket.put_object(Key="a.mp4", Body=b"b" * 1_000_000)
        handle.seek(900_000)
        with pytest.raises(UnreachableError):
            handle.read(10)


def test_messages_say_what_to_do(s3_entry: Callable[..., ClipDataset], bucket: Any) -> None:
    once = Patience(attempts=1)
    assert "there is no bucket 'no-such'" in refused(ObjectStore(s3_entry(aws_bucket_name="no-such"), once))
    nobody = s3_entry(aws_endpoint_url="http://name:canary-secret@127.0.0.1:9")
    text = refused(ObjectStore(nobody, once))
    assert "127.0.0.1:9 cannot be reached" in text


def test_a_public_bucket_needs_no_key(
    bucket: Any, s3_entry: Callable[..., ClipDataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    bucket.put_object(Key="a.mp4", Body=b"x")
    bucket.Acl().put(ACL="public-read")
    store = ObjectStore(s3_entry(aws_access_key_id=None, aws_secret_access_key=None), HASTY)
    assert [file.path for file in store.list_files().files] == ["a.mp4"]


def test_a_clip_that_breaks_off_while_it_is_decoded_is_left_out(
    bucket: Any, store: ObjectStore, between: Place, clip: Path
) -> None:
    bucket.put_object(Key="a.mp4", Body=clip.read_bytes())
    info = probe(store, "a.mp4")
    sample = Sample("s", "a.mp4", info, FramePlan(9, 25.0, 0.0), CropPlan(128, 96, 0, 0, 128, 96), ("a",), 1)
    between.faults.extend([Fault(), Fault(), Fault(403)])
    with pytest.raises(Unfit):
        decode_sample(store, sample)
