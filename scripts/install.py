"""Make the project's virtual environment and install the project, with the torch build this machine wants.

Standard library only; runs on Python 3.10 to 3.12 of any system, before anything is installed. It knows
nothing of the package beyond `pyproject.toml` and `constraints.txt`. A stamp inside the environment tells
the next start that nothing is left to do.

Environment variables: VENV_PATH (folder, default `.venv`), SIMPLETUNER_TORCH (cpu, cuda, rocm, apple),
SIMPLETUNER_INSTALLER (uv, pip).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch_build import PYTORCH_INDEX, SetupError, TorchSource, choose_torch, find_machine, offered_versions, output_of

ROOT = Path(__file__).resolve().parent.parent
STAMP = "simpletuner-setup.json"
OLDEST, NEWEST = (3, 10), (3, 12)
# pip's settings that decide where packages come from, and uv's names for them; uv reads none of pip's.
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the set-up; returns 0 ready, 1 failed or not ready, 2 wrong Python or setting, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="Make the virtual environment and install the project into it.")
    parser.add_argument("--dev", action="store_true", help="install the tools for tests and development too")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only tell by the exit code whether the set-up is done")
    mode.add_argument("--plan", action="store_true", help="say what would be installed, and change nothing")
    options = parser.parse_args(arguments)
    folder = ROOT / (os.environ.get("VENV_PATH") or ".venv")
    try:
        if options.check:
            return 0 if is_ready(folder, options.dev) else 1
        check_python()
        if options.plan:
            tell_plan(folder, options.dev)
            return 0
        with only_one(folder):
            if not is_ready(folder, options.dev):
                install(folder, options.dev)
    except SetupError as error:
        print(f"Set-up: {error}.", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(
            f"Set-up failed: this command ended with code {error.returncode}; its own message stands above.\n"
            f"  {subprocess.list2cmdline(error.cmd)}\nStarting again makes the environment anew.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nSet-up interrupted; starting again makes the environment anew.", file=sys.stderr)
        return 130
    return 0


def check_python() -> None:
    """Refuse a Python that the dependencies do not support.

    Raises:
        SetupError: Outside 3.10 to 3.12.
    """
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise SetupError(
            f"this is Python {platform.python_version()} ({sys.executable}), and 3.10, 3.11 or 3.12 is needed. "
            "Install one of them, or name it: PYTHON=python3.11 ./train.sh"
        )


def is_ready(folder: Path, dev: bool) -> bool:
    """Whether the environment in `folder` is complete and fits this checkout as it is now."""
    stamp = read_stamp(folder)
    return (
        stamp.get("state") == "ready"
        and stamp.get("folder") == str(folder)
        and stamp.get("fingerprint") == fingerprint(environment_version(folder))
        and stamp.get("build") == (os.environ.get("SIMPLETUNER_TORCH") or stamp.get("build"))
        and (stamp.get("dev") is True or not dev)
        and environment_python(folder).exists()
    )


def install(folder: Path, dev: bool) -> None:
    """Make the environment in `folder` if needed and install the project into it.

    Raises:
        SetupError: If the folder is in use for something else, or a tool is missing.
        subprocess.CalledProcessError: If the installer fails.
    """
    begun = time.monotonic()
    machine, uv, pin = find_machine(), find_uv(), pinned_torch()
    source = choose_torch(machine, pin, offered_versions(pin))
    tell(f"Torch build: {machine.build} ({machine.reason}). {source.note}")
    tell(f"Installer: {'uv' if uv else 'pip'}; Python {platform.python_version()}; environment: {folder}")
    # What was asked for once stays: ./train.sh after ./test.sh must not take the test tools away.
    dev = dev or read_stamp(folder).get("dev") is True
    own = is_own(folder)
    clear_unusable(folder)
    write_stamp(folder, {"state": "unfinished", "folder": str(folder), "own": own, "dev": dev})
    if not environment_python(folder).exists():
        make_environment(folder, uv)
    python = environment_python(folder)
    run_installer(install_command(python, uv, source, project_name(machine.build, dev)), uv)
    # The project is installed where it stands, so that nobody compiles it; where Python may not keep what it compiles,
    # each start would do it again.
    subprocess.run([str(python), "-m", "compileall", "-q", "simpletuner"], cwd=ROOT, check=False)
    torch_version = ask_torch_version(python)
    stamp = {
        "state": "ready",
        "folder": str(folder),
        "own": own,
        "fingerprint": fingerprint(environment_version(folder)),
        "build": machine.build,
        "dev": dev,
        "torch": torch_version,
    }
    write_stamp(folder, stamp)
    tell(f"Environment ready in {time.monotonic() - begun:.0f} s: {folder} (torch {torch_version})")


def tell_plan(folder: Path, dev: bool) -> None:
    """Print what `install` would do."""
    machine, uv, pin = find_machine(), find_uv(), pinned_torch()
    source = choose_torch(machine, pin, offered_versions(pin))
    command = install_command(environment_python(folder), uv, source, project_name(machine.build, dev))
    tell(f"Python: {platform.python_version()} ({sys.executable})")
    tell(f"Environment: {folder}")
    tell(f"Torch build: {machine.build} ({machine.reason}). {source.note}")
    tell(f"Command: {subprocess.list2cmdline(command)}")


# --- installing ------------------------------------------------------------------------------------


def find_uv() -> str:
    """Path of uv; empty when pip installs.

    Raises:
        SetupError: If SIMPLETUNER_INSTALLER asks for a uv that is not there, or for something unknown.
    """
    wanted = os.environ.get("SIMPLETUNER_INSTALLER", "")
    if wanted not in ("", "uv", "pip"):
        raise SetupError(f"SIMPLETUNER_INSTALLER is '{wanted}'; it must be uv or pip")
    found = shutil.which("uv") or ""
    if wanted == "uv" and not found:
        raise SetupError("SIMPLETUNER_INSTALLER=uv, but there is no uv on the PATH")
    return "" if wanted == "pip" else found


def pinned_torch() -> str:
    """The torch version in `constraints.txt`.

    Raises:
        SetupError: If the file names none.
    """
    found = re.search(r"^torch==([\w.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise SetupError("constraints.txt names no torch version; check the file out again")
    return found[1]


def project_name(build: str, dev: bool) -> str:
    """The project as an installer's argument, with its extras."""
    return f".[{build},dev]" if dev else f".[{build},quickstart]"


