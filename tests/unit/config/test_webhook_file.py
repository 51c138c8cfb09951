"""Webhooks: what each receiver needs, every finding, and that no address is ever printed."""

# ruff: noqa: E501 - one finding per line reads as a table

from __future__ import annotations

import json
from typing import Any

import pytest

from simpletuner.config.webhook_file import read_webhooks
from simpletuner.core.errors import Severity

SECRET = "https://discord.com/api/webhooks/1/very-secret"
DISCORD = {"webhook_type": "discord", "webhook_url": SECRET, "message_prefix": "run"}
RAW = {"webhook_type": "raw", "callback_url": "http://127.0.0.1:8001/callback", "auth_token": "very-secret"}


def test_good_ones() -> None:
    reading = read_webhooks([DISCORD, {**RAW, "log_level": "debug", "_note": "mine"}], "webhook.json")
    assert reading.problems == ()
    assert [(hook.webhook_type, hook.log_level) for hook in reading.webhooks] == [("discord", "info"), ("raw", "debug")]
    assert reading.webhooks[0].url == SECRET
    assert "very-secret" not in repr(reading.webhooks)
    assert read_webhooks(RAW, "x").webhooks[0].ssl_no_verify is False


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({**DISCORD, "webhook_type": "dicsord"}, "webhook_type = 'dicsord'. It must be discord or raw. Did you mean 'discord'?"),
        ({"webhook_url": SECRET}, "webhook_type is missing"),
        ({"webhook_type": "raw", "webhook_url": SECRET}, "callback_url is missing. webhook_type raw needs it. Rename webhook_url."),
        ({"webhook_type": "discord"}, 'webhook_url is missing. webhook_type discord needs it. Add "webhook_url".'),
        ({**DISCORD, "webhook_url": "very-secret"}, "webhook_url is no web address"),
        ({**DISCORD, "webhook_url": "https://[very-secret"}, "webhook_url is no web address"),
        ({**RAW, "callback_url": 3}, "callback_url is no web address"),
        ({**RAW, "log_level": "verbose"}, "log_level = 'verbose'. It must be one of: critical,"),
        ({**RAW, "ssl_no_verfy": True}, "unknown key 'ssl_no_verfy'. Known: webhook_type,"),
        ({**RAW, "ssl_no_verfy": True}, "Did you mean 'ssl_no_verify'?"),
        ({**RAW, "ssl_no_verify": "perhaps"}, "ssl_no_verify cannot be read."),
        ({**DISCORD, "auth_token": "very-secret"}, "auth_token has no effect with webhook_type discord"),
        ([RAW, 3], "webhook.json: entry 2: a webhook is one object."),
    ],
)  # fmt: skip
def test_findings(content: Any, text: str) -> None:
    told = [str(problem) for problem in read_webhooks(content, "webhook.json").problems]
    assert any(text in found for found in told), told
    assert not any("very-secret" in found for found in told)


@pytest.mark.parametrize("inline", [True, False])
def test_in_the_configuration(desk, inline: bool) -> None:
    broken = {"webhook_type": "raw"}
    desk.write("config/webhook.json", json.dumps(broken))
    desk.add(webhook_config=broken if inline else "config/webhook.json")
    assert any("callback_url is missing" in text for text in desk.texts())
    desk.add(webhook_config="config/webhok.json")
    assert any("there is no such file" in text and "config/webhook.json" in text for text in desk.texts())
    told = desk.texts('webhook_config={"webhook_type": "raw",}')
    assert any("callback_url is missing" in text for text in told), told


def test_files_are_checked_although_nothing_is_sent_yet(desk) -> None:
    desk.write("config/webhook.json", json.dumps(RAW))
    desk.add(webhook_config="config/webhook.json")
    problems = desk.examine().problems
    errors = [problem for problem in problems if problem.severity is Severity.ERROR and "webhook" in str(problem)]
    assert all("Not built yet" in str(problem) for problem in errors)
