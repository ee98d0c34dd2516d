"""Training: it learns, it resumes exactly, and several processes do what one does."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import pickle
import re
import sys
import weakref
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from processes import free_port
from small_model import small_config, small_model
from small_run import CONFIG, TRAINING, write_data
from timm.layers import convert_sync_batchnorm
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import pem
from pem.categories import categories_for
from pem.training.backbone import load_imagenet_backbone
from pem.training.data import PanopticDataset, collate
from pem.training.log import forget_after
from pem.training.processes import process_group
from pem.training.run import train
from pem.training.sampler import RepeatableSampler, SeededDataset
from pem.training.start import raise_prototypes, start_from
from pem.training.target import Target
from pem.training.train import main
from pem.training.trainer import Trainer, learning_rate


def two_images() -> tuple[torch.Tensor, list[Target]]:
    """A bright square on a dark ground, and the reverse."""
    images = torch.full((2, 3, 64, 64), 40, dtype=torch.uint8)
    images[0, :, 16:48, 16:48] = 220
    images[1] = 220
    images[1, :, 8:40, 24:56] = 40
    ids = torch.full((2, 64, 64), 3, dtype=torch.int16)
    ids[0, 16:48, 16:48] = 2
    ids[1, 8:40, 24:56] = 2
    labels = [torch.tensor([0, 1]), torch.tensor([1, 0])]
    return images, [Target(i, label, torch.ones(2), torch.ones(3, dtype=torch.bool)) for i, label in zip(ids, labels)]


def make_trainer(config: pem.PEMConfig = CONFIG, seed: int = 0, autocast: bool = False, **settings: Any) -> Trainer:
    torch.manual_seed(seed)
    training = dataclasses.replace(TRAINING, **settings)
    return Trainer(pem.PEM(config), training, torch.device("cpu"), autocast, seed)


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"\n", b"[]\n", b'{"loss": 1}\n', b'{"step": "2"}\n', b"\xff\n"])
def test_damaged_lines_of_the_log_are_taken_out(tmp_path: Path, damage: bytes) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 2}\n{"step": 3}\n')
    forget_after(2, log)
    assert log.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n'


def total(losses: dict[str, float]) -> float:
    return sum(value for name, value in losses.items() if name != "gradient_norm")


@pytest.mark.parametrize("attention", ["prototype", "masked"])
def test_loss_falls_on_two_images(attention: str) -> None:
    trainer = make_trainer(dataclasses.replace(CONFIG, attention=attention), iterations=1_000)
    losses = [total(trainer.train_step(*two_images())) for _ in range(40)]
    assert min(losses[-5:]) < 0.4 * losses[0]


def test_image_without_ground_truth_trains() -> None:
    images, targets = two_images()
    empty = Target(
        torch.ones(64, 64, dtype=torch.int16), torch.zeros(0, dtype=torch.int64), torch.zeros(0), targets[0].exhaustive
    )
    trainer = make_trainer()
    losses = trainer.train_step(images, [empty, targets[1]])
    assert all(np.isfinite(value) for value in losses.values())
    both_empty = trainer.train_step(images, [empty, empty])
    assert both_empty["mask"] == both_empty["dice"] == 0 and both_empty["class"] > 0


def test_bfloat16_trains_much_like_float32() -> None:
    full, half = (make_trainer(autocast=autocast).train_step(*two_images()) for autocast in (False, True))
    assert total(half) == pytest.approx(total(full), rel=0.05)


def test_autocast_spares_the_depthwise_convolutions_whose_gradients_are_slow() -> None:
    trainer = make_trainer(autocast=True)
    layers = {"slow": [], "fast": []}
    for module in trainer.core.model.backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            slow = module.groups > 1 and (module.kernel_size[0] > 3 or module.stride[0] > 1)
            module.register_forward_hook(
                lambda _, inputs, output, seen=layers["slow" if slow else "fast"]: seen.append(output.dtype)
            )
    trainer.train_step(*two_images())
    assert set(layers["slow"]) == {torch.float32} and set(layers["fast"]) == {torch.bfloat16}
    # The averaged weights are a model of their own.
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = trainer.average(images).pred_logits
        torch.nn.init.zeros_(trainer.core.model.backbone.net.blocks[1][0].conv_dw.weight)
        assert torch.equal(trainer.average(images).pred_logits, before)


def test_a_trained_model_is_copied_and_pickled_with_its_own_weights() -> None:
    trained = make_trainer(autocast=True, ema_decay=0.0).best_model.eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = trained(images).pred_logits
        for copied in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
            assert torch.equal(copied(images).pred_logits, before)
            torch.nn.init.zeros_(trained.backbone.net.blocks[1][0].conv_dw.weight)
            assert torch.equal(copied(images).pred_logits, before)
            trained.load_state_dict(copied.state_dict())


def test_the_average_follows_fast_at_first_and_then_by_its_decay() -> None:
    trainer = make_trainer(ema_decay=0.2)
    expected = {name: value.clone() for name, value in trainer.core.model.state_dict().items()}
    for decay in (2 / 11, 0.2):  # (1 + step) / (10 + step), until that is more than ema_decay
        trainer.train_step(*two_images())
        for name, value in trainer.core.model.state_dict().items():
            expected[name] = expected[name].lerp(value, 1 - decay) if value.is_floating_point() else value
    for name, value in trainer.best_model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_prototypes_speak_as_loud_as_the_queries_with_a_gain_of_8() -> None:
    torch.manual_seed(0)
    model = pem.build_model(pem.get_config("default"))
    attention = model.decoder.layers[0].cross_attention
    query, source = torch.randn(1, 50, 256), torch.randn(1, 256, 18, 24)

    def added() -> float:
        nothing_banned = torch.zeros(1, 50, 18 * 24, dtype=torch.bool)
        with torch.no_grad():
            new = attention(query, torch.zeros(50, 256), source, torch.zeros(1, 256, 18, 24), nothing_banned)[0]
        return float((new - query - attention.final.bias.detach()).std() / query.std())

    assert 0.05 < added() < 0.15
    raise_prototypes(model, 8.0)
    assert 0.4 < added() < 1.2


def test_a_twin_starts_from_all_but_the_cross_attention() -> None:
    source, twin = pem.build_model(CONFIG), pem.build_model(dataclasses.replace(CONFIG, attention="masked"))
    fresh = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    start_from(twin, source)
    theirs = source.state_dict()
    for name, tensor in twin.state_dict().items():
        assert torch.equal(tensor, fresh[name] if "cross_attention" in name else theirs[name]), name
    again = pem.build_model(CONFIG)
    start_from(again, source)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.state_dict().items())
    for other in ({"num_layers": 2}, {"num_layers": 4}, {"hidden_dim": 64}, {"pixel_mean": (0.0, 0.0, 0.0)}):
        with pytest.raises(ValueError, match="start from a model of the same sizes"):
            start_from(pem.build_model(dataclasses.replace(CONFIG, **other)), source)


def test_a_model_with_more_queries_starts_with_new_ones_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    source, model = pem.build_model(CONFIG), pem.build_model(dataclasses.replace(CONFIG, num_queries=7))
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_from(model, source)
    theirs = source.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith("decoder.query_") else theirs[name]), name
    assert caplog.messages == [
        "The start has 6 queries and this run 7, so all of them are new; --num-queries 6 keeps the start's."
    ]


def test_classes_keep_their_logits_under_other_ids_and_spellings() -> None:
    source, model = (
        pem.build_model(dataclasses.replace(CONFIG, categories=categories))
        for categories in (
            ((1, "dog, hound", True), (2, "Cat", True), (3, "sky", False)),
            ((0, "dog", True), (5, "cat ", True), (9, "sky", False)),
        )
    )
    start_from(model, source)
    assert torch.equal(model.decoder.class_embed.weight, source.decoder.class_embed.weight)


def test_frozen_backbone_keeps_its_weights_and_its_norms() -> None:
    trainer = make_trainer(backbone_lr_factor=0.0, freeze_backbone_norm=False)
    before = {name: value.clone() for name, value in trainer.core.model.state_dict().items()}
    trainer.train_step(*two_images())
    changed = {
        name.split(".")[0] for name, value in trainer.core.model.state_dict().items() if (value != before[name]).any()
    }
    assert changed == {"pixel_decoder", "decoder"}


def test_frozen_norms_keep_scale_and_shift_too() -> None:
    trainer = make_trainer()
    norms = trainer.core.frozen_norms()
    before = [{name: value.clone() for name, value in norm.state_dict().items()} for norm in norms]
    trainer.train_step(*two_images())
    assert len(norms) > 10
    for norm, kept in zip(norms, before):
        for name, value in norm.state_dict().items():
            assert torch.equal(value, kept[name]), name


@pytest.mark.parametrize("backbone", ["mobilenetv2_050", "resnet50", "stdc1"])
def test_synchronised_norms_compute_the_same(backbone: str) -> None:
    """With several GPUs all norms become synchronised ones, which on a CPU run out of training only."""
    model = small_model(backbone=backbone)
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 64, 64))
        found = convert_sync_batchnorm(model).eval()(torch.ones(1, 3, 64, 64))
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    torch.testing.assert_close(found.pred_logits, expected.pred_logits)
    torch.testing.assert_close(found.pred_masks, expected.pred_masks)


def test_weight_decay_spares_norms_and_embeddings_only() -> None:
    trainer = make_trainer()
    decays = {p: group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    model = trainer.core.model
    layer = model.decoder.layers[0]
    assert set(decays) == set(trainer.core.parameters())
    for spared in (
        model.decoder.query_embed.weight,
        model.decoder.level_embed.weight,
        model.decoder.norm.bias,
        model.pixel_decoder.lateral[0][1].weight,
        layer.cross_attention.key_norm.bias,
    ):
        assert decays[spared] == 0
    for decayed in (
        layer.cross_attention.alpha,
        layer.cross_attention.proj.bias,
        model.pixel_decoder.upsample[0].weight,
    ):
        assert decays[decayed] == 0.05


def test_schedules() -> None:
    config = dataclasses.replace(TRAINING, base_lr=1.0, end_lr=0.1, iterations=100, warmup_iterations=10)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(50, config) == pytest.approx(0.55)  # half way down the cosine
    assert learning_rate(100, config) == pytest.approx(0.1)
    short = dataclasses.replace(config, iterations=10)  # half of it warms up
    assert [learning_rate(step, short) for step in (0, 4)] == pytest.approx([0.2, 1.0])
    assert learning_rate(9, short) < 0.2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "nowhere"], "There is no nowhere/panoptic_train.json"),
        (["--data", "nowhere", "--config", "cityscape"], "no preset 'cityscape'"),
        (["--data", "nowhere", "--device", "cuda:99"], "no CUDA device 'cuda:99'"),
        (["--data", "nowhere", "--threads", "-1"], "--threads is -1; it must be at least 1"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "--out", "run", *arguments])
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        main()


@pytest.fixture
def dataset(tmp_path: Path) -> PanopticDataset:
    write_data(tmp_path)
    return PanopticDataset(
        tmp_path / "panoptic_train.json", tmp_path / "train", tmp_path / "panoptic_train", CONFIG, TRAINING
    )


def test_interrupted_run_ends_like_an_uninterrupted_one(dataset: PanopticDataset, tmp_path: Path) -> None:
    whole, first, second = tmp_path / "whole", tmp_path / "first", tmp_path / "second"
    for folder in (whole, first, second):
        folder.mkdir()
    uninterrupted = make_trainer()
    train(uninterrupted, dataset, whole, workers=0)

    interrupted = make_trainer()
    loader = iter(RepeatableSampler(dataset, 2, 0, 6, seed=0))
    for _ in range(3):
        interrupted.train_step(*collate([SeededDataset(dataset)[item] for item in next(loader)]))
    interrupted.save(first / "checkpoint.pt")
    resumed = make_trainer(seed=1)  # other random weights, which the checkpoint replaces
    resumed.seed = 0
    resumed.load(first / "checkpoint.pt")
    train(resumed, dataset, second, workers=0)

    assert resumed.step == uninterrupted.step == 6
    for name, value in uninterrupted.best_model.state_dict().items():
        assert torch.equal(value, resumed.best_model.state_dict()[name]), name
    last = json.loads((whole / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["step"] == 6 and last["photos_per_s"] > 0 and last["eta_s"] == 0
    trained = pem.load_model(whole / "model.safetensors", device="cpu").config
    assert trained == dataclasses.replace(CONFIG, trained=date.today().isoformat())


def test_a_checkpoint_goes_on_with_its_own_settings_only(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    make_trainer().save(path)
    with pytest.raises(ValueError, match="other settings .backbone_lr_factor, seed.; go on with the same"):
        make_trainer(seed=1, backbone_lr_factor=0.5).load(path)
    state = torch.load(path)
    del state["settings"]["copy_paste"]  # as before there was such a setting: nothing was pasted
    torch.save(state, path)
    make_trainer(copy_paste=0.0).load(path)
    with pytest.raises(ValueError, match="other settings .copy_paste."):
        make_trainer().load(path)
    make_trainer().save(path)
    make_trainer(autocast=True).load(path)  # a machine may be faster at another precision than the one before
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(ValueError, match="checkpoint.pt is damaged or of another version; delete it"):
        make_trainer().load(path)


def test_a_run_that_diverged_says_so(dataset: PanopticDataset) -> None:
    trainer = make_trainer()
    trainer.core.model.decoder.query_feat.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite at step 0; use a lower learning rate"):
        trainer.train_step(*collate([dataset[0], dataset[1]]))


def test_steps_after_the_last_checkpoint_are_logged_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    forget_after(3, log)
    assert not log.exists()
    log.write_text(
        "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4, 5)) + '{"step": 6, "cla', encoding="utf-8"
    )
    forget_after(3, log)
    assert [json.loads(line)["step"] for line in log.read_text(encoding="utf-8").splitlines()] == [1, 2, 3]


def test_a_model_learns_the_classes_of_its_data(
    dataset: PanopticDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command takes the classes from the data, and all other weights from the model that it starts from."""
    start = small_model(seed=1, num_classes=4)
    pem.save_weights(start, tmp_path / "start.safetensors")
    training = dataclasses.replace(TRAINING, iterations=1, base_lr=1e-9)
    monkeypatch.setattr("pem.training.train.get_config", lambda name: small_config(num_classes=19))
    monkeypatch.setattr("pem.training.train.get_training_config", lambda name: training)
    command = ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--workers", "0", "--float32"]
    monkeypatch.setattr(sys, "argv", ["train", *command, "--start", str(tmp_path / "start.safetensors")])
    main()
    trained = pem.load_model(tmp_path / "run" / "model.safetensors", fast=False)
    assert [(c.id, c.name, c.is_thing) for c in categories_for(trained.config)] == [
        (1, "class 1", True),
        (2, "class 2", True),
        (3, "class 3", True),
    ]
    assert trained.decoder.class_embed.out_features == 4
    theirs = start.state_dict()
    for name in ("backbone.features.0.conv.weight", "decoder.query_feat.weight"):
        torch.testing.assert_close(trained.state_dict()[name], theirs[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("fast", "options"), [(True, []), (False, []), (True, ["--float32"])])
def test_bfloat16_is_for_devices_that_are_fast_at_it(
    dataset: PanopticDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, options: list[str]
) -> None:
    trainers: list[Trainer] = []
    monkeypatch.setattr("pem.training.train.get_config", lambda name: CONFIG)
    monkeypatch.setattr("pem.training.run.has_bfloat16", lambda device: fast)
    monkeypatch.setattr("pem.training.run.train", lambda trainer, *rest, **options: trainers.append(trainer))
    command = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--random-backbone", *options]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert [trainer.autocast for trainer in trainers] == [fast and not options]


@pytest.mark.parametrize(("backbone", "prefix"), [("resnet50", "module."), ("stdc1", "_orig_mod.module.")])
def test_a_backbone_starts_from_a_file(backbone: str, prefix: str, tmp_path: Path) -> None:
    source, model = small_model(seed=1, backbone=backbone), small_model(seed=2, backbone=backbone)
    state = {prefix + name: tensor for name, tensor in source.backbone.state_dict().items()}
    path = tmp_path / "imagenet.tar"
    torch.save({"state_dict": state | {f"{prefix}fc.weight": torch.zeros(3)}, "best": np.float64(76.1)}, path)
    load_imagenet_backbone(model, path)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, source.backbone.state_dict()[name]), name
    torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"imagenet.tar does not hold .* this backbone: .*, but the file lacks it\.$"):
        load_imagenet_backbone(model, path)
    torch.save({name: tensor[None] for name, tensor in state.items()}, path)
    with pytest.raises(ValueError, match=r"imagenet.tar does not hold .* this backbone: .* file has it as \(1, "):
        load_imagenet_backbone(model, path)
    path.write_text("no weights", encoding="utf-8")
    with pytest.raises(ValueError, match="imagenet.tar is damaged or not a file of weights"):
        load_imagenet_backbone(model, path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="There is no weights file .*imagenet.tar"):
        load_imagenet_backbone(model, path)


