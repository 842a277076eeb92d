"""COCO: images, categories and annotations, here one class for a whole image."""

import json

from . import attributes, number, of_attributes, text, wrong


def content(entries, sizes, version):
    """Return the bytes of a COCO file.

    Parameters
    ----------
    entries : list of `lists.Entry`
    sizes : list of (int, int)
        Width and height of each image; 0 where it cannot be read.
    version : str
        Who has written it.
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
            annotation["score"] = number(entry.confidence)
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
    try:
        names = {c["id"]: text(c["name"]) for c in data.get("categories", [])}
        places = {i["id"]: text(i["file_name"]) for i in data["images"]}
        labels, others = {}, {}
        for annotation in data["annotations"]:
            place = places[annotation["image_id"]]
            label = names[annotation["category_id"]]
            told = annotation.get("attributes")
            score = number(annotation.get("score"))
            # an image of three cats has one class
            labels[place, label] = of_attributes(place, (label,), score, told)
            others.setdefault(place, []).append(label)
    except (KeyError, TypeError, AttributeError) as error:
        raise wrong(path, f"is no COCO file: {error!r} is missing or wrong.") from None
    unlabeled = [
        of_attributes(place, (), None, None)
        for place in places.values()
        if place not in others
    ]
    return list(labels.values()) + unlabeled
