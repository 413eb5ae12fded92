//! Results in repositories: several arrays, one plan, one commit.

use std::sync::Arc;

use freestone_engine::events::RunReport;
use freestone_engine::executor::Executor;
use freestone_engine::spec::Spec;
use freestone_engine::storage::metadata::{MetadataError, open_array, open_group};
use freestone_engine::storage::{Store, Stores, join};
use freestone_executors::Threads;
use freestone_ops::io::{Target, coordinate_after, open_in};
use freestone_ops::{Array, Axis, RegionError, concat};
use freestone_sessions::{
    CommitOptions, Joiner, Repository, RepositoryPublisher, Version, WritableSession,
};

use crate::compute::{Plan, RunOptions, plan, run_with};
use crate::error::Error;

/// The arrays that one plan computes and one commit adds to a repository.
///
/// ```
/// # use freestone::{DType, Spec};
/// use freestone::sessions::{Format, MAIN, Repository};
///
/// # let folder = tempfile::tempdir()?;
/// # let place = folder.path().join("climate").display().to_string();
/// # let spec = Spec::builder().work_dir(folder.path().join("work")).build()?;
/// let repository = Repository::open_or_create(&place, Format::default())?;
/// let ramp = freestone::arange(0.0, 100.0, 1.0, DType::Float64, 10);
/// let report = freestone::Session::begin(&repository, MAIN)?
///     .store(&ramp, "ramps/up")?
///     .store(&(&ramp * -1.0), "ramps/down")?
///     .commit("two ramps", &spec)?;
///
/// let down = freestone::open_version(&repository, MAIN, "ramps/down")?;
/// assert_eq!(freestone::compute::<f64>(&down, &spec)?.sum(), -4950.0);
/// let newest = &repository.history(&MAIN.into())?[0];
/// assert_eq!(report.snapshot.as_ref(), Some(&newest.id));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Nothing is written before [`commit`](Session::commit), and nothing is visible until the commit
/// has succeeded.
#[derive(Debug)]
pub struct Session {
    how: How,
    targets: Vec<Target>,
    stores: Stores,
    grown: Vec<Grown>,
}

/// An array that was extended along a named axis.
#[derive(Clone, Debug)]
struct Grown {
    path: String,
    /// The name of the axis, and its position in the array.
    name: String,
    axis: usize,
    /// The length of the axis before and after.
    before: u64,
    after: u64,
    /// The appended array.
    array: Array,
}

impl Grown {
    fn group(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(group, _)| group)
    }

    fn is_along(&self, other: &Grown) -> bool {
        (self.group(), &self.name) == (other.group(), &other.name)
    }
}

#[derive(Debug)]
enum How {
    Own(WritableSession),
    Joined(RepositoryPublisher, Arc<dyn Store>),
    /// The session was committed.
    Ended(Arc<dyn Store>),
}

impl Session {
    /// Begins a session at the newest snapshot of a branch.
    ///
    /// # Errors
    /// Returns an error if the branch does not exist.
    pub fn begin(repository: &Repository, branch: &str) -> Result<Session, Error> {
        Ok(Session::of(repository.writable_session(branch)?))
    }

    /// Wraps an existing session, including its changes.
    pub fn of(session: WritableSession) -> Session {
        let stores = crate::stores();
        stores.insert(session.store());
        Session { how: How::Own(session), targets: Vec::new(), stores, grown: Vec::new() }
    }

    /// Wraps a joined shared session. [`commit`](Session::commit) adds the results to it; its
    /// creator commits them with those of other writers.
    pub fn joined(joiner: Joiner) -> Session {
        let stores = crate::stores();
        let store = joiner.store();
        stores.insert(Arc::clone(&store));
        Session {
            how: How::Joined(RepositoryPublisher::joining(joiner), store),
            targets: Vec::new(),
            stores,
            grown: Vec::new(),
        }
    }

    /// Returns the wrapped session, for access to groups, attributes, resizing and chunks. Returns
    /// `None` for a joined shared session.
    pub fn writable(&self) -> Option<&WritableSession> {
        match &self.how {
            How::Own(session) => Some(session),
            How::Joined(..) | How::Ended(_) => None,
        }
    }