def test_a_backbone_starts_from_safetensors_under_the_names_of_a_whole_model_without_counters(tmp_path: Path) -> None:
    source, model = small_model(seed=1, backbone="stdc1"), small_model(seed=2, backbone="stdc1")
    weights = {f"backbone.{name}": x for name, x in source.backbone.state_dict().items() if "num_batches" not in name}
    safetensors.torch.save_file(weights, tmp_path / "imagenet.safetensors")
    load_imagenet_backbone(model, tmp_path / "imagenet.safetensors")
    for name, tensor in weights.items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_batch_that_cannot_be_is_refused(dataset: PanopticDataset) -> None:
    with pytest.raises(ValueError, match="batch of 5 is larger than the split of 4 photos"):
        RepeatableSampler(dataset, 5, 0, 1, seed=0)
    with pytest.raises(ValueError, match="batch has one photo; give it two at least"):
        RepeatableSampler(dataset, 1, 0, 1, seed=0)
    dataset.records[:] = [dataclasses.replace(record, labels=record.labels[:0]) for record in dataset.records]
    with pytest.raises(ValueError, match="lists no segment to learn from"):
        RepeatableSampler(dataset, 2, 0, 1, seed=0)
    dataset.records.clear()
    with pytest.raises(ValueError, match="larger than the split of 0 photos"):
        RepeatableSampler(dataset, 2, 0, 1, seed=0)


