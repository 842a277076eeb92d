"""Partly labeled y in every form people write it, and what is refused."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import DataConversionWarning

from sklabel._core.labels import (
    as_column,
    check_labels,
    decode_labels,
    encode_labels,
    is_labeled,
)
from sklabel.labels import keep_as_class

NAN = float("nan")

FORMS = {
    "int": (np.array([3, -1, 7, 3]), [3, 7], -1),
    "int8": (np.array([3, -1, 7, 3], dtype=np.int8), [3, 7], -1),
    "list": ([3, -1, 7, 3], [3, 7], -1),
    "list of text": (["b", -1, "c", "b"], ["b", "c"], -1),
    "float": (np.array([3.0, -1.0, 7.0, 3.0]), [3.0, 7.0], -1),
    "float NaN": (np.array([3.0, np.nan, 7.0, 3.0]), [3.0, 7.0], NAN),
    "object text": (np.array(["b", -1, "c", "b"], dtype=object), ["b", "c"], -1),
    "object None": (np.array(["b", None, "c", "b"], dtype=object), ["b", "c"], None),
    "object NaN": (np.array(["b", np.nan, "c", "b"], dtype=object), ["b", "c"], NAN),
    "object int": (np.array([3, None, 7, 3], dtype=object), [3, 7], None),
    "object bool": (np.array([False, None, True, False], object), [False, True], None),
    "Series": (pd.Series([3, -1, 7, 3], index=[9, 8, 7, 6]), [3, 7], -1),
    "Series of text": (pd.Series(["b", None, "c", "b"]), ["b", "c"], None),
    "nullable": (pd.Series([3, pd.NA, 7, 3], dtype="Int64"), [3, 7], pd.NA),
    "object NA": (np.array([3, pd.NA, 7, 3], dtype=object), [3, 7], pd.NA),
    "categorical": (pd.Series(["b", None, "c", "b"], dtype="category"), ["b", "c"], 0),
    "categorical int": (pd.Series([3, -1, 7, 3], dtype="category"), [3, 7], -1),
    "categorical NaN": (pd.Categorical([3, None, 7, 3]), [3, 7], NAN),
    "nullable bool": (
        pd.Series([False, pd.NA, True, False], dtype="boolean"),
        [False, True],
        pd.NA,
    ),
    "list of bool": ([False, -1, True, False], [False, True], -1),
    "masked": (np.ma.array([3, 7, 7, 3], mask=[0, 1, 0, 0]), [3, 7], None),
    "masked text": (np.ma.array(list("bccb"), mask=[0, 1, 0, 0]), ["b", "c"], None),
    "masked bool": (
        np.ma.array([False, True, True, False], mask=[0, 1, 0, 0]),
        [False, True],
        None,
    ),
    "list with a masked entry": ([3, np.ma.masked, 7, 3], [3, 7], None),
    "blank text": (np.array(["b", " ", "c", "b"]), ["b", "c"], " "),
    "empty text in a list": (["b", "", "c", "b"], ["b", "c"], ""),
    "empty text of numpy": (
        np.array(["b", "", "c", "b"], dtype=np.dtypes.StringDType()),
        ["b", "c"],
        "",
    ),
    "missing text of numpy": (
        np.array(
            ["b", np.nan, "c", "b"], dtype=np.dtypes.StringDType(na_object=np.nan)
        ),
        ["b", "c"],
        NAN,
    ),
    "NaT": (np.array([3, np.datetime64("NaT"), 7, 3], dtype=object), [3, 7], pd.NaT),
    "tensor": (torch.tensor([3, -1, 7, 3]), [3, 7], -1),
    "tensor that requires grad": (
        torch.tensor([3.0, -1.0, 7.0, 3.0], requires_grad=True),
        [3.0, 7.0],
        -1,
    ),
    "bfloat16": (torch.tensor([3, -1, 7, 3], dtype=torch.bfloat16), [3.0, 7.0], -1),
    "sparse tensor": (torch.tensor([0, -1, 7, 0]).to_sparse(), [0, 7], -1),
    "list of tensors": (list(torch.tensor([3, -1, 7, 3])), [3, 7], -1),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_the_same(form):
    y, classes, _ = FORMS[form]
    assert is_labeled(y).tolist() == [True, False, True, True]
    found, codes = encode_labels(y)
    assert found.tolist() == classes
    assert set(map(type, found.tolist())) == set(map(type, classes))
    assert codes.tolist() == [0, -1, 1, 0]
    assert codes.dtype == np.int64
    assert len(check_labels(y, n_samples=4)) == 4


@pytest.mark.parametrize("form", [f for f in FORMS if not f.startswith("categorical")])
def test_the_mark_comes_back_in_kind(form):
    y, classes, mark = FORMS[form]
    if form == "Series of text":  # pandas itself turns None into its own missing value
        mark = y.to_numpy()[1]
    back = decode_labels(encode_labels(y)[1], np.array(classes), like=y)
    assert back[[0, 2, 3]].tolist() == [classes[0], classes[1], classes[0]]
    if mark is None:
        assert back[1] is None
    elif isinstance(mark, (int, str)):
        assert back[1] == mark
    else:
        assert pd.isna(back[1])


def test_decode_keeps_the_dtype_where_it_can():
    classes = np.array([3, 7])
    assert decode_labels(np.array([1, 0]), classes).dtype == classes.dtype
    assert decode_labels(np.array([1, -1]), classes).dtype == classes.dtype
    assert decode_labels(np.array([1, -1]), classes.astype(np.uint8)).dtype == np.int16
    assert decode_labels(np.array([1, -1]), np.array(["a", "b"])).dtype == object
    assert decode_labels(np.array([1, -1]), np.array([False, True])).tolist() == [
        True,
        -1,
    ]


def test_bool_and_unsigned_have_no_unlabeled_row():
    assert is_labeled(np.array([True, False])).all()
    assert is_labeled(np.array([0, 255], dtype=np.uint8)).all()
    assert encode_labels(np.array([True, False]))[0].tolist() == [False, True]


def test_classes_are_sorted_not_in_the_order_of_categories():
    y = pd.Series(pd.Categorical(["b", "a"], categories=["b", "a"], ordered=True))
    classes, codes = encode_labels(y)
    assert classes.tolist() == ["a", "b"] and codes.tolist() == [1, 0]


@pytest.mark.parametrize("wrap", [pd.Series, lambda y: y, pd.DataFrame])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
def test_categories_without_a_label_are_named(wrap):
    categories = [-1, 3, 5, 7, 9]
    y = wrap(pd.Categorical([3, -1, 7, None], categories=categories))
    with pytest.warns(
        UserWarning, match="categories 5, 9, which .*remove_unused"
    ) as seen:
        check_labels(y)
    assert sum("remove_unused" in str(w.message) for w in seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", DataConversionWarning)
        check_labels(y, min_classes=0)  # where classes need no label
        check_labels(wrap(pd.Categorical([3, -1, 7, None])))


def test_known_classes():
    classes, codes = encode_labels([7, -1, 7], classes=[3, 7, 9])
    assert classes.tolist() == [3, 7, 9] and codes.tolist() == [1, -1, 1]
    with pytest.raises(ValueError, match=r"not among the classes: \[8\]"):
        encode_labels([7, 8], classes=[3, 7])
    assert encode_labels([-1, -1], classes=[3, 7])[1].tolist() == [-1, -1]


def test_another_mark():
    assert is_labeled([0, 9, -1], unlabeled=9).tolist() == [True, False, True]
    assert is_labeled([0, -1, 1], unlabeled=None).all()
    assert is_labeled(["", "a"], unlabeled="").tolist() == [False, True]
    assert is_labeled(np.array(["", "a"]), unlabeled="").tolist() == [False, True]


@pytest.mark.parametrize(
    "y",
    [
        np.array(["cat", -1]),  # numpy writes the number as text
        np.array(["cat", "-1"], dtype=object),
        pd.Series(["cat", "-1"]),
        ["cat", "-1"],
    ],
)
def test_minus_one_as_text_is_refused(y):
    with pytest.raises(ValueError, match="object array"):
        is_labeled(y)


@pytest.mark.parametrize(
    "y, error, message",
    [
        (None, ValueError, "requires y to be passed, but the target y is None"),
        (3, ValueError, r"y should be a 1d array, got an array of shape \(\)"),
        (np.zeros((4, 2)), ValueError, r"y should be a 1d array.*\(4, 2\)"),
        ([0.5, 1.0, -1], ValueError, "Unknown label type: continuous"),
        (np.array([0.5, None], object), ValueError, "Unknown label type: continuous"),
        ([np.inf, 1.0], ValueError, "Input y contains infinity"),
        ([1j, 2j], ValueError, "Unknown label type: complex"),
        ([b"a", b"b"], ValueError, "Unknown label type: bytes, such as b'a'.*decode"),
        (np.array([b"a"]), ValueError, "bytes, such as b'a'"),
        (np.array([b"a", None], object), ValueError, "bytes, such as b'a'"),
        ([True, 2, 0], TypeError, "either True and False or numbers"),
        ({"a", "b"}, ValueError, r"shape \(\) instead \(a set\)"),
        ({0: "a"}, ValueError, r"shape \(\) instead \(a dict\)"),
        (["", " "], ValueError, "no labeled row: all 2 rows"),
        (np.array([(1,), None, (2,)], object), ValueError, "Unknown label type: tuple"),
        (["a", 1, -1], TypeError, r"not both: got \['int', 'str'\]"),
        ([-1, -1], ValueError, "no labeled row: all 2 rows"),
        ([NAN, None], ValueError, "no labeled row"),
        ([], ValueError, "no labeled row"),
        (torch.zeros(3, device="meta"), ValueError, "meta device.*no labels"),
        (list(torch.zeros(3, device="meta")), ValueError, "meta device.*no labels"),
        ([4, -1, 4], ValueError, r"1 class \(4\) among its 2 labeled rows, but"),
        ([4, -1, -1], ValueError, r"1 class \(4\) among its 1 labeled row, but"),
    ],
)
def test_what_is_refused(y, error, message):
    with pytest.raises(error, match=message):
        check_labels(y)


def test_counts_asked_for():
    assert check_labels([-1, -1], min_classes=0).tolist() == [-1, -1]
    assert check_labels([4, -1], min_classes=1).tolist() == [4, -1]
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        check_labels([0, 1], n_samples=3)


def test_a_column_is_taken_with_a_warning():
    with pytest.warns(DataConversionWarning, match="column-vector"):
        assert check_labels(np.array([[0], [1], [-1]])).tolist() == [0, 1, -1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_labels(np.array([0, 1, -1]))


def test_a_column_of_a_table_is_read_as_it_stands_there():
    y = pd.DataFrame({"class": pd.Series([3, pd.NA, 7], dtype="Int64")})
    with pytest.warns(DataConversionWarning, match="column-vector"):
        classes, codes = encode_labels(y)
    assert classes.dtype == np.int64 and codes.tolist() == [0, -1, 1]


def test_the_input_is_not_changed():
    y = np.array(["b", None, "a"], dtype=object)
    before = y.copy()
    encode_labels(y)
    check_labels(y)
    assert (y == before).all()


@given(st.lists(st.one_of(st.integers(-1, 5), st.none()), min_size=1))
def test_encode_and_decode_are_inverse(labels):
    y = np.array(labels, dtype=object)
    classes, codes = encode_labels(y)
    labeled = is_labeled(y)
    back = decode_labels(codes, classes, like=y)
    assert back[labeled].tolist() == y[labeled].tolist()
    assert ((codes >= 0) == labeled).all()
    assert (np.diff(classes) > 0).all()


def test_arrow_and_polars_keep_their_kinds():
    pa = pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    for values in ([3, None, 7, 3], ["b", None, "c", "b"], [False, None, True, False]):
        found = sorted({v for v in values if v is not None})
        for y in (
            pa.array(values),
            pa.chunked_array([values[:2], values[2:]]),
            pl.Series(values),
            pd.Series(values, dtype=pd.ArrowDtype(pa.array(values).type)),
        ):
            classes, codes = encode_labels(y)
            assert classes.tolist() == found and type(
                classes[0].item() if hasattr(classes[0], "item") else classes[0]
            ) is type(found[0])
            assert codes.tolist() == [0, -1, 1, 0]
            back = decode_labels(codes, classes, like=y)
            assert pd.isna(back[1]) and back[2] == found[1]
    text = pa.array(["b", None, "c", "b"]).dictionary_encode()
    for y in (text, pl.Series(["b", None, "c", "b"], dtype=pl.Categorical)):
        assert encode_labels(y)[1].tolist() == [0, -1, 1, 0]
    for y in (pa.table({"y": [3, None]}), pl.DataFrame({"y": [3, None]})):
        with pytest.warns(DataConversionWarning):
            assert encode_labels(y)[1].tolist() == [0, -1]
    for y in (pa.array([b"a", None]), pl.Series([b"a"])):
        with pytest.raises(ValueError, match="bytes, such as b'a'"):
            is_labeled(y)
    for y in (pa.table({"a": [1], "b": [2]}), pl.DataFrame({"a": [1], "b": [2]})):
        with pytest.raises(ValueError, match=r"1d array, got .*\(1, 2\)"):
            is_labeled(y)


UNCLEAR = ["nan", "NaN", "None", "none", "NA", "n/a", "null", "<NA>", "?", "NaT"]


@pytest.mark.parametrize("text", UNCLEAR)
@pytest.mark.parametrize(
    "wrap", [list, np.array, lambda y: np.array(y, object), pd.Series, pd.Categorical]
)
def test_text_that_may_be_missing_is_an_error_with_both_ways_out(text, wrap):
    with pytest.raises(ValueError) as raised:
        is_labeled(wrap(["cat", "dog", text, text]))
    message = str(raised.value)
    assert repr(text) in message and "first in row 2" in message
    assert "np.nan" in message and "keep_as_class" in message
    y = keep_as_class(wrap(["cat", "dog", text, text]), text)
    assert is_labeled(y).all() and len(encode_labels(y)[0]) == 3


def test_several_unclear_texts_are_counted():
    with pytest.raises(ValueError, match=r"'NA' \(first in row 1\) and 2 other such"):
        is_labeled(["a", "NA", "?", "none"])


def test_how_missing_values_become_text():
    for y in (
        np.array(["cat", "dog", np.nan]),
        np.array(["cat", "dog", None], dtype=object).astype(str),
        np.array(["cat", -1.0]),
    ):
        with pytest.raises(ValueError, match="may stand\\s+for a missing"):
            check_labels(y)


def test_a_kept_name_is_a_class_wherever_it_goes():
    y = keep_as_class(["none", "a", None, "b", "none"], "none")
    for view in (y[::-1][::-1], y[[0, 1, 2, 3, 4]], list(y), y.copy(), tuple(y)):
        classes, codes = encode_labels(view)
        assert classes.tolist() == ["a", "b", "none"]
        assert codes.tolist() == [2, 0, -1, 1, 2]
        back = decode_labels(codes, classes, like=view)
        assert encode_labels(back)[1].tolist() == codes.tolist()
    # known classes need no saying
    plain = ["none", "a", None]
    assert encode_labels(plain, classes=np.array(["a", "none"]))[1].tolist() == [
        1,
        0,
        -1,
    ]
    assert is_labeled(plain, classes=["none"]).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="'none'"):
        encode_labels(plain, classes=["a", "b"])


def test_another_mark_may_be_such_a_text():
    assert is_labeled(["a", "?", "b"], unlabeled="?").tolist() == [True, False, True]
    assert is_labeled(["a", "-1"], unlabeled=None).all()
    with pytest.raises(ValueError, match="'NA'"):
        is_labeled(["a", "?", "NA"], unlabeled="?")


def test_labels_that_look_alike_bring_one_warning():
    y = ["Blue", "blue", "1", "1.0", "cat", "cat ", "caf\u00e9", "cafe\u0301", "x", -1]
    with pytest.warns(UserWarning, match="look alike") as seen:
        check_labels(y)
    assert len(seen) == 1
    text = str(seen[0].message)
    assert "'1' and '1.0'; 'Blue' and 'blue'; " in text and "and 1 more" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_labels(["Blue", "red", "1", "10", -1])
        check_labels([1, 10, -1])
        is_labeled(y)  # told where it is trained, and once


def test_integers_without_an_end_stay_whole():
    y = [2**63, -5, None]
    classes, codes = encode_labels(y)
    assert classes.tolist() == [-5, 2**63] and codes.tolist() == [1, 0, -1]


def test_the_column_of_a_masked_array_hides_what_is_masked():
    y = np.ma.array([[0], [1]], mask=[[False], [True]])
    with pytest.warns(DataConversionWarning):
        assert as_column(y).tolist() == [0, None]


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["a", "b", "", " ", "none", "NA"]), st.none(), st.just(-1)
        ),
        min_size=1,
    )
)
def test_every_form_of_texts_gives_the_same_answer(labels):
    def outcome(y):
        try:
            return is_labeled(y).tolist()
        except ValueError as error:
            return str(error)

    forms = [labels, tuple(labels), np.array(labels, dtype=object)]
    if -1 not in labels:
        forms.append(pd.Series(labels, dtype=object))
    assert len({str(outcome(form)) for form in forms}) == 1


def test_scalars_of_arrow_in_a_list():
    arrow = pytest.importorskip("pyarrow")
    for values in (["b", None, "c"], [3, -1, 7], [True, None, False]):
        y = list(arrow.array(values))
        found = [part.tolist() for part in encode_labels(y)]
        assert found == [part.tolist() for part in encode_labels(values)]
