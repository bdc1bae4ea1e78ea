"""The window geometry covers every pixel and is what METHOD.md says."""

from __future__ import annotations

import pytest
import torch

from sdsgsm_fast.common.windows import Windows


@pytest.mark.parametrize("height", [1, 7, 11, 32])
@pytest.mark.parametrize("width", [1, 5, 13, 31])
def test_every_pixel_is_covered_and_every_window_starts_inside(height: int, width: int) -> None:
    for patch in {1, 2, 3, 5, min(height, width)}:
        for stride in range(1, patch + 1):
            if patch > min(height, width):
                continue
            windows = Windows.over(height, width, patch, stride)
            cover = torch.zeros(height, width)
            for rows, cols in windows:
                assert 0 <= rows.start < rows.stop <= height
                assert 0 <= cols.start < cols.stop <= width
                cover[rows, cols] += 1
            assert cover.min() >= 1
            assert len(list(windows)) == len(windows) == windows.rows * windows.cols


def test_the_last_window_is_cut_and_the_order_is_row_major() -> None:
    windows = Windows.over(10, 7, (4, 3), (4, 2))
    assert (windows.rows, windows.cols) == (3, 3)
    assert windows[2] == (slice(0, 4), slice(4, 7))
    assert windows[6] == (slice(8, 10), slice(0, 3))
    with pytest.raises(IndexError, match="window 9 of 9"):
        windows[9]


@pytest.mark.parametrize(
    ("patch", "stride", "message"),
    [
        (0, None, "patch: expected a positive int"),
        (True, None, "patch: expected a positive int"),
        (2.5, None, "patch: expected a positive int"),
        ((2, 2, 2), None, "patch: expected a positive int"),
        (9, None, "patch: must fit into the image of 8×8, found"),
        ((4, 9), None, "patch: must fit into the image"),
        (4, 5, "stride: must not exceed the patch"),
        (4, (4, 5), "stride: must not exceed the patch"),
        (4, 0, "stride: expected a positive int"),
    ],
)
def test_bad_geometry_is_named(patch: object, stride: object, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Windows.over(8, 8, patch, stride)
