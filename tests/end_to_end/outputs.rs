//! Whole outputs of all subcommands, errors included, in `outputs.txt`.
//!
//! After a change, run this test with `FREESTONE_UPDATE_DOCS=1` and read the difference.

use std::fmt::Write;
use std::fs;

use crate::command::freestone;
use crate::support::{Place, WINDS_V3, tree};

const EXPECTED: &str = include_str!("outputs.txt");

/// Commands by line, run in this order in one folder. Arguments are separated by spaces.
const COMMANDS: &str = "

--help
--version
compute --help
plan --help
functions --help
info --help
rechunk --help
resume --help
clean --help
session --help
session create --help
session join --help
session leave --help
session status --help
session list --help
session extend --help
session abandon --help
session commit --help
repo --help
repo log --help
repo branches --help
repo gc --help
repo expire --help
lambda package --help
completions --help
nothing
functions mean
functions maen
info winds.zarr
info winds.zarr/u
info none.zarr
plan mean(u,axis=0) -i u=winds.zarr/u --threads 2
plan mean(u,axis=0) -i u=winds.zarr/u --allowed-mem 32.1MB
plan maen(u) -i u=winds.zarr/u
plan u+w -i u=winds.zarr/u
plan u[:,:5]+u -i u=winds.zarr/u
plan u -i u
plan u -i 1u=winds.zarr/u
plan u -i u=winds.zarr/u -i u=winds.zarr/u
plan u -i u=winds.zarr/u --threads none
plan u -i u=winds.zarr/u --allowed-mem much
plan u -i u=winds.zarr/u --executor cloud
plan u -i u=winds.zarr/u --log loud
compute u -i u=winds.zarr/u
compute u -i u=winds.zarr/u -o u: -q
compute u -i u=winds.zarr/u -o u -q
compute u -i u=winds.zarr/u -o u -q
compute u -i u=winds.zarr/u -o c -m text --session 1
compute u -i u=winds.zarr/u -o c/c -m text
compute u -i u=winds.zarr/u -o c --cost
compute u -i u=winds.zarr/u -o c --plan-only --history h
compute u -i u=winds.zarr/u -o c --history h --report h
rechunk winds.zarr/u c
rechunk winds.zarr/u c --chunks 1,2
rechunk winds.zarr c --chunks 1
rechunk winds.zarr/u c --chunks 12,10,20 --consolidated
rechunk winds.zarr/u c --chunks 12,10,20 -q -v
resume nothing
clean
repo log --repository none
session status 1 --repository none
lambda package --bootstrap winds.zarr/zarr.json
";

#[test]
fn whole_outputs_of_the_commands() {
    let place = Place::new();
    for (name, bytes) in tree(WINDS_V3) {
        let file = place.folder.path().join("winds.zarr").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
    let mut found = String::new();
    for line in COMMANDS.trim_end().lines().skip(1) {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = freestone(&place, &arguments);
        writeln!(found, "$ freestone {line}").unwrap();
        for (name, bytes) in [("", &output.stdout), ("[standard error]\n", &output.stderr)] {
            if !bytes.is_empty() {
                write!(found, "{name}{}", masked(&String::from_utf8_lossy(bytes), &place)).unwrap();
            }
        }
        writeln!(found, "[exit code {}]\n", output.status.code().unwrap()).unwrap();
    }
    if std::env::var_os("FREESTONE_UPDATE_DOCS").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/end_to_end/outputs.txt");
        fs::write(file, &found).unwrap();
        return;
    }
    let blocks = |text: &str| -> Vec<String> { text.split("\n\n$ ").map(str::to_owned).collect() };
    for (found, expected) in blocks(&found).iter().zip(blocks(EXPECTED)) {
        assert!(*found == expected, "found:\n{found}\n\nexpected:\n{expected}");
    }
    assert_eq!(found.len(), EXPECTED.len(), "outputs.txt has other commands");
}

/// Replaces the folder and the ids of plans, which depend on it.
fn masked(text: &str, place: &Place) -> String {
    let folder = fs::canonicalize(place.folder.path()).unwrap();
    let text = text
        .replace(&folder.display().to_string(), "FOLDER")
        .replace(&place.folder.path().display().to_string(), "FOLDER");
    let line = |line: &str| match line.strip_prefix("plan ").and_then(|l| l.split_once(": ")) {
        Some((id, rest)) if id.len() == 16 => format!("plan ID: {rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}
