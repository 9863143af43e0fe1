"""The frame of every benchmark: workers that take turns, rounds, and the command line.

Each side of a comparison lives in a process of its own, so that what one imports or switches on (Thaw
makes TensorFlow's operations deterministic) never reaches the other. One works at a time. This process
itself never imports TensorFlow: a process it starts inherits its peak memory, which `memory` measures.
"""

import argparse
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from rich.console import Console
from rich.markup import escape

from benchmarks.results import keep_results, print_results

PROJECT = Path(__file__).resolve().parent.parent
BENCHMARKS = (
    "extraction",
    "incremental",
    "fine_tune_epoch",
    "head_epoch",
    "augmented_head",
    "raw_to_accuracy",
    "memory",
    "orchestration",
    "index",
    "scaling",
)
notes = Console(stderr=True, highlight=False, soft_wrap=True)
Size = TypeVar("Size")
Side = Callable[[int], Mapping[str, float]]
# By side, by unit, round by round.
Figures = dict[str, dict[str, list[float]]]
_LAST_LINES = 20
_SERVER_SECONDS = 120


class BenchmarkFailed(Exception):
    """A benchmark can't be run here, or one of its sides failed. The message says why."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how large a benchmark runs.

    Attributes:
        folder: an empty temporary folder of its own, removed at the end.
        pixels: the size of the images that `memory` extracts.
        subject: what `fine_tune_epoch` measures.
    """

    folder: Path
    sizes: Literal["full", "quick"] = "full"
    pixels: int = 48
    subject: Literal["time", "accuracy"] = "time"

    @property
    def rounds(self) -> int:
        """How often each side takes its turn."""
        return self.pick(3, 1)

    def pick(self, full: Size, quick: Size) -> Size:
        """The size to measure at, or one that only shows that the benchmark runs."""
        return full if self.sizes == "full" else quick


