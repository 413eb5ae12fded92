//! Planning, execution and resumption of runs.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use freestone_engine::driver::record::{self, StoredRun};
use freestone_engine::driver::{self, Run, RunError};
use freestone_engine::events::{Observer, RunReport};
use freestone_engine::executor::Executor;
use freestone_engine::plan::lower::{Output, kernels_of, lower, stores_of};
use freestone_engine::plan::{FinalizedPlan, Mode, PlanExplanation};
use freestone_engine::publish::{PlainZarr, PublishError, Publisher};
use freestone_engine::spec::Spec;
use freestone_engine::storage::{Stores, identity, metadata, split_location};
use freestone_engine::task::RunAddress;
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::Cancel;
use freestone_executors::Serial;
use freestone_ops::Array;
use freestone_ops::io::{Target, metadata_outputs, open_in, outputs};

use crate::error::Error;

/// A checked plan and the stores that it reads and writes.
#[derive(Clone, Debug)]
pub struct Plan {
    plan: Arc<FinalizedPlan>,
    stores: Stores,
    kernels: KernelRegistry,
}

impl Plan {
    /// Returns the data of the plan's explanation: stages, their tasks, memory and traffic.
    pub fn explain(&self) -> PlanExplanation {
        self.plan.explain()
    }

    /// Returns the largest projected memory of a task, in bytes.
    pub fn projected_mem(&self) -> u64 {
        self.plan.projected_mem()
    }

    /// Returns the checked stages.
    pub fn finalized(&self) -> &FinalizedPlan {
        &self.plan
    }
}

/// Writes the text of the plan's explanation: stages, inputs, outputs, and the memory of a task by
/// parts.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.plan, f)
    }
}

/// Returns the stores of this program: those of the engine and, with the feature `sessions`, those
/// of repositories. A repository's URL is `icechunk+REPOSITORY#branch=NAME`, `#tag=NAME` or
/// `#snapshot=ID`.
pub fn stores() -> Stores {
    let stores = Stores::default();
    #[cfg(feature = "sessions")]
    let stores = stores.with_opener(freestone_sessions::SCHEME, freestone_sessions::open_store);
    stores
}

/// Opens a stored array of Zarr format 2 or 3: `winds.zarr/u`, `s3://bucket/winds.zarr/u` or
/// `icechunk+repository#branch=main/winds/u`.
///
/// Reads only metadata. An array of a branch is read from the branch's newest snapshot; later
/// commits have no effect.
///
/// # Errors
/// Returns an error if there is no array, or if it uses an unsupported feature.
pub fn open(location: impl AsRef<Path>) -> Result<Array, Error> {
    let (url, name) = split_location(&location.as_ref().to_string_lossy());
    Ok(open_in(&stores().open(&url)?, &name)?)
}

/// Runs the worker loop of a worker process: executes requests of the driver that started it, until
/// the driver ends. `kernels` are the available users' kernels.
///
/// Standard output is redirected to the driver's standard error.
///
/// # Errors
/// Returns an error if no driver started this process as a worker, or if the connection breaks.
pub fn serve(kernels: &KernelRegistry) -> Result<(), Error> {
    Ok(freestone_executors::serve(kernels, stores())?)
}

/// Creates one plan that stores all targets.
///
/// Reads only metadata and writes nothing. Cost: microseconds per operation, for any number of
/// chunks.
///
/// # Errors
/// Returns the first error of an array's expression. Returns an error if a stage exceeds
/// `allowed_mem`, if results overlap, or if results would replace existing data without
/// `overwrite`.
pub fn plan(targets: &[Target], spec: &Spec) -> Result<Plan, Error> {
    planned(targets, &outputs(targets, &stores())?, spec)
}

