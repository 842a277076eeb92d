"""Which embedder is taken, what is said of it, and what is kept."""

import json
import shutil
import urllib.error
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

import sklabel
from sklabel._core.net import Net
from sklabel.cli import embedders, inputs, main, models, words
from sklabel.embedding import PretrainedTransformer, SimCLRTransformer
from tests.cli._running import (
    break_file,
    color_of,
    complaint,
    read_csv,
    write_csv,
    write_images,
)

NAME = ["--embedder", "squeezenet1_1", "--weights", "w.pt", "--image-size", "32"]


@pytest.fixture
def weights(here):
    """A file with weights of a small published network."""
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), "w.pt")
    return here / "w.pt"


def test_two_encoders_side_by_side(here, weights, capsys):
    both = ["--embedder", "squeezenet1_1+squeezenet1_1", "--image-size", "32"]
    shutil.copy("w.pt", "a+b.pt")  # such a name is one file
    for told in ("w.pt", "w.pt+w.pt", "a+b.pt"):
        more = ["--weights", told, "--model", "m", "--overwrite", "--quiet"]
        assert main(["fit", "filled.csv", "photos", *both, *more]) == 0
    select = ["select", "photos", *both, "--weights", "w.pt+w.pt", "--n-samples", "2"]
    assert main([*select, "--quiet"]) == 0
    then = "--embedder squeezenet1_1+squeezenet1_1 --weights w.pt+w.pt"
    assert then in capsys.readouterr().out
    model = sklabel.load("m")
    assert model.embedder_.transform(["photos/0.png"]).shape == (1, 1024)
    assert main(["predict", "m", "photos", "--quiet"]) == 0


@pytest.fixture
def photos(here):
    """Photographs of several sizes, none of them small, and no network."""
    shutil.rmtree("photos")
    write_images(here / "photos", 5, (50, 60))
    write_images(here / "more", 6, (64, 48))
    Path("more/5.png").rename("photos/5.png")
    return here


