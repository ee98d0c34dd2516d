"""What a file says of the network in it, so that it can be used without anything else."""

from __future__ import annotations

import dataclasses
import json

from pem.categories import categories_for
from pem.config import PEMConfig
from pem.exported import FORMAT_VERSION
from pem.fastest import installed_version


def remarks(config: PEMConfig, precision: str, trace: bool) -> dict[str, str]:
    return {
        "pem_format": str(FORMAT_VERSION),
        "pem_version": installed_version("pem-studio"),
        "config": json.dumps(dataclasses.asdict(config)),
        "categories": json.dumps([dataclasses.asdict(category) for category in categories_for(config)]),
        "precision": precision,
        "trace": "yes" if trace else "no",
    }
