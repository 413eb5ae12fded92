//! The `freestone` command as a process: its output, files and exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{BINARY, Place, WINDS_V2, WINDS_V3, names};

pub fn freestone(place: &Place, arguments: &[&str]) -> Output {
    freestone_in(place, &[], arguments)
}

pub fn freestone_in(place: &Place, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    // The environment has no other settings.
    std::env::vars().filter(|(name, _)| name.starts_with("FREESTONE_")).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command
        .current_dir(place.folder.path())
        .env("FREESTONE_WORK_DIR", place.at("work"))
        .envs(variables.iter().copied())
        .args(arguments)
        .output()
        .unwrap()
}

pub fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The standard error of a command that succeeded.
pub fn stderr(output: &Output) -> String {
    let errors = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    errors
}

/// Checks that the command fails with that code, prints the texts to standard error and nothing to
/// standard output, and leaves no files.
#[track_caller]
pub fn check_failure(place: &Place, arguments: &[&str], code: i32, says: &[&str]) {
    let before = names(place.folder.path());
    let output = freestone(place, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    for text in says {
        assert!(errors.contains(text), "`{errors}` does not say `{text}`");
    }
    assert!(!errors.contains("panicked"), "{errors}");
    let after = names(place.folder.path());
    let new: Vec<&String> =
        after.iter().filter(|n| !before.contains(n) && !n.starts_with("work")).collect();
    assert!(new.is_empty(), "it left {new:?}");
}

fn u() -> String {
    format!("{WINDS_V3}/u")
}

#[test]
fn info_of_an_array() {
    let place = Place::new();
    let text = stdout(&freestone(&place, &["info", &u()]))
        .replace(&fs::canonicalize(WINDS_V3).unwrap().display().to_string(), "WINDS");
    insta::assert_snapshot!(text, @r#"
    array WINDS/u (Zarr format 3)
      dtype   float32
      shape   [12, 73, 144] (time, latitude, longitude)
      size    504.6 kB uncompressed
      chunks  [3, 37, 72] of 32.0 kB, 16 in all
      codecs  bytes, zstd
      fill    NaN
      units: "m s-1"
      standard_name: "eastward_wind"
      _FillValue: "AAAAAAAA+H8="
    "#);
    let v2 = stdout(&freestone(&place, &["info", &format!("{WINDS_V2}/u/")]));
    assert!(v2.contains("(Zarr format 2)") && v2.contains("(time, latitude, longitude)"), "{v2}");
}

#[test]
fn info_of_a_group() {
    let place = Place::new();
    for (format, group) in [(3, WINDS_V3), (2, WINDS_V2)] {
        let text = stdout(&freestone(&place, &["info", group]));
        assert!(text.starts_with("group "), "format {format}: {text}");
        for line in [
            "  latitude  float32 [73]",
            "  u  float32 [12, 73, 144] in chunks [3, 37, 72]",
            "title: \"Long-term monthly mean winds",
        ] {
            assert!(text.contains(line), "format {format}: {text}");
        }
    }
}

#[test]
fn rechunk_writes_an_equal_array() {
    let place = Place::new();
    for (name, executor) in [("t", "threads"), ("p", "processes"), ("s", "serial")] {
        let text = stderr(&freestone(
            &place,
            &[
                "rechunk",
                &u(),
                name,
                "--chunks",
                "12,10,20",
                "--executor",
                executor,
                "--threads",
                "2",
            ],
        ));
        assert!(text.contains("rechunk-000") && text.contains("peak memory"), "{text}");
        let (source, copy) =
            (freestone::open(u()).unwrap(), freestone::open(place.at(name)).unwrap());
        assert_eq!(copy.grid().unwrap().max_chunk(), [12, 10, 20]);
        let values = |array| freestone::compute::<f32>(array, &place.spec()).unwrap();
        assert_eq!(values(&source), values(&copy), "{executor}");
        assert_eq!(
            source.attributes().unwrap().get("units"),
            copy.attributes().unwrap().get("units"),
            "a copy keeps its attributes"
        );
        assert_eq!(copy.dims().unwrap()[0].name.as_deref(), Some("time"));
    }
    assert!(names(place.at("work")).is_empty(), "{:?}", names(place.at("work")));
}

#[test]
fn wrong_usage_exits_with_2() {
    let place = Place::new();
    check_failure(&place, &[], 2, &["Usage"]);
    check_failure(&place, &["reshape"], 2, &["reshape"]);
    check_failure(&place, &["rechunk", &u(), "out"], 2, &["--chunks"]);
    check_failure(&place, &["rechunk", &u(), "out", "--chunks", "1,x,2"], 2, &["--chunks"]);
    check_failure(
        &place,
        &["rechunk", &u(), "out", "--chunks", "12,10,20", "--allowed-mem", "lots"],
        2,
        &["lots", "invalid size"],
    );
    check_failure(
        &place,
        &["rechunk", &u(), "out", "--chunks", "12,10,20", "--threads", "0"],
        2,
        &["threads"],
    );
    check_failure(
        &place,
        &["rechunk", &u(), "out", "--chunks", "12,10,20", "--executor", "cloud"],
        2,
        &["cloud"],
    );
    fs::write(place.at("freestone.toml"), "alowed_mem = 3").unwrap();
    check_failure(
        &place,
        &["rechunk", &u(), "out", "--chunks", "12,10,20"],
        2,
        &["freestone.toml", "alowed_mem"],
    );
}

/// A missing settings file was once ignored.
#[test]
fn a_missing_settings_file_is_an_error() {
    let place = Place::new();
    let rechunk = ["rechunk", &u(), "out", "--chunks", "12,10,20"];
    let output = freestone_in(&place, &[("FREESTONE_CONFIG", "nothing.toml")], &rechunk);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2)
            && errors.contains("nothing.toml")
            && errors.contains("FREESTONE_CONFIG"),
        "{errors}"
    );
    fs::write(place.at("mine.toml"), "threads = 1").unwrap();
    stdout(&freestone_in(&place, &[("FREESTONE_CONFIG", "mine.toml")], &rechunk));
}

