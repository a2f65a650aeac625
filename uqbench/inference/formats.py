"""Predictions as files: Parquet, extended XYZ and CSV, to and from flat arrays.

All three hold the same columns, vectors flattened; those of atoms frame after frame:

    of a frame   id, energy_reference, energy, energy_variance, energy_score, cell (9), pbc (3)
    of an atom   numbers, positions (3), forces_reference (3), forces (3), force_variance, score

`energy` and `forces` are predicted, `energy_reference` and `forces_reference` are the labels, in eV, Å and eV/Å; any
column may be absent. Each format may carry the calibration of the scores.

- Parquet: a row for each frame, in which the values of its atoms are lists; `n_atoms` counts them. Exact to the bit.
- Extended XYZ: for ASE, OVITO and the like. Elements are the column `species`, positions `pos`; what belongs to a frame
  stands in its comment line, the cell as `Lattice`.
- CSV: a row for each atom, in which the values of its frame are repeated; `frame` and `atom` count from 0, `element` is
  a symbol, components are named `forces_x`, `cell_ax` (x of the first lattice vector) and `pbc_a`. A first line that
  begins with # holds the calibration.

The two texts also give standard deviations, `energy_std` and `force_std`, calibrated where there is a calibration; a
file that has them in place of variances, and no calibration, is read as if it had their squares. Numbers are written
with as many digits as tell them apart, 17 at most. A frame without a label has NaN in Parquet, an empty cell in CSV,
and nothing in extended XYZ. What else a file holds is not looked at.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from uqbench.errors import DataError
from uqbench.runs.files import atomic_write

Columns = dict[str, NDArray]
"""Flat arrays by name: (S,) or (S, width) of frames, (N,) or (N, width) of atoms; `n_atoms` (S,) is always there."""

OF_FRAMES = {"id": 1, "energy_reference": 1, "energy": 1, "energy_variance": 1, "energy_score": 1, "energy_std": 1}
OF_FRAMES |= {"cell": 9, "pbc": 3}
OF_ATOMS = {"numbers": 1, "positions": 3, "forces_reference": 3, "forces": 3, "force_variance": 1, "force_std": 1}
OF_ATOMS |= {"score": 1}
ORDER = (
    *("id", "n_atoms", "numbers", "energy_reference", "energy", "energy_variance", "energy_score"),
    *("forces_reference", "forces", "force_variance", "score", "positions", "cell", "pbc"),
)
"""Columns of Parquet, those of a set without geometry first."""
INTEGERS, FLAGS = ("id", "n_atoms", "numbers", "frame", "atom"), ("pbc",)
MAY_LACK = ("energy_reference", "forces_reference")
CALIBRATION = "uqbench_calibration"
AXES = {3: ("x", "y", "z"), 9: tuple(f"{vector}{axis}" for vector in "abc" for axis in "xyz")}
DIRECTIONS = ("a", "b", "c")


def write(path: Path, columns: Columns, calibration: Mapping[str, Any] | None) -> None:
    """Write a file in the format that its suffix names; raises DataError for another suffix or a failing disk."""
    content = encoded(path.suffix, columns, calibration, str(path))
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error})") from None


def encoded(suffix: str, columns: Columns, calibration: Mapping[str, Any] | None, path: str) -> bytes:
    """Return the content of a file; `path` is for messages."""
    return _format(suffix, path)[0](columns, calibration)


def read(path: Path) -> tuple[Columns, dict[str, Any] | None]:
    """Read columns and calibration of a file in the format that its suffix names.

    The columns that are there have the right lengths. Raises DataError for a file that is missing, truncated, damaged
    or of another kind.
    """
    decode = _format(path.suffix, str(path))[1]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    return decode(content, path)


def table(columns: Columns) -> pd.DataFrame:
    """Return one row for each frame; values of atoms are lists, vectors flattened as x1 y1 z1 x2 ..."""
    cuts = np.cumsum(columns["n_atoms"])[:-1]
    lists: dict[str, list] = {}
    for name in ORDER:
        if name in columns and name in OF_ATOMS:
            lists[name] = list(np.split(columns[name].ravel(), OF_ATOMS[name] * cuts))
        elif name in columns:
            lists[name] = list(columns[name])
    return pd.DataFrame(lists)


def _to_parquet(columns: Columns, calibration: Mapping[str, Any] | None) -> bytes:
    packed = pyarrow.Table.from_pandas(table(columns), preserve_index=False)
    if calibration is not None:
        packed = packed.replace_schema_metadata(packed.schema.metadata | {CALIBRATION: json.dumps(calibration)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(packed, buffer)
    return buffer.getvalue()


def _from_parquet(content: bytes, path: Path) -> tuple[Columns, dict[str, Any] | None]:
    try:
        packed = pyarrow.parquet.read_table(io.BytesIO(content))
        frames = packed.select([name for name in ORDER if name in packed.column_names]).to_pandas()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is no Parquet file, or a damaged one ({_first_line(error)})") from None
    if not len(frames):
        raise DataError(f"{path}: holds no frame")
    if "numbers" not in frames:
        raise DataError(f"{path} has no column numbers (columns there: {', '.join(packed.column_names) or 'none'})")
    columns = {}
    for name in frames:
        try:
            columns[name] = _flat([np.atleast_1d(value) for value in frames[name]], name)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: {name} cannot be read ({_first_line(error)})") from None
    columns.setdefault("n_atoms", np.array([len(np.atleast_1d(row)) for row in frames["numbers"]]))
    _check_lengths(columns, {name: [np.size(row) for row in frames[name]] for name in columns}, path)
    calibration = (packed.schema.metadata or {}).get(CALIBRATION.encode())
    return columns, None if calibration is None else _json(calibration.decode(errors="replace"), path)


def _to_extxyz(columns: Columns, calibration: Mapping[str, Any] | None) -> bytes:
    if "positions" not in columns:
        raise DataError("extended XYZ needs positions, and these predictions came without; write .parquet or .csv")
    names = [name for name in OF_ATOMS if name in columns and name not in ("numbers", "positions")]
    ends = np.cumsum(columns["n_atoms"])
    cells, pbc = columns["cell"], columns["pbc"]
    lines = []
    for s, (end, count) in enumerate(zip(ends, columns["n_atoms"], strict=True)):
        atoms = slice(end - count, end)
        there = [name for name in names if not np.isnan(columns[name][atoms]).any()]
        kinds = ":".join(["species:S:1:pos:R:3", *(f"{name}:R:{OF_ATOMS[name]}" for name in there)])
        comment = [f'Lattice="{_numbers(cells[s])}"'] if cells[s].any() else []
        comment += [f"Properties={kinds}", f'pbc="{" ".join("FT"[int(flag)] for flag in pbc[s])}"']
        for name in OF_FRAMES:
            if OF_FRAMES[name] == 1 and name in columns and not np.isnan(columns[name][s]):
                comment.append(f"{name}={columns[name][s].item()!r}")
        if calibration is not None:
            text = json.dumps(calibration).replace('"', '\\"')
            comment.append(f'{CALIBRATION}="_JSON {text}"')
        lines += [str(count), " ".join(comment)]
        blocks = [columns[name][atoms].reshape(count, -1) for name in ("positions", *there)]
        for number, row in zip(columns["numbers"][atoms], np.concatenate(blocks, axis=1).tolist(), strict=True):
            lines.append(f"{chemical_symbols[number]} {' '.join(map(repr, row))}")
    return ("\n".join(lines) + "\n").encode()


def _from_extxyz(content: bytes, path: Path) -> tuple[Columns, dict[str, Any] | None]:
    import ase.io

    text = _text(content, path)
    try:
        frames = ase.io.read(io.StringIO(text), index=":", format="extxyz")
    except Exception as error:  # ASE's readers raise whatever their parsing stumbles over
        raise DataError(f"{path} is no extended XYZ file, or a damaged one ({_first_line(error)})") from None
    if not frames:
        raise DataError(f"{path}: holds no frame")
    # ASE moves energies and forces into a calculator.
    results = [{} if atoms.calc is None else atoms.calc.results for atoms in frames]
    pairs = list(zip(frames, results, strict=True))
    values_of: dict[str, list] = {
        name: [{**atoms.info, **there}.get(name) for atoms, there in pairs] for name in OF_FRAMES
    }
    values_of |= {name: [{**atoms.arrays, **there}.get(name) for atoms, there in pairs] for name in OF_ATOMS}
    values_of |= {"cell": [atoms.cell.array for atoms in frames], "pbc": [atoms.pbc for atoms in frames]}
    n_atoms = np.array([len(atoms) for atoms in frames])
    columns: Columns = {"n_atoms": n_atoms}
    for name, values in values_of.items():
        missing = [s for s, value in enumerate(values) if value is None]
        if len(missing) == len(values):
            continue
        width = OF_ATOMS.get(name, 0) * n_atoms + OF_FRAMES.get(name, 0)
        if missing and name in MAY_LACK:
            values = [np.full(width[s], np.nan) if value is None else value for s, value in enumerate(values)]
        elif missing:
            raise DataError(f"{path}: frame {missing[0]} has no {name}, others have")
        try:
            columns[name] = _flat([np.atleast_1d(value).ravel() for value in values], name)
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"{path}: {name} do not hold numbers") from None
        _check_lengths({name: columns[name], "n_atoms": n_atoms}, {name: [np.size(v) for v in values]}, path)
    given = [atoms.info.get(CALIBRATION) for atoms in frames]
    if any(one != given[0] for one in given):
        raise DataError(f"{path}: its frames have different calibrations; they come from different models")
    if given[0] is not None and not isinstance(given[0], dict):
        raise DataError(f"{path}: the calibration is damaged")
    return columns, given[0]


def _to_csv(columns: Columns, calibration: Mapping[str, Any] | None) -> bytes:
    n_atoms = columns["n_atoms"]
    owner = np.repeat(np.arange(len(n_atoms)), n_atoms)
    flat = {"frame": owner, "id": columns["id"][owner], "n_atoms": n_atoms[owner]}
    flat["atom"] = np.arange(len(owner)) - (np.cumsum(n_atoms) - n_atoms)[owner]
    flat["element"] = np.array(chemical_symbols)[columns["numbers"]]
    for name, width in {**OF_ATOMS, **OF_FRAMES}.items():
        if name in columns and name not in ("id", "numbers"):
            values = columns[name] if name in OF_ATOMS else columns[name][owner]
            values = values.reshape(len(owner), width)
            values = values.astype(int) if name in FLAGS else values
            flat |= {key: values[:, k] for k, key in enumerate(_keys(name, width))}
    # pandas prints floats so that they are read back exactly.
    text = pd.DataFrame(flat).to_csv(index=False, lineterminator="\n")
    return (("" if calibration is None else f"# {CALIBRATION} {json.dumps(calibration)}\n") + text).encode()


def _from_csv(content: bytes, path: Path) -> tuple[Columns, dict[str, Any] | None]:
    text = _text(content, path)
    comment, _, rest = text.partition("\n") if text.startswith("#") else ("", "", text)
    calibration = None
    if comment.startswith(f"# {CALIBRATION} "):
        calibration = _json(comment.removeprefix(f"# {CALIBRATION} "), path)
    try:
        # As text, which NumPy makes numbers of exactly; pandas' own parser may be off by the last digit.
        rows = pd.read_csv(io.StringIO(rest), dtype=str, keep_default_na=False, na_values=[""])
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path} is no CSV table, or a damaged one ({_first_line(error)})") from None
    _require(rows, ("frame", "n_atoms", "atom", "element"), path)
    if not len(rows):
        raise DataError(f"{path}: holds no frame")
    frame, atom, n_atoms = (_column(rows, [name], name, path)[:, 0] for name in ("frame", "atom", "n_atoms"))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(frame) != 0]))
    counts = np.diff(np.append(starts, len(rows)))
    owner = np.repeat(np.arange(len(starts)), counts)
    if not (frame == owner).all() or not (atom == np.arange(len(rows)) - starts[owner]).all():
        raise DataError(f"{path}: frame and atom must count from 0, without gaps and in order")
    if (n_atoms != counts[owner]).any():
        s = owner[np.flatnonzero(n_atoms != counts[owner])[0]]
        raise DataError(f"{path}: frame {s} has {counts[s]} rows and n_atoms {n_atoms[starts[s]]}; rows are missing")
    unknown = sorted({str(symbol) for symbol in rows["element"]} - set(atomic_numbers))
    if unknown:
        raise DataError(f"{path}: unknown element '{unknown[0]}'")
    columns: Columns = {"n_atoms": counts, "numbers": np.array([atomic_numbers[symbol] for symbol in rows["element"]])}
    for name, width in {**OF_ATOMS, **OF_FRAMES}.items():
        keys = _keys(name, width)
        if name == "numbers" or not set(keys) & set(rows.columns):
            continue
        _require(rows, keys, path)
        values = _column(rows, keys, name, path)
        if name in OF_FRAMES:
            first = values[starts]
            if not np.array_equal(values, first[owner], equal_nan=name not in (*INTEGERS, *FLAGS)):
                raise DataError(f"{path}: {name} differs between the atoms of a frame")
            values = first
        columns[name] = values[:, 0] if width == 1 else values
    return columns, calibration


Encode = Callable[[Columns, Mapping[str, Any] | None], bytes]
Decode = Callable[[bytes, Path], tuple[Columns, dict[str, Any] | None]]
FORMATS: dict[str, tuple[Encode, Decode]] = {
    ".parquet": (_to_parquet, _from_parquet),
    ".extxyz": (_to_extxyz, _from_extxyz),
    ".csv": (_to_csv, _from_csv),
}


def _format(suffix: str, path: str) -> tuple[Encode, Decode]:
    suffix = suffix.lower()
    if suffix not in FORMATS:
        raise DataError(f"{path}: predictions are kept as {', '.join(FORMATS)}; the name ends in '{suffix}'")
    return FORMATS[suffix]


def _keys(name: str, width: int) -> list[str]:
    """Names of a column's components in CSV."""
    axes = DIRECTIONS if name in FLAGS else AXES.get(width)
    return [name] if axes is None else [f"{name}_{axis}" for axis in axes]


