import base64
import io

import matplotlib.image
import numpy as np
import pytest

from afterfit.report import image_html, row_html, sample_html, text_html
from afterfit.report.samples import LONGEST_SIDE


def pixels_of(html):
    data = html.split("base64,")[1].split('"')[0]
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))[:, :, :3]


def test_an_image_keeps_its_pixels():
    colors = np.random.default_rng(0).integers(0, 256, (5, 7, 3))
    np.testing.assert_allclose(pixels_of(image_html(colors)) * 255, colors, atol=1e-3)


def test_channels_may_stand_first_or_last():
    colors = np.random.default_rng(0).random((5, 7, 3))
    assert image_html(colors) == image_html(np.moveaxis(colors, 2, 0))


def test_numbers_outside_the_unit_interval_are_stretched():
    gray = pixels_of(image_html(np.array([[-2.0, 0.0, 2.0]])))[0, :, 0]
    np.testing.assert_allclose(gray, [0, 0.5, 1], atol=0.01)


def test_a_large_image_is_averaged_down():
    shape = pixels_of(image_html(np.zeros((1000, 300)))).shape
    assert max(shape) <= LONGEST_SIDE


@pytest.mark.parametrize("shape", [(4,), (2, 5, 5), (2, 3, 4, 4)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match="pixels have shape"):
        image_html(np.zeros(shape))


@pytest.mark.parametrize(
    "sample", ["<script>", {"<script>": "<script>"}, ["<script>"]], ids=["text", "row", "other"]
)
def test_samples_are_escaped(sample):
    html = sample_html(sample)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("sample", "part"),
    [
        (np.zeros((4, 4)), '<img class="sample-image"'),
        (np.zeros((3, 4, 4)), '<img class="sample-image"'),
        (np.array([1.23456, 2]), "<td>1.235</td>"),
        (np.zeros((2, 5, 5)), "array of shape (2, 5, 5), float64"),
        (3, '<pre class="sample-repr">3</pre>'),
    ],
)
def test_a_sample_is_shown_by_its_type(sample, part):
    assert part in sample_html(sample)


def test_long_texts_and_rows_say_what_they_leave_out():
    assert "5 more characters" in text_html("x" * 15, limit=10)
    assert "3 more columns" in row_html(range(7), "abcdefg", limit=4)


def test_only_the_named_columns_stand_out():
    assert row_html([1, 2, 3], ["a", "b", "c"], highlights=["b"]).count("sample-highlight") == 1


def test_a_row_without_all_names_is_refused():
    with pytest.raises(ValueError, match="2 values for 1 column names"):
        row_html([1, 2], ["a"])
