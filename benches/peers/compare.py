#!/usr/bin/env python3
"""Checks that two systems wrote the same arrays.

    python compare.py OUT_A OUT_B NAME...

Every element is compared. Differences are relative to the largest absolute value of each array, since values may pass
through zero: floats agree to 1e-5 (single) or 1e-9 (double), integers are equal. Prints one JSON line with the largest
difference and, of both, sum, sum of squares and a sum weighted by position; fails when an array differs.
"""

import json
import sys
from itertools import product

import numpy as np
import zarr

TOLERANCE = {"float32": 1e-5, "float64": 1e-9}


def blocks(array):
    """Regions of whole chunks."""
    starts = [range(0, size, chunk) for size, chunk in zip(array.shape, array.chunks)]
    for start in product(*starts):
        yield tuple(slice(s, min(s + chunk, size)) for s, chunk, size in zip(start, array.chunks, array.shape))


def sums(x, region):
    """Sum, sum of squares, and sum weighted by position."""
    weighted = x
    for axis, along in enumerate(region):
        weights = np.cos(0.37 * np.arange(along.start, along.stop) + axis)
        weighted = np.tensordot(weights, weighted, axes=(0, 0))
    return np.array([x.sum(), np.vdot(x, x), weighted])


def compare(name, pair):
    if pair[0].shape != pair[1].shape or pair[0].dtype != pair[1].dtype:
        sys.exit(f"{name}: {pair[0].dtype}{pair[0].shape} and {pair[1].dtype}{pair[1].shape}")
    apart = scale = 0.0
    total = [np.zeros(3), np.zeros(3)]
    for region in blocks(pair[0]):
        x, y = (array[region].astype("float64") for array in pair)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            sys.exit(f"{name}: not every value is finite")
        apart, scale = max(apart, float(np.abs(x - y).max())), max(scale, float(np.abs(x).max()))
        for i, values in enumerate((x, y)):
            total[i] += sums(values, region)
    if scale == 0:
        sys.exit(f"{name}: all zero in {sys.argv[1]}, so nothing was written or there is nothing to compare")
    tolerance = TOLERANCE.get(pair[0].dtype.name, 0.0)
    if apart / scale > tolerance:
        sys.exit(f"{name}: differs by {apart / scale:.3g} of its largest value, more than {tolerance:g}; sums are {total}")
    return apart / scale, [list(t) for t in total]


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    names = sys.argv[3:]
    results = {name: compare(name, [zarr.open_array(f"{group}/{name}", mode="r") for group in sys.argv[1:3]]) for name in names}
    print(json.dumps({"max_rel": max(apart for apart, _ in results.values()), "sums": {name: total for name, (_, total) in results.items()}}))


if __name__ == "__main__":
    main()
