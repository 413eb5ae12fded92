//! What a plan says to people: as data, from which its text, its JSON and its drawing are made.
//!
//! Nothing here runs anything. What a stage reads is what the planner counts too
//! (`plan/traffic.rs`), and notes of decisions are those that lowering left in the plan; what can
//! be seen in the plan itself (functions, views, siblings) is put into words here.

use std::fmt;

use freestone_kernels::{DType, Expr, Node as ExprNode};
use serde::{Serialize, Serializer};

use super::layout::without_chunks;
use super::{
    ArrayId, FinalizedPlan, Place, Plan, PlanArray, ReadMode, Scope, Stage, StageId, StageInput,
    StageLayout,
};
use super::{read_counts, traffic};
use crate::memory::{MemoryEstimate, size};
use crate::readmap::{AxisMap, Origin, ReadMap};

/// A plan, explained. All sizes are bytes, those of arrays decoded; codecs make fewer of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanExplanation {
    /// The run's name.
    pub plan: String,
    /// What a task may hold.
    pub allowed_mem: u64,
    /// What of that is no arrays.
    pub reserved_mem: u64,
    /// What a task of the hungriest stage holds at most.
    pub projected_mem: u64,
    /// Tasks of all stages.
    pub tasks: u64,
    /// What all stages read.
    pub read: Traffic,
    /// What all stages write.
    pub written: Traffic,
    /// The stages, in an order in which they can run.
    pub stages: Vec<StageExplanation>,
}

/// A stage, explained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageExplanation {
    /// As in progress and reports: `mean-003`.
    pub name: String,
    /// What it does, in words.
    pub kernel: String,
    /// Number of tasks.
    pub tasks: u64,
    /// Elements of the iteration space that a task goes through, at most.
    pub task_shape: Vec<u64>,
    /// Elements that it has at hand at once.
    pub block_shape: Vec<u64>,
    /// Stages that it waits for.
    pub after: Vec<String>,
    /// The arrays that it reads.
    pub reads: Vec<Reading>,
    /// The arrays that it writes.
    pub writes: Vec<Writing>,
    /// What one task holds at most.
    pub projected_mem: u64,
    /// The same by parts.
    #[serde(serialize_with = "by_part")]
    pub memory: MemoryEstimate,
    /// Why it is as it is.
    pub notes: Vec<String>,
}

/// An array of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArrayExplanation {
    /// Its number in the plan.
    pub id: usize,
    /// Its name.
    pub name: String,
    /// What it is to the plan.
    pub role: Role,
    /// Element type.
    pub dtype: DType,
    /// Elements along each axis.
    pub shape: Vec<u64>,
    /// Elements of a chunk along each axis.
    pub chunks: Vec<u64>,
    /// Elements of a shard along each axis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<Vec<u64>>,
    /// Where the region begins that is read or written of a larger array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<Vec<u64>>,
    /// Its decoded bytes.
    pub bytes: u64,
    /// Where it is.
    pub place: String,
}

/// What an array is to its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It is there before.
    Input,
    /// It is what is asked for.
    Output,
    /// It lies between two stages, in memory or in the work directory.
    Intermediate,
    /// The plan has its values.
    Constant,
    /// Its values follow from indices.
    Generated,
}

/// How an array is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Each block lies in one chunk.
    ChunkByChunk,
    /// Blocks are put together of several chunks.
    Assembling,
    /// Chunks are not encoded, and only what is needed of them is read.
    InParts,
    /// It is not read, but made.
    Made,
}

/// What a stage reads of an array.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// The array.
    #[serde(flatten)]
    pub array: ArrayExplanation,
    /// How.
    pub how: How,
    /// At how many places at once.
    pub places: usize,
    /// Decoded chunks that stay from task to task.
    pub kept_chunks: u64,
    /// How much, by all tasks.
    pub traffic: Traffic,
}

/// What a stage writes to an array.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Writing {
    /// The array.
    #[serde(flatten)]
    pub array: ArrayExplanation,
    /// What it is computed as, cut off where it gets long.
    pub formula: String,
    /// How much, by all tasks.
    pub traffic: Traffic,
}

/// Decoded bytes, and requests: chunks or parts of them that are read, objects that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Decoded bytes.
    pub bytes: u64,
    /// Requests.
    pub requests: u64,
    /// It is so; else it is estimated.
    pub exact: bool,
}

impl Traffic {
    const NONE: Traffic = Traffic { bytes: 0, requests: 0, exact: true };