#[test]
fn zero_dimensional_arrays_are_copied() {
    let place = Place::new();
    let one = freestone::Target::array(&freestone::scalar(1.5), place.at("one"));
    freestone::run(
        &freestone::plan(&[one], &place.spec()).unwrap(),
        &place.spec(),
        &freestone::Serial,
    )
    .unwrap();
    stdout(&freestone(&place, &["rechunk", "one", "copy"]));
    assert_eq!(
        freestone::compute::<f64>(&freestone::open(place.at("copy")).unwrap(), &place.spec())
            .unwrap()
            .sum(),
        1.5
    );
}

#[test]
fn too_little_memory_exits_with_3() {
    let place = Place::new();
    let arguments = ["rechunk", &u(), "out", "--chunks", "12,73,144", "--allowed-mem", "32100kB"];
    check_failure(
        &place,
        &arguments,
        3,
        &["stage `rechunk-000` needs", "allowed_mem is 32.1 MB", "encode buffers"],
    );
    let arguments = ["rechunk", &u(), "out", "--chunks", "12,73,144", "--allowed-mem", "16100kB"];
    check_failure(&place, &arguments, 3, &["allowed_mem is 16.1 MB but reserved_mem is 32.0 MB"]);
    assert!(!Path::new(&place.at("out")).exists() && !Path::new(&place.at("work")).exists());
}

