//! The rows of the memory suite: one line for each kind of computation, and one for each kind of
//! storage.
//!
//! To add a row, add a line. Inputs are square, with 2 × 2 chunks of `{c}` × `{c}` elements of 4
//! bytes.

use serde_json::{Value, json};

/// The chunk size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Size {
    /// 1 MB.
    Small,
    /// 9 MB.
    Large,
}

impl Size {
    pub const ALL: [Size; 2] = [Size::Small, Size::Large];

    /// Returns the number of elements along each axis of a chunk.
    pub fn edge(self) -> u64 {
        match self {
            Size::Small => 512,
            Size::Large => 1500,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Size::Small => "1 MB",
            Size::Large => "9 MB",
        }
    }
}

/// The contents of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Data {
    Incompressible,
    Compressible,
}

impl Data {
    pub const ALL: [Data; 2] = [Data::Incompressible, Data::Compressible];

    pub fn name(self) -> &'static str {
        match self {
            Data::Incompressible => "incompressible",
            Data::Compressible => "compressible",
        }
    }
}

/// A computation: name, expressions separated by `;`, and further arguments of `freestone compute`.
///
/// `a` and `b` are aligned `float32`, `m` has other chunks, `i` is `int32`, `v` a vector, and `s` a
/// single shard. The argument `PARALLELISM=n` sets the parallelism of the plan.
pub const KERNELS: &[(&str, &str, &str)] = &[
    ("copy", "a", ""),
    ("elementwise chain", "(a * 2 + 1) / (a * a + 3)", ""),
    ("exp, log, sin", "sin(log(exp(a)))", ""),
    ("two arrays", "hypot(a, b)", ""),
    ("three arrays", "a * b + i", ""),
    ("misaligned chunks", "a + m", ""),
    ("where", "where(a < b, a, b)", ""),
    ("comparison", "a < b", ""),
    ("cast to float64", "astype(a, 'float64')", ""),
    ("cast to uint32", "astype(i, 'uint32')", ""),
    ("cast to complex64", "exp(astype(a, 'complex64'))", ""),
    ("broadcast of a vector", "a - v", ""),
    ("broadcast of a column", "a + a[:, 5:6]", ""),
    ("broadcast_to", "broadcast_to(a[:, 5:6], [{2c}, {2c}])", ""),
    ("several outputs", "a + b; a * b", ""),
    ("sum, axis 0", "sum(a, axis=0)", ""),
    ("sum, axis 1", "sum(a, axis=1)", ""),
    ("sum of everything", "sum(a)", ""),
    ("sum in two stages", "sum(a)", "PARALLELISM=4"),
    ("sum of a shard's chunks", "sum(s, axis=0)", ""),
    ("mean, axis 0", "mean(a, axis=0)", ""),
    ("mean, axis 1", "mean(a, axis=1)", ""),
    ("mean of everything", "mean(a)", ""),
    ("means of products", "mean(a * a, axis=0); mean(a * b, axis=0)", ""),
    ("mean over misaligned chunks", "mean(a * m, axis=0)", ""),
    ("var, axis 0", "var(a, axis=0)", ""),
    ("var, axis 1", "var(a, axis=1)", ""),
    ("var in two stages", "var(a)", "PARALLELISM=4"),
    ("argmax, axis 0", "argmax(a, axis=0)", ""),
    ("argmax, axis 1", "argmax(a, axis=1)", ""),
    ("argmax of everything", "argmax(a)", ""),
    ("any, axis 0", "any(a, axis=0)", ""),
    ("any, axis 1", "any(a, axis=1)", ""),
    ("any of everything", "any(a)", ""),
    ("x[1:]", "a[1:]", ""),
    ("x[::2]", "a[::2, ::2]", ""),
    ("flip", "flip(a)", ""),
    ("transpose", "matrix_transpose(a)", ""),
    ("x + transpose", "a + matrix_transpose(a)", ""),
    ("pad", "pad(a, [[5, 5], [3, 3]])", ""),
    ("pad, reflect", "pad(a, [[5, 5], [3, 3]], mode='reflect')", ""),
    ("roll", "roll(a, 17, axis=0)", ""),
    ("concat", "concat([a, b], axis=0)", ""),
    ("stack", "stack([a, b])", ""),
    ("unstack", "unstack(u)[0]; unstack(u)[1]", ""),
    ("take", "take(a, [1, 0, {c}, {c+1}, 7, 3], axis=0)", ""),
    ("tile", "tile(a, [1, 2])", ""),
    ("repeat", "repeat(a, 2, axis=0)", ""),
    ("reshape, flat", "reshape(a, [-1])", ""),
    ("reshape, split", "reshape(a, [4, {c/2}, {2c}])", ""),
    ("diff", "diff(a, axis=0)", ""),
    ("tril", "tril(a)", ""),
    ("stencil", "a[2:] - 2 * a[1:-1] + a[:-2]", ""),
    ("mean of differences", "mean(a[1:] - a[:-1], axis=0)", ""),
    ("roll of a computed array", "roll(a + 1, 17, axis=0)", ""),
    ("pad of a computed array", "pad(a + 1, [[5, 5], [3, 3]])", ""),
    ("concat of computed arrays", "concat([a + 1, b * 2], axis=0)", ""),
    ("matmul", "matmul(a, b)", ""),
    ("matmul, transposed", "matmul(matrix_transpose(a), b)", ""),
    ("matmul of producers", "matmul(a + 1, b * 2)", ""),
    ("matmul of integers", "matmul(i[:64], i[:, :64])", ""),
    ("matmul in parts", "matmul(matrix_transpose(a[:, :64]), a[:, :64])", "PARALLELISM=4"),
    ("tensordot", "tensordot(a, b, axes=[[0], [0]])", ""),
    ("cumulative_sum, axis 0", "cumulative_sum(a, axis=0)", ""),
    ("cumulative_sum, axis 1", "cumulative_sum(a, axis=1)", ""),
    ("cumulative_sum in three stages", "cumulative_sum(a, axis=0)", "PARALLELISM=8"),
    ("cumulative_prod", "cumulative_prod(a, axis=1)", ""),
    (
        "generate",
        "a + random_uniform([{2c}, {2c}], seed=1, dtype='float32', chunks=[{c}, {c}])",
        "",
    ),
    ("rechunk to rows", "a", "--chunks {c/2},{2c}"),
    ("rechunk to columns", "a", "--chunks {2c},{c/2}"),
    ("rechunk, merging", "a", "--chunks {2c},{c}"),
    ("sharded read", "s[1:]", ""),
    ("sharded write", "a", "--chunks {c/2},{c/2} --shards {c},{c}"),
    ("sharded write, many chunks", "a", "--chunks {c/4},{c/4} --shards {c},{c}"),
    ("sharded write of a mean", "mean(a, axis=0)", "--chunks {c/4} --shards {c}"),
];

