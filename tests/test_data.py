"""Photos and labels: what becomes of ids, partial labels and pixels on the way from the files to a batch."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import lzma
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_files import png
from PIL import Image

import pem
from pem.categories import categories_for
from pem.config import PEMConfig
from pem.training.augmentation import paste
from pem.training.coco import with_classes_of
from pem.training.config import TrainingConfig
from pem.training.data import PanopticDataset, collate, open_split
from pem.training.target import Target

CATEGORIES = [  # deliberately neither sorted nor gapless
    {"id": 9, "name": "sky", "isthing": 0},
    {"id": 3, "name": "person", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
]
PERSON, DOG, SKY = 0, 1, 2


CONFIG = dataclasses.replace(pem.get_config("default"), num_classes=3)


def training_for(crop_px: tuple[int, int] = (32, 32), **settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"short_sides_px": (32,), "crop_px": crop_px, "pad_to_crop": True, **settings})


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
    (folder / f"panoptic_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def doubled(ids: list[list[int]] | np.ndarray) -> np.ndarray:
    """Each pixel as 2 x 2: photos have 8 pixels a side at least."""
    return np.repeat(np.repeat(np.array(ids), 2, 0), 2, 1)


FOUR = [[0, 1, 70000, 70000], [0, 1, 70000, 70000], [300, 300, 4, 4], [300, 300, 4, 4]]
IDS = doubled(FOUR)
WITHOUT_ONE = np.where(IDS == 1, 0, IDS)  # where no list of exhaustive categories gives id 1 a meaning
SEGMENTS = [{"id": 70000, "category_id": 9}, {"id": 300, "category_id": 3}, {"id": 4, "category_id": 5}]


def test_ids_become_consecutive_and_category_ids_become_class_indices(tmp_path: Path) -> None:
    segments = [*SEGMENTS[:2], {"id": 4, "category_id": 5, "iscrowd": 1}]
    dataset = open_split(write_split(tmp_path, WITHOUT_ONE, segments), "val", CONFIG)
    image, target = dataset.original(0)
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    # Void stays 0; the crowd comes after the segments.
    expected = doubled([[0, 0, 2, 2], [0, 0, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]).tolist()
    assert target.ids.tolist() == expected
    assert target.labels.tolist() == [SKY, PERSON] and target.crowds.tolist() == [DOG]
    assert target.weights.tolist() == [1, 1]
    assert target.exhaustive.all(), "without the field, an image labels every category"
    assert dataset[0][1].ids.tolist() == expected, "only training items are augmented"
    _, learned = open_split(tmp_path, "val", CONFIG, training_for()).augmented(0)
    assert set(learned.ids.unique().tolist()) == {1, 2, 3}, "outside of every mask, as in Mask2Former's training"
    assert len(learned.crowds) == 0


def test_where_all_segments_are_things_pixels_of_no_segment_are_the_background(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_split(tmp_path, np.where(IDS == 4, 4, 0), SEGMENTS[2:])  # a dog, in a file that could have a sky
    _, target = open_split(folder, "val", CONFIG).original(0)
    assert target.ids.tolist() == doubled([[1] * 4, [1] * 4, [1, 1, 2, 2], [1, 1, 2, 2]]).tolist()
    assert target.labels.tolist() == [DOG] and target.exhaustive.all()
    (remark,) = caplog.messages
    assert "has no segment of the stuff that it lists (sky), so pixels of no segment are background" in remark


def test_partial_and_pseudo_labels(tmp_path: Path) -> None:
    segments = [{"id": 70000, "category_id": 9, "pseudo": 1}, {"id": 300, "category_id": 3}]
    ids = np.where(IDS == 4, 0, IDS)
    write_split(
        tmp_path,
        ids,
        segments,
        image_fields={"exhaustive": "animals", "source": "zoo"},
        top_fields={"exhaustive": {"animals": ["dog"], "all": ["dog", "person", "sky"]}},
    )
    dataset = open_split(tmp_path, "val", CONFIG, training_for(pseudo_weight=0.25))
    assert dataset.records[0].source == "zoo"
    assert dataset.records[0].file_name == "photo.png"

    _, judged = dataset.original(0)
    assert judged.exhaustive.tolist() == [False, True, False]
    assert judged.labels.tolist() == [PERSON], "what a machine named is not judged"
    # But it is no dog, for all dogs are labelled.
    assert judged.ids.tolist() == doubled([[0, 1, 1, 1], [0, 1, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]]).tolist()

    _, learned = dataset.augmented(0)
    assert learned.labels.tolist() == [SKY, PERSON], "and a lighter lesson in training"
    assert learned.weights.tolist() == [0.25, 1]
    assert set(learned.ids.unique().tolist()) == {0, 1, 2, 3}, "nobody knows what has no segment"

    segments[0]["category_id"] = 5  # a dog that only a machine saw, where people labelled all dogs
    folder = write_split(
        tmp_path / "other",
        ids,
        segments,
        image_fields={"exhaustive": "animals"},
        top_fields={"exhaustive": {"animals": ["dog"]}},
    )
    _, judged = open_split(folder, "val", CONFIG).original(0)
    assert judged.ids.tolist() == doubled([[0, 1, 0, 0], [0, 1, 0, 0], [2, 2, 0, 0], [2, 2, 0, 0]]).tolist()


def test_an_id_of_one_may_be_a_segment_in_standard_files(tmp_path: Path) -> None:
    write_split(tmp_path, np.ones((8, 8), int), [{"id": 1, "category_id": 5}])
    _, target = open_split(tmp_path, "val", CONFIG).original(0)
    assert target.labels.tolist() == [DOG]
    assert (target.ids == 2).all()


def test_image_and_ids_are_cropped_and_flipped_together(tmp_path: Path) -> None:
    # Eight columns of segments; the photo's red channel says the column too. No resizing: 64 px stay 64 px.
    columns = np.arange(64) // 8
    ids = np.broadcast_to(columns + 10, (64, 64))
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = columns * 30
    write_split(tmp_path, ids, [{"id": i, "category_id": 3} for i in range(10, 18)], image, split="train")
    dataset = open_split(tmp_path, "train", CONFIG, training_for(crop_px=(32, 32), short_sides_px=(64,)))
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
    dataset = open_split(tmp_path, "train", CONFIG, training_for(crop_px=(32, 48), short_sides_px=(16,)))
    pixels, target = dataset[0]
    assert pixels.shape == (3, 32, 48) and pixels.dtype == torch.uint8
    assert (pixels[:, 16:] == 128).all() and (pixels[:, :, 32:] == 128).all()
    assert (target.ids[:16, :32] == 2).all()
    assert (target.ids[16:] == 1).all() and (target.ids[:, 32:] == 1).all()


def test_scale_jitter_keeps_the_long_side_below_its_cap(tmp_path: Path) -> None:
    write_split(tmp_path, np.full((20, 80), 5), [{"id": 5, "category_id": 5}], split="train")
    training = training_for(crop_px=(500, 500), short_sides_px=(40,), max_long_side_px=120, pad_to_crop=False)
    pixels, target = open_split(tmp_path, "train", CONFIG, training)[0]
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
    dataset = open_split(tmp_path, "val", CONFIG, training_for(crop_px=(64, 64), short_sides_px=(64, 100)))
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
    dataset = open_split(tmp_path, "train", CONFIG, training_for())

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dataset[0][0]

    assert torch.equal(draw(3), draw(3)), "the same seed gives the same picture"
    assert len({tuple(draw(seed).flatten().tolist()) for seed in range(8)}) > 4


def test_an_image_without_segments_is_a_sample(tmp_path: Path) -> None:
    write_split(tmp_path, np.zeros((40, 40), int), [], split="train")
    pixels, target = open_split(tmp_path, "train", CONFIG, training_for())[0]
    assert pixels.shape == (3, 32, 32)
    assert target.labels.shape == target.weights.shape == (0,)
    assert (target.ids == 1).all(), "all of it is known to be no segment"


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
    ids = np.repeat(np.repeat(WITHOUT_ONE, 4, 0), 4, 1)
    segments = [{"id": 70000, "category_id": 3}, {"id": 300, "category_id": 5}, {"id": 4, "category_id": 9}]
    folder = write_split(tmp_path, ids, segments, split="train")
    torch.manual_seed(0)
    plain = open_split(folder, "train", CONFIG, training_for())
    assert plain.photos_of_thing == {PERSON: [0], DOG: [0]}
    assert all(plain[0][1].labels.tolist() == [PERSON, DOG, SKY] for _ in range(8))

    pasted = open_split(folder, "train", CONFIG, training_for(copy_paste=1.0))
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
    pixels, target = open_split(folder, "val", CONFIG).original(0)
    assert pixels[0, 0].tolist() == [255] * 3 and pixels[-1, 0].tolist() == [0] * 3
    assert target.labels.tolist() == [DOG, SKY] and target.ids[0, 0] == 2 and target.ids[-1, 0] == 3
    augmented, target = open_split(folder, "train", CONFIG, training_for()).augmented(0)
    assert augmented[0, target.ids == 2].float().mean() > 2 * augmented[0, target.ids == 3].float().mean()


def test_collate_pads_to_the_largest_and_to_32(tmp_path: Path) -> None:
    training = training_for(crop_px=(100, 100), pad_to_crop=False)
    shapes = ((32, 40), (50, 32))
    samples = []
    for shape in shapes:
        folder = write_split(tmp_path / str(shape), np.full(shape, 5), [{"id": 5, "category_id": 5}])
        samples.append(open_split(folder, "val", CONFIG, training).augmented(0))
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

    first = open_split(data, "val", CONFIG, cache=cache)
    assert first.original(0)[1].labels.tolist() == [DOG]
    assert sorted(path.name for path in data.iterdir()) == ["panoptic_val.json", "val-0.tar", "val-1.tar"]
    written = first.records[0].image_path.stat().st_ino
    assert open_split(data, "val", CONFIG, cache=cache).records[0].image_path.stat().st_ino == written
    assert len(list(cache.iterdir())) == 1, "no half-unpacked folder is left"
    first.records[0].image_path.unlink()  # as systems do with temporary files that nobody used for long
    assert open_split(data, "val", CONFIG, cache=cache).original(0)[1].labels.tolist() == [DOG]
    whole = (data / "val-1.tar").read_bytes()
    for packed in (whole[:1400], *(kind.compress(whole) for kind in (gzip, bz2, lzma))):
        (data / "val-1.tar").write_bytes(packed[: len(packed) // 2])
        with pytest.raises(ValueError, match="val-1.tar cannot be unpacked .*; replace the file"):
            open_split(data, "val", CONFIG, cache=cache)


def test_errors_are_one_sentence_that_names_the_trouble(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    with pytest.raises(ValueError, match="has the class 'fox', which the model 'default' .* does not know"):
        edit_json(folder, lambda content: content["categories"][2].update(name="fox"))
        open_split(folder, "val", pem.get_config("default"))
    with pytest.raises(FileNotFoundError, match="neither a folder 'test' nor"):
        open_split(folder, "test", CONFIG)
    with pytest.raises(FileNotFoundError, match="There is no .*panoptic.json"):
        PanopticDataset(folder / "panoptic.json", folder, folder, CONFIG)
    (folder / "val" / "photo.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 files named in .*photo.png"):
        open_split(folder, "val", CONFIG)


def edit_json(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "panoptic_val.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a segment without pixels": (
        lambda c: c["annotations"][0]["segments_info"].append({"id": 17, "category_id": 3}),
        "panoptic_val/photo.png has no pixel of segment 17, which the JSON lists; make both agree",
    ),
    "a segment of another id": (
        lambda c: c["annotations"][0]["segments_info"][2].update(id=5),
        "photo.png has no pixel of segment 5, which the JSON lists, and has 16 pixels of id 4, which the JSON does not",
    ),
    "an id twice in an image": (
        lambda c: c["annotations"][0]["segments_info"].append({"id": 300, "category_id": 5}),
        "image 'photo.png': two of its segments have the id 300; give each one its own",
    ),
    "an id that three bytes cannot hold": (
        lambda c: c["annotations"][0]["segments_info"][0].update(id=2**24),
        "segment id 16777216 is not from 1 to 16777215",
    ),
    "id 0": (lambda c: c["annotations"][0]["segments_info"][0].update(id=0), "segment id 0 is not from 1 to"),
    "an id that is no number": (
        lambda c: c["annotations"][0]["segments_info"][0].update(id="seven"),
        "its id is 'seven', which is no whole number",
    ),
    "an infinite id": (
        lambda c: c["annotations"][0]["segments_info"][0].update(id=float("inf")),
        "its id is inf, which is no whole number",
    ),
    "an id that is half a number": (
        lambda c: c["annotations"][0]["segments_info"][0].update(id=300.5),
        "its id is 300.5, which is no whole number",
    ),
    "an unknown category": (
        lambda c: c["annotations"][0]["segments_info"][0].update(category_id=4),
        "its segment 70000 has category 4, which the categories lack",
    ),
    "a crowd that is neither": (
        lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd=2),
        "its iscrowd is 2, which is neither 0 nor 1",
    ),
    "an image id twice": (
        lambda c: c["images"].append(dict(c["images"][0], file_name="other.png")),
        "has two images of the id 7",
    ),
    "two annotations of an image": (
        lambda c: c["annotations"].append(dict(c["annotations"][0], image_id="7")),
        "has two annotations of the image 7",
    ),
    "no annotation": (
        lambda c: c["annotations"][0].update(image_id=8),
        "has no annotation of 1 of its images, such as 'photo.png'; add them",
    ),
    "no image": (lambda c: c.update(images=[]), "lists no image"),
    "no category": (lambda c: c.update(categories=[]), "has no categories"),
    "a category id twice": (lambda c: c["categories"][0].update(id=3), "two categories of the id 3"),
    "the category id 0 twice": (
        lambda c: [category.update(id=0) for category in c["categories"][:2]],
        "two categories of the id 0",
    ),
    "a category name twice": (lambda c: c["categories"][0].update(name="dog"), "two categories of the name 'dog'"),
    "a category without a name": (lambda c: c["categories"][0].update(name=None), "its name is None; give it one"),
    "a category without isthing": (
        lambda c: [category.pop("isthing") for category in c["categories"]],
        "category 'sky': it has no isthing; add 1 for things, 0 for stuff",
    ),
    "a file for detection": (
        lambda c: [annotation.pop("segments_info") for annotation in c["annotations"]],
        "no segments_info, as in a file for detection",
    ),
    "an unknown list": (lambda c: c["images"][0].update(exhaustive="towns"), "names the list 'towns', which"),
    "a list that is no name": (
        lambda c: c["images"][0].update(exhaustive=["dog"]),
        "names the list \\['dog'\\], which",
    ),
    "a list of unknown categories": (lambda c: c.update(exhaustive={"a": ["cow"]}), "names 'cow', which is no"),
    "a photo without a name": (lambda c: c["images"][0].update(file_name=7), "its file_name is 7, which is no name"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_json_is_refused_by_file_id_and_remedy(tmp_path: Path, what: str) -> None:
    edit, message = WRONG[what]
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    assert len(open_split(folder, "val", CONFIG)) == 1
    edit_json(folder, edit)
    with pytest.raises(ValueError, match=message) as caught:
        open_split(folder, "val", CONFIG)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def sound_spellings(content: dict[str, Any]) -> None:
    for category, spelling in zip(content["categories"], ("isthing", "is_thing", "isThing"), strict=True):
        category[spelling] = bool(category.pop("isthing"))
    content["categories"][0]["isthing"] = "0.0"
    content["images"][0]["id"], content["annotations"][0]["image_id"] = 7, "7"
    segments = content["annotations"][0]["segments_info"]
    segments[0].update(id="70000", category_id=9.0, iscrowd=False)
    segments[1].update(id=300.0, iscrowd="0")
    segments[2].update(isCrowd="true")
    content["images"][0]["source"] = None


def test_every_usual_spelling_of_a_field_is_understood(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    edit_json(folder, sound_spellings)
    path = folder / "panoptic_val.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # with a mark, as some editors write UTF-8
    dataset = open_split(folder, "val", CONFIG)
    assert [category["isthing"] for category in dataset.categories] == [True, True, False]
    assert dataset.records[0].source == ""
    _, target = dataset.original(0)
    assert target.labels.tolist() == [SKY, PERSON] and target.crowds.tolist() == [DOG]


def test_what_is_merely_odd_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    edit_json(folder, lambda content: content["annotations"].append({"image_id": 9, "segments_info": []}))
    open_split(folder, "val", CONFIG).original(0)
    (remark,) = caplog.messages
    assert remark == f"{folder / 'panoptic_val.json'}: 1 annotations are of images that it does not list."


def test_ids_that_the_json_does_not_list_are_no_segment_and_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_split(tmp_path, IDS, SEGMENTS[:2])
    dataset = open_split(folder, "val", CONFIG, training_for())
    (remark,) = caplog.messages
    assert "photo.png has 24 pixels of id 1, 4, which the JSON does not list: they are read as no segment" in remark
    assert "1 of 1 images" in remark
    _, target = dataset.original(0)
    assert target.ids[::2, ::2].tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [3, 3, 0, 0], [3, 3, 0, 0]]
    _, learned = dataset.augmented(0)
    assert set(learned.ids.unique().tolist()) == {1, 2, 3}


def save_labels(folder: Path, pixels: np.ndarray, **options: Any) -> None:
    Image.fromarray(pixels).save(folder / "panoptic_val" / "photo.png", **options)


def test_swapped_channels_are_recognised(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    rgb = np.asarray(Image.open(folder / "panoptic_val" / "photo.png"))
    save_labels(folder, np.ascontiguousarray(rgb[..., ::-1]))
    with pytest.raises(ValueError, match="photo.png has its channels in the order B, G, R"):
        open_split(folder, "val", CONFIG)


def test_a_palette_that_holds_the_ids_as_colours_is_read(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    rgb = open_split(folder, "val", CONFIG).original(0)[1]
    path = folder / "panoptic_val" / "photo.png"
    ids, index = np.unique(WITHOUT_ONE, return_inverse=True)
    picture = Image.fromarray(index.reshape(8, 8).astype(np.uint8)).convert("P")
    picture.putpalette(np.stack((ids % 256, ids // 256 % 256, ids // 65536), axis=1).astype(np.uint8).tobytes())
    picture.save(path)
    assert Image.open(path).mode == "P"
    assert torch.equal(open_split(folder, "val", CONFIG).original(0)[1].ids, rgb.ids)
    Image.fromarray(np.full((8, 8), 3, np.uint8)).convert("P").save(path)  # class ids instead
    with pytest.raises(ValueError, match="photo.png has no pixel of segment 4, 300, 70000, which the JSON lists"):
        open_split(folder, "val", CONFIG)


def test_labels_in_a_lossy_file_are_refused_by_its_format(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    save_labels(folder, np.asarray(Image.open(folder / "panoptic_val" / "photo.png")), format="JPEG")
    with pytest.raises(ValueError, match="photo.png is a JPEG file, which may alter ids; save the segment ids as PNG"):
        open_split(folder, "val", CONFIG)
    save_labels(folder, np.asarray(Image.open(folder / "val" / "photo.png")), format="TIFF", compression="jpeg")
    with pytest.raises(ValueError, match="photo.png is a jpeg TIFF file, which may alter ids"):
        open_split(folder, "val", CONFIG)


def test_labels_of_16_bits_are_refused_by_their_depth(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    rgb = np.asarray(Image.open(folder / "panoptic_val" / "photo.png"))
    (folder / "panoptic_val" / "photo.png").write_bytes(png(rgb.astype(">u2").tobytes(), (8, 8), 16, 2))
    with pytest.raises(
        ValueError, match="photo.png has 16 bits in each channel; save the segment ids as RGB of 8 bits"
    ):
        open_split(folder, "val", CONFIG)


@pytest.mark.parametrize("place", ["", "bonn"])
def test_photos_are_found_as_the_converter_of_cityscapes_calls_them(tmp_path: Path, place: str) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    edit_json(folder, lambda content: content["images"][0].update(file_name="bonn_1_2_gtFine_leftImg8bit.png"))
    (folder / "val" / place).mkdir(exist_ok=True)
    (folder / "val" / "photo.png").rename(folder / "val" / place / "bonn_1_2_leftImg8bit.png")
    assert len(open_split(folder, "val", CONFIG)) == 1


def test_crowds_count_as_labels_and_a_class_of_crowds_alone_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, [SEGMENTS[0] | {"iscrowd": 1}, *SEGMENTS[1:]])
    split = open_split(folder, "val", CONFIG).split
    assert not split.has_background
    (remark,) = caplog.messages
    assert "all segments of 'sky' are crowds, which nothing is learned from; set iscrowd to 0 if they are" in remark


def test_labels_of_a_photo_without_segments_may_be_grey(tmp_path: Path) -> None:
    folder = write_split(tmp_path, np.zeros((8, 8), int), [])
    for grey in (np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool), np.zeros((8, 8, 2), np.uint8)):
        save_labels(folder, grey)
        assert (open_split(folder, "val", CONFIG).original(0)[1].ids == 1).all()


def test_several_segments_of_stuff_in_a_photo_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, [SEGMENTS[0], {"id": 300, "category_id": 9}, SEGMENTS[2]])
    open_split(folder, "val", CONFIG)
    (remark,) = caplog.messages
    assert "'sky' is stuff (isthing 0), but photo.png has 2 segments of it; set isthing to 1 if they are" in remark


def test_a_file_is_found_whichever_way_its_accents_are_written(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    for place in ("val", "panoptic_val"):
        (folder / place / "photo.png").rename(folder / place / "cafe\u0301.png")
    edit_json(folder, lambda c: c["images"][0].update(file_name="caf\u00e9.png"))
    edit_json(folder, lambda c: c["annotations"][0].update(file_name="caf\u00e9.png"))
    assert open_split(folder, "val", CONFIG).original(0)[0].shape == (8, 8, 3)


def test_labels_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS, image=np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(ValueError, match="photo.png has 9 x 8 pixels, and its labels photo.png 8 x 8; label the same"):
        open_split(folder, "val", CONFIG)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_labels_of_a_turned_photo_belong_to_whichever_has_their_size(tmp_path: Path, orientation: int) -> None:
    """The bright half is the dog, in labels that are drawn on the upright photo, and on the photo as it is stored."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]  # by 90 degrees, against the clock
    for name, turned in (("upright", np.rot90(stored, turns)), ("stored", stored)):
        ids = np.where(turned[..., 0] > 127, 4, 70000)
        folder = write_split(tmp_path / name, ids, [SEGMENTS[0], SEGMENTS[2]], stored)
        Image.fromarray(stored).save(folder / "val" / "photo.png", exif=exif)
        if name == "stored" and orientation == 3:
            continue  # of one size: labels are upright, as the README says
        dataset = open_split(folder, "val", CONFIG, training_for(crop_px=(64, 64), short_sides_px=(16,)))
        pixels, target = dataset.original(0)
        assert np.array_equal(pixels[..., 0] > 127, target.ids == 3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pem.training.data.jitter_colour", lambda picture: picture)
            crop, target = dataset.augmented(0)
        assert torch.equal(crop[0] == 255, target.ids == 3)


def test_equal_labels_have_an_equal_fingerprint_and_others_another(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "a", WITHOUT_ONE, SEGMENTS)
    first = open_split(folder, "val", CONFIG)
    assert first.max_segments == 3
    again = write_split(tmp_path / "b", WITHOUT_ONE, SEGMENTS)
    assert open_split(again, "val", CONFIG).fingerprint == first.fingerprint
    mirrored = write_split(tmp_path / "c", WITHOUT_ONE[:, ::-1], SEGMENTS)
    assert open_split(mirrored, "val", CONFIG).fingerprint != first.fingerprint
    path = again / "panoptic_val.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"info": {"date": "today"}}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    assert open_split(again, "val", CONFIG).fingerprint == first.fingerprint, "the labels are the same"
    edit_json(again, lambda content: content["annotations"][0]["segments_info"][0].update(category_id=5))
    assert open_split(again, "val", CONFIG).fingerprint != first.fingerprint


def test_of_a_large_split_some_labels_are_checked_at_once_and_the_others_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pem.training.label_files.CHECKED_FILES", 1)
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)

    def with_a_second(content: dict[str, Any]) -> None:
        content["images"].append({"id": 8, "file_name": "photo.png"})
        content["annotations"].append(
            dict(content["annotations"][0], image_id=8, segments_info=[{"id": 5, "category_id": 3}])
        )

    edit_json(folder, with_a_second)
    dataset = open_split(folder, "val", CONFIG, training_for())
    for read in (dataset.original, dataset.augmented):
        read(0)
        with pytest.raises(ValueError, match="has no pixel of segment 5, which the JSON lists"):
            read(1)


