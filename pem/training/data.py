"""Data sets of photos and labels in the format of coco.py, augmented for training or as they are."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pem.config import PEMConfig
from pem.photos import orientation, to_rgb
from pem.preprocess import padded_size
from pem.training.augmentation import draw_crop, jitter_colour, paste
from pem.training.coco import read_split
from pem.training.config import TrainingConfig
from pem.training.label_files import check_files, compare_ids, naming, open_pair, to_ids
from pem.training.shards import unpack
from pem.training.target import FIRST_SEGMENT, NONE_OF_THESE, VOID, Target

_IMAGE_PADDING = 128


class PanopticDataset(torch.utils.data.Dataset):
    """A split in the COCO panoptic format, with the K classes of a config, which are found by their names.

    With ``training``, an item is an augmented ``(image uint8 [3, H, W], Target)``, drawn with torch's random numbers.
    A share ``training.copy_paste`` of them has things of another photo pasted in. Without ``training``, an item is
    ``original(index)``.

    ``categories`` are the classes (id, name, isthing), ``fingerprint`` is a hash of all labels, and ``max_segments``
    is the largest number of segments in one photo. Raises FileNotFoundError for missing files, and ValueError where
    JSON, label PNGs, photos and config do not fit each other.
    """

    def __init__(
        self,
        json_path: str | Path,
        image_dir: str | Path,
        panoptic_dir: str | Path,
        config: PEMConfig,
        training: TrainingConfig | None = None,
    ) -> None:
        json_path = Path(json_path)
        self.config = config
        self.training = training
        self.split = read_split(json_path, Path(image_dir), Path(panoptic_dir), config)
        self.categories, self.records = self.split.categories, self.split.records
        self.fingerprint, self._checked = check_files(self.split, json_path.name)
        self.max_segments = max(len(record.labels) for record in self.records)
        self.photos_of_thing: dict[int, list[int]] = {}  # the photos that show a class of things; for copy-paste
        for index, record in enumerate(self.records):
            for label in np.unique(record.labels[~record.pseudo]).tolist():
                if self.categories[label]["isthing"]:
                    self.photos_of_thing.setdefault(label, []).append(index)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        if self.training is None:
            return self.original(index)
        sample = self.augmented(index)
        # Every class is equally likely, so that rare classes get many more examples; then comes a photo that shows it.
        if self.photos_of_thing and torch.rand(()) < self.training.copy_paste:
            label = _draw(list(self.photos_of_thing))
            # Down to a quarter of the usual size, because most things in most photos are small.
            shrink = 0.25 ** torch.rand(()).item()
            sample = paste(sample, self.augmented(_draw(self.photos_of_thing[label]), shrink, padded=False), label)
        return sample

    def original(self, index: int) -> tuple[np.ndarray, Target]:
        """For evaluation: the image in its own size, uint8 RGB [H0, W0, 3], and what people labelled in it.

        Segments that a machine named are not judged.
        """
        record = self.records[index]
        image, panoptic, upright = open_pair(record)
        with naming(record.image_path):
            pixels = np.asarray(to_rgb(image, upright))
        return pixels, self._target(index, to_ids(self._checked_labels(index, panoptic)))

    def augmented(self, index: int, shrink: float = 1.0, padded: bool = True) -> tuple[Tensor, Target]:
        """For training: a jittered, cropped, padded and perhaps flipped photo, uint8 [3, H, W], and its target."""
        settings, record = self.training, self.records[index]
        assert settings is not None, "only a dataset for training augments"
        image, panoptic, upright = open_pair(record)
        size, box = draw_crop((panoptic.height, panoptic.width), settings, shrink)
        # A JPEG decodes faster at a fraction of its size. The fraction still has all the pixels that the crop needs.
        if not upright or orientation(image) == 1:
            scale = size[1] / (box[2] - box[0]), size[0] / (box[3] - box[1])
            image.draft("RGB", (round(scale[0] * image.width), round(scale[1] * image.height)))
        with naming(record.image_path):
            image = to_rgb(image, upright)
        shrink_x, shrink_y = image.width / panoptic.width, image.height / panoptic.height
        right, bottom = min(box[2] * shrink_x, image.width), min(box[3] * shrink_y, image.height)
        image_box = (box[0] * shrink_x, box[1] * shrink_y, right, bottom)
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, image_box)
        panoptic = self._checked_labels(index, panoptic)
        panoptic = panoptic.resize((size[1], size[0]), Image.Resampling.NEAREST, box)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            panoptic = panoptic.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(jitter_colour(image))).permute(2, 0, 1)
        target = self._target(index, to_ids(panoptic), settings.pseudo_weight)
        return pad(pixels, target, settings.crop_px) if settings.pad_to_crop and padded else (pixels, target)

    def _checked_labels(self, index: int, panoptic: Image.Image) -> Image.Image:
        """A label PNG decoded, in RGB.

        Raises ValueError where it is damaged. The first time, it also does where it lacks ids that the JSON lists.
        """
        record = self.records[index]
        with naming(record.panoptic_path):
            panoptic = panoptic.convert("RGB")
        if index not in self._checked:
            compare_ids(record, to_ids(panoptic), self.split.partly_labelled)
            self._checked.add(index)
        return panoptic

    def _target(self, index: int, segment_ids: np.ndarray, pseudo_weight: float | None = None) -> Target:
        """The target of an image or a crop of it, without the segments that are not in the crop.

        With the weight of what a machine labelled it is for training, without it to judge a model by.

        Pixels of no segment are unknown in a partly labelled file. In any other file, training takes them (and crowds)
        for outside of every segment, as Mask2Former does, while the panoptic benchmark does not judge them. If only
        things are labelled, or a single class, they are judged as background: otherwise a model that paints everything
        would be perfect.
        """
        record, partly, judged = self.records[index], self.split.partly_labelled, pseudo_weight is None
        no_segment = VOID if partly or (judged and not self.split.has_background) else NONE_OF_THESE
        num_segments, num_crowds = len(record.segment_ids), len(record.crowd_ids)
        listed = record.segment_ids.max(initial=NONE_OF_THESE), record.crowd_ids.max(initial=NONE_OF_THESE)
        largest = max(segment_ids.max(), *listed)
        # One entry per possible id; the system only uses memory for the few that are touched.
        new_ids = np.zeros(largest + 1, dtype=np.int16)
        new_ids[NONE_OF_THESE] = NONE_OF_THESE if partly else VOID
        new_ids[record.segment_ids] = np.arange(num_segments) + FIRST_SEGMENT
        new_ids[record.crowd_ids] = np.arange(num_crowds) + FIRST_SEGMENT + num_segments if judged else VOID
        if judged:
            # A machine named these. If people labelled such a class completely, nobody knows what they are.
            doubtful = record.exhaustive[record.labels[record.pseudo]]
            new_ids[record.segment_ids[record.pseudo]] = np.where(doubtful, VOID, NONE_OF_THESE)
        weights = np.where(record.pseudo, 1.0 if pseudo_weight is None else pseudo_weight, 1.0)
        ids = new_ids[segment_ids]
        ids[ids == VOID] = no_segment
        return Target(
            ids=torch.from_numpy(ids),
            labels=torch.from_numpy(record.labels),
            weights=torch.from_numpy(weights.astype(np.float32)),
            exhaustive=torch.from_numpy(record.exhaustive),
            crowds=torch.from_numpy(record.crowd_labels if judged else record.crowd_labels[:0]),
        ).without_hidden()


def _draw(choices: list[int]) -> int:
    return choices[int(torch.randint(len(choices), ()))]


def pad(image: Tensor, target: Target, size: tuple[int, int]) -> tuple[Tensor, Target]:
    """Image and target at that size (height, width): grey and none of the classes below and on the right."""
    right_bottom = (0, size[1] - image.shape[2], 0, size[0] - image.shape[1])
    ids = F.pad(target.ids, right_bottom, value=NONE_OF_THESE)
    return F.pad(image, right_bottom, value=_IMAGE_PADDING), replace(target, ids=ids)


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """A batch: uint8 [B, 3, H, W], padded to the largest image and to multiples of 32, and the B targets."""
    largest = [max(image.shape[axis] for image, _ in samples) for axis in (1, 2)]
    images, targets = zip(*(pad(image, target, padded_size(largest)) for image, target in samples))
    return torch.stack(images), list(targets)


def open_split(
    folder: str | Path,
    split: str,
    config: PEMConfig,
    training: TrainingConfig | None = None,
    cache: str | Path | None = None,
) -> PanopticDataset:
    """A split of a data folder, such as "train" or "val"; its items are augmented when ``training`` is given.

    The folder holds ``panoptic_{split}.json`` and either the folders ``{split}`` and ``panoptic_{split}`` or tar files
    ``{split}*.tar`` of them. Tars are unpacked once into ``cache`` (default: a folder in the system's temporary
    files), so the data folder may be read-only. Raises FileNotFoundError when neither is there.
    """
    folder = Path(folder)

    def dataset(files: Path) -> PanopticDataset:
        paths = folder / f"panoptic_{split}.json", files / split, files / f"panoptic_{split}"
        return PanopticDataset(*paths, config, training)

    if (folder / split).is_dir():
        return dataset(folder)
    shards = sorted(folder.glob(f"{split}*.tar"))
    if not shards:
        raise FileNotFoundError(f"{folder} has neither a folder {split!r} nor {split}*.tar; check the data folder.")
    cache = Path(cache) if cache else Path(tempfile.gettempdir()) / "pem-data"
    files = unpack(shards, cache)
    try:
        return dataset(files)
    except FileNotFoundError:  # systems delete old temporary files one by one
        shutil.rmtree(files, ignore_errors=True)
        return dataset(unpack(shards, cache))
