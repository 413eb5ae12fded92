#!/usr/bin/env python3
"""What NumPy takes for one operation after the other, on one thread, into arrays that are there already.

    python kernels.py --block 16777216 --cached 65536 "add float32" "astype float32 int32" "sum float32 axis 0"

Each operation runs on a block that is out of any cache and, often, on one that stays in it. `kernels.rs` makes the same
operands and prints the same JSON line: the CPU nanoseconds an element by operation and size, and of the small result the
sum of the magnitudes, by which the two are compared.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
import statistics
import time

import numpy as np

REPEATS = 3
# Calls on the small block that are timed together.
LOOPS = 64


def fractions(n, seed):
    """Pseudo-random multiples of 2**-24 in [0, 1): the finalizer of MurmurHash3 over indices."""
    h = np.arange(n, dtype=np.uint32) + np.uint32(seed)
    h ^= h >> 16
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> 13
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> 16
    return (h >> 8).astype(np.float64) * 2.0**-24


def first_operand(n, name, dtype):
    unit = fractions(n, 1)
    if name == "astype":
        return (unit * 16000.0 - 8000.0).astype(dtype)
    low = 0.5 if name in ("log", "sqrt", "pow") else -8.0
    return (unit * 16.0 + low).astype(dtype)


def prepared(words, n):
    """A function without arguments that does it, and the array that it fills."""
    name, dtype = words[:2]
    a = first_operand(n, name, dtype)
    if "axis" in words:
        side, axis = int(n**0.5), int(words[-1])
        a = a.reshape(side, side)
        out = np.empty(side, np.int64 if name == "argmax" else dtype)
        function = getattr(np, name)
        return lambda: function(a, axis=axis, out=out), out
    if name == "astype":
        out = np.empty(n, words[2])
        return lambda: np.copyto(out, a, casting="unsafe"), out
    b = (fractions(n, 2) * 8.0 + 0.5).astype(dtype)
    if name == "where":
        # It takes no `out`. The environment lets malloc keep its memory, so that pages are there already here too.
        condition = a < 0
        out = np.where(condition, a, b)
        return lambda: np.where(condition, a, b), out
    function = getattr(np, name)
    out = np.empty(n, bool if name in ("less", "equal") else dtype)
    if function.nin == 1:
        return lambda: function(a, out=out), out
    return lambda: function(a, b, out=out), out


def nanoseconds(call, calls):
    call()
    times = []
    for _ in range(REPEATS):
        start = time.thread_time_ns()
        for _ in range(calls):
            call()
        times.append(time.thread_time_ns() - start)
    return statistics.median(times) / calls


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, required=True)
    parser.add_argument("--cached", type=int, required=True)
    parser.add_argument("cases", nargs="+")
    args = parser.parse_args()
    timings = []
    for case in args.cases:
        call, _ = prepared(case.split(), args.block)
        block = nanoseconds(call, 1) / args.block
        call, out = prepared(case.split(), args.cached)
        cached = nanoseconds(call, LOOPS) / args.cached
        magnitude = float(np.abs(out.astype(np.float64)).sum())
        timings.append({"block_ns": block, "cached_ns": cached, "magnitude": magnitude})
    print(json.dumps({"version": np.__version__, "timings": timings}))


if __name__ == "__main__":
    main()
