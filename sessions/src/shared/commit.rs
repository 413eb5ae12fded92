//! How what all joiners wrote becomes one commit.
//!
//! While the state is `Committing` nobody joins or writes, so that what is gathered is all there
//! is. Each step can be found half done by whoever commits the session again.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::folder::{JoinedClosed, Record, State, Turns};
use super::{JoinerStatus, SharedSession};
use crate::commit::{Commit, CommitOptions};
use crate::draft::{Draft, NodeChange};
use crate::error::Error;
use crate::receipt::{Batch, Receipts};

/// How to commit a shared session.
#[derive(Clone, Debug, Default)]
pub struct SharedCommit {
    /// As for any session.
    pub options: CommitOptions,
    /// What open joiners wrote is dropped, instead of refusing the commit because of them.
    pub force: bool,
}

/// A shared session was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The snapshot's id.
    pub snapshot: String,
    /// Joiners that had not closed: what they wrote is not in it.
    pub dropped: Vec<JoinerStatus>,
}

/// The property of a snapshot that says which joiners' writes are not in it: names, and numbers of
/// chunks.
const DROPPED_PROPERTY: &str = "freestone_dropped";

impl SharedSession {
    /// Commits what all joiners wrote, with the message that the session was made with.
    ///
    /// # Errors
    /// As [`commit_with`](SharedSession::commit_with).
    pub fn commit(&self) -> Result<Committed, Error> {
        self.commit_with(&SharedCommit::default())
    }

    /// As [`commit`](SharedSession::commit), with options. A session whose coordinator died while
    /// it committed is committed by this too, or its snapshot found.
    ///
    /// # Errors
    /// [`Error::OpenJoiners`] with their names, [`Error::Closed`], [`Error::WrittenTwice`], and as
    /// [`WritableSession::commit_with`](crate::WritableSession::commit_with). After these the
    /// session is open again.
    pub fn commit_with(&self, how: &SharedCommit) -> Result<Committed, Error> {
        let record = self.record()?;
        let (number, generation) = match self.open_generation() {
            Ok(open) => open,
            Err(Error::Committing { .. }) => {
                // Where the coordinator lives on, whoever comes first moves the branch; the other
                // then finds the snapshot.
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
        // Who is asked to wait need not be told that the session is being committed.
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

    /// Commits while nobody joins or writes.
    fn gather_and_commit(&self, record: &Record, how: &SharedCommit) -> Result<Committed, Error> {
        // Looked at once more: somebody may have joined before the state said `Committing`.
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

    /// All that who has closed last says to have told is there.
    fn check_told(&self, name: &str, turns: &Turns) -> Result<(), Error> {
        if turns.closed <= turns.dropped {
            return Ok(());
        }
        let key = self.key(&format!("joiners/{name}/{:06}.closed.json", turns.closed));
        let closed = self.repository.records().get::<JoinedClosed>(&key)?;
        let said = closed
            .ok_or_else(|| Error::Damaged { place: key, why: "it was listed and is gone".into() })?
            .batches;
        let found = turns.receipts.iter().filter(|(turn, ..)| *turn == turns.closed).count() as u64;
        if found < said {
            let why = format!(
                "{found} of the {said} records of what `{name}` has written are there: run it \
                    again, or take back what it wrote"
            );
            return Err(Error::Damaged { place: self.key(&format!("receipts/{name}")), why });
        }
        Ok(())
    }

    /// What was written under one name: of those who came one after the other, the later counts.
    /// What was written after the last one closed is dropped.
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
            let batch = batch
                .ok_or_else(|| Error::Damaged { place: key.clone(), why: "it is gone".into() })?;
            batch.check(&self.id)?;
            batches.push(batch);
        }
        // What a run has told in part, before it died, is nothing.
        let ended: BTreeSet<String> =
            batches.iter().filter(|b| b.ends).filter_map(|b| b.run.clone()).collect();
        for batch in
            batches.into_iter().filter(|b| b.run.as_ref().is_none_or(|run| ended.contains(run)))
        {
            for (path, change) in batch.nodes {
                // What was written into an array that was made anew since goes with that.
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

    /// Notes that it is committed. Who has taken over meanwhile notes the same.
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
