//! The commit of a shared session.
//!
//! In the state `Committing`, nobody can join or write, so the collected receipts are complete. An
//! interrupted commit can be repeated after any step.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::folder::{JoinedClosed, Record, State, Turns};
use super::{JoinerStatus, SharedSession};
use crate::commit::{Commit, CommitOptions};
use crate::draft::{Draft, NodeChange};
use crate::error::Error;
use crate::receipt::{Batch, Receipts};

/// The options of the commit of a shared session.
#[derive(Clone, Debug, Default)]
pub struct SharedCommit {
    /// The options of all commits.
    pub options: CommitOptions,
    /// True to drop the changes of open joiners. Otherwise open joiners prevent the commit.
    pub force: bool,
}

/// The result of the commit of a shared session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The snapshot's id.
    pub snapshot: String,
    /// The joiners that had not closed, whose changes are not in the snapshot.
    pub dropped: Vec<JoinerStatus>,
}

/// The property of a snapshot that lists dropped joiners and their numbers of chunks.
const DROPPED_PROPERTY: &str = "freestone_dropped";

impl SharedSession {
    /// Commits the changes of all joiners with the session's message.
    ///
    /// # Errors
    /// Returns the errors of [`commit_with`](SharedSession::commit_with).
    pub fn commit(&self) -> Result<Committed, Error> {
        self.commit_with(&SharedCommit::default())
    }

    /// Commits like [`commit`](SharedSession::commit), with options. Also completes the commit of a
    /// process that ended during it, or finds its snapshot.
    ///
    /// # Errors
    /// Returns [`Error::OpenJoiners`] with their names, [`Error::Closed`], [`Error::WrittenTwice`],
    /// or the errors of [`WritableSession::commit_with`](crate::WritableSession::commit_with).
    /// After an error other than [`Error::Closed`], the session is open again.
    pub fn commit_with(&self, how: &SharedCommit) -> Result<Committed, Error> {
        let record = self.record()?;
        let (number, generation) = match self.open_generation() {
            Ok(open) => open,
            Err(Error::Committing { .. }) => {
                // If the other committing process is alive, one of the two moves the branch first,
                // and the other finds its snapshot.
                let (number, generation) = self.generation()?;
                if let Some(snapshot) =
                    self.repository.committed(&self.id, &record.branch, &record.base)?
                {
                    let of = |(name, n): (&String, &Value)| JoinerStatus {
                        name: name.clone(),
                        open: true,
                        n_chunks: n.as_u64().unwrap_or(0),
                    };
                    let dropped = snapshot
                        .properties
                        .get(DROPPED_PROPERTY)
                        .and_then(Value::as_object)
                        .into_iter()
                        .flatten()
                        .map(of)
                        .collect();
                    return self.finish(
                        number,
                        generation.expires_at,
                        Committed { snapshot: snapshot.id, dropped },
                    );
                }
                (number, generation)
            }
            Err(e) => return Err(e),
        };
        // Open joiners prevent the commit before it changes the state.
        if generation.state == State::Open && !how.force {
            self.refuse_open(&self.joiners()?)?;
        }
        let number = self.swap(number, State::Committing, generation.expires_at)?;
        match self.gather_and_commit(&record, how) {
            Ok(done) => self.finish(number, generation.expires_at, done),
            Err(e) => {
                let _ = self.swap(number, State::Open, generation.expires_at);
                Err(e)
            }
        }
    }

    fn refuse_open(&self, joiners: &BTreeMap<String, Turns>) -> Result<(), Error> {
        let open: Vec<String> =
            joiners.iter().filter(|(_, j)| j.is_open()).map(|(name, _)| name.clone()).collect();
        if open.is_empty() {
            Ok(())
        } else {
            Err(Error::OpenJoiners { session: self.id.clone(), joiners: open })
        }
    }

