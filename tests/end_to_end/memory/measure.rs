//! The measurement of one row in a new process: inputs, run, and resource use.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use freestone::{Encoding, Serial, Spec, Target};
use freestone_engine::spec::DEFAULT_RESERVED_MEM;
use serde_json::{Value, json};

use super::table::{Data, Row, Size, formats};
use crate::support::{BINARY, Place, chunk_count, document, spec_in};

/// Folders of inputs and results, and a server of the inputs.
pub struct Bench {
    place: Place,
    made: Mutex<HashMap<String, Arc<Mutex<bool>>>>,
    port: u16,
    runs: AtomicUsize,
}

/// The memory use of a row, in bytes.
#[derive(Clone, Debug)]
pub struct Measured {
    pub projected: u64,
    pub peak: u64,
    pub bytes_read: u64,
    /// Projected and allocated bytes of the task buffers of each stage.
    pub stages: Vec<(String, u64, u64)>,
}

impl Measured {
    /// Parses a report of `--json`.
    pub fn new(report: &Value) -> Measured {
        let bytes = |v: &Value| v.as_u64().unwrap_or_else(|| panic!("{report}"));
        let stages = report["stages"].as_array().unwrap().iter();
        Measured {
            projected: bytes(&report["projected_mem"]),
            peak: bytes(&report["peak_mem"]),
            bytes_read: bytes(&report["bytes_read"]),
            stages: stages
                .map(|s| {
                    (
                        s["name"].as_str().unwrap().to_owned(),
                        bytes(&s["projected_mem"]) - DEFAULT_RESERVED_MEM,
                        bytes(&s["peak_mem"]),
                    )
                })
                .collect(),
        }
    }

    /// Returns the ratio of a task's projected to its measured bytes.
    pub fn looseness(&self, idle: u64) -> f64 {
        (self.projected - DEFAULT_RESERVED_MEM) as f64
            / self.peak.saturating_sub(idle).max(1) as f64
    }
}

impl Bench {
    pub fn new() -> Bench {
        let place = Place::new();
        let port = serve_files(place.folder.path().to_owned());
        Bench { place, made: Mutex::default(), port, runs: AtomicUsize::new(0) }
    }

    pub fn at(&self, name: &str) -> String {
        self.place.at(name)
    }