/// An operation on stored chunks of one codec: name, expression, and whether the result has the
/// same codec.
pub const PATHS: &[(&str, &str, bool)] = &[
    ("read", "sum(a, axis=0)", false),
    ("partial read", "a[5:{c+9}, 7:{c+3}]", false),
    ("write", "p", true),
];

/// Codecs with a name: read, read partially, and written.
pub const CODECS: &[&str] = &[
    "none",
    "zstd:1",
    "zstd:3",
    "zstd:19",
    "lz4",
    "gzip:1",
    "gzip:6",
    "none+crc32c",
    "zstd:1+crc32c",
    "zstd:3+crc32c",
    "zstd:19+crc32c",
    "lz4+crc32c",
    "gzip:6+crc32c",
];

/// Formats of other writers: name, whether it is Zarr 2, and the codecs.
pub fn formats() -> Vec<(&'static str, bool, Vec<Value>)> {
    let bytes = |endian: &str| json!({"name": "bytes", "configuration": {"endian": endian}});
    let (little, big) = (bytes("little"), bytes("big"));
    let transpose = json!({"name": "transpose", "configuration": {"order": [1, 0]}});
    let zstd = json!({"name": "zstd", "configuration": {"level": 1, "checksum": true}});
    let crc32c = json!({"name": "crc32c"});
    let blosc = |cname: &str, clevel: u32, shuffle: &str| {
        let configuration = json!({
            "cname": cname,
            "clevel": clevel,
            "shuffle": shuffle,
            "typesize": 4,
            "blocksize": 0,
        });
        json!({"name": "blosc", "configuration": configuration})
    };
    vec![
        ("big-endian", false, vec![big.clone()]),
        ("big-endian, zstd", false, vec![big.clone(), zstd.clone()]),
        ("big-endian, lz4, crc32c", false, vec![big.clone(), blosc("lz4", 5, "shuffle"), crc32c]),
        ("transposed", false, vec![transpose.clone(), little.clone()]),
        ("transposed, big-endian, zstd", false, vec![transpose.clone(), big.clone(), zstd.clone()]),
        (
            "transposed, lz4",
            false,
            vec![transpose.clone(), little.clone(), blosc("lz4", 5, "shuffle")],
        ),
        ("blosc, zstd, bitshuffle", false, vec![little.clone(), blosc("zstd", 5, "bitshuffle")]),
        ("blosc, lz4hc 9", false, vec![little.clone(), blosc("lz4hc", 9, "shuffle")]),
        (
            "blosc, blosclz, unshuffled",
            false,
            vec![little.clone(), blosc("blosclz", 5, "noshuffle")],
        ),
        ("lz4 in zstd", false, vec![little.clone(), blosc("lz4", 5, "shuffle"), zstd.clone()]),
        ("Zarr 2, order F", true, vec![transpose.clone(), little.clone()]),
        (
            "Zarr 2, order F, zstd",
            true,
            vec![
                transpose.clone(),
                little.clone(),
                json!({"name": "zstd", "configuration": {"level": 1, "checksum": false}}),
            ],
        ),
        ("Zarr 2, order F, lz4", true, vec![transpose, little, blosc("lz4", 5, "shuffle")]),
        (
            "Zarr 2, big-endian, zlib",
            true,
            vec![big, json!({"name": "numcodecs.zlib", "configuration": {"level": 1}})],
        ),
    ]
}

