#!/usr/bin/env python3
"""CPU seconds of one product of two float64 squares on one thread, by the BLAS that NumPy comes with.

    python gemm.py SIDE

Prints one number, the median of several.
"""

import os
import sys
import time

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np

REPEAT = 5


def main():
    a, b = np.random.default_rng(1).random((2, int(sys.argv[1]), int(sys.argv[1])))
    product = a @ b
    seconds = []
    for _ in range(REPEAT):
        start = time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)
        np.matmul(a, b, out=product)
        seconds.append(time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID) - start)
    print(sorted(seconds)[REPEAT // 2])


if __name__ == "__main__":
    main()
