"""The COCO panoptic format: what a JSON and its label PNGs say, and whether they agree.

Every data set that is opened is checked here. What is wrong raises ValueError: one sentence with the file, the id and
the remedy. What is merely odd is logged once.

A label PNG stores the segment id of every pixel as R + 256 G + 65536 B, and 0 where there is no segment. Two fields
beyond the format, both optional, make partly labelled data usable:

- ``images[].exhaustive`` names a list in the file's ``exhaustive``: the categories that this image labels completely.
  Any other category may be in the picture without a label. Absent = every category.
- ``segments_info[].pseudo = 1``: a machine named this segment.

In a file with such a field, id 0 is void (nobody knows), and id 1, when it is no segment's, says "none of this image's
exhaustive categories".
"""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pem.categories import named_categories
from pem.config import PEMConfig
from pem.photos import ImageError, open_photo, orientation
from pem.training.target import NONE_OF_THESE

MAX_SEGMENT_ID = 2**24 - 1  # three bytes
MAX_SEGMENTS = 32_000  # of one image: targets number them with 16 bits
CHECKED_FILES = 1_000  # when a split is opened; the others are checked when they are read
LOSSLESS = ("PNG", "TIFF", "BMP")
# The format's own spelling comes first.
_IS_THING, _IS_CROWD = ("isthing", "is_thing", "isThing"), ("iscrowd", "is_crowd", "isCrowd")
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "no": False, "yes": True}
# Of its 150 classes, ADE20K's own list has one under a name that the benchmark's list does not know.
_ALIASES = {"swimming pool": "pool"}
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


# ------------------------------------------------------------------------------------------------------------- JSON


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
            name = _nfc(" ".join(str(entry["name"] if isinstance(entry["name"], (str, int)) else "").split()))
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
        _log.warning("%s: two categories are called %r but for capitals; are they one class?", path, repeated)
    return sorted(found, key=lambda category: category["id"])


def read_split(path: Path, image_dir: Path, panoptic_dir: Path, config: PEMConfig) -> Split:
    """Everything that the JSON says, checked as far as that goes without the label PNGs.

    Classes are those of the config, found by name. Raises FileNotFoundError for files that are named but missing, and
    ValueError.
    """
    content = read_json(path)
    listed = read_categories(content, path)
    class_of, categories = _match_categories(listed, config, path)
    names = [category["name"] for category in categories]
    # Of a class that the file does not list nobody knows whether it is in the pictures.
    is_listed = np.isin(np.arange(len(names)), list(class_of.values()))
    if not is_listed.all():
        _log.warning(
            "%s lists %d of the model's %d classes; the others are not judged.", path, sum(is_listed), len(names)
        )
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
        _log.warning("%s: the photo %s is listed more than once.", path, repeated)

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
        _log.warning("%s: %d annotations are of images that it does not list.", path, len(annotations))
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
            "%s: all segments of %s are crowds, which nothing is learned from; set iscrowd to 0 if they are not.",
            path,
            ", ".join(map(repr, only_crowds)),
        )
    has_background = len(labelled) < 2 or not is_stuff[labelled].any()
    never = [names[label] for label in np.flatnonzero(is_listed & is_stuff) if label not in labelled]
    if has_background and never and not partly:
        _log.warning(
            "%s has no segment of the stuff that it lists (%s), so pixels of no segment are background; label these"
            " classes, or take them out of its categories.",
            path,
            ", ".join(never[:5]) + ", ..." * (len(never) > 5),
        )
    return Split(categories, records, partly, has_background)


def _remark_on_stuff(path: Path, names: list[str], is_stuff: np.ndarray, records: list[Record]) -> None:
    """The format has one segment of a stuff class in an image. Some tools write isthing 0 for every class."""
    for record in records:
        counts = np.bincount(record.labels, minlength=len(names)) * is_stuff
        if counts.max(initial=0) > 1:
            _log.warning(
                "%s: the class %r is stuff (isthing 0), but %s has %d segments of it; set isthing to 1 if they are"
                " objects.",
                path,
                names[int(counts.argmax())],
                record.file_name,
                counts.max(),
            )
            return


def _find(folder: Path, name: str) -> Path:
    """The file of that name, which may be spelled in another way in the file system than in the JSON."""
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
            # The whole name decides before its first synonym does: "chair, office" is not "chair, garden".
            meant = [ours == _nfc(name) for ours in names]
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


# ----------------------------------------------------------------------------------------------------------- classes


