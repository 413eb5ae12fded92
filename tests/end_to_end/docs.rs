//! The documentation agrees with the program.

use std::fs;
use std::path::Path;

use crate::command::{freestone, stderr, stdout};
use crate::support::{Place, WINDS_V3, tree};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const README: &str = include_str!("../../README.md");

#[test]
fn the_documented_functions_are_those_of_the_program() {
    let printed = stdout(&freestone(&Place::new(), &["functions", "--markdown"]));
    assert!(
        include_str!("../../docs/functions.md") == printed,
        "docs/functions.md is old: `freestone functions --markdown > docs/functions.md`"
    );
}

#[test]
fn the_readme_has_at_most_120_lines() {
    let lines = README.lines().count();
    assert!(lines <= 120, "{lines} lines");
}

/// Links to files of the repository, of all pages for users.
#[test]
fn links_between_pages_exist() {
    let pages = fs::read_dir(format!("{ROOT}/docs")).unwrap().map(|e| e.unwrap().path());
    let pages = pages.chain([Path::new(ROOT).join("README.md")]);
    for page in pages.filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let text = fs::read_to_string(&page).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets {
            let file = target.split('#').next().unwrap_or_default();
            // Links of rustdoc are paths to items.
            if file.is_empty() || target.contains("::") || target.contains("://") {
                continue;
            }
            if file.contains('.') {
                let exists = page.parent().unwrap().join(file).exists();
                assert!(exists, "{}: there is no {target}", page.display());
            }
        }
    }
}

/// The command of the README prints the stages and requests that the README shows.
#[test]
fn the_readme_shows_the_output_of_its_command() {
    let place = Place::new();
    for (name, bytes) in tree(WINDS_V3) {
        let file = place.folder.path().join("winds.zarr").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
    let command = README.split_once("freestone compute ").unwrap().1.split_once("```").unwrap().0;
    let command = command.replace("\\\n", " ");
    // Expressions in double quotes, and words.
    let mut arguments = vec!["compute"];
    for (i, part) in command.split('"').enumerate() {
        if i % 2 == 1 {
            arguments.push(part);
        } else {
            arguments.extend(part.split_whitespace());
        }
    }
    let printed = stderr(&freestone(&place, &arguments));
    let shown = README.split_once("```text\n").unwrap().1.split_once("```").unwrap().0;
    let stable = |text: &str| -> Vec<String> {
        let line = |(i, line): (usize, &str)| match i {
            // The plan's id depends on the location.
            0 => line.split_once(": ").unwrap().1.to_owned(),
            // CPU time follows.
            2 => line[..60].to_owned(),
            _ => line.to_owned(),
        };
        text.lines().take(4).enumerate().map(line).collect()
    };
    assert_eq!(stable(&printed), stable(shown));
}
