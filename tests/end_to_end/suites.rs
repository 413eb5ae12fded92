//! Tests that need more than a folder: zarr-python's files, a full disk, a memory limit, an object
//! store. CI sets these up and runs each group of tests by the prefix of its names.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use freestone::{
    Array, CodecName, DType, Error, ExitCode, Processes, Serial, Spec, Target, Threads,
    WORKER_ARGUMENT,
};
use freestone_engine::driver::RunError;
use freestone_engine::executor::Executor;
use freestone_engine::kernels::dtype::{Complex128, Kind};
use freestone_engine::storage::StorageError;
use freestone_engine::task::FailureKind;
use serde_json::Value;

use crate::support::{BINARY, Place, WINDS_V3, spec_in};

pub fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: these tests are run by .ci/run"))
}

// Files that zarr-python wrote.

fn close(found: f64, expect: f64) -> bool {
    found == expect || (found - expect).abs() <= 1e-12 * expect.abs()
}

/// Returns the sum and the weighted sum of all values except NaN, by real and imaginary parts.
fn sums(array: &Array, spec: &Spec) -> [Complex128; 2] {
    let values = freestone::compute::<Complex128>(&array.astype(DType::Complex128), spec).unwrap();
    let mut sums = [Complex128::default(); 2];
    for (i, x) in values.iter().enumerate().filter(|(_, x)| !x.re.is_nan()) {
        sums[0] += x;
        sums[1] += x * (i % 97 + 1) as f64;
    }
    sums
}

#[test]
#[ignore = "needs files of zarr-python: run by .ci/run"]
fn interop_reads_what_zarr_python_wrote() {
    let folder = variable("FREESTONE_INTEROP");
    let place = Place::new();
    let listed: Vec<Value> =
        serde_json::from_slice(&fs::read(format!("{folder}/expected.json")).unwrap()).unwrap();
    assert!(listed.len() > 30, "only {} arrays are listed", listed.len());
    for expect in &listed {
        let path = expect["path"].as_str().unwrap();
        let array =
            freestone::open(format!("{folder}/{path}")).unwrap_or_else(|e| panic!("{path}: {e}"));
        let numbers = |v: &Value| -> Vec<u64> {
            v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
        };
        assert_eq!(array.shape().unwrap(), numbers(&expect["shape"]), "{path}");
        assert_eq!(array.dtype().unwrap().name(), expect["dtype"], "{path}");
        let complex = |v: &Value| match v.as_array() {
            Some(parts) => Complex128::new(parts[0].as_f64().unwrap(), parts[1].as_f64().unwrap()),
            None => Complex128::new(v.as_f64().unwrap(), 0.0),
        };
        let wanted = [complex(&expect["sum"]), complex(&expect["weighted"])];
        let found = sums(&array, &place.spec());
        for (f, w) in found.iter().zip(wanted) {
            assert!(close(f.re, w.re) && close(f.im, w.im), "{path}: {found:?}, not {wanted:?}");
        }
        // The library's own reduction, chunk by chunk.
        if expect["n_nan"] == 0 && array.dtype().unwrap().kind() != Kind::Complex {
            let sum = array.astype(DType::Float64).sum(());
            let sum = freestone::compute::<f64>(&sum, &place.spec()).unwrap().sum();
            assert!(close(sum, wanted[0].re), "{path}: {sum}");
        }
    }
    println!("{} arrays", listed.len());
}

