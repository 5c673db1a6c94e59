import base64
import io
import re
from collections.abc import Mapping
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterfit.report import image_html, row_html, sample_html, text_html
from afterfit.report.samples import LONGEST_SIDE


class Reader(HTMLParser):
    """Tags and text of a fragment as a browser sees them."""

    def __init__(self, fragment):
        HTMLParser.__init__(self)
        self.tags, self.text = [], ""
        self.feed(str(fragment))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def pixels_of(fragment):
    data = re.search(r'src="data:image/png;base64,([^"]+)"', fragment).group(1)
    image = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png")
    return np.rint(image * 255).astype(np.uint8)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_text_is_shown_as_it_is_and_never_as_tags(text):
    read = Reader(text_html(text))
    assert read.tags == ["p"]
    assert read.text.replace("\r", "\n") == text.replace("\r", "\n")


def test_long_text_says_how_much_is_left_out():
    assert Reader(text_html("x" * 100, limit=30)).text == "x" * 30 + " ... 70 more characters"


@pytest.mark.parametrize(
    "sample",
    [
        "<script>alert(1)</script>",
        {"<script>alert(1)</script>": "<script>alert(1)</script>"},
        ["<script>alert(1)</script>"],
        np.array(["<script>alert(1)</script>"]),
        np.array([["<script>alert(1)</script>"]]),
    ],
    ids=["text", "mapping", "list", "row", "table"],
)
def test_no_sample_brings_its_own_script(sample):
    assert "<script" not in sample_html(sample)
    assert "script" not in Reader(sample_html(sample)).tags


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_bytes_keep_their_values(dtype):
    pixels = np.arange(256).reshape(16, 16).astype(dtype)
    assert np.array_equal(pixels_of(image_html(pixels))[..., 0], pixels)


def test_numbers_between_zero_and_one_are_not_stretched():
    shown = pixels_of(image_html(np.array([[0.2, 0.4], [0.2, 0.6]])))
    assert shown[..., 1].tolist() == [[51, 102], [51, 153]]


def test_other_numbers_are_stretched_to_black_and_white():
    shown = pixels_of(image_html(np.array([[-3.0, 0.0], [3.0, np.nan]])))
    assert shown[..., 0].tolist() == [[0, 128], [255, 0]]


@pytest.mark.parametrize("value", [0.0, 0.5, -7.0, 300.0, np.nan, np.inf])
def test_a_constant_image_can_be_shown(value):
    assert np.ptp(pixels_of(image_html(np.full((3, 5), value)))[..., :3]) == 0


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_may_come_first_or_last(channels):
    pixels = np.random.default_rng(0).random((6, 7, channels))
    assert image_html(pixels) == image_html(np.moveaxis(pixels, 2, 0))


def test_gray_may_have_an_axis_for_its_channel():
    pixels = np.random.default_rng(0).random((6, 7))
    assert image_html(pixels) == image_html(pixels[None]) == image_html(pixels[..., None])


def test_colors_keep_their_order():
    red = np.zeros((3, 5, 6))
    red[0] = 1.0
    assert pixels_of(image_html(red))[0, 0, :3].tolist() == [255, 0, 0]


def test_large_images_are_averaged_down():
    board = np.indices((2 * LONGEST_SIDE, LONGEST_SIDE)).sum(axis=0) % 2
    shown = pixels_of(image_html(board.astype(float)))
    assert shown.shape[:2] == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert np.all(shown[..., 0] == 128)


def test_a_very_long_image_keeps_its_short_side():
    assert pixels_of(image_html(np.zeros((1, 10 * LONGEST_SIDE)))).shape[0] == 1


def test_the_same_image_gives_the_same_text():
    pixels = np.random.default_rng(0).random((8, 8))
    assert image_html(pixels) == image_html(pixels.copy())


@pytest.mark.parametrize("shape", [(5,), (5, 7, 9), (2, 3, 4, 5), (0, 4)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"pixels have shape {shape}")):
        image_html(np.zeros(shape))


def test_a_row_has_a_line_for_each_column():
    read = Reader(row_html([1.23456, "a & b", None], ["x", "y", "z"]))
    assert read.tags.count("tr") == 3
    assert read.text == "x1.235ya & bzNone"


def test_only_named_columns_stand_out():
    lines = row_html([1, 2, 3], ["x", "y", "z"], highlights=["y"]).split("<tr")[1:]
    assert ["sample-highlight" in line for line in lines] == [False, True, False]


def test_a_long_row_says_how_many_columns_are_left_out():
    fragment = row_html(list(range(100)), [f"c{place}" for place in range(100)], limit=10)
    assert "90 more columns" in fragment
    assert "c9<" in fragment
    assert "c10<" not in fragment


def test_values_without_names_are_refused():
    with pytest.raises(ValueError, match="3 values for 2 column names"):
        row_html([1, 2, 3], ["x", "y"])


@pytest.mark.parametrize(
    ("sample", "kind"),
    [
        ("text", "sample-text"),
        (np.zeros((4, 4)), "sample-image"),
        (np.zeros((3, 4, 4), dtype=np.uint8), "sample-image"),
        (np.zeros((2, 2), dtype=bool), "sample-image"),
        (np.zeros((5, 6, 7)), "sample-repr"),
        (np.zeros(4), "sample-row"),
        ({"height": 1.5}, "sample-row"),
        (frozenset({1}), "sample-repr"),
        (np.zeros(()), "sample-repr"),
    ],
)
def test_a_sample_is_shown_by_its_type(sample, kind):
    assert f'class="{kind}"' in sample_html(sample)


def test_a_mapping_of_any_class_is_a_row():
    class Record(Mapping):
        def __getitem__(self, name):
            return 2.0

        def __iter__(self):
            return iter(["height"])

        def __len__(self):
            return 1

    assert sample_html(Record()) == sample_html({"height": 2.0})


def test_a_long_repr_is_cut():
    assert len(sample_html(list(range(10_000)))) < 600
