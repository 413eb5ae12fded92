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

# A group of format 1 to which days were appended: all of its arrays have grown.
path = Path(sys.argv[1]) / "ours-appended"
store = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path))).readonly_session("main").store
dataset = xarray.open_zarr(store, group="wind", consolidated=False)
assert dict(dataset.sizes) == {"time": 7, "x": 6}, dataset
assert str(dataset.time.values[6]).startswith("2000-01-07"), dataset.time
np.testing.assert_array_equal(dataset.speed.sel(time="2000-01-06").values.ravel(), np.full(6, 5.0))
print("ok days that were appended")

# What runs have committed, by threads and by processes.
if major >= 2:
    path = Path(sys.argv[1]) / "ours-run"
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
    history = list(repository.ancestry(branch="main"))
    assert [s.message for s in history][:2] == ["twice that", "squares"], history
    assert "freestone_plan" in history[0].metadata, history[0].metadata
    winds = zarr.open_group(str(Path(__file__).parents[2] / "examples/data/winds-v3.zarr"), mode="r")
    expect = (winds["u"][:].astype("f8") ** 2).mean(axis=0)
    dataset = xarray.open_zarr(repository.readonly_session("main").store, group="means", consolidated=False)
    assert dataset.uu.dims == ("latitude", "longitude"), dataset
    np.testing.assert_array_equal(dataset.latitude.values, winds["latitude"][:])
    np.testing.assert_allclose(dataset.uu.values, expect, rtol=1e-6)
    np.testing.assert_array_equal(dataset.twice.values, 2 * dataset.uu.values)
    before = repository.readonly_session(snapshot_id=history[1].id).store
    assert sorted(zarr.open_group(before, path="means", mode="r").array_keys()) == ["latitude", "longitude", "uu"]
    print("ok what runs have committed")
