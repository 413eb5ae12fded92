//! Icechunk's storage of a repository, and the settings with which this crate opens it.

use std::collections::HashMap;
use std::num::{NonZeroU16, NonZeroU64};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use freestone_engine::storage::aws;
#[cfg(any(feature = "gcs", feature = "azure"))]
use freestone_engine::storage::clouds;
use icechunk::config::{CachingConfig, RepositoryConfig};
use icechunk::config::{S3Credentials, S3StaticCredentials};
use icechunk::storage::{ConcurrencySettings, S3Options, Settings, Storage};
use object_store::ObjectStore;
use object_store::aws::{AwsCredential, S3ConditionalPut};
use object_store::memory::InMemory;

use crate::error::Error;
use crate::location::{Location, Service};
use crate::repository::failed;
use crate::runtime::wait;

/// The number of decoded array and group nodes in the cache.
const CACHED_NODES: u64 = 20_000;

/// The number of decoded chunk references in the cache. The manifest of an array with more is read
/// again for each chunk.
const CACHED_CHUNK_REFS: u64 = freestone_engine::memory::CACHED_REFERENCES;

/// The maximum number of concurrent requests of a repository.
const CONCURRENT_REQUESTS: u16 = 16;

/// The files and folders of a repository, including one that is being created.
const ICECHUNKS: [&str; 9] = [
    "repo",
    "config.yaml",
    "refs",
    "snapshots",
    "manifests",
    "chunks",
    "transactions",
    "overwritten",
    "attributes",
];

/// Checks that a location is not a file, and not a directory with other files than those of a
/// repository.
pub(crate) fn check_free(location: &Location) -> Result<(), Error> {
    let Some(path) = location.directory() else { return Ok(()) };
    let occupied = || Error::Occupied { place: location.to_string() };
    if path.ancestors().any(|p| p.exists() && !p.is_dir()) {
        return Err(occupied());
    }
    // A killed writer leaves names with a `#` and a number.
    let ours = |name: &std::ffi::OsStr| {
        let name = name.to_string_lossy();
        let name = name.split('#').next().unwrap_or_default();
        name == crate::FOLDER || ICECHUNKS.contains(&name)
    };
    if std::fs::read_dir(path).into_iter().flatten().flatten().any(|e| !ours(&e.file_name())) {
        return Err(occupied());
    }
    Ok(())
}

/// Returns Icechunk's settings, which bound caches and requests. An object is fetched in one piece,
/// because parallel parts would be in memory twice. Chunks are not cached.
pub(crate) fn config() -> RepositoryConfig {
    let one_piece = ConcurrencySettings {
        max_concurrent_requests_for_object: NonZeroU16::new(1),
        ideal_concurrent_request_size: NonZeroU64::new(1 << 40),
    };
    RepositoryConfig {
        max_concurrent_requests: Some(CONCURRENT_REQUESTS),
        caching: Some(CachingConfig {
            num_snapshot_nodes: Some(CACHED_NODES),
            num_chunk_refs: Some(CACHED_CHUNK_REFS),
            num_transaction_changes: Some(0),
            num_bytes_attributes: Some(0),
            num_bytes_chunks: Some(0),
        }),
        storage: Some(Settings { concurrency: Some(one_piece), ..Settings::default() }),
        ..RepositoryConfig::default()
    }
}

pub(crate) type Backend = Arc<dyn Storage + Send + Sync>;

pub(crate) fn storage(location: &Location, memory: Option<&Memory>) -> Result<Backend, Error> {
    let (location, place) = (location.clone(), location.to_string());
    let made = match (location, memory) {
        (_, Some(memory)) => return Ok(Arc::clone(&memory.storage)),
        (Location::Memory(_), None) => return Err(Error::NotInProcess { place }),
        (Location::Local(path), _) => {
            wait(async move { Ok(icechunk::new_local_filesystem_storage(&path).await) })?
        }
        (Location::Bucket { service, bucket, prefix }, _) => match service {
            Service::S3 => {
                let place = place.clone();
                wait(async move { s3_storage(&place, bucket, prefix).await })?
            }
            #[cfg(feature = "gcs")]
            Service::GoogleCloud => icechunk::storage::new_gcs_storage(
                bucket,
                Some(prefix),
                None,
                None,
                Vec::new(),
                Vec::new(),
            ),
            #[cfg(feature = "azure")]
            Service::Azure => {
                let account = azure_account().map_err(|e| failed(&place, "open", e))?;
                wait(async move {
                    let made = icechunk::storage::new_azure_blob_storage(
                        account,
                        bucket,
                        Some(prefix),
                        None,
                        None,
                    );
                    Ok(made.await)
                })?
            }
        },
    };
    made.map_err(|e| failed(&place, "open", e.kind))
}

type Made = Result<Backend, icechunk::storage::StorageError>;

