"""Parquet, through pyarrow or polars."""

import io

from ..._core.optional import import_optional
from .. import lists
from . import number


def content(entries):
    """Return the bytes of a Parquet file; what is not known is null."""
    header, rows = lists.rows(entries)
    columns = {}
    for i, name in enumerate(header):
        cells = [row[i] for row in rows]
        if name.startswith("confidence"):
            columns[name] = [number(cell) for cell in cells]
        else:
            columns[name] = [str(cell) if cell != "" else None for cell in cells]
    kind, library = _library()
    file = io.BytesIO()
    if kind == "pyarrow":
        import pyarrow.parquet as parquet

        types = [
            (n, library.float64() if n.startswith("confidence") else library.string())
            for n in header
        ]
        table = library.table(columns, schema=library.schema(types))
        parquet.write_table(table, file)
    else:
        types = {
            n: library.Float64 if n.startswith("confidence") else library.String
            for n in header
        }
        library.DataFrame(columns, schema=types).write_parquet(file)
    return file.getvalue()


def read(path):
    """Return the header and rows of texts, as a CSV has them."""
    kind, library = _library()
    if kind == "pyarrow":
        import pyarrow.parquet as parquet

        columns = parquet.read_table(path).to_pydict()
    else:
        columns = library.read_parquet(path).to_dict(as_series=False)
    header = list(columns)
    rows = [list(map(_as_text, cells)) for cells in zip(*columns.values(), strict=True)]
    return header, rows


def check():
    """Raise an error where there is no library."""
    _library()


def _library():
    try:
        return "pyarrow", import_optional("pyarrow", "parquet")
    except ImportError as error:
        try:
            return "polars", import_optional("polars", "parquet")
        except ImportError:
            raise ImportError(
                "Parquet needs the package pyarrow or polars: pip install "
                '"sklabel[parquet]". Or take --to csv.'
            ) from error


def _as_text(value):
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
