//! Storage: stores and their adapters, array metadata, codecs, and reads and writes of chunks.
//!
//! A [`Store`] transfers whole objects and ranges of them: [`LocalStore`], [`MemoryStore`], object
//! stores, and [`TieredStore`] as a memory tier over another store. The module [`mod@array`]
//! defines the layout of an array's chunks in a store, [`codec`] encodes and decodes blocks within
//! bounds, and [`reader`] combines them to read or write one chunk.

pub mod array;
#[cfg(feature = "object-stores")]
#[allow(
    clippy::disallowed_methods,
    reason = "credentials expire by the machine's clock, and a command is waited for"
)]
pub mod aws;
mod blosc;
#[cfg(feature = "object-stores")]
mod client;
#[cfg(any(feature = "gcs", feature = "azure"))]
pub mod clouds;
pub mod codec;
pub mod conformance;
pub(crate) mod consolidated;
mod encoding;
mod error;
#[cfg(feature = "object-stores")]
mod lease;
#[allow(clippy::disallowed_methods, reason = "its errors name their location")]
mod local;
mod location;
mod lock;
mod memory;
pub mod metadata;
#[cfg(feature = "object-stores")]
mod object;
pub mod packing;
pub mod reader;
pub(crate) mod shard;
mod store;
mod stores;
mod tiered;
mod zstd_bound;

pub use array::{ArrayInfo, Keys, StoredArray};
pub use encoding::{CodecName, Encoding, EncodingError};
pub use error::StorageError;
pub use local::LocalStore;
pub use location::{identity, is_in_memory, is_in_repository, is_remote_url, join, split_location};
pub use lock::Lock;
pub use memory::{Counts, MemoryStore};
pub(crate) use store::PART_BYTES;
pub use store::{
    Admit, ByteRange, ObjectPart, PartsRead, PendingRead, PendingWrite, ReadOutcome, SharedBytes,
    Store, read_each, read_small,
};
pub use stores::{Opener, Stores};
pub use tiered::TieredStore;
