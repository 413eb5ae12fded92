//! Plans with outputs in a session, and the receipts of the engine's workers.

use freestone_engine::kernels::DType;
use freestone_engine::plan::lower::lower;
use freestone_engine::plan::{FinalizedPlan, Place as Lies};
use freestone_engine::storage::Stores;
use freestone_engine::storage::reader::{ChunkAccess, WorkerResources};
use freestone_engine::task::Receipt;
use freestone_ops::io::{Target, outputs};
use freestone_sessions::{
    CommitOptions, Error, MAIN, Repository, SCHEME, Ticket, Version, WritableSession, open_store,
};

use crate::support::{Place, bytes, create, info, read, spec};

/// Plans the write of an array of numbers to a session, with a modified target.
fn planned(
    session: &WritableSession,
    n: f64,
    change: impl Fn(Target) -> Target,
) -> Result<FinalizedPlan, freestone_ops::Error> {
    let stores = Stores::default();
    stores.insert(session.store());
    let array = freestone_ops::arange(0.0, n, 1.0, DType::Float32, 2);
    let target = change(Target::in_group(&array, session.store().url(), "u").with_stores(&stores));
    Ok(lower(&outputs(&[target], &stores)?, &spec()).unwrap())
}

/// Writes every chunk of the outputs with one value, given only the plan, like workers in other
/// processes.
fn work(plan: &FinalizedPlan, value: f32) -> Vec<Receipt> {
    let stores = Stores::default().with_opener(SCHEME, open_store);
    let mut resources = WorkerResources::new(1_000_000);
    let mut receipts = Vec::new();
    for publication in &plan.plan().publications {
        let array = plan.plan().array(publication.array);
        let Lies::Output { url, path } = &array.place else { panic!("{array:?}") };
        let access = ChunkAccess::new(stores.open(url).unwrap(), path, &array.info).unwrap();
        for chunk in 0..access.objects().n_chunks() {
            let coords = access.objects().coords(chunk);
            let n: u64 = access.object_shape(&coords).iter().product();
            let written =
                access.write(&coords, &bytes(&vec![value; n as usize]), &mut resources).unwrap();
            receipts.push(Receipt { array: publication.array, chunk, written });
        }
    }
    receipts
}

fn values(repository: &Repository) -> Vec<f32> {
    read(repository.readonly_session(&Version::Branch(MAIN.into())).unwrap().array("u").unwrap())
}

#[test]
fn a_plan_is_one_commit() {
    let place = Place::local();
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    let plan = planned(&session, 6.0, |t| t).unwrap();
    let receipts = work(&plan, 3.0);
    let options = CommitOptions::default();
    let error =
        session.commit_plan(&plan, receipts[1..].to_vec(), "too early", &options).unwrap_err();
    assert!(
        matches!(&error, Error::Incomplete { n_missing: 1, first, .. } if *first == [0]),
        "{error}"
    );
    let error = session
        .commit_plan(&plan, receipts[..2].to_vec(), "again too early", &options)
        .unwrap_err();
    assert!(
        matches!(&error, Error::Incomplete { n_missing: 1, first, .. } if *first == [2]),
        "{error}"
    );
    // The driver ends, and another process resumes with the retained receipts.
    let kept =
        serde_json::to_string(&repository.writable_session(MAIN).unwrap().fork().unwrap()).unwrap();
    drop(session);
    let resumed = serde_json::from_str::<Ticket>(&kept).unwrap().resume().unwrap();
    let plan = planned(&resumed, 6.0, |t| t).unwrap();
    let (once, again) = (work(&plan, 3.0), work(&plan, 3.0));
    let snapshot =
        resumed.commit_plan(&plan, once.iter().chain(&again).copied(), "run", &options).unwrap();
    assert_eq!(values(&repository), [3.0; 6]);
    // After the driver ends again, the commit is found.
    let resumed = serde_json::from_str::<Ticket>(&kept).unwrap().resume().unwrap();
    assert_eq!(resumed.commit_plan(&plan, once, "run", &options).unwrap(), snapshot);
    assert_eq!(repository.history(&Version::Branch(MAIN.into())).unwrap().len(), 2);
}

#[test]
fn outputs_overwrite_and_write_regions() {
    let place = Place::local();
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[9], &[2]));
    session.array("u").unwrap().write_region(&[0..9], &bytes(&[1.0; 9])).unwrap();
    session.commit("made").unwrap();
    let options = CommitOptions::default();

    let session = repository.writable_session(MAIN).unwrap();
    let plan = planned(&session, 4.0, |t| t.region(&[4..8])).unwrap();
    session.commit_plan(&plan, work(&plan, 5.0), "region", &options).unwrap();
    assert_eq!(values(&repository), [1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0, 1.0]);

    // Fill values hide previous chunks.
    let session = repository.writable_session(MAIN).unwrap();
    let plan = planned(&session, 3.0, |t| t.region(&[6..9])).unwrap();
    session.commit_plan(&plan, work(&plan, -1.0), "fill", &options).unwrap();
    assert_eq!(values(&repository), [1.0, 1.0, 1.0, 1.0, 5.0, 5.0, -1.0, -1.0, -1.0]);

    let session = repository.writable_session(MAIN).unwrap();
    assert!(
        planned(&session, 3.0, |t| t.region(&[5..8]))
            .unwrap_err()
            .to_string()
            .contains("4..8 is the smallest aligned region")
    );
    let plan = planned(&session, 5.0, |t| t).unwrap();
    assert!(matches!(session.check_plan(&plan), Err(Error::NodeExists { .. })));
    let plan = planned(&session, 5.0, |t| t.overwrite(true)).unwrap();
    session.check_plan(&plan).unwrap();
    session.commit_plan(&plan, work(&plan, 2.0), "overwritten", &options).unwrap();
    assert_eq!(values(&repository), [2.0; 5]);
}
