"""Accuracy and cost side by side in Markdown, from stored results and from the paper's tables."""

from __future__ import annotations

import json
from operator import itemgetter

from analysis.results import markdown_table
from analysis.tables import variants
from ui.efficiency.charts import RESULTS, paper_rows

SOURCE = "[arXiv 2402.19422](https://arxiv.org/abs/2402.19422)"
NETWORK = itemgetter("dataset", "task", "method", "backbone")


def twins_table() -> str:
    """What PEM and its masked twin score and cost: when both had been trained alike, and as they are bundled."""
    result = json.loads((RESULTS / "twins.json").read_text(encoding="utf-8"))
    about = result["conditions"]
    return (
        f"The bundled model beside its twin with masked attention, on the validation photos: scores in percent with "
        f"95 % intervals, PQ at the thresholds that are best for each, gains over masked attention photo by photo; "
        f"one photo of {about['size']} px on {about['device']}, {about['threads']} threads, in turns. The bundled "
        f"model was trained on after both had had equally many steps, the twin was not: PEM after as many steps is "
        f"what compares the attentions fairly. `{about['command']}`\n\n{variants(result)}"
    )


def paper_table() -> str:
    """Mask2Former and PEM with the same backbone, as far as the paper has both, and what that amounts to."""
    pairs = [
        (benchmark, rival, row)
        for benchmark, rows in paper_rows().items()
        for rival in rows
        for row in rows
        if (rival["method"], row["method"]) == ("Mask2Former", "PEM") and rival["backbone"] == row["backbone"]
    ]
    gains = [float(pem["value"]) - float(rival["value"]) for _, rival, pem in pairs]
    table = []
    for (benchmark, rival, pem), gain in zip(pairs, gains):
        table += [
            {"benchmark": f"{benchmark}, {pem['metric']}", "network": rival["network"], "score": rival["value"]}
            | {"GMACs": rival["gmacs"], "FPS": rival["fps_paper"], "weights": f"{rival['params_m']} M"},
            {"benchmark": "", "network": pem["network"], "score": f"{pem['value']} ({gain:+.1f})"}
            | {
                "GMACs": f"{pem['gmacs']} ({_ratio(pem, rival, 'gmacs'):.2f}x)",
                "FPS": f"{pem['fps_paper']} ({_ratio(pem, rival, 'fps_paper'):.1f}x)",
                "weights": f"{pem['params_m']} M",
            },
        ]
    macs, fps = (sorted(_ratio(pem, rival, key) for _, rival, pem in pairs) for key in ("gmacs", "fps_paper"))
    counts = json.loads((RESULTS / "paper_macs.json").read_text(encoding="utf-8"))["rows"]
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


def _ratio(row: dict[str, str], rival: dict[str, str], key: str) -> float:
    return float(row[key]) / float(rival[key])
