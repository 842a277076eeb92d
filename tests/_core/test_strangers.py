"""What a stranger wrote: nothing in it is executed, fetched, or told in many lines."""

import io
import json
import os
import random
import socket
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sklabel
from sklabel._core import persistence
from sklabel._core.inputs import ImageFiles
from sklabel.embedding import SimCLRTransformer
from sklabel.pretrained import load_weights_

X = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
posix = pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    SimCLRTransformer(max_steps=1, random_state=0).fit(X).save(folder)
    return folder


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nested") / "model"
    inner = SimCLRTransformer(max_steps=1, random_state=0).fit(X)
    SimCLRTransformer(backbone=inner, max_steps=1, random_state=0).fit(X).save(folder)
    return folder


def copy(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def changed(folder, target, change):
    """Copy a model, and change what stands in its description."""
    copy(folder, target)
    path = target / "estimator.json"
    description = json.loads(path.read_text())
    change(description["estimator"]["estimator"])
    path.write_text(json.dumps(description))
    return target


def setting(part, name, value):
    """Return a change: an entry of "parameters" or "fitted" gets a JSON value."""

    def change(estimator):
        pairs = estimator[part]["dict"]
        estimator[part]["dict"] = [p for p in pairs if p[0] != name] + [[name, value]]

    return change


# -- names of models that lie elsewhere

EXTERNAL = [
    "open_clip/hf-hub:evil/repo",
    "open_clip/local-dir:gift",
    "timm/hf-hub:evil/repo",
    "timm/hf_hub:evil/repo",
    "timm/local-dir:gift",
    "hf-hub:evil/repo",
    "local-dir:gift",
]


@pytest.fixture
def no_network(monkeypatch):
    def connect(*args, **kwargs):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@pytest.mark.parametrize("name", EXTERNAL)
def test_names_of_models_elsewhere_are_refused(saved, tmp_path, name, no_network):
    change = setting("parameters", "backbone", name)
    folder = changed(saved, tmp_path / "gift", change)
    with pytest.raises(ValueError, match="allow_external=True") as caught:
        sklabel.load(folder)
    assert repr(name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_they_are_refused_within_another_estimator(nested, tmp_path, no_network):
    def change(estimator):
        inner = dict(estimator["parameters"]["dict"])["backbone"]["estimator"]
        setting("parameters", "backbone", EXTERNAL[0])(inner)

    folder = changed(nested, tmp_path / "gift", change)
    with pytest.raises(ValueError, match="refused: backbone='open_clip/hf-hub:evil"):
        sklabel.load(folder)


def test_who_allows_them_gets_them(saved, tmp_path):
    change = setting("parameters", "backbone", EXTERNAL[1])
    folder = changed(saved, tmp_path / "gift", change)
    with pytest.raises(ValueError) as caught:  # SimCLR takes no such backbone
        sklabel.load(folder, allow_external=True)
    assert "refused" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["hf-hub:evil/repo", "local-dir:gift", "xlm-roberta-base-ViT-B-32"]
)
def test_nothing_is_fetched_while_a_folder_is_loaded(
    saved, name, no_network, monkeypatch
):
    pytest.importorskip("open_clip")
    from sklabel.pretrained import open_clip_model

    def rebuild(self, mean, std):
        return open_clip_model(name, load=False)

    monkeypatch.setattr(SimCLRTransformer, "_rebuild_module", rebuild)
    with pytest.raises(ValueError, match=f"refused: 'open_clip/{name}'.*allow_ext"):
        sklabel.load(saved)


@pytest.mark.parametrize("ours", [False, True])
def test_a_tokenizer_runs_no_code_of_a_folder(tmp_path, monkeypatch, ours):
    pytest.importorskip("open_clip")
    from sklabel.pretrained import open_clip_tokenizer

    asked = []

    def from_pretrained(name, **options):
        asked.append(options)
        return lambda texts, **kwargs: None

    fake = types.SimpleNamespace(
        AutoTokenizer=types.SimpleNamespace(from_pretrained=from_pretrained)
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    text = {
        "hf_tokenizer_name": "gift",
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    config = {"model_cfg": {"text_cfg": {} if ours else text}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    tokenizer = open_clip_tokenizer(f"local-dir:{tmp_path}")
    if ours:
        assert tokenizer(["a dog"]).shape == (1, 77) and not asked
    else:
        assert asked == [{"cache_dir": None, "trust_remote_code": False}]


@posix
def test_links_out_of_the_folder_are_refused(saved, tmp_path):
    for name in [path.name for path in saved.iterdir()]:
        folder = copy(saved, tmp_path / name)
        (folder / name).unlink()
        (folder / name).symlink_to(saved / name)
        with pytest.raises(ValueError, match=f"refused: {name} is a link"):
            sklabel.load(folder)
        sklabel.load(folder, allow_external=True).transform(X)


# -- what fit sets

SCRIPT = '"><script>alert(document.cookie)</script><a href="'
NOT_SET_BY_FIT = {
    "_doc_link_module": "sklabel",
    "__doc_link_template": SCRIPT,
    "_doc_link_template": SCRIPT,
    "__class__": "x",
    "__init__": "x",
    "__sklearn_tags__": "x",
    "predict": "x",
    "transform": "x",
    "_validate_params": "x",
    "_parameter_constraints": {"dict": []},
    "get_params": "x",
    "set_output": "x",
    "net_": "x",
    "encoder_": "x",
    "_task": "x",
    "_metadata_request": "x",
    "anything": 1,
    "_hidden_": 1,
    "a-b_": 1,
    "": 1,
}


@pytest.mark.parametrize("name", NOT_SET_BY_FIT)
def test_a_file_sets_only_what_fit_sets(saved, tmp_path, name):
    change = setting("fitted", name, NOT_SET_BY_FIT[name])
    with pytest.raises(ValueError, match="is not what fit sets"):
        sklabel.load(changed(saved, tmp_path / "gift", change))


NAN, INF = float("nan"), float("inf")
WRONG = [
    *(("calibration_temperature_", v) for v in ("hot", 0, -1.0, NAN, INF, None, [])),
    *(("classes_", v) for v in ("ab", 2, None, {"list": [1, 2]}, {"tuple": []})),
    ("classes_", {"objects": [], "shape": [0], "dtype": "|O"}),
    ("classes_", {"objects": ["a", "b"], "shape": [1, 2], "dtype": "|O"}),
    ("sample_shape_", None),
    ("sample_shape_", {"list": [5]}),
    ("sample_shape_", {"tuple": []}),
    ("sample_shape_", {"tuple": [0]}),
    ("sample_shape_", {"tuple": [-5]}),
    ("sample_shape_", {"tuple": [5.0]}),
    ("sample_shape_", {"tuple": ["5"]}),
    ("sample_shape_", {"tuple": [5, 1, 1, 1]}),
    ("sample_shape_", {"tuple": [10**9]}),
    ("n_features_in_", "5"),
    ("n_features_in_", 0),
    ("n_iter_", -1),
    ("interrupted_", "yes"),
    ("embedder_", "x"),
    ("_pixel_range", {"tuple": [1.0, 0.0]}),
    ("_pixel_range", {"tuple": [0.0, "1"]}),
    ("_origins", "x"),
    ("_fresh", None),
    ("_network", -1),
    ("_sklearn_output_config", {"dict": [["transform", "x"]]}),
    ("labels_", "x"),
    ("other_", {"augment": "Weak", "parameters": {"dict": []}}),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_what_fit_sets_is_checked(saved, tmp_path, name, value):
    with pytest.raises(ValueError, match=f"SimCLRTransformer.{name} cannot be"):
        sklabel.load(changed(saved, tmp_path / "a", setting("fitted", name, value)))


@pytest.mark.parametrize(
    ("name", "value"), [("max_epochs", "x"), ("temperature", -1), ("precision", "x")]
)
def test_parameters_are_checked(saved, tmp_path, name, value):
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        sklabel.load(changed(saved, tmp_path / "a", setting("parameters", name, value)))


def test_the_display_of_a_loaded_model_is_that_of_the_saved_one(saved):
    assert "<script>alert" not in sklabel.load(saved)._repr_html_()


def test_what_means_the_machine_is_not_taken_over(saved, tmp_path):
    given = {
        "device": "cuda",
        "checkpoint_dir": str(tmp_path / "elsewhere"),
        "verbose": 1,
        "net_params": {"dict": [["checkpoint", str(tmp_path / "elsewhere")]]},
    }

    def change(estimator):
        for name, value in given.items():
            setting("parameters", name, value)(estimator)

    loaded = sklabel.load(changed(saved, tmp_path / "gift", change))
    defaults = SimCLRTransformer().get_params()
    assert {k: loaded.get_params()[k] for k in given} == {k: defaults[k] for k in given}
    loaded.fit(X)
    assert not (tmp_path / "elsewhere").exists()
    # and they are not written either
    here = SimCLRTransformer(max_steps=1, device="cpu", net_params={"compile": False})
    here.fit(X).save(tmp_path / "own")
    text = (tmp_path / "own" / "estimator.json").read_text()
    assert not any(f'"{name}"' in text for name in given)


def test_what_a_user_added_is_left_out_and_a_new_private_name_is_met(tmp_path):
    fitted = SimCLRTransformer(max_steps=1).fit(X)
    fitted.note = "mine"
    fitted.save(tmp_path / "a")
    assert not hasattr(sklabel.load(tmp_path / "a"), "note")
    fitted._forgotten = 1
    with pytest.raises(TypeError, match="_forgotten has no place"):
        fitted.save(tmp_path / "b")


# -- much from little


def _deep(folder):
    nest = '{"list": [' * 50_000 + "]}" * 50_000
    path = folder / "estimator.json"
    path.write_text(
        path.read_text().replace('"estimator"', f'"x": {nest}, "estimator"')
    )


BOMBS = {
    "wide texts": setting(
        "fitted",
        "classes_",
        {"objects": ["a", "b"], "shape": [2], "dtype": "<U500000000"},
    ),
    "long vectors": setting("fitted", "sample_shape_", {"tuple": [2**27]}),
    "wide layers": setting("parameters", "projection_size", 10**9),
    "a dtype with a shape": setting(
        "fitted", "other_", {"objects": [1], "shape": [1], "dtype": "(100000000,)O"}
    ),
    "a scalar of many bytes": setting(
        "fitted", "other_", {"scalar": "a", "dtype": "V500000000"}
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_no_large_memory(saved, tmp_path, bomb):
    resource = pytest.importorskip("resource")
    folder = changed(saved, tmp_path / "gift", BOMBS[bomb])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="far larger|too wide|can be of|dtype|shape"):
        sklabel.load(folder)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    assert (after - before) * unit < 400 * 2**20


def test_a_deep_file_is_refused(saved, tmp_path):
    folder = copy(saved, tmp_path / "gift")
    _deep(folder)
    with pytest.raises(ValueError, match="nested too deeply"):
        sklabel.load(folder)


def test_a_long_file_is_not_read(saved, monkeypatch):
    monkeypatch.setattr(persistence, "_MOST_JSON", 100)
    with pytest.raises(ValueError, match="estimator.json.*larger than 100 bytes"):
        sklabel.load(saved)
    with pytest.raises(ValueError, match="joblib"):  # and none is written
        SimCLRTransformer(max_steps=1).fit(X).save(saved)


@posix
@pytest.mark.parametrize("name", ["estimator.json", "weights"])
def test_a_pipe_in_the_folder_is_refused(saved, tmp_path, name):
    folder = copy(saved, tmp_path / "gift")
    (path,) = folder.glob(f"{name}*")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is a pipe"):
        sklabel.load(folder)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is a link"):
        sklabel.load(folder)
    with pytest.raises(ValueError, match="is a device"):
        sklabel.load(folder, allow_external=True)


# -- broken bytes: a clear ValueError, or the same result


def broken(data, draw):
    """Return bytes with some of them flipped, cut, left out, inserted or swapped."""
    data = bytearray(data)
    at, more = draw.randrange(len(data)), draw.randrange(1, 30)
    kind = draw.choice(["flip", "cut", "delete", "insert", "swap", "zero"])
    if kind == "flip":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "delete":
        del data[at : at + more]
    elif kind == "insert":
        data[at:at] = draw.randbytes(more)
    elif kind == "swap":
        other = draw.randrange(len(data))
        data[at], data[other] = data[other], data[at]
    else:
        data[at : at + more] = bytes(len(data[at : at + more]))
    return bytes(data)


def every_place(value):
    """Yield (container, key) of every place of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(pairs):
        yield value, key
        if isinstance(part, (dict, list)):
            yield from every_place(part)


ODD = [None, True, -1, 0, 2, 10**30, NAN, "", "x", "<U9", [], {}, [[]], {"list": [1]}]
ODD += [{"tuple": [1, 2]}, {"array": "x"}, {"dict": [[1, 2]]}, {"frozen": 1}]


def within(seconds, n_least):
    """Yield seeded draws until the time is over, but not fewer than that."""
    start, n = time.monotonic(), 0
    while n < n_least or (n < 10 * n_least and time.monotonic() - start < seconds):
        yield random.Random(n)
        n += 1


def one_line(error):
    assert len(str(error).splitlines()) == 1, error


def test_broken_model_folders(saved, tmp_path):
    expected = sklabel.load(saved).transform(X)
    folder = copy(saved, tmp_path / "model")
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    n_errors = 0
    for draw in within(2, 60):
        path = draw.choice(sorted(contents))
        path.write_bytes(broken(contents[path], draw))
        try:
            got = sklabel.load(folder).transform(X)
        except ValueError as error:
            one_line(error)
            n_errors += 1
        else:
            # a digit of a parameter that only training reads may have changed
            np.testing.assert_array_equal(got, expected)
        path.write_bytes(contents[path])
    assert n_errors > 30


def test_changed_descriptions(saved, tmp_path):
    folder = copy(saved, tmp_path / "model")
    path = folder / "estimator.json"
    content = path.read_text()
    n_errors = 0
    for draw in within(3, 60):
        description = json.loads(content)
        container, key = draw.choice(list(every_place(description)))
        if draw.random() < 0.3:
            del container[key]
        else:
            container[key] = draw.choice(ODD)
        path.write_text(json.dumps(description))
        try:
            model = sklabel.load(folder)
        except ValueError as error:
            one_line(error)
            n_errors += 1
        else:
            assert isinstance(model._repr_html_(), str)
            try:
                model.transform(X)
            except ValueError as error:
                one_line(error)
    assert n_errors > 30


def test_broken_checkpoints(tmp_path):
    def fit(**settings):
        model = SimCLRTransformer(max_steps=1, random_state=0, **settings)
        return model.fit(X).transform(X)

    expected = fit(checkpoint_dir=tmp_path)
    (path,) = tmp_path.rglob("*.pt")
    content, n_errors = path.read_bytes(), 0
    for draw in within(2, 20):
        path.write_bytes(broken(content, draw))
        try:
            got = fit(checkpoint_dir=tmp_path)
        except ValueError as error:
            assert "remove the file" in str(error) and str(path) in str(error)
            one_line(error)
            n_errors += 1
        else:
            np.testing.assert_array_equal(got, expected)
    assert n_errors > 10


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_broken_weights(tmp_path, ending):
    net = torch.nn.Linear(5, 40)
    path = tmp_path / f"net.{ending}"
    write = torch.save if ending == "pt" else save_file
    write(net.state_dict(), path)
    content, n_errors = path.read_bytes(), 0
    for draw in within(1, 60):
        path.write_bytes(broken(content, draw))
        other = torch.nn.Linear(5, 40)
        try:
            load_weights_(other, path)
        except ValueError as error:
            one_line(error)
            n_errors += 1
        else:  # there is no checksum: the values may be others
            assert other.weight.shape == net.weight.shape
    assert n_errors > 20


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO"]
)
def test_broken_images(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    path = tmp_path / "image"
    for draw in within(0.5, 60):
        path.write_bytes(broken(content.getvalue(), draw))
        try:
            (image,) = ImageFiles([str(path)], (16, 16))[[0]]
        except ValueError as error:
            one_line(error)
        else:
            assert image.dtype == np.uint8 and image.shape == (16, 16, 3)


def test_security_is_promised_in_one_place():
    root = Path(sklabel.__file__).parents[1]
    if not (root / "SECURITY.md").exists():
        pytest.skip("installed")
    assert "sklabel.load" in (root / "SECURITY.md").read_text("utf-8")
