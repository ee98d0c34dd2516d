#!/usr/bin/env bash
# torchmetrics returns a number without an axis where "per class" is asked for and there is one class.
#
# With two classes, MeanIoU(per_class=True) gives a tensor of shape [2], and PanopticQuality(return_per_class=True) one of
# shape [1, 2]. With one class, [1] and [1, 1] would follow. Both give shape []: every Metric squeezes a result that has a
# single element. Code that loops over the classes then fails with "iteration over a 0-d tensor".
#
# Seen with torchmetrics 1.9.0 and torch 2.11.0. Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.11.0 numpy 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
import torch
from torchmetrics.detection import PanopticQuality
from torchmetrics.segmentation import MeanIoU

shapes = {}
for count in (1, 2):
    classes = torch.arange(16).view(1, 4, 4) % count
    iou = MeanIoU(num_classes=count, per_class=True, input_format="index")(classes, classes)
    labels = torch.stack((classes, torch.zeros_like(classes)), dim=-1)  # (category, instance)
    quality = PanopticQuality(things=set(range(count)), stuffs=set(), return_per_class=True)(labels, labels)
    shapes[count] = [list(iou.shape), list(quality.shape)]
    print(f"{count} class{'es' * (count > 1)}: MeanIoU {shapes[count][0]}, PanopticQuality {shapes[count][1]}")
assert shapes == {1: [[], []], 2: [[2], [1, 2]]}, shapes
PY
