"""The next command is complete; options and commands are suggested."""

import shlex
import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from sklabel._core.net import Net
from sklabel.classification import FixMatchClassifier
from sklabel.cli import _parse, fit, main, options
from sklabel.embedding import PretrainedTransformer, SimCLRTransformer
from tests.cli._running import (
    SHORT,
    break_file,
    color_of,
    complaint,
    read_csv,
    write_csv,
    write_images,
)

words = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
)


@given(words, words, words, words, st.lists(words, max_size=2))
def test_any_words_come_back_from_a_shell(csv, folder, embedder, column, unlabeled):
    before = Namespace(
        embedder="other",
        epochs=3,
        image_size=16,
        no_flip=True,
        seed=7,
        checkpoint=None,
        skip_broken=True,
        device="cpu",
        label_column=column,
        path_column="path",
        path_prefix=None,
        unlabeled=unlabeled,
        keep_label=[],
    )
    line = options.command_line("fit", csv, folder, args=before, embedder=embedder)
    program, *argv = shlex.split(line)
    args = _parse(argv)
    assert program == "sklabel" and args.command == "fit"
    meant = [f"./{word}" if word.startswith("-") else word for word in (csv, folder)]
    assert args.paths == meant
    for name, value in {**vars(before), "embedder": embedder}.items():
        assert getattr(args, name) == value


def next_command(capsys):
    return shlex.split(capsys.readouterr().out.split("Then: ")[1])[1:]


def fill_in(path):
    rows = read_csv(path)
    write_csv(path, [(row["path"], color_of(row["path"])) for row in rows])


@pytest.mark.parametrize("keep", [True, False])
def test_the_printed_command_runs(here, capsys, keep):
    break_file(here / "photos" / "9.png")
    folder = "my photos; rm x"
    (here / "photos").rename(folder)
    state = "$HOME `state`"
    select = ["select", folder, "--n-samples", "8", "--image-size", "16", *SHORT]
    select += ["--no-flip", "--skip-broken", "--seed", "5", "--out", "it's.csv"]
    select += ["--save-embedder", "-e"] if keep else ["--checkpoint", state]
    if keep:
        select[-2:] = ["--save-embedder=-e"]
    assert main(select) == 0
    pasted = next_command(capsys)
    fill_in("it's.csv")
    args = _parse(pasted)
    assert args.no_flip and args.skip_broken and args.seed == 5
    if keep:
        assert args.embedder == "-e" and args.image_size is None
    else:
        assert args.checkpoint == state and args.image_size == 16 and args.epochs == 1
    assert main([*pasted, "--steps", "1", "--quiet"]) == 0
    # a second round, with both lists, and another file than the corrected labels
    with open("labels.csv", "a") as file:
        file.write("\n")
    more = ["select", folder, "--n-samples", "1", "--labeled", "it's.csv"]
    more += ["--out", "more.csv", "--skip-broken", "--label-column", "Label", *SHORT]
    more += ["--image-size", "16"]
    capsys.readouterr()
    assert main(more) == 0
    pasted = next_command(capsys)
    assert pasted[:4] == ["fit", "it's.csv", "more.csv", folder]
    assert "labels-2.csv" in pasted and "Label" in pasted
    fill_in("more.csv")
    assert main([*pasted, "--steps", "1", "--quiet"]) == 0
    assert len(read_csv("labels-2.csv")) == 10


@pytest.mark.parametrize(
    "argv, said",
    [
        ("selct photos", "'selct' is not a command. Did you mean select?"),
        ("fit filled.csv photos --lable-column x", "Did you mean --label-column"),
        ("fit filled.csv photos --sed=3", "Did you mean --seed.*sklabel fit --help"),
        ("select photos --threshold 3", r"--threshold 3 \(see sklabel select --help"),
        ("fit photos filled.csv", "CSV comes first.*: sklabel fit filled.csv photos$"),
        ("fit filled.csv photos a.csv", "sklabel fit filled.csv a.csv photos$"),
        ("fit filled.csv", "FOLDER is missing"),
        ("fit photos", "CSV is missing"),
        ("select", "FOLDER is missing"),
        ("select --labeled filled.csv nolabel.csv", "FOLDER is missing"),
        (
            "select photos --labeled nopath.csv",
            "nopath.csv has no column 'path'.*--path-column",
        ),
        (
            "select photos --labeled filled.csv --label-column kind",
            "filled.csv has no column 'kind'.*--label-column",
        ),
        (
            "predict photos damaged",
            "model comes first.*: sklabel predict damaged photos",
        ),
    ],
)
def test_wrong_input(wrong_input_is_refused, argv, said):
    wrong_input_is_refused(argv, said)