    fn of(requests: f64, bytes: f64, exact: bool) -> Traffic {
        Traffic { bytes: bytes.round() as u64, requests: requests.round() as u64, exact }
    }

    fn and(self, other: Traffic) -> Traffic {
        Traffic {
            bytes: self.bytes.saturating_add(other.bytes),
            requests: self.requests.saturating_add(other.requests),
            exact: self.exact && other.exact,
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{} in {}",
            if self.exact { "" } else { "about " },
            size(self.bytes),
            counted(self.requests, "request")
        )
    }
}

fn by_part<S: Serializer>(memory: &MemoryEstimate, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(memory.parts().iter().map(|(part, bytes)| (part, bytes)))
}

/// Of a list of things that may be long, so many are named.
const MAX_NAMED: usize = 4;
/// No more than so many notes are made of a stage.
const MAX_NOTES: usize = 8;
/// A formula is cut off after about so many characters.
const MAX_FORMULA: usize = 72;

impl FinalizedPlan {
    /// What it does and why. Costs as much as planning: nothing per chunk.
    pub fn explain(&self) -> PlanExplanation {
        let plan = self.plan();
        let (scope, mut left) = (plan.scope(), read_counts::MAX_READS);
        let stages: Vec<StageExplanation> = self
            .stages()
            .map(|(_, stage, layout)| explain_stage(plan, scope, stage, layout, &mut left))
            .collect();
        let sum = |of: &dyn Fn(&StageExplanation) -> Vec<Traffic>| {
            stages.iter().flat_map(of).fold(Traffic::NONE, Traffic::and)
        };
        PlanExplanation {
            plan: self.run_id().to_string(),
            allowed_mem: plan.allowed_mem,
            reserved_mem: plan.reserved_mem,
            projected_mem: self.projected_mem(),
            tasks: plan.stages.iter().map(Stage::n_tasks).fold(0, u64::saturating_add),
            read: sum(&|s| s.reads.iter().map(|r| r.traffic).collect()),
            written: sum(&|s| s.writes.iter().map(|w| w.traffic).collect()),
            stages,
        }
    }
}

fn explain_stage(
    plan: &Plan,
    scope: Scope<'_>,
    stage: &Stage,
    layout: &StageLayout,
    left: &mut u64,
) -> StageExplanation {
    let reads = read_counts::reads(scope, stage, layout, left).into_iter().map(|(id, counted)| {
        let array = explain_array(plan, id);
        let made = matches!(array.role, Role::Constant | Role::Generated);
        let inputs =
            || stage.inputs.iter().zip(&layout.inputs).filter(|(i, _)| i.sources.contains(&id));
        let how = match () {
            () if made => How::Made,
            () if inputs().all(|(_, l)| l.mode == ReadMode::InChunk) => How::ChunkByChunk,
            () if counted.parts => How::InParts,
            () => How::Assembling,
        };
        let bytes = if how == How::ChunkByChunk { counted.whole_bytes } else { counted.bytes };
        let exact = counted.exact && how != How::InParts;
        Reading {
            array,
            how,
            places: inputs().count(),
            kept_chunks: stage.keep.iter().find(|k| k.array == id).map_or(0, |k| k.chunks),
            traffic: if made { Traffic::NONE } else { Traffic::of(counted.requests, bytes, exact) },
        }
    });
    let names: Vec<String> = stage.inputs.iter().map(|i| input_name(plan, i)).collect();
    let writes = stage.outputs.iter().zip(traffic::writes(scope, stage)).enumerate().map(
        |(j, (output, counted))| Writing {
            array: explain_array(plan, output.array),
            formula: stage.kernel.kind().formula(j, &names),
            traffic: Traffic::of(counted.requests, counted.bytes, counted.exact),
        },
    );
    StageExplanation {
        name: stage.name.clone(),
        kernel: stage.kernel.kind().description(),
        tasks: stage.n_tasks(),
        task_shape: stage.tasks.max_chunk(),
        block_shape: stage
            .walk
            .max_chunk()
            .iter()
            .zip(stage.tasks.max_chunk())
            .map(|(w, t)| (*w).min(t))
            .collect(),
        after: stage.after.iter().map(|StageId(i)| plan.stages[*i].name.clone()).collect(),
        reads: reads.collect(),
        writes: writes.collect(),
        projected_mem: layout.estimate.total(),
        memory: layout.estimate.clone(),
        notes: notes(plan, stage),
    }
}

