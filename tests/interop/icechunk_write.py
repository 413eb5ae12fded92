"""Writes Icechunk repositories for sessions/tests/sessions/interop.rs: icechunk_write.py FOLDER.

icechunk 1 writes format 1, icechunk 2 format 2.
"""

import shutil
import sys
from pathlib import Path

import icechunk
import numpy as np
import zarr

major = icechunk.__version__.split(".")[0]
path = Path(sys.argv[1]) / f"theirs-{major}"
shutil.rmtree(path, ignore_errors=True)
path.parent.mkdir(parents=True, exist_ok=True)
repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)))

session = repository.writable_session("main")
root = zarr.group(session.store)
u = root.create_array("u", shape=(3, 4), chunks=(2, 3), dtype="f4", fill_value=-1, dimension_names=("y", "x"), attributes={"units": "m s-1"})
u[:] = np.arange(12, dtype="f4").reshape(3, 4)
long = root.create_group("g").create_array("long", shape=(1000,), chunks=(500,), dtype="f4", fill_value=-1)
long[500:] = np.arange(500, dtype="f4")
repository.create_tag("v1", snapshot_id=session.commit("made"))

session = repository.writable_session("main")
zarr.open_array(session.store, path="u")[0, 0] = -5
session.commit("changed")
print("ok wrote", path.name)
