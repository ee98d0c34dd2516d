"""The head of the page: what PEM is, what this model is, and which classes it knows."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

import torch

import pem
from analysis.results import RESULTS
from pem.categories import categories_for
from pem.cores import usable_cores

if TYPE_CHECKING:
    from pem.run import AnyPEM

BACKBONE_NAMES = {"resnet50": "ResNet-50", "tf_efficientnet_lite2": "EfficientNet-lite2"}
HEADER = """
<div class="title"><h1>PEM Studio</h1><span class="{kind}">{state}</span></div>
<p>PEM, the Prototype-based Efficient MaskFormer
(CVPR 2024, <a href="https://arxiv.org/abs/2402.19422" target="_blank" rel="noopener noreferrer">arXiv 2402.19422</a>),
splits a photo into regions and names them: each of its queries looks at a few chosen points instead of the whole image.
{about}</p>
{classes}
"""
ABOUT_BUNDLED = (
    "This model was trained by this project on everyday photos with 47 classes. It makes mistakes, "
    "and its weights are for research and demonstration only."
)


def header(model: AnyPEM | None, problem: str, bundled: bool = False) -> str:
    """The HTML of the head; without a model it says which ``problem`` there is."""
    if model is None:
        return HEADER.format(about="", classes="", kind="problem", state=escape(problem))
    config = model.config
    about = ABOUT_BUNDLED if bundled else ""
    if isinstance(model, pem.ExportedPEM):
        size, threads, where = [], usable_cores(), f" in {model.runtime}"
    else:
        size = [f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.0f} M parameters"]
        threads, where = torch.get_num_threads(), ""
    device = f"CPU, {threads} thread{'s' * (threads > 1)}{where}"
    if isinstance(model, pem.PEM) and (weight := next(model.parameters())).is_cuda:
        device = torch.cuda.get_device_name(weight.device)
    parts = (
        f"{config.name}, trained {config.trained}" if config.trained else config.name,
        BACKBONE_NAMES.get(config.backbone, config.backbone),
        *(["masked attention"] if config.attention == "masked" else []),
        *size,
        f"{config.num_classes} class{'es' * (config.num_classes > 1)}",
        device,
    )
    state = " · ".join(escape(part) for part in parts)
    return HEADER.format(about=about, classes=class_list(model, bundled), kind="model", state=state)


def class_list(model: AnyPEM, bundled: bool) -> str:
    """The names of all classes, to be unfolded; for the bundled model with the IoU of each class."""
    result = json.loads((RESULTS / "default_val.json").read_text(encoding="utf-8"))
    scores = result["overall"]["per_class"] if bundled else []
    iou = {score["category"]: f" {100 * score['iou']:.0f}" for score in scores if score["iou"] is not None}
    categories = sorted(categories_for(model.config), key=lambda category: not category.is_thing)
    items = "".join(
        f'<li><i style="background: rgb{c.color}"></i>{escape(c.name)}<b>{iou.get(c.name, "")}</b></li>'
        for c in categories
    )
    note = "Numbers: IoU in % on validation photos. The model hardly ever gets classes near 0 right." if iou else ""
    title = f"The {len(categories)} classes that it knows" if len(categories) > 1 else "The class that it knows"
    return f"<details><summary>{title}</summary><ul>{items}</ul><p>{note}</p></details>"
