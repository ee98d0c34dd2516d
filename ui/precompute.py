"""The example photos, and the stored result of the first one, which a first visit shows before the network ran.

``python -m ui.precompute`` makes that result anew; it is needed when the bundled checkpoint or the payload has changed.
"""

from __future__ import annotations

import gzip
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from pem.conditions import conditions
from pem.load import DEFAULT_WEIGHTS
from ui.engine import TASKS, Engine
from ui.networks import load_networks
from ui.viewer.payload import reading_payload
from ui.viewer.server import open_result

ASSETS = Path(__file__).parent.parent / "assets"
EXAMPLES = sorted((ASSETS / "examples").glob("*.jpg"))
FIRST_EXAMPLE = "cat"
FILE = ASSETS / "examples" / f"{FIRST_EXAMPLE}.json.gz"


def load() -> dict[str, Any]:
    """The stored value of the viewer: the first example as the bundled checkpoint sees it."""
    return json.loads(gzip.decompress(FILE.read_bytes()))


def make() -> dict[str, Any]:
    """Computes that value on the CPU."""
    model, baseline = load_networks("default", "cpu")
    engine = Engine(model, examples=EXAMPLES, baseline=baseline)
    result_id = f"example-{FIRST_EXAMPLE}"
    for _ in range(5):  # the first passes through a network are slower than any later one
        engine.result(result_id)
        engine.results.clear()
    value = open_result(engine, result_id, engine.model.config.task)
    result = engine.result(result_id)
    value["readings"] = [reading_payload(engine.read(result, task, size=result.shown_size)) for task in TASKS]
    value["weights_sha256"] = sha256(DEFAULT_WEIGHTS.read_bytes()).hexdigest()
    value["measured_on"] = conditions("cpu")["device"]
    return value


if __name__ == "__main__":
    FILE.write_bytes(gzip.compress(json.dumps(make()).encode(), mtime=0))
    print(f"{FILE.name}: {FILE.stat().st_size / 1000:.0f} kB")
