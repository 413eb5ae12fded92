#!/usr/bin/env python3
"""Writes small Zarr arrays with zarr-python for Freestone's reader to read.

    python write_inputs.py DIR

DIR/expected.json lists them; packed-v2.zarr and packed-v3.zarr are groups that Xarray has packed. Per array:
  path, zarr_format, dtype, shape, codec
  chunks    of the chunk grid: for a sharded array these are the shards, and `inner_chunks` is given too
  n_nan     elements that are NaN; the sums below skip them
  sum       of all elements, in float64; [re, im] for complex; for bool the number of trues
  weighted  sum of element[i] * (i % 97 + 1), i the flat index in C order: finds elements in wrong places

Every run writes the same bytes, but for the time stamp in gzip's header. The values of an array are multiples of one
power of two and span so few bits that both sums are exact in float64 in any order of addition: compare with ==.
"""

import json
import sys
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

# Edge chunks on both axes: 30 = 3*8 + 6, 41 = 2*16 + 9.
SHAPE, CHUNKS = (30, 41), (8, 16)

DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 complex64 complex128".split()

# What of an array is written: the rest stays missing chunks.
EVERYTHING = ...
FIRST_CHUNKS = (slice(0, 16), slice(0, 16))


def values(name, dtype, shape):
    """Random values, seeded by the array's name so that adding an array changes no other."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    dtype = np.dtype(dtype)
    size = int(np.prod(shape))

    def draw(low, high):
        # Runs of three, or compressors would find nothing to compress and store the chunk as it is.
        return np.repeat(rng.integers(low, high, size=size // 3 + 1), 3)[:size].reshape(shape)

    if dtype.kind == "b":
        return draw(0, 2).astype(dtype)
    if dtype.kind == "c":
        return (draw(-(2**20), 2**20) / 2**8 + 1j * draw(-(2**20), 2**20) / 2**8).astype(dtype)
    if dtype.kind == "f":
        bits = 20 if dtype.itemsize == 4 else 34
        return (draw(-(2**bits), 2**bits) / 2**8).astype(dtype)
    if dtype == np.uint64:
        # The top bits, which an int64 in between would make negative.
        return draw(0, 2**20).astype(dtype) << np.uint64(44)
    if dtype == np.int64:
        return draw(-(2**34), 2**34)
    limits = np.iinfo(dtype)
    return draw(limits.min, int(limits.max) + 1).astype(dtype)


def sums(array):
    """`sum` and `weighted` as they stand in expected.json."""
    flat = np.nan_to_num(array.ravel(), nan=0)
    weights = np.arange(flat.size, dtype="float64") % 97 + 1
    if flat.dtype.kind == "c":
        return tuple([float(part.real), float(part.imag)] for part in (flat.sum(dtype="complex128"), flat @ weights))
    flat = flat.astype("float64")
    return float(flat.sum()), float(flat @ weights)


class Writer:
    def __init__(self, root):
        self.root = root
        self.expected = []

    def add(self, path, codec, *, dtype="float32", shape=SHAPE, chunks=CHUNKS, region=EVERYTHING, **options):
        """Writes one array; `options` go to zarr.create_array. What is outside `region` is never written."""
        options = {"zarr_format": 3, "compressors": None, "fill_value": 0, **options}
        source = values(path, dtype, shape)
        fill = options["fill_value"]
        # Fill null leaves missing chunks undefined; zarr-python reads them as zero.
        data = np.full(shape, 0 if fill is None else fill, dtype)
        data[region] = source[region]

        array = zarr.create_array(self.root / path, shape=shape, chunks=chunks, dtype=dtype, overwrite=True, **options)
        array[region] = source[region]
        np.testing.assert_array_equal(array[...], data, err_msg=path)

        total, weighted = sums(data)
        entry = {
            "path": path,
            "zarr_format": options["zarr_format"],
            "dtype": np.dtype(dtype).name,
            "shape": shape,
            "chunks": array.shards or array.chunks,
            "codec": codec,
            "n_nan": int(np.isnan(data).sum()),
            "sum": total,
            "weighted": weighted,
        }
        if array.shards:
            entry["inner_chunks"] = array.chunks
        self.expected.append(entry)


def write_v3(out):
    zstd = ZstdCodec(level=0)
    for dtype in DTYPES:
        out.add(f"v3/{dtype}", "zstd", dtype=dtype, compressors=zstd)

    codecs = {
        "none": None,
        "zstd-1": ZstdCodec(level=1),
        "zstd-checksum": ZstdCodec(level=1, checksum=True),
        "blosc-lz4-shuffle": BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
        "blosc-zstd-bitshuffle": BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        "gzip": GzipCodec(level=5),
        "crc32c": Crc32cCodec(),
        "zstd-crc32c": [zstd, Crc32cCodec()],
    }
    for codec, compressors in codecs.items():
        out.add(f"v3/codec-{codec}", codec, compressors=compressors)
    out.add("v3/codec-big-endian", "bytes-big", serializer=BytesCodec(endian="big"))
    out.add("v3/codec-transpose", "transpose", filters=TransposeCodec(order=(1, 0)))

    for location in ("end", "start"):
        # Written are 4 of the 6 inner chunks of shard (0, 0); the other shards are missing.
        sharded = {"compressors": zstd, "chunks": (8, 8), "shards": {"shape": (16, 24), "index_location": location}}
        out.add(f"v3/sharded-{location}", f"sharding-{location}-zstd", **sharded)
        out.add(f"v3/sharded-{location}-missing", f"sharding-{location}-zstd", region=FIRST_CHUNKS, **sharded)

    out.add("v3/zero-d", "zstd", shape=(), chunks=(), compressors=zstd)
    out.add("v3/zero-length", "zstd", shape=(0, 41), compressors=zstd)
    out.add("v3/missing-nan", "zstd", region=FIRST_CHUNKS, fill_value=float("nan"), compressors=zstd)
    out.add("v3/one-chunk-beyond-shape", "zstd", chunks=(64, 64), compressors=zstd)
    out.add("v3/four-d", "zstd", shape=(3, 5, 7, 9), chunks=(2, 2, 3, 4), compressors=zstd)
    out.add("v3/dot-separator", "zstd", chunk_key_encoding={"name": "default", "separator": "."}, compressors=zstd)


def write_v2(out):
    def add(name, codec, **options):
        out.add(f"v2/{name}", codec, zarr_format=2, **options)

    zstd = numcodecs.Zstd(level=1)
    codecs = {
        "none": None,
        "zstd": zstd,
        "blosc": numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE),
        "gzip": numcodecs.GZip(level=5),
        "zlib": numcodecs.Zlib(level=5),
    }
    for codec, compressors in codecs.items():
        add(f"codec-{codec}", codec, compressors=compressors)
    add("f-order", "zstd", order="F", compressors=zstd)
    add("big-endian", "zstd", dtype=">f4", compressors=zstd)
    add("slash-separator", "zstd", chunk_key_encoding={"name": "v2", "separator": "/"}, compressors=zstd)
    add("missing-fill-0", "zstd", region=FIRST_CHUNKS, compressors=zstd)
    add("missing-fill-null", "zstd", region=FIRST_CHUNKS, fill_value=None, compressors=zstd)


def write_packed(root):
    """Groups packed-v2.zarr and packed-v3.zarr, as Xarray packs arrays; what they hold is listed in packed-v2.txt and packed-v3.txt."""
    numbers = np.arange(12.0)
    numbers[[3, 7]] = np.nan
    encodings = {
        "scaled": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 273.15, "_FillValue": -32767},
        "bytes": {"dtype": "uint8", "_FillValue": 255},
        "unsigned": {"dtype": "int8", "_Unsigned": "true", "scale_factor": 0.5, "_FillValue": -1},
        "floats": {"dtype": "float32", "_FillValue": -9999.0},
        "doubles": {"dtype": "float64", "_FillValue": 1e20},
        "large": {"dtype": "float32", "_FillValue": np.float32(1e20)},
        "both": {"dtype": "int32", "missing_value": -7, "_FillValue": -7},
        "plain": {"dtype": "float32", "_FillValue": np.nan},
    }
    variables = {name: (("x",), numbers, {"units": "K"}, encoding) for name, encoding in encodings.items()}
    # The coordinate is packed, too.
    coordinate = ("x", np.arange(12) / 4, {"units": "m"}, {"dtype": "int16", "scale_factor": 0.25, "_FillValue": -1})
    dataset = xr.Dataset(variables, coords={"x": coordinate})
    for zarr_format in (2, 3):
        dataset.to_zarr(root / f"packed-v{zarr_format}.zarr", mode="w", zarr_format=zarr_format, consolidated=False)
        (root / f"packed-v{zarr_format}.txt").write_text("\n".join(encodings) + "\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Writer(Path(sys.argv[1]))
    write_v3(out)
    write_v2(out)
    write_packed(out.root)
    lines = ",\n".join(json.dumps(entry, allow_nan=False) for entry in out.expected)
    (out.root / "expected.json").write_text(f"[\n{lines}\n]\n")
    print(f"wrote {len(out.expected)} arrays")


if __name__ == "__main__":
    main()
