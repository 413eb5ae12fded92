//! Buckets of Google Cloud Storage and containers of Azure Blob Storage, configured by `GOOGLE_…`
//! and `AZURE_…` variables.
//!
//! Their clients retry requests as those of [`aws::bucket`](super::aws::bucket) do.

#[cfg(feature = "azure")]
use object_store::azure::MicrosoftAzureBuilder;
#[cfg(feature = "gcs")]
use object_store::gcp::GoogleCloudStorageBuilder;

use super::client::{Connector, retry_config};
use crate::retry::Retry;
use crate::system::System;

/// Returns a builder for a bucket of Google Cloud Storage.
#[cfg(feature = "gcs")]
pub fn google_bucket(name: &str) -> GoogleCloudStorageBuilder {
    google_bucket_with(name, connector())
}

#[cfg(feature = "gcs")]
pub(super) fn google_bucket_with(name: &str, connector: Connector) -> GoogleCloudStorageBuilder {
    GoogleCloudStorageBuilder::from_env()
        .with_retry(retry_config(&connector.retry))
        .with_http_connector(connector)
        .with_bucket_name(name)
}

/// Returns a builder for a container of Azure Blob Storage.
#[cfg(feature = "azure")]
pub fn azure_container(name: &str) -> MicrosoftAzureBuilder {
    azure_container_with(name, connector())
}

#[cfg(feature = "azure")]
pub(super) fn azure_container_with(name: &str, connector: Connector) -> MicrosoftAzureBuilder {
    MicrosoftAzureBuilder::from_env()
        .with_retry(retry_config(&connector.retry))
        .with_http_connector(connector)
        .with_container_name(name)
}

fn connector() -> Connector {
    Connector::new(Retry::REQUESTS, System::default())
}