def install_command(python: Path, uv: str, source: TorchSource, project: str) -> list[str]:
    """The one command that installs the project and all its dependencies at the pinned versions."""
    if uv:
        command = [uv, "pip", "install", "--python", str(python)]
        if sys.dont_write_bytecode:
            # Else Python keeps what it compiled at the first start; pip compiles in any case.
            command.append("--compile-bytecode")
    else:
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--prefer-binary"]
    command += ["-c", "constraints.txt", "-e", project]
    if source.requirement:
        command.append(source.requirement)
    if source.label:
        command += ["--torch-backend", source.label] if uv else ["--extra-index-url", f"{PYTORCH_INDEX}/{source.label}"]
    return command


def run_installer(command: list[str], uv: str) -> None:
    """Run `command` in the checkout, with pip's configured sources handed on when uv installs.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    environment = dict(os.environ)
    if uv:
        environment.update(sources_for_uv(read_pip_settings(), environment))
    elif not output_of([command[0], "-m", "pip", "--version"]):
        # The environment was made by uv, which puts no pip inside.
        subprocess.run([command[0], "-m", "ensurepip"], check=True)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def read_pip_settings() -> dict[str, str]:
    """The settings pip works with here, from its files and its variables; the latter win."""
    told = output_of([sys.executable, "-m", "pip", "config", "list"], 20)
    settings: dict[str, str] = {}
    for scope in ("global", "install"):
        settings.update(re.findall(rf"^{scope}\.([\w-]+)='(.*)'$", told, re.MULTILINE))
    for name in PIP_TO_UV:
        value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        if value:
            settings[name] = value
    return settings


def sources_for_uv(pip_settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """uv's variables for the package sources pip is configured with; what is set for uv already stays."""
    found: dict[str, str] = {}
    for name, variable in PIP_TO_UV.items():
        # pip prints a value of several lines with \n in it.
        values = pip_settings.get(name, "").replace("\\n", " ").split()
        if values and variable not in environment:
            found[variable] = ("," if name == "find-links" else " ").join(values)
    if "UV_INDEX" in found and "UV_INDEX_STRATEGY" not in environment:
        # pip weighs all its sources alike; uv would stop at the first that knows a name.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return found


