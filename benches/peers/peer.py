#!/usr/bin/env python3
"""One run of one system on one workload, in one fresh process: the opponents that Freestone is measured against.

    python peer.py --system dask --workload quad_means --data DIR --out DIR --threads 2 --codec zstd

Workloads, and what DIR must hold (Zarr v3); those that say nothing else write OUT/out:
  quad_means         DIR/u, DIR/v  f32 (T, Y, X), chunks (tc, Y, X)
                     -> OUT/uu, OUT/uv, OUT/vv = mean over T of u*u, u*v, v*v, one chunk each
  sum                DIR/u         -> the float64 sum
  mean, var, argmax  DIR/u         -> over T
  cumulative_sum     DIR/u         -> along T, chunks as in u
  anomalies          DIR/u         -> u less the mean of its month over all years, chunks as in u
  rechunk            DIR/u         -> in chunks (T, 36, 72)
  elementwise_chain  DIR/a, DIR/b  f32 (N, N), chunks (n, n) -> sqrt(a*a + b*b) * exp(-|a - b|) + 1
  transpose_add      DIR/a         -> a + a.T
  vorticity          DIR/a, DIR/b  -> central differences, b along axis 1 less a along axis 0, (N-2, N-2) in chunks (n, n)
  matmul             DIR/A, DIR/B  f64 (M, M), chunks (m, m) -> A @ B
  many_small         DIR/tiny      f32 (S, S), chunks (64, 64)  -> the float64 sum of (x*2 + 1)**2

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
COLUMN = (36, 72)
WORKLOADS = (
    "quad_means", "sum", "mean", "var", "argmax", "elementwise_chain", "rechunk", "transpose_add", "matmul", "cumulative_sum",
    "vorticity", "anomalies", "many_small",
)  # fmt: skip


def months(times):
    """The month, from 0, of each day from 1 January on in years of 365 days."""
    days = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    year = [month for month, n in enumerate(days) for _ in range(n)]
    return [year[t % 365] for t in range(times)]


def chain(np, a, b):
    return np.sqrt(a * a + b * b) * np.exp(-np.abs(a - b)) + np.float32(1)


def curl(a, b, half):
    return (b[1:-1, 2:] - b[1:-1, :-2]) * half - (a[2:, 1:-1] - a[:-2, 1:-1]) * half


class TaskCount:
    def __init__(self):
        self.n = 0


# Each system is a function that imports what it needs and returns its workloads by name.
# A workload returns the result to print, or None when the result is in --out.


def dask_threads(args, count):
    import dask
    import dask.array as da
    import numpy as np
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

    def number(array):
        with Counter():
            return float(array.compute())

    def save(array):
        with Counter():
            da.store([array], [create("out", array)], lock=False)

    def anomalies():
        u = read("u")
        month = np.array(months(u.shape[0]))
        found = np.unique(month)
        means = da.stack([u[month == m].mean(axis=0) for m in found])
        # Block by block: one list of indices for the whole axis makes a task for each step and chunk.
        starts = np.cumsum([0, *u.chunks[0]])
        parts = []
        for start, stop in zip(starts, starts[1:]):
            at = np.searchsorted(found, month[start:stop])
            first, last = at.min(), at.max() + 1
            part = means[first:last].rechunk((int(last - first), *u.shape[1:]))
            chunks = (int(stop - start), *u.shape[1:])
            parts.append(da.map_blocks(lambda x, m, at: x - m[at], u[start:stop], part, at=at - first, dtype=u.dtype, chunks=chunks))
        save(da.concatenate(parts))

    return {
        "quad_means": quad_means,
        "sum": lambda: number(read("u").sum(dtype="float64")),
        "mean": lambda: save(read("u").mean(axis=0)),
        "var": lambda: save(read("u").var(axis=0)),
        "argmax": lambda: save(read("u").argmax(axis=0)),
        "elementwise_chain": lambda: save(chain(da, read("a"), read("b"))),
        "rechunk": lambda: save(read("u").rechunk((-1, *COLUMN))),
        "transpose_add": lambda: save(read("a") + read("a").T),
        "matmul": lambda: save(read("A") @ read("B")),
        "cumulative_sum": lambda: save(da.cumsum(read("u"), axis=0, dtype="float32")),
        "vorticity": lambda: save(curl(read("a"), read("b"), np.float32(0.5)).rechunk(read("a").chunksize)),
        "anomalies": anomalies,
        "many_small": lambda: number(((read("tiny") * 2 + 1) ** 2).sum(dtype="float64")),
    }


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

    def number(array):
        return float(array.compute(**compute))

    def save(array):
        cubed.store([array], [create("out", array)], **compute)

    def one_sum(array):
        return number(xp.sum(array, dtype=xp.float64))

    return {
        "quad_means": quad_means,
        "sum": lambda: one_sum(read("u")),
        "mean": lambda: save(xp.mean(read("u"), axis=0)),
        "var": lambda: save(xp.var(read("u"), axis=0)),
        "argmax": lambda: save(xp.argmax(read("u"), axis=0)),
        "elementwise_chain": lambda: save(chain(xp, read("a"), read("b"))),
        "rechunk": lambda: save(read("u").rechunk((read("u").shape[0], *COLUMN))),
        "transpose_add": lambda: save(read("a") + xp.permute_dims(read("a"), (1, 0))),
        "matmul": lambda: save(xp.matmul(read("A"), read("B"))),
        "cumulative_sum": lambda: save(xp.cumulative_sum(read("u"), axis=0, dtype=xp.float32)),
        "many_small": lambda: one_sum((read("tiny") * 2 + 1) ** 2),
    }


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

    def make(name, shape, chunks, dtype):
        metadata = {
            "shape": shape,
            "data_type": np.dtype(dtype).name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, *codecs[args.codec]],
            "fill_value": 0,
        }
        target = {**spec(args.out / name), "metadata": metadata}
        return ts.open(target, context=context, create=True, delete_existing=True).result()

    def write(name, values):
        make(name, values.shape, values.shape, values.dtype).write(values).result()

    def chunks_of(array):
        return array.chunk_layout.read_chunk.shape

    def cuts(size, chunk):
        return [slice(start, min(start + chunk, size)) for start in range(0, size, chunk)]

    def for_each(kernel, items):
        count.n += len(items)
        with ThreadPoolExecutor(args.threads) as pool:
            return list(pool.map(kernel, items))

    def for_each_chunk(array, kernel):
        return for_each(kernel, list(product(*map(cuts, array.shape, chunks_of(array)))))

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

    def sum_all():
        u = read("u")
        return float(sum(for_each_chunk(u, lambda c: u[c].read().result().sum(dtype="float64"))))

    def moments(variance):
        u = read("u")
        lock, so_far = Lock(), []

        def add(chunk):
            x = u[chunk].read().result()
            n, mean = len(x), x.mean(axis=0, dtype="float64" if variance else "float32").astype("float64")
            squares = ((x - mean.astype("float32")) ** 2).sum(axis=0).astype("float64") if variance else 0.0
            with lock:
                if so_far:
                    n0, mean0, squares0 = so_far
                    apart, total = mean - mean0, n0 + n
                    squares = squares0 + squares + apart * apart * (n0 * n / total)
                    n, mean = total, mean0 + apart * (n / total)
                so_far[:] = n, mean, squares

        for_each_chunk(u, add)
        n, mean, squares = so_far
        write("out", (squares / n if variance else mean).astype("float32"))

    def argmax():
        u = read("u")
        lock, so_far = Lock(), []

        def add(chunk):
            x = u[chunk].read().result()
            at = x.argmax(axis=0)
            best, at = np.take_along_axis(x, at[None], 0)[0], at + chunk[0].start
            with lock:
                if so_far:
                    best0, at0 = so_far
                    better = (best > best0) | ((best == best0) & (at < at0))
                    best, at = np.where(better, best, best0), np.where(better, at, at0)
                so_far[:] = best, at

        for_each_chunk(u, add)
        write("out", so_far[1].astype("int64"))

    def by_tile(kernel, inputs, shrunk=0):
        arrays = [read(name) for name in inputs]
        tile = chunks_of(arrays[0])
        shape = [n - shrunk for n in arrays[0].shape]
        out = make("out", shape, tile, arrays[0].dtype.name)
        for_each_chunk(out, lambda c: out[c].write(kernel(*arrays, c)).result())

    def one_chain(a, b, c):
        return chain(np, a[c].read().result(), b[c].read().result())

    def one_sum_with_transposed(a, c):
        return a[c].read().result() + a[c[1], c[0]].read().result().T

    def one_curl(a, b, c):
        wider = tuple(slice(s.start, s.stop + 2) for s in c)
        blocks = [x[wider].read().result() for x in (a, b)]
        return curl(*blocks, np.float32(0.5))

    def one_product(a, b, c):
        total = 0
        for middle in cuts(a.shape[1], chunks_of(a)[1]):
            total = total + a[c[0], middle].read().result() @ b[middle, c[1]].read().result()
        return total

    def rechunk():
        u = read("u")
        times, ny, nx = u.shape
        out = make("out", u.shape, (times, *COLUMN), "float32")
        # Bands of latitudes whose whole time axis fits into memory twice over: the input is decoded once a band.
        band = ny // 2
        buffer = np.empty((times, band, nx), "float32")
        for south in range(0, ny, band):

            def load(c, south=south):
                buffer[c] = u[c, south : south + band].read().result()

            def save(c, south=south):
                y, x = c
                out[:, south + y.start : south + y.stop, x].write(buffer[:, y, x]).result()

            for_each(load, cuts(times, chunks_of(u)[0]))
            for_each(save, list(product(cuts(band, COLUMN[0]), cuts(nx, COLUMN[1]))))

    def cumulative_sum():
        u = read("u")
        out = make("out", u.shape, chunks_of(u), "float32")
        steps = cuts(u.shape[0], chunks_of(u)[0])
        totals = for_each(lambda c: u[c].read().result().sum(axis=0, dtype="float64"), steps)
        before = [np.zeros(u.shape[1:])]
        for total in totals[:-1]:
            before.append(before[-1] + total)

        def add(i):
            x = u[steps[i]].read().result()
            np.cumsum(x, axis=0, out=x)
            x += before[i].astype("float32")
            out[steps[i]].write(x).result()

        for_each(add, list(range(len(steps))))

    def anomalies():
        u = read("u")
        out = make("out", u.shape, chunks_of(u), "float32")
        month = np.array(months(u.shape[0]))
        sums = np.zeros((12, *u.shape[1:]))
        lock = Lock()

        def add(chunk):
            x, of = u[chunk].read().result(), month[chunk[0]]
            for m in np.unique(of):
                part = x[of == m].sum(axis=0)
                with lock:
                    sums[m] += part

        for_each_chunk(u, add)
        means = (sums / np.maximum(np.bincount(month, minlength=12), 1)[:, None, None]).astype("float32")
        for_each_chunk(u, lambda c: out[c].write(u[c].read().result() - means[month[c[0]]]).result())

    return {
        "quad_means": quad_means,
        "sum": sum_all,
        "mean": lambda: moments(False),
        "var": lambda: moments(True),
        "argmax": argmax,
        "elementwise_chain": lambda: by_tile(one_chain, "ab"),
        "rechunk": rechunk,
        "transpose_add": lambda: by_tile(one_sum_with_transposed, "a"),
        "matmul": lambda: by_tile(one_product, "AB"),
        "cumulative_sum": cumulative_sum,
        "vorticity": lambda: by_tile(one_curl, "ab", shrunk=2),
        "anomalies": anomalies,
        "many_small": many_small,
    }


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
            chunks=like.chunksize,
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
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
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
        workload = SYSTEMS[args.system](args, count).get(args.workload)
        if workload is None:
            raise SystemExit(f"{args.system} has no {args.workload}")

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
