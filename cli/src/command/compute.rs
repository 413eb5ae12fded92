//! `freestone compute` and `freestone plan`: expressions to targets.

use std::path::PathBuf;

use clap::Args;
use freestone::{Array, Encoding, Session, Target};
use freestone_cli::limits::Limits;
use freestone_expr::{Expression, Inputs, is_identifier};

use super::committing::Committing;
use super::negative::unmark;
use super::output::Output;
use super::watching::Watching;
use super::{Failure, Mode, execute};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    request: Request,
    /// Prints the plan and runs nothing.
    #[arg(long)]
    plan_only: bool,
    /// With --plan-only, also says what it would cost on AWS Lambda.
    #[arg(long)]
    cost: bool,
    #[command(flatten)]
    watching: Watching,
}

#[derive(Args)]
pub(crate) struct PlanArguments {
    #[command(flatten)]
    request: Request,
    /// Draws the plan into a file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Also says what it would cost on AWS Lambda.
    #[arg(long)]
    cost: bool,
}

#[derive(Args)]
pub(crate) struct Request {
    /// What to compute, as in "mean(u*v, axis=0)" or "-u".
    #[arg(required = true, value_name = "EXPR", value_parser = unmark)]
    expressions: Vec<String>,
    /// A stored array and its name in the expressions, as in u=winds.zarr/u.
    #[arg(short, long = "input", value_name = "NAME=ARRAY", value_parser = input)]
    inputs: Vec<(String, String)>,
    /// Compute on the stored numbers of packed inputs (scale_factor, add_offset, _FillValue, …) as
    /// they are
    #[arg(long)]
    raw: bool,
    /// Where each result goes: a place for an array, or STORE:NAME for one in a group, with its
    /// coordinates.
    #[arg(short, long = "output", value_name = "OUT")]
    outputs: Vec<Output>,
    /// Elements along each axis of a stored chunk; otherwise as the result is chunked.
    #[arg(long, value_delimiter = ',')]
    chunks: Option<Vec<u64>>,
    /// Elements along each axis of a shard: so many chunks lie in one object.
    #[arg(long, value_delimiter = ',')]
    shards: Option<Vec<u64>>,
    /// Codec of the results: none, lz4, zstd, zstd:LEVEL, gzip or gzip:LEVEL; with +crc32c after
    /// it, they have a checksum.
    #[arg(long, default_value = "zstd")]
    codec: Encoding,
    /// Gives groups that results go into consolidated metadata.
    #[arg(long)]
    consolidated: bool,
    /// Replaces what is where the results go.
    #[arg(long)]
    overwrite: bool,
    /// Prints one JSON object: the plan, or what the run took.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    committing: Committing,
    #[command(flatten)]
    limits: Limits,
}

fn input(text: &str) -> Result<(String, String), String> {
    let (name, location) = text
        .split_once('=')
        .filter(|(_, l)| !l.is_empty())
        .ok_or("write NAME=ARRAY, as in u=winds.zarr/u")?;
    if !is_identifier(name) {
        return Err(format!(
            "`{name}` cannot be a name: letters, digits and _ can, if no digit comes first and \
                Python has no other use for it"
        ));
    }
    Ok((name.to_owned(), location.to_owned()))
}

pub(crate) fn compute(asked: &Arguments) -> Result<(), Failure> {
    let request = &asked.request;
    if !asked.plan_only || !request.outputs.is_empty() {
        request.check_outputs()?;
    }
    request.execute(
        &asked.watching,
        Mode { plan_only: asked.plan_only, json: request.json, cost: asked.cost, svg: None },
    )
}

pub(crate) fn plan(asked: &PlanArguments) -> Result<(), Failure> {
    let request = &asked.request;
    if !request.outputs.is_empty() {
        request.check_outputs()?;
    }
    request.execute(
        &Watching::default(),
        Mode { plan_only: true, json: request.json, cost: asked.cost, svg: asked.svg.as_deref() },
    )
}

impl Request {
    fn check_outputs(&self) -> Result<(), Failure> {
        let (expressions, outputs) = (self.expressions.len(), self.outputs.len());
        if expressions == outputs {
            return Ok(());
        }
        Err(Failure::Usage(format!(
            "there are {expressions} expressions and {outputs} outputs: give one `-o` for each \
                expression, in their order"
        )))
    }

    fn execute(&self, watching: &Watching, mode: Mode<'_>) -> Result<(), Failure> {
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
        let session = self.committing.begin(&self.limits, &names, mode.plan_only, &targets)?;
        execute(
            &targets(session.as_ref())?,
            session.map(|s| self.committing.publishing(s, &names)),
            &self.limits,
            watching,
            mode,
        )
    }

    /// Says which expression it is, where there are several.
    fn name(&self, index: usize) -> String {
        if self.expressions.len() == 1 {
            "expression".into()
        } else {
            format!("expression {}", index + 1)
        }
    }

    fn arrays(&self) -> Result<Vec<Array>, Failure> {
        // All texts are read before any store is.
        let parse = |(i, text): (usize, &String)| {
            Expression::parse(text).map_err(|e| Failure::Expression(e.named(&self.name(i))))
        };
        let expressions =
            self.expressions.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
        let mut inputs = Inputs::new();
        for (name, location) in &self.inputs {
            if inputs.contains_key(name) {
                return Err(Failure::Usage(format!("the input `{name}` is given twice")));
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
        // Whatever is at a place that nobody has named is in nobody's way.
        let overwrite = self.overwrite || self.outputs.is_empty();
        Ok(target.codec(self.codec).overwrite(overwrite).consolidated(self.consolidated))
    }
}
