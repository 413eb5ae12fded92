//! Texts that appear in two places are equal.

use crate::command::{freestone, stdout};
use crate::support::Place;

#[test]
fn the_documented_functions_are_those_of_the_program() {
    let printed = stdout(&freestone(&Place::new(), &["functions", "--markdown"]));
    assert!(
        include_str!("../../docs/functions.md") == printed,
        "docs/functions.md is old: `freestone functions --markdown > docs/functions.md`"
    );
}

#[test]
fn readme_and_guide_have_the_same_status() {
    assert!(
        include_str!("../../README.md").contains(include_str!("../../docs/status.md").trim()),
        "README.md has another table than docs/status.md"
    );
}