    fn seen(&self) -> Arc<dyn Store> {
        match &self.how {
            How::Own(session) => session.store(),
            How::Joined(_, store) | How::Ended(store) => Arc::clone(store),
        }
    }

    /// Opens an array with the session's changes. Changed arrays can be read in this process only,
    /// hence with executors that use threads.
    ///
    /// # Errors
    /// Returns an error if the array does not exist.
    pub fn open(&self, path: &str) -> Result<Array, Error> {
        match &self.how {
            How::Own(session) if !session.has_changed(path) => open_version(
                session.repository(),
                Version::Snapshot(session.base().to_owned()),
                path,
            ),
            How::Own(_) | How::Joined(..) | How::Ended(_) => Ok(open_in(&self.seen(), path)?),
        }
    }

    /// Returns a target in the session, for options such as chunks, a codec or a region. Pass it to
    /// [`add`](Session::add). Groups in the path are created. The coordinates of the array's axes
    /// are stored in the same group.
    pub fn target(&self, array: &Array, path: &str) -> Target {
        Target::in_group(array, self.seen().url(), path.trim_matches('/')).with_stores(&self.stores)
    }

    /// Adds a target of this session to the results.
    pub fn add(&mut self, target: Target) -> &mut Session {
        self.targets.push(target);
        self
    }

    /// Adds an array to the results, at a new path.
    ///
    /// # Errors
    /// Returns the first error of the array's expression.
    pub fn store(&mut self, array: &Array, path: &str) -> Result<&mut Session, Error> {
        array.shape()?;
        let target = self.target(array, path);
        Ok(self.add(target))
    }

    /// Appends an array to a stored array along an axis. All other axes must have equal lengths. If
    /// the stored array ends inside a chunk or shard, that chunk or shard is rewritten.
    ///
    /// All arrays of a group that have the axis must be extended in the same session. Readers such
    /// as Xarray refuse a group with unequal lengths. The coordinate of the axis is appended
    /// automatically if the appended array comes from a stored array with a coordinate. Otherwise
    /// append its values:
    ///
    /// ```
    /// # use freestone::{DType, Spec};
    /// # use freestone::sessions::{Format, MAIN, Repository};
    /// # let folder = tempfile::tempdir()?;
    /// # let place = folder.path().join("climate").display().to_string();
    /// # let spec = Spec::builder().work_dir(folder.path().join("work")).build()?;
    /// # let repository = Repository::open_or_create(&place, Format::default())?;
    /// # let days = |from, to| {
    /// #     freestone::arange(from, to, 1.0, DType::Float64, 10).with_dims(["time"])
    /// # };
    /// # let mut session = freestone::Session::begin(&repository, MAIN)?;
    /// # session.store(&days(0.0, 4.0), "wind/speed")?.store(&days(0.0, 4.0), "wind/time")?;
    /// # session.commit("four days", &spec)?;
    /// let mut session = freestone::Session::begin(&repository, MAIN)?;
    /// session.append(&days(4.0, 6.0), "wind/speed", "time")?;
    /// session.append(&days(4.0, 6.0), "wind/time", "time")?;
    /// session.commit("two more days", &spec)?;
    /// # assert_eq!(freestone::open_version(&repository, MAIN, "wind/time")?.shape()?, [6]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Returns an error if the shapes do not match, or if the array ends inside a chunk and was
    /// already changed in this session. Nothing is changed then. If an array of the group is not
    /// extended, [`commit`](Session::commit) returns an error.
    pub fn append(
        &mut self,
        array: &Array,
        path: &str,
        axis: impl Into<Axis>,
    ) -> Result<&mut Session, Error> {
        let path = path.trim_matches('/');
        let axis = self.open(path)?.axis(axis)?;
        if let Some(grown) = self.grow(array, path, axis)? {
            self.grown.push(grown);
        }
        Ok(self)
    }

