//! `freestone compute` and `freestone plan`.

use std::path::PathBuf;

use clap::Args;
use freestone::{Array, Encoding, Session, Target};
use freestone_cli::limits::Limits;
use freestone_expr::{Expression, Inputs, is_identifier};

use super::Failure;
use super::commit::CommitArgs;
use super::console::Console;
use super::execute::{Mode, Run, execute};
use super::negative::unmark;
use super::observe::ObserverArgs;
use super::output::Output;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    request: Request,
    /// Print the plan without running it
    #[arg(long)]
    plan_only: bool,
    /// With --plan-only, print the projected cost on AWS Lambda
    #[arg(long)]
    cost: bool,
    #[command(flatten)]
    observers: ObserverArgs,
    #[command(flatten)]
    commit: CommitArgs,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Args)]
pub(crate) struct PlanArguments {
    #[command(flatten)]
    request: Request,
    /// Draw the plan to FILE
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print the projected cost on AWS Lambda
    #[arg(long)]
    cost: bool,
    #[command(flatten)]
    commit: CommitArgs,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Args)]
pub(crate) struct Request {
    /// Expressions, such as "mean(u*v, axis=0)" or "-u"
    #[arg(required = true, value_name = "EXPR", value_parser = unmark)]
    expressions: Vec<String>,
    /// Name of an input in the expressions, and its location, such as u=winds.zarr/u
    #[arg(short, long = "input", value_name = "NAME=ARRAY", value_parser = input)]
    inputs: Vec<(String, String)>,
    /// Compute on the stored values of packed inputs (scale_factor, add_offset, _FillValue, …)
    #[arg(long)]
    raw: bool,
    /// Location of each result: DIR for an array, or STORE:NAME for an array in a group
    #[arg(short, long = "output", value_name = "OUT")]
    outputs: Vec<Output>,
    /// Shape of stored chunks [default: chunks of the result]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    chunks: Option<Vec<u64>>,
    /// Shape of shards, which store several chunks in one object
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    shards: Option<Vec<u64>>,
    /// Codec: none, lz4, zstd, zstd:LEVEL, gzip or gzip:LEVEL; append +crc32c for checksums
    #[arg(long, default_value = "zstd")]
    codec: Encoding,
    /// Write consolidated metadata to the groups of the results
    #[arg(long)]
    consolidated: bool,
    /// Replace existing arrays
    #[arg(long)]
    overwrite: bool,
    /// Print the plan or the report of the run as one JSON object
    #[arg(long)]
    json: bool,
}

fn input(text: &str) -> Result<(String, String), String> {
    let (name, location) = text
        .split_once('=')
        .filter(|(_, l)| !l.is_empty())
        .ok_or("expected NAME=ARRAY, such as u=winds.zarr/u")?;
    if !is_identifier(name) {
        return Err(format!(
            "invalid name `{name}`: expected letters, digits and _, not starting with a digit, and \
                not a keyword of Python"
        ));
    }
    Ok((name.to_owned(), location.to_owned()))
}

pub(crate) fn compute(arguments: &Arguments, console: &Console) -> Result<(), Failure> {
    let Arguments { request, plan_only, cost, observers, commit, limits } = arguments;
    if !plan_only || !request.outputs.is_empty() {
        request.check_outputs()?;
    }
    let mode = Mode { plan_only: *plan_only, json: request.json, cost: *cost, svg: None };
    request.execute(commit, Run { limits, observers, console }, mode)
}

pub(crate) fn plan(arguments: &PlanArguments, console: &Console) -> Result<(), Failure> {
    let PlanArguments { request, svg, cost, commit, limits } = arguments;
    if !request.outputs.is_empty() {
        request.check_outputs()?;
    }
    let mode = Mode { plan_only: true, json: request.json, cost: *cost, svg: svg.as_deref() };
    request.execute(commit, Run { limits, observers: &ObserverArgs::default(), console }, mode)
}

impl Request {
    fn check_outputs(&self) -> Result<(), Failure> {
        let (expressions, outputs) = (self.expressions.len(), self.outputs.len());
        if expressions == outputs {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "expected one output for each expression, found {expressions} expressions and \
                {outputs} outputs (hint: pass `-o` once for each expression, in their order)"
        )))
    }

    fn execute(&self, commit: &CommitArgs, run: Run<'_>, mode: Mode<'_>) -> Result<(), Failure> {
        let arrays = self.arrays()?;
        let outputs: Vec<Output> = (0..arrays.len())
            .map(|i| self.outputs.get(i).cloned().unwrap_or_else(|| Output::placeholder(i)))
            .collect();
        let names: Vec<String> = outputs.iter().map(Output::text).collect();
        let targets = |session: Option<&Session>| {
            arrays
                .iter()
                .zip(&outputs)
                .map(|(array, output)| self.target(array, output, session))
                .collect()
        };
        let session = commit.begin(run.limits, &names, mode.plan_only, &targets)?;
        let targets = targets(session.as_ref())?;
        let publisher = session.map(|s| commit.publishing(s, &names)).transpose()?;
        execute(&targets, publisher, run, mode)
    }

    /// Returns the name of an expression in errors, numbered if there are several.
    fn name(&self, index: usize) -> String {
        if self.expressions.len() == 1 {
            "expression".into()
        } else {
            format!("expression {}", index + 1)
        }
    }

    fn arrays(&self) -> Result<Vec<Array>, Failure> {
        // All expressions are parsed before any store is opened.
        let parse = |(i, text): (usize, &String)| {
            Expression::parse(text).map_err(|e| Failure::Expression(e.named(&self.name(i))))
        };
        let expressions =
            self.expressions.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
        let mut inputs = Inputs::new();
        for (name, location) in &self.inputs {
            if inputs.contains_key(name) {
                return Err(Failure::usage(format!("input `{name}` is given twice")));
            }
            let array = freestone::open(location)?;
            inputs.insert(name.clone(), if self.raw { array.raw() } else { array });
        }
        let evaluate = |(i, e): (usize, &Expression)| {
            e.array(&inputs).map_err(|e| Failure::Expression(e.named(&self.name(i))))
        };
        expressions.iter().enumerate().map(evaluate).collect()
    }

    fn target(
        &self,
        array: &Array,
        output: &Output,
        session: Option<&Session>,
    ) -> Result<Target, Failure> {
        let target = match &self.chunks {
            Some(chunks) => output.target(&array.rechunk(chunks), session)?.chunks(chunks),
            None => output.target(array, session)?,
        };
        let target = match &self.shards {
            Some(shards) => target.shards(shards),
            None => target,
        };
        // Without outputs, the locations are placeholders that a plan never writes.
        let overwrite = self.overwrite || self.outputs.is_empty();
        Ok(target.codec(self.codec).overwrite(overwrite).consolidated(self.consolidated))
    }
}