fn explain_array(plan: &Plan, id: ArrayId) -> ArrayExplanation {
    let PlanArray { name, info, place } = plan.array(id);
    let at = |url: &str, path: &str| crate::storage::join(url, path);
    let (role, place) = match place {
        Place::Input { url, path, .. } => (Role::Input, at(url, path)),
        Place::Output { url, path } => (Role::Output, at(url, path)),
        Place::Work => (Role::Intermediate, "work directory".into()),
        Place::Constant(_) => (Role::Constant, "plan".into()),
        Place::Generated(_) => (Role::Generated, "generated".into()),
    };
    ArrayExplanation {
        id: id.0,
        name: name.clone(),
        role,
        dtype: info.dtype,
        shape: info.shape(),
        chunks: info.chunk_shape(),
        shards: info.shard.is_some().then(|| info.object_shape()),
        region: info
            .window
            .as_ref()
            .map(|first| first.iter().zip(info.chunk_shape()).map(|(f, c)| f * c).collect()),
        bytes: u64::try_from(info.n_bytes()).unwrap_or(u64::MAX),
        place,
    }
}

/// `1 task`, `2 tasks`.
pub(crate) fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `a, b and c`; the first few of many.
pub(crate) fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] if names.len() <= MAX_NAMED => {
            format!("{} and {last}", first.join(", "))
        }
        _ => format!(
            "{} and {} more",
            names[..MAX_NAMED - 1].join(", "),
            names.len() + 1 - MAX_NAMED
        ),
    }
}

/// What can be seen of a stage's making, and what lowering has noted.
fn notes(plan: &Plan, stage: &Stage) -> Vec<String> {
    let mut notes = Vec::new();
    let kind = stage.kernel.kind();
    let functions: Vec<String> =
        kind.exprs().into_iter().flat_map(|e| e.nodes()).filter_map(function_name).collect();
    if !functions.is_empty() {
        let mut names: Vec<String> = Vec::new();
        for name in &functions {
            // Enough to see that there are more.
            if names.len() <= 3 * MAX_NAMED && !names.contains(name) {
                names.push(name.clone());
            }
        }
        let then = kind.after_reading();
        notes.push(format!(
            "computes {} while it {then}: {}",
            counted(functions.len() as u64, "function"),
            listed(&names)
        ));
    }
    if stage.outputs.len() > 1 {
        let names: Vec<String> =
            stage.outputs.iter().map(|o| plan.array(o.array).name.clone()).collect();
        notes
            .push(format!("{} walk the same blocks of the same inputs: one stage", listed(&names)));
    }
    let mut views: Vec<String> = Vec::new();
    for input in &stage.inputs {
        if views.len() <= 3 * MAX_NAMED
            && let Some(view) = view_name(plan, input)
            && !views.contains(&view)
        {
            views.push(view);
        }
    }
    if !views.is_empty() && !kind.reads_dense() {
        let (are, they) =
            if views.len() == 1 { ("is a view", "it") } else { ("are views", "they") };
        notes.push(
            format!("{} {are}: {they} cost no stage, only where is read", listed(&views))
                .replace("it cost ", "it costs "),
        );
    }
    if let (Some(axis), false) = (stage.sweep, stage.keep.is_empty()) {
        notes.push(format!(
            "tasks follow each other along axis {axis}, so that decoded chunks stay \
            for the next one"
        ));
    }
    let more = stage.notes.len().saturating_sub(MAX_NOTES - notes.len());
    notes.extend(stage.notes.iter().take(MAX_NOTES - notes.len() - usize::from(more > 0)).cloned());
    if more > 0 {
        notes.push(format!("and {} more notes", more + 1));
    }
    notes
}

fn function_name(node: &ExprNode) -> Option<String> {
    match node {
        ExprNode::Input(_) | ExprNode::Literal(_) => None,
        ExprNode::Unary(op, _) => Some(op.name()),
        ExprNode::Binary(op, ..) => Some(op.name()),
        ExprNode::Where(..) => Some("where".into()),
        ExprNode::Cast(dtype, _) => Some(format!("astype {dtype}")),
    }
}

/// Result `j` of an expression as text, cut off where it gets long.
pub(crate) fn term(expr: &Expr, j: usize, names: &[String]) -> String {
    let mut text = String::new();
    if let Some(result) = expr.results().get(j) {
        write_term(expr, *result, names, &mut text);
    }
    if text.chars().count() > MAX_FORMULA {
        text.chars().take(MAX_FORMULA).chain(['…']).collect()
    } else {
        text
    }
}

