"""The bundled model beside its masked-attention twin, both trained: what they score and cost, also in half precision.

``python -m analysis.twins --data FOLDER``. The twin is no run of its own from the start: it took over all of the model
but the cross-attention, and was trained on, as the model card tells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pem
from analysis.ablations import costs, scores
from analysis.arguments import natural, one_sentence, parse_device, parse_size
from analysis.latency import at_precision
from analysis.results import RESULTS, save_tables
from pem.conditions import conditions
from pem.training.data import open_split
from pem.weights import DEFAULT_WEIGHTS


@one_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.twins", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with panoptic_val.json and its photos")
    parser.add_argument("--model", default="default", help="what pem.load_model takes (default: %(default)s)")
    parser.add_argument("--twin", default=DEFAULT_WEIGHTS.with_stem("default-masked"), help="likewise")
    parser.add_argument("--size", type=parse_size, default=(288, 384), metavar="HEIGHTxWIDTH", help="for the costs")
    parser.add_argument("--repeats", type=natural, default=20, help="for the costs")
    parser.add_argument("--device", type=parse_device, default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "twins.json")
    arguments = parser.parse_args()
    names = {"PEM": arguments.model, "masked attention": arguments.twin}
    models = {name: pem.load_model(path, device=arguments.device) for name, path in names.items()}
    val_split = open_split(arguments.data, "val", models["PEM"].config)
    device = arguments.device
    networks = {
        name if precision == "float32" else f"{name}, {precision}": (model, precision)
        for precision in ("float32", "bfloat16")
        for name, model in models.items()
    }
    cost = costs(networks, arguments.size, arguments.repeats, device)
    rows = []
    for name, (model, precision) in networks.items():
        with at_precision(precision, device):
            rows.append({"variant": name, **scores(model, val_split), **cost[name]})
    about = {"batch": 1, "size": "x".join(map(str, arguments.size))}
    save_tables({"conditions": conditions(device) | about, "rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
