//! The function: which environment runs an invocation, who has to wait, and what is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use serde_json::json;

use crate::cgroup::Parent;
use crate::environment::{Environment, Ran};
use crate::faults::Fate;
use crate::stats::{Ended, Kept, Stats};
use crate::{Config, Faults, Rate};

pub(crate) struct Function {
    pub(crate) config: Config,
    parent: Option<Parent>,
    number: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// The one that was used last is at the end.
    idle: Vec<Arc<Environment>>,
    /// Of all that were started, in order.
    all: Vec<Arc<Environment>>,
    busy: usize,
    started: usize,
    scaling: Option<Bucket>,
    requests: Option<Bucket>,
    faults: Faults,
    stats: Stats,
    kept: Vec<Kept>,
    is_closed: bool,
}

/// Tokens that come back with time.
struct Bucket {
    rate: Rate,
    tokens: f64,
    since: Instant,
}

impl Bucket {
    fn new(rate: Rate) -> Bucket {
        Bucket { rate, tokens: f64::from(rate.burst), since: Instant::now() }
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

/// Why an invocation gets a 429, in Lambda's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Throttled {
    Concurrency,
    Rate,
}

impl Throttled {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Throttled::Concurrency => "ReservedFunctionConcurrentInvocationLimitExceeded",
            Throttled::Rate => "CallerRateLimitExceeded",
        }
    }
}

/// One of the function's places, given back when it is dropped.
pub(crate) struct Lease {
    function: Arc<Function>,
    environment: Option<Arc<Environment>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.function.lock();
        state.busy -= 1;
        if let Some(environment) = self.environment.take().filter(|e| e.has_ended().is_none()) {
            state.idle.push(environment);
        }
    }
}

