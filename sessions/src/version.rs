//! Versions, snapshots and formats of repositories.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use icechunk::format::format_constants::SpecVersionBin;
use serde_json::{Map, Value};

use crate::error::Error;

/// A reference to a snapshot. As text: `branch=NAME`, `tag=NAME` or `snapshot=ID`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// The newest snapshot of a branch.
    Branch(String),
    /// The snapshot of a tag.
    Tag(String),
    /// The snapshot with an id.
    Snapshot(String),
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::Branch(name) => write!(f, "branch `{name}`"),
            Version::Tag(name) => write!(f, "tag `{name}`"),
            Version::Snapshot(id) => write!(f, "snapshot `{id}`"),
        }
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Version, Error> {
        match text.split_once('=') {
            Some(("branch", name)) if !name.is_empty() => Ok(Version::Branch(name.to_owned())),
            Some(("tag", name)) if !name.is_empty() => Ok(Version::Tag(name.to_owned())),
            Some(("snapshot", id)) if !id.is_empty() => Ok(Version::Snapshot(id.to_owned())),
            _ => Err(Error::InvalidVersion { version: text.to_owned() }),
        }
    }
}

/// Refers to the newest snapshot of a branch.
impl From<&str> for Version {
    fn from(branch: &str) -> Version {
        Version::Branch(branch.to_owned())
    }
}

/// A snapshot: the result of a commit.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The id.
    pub id: String,
    /// The id of the parent. `None` for the first snapshot.
    pub parent: Option<String>,
    /// The time at which it was written, by the writer's clock.
    pub written_at: SystemTime,
    /// The commit message.
    pub message: String,
    /// Further properties.
    pub properties: Map<String, Value>,
}

/// The on-disk format of a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Version 1, which Icechunk 1.x also reads. It has no operations log, so garbage collections
    /// by other programs are not detected.
    V1,
    /// Version 2, which Icechunk 1.x cannot read.
    #[default]
    V2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::V1 => "1",
            Format::V2 => "2",
        })
    }
}

/// Parses `1` or `2`.
impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Format, Error> {
        match text {
            "1" => Ok(Format::V1),
            "2" => Ok(Format::V2),
            _ => Err(Error::InvalidFormat { format: text.to_owned() }),
        }
    }
}

impl Format {
    pub(crate) fn spec(self) -> SpecVersionBin {
        match self {
            Format::V1 => SpecVersionBin::V1,
            Format::V2 => SpecVersionBin::V2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed() {
        let check = |text: &str, expect: Version| {
            assert_eq!(text.parse::<Version>().unwrap(), expect);
        };
        check("branch=main", Version::Branch("main".into()));
        check("tag=v1=2", Version::Tag("v1=2".into()));
        check("snapshot=ABC", Version::Snapshot("ABC".into()));
        for bad in ["", "main", "branch=", "commit=1"] {
            let error = bad.parse::<Version>().unwrap_err().to_string();
            assert!(error.contains("branch=NAME"), "{error}");
        }
    }
}
