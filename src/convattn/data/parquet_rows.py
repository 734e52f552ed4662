"""The rows of a Parquet file, as text; a small file that would fill the memory is refused before it is read."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from convattn.data.dataset import DataError
from convattn.data.text_files import check_regular
from convattn.extras import require
from convattn.shown import reason

__all__ = ["parquet_rows"]

_LONGEST = 2**16  # bytes of a cell
_FEW = 2**20  # rows, and bytes, that any file may have
_ROWS_PER_BYTE = 10  # every row names another image, which no compression makes so small
_INFLATION = 1000


def parquet_rows(file: Path, choose: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[Sequence[str]]:
    """The cells of each row, of those columns that `choose` takes out of all their names, in its order.

    DataError if it is no Parquet, or would take far more memory than its size lets expect; MissingExtra without
    pyarrow.
    """
    check_regular(file)
    pyarrow, parquet = require("pyarrow", "train"), require("pyarrow.parquet", "train")
    try:
        schema = parquet.read_schema(file)
        chosen = choose(schema.names)
        texts = []
        for name in chosen:
            kind = schema.field(name).type
            if pyarrow.types.is_nested(kind):
                raise DataError(f"{file}: column {name} holds {kind}; a path and a label are one text or number each")
            texts += [name] if pyarrow.types.is_string(kind) or pyarrow.types.is_binary(kind) else []
        table = parquet.ParquetFile(file, read_dictionary=texts)
        _check_size(file, table.metadata)
        for batch in table.iter_batches(columns=list(chosen)):
            columns = [_cells(file, batch.column(batch.schema.get_field_index(name))) for name in chosen]
            yield from zip(*columns, strict=True)
    except DataError:
        raise
    except Exception as error:  # of a damaged file pyarrow raises whatever it stumbled on
        raise DataError(f"{file}: could not be read as Parquet ({reason(error, 200)})") from None


def _check_size(file: Path, metadata: Any) -> None:
    size = file.stat().st_size
    if metadata.num_rows > max(_FEW, _ROWS_PER_BYTE * size):
        raise DataError(
            f"{file}: says that it has {metadata.num_rows:,} rows in {size:,} bytes; no list of images does"
        )
    # Of the columns' own entries nothing is asked: where a damaged file has odd ones, pyarrow ends the process.
    grown = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if grown > max(_FEW, _INFLATION * size):
        raise DataError(f"{file}: would grow from {size:,} to {grown:,} bytes; no list of images does")


def _cells(file: Path, column: Any) -> Sequence[str]:
    """The texts of a column; each different value is looked at and made a text once."""
    if hasattr(column, "dictionary"):
        texts = _cells(file, column.dictionary)
        return ["" if code is None else texts[code] for code in column.indices.to_pylist()]
    if column.nbytes > _LONGEST * max(len(column), 16):
        raise DataError(f"{file}: cells of more than {_LONGEST:,} bytes; no list of images has these")
    return [_text(value) for value in column.to_pylist()]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape").strip()
    return str(value).strip()