    fn grow(&mut self, array: &Array, path: &str, axis: usize) -> Result<Option<Grown>, Error> {
        let How::Own(session) = &self.how else {
            return Err(freestone_ops::Error::Argument(
                "cannot append in a joined session (hint: append in the session that is committed)"
                    .into(),
            )
            .into());
        };
        let there = self.open(path)?;
        let (before, new) = (there.shape()?, array.shape()?);
        let fits = before.len() == new.len()
            && before.iter().zip(&new).enumerate().all(|(d, (a, b))| d == axis || a == b);
        if axis >= before.len() || !fits {
            let text = format!(
                "an array of shape {new:?} cannot be appended to `{path}` of shape {before:?} \
                    along axis {axis}: all other axes must be of the same length"
            );
            return Err(freestone_ops::Error::Argument(text).into());
        }
        let (stored, given) = (there.dtype()?, array.dtype()?);
        if stored != given {
            return Err(freestone_ops::Error::from(RegionError::DType {
                place: path.to_owned(),
                stored,
                array: given,
            })
            .into());
        }
        let objects = session.array(path)?.info().object_shape();
        let size = objects[axis].max(1);
        let start = before[axis] / size * size;
        let written = if start == before[axis] {
            array.clone()
        } else if session.has_changed(path) {
            let text = format!(
                "`{path}` ends at {} along axis {axis}, inside of a chunk of {size}, and was \
                    changed in this session: append all at once, or commit first",
                before[axis]
            );
            return Err(freestone_ops::Error::Argument(text).into());
        } else {
            concat([&there.slice(start as i64.., axis as i64), array], axis as i64)
        };
        let mut shape = before.clone();
        shape[axis] += new[axis];
        session.resize(path, &shape)?;
        let region: Vec<_> = shape
            .iter()
            .enumerate()
            .map(|(d, n)| if d == axis { start..*n } else { 0..*n })
            .collect();
        let target = self.target(&written, path).region(&region);
        self.add(target);
        let name = there.dims()?.get(axis).and_then(|dim| dim.name.clone());
        Ok(name.map(|name| Grown {
            path: path.to_owned(),
            name,
            axis,
            before: before[axis],
            after: shape[axis],
            array: array.clone(),
        }))
    }

    /// Appends the coordinates of extended axes. Returns an error if an array of their groups was
    /// not extended.
    fn grow_groups(&mut self) -> Result<(), Error> {
        let grown = self.grown.clone();
        for (i, first) in grown.iter().enumerate() {
            if grown[..i].iter().any(|g| g.is_along(first)) {
                continue;
            }
            let along: Vec<&Grown> = grown.iter().filter(|g| g.is_along(first)).collect();
            let coordinate = join(first.group(), &first.name);
            if !along.iter().any(|g| g.path == coordinate) {
                self.grow_coordinate(&coordinate, first, &along)?;
            }
            let after = along.iter().map(|g| g.after).max().unwrap_or(first.after);
            let left = self.left_behind(first, after)?;
            if !left.is_empty() {
                let (grown, axis) = (first.path.clone(), first.name.clone());
                return Err(Error::Uneven { grown, axis, before: first.before, after, left });
            }
        }
        Ok(())
    }

