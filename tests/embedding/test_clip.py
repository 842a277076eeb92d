"""CLIP: pairs are learned, texts find images, published weights are read as is."""

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, normalize
from torch import nn

import sklabel
from sklabel import CollapseWarning
from sklabel._core.samplers import Captioned
from sklabel._core.samples import Samples
from sklabel._core.texts import check_captions
from sklabel.backbones import build_backbone
from sklabel.classification import SimCLRv2Classifier, SupervisedClassifier
from sklabel.embedding import CLIPTransformer, PretrainedTransformer
from sklabel.losses import clip_loss
from sklabel.text import ByteTokenizer
from tests._golden import cases

COLORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
SHAPES = ("square", "disc", "cross", "ring")
X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
TEXTS = [f"row {i}" for i in range(60)]


def draw(n, seed, side=12):
    """Return images of a colored shape, and a caption of each."""
    rng = np.random.default_rng(seed)
    images, captions = rng.normal(0.1, 0.04, (n, side, side, 3)), []
    across = np.mgrid[:side, :side]
    for image in images:
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        radius = rng.uniform(3, 4.5)
        center = rng.uniform(radius + 0.5, side - radius - 1.5, (2, 1, 1))
        away = np.abs(across - center)
        round_away = np.hypot(*away)
        mask = {
            "square": away.max(0) < 0.85 * radius,
            "disc": round_away < radius,
            "cross": (away.min(0) < 1) & (away.max(0) < radius),
            "ring": (round_away < radius) & (round_away > radius - 1.5),
        }[shape]
        image[mask] = COLORS[color]
        captions.append(f"a {color} {shape}")
    return np.clip(images, 0, 1).astype(np.float32), np.array(captions, dtype=object)


def convolutions():
    layers = []
    for n_in, n_out, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 1)):
        layers += [nn.Conv2d(n_in, n_out, 3, stride, 1), nn.BatchNorm2d(n_out)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten())


def tiny(**parameters):
    settings = {
        "projection_size": 16,
        "text_width": 16,
        "text_layers": 1,
        "text_heads": 2,
        "max_steps": 2,
        "random_state": 0,
    }
    return CLIPTransformer(**{**settings, **parameters})


# -- the loss


@pytest.mark.parametrize("same", ["negatives", "positives"])
def test_the_loss_is_the_slow_loop(same):
    x = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    texts = ["ab", "ba", "cc", "ab", "da", "cd", "cc", "ab"]
    fitted = CLIPTransformer(
        text_width=8,
        text_heads=2,
        tokenizer=letters,
        augment=None,
        same_captions=same,
        max_steps=5,
        warmup_epochs=0,
        lr=0.01,
        random_state=0,
    ).fit(x, texts)
    module, tokens = fitted.net_.module_.eval(), torch.tensor(letters(texts))
    loss, figures = module.loss(torch.from_numpy(x), tokens)
    u, v = fitted.transform(x).astype(float), fitted.encode_text(texts).astype(float)
    s = fitted.logit_scale_ * np.array([[a @ b for b in v] for a in u])
    expected, right = 0.0, 0
    for i in range(8):
        if same == "positives":
            own = [j for j in range(8) if texts[j] == texts[i]]
        else:
            own = [i]
        for row in (s[i], s[:, i]):  # its text among texts, its image among images
            log_p = row - np.log(np.exp(row).sum())
            expected -= np.mean(log_p[own]) / 2 / 8
        right += s[i, i] > s[i].max() - 1e-4  # an equal text is as good
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-4)
    np.testing.assert_allclose(figures["train_accuracy"], right / 8)
    np.testing.assert_allclose(figures["logit_scale"], fitted.logit_scale_, rtol=1e-6)


