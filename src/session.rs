//! Computing into repositories: several arrays, one plan, one commit.

use std::sync::Arc;

use freestone_engine::events::RunReport;
use freestone_engine::executor::Executor;
use freestone_engine::spec::Spec;
use freestone_engine::storage::{Store, Stores};
use freestone_executors::Threads;
use freestone_ops::Array;
use freestone_ops::io::{Target, open_in};
use freestone_sessions::{CommitOptions, Joiner, Repository, RunSession, Version, WritableSession};

use crate::compute::{Options, plan, run_with};
use crate::error::Error;

/// What is to be computed into a repository, by one plan and one commit.
///
/// ```
/// # use freestone::{DType, Settings, Spec};
/// use freestone::sessions::{Format, MAIN, Repository};
///
/// # let folder = tempfile::tempdir()?;
/// # let place = folder.path().join("climate").display().to_string();
/// # let spec = Spec::load(Settings { work_dir: Some(folder.path().join("work").display().to_string()), ..Settings::default() })?;
/// let repository = Repository::open_or_create(&place, Format::default())?;
/// let mut session = freestone::Session::begin(&repository, MAIN)?;
/// let ramp = freestone::arange(0.0, 100.0, 1.0, DType::Float64, 10)?;
/// session.store(&ramp, "ramps/up")?;
/// session.store(&(&ramp * -1.0), "ramps/down")?;
/// let report = session.commit("two ramps", &spec)?;
///
/// let down = freestone::open_version(&repository, MAIN, "ramps/down")?;
/// assert_eq!(freestone::compute::<f64>(&down, &spec)?.sum(), -4950.0);
/// assert_eq!(report.snapshot, Some(repository.history(&freestone::sessions::Version::Branch(MAIN.into()))?[0].id.clone()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Nothing is written before [`commit`](Session::commit), and nothing is visible before that has ended well.
#[derive(Debug)]
pub struct Session {
    how: How,
    targets: Vec<Target>,
    stores: Stores,
}

#[derive(Debug)]
enum How {
    Own(WritableSession),
    Joined(RunSession, Arc<dyn Store>),
}

impl Session {
    /// Begins at the newest snapshot of a branch.
    ///
    /// # Errors
    /// Where there is no such branch.
    pub fn begin(repository: &Repository, branch: &str) -> Result<Session, Error> {
        Ok(Session::of(repository.writable_session(branch)?))
    }

    /// With a session that was begun elsewhere, and what it has changed already.
    pub fn of(session: WritableSession) -> Session {
        let stores = crate::stores();
        stores.insert(session.store());
        Session { how: How::Own(session), targets: Vec::new(), stores }
    }

    /// With a shared session that was joined: [`commit`](Session::commit) adds the results to it, and who made it commits them with those of others.
    pub fn joined(joiner: Joiner) -> Session {
        let stores = crate::stores();
        let store = joiner.store();
        stores.insert(Arc::clone(&store));
        Session { how: How::Joined(RunSession::joining(joiner), store), targets: Vec::new(), stores }
    }

    /// The session itself, to make groups, set attributes, resize, write chunks; none where a shared one was joined.
    pub fn writable(&self) -> Option<&WritableSession> {
        match &self.how {
            How::Own(session) => Some(session),
            How::Joined(..) => None,
        }
    }

    fn seen(&self) -> Arc<dyn Store> {
        match &self.how {
            How::Own(session) => session.store(),
            How::Joined(_, store) => Arc::clone(store),
        }
    }