/// Creates arrays without values: writes the metadata of targets, and the coordinates of their
/// axes.
///
/// Values are written later by regions ([`Target::region`]), in this process or others. Until then,
/// elements have the fill value. Coordinates are computed in the calling thread.
///
/// ```
/// # use freestone::{DType, Serial, Spec, Target};
/// # let folder = tempfile::tempdir()?;
/// # let out = folder.path().join("ramp").display().to_string();
/// # let spec = Spec::builder().work_dir(folder.path().join("work")).build()?;
/// let ramp = freestone::arange(0.0, 100.0, 1.0, DType::Float64, 10);
/// freestone::create(&[Target::array(&ramp, &out)], &spec)?;
///
/// let part = Target::array(&ramp.slice(20..50, 0), &out).region(&[20..50]);
/// freestone::run(&freestone::plan(&[part], &spec)?, &spec, &Serial)?;
/// let sum = freestone::open(&out)?.sum(());
/// assert_eq!(freestone::compute_scalar::<f64>(&sum, &spec)?, (20..50).sum::<i32>() as f64);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Returns the errors of [`plan`] and [`run`], and an error for a target that is a region.
pub fn create(targets: &[Target], spec: &Spec) -> Result<(), Error> {
    let planned = planned(targets, &metadata_outputs(targets, &stores())?, spec)?;
    run(&planned, spec, &Serial).map(drop)
}

fn planned(targets: &[Target], outputs: &[Output], spec: &Spec) -> Result<Plan, Error> {
    let plan = lower(outputs, spec)?;
    let stores = stores();
    stores.extend(&stores_of(outputs)?);
    targets.iter().for_each(|t| stores.extend(t.stores()));
    check_free(outputs, &stores)?;
    Ok(Plan { plan: Arc::new(plan), stores, kernels: kernels_of(outputs)? })
}

/// Rejects results at locations of data that may not be replaced. The run repeats this check with
/// others; this one precedes all preparation.
fn check_free(outputs: &[Output], stores: &Stores) -> Result<(), Error> {
    for output in outputs.iter().filter(|o| !o.overwrite && !matches!(o.mode, Mode::Region { .. }))
    {
        let store = stores.open(&output.url)?;
        if !metadata::exists(&*store, &output.path)? {
            continue;
        }
        #[cfg(feature = "sessions")]
        if let Some((repository, _)) =
            output.url.strip_prefix(freestone_sessions::SCHEME).and_then(|url| url.split_once('#'))
        {
            // The session's own arrays may be written, including those of a failed commit. The run
            // checks this.
            if metadata::document(&*store, &output.path)?.as_ref() == Some(&output.document) {
                continue;
            }
            return Err(freestone_sessions::Error::NodeExists {
                place: repository.to_owned(),
                path: output.path.clone(),
            }
            .into());
        }
        return Err(
            RunError::from(PublishError::Exists { place: store.place(&output.path) }).into()
        );
    }
    Ok(())
}

/// The options of a run.
#[derive(Clone, Default)]
#[allow(missing_debug_implementations)]
pub struct RunOptions<'a> {
    /// The observers of the run.
    pub observers: &'a [&'a dyn Observer],
    /// The flag that cancels the run.
    pub cancel: Cancel,
    /// The publisher of the results. The default publishes to plain Zarr stores.
    pub session: Option<&'a dyn Publisher>,
    /// The in-memory stores to which targets refer.
    pub stores: Stores,
    /// The users' kernels of a resumed run.
    pub kernels: KernelRegistry,
    /// If true, a resumed run checks that no chunk of its inputs was written or removed since it
    /// began. This takes one request per chunk.
    pub verify_inputs: bool,
}

/// Runs a plan.
///
/// # Errors
/// Returns an error if existing data at the destination may not be replaced, if a task fails
/// permanently, or if storage fails. Nothing is published then.
pub fn run(planned: &Plan, spec: &Spec, executor: &dyn Executor) -> Result<RunReport, Error> {
    run_with(planned, spec, executor, &RunOptions::default())
}

/// Runs a plan with options.
///
/// # Errors
/// Returns the errors of [`run`].
pub fn run_with(
    planned: &Plan,
    spec: &Spec,
    executor: &dyn Executor,
    options: &RunOptions<'_>,
) -> Result<RunReport, Error> {
    // A copy, so that stores added by this run do not become part of the plan.
    let stores = stores();
    stores.extend(&planned.stores);
    stores.extend(&options.stores);
    #[cfg(feature = "sessions")]
    if let Some(array) =
        planned.plan.plan().arrays.iter().find(|a| options.session.is_none() && is_in_repository(a))
    {
        return Err(Error::NoSession { place: array.name.clone() });
    }
    let plain = PlainZarr::new(stores.clone());
    let session = options.session.unwrap_or(&plain);
    session.store().into_iter().for_each(|s| stores.insert(s));
    let run = Run {
        spec,
        stores: &stores,
        kernels: &planned.kernels,
        executor,
        publisher: session,
        observers: options.observers,
        cancel: options.cancel.clone(),
    };
    let ran = driver::run(&planned.plan, &run);
    if ran.as_ref().is_err_and(RunError::is_final) {
        // Also required if the run did not begin.
        session.abandon(&planned.plan);
    }
    Ok(ran?)
}