def test_as_a_backbone_the_tower_brings_its_projection(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    texts = [f"text {i % 4}" for i in range(40)]
    clip = CLIPTransformer(
        6, text_width=8, text_heads=2, text_layers=1, max_steps=3, random_state=0
    ).fit(x, texts)
    for spec in (clip, FrozenEstimator(clip)):
        encoder = build_backbone(spec, (5,)).eval()
        assert encoder.n_features_out == 6 and encoder.pretrained
        z = encoder(torch.from_numpy(x))
        z = (z / z.norm(dim=1, keepdim=True)).detach().numpy()
        np.testing.assert_allclose(z, clip.transform(x), atol=1e-5)
    assert all(p.requires_grad for p in encoder.parameters())
    tower = build_backbone(clip, (5,), projected=False)
    assert tower.n_features_out == clip.encoder_.n_features_out != 6
    y = np.where(np.arange(40) < 10, np.arange(40) % 2, -1)
    for settings in ({}, {"train_backbone": False}, {"layer_decay": 0.5}):
        clf = SupervisedClassifier(
            backbone=clip, max_steps=2, random_state=0, **settings
        ).fit(x, y)
        clf.save(tmp_path / "model")
        found = sklabel.load(tmp_path / "model").predict_proba(x)
        np.testing.assert_array_equal(found, clf.predict_proba(x))
        assert clf.net_.module_.head.in_features == 6
    # SimCLRv2 chooses the layers of the head itself
    two = SimCLRv2Classifier(
        FrozenEstimator(clip), max_steps=1, distill_epochs=1, random_state=0
    ).fit(x, y)
    teacher = two.net_.module_.teacher
    assert teacher.head.in_features == 6 and len(teacher.project) == 1
    assert teacher.backbone.n_features_out != 6


def test_clip_loss_golden():
    for case in cases("clip_loss"):
        image, text, scale = (
            torch.tensor(case[name], requires_grad=True)
            for name in ("image", "text", "log_scale")
        )
        loss = clip_loss(image, text, scale)
        loss.backward()
        for found, name in (
            (loss, "loss"),
            (image.grad, "grad_image"),
            (text.grad, "grad_text"),
            (scale.grad, "grad_log_scale"),
        ):
            expected = torch.tensor(case[name])
            torch.testing.assert_close(
                found.detach(), expected, rtol=1e-8, atol=1e-10, msg=str(case["i"])
            )


@given(
    arrays(np.float64, (5, 3), elements=st.floats(-1e3, 1e3)),
    st.permutations(range(5)),
    st.floats(0, 4.6),
)
def test_clip_loss_does_not_depend_on_order_or_length(z, order, log_scale):
    images, texts = torch.tensor(z), torch.tensor(z[::-1].copy()) + 0.1
    loss = clip_loss(images, texts, log_scale)
    assert torch.isfinite(loss) and loss > -1e-12
    torch.testing.assert_close(clip_loss(texts, images, log_scale), loss)
    order = list(order)
    torch.testing.assert_close(clip_loss(images[order], texts[order], log_scale), loss)
    positives = torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(clip_loss(images, texts, log_scale, positives), loss)


def test_clip_loss_of_equal_texts():
    z = torch.eye(4)
    texts = z[[0, 0, 2, 3]]
    same = (texts[:, None] == texts).all(-1)
    # strangers with one text push each other away, positives do not
    images = z[[0, 0, 2, 3]]
    assert clip_loss(images, texts, 4.6) > 0.3
    exact = (2 * np.log(2) + 0) / 4  # the entropy of the targets
    np.testing.assert_allclose(clip_loss(images, texts, 4.6, same), exact, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(3, 4\)"):
        clip_loss(images, texts[:3], 0.0)


def test_clip_loss_is_exact_under_autocast():
    images, texts = torch.randn(8, 16), torch.randn(8, 16)
    expected = clip_loss(images, texts, 4.6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clip_loss(images, texts, 4.6), expected)


# -- learning


@pytest.fixture(scope="module")
def trained():
    x, captions = draw(700, 0)
    held = np.isin(captions, ["a red square", "a green disc", "a blue ring"])
    torch.manual_seed(0)
    embedder = CLIPTransformer(
        32,
        backbone=convolutions(),
        same_captions="positives",
        text_width=32,
        text_layers=1,
        text_heads=2,
        max_steps=150,
        batch_size=64,
        lr=3e-3,
        precision="float32",
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return embedder.fit(x[~held], captions[~held]), set(captions[held])


def test_images_are_found_by_what_texts_say(trained, record_property):
    embedder, held = trained
    x, captions = draw(300, 1)
    names = sorted(set(captions) - held)
    rows, similarities = embedder.search(names, x, n_results=5)
    assert (np.diff(similarities, axis=1) <= 0).all()
    right = captions[rows] == np.array(names)[:, None]
    assert right[:, 0].mean() > 0.7 and right.mean() > 0.6  # chance: 1 of 16
    # combinations never said in training: nearest to what shares a word with them
    unseen = np.isin(captions, list(held))
    s = embedder.similarity(names, x[unseen])
    found = [names[k].split()[1:] for k in s.argmax(1)]
    said = [caption.split()[1:] for caption in captions[unseen]]
    near = np.mean([bool({*a} & {*b}) for a, b in zip(found, said, strict=True)])
    assert near > 0.8  # chance: 0.44
    own = sorted(held)
    s = embedder.similarity(own, x[unseen])
    accuracy = float(np.mean(np.array(own)[s.argmax(1)] == captions[unseen]))
    record_property("accuracy among 3 unseen combinations, chance 0.33", accuracy)
    history = embedder.net_.history
    assert history[-1, "train_loss"] < history[0, "train_loss"] - 0.5
    assert history[-1, "train_accuracy"] > 0.7


def test_similarity_search_and_embeddings_agree(trained):
    embedder, _ = trained
    x, captions = draw(40, 2)
    Z, T = embedder.transform(x), embedder.encode_text(list(captions[:7]))
    assert Z.dtype == T.dtype == np.float32 and T.shape == (7, 32)
    for unit in (Z, T):
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
    s = embedder.similarity(list(captions[:7]), x)
    np.testing.assert_allclose(s, Z @ T.T, atol=1e-6)
    rows, found = embedder.search(list(captions[:7]), Z=Z, n_results=99)
    assert rows.shape == (7, 40)  # no more than there are
    np.testing.assert_array_equal(np.sort(rows, 1), np.tile(np.arange(40), (7, 1)))
    np.testing.assert_allclose(found, np.take_along_axis(s.T, rows, 1), atol=1e-6)
    one = embedder.search("a red disc", x, 3)
    assert one[0].shape == (1, 3)
    # a text does not depend on the ones it comes with
    alone = embedder.encode_text(captions[3])
    np.testing.assert_allclose(alone[0], T[3], atol=1e-5)
    doubled = embedder.search("a red disc", np.repeat(x[:3], 2, axis=0), 6)[0][0]
    assert all(a + 1 == b for a, b in zip(doubled[::2], doubled[1::2], strict=True))


def test_texts_that_say_nothing_are_told_of():
    with pytest.warns(CollapseWarning, match="learned nothing.*lr=1e-08"):
        tiny(max_steps=120, batch_size=32, lr=1e-8).fit(X, TEXTS)


def test_the_temperature_is_learned_and_cut():
    fitted = tiny(temperature=0.5, max_steps=1, lr=1e-9).fit(X, TEXTS)
    np.testing.assert_allclose(fitted.logit_scale_, 2.0, rtol=1e-4)
    fast = {"max_steps": 5, "schedule": "constant", "warmup_epochs": 0}
    module = tiny(lr=0.5, max_logit_scale=15.0, **fast).fit(X, TEXTS).net_.module_
    assert 1 - 1e-6 <= module.logit_scale.exp() <= 15 + 1e-4
    for value, expected in ((9.0, np.log(15)), (-3.0, 0.0)):
        module.logit_scale.data.fill_(value)
        module.after_step()
        np.testing.assert_allclose(module.logit_scale.item(), expected, rtol=1e-6)
    groups = tiny().fit(X, TEXTS).net_.optimizer_.param_groups
    decayed, plain = ([p.shape for p in g["params"]] for g in (groups[0], groups[1]))
    assert () in plain and all(len(shape) > 1 for shape in decayed)


def test_the_loss_is_that_of_the_towers():
    fitted = tiny(augment=None).fit(X, TEXTS)
    Z, T = fitted.transform(X), fitted.encode_text(TEXTS)
    scale = fitted.net_.module_.logit_scale.detach()
    expected = clip_loss(torch.from_numpy(Z), torch.from_numpy(T), scale).item()
    np.testing.assert_allclose(fitted.score(X, TEXTS), -expected, rtol=1e-4)
    with pytest.raises(ValueError, match="requires y"):
        fitted.score(X)


def letters(texts):
    length = max(map(len, texts)) + 1
    tokens = np.zeros((len(texts), length), dtype=int)
    for row, text in enumerate(texts):
        tokens[row, : len(text) + 1] = [*(ord(c) % 90 + 1 for c in text), 91]
    return tokens


# -- texts


@pytest.mark.parametrize("same_captions", ["positives", "negatives"])
def test_the_score_is_what_training_lowers(same_captions):
    texts = ["one", "two"] * 30
    fitted = tiny(same_captions=same_captions, batch_size=60).fit(X, texts)
    images, words = (
        torch.from_numpy(Z) for Z in (fitted.transform(X), fitted.encode_text(texts))
    )
    positives = None
    if same_captions == "positives":
        positives = torch.tensor([[a == b for a in texts] for b in texts])
    scale = torch.tensor(np.log(fitted.logit_scale_))
    loss = clip_loss(images, words, scale, positives)
    assert fitted.score(X, texts) == pytest.approx(-float(loss), rel=1e-4)


def test_towers_of_torchvision_bring_their_weights(tmp_path):
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "resnet18.pt")
    x = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    encoder = PretrainedTransformer(
        "resnet18", weights=tmp_path / "resnet18.pt", input_size=32
    ).fit(x)
    fitted = tiny(backbone=encoder, max_steps=1, lr=1e-9).fit(x, TEXTS[:12])
    found = dict(fitted.encoder_.named_parameters())
    given = dict(encoder.encoder_.named_parameters())
    assert given.keys() == found.keys()
    for name, value in given.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="PretrainedTransformer"):
        tiny(backbone="resnet18", weights="DEFAULT").fit(x, TEXTS[:12])


def test_forms_of_texts_are_the_same():
    import pandas as pd

    expected = tiny().fit(X, TEXTS).transform(X)
    for y in (
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        tuple(TEXTS),
        pd.Series(TEXTS),
        [[text] for text in TEXTS],
        np.array(TEXTS)[:, None],
        pd.DataFrame({"caption": TEXTS}),
    ):
        np.testing.assert_array_equal(tiny().fit(X, y).transform(X), expected)


def test_rows_without_a_text_are_left_out():
    for none in (-1, None, np.nan, []):
        y = np.empty(60, dtype=object)
        y[:] = [text if i < 20 else none for i, text in enumerate(TEXTS)]
        fitted = tiny().fit(X, y)
        assert fitted.transform(X).shape == (60, 16)
        samples = fitted._check_X(X)
        pairs = fitted._pair(samples, check_captions(y, samples))
        drawn = np.concatenate([rows for rows, *_ in pairs.epoch(8)])
        assert sorted(drawn.tolist()) == list(range(20))


def captioned(texts, unique=False):
    rows = np.zeros((len(texts), 2), np.float32)
    samples = Samples(rows, (2,))
    return Captioned(samples, texts, ByteTokenizer(20), True, unique)


def test_one_of_several_texts_is_drawn():
    pairs = captioned([["a", "b", "c"], ["d"], ["e", "f"]])
    drawn = {row: set() for row in range(3)}
    for _ in range(60):
        for rows, texts, _ in pairs.epoch(2):
            for row, text in zip(rows.tolist(), texts.tolist(), strict=True):
                drawn[row].add("abcdef"[text])
    assert drawn == {0: set("abc"), 1: {"d"}, 2: set("ef")}


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=60).filter(
        lambda own: len(set(own)) > 1
    ),
    st.integers(2, 20),
)
def test_unique_batches_hold_no_text_twice(texts, batch_size):
    pairs = captioned([[text] for text in texts], unique=True)
    batches = list(pairs.epoch(batch_size))
    assert len(batches) == pairs.n_batches(batch_size)
    for rows, drawn, longest in batches:
        assert len(rows) >= 2 and len(set(drawn.tolist())) == len(drawn)
        x, tokens = pairs.fetch((rows, drawn, longest))
        assert len(x) == len(tokens) == len(rows)
    sizes = [len(rows) for rows, *_ in batches]
    once = len(batches) == 1 or len(set(texts)) >= 2 * len(batches)
    assert not once or max(sizes) - min(sizes) <= 1