/// Writes a term of an expression until the text is long: every level writes something before it
/// goes deeper.
fn write_term(expr: &Expr, node: u32, names: &[String], text: &mut String) {
    if text.len() > 2 * MAX_FORMULA {
        return;
    }
    let mut call = |name: &str, operands: &[u32]| {
        text.push_str(name);
        text.push('(');
        for (i, operand) in operands.iter().enumerate() {
            if i > 0 {
                text.push_str(", ");
            }
            write_term(expr, *operand, names, text);
        }
        text.push(')');
    };
    match expr.nodes().get(node as usize) {
        Some(ExprNode::Input(i)) => {
            text.push_str(names.get(*i as usize).map_or("?", String::as_str))
        }
        Some(ExprNode::Literal(value)) => text.push_str(&value.to_string()),
        Some(ExprNode::Unary(op, a)) => call(&op.name(), &[*a]),
        Some(ExprNode::Binary(op, a, b)) => call(&op.name(), &[*a, *b]),
        Some(ExprNode::Where(c, a, b)) => call("where", &[*c, *a, *b]),
        Some(ExprNode::Cast(dtype, a)) => call(&dtype.to_string(), &[*a]),
        None => {}
    }
}

/// An input by the arrays that it reads, and where.
fn input_name(plan: &Plan, input: &StageInput) -> String {
    let fill = || match input.map.pieces() {
        [piece] => {
            if let Origin::Fill(value) = &piece.from {
                value.to_string()
            } else {
                "mask".into()
            }
        }
        _ => "mask".into(),
    };
    view_name(plan, input).unwrap_or_else(|| {
        input.sources.first().map_or_else(fill, |id| plan.array(*id).name.clone())
    })
}

/// An input in words, if it is anything but an array as it is: `x[1:, ::-1]`,
/// `x and y in 3 pieces`.
fn view_name(plan: &Plan, input: &StageInput) -> Option<String> {
    let first = plan.array(*input.sources.first()?);
    if input.map.is_flat() {
        return Some(format!("{} reshaped", first.name));
    }
    let Some(axes) = input.map.as_image() else {
        let mut names: Vec<String> = Vec::new();
        for id in input.sources.iter().take(2 * MAX_NAMED) {
            let name = &plan.array(*id).name;
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        return Some(format!("{} in {} pieces", listed(&names), input.map.pieces().len()));
    };
    let looks = image_name(&first.name, axes, &input.map, &first.info.shape());
    (looks != first.name).then_some(looks)
}

/// An image of an array as an index of it: `x[1:, 3]`.
fn image_name(name: &str, axes: &[AxisMap], map: &ReadMap, source: &[u64]) -> String {
    let shape = map.shape();
    let index = |(axis, length): (&AxisMap, &u64)| match axis {
        AxisMap::Fixed(0) if *length == 1 => ":".to_owned(),
        AxisMap::Fixed(at) => at.to_string(),
        AxisMap::Gather { axis, .. } => format!("{} indices", shape[*axis]),
        AxisMap::Along { axis, start, step, .. } => {
            let n = shape[*axis];
            let (first, last) =
                if *step > 0 { (0, *length) } else { (length.saturating_sub(1), 0) };
            let from = if *start == first { String::new() } else { start.to_string() };
            let end = *start as i128 + *step as i128 * (n as i128 - 1);
            let reaches = if *step > 0 {
                end + i128::from(*step) >= i128::from(last)
            } else {
                end + i128::from(*step) < 0
            };
            let to =
                if reaches { String::new() } else { (end + i128::from(step.signum())).to_string() };
            if *step == 1 { format!("{from}:{to}") } else { format!("{from}:{to}:{step}") }
        }
    };
    let mut indices: Vec<String> = axes.iter().zip(source).map(index).collect();
    while indices.last().is_some_and(|i| i == ":") {
        indices.pop();
    }
    let mut text = name.to_owned();
    if !indices.is_empty() {
        text += &format!("[{}]", indices.join(", "));
    }
    let named: Vec<usize> = axes.iter().filter_map(AxisMap::axis).collect();
    if named.windows(2).any(|w| w[0] > w[1]) {
        text += " transposed";
    }
    if (0..shape.len()).any(|d| shape[d] > 1 && !named.contains(&d)) {
        text += " broadcast";
    }
    text
}

impl fmt::Display for FinalizedPlan {
    /// As its explanation.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.explain().fmt(f)
    }
}

