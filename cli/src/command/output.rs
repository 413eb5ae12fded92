//! The locations of results: `DIR` for an array, `STORE:NAME` for an array with coordinates in a
//! group.

use std::str::FromStr;

use freestone::{Array, Session, Target};

use super::Failure;
use super::commit::path;

/// The argument of `-o`. For repositories it is a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Array(String),
    InGroup { store: String, name: String },
}

impl Output {
    /// Returns the target in a plain Zarr store, or in a session.
    pub(crate) fn target(
        &self,
        array: &Array,
        session: Option<&Session>,
    ) -> Result<Target, Failure> {
        Ok(match (self, session) {
            (Output::Array(location), None) => Target::array(array, location),
            (Output::InGroup { store, name }, None) => Target::in_group(array, store, name),
            (output, Some(session)) => session.target(array, path(&output.text())?),
        })
    }

    /// Returns a location for a plan that does not run.
    pub(crate) fn placeholder(index: usize) -> Output {
        Output::Array(format!("result-{}", index + 1))
    }

    /// Returns the argument's text.
    pub(crate) fn text(&self) -> String {
        match self {
            Output::Array(location) => location.clone(),
            Output::InGroup { store, name } => format!("{store}:{name}"),
        }
    }
}

/// The last colon separates store and name if the name has no slashes. The colons of schemes and
/// ports do not count.
impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let array = || Ok(Output::Array(text.to_owned()));
        if text.is_empty() {
            return Err("expected DIR or STORE:NAME".into());
        }
        let Some((store, name)) =
            text.rsplit_once(':').filter(|(_, name)| !name.contains(['/', '\\']))
        else {
            return array();
        };
        let in_host = store
            .split_once("://")
            .is_some_and(|(scheme, rest)| scheme.starts_with("http") && !rest.contains('/'));
        if in_host && !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) {
            return array();
        }
        // A drive letter.
        if cfg!(windows) && store.len() == 1 {
            return array();
        }
        if store.is_empty() || name.is_empty() {
            return Err("expected DIR, or STORE:NAME with a store and a name".into());
        }
        if name.starts_with("__") || name.bytes().all(|b| b == b'.') || name == "zarr.json" {
            return Err(format!("invalid array name `{name}`: reserved by Zarr"));
        }
        Ok(Output::InGroup { store: store.to_owned(), name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, &str)>) {
        let expected = expected.map_or(Output::Array(text.into()), |(store, name)| {
            Output::InGroup { store: store.into(), name: name.into() }
        });
        assert_eq!(text.parse(), Ok(expected));
    }

    #[test]
    fn a_colon_before_a_name_separates_it() {
        check("out.zarr", None);
        check("a/b/out.zarr", None);
        check("out.zarr:uu", Some(("out.zarr", "uu")));
        check("/tmp/a:b/out.zarr:uu", Some(("/tmp/a:b/out.zarr", "uu")));
        check("/tmp/a:b/out.zarr", None);
        check("file:///a/b", None);
        check("file:///a/b:c", Some(("file:///a/b", "c")));
        check("s3://bucket/x", None);
        check("s3://bucket/x:uu", Some(("s3://bucket/x", "uu")));
        check("s3://bucket:uu", Some(("s3://bucket", "uu")));
        check("s3://bucket", None);
        check("http://host:9000", None);
        check("http://host:9000/x", None);
        check("http://host:9000/x:uu", Some(("http://host:9000/x", "uu")));
        check("C:\\data\\x", None);
        check("C:/data/x", None);
    }

    #[test]
    fn invalid_names_are_rejected() {
        for text in ["", ":", "a:", ":b", "a:..", "a:__b", "a:zarr.json"] {
            assert!(text.parse::<Output>().is_err(), "{text}");
        }
    }
}
