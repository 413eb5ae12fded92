//! The cost of a run on AWS, projected from its plan or measured.
//!
//! Prices and assumed speeds are data, with the date of the price list: `prices.json`, or the file
//! in `FREESTONE_PRICES`. A projection depends on these assumptions. It counts decoded bytes, and
//! codecs transfer fewer, so it tends to be too high.

use std::collections::BTreeMap;
use std::fmt;

use freestone::LambdaExecutor;
use freestone_engine::driver::batching::{MAX_BATCH, REQUESTS_PER_WORKER};
use freestone_engine::environment;
use freestone_engine::events::RunReport;
use freestone_engine::plan::PlanExplanation;
use serde::{Deserialize, Serialize};

/// Prices, and assumptions for projections.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// The date of the price list, as YYYY-MM-DD.
    pub date: String,
    /// The source of the price list.
    pub source: String,
    /// Prices by region.
    pub regions: BTreeMap<String, RegionPrices>,
    /// Assumed speeds.
    pub assumed: Assumed,
}

/// Prices of a region, in dollars.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionPrices {
    /// The price of a GB-second (2³⁰ bytes for a second), by architecture.
    pub gb_second: BTreeMap<String, f64>,
    /// The price of an invocation.
    pub invocation: f64,
    /// The price of an S3 PUT request.
    pub put: f64,
    /// The price of an S3 GET request.
    pub get: f64,
}

/// Assumed speeds of tasks that have not run yet.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assumed {
    /// The bandwidth between an environment and S3.
    pub network_bytes_per_second: f64,
    /// The bytes that one CPU decodes, computes and encodes per second.
    pub compute_bytes_per_second: f64,
    /// The latency of a request.
    pub request_seconds: f64,
    /// The start time of an environment.
    pub cold_start_seconds: f64,
    /// The duration of an invocation with enough tasks.
    pub invocation_seconds: f64,
}

/// The location and size of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The region.
    pub region: String,
    /// The architecture: `x86_64` or `arm64`.
    pub architecture: String,
    /// The memory in MiB; the plan determines it if `None`.
    pub memory_mib: Option<u64>,
    /// The maximum number of environments.
    pub concurrency: u64,
}

/// The resources of a run and their cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// The region of the function.
    pub region: String,
    /// The region of the prices, which differs if the function's region has none.
    pub prices_of: String,
    /// The architecture.
    pub architecture: String,
    /// The date of the price list.
    pub date: String,
    /// The function's memory in MiB.
    pub memory_mib: Option<u64>,
    /// The number of invocations.
    pub invocations: u64,
    /// GB-seconds: memory in units of 2³⁰ bytes times seconds.
    pub gb_seconds: f64,
    /// The number of S3 PUT requests.
    pub puts: u64,
    /// The number of S3 GET requests.
    pub gets: u64,
    /// The cost of invocations in dollars.
    pub invocation_dollars: f64,
    /// The cost of GB-seconds in dollars.
    pub compute_dollars: f64,
    /// The cost of PUT requests in dollars.
    pub put_dollars: f64,
    /// The cost of GET requests in dollars.
    pub get_dollars: f64,
}

/// The memory for which Lambda allocates one CPU.
const MIB_PER_CPU: f64 = 1769.0;
/// The minimum and maximum memory of a function.
const MEMORY_MIB: [u64; 2] = [128, 10_240];
/// The fraction of a function's memory that a task's projection may use.
const USABLE_MEMORY: f64 = 0.9;
/// The maximum number of tasks in one invocation, over all its requests.
const MAX_TASKS: f64 = MAX_BATCH as f64 * LambdaExecutor::DEFAULT_BATCH as f64;
/// The region that is assumed if none is set, and whose prices replace unknown ones.
const DEFAULT_REGION: &str = "us-east-1";

impl Prices {
    /// Returns the prices that are built into this version.
    pub fn built_in() -> Prices {
        // A test checks that it can be read.
        serde_json::from_str(include_str!("prices.json")).unwrap_or_else(|_| Prices {
            date: String::new(),
            source: String::new(),
            regions: BTreeMap::new(),
            assumed: Assumed {
                network_bytes_per_second: 1.0,
                compute_bytes_per_second: 1.0,
                request_seconds: 0.0,
                cold_start_seconds: 0.0,
                invocation_seconds: 1.0,
            },
        })
    }

    /// Returns the prices of the file in `FREESTONE_PRICES`, or the built-in ones.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is invalid.
    pub fn load() -> Result<Prices, String> {
        match std::env::var(environment::PRICES).ok().filter(|f| !f.is_empty()) {
            Some(file) => {
                let bad = |message: String| format!("cannot read prices from `{file}`: {message}");
                serde_json::from_str(
                    &std::fs::read_to_string(&file).map_err(|e| bad(e.to_string()))?,
                )
                .map_err(|e| bad(e.to_string()))
            }
            None => Ok(Prices::built_in()),
        }
    }

