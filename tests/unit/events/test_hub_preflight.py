"""Whether uploads will work is known before anything is cached; by the Hub's own client, at a real small Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from receiving_servers import Answer, Desk, upload_server

from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.core.errors import Severity
from simpletuner.events.sinks.hub_preflight import examine_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Desk]:
    from huggingface_hub import constants

    with upload_server() as desk:
        monkeypatch.setattr(constants, "ENDPOINT", desk.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.setenv("HF_TOKEN", "hf_canary")
        yield desk


def look(tmp_path: Path, *, may_create: bool = True, seconds: float = 10.0, **settings: object) -> list[str]:
    """Findings but the one about the address."""
    reporting = ReportingSection(**{"push_to_hub": True, "tracker_project_name": "films", **settings})
    found = examine_hub(reporting, tmp_path, seconds=seconds, may_create=may_create)
    told = [f"{problem.severity.value}: {problem}" for problem in found]
    assert "hf_canary" not in "".join(told)
    return [text for text in told if "HF_ENDPOINT)" not in text]


def test_a_missing_repository_is_made_private_and_only_when_training(hub: Desk, tmp_path: Path) -> None:
    assert look(tmp_path, may_create=False) == []
    assert hub.private == {}
    assert look(tmp_path) == []
    assert hub.private == {"tester/films": True}
    assert look(tmp_path, model_card_private=False) == [
        "note: push_to_hub: 'tester/films' is private and stays so; model_card_private counts for new repositories."
    ]
    assert hub.private == {"tester/films": True}
    assert look(tmp_path, push_to_hub=False) == []


def test_the_address_that_gets_the_token_is_told(hub: Desk, tmp_path: Path) -> None:
    reporting = ReportingSection(push_checkpoints_to_hub=True)
    found = examine_hub(reporting, tmp_path, seconds=10, may_create=False)
    assert [(p.severity, p.what) for p in found] == [
        (Severity.WARNING, f"the token of the Hub is sent to {hub.url} (HF_ENDPOINT)")
    ]


@pytest.mark.parametrize(("token", "told"), [("", "there is no token"), ("hf_wrong", "does not accept the token")])
def test_a_token_that_is_none(
    hub: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, told: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    (text,) = look(tmp_path)
    assert text.startswith("error: ")
    assert told in text
    assert "hf auth login" in text


FINE = {"role": "fineGrained", "fineGrained": {"scoped": [
    {"entity": {"type": "user", "name": "tester"}, "permissions": ["repo.content.read"]}]}}  # fmt: skip


@pytest.mark.parametrize(
    ("account", "name", "told"),
    [
        ({"auth": {"accessToken": {"role": "read"}}}, "films", "the token of 'tester' may only read"),
        ({"auth": {"accessToken": FINE}}, "films", "may not write to repositories of 'tester'"),
        ({}, "studio/films", "hub_model_id belongs to 'studio', the token to 'tester'"),
        ({"orgs": [{"name": "studio", "roleInOrg": "read"}]}, "studio/films", "may only read in the organization"),
    ],
)
def test_rights_that_are_missing(hub: Desk, tmp_path: Path, account: dict, name: str, told: str) -> None:
    hub.account |= account
    (text,) = look(tmp_path, hub_model_id=name)
    assert text.startswith("error: ")
    assert told in text
    assert hub.private == {}


def test_rights_that_suffice(hub: Desk, tmp_path: Path) -> None:
    hub.account |= {"orgs": [{"name": "studio", "roleInOrg": "contributor"}]}
    assert look(tmp_path, hub_model_id="studio/films") == []
    assert hub.private == {"studio/films": True}


def test_a_repository_that_may_not_be_written(hub: Desk, tmp_path: Path) -> None:
    hub.private["tester/films"] = True
    hub.read_only.add("tester/films")
    (text,) = look(tmp_path)
    assert "'tester/films' cannot be written" in text


def test_nothing_is_overwritten_that_was_not_named(hub: Desk, tmp_path: Path) -> None:
    hub.private["tester/films"] = True
    hub.files["tester/films/somebody.safetensors"] = b"work"
    (text,) = look(tmp_path)
    assert "'tester/films' exists and holds 1 files, such as somebody.safetensors" in text
    assert look(tmp_path, hub_model_id="films") == [], "named on purpose"
    line = {"sequence": 1, "kind": "uploaded", "what": "x", "address": f"{hub.url}/tester/films"}
    (tmp_path / "journal.jsonl").write_text(json.dumps(line) + "\n")
    assert look(tmp_path) == [], "this run was there before"


@pytest.mark.parametrize("answer", [Answer(503), Answer(204, stall=3.0)])
def test_a_hub_that_cannot_be_asked_is_no_error(hub: Desk, tmp_path: Path, answer: Answer) -> None:
    hub.always = answer
    (text,) = look(tmp_path, seconds=0.7)
    assert text.startswith("warning: push_to_hub: the Hub cannot be asked whether uploads will work")
    hub.always = None
