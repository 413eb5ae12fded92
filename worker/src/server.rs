//! A server that answers invocations and caches the plan of the last one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use freestone_engine::machine;
use freestone_engine::remote::{Refusal, RefusalKind};
use freestone_engine::storage::Stores;
use freestone_engine::task::RunAddress;
use freestone_engine::user::KernelRegistry;
use serde_json::Value;

use crate::plan::{check_inputs, fetch, room, slots};
use crate::protocol::{Answer, Call, Environment, Invocation};
use crate::requests::{Deadline, Ended, LoadedPlan, run};

/// The place in which a worker runs, with its limits.
#[derive(Clone, Debug)]
pub struct Place {
    /// The kind of place, such as `process` or `lambda`, which is part of the worker's name.
    pub kind: &'static str,
    /// The unique name of this process.
    pub id: String,
    /// The memory limit of the process in bytes.
    pub memory_bytes: u64,
    /// The maximum number of concurrent tasks, independent of memory.
    pub max_tasks: u32,
    /// True if the process may see other directories than its client. A probe then checks that
    /// inputs are those of the plan.
    pub is_remote: bool,
}

/// A worker that answers invocations, in sequence or concurrently.
///
/// A server holds one plan. Invocations of the same plan run concurrently as far as memory permits.
/// An invocation of another plan waits for them to end.
#[derive(Debug)]
pub struct Server {
    place: Place,
    name: String,
    kernels: KernelRegistry,
    stores: Stores,
    init_ms: u64,
    invocations: AtomicU64,
    plan: RwLock<Option<LoadedPlan>>,
}

/// The result of an invocation.
enum Done {
    Ready(Vec<u32>),
    Ran(Ended),
}

impl Server {
    /// Creates a worker that has answered no invocation. The worker uses the users' kernels in
    /// `kernels`, and opens additional stores through `stores`.
    pub fn new(place: Place, kernels: KernelRegistry, stores: Stores) -> Server {
        let name = format!("{} {}", place.kind, place.id);
        let init_ms = machine::process_age().as_millis() as u64;
        Server {
            place,
            name,
            kernels,
            stores,
            init_ms,
            invocations: AtomicU64::new(0),
            plan: RwLock::default(),
        }
    }

    /// Answers an invocation, with `left` as its time limit.
    pub fn answer(&self, body: Value, left: Option<Duration>) -> Answer {
        let system = self.stores.system();
        let start = system.now();
        let number = self.invocations.fetch_add(1, Ordering::Relaxed) + 1;
        let deadline = Deadline::new(system, left);
        let mut had_plan = false;
        let invocation = Invocation::from_json(&body);
        drop(body);
        let done = invocation.and_then(|Invocation { address, client, call, .. }| {
            self.with_plan(&address, &mut had_plan, |plan| match call {
                Call::Probe => {
                    if self.place.is_remote {
                        check_inputs(&plan.context)?;
                    }
                    Ok(Done::Ready(plan.slots.clone()))
                }
                Call::Run(requests) => {
                    Ok(Done::Ran(run(plan, &self.name, client.as_deref(), requests, &deadline)))
                }
            })
        });
        let environment = Environment {
            id: self.place.id.clone(),
            invocations: number,
            had_plan,
            init_ms: self.init_ms,
            memory_bytes: self.place.memory_bytes,
            peak_bytes: machine::peak_rss_bytes(),
        };
        match done {
            Err(refusal) => Answer::Refused { environment, refusal },
            Ok(Done::Ready(slots)) => Answer::Ready {
                environment,
                slots,
                remaining_ms: left.map(|l| l.as_millis() as u64),
            },
            Ok(Done::Ran(Ended { outcomes, recorded, not_started })) => Answer::Done {
                environment,
                outcomes,
                recorded,
                not_started,
                wall_ms: system.elapsed(start).as_millis() as u64,
            },
        }
    }

    /// Calls `f` with the plan at an address, which is fetched unless cached. Sets `had_plan` to
    /// true if the plan was cached.
    fn with_plan<T>(
        &self,
        address: &RunAddress,
        had_plan: &mut bool,
        f: impl FnOnce(&LoadedPlan) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let is_loaded = |held: &Option<LoadedPlan>| {
            held.as_ref().is_some_and(|p| p.context.address == *address)
        };
        let mut held = self.plan.read().unwrap_or_else(PoisonError::into_inner);
        *had_plan = is_loaded(&held);
        if !*had_plan {
            drop(held);
            let mut other = self.plan.write().unwrap_or_else(PoisonError::into_inner);
            // Another invocation may have fetched the plan meanwhile.
            *had_plan = is_loaded(&other);
            if !*had_plan {
                // No projection includes two plans at once.
                *other = None;
                machine::reset_peak_rss();
                *other = Some(self.fetch(address)?);
            }
            held = RwLockWriteGuard::downgrade(other);
        }
        let Some(plan) = held.as_ref() else {
            debug_assert!(false, "a fetched plan is cached");
            return Err(Refusal::new(
                RefusalKind::Plan,
                "internal error: the fetched plan is missing (hint: please report this defect)",
            ));
        };
        f(plan)
    }

    fn fetch(&self, address: &RunAddress) -> Result<LoadedPlan, Refusal> {
        let Place { memory_bytes, max_tasks, .. } = self.place;
        let context = fetch(address, &self.stores, &self.kernels)?;
        let slots = slots(&context.plan, memory_bytes, max_tasks)?;
        let room = room(&context.plan, memory_bytes);
        Ok(LoadedPlan::new(context, slots, room, max_tasks))
    }
}
