"""Real servers on this machine, and one clip that every place holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_servers import Place, hub_server, web_server

from simpletuner.config.dataset import ClipDataset


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path]) -> Path:
    """33 frames of 128x96 with their numbers in them."""
    return write_clip(tmp_path_factory.mktemp("clip") / "a clip.mp4")


@pytest.fixture
def web() -> Iterator[Place]:
    with web_server() as place:
        yield place


@pytest.fixture
def hub() -> Iterator[Place]:
    with hub_server() as place:
        yield place


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """Address of an S3 service with an empty store."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_address: str) -> Iterator[Any]:
    """put(key, bytes), delete(key) in the bucket "clips" of the S3 service."""
    boto3 = pytest.importorskip("boto3")
    store = boto3.resource(
        "s3", endpoint_url=f"http://{s3_address}", region_name="us-east-1",
        aws_access_key_id="AKIDTESTING", aws_secret_access_key="canary-secret",
    )  # fmt: skip
    bucket = store.Bucket("clips")
    bucket.create()
    yield bucket
    bucket.objects.delete()
    bucket.delete()
    store.meta.client.close()


@pytest.fixture
def s3_entry(s3_address: str) -> Callable[..., ClipDataset]:
    """entry(**settings): a data set in the bucket."""

    def build(**settings: Any) -> ClipDataset:
        merged = {
            "id": "store", "type": "aws", "aws_bucket_name": "clips", "aws_endpoint_url": f"http://{s3_address}",
            "aws_access_key_id": "AKIDTESTING", "aws_secret_access_key": "canary-secret", **settings,
        }  # fmt: skip
        return ClipDataset(**merged)

    return build


@pytest.fixture
def in_own_process(repository: Path, tmp_path: Path) -> Callable[..., Any]:
    """run(dataset, what, hub, meanwhile): `place_contract` in a process whose Hub is the fake one."""

    def run(dataset: ClipDataset, what: str, hub: Place | None, meanwhile: Callable[[], None] | None = None) -> Any:
        environment = {
            "PYTHONPATH": f"{repository}:{repository / 'tests'}", "HOME": str(tmp_path), "HF_HOME": f"{tmp_path}/hf",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "hf_canary", "PATH": "",
            **({"HF_ENDPOINT": hub.url} if hub else {"HF_HUB_OFFLINE": "1"}),
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "place_contract", dataset.model_dump_json(exclude_unset=True), what],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            cwd=tmp_path,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        if meanwhile:
            while process.stdout.readline().strip() not in ("ready", ""):
                pass
            meanwhile()
        output, errors = process.communicate("\n", timeout=120)
        assert "OUTCOME" in output, errors
        assert "hf_canary" not in output + errors
        return json.loads(output.rpartition("OUTCOME ")[2])

    return run
