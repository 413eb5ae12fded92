//! Explanations of plans: predicted reads, reasons, and drawings without overlaps.

use freestone::{Array, CodecName, DType, Serial, Spec, Target, concat};
use freestone_cli::drawing::svg;
use freestone_engine::machine::thread_cpu_ns;
use freestone_engine::plan::{FinalizedPlan, PlanExplanation};

use crate::command::{freestone, stdout};
use crate::planner::planned;
use crate::support::Place;

fn plan(arrays: &[&Array], place: &Place, spec: &Spec) -> FinalizedPlan {
    let targets: Vec<Target> = arrays
        .iter()
        .enumerate()
        .map(|(i, a)| Target::array(a, place.at(&format!("out-{i}"))).codec(CodecName::None))
        .collect();
    freestone::plan(&targets, spec).unwrap().finalized().clone()
}

/// Stores an array in chunks of a shape.
fn stored(place: &Place, name: &str, shape: &[u64], chunks: &[u64]) -> Array {
    let x = freestone::random_uniform(shape, 0.0, 1.0, 1, DType::Float32, chunks);
    freestone::run(
        &freestone::plan(&[Target::array(&x, place.at(name))], &place.spec()).unwrap(),
        &place.spec(),
        &Serial,
    )
    .unwrap();
    freestone::open(place.at(name)).unwrap()
}

/// Compares a plan's predicted traffic with that of its run. Returns true if all predictions were
/// exact.
#[track_caller]
fn check_traffic(arrays: &[&Array], place: &Place, within: f64, wrong: &mut Vec<String>) -> bool {
    let out = |i: usize| place.at(&format!("out-{i}-{}", std::panic::Location::caller().line()));
    let targets: Vec<Target> =
        arrays.iter().enumerate().map(|(i, a)| Target::array(a, out(i)).overwrite(true)).collect();
    let planned = freestone::plan(&targets, &place.spec()).unwrap();
    let explained = planned.finalized().explain();
    let report = freestone::run(&planned, &place.spec(), &Serial).unwrap();
    let mut exact = true;
    for (stage, took) in explained.stages.iter().zip(&report.stages) {
        let (reads, writes): (u64, u64) = (
            stage.reads.iter().map(|r| r.traffic.requests).sum(),
            stage.writes.iter().map(|w| w.traffic.requests).sum(),
        );
        assert_eq!(writes, took.traffic.writes, "{explained}");
        let all_exact = stage.reads.iter().all(|r| r.traffic.exact);
        exact &= all_exact;
        let ratio = reads as f64 / took.traffic.reads.max(1) as f64;
        let right = if all_exact {
            reads == took.traffic.reads
        } else {
            ratio < within && ratio > 1.0 / within
        };
        if !right {
            wrong.push(format!(
                "{}: said {reads}, read {}\n{explained}",
                stage.name, took.traffic.reads
            ));
        }
    }
    exact
}

