//! Groups: consolidated metadata, written, updated, and read from stores without listings.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use freestone::{DType, Error, Serial, Target};
use serde_json::{Value, json};

use crate::support::{BINARY, Place, WINDS_V2, WINDS_V3, tree};

fn run(targets: &[Target], place: &Place) -> Result<(), Error> {
    let planned = freestone::plan(targets, &place.spec())?;
    freestone::run(&planned, &place.spec(), &Serial).map(drop)
}

fn zeros(group: &str, name: &str) -> Target {
    Target::in_group(&freestone::full([4], 1.0, DType::Float32, [2]), group, name)
}

fn read(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Checks that a group's consolidated metadata are the documents of all its nodes.
#[track_caller]
fn check(group: &str, names: &[&str]) {
    let found = read(format!("{group}/zarr.json"))["consolidated_metadata"].clone();
    assert_eq!((&found["kind"], &found["must_understand"]), (&json!("inline"), &json!(false)));
    let metadata = found["metadata"].as_object().unwrap();
    let mut listed: Vec<&String> = metadata.keys().collect();
    listed.sort_unstable();
    assert_eq!(listed, names);
    for (name, document) in metadata {
        let mut own = read(format!("{group}/{name}/zarr.json"));
        own.as_object_mut().unwrap().remove("consolidated_metadata");
        assert_eq!(*document, own, "{name}");
    }
}

#[test]
fn consolidated_metadata_are_updated() {
    let place = Place::new();
    let group = place.at("winds.zarr");
    let [u, v] = ["u", "v"].map(|name| freestone::open(format!("{WINDS_V3}/{name}")).unwrap());
    run(&[Target::in_group(&u, &group, "u")], &place).unwrap();
    assert!(
        read(format!("{group}/zarr.json")).get("consolidated_metadata").is_none(),
        "nobody asked"
    );
    let coordinates = ["latitude", "longitude", "time"];
    let and = |names: &[&'static str]| -> Vec<&str> {
        let mut all: Vec<&str> = coordinates.iter().chain(names).copied().collect();
        all.sort_unstable();
        all
    };
    run(&[Target::in_group(&v, &group, "v").consolidated(true)], &place).unwrap();
    check(&group, &and(&["u", "v"]));

    // Consolidated metadata are updated without a request: for new arrays, replaced ones, inner
    // groups, and metadata that are stored first.
    run(&[zeros(&group, "w")], &place).unwrap();
    check(&group, &and(&["u", "v", "w"]));
    let changed = u.with_attribute("history", "changed");
    run(&[Target::in_group(&changed, &group, "u").overwrite(true)], &place).unwrap();
    check(&group, &and(&["u", "v", "w"]));
    run(&[zeros(&format!("{group}/inner"), "x").consolidated(true)], &place).unwrap();
    check(&group, &and(&["inner", "inner/x", "u", "v", "w"]));
    check(&format!("{group}/inner"), &["x"]);
    freestone::create(&[Target::array(&v, format!("{group}/y"))], &place.spec()).unwrap();
    check(&group, &and(&["inner", "inner/x", "u", "v", "w", "y"]));

    // An array is removed from the consolidated metadata while it is replaced; readers would see
    // fill values.
    let bad = place.at("bad");
    fs::create_dir(&bad).unwrap();
    fs::write(
        format!("{bad}/zarr.json"),
        crate::support::document(&[4], &[4], "float32").to_string(),
    )
    .unwrap();
    fs::create_dir(format!("{bad}/c")).unwrap();
    fs::write(format!("{bad}/c/0"), [1]).unwrap();
    assert!(
        run(
            &[Target::in_group(&freestone::open(&bad).unwrap(), &group, "w").overwrite(true)],
            &place
        )
        .is_err()
    );
    check(&group, &and(&["inner", "inner/x", "u", "v", "y"]));

    let error =
        freestone::plan(&[Target::array(&u, place.at("alone")).consolidated(true)], &place.spec())
            .unwrap_err();
    assert!(error.to_string().contains("Target::in_group"), "{error}");
}

#[test]
fn concurrent_runs_are_all_consolidated() {
    let place = Place::new();
    let group = place.at("many.zarr");
    run(&[zeros(&group, "first").consolidated(true)], &place).unwrap();
    let names = ["a", "b", "c", "d", "e", "f"];
    thread::scope(|scope| {
        names
            .iter()
            .for_each(|name| drop(scope.spawn(|| run(&[zeros(&group, name)], &place).unwrap())))
    });
    check(&group, &["a", "b", "c", "d", "e", "f", "first"]);
}

/// Serves files without listings.
fn serve(folder: String) -> String {
    fn answer(mut stream: TcpStream, folder: &str) -> std::io::Result<()> {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        let mut words = text.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let file = format!("{folder}{path}");
        let (status, body) = match fs::read(&file) {
            _ if method != "GET" => ("405 Method Not Allowed", Vec::new()),
            Ok(bytes) => ("200 OK", bytes),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        let date = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT";
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{date}\r\nConnection: close\r\n\r\n",
            body.len()
        )?;
        stream.write_all(&body)
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| drop(answer(stream, &folder)))
    });
    url
}