/// The inputs of `read_outputs.py`: numbers in C order in all supported formats, and the winds,
/// stored in regions.
#[test]
#[ignore = "zarr-python reads what it writes: run by .ci/run"]
fn interop_writes_for_zarr_python() {
    let (group, place) = (format!("{}/outputs.zarr", variable("FREESTONE_INTEROP")), Place::new());
    let run = |target: Target| {
        freestone::run(
            &freestone::plan(&[target], &place.spec()).unwrap(),
            &place.spec(),
            &Threads::new(2),
        )
        .unwrap()
    };
    let numbers =
        ndarray::Array::from_shape_fn(ndarray::IxDyn(&[30, 41]), |i| (41 * i[0] + i[1]) as f32);
    let numbers = freestone::asarray(&numbers).with_dims(["y", "x"]);
    let target =
        |name: &str| Target::in_group(&numbers, &group, name).chunks([8, 8]).overwrite(true);
    for codec in ["none", "lz4", "zstd:5+crc32c", "gzip:1", "none+crc32c"] {
        let encoding: freestone::Encoding = codec.parse().unwrap();
        let name = codec.replace([':', '+'], "-");
        run(target(&name).codec(encoding));
        run(target(&format!("shards-{name}")).shards([16, 24]).codec(encoding));
    }
    freestone::create(&[target("regions").shards([8, 16])], &place.spec()).unwrap();
    for rows in [0..16, 16..30] {
        let part = numbers.slice(rows.start..rows.end, 0);
        run(Target::in_group(&part, &group, "regions")
            .region(&[rows.start as u64..rows.end as u64, 0..41]));
    }
    let u = freestone::open(format!("{WINDS_V3}/u")).unwrap();
    freestone::create(
        &[Target::in_group(&u, &group, "u")
            .chunks([1, 73, 144])
            .overwrite(true)
            .consolidated(true)],
        &place.spec(),
    )
    .unwrap();
    for months in [0..7, 7..12] {
        run(Target::in_group(&u.slice(months.start..months.end, 0), &group, "u").region_auto());
    }
    // Last, by a run without consolidated metadata.
    run(target("last"));
}

// A disk that runs full.

/// Returns 5.8 MB of incompressible data.
fn too_large(chunk: u64) -> Array {
    freestone::random_uniform([1200, 1200], 0.0, 1.0, 7, DType::Float32, [chunk, chunk])
}

fn is_no_space(error: &Error) -> bool {
    let Error::Run(error) = error else { return false };
    match error.cause() {
        RunError::Task { failure, .. } => failure.kind == FailureKind::NoSpace,
        RunError::Work(StorageError::NoSpace { .. }) => true,
        _ => false,
    }
}

fn emptied(folder: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
    }
}

#[track_caller]
fn check_full(output: &str, work_dir: &str, array: &Array, executor: &dyn Executor) {
    let spec = spec_in(work_dir);
    let planned =
        freestone::plan(&[Target::array(array, output).codec(CodecName::None)], &spec).unwrap();
    let error = freestone::run(&planned, &spec, executor).unwrap_err();
    assert!(is_no_space(&error), "{error:?}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Failed);
    assert!(freestone::open(output).is_err(), "nothing is published");
}

#[test]
#[ignore = "needs a small disk: run by .ci/run"]
fn disk_full() {
    let (small, place) = (variable("FREESTONE_SMALL_DISK"), Place::new());
    let output = format!("{small}/out");
    check_full(&output, &place.at("work"), &too_large(100), &Threads::new(2));
    // After space is freed, the partial output is still no array, and does not block another run.
    let less = too_large(100).slice(..200, 0);
    assert!(freestone::open(&output).is_err());
    let planned = freestone::plan(&[Target::array(&less, &output)], &place.spec()).unwrap();
    freestone::run(&planned, &place.spec(), &Serial).unwrap();
    assert!(freestone::open(&output).is_ok());
    emptied(&small);

    // The intermediate of a rechunk does not fit in the work directory. (Threads would keep it in
    // memory.)
    let rechunked = too_large(100).rechunk([1200, 50]);
    check_full(
        &place.at("out"),
        &format!("{small}/work"),
        &(&rechunked * 2.0),
        &crate::support::processes(2),
    );
    assert!(!Path::new(&place.at("out/zarr.json")).exists());
    emptied(&small);

    // The plan itself does not fit.
    fs::write(format!("{small}/ballast"), vec![1; 8 << 20]).unwrap_err();
    check_full(&place.at("out"), &format!("{small}/work"), &too_large(100), &Threads::new(2));
    assert!(!Path::new(&place.at("out/zarr.json")).exists());
    emptied(&small);
}

// A memory limit that kills.

/// A child of the writable cgroup, with a memory limit.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new(name: &str, limit: u64) -> Cgroup {
        let folder = PathBuf::from(variable("FREESTONE_CGROUP")).join(name);
        fs::create_dir(&folder).unwrap();
        let version_1 = folder.join("memory.limit_in_bytes");
        let limits = if version_1.exists() { version_1 } else { folder.join("memory.max") };
        fs::write(limits, limit.to_string()).unwrap();
        // Swap would hide an excess.
        for (file, value) in
            [("memory.swap.max", "0"), ("memory.swappiness", "0"), ("memory.oom.group", "0")]
        {
            if folder.join(file).exists() {
                fs::write(folder.join(file), value).unwrap();
            }
        }
        Cgroup(folder)
    }

    /// Returns a shell script that enters the cgroup and executes the command.
    pub fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

