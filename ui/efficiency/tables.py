"""Accuracy and cost side by side in Markdown, from stored results and from the paper's tables."""

from __future__ import annotations

from operator import itemgetter

from analysis.charts import paper_rows
from analysis.results import RESULTS, load, machine, markdown_table
from analysis.tables import precisions, variants

SOURCE = "[arXiv 2402.19422](https://arxiv.org/abs/2402.19422)"
NETWORK = itemgetter("dataset", "task", "method", "backbone")


def masked_baseline_table() -> str:
    """What PEM and its masked baseline score and cost: after equally many steps, and as they are bundled."""
    result = load(RESULTS / "twins.json")
    about = result["conditions"]
    return (
        f"The bundled model beside its masked baseline, on the validation photos: scores in percent with 95 % "
        f"intervals, PQ at the thresholds that are best for each, gains over masked attention photo by photo; one "
        f"photo of {about['size']} px on {about['device']}, {about['threads']} threads, in turns. The bundled model "
        f"was trained for more steps than its masked baseline (the “twin” below). PEM after as many steps as the "
        f"baseline is the fair comparison of the attentions. `{about['command']}`\n\n{variants(result)}"
    )


def precisions_table() -> str:
    """What each precision of an exported file scores and costs, on each machine where that was measured."""
    parts = [
        "The bundled model exported in each precision, on the validation photos, and one photo of 288x384 px in turns "
        "with PyTorch, which is 1. Prototypes are compared with PyTorch's on the example photos."
    ]
    for file in sorted(RESULTS.glob("precisions_*.json")):
        result = load(file)
        parts.append(f"{machine(result['conditions'])}: `{result['conditions']['command']}`\n\n{precisions(result)}")
    return "\n\n".join(parts)


def paper_table() -> str:
    """Mask2Former and PEM with the same backbone, as far as the paper has both, and what that amounts to."""
    pairs = [
        (benchmark, baseline, row)
        for benchmark, rows in paper_rows().items()
        for baseline in rows
        for row in rows
        if (baseline["method"], row["method"]) == ("Mask2Former", "PEM") and baseline["backbone"] == row["backbone"]
    ]
    gains = [float(pem["value"]) - float(baseline["value"]) for _, baseline, pem in pairs]
    table = []
    for (benchmark, baseline, pem), gain in zip(pairs, gains):
        table += [
            {"benchmark": f"{benchmark}, {pem['metric']}", "network": baseline["network"], "score": baseline["value"]}
            | {"GMACs": baseline["gmacs"], "FPS": baseline["fps_paper"], "weights": f"{baseline['params_m']} M"},
            {"benchmark": "", "network": pem["network"], "score": f"{pem['value']} ({gain:+.1f})"}
            | {
                "GMACs": f"{pem['gmacs']} ({_ratio(pem, baseline, 'gmacs'):.2f}x)",
                "FPS": f"{pem['fps_paper']} ({_ratio(pem, baseline, 'fps_paper'):.1f}x)",
                "weights": f"{pem['params_m']} M",
            },
        ]
    macs, fps = (sorted(_ratio(pem, baseline, key) for _, baseline, pem in pairs) for key in ("gmacs", "fps_paper"))
    counts = load(RESULTS / "paper_macs.json")["rows"]
    remarks = {NETWORK(row): row["remark"] for row in counts}
    notes = [
        f"{benchmark}, {row['network']}: {remarks[NETWORK(row)]}"
        for benchmark, *both in pairs
        for row in both
        if remarks[NETWORK(row)] != "agrees"
    ]
    return (
        f"In the paper PEM runs at **{fps[0]:.1f} to {fps[-1]:.1f} times the speed** of Mask2Former with the same "
        f"backbone, makes {macs[0]:.2f} to {macs[-1]:.2f} of its multiply-accumulates, and its PQ or mIoU differs by "
        f"{min(gains):+.1f} to {max(gains):+.1f} points. All numbers are the paper's, {SOURCE}, also the frames per "
        f"second on its machine; what it calls FLOPs are MACs."
        f"\n\n{markdown_table(table)}\n\nWhere our own count differs, it is likely for this reason. {' '.join(notes)}"
    )


def _ratio(row: dict[str, str], baseline: dict[str, str], key: str) -> float:
    return float(row[key]) / float(baseline[key])