    /// An array as the session sees it. What it has changed itself can be read in this process only, so on threads.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open(&self, path: &str) -> Result<Array, Error> {
        match &self.how {
            How::Own(session) if !session.has_changed(path) => open_version(session.repository(), Version::Snapshot(session.base().to_owned()), path),
            How::Own(_) | How::Joined(..) => Ok(open_in(&self.seen(), path)?),
        }
    }

    /// Where a result goes in the session, to be given chunks, a codec, a region; then [`add`](Session::add) it. The path leads through groups, which
    /// are made; the coordinates of the array's axes are stored beside it.
    pub fn target(&self, array: &Array, path: &str) -> Target {
        Target::in_group(array, self.seen().url(), path.trim_matches('/')).with_stores(&self.stores)
    }

    /// Will compute what a target of this session says.
    pub fn add(&mut self, target: Target) -> &mut Session {
        self.targets.push(target);
        self
    }

    /// Will compute an array into a path, where nothing is yet.
    ///
    /// # Errors
    /// What an operator left in the array.
    pub fn store(&mut self, array: &Array, path: &str) -> Result<&mut Session, Error> {
        array.shape()?;
        let target = self.target(array, path);
        Ok(self.add(target))
    }

    /// Will append an array to one that is there, along an axis that gets longer by its length. Its other axes are of the same length. What is there
    /// ends where its chunks (or shards) do.
    ///
    /// # Errors
    /// Where the shapes do not fit, or the array that is there ends inside of a chunk; nothing has changed then.
    pub fn append(&mut self, array: &Array, path: &str, axis: usize) -> Result<&mut Session, Error> {
        let How::Own(session) = &self.how else {
            return Err(freestone_ops::Error::Argument("an array is appended by the session that will be committed, not by one that was joined".into()).into());
        };
        let there = self.open(path)?;
        let (before, new) = (there.shape()?, array.shape()?);
        let fits = before.len() == new.len() && before.iter().zip(&new).enumerate().all(|(d, (a, b))| d == axis || a == b);
        if axis >= before.len() || !fits {
            let text = format!(
                "an array of shape {new:?} cannot be appended to `{path}` of shape {before:?} along axis {axis}: all other axes must be of the same length"
            );
            return Err(freestone_ops::Error::Argument(text).into());
        }
        let objects = session.array(path)?.info().object_shape();
        let size = objects[axis].max(1);
        if before[axis] % size != 0 {
            let text = format!(
                "`{path}` ends at {} along axis {axis}, inside of a chunk of {size}: append where a chunk ends, or rewrite it from {} on",
                before[axis],
                before[axis] / size * size
            );
            return Err(freestone_ops::Error::Argument(text).into());
        }
        let mut shape = before.clone();
        shape[axis] += new[axis];
        session.resize(path, &shape)?;
        let region: Vec<_> = shape.iter().enumerate().map(|(d, n)| if d == axis { before[d]..*n } else { 0..*n }).collect();
        let target = self.target(array, path).region(&region);
        Ok(self.add(target))
    }

    /// Plans all that was stored as one plan, runs it on threads, and commits it as one snapshot.
    ///
    /// # Errors
    /// As [`plan`] and [`run`](crate::run); where another commit came first. Nothing is visible then.
    pub fn commit(self, message: &str, spec: &Spec) -> Result<RunReport, Error> {
        self.commit_with(message, spec, &Threads::new(spec.threads), CommitOptions::default(), &Options::default())
    }

    /// As [`commit`](Session::commit), on an executor, with options of the commit and of the run. A session without arrays to compute commits what
    /// was changed otherwise. Of a shared session that was joined, nothing is committed here: `message` and `options` are its creator's.
    ///
    /// # Errors
    /// As [`commit`](Session::commit).
    pub fn commit_with(self, message: &str, spec: &Spec, executor: &dyn Executor, options: CommitOptions, how: &Options<'_>) -> Result<RunReport, Error> {
        if self.targets.is_empty() {
            let snapshot = match self.how {
                How::Own(session) => Some(session.commit_with(message, &options)?),
                // That it ends is all.
                How::Joined(..) => None,
            };
            return Ok(RunReport { snapshot, ..RunReport::default() });
        }
        let planned = plan(&self.targets, spec)?;
        let session = self.publishing(message, options);
        run_with(&planned, spec, executor, &Options { session: Some(&session), ..how.clone() })
    }

    /// What a run needs to commit its results here, or to add them to the session that was joined: for [`Options::session`].
    pub fn publishing(self, message: &str, options: CommitOptions) -> RunSession {
        match self.how {
            How::Own(session) => RunSession::committing(&session, message, options),
            How::Joined(session, _) => session,
        }
    }
}

/// An array as a version of a repository has it: `"main"` or any other branch's name, or a [`Version`]. Its plans name the snapshot, so they read
/// that, whatever is committed later.
///
/// # Errors
/// Where there is no such version, or no array in it.
pub fn open_version(repository: &Repository, version: impl Into<Version>, path: &str) -> Result<Array, Error> {
    Ok(open_in(&repository.readonly_session(&version.into())?.store(), path)?)
}