const ALLOWED: &str = "100MB";

fn rechunk(place: &Place, output: &str, cgroup: &Cgroup) -> Output {
    let arguments = [
        "rechunk",
        &place.at("in"),
        &place.at(output),
        "--chunks",
        "4096,256",
        "--codec",
        "none",
        "--allowed-mem",
        ALLOWED,
    ];
    // By default the command would read the limit and refuse. Here the limit must be enforced by
    // the kernel.
    let limits = [
        "--work-dir",
        &place.at("work"),
        "--executor",
        "serial",
        "--threads",
        "1",
        "--local-mem",
        ALLOWED,
    ];
    Command::new("sh")
        .args(["-c", &cgroup.enter(), BINARY])
        .args(arguments)
        .args(limits)
        .output()
        .unwrap()
}

#[test]
#[ignore = "needs a memory cgroup: run by .ci/run"]
fn cgroup_bounds_hold_at_the_projection() {
    let place = Place::new();
    let source = freestone::random_uniform([4096, 2048], 0.0, 1.0, 3, DType::Float32, [1024, 2048]);
    let planned = freestone::plan(
        &[Target::array(&source, place.at("in")).codec(CodecName::None)],
        &place.spec(),
    )
    .unwrap();
    freestone::run(&planned, &place.spec(), &Serial).unwrap();

    // The plan that the command will create.
    let stored = freestone::open(place.at("in")).unwrap().rechunk([4096, 256]);
    let target =
        Target::array(&stored, place.at("limited")).chunks([4096, 256]).codec(CodecName::None);
    let spec = Spec {
        parallelism: 1,
        threads: 1,
        allowed_mem: freestone::parse_size(ALLOWED).unwrap(),
        ..place.spec()
    };
    let projected = freestone::plan(&[target], &spec).unwrap().finalized().projected_mem();
    assert!(projected > 25_000_000, "{projected}");

    let run = rechunk(&place, "limited", &Cgroup::new("limited", projected));
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{:?} {text}", run.status);
    assert!(freestone::open(place.at("limited")).is_ok());

    // The limit is effective: half of the run's memory is not enough.
    let peak = text
        .split("peak memory ")
        .nth(1)
        .and_then(|t| t.split(" measured").next())
        .unwrap_or_else(|| panic!("{text}"));
    let peak = freestone::parse_size(peak).unwrap();
    assert!(peak <= projected, "measured {peak}, projected {projected}");
    let run = rechunk(&place, "killed", &Cgroup::new("half", peak / 2));
    assert!(
        run.status.signal() == Some(9),
        "{:?}: a limit of {} should have killed it",
        run.status,
        peak / 2
    );
    assert!(freestone::open(place.at("killed")).is_err(), "a killed run publishes nothing");
}

#[test]
#[ignore = "needs a memory cgroup: run by .ci/run"]
fn cgroup_bounds_hold_for_workers() {
    let place = Place::new();
    let targets = means(&place.at("means"));
    let planned = freestone::plan(&targets, &place.spec()).unwrap();
    // Each worker is one process with one task: reserved memory and the task's projection.
    let cgroup = Cgroup::new("worker", planned.finalized().projected_mem());
    let worker = Processes::new(
        1,
        "sh",
        ["-c".to_owned(), cgroup.enter(), BINARY.to_owned(), WORKER_ARGUMENT.to_owned()],
    );
    let report = freestone::run(&planned, &place.spec(), &worker).unwrap();
    assert_eq!(report.retries, 0, "no worker was killed");
    assert!(
        report.worker_peak_bytes.is_some_and(|b| b <= planned.finalized().projected_mem()),
        "{report:?}"
    );
}

fn means(output: &str) -> Vec<Target> {
    let [u, v] = ["u", "v"].map(|name| freestone::open(format!("{WINDS_V3}/{name}")).unwrap());
    [("uu", &u * &u), ("uv", &u * &v), ("vv", &v * &v)]
        .iter()
        .map(|(name, x)| Target::in_group(&x.mean(0), output, name))
        .collect()
}

// An S3 server.

fn stored(target: Target, spec: &Spec) -> Result<(), Error> {
    freestone::run(&freestone::plan(&[target], spec)?, spec, &Threads::new(2)).map(drop)
}

