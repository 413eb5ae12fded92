//! What a run costs on AWS: projected from its plan, and afterwards from what was measured.
//!
//! Prices and what is assumed of the cloud's speed are data (`prices.json`, or the file that
//! `FREESTONE_PRICES` names), with the date when they were read. A projection is as good as these:
//! bytes are those of decoded chunks, of which codecs make fewer, so it is rather too high.

use std::collections::BTreeMap;
use std::fmt;

use freestone::LambdaExecutor;
use freestone_engine::driver::batching::{MAX_BATCH, REQUESTS_PER_WORKER};
use freestone_engine::environment;
use freestone_engine::events::RunReport;
use freestone_engine::plan::PlanExplanation;
use serde::{Deserialize, Serialize};

/// Prices, and what is assumed where nothing was measured.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// When they were read, as YYYY-MM-DD.
    pub date: String,
    /// Where.
    pub source: String,
    /// By the region's name.
    pub regions: BTreeMap<String, RegionPrices>,
    /// Speeds.
    pub assumed: Assumed,
}

/// Prices of a region, in dollars.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionPrices {
    /// A gigabyte (2³⁰ bytes) of a function for a second, by architecture.
    pub gb_second: BTreeMap<String, f64>,
    /// An invocation.
    pub invocation: f64,
    /// A request to S3 that writes.
    pub put: f64,
    /// A request to S3 that reads.
    pub get: f64,
}

/// What is assumed of tasks that did not run yet.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assumed {
    /// Of one environment, from and to S3.
    pub network_bytes_per_second: f64,
    /// Decoded, computed and encoded by a whole CPU.
    pub compute_bytes_per_second: f64,
    /// Until a request's first byte.
    pub request_seconds: f64,
    /// What an environment takes to start.
    pub cold_start_seconds: f64,
    /// What an invocation takes, if there is that much to do.
    pub invocation_seconds: f64,
}

/// Where a function runs, and how large it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The region.
    pub region: String,
    /// `x86_64` or `arm64`.
    pub architecture: String,
    /// Mebibytes of its memory; otherwise what the plan needs.
    pub memory_mib: Option<u64>,
    /// Environments at once.
    pub concurrency: u64,
}

/// What a run takes, and what that costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// The region, and whose prices these are if its own are not known.
    pub region: String,
    /// Whose prices.
    pub prices_of: String,
    /// The architecture.
    pub architecture: String,
    /// When the prices were read.
    pub date: String,
    /// Mebibytes of the function's memory.
    pub memory_mib: Option<u64>,
    /// Invocations.
    pub invocations: u64,
    /// Gigabytes (2³⁰ bytes) of memory times seconds.
    pub gb_seconds: f64,
    /// Requests to S3 that write.
    pub puts: u64,
    /// Requests to S3 that read.
    pub gets: u64,
    /// Of invocations, in dollars.
    pub invocation_dollars: f64,
    /// Of gigabytes times seconds.
    pub compute_dollars: f64,
    /// Of requests that write.
    pub put_dollars: f64,
    /// Of requests that read.
    pub get_dollars: f64,
}

/// Lambda gives a whole CPU with so much memory.
const MIB_PER_CPU: f64 = 1769.0;
/// Memory sizes that functions can have.
const MEMORY_MIB: [u64; 2] = [128, 10_240];
/// A task's projection is so much of a function's memory, so that there is some to spare.
const PART_OF_MEMORY: f64 = 0.9;
/// Maximum tasks in one invocation: those of its requests.
const MAX_TASKS: f64 = MAX_BATCH as f64 * LambdaExecutor::DEFAULT_BATCH as f64;
/// What is assumed where no region is named, or its prices are not known.
const KNOWN_REGION: &str = "us-east-1";

