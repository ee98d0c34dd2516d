"""Photos and their labels in the COCO panoptic format, and the augmentation they go through in training.

Two fields beyond the standard, both optional, make partly labelled data usable:

- ``images[].exhaustive`` names a list in the file's ``exhaustive``: the categories that this image labels
  completely. Any other category may be in the picture without a label. Absent = every category.
- ``segments_info[].pseudo = 1``: a machine named this segment.

A label PNG stores the segment id as R + 256 G + 65536 B. Id 0 is void (nobody knows), id 1, when it is no segment's,
says "none of this image's exhaustive categories", and an id that the JSON does not list is void as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from pem.categories import named_categories
from pem.config import PEMConfig
from pem.preprocess import SIZE_DIVISOR, to_rgb
from pem.training.augmentation import draw_crop, jitter_colour, paste
from pem.training.target import FIRST_SEGMENT, NONE_OF_THESE, VOID, Target

_IMAGE_PADDING = 128


@dataclass(frozen=True)
class Record:
    """One image of the data set, before anything is read from the disk."""

    file_name: str
    source: str  # which data set the photo came from; "" where the file does not say
    image_path: Path
    panoptic_path: Path
    segment_ids: np.ndarray  # int64 [M], as in the PNG
    crowd_ids: np.ndarray  # int64: segments of many things at once, read as void
    labels: np.ndarray  # int64 [M], class index
    pseudo: np.ndarray  # bool [M]
    exhaustive: np.ndarray  # bool [K]


class PanopticDataset(torch.utils.data.Dataset):
    """A split in the COCO panoptic format. Category ids become class indices 0..K-1 in ascending order.

    In training, an item is an augmented ``(image uint8 [3, H, W], Target)``, drawn with torch's random numbers, and in
    ``training.copy_paste`` of the cases with things of another photo pasted in. Otherwise it is ``original(index)``.

    Raises FileNotFoundError for missing files, and ValueError for a JSON in another format and when the categories
    do not fit the config.
    """

    def __init__(
        self,
        json_path: str | Path,
        image_dir: str | Path,
        panoptic_dir: str | Path,
        config: PEMConfig,
        train: bool,
    ) -> None:
        json_path = Path(json_path)
        self.config = config
        self.train = train
        with _in_coco_format(json_path):
            content = json.loads(json_path.read_text())
            self.categories = _read_categories(content)
            if misfit := _misfit(self.categories, config):
                raise ValueError(f"{json_path.name} {misfit}; use a model made for this data.")
            self.records = _read_records(content, json_path.name, self.categories, Path(image_dir), Path(panoptic_dir))
        self.photos_of_thing: dict[int, list[int]] = {}  # the photos that show a class of things; for copy-paste
        for index, record in enumerate(self.records):
            for label in np.unique(record.labels[~record.pseudo]).tolist():
                if self.categories[label]["isthing"]:
                    self.photos_of_thing.setdefault(label, []).append(index)
        missing = [path for r in self.records for path in (r.image_path, r.panoptic_path) if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} files named in {json_path.name} are missing, such as {missing[0]}; complete the data."
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        if not self.train:
            return self.original(index)
        sample = self.augmented(index)
        # Of every class alike, or those that lack examples would get few more; then one of the photos that show it.
        if self.photos_of_thing and torch.rand(()) < self.config.training.copy_paste:
            label = _draw(list(self.photos_of_thing))
            # Smaller than photos are otherwise seen, down to a quarter: so are most things in most photos.
            shrink = 0.25 ** torch.rand(()).item()
            sample = paste(sample, self.augmented(_draw(self.photos_of_thing[label]), shrink, padded=False), label)
        return sample

    def original(self, index: int) -> tuple[np.ndarray, Target]:
        """For evaluation: the image as stored, uint8 RGB [H0, W0, 3], and what people labelled in it; what a machine
        named is not judged."""
        record = self.records[index]
        image, panoptic = _open_pair(record)
        with _naming(record.image_path):
            pixels = np.asarray(to_rgb(image))
        return pixels, self._target(index, _segment_ids(panoptic), without_pseudo=True)

    def augmented(self, index: int, shrink: float = 1.0, padded: bool = True) -> tuple[Tensor, Target]:
        """Jittered in scale, cropped, padded, flipped and jittered in colour: uint8 [3, H, W] and its target."""
        settings, record = self.config.training, self.records[index]
        image, panoptic = _open_pair(record)
        size, box = draw_crop((image.height, image.width), settings, shrink)
        # A JPEG decodes faster at a fraction of its size, as long as that still has all the pixels we need.
        needed = (round(size[1] * image.width / (box[2] - box[0])), round(size[0] * image.height / (box[3] - box[1])))
        full_width, full_height = image.size
        image.draft("RGB", needed)
        shrink_x, shrink_y = image.width / full_width, image.height / full_height
        right, bottom = min(box[2] * shrink_x, image.width), min(box[3] * shrink_y, image.height)
        image_box = (box[0] * shrink_x, box[1] * shrink_y, right, bottom)
        with _naming(record.image_path):
            image = to_rgb(image).resize((size[1], size[0]), Image.Resampling.BILINEAR, image_box)
        panoptic = panoptic.resize((size[1], size[0]), Image.Resampling.NEAREST, box)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            panoptic = panoptic.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(jitter_colour(image))).permute(2, 0, 1)
        target = self._target(index, _segment_ids(panoptic))
        if settings.pad_to_crop and padded:
            right_bottom = (0, settings.crop_px[1] - size[1], 0, settings.crop_px[0] - size[0])
            pixels = F.pad(pixels, right_bottom, value=_IMAGE_PADDING)
            target = replace(target, ids=F.pad(target.ids, right_bottom, value=NONE_OF_THESE))
        return pixels.contiguous(), target

    def _target(self, index: int, segment_ids: np.ndarray, without_pseudo: bool = False) -> Target:
        """The target of an image or a crop of it; segments that are not in the crop are left out."""
        record = self.records[index]
        largest = max(segment_ids.max(), NONE_OF_THESE, record.segment_ids.max(initial=0))
        # One entry per possible id; the system hands out memory only for the few that are touched.
        new_ids = np.zeros(largest + 1, dtype=np.int16)
        new_ids[NONE_OF_THESE] = NONE_OF_THESE
        new_ids[record.segment_ids] = np.arange(len(record.segment_ids)) + FIRST_SEGMENT
        new_ids[record.crowd_ids[record.crowd_ids <= largest]] = VOID
        if without_pseudo:
            # Where people labelled all things, what a machine called a surface is known to be none of them.
            doubtful = record.exhaustive[record.labels[record.pseudo]]
            new_ids[record.segment_ids[record.pseudo]] = np.where(doubtful, VOID, NONE_OF_THESE)
        weights = np.where(record.pseudo, self.config.training.pseudo_weight, 1.0)
        return Target(
            ids=torch.from_numpy(new_ids[segment_ids]),
            labels=torch.from_numpy(record.labels),
            weights=torch.from_numpy(weights.astype(np.float32)),
            exhaustive=torch.from_numpy(record.exhaustive),
        ).without_hidden()


def _draw(choices: list[int]) -> int:
    return choices[int(torch.randint(len(choices), ()))]


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """A batch: uint8 [B, 3, H, W], padded to the largest image and to multiples of 32, and the B targets."""
    largest = [max(image.shape[axis] for image, _ in samples) for axis in (1, 2)]
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in largest)
    pixels = torch.full((len(samples), 3, height, width), _IMAGE_PADDING, dtype=torch.uint8)
    targets = []
    for padded, (image, target) in zip(pixels, samples):
        padded[:, : image.shape[1], : image.shape[2]] = image
        ids = torch.full((height, width), NONE_OF_THESE, dtype=target.ids.dtype)
        ids[: image.shape[1], : image.shape[2]] = target.ids
        targets.append(replace(target, ids=ids))
    return pixels, targets


def open_split(
    folder: str | Path,
    split: str,
    config: PEMConfig,
    cache: str | Path | None = None,
) -> PanopticDataset:
    """The split "train" (augmented) or another of a data folder.

    The folder holds ``panoptic_{split}.json`` and either the folders ``{split}`` and ``panoptic_{split}`` or tar files
    ``{split}*.tar`` of them. Tars are unpacked once into ``cache`` (default: a folder in the system's temporary
    files), so the data folder may be read-only. Raises FileNotFoundError when neither is there.
    """
    folder = Path(folder)
    json_path = folder / f"panoptic_{split}.json"
    files = folder
    if not (folder / split).is_dir():
        shards = sorted(folder.glob(f"{split}*.tar"))
        if not shards:
            raise FileNotFoundError(f"{folder} has neither a folder {split!r} nor {split}*.tar; check the data folder.")
        files = _unpack(shards, Path(cache) if cache else Path(tempfile.gettempdir()) / "pem-data")
    return PanopticDataset(json_path, files / split, files / f"panoptic_{split}", config, train=split == "train")


def _unpack(shards: list[Path], cache: Path) -> Path:
    """The folder inside the cache with what the tar files hold."""
    state = [(str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    unpacked = cache / hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    if unpacked.is_dir():
        return unpacked
    cache.mkdir(parents=True, exist_ok=True)
    # Appears under its final name only when complete, so an interrupted or a second process does no harm.
    partial = Path(tempfile.mkdtemp(dir=cache, prefix="partial-"))
    try:
        for shard in shards:
            with tarfile.open(shard) as tar:
                tar.extractall(partial, filter="data")
        os.rename(partial, unpacked)
    except OSError:
        if not unpacked.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return unpacked


def with_classes_of(config: PEMConfig, folder: str | Path) -> PEMConfig:
    """The config for training on a data folder: with the classes of its panoptic_train.json, if it has others.

    Raises FileNotFoundError when there is no such file, and ValueError when it is in another format.
    """
    json_path = Path(folder) / "panoptic_train.json"
    with _in_coco_format(json_path):
        categories = _read_categories(json.loads(json_path.read_text()))
    found = tuple((c["id"], c["name"], bool(c["isthing"])) for c in categories)
    own = [(c.id, plain_name(c.name), c.is_thing) for c in named_categories(config)]
    if own == [(category_id, plain_name(name), is_thing) for category_id, name, is_thing in found]:
        return config
    return replace(config, num_classes=len(found), categories=found)


def plain_name(name: str) -> str:
    """The spellings of a class have this in common: "Road, route" and "road" are the same one."""
    return name.split(",")[0].strip().lower()


def _read_categories(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a panoptic JSON, by class index."""
    listed = sorted(content["categories"], key=lambda category: category["id"])
    return [{key: category[key] for key in ("id", "name", "isthing")} for category in listed]


