//! On AWS Lambda, or what speaks its language.
//!
//! A deployed function is the worker (`freestone-lambda`); here is who invokes it. `dispatch` is
//! the loop that pulls requests, puts them into invocations and settles what comes back; `window`
//! says how many invocations may be under way, `batch` how many requests go into one; `client`
//! signs and sends, `reply` reads what Lambda says. Being told of too many invocations is no
//! failure of any task: they are made again. An answer that does not come is looked for in the
//! records that workers leave in the work directory, before its requests count as lost.

mod batch;
mod client;
mod dispatch;
mod reply;
mod window;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use freestone_engine::environment;
use freestone_engine::executor::{Executor, ExecutorError, Invocations, TaskSource};
use freestone_engine::worker::RunContext;
use freestone_worker::Environment;

use client::Client;
use object_store::StaticCredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};

/// Invokes a function for its tasks.
///
/// Plans for it should have a `parallelism` of about its concurrency, and their arrays and work
/// directory must be where the function can reach them: on an object store.
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
    credentials: Option<AwsCredentialProvider>,
    probed: Mutex<Option<Probed>>,
    invoked: Mutex<Invocations>,
}

/// What a probe has told.
#[derive(Clone, Debug)]
struct Probed {
    /// The run's folder that it was for.
    folder: String,
    environment: Environment,
    slots: Vec<u32>,
    /// What an invocation may take.
    time: Duration,
}

/// Invocations at once, as an account has them at first.
pub const DEFAULT_CONCURRENCY: usize = 1000;
/// What an invocation should take.
const DEFAULT_BATCH_TIME: Duration = Duration::from_secs(10);
/// The longest that Lambda lets a function run.
const DEFAULT_FUNCTION_TIMEOUT: Duration = Duration::from_secs(900);
/// An answer comes so long after the function's time is over at the latest: an environment may have
/// to start before that time begins.
const GRACE: Duration = Duration::from_secs(10);
/// Threads that find out the addresses of hosts for new connections.
const NAMES: usize = 8;
/// What is waited for invocations that nobody needs any more.
const DEFAULT_LINGER: Duration = Duration::from_secs(5);

impl LambdaExecutor {
    /// Default maximum of requests in one invocation.
    pub const DEFAULT_BATCH: usize = 64;

    /// A function by its name, `NAME:ALIAS`, or its ARN (whose region comes before `region`), in a
    /// region.
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
            credentials: None,
            probed: Mutex::default(),
            invoked: Mutex::default(),
        }
    }

    /// A function that is named here, or by the variable `FREESTONE_LAMBDA_FUNCTION`, in the region
    /// and at the endpoint that `variable` tells: `AWS_REGION` or `AWS_DEFAULT_REGION`;
    /// `AWS_ENDPOINT_URL_LAMBDA` or `AWS_ENDPOINT_URL`.
    ///
    /// # Errors
    /// Where no function or no region is named.
    pub fn from_env(
        function: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<LambdaExecutor, ExecutorError> {
        let first =
            |names: [&str; 2]| names.iter().find_map(|n| variable(n).filter(|v| !v.is_empty()));
        let unnamed = |message: &str| ExecutorError::Unavailable {
            worker: "on AWS Lambda".into(),
            message: message.into(),
        };
        let function = function
            .map(str::to_owned)
            .or_else(|| variable(environment::LAMBDA_FUNCTION).filter(|v| !v.is_empty()));
        let function = function.ok_or_else(|| {
            unnamed("missing function name (hint: set FREESTONE_LAMBDA_FUNCTION)")
        })?;
        let region = first([environment::AWS_REGION, environment::AWS_DEFAULT_REGION]);
        if region.is_none() && !function.starts_with("arn:") {
            return Err(unnamed("missing region (hint: set AWS_REGION)"));
        }
        let executor = LambdaExecutor::new(&function, &region.unwrap_or_default());
        Ok(match first([environment::AWS_ENDPOINT_URL_LAMBDA, environment::AWS_ENDPOINT_URL]) {
            Some(endpoint) => executor.endpoint(&endpoint),
            None => executor,
        })
    }

    /// Where requests go instead of to AWS: an emulator.
    #[must_use]
    pub fn endpoint(mut self, url: &str) -> LambdaExecutor {
        url.clone_into(&mut self.endpoint);
        self
    }

    /// Invocations at once, at most: what the account or the function's reserved concurrency
    /// allows. 1000 unless said.
    #[must_use]
    pub fn concurrency(mut self, most: usize) -> LambdaExecutor {
        self.concurrency = most.max(1);
        self
    }

    /// Requests in one invocation, at most, and what an invocation should take; 64 and 10 seconds
    /// unless said.
    #[must_use]
    pub fn batches(mut self, most: usize, time: Duration) -> LambdaExecutor {
        (self.batch, self.batch_time) = (most.max(1), time);
        self
    }

    /// The function's own time limit until it has told it; 900 seconds unless said. An answer that
    /// has not come 10 seconds after that is lost.
    #[must_use]
    pub fn function_timeout(mut self, limit: Duration) -> LambdaExecutor {
        self.function_timeout = limit;
        self
    }

    /// How long the end of a run waits for invocations that nobody needs any more: they give back
    /// what they have not begun, but end what they have, and write what others have written. 5
    /// seconds unless said.
    #[must_use]
    pub fn linger(mut self, limit: Duration) -> LambdaExecutor {
        self.linger = limit;
        self
    }

    /// Credentials to sign with, instead of those of the environment, of a profile, or of the
    /// machine.
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

    /// For messages.
    fn worker(&self) -> String {
        let qualifier = self.qualifier.as_ref().map(|q| format!(":{q}")).unwrap_or_default();
        format!("`{}{qualifier}` at {}", self.function, self.endpoint)
    }

    fn unavailable(&self, message: impl Into<String>) -> ExecutorError {
        ExecutorError::Unavailable { worker: self.worker(), message: message.into() }
    }

    /// A client that waits for an invocation of so long.
    fn client(
        &self,
        time: Duration,
    ) -> Result<(tokio::runtime::Runtime, Arc<Client>), ExecutorError> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime
            .worker_threads(2)
            .max_blocking_threads(dispatch::LOOKS + NAMES)
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

    /// Threads of all environments, as far as the function has told of its own.
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

    fn invoked(&self) -> Option<Invocations> {
        Some(*self.invoked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn check(&self, context: &RunContext) -> Result<(), ExecutorError> {
        crate::in_reach(context)?;
        crate::in_reach_from_afar(context)?;
        let probed = dispatch::probe(self, context)?;
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