    /// Returns the command for a row and its output location, after creating the inputs. `prepare`
    /// may be a shell script that ends by executing its arguments.
    pub fn command(&self, row: &Row, executor: &str, shell: Option<&str>) -> (Command, String) {
        let out = self.place.at(&format!("out-{}", self.runs.fetch_add(1, Ordering::Relaxed)));
        let mut arguments = vec!["compute".to_owned()];
        arguments.extend(row.expressions.iter().cloned());
        for name in ["a", "b", "m", "i", "v", "s", "u", "p"] {
            if row.expressions.iter().any(|e| {
                e.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name)
            }) {
                arguments.extend(["-i".to_owned(), format!("{name}={}", self.input(name, row))]);
            }
        }
        for i in 0..row.expressions.len() {
            arguments.extend(["-o".to_owned(), format!("{out}/{i}")]);
        }
        arguments.extend(row.arguments.iter().cloned());
        let limits = [
            "--executor",
            executor,
            "--threads",
            "1",
            "--json",
            "--codec",
            &row.written,
            "--local-mem",
            "2GB",
            "--work-dir",
        ];
        arguments.extend(limits.map(str::to_owned));
        arguments.push(format!("{out}-work"));
        let mut command = command(shell, Path::new(BINARY));
        command.env("FREESTONE_PARALLELISM", row.parallelism.to_string()).args(arguments);
        (command, out)
    }

    /// Runs a row in a new process, and removes its output.
    pub fn run(&self, row: &Row, shell: Option<&str>) -> Output {
        let (mut command, out) = self.command(row, "serial", shell);
        let run = command.output().unwrap();
        remove(&out);
        run
    }

    /// Returns the projection of a row's plan, without a run.
    pub fn projected(&self, row: &Row) -> u64 {
        let run = self.command(row, "serial", None).0.arg("--plan-only").output().unwrap();
        let plan: Value = serde_json::from_slice(&run.stdout)
            .unwrap_or_else(|_| panic!("{}: {}", row.name(), String::from_utf8_lossy(&run.stderr)));
        plan["projected_mem"].as_u64().unwrap()
    }

    pub fn measure(&self, row: &Row) -> Result<Measured, String> {
        measured(&row.name(), &self.run(row, None))
    }

    /// Returns the peak memory of the program for a minimal plan.
    pub fn idle(&self) -> u64 {
        let (tiny, out) = (self.at("tiny"), self.at("tiny-out"));
        store(
            &freestone::full([4], 1.0, freestone::DType::Float32, [4]),
            &tiny,
            "none",
            &self.place.spec(),
        );
        let input = format!("x={tiny}");
        let arguments = [
            "compute",
            "sum(x)",
            "-i",
            &input,
            "-o",
            &out,
            "--executor",
            "serial",
            "--threads",
            "1",
            "--json",
            "--work-dir",
            &self.at("tiny-work"),
        ];
        measured("idle", &command(None, Path::new(BINARY)).args(arguments).output().unwrap())
            .unwrap()
            .peak
    }

    /// Returns the input array of a row, which is created at first use.
    pub fn input(&self, name: &str, row: &Row) -> String {
        let (network, stored) = row
            .stored
            .strip_prefix("http ")
            .map_or((false, row.stored.as_str()), |codec| (true, codec));
        // The source of a codec's copy is not stored in that codec.
        let (source, stored) = if name == "p" { ("a", "none") } else { (name, stored) };
        let folder = format!(
            "{source}-{}-{}-{}",
            row.size.edge(),
            row.data.name(),
            stored.replace([':', '+', ',', ' '], "-")
        );
        self.once(&folder, || self.make(source, stored, row.size, row.data, &self.at(&folder)));
        if network { format!("http://127.0.0.1:{}/{folder}", self.port) } else { self.at(&folder) }
    }

    fn once(&self, name: &str, make: impl FnOnce()) {
        let lock = Arc::clone(self.made.lock().unwrap().entry(name.to_owned()).or_default());
        let mut made = lock.lock().unwrap();
        if !*made {
            make();
            *made = true;
        }
    }

    fn make(&self, name: &str, stored: &str, size: Size, data: Data, to: &str) {
        let c = size.edge();
        let raw = format!("{name}-{c}-{}-raw", data.name());
        let shape: Vec<u64> = match name {
            "v" => vec![2 * c],
            "u" => vec![2, c, c],
            _ => vec![2 * c, 2 * c],
        };
        let chunks: Vec<u64> = match name {
            "v" => vec![c],
            "u" => vec![1, c, c],
            "m" => vec![c * 3 / 4, c * 5 / 4],
            _ => vec![c, c],
        };
        let dtype = if name == "i" { "int32" } else { "float32" };
        self.once(&raw, || {
            write_raw(
                Path::new(&self.at(&raw)),
                [&shape, &chunks],
                dtype,
                data,
                name.as_bytes()[0].into(),
            )
        });
        let array = freestone::open(self.at(&raw)).unwrap();
        let spec = Spec { allowed_mem: 2_000_000_000, ..spec_in(&self.at(&format!("{raw}-work"))) };
        if name == "s" {
            let target = Target::array(&array, to)
                .chunks(&chunks)
                .shards(&shape)
                .codec(stored.parse::<Encoding>().unwrap());
            freestone::run(&freestone::plan(&[target], &spec).unwrap(), &spec, &Serial).unwrap();
            return;
        }
        let Some((_, zarr_2, codecs)) =
            formats().into_iter().find(|(format, ..)| *format == stored)
        else {
            return store(&array, to, stored, &spec);
        };
        // The output is an array of another writer.
        fs::create_dir_all(to).unwrap();
        let mut document = document(&shape, &chunks, dtype);
        document["codecs"] = json!(codecs);
        fs::write(format!("{to}/zarr.json"), document.to_string()).unwrap();
        let whole: Vec<std::ops::Range<u64>> = shape.iter().map(|n| 0..*n).collect();
        let planned = freestone::plan(&[Target::array(&array, to).region(&whole)], &spec).unwrap();
        freestone::run(&planned, &spec, &Serial).unwrap();
        if zarr_2 {
            to_zarr_2(Path::new(to), &shape, &chunks, &codecs);
        }
    }
}

/// Removes the output of a command.
pub fn remove(out: &str) {
    for folder in [out.to_owned(), format!("{out}-work")] {
        let _ = fs::remove_dir_all(folder);
    }
}

