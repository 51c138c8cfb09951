"""What dead and stalling receivers cost a training step.

    python benchmarks/event_sinks.py             # prints a table
    python benchmarks/event_sinks.py --write     # also benchmarks/event_sinks_<machine>_<yyyymm>.md

A run emits one `StepFinished` after another, each after a pause of 50 ms (the shortest step worth training is longer).
Receivers: none; two webhooks at an address that refuses; two that take 5 seconds for every answer; two that are well.
Counted is CPU time, so that other work on the machine does not count: of the training thread inside `emit`, and of the
whole process per step, which holds the delivery threads too. The share is against the smallest step of
`benchmarks/step_overhead.py`, 0.115 CPU seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.config.webhook_file import Webhook
from simpletuner.events.run import open_run
from simpletuner.events.types import RunFinished, RunStarted, StepFinished, TrainingBegan

STEPS, PAUSE_SECONDS, STEP_CPU_SECONDS, STALL_SECONDS = 200, 0.05, 0.115, 5.0


@contextlib.contextmanager
def receiver(stall: float) -> Iterator[str]:
    """Address of a server that takes everything, after `stall` seconds."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(stall)
            with contextlib.suppress(OSError):
                self.send_response(204)
                self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def measure(addresses: list[str]) -> tuple[float, float, float]:
    """(median and longest CPU seconds of the training thread per step, CPU seconds of the process per step)."""
    hooks = tuple(Webhook(webhook_type="raw", callback_url=f"{address}/{n}") for n, address in enumerate(addresses))
    own: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        open_run(Path(folder), {}, "bench", reporting=ReportingSection(), webhooks=hooks) as run,
    ):
        run.emit(RunStarted("bench", folder))
        run.emit(TrainingBegan(0, STEPS, 1, 1, STEPS, 1, 1))
        begun = time.process_time()
        for number in range(1, STEPS + 1):
            time.sleep(PAUSE_SECONDS)
            before = time.thread_time()
            run.emit(StepFinished(number, 1, 0.5, 1e-4, 0.7, 2, 336, 0.115, 1000, {"flow": 0.5}))
            own.append(time.thread_time() - before)
        total = (time.process_time() - begun) / STEPS
        run.emit(RunFinished(STEPS, "finished"))
    return statistics.median(own), max(own), total


def main() -> None:
    """Measure and print; see the top of the file."""
    parser = argparse.ArgumentParser(description="What dead and stalling receivers cost a step.")
    parser.add_argument("--write", action="store_true", help="also write the result file")
    parser.add_argument("--machine", default=platform.machine(), help="machine part of the result file's name")
    arguments = parser.parse_args()
    rows = [
        "| receivers | training thread per step, median | longest | share of a step | whole process per step | share |",
        "|---|---|---|---|---|---|",
    ]
    with receiver(STALL_SECONDS) as stalling, receiver(0.0) as well:
        sides = {"none": [], "two dead": ["http://127.0.0.1:9"] * 2, "two stalling 5 s": [stalling] * 2,
                 "two well (their server in the same process)": [well] * 2}  # fmt: skip
        for name, addresses in sides.items():
            median, longest, total = measure(addresses)
            rows.append(
                f"| {name} | {median * 1e3:.3f} ms | {longest * 1e3:.2f} ms | {median / STEP_CPU_SECONDS:.2%} "
                f"| {total * 1e3:.3f} ms | {total / STEP_CPU_SECONDS:.2%} |"
            )
    table = "\n".join(rows)
    print(table)
    if arguments.write:
        path = Path(__file__).with_name(f"event_sinks_{arguments.machine}_{datetime.date.today():%Y%m}.md")
        machine = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
        path.write_text(f"# Receivers of events\n\n{__doc__}\n{machine}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
