//! Execution on AWS Lambda, or on a service with the same API.
//!
//! A deployed function is the worker (`freestone-lambda`), and this module is its client. `probe`
//! checks that the function can run a plan. `dispatch` is the loop that takes requests from the
//! driver and reports their outcomes. `window` limits concurrent invocations, and `batch` the
//! requests in one. `invocation` makes one invocation, `client` signs and sends it, and `reply`
//! parses the reply.
//!
//! A throttled invocation is repeated and is not a failure of its tasks. If an answer is lost, the
//! records that workers leave in the work directory are read before requests count as lost.

mod batch;
mod client;
mod dispatch;
mod invocation;
mod probe;
mod reply;
mod window;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use freestone_engine::environment;
use freestone_engine::executor::{Executor, ExecutorError, Invocations, TaskSource};
use freestone_engine::plan::FinalizedPlan;
use freestone_engine::worker::RunContext;

use client::Client;
use object_store::StaticCredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};
use probe::Probed;

/// An executor that invokes a function.
///
/// Plans should have a `parallelism` close to the function's concurrency. Their arrays and work
/// directory must be accessible to the function, so they belong in an object store.
///
/// ```no_run
/// # use freestone_executors::LambdaExecutor;
/// let executor = LambdaExecutor::new("freestone", "eu-central-1").concurrency(500);
/// ```
#[derive(Debug)]
pub struct LambdaExecutor {
    function: String,
    qualifier: Option<String>,
    region: String,
    endpoint: String,
    concurrency: usize,
    batch: usize,
    batch_time: Duration,
    function_timeout: Duration,
    grace: Duration,
    linger: Duration,
    record_wait: Duration,
    credentials: Option<AwsCredentialProvider>,
    probed: Mutex<Option<Probed>>,
    invoked: Mutex<Invocations>,
}

/// The default maximum of concurrent invocations, which is the default limit of an AWS account.
pub const DEFAULT_CONCURRENCY: usize = 1000;
/// The default target duration of an invocation.
const DEFAULT_BATCH_TIME: Duration = Duration::from_secs(10);
/// The maximum time limit of a function on Lambda.
const DEFAULT_FUNCTION_TIMEOUT: Duration = Duration::from_secs(900);
/// The additional time for an answer beyond the function's time limit. The time limit begins after
/// the environment has started.
const GRACE: Duration = Duration::from_secs(10);
/// The number of threads that resolve host names.
const DNS_THREADS: usize = 8;
/// The default time for which the end of a run waits for abandoned invocations.
const DEFAULT_LINGER: Duration = Duration::from_secs(5);
/// The minimum time for which the records of a lost answer are polled.
const MIN_RECORD_WAIT: Duration = Duration::from_secs(2);

impl LambdaExecutor {
    /// The default maximum of requests in one invocation.
    pub const DEFAULT_BATCH: usize = 64;

    /// Creates an executor for a function, given its name, `NAME:ALIAS`, or its ARN. The region of
    /// an ARN takes precedence over `region`.
    pub fn new(function: &str, region: &str) -> LambdaExecutor {
        let parts: Vec<&str> = function.split(':').collect();
        let (name, qualifier, region) = match parts[..] {
            ["arn", _, "lambda", region, _, "function", name] => (name, None, region),
            ["arn", _, "lambda", region, _, "function", name, qualifier] => {
                (name, Some(qualifier), region)
            }
            [name, qualifier] => (name, Some(qualifier), region),
            _ => (function, None, region),
        };
        LambdaExecutor {
            function: name.to_owned(),
            qualifier: qualifier.map(str::to_owned),
            region: region.to_owned(),
            endpoint: format!("https://lambda.{region}.amazonaws.com"),
            concurrency: DEFAULT_CONCURRENCY,
            batch: LambdaExecutor::DEFAULT_BATCH,
            batch_time: DEFAULT_BATCH_TIME,
            function_timeout: DEFAULT_FUNCTION_TIMEOUT,
            grace: GRACE,
            linger: DEFAULT_LINGER,
            record_wait: MIN_RECORD_WAIT,
            credentials: None,
            probed: Mutex::default(),
            invoked: Mutex::default(),
        }
    }

