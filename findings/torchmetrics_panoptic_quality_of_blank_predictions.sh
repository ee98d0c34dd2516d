#!/usr/bin/env bash
# torchmetrics' PanopticQuality shrinks a labelled object to the part that the prediction does not leave blank.
#
# In panoptic quality (arXiv 1801.00868) only pixels that the LABELS leave void are passed over. What a model leaves blank
# inside an object lowers the IoU. torchmetrics takes blank pixels of the prediction for void as well, in both areas.
#
# Seen with torchmetrics 1.9.0: an object of 8 pixels, of which the prediction finds 5 and leaves 3 blank, has the quality
# 1.0. By the definition its IoU is 5/8 = 0.625. panopticapi's evaluator gives 0.625.
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.11.0 numpy 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
import torch
from torchmetrics.detection import PanopticQuality

BLANK = 9  # a category that the metric was not told of; it maps those to void where asked to
quality = PanopticQuality(things={0}, stuffs={1}, allow_unknown_preds_category=True)
labels = torch.tensor([[[0, 1]] * 8])[None]  # (category, instance) of 1 x 8 pixels
found = labels.clone()
found[0, 0, 5:] = torch.tensor([BLANK, 0])
value = float(quality(found, labels))
print(f"5 of 8 pixels found, 3 blank: panoptic quality {value}")
assert value == 1.0, value
PY