def _misfit(categories: list[dict[str, Any]], config: PEMConfig) -> str:
    """In what the categories differ from those of a config; "" if in nothing that matters."""
    if len(categories) != config.num_classes:
        return f"has {len(categories)} categories but config {config.name!r} has num_classes {config.num_classes}"
    pairs = [(theirs["name"], ours.name) for theirs, ours in zip(categories, named_categories(config))]
    other = [(theirs, ours) for theirs, ours in pairs if plain_name(theirs) != plain_name(ours)]
    # A few names of one data set may differ from file to file, but none of them is another class's.
    known = {plain_name(ours) for _, ours in pairs}
    swapped = [pair for pair in other if plain_name(pair[0]) in known]
    if swapped or 2 * len(other) > len(pairs):
        theirs, ours = (swapped or other)[0]
        return f"calls a class {theirs!r} that config {config.name!r} calls {ours!r}"
    return ""


@contextmanager
def _in_coco_format(json_path: Path) -> Iterator[None]:
    if not json_path.is_file():
        raise FileNotFoundError(f"There is no {json_path}; give the panoptic JSON of the split.")
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{json_path} is not in the COCO panoptic format ({type(error).__name__}: {error}); correct the file."
        ) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """PIL's errors do not tell which file is damaged."""
    try:
        yield
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read ({error}); replace the file.") from error


