//! Lost and damaged chunks, journals and inputs.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use freestone::{CodecName, Error, ExitCode, Serial, Spec, Target, Threads};
use freestone_engine::executor::Executor;

use super::{Counting, both, input, interrupted, resume, run, stages};
use crate::support::{Place, processes, tree};

/// If the first journal batch is lost, which records that the run owns its outputs, later batches
/// are ignored, since the outputs are cleared.
#[test]
fn a_run_without_its_first_journal_batch_starts_again() {
    let place = Place::new();
    let spec = place.spec();
    freestone::run(&stages(&place, "expect", &spec), &spec, &Serial).unwrap();
    let (spec, folder) = interrupted(&place, "out", 30);
    fs::remove_file(format!("{folder}/journal/000-000001.jsonl")).unwrap();
    let report = resume(&folder, &spec, &Serial, &Counting::default()).unwrap();
    assert_eq!(report.finished_before, 0);
    assert!(both(&place, "out") == both(&place, "expect"));
}

/// A worker killed during a write leaves a partial file.
#[test]
fn partial_writes_are_removed() {
    let place = Place::new();
    let (spec, folder) = interrupted(&place, "out", 25);
    let left = place.at("out-y/c/3/.0.123-45.part");
    fs::create_dir_all(place.at("out-y/c/3")).unwrap();
    fs::write(&left, "half").unwrap();
    resume(&folder, &spec, &Serial, &Counting::default()).unwrap();
    assert!(!Path::new(&left).exists());
}

/// Damaged journals, and damaged or lost intermediates.
#[test]
fn lost_and_damaged_chunks_are_recomputed() {
    type Damage = fn(&str);
    fn intermediates(folder: &str) -> Vec<std::path::PathBuf> {
        let arrays = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_dir() && !p.ends_with("journal") && !p.ends_with("kept"));
        let mut chunks: Vec<_> =
            arrays.flat_map(|a| fs::read_dir(a).unwrap().map(|e| e.unwrap().path())).collect();
        chunks.sort();
        assert!(chunks.len() > 3, "{chunks:?}");
        chunks
    }
    let damages: [(&str, Damage); 6] = [
        ("a byte", |folder| {
            for path in intermediates(folder).iter().step_by(2) {
                let mut bytes = fs::read(path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
                fs::write(path, bytes).unwrap();
            }
        }),
        ("cut short", |folder| {
            let chunks = intermediates(folder);
            fs::write(&chunks[0], &fs::read(&chunks[0]).unwrap()[..100]).unwrap();
            fs::write(&chunks[1], b"").unwrap();
        }),
        ("too long", |folder| {
            let chunks = intermediates(folder);
            fs::write(&chunks[0], fs::read(&chunks[0]).unwrap().repeat(2)).unwrap();
        }),
        ("lost", |folder| fs::remove_file(&intermediates(folder)[1]).unwrap()),
        ("all lost", |folder| {
            intermediates(folder).iter().for_each(|p| fs::remove_file(p).unwrap())
        }),
        ("journal", |folder| {
            let mut batches: Vec<_> = fs::read_dir(format!("{folder}/journal"))
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect();
            batches.sort();
            let last = batches.last().unwrap();
            let mut bytes = fs::read(last).unwrap();
            bytes[20] ^= 1;
            fs::write(last, bytes).unwrap();
        }),
    ];
    let place = Place::new();
    let spec = place.spec();
    freestone::run(&stages(&place, "expect", &spec), &spec, &Serial).unwrap();
    let expect = both(&place, "expect");
    for (i, (what, damage)) in damages.into_iter().enumerate() {
        for executor in [&Threads::new(2) as &dyn Executor, &processes(2)] {
            let name = format!("case-{i}-{}", executor.name());
            let (spec, folder) = interrupted(&place, &name, 24);
            damage(&folder);
            let counting = Counting::default();
            let report = resume(&folder, &spec, executor, &counting)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(what == "journal" || report.recomputed > 0, "{what}: {report}");
            assert_eq!(report.recomputed, counting.recomputed.load(Ordering::Relaxed));
            assert!(both(&place, &name) == expect, "{what}");
        }
    }
}

/// The sources of the lost chunks were removed earlier in the run, and are recomputed, too.
#[test]
fn removed_sources_of_lost_chunks_are_recomputed() {
    let place = Place::new();
    let plan = |name: &str, spec: &Spec| {
        let y = [[600, 20], [20, 400], [600, 40]]
            .iter()
            .fold(input(&place), |x, chunks| x.rechunk(chunks) * 2.0);
        let planned =
            freestone::plan(&[Target::array(&y, place.at(name)).codec(CodecName::None)], spec)
                .unwrap();
        assert!(planned.finalized().plan().stages.len() >= 3, "{}", planned.finalized());
        planned
    };
    let spec = crate::scenarios::without_room(&place.spec(), &plan("expect", &place.spec()), 2);
    freestone::run(&plan("expect", &spec), &spec, &Serial).unwrap();
    for executor in [&Threads::new(2) as &dyn Executor, &processes(2)] {
        let planned = plan(executor.name(), &spec);
        let tasks: Vec<u64> =
            planned.finalized().plan().stages.iter().map(|s| s.n_tasks()).collect();
        let before_last: u64 = tasks[..tasks.len() - 1].iter().sum();
        let stopped = Counting { cancel_after: Some(before_last + 2), ..Counting::default() };
        let Err(Error::Run(error)) = run(&planned, &spec, &Serial, &stopped) else {
            panic!("the run is cancelled")
        };
        let folder = error.resumable_run().unwrap();
        let arrays = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_dir() && !p.ends_with("journal") && !p.ends_with("kept"))
            .collect::<Vec<_>>();
        assert_eq!(arrays.len(), 1, "the first intermediates were removed: {arrays:?}");
        fs::remove_dir_all(&arrays[0]).unwrap();
        let report = resume(folder, &spec, executor, &Counting::default()).unwrap();
        assert!(report.recomputed > tasks[0], "{report}");
        assert!(tree(place.at(executor.name())) == tree(place.at("expect")));
    }
}

/// A damaged input chunk is an error; the run can be resumed once the chunk is repaired.
#[test]
fn a_run_is_resumed_after_its_input_is_repaired() {
    let place = Place::new();
    let spec = place.spec();
    let planned = stages(&place, "out", &spec);
    let chunk = place.at("x/c/17/0");
    let bytes = fs::read(&chunk).unwrap();
    fs::write(&chunk, &bytes[..bytes.len() - 3]).unwrap();
    let error = freestone::run(&planned, &spec, &Serial).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Input);
    assert!(error.to_string().contains("x/c/17/0"), "{error}");
    let Error::Run(error) = error else { panic!() };
    fs::write(&chunk, bytes).unwrap();
    let report =
        resume(error.resumable_run().unwrap(), &spec, &Serial, &Counting::default()).unwrap();
    assert!(report.finished_before > 0);
    freestone::run(&stages(&place, "expect", &spec), &spec, &Serial).unwrap();
    assert!(both(&place, "out") == both(&place, "expect"));
}
