"""What is not a folder of images or of a classifier is refused."""

import pytest


@pytest.mark.parametrize(
    "argv, said",
    [
        ("predict nowhere photos", "no model folder nowhere"),
        ("predict empty photos", "holds no saved estimator"),
        ("predict photos photos", "holds no saved estimator"),
        ("predict damaged photos", "'damaged' is damaged"),
        ("predict empty nowhere", "There is no folder 'nowhere'"),
    ],
)
def test_wrong_input(wrong_input_is_refused, argv, said):
    wrong_input_is_refused(argv, said)
