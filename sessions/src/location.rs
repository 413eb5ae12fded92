//! Locations of repositories, and URLs of their stores.
//!
//! A worker opens a store given only its URL: `icechunk+REPOSITORY#snapshot=ID` to read a snapshot,
//! followed by `&session=ID` to write to a session. Credentials are never part of a URL; each
//! process takes them from its environment.

use std::fmt;
use std::path::{Path, PathBuf};

use freestone_engine::storage::identity;
use percent_encoding::percent_decode_str;

use crate::error::Error;
use crate::version::Version;

/// The prefix of the URLs of stores.
pub const SCHEME: &str = "icechunk+";

/// The location of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Location {
    /// In a directory.
    Local(PathBuf),
    /// Below a prefix of a bucket of an object store.
    Bucket { service: Service, bucket: String, prefix: String },
    /// In the memory of this process, under a name.
    Memory(String),
}

/// An object store that holds repositories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Service {
    S3,
    #[cfg(feature = "gcs")]
    GoogleCloud,
    #[cfg(feature = "azure")]
    Azure,
}

impl Service {
    /// Returns the service of a scheme, or the feature that this build lacks for it.
    fn of(scheme: &str) -> Option<Result<Service, &'static str>> {
        Some(match scheme {
            "s3" => Ok(Service::S3),
            #[cfg(feature = "gcs")]
            "gs" => Ok(Service::GoogleCloud),
            #[cfg(not(feature = "gcs"))]
            "gs" => Err("gcs"),
            #[cfg(feature = "azure")]
            "az" => Ok(Service::Azure),
            #[cfg(not(feature = "azure"))]
            "az" => Err("azure"),
            _ => return None,
        })
    }

    fn scheme(self) -> &'static str {
        match self {
            Service::S3 => "s3",
            #[cfg(feature = "gcs")]
            Service::GoogleCloud => "gs",
            #[cfg(feature = "azure")]
            Service::Azure => "az",
        }
    }
}

impl Location {
    /// Parses a path, `file://PATH`, `memory://NAME`, or the URL of a prefix in a bucket:
    /// `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`.
    pub(crate) fn parse(url: &str) -> Result<Location, Error> {
        let bad = |why: &str| Error::InvalidUrl { url: url.to_owned(), why: why.to_owned() };
        let expected = "expected a path, memory://NAME, or s3://, gs:// or az:// with \
            BUCKET/PREFIX";
        if url.contains(['#', '?']) {
            return Err(bad("`#` and `?` are not allowed"));
        }
        let (scheme, rest) = url.split_once("://").unwrap_or(("file", url));
        let rest = rest.trim_end_matches('/');
        match scheme {
            "file" if rest.is_empty() => Err(bad("missing directory")),
            "file" => Ok(Location::Local(PathBuf::from(identity(rest, "")))),
            "memory" if rest.is_empty() => Err(bad("missing name")),
            "memory" => Ok(Location::Memory(rest.to_owned())),
            _ => {
                let service = Service::of(scheme).ok_or_else(|| bad(expected))?;
                let service = service.map_err(|feature| {
                    bad(&format!(
                        "this program was built without the feature `{feature}` (hint: build it \
                            with `--features {feature}`)"
                    ))
                })?;
                match rest.split_once('/') {
                    Some((bucket, prefix)) if !bucket.is_empty() => Ok(Location::Bucket {
                        service,
                        bucket: bucket.to_owned(),
                        prefix: prefix.to_owned(),
                    }),
                    _ => Err(bad(&format!(
                        "expected a bucket and a prefix: {scheme}://BUCKET/PREFIX"
                    ))),
                }
            }
        }
    }

    /// Returns the directory of a local repository.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match self {
            Location::Local(path) => Some(path),
            Location::Bucket { .. } | Location::Memory(_) => None,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Local(path) => write!(f, "file://{}", path.display()),
            Location::Bucket { service, bucket, prefix } => {
                write!(f, "{}://{bucket}/{prefix}", service.scheme())
            }
            Location::Memory(name) => write!(f, "memory://{name}"),
        }
    }
}

