"""sklabel cluster: group the photographs of a folder, without labels."""

from pathlib import Path

from .._core.wording import n_of
from . import embedders, fit, inputs, models, options, outputs, tables

_N_COMPONENTS = 64
_MOST = 30  # groups that are tried, where their number is not told
_SAMPLE = 2000  # images by which the number of groups is chosen
_SHOWN = 12  # images of a group on the sheet


def add_parser(commands):
    parser = commands.add_parser(
        "cluster",
        help="group the photographs of a folder, without labels",
        description="Embed the photographs of a folder and group similar ones "
        "(k-means). Writes a CSV with the group of each image, the most typical "
        "first, and a contact sheet with one row per group. The CSV has an empty "
        "column label: label some images of each group, then run fit on it.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of image files")
    parser.add_argument(
        "--n-clusters",
        type=options.positive,
        metavar="N",
        help=f"number of groups (default: the number up to {_MOST} with the best "
        "silhouette)",
    )
    parser.add_argument(
        "--out",
        default="clusters.csv",
        metavar="CSV",
        help="list of images and their groups (default clusters.csv)",
    )
    parser.add_argument(
        "--sheet",
        metavar="PNG",
        help="contact sheet of the groups (default: next to the CSV)",
    )
    parser.add_argument(
        "--sheets", metavar="DIR", help="new folder for one contact sheet per group"
    )
    options.add_embedding(parser)
    options.add_training(parser)
    parser.set_defaults(run=run)


def run(args):
    """Put the images of a folder into groups."""
    import numpy as np

    options.check_device(args.device)
    embedders.check(args)
    files = inputs.list_images(args.folder)
    out = Path(args.out)
    sheet = Path(args.sheet or out.with_suffix(".png"))
    outputs.check_sheet(out, sheet, args)
    outputs.check_distinct(
        out=out, sheet=sheet, sheets=args.sheets, checkpoint=args.checkpoint
    )
    outputs.check_csv(out, "--out", args)
    outputs.check_picture(sheet, "--sheet", args)
    if args.sheets is not None:
        outputs.check_new_tree(args.sheets, "--sheets", args)
    outputs.check_folder(args.checkpoint, "--checkpoint", args)
    _check_n(args.n_clusters, len(files), "images")

    models.prepare()
    names, X, embedder, option = embedders.embed(files, args)
    _check_n(args.n_clusters, len(names), "images that can be read")
    groups, distances, how = _group(embedder.transform(X), args)

    order = np.lexsort((distances, groups))
    ranks = np.concatenate([np.arange(1, n + 1) for n in np.bincount(groups)])
    rows = [
        [groups[row] + 1, rank, names[row], ""]
        for row, rank in zip(order, ranks, strict=True)
    ]
    content = tables.as_marked(
        args.command, ["cluster", "number", "path", "label"], rows
    )
    paths = [files[name] for name in names]
    members = [order[groups[order] == k] for k in range(groups.max() + 1)]
    picture = outputs.picture(
        _sheet(paths, groups, distances, members, args), args.command
    )
    with outputs.writing(args, csv=(out, content), picture=(sheet, picture)):
        if args.sheets is not None:
            with outputs.new_tree(Path(args.sheets)) as folder:
                _write_sheets(folder, paths, names, members, args)
    then = fit.command_for([out], args, option)
    n_groups = n_of(len(members), "group")
    if len(members) < (args.n_clusters or 1):
        how = (
            f" (--n-clusters {args.n_clusters} is more than the number of different "
            "images)"
        )
    sizes = ", ".join(str(len(group)) for group in members)
    outputs.show(
        f"{len(names)} images in {n_groups}{how}: {sizes} images. "
        f"{out} lists them, {sheet} shows them. To label them, write labels into some "
        f"rows of each group. Then: {then}\n"
    )


def _check_n(n, n_images, what):
    if n is not None and n > n_images:
        raise ValueError(f"--n-clusters {n} is more than the {n_images} {what}.")


def _group(Z, args):
    """Return each row's group, its distance from the center, and a note on the number.

    Groups are numbered by size; the largest is 0.
    """
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score
    from sklearn.preprocessing import normalize

    Z = np.asarray(Z, dtype=np.float64)
    n_different = len(np.unique(Z, axis=0))
    if n_different == 1:  # copies of one image
        return np.zeros(len(Z), int), np.zeros(len(Z)), ""
    n_components = min(_N_COMPONENTS, *Z.shape)
    Z = PCA(n_components, random_state=args.seed).fit_transform(Z)
    Z = normalize(Z)

    def k_means(rows, k):
        return KMeans(k, n_init=4, random_state=args.seed).fit(rows)

    n, how = args.n_clusters, ""
    if n is None:
        rows = np.random.default_rng(args.seed).permutation(len(Z))[:_SAMPLE]
        rows = Z[np.sort(rows)]
        scores = {}
        for k in _numbers(min(_MOST, len(np.unique(rows, axis=0)) - 1)):
            labels = k_means(rows, k).labels_
            scores[k] = silhouette_score(rows, labels) if len(set(labels)) > 1 else -1
        n = max(scores, key=lambda k: (round(scores[k], 3), -k), default=1)
        how = " (by the silhouette; --n-clusters N sets another number)"
    fitted = k_means(Z, min(n, n_different))
    distances = np.linalg.norm(Z - fitted.cluster_centers_[fitted.labels_], axis=1)
    _, codes = np.unique(fitted.labels_, return_inverse=True)
    by_size = np.argsort(-np.bincount(codes), kind="stable")
    number = np.empty_like(by_size)
    number[by_size] = np.arange(len(by_size))
    return number[codes], distances, how


def _numbers(most):
    """Return numbers of groups to try: all up to ten, then only some."""
    return [
        k for k in range(2, most + 1) if k <= 10 or k % 2 == 0 and k <= 20 or k % 5 == 0
    ]


def _sheet(paths, groups, distances, members, args):
    from .._core.display import cluster_sheet

    typical = [group[0] for group in members]
    captions = [f"{len(group)} images" for group in members]
    return cluster_sheet(
        paths,
        typical,
        groups,
        distances,
        captions,
        n_shown=_SHOWN,
        tile=72,
        max_pixels=args.max_pixels,
    )


def _write_sheets(folder, paths, names, members, args):
    from .._core.display import contact_sheet

    width = len(str(len(members)))
    for number, group in enumerate(members, 1):
        sheet = contact_sheet(
            [paths[row] for row in group],
            [names[row] for row in group],
            max_pixels=args.max_pixels,
        )
        content = outputs.picture(sheet, args.command)
        Path(folder, f"group-{number:0{width}d}.png").write_bytes(content)
