//! Repositories: creation, versions, and stores by URL.

use freestone_engine::storage::Stores;
use freestone_sessions::{
    CommitOptions, Error, Format, MAIN, Rebase, Repository, SCHEME, Version, open_store,
};
use serde_json::{Map, json};

use super::{filled, main};
use crate::support::{Place, create, info, through_engine};

everywhere!(
    repositories_are_created_and_opened,
    concurrent_creators_share_a_repository,
    branches_and_tags_refer_to_snapshots,
    stores_are_opened_by_url,
);

fn repositories_are_created_and_opened(place: &Place) {
    let url = place.url("repository");
    assert!(matches!(
        Repository::open(&url),
        Err(Error::NoRepository { .. } | Error::NotInProcess { .. })
    ));
    let made = Repository::create(&url, Format::default()).unwrap();
    assert!(matches!(Repository::create(&url, Format::default()), Err(Error::Exists { .. })));
    let opened = Repository::open(made.url()).unwrap();
    assert_eq!((opened.url(), opened.format()), (made.url(), Format::V2));
    assert_eq!(
        Repository::open_or_create(&url, Format::default()).unwrap().branches().unwrap(),
        [MAIN]
    );
    let other = Repository::open_or_create(&place.url("other"), Format::default()).unwrap();
    assert_eq!(other.history(&Version::Branch(MAIN.into())).unwrap().len(), 1);
}

fn concurrent_creators_share_a_repository(place: &Place) {
    let url = place.url("repository");
    let kept = std::thread::scope(|scope| {
        let open = |i: u64| {
            let repository = Repository::open_or_create(&url, Format::default()).unwrap();
            let session = repository.writable_session(MAIN).unwrap();
            create(&session, &format!("a{i}"), &info(&[1], &[1]));
            session
                .commit_with(
                    "mine",
                    &CommitOptions {
                        rebase: Rebase::Disjoint { attempts: 50 },
                        ..CommitOptions::default()
                    },
                )
                .unwrap();
            repository
        };
        let openers: Vec<_> = (0..6).map(|i| scope.spawn(move || open(i))).collect();
        openers.into_iter().map(|o| o.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(kept[0].history(&Version::Branch(MAIN.into())).unwrap().len(), 7);
    assert_eq!(main(&kept[0]).store().list("").unwrap().len(), 7);
}

fn branches_and_tags_refer_to_snapshots(place: &Place) {
    let repository = place.new_repository();
    let first = filled(&repository);
    repository.create_branch("side", &Version::Snapshot(first.clone())).unwrap();
    repository.create_tag("v1", &Version::Branch(MAIN.into())).unwrap();
    let session = repository.writable_session("side").unwrap();
    session.set_attributes("u", &Map::from_iter([("units".to_owned(), json!("m"))])).unwrap();
    let options = CommitOptions {
        properties: Map::from_iter([("by".to_owned(), json!("me"))]),
        ..CommitOptions::default()
    };
    let second = session.commit_with("units", &options).unwrap();
    let history = repository.history(&Version::Branch("side".into())).unwrap();
    assert_eq!(
        history.iter().map(|s| s.id.clone()).take(2).collect::<Vec<_>>(),
        [second, first.clone()]
    );
    assert_eq!(
        (history[0].message.as_str(), &history[0].properties["by"], history[0].parent.as_ref()),
        ("units", &json!("me"), Some(&first))
    );
    assert_eq!(repository.resolve(&Version::Tag("v1".into())).unwrap(), first);
    assert_eq!(repository.resolve(&Version::Branch(MAIN.into())).unwrap(), first);
    assert_eq!(
        (repository.branches().unwrap(), repository.tags().unwrap()),
        (vec![MAIN.to_owned(), "side".to_owned()], vec!["v1".to_owned()])
    );
    repository.delete_branch("side").unwrap();
    repository.delete_tag("v1").unwrap();
    for gone in [
        Version::Branch("side".into()),
        Version::Tag("v1".into()),
        Version::Snapshot("AAAAAAAAAAAAAAAAAAAG".into()),
        Version::Snapshot("?".into()),
    ] {
        assert!(
            matches!(repository.readonly_session(&gone), Err(Error::NoVersion { .. })),
            "{gone:?}"
        );
    }
}

fn stores_are_opened_by_url(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let session = main(&repository);
    let url = session.store().url().to_owned();
    assert!(
        url.starts_with(SCHEME) && url.ends_with(&format!("#snapshot={}", session.snapshot())),
        "{url}"
    );
    let stores = Stores::default().with_opener(SCHEME, open_store);
    let store = stores.open(&url).unwrap();
    let is_remote = ["s3://", "gs://", "az://"].iter().any(|scheme| url.contains(scheme));
    assert_eq!((store.url(), store.is_remote()), (url.as_str(), is_remote));
    assert_eq!(freestone_engine::storage::is_remote_url(&url), store.is_remote());
    assert_eq!(through_engine(&store, "u"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(
        freestone_engine::storage::split_location(&format!("{url}/u")),
        (url.clone(), "u".to_owned())
    );
    assert!(stores.open(&url.replace("snapshot=", "snapshot=00")).is_err());
    assert!(stores.open(&format!("{SCHEME}{}", repository.url())).is_err());
}
