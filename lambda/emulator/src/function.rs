//! The function: selection of environments, throttling, and counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use serde_json::json;

use crate::cgroup::Parent;
use crate::environment::{Completion, Environment, Invocation};
use crate::faults::InvocationFaults;
use crate::stats::{InvocationEnd, RecordedInvocation, Stats};
use crate::{Config, Faults, Rate};

pub(crate) struct Function {
    pub(crate) config: Config,
    parent: Option<Parent>,
    number: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// Idle environments; the most recently used one is last.
    idle: Vec<Arc<Environment>>,
    /// All environments in start order.
    all: Vec<Arc<Environment>>,
    busy: usize,
    started: usize,
    scaling: Option<TokenBucket>,
    requests: Option<TokenBucket>,
    faults: Faults,
    stats: Stats,
    recorded: Vec<RecordedInvocation>,
    is_closed: bool,
}

/// A token bucket.
struct TokenBucket {
    rate: Rate,
    tokens: f64,
    since: Instant,
}

impl TokenBucket {
    fn new(rate: Rate) -> TokenBucket {
        TokenBucket { rate, tokens: f64::from(rate.burst), since: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let gained = self.since.elapsed().as_secs_f64() * self.rate.per_second;
        self.since = Instant::now();
        self.tokens = (self.tokens + gained).min(f64::from(self.rate.burst));
        let has = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(has));
        has
    }
}

/// The reason for status 429, with the names that Lambda uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Throttled {
    Concurrency,
    Rate,
}

impl Throttled {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Throttled::Concurrency => "ReservedFunctionConcurrentInvocationLimitExceeded",
            Throttled::Rate => "CallerRateLimitExceeded",
        }
    }
}

/// A unit of the function's concurrency, released on drop.
pub(crate) struct Slot {
    function: Arc<Function>,
    environment: Option<Arc<Environment>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.function.lock();
        state.busy -= 1;
        if let Some(environment) = self.environment.take().filter(|e| e.exited().is_none()) {
            state.idle.push(environment);
        }
    }
}

/// The reply to a client.
pub(crate) enum Reply {
    Response(Bytes),
    /// An error of the function as JSON, and the peak memory of its environment if known.
    Error(Bytes, Option<u64>),
    /// The connection is closed without a reply.
    Lost,
    /// No environment could be started.
    Service(String),
}

