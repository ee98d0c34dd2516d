"""Where names stand in segmentations drawn by hand."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont
from PIL import features

from pem import fonts
from pem.names import deepest_place, write_names
from pem.outputs import Segment, Segmentation
from pem.render import render


def segmentation(ids: np.ndarray, *labels: str) -> Segmentation:
    areas = [int((ids == i + 1).sum()) for i in range(len(labels))]
    return Segmentation(
        ids,
        tuple(
            Segment(i + 1, 0, label, True, 0.9, areas[i], (0, 0, 1, 1), (i,), (0, 0, 200))
            for i, label in enumerate(labels)
        ),
    )


def written(segments: Segmentation) -> np.ndarray:
    """Where a grey picture is no longer grey, bool [H, W]."""
    return (write_names(np.full((*segments.ids.shape, 3), 128, np.uint8), segments) != 128).any(axis=2)


@pytest.mark.parametrize("scale", [1, 9])
def test_the_deepest_place_is_in_the_thick_part_and_not_in_the_middle(scale: int) -> None:
    ids = np.zeros((90, 150), np.int32)
    ids[40:50, :110] = 1  # a stem with a square at its end
    ids[20:70, 90:140] = 1
    ids = ids.repeat(scale, 0).repeat(scale, 1)
    y, x, depth = deepest_place(ids, 1)
    assert (y, x) == pytest.approx((45 * scale, 115 * scale), abs=4 * scale)
    assert depth == pytest.approx(25 * scale, abs=2 * scale)


def test_the_edge_of_the_image_is_an_edge() -> None:
    y, x, depth = deepest_place(np.ones((40, 60), np.int32), 1)
    assert (y, x) == pytest.approx((20, 30), abs=1) and depth == 20


def test_an_id_that_is_nowhere_has_no_depth() -> None:
    assert deepest_place(np.zeros((8, 8), np.int32), 1) == (0, 0, 0)


def test_each_name_stands_in_its_segment() -> None:
    ids = np.ones((200, 300), np.int32)
    ids[:, 150:] = 2
    found = written(segmentation(ids, "cat", "dining-table"))
    rows, cols = np.nonzero(found)
    assert 85 < rows.min() and rows.max() < 115
    assert found[:, :150].any() and found[:, 150:].any() and not found[:, 140:160].any()


def test_what_is_thinner_than_its_name_has_none() -> None:
    ids = np.zeros((200, 300), np.int32)
    ids[100:108] = 1
    assert not written(segmentation(ids, "pole-sign")).any()


def test_of_two_names_that_would_cover_each_other_the_larger_segment_has_its_own() -> None:
    ids = np.zeros((200, 300), np.int32)
    ids[:, 130:155] = 2
    ids[:, 155:190] = 1
    _, cols = np.nonzero(written(segmentation(ids, "dining-table", "dining-table")))
    assert (cols.min() + cols.max()) / 2 == pytest.approx(172, abs=3)
    _, cols = np.nonzero(written(segmentation(np.where(ids == 2, 1, 0), "dining-table")))
    assert (cols.min() + cols.max()) / 2 == pytest.approx(142, abs=3)  # alone, it had room


def test_a_name_stays_inside_the_image() -> None:
    ids = np.zeros((200, 300), np.int32)
    ids[:, :30] = 1
    found = written(segmentation(ids, "picture-mirror"))
    _, cols = np.nonzero(found)
    assert cols.min() == 0 and found[:, 40:].any()  # its round corners touch the edge: nothing is cut off
    reference = written(segmentation(np.ones((200, 300), np.int32), "picture-mirror"))
    assert found.sum() == pytest.approx(reference.sum(), rel=0.1)


def test_a_name_that_the_image_cannot_hold_is_left_out() -> None:
    assert not written(segmentation(np.ones((300, 60), np.int32), "chest of drawers")).any()
    assert not written(segmentation(np.ones((100, 200), np.int32), " ")).any()


def test_names_of_any_european_language_and_on_two_lines_are_written() -> None:
    def picture(name: str) -> bytes:
        ids = np.ones((100, 200), np.int32)
        return write_names(np.zeros((100, 200, 3), np.uint8), segmentation(ids, name)).tobytes()

    names = ["çiş", "çiğ", "кот", "пёс", "γάτα", "γίδα", "Tür", "Tor"]
    assert len({picture(name) for name in names}) == len(names)  # letters that a font lacks look all alike
    assert picture("dining\ntable") == picture("dining table")


# ---------------------------------------------------------------------------------------------------------------- fonts

APPLE, DOG, CHINESE = "苹果", "小狗", "苹果小狗"


@pytest.fixture(autouse=True)
def nothing_found_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process, without fonts of the system: tests pass whatever is installed."""
    monkeypatch.delenv("PEM_FONT", raising=False)
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    monkeypatch.setattr(fonts, "_font_of", {})
    monkeypatch.setattr(fonts, "_told", set())
    yield


