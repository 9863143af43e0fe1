"""Machines of a test's own on this one: each has its own network, name, processes, home and disk.

They are namespaces of the kernel. What they have in common is the installed code, each at a path of its own, and
a network that only they and the test are on. They end with the test's process, however that ends.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from tests.command import PROJECT, find_run

_NAMESPACES = ("net", "uts", "ipc", "pid", "mount")
# Prefect, Keras and Thaw keep what is theirs under these, and a test must not meet the user's.
_HOMES = {"HOME": ".", "TMPDIR": "tmp", "THAW_CACHE": "cache"}


class NoHosts(Exception):
    """Why there can be no such machines here."""


class Network:
    """A switch with machines on it, and the test's own process at its end.

    The switch is in the first machine, so that nothing is left when that is gone.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        """Raises NoHosts where the kernel, or the user's rights, don't allow it."""
        lacking = [tool for tool in ("ip", "unshare", "nsenter", "mount", "ps") if not shutil.which(tool)]
        if lacking or os.geteuid() != 0:
            raise NoHosts(f"machines of a test's own need {', '.join(lacking) or 'the rights of root'}")
        self.hosts: dict[str, Host] = {}
        # Interfaces outside are named by this process, and so is the network, unless somebody has it.
        self._port = f"thaw{os.getpid()}"
        self._subnet = _find_subnet()
        self._open = ExitStack()
        for name in names:
            (folder / name / "tmp").mkdir(parents=True)
        try:
            for number, name in enumerate(names, 1):
                host = Host(name, folder, f"{self._subnet}.{number}", others=[n for n in names if n != name])
                self._open.callback(host.stop)
                self.hosts[name] = host
            self._connect()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def head(self) -> "Host":
        """The machine that the switch is in."""
        return next(iter(self.hosts.values()))

    def stop(self) -> None:
        """End all machines with all that runs on them."""
        self._open.close()
        with suppress(subprocess.CalledProcessError, FileNotFoundError):
            subprocess.run(["ip", "link", "del", self._port], check=True, capture_output=True)

    def cut(self, name: str) -> None:
        """Pull a machine's plug out of the switch."""
        self.head.do("ip", "link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        """Put it in again."""
        self.head.do("ip", "link", "set", f"to-{name}", "up")

    def _connect(self) -> None:
        head = self.head
        head.do("ip", "link", "add", "switch", "type", "bridge")
        head.do("ip", "addr", "add", f"{head.address}/24", "dev", "switch")
        head.do("ip", "link", "set", "switch", "up")
        ends = [(host.name, ["netns", str(host.init)]) for host in self.hosts.values() if host is not head]
        for name, where in [*ends, ("test", [])]:
            near = "cable" if where else self._port
            far = ["peer", "name", f"to-{name}", "netns", str(head.init)]
            _do("ip", "link", "add", near, *where, "type", "veth", *far)
            head.do("ip", "link", "set", f"to-{name}", "master", "switch", "up")
            do, address = (
                (self.hosts[name].do, self.hosts[name].address) if where else (_do, f"{self._subnet}.254")
            )
            do("ip", "addr", "add", f"{address}/24", "dev", near)
            do("ip", "link", "set", near, "up")


class Host:
    """One machine. `folder` is its disk, which the others don't see."""

    def __init__(self, name: str, disks: Path, address: str, others: Sequence[str]):
        self.name, self.address, self.folder = name, address, disks / name
        hidden = [disks / other for other in others]
        script = [f"hostname {name}", "ip link set lo up", f"mkdir {self.folder}/code"]
        script += [f"mount --bind {PROJECT} {self.folder}/code"]
        # The code as it is elsewhere on another machine, and the disks of the others.
        hidden += [PROJECT / package for package in ("commands", "deployments", "flows", "tasks", "thaw")]
        script += [f"mount -t tmpfs -o ro nothing {path}" for path in hidden]
        # It lives as long as whoever holds the other end of its input.
        script += ["echo up", "read -r end"]
        command = [
            "unshare",
            *(f"--{kind}" for kind in _NAMESPACES),
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        self._holder = subprocess.Popen(
            [*command, "bash", "-c", f"set -e; {'; '.join(script)}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._holder.stdout.readline() != "up\n":
            _, said = self._holder.communicate(timeout=10)
            raise NoHosts(f"no machine of a test's own: {said.strip()}")
        self.init = int(_do("ps", "--ppid", str(self._holder.pid), "-o", "pid="))
        self._started: list[subprocess.Popen] = []

    def environment(self, **more: str) -> dict[str, str]:
        """What is set in a shell on this machine."""
        return {
            **{name: str(self.folder / place) for name, place in _HOMES.items()},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "code"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **more,
        }

    def start(self, log: str, *command: str, **environment: str) -> None:
        """Start something on this machine; what it prints goes to a file on its disk."""
        with (self.folder / log).open("a") as written:
            started = subprocess.Popen(
                [*self._enter(), *command],
                env=self.environment(**environment),
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,
            )
        self._started.append(started)

    def do(self, *command: str) -> str:
        """Run a command on this machine; returns what it prints."""
        return _do(*self._enter(), *command)

    def list_files(self, name: str = "*") -> list[Path]:
        """Files of this name on its disk, from its folder on."""
        return [path.relative_to(self.folder) for path in self.folder.rglob(name) if path.is_file()]

    def runs(self, flow_run: str) -> bool:
        """Whether a flow run has a process on this machine."""
        here = Path(f"/proc/{self.init}/ns/pid").readlink()
        for process in find_run(flow_run):
            with suppress(OSError):
                if Path(f"/proc/{process}/ns/pid").readlink() == here:
                    return True
        return False

    def stop(self) -> None:
        """End everything on this machine."""
        self._holder.stdin.close()
        try:
            self._holder.wait(10)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait(10)
        for started in self._started:
            started.wait(10)
        for stream in (self._holder.stdout, self._holder.stderr):
            stream.close()

    def _enter(self) -> list[str]:
        kinds = [f"--{kind}" for kind in _NAMESPACES]
        return ["nsenter", f"--target={self.init}", *kinds, f"--wdns={self.folder}", "--"]


def wait_for_port(host: Host, port: int, seconds: float = 60) -> None:
    """Until something on a machine takes connections."""
    import socket

    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError), socket.create_connection((host.address, port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nothing at {host.address}:{port}"
        time.sleep(0.2)


def _find_subnet() -> str:
    """The first three bytes of addresses that nobody here has a way to."""
    taken = _do("ip", "-4", "route", "show", "table", "all")
    for number in range(os.getpid(), os.getpid() + 1000):
        subnet = f"10.{64 + number // 256 % 128}.{number % 256}"
        if f"{subnet}." not in taken:
            return subnet
    raise NoHosts("every network is taken")


def _do(*command: str) -> str:
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    if ended.returncode:
        raise NoHosts(f"{' '.join(command)}: {ended.stderr.strip()}")
    return ended.stdout