/// What the client gets.
pub(crate) enum Reply {
    Response(Bytes),
    /// An error of the function, as JSON; and the most memory that its environment had, if that is
    /// known.
    Error(Bytes, Option<u64>),
    /// Its connection is closed.
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
            scaling: config.scaling.map(Bucket::new),
            requests: config.requests.map(Bucket::new),
            faults: config.faults.clone(),
            stats: Stats::default(),
            kept: Vec::new(),
            is_closed: false,
        };
        Function { config, parent, number: AtomicU64::new(0), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_capped(&self) -> bool {
        self.parent.is_some()
    }

    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { environments: state.all.iter().map(|e| e.stats()).collect(), ..state.stats.clone() }
    }

    pub(crate) fn kept(&self) -> Vec<Kept> {
        self.lock().kept.clone()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    pub(crate) fn kill_all(&self) {
        let mut state = self.lock();
        state.idle.clear();
        state.all.iter().for_each(|e| e.kill_now());
    }

    /// Kills all environments and waits a while until they are gone, and their cgroups with them.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            self.kill_all();
            if self.lock().all.iter().all(|e| e.has_ended().is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The next invocation's fate.
    pub(crate) fn fate(&self) -> Fate {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        state.stats.asked += 1;
        let fate = state.faults.fate(number);
        if fate.throttle {
            state.stats.throttled += 1;
            state.stats.faults.throttled += 1;
        }
        fate
    }

    /// A place for one invocation, in the environment that was used last.
    pub(crate) fn lease(self: &Arc<Function>) -> Result<Lease, Throttled> {
        let mut state = self.lock();
        state.idle.retain(|e| e.has_ended().is_none());
        let why = if state.is_closed || state.busy >= self.config.concurrency {
            Some(Throttled::Concurrency)
        } else if !state.requests.as_mut().is_none_or(Bucket::take)
            || (state.idle.is_empty() && !state.scaling.as_mut().is_none_or(Bucket::take))
        {
            Some(Throttled::Rate)
        } else {
            None
        };
        if let Some(why) = why {
            state.stats.throttled += 1;
            return Err(why);
        }
        state.busy += 1;
        state.stats.most_at_once = state.stats.most_at_once.max(state.busy);
        Ok(Lease { function: Arc::clone(self), environment: state.idle.pop() })
    }

    /// A lease's environment, started if there is none yet.
    async fn environment(&self, lease: &mut Lease) -> std::io::Result<Arc<Environment>> {
        if let Some(environment) = &lease.environment {
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
        lease.environment = Some(Arc::clone(&started));
        Ok(started)
    }

    /// Runs an invocation to its end, whether somebody waits for it or not.
    pub(crate) async fn invoke(
        self: Arc<Function>,
        lease: Lease,
        body: Bytes,
        fate: Fate,
        id: String,
    ) -> Reply {
        let mut later = fate.duplicate;
        if fate.duplicate
            && let Ok(second) = self.lease()
        {
            later = false;
            let function = Arc::clone(&self);
            let (body, id) = (body.clone(), id.clone());
            tokio::spawn(
                async move { function.run(second, body, Fate::default(), id, true).await },
            );
        }
        let reply = Arc::clone(&self).run(lease, body.clone(), fate, id.clone(), false).await;
        if later {
            let function = Arc::clone(&self);
            tokio::spawn(async move {
                if let Ok(second) = function.lease() {
                    Arc::clone(&function).run(second, body, Fate::default(), id, true).await;
                }
            });
        }
        reply
    }

    async fn run(
        self: Arc<Function>,
        mut lease: Lease,
        body: Bytes,
        fate: Fate,
        id: String,
        is_duplicate: bool,
    ) -> Reply {
        let begun = Instant::now();
        let environment = match self.environment(&mut lease).await {
            Ok(environment) => environment,
            Err(error) => return Reply::Service(error.to_string()),
        };
        let ran = environment
            .run(&id, body.clone(), self.config.timeout, fate.kill, fate.slow, self.config.freeze)
            .await;
        let used = environment.stats().max_memory_bytes;
        let mut state = self.lock();
        let stats = &mut state.stats;
        stats.invocations += 1;
        stats.ran_ms += 1e3 * begun.elapsed().as_secs_f64();
        stats.faults.slowed += u64::from(fate.slow.is_some());
        stats.faults.duplicated += u64::from(is_duplicate);
        let exit = |how: &str| {
            error(
                "Runtime.ExitError",
                format!("RequestId: {id} Error: Runtime exited with error: {how}"),
            )
        };
        let (mut reply, mut ended) = match ran {
            Ran::Response(body) => (Reply::Response(body), Ended::Answered),
            Ran::Error(body) => (Reply::Error(body, used), Ended::Error),
            Ran::TooLong(n) => {
                let text = format!(
                    "Response payload size ({n} bytes) exceeded maximum allowed payload size ({} \
                        bytes).",
                    crate::MAX_BODY_BYTES
                );
                (Reply::Error(error("Function.ResponseSizeTooLarge", text), used), Ended::Error)
            }
            Ran::TimedOut => {
                stats.timeouts += 1;
                let text = format!(
                    "RequestId: {id} Error: Task timed out after {:.2} seconds",
                    self.config.timeout.as_secs_f64()
                );
                (Reply::Error(error("Sandbox.Timedout", text), used), Ended::Error)
            }
            Ran::Exited(exited) => {
                stats.exits += 1;
                stats.oom_kills += u64::from(exited.for_memory);
                let used =
                    if exited.for_memory { Some(self.config.memory_mib << 20) } else { used };
                (Reply::Error(exit(&exited.how), used), Ended::Error)
            }
            Ran::Killed => {
                stats.exits += 1;
                stats.faults.killed += u64::from(fate.kill.is_some());
                (Reply::Error(exit("signal: killed"), used), Ended::Error)
            }
        };
        stats.function_errors += u64::from(ended == Ended::Error);
        let answer = if let Reply::Response(body) | Reply::Error(body, _) = &reply {
            body.to_vec()
        } else {
            Vec::new()
        };
        if fate.lose && ended == Ended::Answered {
            stats.faults.lost += 1;
            (reply, ended) = (Reply::Lost, Ended::Lost);
        }
        if self.config.keep_bodies {
            state.kept.push(Kept {
                request: body.to_vec(),
                answer,
                ended,
                environment: environment.id.clone(),
                is_duplicate,
            });
        }
        drop(state);
        // Its place is free before its client hears of it.
        drop(lease);
        reply
    }

    pub(crate) fn count_hang_up(&self) {
        self.lock().stats.hung_up += 1;
    }
}

/// An error of the function, as Lambda words it.
fn error(kind: &str, message: String) -> Bytes {
    json!({ "errorType": kind, "errorMessage": message }).to_string().into()
}