impl Function {
    pub(crate) fn new(config: Config, parent: Option<Parent>) -> Function {
        let state = State {
            idle: Vec::new(),
            all: Vec::new(),
            busy: 0,
            started: 0,
            scaling: config.scaling.map(TokenBucket::new),
            requests: config.requests.map(TokenBucket::new),
            faults: config.faults.clone(),
            stats: Stats::default(),
            recorded: Vec::new(),
            is_closed: false,
        };
        Function { config, parent, number: AtomicU64::new(0), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has_cgroups(&self) -> bool {
        self.parent.is_some()
    }

    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { environments: state.all.iter().map(|e| e.stats()).collect(), ..state.stats.clone() }
    }

    pub(crate) fn recorded(&self) -> Vec<RecordedInvocation> {
        self.lock().recorded.clone()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    pub(crate) fn kill_all(&self) {
        let mut state = self.lock();
        state.idle.clear();
        state.all.iter().for_each(|e| e.kill_now());
    }

    /// Kills all environments. Waits up to five seconds until they and their cgroups are gone.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            self.kill_all();
            if self.lock().all.iter().all(|e| e.exited().is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Counts a requested invocation and returns its faults.
    pub(crate) fn next_faults(&self) -> InvocationFaults {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        state.stats.requested += 1;
        let faults = state.faults.of_invocation(number);
        if faults.throttle {
            state.stats.throttled += 1;
            state.stats.faults.throttled += 1;
        }
        faults
    }

    /// Reserves a slot for one invocation, with the most recently used environment.
    pub(crate) fn reserve_slot(self: &Arc<Function>) -> Result<Slot, Throttled> {
        let mut state = self.lock();
        state.idle.retain(|e| e.exited().is_none());
        let reason = if state.is_closed || state.busy >= self.config.concurrency {
            Some(Throttled::Concurrency)
        } else if !state.requests.as_mut().is_none_or(TokenBucket::take)
            || (state.idle.is_empty() && !state.scaling.as_mut().is_none_or(TokenBucket::take))
        {
            Some(Throttled::Rate)
        } else {
            None
        };
        if let Some(reason) = reason {
            state.stats.throttled += 1;
            return Err(reason);
        }
        state.busy += 1;
        state.stats.max_concurrent = state.stats.max_concurrent.max(state.busy);
        Ok(Slot { function: Arc::clone(self), environment: state.idle.pop() })
    }

    /// Returns the environment of a slot, which is started if there is none.
    async fn environment(&self, slot: &mut Slot) -> std::io::Result<Arc<Environment>> {
        if let Some(environment) = &slot.environment {
            return Ok(Arc::clone(environment));
        }
        let number = {
            let mut state = self.lock();
            state.started += 1;
            state.started
        };
        let started =
            Arc::new(Environment::start(&self.config, number, self.parent.as_ref()).await?);
        let mut state = self.lock();
        state.all.push(Arc::clone(&started));
        if state.is_closed {
            started.kill_now();
        }
        slot.environment = Some(Arc::clone(&started));
        Ok(started)
    }

    /// Runs an invocation to its end, whether or not the client still waits.
    pub(crate) async fn invoke(
        self: Arc<Function>,
        slot: Slot,
        body: Bytes,
        faults: InvocationFaults,
        id: String,
    ) -> Reply {
        // Without a free slot, the duplicate runs after the original.
        let mut is_pending = faults.duplicate;
        if faults.duplicate
            && let Ok(second) = self.reserve_slot()
        {
            is_pending = false;
            let function = Arc::clone(&self);
            let (body, id) = (body.clone(), id.clone());
            tokio::spawn(async move { function.run_duplicate(second, body, id).await });
        }
        let reply = Arc::clone(&self).run(slot, body.clone(), faults, id.clone(), false).await;
        if is_pending {
            let function = Arc::clone(&self);
            tokio::spawn(async move {
                if let Ok(second) = function.reserve_slot() {
                    function.run_duplicate(second, body, id).await;
                }
            });
        }
        reply
    }

    async fn run_duplicate(self: Arc<Function>, slot: Slot, body: Bytes, id: String) {
        self.run(slot, body, InvocationFaults::default(), id, true).await;
    }

    async fn run(
        self: Arc<Function>,
        mut slot: Slot,
        body: Bytes,
        faults: InvocationFaults,
        id: String,
        is_duplicate: bool,
    ) -> Reply {
        let begun = Instant::now();
        let environment = match self.environment(&mut slot).await {
            Ok(environment) => environment,
            Err(error) => return Reply::Service(error.to_string()),
        };
        let invocation = Invocation {
            id: &id,
            body: body.clone(),
            timeout: self.config.timeout,
            deadline: self.config.deadline.unwrap_or(self.config.timeout),
            kill: faults.kill,
            slow: faults.slow,
            freeze: self.config.freeze,
        };
        let completion = environment.run(invocation).await;
        let peak_bytes = environment.stats().max_memory_bytes;
        let mut state = self.lock();
        let stats = &mut state.stats;
        stats.invocations += 1;
        stats.billed_ms += 1e3 * begun.elapsed().as_secs_f64();
        stats.faults.slowed += u64::from(faults.slow.is_some());
        stats.faults.duplicated += u64::from(is_duplicate);
        count(stats, &completion, faults);
        let (mut reply, mut end) = self.reply(completion, &id, peak_bytes);
        let answer = match &reply {
            Reply::Response(body) | Reply::Error(body, _) => body.to_vec(),
            Reply::Lost | Reply::Service(_) => Vec::new(),
        };
        if faults.lose && end == InvocationEnd::Answered {
            state.stats.faults.lost += 1;
            (reply, end) = (Reply::Lost, InvocationEnd::Lost);
        }
        if self.config.record_bodies {
            state.recorded.push(RecordedInvocation {
                request: body.to_vec(),
                answer,
                end,
                environment: environment.id.clone(),
                is_duplicate,
            });
        }
        drop(state);
        // The slot is released before the client receives the reply.
        drop(slot);
        reply
    }

    /// Returns the reply that Lambda sends after an invocation.
    fn reply(
        &self,
        completion: Completion,
        id: &str,
        peak_bytes: Option<u64>,
    ) -> (Reply, InvocationEnd) {
        let mut peak_bytes = peak_bytes;
        let error = match completion {
            Completion::Response(body) => return (Reply::Response(body), InvocationEnd::Answered),
            Completion::Error(body) => body,
            Completion::TooLong(n) => {
                let text = format!(
                    "Response payload size ({n} bytes) exceeded maximum allowed payload size ({} \
                        bytes).",
                    crate::MAX_BODY_BYTES
                );
                function_error("Function.ResponseSizeTooLarge", text)
            }
            Completion::TimedOut => {
                let seconds = self.config.timeout.as_secs_f64();
                let text =
                    format!("RequestId: {id} Error: Task timed out after {seconds:.2} seconds");
                function_error("Sandbox.Timedout", text)
            }
            Completion::Exited(exit) => {
                if exit.out_of_memory {
                    peak_bytes = Some(self.config.memory_mib << 20);
                }
                exit_error(id, &exit.cause)
            }
            Completion::Killed => exit_error(id, "signal: killed"),
        };
        (Reply::Error(error, peak_bytes), InvocationEnd::Error)
    }

    pub(crate) fn count_disconnect(&self) {
        self.lock().stats.disconnects += 1;
    }
}

/// Counts the end of an invocation.
fn count(stats: &mut Stats, completion: &Completion, faults: InvocationFaults) {
    stats.function_errors += u64::from(!matches!(completion, Completion::Response(_)));
    match completion {
        Completion::Response(_) | Completion::Error(_) | Completion::TooLong(_) => {}
        Completion::TimedOut => stats.timeouts += 1,
        Completion::Exited(exit) => {
            stats.exits += 1;
            stats.oom_kills += u64::from(exit.out_of_memory);
        }
        Completion::Killed => {
            stats.exits += 1;
            stats.faults.killed += u64::from(faults.kill.is_some());
        }
    }
}

/// Returns an error of the function, in the format of Lambda.
fn function_error(kind: &str, message: String) -> Bytes {
    json!({ "errorType": kind, "errorMessage": message }).to_string().into()
}

fn exit_error(id: &str, cause: &str) -> Bytes {
    let text = format!("RequestId: {id} Error: Runtime exited with error: {cause}");
    function_error("Runtime.ExitError", text)
}
