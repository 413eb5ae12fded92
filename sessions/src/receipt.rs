//! Receipts of written chunks, which workers return and commits consist of.
//!
//! A receipt is a record of this crate, not of Icechunk. It is stable between versions and contains
//! no credentials.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

use crate::draft::NodeChange;
use crate::error::Error;

/// The version of records in files and messages between processes.
pub(crate) const VERSION: u32 = 1;

/// The maximum size of inline chunks, whose bytes are in the receipt and the manifest instead of an
/// object. This is Icechunk's default.
pub(crate) const INLINE_BYTES: usize = 512;

/// The receipt of a written chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The path of the array in the repository.
    pub array: String,
    /// The coordinates of the chunk, or of the shard of a sharded array.
    pub chunk: Vec<u32>,
    /// The result of the write.
    pub written: Written,
    /// The xxh3-64 hash of the encoded bytes, or 0 for fill values.
    pub hash: u64,
}

/// The result of writing a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Written {
    /// All elements are the fill value, so nothing is stored.
    Fill,
    /// A small chunk, stored inline.
    Inline {
        /// The encoded bytes.
        #[serde(with = "hex")]
        bytes: Vec<u8>,
    },
    /// A part of an object in the repository.
    Object {
        /// The object's id.
        #[serde(with = "hex")]
        id: [u8; 12],
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
}

impl Receipt {
    /// Returns the receipt of a chunk of fill values.
    pub fn fill(array: &str, chunk: &[u32]) -> Receipt {
        Receipt { array: array.to_owned(), chunk: chunk.to_vec(), written: Written::Fill, hash: 0 }
    }

    /// Returns the receipt of an inline chunk.
    pub fn inline(array: &str, chunk: &[u32], bytes: &[u8]) -> Receipt {
        Receipt {
            array: array.to_owned(),
            chunk: chunk.to_vec(),
            written: Written::Inline { bytes: bytes.to_vec() },
            hash: xxh3_64(bytes),
        }
    }

    /// Returns the receipt of a chunk that was written for a session as an object with this length
    /// and xxh3-64 hash.
    ///
    /// The object's id follows from the arguments. The engine's receipts are therefore sufficient
    /// to find the object, and a repeated task writes the same object again.
    pub fn object(session: &str, array: &str, chunk: &[u32], len: u64, hash: u64) -> Receipt {
        let id = object_id(session, array, chunk, len, hash);
        Receipt {
            array: array.to_owned(),
            chunk: chunk.to_vec(),
            written: Written::Object { id, offset: 0, len },
            hash,
        }
    }
}

