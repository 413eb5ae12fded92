//! Locations as text: paths, URLs and keys.

use super::local;
use super::stores::REMOTE_SCHEMES;

/// Splits a location into the store's URL and the name directly below it: `a/b.zarr/u` into
/// `a/b.zarr` and `u`.
///
/// In a repository's URL, such as `icechunk+a/b#branch=main/winds/u`, the name is everything after
/// the first `/` of the fragment.
pub fn split_location(location: &str) -> (String, String) {
    let location = location.trim_end_matches('/');
    if let Some((_, version)) = location
        .split_once('#')
        .filter(|(url, _)| url.split_once(['/', ':']).unwrap_or((url, "")).0.contains('+'))
    {
        let store = location.len() - version.len() + version.find('/').unwrap_or(version.len());
        return (location[..store].into(), location[store..].trim_start_matches('/').into());
    }
    let scheme = location.find("://").map_or(0, |at| at + 3);
    match location[scheme..].rfind('/') {
        Some(0) if scheme == 0 => ("/".into(), location[1..].into()),
        Some(at) => (location[..scheme + at].into(), location[scheme + at + 1..].into()),
        None if scheme > 0 => (location.into(), String::new()),
        None => (".".into(), location.into()),
    }
}

/// Joins parts of a key, omitting empty ones.
pub fn join(prefix: &str, name: &str) -> String {
    match (prefix.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (_, true) => prefix.to_owned(),
        _ => format!("{prefix}/{name}"),
    }
}

/// Returns a location without its prefix, such as `icechunk+`.
fn without_prefix(url: &str) -> &str {
    url.split_once("://").and_then(|(scheme, _)| scheme.rfind('+')).map_or(url, |at| &url[at + 1..])
}

/// Returns true if a location is in a repository.
pub fn is_in_repository(url: &str) -> bool {
    without_prefix(url) != url
}

/// Returns true if a location is in the memory of one process.
pub fn is_in_memory(url: &str) -> bool {
    without_prefix(url).starts_with("memory://")
}

/// Returns true if a location is accessed over a network, including a repository in an object store
/// (`icechunk+s3://…`).
pub fn is_remote_url(url: &str) -> bool {
    let scheme = without_prefix(url).split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|s| REMOTE_SCHEMES.iter().any(|(known, ..)| *known == s))
}

/// Returns the canonical name of a path in the store at a URL: links and `..` are resolved.
pub fn identity(url: &str, path: &str) -> String {
    let location = join(url.trim_end_matches('/'), path);
    match location.split_once("://") {
        None => local::resolved(location.as_ref()).to_string_lossy().into_owned(),
        Some(("file", path)) => local::resolved(path.as_ref()).to_string_lossy().into_owned(),
        Some(_) => location,
    }
}
