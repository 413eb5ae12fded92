#!/usr/bin/env python3
"""One run of one system on one workload, in one fresh process: the opponents that Freestone is measured against.

    python peer.py --system dask --workload quad_means --data DIR --out DIR --threads 2 --codec zstd

Workloads, and what DIR must hold (Zarr v3):
  quad_means   DIR/u, DIR/v  f32 (T, Y, X), chunks (tc, Y, X)
               -> OUT/uu, OUT/uv, OUT/vv = mean over T of u*u, u*v, v*v, one chunk each
  many_small   DIR/tiny      f32 (S, S), chunks (64, 64)  -> the float64 sum of (x*2 + 1)**2

Systems:
  dask         dask.array on its threaded scheduler
  cubed        Cubed on its threads executor, as it comes
  cubed-tuned  the same with uncompressed intermediates and more fusion
  tensorstore  a hand-written bounded loop, thread pool + NumPy over TensorStore: the strongest Python we could write

The last line on stdout is one JSON object. `wall_s` and `cpu_s` run from after imports and set-up (`import_s`, which
leaves out the interpreter's own start) until the results are written; `peak_rss_bytes` is of the whole process.
"""

import os
import time

START = time.perf_counter()

# Parallelism comes from each system's own workers. Native libraries read these when they load: set before NumPy.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import importlib.metadata
import json
import resource
import tempfile
from contextlib import suppress
from pathlib import Path

PACKAGES = ("numpy", "zarr", "numcodecs", "dask", "cubed", "tensorstore")
PAIRS = {"uu": ("u", "u"), "uv": ("u", "v"), "vv": ("v", "v")}


class TaskCount:
    def __init__(self):
        self.n = 0


# Each system is a function that imports what it needs and returns its workloads by name.
# A workload returns the result to print, or None when the result is in --out.


def dask_threads(args, count):
    import dask
    import dask.array as da
    from dask.callbacks import Callback

    # Where it is installed, dask would import it in the measured run, at 0.3 s.
    with suppress(ImportError):
        import distributed  # noqa: F401

    dask.config.set(scheduler="threads", num_workers=args.threads)
    create = zarr_outputs(args)

    class Counter(Callback):
        def _posttask(self, *_):
            count.n += 1

    def read(name):
        return da.from_zarr(str(args.data / name))

    def quad_means():
        arrays = {name: read(name) for name in "uv"}
        means = {out: (arrays[x] * arrays[y]).mean(axis=0) for out, (x, y) in PAIRS.items()}
        with Counter():
            da.store(list(means.values()), [create(name, mean) for name, mean in means.items()], lock=False)

    def many_small():
        x = read("tiny")
        with Counter():
            return float(((x * 2 + 1) ** 2).sum(dtype="float64").compute())

    return {"quad_means": quad_means, "many_small": many_small}


def cubed_threads(args, count):
    from functools import partial

    import cubed
    import cubed.array_api as xp
    from cubed.core.optimization import multiple_inputs_optimize_dag

    # Cubed would import these in the measured run.
    import cubed.runtime.executors.local  # noqa: F401
    import cubed.storage.stores.zarr_python_v3  # noqa: F401

    class Counter(cubed.Callback):
        def on_task_end(self, event):
            count.n += event.num_tasks

    spec = dict(
        work_dir=args.work_dir,
        allowed_mem=args.allowed_mem,
        reserved_mem="200MB",
        executor_name="threads",
        executor_options={"max_workers": args.threads},
    )
    compute = dict(callbacks=[Counter()], compute_arrays_in_parallel=True)
    if args.system == "cubed-tuned":
        spec["zarr_compressor"] = None
        compute["optimize_function"] = partial(
            multiple_inputs_optimize_dag, max_total_source_arrays=12, max_total_num_input_blocks=40
        )
    spec = cubed.Spec(**spec)
    create = zarr_outputs(args)

    def read(name):
        return cubed.from_zarr(str(args.data / name), spec=spec)

    def quad_means():
        arrays = {name: read(name) for name in "uv"}
        means = {out: xp.mean(arrays[x] * arrays[y], axis=0) for out, (x, y) in PAIRS.items()}
        cubed.store(list(means.values()), [create(name, mean) for name, mean in means.items()], **compute)

    def many_small():
        x = read("tiny")
        return float(xp.sum((x * 2 + 1) ** 2, dtype=xp.float64).compute(**compute))

    return {"quad_means": quad_means, "many_small": many_small}


