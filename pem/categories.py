"""What the classes are called, which of them are countable things, and how they are painted."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

from pem.config import PEMConfig

Color = tuple[int, int, int]  # RGB, 0..255


@dataclass(frozen=True)
class Category:
    """One class. Its place in its set is the class index that the network predicts."""

    id: int  # the data set's own id, for exported COCO JSON
    name: str
    is_thing: bool
    color: Color


def _spread_color(index: int) -> Color:
    """Colours that differ for any number of classes: the hue turns by the golden ratio, the rest alternates."""
    hue = (0.6 + index * 0.618034) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.5, 0.9)[index % 3], (0.9, 0.75, 0.6)[index // 3 % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def shade(color: Color, index: int) -> Color:
    """The colour of the ``index``-th thing of a class: the class colour for 0, similar colours for the others."""
    if index == 0:
        return color
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
    # Steps of the golden ratio never repeat and never come close to the last ones.
    step = index * 0.618034 % 1
    lightness = 0.3 + 0.45 * ((lightness - 0.3) / 0.45 + step) % 0.45
    red, green, blue = colorsys.hls_to_rgb((hue + 0.12 * (step - 0.5)) % 1, lightness, max(saturation, 0.4))
    return round(255 * red), round(255 * green), round(255 * blue)


# The 19 classes of the Cityscapes benchmark in the order of their train ids, in the data set's own colours.
_CITYSCAPES = (
    Category(7, "road", False, (128, 64, 128)),
    Category(8, "sidewalk", False, (244, 35, 232)),
    Category(11, "building", False, (70, 70, 70)),
    Category(12, "wall", False, (102, 102, 156)),
    Category(13, "fence", False, (190, 153, 153)),
    Category(17, "pole", False, (153, 153, 153)),
    Category(19, "traffic light", False, (250, 170, 30)),
    Category(20, "traffic sign", False, (220, 220, 0)),
    Category(21, "vegetation", False, (107, 142, 35)),
    Category(22, "terrain", False, (152, 251, 152)),
    Category(23, "sky", False, (70, 130, 180)),
    Category(24, "person", True, (220, 20, 60)),
    Category(25, "rider", True, (255, 0, 0)),
    Category(26, "car", True, (0, 0, 142)),
    Category(27, "truck", True, (0, 0, 70)),
    Category(28, "bus", True, (0, 60, 100)),
    Category(31, "train", True, (0, 80, 100)),
    Category(32, "motorcycle", True, (0, 0, 230)),
    Category(33, "bicycle", True, (119, 11, 32)),
)

# The classes of the everyday photos that the default model is trained on: things vivid, stuff calm and close to nature.
_EVERYDAY = (
    Category(1, "person", True, (230, 57, 70)),
    Category(2, "bicycle", True, (0, 158, 115)),
    Category(3, "car", True, (29, 92, 255)),
    Category(4, "motorcycle", True, (255, 127, 14)),
    Category(5, "airplane", True, (148, 60, 220)),
    Category(6, "bus", True, (255, 200, 0)),
    Category(7, "train", True, (214, 39, 140)),
    Category(8, "boat", True, (0, 190, 200)),
    Category(9, "bird", True, (255, 80, 200)),
    Category(10, "cat", True, (255, 106, 60)),
    Category(11, "dog", True, (120, 40, 255)),
    Category(12, "horse", True, (170, 70, 20)),
    Category(13, "sheep", True, (250, 225, 90)),
    Category(14, "cow", True, (130, 0, 80)),
    Category(15, "other-animal", True, (190, 230, 0)),
    Category(16, "bottle", True, (0, 220, 130)),
    Category(17, "cup-bowl", True, (0, 120, 210)),
    Category(18, "food", True, (255, 60, 20)),
    Category(19, "chair", True, (240, 160, 60)),
    Category(20, "couch", True, (200, 60, 160)),
    Category(21, "potted-plant", True, (20, 200, 60)),
    Category(22, "bed", True, (90, 80, 230)),
    Category(23, "dining-table", True, (220, 110, 40)),
    Category(24, "toilet", True, (0, 230, 230)),
    Category(25, "sink", True, (60, 150, 255)),
    Category(26, "tv-screen", True, (80, 0, 170)),
    Category(27, "book", True, (255, 0, 110)),
    Category(28, "bag", True, (180, 30, 60)),
    Category(29, "sky", False, (120, 190, 240)),
    Category(30, "tree", False, (46, 125, 50)),
    Category(31, "grass", False, (139, 195, 74)),
    Category(32, "road", False, (96, 96, 112)),
    Category(33, "pavement", False, (176, 164, 176)),
    Category(34, "building", False, (166, 124, 108)),
    Category(35, "fence", False, (150, 140, 90)),
    Category(36, "pole-sign", False, (240, 220, 140)),
    Category(37, "wall", False, (214, 200, 178)),
    Category(38, "floor", False, (188, 150, 110)),
    Category(39, "ceiling", False, (225, 228, 236)),
    Category(40, "window", False, (150, 205, 215)),
    Category(41, "door", False, (130, 90, 60)),
    Category(42, "curtain", False, (190, 150, 200)),
    Category(43, "cabinet", False, (140, 110, 130)),
    Category(44, "water", False, (40, 110, 170)),
    Category(45, "mountain", False, (110, 120, 150)),
    Category(46, "ground", False, (170, 130, 80)),
    Category(47, "picture-mirror", False, (205, 130, 150)),
)

# The 150 classes of the ADE20K scene parsing benchmark, in its order.
_ADE20K_NAMES = (
    "wall, building, sky, floor, tree, ceiling, road, bed, window, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, tub, rail, cushion, base, box, column, signboard, "
    "chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, "
    "case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, "
    "book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, "
    "hovel, bus, towel, light, truck, tower, chandelier, awning, street lamp, booth, tv, plane, dirt track, clothes, "
    "pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, "
    "canopy, washer, toy, pool, stool, barrel, basket, falls, tent, bag, minibike, cradle, oven, ball, food, step, "
    "tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, "
    "vase, traffic light, tray, trash can, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, "
    "glass, clock, flag"
).split(", ")

# The panoptic benchmark counts 100 of them as things; these are the other 50.
_ADE20K_STUFF = frozenset(
    (
        "wall, building, sky, floor, tree, ceiling, road, grass, sidewalk, earth, mountain, plant, water, house, sea, "
        "rug, field, rock, base, sand, skyscraper, grandstand, path, runway, stairway, river, bridge, blind, hill, "
        "bar, hovel, tower, dirt track, land, escalator, buffet, poster, stage, conveyer belt, canopy, pool, falls, "
        "tent, cradle, tank, lake, blanket, pier, crt screen, shower"
    ).split(", ")
)

# A class of the everyday photos keeps its colour in other sets. The rest are spread around the colour circle.
_EVERYDAY_COLORS = {category.name: category.color for category in _EVERYDAY}

_SETS: dict[str, tuple[Category, ...]] = {
    "cityscapes": _CITYSCAPES,
    "ade20k": tuple(
        Category(index, name, name not in _ADE20K_STUFF, _EVERYDAY_COLORS.get(name) or _spread_color(index))
        for index, name in enumerate(_ADE20K_NAMES)
    ),
    "everyday": _EVERYDAY,
}


def named_categories(config: PEMConfig) -> tuple[Category, ...]:
    """The categories of a model by class index, or () if its classes have no names.

    Those of ``dataclasses.replace(preset, num_classes=...)`` have none: the set that the preset names does not fit.
    """
    if isinstance(config.categories, str):
        named = _SETS.get(config.categories, ())
        return named if len(named) == config.num_classes else ()
    return tuple(
        Category(category_id, name, is_thing, _EVERYDAY_COLORS.get(name) or _spread_color(index))
        for index, (category_id, name, is_thing) in enumerate(config.categories)
    )


def categories_for(config: PEMConfig) -> tuple[Category, ...]:
    """The ``config.num_classes`` categories of a model, by class index.

    Classes without names are called "class 0" and so on, and count as things: things are never merged, so nothing is
    hidden.
    """
    if named := named_categories(config):
        return named
    # Ids from 1: to some readers of exported JSON, 0 is no class.
    return tuple(
        Category(index + 1, f"class {index}", True, _spread_color(index)) for index in range(config.num_classes)
    )


def has_background(config: PEMConfig) -> bool:
    """Whether some pixels belong to no class of the model, because it knows only things, or a single class.

    False for classes without names, where nobody knows.
    """
    named = named_categories(config)
    return bool(named) and (len(named) == 1 or all(category.is_thing for category in named))
