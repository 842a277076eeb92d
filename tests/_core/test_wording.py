"""One image, two images."""

import pytest

from sklabel._core.wording import n_of


@pytest.mark.parametrize(
    "n, name, text",
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "different text", "2 different texts"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
    ],
)
def test_a_number_with_its_noun(n, name, text):
    assert n_of(n, name) == text
