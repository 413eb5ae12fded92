//! Proof that a chunk was written: what workers give back, and what a commit is made of.
//!
//! A receipt is this crate's own record, not Icechunk's: it is stable between versions, and holds
//! no credentials.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

use crate::draft::NodeChange;
use crate::error::Error;

/// Version of what is written to files and sent between processes.
pub(crate) const VERSION: u32 = 1;

/// Chunks of at most that many bytes need no object: their bytes are in the receipt, and then in
/// the manifest. Icechunk's own default.
pub(crate) const INLINE_BYTES: usize = 512;

/// One chunk of one array was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Path of the array in the repository.
    pub array: String,
    /// The chunk's coordinates; of a sharded array, the shard's.
    pub chunk: Vec<u32>,
    /// What became of it.
    pub written: Written,
    /// xxh3-64 of the encoded bytes; 0 for fill values.
    pub hash: u64,
}

/// What became of a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Written {
    /// Every element is the fill value: there is nothing to store.
    Fill,
    /// It is so small that its bytes are here.
    Inline {
        /// Encoded bytes.
        #[serde(with = "hex")]
        bytes: Vec<u8>,
    },
    /// It is part of an object in the repository.
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
    /// Of a chunk of fill values.
    pub fn fill(array: &str, chunk: &[u32]) -> Receipt {
        Receipt { array: array.to_owned(), chunk: chunk.to_vec(), written: Written::Fill, hash: 0 }
    }

    /// Of a chunk whose encoded bytes are kept in the receipt.
    pub fn inline(array: &str, chunk: &[u32], bytes: &[u8]) -> Receipt {
        Receipt {
            array: array.to_owned(),
            chunk: chunk.to_vec(),
            written: Written::Inline { bytes: bytes.to_vec() },
            hash: xxh3_64(bytes),
        }
    }

    /// Of a chunk that was written for a session as an object of so many bytes with that xxh3-64
    /// hash.
    ///
    /// The object's id follows from these, so that a receipt which knows nothing of Icechunk (the
    /// engine's) is enough to find the object, and a task that is run again writes the same object
    /// again instead of leaving an orphan.
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

/// The id of the object that holds a chunk's bytes.
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

/// What is known of a written chunk: how, and its hash.
pub(crate) type Placed = (Written, u64);

/// Receipts by array and chunk, each chunk once.
#[derive(Clone, Debug, Default)]
pub struct Receipts {
    arrays: BTreeMap<String, Chunks>,
}

/// One array's chunks, in the order in which they came. Some 50 bytes a chunk: a run's client holds
/// those of all of its outputs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunks {
    /// Coordinates of each.
    rank: usize,
    /// Coordinates, one chunk's after the other.
    coords: Vec<u32>,
    placed: Vec<Placed>,
    /// Numbers of chunks, by their coordinates.
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl Chunks {
    /// Number of chunks.
    pub(crate) fn len(&self) -> usize {
        self.placed.len()
    }

    /// True if there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.placed.is_empty()
    }

    /// What is known of a chunk.
    pub(crate) fn get(&self, chunk: &[u32]) -> Option<&Placed> {
        let number =
            self.numbers.find(self.hasher.hash_one(chunk), |n| self.coords_of(*n) == chunk)?;
        self.placed.get(*number as usize)
    }

    /// The chunk of a number.
    pub(crate) fn nth(&self, number: u32) -> Option<(&[u32], &Placed)> {
        self.placed.get(number as usize).map(|placed| (self.coords_of(number), placed))
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u32], &Placed)> {
        (0..self.len() as u32).filter_map(|n| self.nth(n))
    }

    /// Numbers of all, in an order in which a [`BTreeMap`] that takes them has full nodes. Icechunk
    /// keeps changes in one.
    ///
    /// A node has room for 11. Keys that come in their order leave 6 in each: where a twelfth
    /// comes, the seventh goes up and a new node begins. So of each twelve, every other and the
    /// last come in a first round, and in a second one the five that lie between the six.
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

    /// Adds a chunk, or replaces what is known of it. False if the others have another number of
    /// coordinates.
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
        // A manifest has no room for more chunks than there are such numbers.
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
    /// Adds one; the same again changes nothing.
    ///
    /// # Errors
    /// [`Error::WrittenTwice`] where the chunk has a receipt of other content, [`Error::NoChunk`]
    /// where the array's others have another rank.
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

    /// Adds one, in place of what the same writer wrote before.
    ///
    /// # Errors
    /// [`Error::NoChunk`] as [`add`](Receipts::add).
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

    /// What is known of a chunk.
    pub(crate) fn get(&self, array: &str, chunk: &[u32]) -> Option<&Placed> {
        self.arrays.get(array)?.get(chunk)
    }

    /// Arrays with their chunks.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = (&String, &Chunks)> {
        self.arrays.iter()
    }

    /// Forgets an array.
    pub(crate) fn remove(&mut self, array: &str) {
        self.arrays.remove(array);
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.arrays.values().map(Chunks::len).sum()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.arrays.values().all(Chunks::is_empty)
    }

    /// Number of chunks of an array.
    pub fn n_chunks(&self, array: &str) -> usize {
        self.arrays.get(array).map_or(0, Chunks::len)
    }

    /// All of them, to be sent.
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

/// Receipts on their way: of one session, with what a reader must know to trust them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Version of this record.
    pub version: u32,
    /// The session that they are of.
    pub session: String,
    /// What its writer has made of arrays and groups.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) nodes: BTreeMap<String, NodeChange>,
    /// The run that they are of, if of one: they count once its end was told, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<String>,
    /// All of the run's receipts are told.
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

    /// Finds out whether these are of a session and of a version that is known.
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
    fn receipts_travel_as_text() {
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
    fn a_chunk_is_written_once_or_with_the_same_content() {
        let mut receipts = Receipts::default();
        receipts.add(Receipt::object("s", "a", &[0], 9, 7)).unwrap();
        receipts.add(Receipt::object("s", "a", &[0], 9, 7)).unwrap();
        assert_eq!(receipts.len(), 1);
        for other in [
            Receipt::object("s", "a", &[0], 9, 8),
            Receipt::fill("a", &[0]),
            Receipt::inline("a", &[0], b"x"),
        ] {
            assert!(
                matches!(receipts.add(other), Err(Error::WrittenTwice { array, chunk }) if array == "a" && chunk == [0])
            );
        }
    }

    #[test]
    fn an_object_is_named_by_all_that_tells_it_from_others() {
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
