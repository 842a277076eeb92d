"""Models that do not fit a command are refused."""

import numpy as np

from sklabel.embedding import SimCLRTransformer
from tests.cli._running import complaint


def test_wrong_models(here, saved, capsys):
    embedder, model = saved / "embedder", saved / "model"
    said = complaint(capsys, "predict", embedder, "photos")
    assert "holds a SimCLRTransformer, not a classifier" in said
    select = ["select", "photos", "--n-samples", 2, "--embedder"]
    said = complaint(capsys, *select, model)
    assert "holds a FixMatchClassifier, not an embedder" in said
    said = complaint(capsys, *select, embedder, "--image-size", 32)
    assert "was trained on images of 16x16 pixels" in said
    gray = np.zeros((8, 8, 8), np.uint8)
    SimCLRTransformer(max_epochs=1).fit(gray).save("gray")
    assert "not on RGB images" in complaint(capsys, *select, "gray")
