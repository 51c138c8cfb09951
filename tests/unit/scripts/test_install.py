"""The set-up script: what it concludes from a machine, where it takes torch from, when it has nothing to do."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"


@pytest.fixture(scope="module")
def scripts() -> tuple[ModuleType, ModuleType]:
    """The modules `install` and `torch_build`, imported as the script itself imports them."""
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    try:
        import install
        import torch_build
    finally:
        sys.path.remove(str(REPOSITORY / "scripts"))
    return install, torch_build


@pytest.fixture
def torch_build(scripts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`torch_build` on a bare Linux machine whose PATH is one empty folder and whose index does not answer."""
    module = scripts[1]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SIMPLETUNER_TORCH", raising=False)
    monkeypatch.setattr(module, "PYTORCH_INDEX", "http://127.0.0.1:9/whl")
    monkeypatch.setattr(module.sys, "platform", "linux")
    return module


def write_program(folder: Path, name: str, lines: str) -> None:
    path = folder / name
    # Not Python: its path may hold a space, which the first line of a program must not.
    path.write_text(f"#!/bin/sh\nwhile IFS= read -r line; do echo \"$line\"; done <<'END'\n{lines}\nEND\n")
    path.chmod(0o755)


SMI = "| NVIDIA-SMI 570.86   Driver Version: 570.86   CUDA Version: 12.8 |\nGPU 0: NVIDIA H200 (UUID: GPU-1)"


class TestMachine:
    def test_bare_machine_is_cpu(self, torch_build: ModuleType) -> None:
        if Path("/proc/driver/nvidia/version").exists() or Path("/dev/kfd").exists():
            pytest.skip("this machine has a GPU driver")
        assert torch_build.find_machine().build == "cpu"

    @pytest.mark.parametrize("words", ["CUDA Version: 12.8", "CUDA UMD Version: 12.8"])
    def test_nvidia_tool_names_gpu_and_cuda(self, torch_build: ModuleType, tmp_path: Path, words: str) -> None:
        write_program(tmp_path, "nvidia-smi", SMI.replace("CUDA Version: 12.8", words))
        machine = torch_build.find_machine()
        assert (machine.build, machine.cuda) == ("cuda", (12, 8))
        assert "NVIDIA H200" in machine.reason

    def test_broken_nvidia_tool_is_no_gpu(self, torch_build: ModuleType, tmp_path: Path) -> None:
        write_program(tmp_path, "nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch")
        assert torch_build.find_nvidia() is None or Path("/proc/driver/nvidia/version").exists()

    def test_variable_wins_and_says_so(self, torch_build: ModuleType, tmp_path: Path, monkeypatch) -> None:
        write_program(tmp_path, "nvidia-smi", SMI)
        monkeypatch.setenv("SIMPLETUNER_TORCH", "cpu")
        machine = torch_build.find_machine()
        assert machine.build == "cpu"
        assert "SIMPLETUNER_TORCH=cpu" in machine.reason
        assert "cuda" in machine.reason

    def test_unknown_variable_is_refused(self, torch_build: ModuleType, monkeypatch) -> None:
        monkeypatch.setenv("SIMPLETUNER_TORCH", "gpu")
        with pytest.raises(torch_build.SetupError, match="cpu, cuda, rocm, apple"):
            torch_build.find_machine()


@pytest.fixture
def wheel_index(torch_build: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """A small PyTorch index on this machine: for version 2.13.0 builds cpu, cu126, cu128, cu130 and two ROCm."""
    names = [
        f"torch-2.13.0%2B{label}-{python}-{python}-manylinux_2_28_{place}.whl"
        for label in ("cpu", "cu126", "cu128", "cu130", "rocm7.1", "rocm6.4")
        for python, place in ((TAG, "x86_64"), ("cp399", "x86_64"))
    ]
    names += [f"torch-2.12.0%2Bcu129-{TAG}-{TAG}-manylinux_2_28_x86_64.whl"]
    names += [f"torch-2.13.0%2Bcu129-{TAG}-{TAG}-manylinux_2_28_aarch64.whl"]

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in ("/whl/torch/", "/whl/cpu/torch/") else 404)
            self.end_headers()
            chosen = names if self.path == "/whl/torch/" else [n for n in names if "cpu" in n]
            self.wfile.write("".join(f'<a href="/whl/{n}#sha256=0">{n}</a>\n' for n in chosen).encode())

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(torch_build, "PYTORCH_INDEX", f"http://127.0.0.1:{server.server_port}/whl")
    monkeypatch.setattr(torch_build.platform, "machine", lambda: "x86_64")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