/// Returns the id of the object of a chunk.
fn object_id(session: &str, array: &str, chunk: &[u32], len: u64, hash: u64) -> [u8; 12] {
    let mut digest = Sha256::new();
    for text in [session, array] {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    chunk.iter().for_each(|c| digest.update(c.to_le_bytes()));
    digest.update(len.to_le_bytes());
    digest.update(hash.to_le_bytes());
    let mut id = [0; 12];
    id.copy_from_slice(&digest.finalize()[..12]);
    id
}

/// The result of writing a chunk, and the hash.
pub(crate) type Placed = (Written, u64);

/// Receipts by array and chunk, each chunk once.
#[derive(Clone, Debug, Default)]
pub struct Receipts {
    arrays: BTreeMap<String, Chunks>,
}

/// The chunks of one array in insertion order, with about 50 bytes per chunk. The driver holds
/// those of all outputs of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunks {
    /// The number of coordinates of each chunk.
    rank: usize,
    /// The coordinates of all chunks.
    coords: Vec<u32>,
    placed: Vec<Placed>,
    /// The indices of chunks by their coordinates.
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl Chunks {
    /// Returns the number of chunks.
    pub(crate) fn len(&self) -> usize {
        self.placed.len()
    }

    /// Returns true if there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.placed.is_empty()
    }

    /// Returns the result of writing a chunk.
    pub(crate) fn get(&self, chunk: &[u32]) -> Option<&Placed> {
        let number =
            self.numbers.find(self.hasher.hash_one(chunk), |n| self.coords_of(*n) == chunk)?;
        self.placed.get(*number as usize)
    }

    /// Returns the chunk at an index.
    pub(crate) fn nth(&self, number: u32) -> Option<(&[u32], &Placed)> {
        self.placed.get(number as usize).map(|placed| (self.coords_of(number), placed))
    }

    /// Returns all chunks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u32], &Placed)> {
        (0..self.len() as u32).filter_map(|n| self.nth(n))
    }

    /// Returns all indices in an order in which insertion into a [`BTreeMap`] fills its nodes.
    /// Icechunk stores changes in one.
    ///
    /// A node has room for 11 keys. Insertion in order leaves 6 keys in each node: the twelfth
    /// insertion moves the seventh key up and starts a new node. Therefore a first round inserts
    /// every other key and the last of each twelve, and a second round the five keys between them.
    pub(crate) fn for_tree(&self) -> Vec<u32> {
        let mut sorted: Vec<u32> = (0..self.len() as u32).collect();
        sorted.sort_unstable_by_key(|n| self.coords_of(*n));
        let is_first = |(at, _): &(usize, u32)| at % 12 % 2 == 0 || at % 12 == 11;
        let round = |first: bool| {
            sorted.iter().copied().enumerate().filter(move |i| is_first(i) == first).map(|(_, n)| n)
        };
        round(true).chain(round(false)).collect()
    }

    fn coords_of(&self, number: u32) -> &[u32] {
        &self.coords[number as usize * self.rank..][..self.rank]
    }

    /// Adds or replaces a chunk. Returns false if other chunks have another number of coordinates.
    #[must_use]
    fn insert(&mut self, chunk: &[u32], placed: Placed) -> bool {
        if self.is_empty() {
            self.rank = chunk.len();
        }
        if self.rank != chunk.len() {
            return false;
        }
        let hash = self.hasher.hash_one(chunk);
        if let Some(number) = self.numbers.find(hash, |n| self.coords_of(*n) == chunk) {
            let number = *number as usize;
            self.placed[number] = placed;
            return true;
        }
        let Chunks { rank, coords, numbers, hasher, .. } = self;
        // A manifest does not support more chunks.
        let number = self.placed.len() as u32;
        coords.extend_from_slice(chunk);
        numbers.insert_unique(hash, number, |n| {
            hasher.hash_one(&coords[*n as usize * *rank..][..*rank])
        });
        self.placed.push(placed);
        true
    }
}

impl Receipts {
    /// Adds a receipt. A duplicate changes nothing.
    ///
    /// # Errors
    /// Returns [`Error::WrittenTwice`] if the chunk has a receipt of other contents, and
    /// [`Error::NoChunk`] if the array's other chunks have another rank.
    pub fn add(&mut self, receipt: Receipt) -> Result<(), Error> {
        if let Some((written, hash)) = self.get(&receipt.array, &receipt.chunk) {
            let fill = |w: &Written| matches!(w, Written::Fill);
            if *hash == receipt.hash && fill(written) == fill(&receipt.written) {
                return Ok(());
            }
            return Err(Error::WrittenTwice { array: receipt.array, chunk: receipt.chunk });
        }
        self.replace(receipt)
    }

    /// Adds a receipt, replacing an earlier one of the same writer.
    ///
    /// # Errors
    /// Returns [`Error::NoChunk`] if the array's other chunks have another rank.
    pub(crate) fn replace(&mut self, receipt: Receipt) -> Result<(), Error> {
        let chunks = match self.arrays.get_mut(&receipt.array) {
            Some(chunks) => chunks,
            None => self.arrays.entry(receipt.array.clone()).or_default(),
        };
        if chunks.insert(&receipt.chunk, (receipt.written, receipt.hash)) {
            return Ok(());
        }
        Err(Error::NoChunk {
            array: receipt.array,
            chunk: receipt.chunk.into_iter().map(u64::from).collect(),
        })
    }

    /// Returns the result of writing a chunk.
    pub(crate) fn get(&self, array: &str, chunk: &[u32]) -> Option<&Placed> {
        self.arrays.get(array)?.get(chunk)
    }

    /// Returns all arrays with their chunks.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = (&String, &Chunks)> {
        self.arrays.iter()
    }

    /// Removes an array.
    pub(crate) fn remove(&mut self, array: &str) {
        self.arrays.remove(array);
    }

    /// Returns the number of chunks.
    pub fn len(&self) -> usize {
        self.arrays.values().map(Chunks::len).sum()
    }

    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.arrays.values().all(Chunks::is_empty)
    }

    /// Returns the number of chunks of an array.
    pub fn n_chunks(&self, array: &str) -> usize {
        self.arrays.get(array).map_or(0, Chunks::len)
    }

    /// Returns all receipts.
    pub fn to_vec(&self) -> Vec<Receipt> {
        let of = |array: &String, (chunk, (written, hash)): (&[u32], &Placed)| Receipt {
            array: array.clone(),
            chunk: chunk.to_vec(),
            written: written.clone(),
            hash: *hash,
        };
        self.arrays
            .iter()
            .flat_map(|(array, chunks)| chunks.iter().map(move |c| of(array, c)))
            .collect()
    }
}