def test_long_texts_are_cut_and_told_of():
    long = [text + " and more" * 9 for text in TEXTS]
    with pytest.warns(UserWarning, match="60 of 60 texts have context_length=20"):
        fitted = tiny(context_length=20).fit(X, long)
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        fitted.encode_text(long[0])


@pytest.mark.parametrize(
    "y, message",
    [
        (TEXTS[:50], "X has 60 rows, y has 50"),
        (["the same"] * 60, "1 different text for"),
        ([-1] * 60, "0 different texts for"),
        (["", *TEXTS[1:]], r"y\[0\] is an empty text"),
        (
            np.array([TEXTS[0], -1, *TEXTS[2:]]),
            r"y\[1\] is the text '-1'.*dtype=object",
        ),
        ("one text", "a text for each of 60 rows"),
        (None, "requires y to be passed.*open_clip/ViT-B-32"),
    ],
)
def test_wrong_texts_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        tiny().fit(X, y)


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match=r"y\[0\] is a dict"):
        tiny().fit(X, [{}] * 60)
    fitted = tiny().fit(X, TEXTS)
    for call, message in (
        (lambda: fitted.encode_text([]), "got none"),
        (lambda: fitted.encode_text([3]), "got 3"),
        (lambda: fitted.similarity("a"), "either X or its embedding"),
        (lambda: fitted.similarity("a", X, Z=X), "either X or its embedding"),
        (lambda: fitted.similarity("a", Z=X), "Z has 5 columns.*16"),
        (lambda: fitted.search("a", X, 0), "n_results=0"),
        (lambda: tiny(text_heads=3).fit(X, TEXTS), "text_heads=3 must divide"),
        (lambda: tiny(frozen=["eyes"]).fit(X, TEXTS), "eyes"),
        (lambda: tiny(weights="openai").fit(X, TEXTS), "needs a model of open_clip"),
        (
            lambda: tiny(tokenizer=lambda t: np.ones(3)).fit(X, TEXTS),
            r"integers of shape \(n, L\)",
        ),
        (
            lambda: tiny(tokenizer=lambda t: np.ones((len(t), 99), int)).fit(X, TEXTS),
            "99 tokens",
        ),
        (
            lambda: tiny(tokenizer=lambda t: np.zeros((len(t), 9), int)).fit(X, TEXTS),
            "no tokens for 'row 0'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    known = tiny(tokenizer=letters).fit(X, ["ab"] * 30 + ["ba"] * 30)
    assert known.vocabulary_size_ == 92
    numbers = tiny(tokenizer=lambda t: np.array([[len(s), 0, 1] for s in t]))
    with pytest.raises(ValueError, match="outside .0, 7.*range"):
        numbers.fit(X, TEXTS).encode_text("a longer one")


def test_every_fit_counts_its_own_tokens():
    numbers = {}

    def tokenize(texts):
        return [
            [numbers.setdefault(w, len(numbers) + 1) for w in t.split()] for t in texts
        ]

    fitted = tiny(tokenizer=tokenize).fit(X, ["a b", "c d"] * 30)
    assert fitted.vocabulary_size_ == 5
    assert fitted.fit(X, ["e f", "g h"] * 30).vocabulary_size_ == 9


# -- as other estimators


def test_pipeline_clone_pickle_save_and_seed(tmp_path):
    y = np.array(TEXTS, dtype=object)
    pipe = make_pipeline(FunctionTransformer(), tiny())
    Z = pipe.fit(X, y).transform(X)
    fitted = tiny().fit(X, y)
    np.testing.assert_array_equal(fitted.transform(X), Z)
    np.testing.assert_array_equal(clone(fitted).fit_transform(X, y), Z)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.encode_text(TEXTS), fitted.encode_text(TEXTS))
    assert not np.array_equal(tiny(random_state=1).fit(X, y).transform(X), Z)
    fitted.save(tmp_path)
    loaded = sklabel.load(tmp_path)
    np.testing.assert_array_equal(loaded.transform(X), Z)
    np.testing.assert_array_equal(loaded.encode_text(TEXTS), fitted.encode_text(TEXTS))
    assert len(fitted.get_feature_names_out()) == 16


def test_checkpoints_know_the_texts(tmp_path):
    settings = {"max_steps": None, "max_epochs": 3, "batch_size": 32}
    expected = tiny(**settings).fit(X, TEXTS).transform(X)
    kept = {**settings, "checkpoint_dir": tmp_path}
    np.testing.assert_array_equal(tiny(**kept).fit(X, TEXTS).transform(X), expected)
    np.testing.assert_array_equal(tiny(**kept).fit(X, TEXTS).transform(X), expected)
    other = tiny(**kept).fit(X, TEXTS[::-1]).transform(X)
    assert not np.array_equal(other, expected)
    assert len(list(tmp_path.iterdir())) == 2


def test_fine_tuning_leaves_frozen_parts_and_averages():
    start = tiny(max_steps=1, lr=1e-9, warm_start=True).fit(X, TEXTS)
    before = {k: v.clone() for k, v in start.net_.module_.state_dict().items()}

    def moved():
        state = start.net_.module_.state_dict()
        return {k for k, v in state.items() if not torch.equal(v, before[k])}

    start.set_params(lr=1e-2, max_steps=3, frozen=("image", "text")).fit(X, TEXTS)
    assert moved() == {"project.weight", "logit_scale"}
    start.set_params(frozen="norms").fit(X, TEXTS)
    norms = {k for k in before if "norm" in k or "running" in k}
    assert not moved() & norms and len(moved()) > 5
    assert all("augment" not in name for name in moved())
    # the whole share of the first weights: nothing has changed
    before = {k: v.clone() for k, v in start.net_.module_.state_dict().items()}
    start.set_params(start_weight=1.0, frozen="norms").fit(X, TEXTS)
    floats = [k for k, v in before.items() if v.is_floating_point()]
    after = start.net_.module_.state_dict()
    for name in floats:
        torch.testing.assert_close(after[name], before[name])


# -- published models

TINY = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 16,
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 8,
        "heads": 2,
        "layers": 1,
    },
}


