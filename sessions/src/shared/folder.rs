//! What a shared session's folder says: its records, the newest generation of its state, who has
//! joined.
//!
//! Records are created once, so that two who do the same at one time are told apart by who was
//! first; the table of them is in `shared`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::SharedSession;
use crate::commit::Mark;
use crate::draft::NodeChange;
use crate::error::{Closed, Error};
use crate::receipt::VERSION;
use crate::record::numbered;

/// What was said of a session when it was shared.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    /// Version of the program, for people.
    pub(super) program: String,
    pub(super) id: String,
    pub(super) branch: String,
    pub(super) base: String,
    pub(super) message: String,
    /// Milliseconds since 1970.
    pub(super) created_at: u64,
    pub(super) mark: Option<Mark>,
    pub(super) nodes: BTreeMap<String, NodeChange>,
}

/// One generation of a session's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Generation {
    pub(super) version: u32,
    pub(super) state: State,
    /// Milliseconds since 1970.
    pub(super) expires_at: u64,
    /// Who made it: tells two that were made at once apart.
    pub(super) by: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Open,
    Committing,
    Committed {
        snapshot: String,
        /// Names of joiners whose writes are not in it.
        #[serde(default)]
        dropped: Vec<String>,
    },
    Abandoned,
}

/// Somebody writes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Joined {
    pub(super) version: u32,
    pub(super) at: u64,
    pub(super) process: u32,
    /// Tells two that came at once apart.
    pub(super) by: String,
}

/// And has closed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JoinedClosed {
    pub(super) at: u64,
    /// Batches of receipts that it has told.
    #[serde(default)]
    pub(super) batches: u64,
}

/// Those who joined under one name, one after the other.
#[derive(Debug, Default)]
pub(super) struct Turns {
    pub(super) newest: u64,
    /// The last one that closed.
    pub(super) closed: u64,
    /// The last one that took back all that was written until then.
    pub(super) dropped: u64,
    /// Turn, number of chunks, and key of each batch of receipts, in order.
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

    /// The newest generation, and its number.
    pub(super) fn generation(&self) -> Result<(u64, Generation), Error> {
        let number = self.newest_generation()?;
        let generation = self
            .repository
            .records()
            .get(&self.key(&format!("state/{}", numbered(number))))?
            .ok_or_else(|| self.no_session())?;
        Ok((number, generation))
    }

    /// The number of the newest generation.
    pub(super) fn newest_generation(&self) -> Result<u64, Error> {
        let names = self.repository.records().list(&self.key("state"))?;
        let newest = names.last().ok_or_else(|| self.no_session())?;
        newest.trim_end_matches(".json").parse().map_err(|_| Error::Damaged {
            place: self.key("state"),
            why: format!("`{newest}` is no number"),
        })
    }

    /// The newest generation, if it takes writes.
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

    /// Makes the next generation; refused if somebody else has made it.
    pub(super) fn swap(&self, number: u64, state: State, expires_at: u64) -> Result<u64, Error> {
        self.create(
            &format!("state/{}", numbered(number + 1)),
            &Generation { version: VERSION, state, expires_at, by: crate::new_id() },
        )?;
        Ok(number + 1)
    }

    /// Who has joined, by name.
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
