"""Train a PEM: ``python -m pem.training.train --config default --data FOLDER --out FOLDER``.

One process on CPU or GPU; with ``torchrun --nproc_per_node=N -m -- pem.training.train ...`` one per GPU. Run the same
command again and it goes on from the last checkpoint to the state that an uninterrupted run would have had: the photos
and all random numbers of a step depend on the seed and the step alone.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import os
import pickle
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from pem.attention import PrototypeCrossAttention
from pem.categories import categories_for
from pem.config import PEMConfig, TrainingConfig, get_config
from pem.layers import has_bfloat16
from pem.model import PEM
from pem.training.backbone import load_imagenet_backbone
from pem.training.criterion import Criterion
from pem.training.data import PanopticDataset, collate, open_split, plain_name, with_classes_of
from pem.training.sampler import RepeatableSampler, SeededDataset, rank_and_world_size
from pem.training.target import Target
from pem.weights import load_model, pick_device, save_weights


class TrainingStep(nn.Module):
    """Model and criterion as one module, so that distributed training sees all parameters. Returns losses by name."""

    def __init__(self, model: PEM) -> None:
        super().__init__()
        self.model = model
        self.criterion = Criterion(model.config)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(model.config.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(model.config.pixel_std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> TrainingStep:
        super().train(mode)
        for norm in self.frozen_norms():
            norm.eval()
        return self

    def frozen_norms(self) -> list[nn.Module]:
        """Those whose statistics, scale and shift stay as they are."""
        training = self.model.config.training
        if not training.freeze_backbone_norm and training.backbone_lr_factor > 0:
            return []
        return [x for x in self.model.backbone.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm)]

    def forward(self, images: Tensor, targets: list[Target], autocast: bool) -> dict[str, Tensor]:
        """images uint8 [B, 3, H, W] -> weighted losses."""
        pixels = (images.float() - self.mean) / self.std
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=autocast):
            output = self.model(pixels)
        return self.criterion(output, targets)


def keep_slow_gradients_in_float32(module: nn.Module) -> None:
    """Takes depthwise convolutions that are 5x5 or have a stride out of a CPU's autocast.

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


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Moves the averaged weights towards the current ones, faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def peak_memory_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Trainer:
    """The state of a run: everything that a checkpoint must keep."""

    def __init__(self, model: PEM, device: torch.device, autocast: bool, seed: int) -> None:
        self.config, self.device, self.autocast, self.seed = model.config.training, device, autocast, seed
        self.step = 0
        if self.config.backbone_lr_factor == 0:
            model.backbone.requires_grad_(False)
        # Channels last is the layout that the convolutions of both kinds of device like best.
        self.core = TrainingStep(model).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for norm in self.core.frozen_norms():
            norm.requires_grad_(False)
        self.average = copy.deepcopy(model).eval().requires_grad_(False) if self.config.ema_decay else None
        if device.type == "cpu" and autocast:
            keep_slow_gradients_in_float32(model)
        self.optimizer = build_optimizer(self.core, self.config)
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
            update_average(self.average, self.core.model, self.step, self.config.ema_decay)
        return {name: float(loss.detach()) for name, loss in losses.items()} | {"gradient_norm": float(norm)}

    @property
    def best_model(self) -> PEM:
        return self.core.model if self.average is None else self.average

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "module": self.core.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": self.settings,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    @property
    def settings(self) -> dict[str, Any]:
        """What a run must have in common with its checkpoint, else it would be neither the one nor the other."""
        config = dataclasses.asdict(self.core.model.config)
        settings = config | config.pop("training") | {"seed": self.seed}
        return json.loads(json.dumps(settings))

    def load(self, path: Path) -> None:
        """Goes on where ``save`` was called. Raises ValueError for a damaged file, or one with other settings."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            theirs = state["settings"]
        except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, KeyError) as error:
            raise ValueError(f"{path} is damaged or of another version; delete it, or use another --out.") from error
        # A setting that came into the world after the checkpoint was at its default.
        theirs = {x.name: x.default for kind in (TrainingConfig, PEMConfig) for x in dataclasses.fields(kind)} | theirs
        if other := [name for name, value in self.settings.items() if theirs.get(name) != value]:
            raise ValueError(
                f"{path} was made with another {', '.join(other)}; go on with the same settings, or use another --out."
            )
        self.core.load_state_dict(state["module"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def train(
    trainer: Trainer,
    dataset: PanopticDataset,
    out: Path,
    workers: int = 1,
    log_every: int = 20,
    save_minutes: float = 5.0,
) -> None:
    """Runs to the last iteration; writes log.jsonl, checkpoint.pt and at the end model.safetensors into ``out``."""
    config, (rank, _) = trainer.config, rank_and_world_size()
    if rank == 0:
        forget_after(trainer.step, out / "log.jsonl")
    sampler = RepeatableSampler(dataset, config.batch_size, trainer.step, config.iterations, trainer.seed)
    loader = DataLoader(SeededDataset(dataset), batch_sampler=sampler, num_workers=workers, collate_fn=collate)
    bar = tqdm(total=config.iterations, initial=trainer.step, unit="it", disable=rank > 0, dynamic_ncols=True)
    started = last_log = last_save = time.monotonic()
    first_step, logged_step = trainer.step, trainer.step
    sums: dict[str, float] = {}
    for images, targets in loader:
        for name, value in trainer.train_step(images, targets).items():
            sums[name] = sums.get(name, 0.0) + value
        bar.update()
        now, done = time.monotonic(), trainer.step == config.iterations
        if rank == 0 and (done or trainer.step % log_every == 0):
            count = trainer.step - logged_step
            entry = {
                "step": trainer.step,
                **{name: round(value / count, 4) for name, value in sums.items()},
                "lr": learning_rate(trainer.step - 1, config),
                "photos_per_s": round(count * config.batch_size / (now - last_log), 2),
                "eta_s": round((now - started) / (trainer.step - first_step) * (config.iterations - trainer.step)),
                "memory_mib": round(peak_memory_mib(trainer.device)),
            }
            with open(out / "log.jsonl", "a") as log:
                log.write(json.dumps(entry) + "\n")
            loss = sum(entry[name] for name in ("class", "mask", "dice"))
            bar.set_postfix_str(f"loss {loss:.2f}, {entry['photos_per_s']} photos/s, {entry['memory_mib']} MiB")
            last_log, logged_step, sums = now, trainer.step, {}
        if rank == 0 and (done or now - last_save > save_minutes * 60):
            trainer.save(out / "checkpoint.pt")
            last_save = now
    bar.close()
    if rank == 0:
        save_weights(trainer.best_model, out / "model.safetensors")


def forget_after(step: int, log: Path) -> None:
    """Takes out what a run that was killed had logged after its last checkpoint: those steps come again."""
    if log.is_file():
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pem.training.train", description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="default", help="preset name (default: %(default)s)")
    parser.add_argument("--data", required=True, type=Path, help="folder with panoptic_train.json and its photos")
    parser.add_argument("--out", required=True, type=Path, help="folder for the checkpoint, the log and the weights")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="instead of the preset's")
    parser.add_argument("--batch-size", type=int, help="of all processes together, instead of the preset's")
    parser.add_argument("--lr", type=float, help="base learning rate, instead of the preset's")
    parser.add_argument("--backbone-lr-factor", type=float, help="0 freezes the backbone; instead of the preset's")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="crop in pixels, instead of the preset's")
    parser.add_argument("--short-sides", type=int, nargs="+", help="of the scale jitter, instead of the preset's")
    parser.add_argument("--copy-paste", type=float, help="how often things are pasted in, instead of the preset's")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast, not even where the device has it")
    parser.add_argument("--attention", choices=("prototype", "masked"), help="instead of the preset's")
    parser.add_argument(
        "--start", help="start from a whole model: what pem.load_model takes, or a published checkpoint of the preset"
    )
    parser.add_argument("--backbone-weights", type=Path, help="a file of ImageNet weights, where no library has them")
    parser.add_argument("--random-backbone", action="store_true", help="do not start from ImageNet weights")
    parser.add_argument("--workers", type=int, default=1, help="processes that load photos (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads of this process")
    parser.add_argument(
        "--seed", type=int, default=0, help="of order and crops; take another one to go on from an older run's weights"
    )
    return parser.parse_args()


def configure(arguments: argparse.Namespace) -> PEMConfig:
    config = get_config(arguments.config)
    changes = {
        "iterations": arguments.iterations,
        "batch_size": arguments.batch_size,
        "base_lr": arguments.lr,
        "backbone_lr_factor": arguments.backbone_lr_factor,
        "crop_px": arguments.crop and tuple(arguments.crop),
        "copy_paste": arguments.copy_paste,
        "short_sides_px": arguments.short_sides and tuple(arguments.short_sides),
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    attention = arguments.attention or config.attention
    return dataclasses.replace(config, attention=attention, training=dataclasses.replace(config.training, **changes))


def start_from(model: PEM, other: PEM) -> None:
    """Takes over the weights of another model; where it has the other attention, all but the cross-attention's, and
    where it knows other classes, all but those of its class logits."""
    left_out = []
    if model.config.attention != other.config.attention:
        left_out.append("cross_attention")
    if class_names(model.config) != class_names(other.config):
        left_out.append("class_embed")
    ours, theirs = (
        {name: tensor for name, tensor in net.state_dict().items() if not any(part in name for part in left_out)}
        for net in (model, other)
    )
    shapes, their_shapes = ({name: tensor.shape for name, tensor in x.items()} for x in (ours, theirs))
    unfit = [name for name in shapes | their_shapes if shapes.get(name) != their_shapes.get(name)]
    alike = ("backbone", "pixel_mean", "pixel_std")
    unfit += [name for name in alike if getattr(model.config, name) != getattr(other.config, name)]
    if unfit:
        raise ValueError(
            f"The weights of {other.config.name!r} do not fit {model.config.name!r} ({unfit[0]});"
            " start from a model of the same sizes."
        )
    model.load_state_dict(theirs, strict=False)


def class_names(config: PEMConfig) -> list[tuple[str, bool]]:
    return [(plain_name(category.name), category.is_thing) for category in categories_for(config)]


@torch.no_grad()
def raise_prototypes(model: PEM, gain: float) -> None:
    """Multiplies what the prototypes of a network with random weights add to the queries."""
    for layer in model.decoder.layers:
        if isinstance(layer.cross_attention, PrototypeCrossAttention):
            layer.cross_attention.final.weight.mul_(gain)


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    checkpoint = arguments.out / "checkpoint.pt"
    try:
        if arguments.threads is not None:
            if arguments.threads < 1:
                raise ValueError(f"--threads is {arguments.threads}; it must be at least 1.")
            torch.set_num_threads(arguments.threads)
        config = configure(arguments)
        device = pick_device(arguments.device)
        config = with_classes_of(config, arguments.data)
        if "RANK" in os.environ:  # started by torchrun, which gives each process a GPU of its own
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            if device.type == "cuda":
                device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        arguments.out.mkdir(parents=True, exist_ok=True)
        dataset = open_split(arguments.data, "train", config)
        model = PEM(config)
        raise_prototypes(model, config.training.prototype_gain)
        if arguments.start and not checkpoint.is_file():
            published = Path(arguments.start).suffix in (".pth", ".pkl")
            name, weights = (arguments.config, arguments.start) if published else (arguments.start, None)
            start_from(model, load_model(name, device="cpu", weights=weights))
        elif not arguments.random_backbone and not checkpoint.is_file():
            load_imagenet_backbone(model, arguments.backbone_weights)
        trainer = Trainer(model, device, autocast=has_bfloat16(device) and not arguments.float32, seed=arguments.seed)
        if checkpoint.is_file():
            trainer.load(checkpoint)
        train(trainer, dataset, arguments.out, arguments.workers)
    except (OSError, ValueError, FloatingPointError) as error:
        # From a process that loads photos comes its traceback, at whose end is the sentence.
        sys.exit(str(error).strip().splitlines()[-1].removeprefix("ValueError: "))
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main()
