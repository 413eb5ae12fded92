//! The text of an explanation.

use std::fmt;

use super::names::counted;
use super::{
    ArrayExplanation, ArrayRead, ArrayWrite, PlanExplanation, ReadMethod, Role, StageExplanation,
    Traffic,
};
use crate::memory::size;
use crate::plan::FinalizedPlan;

impl fmt::Display for FinalizedPlan {
    /// Writes the plan's explanation.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.explain().fmt(f)
    }
}

impl fmt::Display for PlanExplanation {
    /// Writes a summary, and then each stage.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages = counted(self.stages.len() as u64, "stage");
        let tasks = counted(self.tasks, "task");
        let allowed = size(self.allowed_mem);
        writeln!(f, "plan {}: {stages}, {tasks}, allowed_mem {allowed}", self.plan)?;
        writeln!(f, "reads {}, writes {} (decoded sizes)", self.read, self.written)?;
        self.stages.iter().try_for_each(|stage| stage.fmt(f))
    }
}

impl fmt::Display for StageExplanation {
    /// Writes the stage's tasks, reads, writes, notes, and memory by parts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}: {}, {}", self.name, counted(self.tasks, "task"), self.kernel)?;
        if !self.after.is_empty() {
            writeln!(f, "  depends on {}", self.after.join(", "))?;
        }
        write!(f, "  task shape {:?}", self.task_shape)?;
        if self.block_shape != self.task_shape {
            write!(f, ", block shape {:?}", self.block_shape)?;
        }
        writeln!(f)?;
        self.reads.iter().try_for_each(|read| write_read(f, read))?;
        self.writes.iter().try_for_each(|write| write_write(f, write))?;
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        writeln!(f, "  projected memory per task {}:", size(self.projected_mem))?;
        self.memory.to_string().lines().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

fn write_read(f: &mut fmt::Formatter<'_>, read: &ArrayRead) -> fmt::Result {
    let ArrayExplanation { name, dtype, shape, chunks, role, .. } = &read.array;
    let verb = match role {
        Role::Constant => "holds",
        Role::Generated => "generates",
        _ => "reads",
    };
    write!(f, "  {verb} {name} {dtype} {shape:?} in chunks {chunks:?}")?;
    match read.method {
        ReadMethod::NotRead => {}
        ReadMethod::ChunkByChunk => write!(f, ", chunk by chunk")?,
        ReadMethod::Assembled => write!(f, ", assembling blocks")?,
        ReadMethod::Partial => write!(f, ", in parts of chunks")?,
    }
    if read.inputs > 1 {
        write!(f, ", as {} inputs", read.inputs)?;
    }
    if read.cached_chunks > 0 {
        write!(f, ", caching {}", counted(read.cached_chunks, "chunk"))?;
    }
    if read.method != ReadMethod::NotRead {
        write!(f, ": {}", read.traffic)?;
    }
    writeln!(f)
}

fn write_write(f: &mut fmt::Formatter<'_>, write: &ArrayWrite) -> fmt::Result {
    let ArrayExplanation { name, dtype, shape, chunks, shards, region, place, .. } = &write.array;
    write!(f, "  writes {name} {dtype} {shape:?} in chunks {chunks:?}")?;
    if let Some(shards) = shards {
        write!(f, " in shards {shards:?}")?;
    }
    write!(f, " to ")?;
    if let Some(start) = region {
        write!(f, "the region at {start:?} of ")?;
    }
    let to = if write.array.role == Role::Intermediate { "the work directory" } else { place };
    writeln!(f, "{to}: {}", write.traffic)?;
    writeln!(f, "    {name} = {}", write.formula)
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = if self.exact { "" } else { "about " };
        write!(f, "{about}{} in {}", size(self.bytes), counted(self.requests, "request"))
    }
}
