"""The review page: all samples in one file that loads nothing and runs nothing of theirs."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from afterfit.report import review_html
from afterfit.report.thumbnails import MOST_BYTES, packed

EVIL = '</script><script>alert("x")</script><!--<img src=x onerror=alert(1)>&amp;\u2028'


def issues(num: int, **changes: Any) -> pd.DataFrame:
    columns = {
        "index": np.arange(num),
        "id": [f"s{place}" for place in range(num)],
        "given": np.zeros(num, dtype=int),
        "suggested": np.ones(num, dtype=int),
        "score": np.linspace(9, 1, num),
        "is_issue": True,
        "p_wrong": np.linspace(1, 0.5, num),
    }
    return pd.DataFrame(columns | changes)


def html_of(
    table: pd.DataFrame, samples: Sequence[Any], names: Sequence[str] = ("cat", "dog")
) -> str:
    return review_html(
        "Animals", "abc", table, samples, class_names=names, p_wrong=table["p_wrong"].tolist()
    )


def data_of(html: str) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(text)


def images(num: int, side: int) -> list[np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8)
    return list(noise)


def test_every_sample_is_in_the_page():
    data = data_of(html_of(issues(150), images(150, 8)))
    assert [item[0] for item in data["items"]] == list(range(150))
    assert [item[7] for item in data["items"]] == list(range(150))
    assert len(data["sheets"]) == 2
    assert data["classes"] == [["0", "cat"], ["1", "dog"]]


def test_the_page_allows_its_own_script_and_loads_nothing():
    html = html_of(issues(2), images(2, 8))
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f"{policy}; script-src 'sha256-{digest}'" in html
    assert not re.search(r"https?://|@import|<link|<iframe|fetch\(|XMLHttp|innerHTML", html)


def test_hostile_texts_stay_texts():
    table = issues(3, id=[EVIL] * 3)
    html = html_of(table, [EVIL, {EVIL: EVIL}, np.zeros(2)], names=(EVIL, "dog"))
    assert html.count("<script") == html.count("</script>") == 2
    assert "onerror" not in html.split('id="data"')[0]
    assert "<img" not in html
    data = data_of(html)
    assert data["items"][0][1] == data["items"][0][7] == EVIL
    assert data["items"][1][7] == [[EVIL, EVIL]]
    assert data["classes"][0] == ["0", EVIL]
    titled = review_html(EVIL, "abc", table, ["", "", ""])
    assert titled.count("<script") == 2


def test_counts_are_those_of_all_the_data():
    table = issues(2)
    html = review_html("A", "abc", table, ["", ""], p_wrong=[0.9, 0.6, 0.2, np.nan])
    counts = data_of(html)["counts"]
    assert counts[0] == [3, 1.3]
    assert counts[50] == [2, 0.5]
    assert counts[100] == [0, 0]


def test_without_probabilities_there_is_nothing_to_slide():
    data = data_of(html_of(issues(2, p_wrong=np.nan), ["", ""]))
    assert data["counts"] == []
    assert data["items"][0][6] is None


def test_labels_that_are_no_classes_cannot_be_chosen():
    data = data_of(html_of(issues(2, given=[0.5, 1.5]), ["", ""], names=()))
    assert data["classes"] == []
    assert data["items"][0][2] == "0.5"


def test_samples_of_another_number_are_refused():
    with pytest.raises(ValueError, match="1 samples for 2 rows"):
        html_of(issues(2), [""])


def test_no_samples_make_a_page():
    assert data_of(html_of(issues(0), []))["items"] == []


def test_a_thumbnail_is_found_where_it_was_packed():
    colors = [np.full((8, 8, 3), 2 * place, dtype=np.uint8) for place in range(105)]
    sheets = packed(colors)
    second = base64.b64decode(sheets.addresses[1].split(",")[1])
    pixels = np.asarray(Image.open(io.BytesIO(second)))
    assert pixels.shape == (8, 80, 3)
    assert abs(int(pixels[4, 8 * 3 + 4, 0]) - 206) < 4


def test_images_of_many_shapes_keep_their_proportions():
    sheets = packed(
        [np.full((4, 300, 3), 255, dtype=np.uint8), np.zeros((9, 9, 4), dtype=np.uint8)]
    )
    assert sheets.side == 128


def test_many_images_stay_small():
    most = MOST_BYTES // 100  # a hundredth of 10,000 images of noise, the hardest to pack
    sheets = packed(images(100, 32), most)
    assert sheets.side == 32
    assert sum(map(len, sheets.addresses)) < 150_000