#[cfg(feature = "sessions")]
fn is_in_repository(array: &freestone_engine::plan::PlanArray) -> bool {
    use freestone_engine::plan::Place;
    let Place::Output { url, .. } = &array.place else { return false };
    url.starts_with(freestone_sessions::SCHEME)
}

/// Opens a run that ended early, given its folder: a path or URL, as [`Error::resumable_run`] and
/// the command report it.
///
/// # Errors
/// Returns an error if the folder is not a resumable run.
pub fn open_run(folder: impl AsRef<Path>, stores: &Stores) -> Result<StoredRun, Error> {
    let (work_dir, folder) = split_location(&folder.as_ref().to_string_lossy());
    Ok(StoredRun::open(stores, RunAddress { work_dir: identity(&work_dir, ""), folder })?)
}

/// Resumes a run that was killed or cancelled or that failed, in this process or another one. The
/// stored plan is used, and tasks in the journal are not run again. `spec` may change any setting
/// that is not part of the plan; its `work_dir` is ignored.
///
/// ```no_run
/// # use freestone::{RunOptions, Settings, Spec, Stores, Threads};
/// # let spec = Spec::load(Settings::default())?;
/// let run = freestone::open_run("work/3f2a…-18c…-4711", &Stores::default())?;
/// let report = freestone::resume(&run, &spec, &Threads::new(4), &RunOptions::default())?;
/// println!("{report}");
/// # Ok::<(), freestone::Error>(())
/// ```
///
/// # Errors
/// Returns the errors of [`run`], and an error if the run is still in progress, or if its inputs or
/// destinations have changed.
pub fn resume(
    stored: &StoredRun,
    spec: &Spec,
    executor: &dyn Executor,
    options: &RunOptions<'_>,
) -> Result<RunReport, Error> {
    let stores = stores();
    stores.extend(&options.stores);
    // Restoring the session would take it over from a process that still drives the run.
    stored.check_idle(&stores)?;
    let own = if options.session.is_none() { Some(session_of(stored, &stores)?) } else { None };
    let Some(session) = options.session.or(own.as_deref()) else {
        return Err(Error::NoSession { place: stored.address.path() });
    };
    session.store().into_iter().for_each(|s| stores.insert(s));
    let spec = Spec { work_dir: stored.address.work_dir.clone(), ..spec.clone() };
    let (observers, cancel) = (options.observers, options.cancel.clone());
    let run = Run {
        spec: &spec,
        stores: &stores,
        kernels: &options.kernels,
        executor,
        publisher: session,
        observers,
        cancel,
    };
    Ok(driver::resume(stored, &run, options.verify_inputs)?)
}

/// Returns the publisher with which a run was started.
fn session_of(stored: &StoredRun, stores: &Stores) -> Result<Box<dyn Publisher>, Error> {
    if let Some(plain) = PlainZarr::of_ticket(stores.clone(), &stored.record.session) {
        return Ok(Box::new(plain));
    }
    #[cfg(feature = "sessions")]
    if let Some(ours) = freestone_sessions::RepositoryPublisher::of_ticket(&stored.record.session) {
        return Ok(Box::new(ours?));
    }
    Err(RunError::NoRun {
        run: stored.address.path(),
        why: "this program cannot write to its outputs".into(),
    }
    .into())
}

/// Discards a run: removes its folder and its unpublished chunks.
///
/// # Errors
/// Returns an error if a process drives the run, or if storage fails.
pub fn discard(stored: &StoredRun, stores: &Stores) -> Result<(), Error> {
    record::remove(stores, &stored.address)?;
    let known = self::stores();
    known.extend(stores);
    if let Ok(session) = session_of(stored, &known) {
        session.abandon(&stored.plan);
    }
    Ok(())
}
