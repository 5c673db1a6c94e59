"""Many small images in few files: sheets of thumbnails, as small as a page needs them."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ACROSS = 10
"""Thumbnails in a row of a sheet, and rows of a sheet."""

MOST_BYTES = 9_000_000
"""All sheets together, before base64 adds a third."""

_FORMS = ((128, 90), (96, 85), (64, 85), (48, 80), (32, 85), (32, 70), (32, 50), (32, 25), (16, 25))
"""Longest side in pixels and JPEG quality, tried in order until all are small."""


@final
@dataclass(frozen=True)
class Sheets:
    """Thumbnails packed in order, `ACROSS` squared a sheet.

    Attributes
    ----------
    addresses
        JPEGs as data addresses.
    side
        Pixels of the square that each thumbnail stands in.
    """

    addresses: Sequence[str]
    side: int


def packed(images: Sequence[NDArray[np.uint8]], most_bytes: int = MOST_BYTES) -> Sheets:
    """Pack images of any sizes, H x W x (3 or 4), so that all are at most `most_bytes` long.

    The last and smallest form is taken where none is small enough.
    """
    longest = max((max(image.shape[:2]) for image in images), default=8)
    sheets, side = [], 0
    for most, quality in _FORMS:
        side = -(-min(longest, most) // 8) * 8  # JPEG compresses squares of 8: none has two images
        parts = [images[at : at + ACROSS**2] for at in range(0, len(images), ACROSS**2)]
        sheets = [_jpeg(part, side, quality) for part in parts]
        if sum(map(len, sheets)) <= most_bytes:
            break
    head = "data:image/jpeg;base64,"
    return Sheets([head + base64.b64encode(sheet).decode("ascii") for sheet in sheets], side)


def _jpeg(images: Sequence[NDArray[Any]], side: int, quality: int) -> bytes:
    rows = -(-len(images) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * side, rows * side), (128, 128, 128))
    for place, array in enumerate(images):
        image = Image.fromarray(np.ascontiguousarray(array[:, :, :3]))
        scale = min(1.0, side / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if size != image.size:
            image = image.resize(size, Image.Resampling.BOX)
        row, column = divmod(place, ACROSS)
        left = column * side + (side - image.width) // 2
        sheet.paste(image, (left, row * side + (side - image.height) // 2))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