def _flat(rows: list[NDArray], name: str) -> NDArray:
    """Join the rows of a column as numbers of its kind, (n,) or (n, width); raises ValueError for anything else."""
    width = OF_ATOMS.get(name) or OF_FRAMES.get(name, 1)
    flat = _of_kind(np.concatenate(rows), name)
    return flat.reshape(-1, width) if width > 1 and len(flat) % width == 0 else flat


def _of_kind(values: NDArray, name: str) -> NDArray:
    """Return values as the whole numbers, flags or floats that a column holds; raises ValueError where they are not."""
    if name in INTEGERS and values.dtype.kind in "iu":
        return values.astype(np.int64)
    numbers = np.asarray(values, np.float64)
    if name not in (*INTEGERS, *FLAGS):
        return numbers
    if (
        not np.isfinite(numbers).all()
        or not np.array_equal(numbers, np.round(numbers))
        or (name in FLAGS and not np.isin(numbers, (0, 1)).all())
    ):
        raise ValueError("expected whole numbers" if name in INTEGERS else "expected 0 or 1")
    return numbers.astype(bool if name in FLAGS else np.int64)


def _column(rows: pd.DataFrame, keys: list[str], name: str, path: Path) -> NDArray:
    try:
        return np.stack([_of_kind(rows[key].to_numpy(object), name) for key in keys], axis=1)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: column {', '.join(keys)} cannot be read ({_first_line(error)})") from None