fn values(location: &str, spec: &Spec) -> ndarray::ArrayD<f32> {
    freestone::compute::<f32>(&freestone::open(location).unwrap(), spec).unwrap()
}

#[test]
#[ignore = "needs an object store: run by .ci/run"]
fn store_round_trip() {
    let (root, place) = (variable("FREESTONE_STORE"), Place::new());
    freestone_engine::storage::conformance::check(
        &*freestone::Stores::default().open(&root).unwrap(),
        "conformance",
    );
    let source = format!("{WINDS_V3}/u");
    let u = freestone::open(&source).unwrap().rechunk([12, 10, 20]);
    stored(Target::array(&u, format!("{root}/u")), &place.spec()).unwrap();
    assert_eq!(values(&format!("{root}/u"), &place.spec()), values(&source, &place.spec()));

    // From the store to the store with the work directory there: in two stages, on threads and
    // processes.
    let spec = Spec { work_dir: format!("{root}/work"), ..place.spec() };
    let stored_u = freestone::open(format!("{root}/u")).unwrap();
    let doubled = &stored_u.rechunk([3, 37, 72]) * 2.0;
    stored(Target::array(&doubled, format!("{root}/doubled")), &spec).unwrap();
    assert_eq!(
        values(&format!("{root}/doubled"), &place.spec()),
        values(&source, &place.spec()) * 2.0
    );

    for (name, executor) in [("threads", None), ("processes", Some(crate::support::processes(2)))] {
        let group = format!("{root}/means-{name}.zarr");
        let planned = freestone::plan(&means(&group), &spec).unwrap();
        match executor {
            Some(processes) => freestone::run(&planned, &spec, &processes).unwrap(),
            None => freestone::run(&planned, &spec, &Threads::new(2)).unwrap(),
        };
        let local = place.at(&format!("means-{name}.zarr"));
        let planned = freestone::plan(&means(&local), &place.spec()).unwrap();
        freestone::run(&planned, &place.spec(), &Threads::new(2)).unwrap();
        for mean in ["uu", "uv", "vv"] {
            assert_eq!(
                values(&format!("{group}/{mean}"), &place.spec()),
                values(&format!("{local}/{mean}"), &place.spec()),
                "{name}: {mean}"
            );
        }
    }
}

#[test]
#[ignore = "needs an object store: run by .ci/run"]
fn store_conflicts_and_missing_objects() {
    let (root, place) = (variable("FREESTONE_STORE"), Place::new());
    let target = |location: &str| {
        Target::array(&freestone::open(format!("{WINDS_V3}/u")).unwrap(), location)
    };
    stored(target(&format!("{root}/taken")), &place.spec()).unwrap();
    let error = stored(target(&format!("{root}/taken")), &place.spec()).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Conflict, "{error}");
    stored(target(&format!("{root}/taken")).overwrite(true), &place.spec()).unwrap();
    assert!(freestone::open(format!("{root}/nothing")).is_err());

    let scheme = root.split_once("://").unwrap().0;
    let missing = format!("{scheme}://freestone-no-such-bucket/u");
    assert!(freestone::open(&missing).is_err());
    let error = stored(target(&missing), &place.spec())
        .expect_err("what is written into no bucket is lost");
    assert!(error.to_string().contains("freestone-no-such-bucket"), "{error}");
}

/// The server of the store also answers plain requests, with ranges, as for a public bucket.
#[test]
#[ignore = "needs an HTTP server: run by .ci/run"]
fn http_reads_ranges_and_shards() {
    let (root, place) = (variable("FREESTONE_STORE"), Place::new());
    let public = variable("FREESTONE_HTTP");
    let source = format!("{WINDS_V3}/u");
    let u = freestone::open(&source).unwrap();
    let sharded = Target::array(&u, format!("{root}/sharded")).shards([12, 74, 72]);
    stored(sharded.chunks([3, 37, 36]), &place.spec()).unwrap();
    assert_eq!(values(&format!("{public}/sharded"), &place.spec()), values(&source, &place.spec()));
    let part = |location: &str| {
        let part = freestone::open(location).unwrap().slice(2..5, 0);
        freestone::compute::<f32>(&part, &place.spec()).unwrap()
    };
    assert_eq!(part(&format!("{public}/sharded")), part(&source));
    assert!(freestone::open(format!("{public}/nothing")).is_err());
}
