"""The first example, segmented ahead: ``python -m ui.precompute`` after the bundled checkpoint or the payload changed.

A first visit then paints at once, before the network ran.
"""

from __future__ import annotations

import gzip
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pem
from pem.conditions import conditions
from pem.weights import DEFAULT_WEIGHTS
from ui.engine import TASKS, Engine, load_twin
from ui.viewer.payload import reading_payload
from ui.viewer.server import open_result

ASSETS = Path(__file__).parent.parent / "assets"
EXAMPLES = sorted((ASSETS / "examples").glob("*.jpg"))
FIRST_EXAMPLE = "cat"
FILE = ASSETS / "examples" / f"{FIRST_EXAMPLE}.json.gz"


def load() -> dict[str, Any]:
    """The viewer's value for the first example, as the bundled checkpoint sees it."""
    return json.loads(gzip.decompress(FILE.read_bytes()))


def make() -> dict[str, Any]:
    model = pem.load_model("default", device="cpu")
    engine = Engine(model, examples=EXAMPLES, twin=load_twin(model, "default"))
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
