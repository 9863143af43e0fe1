"""Where training stands, kept beside it: a run that was cut off goes on from there."""

import logging
import time
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from thaw.device import prepare_keras
from thaw.records import History
from thaw.store import Store

logger = logging.getLogger(__name__)

# Epochs of a head take a fraction of a second; saving after each would cost more than they do.
_JOURNAL_SECONDS = 5.0


@dataclass(kw_only=True)
class TrainingState:
    """Where training stands: the network as it is, its history, and the best weights so far."""

    network: Any
    history: History
    best: list[np.ndarray]


class Journal:
    """Where training stands: `journals/<address>/<epochs>/`, the newest counts."""

    def __init__(self, store: Store, address: str):
        self._store = store
        self._address = address
        self._kept = time.monotonic()

    def read(self) -> TrainingState | None:
        for name in sorted(self._store.list("journals", self._address), reverse=True):
            keras = prepare_keras()
            entry = self._store.folder("journals", self._address, name)
            try:
                self._store.fetch("journals", self._address, name)
                network = keras.models.load_model(entry / "last.keras")
                with np.load(entry / "best.npz", allow_pickle=False) as arrays:
                    best = [arrays[name] for name in arrays.files]
                history = History.from_json((entry / "history.json").read_bytes())
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self._store.set_aside(entry, str(error))
                continue
            logger.info("going on after epoch %d, where an earlier run was cut off", len(history.epochs))
            return TrainingState(network=network, history=history, best=best)
        return None

    def keep(self, state: TrainingState) -> None:
        if time.monotonic() - self._kept < _JOURNAL_SECONDS:
            return
        name = f"{len(state.history.epochs):06d}"
        with self._store.publish_folder("journals", self._address, name) as partial:
            state.network.save(partial / "last.keras")
            np.savez(partial / "best.npz", *state.best)
            (partial / "history.json").write_text(state.history.to_json(), encoding="utf-8")
        for older in self._store.list("journals", self._address):
            if older < name:
                self._store.discard("journals", self._address, older)
        self._kept = time.monotonic()

    def clear(self) -> None:
        self._store.discard("journals", self._address)