#[test]
fn an_invalid_input_exits_with_4() {
    let place = Place::new();
    check_failure(&place, &["info", "nothing.zarr"], 4, &["no Zarr array", "nothing.zarr"]);
    check_failure(
        &place,
        &["rechunk", "nothing.zarr", "out", "--chunks", "1"],
        4,
        &["no Zarr array"],
    );
    check_failure(
        &place,
        &["rechunk", WINDS_V3, "out", "--chunks", "1"],
        4,
        &["is a Zarr group", "name one of its arrays"],
    );
    check_failure(&place, &["rechunk", &u(), "out", "--chunks", "1,2"], 4, &[]);
    check_failure(&place, &["rechunk", &u(), "out", "--chunks", "0,2,3"], 4, &[]);
    check_failure(&place, &["info", "gopher://hole"], 4, &["gopher"]);
}

#[test]
fn an_existing_output_exits_with_5() {
    let place = Place::new();
    let again = ["rechunk", &u(), "out", "--chunks", "12,10,20"];
    stdout(&freestone(&place, &again));
    check_failure(&place, &again, 5, &["already exists", "overwrite"]);
    stdout(&freestone(&place, &[&again[..], &["--overwrite"]].concat()));
    fs::create_dir(place.at("mine")).unwrap();
    fs::write(place.at("mine/notes"), "mine").unwrap();
    check_failure(
        &place,
        &["rechunk", &u(), "mine", "--chunks", "12,10,20", "--overwrite"],
        5,
        &["notes"],
    );
    // The error comes before any computation.
    fs::write(place.at("file"), "mine").unwrap();
    for target in ["file", "file/u"] {
        check_failure(
            &place,
            &["rechunk", &u(), target, "--chunks", "12,10,20", "--overwrite"],
            5,
            &["file`: it is a file"],
        );
    }
}

#[test]
fn a_failed_run_exits_with_1() {
    let place = Place::new();
    fs::write(place.at("file"), "").unwrap();
    let work_dir = place.at("file/work");
    check_failure(
        &place,
        &["rechunk", &u(), "out", "--chunks", "12,10,20", "--work-dir", &work_dir],
        1,
        &["work directory"],
    );
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let place = Place::new();
    // The command starts after the reader has closed the pipe.
    let script = format!("read line; {BINARY} info {WINDS_V3}; echo $? >&2");
    let mut child = Command::new("sh")
        .current_dir(place.folder.path())
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    drop(child.stdin.take());
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap(), "0\n");
}

/// A stub in place of cargo prints its arguments.
#[test]
fn a_worker_is_built_by_cargo_and_packed() {
    let place = Place::new();
    let (cargo, zip) = (place.at("cargo"), place.at("worker.zip"));
    let build = |answer: &str, more: &[&str]| {
        fs::write(&cargo, format!("#!/bin/sh\necho \"$@\" >\"$0.asked\"\n{answer}\n")).unwrap();
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
        let output = freestone_in(
            &place,
            &[("CARGO", &cargo)],
            &[&["lambda", "package", "--output", &zip, "--build"], more].concat(),
        );
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (fs::read_to_string(place.at("cargo.asked")).unwrap(), said)
    };
    let artifacts = ["null", "\"/bin/true\"", "null"]
        .map(|path| format!("echo '{{\"reason\":\"compiler-artifact\",\"executable\":{path}}}'"));
    for (more, package) in [(&[][..], "freestone-lambda"), (&["own"], "own")] {
        let (asked, said) = build(&artifacts.join("\n"), more);
        assert_eq!(
            asked.trim_end(),
            format!(
                "build --release --bin bootstrap --message-format json-render-diagnostics \
                    --package {package}"
            )
        );
        // The system's libraries may be newer than Lambda's.
        assert!(
            said.starts_with(&format!("{zip}: ")) || said.contains("`/bin/true` requires glibc"),
            "{said}"
        );
    }
    let _ = fs::remove_file(&zip);
    for (answer, says) in
        [("exit 101", "cargo failed to build the worker"), ("", "cargo built no executable")]
    {
        let (_, said) = build(answer, &[]);
        assert!(said.contains(says) && !Path::new(&zip).exists(), "{said}");
    }
}
