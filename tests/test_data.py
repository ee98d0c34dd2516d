"""Photos and labels: what becomes of ids, partial labels and pixels on the way from the files to a batch."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pem
from pem.config import PEMConfig, TrainingConfig
from pem.training.augmentation import paste
from pem.training.data import PanopticDataset, collate, open_split, with_classes_of
from pem.training.target import Target

CATEGORIES = [  # deliberately neither sorted nor gapless
    {"id": 9, "name": "sky", "isthing": 0},
    {"id": 3, "name": "person", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
]
PERSON, DOG, SKY = 0, 1, 2


def config_for(crop_px: tuple[int, int] = (32, 32), **training: Any) -> PEMConfig:
    settings = TrainingConfig(**{"short_sides_px": (32,), "crop_px": crop_px, "pad_to_crop": True, **training})
    return dataclasses.replace(pem.get_config("default"), num_classes=3, training=settings)


def write_split(
    folder: Path,
    ids: np.ndarray,
    segments: list[dict[str, Any]],
    image: np.ndarray | None = None,
    image_fields: dict[str, Any] | None = None,
    top_fields: dict[str, Any] | None = None,
    split: str = "val",
) -> Path:
    """A split of one PNG photo whose label PNG holds ``ids``; returns the data folder."""
    for name in (split, f"panoptic_{split}"):
        (folder / name).mkdir(parents=True)
    image = np.full((*ids.shape, 3), 200, np.uint8) if image is None else image
    Image.fromarray(image).save(folder / split / "photo.png")
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(folder / f"panoptic_{split}" / "photo.png")
    content = {
        "categories": CATEGORIES,
        "images": [{"id": 7, "file_name": "photo.png", **(image_fields or {})}],
        "annotations": [{"image_id": 7, "file_name": "photo.png", "segments_info": segments}],
        **(top_fields or {}),
    }
    (folder / f"panoptic_{split}.json").write_text(json.dumps(content))
    return folder


FOUR_BY_FOUR = np.array(
    [
        [0, 1, 70000, 70000],
        [0, 1, 70000, 70000],
        [300, 300, 4, 4],
        [300, 300, 12, 12],
    ]
)


def test_ids_become_consecutive_and_category_ids_become_class_indices(tmp_path: Path) -> None:
    segments = [
        {"id": 70000, "category_id": 9},
        {"id": 300, "category_id": 3},
        {"id": 4, "category_id": 5, "iscrowd": 1},
    ]
    dataset = open_split(write_split(tmp_path, FOUR_BY_FOUR, segments), "val", config_for())
    image, target = dataset.original(0)
    assert image.shape == (4, 4, 3) and image.dtype == np.uint8
    # Void stays 0, none-of-these 1; the crowd (4) and the id that nobody lists (12) become void.
    expected = [[0, 1, 2, 2], [0, 1, 2, 2], [3, 3, 0, 0], [3, 3, 0, 0]]
    assert target.ids.tolist() == expected
    assert target.labels.tolist() == [SKY, PERSON]
    assert target.weights.tolist() == [1, 1]
    assert target.exhaustive.all(), "without the field, an image labels every category"
    assert dataset[0][1].ids.tolist() == expected, "only training items are augmented"


def test_partial_and_pseudo_labels(tmp_path: Path) -> None:
    segments = [{"id": 70000, "category_id": 9, "pseudo": 1}, {"id": 300, "category_id": 3}]
    write_split(
        tmp_path,
        FOUR_BY_FOUR,
        segments,
        image_fields={"exhaustive": "animals", "source": "zoo"},
        top_fields={"exhaustive": {"animals": ["dog"], "all": ["dog", "person", "sky"]}},
    )
    dataset = open_split(tmp_path, "val", config_for(pseudo_weight=0.25))
    assert dataset.records[0].source == "zoo"
    assert dataset.records[0].file_name == "photo.png"

    _, judged = dataset.original(0)
    assert judged.exhaustive.tolist() == [False, True, False]
    assert judged.labels.tolist() == [PERSON], "what a machine named is not judged"
    # But it is no dog, for all dogs are labelled.
    assert judged.ids.tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]]

    _, learned = dataset.augmented(0)
    assert learned.labels.tolist() == [SKY, PERSON], "and a lighter lesson in training"
    assert learned.weights.tolist() == [0.25, 1]

    segments[0]["category_id"] = 5  # a dog that only a machine saw, where people labelled all dogs
    folder = write_split(
        tmp_path / "other",
        FOUR_BY_FOUR,
        segments,
        image_fields={"exhaustive": "animals"},
        top_fields={"exhaustive": {"animals": ["dog"]}},
    )
    _, judged = open_split(folder, "val", config_for()).original(0)
    assert judged.ids.tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [2, 2, 0, 0], [2, 2, 0, 0]], "who knows"


def test_an_id_of_one_may_be_a_segment_in_standard_files(tmp_path: Path) -> None:
    write_split(tmp_path, np.ones((4, 4), int), [{"id": 1, "category_id": 5}])
    _, target = open_split(tmp_path, "val", config_for()).original(0)
    assert target.labels.tolist() == [DOG]
    assert (target.ids == 2).all()


def test_image_and_ids_are_cropped_and_flipped_together(tmp_path: Path) -> None:
    # Eight columns of segments; the photo's red channel says the column too. No resizing: 64 px stay 64 px.
    columns = np.arange(64) // 8
    ids = np.broadcast_to(columns + 10, (64, 64))
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = columns * 30
    write_split(tmp_path, ids, [{"id": i, "category_id": 3} for i in range(10, 18)], image, split="train")
    dataset = open_split(tmp_path, "train", config_for(crop_px=(32, 32), short_sides_px=(64,)))
    torch.manual_seed(0)
    flipped = kept = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pem.training.data.jitter_colour", lambda picture: picture)
        for _ in range(20):
            pixels, target = dataset[0]
            assert pixels.shape == (3, 32, 32) and target.ids.shape == (32, 32)
            column = pixels[0, 0].int() // 30
            ids = target.ids[0].int() - 2
            # Segments that are out of the crop are left out and the rest renumbered, in the order of the file.
            assert len(target.labels) == len(target.weights) == len(ids.unique()) == int(ids.max()) + 1
            assert (column - column.min()).tolist() == ids.tolist()
            flipped += bool(column[0] > column[-1])
            kept += bool(column[0] < column[-1])
    assert flipped >= 4 and kept >= 4


def test_padding_is_grey_and_none_of_these(tmp_path: Path) -> None:
    # 16 x 32 px at short side 16 inside a crop of 32 x 48: padded below and on the right.
    write_split(tmp_path, np.full((16, 32), 5), [{"id": 5, "category_id": 5}], split="train")
    dataset = open_split(tmp_path, "train", config_for(crop_px=(32, 48), short_sides_px=(16,)))
    pixels, target = dataset[0]
    assert pixels.shape == (3, 32, 48) and pixels.dtype == torch.uint8
    assert (pixels[:, 16:] == 128).all() and (pixels[:, :, 32:] == 128).all()
    assert (target.ids[:16, :32] == 2).all()
    assert (target.ids[16:] == 1).all() and (target.ids[:, 32:] == 1).all()


def test_scale_jitter_keeps_the_long_side_below_its_cap(tmp_path: Path) -> None:
    write_split(tmp_path, np.full((20, 80), 5), [{"id": 5, "category_id": 5}], split="train")
    config = config_for(crop_px=(500, 500), short_sides_px=(40,), max_long_side_px=120, pad_to_crop=False)
    pixels, target = open_split(tmp_path, "train", config)[0]
    assert pixels.shape == (3, 30, 120)  # a short side of 40 would make the long one 160
    assert target.ids.shape == (30, 120)


def test_a_large_jpeg_decoded_small_stays_aligned_with_its_labels(tmp_path: Path) -> None:
    ids = np.full((512, 768), 5)
    ids[200:300, 384:] = 6
    write_split(
        tmp_path, ids, [{"id": 5, "category_id": 5}, {"id": 6, "category_id": 3}], np.zeros((512, 768, 3), np.uint8)
    )
    image = np.where(ids[..., None] == 6, 255, 0).astype(np.uint8).repeat(3, axis=2)
    Image.fromarray(image).save(tmp_path / "val" / "photo.png", format="JPEG", quality=95)
    dataset = open_split(tmp_path, "val", config_for(crop_px=(64, 64), short_sides_px=(64, 100)))
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pem.training.data.jitter_colour", lambda picture: picture)
        for _ in range(10):
            pixels, target = dataset.augmented(0)
            white = torch.isin(target.ids, (target.labels == PERSON).nonzero() + 2)
            assert ((pixels[0] > 127) == white).float().mean() > 0.98


def test_colour_jitter_is_drawn_from_torch_and_keeps_the_labels(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    write_split(tmp_path, np.full((32, 32), 5), [{"id": 5, "category_id": 5}], image, split="train")
    dataset = open_split(tmp_path, "train", config_for())

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dataset[0][0]

    assert torch.equal(draw(3), draw(3)), "the same seed gives the same picture"
    assert len({tuple(draw(seed).flatten().tolist()) for seed in range(8)}) > 4


def test_an_image_without_segments_is_a_sample(tmp_path: Path) -> None:
    write_split(tmp_path, np.zeros((40, 40), int), [], split="train")
    pixels, target = open_split(tmp_path, "train", config_for())[0]
    assert pixels.shape == (3, 32, 32)
    assert target.labels.shape == target.weights.shape == (0,)
    assert (target.ids == 0).all()


def test_things_are_pasted_with_their_labels_and_what_they_hide_is_gone() -> None:
    def sample(ids: list[list[int]], labels: list[int], weights: list[float], grey: int) -> tuple[torch.Tensor, Target]:
        grid = torch.tensor(ids, dtype=torch.int16)
        exhaustive = torch.tensor([True, False, True])
        return torch.full((3, *grid.shape), grey, dtype=torch.uint8), Target(
            grid, torch.tensor(labels), torch.tensor(weights), exhaustive
        )

    onto = sample([[2, 2, 3], [0, 1, 3], [4, 4, 4]], [SKY, PERSON, DOG], [0.5, 1.0, 1.0], grey=10)
    # Two dogs, of which a machine named the second, and a person; a row more than there is room for.
    source = sample([[4, 3, 2], [4, 0, 2], [0, 0, 0], [2, 2, 2]], [DOG, DOG, PERSON], [1.0, 0.5, 1.0], grey=200)
    image, target = paste(onto, source, DOG)
    assert target.ids.tolist() == [[2, 2, 4], [0, 1, 4], [3, 3, 3]]  # the person is hidden, the rest is renumbered
    assert target.labels.tolist() == [SKY, DOG, DOG] and target.weights.tolist() == [0.5, 1.0, 1.0]
    assert target.exhaustive.tolist() == [True, False, True]
    assert image[0].tolist() == [[10, 10, 200], [10, 10, 200], [10, 10, 10]]
    assert onto[1].ids[0, 2] == 3 and onto[0][0, 0, 2] == 10  # the photo itself stays as it was

    image, target = paste(onto, source, SKY)  # of which the other shows nothing
    assert torch.equal(image, onto[0]) and torch.equal(target.ids, onto[1].ids)


def test_a_small_photo_is_laid_anywhere_on_a_larger_one() -> None:
    torch.manual_seed(0)
    labels, weights, exhaustive = torch.tensor([DOG]), torch.ones(1), torch.ones(3, dtype=torch.bool)
    onto = Target(torch.ones(4, 6, dtype=torch.int16), labels[:0], weights[:0], exhaustive)
    source = Target(torch.full((2, 3), 2, dtype=torch.int16), labels, weights, exhaustive)
    corners = set()
    for _ in range(200):
        image, target = paste((torch.zeros(3, 4, 6), onto), (torch.ones(3, 2, 3), source), DOG)
        rows, cols = (target.ids == 2).nonzero(as_tuple=True)
        assert torch.equal(image[0] == 1, target.ids == 2) and len(rows) == 6
        corners.add((int(rows.min()), int(cols.min())))
    assert corners == {(row, col) for row in range(3) for col in range(4)}


def test_copy_paste_draws_things_of_every_class_alike(tmp_path: Path) -> None:
    ids = np.repeat(np.repeat(FOUR_BY_FOUR, 8, 0), 8, 1)
    segments = [{"id": 70000, "category_id": 3}, {"id": 300, "category_id": 5}, {"id": 4, "category_id": 9}]
    folder = write_split(tmp_path, ids, segments, split="train")
    torch.manual_seed(0)
    plain = open_split(folder, "train", config_for())
    assert plain.photos_of_thing == {PERSON: [0], DOG: [0]}
    assert all(plain[0][1].labels.tolist() == [PERSON, DOG, SKY] for _ in range(8))

    pasted = open_split(folder, "train", config_for(copy_paste=1.0))
    last = [pasted[0][1].labels[-1].item() for _ in range(64)]  # on top of everything, so always there
    assert set(last) == {PERSON, DOG} and 20 < last.count(DOG) < 44
    sizes = [int((target.ids == len(target.labels) + 1).sum()) for _, target in (pasted[0] for _ in range(64))]
    assert min(sizes) < max(sizes) / 6  # things are pasted smaller than they are seen otherwise


def test_photos_are_read_as_the_page_reads_them(tmp_path: Path) -> None:
    """Upright, as people saw them who drew the labels, and 16 bits scaled to 8."""
    levels = np.repeat(np.linspace(0, 65535, 32, dtype=np.uint16)[:, None], 32, axis=1)
    ids = np.repeat([300, 70000], 16)[:, None].repeat(32, 1)  # above the dark half, below the bright one: upside down
    folder = write_split(tmp_path, ids, [{"id": 300, "category_id": 5}, {"id": 70000, "category_id": 9}])
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(levels).save(folder / "val" / "photo.png", exif=exif)
    for name in ("panoptic_train.json", "train", "panoptic_train"):
        (folder / name).symlink_to(folder / name.replace("train", "val"))
    pixels, target = open_split(folder, "val", config_for()).original(0)
    assert pixels[0, 0].tolist() == [255] * 3 and pixels[-1, 0].tolist() == [0] * 3
    assert target.labels.tolist() == [DOG, SKY] and target.ids[0, 0] == 2 and target.ids[-1, 0] == 3
    augmented, target = open_split(folder, "train", config_for()).augmented(0)
    assert augmented[0, target.ids == 2].float().mean() > 2 * augmented[0, target.ids == 3].float().mean()


def test_collate_pads_to_the_largest_and_to_32(tmp_path: Path) -> None:
    config = config_for(crop_px=(100, 100), pad_to_crop=False)
    shapes = ((32, 40), (50, 32))
    samples = []
    for shape in shapes:
        folder = write_split(tmp_path / str(shape), np.full(shape, 5), [{"id": 5, "category_id": 5}])
        samples.append(open_split(folder, "val", config).augmented(0))
    pixels, targets = collate(samples)
    assert pixels.shape == (2, 3, 64, 64) and pixels.dtype == torch.uint8
    # The short side of both becomes 32: 32 x 40 stays, 50 x 32 stays.
    for padded, target, (height, width) in zip(pixels, targets, shapes, strict=True):
        assert (target.ids == 2).sum() == height * width and (target.ids[:height, :width] == 2).all()
        assert (padded[:, height:] == 128).all() and (padded[:, :, width:] == 128).all()


def test_tars_are_unpacked_once_into_the_cache(tmp_path: Path) -> None:
    unpacked = write_split(tmp_path / "unpacked", np.full((40, 40), 5), [{"id": 5, "category_id": 5}])
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    (data / "panoptic_val.json").write_bytes((unpacked / "panoptic_val.json").read_bytes())
    for shard, name in enumerate(("val", "panoptic_val")):
        with tarfile.open(data / f"val-{shard}.tar", "w") as tar:
            tar.add(unpacked / name, arcname=name)

    first = open_split(data, "val", config_for(), cache)
    assert first.original(0)[1].labels.tolist() == [DOG]
    assert sorted(path.name for path in data.iterdir()) == ["panoptic_val.json", "val-0.tar", "val-1.tar"]
    written = first.records[0].image_path.stat().st_ino
    assert open_split(data, "val", config_for(), cache).records[0].image_path.stat().st_ino == written
    assert len(list(cache.iterdir())) == 1, "no half-unpacked folder is left"


def test_errors_are_one_sentence_that_names_the_trouble(tmp_path: Path) -> None:
    folder = write_split(tmp_path, FOUR_BY_FOUR, [{"id": 300, "category_id": 3}])
    with pytest.raises(ValueError, match="has 3 categories but config .* num_classes 47"):
        open_split(folder, "val", pem.get_config("default"))
    with pytest.raises(FileNotFoundError, match="neither a folder 'test' nor"):
        open_split(folder, "test", config_for())
    with pytest.raises(FileNotFoundError, match="There is no .*panoptic.json"):
        PanopticDataset(folder / "panoptic.json", folder, folder, config_for(), train=False)
    (folder / "val" / "photo.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 files named in .*photo.png"):
        open_split(folder, "val", config_for())


def test_unknown_categories_and_lists_and_sizes_are_refused(tmp_path: Path) -> None:
    stranger = write_split(tmp_path / "a", FOUR_BY_FOUR, [{"id": 300, "category_id": 4}])
    with pytest.raises(ValueError, match="category 4, which its categories lack"):
        open_split(stranger, "val", config_for())
    unlisted = write_split(tmp_path / "b", FOUR_BY_FOUR, [], image_fields={"exhaustive": "towns"})
    with pytest.raises(ValueError, match="no list 'towns'"):
        open_split(unlisted, "val", config_for())
    other_size = write_split(tmp_path / "c", FOUR_BY_FOUR, [], image=np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="differ in size"):
        open_split(other_size, "val", config_for()).original(0)


@pytest.mark.parametrize("which", ["val/photo.png", "panoptic_val/photo.png"])
def test_a_damaged_file_is_named(tmp_path: Path, which: str) -> None:
    folder = write_split(tmp_path, FOUR_BY_FOUR, [{"id": 300, "category_id": 3}])
    (folder / which).write_bytes((folder / which).read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{which} cannot be read .*; replace the file"):
        open_split(folder, "val", config_for()).original(0)
    (folder / "train").symlink_to(folder / "val")
    (folder / "panoptic_train").symlink_to(folder / "panoptic_val")
    (folder / "panoptic_train.json").symlink_to(folder / "panoptic_val.json")
    with pytest.raises(ValueError, match="photo.png cannot be read .*; replace the file"):
        open_split(folder, "train", config_for()).augmented(0)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"images": [], "annotations": []}', '{"categories": [{"id": 1, "name": "cat"}]}', "\x00"]
)
def test_a_json_in_another_format_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_split(tmp_path, FOUR_BY_FOUR, [])
    (folder / "panoptic_val.json").write_text(text)
    with pytest.raises(ValueError, match="panoptic_val.json is not in the COCO panoptic format"):
        open_split(folder, "val", config_for())


def test_a_grey_label_image_is_refused(tmp_path: Path) -> None:
    folder = write_split(tmp_path, FOUR_BY_FOUR, [{"id": 300, "category_id": 3}])
    Image.fromarray(np.full((4, 4), 10, np.uint8)).save(folder / "panoptic_val" / "photo.png")
    with pytest.raises(ValueError, match=r"photo.png has no three channels .*; save the segment ids as RGB"):
        open_split(folder, "val", config_for()).original(0)


def test_data_with_other_classes_need_another_model(tmp_path: Path) -> None:
    folder = write_split(tmp_path, FOUR_BY_FOUR, [{"id": 300, "category_id": 3}], split="train")
    preset = pem.get_config("cityscapes-panoptic-r50")
    config = with_classes_of(preset, folder)
    assert config.categories == ((3, "person", True), (5, "dog", True), (9, "sky", False)) and config.num_classes == 3
    assert with_classes_of(config, folder) is config
    assert len(open_split(folder, "train", config)) == 1
    spelled = dataclasses.replace(config, categories=((3, "Person", True), (5, "hound", True), (9, "sky", False)))
    assert with_classes_of(spelled, folder).categories == config.categories, "one class is another"
    assert len(open_split(folder, "train", spelled)) == 1, "most names agree: good enough to be judged by"
    first = dataclasses.replace(config, categories=((3, "Person", True), (5, "dog", True), (9, "Sky", False)))
    assert with_classes_of(first, folder) is first
    spelled = dataclasses.replace(config, categories=((3, "Person, human", True), (5, " dog", True), (9, "sky", False)))
    assert with_classes_of(spelled, folder) is spelled
    assert len(open_split(folder, "train", spelled)) == 1
    numbered = dataclasses.replace(config, categories=((1, "person", True), (2, "dog", True), (3, "sky", False)))
    assert with_classes_of(numbered, folder).categories == config.categories, "the data's own ids"
    swapped = dataclasses.replace(config, categories=((3, "dog", True), (5, "person", True), (9, "sky", False)))
    with pytest.raises(ValueError, match="calls a class 'person' that config .* calls 'dog'; use a model made"):
        open_split(folder, "train", swapped)
    stuff = dataclasses.replace(config, categories=((3, "person", True), (5, "dog", False), (9, "sky", False)))
    assert with_classes_of(stuff, folder).categories == config.categories
    birds = dataclasses.replace(config, categories=((1, "finch", True), (2, "wren", True), (3, "sky", False)))
    with pytest.raises(ValueError, match="calls a class 'person' that config .* calls 'finch'; use a model made"):
        open_split(folder, "train", birds)
