"""Write tables of NumPy's answers: tests/data/dtypes.txt, indexing.txt, ranges.txt.

    pip install numpy==2.4.6
    python tests/interop/numpy_tables.py tests/data
"""

import random
import sys
import warnings
from fractions import Fraction
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np

DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 complex64 complex128".split()
# The standard's name for NumPy's, where they differ.
TWO = {
    "add": np.add, "atan2": np.arctan2, "bitwise_and": np.bitwise_and, "bitwise_left_shift": np.left_shift, "bitwise_or": np.bitwise_or,
    "bitwise_right_shift": np.right_shift, "bitwise_xor": np.bitwise_xor, "copysign": np.copysign, "divide": np.true_divide, "equal": np.equal,
    "floor_divide": np.floor_divide, "greater": np.greater, "greater_equal": np.greater_equal, "hypot": np.hypot, "less": np.less,
    "less_equal": np.less_equal, "logaddexp": np.logaddexp, "logical_and": np.logical_and, "logical_or": np.logical_or,
    "logical_xor": np.logical_xor, "maximum": np.maximum, "minimum": np.minimum, "multiply": np.multiply, "nextafter": np.nextafter,
    "not_equal": np.not_equal, "pow": np.power, "remainder": np.remainder, "subtract": np.subtract,
    "matmul": np.matmul, "vecdot": np.vecdot, "outer": np.outer, "tensordot": lambda a, b: np.tensordot(a, b, 1),
    "concat": lambda a, b: np.concatenate([a, b]), "stack": lambda a, b: np.stack([a, b]), "where": lambda a, b: np.where([True, False, True], a, b),
}
ONE = {name: getattr(np, name) for name in "sum prod mean var std min max argmin argmax any all count_nonzero cumulative_sum cumulative_prod".split()}


def dtype_of(f, *arrays):
    try:
        return f(*arrays).dtype.name
    except TypeError:
        return "refused"


def dtypes():
    yield "# The dtype of a function's result, as NumPy 2.4.6 has it. Columns, separated by tabs: function, dtypes of its arrays, dtype; `refused`"
    yield "# where it raises TypeError. Written by tests/interop/numpy_tables.py."
    for name, f in ONE.items():
        for a in DTYPES:
            yield f"{name}\t{a}\t{dtype_of(f, np.ones(3, a))}"
    for name, f in TWO.items():
        for a, b in product(DTYPES, DTYPES):
            yield f"{name}\t{a} {b}\t{dtype_of(f, np.ones(3, a), np.ones(3, b))}"


def indexing():
    yield "# Indices with integers (1), slices (: and ::2), new axes (None), an ellipsis, and one list, of an array of shape (3, 4, 5) that counts from 0."
    yield "# Columns, separated by tabs: index, shape and elements of the result, as NumPy 2.4.6 has them. Written by tests/interop/numpy_tables.py."
    entries = {"1": 1, ":": slice(None), "::2": slice(None, None, 2), "None": None, "...": Ellipsis, "[2, 0]": [2, 0]}
    array = np.arange(60).reshape(3, 4, 5)
    for n in range(1, 5):
        for names in product(entries, repeat=n):
            # One list, or none; at most as many indices as axes.
            if names.count("[2, 0]") > 1 or names.count("...") > 1 or sum(x not in ("None", "...") for x in names) > 3 or names.count("::2") > 1:
                continue
            # Many indices differ in where their slices and new axes are only.
            if n == 4 and ("[2, 0]" not in names or names.count("None") > 1):
                continue
            result = array[tuple(entries[x] for x in names)]
            yield f"{', '.join(names)}\t{' '.join(map(str, result.shape))}\t{' '.join(map(str, result.ravel()[:40:3]))}"


def ranges():
    yield "# start, stop, step, ⌈(stop − start) / step⌉ of the exact values, or `none` for a step of 0 and for 2^59 elements and more."
    yield "# Written by tests/interop/numpy_tables.py."
    draw = random.Random(14)
    whole = [0, 1, -1, 3, 2**53 - 1, 2**53, 2**53 + 1, 2**53 + 5, -(2**53) - 1, 2**62 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1]
    real = [0.0, -0.0, 0.1, -0.1, 0.5, 1.0, 1.3, 2.0**53, 2.0**53 + 2, 1e300, -1e300, 5e-324, 2.0**-60, 1e17, 1.5e-8]
    near = lambda x: x + draw.choice([-5, -1, 0, 1, 4, 40]) * draw.choice([1, 0.5, 0.1])
    rows = [(a, b, c) for a in whole for b in whole[-8:] for c in (0.5, 1, 1.5, -0.5)]
    rows += [(draw.choice(whole + real), draw.choice(whole + real), draw.choice([0.1, -0.1, 0.3, 1e-3, 2.0**-60, 5e-324, 0.0, 7, 1e299])) for _ in range(300)]
    for _ in range(200):
        start, step = draw.choice([draw.random(), draw.randrange(2**60), 0.1, 1e16]), draw.choice([0.1, 0.3, 0.7, 1.1, 3.0, 1e-7])
        n = draw.randrange(1, 200)
        rows.append((start, start + n * step, step))
        rows.append((start, near(start), -step))
    for start, stop, step in rows:
        if step == 0:
            n = "none"
        else:
            n = max(0, ceil((Fraction(stop) - Fraction(start)) / Fraction(step)))
            n = n if n < 2**59 else "none"
        yield f"{start!r}\t{stop!r}\t{step!r}\t{n}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for table in (dtypes, indexing, ranges):
        Path(sys.argv[1], f"{table.__name__}.txt").write_text("\n".join(table()) + "\n")