impl Prices {
    /// Those that came with this version.
    pub fn built_in() -> Prices {
        // A test reads it.
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

    /// Those of the file that `FREESTONE_PRICES` names, else those that came with this version.
    ///
    /// # Errors
    /// Where the file cannot be read, or is none.
    pub fn load() -> Result<Prices, String> {
        match std::env::var(environment::PRICES).ok().filter(|f| !f.is_empty()) {
            Some(file) => {
                let bad = |why: String| format!("the price table {file}: {why}");
                serde_json::from_str(
                    &std::fs::read_to_string(&file).map_err(|e| bad(e.to_string()))?,
                )
                .map_err(|e| bad(e.to_string()))
            }
            None => Ok(Prices::built_in()),
        }
    }

    /// What a plan is going to take in all, if all that it reads and writes is on S3.
    pub fn project(&self, plan: &PlanExplanation, place: &Place) -> Cost {
        let needed =
            (plan.projected_mem as f64 / PART_OF_MEMORY / f64::from(1 << 20)).ceil() as u64;
        let memory_mib = place.memory_mib.unwrap_or(needed).clamp(MEMORY_MIB[0], MEMORY_MIB[1]);
        let cpu = (memory_mib as f64 / MIB_PER_CPU).min(1.0);
        let at_once =
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
            // Tasks wait for storage beside each other, and share the CPU.
            let waiting = bytes / a.network_bytes_per_second + requests * a.request_seconds;
            let computing = bytes / (a.compute_bytes_per_second * cpu);
            let all = (waiting + computing)
                / at_once.min(tasks.max(1.0)).min(1.0 + waiting / computing.max(1e-9));
            let each = all / tasks.max(1.0);
            // Requests are shared out among all that environments run at once.
            let even = (tasks
                / (REQUESTS_PER_WORKER as f64
                    * place.concurrency.max(1) as f64
                    * at_once.min(MAX_TASKS)))
            .ceil()
            .max(1.0);
            let together = (a.invocation_seconds / each.max(1e-6)).clamp(1.0, MAX_TASKS).min(even);
            invocations += (tasks / together).ceil();
            // A record for each request.
            records += (tasks / even.min(MAX_BATCH as f64)).ceil();
            seconds += all;
        }
        let starts = invocations.min(place.concurrency as f64);
        seconds += starts * a.cold_start_seconds;
        let taken = Taken {
            invocations: invocations as u64,
            gb_seconds: seconds * memory_mib as f64 / 1024.0,
            puts: plan.written.requests + records as u64,
            // Once a second an environment looks whether anybody waits for it.
            gets: plan.read.requests + (starts + seconds) as u64,
        };
        self.price(place, Some(memory_mib), taken)
    }

    /// What a run has taken, as far as it is known: requests of tasks that were killed are not, nor
    /// is the probe before it. `None` where it ran on no machines that are paid for by use.
    pub fn measured(&self, report: &RunReport, place: &Place) -> Option<Cost> {
        let invoked = report.invoked?;
        let traffic = report.traffic();
        let memory_mib =
            place.memory_mib.or_else(|| Some(invoked.memory_bytes >> 20).filter(|mib| *mib > 0));
        // Once a second an environment looks whether anybody waits for it.
        let looks =
            memory_mib.map_or(0, |mib| (invoked.gb_seconds() * 1024.0 / mib.max(1) as f64) as u64);
        let taken = Taken {
            invocations: invoked.invocations,
            gb_seconds: invoked.gb_seconds(),
            puts: traffic.writes + invoked.records,
            gets: traffic.reads + invoked.plans + looks,
        };
        Some(self.price(place, memory_mib, taken))
    }

    fn price(&self, place: &Place, memory_mib: Option<u64>, taken: Taken) -> Cost {
        let known = self
            .regions
            .get_key_value(&place.region)
            .or_else(|| self.regions.get_key_value(KNOWN_REGION));
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
            invocations: taken.invocations,
            gb_seconds: taken.gb_seconds,
            puts: taken.puts,
            gets: taken.gets,
            invocation_dollars: taken.invocations as f64 * of(|p| p.invocation),
            compute_dollars: taken.gb_seconds * gb_second,
            put_dollars: taken.puts as f64 * of(|p| p.put),
            get_dollars: taken.gets as f64 * of(|p| p.get),
        }
    }
}

/// What is paid for.
struct Taken {
    invocations: u64,
    gb_seconds: f64,
    puts: u64,
    gets: u64,
}

impl Place {
    /// As the environment says: `AWS_REGION`, `FREESTONE_LAMBDA_ARCHITECTURE` (`x86_64`),
    /// `FREESTONE_LAMBDA_MEMORY` in mebibytes.
    ///
    /// # Errors
    /// Where a variable has no such value.
    pub fn from_env(
        concurrency: u64,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Place, String> {
        let text = |name: &str| variable(name).filter(|v| !v.is_empty());
        let architecture =
            text(environment::LAMBDA_ARCHITECTURE).unwrap_or_else(|| "x86_64".into());
        if !["x86_64", "arm64"].contains(&architecture.as_str()) {
            return Err(format!(
                "FREESTONE_LAMBDA_ARCHITECTURE is `{architecture}`: there are x86_64 and arm64"
            ));
        }
        let memory_mib = text(environment::LAMBDA_MEMORY).map(|v| {
            v.parse().map_err(|_| format!("FREESTONE_LAMBDA_MEMORY is `{v}`: mebibytes are meant"))
        });
        let region = text(environment::AWS_REGION)
            .or_else(|| text(environment::AWS_DEFAULT_REGION))
            .unwrap_or_else(|| KNOWN_REGION.into());
        Ok(Place { region, architecture, memory_mib: memory_mib.transpose()?, concurrency })
    }
}

impl Cost {
    /// In all.
    pub fn dollars(&self) -> f64 {
        self.invocation_dollars + self.compute_dollars + self.put_dollars + self.get_dollars
    }

