//! Records of this crate: small JSON documents beside Icechunk's objects, which are created once
//! and never changed.
//!
//! A change creates a new generation with the next number by a put that fails if it exists. This is
//! a compare-and-swap that directories, memory and object stores support.

use std::sync::Arc;

use futures_util::StreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::location::Location;
use crate::repository::failed;
use crate::runtime::wait;

/// Requests for records at a time.
const CONCURRENT: usize = 16;

/// The records of a repository.
#[derive(Debug)]
pub(crate) struct Records {
    backend: Arc<dyn ObjectStore>,
    prefix: String,
    place: String,
    remote: bool,
}

impl Records {
    pub(crate) fn new(backend: Arc<dyn ObjectStore>, location: &Location) -> Records {
        let prefix = match location {
            Location::Bucket { prefix, .. } => format!("{prefix}/{}", crate::FOLDER),
            Location::Local(_) | Location::Memory(_) => crate::FOLDER.to_owned(),
        };
        let remote = matches!(location, Location::Bucket { .. });
        Records { backend, place: format!("{location}/{}", crate::FOLDER), prefix, remote }
    }

    /// Returns true if requests are sent over a network.
    pub(crate) fn is_remote(&self) -> bool {
        self.remote
    }

    fn path(&self, key: &str) -> Result<Path, Error> {
        Path::parse(format!("{}/{key}", self.prefix))
            .map_err(|e| Error::InvalidUrl { url: self.place_of(key), why: e.to_string() })
    }

    fn place_of(&self, key: &str) -> String {
        format!("{}/{key}", self.place)
    }

    /// Reads a record.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        Ok(self.get_all(&[key.to_owned()])?.pop().flatten())
    }

    /// Reads several records, in their order.
    pub(crate) fn get_all<T: DeserializeOwned>(
        &self,
        keys: &[String],
    ) -> Result<Vec<Option<T>>, Error> {
        let paths: Vec<(Path, String)> = keys
            .iter()
            .map(|k| Ok((self.path(k)?, self.place_of(k))))
            .collect::<Result<_, Error>>()?;
        let backend = Arc::clone(&self.backend);
        let found = wait(async move {
            let read = |(path, place): (Path, String)| {
                let backend = Arc::clone(&backend);
                async move {
                    match backend.get(&path).await {
                        Ok(found) => {
                            found.bytes().await.map(Some).map_err(|e| failed(&place, "read", e))
                        }
                        Err(object_store::Error::NotFound { .. }) => Ok(None),
                        Err(e) => Err(failed(&place, "read", e)),
                    }
                }
            };
            let all: Vec<Result<Option<bytes::Bytes>, Error>> =
                futures_util::stream::iter(paths.into_iter().map(read))
                    .buffered(CONCURRENT)
                    .collect()
                    .await;
            all.into_iter().collect::<Result<Vec<_>, Error>>()
        })?;
        let parse = |(bytes, key): (Option<bytes::Bytes>, &String)| match bytes {
            None => Ok(None),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| Error::Damaged { place: self.place_of(key), why: e.to_string() }),
        };
        found.into_iter().zip(keys).map(parse).collect()
    }

    /// Creates a record. Returns false if it exists.
    ///
    /// The client retries a put whose response was lost, and then finds its own record. The
    /// existing record is therefore compared.
    pub(crate) fn create(&self, key: &str, record: &impl Serialize) -> Result<bool, Error> {
        let (path, place) = (self.path(key)?, self.place_of(key));
        let bytes = bytes::Bytes::from(
            serde_json::to_vec(record)
                .map_err(|e| Error::Damaged { place: place.clone(), why: e.to_string() })?,
        );
        let backend = Arc::clone(&self.backend);
        wait(async move {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match backend.put_opts(&path, PutPayload::from(bytes.clone()), options).await {
                Ok(_) => Ok(true),
                Err(
                    object_store::Error::AlreadyExists { .. }
                    | object_store::Error::Precondition { .. },
                ) => {
                    let there = match backend.get(&path).await {
                        Ok(found) => found.bytes().await,
                        Err(e) => Err(e),
                    };
                    there.map(|there| there == bytes).map_err(|e| failed(&place, "read", e))
                }
                Err(e) => Err(failed(&place, "write", e)),
            }
        })
    }

    /// Lists the names of records and folders directly below a folder, in order.
    pub(crate) fn list(&self, folder: &str) -> Result<Vec<String>, Error> {
        let (path, place, backend) =
            (self.path(folder)?, self.place_of(folder), Arc::clone(&self.backend));
        wait(async move {
            let found = match backend.list_with_delimiter(Some(&path)).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(Vec::new()),
                other => other.map_err(|e| failed(&place, "list", e))?,
            };
            let all = found.objects.iter().map(|o| &o.location).chain(&found.common_prefixes);
            let mut names: Vec<String> =
                all.filter_map(|p| p.filename().map(str::to_owned)).collect();
            names.sort_unstable();
            Ok(names)
        })
    }
}

/// Returns the name of a numbered record. Names sort like their numbers.
pub(crate) fn numbered(n: u64) -> String {
    format!("{n:06}.json")
}
