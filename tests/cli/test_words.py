"""Names and numbers in the messages of commands."""

from sklabel.cli import words


def test_no_name_runs_into_its_count():
    counts = {"t-shirt": 3, "class 1": 2, "3,5": 1, "it's": 4, "two\nlines": 5}
    assert words.counted(counts) == (
        "t-shirt 3, 'class 1' 2, '3,5' 1, \"it's\" 4, two lines 5"
    )
    assert words.counted({}) == ""
