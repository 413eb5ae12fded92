//! One environment's life: invocation after invocation, with the plan of the last one at hand.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use freestone_engine::machine;
use freestone_engine::remote::{self, Answer, Call, Environment, Invocation, Refusal, RefusalKind};
use freestone_engine::storage::Stores;
use freestone_engine::task::RunAddress;
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::RunContext;
use serde_json::Value;

use crate::requests::{Deadline, Ended, Pace, run};

/// What an environment keeps from one invocation to the next.
#[derive(Debug)]
pub(crate) struct Worker {
    id: String,
    kernels: KernelRegistry,
    stores: Stores,
    memory_bytes: u64,
    init_ms: u64,
    invocations: u64,
    plan: Option<Plan>,
}

/// A plan that was fetched and can be run.
#[derive(Debug)]
struct Plan {
    context: RunContext,
    slots: Vec<u32>,
    pace: Pace,
}

/// Lambda gives one CPU for so much memory.
const BYTES_PER_CPU: u64 = 1769 << 20;
/// Tasks wait for storage most of the time, so more than one for each CPU are of use; beyond so many, each more would only take its share of memory
/// that is not in its projection: a stack, and what the allocator keeps for its thread.
const SLOTS_PER_CPU: u64 = 4;
const FEWEST_SLOTS: u64 = 8;

impl Worker {
    /// An environment that has answered nothing yet.
    pub(crate) fn start(kernels: KernelRegistry, stores: Stores) -> io::Result<Worker> {
        let mib = std::env::var("AWS_LAMBDA_FUNCTION_MEMORY_SIZE").ok().and_then(|v| v.parse::<u64>().ok());
        Ok(Worker {
            id: std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned(),
            kernels,
            stores,
            memory_bytes: mib.map_or_else(machine::memory_bytes, |mib| mib << 20),
            init_ms: machine::process_age().as_millis() as u64,
            invocations: 0,
            plan: None,
        })
    }

    /// The answer to an invocation. `deadline_ms` is when it must be given, in milliseconds since 1970.
    pub(crate) fn answer(&mut self, body: Value, deadline_ms: u64) -> Answer {
        let start = Instant::now();
        machine::reset_peak_rss();
        self.invocations += 1;
        let left = Duration::from_millis(deadline_ms).saturating_sub(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        let deadline = Deadline::new(start, left);
        let mut had_plan = false;
        let invocation = Invocation::from_json(&body);
        drop(body);
        let ended = invocation.and_then(|invocation| {
            had_plan = self.fetch(&invocation.address)?;
            let plan = self.plan.as_mut().ok_or_else(|| Refusal::new(RefusalKind::Plan, "the plan is not there"))?;
            Ok(match invocation.call {
                Call::Probe => {
                    remote::check_inputs(&plan.context)?;
                    Err(plan.slots.clone())
                }
                Call::Run(requests) => Ok(run(&plan.context, &plan.slots, &mut plan.pace, &self.id, &invocation.client, requests, deadline)),
            })
        });
        let environment = Environment {
            id: self.id.clone(),
            invocations: self.invocations,
            had_plan,
            init_ms: self.init_ms,
            memory_bytes: self.memory_bytes,
            peak_bytes: machine::peak_rss_bytes(),
        };
        match ended {
            Err(refusal) => Answer::Refused { environment, refusal },
            Ok(Err(slots)) => Answer::Ready { environment, slots, remaining_ms: left.as_millis() as u64 },
            Ok(Ok(Ended { outcomes, recorded, not_started })) => {
                Answer::Done { environment, outcomes, recorded, not_started, wall_ms: start.elapsed().as_millis() as u64 }
            }
        }
    }

    /// Sees to it that the plan at an address is at hand; true if it was.
    fn fetch(&mut self, address: &RunAddress) -> Result<bool, Refusal> {
        if self.plan.as_ref().is_some_and(|p| p.context.address == *address) {
            return Ok(true);
        }
        // Two plans at once are in no projection.
        self.plan = None;
        let context = remote::fetch(address, &self.stores, &self.kernels)?;
        let most = (self.memory_bytes.div_ceil(BYTES_PER_CPU) * SLOTS_PER_CPU).max(FEWEST_SLOTS);
        let slots = remote::slots(&context.plan, self.memory_bytes, u32::try_from(most).unwrap_or(u32::MAX))?;
        self.plan = Some(Plan { pace: Pace::new(slots.len()), context, slots });
        Ok(false)
    }
}
