#!/usr/bin/env bash
# Two crowds of one class in an image: only the one that the JSON lists last excuses predictions.
#
# COCO's panoptic format marks a region of many things with iscrowd 1. The evaluator does not count a prediction as wrong
# that lies mostly in void or in a crowd of its class. One would expect the order of two crowds in segments_info not to
# matter. It does: the evaluator keeps one crowd per class in a dictionary, and the last one replaces the others.
#
# Seen with panopticapi-lite 0.2.0 (panopticapi's own evaluator) and hotcoco 1.3.0, which match each other:
#   large crowd listed last:   0 false positives; the class is not judged, PQ of all things is 1
#   large crowd listed first:  1 false positive; the class has PQ 0, and that of all things is 0.5
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check panopticapi-lite==0.2.0 hotcoco==1.3.0 2>/dev/null
cd "$folder"
cat > scene.py <<'PY'
"""14 columns of nuts: a crowd of 10 and a crowd of 4 columns; then bench, and a bolt. The prediction is one nut over both
crowds, and right about the rest."""
import contextlib
import io
import json
import os

import numpy as np
from hotcoco import panoptic
from panopticapi.evaluation import pq_compute
from PIL import Image

CATEGORIES = [{"id": i, "name": name, "isthing": t} for i, name, t in ((1, "nut", 1), (2, "bench", 0), (3, "bolt", 1))]
IMAGE = {"id": 0, "file_name": "0.jpg", "height": 10, "width": 20}


def write(name, columns, listed):
    """Columns of ids, and (id, category, iscrowd) in the order of the JSON."""
    ids = np.tile(columns, (10, 1))
    os.makedirs(name, exist_ok=True)
    Image.fromarray(np.stack((ids, ids * 0, ids * 0), axis=2).astype(np.uint8)).save(f"{name}/0.png")
    segments = [
        {"id": i, "category_id": c, "iscrowd": k, "area": int((ids == i).sum()), "bbox": [0, 0, 1, 1]} for i, c, k in listed
    ]
    annotation = {"image_id": 0, "file_name": "0.png", "segments_info": segments}
    with open(f"{name}.json", "w") as file:
        json.dump({"images": [IMAGE], "annotations": [annotation], "categories": CATEGORIES}, file)


if __name__ == "__main__":
    write("found", [1] * 14 + [2] * 4 + [3] * 2, [(1, 1, 0), (2, 2, 0), (3, 3, 0)])
    large, small, rest = (10, 1, 1), (11, 1, 1), [(30, 2, 0), (40, 3, 0)]
    seen = []
    for order in ([small, large, *rest], [large, small, *rest]):
        write("truth", [10] * 10 + [11] * 4 + [30] * 4 + [40] * 2, order)
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = pq_compute("truth.json", "found.json", "truth", "found")
            other = panoptic.PanopticEval("truth.json", "found.json", gt_folder="truth", pred_folder="found")
            other.evaluate()
        nut = other.results()["per_class"][1]
        seen.append((theirs["Things"]["pq"], nut["fp"]))
        print(f"listed {[i for i, *_ in order]}: PQ of things by panopticapi {seen[-1][0]}, wrong nuts by hotcoco {seen[-1][1]}")
    assert seen == [(1.0, 0), (0.5, 1)], seen
PY
"$folder/venv/bin/python" scene.py
