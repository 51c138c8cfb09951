"""An entry is believed only when it is whole, unchanged and the one asked for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from simpletuner.caching.claims import FOLDER as CLAIMS
from simpletuner.caching.entry import DamagedEntryError, compress
from simpletuner.caching.store import EntryReader, EntryWriter, Key, Status, Storing, check_entries

FACTS = {"kind": "latents", "source": "clip.mp4", "rate": 25.0}
TENSORS = {"latents": torch.arange(24.0).reshape(2, 3, 2, 2), "mask": torch.tensor([True, False])}


FORMS = [Storing(form, packed) for form in ("files", "shards") for packed in (False, True)]  # type: ignore[arg-type]


def write_entry(
    key: Key, tensors: dict[str, torch.Tensor], notes: dict[str, str] | None = None, *,
    facts: dict[str, object] = FACTS, storing: Storing = FORMS[0],
) -> None:  # fmt: skip
    writer = EntryWriter("builder", storing)
    writer.write(key, facts, tensors, notes)
    writer.close()


def read_entry(key: Key, *, verify: bool) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    return EntryReader([key.folder]).read(key, verify=verify)


def check(keys: list[Key], folders: list[Path], kind: str = "latents", verify: bool = True) -> Status:
    return check_entries(EntryReader([*folders, *(key.folder for key in keys)]), keys, kind, verify=verify, workers=1)


@pytest.fixture
def key(tmp_path: Path) -> Key:
    made = Key.of(tmp_path, "sub/clip.mp4", FACTS)
    write_entry(made, TENSORS, {"lost_words": "the end"})
    return made


@pytest.mark.parametrize("storing", FORMS, ids=str)
def test_a_whole_entry_comes_back_exactly(storing: Storing, tmp_path: Path) -> None:
    key = Key.of(tmp_path, "sub/clip.mp4", FACTS)
    write_entry(key, TENSORS, {"lost_words": "the end"}, storing=storing)
    assert EntryReader([tmp_path]).peek(key) == {"lost_words": "the end"}
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
    write_entry(made, {"embeds": torch.randn(4, 3).bfloat16()}, facts={"kind": "prompt"})
    assert read_entry(made, verify=True)[0]["embeds"].dtype == torch.bfloat16


def test_trap_10_every_truncation_is_noticed(key: Key) -> None:
    whole = key.path.read_bytes()
    for length in range(0, len(whole), 10):
        key.path.write_bytes(whole[:length])
        with pytest.raises(DamagedEntryError):
            read_entry(key, verify=True)
        assert check([key], [], verify=False).missing == (key,)


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
    write_entry(other, TENSORS, facts=FACTS | {"source": "other.mp4"})
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
    status = check([key], [], verify=False)
    assert status.missing == (key,)
    assert [found for found, _ in status.damaged] == [key]
    write_entry(key, TENSORS)
    assert check([key], []).missing == ()


def test_a_huge_sparse_file_is_refused_before_memory_is_taken(key: Key) -> None:
    with key.path.open("wb") as handle:
        handle.truncate(10 << 30)
    with pytest.raises(DamagedEntryError):
        read_entry(key, verify=True)


def test_only_unwanted_entries_of_the_same_kind_are_stale(key: Key, tmp_path: Path) -> None:
    write_entry(Key.of(tmp_path, "prompt", {"kind": "prompt"}), {"embeds": torch.zeros(1)}, facts={"kind": "prompt"})
    (tmp_path / "model.safetensors").write_bytes(save({"weight": torch.zeros(1)}))
    assert check([key], [tmp_path]).stale == 0
    status = check([], [tmp_path, tmp_path / "sub"])
    assert (status.stale, status.stale_bytes) == (1, key.path.stat().st_size)
    assert "unused by this configuration" in status.sentences[0]


def test_trash_quarantine_and_indexes_in_a_cache_folder_are_no_entries(key: Key, tmp_path: Path) -> None:
    for place in (".trash/clip.safetensors", f"{CLAIMS}/clip.safetensors"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(key.path.read_bytes())
    for place in ("index.sqlite", "index.sqlite-wal", "quarantine.json", ".staging-1.safetensors"):
        (tmp_path / place).write_bytes(b"not ours")
    assert check([key], [tmp_path]).stale == 0
    assert check([], [tmp_path]).stale == 1


@pytest.mark.parametrize("storing", FORMS, ids=str)
def test_stale_entries_are_counted_in_every_form(storing: Storing, tmp_path: Path) -> None:
    key = Key.of(tmp_path, "clip.mp4", FACTS)
    write_entry(key, TENSORS, storing=storing)
    status = check([], [tmp_path])
    assert (status.stale, status.stale_bytes) == (1, EntryReader([tmp_path]).stored_bytes(key))


@pytest.mark.parametrize("storing", FORMS[1:], ids=str)
def test_changing_form_or_compression_finds_the_same_entries(storing: Storing, key: Key, tmp_path: Path) -> None:
    other = Key.of(tmp_path, "other.mp4", FACTS | {"source": "other.mp4"})
    write_entry(other, TENSORS, facts=FACTS | {"source": "other.mp4"}, storing=storing)
    assert check([key, other], []).missing == ()
    assert len({len(read_entry(entry, verify=True)[0]) for entry in (key, other)}) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_flipped_bit_of_a_compressed_entry_is_noticed_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    key = Key.of(tmp_path, "clip.mp4", FACTS)
    write_entry(key, TENSORS, storing=Storing(compress=True))
    content = bytearray(key.packed_path.read_bytes())
    position = data.draw(st.integers(0, len(content) * 8 - 1))
    content[position // 8] ^= 1 << (position % 8)
    key.packed_path.write_bytes(content)
    try:
        tensors, _ = read_entry(key, verify=True)
    except DamagedEntryError:
        return
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"x", lambda c: b"", lambda c: c + c])
def test_a_shortened_or_prolonged_compressed_entry_is_noticed(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    key = Key.of(tmp_path, "clip.mp4", FACTS)
    write_entry(key, TENSORS, storing=Storing(compress=True))
    key.packed_path.write_bytes(change(key.packed_path.read_bytes()))
    with pytest.raises(DamagedEntryError):
        read_entry(key, verify=True)


def test_a_compression_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    key = Key.of(tmp_path, "clip.mp4", FACTS)
    bomb = bytearray(compress(bytes(1 << 20)))
    # Claim 2^60 bytes: frame header with an 8-byte content size (RFC 8878, 3.1.1.1).
    bomb[4:8] = bytes([0xE0]) + (1 << 60).to_bytes(8, "little")
    key.packed_path.write_bytes(bomb)
    for verify in (False, True):
        with pytest.raises(DamagedEntryError, match="impossible size"):
            read_entry(key, verify=verify)


@pytest.mark.parametrize("name", ["../clip.mp4", "/etc/clip.mp4", "sub/../../clip.mp4"])
def test_names_never_leave_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves"):
        Key.of(tmp_path, name, FACTS)


def test_long_and_odd_names_become_files(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".mp4", "\u732b" * 80 + ".mp4", "line\nbreak 'quoted'.mp4", "-dash.mp4", "bad\udcff.mp4"):
        made = Key.of(tmp_path, name, FACTS | {"source": name})
        write_entry(made, TENSORS, facts=FACTS | {"source": name})
        assert read_entry(made, verify=True)