@pytest.mark.parametrize(
    "argv",
    [
        ["a.csv", "b.csv", "photos", "--steps", "2"],
        ["a.csv", "b.csv", "--steps", "2", "photos"],
        ["a.csv", "--steps", "2", "b.csv", "photos"],
        ["--steps", "2", "a.csv", "b.csv", "photos"],
    ],
)
def test_several_lists_stand_anywhere_before_the_folder(here, saved, capsys, argv):
    write_csv("a.csv", [("0.png", "red"), ("1.png", "")])
    write_csv("b.csv", [("1.png", "blue"), ("0.png", "red")])
    rest = ["--embedder", str(saved / "embedder"), "--quiet"]
    assert main(["fit", *argv, *rest]) == 0
    assert "2 labels given" in capsys.readouterr().out


def test_several_lists_of_select(here, saved):
    write_csv("a.csv", [("0.png", "red")])
    write_csv("b.csv", [("1.png", "blue")])
    rest = ["--embedder", str(saved / "embedder"), "--quiet", "--n-samples", "8"]
    for argv in (
        ["--labeled", "a.csv", "b.csv", "photos", *rest],
        ["photos", *rest, "--labeled", "a.csv", "b.csv"],
        ["photos", "--labeled", "a.csv", *rest, "--labeled", "b.csv"],
    ):
        assert main(["select", *argv]) == 0
        asked = {row["path"] for row in read_csv("to_label.csv")}
        assert asked == {f"{i}.png" for i in range(2, 10)}


def test_remedies_are_options_of_the_command(here, capsys, monkeypatch):
    def warned(args):
        FixMatchClassifier()._warn_hardly_used(0.0, "epoch")

    monkeypatch.setattr(fit, "run", warned)
    assert main(["fit", "filled.csv", "photos"]) == 0
    err = capsys.readouterr().err
    assert "(--steps)" in err and "backbone" not in err and "threshold," not in err

    def diverged(args):
        X = np.random.default_rng(0).random((16, 8, 8), np.float32)
        SimCLRTransformer(max_steps=1).fit(X)

    monkeypatch.setattr(fit, "run", diverged)
    nan = torch.full((2, 2), torch.nan)
    monkeypatch.setattr(Net, "evaluate", lambda *args, **kwargs: nan)
    said = complaint(capsys, "fit", "filled.csv", "photos")
    assert "lr=" not in said and "precision=" not in said and "--seed" in said
    embedder = SimCLRTransformer()
    warning = embedder.remedy.format(lr=0.001, temperature=0.5)
    monkeypatch.setattr(fit, "run", lambda args: warnings.warn(warning, stacklevel=1))
    assert main(["fit", "filled.csv", "photos"]) == 0
    assert capsys.readouterr().err.endswith("another --seed, or fewer --epochs\n")


def test_a_pretrained_encoder_and_a_single_photograph(here, capsys):
    write_images(here / "one", 1)
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), "w.pt")
    paths = [str(path) for path in Path("photos").iterdir()]
    embedder = PretrainedTransformer(
        "squeezenet1_1", weights="w.pt", image_size=32, input_size=32
    )
    embedder.fit(paths).save("pre")
    fit = ["fit", "filled.csv", "photos", "--embedder", "pre", "--steps", "1"]
    assert main([*fit, "--quiet", "--model", "pm"]) == 0
    assert len(read_csv("labels.csv")) == 10
    for folder in ("photos", "one"):
        assert main(["predict", "pm", folder, "--quiet", "--out", "p.csv"]) == 0
    assert [row["path"] for row in read_csv("p.csv")] == ["0.png"]
    (here / "none").mkdir()
    capsys.readouterr()
    assert "No image found" in complaint(capsys, "predict", "pm", "none")
