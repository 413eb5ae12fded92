//! Tests of the tiered store.

use std::sync::Arc;

use freestone_kernels::Buffer;

use super::super::{MemoryStore, conformance};
use super::*;

fn tier(budget: u64) -> (Arc<MemoryStore>, TieredStore) {
    let below = Arc::new(MemoryStore::new());
    (Arc::clone(&below), TieredStore::new(below, "run/".into(), budget, 0))
}

#[test]
fn tiered_store_conforms() {
    for budget in [0, 100_000, 300_000, 600_000, 100_000_000] {
        conformance::check(&tier(budget).1, "run");
        conformance::check(&tier(budget).1, "other");
    }
}

#[test]
fn saved_objects_are_restored() {
    for (budget, back) in [
        (0, 0),
        (400_000, 100_000_000),
        (1_000_000, 600_000),
        (100_000_000, 100_000_000),
        (100_000_000, 0),
    ] {
        let (below, tier) = tier(budget);
        let object = |i: usize| vec![i as u8; if i.is_multiple_of(7) { 300_000 } else { 1000 + i }];
        let check = |store: &dyn Store, last: usize| {
            for i in 0..last {
                let found = read_small(store, &format!("run/a/{i}"), 1 << 20).unwrap();
                assert!(
                    found.as_deref() == Some(object(i).as_slice()),
                    "object {i}, budget {budget}"
                );
            }
        };
        for i in 0..30 {
            tier.write(&format!("run/a/{i}"), &object(i)).unwrap();
            tier.write(&format!("run/gone/{i}"), &object(i)).unwrap();
            if i == 10 || i == 20 {
                tier.save(&|_| false).unwrap();
                // Objects that are replaced after a save have the later contents.
                tier.write("run/a/3", b"other").unwrap();
                tier.write("run/a/3", &object(3)).unwrap();
            }
        }
        tier.save(&|folder| folder == "gone").unwrap();
        tier.write("run/a/30", &object(30)).unwrap();
        check(&tier, 31);
        drop(tier);
        let below: Arc<dyn Store> = below;
        let second = TieredStore::new(Arc::clone(&below), "run/".into(), back, 1);
        TieredStore::restore(&*below, "run/", &second, &|folder| folder == "gone").unwrap();
        check(&second, 30);
        assert!(
            budget < 100_000_000 || read_small(&second, "run/a/30", 1 << 20).unwrap().is_none()
        );
        let gone = |i: usize| second.read_cache().objects.contains_key(&format!("run/gone/{i}"));
        assert!(!(0..30).any(gone));
        // A third process restores what the second has saved.
        second.write("run/a/31", &object(31)).unwrap();
        second.save(&|_| false).unwrap();
        let third = TieredStore::new(Arc::clone(&below), "run/".into(), back, 2);
        TieredStore::restore(&*below, "run/", &third, &|_| false).unwrap();
        check(&third, 30);
        assert!(read_small(&third, "run/a/31", 1 << 20).unwrap().unwrap() == object(31));
    }
}

#[test]
fn objects_below_the_prefix_stay_in_memory_within_the_budget() {
    let (below, tier) = tier(3_000_000);
    tier.write("plan.json", b"plan").unwrap();
    for i in 0..10 {
        tier.write(&format!("run/large/{i}"), &vec![i; 500_000]).unwrap();
        tier.write(&format!("run/small/{i}"), &vec![i; 70_000]).unwrap();
    }
    assert!(tier.highest() <= 3_000_000);
    let spilled = below.keys().len();
    assert!((2..19).contains(&spilled), "{:?}", below.keys());
    for i in 0..10u8 {
        for (name, len) in [("large", 500_000), ("small", 70_000)] {
            let mut into = Buffer::zeroed(500_000);
            assert!(tier.read(&format!("run/{name}/{i}"), None, 500_000, &mut into).unwrap());
            assert!(into.len() == len && into.bytes().iter().all(|b| *b == i));
        }
    }
    assert_eq!(tier.list("run/small/").unwrap().len(), 10);
    // Replace objects with and without room in the budget.
    tier.write("run/large/0", &vec![9; 500_000]).unwrap();
    tier.write("run/small/0", b"other").unwrap();
    let mut into = Buffer::zeroed(500_000);
    assert!(tier.read("run/small/0", None, 500_000, &mut into).unwrap());
    assert_eq!(into.bytes(), b"other");
    tier.remove("run/large/").unwrap();
    tier.remove("run/small/").unwrap();
    let cache = tier.read_cache();
    assert_eq!(
        (cache.used, cache.slabs.len(), cache.filling.len(), cache.objects.len()),
        (0, 0, 0, 0)
    );
    assert_eq!(below.keys(), ["plan.json"]);
}
