"""COCO: images, categories and annotations, here one class for a whole image."""

import json

from . import attributes, number, of_attributes, text, wrong


def content(entries, sizes, version):
    """Return the bytes of a COCO file.

    Parameters
    ----------
    entries : list of `lists.Entry`
    sizes : list of (int, int)
        Width and height of each image; 0 if it cannot be read.
    version : str
        Version of the writing program.
    """
    names = sorted({str(e.label) for e in entries if e.label})
    ids = {name: number_ for number_, name in enumerate(names, 1)}
    images, annotations = [], []
    for image_id, (entry, (width, height)) in enumerate(
        zip(entries, sizes, strict=True), 1
    ):
        image = {"id": image_id, "file_name": entry.name}
        images.append(image | {"width": width, "height": height})
        if not entry.label:
            continue
        annotation = {
            "id": len(annotations) + 1,
            "image_id": image_id,
            "category_id": ids[str(entry.label)],
            "bbox": [0, 0, width, height],
            "area": width * height,
            "iscrowd": 0,
            "attributes": attributes(entry),
        }
        if not entry.is_given:
            annotation["score"] = entry.probability()
        annotations.append(annotation)
    told = {
        "info": {"description": "Classes of images", "version": version},
        "licenses": [],
        "categories": [
            {"id": i, "name": name, "supercategory": ""} for name, i in ids.items()
        ],
        "images": images,
        "annotations": annotations,
    }
    return (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode()


def is_ours(data):
    return isinstance(data, dict) and {"images", "annotations"} <= set(data)


def read(path, data):
    """Return `Found` for each annotation and each image, from parsed JSON."""
    names = _by_id(path, data, "categories", "name")
    places = _by_id(path, data, "images", "file_name")
    labels, others = {}, {}
    for annotation in _objects(path, data, "annotations"):
        place = _known(path, annotation, "image_id", places)
        label = _known(path, annotation, "category_id", names)
        told = annotation.get("attributes")
        score = number(annotation.get("score"))
        # an image of three cats has one class
        labels[place, label] = of_attributes(place, (label,), score, told)
        others.setdefault(place, []).append(label)
    unlabeled = [
        of_attributes(place, (), None, None)
        for place in places.values()
        if place not in others
    ]
    return list(labels.values()) + unlabeled


def _objects(path, data, key):
    values = data.get(key)
    if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
        raise wrong(path, f"is not a COCO file: {key!r} is not a list of objects.")
    return values


def _by_id(path, data, key, wanted):
    """Return {id: text} of a list; an id with two meanings raises an error."""
    found = {}
    for value in _objects(path, data, key):
        number_, name = value.get("id"), value.get(wanted)
        if not isinstance(number_, (int, str)) or name is None:
            raise wrong(
                path,
                f"is not a COCO file: an entry of {key!r} has no id or no {wanted}.",
            )
        if found.setdefault(number_, text(name)) != text(name):
            raise wrong(
                path,
                f"has two {key} with the id {number_!r}, {found[number_]!r} and "
                f"{name!r}: give one of them another id.",
            )
    return found


def _known(path, annotation, key, known):
    number_ = annotation.get(key)
    if not isinstance(number_, (int, str)) or number_ not in known:
        raise wrong(
            path,
            f"has an annotation with the {key} {number_!r}, which is not in it: remove "
            "the annotation, or export the file again.",
        )
    return known[number_]
