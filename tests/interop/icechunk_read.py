"""Reads the Icechunk repositories that sessions/tests/sessions/interop.rs wrote: icechunk_read.py FOLDER.

icechunk 1 reads format 1, icechunk 2 both. Prints a line `ok …` for each check.
"""

import sys
from pathlib import Path

import icechunk
import numpy as np
import xarray
import zarr

major = int(icechunk.__version__.split(".")[0])
for format in range(1, major + 1):
    path = Path(sys.argv[1]) / f"ours-{format}"
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
    messages = [s.message for s in repository.ancestry(tag="v1")]
    assert messages[:2] == ["changed by us", "made by us"], messages
    print(f"ok history of {path.name}")

    expect = np.arange(12, dtype="f4").reshape(3, 4)
    expect[:2, :3] = 100
    store = repository.readonly_session(tag="v1").store
    array = zarr.open_array(store, path="u", mode="r")
    assert array.attrs["units"] == "m s-1"
    np.testing.assert_array_equal(array[:], expect)
    long = zarr.open_array(store, path="g/long", mode="r")
    np.testing.assert_array_equal(long[:], np.concatenate([np.full(500, -1, "f4"), np.arange(500, dtype="f4")]))
    print(f"ok values of {path.name}")

    dataset = xarray.open_zarr(store, consolidated=False)
    assert dataset.u.dims == ("y", "x") and list(dataset.x.values) == [10, 20, 30, 40], dataset
    assert float(dataset.u.sel(x=40).sum()) == 3 + 7 + 11
    print(f"ok coordinates of {path.name}")

    session = repository.writable_session("main")
    zarr.open_array(session.store, path="u")[2, 3] = 7
    session.commit("by them")
    print(f"ok {path.name} is written on")