KEPT = "mean", "std", "interpolation", "resize_mode"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return open_clip's model, and its weights in two kinds of file."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("published")
    (folder / "tiny-test.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny-test.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-test").eval()
    model.logit_scale.data.fill_(4.0)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    # as open_clip's own training writes it
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, folder / "weights.pt")
    return open_clip, model, folder


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (8, 20, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt"])
def test_published_weights_from_a_file(published, pictures, file, tmp_path):
    open_clip, model, folder = published
    embedder = CLIPTransformer(
        backbone="open_clip/tiny-test",
        weights=folder / file,
        precision="float32",
        random_state=0,
    ).fit(pictures)
    assert embedder.n_iter_ == 0
    np.testing.assert_allclose(embedder.logit_scale_, np.exp(4.0), rtol=1e-6)
    texts = ["a cat", "a dog on the grass"]
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer("tiny-test")(texts)
        expected = model.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(embedder.encode_text(texts), expected, atol=1e-5)
    # images: open_clip's own preparation, through Pillow in 8 bits
    from PIL import Image

    given = {k: v for k, v in model.visual.preprocess_cfg.items() if k in KEPT}
    prepare = open_clip.image_transform(16, is_train=False, **given)
    with torch.inference_mode():
        x = torch.stack([prepare(Image.fromarray(image)) for image in pictures])
        expected = model.encode_image(x, normalize=True).numpy()
    found = embedder.transform(pictures)
    assert (found * expected).sum(1).min() > 0.999
    grey = embedder.fit(pictures[..., :1]).transform(pictures[..., :1])
    assert np.isfinite(grey).all()
    embedder.save(tmp_path)
    for again in (pickle.loads(pickle.dumps(embedder)), sklabel.load(tmp_path)):
        np.testing.assert_array_equal(again.transform(pictures[..., :1]), grey)


def test_published_weights_are_fine_tuned(published, pictures):
    _, _, folder = published
    settings = {
        "backbone": "open_clip/tiny-test",
        "weights": folder / "weights.pt",
        "max_steps": 2,
        "random_state": 0,
    }
    texts = [f"picture {i}" for i in range(8)]
    with pytest.warns(UserWarning, match="lr=0.001 is likely to undo"):
        CLIPTransformer(**settings).fit(pictures, texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned = CLIPTransformer(lr=1e-5, **settings).fit(pictures, texts)
    first = CLIPTransformer(**settings).fit(pictures)
    difference = np.abs(tuned.transform(pictures) - first.transform(pictures)).max()
    assert 0 < difference < 0.1
    fresh = CLIPTransformer(
        backbone="open_clip/tiny-test", max_steps=1, temperature=0.5, lr=1e-6
    )
    assert abs(fresh.fit(pictures, texts).logit_scale_ - 2) < 0.01


def test_published_names_and_files_that_are_wrong(published, pictures, tmp_path):
    _, _, folder = published
    (tmp_path / "cut.pt").write_bytes((folder / "weights.pt").read_bytes()[:5000])
    torch.save({"x": torch.ones(3)}, tmp_path / "other.pt")
    for change, message in (
        ({"backbone": "open_clip/no-such"}, "list_models"),
        ({"backbone": "open_clip/tiny-tset"}, "did you mean 'open_clip/tiny-test'"),
        ({"weights": "no_such_tag"}, "neither a file nor the name of published"),
        ({"weights": "DEFAULT"}, "has no published weights"),
        ({"weights": tmp_path / "none.pt"}, "none.pt"),
        ({"weights": tmp_path / "cut.pt"}, "cut.pt"),
        ({"weights": tmp_path / "other.pt"}, "other.pt"),
        ({"backbone": "open_clip/hf-hub:a/b", "weights": "x"}, "includes its own"),
        ({"weights": None}, "requires y to be passed"),
        ({"tokenizer": "bytes"}, "tokenizer='bytes' is not that of"),
    ):
        settings = {"backbone": "open_clip/tiny-test", "weights": folder / "weights.pt"}
        with pytest.raises(ValueError, match=message):
            CLIPTransformer(**{**settings, **change}).fit(pictures)
    with pytest.raises(ValueError, match="needs images"):
        CLIPTransformer(**settings).fit(X)


def test_a_folder_brings_its_weights(published, pictures, tmp_path):
    _, _, folder = published
    own = tmp_path / "own"
    own.mkdir()
    about = {"model_cfg": TINY, "preprocess_cfg": {"resize_mode": "squash"}}
    (own / "open_clip_config.json").write_text(json.dumps(about))
    weights = (folder / "weights.safetensors").read_bytes()
    (own / "open_clip_model.safetensors").write_bytes(weights)
    name = f"open_clip/local-dir:{own}"
    fitted = CLIPTransformer(backbone=name, random_state=0).fit(pictures)
    np.testing.assert_allclose(fitted.logit_scale_, np.exp(4.0), rtol=1e-6)
    assert fitted.encoder_.body[0].mode == "squash"
    Z, texts = fitted.transform(pictures), ["a cat"]
    other = PretrainedTransformer(name).fit_transform(pictures)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    np.testing.assert_allclose(other, Z, atol=1e-6)
    fitted.save(tmp_path / "saved")
    again = sklabel.load(tmp_path / "saved", allow_external=True)
    np.testing.assert_array_equal(again.transform(pictures), Z)
    np.testing.assert_array_equal(again.encode_text(texts), fitted.encode_text(texts))


def test_files_of_several_sizes_are_searched_by_their_vectors(published, tmp_path):
    from PIL import Image

    settings = {
        "backbone": "open_clip/tiny-test",
        "weights": published[2] / "weights.pt",
        "random_state": 0,
    }
    rng, files, expected = np.random.default_rng(0), [], []
    for i, shape in enumerate([(20, 24, 3), (20, 40, 3), (33, 18, 3)]):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(files[-1])
        clip = CLIPTransformer(**settings).fit([image, image])
        expected.append(clip.transform([image])[0])
    with pytest.raises(ValueError, match="differ in size.*image_size"):
        clip.fit(files)
    Z = normalize(PretrainedTransformer(**settings).fit_transform(files))
    np.testing.assert_allclose(Z, expected, atol=1e-3)
    clip = CLIPTransformer(image_size=16, **settings).fit(files)
    rows, _ = clip.search("a cat", Z=Z)
    assert sorted(rows[0].tolist()) == [0, 1, 2]


def test_how_images_are_prepared_is_saved(published, pictures, tmp_path, monkeypatch):
    open_clip, _, folder = published
    how = {"url": "x", "hf_hub": "", "resize_mode": "longest", "mean": (0.1, 0.2, 0.3)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-test", {"wide": how})
    monkeypatch.setattr(
        "open_clip.factory.download_pretrained",
        lambda about, **kwargs: str(folder / "weights.safetensors"),
    )
    settings = {"backbone": "open_clip/tiny-test", "random_state": 0}
    fitted = CLIPTransformer(weights="wide", **settings).fit(pictures)
    frame, encoder = fitted.encoder_.body
    assert frame.mode == "longest"
    torch.testing.assert_close(encoder.mean.ravel(), torch.tensor([0.1, 0.2, 0.3]))
    fitted.save(tmp_path)
    Z = fitted.transform(pictures)
    np.testing.assert_array_equal(sklabel.load(tmp_path).transform(pictures), Z)
    default = CLIPTransformer(weights="DEFAULT", **settings).fit(pictures)
    np.testing.assert_array_equal(default.transform(pictures), Z)


def test_opacity_is_left_out(published, pictures):
    _, _, folder = published
    embedder = CLIPTransformer(
        backbone="open_clip/tiny-test", weights=folder / "weights.pt", random_state=0
    )
    Z = embedder.fit(pictures).transform(pictures)
    rgba = np.concatenate([pictures, pictures[..., :1]], axis=3)
    np.testing.assert_array_equal(embedder.fit(rgba).transform(rgba), Z)


@pytest.mark.parametrize(
    "change, remedy",
    [
        ({"weights": "wide"}, "path/to"),
        ({"backbone": "open_clip/hf-hub:a/b"}, "FOLDER"),
    ],
    ids=["name", "hub"],
)
def test_a_failed_download_is_told(published, pictures, change, remedy, monkeypatch):
    def cut(*args, **kwargs):
        raise ConnectionError("the cable\nis cut")

    tags = {"wide": {"url": "https://unreachable.invalid/x.pt", "hf_hub": ""}}
    monkeypatch.setitem(published[0].pretrained._PRETRAINED, "tiny-test", tags)
    for name in ("download_pretrained", "download_pretrained_from_hf"):
        monkeypatch.setattr(f"open_clip.factory.{name}", cut)
    for kind in (CLIPTransformer, PretrainedTransformer):
        embedder = kind(**{"backbone": "open_clip/tiny-test", **change})
        with pytest.raises(OSError, match="could not be .*the cable is cut") as caught:
            embedder.fit(pictures)
        text = str(caught.value)
        assert len(text.splitlines()) == 1 and remedy in text
        assert embedder.backbone in text


def test_the_published_vocabulary(published):
    fitted = tiny(tokenizer="bpe", text_width=4).fit(X[:12], TEXTS[:12])
    assert fitted.vocabulary_size_ == 49408
    assert fitted.encode_text("row 3").shape == (1, 16)


def test_without_open_clip_it_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    pictures = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(ImportError, match=r"open_clip|sklabel\[clip\]"):
        CLIPTransformer(backbone="open_clip/ViT-B-32", weights="openai").fit(pictures)
    assert tiny().fit(X, TEXTS).transform(X).shape == (60, 16)