    /// Creates an executor for `function`, or for the function that the environment variable
    /// `FREESTONE_LAMBDA_FUNCTION` names.
    ///
    /// `variable` returns the values of environment variables. The region is read from `AWS_REGION`
    /// or `AWS_DEFAULT_REGION`, the endpoint from `AWS_ENDPOINT_URL_LAMBDA` or `AWS_ENDPOINT_URL`.
    ///
    /// # Errors
    /// Returns an error if the function name or the region is missing.
    pub fn from_env(
        function: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<LambdaExecutor, ExecutorError> {
        let first =
            |names: [&str; 2]| names.iter().find_map(|n| variable(n).filter(|v| !v.is_empty()));
        let missing = |message: &str| ExecutorError::Unavailable {
            worker: "on AWS Lambda".into(),
            message: message.into(),
        };
        let function = function
            .map(str::to_owned)
            .or_else(|| variable(environment::LAMBDA_FUNCTION).filter(|v| !v.is_empty()));
        let function = function.ok_or_else(|| {
            missing("missing function name (hint: set FREESTONE_LAMBDA_FUNCTION)")
        })?;
        let region = first([environment::AWS_REGION, environment::AWS_DEFAULT_REGION]);
        if region.is_none() && !function.starts_with("arn:") {
            return Err(missing("missing region (hint: set AWS_REGION)"));
        }
        let executor = LambdaExecutor::new(&function, &region.unwrap_or_default());
        Ok(match first([environment::AWS_ENDPOINT_URL_LAMBDA, environment::AWS_ENDPOINT_URL]) {
            Some(endpoint) => executor.endpoint(&endpoint),
            None => executor,
        })
    }

    /// Sets the endpoint, such as the URL of an emulator.
    #[must_use]
    pub fn endpoint(mut self, url: &str) -> LambdaExecutor {
        url.clone_into(&mut self.endpoint);
        self
    }

    /// Sets the maximum of concurrent invocations, which the account or the function's reserved
    /// concurrency limits. The default is 1000.
    #[must_use]
    pub fn concurrency(mut self, most: usize) -> LambdaExecutor {
        self.concurrency = most.max(1);
        self
    }

    /// Sets the maximum of requests in one invocation, and the target duration of an invocation.
    /// The defaults are 64 requests and 10 seconds.
    #[must_use]
    pub fn batches(mut self, most: usize, time: Duration) -> LambdaExecutor {
        (self.batch, self.batch_time) = (most.max(1), time);
        self
    }

    /// Sets the function's time limit, which applies until a probe returns the real one. The
    /// default is 900 seconds. An answer counts as lost 10 seconds after the time limit.
    #[must_use]
    pub fn function_timeout(mut self, limit: Duration) -> LambdaExecutor {
        self.function_timeout = limit;
        self
    }

    /// Sets the time for which the end of a run waits for invocations whose outcomes are not wanted
    /// any more. They start no further requests, but finish and write what they have started. The
    /// default is 5 seconds.
    #[must_use]
    pub fn linger(mut self, limit: Duration) -> LambdaExecutor {
        self.linger = limit;
        self
    }

    /// Sets the credentials, which otherwise come from the environment, a profile, or the machine.
    #[must_use]
    pub fn credentials(
        mut self,
        key_id: &str,
        secret_key: &str,
        token: Option<&str>,
    ) -> LambdaExecutor {
        let credential = AwsCredential {
            key_id: key_id.to_owned(),
            secret_key: secret_key.to_owned(),
            token: token.map(str::to_owned),
        };
        self.credentials = Some(Arc::new(StaticCredentialProvider::new(credential)));
        self
    }

    /// Returns the worker's name for error messages.
    fn worker(&self) -> String {
        let qualifier = self.qualifier.as_ref().map(|q| format!(":{q}")).unwrap_or_default();
        format!("`{}{qualifier}` at {}", self.function, self.endpoint)
    }

    fn unavailable(&self, message: impl Into<String>) -> ExecutorError {
        ExecutorError::Unavailable { worker: self.worker(), message: message.into() }
    }

    /// Creates a client for invocations with a time limit of `time`, and its runtime.
    fn client(
        &self,
        time: Duration,
    ) -> Result<(tokio::runtime::Runtime, Arc<Client>), ExecutorError> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime
            .worker_threads(2)
            .max_blocking_threads(invocation::MAX_RECORD_READS + DNS_THREADS)
            .thread_name("freestone-lambda")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|e| ExecutorError::Threads(e.to_string()))?;
        let client = Client::new(self, time + self.grace).map_err(|e| self.unavailable(e))?;
        Ok((runtime, Arc::new(client)))
    }
}

impl Executor for LambdaExecutor {
    fn name(&self) -> &str {
        "lambda"
    }

    fn slots(&self) -> usize {
        self.concurrency.saturating_mul(self.batch)
    }

    /// Returns the number of concurrent tasks in all environments, according to the last probe.
    fn workers(&self) -> usize {
        let probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        let each = probed.iter().flat_map(|p| &p.slots).max().map_or(1, |n| *n as usize);
        self.concurrency.saturating_mul(each.min(self.batch))
    }

    fn shares_process(&self) -> bool {
        false
    }

    fn is_remote(&self) -> bool {
        true
    }

    /// Returns the projection of an environment: the process, and as many tasks as may run at once
    /// within the function's memory.
    fn remote_worker_mem(&self, plan: &FinalizedPlan) -> Option<u64> {
        let probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        let probed = probed.as_ref()?;
        let process = plan.plan().process_mem();
        let largest = plan.stages().map(|(_, _, layout)| layout.estimate.per_task()).max()?;
        let n_tasks = probed.slots.iter().max().map_or(1, |n| u64::from(*n));
        let room = probed.environment.memory_bytes.saturating_sub(process);
        // A single task is always admitted.
        Some(process.saturating_add(n_tasks.saturating_mul(largest).min(room).max(largest)))
    }

    fn invoked(&self) -> Option<Invocations> {
        Some(*self.invoked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn check(&self, context: &RunContext) -> Result<(), ExecutorError> {
        crate::check_not_in_memory(context)?;
        crate::check_reachable_remotely(context)?;
        let probed = probe::probe(self, context)?;
        *self.probed.lock().unwrap_or_else(PoisonError::into_inner) = Some(probed);
        Ok(())
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        let probed = self
            .probed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .filter(|p| p.folder == context.address.folder);
        let (invoked, result) = dispatch::run(self, probed, context, source);
        *self.invoked.lock().unwrap_or_else(PoisonError::into_inner) = invoked;
        result
    }
}

#[cfg(test)]
mod tests;
