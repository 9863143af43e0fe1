"""What this machine is, and whether a run would find here what it needs."""

import os
import platform
from typing import Any

from thaw.backbone import load_backbone
from thaw.config import BackboneConfig
from thaw.device import list_devices
from thaw.errors import ThawError
from thaw.precision import choose_precision
from thaw.release import list_versions
from thaw.store import Store


def examine_machine(settings: BackboneConfig, store: Store) -> dict[str, Any]:
    """Devices, precision and why, weights, store and versions, by name.

    `problems` lists what would stop a run; it is empty on a machine that is ready.
    """
    problems = []
    facts: dict[str, Any] = {
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "devices": list_devices(),
        "precision": "unknown",
        "precision_reason": "the store that keeps it can't be written",
        "backbone": settings.name,
        "weights": f"{settings.weights}: not usable",
        "store": store.address,
        "disk_left_gb": round(store.free_bytes() / 1e9, 1),
        "versions": list_versions(),
        "prefect_api": os.environ.get(
            "PREFECT_API_URL", "none set: a temporary server runs with the command"
        ),
        "problems": problems,
    }
    checks = (
        lambda: facts.update(weights=_describe_weights(settings, store)),
        lambda: facts.update(_describe_precision(settings, store)),
    )
    for check in checks:
        try:
            check()
        except ThawError as error:
            problems.append(str(error))
    return facts


def _describe_precision(settings: BackboneConfig, store: Store) -> dict[str, str]:
    store.check_writable()
    chosen = choose_precision(settings.precision, store)
    return {"precision": chosen.name, "precision_reason": chosen.reason}


def _describe_weights(settings: BackboneConfig, store: Store) -> str:
    found = load_backbone(settings, store).value
    return f"{found.weights}, SHA-256 {found.weights_sha256[:12]}"