    /// Projects the cost of a plan whose arrays are all on S3.
    pub fn project(&self, plan: &PlanExplanation, place: &Place) -> Cost {
        let needed = (plan.projected_mem as f64 / USABLE_MEMORY / f64::from(1 << 20)).ceil() as u64;
        let memory_mib = place.memory_mib.unwrap_or(needed).clamp(MEMORY_MIB[0], MEMORY_MIB[1]);
        let cpu = (memory_mib as f64 / MIB_PER_CPU).min(1.0);
        let concurrent =
            ((memory_mib << 20) as f64 / plan.projected_mem.max(1) as f64).floor().max(1.0);
        let a = &self.assumed;
        let (mut invocations, mut seconds, mut records) = (0.0, 0.0, 0.0);
        for stage in &plan.stages {
            let bytes = stage
                .reads
                .iter()
                .map(|r| r.traffic.bytes)
                .chain(stage.writes.iter().map(|w| w.traffic.bytes))
                .sum::<u64>() as f64;
            let requests = stage
                .reads
                .iter()
                .map(|r| r.traffic.requests)
                .chain(stage.writes.iter().map(|w| w.traffic.requests))
                .sum::<u64>() as f64;
            let tasks = stage.tasks as f64;
            // Concurrent tasks wait for storage at the same time, and share the CPU.
            let waiting = bytes / a.network_bytes_per_second + requests * a.request_seconds;
            let computing = bytes / (a.compute_bytes_per_second * cpu);
            let all = (waiting + computing)
                / concurrent.min(tasks.max(1.0)).min(1.0 + waiting / computing.max(1e-9));
            let each = all / tasks.max(1.0);
            // Requests are distributed over all concurrent tasks of all environments.
            let even = (tasks
                / (REQUESTS_PER_WORKER as f64
                    * place.concurrency.max(1) as f64
                    * concurrent.min(MAX_TASKS)))
            .ceil()
            .max(1.0);
            let together = (a.invocation_seconds / each.max(1e-6)).clamp(1.0, MAX_TASKS).min(even);
            invocations += (tasks / together).ceil();
            // Each request has a record.
            records += (tasks / even.min(MAX_BATCH as f64)).ceil();
            seconds += all;
        }
        let starts = invocations.min(place.concurrency as f64);
        seconds += starts * a.cold_start_seconds;
        let used = Usage {
            invocations: invocations as u64,
            gb_seconds: seconds * memory_mib as f64 / 1024.0,
            puts: plan.written.requests + records as u64,
            // Each environment checks once a second whether its client still waits.
            gets: plan.read.requests + (starts + seconds) as u64,
        };
        self.price(place, Some(memory_mib), used)
    }

    /// Returns the cost of a run, or `None` if its executor is not billed by use. Storage requests
    /// of killed tasks and the probe before the run are unknown and not counted.
    pub fn measured(&self, report: &RunReport, place: &Place) -> Option<Cost> {
        let invoked = report.invoked?;
        let traffic = report.traffic();
        let memory_mib =
            place.memory_mib.or_else(|| Some(invoked.memory_bytes >> 20).filter(|mib| *mib > 0));
        // Each environment checks once a second whether its client still waits.
        let checks =
            memory_mib.map_or(0, |mib| (invoked.gb_seconds() * 1024.0 / mib.max(1) as f64) as u64);
        let used = Usage {
            invocations: invoked.invocations,
            gb_seconds: invoked.gb_seconds(),
            puts: traffic.writes + invoked.records,
            gets: traffic.reads + invoked.plans + checks,
        };
        Some(self.price(place, memory_mib, used))
    }

    fn price(&self, place: &Place, memory_mib: Option<u64>, used: Usage) -> Cost {
        let known = self
            .regions
            .get_key_value(&place.region)
            .or_else(|| self.regions.get_key_value(DEFAULT_REGION));
        let of = |price: fn(&RegionPrices) -> f64| known.map_or(0.0, |(_, prices)| price(prices));
        let gb_second = known
            .and_then(|(_, prices)| prices.gb_second.get(&place.architecture))
            .copied()
            .unwrap_or(0.0);
        Cost {
            region: place.region.clone(),
            prices_of: known.map(|(name, _)| name.clone()).unwrap_or_default(),
            architecture: place.architecture.clone(),
            date: self.date.clone(),
            memory_mib,
            invocations: used.invocations,
            gb_seconds: used.gb_seconds,
            puts: used.puts,
            gets: used.gets,
            invocation_dollars: used.invocations as f64 * of(|p| p.invocation),
            compute_dollars: used.gb_seconds * gb_second,
            put_dollars: used.puts as f64 * of(|p| p.put),
            get_dollars: used.gets as f64 * of(|p| p.get),
        }
    }
}

