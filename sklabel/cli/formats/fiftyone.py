"""FiftyOne: FiftyOneImageClassificationDataset, a JSON file beside a folder `data`."""

# https://docs.voxel51.com/user_guide/export_datasets.html

import json
import os
from collections import Counter

from . import Found, attributes, number, of_attributes, text, wrong


def content(entries):
    """Return the bytes of ``labels.json``; images are named without their extension."""
    stems = [os.path.splitext(entry.name)[0] for entry in entries]
    stem, n = Counter(stems).most_common(1)[0] if stems else ("", 0)
    if n > 1:
        raise ValueError(
            f"FiftyOne names images without their extension, and {n} are named "
            f"{stem!r}: rename all but one, or export with --to csv."
        )
    classes = sorted({str(e.label) for e in entries if e.label})
    labels = {
        stem: {
            "label": classes.index(str(entry.label)),
            "confidence": None if entry.is_given else entry.probability(),
            "attributes": attributes(entry),
        }
        if entry.label
        else None
        for stem, entry in zip(stems, entries, strict=True)
    }
    told = {"classes": classes, "labels": labels}
    return (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode()


def is_ours(data):
    return isinstance(data, dict) and isinstance(data.get("labels"), dict)


def read(path, data):
    """Return `Found` for each image, from parsed JSON."""
    classes = data.get("classes")
    if classes is not None and not isinstance(classes, list):
        raise wrong(path, "is not a FiftyOne file: 'classes' is not a list.")
    found = []
    for place, target in data["labels"].items():
        told, p = None, None
        if isinstance(target, dict):
            told = target.get("attributes")
            p = number(target.get("confidence"))
            target = target.get("label", target.get("labels"))
        targets = target if isinstance(target, list) else [target]
        labels = []
        for one in targets:
            if isinstance(one, dict):
                one = one.get("label")
            if type(one) is int and classes is not None:
                if not 0 <= one < len(classes):
                    raise wrong(
                        path, f"gives {place!r} the class {one} of {len(classes)}."
                    )
                one = classes[one]
            labels += [text(one)] if one is not None else []
        if labels:
            labels = tuple(dict.fromkeys(labels))
            found.append(of_attributes(place, labels, p, told))
        else:
            found.append(Found(place))
    return found
