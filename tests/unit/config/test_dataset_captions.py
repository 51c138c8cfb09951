"""Where captions come from and what changes them, as the data set file says it: defaults, stores, filters."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simpletuner.config.catalogs.captions import CAPTIONS
from simpletuner.config.dataset import ClipDataset
from simpletuner.config.resolve import resolve_config
from simpletuner.config.run_config import STARRED
from simpletuner.config.surfaces.json_schema import dataset_schema
from simpletuner.data.caption_rules import filter_caption

CLIPS = {"id": "clips", "instance_data_dir": "clips", "dataset_type": "video"}
STORE = {"dataset_type": "text_embeds"}


def datasets(desk: Any, *entries: dict[str, Any], **options: Any) -> list[ClipDataset]:
    desk.add(**options)
    desk.write_datasets([{**CLIPS, **entries[0]}, *entries[1:]] if entries else [CLIPS])
    return list(resolve_config([], {}, desk.folder).datasets)


def test_every_strategy_of_the_catalog_can_be_loaded() -> None:
    assert all(callable(CAPTIONS.load(name)) and CAPTIONS[name].help for name in CAPTIONS)


# Defaults ---------------------------------------------------------------------------------------


def test_options_of_the_run_are_defaults_of_every_entry(desk) -> None:
    (entry,) = datasets(
        desk, {}, caption_strategy="filename", instance_prompt=["a", "b"], prepend_instance_prompt=True,
        missing_captions="error", max_upscale_threshold=0.5,
    )  # fmt: skip
    assert (entry.caption_strategy, entry.instance_prompt, entry.prepend_instance_prompt) == (
        "filename", ["a", "b"], True,
    )  # fmt: skip
    assert (entry.missing_captions, entry.max_upscale_threshold) == ("error", 0.5)
    (own,) = datasets(
        desk, {"caption_strategy": "json", "prepend_instance_prompt": "false", "missing_captions": "skip"},
        caption_strategy="filename", instance_prompt="a", prepend_instance_prompt=True, missing_captions="error",
    )  # fmt: skip
    assert (own.caption_strategy, own.prepend_instance_prompt, own.missing_captions) == ("json", False, "leave_out")


def test_columns_of_the_run_are_defaults_of_the_table(desk) -> None:
    columns = {"parquet_caption_column": "words", "parquet_filename_column": "file"}
    table = {"metadata_backend": "parquet", "caption_strategy": "parquet", "parquet": {"path": "t.parquet"}}
    (entry,) = datasets(desk, table, **columns)
    assert (entry.parquet.caption_column, entry.parquet.filename_column) == ("words", "file")
    (own,) = datasets(desk, {**table, "parquet": {"path": "t.parquet", "caption_column": ["a", "b"]}}, **columns)
    assert (own.parquet.caption_column, own.parquet.filename_column) == (["a", "b"], "file")
    desk.write_datasets([CLIPS])
    assert any("parquet_caption_column has no effect: no data set reads a table" in text for text in desk.texts())


@pytest.mark.parametrize(
    ("keys", "options", "strategy", "metadata"),
    [
        ({}, {}, "textfile", "discovery"),
        ({"type": "csv", "csv_file": "a.csv"}, {}, "csv", "discovery"),
        ({"type": "csv", "csv_file": "a.csv"}, {"caption_strategy": "filename"}, "filename", "discovery"),
        ({"type": "huggingface", "dataset_name": "a/b"}, {}, "huggingface", "huggingface"),
        (
            {"type": "huggingface", "dataset_name": "a/b", "caption_strategy": "textfile"},
            {}, "textfile", "huggingface",
        ),
        (
            {"type": "huggingface", "dataset_name": "a/b", "metadata_backend": "discovery"},
            {}, "huggingface", "huggingface",
        ),
    ],
)  # fmt: skip
def test_a_place_brings_its_own_captions(desk, keys: dict, options: dict, strategy: str, metadata: str) -> None:
    (entry,) = datasets(desk, keys, **options)
    assert (entry.caption_strategy, entry.metadata_backend) == (strategy, metadata)


# Stores and filters -----------------------------------------------------------------------------


def test_each_data_set_has_the_filters_of_its_store(desk) -> None:
    desk.write("config/rules.txt", "a photo of \n\n s/cat/dog/ \r\n")
    a, b, c = datasets(
        desk,
        {},
        {**CLIPS, "id": "b", "text_embeds": "second"},
        {**CLIPS, "id": "c", "text_embeds": "first"},
        {"id": "first", "default": True, "caption_filter_list": ["cat"], "cache_dir": "texts", **STORE},
        {"id": "second", "caption_filter_list": "config/rules.txt", **STORE},
    )
    told = {entry.id: filter_caption("a photo of a cat", entry.caption_filters) for entry in (a, b, c)}
    assert told == {"clips": "a photo of a", "b": "a dog", "c": "a photo of a"}
    config = resolve_config([], {}, desk.folder)
    assert (config.text_embeds.id, config.text_embeds.cache_dir) == ("first", "texts")
    assert config.as_document()["datasets"][1]["caption_filters"] == ["a photo of", "s/cat/dog/"]


def test_a_file_of_filters_may_lie_beside_the_data_set_file(desk) -> None:
    desk.write("config/rules.txt", "x")
    (entry,) = datasets(desk, {}, {"id": "s", "caption_filter_list": "rules.txt", **STORE})
    assert [item.written for item in entry.caption_filters] == ["x"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["(a"], 'error: config/multidatabackend.json:10: s: caption_filter_list: "(a": it is no regular expression'),
        ("rules.txt", 'caption_filter_list: rules.txt:2: "s/a/b/c/d": a replacement has the form s/A/B/'),
        ("nothing.txt", 'caption_filter_list = "nothing.txt": there is no such file. Looked at'),
        ([1], "caption_filter_list = [1]. It must be a list of texts, or the path of a text file."),
        ({"a": 1}, 'caption_filter_list = {"a": 1}. It must be a list of texts'),
        ("x" * 5000, "there is no such file"),
        ("bad.txt", 'caption_filter_list = "bad.txt": the file is UTF-16, and not UTF-8 text'),
    ],
)
def test_broken_filters_are_told_with_their_line(desk, value: Any, text: str) -> None:
    desk.write("config/rules.txt", "fine\ns/a/b/c/d\n")
    (desk.folder / "config/bad.txt").write_bytes(b"\xff\xfe")
    desk.write_datasets([CLIPS, {"id": "s", **STORE, "caption_filter_list": value}])
    assert any(text in found for found in desk.texts()), desk.texts()


def test_all_encoded_captions_lie_in_one_folder(desk) -> None:
    stores = [{"id": "a", "default": True, "cache_dir": "one", **STORE}, {"id": "b", "cache_dir": "two", **STORE}]
    desk.write_datasets([CLIPS, *stores])
    told = [text for text in desk.texts() if text.startswith("error")]
    assert told == [
        'error: config/multidatabackend.json:15: b: cache_dir = "two" differs from "one" of the default store \'a\'. '
        "All encoded captions lie in one folder: they do not depend on their data set. "
        "Remove cache_dir here, or write the folder of the default store."
    ]


def test_a_second_store_only_brings_filters(desk) -> None:
    stores = [{"id": "a", "default": True, **STORE}, {"id": "b", "text_encoder_batch_size": 2, **STORE}]
    desk.write_datasets([CLIPS, *stores])
    assert any(
        "warning: config/multidatabackend.json:14: b: text_encoder_batch_size has no effect here" in text
        for text in desk.texts()
    )


def test_a_disabled_or_broken_store_is_no_riddle(desk) -> None:
    entry = {**CLIPS, "text_embeds": "s"}
    desk.write_datasets([entry, {"id": "s", "disabled": True, **STORE}])
    assert any('text_embeds = "s". That entry is disabled.' in text for text in desk.texts())
    desk.write_datasets([entry, {"id": "s", "caption_filter_list": ["("], **STORE}])
    assert not any("text_embeds =" in text for text in desk.texts())  # its own error is enough


def test_caption_keys_do_not_part_shared_caches(desk) -> None:
    """What only changes captions changes no encoded clip, so that two entries may share a folder."""
    desk.write_datasets([
        {**CLIPS, "cache_dir_vae": "v"},
        {**CLIPS, "id": "b", "cache_dir_vae": "v", "caption_strategy": "json", "missing_captions": "error",
         "caption_shuffle": {"enable": True}, "probability": 2, "train_batch_size": 3},
    ])  # fmt: skip
    assert len(resolve_config([], {}, desk.folder).datasets) == 2


# Secrets and schema -----------------------------------------------------------------------------


def test_secrets_of_an_entry_are_in_no_document_and_no_message(desk) -> None:
    secret = "AKIA-very-secret"
    (entry,) = datasets(desk, {"type": "aws", "aws_bucket_name": "b", "aws_secret_access_key": secret})
    assert entry.aws_secret_access_key == secret
    config = resolve_config([], {}, desk.folder)
    assert secret not in json.dumps(config.as_document())
    assert config.as_document()["datasets"][0]["aws_secret_access_key"] == STARRED
    assert secret not in "".join(desk.texts())


def test_schema_is_a_union_by_kind_and_place() -> None:
    entries = dataset_schema()["items"]["anyOf"]
    tags = [
        (tuple(entry["properties"]["dataset_type"]["enum"]), tuple(entry["properties"]["type"]["enum"]))
        for entry in entries[:-1]
    ]
    assert len(tags) == len(set(tags)) == 12
    local = entries[0]
    images = next(entry for entry in entries if entry["properties"]["dataset_type"]["enum"] == ["image"])
    assert images["required"] == ["id", "dataset_type", "instance_data_dir"]
    assert local["required"] == ["id", "instance_data_dir"]
    assert "video" in local["properties"]
    assert "aws_bucket_name" not in local["properties"]
    assert "video" not in images["properties"]
    hub = next(entry for entry in entries if entry["properties"]["type"]["enum"] == ["huggingface"])
    assert "csv" not in hub["properties"]["caption_strategy"]["enum"]
    assert hub["required"] == ["id", "type", "dataset_name"]