/// The parsed URL of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreUrl {
    /// The repository's location.
    pub(crate) repository: String,
    /// The version that is read.
    pub(crate) version: Version,
    /// The id of the session that is written.
    pub(crate) session: Option<String>,
}

impl StoreUrl {
    /// Parses the URL of a store.
    pub(crate) fn parse(url: &str) -> Result<StoreUrl, Error> {
        let bad = || Error::InvalidUrl {
            url: url.to_owned(),
            why: format!(
                "expected `{SCHEME}REPOSITORY#branch=NAME/PATH`, `#tag=NAME/PATH` or \
                    `#snapshot=ID/PATH`, with `%2F` for `/` in a name"
            ),
        };
        let (repository, rest) =
            url.strip_prefix(SCHEME).and_then(|u| u.split_once('#')).ok_or_else(bad)?;
        let (mut version, mut session) = (None, None);
        for part in rest.split('&') {
            let (name, value) =
                part.split_once('=').filter(|(_, value)| !value.is_empty()).ok_or_else(bad)?;
            let value = percent_decode_str(value).decode_utf8().map_err(|_| bad())?.into_owned();
            match (name, value, &version) {
                ("branch", name, None) => version = Some(Version::Branch(name)),
                ("tag", name, None) => version = Some(Version::Tag(name)),
                ("snapshot", id, None) => version = Some(Version::Snapshot(id)),
                ("session", id, _) => session = Some(id),
                _ => return Err(bad()),
            }
        }
        // A session has a snapshot as its base.
        match version {
            Some(version) if session.is_none() || matches!(version, Version::Snapshot(_)) => {
                Ok(StoreUrl { repository: repository.to_owned(), version, session })
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, name) = match &self.version {
            Version::Branch(name) => ("branch", name),
            Version::Tag(name) => ("tag", name),
            Version::Snapshot(id) => ("snapshot", id),
        };
        write!(f, "{SCHEME}{}#{what}={name}", self.repository)?;
        match &self.session {
            Some(session) => write!(f, "&session={session}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_round_trip() {
        for url in ["file:///a/b", "s3://bucket/a/b", "memory://x"] {
            assert_eq!(Location::parse(url).unwrap().to_string(), url);
        }
        assert_eq!(Location::parse("/a/b/").unwrap().to_string(), "file:///a/b");
        for url in ["", "s3://bucket", "gopher://x/y", "memory://", "/a#b", "gs://bucket"] {
            assert!(Location::parse(url).is_err(), "{url}");
        }
        for (url, feature, built) in [
            ("gs://bucket/a", "gcs", cfg!(feature = "gcs")),
            ("az://container/a", "azure", cfg!(feature = "azure")),
        ] {
            match Location::parse(url) {
                Ok(location) => assert!(built && location.to_string() == url, "{url}"),
                Err(error) => assert!(
                    !built && error.to_string().contains(&format!("`--features {feature}`")),
                    "{error}"
                ),
            }
        }
    }

    #[test]
    fn store_urls_round_trip() {
        for url in [
            "icechunk+s3://b/p#snapshot=ABC",
            "icechunk+file:///p#snapshot=ABC&session=d",
            "icechunk+p#branch=main",
            "icechunk+p#tag=v1",
        ] {
            assert_eq!(StoreUrl::parse(url).unwrap().to_string(), url);
        }
        for url in [
            "s3://b/p",
            "icechunk+s3://b/p",
            "icechunk+s3://b/p#session=d",
            "icechunk+s3://b/p#snapshot=A&key=secret",
            "icechunk+p#branch=main&session=d",
            "icechunk+p#branch=",
            "icechunk+p#tag=a&branch=b",
        ] {
            assert!(StoreUrl::parse(url).is_err(), "{url}");
        }
    }
}