/// A batch of receipts of one session, as a message between processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The version of this record.
    pub version: u32,
    /// The id of the session.
    pub session: String,
    /// The writer's changes of arrays and groups.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) nodes: BTreeMap<String, NodeChange>,
    /// The run of the receipts. They count only with a batch that ends the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<String>,
    /// True if this is the last batch of the run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ends: bool,
    /// The receipts.
    pub receipts: Vec<Receipt>,
}

impl Batch {
    pub(crate) fn new(session: &str, receipts: Vec<Receipt>) -> Batch {
        Batch {
            version: VERSION,
            session: session.to_owned(),
            nodes: BTreeMap::new(),
            run: None,
            ends: false,
            receipts,
        }
    }

    /// Checks the session and the version.
    pub(crate) fn check(&self, session: &str) -> Result<(), Error> {
        if self.version != VERSION {
            return Err(Error::Version { what: "a receipt", found: self.version, known: VERSION });
        }
        if self.session != session {
            return Err(Error::Foreign {
                found: self.session.clone(),
                expected: session.to_owned(),
            });
        }
        Ok(())
    }
}

/// Bytes as hexadecimal text: short in JSON, and the same everywhere.
mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(
        bytes: impl AsRef<[u8]>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
        s.serialize_str(
            &bytes.as_ref().iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect::<String>(),
        )
    }

    pub(super) fn deserialize<'de, T: TryFrom<Vec<u8>>, D: Deserializer<'de>>(
        d: D,
    ) -> Result<T, D::Error> {
        let text = String::deserialize(d)?;
        let pair = |p: &[u8]| {
            std::str::from_utf8(p)
                .ok()
                .filter(|_| p.len() == 2)
                .and_then(|p| u8::from_str_radix(p, 16).ok())
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(pair).collect();
        let bytes = bytes.ok_or_else(|| D::Error::custom("no hexadecimal number"))?;
        T::try_from(bytes).map_err(|_| D::Error::custom("a number of another length was expected"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_round_trip_as_json() {
        let batch = Batch::new(
            "s",
            vec![
                Receipt::fill("a", &[0]),
                Receipt::inline("a", &[1], b"\x00\xffx"),
                Receipt::object("s", "a/b", &[2, 3], 9, 7),
            ],
        );
        let text = serde_json::to_string(&batch).unwrap();
        assert_eq!(serde_json::from_str::<Batch>(&text).unwrap(), batch);
        assert!(text.contains("00ff78"), "{text}");
        assert!(matches!(batch.check("t"), Err(Error::Foreign { .. })));
    }

    #[test]
    fn repeated_receipts_must_have_equal_contents() {
        let mut receipts = Receipts::default();
        receipts.add(Receipt::object("s", "a", &[0], 9, 7)).unwrap();
        receipts.add(Receipt::object("s", "a", &[0], 9, 7)).unwrap();
        assert_eq!(receipts.len(), 1);
        for other in [
            Receipt::object("s", "a", &[0], 9, 8),
            Receipt::fill("a", &[0]),
            Receipt::inline("a", &[0], b"x"),
        ] {
            let Err(Error::WrittenTwice { array, chunk }) = receipts.add(other) else {
                panic!("other contents are refused");
            };
            assert!(array == "a" && chunk == [0]);
        }
    }

    #[test]
    fn object_ids_depend_on_all_arguments() {
        let one = object_id("s", "ab", &[1, 2], 9, 7);
        assert_eq!(one, object_id("s", "ab", &[1, 2], 9, 7));
        for other in [
            object_id("sa", "b", &[1, 2], 9, 7),
            object_id("s", "ab", &[2, 1], 9, 7),
            object_id("s", "ab", &[1, 2], 8, 7),
            object_id("s", "ab", &[1, 2], 9, 8),
        ] {
            assert_ne!(one, other);
        }
    }
}