def test_rare_classes_come_more_often(dataset: PanopticDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pem.training.sampler.REPEAT_THRESHOLD", 1.0)
    sampler = RepeatableSampler(dataset, 2, 0, 1_000, seed=0)
    counts = np.bincount([batch[0][0] for batch in sampler], minlength=4)  # the second is never the same again
    # Class 1 is everywhere, class 2 on 3/4 of the photos, class 3 on 1/4: factors sqrt(4/3) and 2.
    assert counts[3] / counts[:3].mean() == pytest.approx(2 / (4 / 3) ** 0.5, rel=0.15)


def _join(rank: int, world_size: int, port: int) -> None:
    """Makes this process one of several, as torchrun does."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)


def _losses_of_one_rank(rank: int, world_size: int, port: int, folder: str) -> None:
    _join(rank, world_size, port)
    with process_group(torch.device("cpu")):
        _train_two_steps(rank, world_size, folder)


def _train_two_steps(rank: int, world_size: int, folder: str) -> None:
    images, targets = two_images()
    # The images hold unequal numbers of segments and pixels, so that normalising per process would show.
    targets[1] = Target(
        torch.where(targets[1].ids == 3, 0, 2).short(), torch.tensor([0]), torch.ones(1), targets[1].exhaustive
    )
    trainer = make_trainer()
    trainer.module.eval()  # synchronised batch statistics need GPUs; here every process uses the running ones
    losses = [total(trainer.train_step(images[rank::world_size], targets[rank::world_size])) for _ in range(2)]
    values = torch.tensor(losses)
    distributed.all_reduce(values)
    if rank == 0:
        torch.save((values / world_size, trainer.core.state_dict()), f"{folder}/{world_size}.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux only")
@pytest.mark.parametrize("fails", [False, True])
def test_the_wrapped_model_is_freed_before_its_group(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Freed after it, it may wait for ever."""
    monkeypatch.setattr("pem.training.processes.end_with_parent", lambda number: None)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    wrapped: list[weakref.ref[torch.nn.Module]] = []
    freed: list[bool] = []
    destroy = distributed.destroy_process_group
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: (freed.append(wrapped[0]() is None), destroy()))

    def work() -> None:
        trainer = make_trainer()
        wrapped.append(weakref.ref(trainer.module))
        assert isinstance(trainer.module, DistributedDataParallel)
        trainer.train_step(*two_images())
        if fails:
            try:
                raise ValueError("inside")
            except ValueError as error:
                raise FloatingPointError("outside") from error

    with pytest.raises(FloatingPointError) if fails else contextlib.nullcontext():
        with process_group(torch.device("cpu")):
            work()
    assert freed == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux only")
def test_two_processes_give_the_loss_of_one(tmp_path: Path) -> None:
    for world_size in (1, 2):
        multiprocessing.spawn(_losses_of_one_rank, args=(world_size, free_port(), str(tmp_path)), nprocs=world_size)
    one, one_state = torch.load(tmp_path / "1.pt")
    two, two_state = torch.load(tmp_path / "2.pt")
    assert torch.allclose(one, two, rtol=1e-4), (one, two)  # the second loss comes after a step: gradients agree too
    for name, value in one_state.items():
        assert torch.allclose(value, two_state[name], atol=2e-4), name