    /// Appends the coordinates of the appended arrays to the coordinate of an axis.
    fn grow_coordinate(
        &mut self,
        path: &str,
        first: &Grown,
        along: &[&Grown],
    ) -> Result<(), Error> {
        let there = match open_array(&self.seen(), path) {
            Ok(there) if there.info.shape() == [first.before] => there,
            Ok(_)
            | Err(
                MetadataError::NoZarr { .. }
                | MetadataError::Group { .. }
                | MetadataError::Unsupported { .. },
            ) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let mut parts = Vec::new();
        for part in along.iter().filter(|g| g.path == first.path) {
            // Arrays that were extended by the same elements must agree on their coordinate.
            for other in along.iter().filter(|g| g.path != first.path && g.before == part.before) {
                let (ours, theirs) =
                    (&part.array.dims()?[part.axis], &other.array.dims()?[other.axis]);
                if coordinate_after(&other.array, other.axis, &there)?.is_some() && ours != theirs {
                    let (place, array) = (there.store.place(first.group()), other.path.clone());
                    return Err(freestone_ops::Error::Coordinates {
                        place,
                        array,
                        name: first.name.clone(),
                    }
                    .into());
                }
            }
            match coordinate_after(&part.array, part.axis, &there)? {
                Some(coordinate) => parts.push(coordinate),
                None => return Ok(()),
            }
        }
        self.grow(&concat(&parts, 0), path, 0).map(drop)
    }

    /// Returns the arrays of a group that still have the previous length along an extended axis.
    fn left_behind(&self, grown: &Grown, after: u64) -> Result<Vec<String>, Error> {
        let store = self.seen();
        let mut left = Vec::new();
        for child in open_group(&*store, grown.group())?.children {
            let path = join(grown.group(), &child);
            let array = match open_array(&store, &path) {
                Ok(array) => array,
                Err(
                    MetadataError::NoZarr { .. }
                    | MetadataError::Group { .. }
                    | MetadataError::Unsupported { .. },
                ) => continue,
                Err(e) => return Err(e.into()),
            };
            let is_short = |(name, len): (&Option<String>, u64)| {
                name.as_ref() == Some(&grown.name) && len == grown.before && len != after
            };
            if array.dims.iter().zip(array.info.shape()).any(is_short) {
                left.push(path);
            }
        }
        Ok(left)
    }

    /// Creates the plan that [`commit`](Session::commit) runs, for all results of the session.
    ///
    /// # Errors
    /// Returns the errors of [`plan`], and [`Error::Uneven`].
    pub fn plan(&mut self, spec: &Spec) -> Result<Plan, Error> {
        self.grow_groups()?;
        self.grown.clear();
        plan(&self.targets, spec)
    }

    /// Computes all results with one plan, on threads, and commits them as one snapshot. The
    /// session ends.
    ///
    /// # Errors
    /// Returns the errors of [`plan`] and [`run`](crate::run), [`Error::Uneven`], and an error if
    /// another commit conflicts. Nothing is visible then.
    pub fn commit(&mut self, message: &str, spec: &Spec) -> Result<RunReport, Error> {
        self.commit_with(
            message,
            spec,
            &Threads::new(spec.threads),
            CommitOptions::default(),
            &RunOptions::default(),
        )
    }

    /// Computes and commits all results, like [`commit`](Session::commit), with an executor and
    /// with options of the commit and the run.
    ///
    /// A session without results commits its other changes. A joined shared session is not
    /// committed here; its creator chooses `message` and `options`.
    ///
    /// # Errors
    /// Returns the errors of [`commit`](Session::commit).
    pub fn commit_with(
        &mut self,
        message: &str,
        spec: &Spec,
        executor: &dyn Executor,
        options: CommitOptions,
        run_options: &RunOptions<'_>,
    ) -> Result<RunReport, Error> {
        if self.targets.is_empty() {
            let snapshot = match self.end() {
                How::Own(session) => Some(session.commit_with(message, &options)?),
                // A joined session ends here without a commit.
                How::Joined(..) => None,
                How::Ended(_) => return Err(Error::SessionEnded),
            };
            return Ok(RunReport { snapshot, ..RunReport::default() });
        }
        let planned = self.plan(spec)?;
        let publisher = match self.end() {
            How::Own(session) => RepositoryPublisher::committing(&session, message, options),
            How::Joined(publisher, _) => publisher,
            How::Ended(_) => return Err(Error::SessionEnded),
        };
        let run_options = RunOptions { session: Some(&publisher), ..run_options.clone() };
        run_with(&planned, spec, executor, &run_options)
    }

    /// Ends the session, and returns its previous state.
    fn end(&mut self) -> How {
        let ended = How::Ended(self.seen());
        std::mem::replace(&mut self.how, ended)
    }

    /// Returns the publisher that commits a run's results to this session, or adds them to the
    /// joined session. Use it as [`RunOptions::session`].
    ///
    /// # Errors
    /// Returns an error if the session was committed.
    pub fn publishing(
        mut self,
        message: &str,
        options: CommitOptions,
    ) -> Result<RepositoryPublisher, Error> {
        match self.end() {
            How::Own(session) => Ok(RepositoryPublisher::committing(&session, message, options)),
            How::Joined(publisher, _) => Ok(publisher),
            How::Ended(_) => Err(Error::SessionEnded),
        }
    }
}

/// Opens an array of a version of a repository: a branch name, such as `"main"`, or a [`Version`].
/// Plans refer to the snapshot, so later commits have no effect.
///
/// # Errors
/// Returns an error if the version or the array does not exist.
pub fn open_version(
    repository: &Repository,
    version: impl Into<Version>,
    path: &str,
) -> Result<Array, Error> {
    Ok(open_in(&repository.readonly_session(&version.into())?.store(), path)?)
}
