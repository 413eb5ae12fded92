#!/usr/bin/env python3
"""Reads quadratic means that Freestone wrote, as its users will: with zarr-python and with xarray.

    python read_outputs.py GROUP OUTPUTS

GROUP holds uu, uv and vv (latitude, longitude), made from the winds of the 2.5 degree grid, and the two coordinates.
OUTPUTS has consolidated metadata, arrays (y, x) of the numbers 0, 1, 2, ... in C order, stored in different ways, and the wind u. Beside it are
the groups that write_inputs.py has packed, and their copies.
Prints one `ok` line per check that passed; stops at the first that did not.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import xarray as xr
import zarr

DIMS = ("latitude", "longitude")
LATITUDE = np.linspace(90, -90, 73)
LONGITUDE = np.arange(144) * 2.5
# Sums over the maps in float64, from NumPy on the whole inputs.
SUMS = {"uu": 3836151.0286, "uv": 30828.0636, "vv": 108203.8186}
# True of the winds, wrong for their products: units are squared, and packing was undone before multiplying.
INPUT_ONLY = {"_FillValue", "units", "scale_factor", "add_offset", "valid_range"}


def require(condition, message):
    if not condition:
        sys.exit(f"not ok: {message}")


def check_values(reader, name, values):
    require(values.dtype == np.float32, f"{reader} {name}: dtype {values.dtype}, not float32")
    require(values.shape == (73, 144), f"{reader} {name}: shape {values.shape}, not (73, 144)")
    require(not np.isnan(values).any(), f"{reader} {name}: {np.isnan(values).sum()} NaNs")
    total = float(values.sum(dtype="float64"))
    require(abs(total / SUMS[name] - 1) < 1e-6, f"{reader} {name}: sum {total!r}, not {SUMS[name]!r}")


def check_attributes(reader, name, attributes):
    kept = sorted(INPUT_ONLY & set(attributes))
    require(not kept, f"{reader} {name}: keeps {kept} of its inputs")


def check_coordinates(reader, latitude, longitude):
    # Either way up: which one is the input's choice.
    up = latitude[::-1] if latitude[0] < latitude[-1] else latitude
    require(np.array_equal(up, LATITUDE), f"{reader} latitude: not 90 to -90 in steps of 2.5: {latitude}")
    require(np.array_equal(longitude, LONGITUDE), f"{reader} longitude: not 0 to 357.5 in steps of 2.5: {longitude}")


def check_zarr(path):
    group = zarr.open_group(path, mode="r")
    require(group.metadata.zarr_format == 3, f"zarr: format {group.metadata.zarr_format}, not 3")
    missing = sorted({*SUMS, *DIMS} - set(group.array_keys()))
    require(not missing, f"zarr: no arrays {missing}")
    for name in SUMS:
        array = group[name]
        require(array.metadata.dimension_names == DIMS, f"zarr {name}: dimensions {array.metadata.dimension_names}")
        check_attributes("zarr", name, array.attrs)
        check_values("zarr", name, array[...])
        print(f"ok zarr {name}")
    for name in DIMS:
        names = group[name].metadata.dimension_names
        require(names == (name,), f"zarr {name}: dimensions {names}")
    check_coordinates("zarr", *(group[name][...] for name in DIMS))
    print("ok zarr coordinates")


def check_xarray(reader, dataset):
    require(set(dataset.data_vars) == set(SUMS), f"{reader}: variables {list(dataset.data_vars)}")
    for name in SUMS:
        array = dataset[name]
        require(array.dims == DIMS, f"{reader} {name}: dimensions {array.dims}")
        require(set(array.indexes) == set(DIMS), f"{reader} {name}: index coordinates {list(array.indexes)}")
        # xarray moves what it decoded into the encoding.
        check_attributes(reader, name, {**array.encoding, **array.attrs})
        check_values(reader, name, array.values)
        print(f"ok {reader} {name}")
    check_coordinates(reader, *(dataset.indexes[name].to_numpy() for name in DIMS))
    print(f"ok {reader} coordinates")


def check_stored(path):
    group = zarr.open_group(path, mode="r")
    names = set(group.array_keys()) - {"u", "time", *DIMS}
    require(len(names) == 12, f"stored: {sorted(names)}")
    numbers = np.arange(30 * 41, dtype="float32").reshape(30, 41)
    for name in sorted(names):
        array = group[name]
        shards = (16, 24) if name.startswith("shards-") else (8, 16) if name == "regions" else None
        require((array.shards, array.chunks) == (shards, (8, 8)), f"stored {name}: shards {array.shards}, chunks {array.chunks}")
        require(np.array_equal(array[...], numbers), f"stored {name}: other values")
        print(f"ok stored {name}")
    # Only consolidated metadata are looked at.
    # The year 1 needs another package to be decoded.
    dataset = xr.open_zarr(path, consolidated=True, decode_times=False)
    require(set(dataset.data_vars) == names | {"u"}, f"consolidated: {sorted(dataset.data_vars)}")
    require(np.array_equal(dataset["last"].values, numbers), "consolidated: other values")
    print("ok consolidated")
    winds = xr.open_zarr(Path(__file__).parents[2] / "examples/data/winds-v3.zarr", consolidated=False, decode_times=False)
    require(dataset["u"].identical(winds["u"]), "u, written region by region, is not the wind that was read")
    print("ok regions")


def check_packed(folder):
    """Copies of what Xarray has packed are unpacked as their sources are, with the missing values in place."""
    for zarr_format in (2, 3):
        source = xr.open_zarr(folder / f"packed-v{zarr_format}.zarr", consolidated=False)
        copy = xr.open_zarr(folder / f"copied-v{zarr_format}.zarr", consolidated=False)
        require(set(copy.variables) == set(source.variables), f"packed: {sorted(copy.variables)}")
        for name, variable in source.variables.items():
            require(np.array_equal(copy[name].values, variable.values, equal_nan=True), f"packed {name}: {copy[name].values}, not {variable.values}")
            require(copy[name].attrs == variable.attrs, f"packed {name}: {copy[name].attrs}, not {variable.attrs}")
            require(name == "x" or np.flatnonzero(np.isnan(copy[name].values)).tolist() == [3, 7], f"packed {name}: {copy[name].values}")
            print(f"ok packed {name} of format {zarr_format}")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path, stored = sys.argv[1:]
    check_packed(Path(stored).parent)
    check_stored(stored)
    check_zarr(path)
    check_xarray("xarray", xr.open_zarr(path, consolidated=False))
    with warnings.catch_warnings():
        # Without consolidated metadata xarray warns, then reads the group all the same.
        warnings.simplefilter("ignore")
        check_xarray("xarray-default", xr.open_zarr(path))


if __name__ == "__main__":
    main()
