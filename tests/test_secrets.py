"""Credentials of an object store are used and kept nowhere, wherever they come from."""

import base64
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.config import conf
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.credentials import VARIABLE, use_storage_block
from tests.command import SMALL, Ended, Server
from tests.s3 import KEY_ID, SECRET, Bucket
from thaw.errors import BadConfig
from thaw.location import Url
from thaw.objects import Objects
from thaw.registry import read_registry
from thaw.store import Store

HIDDEN = [form for text in (KEY_ID, SECRET) for form in (text.encode(), base64.b64encode(text.encode())[:-4])]
TRAIN = ["train", "--json", *SMALL, "--set=fine_tune=[]", "--set=split.train=30"]
NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def find_traces(*folders: Path) -> list[str]:
    """Files that hold a secret, or whose packed members do."""
    return [str(file) for folder in folders for file in folder.rglob("*") if file.is_file() and _tells(file)]


def _tells(file: Path) -> bool:
    contents = [file.read_bytes()]
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as opened:
            contents += [opened.read(name) for name in opened.namelist()]
    return any(secret in content for content in contents for secret in HIDDEN)


def fetch_all(url: str, folder: Path) -> Path:
    """Everything below a URL, as files."""
    objects = Objects(Url(url))
    for number, key in enumerate(objects.list()):
        folder.mkdir(exist_ok=True)
        objects.download(key, folder / f"{number}")
    return folder


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    folder = tmp_path / "printed"
    folder.mkdir()
    return folder


@pytest.fixture
def block(server: Server, s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteFileSystem]:
    """The only place with credentials and with the server's address: a block of the Prefect server."""
    for name in [*NAMES, "AWS_ENDPOINT_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(VARIABLE, "remote-file-system/thaw")
    monkeypatch.setitem(conf, "s3", {})
    monkeypatch.setitem(conf, "s3a", {})
    settings = {"key": KEY_ID, "secret": SECRET, "endpoint_url": s3.server.endpoint}
    with temporary_settings({PREFECT_API_URL: server.url}):
        block = RemoteFileSystem(basepath=s3.url, settings=settings)
        block.save("thaw", overwrite=True)
        yield block


@pytest.mark.slow
@pytest.mark.parametrize("place", ["environment", "profile"])
def test_no_command_leaves_a_trace_of_credentials(
    server: Server,
    s3: Bucket,
    drawn_dump: Path,
    tmp_path: Path,
    printed: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
):
    Objects(Url(s3.url)).upload(drawn_dump, "drawn.zip")
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "cache"))
    if place == "profile":
        for name in NAMES:
            monkeypatch.delenv(name)
        profile = printed.parent / "profile"
        profile.write_text(f"[thaw]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
        monkeypatch.setenv("AWS_PROFILE", "thaw")
    dump, store = f"{s3.url}/drawn.zip", ("--store", f"{s3.url}/store")
    commands = [
        (0, [*TRAIN, "--dump", dump, *store]),
        (0, ["promote", "v1", *store]),
        (0, ["predict", "champion", dump, "--json", *store]),
        (0, ["export", "champion", "--format", "keras", "--json", *store]),
        (0, ["doctor", "--recipe", "demo", "--json", *store]),
        (2, [*TRAIN, "--dump", dump, "--store", "s3://no-such-bucket/store"]),
    ]
    # The rest reads credentials in the same way.
    for number, (code, command) in enumerate(commands if place == "environment" else commands[:3]):
        ended = server.thaw(*command)
        assert ended.code == code, ended.err
        keep(ended, printed / str(number))
    # What a refusal says, with the secret at hand.
    refused = server.thaw(
        "models", *store, AWS_ACCESS_KEY_ID="UNKNOWN", AWS_SECRET_ACCESS_KEY=SECRET, AWS_PROFILE=""
    )
    assert refused.code == 2
    assert "refuses access" in refused.err
    keep(refused, printed / "refused")
    stored = fetch_all(s3.url, tmp_path / "stored")
    assert list(stored.iterdir())
    assert list((tmp_path / "cache").rglob("model.keras"))
    assert not find_traces(stored, tmp_path / "cache", printed, server.home)


def keep(ended: Ended, file: Path) -> None:
    file.write_text(ended.out + ended.err)


@pytest.mark.slow
def test_a_block_of_the_prefect_server_holds_the_credentials_of_a_run_and_of_its_dask_workers(
    block: RemoteFileSystem, server: Server, s3: Bucket, drawn_dump: Path, tmp_path: Path, printed: Path
):
    use_storage_block()
    Objects(Url(s3.url)).upload(drawn_dump, "drawn.zip")
    dump, store = f"{s3.url}/drawn.zip", f"{s3.url}/store"
    runner = "dask,workers=1,portion_images=50"
    given = ["--dump", dump, "--store", store, "--runner", runner]
    ended = server.thaw(*TRAIN, *given, THAW_CACHE=str(tmp_path / "cache"))
    keep(ended, printed / "train")
    assert ended.code == 0, ended.err
    assert read_registry(Store(store)).find("v1").run == ended.json["run"]
    stored = fetch_all(s3.url, tmp_path / "stored")
    assert not find_traces(stored, tmp_path / "cache", printed, server.home)


def test_a_block_gives_file_systems_its_settings(block: RemoteFileSystem, s3: Bucket):
    use_storage_block()
    assert conf["s3"] == conf["s3a"] == block.settings
    Objects(Url(s3.url)).replace("one", b"1")
    assert Objects(Url(f"s3a://{s3.url[5:]}")).read("one") == b"1"
    block.settings = {"key": "another", "anon": False}
    block.save("thaw", overwrite=True)
    use_storage_block()
    assert conf["s3"]["key"] == "another"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("remote-file-system/none", "is not there"),
        ("no-such-type/thaw", "is not there"),
        ("thaw", "can't be read"),
        ("local-file-system/here", "is a LocalFileSystem"),
        ("remote-file-system/nothing-speaks-it", "which nothing installed speaks"),
    ],
)
def test_a_block_that_is_no_good_is_named_without_a_word_of_what_it_holds(
    block: RemoteFileSystem, monkeypatch: pytest.MonkeyPatch, name: str, said: str
):
    LocalFileSystem().save("here", overwrite=True)
    unknown = RemoteFileSystem(basepath="unheard-of://bucket", settings=block.settings)
    unknown.save("nothing-speaks-it", overwrite=True)
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(BadConfig, match=f"the block '{name}', which {VARIABLE} names, .*{said}") as caught:
        use_storage_block()
    assert "Remote File System" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_without_a_block_fsspecs_own_settings_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(conf, "s3", {"key": "kept"})
    use_storage_block()
    assert conf["s3"] == {"key": "kept"}
