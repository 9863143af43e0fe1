"""Where a dump or a store lies: on a disk at hand, or in an object store, by a URL as fsspec takes them."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from thaw.errors import BadConfig

_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL | re.IGNORECASE)
_EXAMPLES = {"s3": "an AWS profile or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "gcloud's login"}


class Url(str):
    """The URL of a folder or an object, such as s3://bucket/folder, without credentials."""

    @property
    def protocol(self) -> str:
        return self.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.rstrip("/").rpartition("/")[2]


def parse_location(text: str | Path) -> Path | Url:
    """A whole path, or a URL where the text is one. `file://` is a path like any other.

    Raises:
        BadConfig: the URL carries credentials, or lacks a bucket.
    """
    parsed = parse_source(text)
    return parsed if isinstance(parsed, Url) else parsed.expanduser().absolute()


def parse_source(text: str | Path) -> Path | Url:
    """As `parse_location`, but a path stays as it is written, for answers to be told by."""
    if isinstance(text, Url):
        return text
    if not isinstance(text, str | Path):
        raise ValueError(f"a path or a URL is text. Received: {text!r}")
    match = _URL.fullmatch(str(text))
    protocol = match["protocol"].lower() if match else "file"
    if match is None or protocol in ("file", "local"):
        return Path(match["rest"] if match else text)
    rest = match["rest"].rstrip("/")
    bucket = rest.split("/")[0]
    # A secret key may hold a slash, so that the @ comes later; after a host a colon is followed by a port.
    carries_some = re.search(r"@|:(?!\d+$)", bucket) or (":" in bucket and "@" in rest)
    if carries_some or "?" in rest or "#" in rest:
        # The text itself is left out: it may hold a secret.
        usual = _EXAMPLES.get(protocol, "what fsspec's settings say")
        raise BadConfig(
            f"a {protocol}:// URL holds a bucket and a folder and nothing else; credentials come from their usual "
            f"places ({usual}), where no report or log can show them."
        )
    if not bucket:
        raise BadConfig(f"{protocol}:// needs a bucket. Received: '{text}'.")
    return Url(f"{protocol}://{rest}")


def choose_location(given: str | Path | None, variable: str, default: str) -> Path | Url:
    """What was given, or what the environment variable names, or the default."""
    return parse_location(given or os.environ.get(variable) or default)


# A path or a URL as a setting: text in, text out.
_AS_TEXT = (PlainSerializer(str), WithJsonSchema({"type": "string", "format": "path"}))
Location = Annotated[Path | Url, PlainValidator(parse_location), *_AS_TEXT]
Source = Annotated[Path | Url, PlainValidator(parse_source), *_AS_TEXT]