class TestTorchSource:
    def choose(self, torch_build: ModuleType, build: str, offered: set[str] = frozenset(), cuda=None):
        return torch_build.choose_torch(torch_build.Machine(build, "", cuda), "2.13.0", frozenset(offered))

    def test_configured_cpu_build_wins(self, torch_build: ModuleType, wheel_index: None) -> None:
        source = self.choose(torch_build, "cpu", {"2.13.0", "2.13.0+cpu"})
        assert (source.requirement, source.label) == ("torch==2.13.0+cpu", "")

    def test_cpu_build_from_index(self, torch_build: ModuleType, wheel_index: None) -> None:
        source = self.choose(torch_build, "cpu", {"2.13.0"})
        assert (source.requirement, source.label) == ("torch==2.13.0+cpu", "cpu")

    def test_cpu_without_index_warns_of_size(self, torch_build: ModuleType) -> None:
        source = self.choose(torch_build, "cpu", {"2.13.0"})
        assert (source.requirement, source.label) == ("", "")
        assert "several GB" in source.note

    @pytest.mark.parametrize(
        ("driver", "label"),
        [((12, 6), "cu126"), ((12, 9), "cu128"), ((12, 0), ""), ((13, 0), ""), ((13, 2), ""), (None, "")],
    )
    def test_cuda_build_fits_driver(self, torch_build: ModuleType, wheel_index: None, driver, label: str) -> None:
        assert self.choose(torch_build, "cuda", cuda=driver).label == label

    def test_configured_cpu_build_never_lands_on_a_gpu(self, torch_build: ModuleType) -> None:
        assert self.choose(torch_build, "cuda", {"2.13.0", "2.13.0+cpu"}, (13, 0)).requirement == "torch!=2.13.0+cpu"

    def test_newest_rocm(self, torch_build: ModuleType, wheel_index: None) -> None:
        assert self.choose(torch_build, "rocm").label == "rocm7.1"

    def test_rocm_without_index_is_refused(self, torch_build: ModuleType) -> None:
        with pytest.raises(torch_build.SetupError, match="SIMPLETUNER_TORCH=cpu"):
            self.choose(torch_build, "rocm")

    def test_apple_is_ordinary(self, torch_build: ModuleType) -> None:
        assert self.choose(torch_build, "apple").label == ""


class TestInstaller:
    def test_pip_settings_reach_uv(self, scripts) -> None:
        settings = {
            "index-url": "https://a/simple",
            "find-links": "wheels more\\nthird",
            "extra-index-url": "https://b c",
        }
        assert scripts[0].sources_for_uv(settings, {"UV_DEFAULT_INDEX": "mine"}) == {
            "UV_FIND_LINKS": "wheels,more,third",
            "UV_INDEX": "https://b c",
            "UV_INDEX_STRATEGY": "unsafe-best-match",
        }

    def test_no_pip_settings_change_nothing(self, scripts) -> None:
        assert scripts[0].sources_for_uv({}, {}) == {}

    @pytest.mark.parametrize(("uv", "flag"), [("uv", "--torch-backend"), ("", "--extra-index-url")])
    def test_command_names_constraints_and_source(self, scripts, uv: str, flag: str) -> None:
        install, torch_build = scripts
        source = torch_build.TorchSource("", "torch==2.13.0+cpu", "cpu")
        command = install.install_command(Path("env/bin/python"), uv, source, ".[cpu]")
        assert command[command.index("-c") + 1] == "constraints.txt"
        assert command[command.index("-e") + 1] == ".[cpu]"
        assert command[command.index(flag) + 1].endswith("cpu")

    def test_pin_is_read(self, scripts) -> None:
        assert f"torch=={scripts[0].pinned_torch()}" in (REPOSITORY / "constraints.txt").read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the set-up reads, in a folder with a blank, with an environment that counts as ready."""
    root = tmp_path / "a checkout"
    shutil.copytree(REPOSITORY / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "train.sh", "test.sh"):
        shutil.copy2(REPOSITORY / name, root / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / ".venv")], check=True)
    program = root / ".venv" / "bin" / "simpletuner"
    program.write_text('#!/bin/sh\necho "ran: $*"\nexit 7\n')
    program.chmod(0o755)
    return root


def call(root: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("ENV", "VENV_PATH", "SIMPLETUNER_TORCH")}
    return subprocess.run(
        command, cwd=root.parent, env={**environment, **variables}, capture_output=True, text=True, check=False
    )


def stamp_ready(scripts, root: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Write the stamp a finished set-up leaves."""
    install, folder = scripts[0], root / ".venv"
    monkeypatch.setattr(install, "ROOT", root)
    stamp = {"state": "ready", "folder": str(folder), "own": True, "build": "cpu", "dev": False, "torch": "2.13.0"}
    stamp["fingerprint"] = install.fingerprint(install.environment_version(folder))
    install.write_stamp(folder, {**stamp, **changes})


