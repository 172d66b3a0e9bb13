"""Tables of a lab's own, every value read as text, and file names that name their columns."""

from pathlib import Path
from string import Formatter

import pandas as pd

from visionflow_hf.corpus.arrays import plain_names
from visionflow_hf.corpus.files import existing, plain_name, reading
from visionflow_hf.errors import UserError

MISSING = ("", "n/a", "N/A", "NA", "NaN", "nan", "None", "null", "<NA>")


def read_texts(file: Path) -> pd.DataFrame:
    """A .tsv, .csv or Parquet table; a number is the text that it is written as, what is missing is empty.

    Raises:
        UserError: another format, a damaged file, or one without rows.
    """
    suffix = file.suffix.lower()
    if suffix not in (".tsv", ".csv", ".parquet"):
        raise UserError(f"{file} is neither .tsv, .csv nor .parquet: give a table in one of these")
    with reading(existing(file)):
        if suffix == ".parquet":
            columns = pd.read_parquet(file).astype(object).items()
            table = pd.DataFrame({name: plain_names(values.to_numpy(), len(values), name) for name, values in columns})
        else:
            separator = "\t" if suffix == ".tsv" else ","
            rows = pd.read_csv(  # a row with more fields than the first one is an error
                file, sep=separator, dtype=str, keep_default_na=False, header=None, encoding="utf-8-sig"
            )
            table = rows[1:].reset_index(drop=True).set_axis(rows.iloc[0], axis=1)
        table.columns = [str(column).strip() for column in table.columns]
        table = table.map(lambda value: value.strip() if isinstance(value, str) else "").replace(list(MISSING), "")
    if table.columns.has_duplicates:
        raise UserError(f"{file} has two columns of one name: its columns are {', '.join(table.columns)}")
    if table.empty:
        raise UserError(f"{file} has no rows: one row a trial is expected")
    return table


def texts_of(table: pd.DataFrame, column: str, file: Path) -> list[str]:
    """The values of a column, none of them missing."""
    values = table[column].tolist()
    if "" in values:
        row = table.index[values.index("")] + 1  # of the file, from which rows may have been left out
        raise UserError(f"{column} of {file} is missing in row {row}: every trial needs one")
    return values


def fill(pattern: str, table: pd.DataFrame, file: Path) -> list[str]:
    """The name that a pattern such as `{subject}_{session:02d}.npy` makes of each row of the table in `file`.

    Raises:
        UserError: no pattern, no such column, or a value that would leave the folder.
    """
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        raise UserError(f"the pattern {pattern} cannot be read ({error}): {{subject}} names a column") from error
    columns = {}
    for _, column, kind, conversion in parts:
        if column is None:  # text after the last of them
            continue
        if column not in table or conversion:
            raise UserError(
                f"{pattern} names {{{column}}}, no column of {file}: its columns are {', '.join(table.columns)}"
            )
        if column not in columns:
            columns[column] = [plain_name(value, f"{column} of {file}") for value in texts_of(table, column, file)]
        if kind and not all(value.isdecimal() for value in columns[column]):
            raise UserError(
                f"{pattern} formats {{{column}}} as a number, and {file} has others in that column: leave out "
                "the format"
            )
    filled = [""] * len(table)
    try:
        for literal, column, kind, _ in parts:
            values = [""] * len(table) if column is None else columns[column]
            if kind:
                values = [format(int(value), kind) for value in values]
            filled = [name + literal + value for name, value in zip(filled, values, strict=True)]
    except ValueError as error:
        raise UserError(f"the pattern {pattern} cannot be filled ({error}): {{session:02d}} makes 01 of 1") from error
    return filled