/// The billed quantities.
struct Usage {
    invocations: u64,
    gb_seconds: f64,
    puts: u64,
    gets: u64,
}

impl Place {
    /// Reads the variables `AWS_REGION`, `FREESTONE_LAMBDA_ARCHITECTURE` (default `x86_64`), and
    /// `FREESTONE_LAMBDA_MEMORY` in MiB.
    ///
    /// # Errors
    /// Returns an error if a variable has an invalid value.
    pub fn from_env(
        concurrency: u64,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Place, String> {
        let text = |name: &str| variable(name).filter(|v| !v.is_empty());
        let architecture =
            text(environment::LAMBDA_ARCHITECTURE).unwrap_or_else(|| "x86_64".into());
        if !["x86_64", "arm64"].contains(&architecture.as_str()) {
            return Err(format!(
                "invalid FREESTONE_LAMBDA_ARCHITECTURE `{architecture}`: expected x86_64 or arm64"
            ));
        }
        let memory_mib = text(environment::LAMBDA_MEMORY).map(|v| {
            v.parse().map_err(|_| {
                format!("invalid FREESTONE_LAMBDA_MEMORY `{v}`: expected a number of MiB")
            })
        });
        let region = text(environment::AWS_REGION)
            .or_else(|| text(environment::AWS_DEFAULT_REGION))
            .unwrap_or_else(|| DEFAULT_REGION.into());
        Ok(Place { region, architecture, memory_mib: memory_mib.transpose()?, concurrency })
    }
}

impl Cost {
    /// Returns the total cost in dollars.
    pub fn dollars(&self) -> f64 {
        self.invocation_dollars + self.compute_dollars + self.put_dollars + self.get_dollars
    }

    /// Describes the function and the price list.
    fn basis(&self) -> String {
        let other_region = if self.prices_of == self.region {
            String::new()
        } else {
            format!(" for {}", self.prices_of)
        };
        let memory = self.memory_mib.map(|mib| format!(", {mib} MiB")).unwrap_or_default();
        format!(
            "{} {}{memory}; prices of {}{other_region}",
            self.region, self.architecture, self.date
        )
    }
}

/// Formats an amount with two or four decimal digits.
pub fn dollars(amount: f64) -> String {
    if amount >= 0.1 || amount == 0.0 { format!("${amount:.2}") } else { format!("${amount:.4}") }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cost on AWS Lambda ({}): {}", self.basis(), dollars(self.dollars()))?;
        writeln!(
            f,
            "  {:>14} invocations   {:>10}",
            self.invocations,
            dollars(self.invocation_dollars)
        )?;
        writeln!(
            f,
            "  {:>14.1} GB-seconds    {:>10}",
            self.gb_seconds,
            dollars(self.compute_dollars)
        )?;
        writeln!(f, "  {:>14} PUT requests  {:>10}", self.puts, dollars(self.put_dollars))?;
        write!(f, "  {:>14} GET requests  {:>10}", self.gets, dollars(self.get_dollars))
    }
}

