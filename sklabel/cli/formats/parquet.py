"""Parquet, through pyarrow or polars."""

import io
import math

from ..._core.optional import import_optional
from .. import lists
from . import number, text, wrong


def content(entries):
    """Return the bytes of a Parquet file; unknown values are null."""
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
    """Return the header and the rows as texts, as from a CSV."""
    kind, library = _library()
    try:
        if kind == "pyarrow":
            import pyarrow.parquet as parquet

            columns = parquet.read_table(path).to_pydict()
        else:
            columns = library.read_parquet(path).to_dict(as_series=False)
    except Exception as error:  # each library has its own
        told = " ".join(str(error).split())
        raise wrong(path, f"cannot be read as Parquet: {told[:200]}") from None
    try:
        cells = [list(map(_as_text, values)) for values in columns.values()]
    except (TypeError, UnicodeDecodeError) as error:
        raise wrong(path, f"has a column that is not text: {error}.") from None
    return list(columns), [list(row) for row in zip(*cells, strict=True)]


def check():
    """Raise an error if there is no library."""
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
                '"sklabel[parquet]". Or use --to csv.'
            ) from error


def _as_text(value):
    if value is None:
        return ""
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else repr(value)
    return value.decode() if isinstance(value, bytes) else text(value)
