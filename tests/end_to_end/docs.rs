//! What stands in two places says the same.

use crate::command::{freestone, stdout};
use crate::support::Place;

#[test]
fn the_index_of_functions_is_that_of_the_program() {
    let printed = stdout(&freestone(&Place::new(), &["functions", "--markdown"]));
    assert!(
        include_str!("../../docs/functions.md") == printed,
        "docs/functions.md is old: `freestone functions --markdown > docs/functions.md`"
    );
}

#[test]
fn the_status_of_the_readme_is_that_of_the_guide() {
    assert!(
        include_str!("../../README.md").contains(include_str!("../../docs/status.md").trim()),
        "README.md has another table than docs/status.md"
    );
}