async fn s3_storage(place: &str, bucket: String, prefix: String) -> Result<Made, Error> {
    // Other options come from the environment, like the credentials.
    let flag = |name: &str| {
        std::env::var(name)
            .is_ok_and(|v| ["1", "true", "yes", "on"].contains(&v.to_ascii_lowercase().as_str()))
    };
    let options = S3Options::default()
        .with_allow_http(flag("AWS_ALLOW_HTTP"))
        .with_anonymous(flag("AWS_SKIP_SIGNATURE"));
    let profile = if options.anonymous {
        None
    } else {
        aws::profile_credentials().await.map_err(|e| failed(place, "open", e))?
    };
    let (options, credentials) =
        profile.map_or((options.clone(), None), |profile| of_profile(options, &profile));
    let made = icechunk::new_s3_object_store_storage(
        options,
        bucket,
        Some(prefix),
        credentials,
        Vec::new(),
        Vec::new(),
    );
    Ok(made.await)
}

/// Returns the account that the environment names. Icechunk takes it as an argument only.
#[cfg(feature = "azure")]
fn azure_account() -> Result<String, object_store::Error> {
    use object_store::azure::AzureConfigKey;
    let builder = clouds::azure_container("freestone");
    if let Some(account) = builder.get_config_value(&AzureConfigKey::AccountName) {
        return Ok(account);
    }
    // The emulator has one account; without the emulator, this reports the missing name.
    builder.build().map(|_| "devstoreaccount1".to_owned())
}

/// Returns a profile's credentials for Icechunk. Icechunk does not support renewed credentials, and
/// with static ones ignores the environment.
fn of_profile(options: S3Options, profile: &AwsCredential) -> (S3Options, Option<S3Credentials>) {
    let first = |names: &[&str]| {
        names.iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    };
    let region = first(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
    let endpoint = first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]);
    let credentials = S3StaticCredentials {
        access_key_id: profile.key_id.clone(),
        secret_access_key: profile.secret_key.clone(),
        session_token: profile.token.clone(),
        expires_after: None,
    };
    let options = region.into_iter().fold(options, S3Options::with_region);
    (
        endpoint.into_iter().fold(options, S3Options::with_endpoint_url),
        Some(S3Credentials::Static(credentials)),
    )
}

/// Returns the store of the records of shared sessions. They are beside Icechunk's folders, which
/// are the only ones that Icechunk lists.
pub(crate) fn states(
    location: &Location,
    memory: Option<&Memory>,
) -> Result<Arc<dyn ObjectStore>, Error> {
    let place = location.to_string();
    Ok(match (location, memory) {
        (_, Some(memory)) => Arc::clone(&memory.records),
        (Location::Memory(_), None) => return Err(Error::NotInProcess { place }),
        (Location::Local(path), _) => Arc::new(
            object_store::local::LocalFileSystem::new_with_prefix(path)
                .map_err(|e| failed(&place, "open", e))?,
        ),
        (Location::Bucket { service, bucket, .. }, _) => {
            bucket_of(*service, bucket).map_err(|e| failed(&place, "open", e))?
        }
    })
}

fn bucket_of(service: Service, name: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    Ok(match service {
        Service::S3 => {
            Arc::new(aws::bucket(name)?.with_conditional_put(S3ConditionalPut::ETagMatch).build()?)
        }
        #[cfg(feature = "gcs")]
        Service::GoogleCloud => Arc::new(clouds::google_bucket(name).build()?),
        #[cfg(feature = "azure")]
        Service::Azure => Arc::new(clouds::azure_container(name).build()?),
    })
}

pub(crate) fn exists(location: &Location, memory: Option<&Memory>) -> Result<bool, Error> {
    if location.directory().is_some_and(|d| !d.exists()) {
        return Ok(false);
    }
    let (backend, place) = (storage(location, memory)?, location.to_string());
    wait(async move {
        icechunk::Repository::exists(backend, None)
            .await
            .map_err(|e| failed(&place, "inspect", e.kind))
    })
}

/// A repository in memory: Icechunk's storage and this crate's records.
#[derive(Debug)]
pub(crate) struct Memory {
    storage: Backend,
    records: Arc<dyn ObjectStore>,
}

/// Returns the repository in memory with the location's name. Names are shared by the whole
/// process. Handles keep a repository alive.
pub(crate) fn memory(location: &Location, make: bool) -> Result<Option<Arc<Memory>>, Error> {
    static KNOWN: Mutex<Option<HashMap<String, Weak<Memory>>>> = Mutex::new(None);
    let Location::Memory(name) = location else { return Ok(None) };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    known.retain(|_, m| m.strong_count() > 0);
    if let Some(memory) = known.get(name).and_then(Weak::upgrade) {
        return Ok(Some(memory));
    }
    if !make {
        return Err(Error::NotInProcess { place: location.to_string() });
    }
    let place = location.to_string();
    let storage = wait(async move {
        icechunk::new_in_memory_storage().await.map_err(|e| failed(&place, "create", e.kind))
    })?;
    let memory = Arc::new(Memory { storage, records: Arc::new(InMemory::new()) });
    known.insert(name.clone(), Arc::downgrade(&memory));
    Ok(Some(memory))
}
