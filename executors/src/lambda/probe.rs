//! The probe: whether the function can run a plan.

use std::time::Duration;

use freestone_engine::executor::ExecutorError;
use freestone_engine::remote::RefusalKind;
use freestone_engine::retry::{Backoff, Retry};
use freestone_engine::task::FailureKind;
use freestone_engine::worker::RunContext;
use freestone_worker::{Answer, Call, Environment, Invocation};

use super::LambdaExecutor;
use super::dispatch::{THROTTLE_BACKOFF, throttled_message};
use super::invocation::client_name;
use super::reply::Reply;

/// The answer of a probe.
#[derive(Clone, Debug)]
pub(super) struct Probed {
    /// The folder of the probed run.
    pub(super) folder: String,
    pub(super) environment: Environment,
    /// The number of concurrent tasks of each stage in one environment.
    pub(super) slots: Vec<u32>,
    /// The time limit of an invocation.
    pub(super) time: Duration,
}

/// The time for which a throttled probe is retried.
const THROTTLE_LIMIT: Duration = Duration::from_secs(60);
/// The retries of a probe that fails otherwise.
const RETRY: Retry = Retry {
    tries: 4,
    backoff: Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(5) },
    within: Duration::MAX,
};

/// The result of one probe.
enum Attempt {
    Ready(Probed),
    Throttled(String),
    /// The probe failed in a way that a retry may not.
    Failed(String),
    Fatal(ExecutorError),
}

/// Checks that the function can run the plan.
pub(super) fn probe(
    executor: &LambdaExecutor,
    context: &RunContext,
) -> Result<Probed, ExecutorError> {
    let (runtime, client) = executor.client(executor.function_timeout)?;
    let system = context.stores.system();
    let invocation = Invocation::new(context.address.clone(), client_name(system), Call::Probe);
    let (start, mut throttled, mut failures) = (system.now(), 0, 0);
    loop {
        let (reply, _) = runtime.block_on(client.invoke(&invocation));
        let is_cancelled = context.cancel.is_cancelled();
        let (pause, message) = match attempt(executor, context, reply) {
            Attempt::Ready(probed) => return Ok(probed),
            Attempt::Fatal(error) => return Err(error),
            Attempt::Throttled(reason) => {
                throttled += 1;
                let pause = THROTTLE_BACKOFF.pause(throttled, system.fraction());
                let in_time = system.elapsed(start) < THROTTLE_LIMIT;
                (in_time.then_some(pause), throttled_message(&reason))
            }
            Attempt::Failed(message) => {
                failures += 1;
                (RETRY.next(failures, system.elapsed(start), system.fraction()), message)
            }
        };
        match pause {
            Some(pause) if !is_cancelled => system.sleep(pause),
            _ => return Err(executor.unavailable(message)),
        }
    }
}

fn attempt(executor: &LambdaExecutor, context: &RunContext, reply: Reply) -> Attempt {
    match reply {
        Reply::Answer(answer) => match *answer {
            Answer::Ready { environment, slots, remaining_ms } => Attempt::Ready(Probed {
                folder: context.address.folder.clone(),
                environment,
                slots,
                time: remaining_ms.map_or(executor.function_timeout, Duration::from_millis),
            }),
            Answer::Refused { refusal, .. } if refusal.kind == RefusalKind::Storage => {
                Attempt::Failed(refusal.message)
            }
            Answer::Refused { refusal, .. } => {
                Attempt::Fatal(ExecutorError::Refused { worker: executor.worker(), refusal })
            }
            Answer::Done { .. } => {
                Attempt::Failed("expected the answer to a probe, got outcomes".into())
            }
        },
        Reply::Throttled { why, .. } => Attempt::Throttled(why),
        Reply::Ended(FailureKind::OutOfMemory, message) => Attempt::Failed(message),
        Reply::Ended(_, message) => {
            Attempt::Failed(format!("{message} (hint: see the function's log)"))
        }
        Reply::Lost { message, .. } => Attempt::Failed(message),
        Reply::Refused { message, .. } => Attempt::Fatal(executor.unavailable(message)),
    }
}
