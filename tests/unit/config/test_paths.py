"""Paths of the configuration: told by `check` as `train` would refuse them, and never more than that."""

from __future__ import annotations

import pytest

from simpletuner.config.paths import SOURCES

LOCAL = ["./nope", "../nope", "/nope/model", "~/nope-model", "models\\nope", "deep/er/model", "nope", "~nobody-here/x"]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("path", LOCAL)
def test_missing_local_source(desk, name: str, path: str) -> None:
    desk.add(**{name: path})
    found = [text for text in desk.texts() if name in text]
    assert len(found) == 1
    assert found[0].startswith("error: config/config.json:6: ")
    assert "there is no such folder" in found[0]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("path", ["owner/name", "there", "./there", "{env:WHERE}/there"])
def test_source_that_may_exist(desk, name: str, path: str) -> None:
    (desk.folder / "there").mkdir()
    desk.add(**{name: path})
    assert not [text for text in desk.texts(WHERE=str(desk.folder)) if text.startswith(("error", "warning"))]


def test_name_beside_a_folder_of_its_owner_is_a_warning(desk) -> None:
    desk.write("models/ltx/model_index.json", "{}")
    texts = desk.texts("pretrained_model_name_or_path=models/ltxx")
    assert any(text.startswith("warning: command line:") and "Did you mean 'ltx'?" in text for text in texts), texts


@pytest.mark.parametrize(
    ("path", "missing"),
    [("owner/name/file.safetensors", False), ("./a/file.safetensors", True), ("a/file.safetensors", True)],
)
def test_single_file(desk, path: str, missing: bool) -> None:
    texts = desk.texts(f"pretrained_transformer_model_name_or_path={path}")
    assert any("there is no such file" in text for text in texts) is missing


def test_checkpoint_to_resume_from(desk) -> None:
    (desk.folder / "output/ltxvideo/checkpoint-100").mkdir(parents=True)
    (desk.folder / "saved").mkdir()
    for word in ("latest", "none", "None", "checkpoint-100", "saved", "output/ltxvideo/checkpoint-100"):
        assert desk.texts(f"resume_from_checkpoint={word}") == []
    texts = desk.texts("resume_from_checkpoint=checkpoint-101")
    assert any(
        text.startswith("error: command line: resume_from_checkpoint") and "(there: checkpoint-100)" in text
        for text in texts
    )


@pytest.mark.parametrize("path", ["a-file", "a-file/below"])
def test_output_folder_that_is_a_file(desk, path: str) -> None:
    desk.write("a-file", "")
    assert any(text.startswith("error: command line: output_dir") for text in desk.texts(f"output_dir={path}"))


def test_names_no_file_system_holds(desk) -> None:
    desk.add(output_dir="x" * 5000, resume_from_checkpoint="y" * 5000, pretrained_model_name_or_path="z" * 5000)
    assert any("resume_from_checkpoint" in text for text in desk.texts())