class Worker:
    """One side of a comparison: an object in a fresh Python process, whose methods are called from here."""

    def __init__(self, subject: str, process: subprocess.Popen, log: IO[bytes]):
        self._subject, self._process, self._log = subject, process, log

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method and wait for what it returns; arguments and results are what JSON can say.

        Raises:
            BenchmarkFailed: the method raised, or the process died.
        """
        try:
            self._process.stdin.write(json.dumps([method, arguments], default=str) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            raise BenchmarkFailed(f"{self._subject} died with exit code {code}:\n{_read_end(self._log)}")
        outcome, value = json.loads(answer)
        if outcome == "failed":
            raise BenchmarkFailed(f"{self._subject} failed:\n{value}")
        return value


@contextmanager
def start_worker(subject: str, **arguments: Any) -> Iterator[Worker]:
    """A worker around a class named as `module:Class` within this package.

    The object is made, with these arguments, and its module imported at the first call, so that starting
    one disturbs no other.
    """
    command = [sys.executable, "-m", "benchmarks.worker", subject, json.dumps(arguments, default=str)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, **pipes, stderr=log, text=True, cwd=PROJECT) as process,
    ):
        yield Worker(subject, process, log)


@contextmanager
def serve_prefect(home: Path) -> Iterator[str]:
    """A Prefect server on a free port, with a home of its own; yields the address of its API.

    Raises:
        BenchmarkFailed: it does not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=home, env=environment) as process,
    ):
        try:
            deadline = time.monotonic() + _SERVER_SECONDS
            while not _answers(f"http://127.0.0.1:{port}/api/health"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkFailed(f"the Prefect server did not start:\n{_read_end(log)}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/api"
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def time_command(
    *arguments: Any,
    prefect_home: Path | None = None,
    prefect_url: str | None = None,
    progress: Literal["shown", "hidden"] = "hidden",
) -> tuple[float, Any]:
    """Run the `thaw` command with `--json`: seconds from start to exit, and what it printed.

    Args:
        prefect_home: where Prefect is to keep its records; without an address a flow then runs on a
            temporary server.
        prefect_url: the address of the API of a server that runs.

    Raises:
        BenchmarkFailed: it did not exit with code 0.
    """
    command = [sys.executable, "-m", "flows", *map(str, arguments), "--json"]
    environment = dict(os.environ)
    if prefect_home:
        environment["PREFECT_HOME"] = str(prefect_home)
        environment.pop("PREFECT_API_URL", None)
    if prefect_url:
        environment["PREFECT_API_URL"] = prefect_url
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        ended = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log if progress == "hidden" else None,
            cwd=PROJECT,
            env=environment,
        )
        seconds = time.perf_counter() - started
        if ended.returncode != 0:
            ending = _read_end(log) if progress == "hidden" else "Its messages are above."
            raise BenchmarkFailed(f"thaw {arguments[0]} ended with exit code {ended.returncode}:\n{ending}")
    return seconds, json.loads(ended.stdout)


def step(what: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Do one piece of work; say so on standard error, and what figures it gave or how long it took."""
    notes.print(f"  {escape(what)} … ", end="")
    started = time.perf_counter()
    result = work(*arguments, **options)
    seconds = f"{time.perf_counter() - started:.1f} s"
    if isinstance(result, dict):
        notes.print(", ".join(f"{value:.4g} {unit}" for unit, value in result.items()), f"({seconds})")
    else:
        notes.print(seconds)
    return result


def run_rounds(rounds: int, sides: Mapping[str, Side]) -> Figures:
    """Let the sides take turns, each once per round, every other round in reverse order.

    A side is called with the number of the round, from 0, and returns its figures by their units.
    """
    figures: Figures = {name: {} for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            measured = step(f"round {number + 1} of {rounds}: {name}", sides[name], number)
            for unit, value in measured.items():
                figures[name].setdefault(unit, []).append(value)
    return figures


def run_benchmarks(*names: str) -> None:
    """Run the benchmarks named here or on the command line, all if none is; print and keep the results.

    Exits with code 1 if one of them failed, whether or not goals are met.
    """
    options = _parse_options(names)
    started, failed = time.perf_counter(), False
    entries = []
    for name in options.names:
        module = importlib.import_module(f"benchmarks.{name}")
        notes.print(f"[bold]{name}[/bold]: {escape(module.__doc__.splitlines()[0])}")
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"thaw-{name}-") as folder:
            place = Place(
                folder=Path(folder),
                sizes="quick" if options.quick else "full",
                pixels=options.pixels,
                subject="accuracy" if options.accuracy else "time",
            )
            try:
                made = module.measure(place)
            except BenchmarkFailed as error:
                notes.print(f"[red]{name} failed:[/red] {escape(str(error))}")
                failed = True
                continue
        notes.print(f"  {name} took {(time.perf_counter() - began) / 60:.1f} minutes")
        entries += made
        if options.results:
            keep_results(options.results, made, BENCHMARKS)
    if entries:
        print_results(entries, "quick sizes: these figures say nothing" if options.quick else None)
    notes.print(f"{(time.perf_counter() - started) / 60:.1f} minutes in all")
    sys.exit(failed)


def _parse_options(names: Sequence[str]) -> argparse.Namespace:
    program = f"python -m benchmarks{'.' + names[0] if names else ''}"
    parser = argparse.ArgumentParser(program, description="Measure Thaw beside plain Keras.")
    if not names:
        parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it runs, keeps no results"
    )
    parser.add_argument("--results", type=Path, help="folder to keep results.json and results.md in")
    parser.add_argument("--pixels", type=int, default=48, help="memory: size of the images [48]")
    parser.add_argument(
        "--accuracy", action="store_true", help="fine_tune_epoch: accuracy over seeds instead of time"
    )
    options = parser.parse_args()
    options.names = list(names or options.names or BENCHMARKS)
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}. There are {', '.join(BENCHMARKS)}.")
    if not options.results and not options.quick:
        options.results = Path(__file__).parent
    return options


def _read_end(log: IO[bytes]) -> str:
    log.seek(0)
    return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-_LAST_LINES:])