def _read_records(
    content: dict[str, Any],
    json_name: str,
    categories: list[dict[str, Any]],
    image_dir: Path,
    panoptic_dir: Path,
) -> list[Record]:
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    names = [category["name"] for category in categories]
    exhaustive = {
        key: np.array([name in listed for name in names]) for key, listed in content.get("exhaustive", {}).items()
    }
    annotations = {annotation["image_id"]: annotation for annotation in content["annotations"]}
    records = []
    for image in content["images"]:
        if image["id"] not in annotations:
            raise ValueError(f"{json_name} has no annotation for {image['file_name']}; add one or remove the image.")
        annotation = annotations[image["id"]]
        segments = [s for s in annotation["segments_info"] if not s.get("iscrowd", 0)]
        crowds = [s for s in annotation["segments_info"] if s.get("iscrowd", 0)]
        unknown = {s["category_id"] for s in segments} - class_of.keys()
        if unknown:
            raise ValueError(
                f"{json_name} labels {image['file_name']} with category {min(unknown)}, which its categories lack;"
                " correct the file."
            )
        key = image.get("exhaustive")
        if key is not None and key not in exhaustive:
            raise ValueError(
                f"{json_name} has no list {key!r} in 'exhaustive', which {image['file_name']} names; add it."
            )
        records.append(
            Record(
                file_name=image["file_name"],
                source=image.get("source", ""),
                image_path=image_dir / image["file_name"],
                panoptic_path=panoptic_dir / annotation["file_name"],
                segment_ids=np.array([s["id"] for s in segments], dtype=np.int64),
                crowd_ids=np.array([s["id"] for s in crowds], dtype=np.int64),
                labels=np.array([class_of[s["category_id"]] for s in segments], dtype=np.int64),
                pseudo=np.array([bool(s.get("pseudo", 0)) for s in segments], dtype=bool),
                exhaustive=np.ones(len(names), dtype=bool) if key is None else exhaustive[key],
            )
        )
    return records


def _open_pair(record: Record) -> tuple[Image.Image, Image.Image]:
    """The image (not decoded yet) and the label PNG as RGB.

    Raises ValueError when one of them is damaged or their sizes differ.
    """
    with _naming(record.image_path):
        image: Image.Image = Image.open(record.image_path)
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)  # labels are drawn on photos that stand upright
    with _naming(record.panoptic_path):
        panoptic: Image.Image = Image.open(record.panoptic_path)
        if panoptic.mode not in ("RGB", "RGBA"):
            raise ValueError(
                f"{record.panoptic_path} has no three channels for R + 256 G + 65536 B; save the segment ids as RGB."
            )
        panoptic = panoptic.convert("RGB")
    if image.size != panoptic.size:
        raise ValueError(f"{record.image_path} and {record.panoptic_path.name} differ in size; label the same image.")
    return image, panoptic


def _segment_ids(panoptic: Image.Image) -> np.ndarray:
    """int32 [H, W] from the three channels of a label PNG."""
    rgb = np.asarray(panoptic).astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