    fn of(&self) -> String {
        let whose = if self.prices_of == self.region {
            String::new()
        } else {
            format!(", at prices of {}", self.prices_of)
        };
        let memory = self.memory_mib.map(|mib| format!(", {mib} MiB")).unwrap_or_default();
        format!("{} {}{memory}; prices of {}{whose}", self.region, self.architecture, self.date)
    }
}

/// Dollars with as many digits as say something.
pub fn dollars(amount: f64) -> String {
    if amount >= 0.1 || amount == 0.0 { format!("${amount:.2}") } else { format!("${amount:.4}") }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cost on AWS Lambda ({}): {}", self.of(), dollars(self.dollars()))?;
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
        writeln!(f, "  {:>14} puts to S3    {:>10}", self.puts, dollars(self.put_dollars))?;
        write!(f, "  {:>14} gets from S3  {:>10}", self.gets, dollars(self.get_dollars))
    }
}

/// What was measured beside what was projected, in a table.
pub fn beside(measured: &Cost, projected: &Cost) -> String {
    let mut text = format!(
        "cost on AWS Lambda ({})\n{:<14} {:>14} {:>14}",
        measured.of(),
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
    let names = ["invocations", "GB-seconds", "puts to S3", "gets from S3", "dollars"];
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
            &[2000, 1000, 1000],
            0.0,
            1.0,
            1,
            DType::Float64,
            &[10, 1000, 1000],
        );
        let y = x.rechunk(&[2000, 100, 100]);
        let target = Target::array(&y, "no-such-folder/out").codec(CodecName::None);
        freestone::plan(&[target], &settings.resolve().unwrap()).unwrap().finalized().explain()
    }

    fn place() -> Place {
        Place::from_env(1000, |name| (name == "AWS_REGION").then(|| "eu-central-1".to_owned()))
            .unwrap()
    }

    #[test]
    fn prices_that_came_with_it_can_be_read() {
        let prices: Prices = serde_json::from_str(include_str!("prices.json")).unwrap();
        assert_eq!(prices, Prices::built_in());
        assert!(prices.regions[KNOWN_REGION].gb_second.keys().eq(["arm64", "x86_64"]));
    }

    /// 1000 tasks of 10 s on 2 GB with 4 gets and a put each: by the price list, 0.333 dollars of
    /// compute and 0.0066 of requests.
    #[test]
    fn what_was_measured_is_priced() {
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
        cost on AWS Lambda (eu-central-1 x86_64; prices of 2026-11-22, at prices of us-east-1): $0.35
                    1000 invocations      $0.0002
                 20000.0 GB-seconds         $0.33
                    2000 puts to S3       $0.0100
                    4000 gets from S3     $0.0016
        ");
        insta::assert_snapshot!(beside(&cost, &Prices::built_in().project(&explained(), &place())), @r"
        cost on AWS Lambda (eu-central-1 x86_64; prices of 2026-11-22, at prices of us-east-1)
                             measured      projected
        invocations              1000            300
        GB-seconds            20000.0          657.4
        puts to S3               2000          20400
        gets from S3             4000          23583
        dollars                 $0.35          $0.12
        ");
        // The function has told its memory; its environments have looked 10 000 times whether
        // anybody waits, and 16 of them have fetched the plan.
        report.invoked = report.invoked.map(|i| Invocations {
            memory_bytes: 1 << 31,
            plans: 16,
            records: 5000,
            ..i
        });
        let cost = Prices::built_in().measured(&report, &place()).unwrap();
        assert_eq!((cost.memory_mib, cost.puts, cost.gets), (Some(2048), 6000, 14_016));
        let arm = Place { architecture: "arm64".into(), region: KNOWN_REGION.into(), ..place() };
        assert!(
            (Prices::built_in().measured(&report, &arm).unwrap().compute_dollars - 0.2667).abs()
                < 1e-3
        );
    }

    #[test]
    fn a_plan_is_priced() {
        let plan = explained();
        insta::assert_snapshot!(Prices::built_in().project(&plan, &place()), @r"
        cost on AWS Lambda (eu-central-1 x86_64, 205 MiB; prices of 2026-11-22, at prices of us-east-1): $0.12
                     300 invocations      $0.0001
                   657.4 GB-seconds       $0.0110
                   20400 puts to S3         $0.10
                   23583 gets from S3     $0.0094
        ");
        let larger = Place { memory_mib: Some(10_240), ..place() };
        assert!(Prices::built_in().project(&plan, &larger).gb_seconds > 0.0);
    }

    #[test]
    fn bad_variables_are_told() {
        let set = |name: &'static str, value: &'static str| {
            Place::from_env(1, move |n| (n == name).then(|| value.to_owned()))
        };
        assert!(
            set("FREESTONE_LAMBDA_ARCHITECTURE", "sparc").is_err()
                && set("FREESTONE_LAMBDA_MEMORY", "2GB").is_err()
        );
        assert_eq!(set("FREESTONE_LAMBDA_MEMORY", "2048").unwrap().memory_mib, Some(2048));
        assert_eq!(set("", "").unwrap().region, KNOWN_REGION);
    }
}
