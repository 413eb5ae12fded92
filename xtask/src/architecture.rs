//! Tests that `ARCHITECTURE.md` describes the source: the import order of crates and modules, and
//! paths.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The longest `ARCHITECTURE.md`, in lines.
const MAX_LINES: usize = 200;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files below a folder as paths from the root, except in hidden folders and in target folders.
fn files_below(folder: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                files_below(&path, files);
            }
        } else {
            files.push(format!("/{}", path.strip_prefix(root()).unwrap().display()));
        }
    }
}

/// The source of a module without comment lines and without its tests.
fn code_of(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The first segments of the paths that start with `crate::` in some source.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            found.extend(first_segments(group));
        } else {
            found.insert(identifier(rest));
        }
    }
    found.remove("");
    found
}

/// The first segments of a group of imports, which follows its opening brace.
fn first_segments(group: &str) -> Vec<String> {
    let mut segments = vec![identifier(group.trim_start())];
    let mut depth = 1;
    for (index, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => segments.push(identifier(group[index + 1..].trim_start())),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    segments
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The engine's modules in layers, as the document lists them.
fn layers(document: &str) -> Vec<Vec<String>> {
    let section = document.split("## Modules of the engine").nth(1).expect("the section");
    let block = section.split("`files · ").nth(1).and_then(|rest| rest.split('`').next());
    let names = |layer: &str| layer.split('·').map(|name| name.trim().to_owned()).collect();
    let list = format!("files · {}", block.expect("the list"));
    list.split('→').map(names).collect()
}

#[test]
fn modules_of_the_engine_import_their_own_layer_and_earlier_ones() {
    let layers = layers(&read("ARCHITECTURE.md"));
    let layer_of = |module: &str| layers.iter().position(|l| l.iter().any(|name| name == module));
    let library = read("engine/src/lib.rs");
    let declarations = library.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ")?;
        line.strip_suffix(';')
    });
    let modules: BTreeSet<&str> = declarations.collect();
    let listed: BTreeSet<&str> = layers.iter().flatten().map(String::as_str).collect();
    assert_eq!(modules, listed, "ARCHITECTURE.md lists other modules than engine/src/lib.rs");

    let mut files = Vec::new();
    files_below(&root().join("engine/src"), &mut files);
    let mut upwards = Vec::new();
    for file in &files {
        let path = file.trim_start_matches("/engine/src/");
        let is_test = path.ends_with("tests.rs") || path.contains("/tests/");
        let module = path.split(['/', '.']).next().unwrap_or_default();
        let Some(layer) = layer_of(module).filter(|_| !is_test && path != "lib.rs") else {
            continue;
        };
        for import in imports(&code_of(&read(&file[1..]))) {
            if layer_of(&import).is_some_and(|other| other > layer) {
                upwards.push(format!("{path} imports {import}"));
            }
        }
    }
    assert!(upwards.is_empty(), "imports of later layers:\n{}", upwards.join("\n"));
}

#[test]
fn crates_import_crates_above_them_in_the_table() {
    let document = read("ARCHITECTURE.md");
    let section = document.split("## Crates").nth(1).expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut above: Vec<&str> = vec!["freestone-allocator"];
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let (package, folder) = (cells[1], if cells[2] == "root" { "." } else { cells[2] });
        let manifest = read(&format!("{folder}/Cargo.toml"));
        assert!(manifest.contains(&format!("name = \"{package}\"")), "{folder} is not {package}");
        let dependencies = manifest.split("\n[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for line in dependencies.lines().filter(|line| line.starts_with("freestone")) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(above.contains(&name), "{package} imports {name}, which is not above it");
        }
        above.push(package);
    }
    assert!(above.len() > 5, "no table of crates");
}

#[test]
fn paths_in_the_document_exist() {
    let mut files = Vec::new();
    files_below(&root(), &mut files);
    let document = read("ARCHITECTURE.md");
    let is_path = |token: &&str| {
        let plain = |c: char| c.is_alphanumeric() || "_-./{},*".contains(c);
        token.chars().all(plain) && (token.ends_with(".rs") || token.ends_with('/'))
    };
    let missing: Vec<String> = document
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(is_path)
        .flat_map(alternatives)
        .map(|path| path.replace("*.rs", ""))
        .filter(|path| !files.iter().any(|file| exists_as(file, path)))
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names files that do not exist: {missing:?}");
}

/// Expands `a/{b,c}.rs`.
fn alternatives(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (names, after) = rest.split_once('}').unwrap_or((rest, ""));
    names.split(',').map(|name| format!("{before}{name}{after}")).collect()
}

/// Returns whether a path in the document, which may omit leading folders and `src`, means this
/// file or a folder of it.
fn exists_as(file: &str, path: &str) -> bool {
    let short = file.replace("/src/", "/");
    let suffix = format!("/{path}");
    let matches =
        |file: &str| file.ends_with(&suffix) || (path.ends_with('/') && file.contains(&suffix));
    matches(file) || matches(&short)
}

#[test]
fn the_document_is_short() {
    let n_lines = read("ARCHITECTURE.md").lines().count();
    assert!(n_lines <= MAX_LINES, "ARCHITECTURE.md has {n_lines} lines, expected {MAX_LINES}");
}

#[test]
fn imports_are_found_in_groups_and_paths() {
    let code = "use crate::plan::{Plan, stage::Stage};\n\
        use crate::{\n    grid::Chunks,\n    task,\n    storage::{self, Store},\n};\n\
        fn f() { crate::spec::default() }\n";
    let expected = ["grid", "plan", "spec", "storage", "task"].map(String::from);
    assert_eq!(imports(code), BTreeSet::from(expected));
}