def tensorstore_loop(args, count):
    from concurrent.futures import ThreadPoolExecutor
    from itertools import product
    from threading import Lock

    import numpy as np
    import tensorstore as ts

    # No cache: every chunk is read once. File reads wait more than they compute, hence at least four.
    context = ts.Context(
        {
            "data_copy_concurrency": {"limit": args.threads},
            "file_io_concurrency": {"limit": max(4, args.threads)},
            "cache_pool": {"total_bytes_limit": 0},
        }
    )
    codecs = {
        "zstd": [{"name": "zstd", "configuration": {"level": 0}}],
        "blosc": [
            {
                "name": "blosc",
                "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": 4, "blocksize": 0},
            }
        ],
        "none": [],
    }

    def spec(path):
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}

    def read(name):
        return ts.open(spec(args.data / name), context=context, open=True, read=True).result()

    def write(name, values):
        metadata = {
            "shape": values.shape,
            "data_type": values.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": values.shape}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, *codecs[args.codec]],
            "fill_value": 0,
        }
        target = {**spec(args.out / name), "metadata": metadata}
        array = ts.open(target, context=context, create=True, delete_existing=True).result()
        array.write(values).result()

    def for_each_chunk(array, kernel):
        per_axis = [
            [slice(start, min(start + chunk, size)) for start in range(0, size, chunk)]
            for size, chunk in zip(array.shape, array.chunk_layout.read_chunk.shape)
        ]
        chunks = list(product(*per_axis))
        count.n += len(chunks)
        with ThreadPoolExecutor(args.threads) as pool:
            return list(pool.map(kernel, chunks))

    def quad_means():
        arrays = {name: read(name) for name in "uv"}
        sums = {out: np.zeros(arrays["u"].shape[1:]) for out in PAIRS}
        lock = Lock()

        def add(chunk):
            block = {name: array[chunk].read().result() for name, array in arrays.items()}
            # einsum makes no temporary of the product; only the sums of chunks need float64.
            partial = {out: np.einsum("i...,i...->...", block[x], block[y]) for out, (x, y) in PAIRS.items()}
            with lock:
                for out in PAIRS:
                    sums[out][chunk[1:]] += partial[out]

        for_each_chunk(arrays["u"], add)
        for out in PAIRS:
            write(out, (sums[out] / arrays["u"].shape[0]).astype("float32"))

    def many_small():
        tiny = read("tiny")
        return float(sum(for_each_chunk(tiny, lambda c: ((tiny[c].read().result() * 2 + 1) ** 2).sum(dtype="float64"))))

    return {"quad_means": quad_means, "many_small": many_small}


SYSTEMS = {
    "dask": dask_threads,
    "cubed": cubed_threads,
    "cubed-tuned": cubed_threads,
    "tensorstore": tensorstore_loop,
}


def zarr_outputs(args):
    """How dask and cubed get their outputs: arrays made by zarr-python, so that both write the codec asked for."""
    import zarr
    from zarr.codecs import BloscCodec, ZstdCodec

    compressors = {
        "zstd": ZstdCodec(level=0),
        "blosc": BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
        "none": None,
    }[args.codec]

    def create(name, like):
        return zarr.create_array(
            args.out / name,
            shape=like.shape,
            chunks=like.shape,
            dtype=like.dtype,
            compressors=compressors,
            fill_value=0,
            overwrite=True,
        )

    return create


def cpu_seconds():
    # clock_gettime for this process, because getrusage ticks in 4 ms; children have no such clock.
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) + children.ru_utime + children.ru_stime


def peak_rss_bytes():
    # Not ru_maxrss: Linux keeps that across exec, so a large parent would show up here.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=SYSTEMS, required=True)
    parser.add_argument("--workload", choices=["quad_means", "many_small"], required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--codec", choices=["zstd", "blosc", "none"], required=True, help="of the outputs")
    parser.add_argument("--allowed-mem", default="2GB", help="cubed only: bytes that one task may use")
    return parser.parse_args()


def main():
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}\n')

    # Beside the outputs, so that intermediates meet the same file system.
    with tempfile.TemporaryDirectory(prefix=".work-", dir=args.out) as args.work_dir:
        count = TaskCount()
        workload = SYSTEMS[args.system](args, count)[args.workload]

        wall, cpu = time.perf_counter(), cpu_seconds()
        result = workload()
        wall_s, cpu_s = time.perf_counter() - wall, cpu_seconds() - cpu

    record = {
        "system": args.system,
        "workload": args.workload,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "threads": args.threads,
        "codec": args.codec,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "import_s": wall - START,
        "tasks": count.n,
        "result": result,
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
