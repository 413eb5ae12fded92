//! The folder of a shared session: its record, the generations of its state, and its joiners.
//!
//! Records are created once, so that one of several concurrent processes succeeds. The table of
//! records is in `shared`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::SharedSession;
use crate::commit::Mark;
use crate::draft::NodeChange;
use crate::error::{Closed, Error};
use crate::receipt::VERSION;
use crate::record::numbered;

/// The record of a session at its creation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    /// The version of the program, for display.
    pub(super) program: String,
    pub(super) id: String,
    pub(super) branch: String,
    pub(super) base: String,
    pub(super) message: String,
    /// The creation time in milliseconds since 1970.
    pub(super) created_at: u64,
    pub(super) mark: Option<Mark>,
    pub(super) nodes: BTreeMap<String, NodeChange>,
}

/// A generation of a session's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Generation {
    pub(super) version: u32,
    pub(super) state: State,
    /// The expiry time in milliseconds since 1970.
    pub(super) expires_at: u64,
    /// A unique id, which distinguishes generations that were created concurrently.
    pub(super) by: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Open,
    Committing,
    Committed {
        snapshot: String,
        /// The names of joiners whose changes are not in the snapshot.
        #[serde(default)]
        dropped: Vec<String>,
    },
    Abandoned,
}

/// The record of a joiner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Joined {
    pub(super) version: u32,
    pub(super) at: u64,
    pub(super) process: u32,
    /// A unique id, which distinguishes joiners that joined concurrently.
    pub(super) by: String,
}

/// The record of a closed joiner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JoinedClosed {
    pub(super) at: u64,
    /// The number of flushed batches of receipts.
    #[serde(default)]
    pub(super) batches: u64,
}

/// The successive joiners of one name.
#[derive(Debug, Default)]
pub(super) struct Turns {
    pub(super) newest: u64,
    /// The last joiner that closed.
    pub(super) closed: u64,
    /// The last joiner that retracted all earlier changes of the name.
    pub(super) dropped: u64,
    /// Joiner, number of chunks and key of each batch of receipts, in order.
    pub(super) receipts: Vec<(u64, u64, String)>,
}

impl Turns {
    pub(super) fn is_open(&self) -> bool {
        self.newest > self.closed
    }

    pub(super) fn n_chunks(&self) -> u64 {
        self.receipts.iter().filter(|(turn, ..)| *turn > self.dropped).map(|(_, n, _)| n).sum()
    }
}

impl SharedSession {
    pub(super) fn key(&self, name: &str) -> String {
        format!("sessions/{}/{name}", self.id)
    }

    pub(super) fn create(&self, name: &str, record: &impl Serialize) -> Result<(), Error> {
        if self.repository.records().create(&self.key(name), record)? {
            Ok(())
        } else {
            Err(Error::Stale { session: self.id.clone() })
        }
    }

    pub(super) fn no_session(&self) -> Error {
        Error::NoSession { place: self.repository.url().to_owned(), session: self.id.clone() }
    }

    pub(super) fn record(&self) -> Result<Record, Error> {
        let record: Record = self
            .repository
            .records()
            .get(&self.key("session.json"))?
            .ok_or_else(|| self.no_session())?;
        if record.version != VERSION {
            return Err(Error::Version {
                what: "a session's record",
                found: record.version,
                known: VERSION,
            });
        }
        Ok(record)
    }

    /// Returns the newest generation and its number.
    pub(super) fn generation(&self) -> Result<(u64, Generation), Error> {
        let number = self.newest_generation()?;
        let generation = self
            .repository
            .records()
            .get(&self.key(&format!("state/{}", numbered(number))))?
            .ok_or_else(|| self.no_session())?;
        Ok((number, generation))
    }

    /// Returns the number of the newest generation.
    pub(super) fn newest_generation(&self) -> Result<u64, Error> {
        let names = self.repository.records().list(&self.key("state"))?;
        let newest = names.last().ok_or_else(|| self.no_session())?;
        newest.trim_end_matches(".json").parse().map_err(|_| Error::Damaged {
            place: self.key("state"),
            why: format!("invalid generation `{newest}`: expected a number"),
        })
    }

    /// Returns the newest generation if it accepts writes.
    pub(super) fn open_generation(&self) -> Result<(u64, Generation), Error> {
        let (number, generation) = self.generation()?;
        match &generation.state {
            State::Committed { snapshot, .. } => {
                Err(self.closed(Closed::Committed { snapshot: snapshot.clone() }))
            }
            State::Abandoned => Err(self.closed(Closed::Abandoned)),
            State::Committing => Err(Error::Committing { session: self.id.clone() }),
            State::Open if generation.expires_at <= now() => Err(self.closed(Closed::Expired)),
            State::Open => Ok((number, generation)),
        }
    }

    pub(super) fn closed(&self, state: Closed) -> Error {
        Error::Closed { session: self.id.clone(), state }
    }

    /// Creates the next generation. Fails if another process has created it.
    pub(super) fn swap(&self, number: u64, state: State, expires_at: u64) -> Result<u64, Error> {
        self.create(
            &format!("state/{}", numbered(number + 1)),
            &Generation { version: VERSION, state, expires_at, by: crate::new_id() },
        )?;
        Ok(number + 1)
    }

    /// Returns the joiners by name.
    pub(super) fn joiners(&self) -> Result<BTreeMap<String, Turns>, Error> {
        let records = self.repository.records();
        let mut joiners = BTreeMap::new();
        for name in records.list(&self.key("joiners"))? {
            let mut turns = Turns::default();
            for file in records.list(&self.key(&format!("joiners/{name}")))? {
                let Some(turn) = file.split('.').next().and_then(|n| n.parse::<u64>().ok()) else {
                    continue;
                };
                turns.newest = turns.newest.max(turn);
                if file.ends_with(".closed.json") {
                    turns.closed = turns.closed.max(turn);
                }
                if file.ends_with(".dropped.json") {
                    turns.dropped = turns.dropped.max(turn);
                }
            }
            for file in records.list(&self.key(&format!("receipts/{name}")))? {
                let parts: Vec<u64> = file
                    .trim_end_matches(".json")
                    .split('-')
                    .filter_map(|n| n.parse().ok())
                    .collect();
                if let [turn, _, n_chunks] = parts[..] {
                    turns.receipts.push((
                        turn,
                        n_chunks,
                        self.key(&format!("receipts/{name}/{file}")),
                    ));
                }
            }
            joiners.insert(name, turns);
        }
        Ok(joiners)
    }
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

pub(super) fn time(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}
