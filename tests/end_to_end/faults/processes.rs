//! Killed worker processes, and damaged files of intermediates.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use freestone::Plan;
use freestone_engine::events::{Event, Observer};
use freestone_engine::plan::{Place as ArrayPlace, StageId};
use freestone_engine::storage::reader::Written;
use freestone_engine::task::Receipt;
use freestone_engine::task::TaskRequest;

use super::{Fault, Faults, Part};

/// Kills an active or idle worker when an outcome arrives.
pub struct Killer {
    faults: Arc<Faults>,
    seen: Mutex<Vec<u32>>,
}

impl Killer {
    pub fn new(faults: Arc<Faults>) -> Killer {
        Killer { faults, seen: Mutex::default() }
    }
}

/// Parses the process id of a worker's name, `process PID (i)`.
fn pid(worker: &str) -> Option<u32> {
    worker.strip_prefix("process ")?.split_whitespace().next()?.parse().ok()
}

/// Returns true if the process is a running child of this one.
fn is_child(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
    field("PPid:") == Some(std::process::id().to_string())
        && field("State:").is_some_and(|s| !s.starts_with('Z'))
}

fn name(request: &TaskRequest) -> String {
    format!("{}/{}+{}", request.stage.0, request.first, request.count)
}

impl Observer for Killer {
    fn on_event(&self, event: &Event<'_>) {
        let Event::Outcome { outcome, .. } = event else { return };
        let Some(pid) = pid(&outcome.worker) else { return };
        let mut seen = self.seen.lock().unwrap();
        if !seen.contains(&pid) {
            seen.push(pid);
        }
        for (fault, signal) in [(Fault::Sigkill, "-KILL"), (Fault::Sigsegv, "-SEGV")] {
            let (what, attempt) = (name(&outcome.request), u64::from(outcome.request.attempt));
            let Some(bits) = self.faults.strikes(fault, Part::Requests, &what, attempt) else {
                continue;
            };
            seen.retain(|pid| is_child(*pid));
            if seen.is_empty() {
                continue;
            }
            let victim = seen[bits as usize % seen.len()];
            // The process may have ended meanwhile.
            if Command::new("kill")
                .args([signal, &victim.to_string()])
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
            {
                self.faults.fired(
                    fault,
                    Part::Requests,
                    &format!("worker {victim}, when {what} had come back"),
                );
            }
        }
    }
}

/// Damages files of intermediates after the task that wrote them, before later tasks read them.
pub struct Vandal<'a> {
    faults: Arc<Faults>,
    planned: &'a Plan,
    work_dir: PathBuf,
    run: Mutex<String>,
    /// The number of writes of each chunk.
    tries: Mutex<HashMap<String, u64>>,
}

impl<'a> Vandal<'a> {
    pub fn new(faults: Arc<Faults>, planned: &'a Plan, work_dir: &str) -> Vandal<'a> {
        Vandal {
            faults,
            planned,
            work_dir: work_dir.into(),
            run: Mutex::default(),
            tries: Mutex::default(),
        }
    }

    fn look_at(&self, stage: StageId, receipt: &Receipt) {
        let array = self.planned.finalized().plan().array(receipt.array);
        if array.place != ArrayPlace::Work || receipt.written == Written::Fill {
            return;
        }
        let key = format!(
            "{}/{}",
            array.name,
            array.info.object_key(&array.info.objects().coords(receipt.chunk))
        );
        let path = self.work_dir.join(&*self.run.lock().unwrap()).join(&key);
        let attempt = {
            let mut tries = self.tries.lock().unwrap();
            let tries = tries.entry(key.clone()).or_default();
            *tries += 1;
            *tries - 1
        };
        for fault in [Fault::FlippedFile, Fault::CutFile, Fault::RemovedFile] {
            if let Some(bits) = self.faults.strikes(fault, Part::Intermediates, &key, attempt)
                && damage(fault, &path, bits)
            {
                self.faults.fired(
                    fault,
                    Part::Intermediates,
                    &format!("{key}, written by stage {}", stage.0),
                );
            }
        }
    }
}

/// Damages a file. Returns false if it is gone. Concurrent readers see the old or the damaged file.
fn damage(fault: Fault, path: &Path, bits: u64) -> bool {
    if fault == Fault::RemovedFile {
        return fs::remove_file(path).is_ok();
    }
    let Ok(mut bytes) = fs::read(path) else { return false };
    if bytes.is_empty() {
        return false;
    }
    let at = bits as usize % bytes.len();
    if fault == Fault::CutFile {
        bytes.truncate(at);
    } else {
        bytes[at] ^= 1 << ((bits >> 32) % 8);
    }
    let damaged = path.with_extension("damaged");
    fs::write(&damaged, bytes).and_then(|()| fs::rename(&damaged, path)).is_ok()
}

impl Observer for Vandal<'_> {
    fn on_event(&self, event: &Event<'_>) {
        match event {
            Event::RunStarted(start) => start.run.clone_into(&mut self.run.lock().unwrap()),
            Event::Outcome { outcome, .. } => outcome
                .done
                .iter()
                .flat_map(|t| &t.receipts)
                .for_each(|r| self.look_at(outcome.request.stage, r)),
            _ => {}
        }
    }
}