impl fmt::Display for PlanExplanation {
    /// Stages with their tasks, what they read and write, memory by parts, and notes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stages, tasks) =
            (counted(self.stages.len() as u64, "stage"), counted(self.tasks, "task"));
        writeln!(
            f,
            "plan {}: {stages}, {tasks}, allowed_mem {}",
            self.plan,
            size(self.allowed_mem)
        )?;
        writeln!(
            f,
            "reads {}, writes {}; bytes are those of decoded chunks",
            self.read, self.written
        )?;
        self.stages.iter().try_for_each(|stage| stage.fmt(f))
    }
}

impl fmt::Display for StageExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}: {}, {}", self.name, counted(self.tasks, "task"), self.kernel)?;
        if !self.after.is_empty() {
            writeln!(f, "  waits for {}", self.after.join(", "))?;
        }
        let blocks = if self.block_shape == self.task_shape {
            String::new()
        } else {
            format!(" in blocks of {:?}", self.block_shape)
        };
        writeln!(f, "  a task takes {:?}{blocks}", self.task_shape)?;
        for read in &self.reads {
            let ArrayExplanation { name, dtype, shape, chunks, role, .. } = &read.array;
            let verb = match role {
                Role::Constant => "holds",
                Role::Generated => "generates",
                _ => "reads",
            };
            write!(f, "  {verb} {name} {dtype} {shape:?} in chunks {chunks:?}")?;
            match read.how {
                How::Made => {}
                How::ChunkByChunk => write!(f, ", chunk by chunk")?,
                How::Assembling => write!(f, ", assembling blocks")?,
                How::InParts => write!(f, ", in parts of chunks")?,
            }
            if read.places > 1 {
                write!(f, ", at {} places", read.places)?;
            }
            if read.kept_chunks > 0 {
                write!(f, ", keeping {}", counted(read.kept_chunks, "chunk"))?;
            }
            if read.how != How::Made {
                write!(f, ": {}", read.traffic)?;
            }
            writeln!(f)?;
        }
        for write in &self.writes {
            let ArrayExplanation { name, dtype, shape, chunks, shards, region, place, .. } =
                &write.array;
            write!(f, "  writes {name} {dtype} {shape:?} in chunks {chunks:?}")?;
            if let Some(shards) = shards {
                write!(f, " in shards {shards:?}")?;
            }
            let to =
                if write.array.role == Role::Intermediate { "the work directory" } else { place };
            let region = region
                .as_ref()
                .map_or_else(String::new, |start| format!("a region from {start:?} of "));
            writeln!(f, " to {region}{to}: {}", write.traffic)?;
            writeln!(f, "    {name} = {}", write.formula)?;
        }
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        writeln!(f, "  projected memory per task {}:", size(self.projected_mem))?;
        self.memory.to_string().lines().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// What a user can change to make a stage fit.
pub(super) fn advice(plan: &Plan, stage: &Stage) -> String {
    let fixed = without_chunks(plan, stage);
    let least = fixed.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
    let mut advice = String::from("raise allowed_mem");
    // Who allows little more than that would not get far with smaller chunks.
    if plan.allowed_mem - least.min(plan.allowed_mem) < least / 4 {
        let parts: Vec<String> =
            fixed.iter().map(|(what, bytes)| format!("{} {what}", size(*bytes))).collect();
        let parts = if parts.len() > 1 { format!(": {}", parts.join(", ")) } else { String::new() };
        advice +=
            &format!(" (whatever the chunks are, it must be more than {}{parts})", size(least));
    }
    // The largest chunk among inputs and outputs, and its longest axis, is what dominates.
    let all =
        stage.inputs.iter().flat_map(|i| &i.sources).chain(stage.outputs.iter().map(|o| &o.array));
    let written = |a: &PlanArray| matches!(a.place, Place::Output { .. });
    // Of a sharded array the shard is written, and the chunk is read.
    let held =
        |a: &PlanArray| if written(a) { a.info.object_shape() } else { a.info.chunk_shape() };
    let bytes =
        |shape: &[u64], size: usize| shape.iter().fold(size as u64, |p, n| p.saturating_mul(*n));
    let largest =
        all.map(|id| plan.array(*id)).max_by_key(|a| bytes(&held(a), a.info.dtype.size()));
    if let Some(array) = largest.filter(|_| least < plan.allowed_mem) {
        let shape = held(array);
        let what = if shape == array.info.chunk_shape() { "chunks" } else { "shards" };
        let widest = (0..shape.len()).max_by_key(|d| shape[*d]).unwrap_or(0);
        let each = size(bytes(&shape, array.info.dtype.size()));
        advice += &format!(
            ", or use smaller {what}: those of `{}` are {shape:?} ({each} each), longest along \
                axis {widest}",
            array.name
        );
    }
    advice
}
