//! Plans in a worker: fetched from the work directory, and checked against this program and its
//! machine.

use std::collections::BTreeSet;

use freestone_engine::plan::{FinalizedPlan, Place, PlanError};
use freestone_engine::remote::{Refusal, RefusalKind};
use freestone_engine::storage::metadata::{MetadataError, open_array};
use freestone_engine::storage::{StorageError, Stores, is_remote_url, read_small};
use freestone_engine::task::RunAddress;
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::{Cancel, MAX_PLAN_BYTES, RunContext};

fn refusal_of_storage(error: &StorageError) -> Refusal {
    let kind = if error.is_transient() || error.is_throttle() {
        RefusalKind::Storage
    } else {
        RefusalKind::Unreachable
    };
    Refusal::new(kind, error.to_string())
}

/// Fetches a plan from its address and checks that this program can run it: its kernels are known,
/// and its stores can be opened. `stores` opens stores that are not built into the engine.
///
/// # Errors
/// Returns a [`Refusal`] if the plan cannot be fetched or run.
pub fn fetch(
    address: &RunAddress,
    stores: &Stores,
    kernels: &KernelRegistry,
) -> Result<RunContext, Refusal> {
    let store = stores.open(&address.work_dir).map_err(|e| refusal_of_storage(&e))?;
    let key = format!("{}/plan.json", address.folder);
    let no_plan = |why: String| Refusal::new(RefusalKind::Plan, why);
    let bytes = read_small(&*store, &key, MAX_PLAN_BYTES).map_err(|e| refusal_of_storage(&e))?;
    let bytes =
        bytes.ok_or_else(|| no_plan(format!("cannot find the plan `{}`", store.place(&key))))?;
    let plan = FinalizedPlan::from_bytes(&bytes).map_err(|e| match e {
        PlanError::Format { .. } => Refusal::new(RefusalKind::Format, e.to_string()),
        PlanError::Engine { .. } => Refusal::new(RefusalKind::Engine, e.to_string()),
        e => no_plan(e.to_string()),
    })?;
    drop(bytes);
    if !address.is_of(&plan) {
        return Err(no_plan(format!(
            "plan `{}` has changed since the run began",
            store.place(&key)
        )));
    }
    let places = plan.plan().arrays.iter().filter_map(|a| match &a.place {
        Place::Input { url, .. } | Place::Output { url, .. } => Some((&a.name, url)),
        _ => None,
    });
    for (name, url) in places {
        stores
            .open(url)
            .map_err(|e| Refusal::new(RefusalKind::Unreachable, format!("array `{name}`: {e}")))?;
    }
    let context = RunContext {
        plan: plan.into(),
        address: address.clone(),
        stores: stores.clone(),
        kernels: kernels.clone().into(),
        cancel: Cancel::default(),
    };
    context.check_kernels().map_err(|e| Refusal::new(RefusalKind::UnknownKernel, e))?;
    Ok(context)
}

/// Checks that a plan's inputs are visible to this program and unchanged since planning. On this
/// machine, a directory of the same name may be missing or different, and missing chunks would read
/// as fill values. Reads the metadata of every array in a directory, and of one array in each
/// remote store.
///
/// # Errors
/// Returns a [`Refusal`] if an input is missing or has changed.
pub fn check_inputs(context: &RunContext) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for array in &context.plan.plan().arrays {
        let Place::Input { url, path, tag } = &array.place else { continue };
        if !seen.insert((url, (!is_remote_url(url)).then_some(path))) {
            continue;
        }
        let store = context.stores.open(url).map_err(|e| refusal_of_storage(&e))?;
        let unreachable = |why: String| {
            Refusal::new(RefusalKind::Unreachable, format!("array `{}`: {why}", array.name))
        };
        match open_array(&store, path) {
            Ok(there) if there.tag == *tag => {}
            Ok(_) => {
                return Err(unreachable(format!(
                    "`{}` has changed since planning, or is another array on this worker",
                    store.place(path)
                )));
            }
            Err(MetadataError::Storage(e)) => return Err(refusal_of_storage(&e)),
            Err(e) => {
                return Err(unreachable(format!(
                    "{e} (hint: store inputs where workers can read them, such as \
                        s3://BUCKET/PREFIX)"
                )));
            }
        }
    }
    Ok(())
}

/// Returns the bytes that tasks may hold together in a process limited to `memory_bytes`.
pub(crate) fn room(plan: &FinalizedPlan, memory_bytes: u64) -> u64 {
    memory_bytes.saturating_sub(plan.plan().process_mem())
}

/// The page size in bytes. Memory limits are in whole pages.
const PAGE: u64 = 4096;

/// Returns the number of concurrent tasks of each stage that fit into `memory_bytes` of one
/// process, at most `most`. Memory that a process holds once is counted once.
///
/// # Errors
/// Returns [`RefusalKind::ExceedsMemory`] if a stage's projection does not fit.
pub fn slots(plan: &FinalizedPlan, memory_bytes: u64, most: u32) -> Result<Vec<u32>, Refusal> {
    let room = room(plan, memory_bytes);
    plan.stages()
        .map(|(_, stage, layout)| {
            let (total, each) = (layout.estimate.total(), layout.estimate.per_task());
            if total / PAGE > memory_bytes / PAGE {
                let mib = |bytes: u64| bytes.div_ceil(1 << 20);
                let message = format!(
                    "stage `{}` is projected to need {} MiB per task, but this worker has {} MiB \
                        (hint: give the worker more memory, or \
                     plan with a lower `allowed_mem`)",
                    stage.name,
                    mib(total),
                    memory_bytes >> 20
                );
                return Err(Refusal::new(RefusalKind::ExceedsMemory, message));
            }
            Ok(u32::try_from(room / each.max(1)).unwrap_or(u32::MAX).clamp(1, most.max(1)))
        })
        .collect()
}