def test_of_a_large_split_a_damaged_file_may_be_replaced_by_one_of_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pem.training.label_files.CHECKED_FILES", 1)
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    labels = folder / "panoptic_val" / "photo.png"
    shutil.copy(labels, labels.with_name("second.png"))

    def with_a_second(content: dict[str, Any]) -> None:
        content["images"].append({"id": 8, "file_name": "photo.png"})
        content["annotations"].append(dict(content["annotations"][0], image_id=8, file_name="second.png"))

    edit_json(folder, with_a_second)
    whole = open_split(folder, "val", CONFIG).fingerprint
    labels.with_name("second.png").write_bytes(labels.read_bytes()[:60])
    damaged = open_split(folder, "val", CONFIG)
    with pytest.raises(ValueError, match="second.png"):
        damaged.original(1)
    assert damaged.fingerprint == whole, "a run that saw the damaged file goes on with the whole one"


def test_a_list_of_exhaustive_categories_names_whole_classes_before_synonyms(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS, image_fields={"exhaustive": "a"})
    names = "chair, office", "chair, garden", "sky"

    def with_names(content: dict[str, Any], listed: list[str]) -> None:
        content["exhaustive"] = {"a": listed}
        for category, name in zip(content["categories"], names, strict=True):
            category["name"] = name

    edit_json(folder, lambda content: with_names(content, ["chair, office", "Sky, heaven"]))
    dataset = open_split(folder, "val", CONFIG)
    exhaustive = dict(zip([c["name"] for c in dataset.categories], dataset.records[0].exhaustive, strict=True))
    assert exhaustive == {"chair, office": True, "chair, garden": False, "sky": True}
    edit_json(folder, lambda content: with_names(content, ["chair"]))
    with pytest.raises(ValueError, match="names 'chair', which may be several categories; give its whole name"):
        open_split(folder, "val", CONFIG)


