"""One step of training, and everything that a run must keep to go on from there."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms.v2.functional import normalize

from pem.config import PEMConfig
from pem.errors import first_line
from pem.fast import accelerate_training
from pem.model import PEM
from pem.training.config import TrainingConfig
from pem.training.criterion import Criterion
from pem.training.target import Target


class TrainingStep(nn.Module):
    """Model and criterion as one module, so that distributed training sees all parameters. Returns losses by name."""

    def __init__(self, model: PEM, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.criterion = Criterion(model.config, config)
        self.freezes_norms = config.freeze_backbone_norm or config.backbone_lr_factor == 0

    def train(self, mode: bool = True) -> TrainingStep:
        super().train(mode)
        for norm in self.frozen_norms():
            norm.eval()
        return self

    def frozen_norms(self) -> list[nn.Module]:
        """The norms of the backbone, if their statistics, scale and shift stay as they are."""
        if not self.freezes_norms:
            return []
        return [x for x in self.model.backbone.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm)]

    def forward(self, images: Tensor, targets: list[Target], autocast: bool) -> dict[str, Tensor]:
        """images uint8 [B, 3, H, W] -> weighted losses."""
        config = self.model.config
        pixels = normalize(images.float(), list(config.pixel_mean), list(config.pixel_std))
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=autocast):
            output = self.model(pixels)
        return self.criterion(output, targets)


def keep_slow_gradients_in_float32(module: nn.Module) -> None:
    """Keeps depthwise convolutions that are 5x5 or have a stride in float32 in spite of a CPU's autocast.

    Their gradients in bfloat16 fall back to a loop that takes 3 to 50 times as long as in float32.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and (layer.kernel_size[0] > 3 or layer.stride[0] > 1):
            # Unlike a closure, this is copied and pickled with its layer.
            layer.forward = partial(forward_in_float32, layer)  # type: ignore[method-assign, assignment]


def forward_in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return type(layer).forward(layer, x.float())