/// Returns a table that compares measured and projected cost.
pub fn comparison(measured: &Cost, projected: &Cost) -> String {
    let mut text = format!(
        "cost on AWS Lambda ({})\n{:<14} {:>14} {:>14}",
        measured.basis(),
        "",
        "measured",
        "projected"
    );
    let figures = |c: &Cost| {
        [
            c.invocations.to_string(),
            format!("{:.1}", c.gb_seconds),
            c.puts.to_string(),
            c.gets.to_string(),
            dollars(c.dollars()),
        ]
    };
    let names = ["invocations", "GB-seconds", "PUT requests", "GET requests", "dollars"];
    for (name, (measured, projected)) in
        names.into_iter().zip(figures(measured).into_iter().zip(figures(projected)))
    {
        text.push_str(&format!("\n{name:<14} {measured:>14} {projected:>14}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use freestone::{CodecName, DType, Settings, Target};
    use freestone_engine::executor::Invocations;

    fn explained() -> PlanExplanation {
        let settings = Settings {
            work_dir: Some("work".into()),
            parallelism: Some(1000),
            ..Settings::default()
        };
        // 16 GB in chunks of 80 MB.
        let x = freestone::random_uniform(
            [2000, 1000, 1000],
            0.0,
            1.0,
            1,
            DType::Float64,
            [10, 1000, 1000],
        );
        let y = x.rechunk([2000, 100, 100]);
        let target = Target::array(&y, "no-such-folder/out").codec(CodecName::None);
        freestone::plan(&[target], &settings.resolve().unwrap()).unwrap().finalized().explain()
    }

    fn place() -> Place {
        Place::from_env(1000, |name| (name == "AWS_REGION").then(|| "eu-central-1".to_owned()))
            .unwrap()
    }

    #[test]
    fn built_in_prices_can_be_read() {
        let prices: Prices = serde_json::from_str(include_str!("prices.json")).unwrap();
        assert_eq!(prices, Prices::built_in());
        assert!(prices.regions[DEFAULT_REGION].gb_second.keys().eq(["arm64", "x86_64"]));
    }

    /// Prices 1000 tasks of 10 s on 2 GB, with 4 GET and one PUT request each: by the price list,
    /// 0.333 dollars for compute and 0.0066 for requests.
    #[test]
    fn measured_runs_are_priced() {
        let mut report = RunReport::default();
        assert_eq!(Prices::built_in().measured(&report, &place()), None);
        let byte_ms = 1000.0 * 10_000.0 * f64::from(1u32 << 31);
        report.invoked = Some(Invocations {
            invocations: 1000,
            records: 1000,
            byte_ms,
            ..Invocations::default()
        });
        let stage = freestone_engine::events::StageReport { tasks: 1000, ..Default::default() };
        report.stages.push(stage);
        (report.stages[0].traffic.reads, report.stages[0].traffic.writes) = (4000, 1000);
        let cost = Prices::built_in().measured(&report, &place()).unwrap();
        assert!(
            (cost.compute_dollars - 0.3333).abs() < 1e-3
                && (cost.gb_seconds - 20_000.0).abs() < 1e-6,
            "{cost:?}"
        );
        insta::assert_snapshot!(cost, @r"
        cost on AWS Lambda (eu-central-1 x86_64; prices of 2026-11-22 for us-east-1): $0.35
                    1000 invocations      $0.0002
                 20000.0 GB-seconds         $0.33
                    2000 PUT requests     $0.0100
                    4000 GET requests     $0.0016
        ");
        let projected = Prices::built_in().project(&explained(), &place());
        insta::assert_snapshot!(comparison(&cost, &projected), @r"
        cost on AWS Lambda (eu-central-1 x86_64; prices of 2026-11-22 for us-east-1)
                             measured      projected
        invocations              1000            300
        GB-seconds            20000.0          657.4
        PUT requests             2000          20400
        GET requests             4000          23583
        dollars                 $0.35          $0.12
        ");
        // The function has reported its memory. Its environments have checked 10 000 times whether
        // the client waits, and 16 of them have fetched the plan.
        report.invoked = report.invoked.map(|i| Invocations {
            memory_bytes: 1 << 31,
            plans: 16,
            records: 5000,
            ..i
        });
        let cost = Prices::built_in().measured(&report, &place()).unwrap();
        assert_eq!((cost.memory_mib, cost.puts, cost.gets), (Some(2048), 6000, 14_016));
        let arm = Place { architecture: "arm64".into(), region: DEFAULT_REGION.into(), ..place() };
        assert!(
            (Prices::built_in().measured(&report, &arm).unwrap().compute_dollars - 0.2667).abs()
                < 1e-3
        );
    }

    #[test]
    fn plans_are_priced() {
        let plan = explained();
        insta::assert_snapshot!(Prices::built_in().project(&plan, &place()), @r"
        cost on AWS Lambda (eu-central-1 x86_64, 205 MiB; prices of 2026-11-22 for us-east-1): $0.12
                     300 invocations      $0.0001
                   657.4 GB-seconds       $0.0110
                   20400 PUT requests       $0.10
                   23583 GET requests     $0.0094
        ");
        let larger = Place { memory_mib: Some(10_240), ..place() };
        assert!(Prices::built_in().project(&plan, &larger).gb_seconds > 0.0);
    }

    #[test]
    fn invalid_variables_are_refused() {
        let set = |name: &'static str, value: &'static str| {
            Place::from_env(1, move |n| (n == name).then(|| value.to_owned()))
        };
        assert!(
            set("FREESTONE_LAMBDA_ARCHITECTURE", "sparc").is_err()
                && set("FREESTONE_LAMBDA_MEMORY", "2GB").is_err()
        );
        assert_eq!(set("FREESTONE_LAMBDA_MEMORY", "2048").unwrap().memory_mib, Some(2048));
        assert_eq!(set("", "").unwrap().region, DEFAULT_REGION);
    }
}
