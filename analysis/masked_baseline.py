"""The bundled model beside its masked baseline, both trained: what they score and cost, also in half precision.

``python -m analysis masked_baseline --data FOLDER``. The masked baseline took over all of the model but the
cross-attention, and was then trained on, as the model card tells. So was PEM. ``--equal`` adds PEM's weights after as
many steps as the baseline had.
"""

from __future__ import annotations

import argparse

import pem
from analysis.ablations import costs, in_percent, scores
from analysis.arguments import add_shared
from analysis.results import RESULTS, Report
from pem.devices import has_bfloat16
from pem.load import DEFAULT_WEIGHTS
from pem.training.data import open_split

BASELINE = "masked attention"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="default", help="what pem.load_model takes (default: %(default)s)")
    parser.add_argument("--baseline", default=DEFAULT_WEIGHTS.with_stem("default-masked"), help="likewise")
    parser.add_argument("--equal", help="likewise: the model when it had been trained for as long as the baseline")
    out = RESULTS / "twins.json"  # the name that the stored result has had from the start
    add_shared(parser, data=None, size=(288, 384), repeats=20, device="auto", out=out)


def run(args: argparse.Namespace) -> None:
    """A row for each model in each precision."""
    report = Report("variant", "miou", "pq", "median_ms", "peak_mib", "gmacs", device=args.device, out=args.out)
    paths = {"PEM": args.model, "PEM, as long as its baseline": args.equal, BASELINE: args.baseline}
    models = {name: pem.load_model(path, device=args.device) for name, path in paths.items() if path}
    val_split = open_split(args.data, "val", models["PEM"].config)

    precisions = ("float32", "bfloat16") if has_bfloat16(args.device) else ("float32",)
    networks = {
        f"{name}, {precision}": (model, precision) for precision in precisions for name, model in models.items()
    }
    cost = costs(networks, args.size, args.repeats, args.device)
    found = {variant: scores(model, val_split, precision) for variant, (model, precision) in networks.items()}
    for variant, (_, precision) in networks.items():
        baseline = f"{BASELINE}, {precision}"
        # On the same photos, so that what is easy or hard about them falls out.
        gains = {f"{key}_gain": score - found[baseline][key] for key, score in found[variant].items()}
        report.add(
            {"variant": variant} | in_percent(found[variant] | (gains if variant != baseline else {})) | cost[variant]
        )
    report.conditions |= {"batch": 1, "size": "x".join(map(str, args.size))}
    report.save("masked_baseline")
