"""Models that an earlier version saved load, and give what they gave then."""

from pathlib import Path

import numpy as np
import pytest

import sklabel
from sklabel import classification, clustering, embedding, selection

# A few small models of each role; expected.npz holds the rows they were asked about
# and their answers. They are not written again: how each was made stands in its
# estimator.json.
FOLDER = Path(__file__).parent / "data" / "saved"
MODELS = sorted(path.parent.name for path in FOLDER.glob("*/estimator.json"))


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def test_every_role_is_there():
    found = {type(sklabel.load(FOLDER / name)).__name__ for name in MODELS}
    for role in (embedding, clustering, classification, selection):
        assert len(found & set(role.__all__)) >= 2


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_gives_what_it_gave(name, expected):
    model = sklabel.load(FOLDER / name)
    X = expected["images" if name.endswith("-images") else "vectors"]
    answers = {
        k.split(":")[1]: v for k, v in expected.items() if k.startswith(f"{name}:")
    }
    assert answers
    for member, then in answers.items():
        now = getattr(model, member)
        if callable(now):
            now = now(X)
        if then.dtype.kind == "f":
            np.testing.assert_allclose(now, then, rtol=1e-4, atol=1e-4, err_msg=member)
        else:
            np.testing.assert_array_equal(now, then, err_msg=member)
