"""Our counts beside those of the paper (arXiv 2402.19422; its tables of results are in paper_results.csv)."""

from __future__ import annotations

import argparse

import pem
from analysis.arguments import add_shared
from analysis.charts import paper_costs
from analysis.closed_forms import mask_product_macs
from analysis.flops import count_macs
from analysis.peers import NUM_QUERIES, count_peer, peers
from analysis.results import Report, Row

# Height and width. The paper names none for its costs; these are what its numbers follow from.
SIZES = {
    ("cityscapes", "panoptic"): (1024, 2048),
    ("cityscapes", "semantic"): (1024, 2048),
    ("ade20k", "panoptic"): (640, 640),
    ("ade20k", "semantic"): (512, 512),
}
NUM_CLASSES = {"cityscapes": 19, "ade20k": 150}
MASKFORMER_LAYERS = 6

# Disagreements of more than 1 %, and why they are likely.
WITHOUT_MAPS = "The paper's number is that of the network without class maps."
ONE_PRODUCT = "We count 0.4 more, the size of one of the seven mask products."
REASONS = {
    ("ade20k", "panoptic", "MaskFormer", "R50"): "Another network: six encoder layers in the pixel decoder (45.0 M "
    "parameters), of which Hugging Face's has none.",
    ("cityscapes", "semantic", "PEM", "STDC1"): WITHOUT_MAPS,
    ("cityscapes", "semantic", "PEM", "STDC2"): WITHOUT_MAPS,
    ("ade20k", "semantic", "PEM", "STDC1"): ONE_PRODUCT,
    ("ade20k", "semantic", "PEM", "STDC2"): ONE_PRODUCT,
    ("ade20k", "semantic", "PEM", "R50"): "The paper repeats its panoptic row, frames per second included: the network "
    "at 640x640, without class maps.",
}


def compare(published: Row) -> Row:
    """GMACs of a row of the paper that has a cost, and ours; None where it is not built here: ``remark`` says why.

    ``network`` makes a full-size mask product at every depth, as published code does. ``class_maps`` is the product of
    class probabilities with masks at the size of the image, which only semantic rows of the paper contain.
    """
    dataset, task, method, backbone = (published[name] for name in ("dataset", "task", "method", "backbone"))
    height, width = size = SIZES[dataset, task]
    paper_gmacs = float(published["gmacs"])
    gmacs, params, remark = _count(dataset, task, method, backbone, size)
    maps = total = difference = None
    if gmacs is not None:
        maps = mask_product_macs(NUM_QUERIES, height * width, NUM_CLASSES[dataset]) / 1e9 if task == "semantic" else 0.0
        total = gmacs + maps
        difference = 100 * (total / paper_gmacs - 1)
        remark = "agrees" if abs(difference) <= 1 else REASONS.get((dataset, task, method, backbone), "unexplained")
    return {
        "dataset": dataset,
        "task": task,
        "method": method,
        "backbone": backbone,
        "size": f"{height}x{width}",
        "paper_gmacs": paper_gmacs,
        "network_gmacs": gmacs,
        "class_maps_gmacs": maps,
        "total_gmacs": total,
        "difference_percent": difference,
        "paper_params_m": float(published["params_m"]) if published["params_m"] else None,
        "params_m": params / 1e6 if params else None,
        "remark": remark,
    }


def _count(
    dataset: str, task: str, method: str, backbone: str, size: tuple[int, int]
) -> tuple[float | None, int | None, str]:
    """GMACs and parameters of the network, or None and the reason."""
    if method == "PEM":
        cost = count_macs(pem.get_config(f"{dataset}-{task}-{backbone.lower()}"), size)
        return cost.reference_total_gmacs, cost.total_params, ""
    peer = {peer.name: peer for peer in peers()}.get(f"{method} {backbone}")
    if peer is None:
        return None, None, "This network is not built here."
    if peer.missing:
        return None, None, peer.missing
    gmacs, params = count_peer(peer, size)
    if method == "MaskFormer":
        # Hugging Face's makes the last mask only.
        gmacs += (MASKFORMER_LAYERS - 1) * mask_product_macs(NUM_QUERIES, size[0] * size[1] // 16) / 1e9
    return gmacs, params, ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared(parser, out=None)


def run(args: argparse.Namespace) -> None:
    """A row for each row of the paper that has a cost; they are kept where ``out`` says."""
    shown = ("dataset", "task", "method", "backbone", "size", "paper_gmacs", "total_gmacs", "class_maps_gmacs")
    report = Report(*shown, "difference_percent", "remark", device="meta", out=args.out)
    for rows in paper_costs().values():
        for published in rows:
            report.add(compare(published))
    if args.out:
        report.save("paper")