#[test]
fn http_groups_are_listed_by_consolidated_metadata() {
    let place = Place::new();
    let group = place.at("winds.zarr");
    let u = freestone::open(format!("{WINDS_V3}/u")).unwrap();
    run(&[Target::in_group(&u, &group, "u").consolidated(true)], &place).unwrap();
    // Zarr 2 has consolidated metadata in a separate object.
    for (name, bytes) in tree(WINDS_V2) {
        let path = place.folder.path().join("v2.zarr").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let document = |name: &str| read(place.at(&format!("v2.zarr/{name}")));
    let metadata = json!({
        ".zgroup": document(".zgroup"),
        "u/.zarray": document("u/.zarray"),
        "latitude/.zarray": document("latitude/.zarray"),
    });
    fs::write(
        place.at("v2.zarr/.zmetadata"),
        json!({"zarr_consolidated_format": 1, "metadata": metadata}).to_string(),
    )
    .unwrap();

    let url = serve(place.folder.path().display().to_string());
    for name in ["winds.zarr", "v2.zarr"] {
        let output = Command::new(BINARY)
            .env("NO_PROXY", "127.0.0.1")
            .args(["info", &format!("{url}/{name}")])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        for line in ["  latitude  float32 [73]", "  u  float32 [12, 73, 144]"] {
            assert!(text.contains(line), "{name}: {text}");
        }
    }
}

#[test]
fn the_command_consolidates() {
    let place = Place::new();
    let command = |target: &str| {
        let arguments = [
            "rechunk",
            &format!("{WINDS_V3}/u"),
            target,
            "--chunks",
            "3,20,20",
            "--shards",
            "6,40,80",
            "--codec",
            "zstd:5+crc32c",
            "--consolidated",
        ];
        Command::new(BINARY)
            .current_dir(place.folder.path())
            .env("FREESTONE_WORK_DIR", place.at("work"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let output = command("u");
    assert!(
        output.status.code() == Some(2)
            && String::from_utf8_lossy(&output.stderr).contains("GROUP/NAME"),
        "{output:?}"
    );
    let output = command("out.zarr/u");
    assert!(output.status.success(), "{output:?}");
    check(&place.at("out.zarr"), &["latitude", "longitude", "time", "u"]);
    let document = read(place.at("out.zarr/u/zarr.json"));
    assert_eq!(document["chunk_grid"]["configuration"]["chunk_shape"], json!([6, 40, 80]));
    let [sharding] = document["codecs"].as_array().unwrap().as_slice() else {
        panic!("{document}")
    };
    assert_eq!(sharding["configuration"]["chunk_shape"], json!([3, 20, 20]));
    assert_eq!(sharding["configuration"]["codecs"][2], json!({"name": "crc32c"}));
}

/// Arrays of one group once shared a coordinate that belonged to only one of them.
#[test]
fn arrays_of_a_group_share_coordinates() {
    use crate::command::freestone;
    let place = crate::support::Place::new();
    let u = format!("u={}/u", crate::support::WINDS_V3);
    let run = |arguments: &[&str]| freestone(&place, &[&["compute", "-i", &u], arguments].concat());
    // Relative paths in different spellings name one group.
    let both = run(&["mean(u, axis=0)", "max(u, axis=0)", "-o", "co:a", "-o", "./co:b"]);
    assert_eq!(both.status.code(), Some(0), "{}", String::from_utf8_lossy(&both.stderr));
    let before = crate::support::tree(place.at("co"));
    for (expression, more) in
        [("u[0, ::-1]", None), ("u[0, 3:]", None), ("u[0, ::-1]", Some("--overwrite"))]
    {
        let refused = run(&[&[expression, "-o", "co:c"][..], more.as_slice()].concat());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(5), "{expression}: {said}");
        assert!(said.contains("`latitude` of `c` has other coordinates"), "{said}");
    }
    assert_eq!(crate::support::tree(place.at("co")), before);
    // Also within one plan, before anything is written.
    assert_eq!(run(&["u", "u[::2]", "-o", "new:a", "-o", "new:b"]).status.code(), Some(5));
    assert!(!std::path::Path::new(&place.at("new")).exists());
    // Equal coordinates are shared; the only user of a coordinate may replace it.
    assert_eq!(run(&["u[0] * 2", "-o", "co:c"]).status.code(), Some(0));
    assert_eq!(run(&["u", "-o", "alone:a"]).status.code(), Some(0));
    assert_eq!(run(&["u[::2]", "-o", "alone:a", "--overwrite"]).status.code(), Some(0));
    assert_eq!(run(&["u", "-o", "other:time"]).status.code(), Some(4));
    // Axes without names get names.
    assert_eq!(run(&["reshape(u, (12, -1))", "-o", "co:flat"]).status.code(), Some(0));
    let text = std::fs::read_to_string(place.at("co/flat/zarr.json")).unwrap();
    assert!(text.contains("flat_dim_1"), "{text}");
}