def _require(rows: pd.DataFrame, keys: tuple[str, ...] | list[str], path: Path) -> None:
    missing = [key for key in keys if key not in rows.columns]
    if missing:
        there = ", ".join(map(str, rows.columns[:30]))
        raise DataError(f"{path} has no column {', '.join(missing)} (columns there: {there})")


def _check_lengths(columns: Columns, sizes: Mapping[str, list[int]], path: Path) -> None:
    for name, lengths in sizes.items():
        expected = OF_ATOMS[name] * columns["n_atoms"] if name in OF_ATOMS else OF_FRAMES.get(name, 1)
        wrong = np.flatnonzero(np.array(lengths) != expected)
        if len(wrong):
            s = wrong[0]
            needed = np.broadcast_to(expected, len(lengths))[s]
            raise DataError(f"{path}: frame {s} has {lengths[s]} values of {name}, expected {needed}")


def _text(content: bytes, path: Path) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text file") from None
    if not text.strip():
        raise DataError(f"{path}: holds no frame")
    if not text.endswith("\n"):
        # The last number may have lost digits, which nothing else would show.
        raise DataError(f"{path} is truncated: its last line does not end")
    return text


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path}: the calibration is damaged")
    return content


def _numbers(values: NDArray) -> str:
    return " ".join(map(repr, values.ravel().tolist()))


def _first_line(error: Exception) -> str:
    return re.split(r"[\r\n]", str(error) or type(error).__name__, maxsplit=1)[0]