def font(letters: str) -> TTFont:
    """A font in which each letter is a bar of another height, and what is missing is a square."""

    def bar(width: int, height: int):
        pen = TTGlyphPen(None)
        for number, point in enumerate([(0, 0), (0, height), (width, height), (width, 0)]):
            pen.lineTo(point) if number else pen.moveTo(point)
        pen.closePath()
        return pen.glyph()

    glyphs = [".notdef", *(f"bar{n}" for n in range(len(letters)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(letter): glyph for letter, glyph in zip(letters, glyphs[1:])})
    builder.setupGlyf({glyph: bar(800 if n == 0 else 400, 800 - 150 * n) for n, glyph in enumerate(glyphs)})
    builder.setupHorizontalMetrics({glyph: (1000, 0) for glyph in glyphs})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Bars", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    return builder.font


def font_file(path: Path, letters: str) -> str:
    built = font(letters)
    if path.suffix == ".ttc":
        collection = TTCollection()
        collection.fonts = [built, font("x")]
        collection.save(path)
    else:
        built.save(path)
    return str(path)


def picture(name: str) -> bytes:
    """The letters alone: their ground is black on black."""
    segments = segmentation(np.ones((100, 400), np.int32), name)
    return write_names(np.zeros((100, 400, 3), np.uint8), segments).tobytes()


def is_written(name: str) -> bool:
    return any(picture(name))


def test_a_name_that_no_font_has_is_left_out_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    both = segmentation(np.repeat([[1], [2]], 100, axis=0).repeat(200, axis=1).astype(np.int32), APPLE, "cat")
    found = written(both)
    assert not found[:100].any() and found[100:].any()
    written(both)
    assert not is_written(DOG)
    [first, second] = caplog.records
    assert (first.name, first.levelno) == ("pem", logging.WARNING)
    assert APPLE in first.message and "fonts-noto-cjk" in first.message and "PEM_FONT" in first.message
    assert DOG in second.message and APPLE not in second.message


@pytest.mark.parametrize("ending", ["ttf", "otf", "ttc"])
def test_a_font_of_the_system_that_has_the_letters_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    half = font_file(tmp_path / "half.ttf", APPLE)
    whole = font_file(tmp_path / f"whole.{ending}", CHINESE)
    monkeypatch.setattr(fonts, "_system_fonts", lambda: (str(damaged), str(tmp_path / "gone.ttf"), half, whole))
    pictures = {picture(name) for name in (APPLE, DOG, APPLE[0], DOG[0])}
    assert len(pictures) == 4 and all(map(any, pictures))  # boxes would all look alike
    assert not is_written("狼") and is_written("cat")
    assert len(caplog.records) == 1
    assert fonts._font_of["", frozenset(APPLE)] == half


def test_the_user_s_own_font_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = picture("ab")
    monkeypatch.setenv("PEM_FONT", font_file(tmp_path / "mine.ttf", "ab" + APPLE))
    assert is_written(APPLE) and picture("ab") != plain
    monkeypatch.setenv("PEM_FONT", "")
    assert picture("ab") == plain


@pytest.mark.parametrize("content", [None, b"no font"])
def test_a_user_s_font_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    path = tmp_path / "mine.ttf"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("PEM_FONT", str(path))
    with pytest.raises(ValueError, match="PEM_FONT is .*mine.ttf.*, which is no font file"):
        picture("cat")


ARABIC = "\u0642\u0637\u0629"  # cat; its three letters join


@pytest.mark.skipif(not features.check("raqm"), reason="This Pillow has no Raqm.")
def test_arabic_letters_join_and_hebrew_ones_run_from_right_to_left() -> None:
    assert is_written(ARABIC)
    assert picture(ARABIC) != picture(ARABIC[::-1]) != picture("\u200c".join(ARABIC))
    for word, place in (
        ("\u05de\u05d5", 0),
        ("\u05d5\u05de", -1),
    ):  # the second letter stored, a stroke, is the left one
        columns = np.frombuffer(picture(word), np.uint8).reshape(100, 400, 3)[..., 0].sum(axis=0, dtype=int)
        drawn = np.flatnonzero(columns)
        assert columns.argmax() == drawn[place]


def test_without_raqm_letters_that_join_are_left_out_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fonts.features, "check", lambda feature: False)
    for name in (ARABIC, "\u05d0", "\u0915\u093f", "a\u200db"):
        assert not is_written(name)
    assert is_written("cat") and is_written("e\u0301")  # an accent that is composed needs no shaping
    assert len(caplog.records) == 4 and all("Raqm" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    "name", ["\x00", "\x1b[31m", "\ud800", "\ufeff", "\u202e", "🐱\ufe0f", "👨\u200d👩\u200d👧", "\uffff", "\U0010ffff"]
)
def test_no_name_makes_drawing_fail(name: str) -> None:
    picture(name)
    picture(f"cat{name}")
    if name in ("\x00", "\ud800", "\ufeff", "\u202e"):  # they are never seen
        assert not is_written(name) and picture(f"c{name}at") == picture("cat")


def test_system_fonts_are_listed_plain_ones_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from matplotlib import font_manager

    files = ["/b/NotoSans-Bold.ttf", "/a/NotoSerifMono-Italic.ttf", "/c/NotoSans.ttf", "/c/LastResort.otf"]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    fonts._system_fonts.cache_clear()
    assert fonts._system_fonts() == ("/c/NotoSans.ttf", "/b/NotoSans-Bold.ttf", "/a/NotoSerifMono-Italic.ttf")
    fonts._system_fonts.cache_clear()


def test_an_overlay_has_names_when_asked() -> None:
    segments = segmentation(np.ones((100, 200), np.int32), "cat")
    photo = np.full((100, 200, 3), 128, np.uint8)
    bare, named = render(photo, segments), render(photo, segments, names=True)
    assert np.array_equal(named, write_names(bare, segments)) and not np.array_equal(named, bare)
    named[:] = 0  # it is the caller's