/// A row of the table, for one size and one kind of data.
#[derive(Clone, Debug)]
pub struct Row {
    /// The computation or the operation on chunks.
    pub what: String,
    /// The codec or format of the input; `http …` reads over the network.
    pub stored: String,
    /// The codec of the output.
    pub written: String,
    pub expressions: Vec<String>,
    pub arguments: Vec<String>,
    pub parallelism: u64,
    pub size: Size,
    pub data: Data,
}

impl Row {
    /// Returns the row's label in the table.
    pub fn name(&self) -> String {
        format!(
            "{}, {}, {} chunks, {} data",
            self.what,
            self.codec(),
            self.size.name(),
            self.data.name()
        )
    }

    /// Returns true if the projection must be close to the measurement.
    pub fn is_tight(&self) -> bool {
        self.size == Size::Large && self.data == Data::Incompressible
    }

    pub fn is_over_network(&self) -> bool {
        self.stored.starts_with("http")
    }

    pub fn codec(&self) -> &str {
        if self.what == "write" { &self.written } else { &self.stored }
    }
}

fn row(
    what: &str,
    [stored, written]: [&str; 2],
    [expressions, arguments]: [&str; 2],
    size: Size,
    data: Data,
) -> Row {
    let c = size.edge();
    let numbers = [
        ("{c}", c),
        ("{2c}", 2 * c),
        ("{c/2}", c / 2),
        ("{c/4}", c / 4),
        ("{c+1}", c + 1),
        ("{c+3}", c + 3),
        ("{c+9}", c + 9),
    ];
    let fill = |text: &str| {
        numbers.iter().fold(text.to_owned(), |text, (name, n)| text.replace(name, &n.to_string()))
    };
    let (parallelism, arguments): (Vec<String>, Vec<String>) =
        arguments.split_whitespace().map(fill).partition(|a| a.starts_with("PARALLELISM="));
    Row {
        what: what.to_owned(),
        stored: stored.to_owned(),
        written: written.to_owned(),
        expressions: expressions.split(';').map(|e| fill(e.trim())).collect(),
        arguments,
        parallelism: parallelism.first().map_or(1, |p| p["PARALLELISM=".len()..].parse().unwrap()),
        size,
        data,
    }
}

/// Returns the rows: all of `kernels` with zstd, and all of `paths` with all codecs. With
/// `everything`, also the kernels with all codecs.
pub fn rows(everything: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for size in Size::ALL {
        for data in Data::ALL {
            let codecs: &[&str] = if everything { CODECS } else { &["zstd:1"] };
            for codec in codecs {
                rows.extend(KERNELS.iter().map(|(what, expression, arguments)| {
                    row(what, [codec, codec], [expression, arguments], size, data)
                }));
            }
            for (what, expression, writes) in PATHS {
                // Codec levels that are slow to write are read from the output of one row.
                rows.extend(CODECS.iter().map(|codec| {
                    let codecs = if *writes { ["none", codec] } else { [codec, "none"] };
                    row(what, codecs, [expression, ""], size, data)
                }));
                if !writes {
                    rows.extend(formats().iter().map(|(format, ..)| {
                        row(what, [format, "none"], [expression, ""], size, data)
                    }));
                    rows.extend(
                        ["http none", "http zstd:1"]
                            .map(|codec| row(what, [codec, "none"], [expression, ""], size, data)),
                    );
                }
            }
        }
    }
    if !everything {
        // Compressible data are far below the bound; one chunk size is enough.
        rows.retain(|r| r.data == Data::Incompressible || r.size == Size::Small);
    }
    rows
}

/// Returns the number of rows, from the lengths of the lists.
pub fn n_rows(everything: bool) -> usize {
    let read = PATHS.iter().filter(|(.., writes)| !writes).count();
    let paths = PATHS.len() * CODECS.len() + read * (formats().len() + 2);
    // Without `everything`, large compressible chunks are omitted.
    if everything {
        4 * (KERNELS.len() * CODECS.len() + paths)
    } else {
        3 * (KERNELS.len() + paths)
    }
}