def test_letters_with_accents_are_the_same_however_they_are_stored(tmp_path: Path) -> None:
    composed, decomposed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    edit_json(folder, lambda content: content["categories"][0].update(name=decomposed))
    assert composed in [category["name"] for category in open_split(folder, "val", CONFIG).categories]
    edit_json(folder, lambda content: content["categories"][1].update(name=composed))
    with pytest.raises(ValueError, match="two categories of the name"):
        open_split(folder, "val", CONFIG)


def test_a_photo_beyond_the_limits_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_split(tmp_path, np.zeros((8, 8), int), [])
    Image.new("1", (20_000, 10_000)).save(folder / "val" / "photo.png")
    with pytest.raises(ValueError, match="val/photo.png: The image has .* megapixels"):
        open_split(folder, "val", CONFIG)


@pytest.mark.parametrize("which", ["val/photo.png", "panoptic_val/photo.png"])
def test_a_damaged_file_is_named(tmp_path: Path, which: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*IDS.shape, 3), np.uint8)
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS, noise)
    for name in ("panoptic_train.json", "train", "panoptic_train"):
        (folder / name).symlink_to(folder / name.replace("train", "val"))
    datasets = [
        open_split(folder, split, CONFIG, training) for split, training in (("val", None), ("train", training_for()))
    ]
    (folder / which).write_bytes((folder / which).read_bytes()[:50])
    for dataset in datasets:
        with pytest.raises(
            ValueError, match="photo.png.* (cannot be read .*; replace the file|is damaged or incomplete)"
        ):
            dataset[0]
    with pytest.raises(ValueError, match="photo.png.* (cannot be read .*; replace the file|is damaged or incomplete)"):
        open_split(folder, "val", CONFIG).original(0)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"images": [], "annotations": []}', '{"categories": [{"id": 1, "name": "cat"}]}', "\x00"]
)
def test_a_json_in_another_format_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    (folder / "panoptic_val.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="panoptic_val.json is not in the COCO panoptic format"):
        open_split(folder, "val", CONFIG)


def test_a_grey_label_image_is_refused(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    save_labels(folder, np.full((8, 8), 10, np.uint8))
    with pytest.raises(ValueError, match=r"photo.png has no three channels .*; save the segment ids as RGB"):
        open_split(folder, "val", CONFIG)


def named(*classes: tuple[int, str, bool]) -> PEMConfig:
    return dataclasses.replace(CONFIG, num_classes=len(classes), categories=classes)


def test_a_model_for_data_has_its_classes(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS, split="train")
    config = with_classes_of(pem.get_config("cityscapes-panoptic-r50"), folder)
    assert config.categories == ((3, "person", True), (5, "dog", True), (9, "sky", False)) and config.num_classes == 3
    assert with_classes_of(config, folder) is config
    for same in (
        named((3, "Person", True), (5, "dog", True), (9, "Sky", False)),
        named((3, "Person, human", True), (5, " dog", True), (9, "sky", False)),
    ):
        assert with_classes_of(same, folder) is same
    for other in (
        named((3, "Person", True), (5, "hound", True), (9, "sky", False)),
        named((1, "person", True), (2, "dog", True), (3, "sky", False)),  # the data's own ids
        named((3, "person", True), (5, "dog", False), (9, "sky", False)),
    ):
        assert with_classes_of(other, folder).categories == config.categories


def test_classes_are_found_by_name_and_a_file_may_list_a_part_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    for config in (
        named((1, "Sky, heaven", False), (2, "cat", True), (3, "hound, dog", True), (4, "PERSON", True)),
        named((1, "sky", False), (2, "cat, dog", True), (3, "dog", True), (4, "person", True)),
    ):
        dataset = open_split(folder, "val", config)
        _, target = dataset.original(0)
        assert target.labels.tolist() == [0, 3, 2]
        assert len(dataset.categories) == 4 and dataset.categories[3]["name"] == "person"
        assert target.exhaustive.tolist() == [True, False, True, True], "of cats the file says nothing"
        assert caplog.messages[-1].endswith("lists 3 of the model's 4 classes; the others are not judged.")


def test_the_names_of_ade20k_are_known_in_both_spellings(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    names = ("swimming pool, swimming bath, natatorium", "door, double door", "window ")  # the first is stuff

    def rename(content: dict[str, Any]) -> None:
        for category, name in zip(content["categories"], names, strict=True):
            category.update(name=name)

    edit_json(folder, rename)
    dataset = open_split(folder, "val", pem.get_config("ade20k-panoptic-r50"))
    ours = categories_for(dataset.config)
    assert [ours[label].name for label in dataset.records[0].labels] == ["pool", "door", "window"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (named((3, "person", True), (5, "hound", True), (9, "sky", False)), "has the class 'dog', which the model"),
        (named((3, "person", True), (9, "sky", False)), "has the class 'dog', which the model"),
        (
            named((3, "dog, cat", True), (5, "cat, dog", True), (9, "sky, person", False)),
            "calls the class 'person' a thing, the model 'default' stuff",
        ),
        (named((3, "person", True), (5, "dog", False), (9, "sky", False)), "'dog' a thing, the model 'default' stuff"),
        (named((3, "person, dog", True), (5, "cat", True), (9, "sky", False)), "two names of the class 'person, dog'"),
    ],
)
def test_data_whose_classes_are_not_the_models_are_refused_by_name(
    tmp_path: Path, config: PEMConfig, message: str
) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    with pytest.raises(ValueError, match=message):
        open_split(folder, "val", config)


def test_a_model_whose_classes_nobody_named_takes_them_in_the_order_of_their_ids(tmp_path: Path) -> None:
    folder = write_split(tmp_path, WITHOUT_ONE, SEGMENTS)
    assert open_split(folder, "val", CONFIG).original(0)[1].labels.tolist() == [SKY, PERSON, DOG]
    with pytest.raises(ValueError, match="has 3 categories but the model 'default' has 4; use a model made for"):
        open_split(folder, "val", dataclasses.replace(CONFIG, num_classes=4))
