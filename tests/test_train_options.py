"""The options of the training command: each changes a field of the preset, and --set changes any."""

from __future__ import annotations

import dataclasses
import sys

import pytest

import pem
from pem.training.config import TrainingConfig, get_training_config
from pem.training.train import configure, parse_arguments

PRESET, TRAINING = pem.get_config("default"), get_training_config("default")


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch):
    def configured(*options: str) -> tuple[pem.PEMConfig, TrainingConfig]:
        monkeypatch.setattr(sys, "argv", ["train", "--data", "data", "--out", "runs/streets", *options])
        return configure(parse_arguments())

    return configured


def test_without_options_a_run_is_the_preset_by_the_name_of_its_folder(configured) -> None:
    assert configured() == (dataclasses.replace(PRESET, name="streets"), TRAINING)
    ade20k = "ade20k-semantic-r50"
    named = dataclasses.replace(pem.get_config(ade20k), name="parks")
    assert configured("--config", ade20k, "--name", "parks") == (named, get_training_config(ade20k))


def test_set_reads_every_type_of_field(configured) -> None:
    config, training = configured(
        *("--set", "num_queries=20", "attention=masked", "pixel_mean=1,2.5,3e1", "object_threshold=0"),
        *("--set", "training.base_lr=2e-4", "training.crop_px=64,96", "training.pad_to_crop=false"),
        *("training.short_sides_px=64", "categories=a=b"),
    )
    assert config == dataclasses.replace(
        PRESET,
        name="streets",
        num_queries=20,
        attention="masked",
        pixel_mean=(1.0, 2.5, 30.0),
        object_threshold=0.0,
        categories="a=b",
    )
    assert training == dataclasses.replace(
        TRAINING, base_lr=2e-4, crop_px=(64, 96), pad_to_crop=False, short_sides_px=(64,)
    )


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("--name streets", "name=streets"),
        ("--attention masked", "attention=masked"),
        ("--num-queries 7", "num_queries=7"),
        ("--iterations 7", "training.iterations=7"),
        ("--batch-size 4", "training.batch_size=4"),
        ("--lr 0.5", "training.base_lr=0.5"),
        ("--backbone-lr-factor 0", "training.backbone_lr_factor=0"),
        ("--crop 32 64", "training.crop_px=32,64"),
        ("--copy-paste 1", "training.copy_paste=1"),
    ],
)
def test_an_option_is_short_for_its_field(configured, short: str, long: str) -> None:
    assert configured(*short.split()) == configured("--set", long)


def test_set_has_the_last_word(configured) -> None:
    config, training = configured("--short-sides", "64", "--lr", "1", "--set", "short_side_px=96", "training.base_lr=2")
    assert (config.short_side_px, training.short_sides_px, training.base_lr) == (96, (64,), 2.0)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("queries=5", "--set queries=5 cannot be used; give FIELD=VALUE with a field that --help lists."),
        ("base_lr=1", "--set base_lr=1 cannot be used; give FIELD=VALUE with a field that --help lists."),
        ("num_queries", "--set num_queries cannot be used; give FIELD=VALUE with a field that --help lists."),
        ("num_queries=", "num_queries is ''; it must be of type int."),
        ("num_queries=many", "num_queries is 'many'; it must be of type int."),
        ("num_queries=2.5", "num_queries is '2.5'; it must be of type int."),
        ("num_queries=0", "num_queries is 0; it must be from 1 to 10000."),
        ("attention=soft", "attention is 'soft'; it must be 'prototype' or 'masked'."),
        ("training.base_lr=nan", "--lr is nan; it must be a number above 0."),
        ("training.base_lr=fast", "base_lr is 'fast'; it must be of type float."),
        ("training.weight_decay=inf", "weight_decay is inf; it must be 0 or more."),
        ("training.crop_px=64", "crop_px is '64'; it must be of type tuple[int, int]."),
        ("training.crop_px=64,0", "crop_px is (64, 0); it must be 1 or more."),
        ("training.pad_to_crop=maybe", "pad_to_crop is 'maybe'; it must be of type bool."),
        ("name=", "--name is ''; give the model a name of one line."),
    ],
)
def test_what_cannot_be_set_is_said_in_one_sentence(configured, assignment: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        configured("--set", assignment)
    assert str(error.value) == sentence


def test_help_lists_every_field(configured, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        configured("--help")
    told = capsys.readouterr().out
    names = [field.name for field in dataclasses.fields(PRESET)]
    names += [f"training.{field.name}" for field in dataclasses.fields(TRAINING)]
    assert all(name in told for name in names)
