"""Names of repositories as people write them."""

from __future__ import annotations

import pytest
from huggingface_hub.utils import validate_repo_id

from simpletuner.config.hub_name import choose_repository, read_repository, repository_of_project


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ltxvideo-disney", "ltxvideo-disney"),
        (" me/ltx.video_2 ", "me/ltx.video_2"),
        ("https://huggingface.co/me/films", "me/films"),
        ("https://hf-mirror.com/me/films/", "me/films"),
    ],
)
def test_read(written: str, name: str) -> None:
    assert read_repository(written) == name
    validate_repo_id(name)


@pytest.mark.parametrize(
    "written", ["a/b/c", "my films", "-a", "a.", "a--b", "a..b", "a.git", "猫", "x" * 97, "../x", "", "a/\nb"]
)
def test_refuse(written: str) -> None:
    with pytest.raises(ValueError):
        read_repository(written)


@pytest.mark.parametrize("project", ["simpletuner", "my films!", "--", "猫", "a..b--c", "x" * 200])
def test_a_project_always_gives_a_name(project: str) -> None:
    name = repository_of_project(project)
    validate_repo_id(name)
    assert read_repository(name) == name
    assert choose_repository(None, project) == choose_repository(" ", project) == name
    assert choose_repository("me/films", project) == "me/films"
