"""Label Studio: tasks with annotations and predictions, and its JSON-MIN."""

# https://labelstud.io/guide/task_format and /guide/export

import json
import urllib.parse
from xml.sax.saxutils import quoteattr

from . import Found, number, text, wrong

_FROM, _TO, _IMAGE = "label", "image", "image"
# of JSON-MIN: what is neither data nor a label
_ABOUT = frozenset(
    "id annotator annotation_id created_at updated_at lead_time agreement "
    "cancelled_annotations total_annotations total_predictions ground_truth "
    "drafts predictions annotations meta project file_upload inner_id".split()
)
_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")


def content(entries, prefix, version):
    """Return the bytes of a list of tasks to import into a project.

    Parameters
    ----------
    entries : list of `lists.Entry`
    prefix : str
        Prefix of the quoted path of an image: the address that serves the files.
    version : str
        Version of the model, as shown in Label Studio.
    """
    tasks = []
    for entry in entries:
        address = prefix + urllib.parse.quote(entry.name)
        task = {"data": {_IMAGE: address, "path": entry.name}}
        if entry.is_given:
            task["annotations"] = [{"result": _result(entry.label)}]
        best = [(entry.predicted, entry.confidence)] if entry.predicted else []
        task["predictions"] = [
            {"model_version": _ranked(version, rank), "result": _result(label)}
            | ({} if entry.is_given else {"score": number(p)})
            for rank, (label, p) in enumerate([*best, *entry.others], 1)
        ]
        tasks.append(task)
    return (json.dumps(tasks, ensure_ascii=False, indent=1) + "\n").encode()


def interface(classes):
    """Return the labeling interface of a project that takes such tasks."""
    choices = "".join(f"<Choice value={quoteattr(str(name))}/>" for name in classes)
    return (
        f'<View><Image name="{_TO}" value="${_IMAGE}"/>'
        f'<Choices name="{_FROM}" toName="{_TO}" choice="single">{choices}</Choices>'
        "</View>"
    )


def _result(label):
    value = {"choices": [str(label)]}
    return [{"from_name": _FROM, "to_name": _TO, "type": "choices", "value": value}]


def _ranked(version, rank):
    return version if rank == 1 else f"{version}, choice {rank}"


def is_ours(data):
    """Return whether parsed JSON is a list of tasks."""
    tasks = data if isinstance(data, list) else [data]
    return bool(tasks) and all(
        isinstance(task, dict) and ("data" in task or "id" in task or _is_min(task))
        for task in tasks
    )


def _is_min(task):
    return "annotation_id" in task or "annotator" in task


def read(path, data, path_column=None, label_column=None):
    """Return `Found` for each annotation and each image, from parsed JSON.

    Parameters
    ----------
    path : str
        Of the file, for messages.
    data : list or dict
    path_column : str or None
        Key of the image; None: recognized.
    label_column : str or None
        Name of the labels in the labeling interface (``from_name``); None: all.
    """
    found = []
    for number_, task in enumerate(data if isinstance(data, list) else [data], 1):
        where = f"{path}, task {task.get('id', number_)}"
        if isinstance(task.get("data"), dict):
            found += _of_task(where, task, path_column, label_column)
        else:
            found.append(_of_min(where, task, path_column, label_column))
    return found


def _of_task(where, task, path_column, label_column):
    place = _image(where, task["data"], path_column)
    found = [Found(place)]  # also of a task that nobody has done
    # "completions" until version 1.0
    for annotation in _dicts(task.get("annotations") or task.get("completions")):
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            continue
        labels = _choices(annotation.get("result"), label_column)
        when = annotation.get("updated_at") or annotation.get("created_at")
        by = _who(annotation.get("completed_by"))
        found.append(Found(place, labels, by=by, when=text(when)))
    said = []
    for prediction in _dicts(task.get("predictions")):
        labels = _choices(prediction.get("result"), label_column)
        if labels:
            p = number(prediction.get("score"))
            said.append((labels[0], p))
    if said:
        # the most likely; without scores the first one
        said.sort(key=lambda pair: -1 if pair[1] is None else -pair[1])
        (label, p), *others = said
        others = tuple((name, q) for name, q in others if q is not None)
        found.append(Found(place, (label,), p, False, others=others))
    return found


def _of_min(where, task, path_column, label_column):
    place = _image(where, task, path_column)
    by, when = _who(task.get("annotator")), text(task.get("updated_at"))
    if label_column is not None:
        names = [label_column]
    else:
        names = [
            name
            for name, value in task.items()
            if name not in _ABOUT | {"path"}
            and value != place
            and as_labels(value)
            and not _looks_like_image(value)
        ]
        if len(names) > 1:
            kept = [n for n in names if n in ("choice", "label", "class", _FROM)]
            if len(kept) != 1:
                told = ", ".join(map(repr, names))
                raise wrong(
                    where,
                    f"has labels under {told}: choose one with --label-column.",
                )
            names = kept
    labels = tuple(one for name in names for one in as_labels(task.get(name)))
    return Found(place, labels, by=by, when=when)


def _image(where, data, path_column):
    """Return the image of the data of a task."""
    if path_column is not None:
        if not isinstance(data.get(path_column), str):
            found = ", ".join(map(repr, data))
            raise wrong(where, f"has no text under {path_column!r}; found: {found}.")
        return data[path_column]
    if isinstance(data.get("path"), str):  # of our own tasks
        return data["path"]
    names = [n for n, value in data.items() if _looks_like_image(value)]
    names = [_IMAGE] if isinstance(data.get(_IMAGE), str) else names
    if len(names) == 1:
        return data[names[0]]
    found = ", ".join(map(repr, data)) or "nothing"
    raise wrong(
        where, f"has no recognizable image; found: {found}. Give --path-column."
    )


def _looks_like_image(value):
    if not isinstance(value, str):
        return False
    plain = value.lower()
    if any(mark in plain for mark in ("/data/upload/", "fileuri=", "?d=")):
        return True
    return plain.partition("?")[0].endswith(_ENDINGS)


def _choices(result, name):
    """Return the classes of a result, each once."""
    labels = []
    for part in _dicts(result):
        value = part.get("value")
        if name is not None and part.get("from_name") != name:
            continue
        if part.get("type") == "choices" and isinstance(value, dict):
            labels += as_labels(value)
    return tuple(dict.fromkeys(labels))


def as_labels(value):
    """Return the classes in a value with one, several or none."""
    if isinstance(value, dict):
        value = value.get("choices")
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, list):
        # a class of a tree comes with its whole path: [["animal", "cat"]]
        flat = [v[-1] if isinstance(v, list) and v else v for v in value]
        return [v for v in flat if isinstance(v, str)]
    return []


def _who(user):
    """Return the annotator: a number, or the address."""
    if isinstance(user, dict):
        user = user.get("email") or user.get("id")
    return text(user)


def _dicts(values):
    return (
        [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []
    )