# --- the environment -------------------------------------------------------------------------------


def is_own(folder: Path) -> bool:
    """Whether the environment in `folder` is made by this script, and so may be removed by it; True for none."""
    if not (folder / "pyvenv.cfg").is_file():
        return True
    return bool(read_stamp(folder)) and read_stamp(folder).get("own") is not False


def clear_unusable(folder: Path) -> None:
    """Remove an environment of ours that is half-made, moved or of another Python; touch nobody else's.

    Raises:
        SetupError: If the folder holds something else, or another's environment with another Python.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    stamp, this_version = read_stamp(folder), f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not stamp and not (folder / "pyvenv.cfg").is_file():
        raise SetupError(f"'{folder}' holds files but is no virtual environment. Empty it, or set VENV_PATH elsewhere")
    if not is_own(folder):
        if environment_version(folder) != this_version:
            raise SetupError(
                f"'{folder}' is an environment of Python {environment_version(folder)} that was there before, and "
                f"this is {this_version}. Set PYTHON={environment_python(folder)}, or set VENV_PATH elsewhere"
            )
        return
    faults = {
        "unfinished": stamp.get("state") != "ready" or not environment_python(folder).exists(),
        "moved": stamp.get("folder") != str(folder),
        f"not of Python {this_version}": environment_version(folder) != this_version,
    }
    reasons = [reason for reason, present in faults.items() if present]
    if reasons:
        tell(f"Removing the environment in {folder}: it is {' and '.join(reasons)}")
        shutil.rmtree(folder)


def make_environment(folder: Path, uv: str) -> None:
    """Create the virtual environment itself, with pip inside only when pip installs.

    Raises:
        SetupError: If this Python cannot make environments.
        subprocess.CalledProcessError: If uv fails.
    """
    if uv:
        command = [uv, "venv", "--quiet", "--allow-existing", "--no-project", "--python", sys.executable, str(folder)]
        subprocess.run(command, check=True)
        return
    hint = f"On Debian and Ubuntu: apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    try:
        import ensurepip  # noqa: F401 - missing on Debian without python3-venv; venv finds out only half-way
        import venv
    except ImportError as error:
        raise SetupError(f"this Python lacks the module '{error.name}', so it makes no environments. {hint}") from error
    try:
        venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(folder)
    except subprocess.CalledProcessError as error:
        raise SetupError(f"the environment could not be made ({error}). {hint}") from error


def environment_python(folder: Path) -> Path:
    """Python's place inside a virtual environment."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def environment_version(folder: Path) -> str:
    """Python of the environment ("3.11"); empty when it does not say."""
    try:
        text = (folder / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+)", text, re.MULTILINE)
    return found[1] if found else ""


def ask_torch_version(python: Path) -> str:
    """Version of torch inside the environment, without loading torch.

    Raises:
        subprocess.CalledProcessError: If it is not installed.
    """
    question = "import importlib.metadata as m; print(m.version('torch'))"
    return subprocess.run(
        [str(python), "-I", "-c", question], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


# --- the stamp -------------------------------------------------------------------------------------


def fingerprint(python_version: str) -> str:
    """Changes with all that decides what is installed: requirements, pins, Python, place of the checkout."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes() + b"\0")
    digest.update(f"{python_version}\0{ROOT}".encode())
    return digest.hexdigest()


def read_stamp(folder: Path) -> dict[str, object]:
    """The stamp of the environment; empty when it has none."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return {"state": "unreadable"}
    return stamp if isinstance(stamp, dict) else {"state": "unreadable"}


def write_stamp(folder: Path, stamp: Mapping[str, object]) -> None:
    """Put the stamp in place in one go."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f"{STAMP}.{os.getpid()}"
    staging.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    staging.replace(folder / STAMP)


# --- one at a time ---------------------------------------------------------------------------------


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one set-up at a time work on `folder`; a second one waits for the first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("a", encoding="utf-8") as handle:
        if not lock(handle.fileno(), wait=False):
            tell(f"Another set-up is working on {folder}; waiting for it")
            lock(handle.fileno(), wait=True)
        yield


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file until this process ends; True if locked."""
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.5)
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def tell(line: str) -> None:
    """One line for the user, at once even when the output is a pipe."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
