"""What is not a folder of images or of a classifier is refused."""

import pytest

from sklabel.cli import main
from tests.cli._running import complaint, write_images


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


def test_one_image(here, saved, capsys):
    write_images(here / "one", 1)
    argv = ["predict", str(saved / "model")]
    for place in ("one", "one/0.png"):
        assert main([*argv, place, "--quiet", "--top", "2"]) == 0
        first, row = capsys.readouterr().out.splitlines()
        assert first.endswith("source,predicted,label_2,confidence_2")
        cells = row.split(",")
        assert cells[0] == "0.png" and {cells[1], cells[5]} == {"red", "blue"}
        assert abs(float(cells[2]) + float(cells[6]) - 1) < 2e-4
    (here / "note.txt").write_text("no image")
    assert "cannot be read" in complaint(capsys, *argv, "note.txt", "--quiet")