    /// Commits while the state excludes joiners and writers.
    fn gather_and_commit(&self, record: &Record, how: &SharedCommit) -> Result<Committed, Error> {
        // Checked again, because a process may have joined before the state was `Committing`.
        let joiners = self.joiners()?;
        if !how.force {
            self.refuse_open(&joiners)?;
        }
        let mut draft = Draft { nodes: record.nodes.clone(), ..Draft::default() };
        let mut dropped = Vec::new();
        for (name, turns) in &joiners {
            self.check_told(name, turns)?;
            let (nodes, receipts) = self.written_by(turns)?;
            draft.merge_nodes(nodes)?;
            receipts.to_vec().into_iter().try_for_each(|r| draft.receipts.add(r))?;
            if turns.is_open() {
                let n_chunks = turns
                    .receipts
                    .iter()
                    .filter(|(turn, ..)| *turn > turns.closed)
                    .map(|(_, n, _)| n)
                    .sum();
                dropped.push(JoinerStatus { name: name.clone(), open: true, n_chunks });
            }
        }
        let mut options = how.options.clone();
        if !dropped.is_empty() {
            let names: Map<String, Value> =
                dropped.iter().map(|j| (j.name.clone(), j.n_chunks.into())).collect();
            options.properties.insert(DROPPED_PROPERTY.to_owned(), Value::Object(names));
        }
        let Record { branch, base, message, mark, .. } = record;
        let commit = Commit {
            branch,
            base,
            session: &self.id,
            mark: *mark,
            message,
            options: &options,
            is_cancelled: &|| false,
        };
        let snapshot = self.repository.commit(&commit, &draft)?;
        Ok(Committed { snapshot, dropped })
    }

    /// Checks that all batches that the last closed joiner of a name has flushed exist.
    fn check_told(&self, name: &str, turns: &Turns) -> Result<(), Error> {
        if turns.closed <= turns.dropped {
            return Ok(());
        }
        let key = self.key(&format!("joiners/{name}/{:06}.closed.json", turns.closed));
        let closed = self.repository.records().get::<JoinedClosed>(&key)?;
        let said = closed
            .ok_or_else(|| Error::Damaged {
                place: key,
                why: "it was listed but is missing".into(),
            })?
            .batches;
        let found = turns.receipts.iter().filter(|(turn, ..)| *turn == turns.closed).count() as u64;
        if found < said {
            let why = format!(
                "{found} of the {said} records of joiner `{name}` exist (hint: run it again, or \
                    retract its changes)"
            );
            return Err(Error::Damaged { place: self.key(&format!("receipts/{name}")), why });
        }
        Ok(())
    }

    /// Returns the changes of all joiners of one name. Later joiners have precedence. Changes after
    /// the last one closed are dropped.
    fn written_by(&self, turns: &Turns) -> Result<(BTreeMap<String, NodeChange>, Receipts), Error> {
        let counts = |turn: u64| turn > turns.dropped && (!turns.is_open() || turn <= turns.closed);
        let keys: Vec<String> = turns
            .receipts
            .iter()
            .filter(|(turn, ..)| counts(*turn))
            .map(|(.., key)| key.clone())
            .collect();
        let (mut nodes, mut receipts) = (BTreeMap::new(), Receipts::default());
        let mut batches = Vec::new();
        for (batch, key) in
            self.repository.records().get_all::<Batch>(&keys)?.into_iter().zip(&keys)
        {
            let batch = batch.ok_or_else(|| Error::Damaged {
                place: key.clone(),
                why: "it is missing".into(),
            })?;
            batch.check(&self.id)?;
            batches.push(batch);
        }
        // The changes of runs that have not ended are ignored.
        let ended: BTreeSet<String> =
            batches.iter().filter(|b| b.ends).filter_map(|b| b.run.clone()).collect();
        for batch in
            batches.into_iter().filter(|b| b.run.as_ref().is_none_or(|run| ended.contains(run)))
        {
            for (path, change) in batch.nodes {
                // Chunks of an array that was created again since are dropped.
                if nodes
                    .get(&path)
                    .is_some_and(|known: &NodeChange| known.document() != change.document())
                {
                    receipts.remove(&path);
                }
                nodes.insert(path, change);
            }
            batch.receipts.into_iter().try_for_each(|r| receipts.replace(r))?;
        }
        Ok((nodes, receipts))
    }

    /// Records the commit. A concurrent commit of the same session records the same.
    fn finish(
        &self,
        mut number: u64,
        expires_at: u64,
        done: Committed,
    ) -> Result<Committed, Error> {
        let dropped: Vec<String> = done.dropped.iter().map(|j| j.name.clone()).collect();
        loop {
            match self.swap(
                number,
                State::Committed { snapshot: done.snapshot.clone(), dropped: dropped.clone() },
                expires_at,
            ) {
                Err(Error::Stale { .. }) => {
                    let (newest, generation) = self.generation()?;
                    if matches!(generation.state, State::Committed { .. }) {
                        return Ok(done);
                    }
                    number = newest;
                }
                other => return other.map(|_| done),
            }
        }
    }
}
