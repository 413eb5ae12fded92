#!/usr/bin/env python3
"""Checks that two systems wrote the same quadratic means.

    python compare.py OUT_A OUT_B

Both hold the arrays uu, uv and vv. Differences are relative to the largest absolute value of each map, since uv passes
through zero. Prints one JSON line; fails when a map differs by 1e-5 or more.
"""

import json
import sys

import numpy as np
import zarr

TOLERANCE = 1e-5


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    max_rel, sums = 0.0, {}
    for name in ("uu", "uv", "vv"):
        a, b = (zarr.open_array(f"{group}/{name}", mode="r")[...].astype("float64") for group in sys.argv[1:])
        if a.shape != b.shape:
            sys.exit(f"{name}: shapes differ: {a.shape} and {b.shape}")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            sys.exit(f"{name}: not every value is finite")
        scale = np.abs(a).max()
        if scale == 0:
            sys.exit(f"{name}: all zero in {sys.argv[1]}, so nothing was written or there is nothing to compare")
        rel = float(np.abs(a - b).max() / scale)
        if rel >= TOLERANCE:
            sys.exit(f"{name}: differs by {rel:.3g} of its largest value, more than {TOLERANCE:g}")
        max_rel = max(max_rel, rel)
        sums[name] = [float(a.sum()), float(b.sum())]
    print(json.dumps({"max_rel": max_rel, "sums": sums}))


if __name__ == "__main__":
    main()
