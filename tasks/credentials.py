"""Credentials of an object store from a Prefect block: what fsspec is told of it, in this process."""

import os
from typing import Any

from fsspec import get_filesystem_class
from fsspec.config import conf
from prefect.blocks.core import Block
from prefect.filesystems import RemoteFileSystem

from thaw.errors import BadConfig

VARIABLE = "THAW_STORAGE_BLOCK"
_HOW = (
    "It names a block of the Prefect server of type Remote File System, such as remote-file-system/thaw, whose "
    "settings are what fsspec takes: for s3:// key, secret and endpoint_url. deployments/README.md says how it is made."
)


def use_storage_block() -> None:
    """Let file systems of the block's protocol, opened from now on, have its settings.

    The block is the one that THAW_STORAGE_BLOCK names; without that nothing changes. What is in the block goes
    before what fsspec's own configuration says. It is read anew each time, so that new credentials are taken up.

    Raises:
        BadConfig: there is no such block, or it is no settings of a file system. No message holds any of them.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return
    block = _load(name)
    protocol = block.basepath.partition("://")[0]
    try:
        known = get_filesystem_class(protocol).protocol
    except (ImportError, ValueError):
        raise BadConfig(
            f"the block '{name}', which {VARIABLE} names, is of {protocol}://, which nothing installed speaks. {_HOW}"
        ) from None
    for each in [known] if isinstance(known, str) else known:
        conf[each] = {**conf.get(each, {}), **block.settings}


def _load(name: str) -> RemoteFileSystem:
    said: str
    try:
        block: Any = Block.load(name)
    except ValueError as error:
        # A block that is there but can't be read is told of with what it holds.
        said = "is not there" if "Unable to find block document" in str(error) else "can't be read"
    except Exception as error:
        said = f"can't be read ({type(error).__name__})"
    else:
        if isinstance(block, RemoteFileSystem):
            return block
        said = f"is a {type(block).__name__}"
    raise BadConfig(f"the block '{name}', which {VARIABLE} names, {said}. {_HOW}")