@pytest.fixture
def offline(monkeypatch):
    asked = []

    def download(url, *args, **kwargs):
        asked.append(url)
        raise urllib.error.URLError("there is no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


@pytest.fixture
def embedded(monkeypatch):
    """The number of rows that networks have been applied to, in a list."""
    n_rows = [0]
    step = Net.evaluation_step

    def counted(self, x, *args, **kwargs):
        n_rows[0] += len(x) if len(x.shape) == 4 else 0
        return step(self, x, *args, **kwargs)

    monkeypatch.setattr(Net, "evaluation_step", counted)
    return n_rows


@pytest.fixture
def briefly(monkeypatch):
    """Two steps of SimCLR are enough."""
    fit = SimCLRTransformer.fit

    def short(self, X, y=None):
        return fit(self.set_params(max_steps=2), X, y)

    monkeypatch.setattr(SimCLRTransformer, "fit", short)


def run(*argv):
    assert main([str(word) for word in argv]) == 0


def test_no_image_is_embedded_twice(here, weights, embedded, cache):
    select = ["select", "photos", "--n-samples", "3", "--quiet", *NAME]
    run(*select)
    assert embedded == [10] and (cache / "sklabel").is_dir()
    run(*select, "--seed", "4")
    run("fit", "filled.csv", "photos", "--model", "m", "--quiet", *NAME)
    run("predict", "m", "photos", "--quiet", "--out", "p.csv")
    assert embedded == [10]
    write_images(here / "photos", 12)  # two new ones
    run("predict", "m", "photos", "--quiet", "--out", "p.csv")
    assert embedded == [12]
    run(*select, "--cache", "own")
    assert embedded == [24] and Path("own").is_dir()
    before = sorted(cache.rglob("*"))
    run("predict", "m", "photos", "--quiet", "--out", "p.csv", "--no-cache")
    assert embedded == [36] and sorted(cache.rglob("*")) == before


def test_the_model_needs_no_weights_file(here, weights, capsys):
    argv = ["fit", "filled.csv", "photos", "--quiet", *NAME]
    run(*argv, "--model", "m")
    told = capsys.readouterr().out
    size = sum(path.stat().st_size for path in Path("m").iterdir())
    assert f"Model: m, {size / 1e6:.1f} MB." in told
    assert size < 1.3 * weights.stat().st_size  # the encoder is in it once
    weights.unlink()
    Path("m").rename("elsewhere")
    run("predict", "elsewhere", "photos", "--quiet", "--out", "p.csv", "--no-cache")
    fitted, predicted = read_csv("labels.csv"), read_csv("p.csv")
    assert [row["predicted"] for row in fitted] == [row["label"] for row in predicted]
    rest = [row for row in fitted if row["source"] == "predicted"]
    assert sum(row["label"] == color_of(row["path"]) for row in rest) >= 5


def test_the_next_command_names_the_encoder(weights, capsys):
    run("select", "photos", "--n-samples", "3", "--quiet", "--cache", "c d", *NAME)
    told = capsys.readouterr().out.split("Then: ")[1]
    assert " ".join(NAME[:4]) in told and "--image-size 32" in told
    assert "--cache 'c d'" in told
    run("select", "photos", "--n-samples", "3", "--quiet", *NAME, "--save-embedder=e")
    told = capsys.readouterr().out.split("Then: ")[1]
    assert "--embedder e" in told and "w.pt" not in told and "32" not in told
    weights.unlink()
    run("fit", "filled.csv", "photos", "--quiet", "--embedder", "e")
    assert "10 images in labels.csv" in capsys.readouterr().out


def test_broken_photographs_and_an_encoder(here, weights, capsys):
    break_file(here / "photos" / "9.png")
    fit = ["fit", "filled.csv", "photos", "--quiet", *NAME]
    said = complaint(capsys, *fit)
    assert "1 of 10 image files cannot be read" in said and "--skip-broken" in said
    run(*fit, "--skip-broken")
    assert "9.png" in capsys.readouterr().err
    assert read_csv("labels.csv")[-1]["label"] == ""


def test_auto_without_a_network(photos, offline, briefly, capsys):
    argv = ["select", "photos", "--n-samples", "3", "--image-size", "48"]
    run(*argv)
    out, err = capsys.readouterr()
    assert len(offline) == 1  # asked once
    said = [line for line in err.splitlines() if line.startswith("sklabel: ")]
    assert "could not be downloaded" in said[0] and "--weights FILE" in said[0]
    assert "SimCLR is trained on these" in said[1] and "400 steps" in said[1]
    assert "minute" in said[1]
    assert "--embedder simclr" in out
    # what was learned is kept, for the same images and settings
    run(*argv, "--embedder", "simclr")
    assert "earlier SimCLR embedding is used" in capsys.readouterr().err


def test_auto_with_weights_that_are_there(photos, offline, capsys, monkeypatch):
    place = Path(torch.hub.get_dir(), "checkpoints")
    place.mkdir(parents=True)
    assert photos.parent in place.parents or "cache" in str(place)
    published = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    torch.manual_seed(0)
    state = torchvision.models.mobilenet_v2().state_dict()
    torch.save(state, place / Path(published.url).name)
    monkeypatch.setattr(SimCLRTransformer, "fit", lambda *_: pytest.fail("trained"))
    run("select", "photos", "--n-samples", "3", "--image-size", "64")
    out, err = capsys.readouterr()
    said = err.splitlines()[0]
    assert "mobilenet_v2" in said and "14 MB" in said and str(place) in said
    assert "--embedder mobilenet_v2 --weights IMAGENET1K_V1" in out
    assert offline == []


def test_a_server_that_says_nothing(monkeypatch):
    import socket

    before = socket.getdefaulttimeout()
    with embedders._impatient():
        assert socket.getdefaulttimeout() <= 10
    assert socket.getdefaulttimeout() == before


def test_small_images_are_learned_from(here, briefly, capsys):
    run("select", "photos", "--n-samples", "3", "--image-size", "16")
    out, err = capsys.readouterr()
    assert "do not work well on images of 16 pixels" in err and "minute" in err
    assert "--embedder simclr" in out


def test_what_is_too_small_for_photographs(here):
    def too_small(size, gray=False):
        folder = here / "sized"
        shutil.rmtree(folder, ignore_errors=True)
        for path in write_images(folder, 5, size).iterdir():
            if gray:
                with Image.open(path) as image:
                    image.convert("L").save(path)
        args = Namespace(image_size=None, max_pixels=None)
        return embedders._too_small(inputs.list_images(folder), args)

    assert too_small((60, 50)) is None and too_small((60, 50), gray=True) is None
    assert too_small((32, 40)) is None
    assert too_small((28, 40), gray=True) == "gray images of 28 pixels"
    assert too_small((16, 400)) == "images of 16 pixels"


def test_other_settings_or_images_are_learned_anew(here):
    argv = ["select", "photos", "--n-samples", "3", "--quiet", "--epochs", "1"]
    trained = []
    fit = SimCLRTransformer.fit

    def counted(self, X, y=None):
        trained.append(len(X))
        return fit(self, X, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimCLRTransformer, "fit", counted)
        for more in ([], [], ["--seed", "1"], ["--no-flip"], ["--image-size", "24"]):
            run(*argv, *more)
        assert trained == [10] * 4
        Path("photos/3.png").unlink()
        run(*argv)
        assert trained == [10] * 4 + [9]


def test_damage_in_what_is_kept(here, cache, capsys):
    argv = ["select", "photos", "--n-samples", "3", "--quiet", "--epochs", "1"]
    run(*argv)
    for path in (cache / "sklabel" / "simclr").rglob("*.json"):
        path.write_text("{")
    run(*argv)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "argv, said",
    [
        ("--embedder mobilenet", "no model folder mobilenet, and .*did you mean"),
        ("--embedder mobilenet_v2 --weights no.pt", "no.pt"),
        ("--embedder squeezenet1_1+simclr", "and 'simclr' is not one"),
        ("--embedder squeezenet1_1+", "and '' is not one"),
        ("--embedder auto+squeezenet1_1", "and 'auto' is not one"),
        ("--embedder nosuch+squeezenet1_1", "'nosuch' is unknown"),
        ("--embedder squeezenet1_1 --weights a+b", "names 2 .* 1 encoders"),
        ("--embedder=", "--embedder is empty"),
        ("--embedder squeezenet1_1 --weights=", "--weights is empty"),
        ("--embedder mobilenet_v2 --weights BEST", "--weights 'BEST' is neither"),
        ("--embedder mobilenet_v2 --epochs 3", "--epochs is for training"),
        ("--embedder simclr --weights w.pt", "not to --embedder simclr"),
        ("--embedder empty --weights w.pt", "not to --embedder empty"),
        ("--weights w.pt", "--weights belongs to an encoder with a name"),
        ("--cache photos", "the folder of the photographs"),
        ("--cache a --no-cache", "not allowed with argument"),
    ],
)
def test_wrong_input(wrong_input_is_refused, argv, said):
    wrong_input_is_refused(f"select photos {argv}", said)
    wrong_input_is_refused(f"fit filled.csv photos {argv}", said)