def plain_name(name: str) -> str:
    """The spellings of a class have this in common: "Road, route" and "road" are the same one."""
    return _nfc(name).split(",")[0].strip().lower()


def _nfc(name: str) -> str:
    """A letter with an accent may be stored as one sign or as two; the names of classes have it as one."""
    return unicodedata.normalize("NFC", name)


def _match_categories(
    listed: list[dict[str, Any]], config: PEMConfig, path: Path
) -> tuple[dict[int, int], list[dict[str, Any]]]:
    """The class index of each category id, and the K categories: by name, where the config names its classes.

    A file may list a part of the classes. Raises ValueError that names what the config does not know.
    """
    known = named_categories(config)
    if not known:  # then the order of the ids is all that there is
        if len(listed) != config.num_classes:
            raise ValueError(
                f"{path} has {len(listed)} categories but the model {config.name!r} has {config.num_classes};"
                " use a model made for this data."
            )
        return {category["id"]: index for index, category in enumerate(listed)}, listed
    by_spelling: dict[str, set[int]] = {}
    for index, ours in enumerate(known):
        for spelling in _spellings(ours.name):
            by_spelling.setdefault(spelling, set()).add(index)
    categories: list[dict[str, Any]] = [{"id": c.id, "name": c.name, "isthing": c.is_thing} for c in known]
    class_of: dict[int, int] = {}
    for category in listed:
        # The whole name decides before its synonyms do: one class is "screen door, screen", another "screen".
        exact = {index for index, ours in enumerate(known) if ours.name == category["name"]}
        candidates = [exact, *(by_spelling.get(spelling, set()) for spelling in _spellings(category["name"]))]
        matches = [min(found) for found in candidates if len(found) == 1]
        if not matches:
            some = ", ".join(c.name for c in known[:5]) + (", ..." if len(known) > 5 else "")
            raise ValueError(
                f"{path} has the class {category['name']!r}, which the model {config.name!r} ({some}) does not know;"
                " use a model made for this data."
            )
        index, ours = matches[0], known[matches[0]]
        if index in class_of.values():
            raise ValueError(f"{path} has two names of the class {ours.name!r} of {config.name!r}; merge them.")
        if category["isthing"] != ours.is_thing:
            kinds = ("stuff", "a thing")
            raise ValueError(
                f"{path} calls the class {category['name']!r} {kinds[category['isthing']]}, the model {config.name!r}"
                f" {kinds[ours.is_thing]}; use a model made for this data."
            )
        class_of[category["id"]] = index
        categories[index] = category
    return class_of, categories


def _spellings(name: str) -> list[str]:
    """Lower case: the whole name, then the synonyms that commas part in it, the usual one first."""
    parts = [part.strip().lower() for part in _nfc(name).split(",")]
    return list(dict.fromkeys((", ".join(parts), *parts, *(_ALIASES[part] for part in parts if part in _ALIASES))))


# ------------------------------------------------------------------------------------------------------------ fields


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


# -------------------------------------------------------------------------------------------------------- label files


