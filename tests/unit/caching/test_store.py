"""An entry is believed only when it is whole, unchanged and the one asked for."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from simpletuner.caching.store import DamagedEntryError, Key, check_entries, read_entry, write_entry

FACTS = {"kind": "latents", "source": "clip.mp4", "rate": 25.0}
TENSORS = {"latents": torch.arange(24.0).reshape(2, 3, 2, 2), "mask": torch.tensor([True, False])}


@pytest.fixture
def key(tmp_path: Path) -> Key:
    made = Key.of(tmp_path, "sub/clip.mp4", FACTS)
    write_entry(made, TENSORS, {"lost_words": "the end"})
    return made


def test_a_whole_entry_comes_back_exactly(key: Key) -> None:
    tensors, notes = read_entry(key, verify=True)
    assert notes == {"lost_words": "the end"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_the_name_carries_folder_stem_and_fingerprint(key: Key, tmp_path: Path) -> None:
    assert key.path == tmp_path / "sub" / f"clip-{key.digest[:16]}.safetensors"
    assert len(key.digest) == 64


def test_bfloat16_survives(tmp_path: Path) -> None:
    made = Key.of(tmp_path, "prompt", {"kind": "prompt"})
    write_entry(made, {"embeds": torch.randn(4, 3).bfloat16()})
    assert read_entry(made, verify=True)[0]["embeds"].dtype == torch.bfloat16


def test_every_truncation_is_noticed(key: Key) -> None:
    whole = key.path.read_bytes()
    for length in range(0, len(whole), 10):
        key.path.write_bytes(whole[:length])
        with pytest.raises(DamagedEntryError):
            read_entry(key, verify=True)
        assert check_entries([key], [], "latents", workers=1).missing == (key,)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_flipped_bit_is_noticed(key: Key, data: st.DataObject) -> None:
    write_entry(key, TENSORS, {"lost_words": "the end"})
    content = bytearray(key.path.read_bytes())
    position = data.draw(st.integers(0, len(content) * 8 - 1))
    content[position // 8] ^= 1 << (position % 8)
    key.path.write_bytes(content)
    with pytest.raises(DamagedEntryError):
        read_entry(key, verify=True)


def test_swapped_entries_are_noticed(key: Key, tmp_path: Path) -> None:
    other = Key.of(tmp_path, "sub/other.mp4", FACTS | {"source": "other.mp4"})
    write_entry(other, TENSORS)
    mine = key.path.read_bytes()
    key.path.write_bytes(other.path.read_bytes())
    other.path.write_bytes(mine)
    for swapped in (key, other):
        # Without the checksum too: training reads must never mix clips up.
        with pytest.raises(DamagedEntryError, match="another source"):
            read_entry(swapped, verify=False)


def test_a_reshaped_tensor_is_noticed_without_the_checksum(key: Key) -> None:
    label = key.path.read_bytes()
    start = label.index(b'"shape":[2,3,2,2]')
    key.path.write_bytes(label[:start] + b'"shape":[3,2,2,2]' + label[start + 17 :])
    with pytest.raises(DamagedEntryError):
        read_entry(key, verify=False)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!doctype html><html>404</html>",
        b"PK\x03\x04" + bytes(64),
        pickle.dumps(_Bomb()),
        save({"latents": torch.zeros(2)}),
        save({"latents": torch.zeros(2)}, metadata={"entry": "[1, 2]"}),
        save({"latents": torch.zeros(2)}, metadata={"entry": "not json"}),
    ],
    ids=["empty", "html", "zip", "pickle", "unlabelled", "list label", "broken label"],
)
def test_foreign_content_is_refused_and_made_again(content: bytes, key: Key) -> None:
    key.path.write_bytes(content)
    status = check_entries([key], [key.path.parent], "latents", workers=1)
    assert status.missing == (key,)
    assert [path for path, _ in status.damaged] == [key.path]
    write_entry(key, TENSORS)
    assert check_entries([key], [key.path.parent], "latents", workers=1).missing == ()


def test_a_huge_sparse_file_is_refused_before_memory_is_taken(key: Key) -> None:
    with key.path.open("wb") as handle:
        handle.truncate(10 << 30)
    with pytest.raises(DamagedEntryError):
        read_entry(key, verify=True)


def test_only_unwanted_entries_of_the_same_kind_are_stale(key: Key, tmp_path: Path) -> None:
    write_entry(Key.of(tmp_path, "prompt", {"kind": "prompt"}), {"embeds": torch.zeros(1)})
    (tmp_path / "model.safetensors").write_bytes(save({"weight": torch.zeros(1)}))
    assert check_entries([key], [tmp_path], "latents", workers=1).stale == 0
    status = check_entries([], [tmp_path, tmp_path / "sub"], "latents", workers=1)
    assert (status.stale, status.stale_bytes) == (1, key.path.stat().st_size)
    assert "not deleted" in status.sentences[0]


@pytest.mark.parametrize("name", ["../clip.mp4", "/etc/clip.mp4", "sub/../../clip.mp4"])
def test_names_never_leave_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves"):
        Key.of(tmp_path, name, FACTS)


def test_long_and_odd_names_become_files(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".mp4", "\u732b" * 80 + ".mp4", "line\nbreak 'quoted'.mp4", "-dash.mp4", "bad\udcff.mp4"):
        made = Key.of(tmp_path, name, FACTS | {"source": name})
        write_entry(made, TENSORS)
        assert read_entry(made, verify=True)