class TestReady:
    def check(self, root: Path, *arguments: str, **variables: str) -> int:
        return call(
            root, sys.executable, str(root / "scripts" / "install.py"), "--check", *arguments, **variables
        ).returncode

    def test_finished_set_up_has_nothing_to_do(self, scripts, checkout: Path, monkeypatch) -> None:
        stamp_ready(scripts, checkout, monkeypatch)
        assert self.check(checkout) == 0

    @pytest.mark.parametrize("changes", [{"state": "unfinished"}, {"folder": "elsewhere"}, {"fingerprint": "other"}])
    def test_other_stamp_is_not_ready(self, scripts, checkout: Path, monkeypatch, changes: dict[str, str]) -> None:
        stamp_ready(scripts, checkout, monkeypatch, **changes)
        assert self.check(checkout) == 1

    def test_changed_pins_development_tools_and_build_are_noticed(self, scripts, checkout: Path, monkeypatch) -> None:
        stamp_ready(scripts, checkout, monkeypatch)
        assert self.check(checkout, "--dev") == 1
        assert self.check(checkout, SIMPLETUNER_TORCH="cuda") == 1
        (checkout / "constraints.txt").write_text("torch==2.13.1\n")
        assert self.check(checkout) == 1

    def test_no_environment_is_not_ready(self, checkout: Path) -> None:
        shutil.rmtree(checkout / ".venv")
        assert self.check(checkout) == 1


class TestNobodysFilesAreRemoved:
    def test_half_made_environment_goes(self, scripts, checkout: Path, monkeypatch) -> None:
        stamp_ready(scripts, checkout, monkeypatch, state="unfinished")
        scripts[0].clear_unusable(checkout / ".venv")
        assert not (checkout / ".venv").exists()

    def test_finished_environment_stays(self, scripts, checkout: Path, monkeypatch) -> None:
        stamp_ready(scripts, checkout, monkeypatch)
        scripts[0].clear_unusable(checkout / ".venv")
        assert (checkout / ".venv" / "pyvenv.cfg").exists()

    def test_environment_of_the_user_stays_even_half_made(self, scripts, checkout: Path, monkeypatch) -> None:
        assert not scripts[0].is_own(checkout / ".venv")
        stamp_ready(scripts, checkout, monkeypatch, state="unfinished", own=False)
        scripts[0].clear_unusable(checkout / ".venv")
        assert (checkout / ".venv" / "pyvenv.cfg").exists()

    def test_folder_of_files_is_refused(self, scripts, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(scripts[1].SetupError, match="no virtual environment"):
            scripts[0].clear_unusable(tmp_path)
        assert (tmp_path / "thesis.txt").exists()


class TestTrainScript:
    def test_without_configuration_the_demonstration_runs(self, scripts, checkout: Path, monkeypatch) -> None:
        stamp_ready(scripts, checkout, monkeypatch)
        done = call(checkout, str(checkout / "train.sh"))
        assert (done.returncode, done.stdout.splitlines()[-1]) == (7, "ran: demo"), done.stderr

    def test_arguments_pass_and_so_does_the_exit_code(self, scripts, checkout: Path, monkeypatch) -> None:
        stamp_ready(scripts, checkout, monkeypatch)
        done = call(checkout, str(checkout / "train.sh"), "--config", "a file.json", "seed=3")
        assert (done.returncode, done.stdout) == (7, "ran: train --config a file.json seed=3\n"), done.stderr

    @pytest.mark.parametrize("way", ["config.json", "config/config.toml", "ENV"])
    def test_a_configuration_is_trained(self, scripts, checkout: Path, monkeypatch, way: str) -> None:
        stamp_ready(scripts, checkout, monkeypatch)
        if way != "ENV":
            (checkout / way).parent.mkdir(exist_ok=True)
            (checkout / way).write_text("{}")
        done = call(checkout, str(checkout / "train.sh"), **({"ENV": "mine"} if way == "ENV" else {}))
        assert done.stdout == "ran: train\n", done.stderr

    def test_unfit_python_is_named(self, checkout: Path) -> None:
        done = call(checkout, str(checkout / "train.sh"), PYTHON="/nowhere/python")
        assert done.returncode == 2
        assert "/nowhere/python" in done.stderr


def test_stamp_is_readable_json(scripts, tmp_path: Path) -> None:
    scripts[0].write_stamp(tmp_path / "env", {"state": "ready"})
    assert json.loads((tmp_path / "env" / scripts[0].STAMP).read_text()) == {"state": "ready"}
    (tmp_path / "env" / scripts[0].STAMP).write_text("{broken")
    assert scripts[0].read_stamp(tmp_path / "env")["state"] == "unreadable"