def test_saved_encoders_on_a_device(here, weights):
    PretrainedTransformer("squeezenet1_1", weights=str(weights), input_size=32).fit(
        [str(here / "photos" / "0.png")]
    ).save("e")
    run("fit", "filled.csv", "photos", "--embedder", "e", "--model", "m", "--quiet")
    run("predict", "m", "photos", "--device", "cpu", "--quiet", "--out", "p.csv")
    model = sklabel.load("m")
    assert model.embedder is model.embedder_
    write_csv("other.csv", [("0.png", "red"), ("1.png", "blue")])
    run("fit", "other.csv", "photos", "--embedder", "e", "--quiet", "--out", "o.csv")


@pytest.mark.parametrize("name", ["device", "cache_dir", "embedder__x", "C", "nothing"])
def test_a_file_sets_nothing_else_by_what_is_fitted(here, weights, name):
    run("fit", "filled.csv", "photos", "--model", "m", "--quiet", *NAME)
    path = Path("m/estimator.json")
    described = json.loads(path.read_text())
    assert described["estimator"]["estimator"]["as_fitted"] == ["embedder"]
    described["estimator"]["estimator"]["as_fitted"] = [name]
    described["estimator"]["estimator"]["fitted"]["dict"].append([f"{name}_", "cpu"])
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match="is not what fit sets"):
        sklabel.load("m")


def test_the_expected_time_of_an_embedding(photos, weights, capsys, monkeypatch):
    """It is told before the work begins, unless all is kept or soon done."""
    monkeypatch.setattr(inputs, "_MANY", 4)
    argv = ["cluster", "photos", *NAME, "--n-clusters", "2"]
    assert main(argv) == 0
    assert "to embed" not in capsys.readouterr().err  # soon done
    monkeypatch.setattr(inputs, "_LONG", 0)
    assert main([*argv, "--no-cache"]) == 0
    err = capsys.readouterr().err
    assert "6 images to embed: less than a minute." in err
    assert err.index("to embed") < err.index("100%")
    assert main(argv) == 0
    assert "to embed" not in capsys.readouterr().err  # kept
    write_images(photos / "photos" / "more", 4, (51, 61))
    assert main(argv) == 0
    assert "4 images to embed" in capsys.readouterr().err
    assert main([*argv, "--no-cache", "--quiet"]) == 0
    assert "to embed" not in capsys.readouterr().err


def test_the_expected_time_of_a_training(here, saved, capsys, monkeypatch):
    fit = ["fit", "filled.csv", "photos", "--embedder", str(saved / "embedder")]
    assert main([*fit, "--steps", "3"]) == 0
    assert "steps, " not in capsys.readouterr().err
    assert main([*fit, "--steps", "3", "--quiet", "--out", "quiet.csv"]) == 0
    monkeypatch.setattr(models, "LONG", 2)
    assert main([*fit, "--steps", "3"]) == 0
    assert "fixmatch: 3 steps, less than a minute." in capsys.readouterr().err
    # what is learned is the same
    assert Path("labels.csv").read_bytes() == Path("quiet.csv").read_bytes()


@pytest.mark.parametrize(
    "seconds, said",
    [
        (20, "less than a minute"),
        (61, "about 1 minute"),
        (600, "about 10 minutes"),
        (7200, "about 2 hours"),
    ],
)
def test_durations(seconds, said):
    assert words.duration(seconds) == said