def check_files(split: Split, json_name: str) -> tuple[str, set[int]]:
    """Holds photos and label PNGs against the JSON, CHECKED_FILES of them at even distances.

    Returns a hash of all labels (of what the JSON says and the ids in the files that were read) and the indices of the
    images that were checked. Raises ValueError for the first image that is wrong, and says how many more are.
    """
    count = len(split.records)
    chosen = {step * count // min(count, CHECKED_FILES) for step in range(min(count, CHECKED_FILES))}
    seal = hashlib.sha256(repr(split.categories).encode())

    def look_at(index: int) -> tuple[str, str, str]:
        """What is wrong with an image, what is odd, and the state of its labels."""
        record = split.records[index]
        if index not in chosen:
            return "", "", ""  # not even its size: a damaged file may be replaced while a run waits
        try:
            _, panoptic, _ = open_pair(record)
            with naming(record.panoptic_path):
                ids = to_ids(panoptic.convert("RGB"))
            oddity = compare_ids(record, ids, split.partly_labelled)
        except ValueError as error:
            return str(error), "", ""
        return "", oddity, str(zlib.crc32(ids.tobytes()))

    with ThreadPoolExecutor(4) as pool:
        problems, oddities, states = zip(*pool.map(look_at, range(count)), strict=True)
    if wrong := [problem for problem in problems if problem]:
        more = f" ({len(wrong) - 1} more images of {json_name} have a fault.)" if len(wrong) > 1 else ""
        raise ValueError(wrong[0] + more)
    if odd := [oddity for oddity in oddities if oddity]:
        _log.warning("%s (So it is in %d of %d images.)", odd[0], len(odd), len(chosen))
    for record, state in zip(split.records, states, strict=True):
        fields = (record.segment_ids, record.labels, record.pseudo, record.crowd_ids, record.crowd_labels)
        seal.update(repr((record.file_name, state, *(x.tolist() for x in (*fields, record.exhaustive)))).encode())
    return seal.hexdigest(), chosen


def open_pair(record: Record) -> tuple[Image.Image, Image.Image, bool]:
    """The photo and the label PNG, neither decoded yet, and whether the photo is to be turned upright.

    Labels belong to the upright photo; where only the photo as it is stored has their size, to that. Raises ValueError
    for a file that cannot be used, and for a photo and labels of other sizes.
    """
    image, panoptic = (_open(path) for path in (record.image_path, record.panoptic_path))
    compression = str(panoptic.info.get("compression", ""))
    if panoptic.format not in LOSSLESS or "jpeg" in compression or compression == "webp":
        raise ValueError(
            f"{record.panoptic_path} is a {compression} {panoptic.format} file".replace("  ", " ")
            + ", which may alter ids; save the segment ids as PNG."
        )
    # Some tools store few colours as a palette, and black alone as grey, which loses nothing.
    lists_none = len(record.segment_ids) + len(record.crowd_ids) == 0
    if panoptic.mode not in ("RGB", "RGBA", "P") and not (lists_none and panoptic.mode in ("1", "L", "LA")):
        raise ValueError(
            f"{record.panoptic_path} has no three channels for R + 256 G + 65536 B; save the segment ids as RGB."
        )
    if any(";16" in str(tile) for tile in getattr(panoptic, "tile", ())):  # as Pillow writes the depth
        raise ValueError(f"{record.panoptic_path} has 16 bits in each channel; save the segment ids as RGB of 8 bits.")
    turn = orientation(image)
    upright_size = image.size[::-1] if turn >= 5 else image.size
    if panoptic.size not in (image.size, upright_size):
        stored = f", stored as {image.width} x {image.height} with EXIF orientation {turn}" if turn != 1 else ""
        raise ValueError(
            f"{record.image_path} has {upright_size[0]} x {upright_size[1]} pixels{stored}, and its labels"
            f" {record.panoptic_path.name} {panoptic.width} x {panoptic.height}; label the same image."
        )
    return image, panoptic, panoptic.size == upright_size


def _open(path: Path) -> Image.Image:
    try:
        return open_photo(path)
    except ImageError as error:
        raise ValueError(f"{path}: {error}") from error


def compare_ids(record: Record, ids: np.ndarray, partly_labelled: bool) -> str:
    """Raises ValueError where a segment that the JSON lists has no pixel in ``ids``, int32 [H, W], those of the PNG.

    Returns what is merely odd, or "": ids that the JSON does not list, as where somebody took classes out of it.
    """
    flat = ids.ravel()
    # Neighbours mostly are of one segment: of each run of equal ids one pixel is enough.
    present = set(np.unique(flat[np.flatnonzero(np.diff(flat, prepend=-1))]).tolist()) - {0}
    listed = {*record.segment_ids.tolist(), *record.crowd_ids.tolist()}
    if partly_labelled:
        present -= {NONE_OF_THESE} - listed
    lacking, extra = sorted(listed - present), sorted(present - listed)
    if lacking and {(x & 255) << 16 | x & 65280 | x >> 16 for x in present} >= listed:
        raise ValueError(
            f"{record.panoptic_path} has its channels in the order B, G, R: swapped, its ids are those of the JSON;"
            " save R + 256 G + 65536 B in the order R, G, B."
        )
    unlisted = ""
    if extra:
        unlisted = f"has {np.isin(ids, extra).sum()} pixels of id {_some(extra)}, which the JSON does not list"
    if lacking:
        also = f", and {unlisted}" if extra else ""
        raise ValueError(
            f"{record.panoptic_path} has no pixel of segment {_some(lacking)}, which the JSON lists{also};"
            " make both agree."
        )
    return f"{record.panoptic_path} {unlisted}: they are read as no segment." if extra else ""


def to_ids(panoptic: Image.Image) -> np.ndarray:
    """int32 [H, W] from the three channels of an RGB image."""
    rgb = np.asarray(panoptic).astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:3])) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """PIL's errors do not tell which file is damaged."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read ({error}); replace the file.") from error