def build_optimizer(step: TrainingStep, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; the backbone learns more slowly; norms and embeddings do not decay (alpha and biases do, as published)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for module_name, module in step.named_modules():
        keeps = isinstance(module, nn.Embedding | nn.LayerNorm | nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters(recurse=False):
            key = (module_name.startswith("model.backbone"), keeps)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr_factor": config.backbone_lr_factor if is_backbone else 1.0,
                "weight_decay": 0.0 if keeps else config.weight_decay,
            }
            for (is_backbone, keeps), parameters in groups.items()
        ],
        lr=config.base_lr,
        fused=True,
    )


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, in half of the run at most, then half a cosine down to end_lr."""
    warmup_iterations = min(config.warmup_iterations, config.iterations // 2)
    if step < warmup_iterations:
        return config.base_lr * (step + 1) / warmup_iterations
    left = (1 + math.cos(math.pi * step / config.iterations)) / 2
    return config.end_lr + (config.base_lr - config.end_lr) * left


class Trainer:
    """The state of a run: everything that a checkpoint must keep.

    ``origin`` holds hashes of what the run was made from (labels, start); one that is "" is not known.
    """

    def __init__(
        self,
        model: PEM,
        config: TrainingConfig,
        device: torch.device,
        autocast: bool,
        seed: int,
        origin: dict[str, str] | None = None,
    ) -> None:
        self.config, self.device, self.autocast, self.seed = config, device, autocast, seed
        self.origin = origin or {}
        self.step = 0
        if config.backbone_lr_factor == 0:
            model.backbone.requires_grad_(False)
        # Channels last is the layout that the convolutions of both kinds of device like best.
        self.core = TrainingStep(model, config).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for norm in self.core.frozen_norms():
            norm.requires_grad_(False)
        accelerate_training(model)
        self.average = None
        if config.ema_decay:
            from timm.utils import ModelEmaV3  # not above: it takes a second

            # After step n the decay is ema_decay, or less in the first steps: (1 + n) / (10 + n), which is
            # 1 - (1 + (n + 1) / 9) ** -1. timm counts from n + 2 on.
            self.average = ModelEmaV3(
                model, config.ema_decay, update_after_step=-2, use_warmup=True, warmup_gamma=9, warmup_power=1
            ).requires_grad_(False)
        if device.type == "cpu" and autocast:
            keep_slow_gradients_in_float32(model)
        self.optimizer = build_optimizer(self.core, config)
        self.module: nn.Module = self.core
        if distributed.is_initialized():
            if device.type == "cuda":
                # Unlike torch's, it keeps the activations in timm's norms.
                from timm.layers import convert_sync_batchnorm

                self.core = convert_sync_batchnorm(self.core)
            self.module = DistributedDataParallel(self.core)
        self.module.train()

    def train_step(self, images: Tensor, targets: list[Target]) -> dict[str, float]:
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config) * group["lr_factor"]
        losses = self.module(images.to(self.device), [t.to(self.device) for t in targets], self.autocast)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"The gradient is not finite at step {self.step}; use a lower learning rate.")
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.core.model, self.step)
        return {name: float(loss.detach()) for name, loss in losses.items()} | {"gradient_norm": float(norm)}

    @property
    def best_model(self) -> PEM:
        return self.core.model if self.average is None else self.average.module

    @property
    def settings(self) -> dict[str, Any]:
        """What a run and its checkpoint must have in common; its name and date may differ."""
        network, training = dataclasses.asdict(self.core.model.config), dataclasses.asdict(self.config)
        settings = network | training | {"seed": self.seed}
        del settings["name"], settings["trained"]
        return json.loads(json.dumps(settings))

    @property
    def dated_config(self) -> PEMConfig:
        """The model's config with the date of today, for a file of its weights."""
        return dataclasses.replace(self.core.model.config, trained=date.today().isoformat())

    def save(self, path: Path) -> None:
        """Writes the checkpoint, whole or not at all. Raises OSError when it cannot be written."""
        state = {
            "step": self.step,
            "module": self.core.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": self.settings,
            "origin": self.origin,
            "config": json.dumps(dataclasses.asdict(self.dated_config)),  # for pem.load_model
        }
        unfinished = path.with_suffix(".partial")
        try:
            torch.save(state, unfinished)
            unfinished.replace(path)
        except RuntimeError as error:  # torch's, for a full disk
            raise OSError(f"{path} cannot be written ({first_line(error)}); make room for it.") from error
        finally:
            unfinished.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Goes on where ``save`` was called, to more iterations if the config now has more.

        Raises ValueError for a damaged file, for one with other settings or another origin as far as both are known,
        and for one with more steps than the config has iterations.
        """
        with _intact(path):
            state = torch.load(path, map_location=self.device, weights_only=True)
            step, theirs, their_origin = int(state["step"]), dict(state["settings"]), dict(state.get("origin", {}))
        # A setting that is newer than the checkpoint had its default.
        theirs = {x.name: x.default for kind in (PEMConfig, TrainingConfig) for x in dataclasses.fields(kind)} | theirs
        theirs["iterations"] = self.config.iterations
        other = [name for name, value in sorted(self.settings.items()) if theirs.get(name) != value]
        for name, value in self.origin.items():
            if value and their_origin.get(name) not in (value, "", None):
                other.append(name)
        if other:
            raise ValueError(
                f"{path} was made with other settings ({', '.join(other)}); go on with the same, or begin anew with "
                "--anew or another --out."
            )
        if step > self.config.iterations:
            raise ValueError(
                f"{path} has had {step} iterations, more than the {self.config.iterations} that are asked for; ask for "
                f"{step} or more, or begin anew with --anew or another --out."
            )
        with _intact(path):
            self.core.load_state_dict(state["module"])
            if self.average is not None and state["average"] is not None:
                self.average.module.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.step = step
        # What is unknown now stays as the checkpoint knows it.
        self.origin = {name: value or their_origin.get(name, "") for name, value in self.origin.items()}


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    """Turns any error of a reader into one sentence, because a damaged or foreign file can fail anywhere."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is damaged or of another version; delete it, or use another --out.") from error
