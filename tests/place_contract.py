"""What every place of a data set must do alike, as one set of facts to be compared; also run as a program."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

from simpletuner.config.dataset import ClipDataset
from simpletuner.data.backends.patience import Patience
from simpletuner.data.decode import decode_sample
from simpletuner.data.probe import probe
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample, Unfit
from simpletuner.data.storage import Storage, open_facts, open_storage

HASTY = Patience(attempts=4, first_wait_seconds=0.01, longest_wait_seconds=0.05)


def examine(storage: Storage) -> dict[str, Any]:
    """List, stat, seek, read ranges, probe and decode the only clip of `storage`."""
    (file,) = [file for file in storage.list_files().files if file.path.endswith(".mp4")]
    now = storage.stat(file.path)
    with storage.open(file.path) as handle:
        handle.seek(-7, 2)
        tail, end = handle.read(), handle.tell()
        handle.seek(1000)
        middle = handle.read(5000)
        handle.seek(0)
        whole = handle.read()
    info = probe(storage, file.path)
    frames = decode_sample(storage, _sample(file.path, info))
    return {
        "size": [now.size_bytes, info.size_bytes, end, len(whole)],
        "version_known": bool(now.version) and now.version == info.version == storage.stat(file.path).version,
        "listing_agrees": file.size_bytes in (-1, now.size_bytes) and file.version in ("", now.version),
        "ranges": [tail.hex(), _digest(middle), _digest(whole)],
        "facts": [info.kind, info.width, info.height, info.num_frames, info.frame_rate, info.codec],
        "frames": [list(frames.shape), _digest(frames.tobytes())],
    }


def vanish(storage: Storage, remove: Any) -> str:
    """List, remove the file, and read it: the reason it is left out."""
    (file,) = [file for file in storage.list_files().files if file.path.endswith(".mp4")]
    remove()
    try:
        probe(storage, file.path)
    except Unfit as unfit:
        return unfit.reason
    return "read although it is gone"


def _sample(path: str, info: MediaInfo) -> Sample:
    crop = CropPlan(info.width, info.height, 0, 0, info.width // 32 * 32, info.height // 32 * 32)
    return Sample("test", path, info, FramePlan(9, info.frame_rate, 4 / info.frame_rate), crop, ("a",), 1)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wait_for_removal() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()


def main(entry: str, what: str) -> None:
    """Read the entry (JSON), do `what`, print the outcome as JSON; for places that need a process of their own."""
    dataset = ClipDataset.model_validate_json(entry)
    storage = open_storage(dataset)
    if what == "examine":
        outcome: Any = examine(storage)
    elif what == "vanish":
        outcome = vanish(storage, _wait_for_removal)
    else:
        listing = storage.list_files()
        table = open_facts(dataset, storage)
        outcome = {
            "place": storage.place,
            "files": [[file.path, file.size_bytes, file.version] for file in listing.files],
            "facts": {file.path: table.facts(file.path).__dict__ if table and table.facts(file.path) else None
                      for file in listing.files},
        }  # fmt: skip
    sys.stdout.write("\nOUTCOME " + json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
