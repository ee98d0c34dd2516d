"""The COCO panoptic format: what a JSON says.

Every JSON is checked when it is opened. An error raises ValueError: one sentence with the file, the id and the remedy.
What is merely odd is logged once. label_files.py does the same with the label PNGs.

Two fields beyond the format, both optional, make partly labelled data usable:

- ``images[].exhaustive`` names a list in the file's ``exhaustive``: the categories that this image labels completely.
  Any other category may be in the picture without a label. Absent = every category.
- ``segments_info[].pseudo = 1``: a machine named this segment.

In a file with such a field, id 0 of a label PNG is void (nobody knows). Id 1, unless it is a segment's, says "none of
this image's exhaustive categories".
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pem.categories import named_categories
from pem.config import PEMConfig
from pem.training.classes import match_categories, nfc, plain_name

MAX_SEGMENT_ID = 2**24 - 1  # three bytes
MAX_SEGMENTS = 32_000  # of one image: targets number them with 16 bits
# The format's own spelling is the first.
_IS_THING, _IS_CROWD = ("isthing", "is_thing", "isThing"), ("iscrowd", "is_crowd", "isCrowd")
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "no": False, "yes": True}
_log = logging.getLogger("pem")


@dataclass(frozen=True)
class Record:
    """One image of the data set, before anything is read from the disk."""

    file_name: str
    source: str  # which data set the photo came from; "" where the file does not say
    image_path: Path
    panoptic_path: Path
    segment_ids: np.ndarray  # int64 [M], as in the PNG
    labels: np.ndarray  # int64 [M], class index
    pseudo: np.ndarray  # bool [M]
    crowd_ids: np.ndarray  # int64 [C]: regions of many things at once
    crowd_labels: np.ndarray  # int64 [C]
    exhaustive: np.ndarray  # bool [K]


@dataclass(frozen=True)
class Split:
    """What a panoptic JSON says, in terms of the K classes of a config."""

    categories: list[dict[str, Any]]  # [K]: id, name and isthing of each class
    records: list[Record]
    partly_labelled: bool  # declared so by one of the extra fields
    has_background: bool  # pixels of no segment are known to be none: things alone are labelled, or a single class


def read_json(path: Path) -> dict[str, Any]:
    """The content of a panoptic JSON. Raises FileNotFoundError, and ValueError for a file in another format."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; give the panoptic JSON of the split.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _other_format(path, str(error)) from error
    if not isinstance(content, dict):
        raise _other_format(path, f"it holds a {type(content).__name__}, not an object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list) or not all(isinstance(entry, dict) for entry in content[key]):
            raise _other_format(path, f"it has no list of objects {key!r}")
    if content["annotations"] and not any("segments_info" in a for a in content["annotations"]):
        raise _other_format(path, "its annotations have no segments_info, as in a file for detection")
    return content


def _other_format(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is not in the COCO panoptic format ({reason}); correct the file.")


def read_categories(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The categories of a file in ascending order of their ids: id, name and isthing (a bool)."""
    found: list[dict[str, Any]] = []
    for entry in content["categories"]:
        with _at(path, f"category {entry.get('name', entry.get('id'))!r}"):
            name = nfc(" ".join(str(entry["name"] if isinstance(entry["name"], (str, int)) else "").split()))
            if not name:
                raise ValueError(f"its name is {entry['name']!r}; give it one")
            if (thing := _flag(entry, _IS_THING, None)) is None:
                raise ValueError("it has no isthing; add 1 for things, 0 for stuff")
            found.append({"id": _whole(entry, "id"), "name": name, "isthing": thing})
    if not found:
        raise ValueError(f"{path} has no categories; list the classes.")
    for key in ("id", "name"):
        if (repeated := _repeated(category[key] for category in found)) is not None:
            raise ValueError(f"{path} has two categories of the {key} {repeated!r}; give each one its own.")
    lower = [category["name"].lower() for category in found]
    if repeated := _repeated(lower):
        _log.warning(f"{path}: two categories are called {repeated!r} but for capitals; are they one class?")
    return sorted(found, key=lambda category: category["id"])


def with_classes_of(config: PEMConfig, folder: str | Path) -> PEMConfig:
    """The config for training on a data folder: with the classes of its panoptic_train.json, if it has others.

    Raises FileNotFoundError when there is no such file, and ValueError when it is in another format.
    """
    json_path = Path(folder) / "panoptic_train.json"
    categories = read_categories(read_json(json_path), json_path)
    found = tuple((c["id"], c["name"], c["isthing"]) for c in categories)
    own = [(c.id, plain_name(c.name), c.is_thing) for c in named_categories(config)]
    if own == [(category_id, plain_name(name), is_thing) for category_id, name, is_thing in found]:
        return config
    return replace(config, num_classes=len(found), categories=found)


def read_split(path: Path, image_dir: Path, panoptic_dir: Path, config: PEMConfig) -> Split:
    """Everything that the JSON says, checked as far as possible without the label PNGs.

    Classes are those of the config, found by name. Raises FileNotFoundError for files that are named but missing, and
    ValueError.
    """
    content = read_json(path)
    listed = read_categories(content, path)
    class_of, categories = match_categories(listed, config, path)
    names = [category["name"] for category in categories]
    # Nobody knows whether a class that the file does not list is in the pictures.
    is_listed = np.isin(np.arange(len(names)), list(class_of.values()))
    if not is_listed.all():
        _log.warning(f"{path} lists {sum(is_listed)} of the model's {len(names)} classes; the others are not judged.")
    lists = _exhaustive_lists(content, names, path)
    annotations = _annotations_by_image(content, path)
    if not content["images"]:
        raise ValueError(f"{path} lists no image; add the images of the split.")
    if repeated := _repeated(_image_id(image, "id", path) for image in content["images"]):
        raise ValueError(f"{path} has two images of the id {repeated}; give each one its own.")
    without = [image for image in content["images"] if _image_id(image, "id", path) not in annotations]
    if without:
        raise ValueError(
            f"{path} has no annotation of {len(without)} of its images, such as {without[0].get('file_name')!r}; add"
            " them, with empty segments_info where there is no segment, or remove the images."
        )
    if repeated := _repeated(str(image.get("file_name")) for image in content["images"]):
        _log.warning(f"{path}: the photo {repeated} is listed more than once.")

    records = []
    for image in content["images"]:
        with _at(path, f"the image {image.get('file_name', image.get('id'))!r}"):
            file_name = _text(image, "file_name")
            annotation = annotations.pop(_image_id(image, "id", path))
            key = image.get("exhaustive")
            if key is not None and (not isinstance(key, str) or key not in lists):
                raise ValueError(f"it names the list {key!r}, which the file's 'exhaustive' lacks; add the list")
            records.append(
                _record(
                    annotation,
                    class_of,
                    file_name=file_name,
                    source=str(image.get("source") or ""),
                    image_path=_find(image_dir, file_name),
                    panoptic_path=_find(panoptic_dir, _text(annotation, "file_name")),
                    exhaustive=is_listed if key is None else lists[key],
                )
            )
    if annotations:
        _log.warning(f"{path}: {len(annotations)} annotations are of images that it does not list.")
    missing = [file for r in records for file in (r.image_path, r.panoptic_path) if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} files named in {path.name} are missing, such as {missing[0]}; complete the data."
        )
    partly = bool(lists) or any(r.pseudo.any() for r in records)
    learned = np.unique(np.concatenate([r.labels for r in records]))
    labelled = np.union1d(learned, np.concatenate([r.crowd_labels for r in records]))
    is_stuff = np.array([not category["isthing"] for category in categories])
    _remark_on_stuff(path, names, is_stuff, records)
    if only_crowds := [names[label] for label in labelled if label not in learned]:
        _log.warning(
            f"{path}: all segments of {', '.join(map(repr, only_crowds))} are crowds, which nothing is learned from; "
            "set iscrowd to 0 if they are not."
        )
    has_background = len(labelled) < 2 or not is_stuff[labelled].any()
    never = [names[label] for label in np.flatnonzero(is_listed & is_stuff) if label not in labelled]
    if has_background and never and not partly:
        some = ", ".join(never[:5]) + ", ..." * (len(never) > 5)
        _log.warning(
            f"{path} has no segment of the stuff that it lists ({some}), so pixels of no segment are background; label "
            "these classes, or take them out of its categories."
        )
    return Split(categories, records, partly, has_background)


def _remark_on_stuff(path: Path, names: list[str], is_stuff: np.ndarray, records: list[Record]) -> None:
    """Warns of several segments of one stuff class in an image. Some tools write isthing 0 for every class."""
    for record in records:
        counts = np.bincount(record.labels, minlength=len(names)) * is_stuff
        if counts.max(initial=0) > 1:
            _log.warning(
                f"{path}: the class {names[int(counts.argmax())]!r} is stuff (isthing 0), but {record.file_name} has "
                f"{counts.max()} segments of it; set isthing to 1 if they are objects."
            )
            return


def _find(folder: Path, name: str) -> Path:
    """The file of that name, whose accented letters the file system may store in another way than the JSON."""
    spellings = [folder / name, *(folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    if name.endswith("_gtFine_leftImg8bit.png"):  # so Cityscapes' own converter calls CITY/CITY_..._leftImg8bit.png
        photo = name.replace("_gtFine", "")
        spellings += [folder / photo, folder / photo.partition("_")[0] / photo]
    return next((path for path in spellings if path.is_file()), spellings[0])


def _record(annotation: dict[str, Any], class_of: dict[int, int], **fields: Any) -> Record:
    infos = annotation.get("segments_info")
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise ValueError("its annotation has no list segments_info; add it, empty where there is no segment")
    if len(infos) > MAX_SEGMENTS:
        raise ValueError(f"it has {len(infos)} segments; cut it into parts with at most {MAX_SEGMENTS}")
    ids, labels, crowd, pseudo = [], [], [], []
    for info in infos:
        ids.append(_whole(info, "id"))
        category_id = _whole(info, "category_id")
        if not 1 <= ids[-1] <= MAX_SEGMENT_ID:
            raise ValueError(f"its segment id {ids[-1]} is not from 1 to {MAX_SEGMENT_ID}; number the segments anew")
        if category_id not in class_of:
            raise ValueError(f"its segment {ids[-1]} has category {category_id}, which the categories lack; add it")
        labels.append(class_of[category_id])
        crowd.append(_flag(info, _IS_CROWD, False))
        pseudo.append(_flag(info, ("pseudo",), False))
    if repeated := _repeated(ids):
        raise ValueError(f"two of its segments have the id {repeated}; give each one its own")
    is_crowd = np.array(crowd, bool)
    all_ids, all_labels = np.array(ids, np.int64), np.array(labels, np.int64)
    return Record(
        segment_ids=all_ids[~is_crowd],
        labels=all_labels[~is_crowd],
        pseudo=np.array(pseudo, bool)[~is_crowd],
        crowd_ids=all_ids[is_crowd],
        crowd_labels=all_labels[is_crowd],
        **fields,
    )


def _exhaustive_lists(content: dict[str, Any], names: list[str], path: Path) -> dict[str, np.ndarray]:
    lists = content.get("exhaustive", {})
    if not isinstance(lists, dict) or not all(isinstance(listed, list) for listed in lists.values()):
        raise ValueError(f"{path}: 'exhaustive' is not an object of lists of category names; correct it.")
    found = {key: np.zeros(len(names), bool) for key in lists}
    for key, listed in lists.items():
        for name in map(str, listed):
            # The whole name counts before its first synonym: "chair, office" is not "chair, garden".
            meant = [ours == nfc(name) for ours in names]
            if not any(meant):
                meant = [plain_name(ours) == plain_name(name) for ours in names]
            if sum(meant) != 1:
                fault = "is no category" if not any(meant) else "may be several categories; give its whole name"
                raise ValueError(f"{path}: the list {key!r} in 'exhaustive' names {name!r}, which {fault}.")
            found[key] |= meant
    return found


def _annotations_by_image(content: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    ids = [_image_id(annotation, "image_id", path) for annotation in content["annotations"]]
    if repeated := _repeated(ids):
        raise ValueError(f"{path} has two annotations of the image {repeated}; merge them into one.")
    return dict(zip(ids, content["annotations"], strict=True))


@contextmanager
def _at(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise _other_format(path, f"{what} has no {error.args[0]!r}") from error
    except ValueError as error:
        raise ValueError(f"{path}, {what}: {error}.") from error


def _whole(entry: dict[str, Any], key: str) -> int:
    """An id: a whole number, which some tools write as 3.0 or "3"."""
    value = entry[key]
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        return int(value)
    if (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise ValueError(f"its {key} is {value!r}, which is no whole number; correct it")


def _flag(entry: dict[str, Any], spellings: Iterable[str], default: bool | None) -> bool | None:
    """0 or 1, false or true, as a number, a truth value or text."""
    key = next((spelling for spelling in spellings if entry.get(spelling) is not None), None)
    if key is None:
        return default
    value = entry[key]
    text = str(int(value)) if isinstance(value, (int, float)) and value in (0, 1) else str(value).strip().lower()
    if text not in _FLAGS:
        raise ValueError(f"its {key} is {value!r}, which is neither 0 nor 1; correct it")
    return _FLAGS[text]


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"its {key} is {value!r}, which is no name of a file; correct it")
    return value


def _image_id(entry: dict[str, Any], key: str, path: Path) -> str:
    """Image ids may be numbers or text; 7 and "7" are the same one."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _other_format(path, f"an entry's {key} is {value!r}, which is neither a number nor text")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _repeated(values: Iterable[Any]) -> Any:
    """The first value that comes twice, or None."""
    counts = Counter(values)
    return next((value for value, count in counts.items() if count > 1), None)
