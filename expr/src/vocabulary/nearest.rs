//! Suggestions for misspelt names.

/// Returns at most three known names similar to `name`, the most similar first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let lower = name.to_lowercase();
    let far = name.chars().count().div_ceil(3).clamp(1, 4);
    // A known name that contains the name, or is part of it, is similar too: `mean` for `nanmean`.
    let part =
        |k: &str| lower.len() >= 3 && k.len() >= 3 && (lower.contains(k) || k.contains(&lower));
    let mut found: Vec<(usize, &str)> = known
        .into_iter()
        .map(|k| (strsim::osa_distance(&lower, &k.to_lowercase()), k))
        .map(|(d, k)| if d > far && part(k) { (far, k) } else { (d, k) })
        .filter(|(d, _)| *d <= far)
        .collect();
    found.sort();
    found.dedup();
    // Names much farther than the nearest are left out.
    let best = found.first().map_or(0, |f| f.0);
    found.into_iter().filter(|(d, _)| *d <= best + best / 2).take(3).map(|(_, k)| k).collect()
}

/// Formats names in backquotes: `a`, or `a` or `b`.
pub fn either(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_comes_first() {
        let known = ["mean", "min", "max", "sum", "maximum", "permute_dims", "u", "v"];
        assert_eq!(nearest("maen", known), ["mean"]);
        assert_eq!(nearest("nanmean", known), ["mean"]);
        assert_eq!(nearest("Sum", known), ["sum"]);
        assert_eq!(nearest("permute_dim", known), ["permute_dims"]);
        assert_eq!(nearest("w", known), ["u", "v"]);
        assert!(nearest("interpolate", known).is_empty());
    }
}