fn store(array: &freestone::Array, to: &str, codec: &str, spec: &Spec) {
    let target = Target::array(array, to).codec(codec.parse::<Encoding>().unwrap());
    freestone::run(&freestone::plan(&[target], spec).unwrap(), spec, &Serial).unwrap();
}

/// Returns a command without inherited settings.
pub fn command(shell: Option<&str>, program: &Path) -> Command {
    let mut command = match shell {
        Some(_) => Command::new("sh"),
        None => Command::new(program),
    };
    if let Some(script) = shell {
        command.args(["-c", script]).arg(program);
    }
    std::env::vars().filter(|(name, _)| name.starts_with("FREESTONE_")).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    command
}

/// Parses the report of a run, or its error.
pub fn measured(what: &str, run: &Output) -> Result<Measured, String> {
    let said = String::from_utf8_lossy(&run.stdout);
    match said.lines().find(|l| l.starts_with('{')) {
        Some(report) if run.status.success() => {
            Ok(Measured::new(&serde_json::from_str(report).unwrap()))
        }
        _ => {
            Err(format!("{what}: {:?} {said} {}", run.status, String::from_utf8_lossy(&run.stderr)))
        }
    }
}

/// Writes an array of plain bytes without code of the library.
fn write_raw(folder: &Path, [shape, chunks]: [&[u64]; 2], dtype: &str, data: Data, seed: u64) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("zarr.json"), document(shape, chunks, dtype).to_string()).unwrap();
    let elements = chunks.iter().product::<u64>() as usize;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    };
    let counts: Vec<u64> = shape.iter().zip(chunks).map(|(n, c)| n.div_ceil(*c)).collect();
    for number in 0..chunk_count(shape, chunks) {
        let mut bytes = Vec::with_capacity(4 * elements);
        for i in 0..elements {
            let word = match data {
                // Clears the exponent's highest bit, so that all numbers are finite and below 2.
                Data::Incompressible if dtype == "float32" => next() & 0xbfff_ffff,
                Data::Incompressible => next(),
                Data::Compressible if dtype == "float32" => ((i / 4096 + 1) as f32).to_bits(),
                Data::Compressible => (i / 4096 + 1) as u32,
            };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let at = crate::support::unravel(number, &counts);
        let path = at.iter().fold(folder.join("c"), |path, i| path.join(i.to_string()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Converts the metadata and keys to Zarr 2.
fn to_zarr_2(folder: &Path, shape: &[u64], chunks: &[u64], codecs: &[Value]) {
    let has = |name: &str| codecs.iter().find(|c| c["name"] == name);
    let compressor = codecs.iter().find_map(|c| match c["name"].as_str()? {
        "zstd" => Some(json!({"id": "zstd", "level": 1})),
        "numcodecs.zlib" => Some(json!({"id": "zlib", "level": 1})),
        "blosc" => {
            Some(json!({"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}))
        }
        _ => None,
    });
    let order = if has("transpose").is_some() { "F" } else { "C" };
    let dtype = if has("bytes").is_some_and(|b| b["configuration"]["endian"] == "big") {
        ">f4"
    } else {
        "<f4"
    };
    let document = json!({
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunks,
        "dtype": dtype,
        "fill_value": 0.0,
        "order": order,
        "filters": null,
        "compressor": compressor,
    });
    fs::write(folder.join(".zarray"), document.to_string()).unwrap();
    fs::remove_file(folder.join("zarr.json")).unwrap();
    let counts: Vec<u64> = shape.iter().zip(chunks).map(|(n, c)| n.div_ceil(*c)).collect();
    for number in 0..chunk_count(shape, chunks) {
        let at: Vec<String> =
            crate::support::unravel(number, &counts).iter().map(u64::to_string).collect();
        fs::rename(folder.join("c").join(at.join("/")), folder.join(at.join("."))).unwrap();
    }
    fs::remove_dir_all(folder.join("c")).unwrap();
}

/// Serves a folder's files until the program ends. Returns the port.
fn serve_files(folder: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            std::thread::spawn(move || answer(stream, &folder));
        }
    });
    port
}

fn answer(mut stream: TcpStream, folder: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    // Skips the headers, which end with an empty line.
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
    match fs::File::open(folder.join(path)).and_then(|f| Ok((f.metadata()?, f))) {
        Ok((metadata, file)) if metadata.is_file() => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                metadata.len()
            )?;
            std::io::copy(&mut file.take(metadata.len()), &mut stream).map(drop)
        }
        _ => write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
    }
}
