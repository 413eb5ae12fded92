//! The check that outputs do not overlap each other or the inputs.

use super::Output;
use crate::graph::{NodeRef, Op};
use crate::plan::PlanError;
use crate::storage::identity;

/// Checks that no output is at or inside the location of another output or of an input, and that no
/// input is inside an output. `nodes` are all nodes of the graph.
pub(super) fn check_places(outputs: &[Output], nodes: &[NodeRef]) -> Result<(), PlanError> {
    let mut places: Vec<(String, usize)> =
        outputs.iter().enumerate().map(|(i, o)| (key(&o.url, &o.path), i)).collect();
    // After sorting, the contents of a place directly follow the place.
    places.sort();
    check_disjoint(&places)?;
    for node in nodes {
        if let Op::Stored(array) = &node.op {
            check_input(&places, &key(array.store.url(), &array.path))?;
        }
    }
    Ok(())
}

/// Returns the identity of a location, with a final slash so that prefixes are ancestors.
fn key(url: &str, path: &str) -> String {
    identity(url, path) + "/"
}

fn check_disjoint(places: &[(String, usize)]) -> Result<(), PlanError> {
    let Some(pair) = places.windows(2).find(|pair| pair[1].0.starts_with(&pair[0].0)) else {
        return Ok(());
    };
    // Name the outputs in the order in which the user gave them.
    let (first, second) =
        if pair[0].1 < pair[1].1 { (&pair[0].0, &pair[1].0) } else { (&pair[1].0, &pair[0].0) };
    Err(PlanError::BadOutput(format!(
        "cannot store two results at `{}` and `{}`: the locations overlap (hint: give each result \
         a location of its own)",
        first.trim_end_matches('/'),
        second.trim_end_matches('/')
    )))
}

fn check_input(places: &[(String, usize)], input: &str) -> Result<(), PlanError> {
    // Only the neighbors in sorted order can contain the input or lie inside it.
    let at = places.partition_point(|(place, _)| place.as_str() <= input);
    let neighbors = at.checked_sub(1).into_iter().chain([at]).filter_map(|i| places.get(i));
    let mut overlapping = neighbors
        .filter(|(place, _)| input.starts_with(place.as_str()) || place.starts_with(input));
    overlapping.next().map_or(Ok(()), |(place, _)| {
        Err(PlanError::BadOutput(format!(
            "cannot store the result at `{}`: it would replace `{}`, from which it is computed \
             (hint: store it elsewhere)",
            place.trim_end_matches('/'),
            input.trim_end_matches('/')
        )))
    })
}
