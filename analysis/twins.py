"""The bundled model beside its masked-attention twin, both trained: what they score and cost, also in half precision.

``python -m analysis.twins --data FOLDER``. The twin is no run of its own from the start: it took over all of the model
but the cross-attention, and was trained on, as the model card tells. So was PEM; where its weights after equally many
steps are at hand (``--equal``), they stand beside.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pem
from analysis.ablations import costs, in_percent, scores
from analysis.arguments import json_file, natural, one_sentence, parse_device, parse_size, title
from analysis.results import RESULTS, save_tables
from pem.conditions import conditions
from pem.layers import has_bfloat16
from pem.training.data import open_split
from pem.weights import DEFAULT_WEIGHTS

TWIN = "masked attention"


@one_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.twins", description=title(__doc__))
    parser.add_argument("--data", required=True, type=Path, help="folder with panoptic_val.json and its photos")
    parser.add_argument("--model", default="default", help="what pem.load_model takes (default: %(default)s)")
    parser.add_argument("--twin", default=DEFAULT_WEIGHTS.with_stem("default-masked"), help="likewise")
    parser.add_argument("--equal", help="likewise: the model when it had been trained for as long as the twin")
    parser.add_argument("--size", type=parse_size, default=(288, 384), metavar="HEIGHTxWIDTH", help="for the costs")
    parser.add_argument("--repeats", type=natural, default=20, help="for the costs")
    parser.add_argument("--device", type=parse_device, default="auto")
    parser.add_argument("--out", type=json_file, default=RESULTS / "twins.json")
    arguments = parser.parse_args()
    device = arguments.device
    paths = {"PEM": arguments.model, "PEM, as long as its twin": arguments.equal, TWIN: arguments.twin}
    models = {name: pem.load_model(path, device=device) for name, path in paths.items() if path}
    val_split = open_split(arguments.data, "val", models["PEM"].config)

    precisions = ("float32", "bfloat16") if has_bfloat16(device) else ("float32",)
    networks = {
        f"{name}, {precision}": (model, precision) for precision in precisions for name, model in models.items()
    }
    cost = costs(networks, arguments.size, arguments.repeats, device)
    found = {variant: scores(model, val_split, precision) for variant, (model, precision) in networks.items()}
    rows = []
    for variant, (_, precision) in networks.items():
        twin = f"{TWIN}, {precision}"
        # On the same photos, so that what is easy or hard about them falls out.
        gains = {f"{key}_gain": score - found[twin][key] for key, score in found[variant].items()}
        row = in_percent(found[variant] | (gains if variant != twin else {}))
        rows.append({"variant": variant, **row, **cost[variant]})
    about = {"batch": 1, "size": "x".join(map(str, arguments.size))}
    save_tables({"conditions": conditions(device) | about, "rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
