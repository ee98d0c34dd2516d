#!/usr/bin/env bash
# panopticapi cannot score data in which no thing occurs, such as scenes of road, sky and water alone.
#
# pq_compute averages over all classes, over the things and over the stuff. Where no class of one of these groups occurs in
# labels or predictions, it divides by zero and raises ZeroDivisionError, though the other averages are defined.
#
# Seen with panopticapi-lite 0.2.0 (panopticapi's own evaluator). hotcoco 1.3.0 gives PQ 1 for all and stuff, and counts
# 0 classes of things. Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check panopticapi-lite==0.2.0 hotcoco==1.3.0 2>/dev/null
cd "$folder"
cat > scene.py <<'PY'
"""One photo that is road all over, and a prediction that says so."""
import contextlib
import io
import json
import os

import numpy as np
from hotcoco import panoptic
from panopticapi.evaluation import pq_compute
from PIL import Image

if __name__ == "__main__":
    os.mkdir("road")
    ids = np.zeros((8, 8, 3), np.uint8)
    ids[..., 0] = 5
    Image.fromarray(ids).save("road/0.png")
    segment = {"id": 5, "category_id": 1, "iscrowd": 0, "area": 64, "bbox": [0, 0, 8, 8]}
    content = {
        "images": [{"id": 0, "file_name": "0.jpg", "height": 8, "width": 8}],
        "annotations": [{"image_id": 0, "file_name": "0.png", "segments_info": [segment]}],
        "categories": [{"id": 1, "name": "road", "isthing": 0}, {"id": 2, "name": "car", "isthing": 1}],
    }
    with open("road.json", "w") as file:
        json.dump(content, file)
    other = panoptic.PanopticEval("road.json", "road.json")
    other.evaluate()
    groups = {name: (found["pq"], found["n"]) for name, found in other.results().items() if name in ("All", "Stuff", "Things")}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            pq_compute("road.json", "road.json", "road", "road")
        error = None
    except ZeroDivisionError as raised:
        error = raised
    print(f"panopticapi: {error!r}; hotcoco (PQ, classes): {groups}")
    assert error is not None and groups["All"] == groups["Stuff"] == (1.0, 1) and groups["Things"][1] == 0
PY
"$folder/venv/bin/python" scene.py
