"""Where the stages of a run are computed: a setting of the run, of which no result knows."""

import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from thaw.section import Section

_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://.+")


class Runner(Section):
    """Where a run computes. A word stands for a kind, and an address for a Dask cluster."""

    kind: Literal["local", "pools", "dask"] = Field(
        "local",
        description="local: every stage in this run; pools: GPU stages as runs of the pool thaw-gpu, what is missing "
        "of the features in portions side by side; dask: portions as tasks of a Dask cluster.",
    )
    address: str | None = Field(
        None,
        description="Of the Dask scheduler, such as tcp://host:8786; when empty, what Dask's own settings say, else a "
        "cluster on this machine.",
    )
    workers: int | None = Field(
        None, ge=1, description="Of a Dask cluster on this machine; as many as Dask thinks right, when empty."
    )
    portion_images: int | None = Field(
        None,
        ge=1,
        description="A worker is given at most so many images at a time. When empty, there are 32 portions, or four "
        "for each worker that is online, of 2,048 rows or more.",
    )
    portion_megabytes: int = Field(20_000, ge=1, description="And at most so many 10^6 bytes of features.")
    stalled_seconds: int = Field(
        120, ge=1, description="What a worker says nothing about for so long is given to another one as well."
    )

    @model_validator(mode="after")
    def _check_settings_of_dask(self) -> Self:
        if self.address and self.kind != "dask":
            raise ValueError(
                f"only runner 'dask' has an address. Received: {self.address!r} for {self.kind!r}."
            )
        if self.workers and (self.address or self.kind != "dask"):
            raise ValueError(
                "only a Dask cluster on this machine has workers to be started by a runner. "
                f"Received: {self.workers} for {self.address or self.kind!r}."
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _read_word(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        return {"kind": "dask", "address": given} if _ADDRESS.fullmatch(given) else {"kind": given}
