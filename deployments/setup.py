"""What `thaw up` is asked for and where it keeps it: the state folder, and what was given last time."""

import ipaddress
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deployments.server import Server
from thaw.archive import open_dump
from thaw.config import WEIGHTS, TrainConfig, build_config
from thaw.errors import BadDump, BadWeights, NotStarted
from thaw.location import Url, parse_location
from thaw.records import Record

PROJECT = Path(__file__).resolve().parent.parent

_ANYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True, kw_only=True)
class Setup(Record):
    """What was given to `thaw up`, with absolute paths.

    None stands for what was not given: the drawn dump, the dump's usual recipe, the recipe's own weights.
    """

    dump: str | None = None
    recipe: str | None = None
    weights: str | None = None
    store: str | None = None
    host: str = "127.0.0.1"
    port: int = 4200

    @property
    def url(self) -> str:
        """The server's address for this machine."""
        host = "127.0.0.1" if self.host in _ANYWHERE else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def server(self) -> Server:
        return Server(url=f"{self.url}/api", password=find_password())

    def is_open(self) -> bool:
        """Whether other machines reach the server."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"


@dataclass(frozen=True, kw_only=True)
class Child(Record):
    """One process that the supervisor keeps running; `process` is None while it waits to be started again."""

    name: str
    process: int | None
    since: str | None
    restarts: int


@dataclass(frozen=True, kw_only=True)
class State(Record):
    """What is up: written by the supervisor, whose process id it holds."""

    supervisor: int
    since: str
    setup: Setup
    children: tuple[Child, ...]


def find_project() -> Path:
    """The folder of prefect.yaml.

    Raises:
        NotStarted: Thaw was installed without its folder.
    """
    if (PROJECT / "prefect.yaml").is_file():
        return PROJECT
    raise NotStarted(
        f"there is no prefect.yaml in {PROJECT}: Thaw is installed without the project's folder, which `thaw up` "
        "needs. Run it where the project lies, after `pip install -e .` there."
    )


def find_home() -> Path:
    """The state folder: THAW_HOME, or `.thaw` beside prefect.yaml. Created when missing."""
    given = os.environ.get("THAW_HOME")
    home = Path(given).expanduser().absolute() if given else find_project() / ".thaw"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return home


def find_password() -> str | None:
    """`user:password` from the environment, for the server and for whoever talks to it."""
    return os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or os.environ.get("PREFECT_API_AUTH_STRING")


def read_setup(home: Path) -> Setup:
    """What was given last time, or the defaults."""
    try:
        return Setup.from_json((home / "setup.json").read_bytes())
    except FileNotFoundError:
        return Setup()


def read_state(home: Path) -> State | None:
    """What the supervisor wrote last, or None where it was stopped, or never started."""
    try:
        return State.from_json((home / "state.json").read_bytes())
    except FileNotFoundError:
        return None


def write(record: Record, file: Path) -> None:
    """Put a record's JSON in place at once, so that no reader sees half of it."""
    handle, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(record.to_json())
    Path(partial).replace(file)


def check_setup(setup: Setup) -> TrainConfig:
    """The configuration that the deployments will have, checked before anything is started.

    Raises:
        BadConfig: no such recipe, or the recipe's own settings don't fit.
        BadDump, BadWeights: nothing lies where the dump or the weights should.
        NotStarted: other machines would reach the server, and it would let everybody in.
    """
    if setup.dump is None or not _is_there(setup.dump):
        raise BadDump(
            f"there is no dump at {setup.dump}. Give the path or URL of a zip archive or a folder: --dump."
        )
    if setup.is_open() and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise NotStarted(
            f"--host {setup.host} opens the server to other machines, and whoever reaches it can run code here. "
            "Set PREFECT_SERVER_API_AUTH_STRING=user:password first, or leave --host at 127.0.0.1."
        )
    if setup.weights is not None and setup.weights not in WEIGHTS and not Path(setup.weights).is_file():
        raise BadWeights(
            f"no weights at {setup.weights}. Give the path of a weights file, or one of {', '.join(WEIGHTS)}."
        )
    weights = {} if setup.weights is None else {"weights": setup.weights}
    settings = {"dump": {"path": setup.dump}, "backbone": weights}
    return build_config(settings if setup.recipe is None else {**settings, "recipe": setup.recipe})


def _is_there(dump: str) -> bool:
    if isinstance(parse_location(dump), Url):
        if os.environ.get("THAW_STORAGE_BLOCK"):
            return True  # the block is on the server, which may be yet to be started
        with open_dump(dump):  # which says what is wrong with it
            return True
    return Path(dump).exists()


def deploy_defaults(config: TrainConfig) -> dict[str, str]:
    """The environment variables that prefect.yaml fills its parameters from."""
    return {
        "THAW_DUMP": str(config.dump.path),
        "THAW_RECIPE": config.recipe,
        "THAW_WEIGHTS": config.backbone.weights,
    }


def locate_weights(given: str) -> str:
    """Weights as other folders find them: a name as it is, a file by its absolute path."""
    return given if given in WEIGHTS else str(Path(given).expanduser().absolute())