#[test]
fn predicted_reads_match_the_run() {
    let place = Place::new();
    let x = stored(&place, "x", &[60, 40, 30], &[10, 20, 15]);
    let y = stored(&place, "y", &[60, 40, 30], &[10, 20, 15]);
    let mut wrong = Vec::new();
    let exact = [
        (&x * &y).mean(0),
        &x + &y,
        x.sum([0, 1, 2]),
        x.rechunk([20, 40, 30]),
        x.slice(10..50, 0),
        x.at(3, 1),
    ];
    for array in &exact {
        assert!(check_traffic(&[array], &place, 1.0, &mut wrong));
    }
    let (a, b) =
        (stored(&place, "a", &[50, 60], &[10, 20]), stored(&place, "b", &[60, 40], &[20, 8]));
    let nearly = [
        x.rechunk([5, 20, 15]),
        x.rechunk([60, 7, 11]),
        x.slice(3..50, 0),
        x.flip([0]),
        concat(&[x.clone(), y.clone()], 0),
        x.roll(3, 0),
        x.cumulative_sum(0),
        x.reshape([2400, 30]),
        a.matmul(&b),
        x.reshape([20, 3, 40, 30]).mean(0),
        x.reshape([40, 60, 30]).sum([1, 2]),
        &a.slice(0..50, 1) + &a.slice(0..50, 1).matrix_transpose(),
    ];
    for array in &nearly {
        check_traffic(&[array], &place, 1.1, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// The predicted requests of a mean over a reshaped array, in chunks along its first axis, were
/// once ten times too many.
#[test]
fn a_reshaped_mean_reads_each_chunk_about_once() {
    let planned = planned(&[480, 181, 360], &[4, 181, 360], "float32");
    let place = Place::quick();
    let mean = planned.reshape([40, 12, 181, 360]).mean(0);
    let read = plan(&[&mean], &place, &place.spec()).explain().read;
    assert!((120..=264).contains(&read.requests), "{read}");
}

#[test]
fn plans_give_reasons() {
    let place = Place::quick();
    let (x, y) =
        (planned(&[400, 300], &[40, 300], "float64"), planned(&[400, 300], &[40, 300], "float64"));
    #[track_caller]
    fn check(plan: &FinalizedPlan, words: &[&str]) {
        let text = plan.to_string();
        let missing: Vec<&&str> = words.iter().filter(|w| !text.contains(**w)).collect();
        assert!(missing.is_empty(), "{missing:?} is not in:\n{text}");
        assert!(plan.explain().stages.iter().all(|s| s.notes.len() <= 8), "{text}");
        assert_eq!(FinalizedPlan::from_bytes(&plan.to_bytes().unwrap()).unwrap().to_string(), text);
    }
    let (xx, xy) = (&x * &x, &x * &y);
    check(
        &plan(&[&xx.mean(0), &xy.mean(0)], &place, &place.spec()),
        &[
            "fuses 2 functions: multiply",
            "out-0 and out-1 share one stage",
            "= sum(multiply(x, x))",
            "out-1 = merged mean(partial-mean-005)",
        ],
    );
    let view = x.slice(1.., 0).flip([1]);
    check(&plan(&[&view], &place, &place.spec()), &["x[1:, ::-1] is a view and needs no stage"]);
    let centred = &x - &x.mean(0);
    check(
        &plan(&[&centred], &place, &place.spec()),
        &[
            "depends on",
            "is an intermediate array: other operations read the result of a reduction",
            "broadcast",
        ],
    );
    let six: Vec<Array> = (0..6).map(|i| &x + f64::from(i)).collect();
    check(&plan(&[&concat(&six, 0)], &place, &place.spec()), &["more than 4 computed arrays"]);
    let square = &x + &x;
    check(
        &plan(&[&square.reshape([300, 400]).flip([0])], &place, &place.spec()),
        &["a view of a reshaped array does not compose with the reshape"],
    );
    let alone = plan(&[&xx.mean(0)], &place, &place.spec()).projected_mem();
    let tight = Spec { allowed_mem: alone + 2_000, ..place.spec() };
    let (max, min) = (x.max(0), x.mean(0));
    check(&plan(&[&xx.mean(0), &max, &min], &place, &tight), &["above allowed_mem"]);
}

/// The time of an explanation does not depend on the number of chunks, here 10^9 in each of two
/// arrays.
#[test]
fn explanations_do_not_depend_on_the_number_of_chunks() {
    let place = Place::quick();
    let x = planned(&[1_000_000, 1_000_000], &[1_000, 1], "float64");
    let spec = Spec { parallelism: 1000, ..place.spec() };
    let plan = plan(&[&(&x + &x).mean(0), &x.slice(1.., 0)], &place, &spec);
    let start = thread_cpu_ns();
    let explained = plan.explain();
    let took = thread_cpu_ns() - start;
    assert!(took < 100_000_000, "{took} ns of CPU");
    assert!(explained.read.requests >= 2_000_000_000, "{explained}");
}

/// A tag of an XML document: name, attributes, and the following text.
struct Tag {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
}

impl Tag {
    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn number(&self, name: &str) -> f64 {
        self.get(name).unwrap().parse().unwrap()
    }
}

/// Parses the tags of a well-formed document.
fn tags(xml: &str) -> Vec<Tag> {
    fn unescape(text: &str) -> String {
        let mut rest = text;
        while let Some(at) = rest.find('&') {
            rest = &rest[at..];
            assert!(
                ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"].iter().any(|e| rest.starts_with(e)),
                "{}",
                &rest[..20.min(rest.len())]
            );
            rest = &rest[1..];
        }
        text.replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&#39;", "'")
            .replace("&amp;", "&")
    }
    let (mut open, mut found) = (Vec::new(), Vec::new());
    for (i, piece) in xml.split('<').enumerate() {
        if i == 0 {
            assert!(piece.trim().is_empty());
            continue;
        }
        let (tag, text) = piece.split_once('>').expect("a tag ends");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
            continue;
        }
        let closed = tag.ends_with('/');
        let tag = tag.trim_end_matches('/');
        let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut attributes: Vec<(String, String)> = Vec::new();
        while let Some((key, after)) = rest.split_once("=\"") {
            let (value, more) = after.split_once('"').expect("a value ends");
            assert!(attributes.iter().all(|(k, _)| k != key.trim()), "{tag}");
            attributes.push((key.trim().into(), unescape(value)));
            rest = more;
        }
        assert!(rest.trim().is_empty(), "{tag}");
        if !closed {
            open.push(name.to_owned());
        }
        found.push(Tag { name: name.into(), attributes, text: unescape(text) });
    }
    assert!(open.is_empty(), "{open:?}");
    found
}

/// The corners of a box.
type Corners = [f64; 4];

fn overlap(a: &Corners, b: &Corners) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

/// Checks that a drawing is well-formed, that all boxes are inside and do not overlap, and that no
/// text crosses a box.
#[track_caller]
fn check_drawing(explained: &PlanExplanation, name: &str) {
    let drawn = svg(explained);
    if let Ok(folder) = std::env::var("FREESTONE_DRAWINGS") {
        std::fs::write(format!("{folder}/{name}.svg"), &drawn).unwrap();
    }
    let tags = tags(&drawn);
    let (width, height) = (tags[0].number("width"), tags[0].number("height"));
    assert_eq!(tags[0].get("viewBox"), Some(format!("0 0 {width} {height}").as_str()));
    let has =
        |t: &Tag, class: &str| t.get("class").is_some_and(|c| c.split(' ').any(|c| c == class));
    let boxes: Vec<Corners> = tags
        .iter()
        .filter(|t| t.name == "rect" && has(t, "box"))
        .map(|t| {
            [
                t.number("x"),
                t.number("y"),
                t.number("x") + t.number("width"),
                t.number("y") + t.number("height"),
            ]
        })
        .collect();
    assert!(
        boxes.iter().all(|b| b[0] >= 0.0 && b[1] >= 0.0 && b[2] <= width && b[3] <= height),
        "{name}: a box is outside"
    );
    for (i, a) in boxes.iter().enumerate() {
        assert!(!boxes[..i].iter().any(|b| overlap(a, b)), "{name}: a box lies over another");
    }
    let arrays: std::collections::HashSet<usize> = explained
        .stages
        .iter()
        .flat_map(|s| s.reads.iter().map(|r| r.array.id).chain(s.writes.iter().map(|w| w.array.id)))
        .collect();
    assert_eq!(boxes.len(), explained.stages.len() + arrays.len());
    let mut labels: Vec<Corners> = Vec::new();
    for t in tags.iter().filter(|t| t.name == "text") {
        // Wider than most fonts.
        let (x, y, w) = (t.number("x"), t.number("y"), 5.0 * t.text.chars().count() as f64);
        let x = if has(t, "before") { x - w } else { x };
        assert!(x >= 0.0 && x + w <= width, "{name}: `{}` is cut off", t.text);
        if has(t, "on") && !has(t, "under") {
            let place = [x, y - 8.0, x + w, y + 1.0];
            assert!(
                !boxes.iter().any(|b| overlap(&place, b)),
                "{name}: `{}` lies over a box",
                t.text
            );
            assert!(
                !labels.iter().any(|b| overlap(&place, b)),
                "{name}: `{}` lies over a text",
                t.text
            );
            labels.push(place);
        }
    }
    assert!(labels.len() >= explained.stages.len());
}

#[test]
fn drawings_have_no_overlaps() {
    let place = Place::quick();
    let spec = place.spec();
    let input = |t: u64| planned(&[t, 300, 200], &[50, 100, 100], "float32");
    let x = input(1000);
    check_drawing(&plan(&[&x.mean(0)], &place, &spec).explain(), "one");

    let anomaly = &x - &x.mean(0);
    let turned = anomaly.rechunk([1000, 30, 40]);
    let sums = turned.cumulative_sum(0);
    check_drawing(
        &plan(&[&sums, &anomaly.std([1, 2]), &x.max(0)], &place, &spec).explain(),
        "five",
    );

    let mut deep = x.clone();
    for i in 0..30 {
        deep = (&deep * 2.0).rechunk(if i % 2 == 0 { &[100, 60, 50] } else { &[50, 100, 100] });
    }
    let deep = plan(&[&deep, &(&deep + &x.mean(0))], &place, &spec).explain();
    assert!(deep.stages.len() >= 30);
    check_drawing(&deep, "deep");

    let inputs: Vec<Array> = (0..14).map(|i| input(500 + 50 * i)).collect();
    let means: Vec<Array> = inputs.iter().map(|x| freestone::sqrt(&(x * 2.0)).mean(0)).collect();
    let stds: Vec<Array> = inputs.iter().map(|x| x.std(0)).collect();
    let mut results: Vec<Array> =
        inputs.iter().zip(&means).map(|(x, m)| (x - m).max([1, 2])).collect();
    results.push(means.iter().skip(1).fold(means[0].clone(), |sum, m| &sum + m));
    results.push(stds.iter().skip(1).fold(stds[0].clone(), |sum, m| &sum + m).rechunk([300, 10]));
    results.push(means[3].matmul(&stds[4].matrix_transpose()).cumulative_sum(1));
    let wide = plan(&results.iter().collect::<Vec<_>>(), &place, &spec).explain();
    assert!(wide.stages.len() >= 30, "{}", wide.stages.len());
    check_drawing(&wide, "wide");
}

#[test]
fn the_command_draws() {
    let place = Place::new();
    assert_eq!(stored(&place, "<&\"'>", &[20, 20], &[10, 10]).shape().unwrap(), [20, 20]);
    let text = stdout(&freestone(
        &place,
        &["plan", "mean(u, axis=0)", "-i", "u=<&\"'>", "--svg", "plan.svg", "--json"],
    ));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let read = &json["stages"][0]["reads"][0];
    assert_eq!(
        (
            read["traffic"]["requests"].as_u64(),
            read["traffic"]["exact"].as_bool(),
            read["method"].as_str()
        ),
        (Some(4), Some(true), Some("chunk_by_chunk"))
    );
    let drawn = std::fs::read_to_string(place.at("plan.svg")).unwrap();
    assert!(tags(&drawn).iter().any(|t| t.text == "<&\"'>"), "{drawn}");
}
