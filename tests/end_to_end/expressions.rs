//! `freestone compute`, `plan` and `functions`: results of expressions, and errors before anything
//! is written.

use std::fs;

use serde_json::Value;

use crate::command::{check_failure, freestone, stderr, stdout};
use crate::support::{Place, WINDS_V3, names};

/// Returns inputs: the winds, and random arrays of other dtypes.
fn inputs() -> Vec<String> {
    ["u", "v", "latitude"]
        .iter()
        .flat_map(|name| ["-i".to_owned(), format!("{name}={WINDS_V3}/{name}")])
        .collect()
}

fn run(place: &Place, command: &str, arguments: &[&str]) -> std::process::Output {
    let inputs = inputs();
    let all: Vec<&str> = [command]
        .into_iter()
        .chain(arguments.iter().copied())
        .chain(inputs.iter().map(String::as_str))
        .collect();
    freestone(place, &all)
}

fn total(place: &Place, name: &str) -> f64 {
    let array = freestone::open(place.at(name)).unwrap().astype(freestone::DType::Float64);
    freestone::compute::<f64>(&array.sum(()), &place.spec()).unwrap().sum()
}

#[track_caller]
fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} is not {expected}");
}

#[test]
fn means_of_the_winds() {
    let place = Place::new();
    let text = stderr(&run(
        &place,
        "compute",
        &[
            "mean(u*u, axis=0)",
            "mean(u*v, axis=0)",
            "-o",
            "uu.zarr",
            "-o",
            "uv.zarr",
            "--allowed-mem",
            "200MB",
        ],
    ));
    assert!(
        text.contains("1 stage,") && text.contains("read 926.0 kB in 32 requests"),
        "one stage reads every chunk once: {text}"
    );
    near(total(&place, "uu.zarr"), 3836151.0286);
    near(total(&place, "uv.zarr"), 30828.0636);
    assert!(names(place.at("work")).is_empty());
}

#[test]
fn results_in_a_group_have_coordinates() {
    let place = Place::new();
    stdout(&run(
        &place,
        "compute",
        &[
            "mean(u*u, axis=0)",
            "mean(u*v, axis=0)[::2]",
            "-o",
            "m.zarr:uu",
            "-o",
            "other.zarr:uv",
            "--chunks",
            "20,50",
        ],
    ));
    near(total(&place, "m.zarr/uu"), 3836151.0286);
    let (uv, latitude) = (
        freestone::open(place.at("other.zarr/uv")).unwrap(),
        freestone::open(place.at("other.zarr/latitude")).unwrap(),
    );
    assert_eq!((uv.shape().unwrap(), latitude.shape().unwrap()), (vec![37, 144], vec![37]));
    assert_eq!(uv.grid().unwrap().max_chunk(), [20, 50]);
    assert_eq!(uv.dims().unwrap()[0].name.as_deref(), Some("latitude"));
    for file in ["m.zarr/zarr.json", "m.zarr/longitude/zarr.json"] {
        assert!(fs::exists(place.at(file)).unwrap(), "{file}");
    }
}

#[test]
fn json_is_one_object() {
    let place = Place::new();
    let arguments = ["sum(u, axis=(0, 1))", "-o", "out"];
    let plan: Value = serde_json::from_str(&stdout(&run(
        &place,
        "plan",
        &[&arguments[..], &["--json"]].concat(),
    )))
    .unwrap();
    let same: Value = serde_json::from_str(&stdout(&run(
        &place,
        "compute",
        &[&arguments[..], &["--json", "--plan-only"]].concat(),
    )))
    .unwrap();
    assert_eq!(plan, same);
    assert_eq!(plan["stages"][0]["reads"][0]["shape"], serde_json::json!([12, 73, 144]));
    let memory: u64 = plan["stages"][0]["memory"]
        .as_object()
        .unwrap()
        .values()
        .map(|b| b.as_u64().unwrap())
        .sum();
    assert_eq!(plan["stages"][0]["projected_mem"], memory);
    assert!(!fs::exists(place.at("out")).unwrap(), "a plan writes nothing");

    let report: Value = serde_json::from_str(&stdout(&run(
        &place,
        "compute",
        &[&arguments[..], &["--json"]].concat(),
    )))
    .unwrap();
    assert!(report["run"].as_str().unwrap().starts_with(plan["plan"].as_str().unwrap()));
    assert_eq!(
        report["stages"].as_array().unwrap().len(),
        plan["stages"].as_array().unwrap().len()
    );
    assert_eq!(report["reads"], 16);
    assert!(
        report["bytes_written"].as_u64() > Some(0)
            && report["seconds"].as_f64() > Some(0.0)
            && report["peak_mem"].as_u64() > Some(0)
    );
}

#[test]
fn plans_without_outputs() {
    let place = Place::new();
    let text = stdout(&run(&place, "plan", &["mean(u, axis=0)", "u[0]"]));
    assert!(text.starts_with("plan ") && text.contains("mean-000"), "{text}");
    assert_eq!(text, stdout(&run(&place, "compute", &["mean(u, axis=0)", "u[0]", "--plan-only"])));
    assert!(names(place.folder.path()).is_empty());
}

#[test]
fn functions_are_listed_and_explained() {
    let place = Place::new();
    let list = stdout(&freestone(&place, &["functions"]));
    for f in freestone_expr::vocabulary::functions() {
        assert!(
            list.contains(&format!("  {}{}", f.name, f.signature)) && list.contains(f.summary),
            "{}",
            f.name
        );
    }
    let one = stdout(&freestone(&place, &["functions", "mean"]));
    assert!(
        one.contains("mean(x, /, *, axis=None, keepdims=False)") && one.contains("cost"),
        "{one}"
    );
    check_failure(&place, &["functions", "maen"], 2, &["did you mean `mean`?"]);
}

#[test]
fn invalid_arguments() {
    let place = Place::new();
    let u = format!("u={WINDS_V3}/u");
    check_failure(&place, &["compute"], 2, &["<EXPR>"]);
    check_failure(&place, &["compute", "u", "-i", &u], 2, &["1 expressions and 0 outputs"]);
    check_failure(
        &place,
        &["compute", "u", "-i", &u, "-o", "a", "-o", "b"],
        2,
        &["1 expressions and 2 outputs"],
    );
    check_failure(
        &place,
        &["plan", "u", "u", "-i", &u, "-o", "a"],
        2,
        &["2 expressions and 1 outputs"],
    );
    check_failure(
        &place,
        &["compute", "u", "-i", &u, "-i", &u, "-o", "a"],
        2,
        &["`u` is given twice"],
    );
    check_failure(&place, &["compute", "u", "-i", "u", "-o", "a"], 2, &["NAME=ARRAY"]);
    check_failure(&place, &["compute", "u", "-i", "1u=x", "-o", "a"], 2, &["invalid name"]);
    check_failure(&place, &["compute", "u", "-i", "lambda=x", "-o", "a"], 2, &["invalid name"]);
    check_failure(&place, &["compute", "u", "-i", &u, "-o", "a:"], 2, &["STORE:NAME"]);
    check_failure(
        &place,
        &["compute", "u", "-i", "u=nothing.zarr/u", "-o", "a"],
        4,
        &["no Zarr array", "nothing.zarr/u"],
    );
    check_failure(
        &place,
        &["compute", "u", "-i", &u, "-o", "a", "--allowed-mem", "32010kB"],
        3,
        &["allowed_mem"],
    );
    check_failure(&place, &["compute", "u", "-i", &u, "-o", "a", "--chunks", "1,2"], 4, &[]);
    stdout(&freestone(&place, &["compute", "u[0]", "-i", &u, "-o", "a"]));
    check_failure(
        &place,
        &["compute", "u[1]", "-i", &u, "-o", "a"],
        5,
        &["already exists", "overwrite"],
    );
    stdout(&freestone(&place, &["compute", "u[1]", "-i", &u, "-o", "a", "--overwrite"]));
}

/// Such expressions were once parsed as options.
#[test]
fn expressions_that_start_with_a_minus() {
    let place = Place::new();
    let out = |arguments: &[&str]| stdout(&run(&place, "compute", arguments));
    out(&["u", "v", "-o", "u.zarr", "-o", "v.zarr"]);
    let (u, v) = (total(&place, "u.zarr"), total(&place, "v.zarr"));
    out(&["-u", "-(v)", "-oa.zarr", "-o", "b.zarr"]);
    assert_eq!((total(&place, "a.zarr"), total(&place, "b.zarr")), (-u, -v));
    // After options, between them, with names like options, twice negative, and a leading number.
    out(&["-o", "c.zarr", "-u", "--codec", "none"]);
    assert_eq!(total(&place, "c.zarr"), -u);
    out(&["--(u)", "-o", "d.zarr"]);
    assert_eq!(total(&place, "d.zarr"), u);
    out(&["-1*u", "-o", "e.zarr", "--overwrite"]);
    assert_eq!(total(&place, "e.zarr"), -u);
    let winds = format!("index={WINDS_V3}/u");
    stdout(&freestone(&place, &["compute", "-index*2", &format!("-i{winds}"), "-o", "f.zarr"]));
    assert_eq!(total(&place, "f.zarr"), -2.0 * u);
    stdout(&freestone(&place, &["compute", "-i", &winds, "-o", "g.zarr", "--", "-index"]));
    assert_eq!(total(&place, "g.zarr"), -u);
    let arguments = ["-q", "compute", "-index", "-i", &winds, "-o", "h.zarr"];
    stdout(&freestone(&place, &arguments));
    assert_eq!(total(&place, "h.zarr"), -u);
    assert!(stdout(&run(&place, "plan", &["-u", "-v*2"])).contains("negative"));
    // The caret in an error points to the mistake.
    let errors = run(&place, "plan", &["-u + w"]);
    assert!(
        String::from_utf8_lossy(&errors.stderr).contains("expression:1:6"),
        "{}",
        String::from_utf8_lossy(&errors.stderr)
    );
    // Options are still parsed, including misspelt ones.
    let u = format!("u={WINDS_V3}/u");
    check_failure(
        &place,
        &["compute", "-u", "--chunk", "2", "-i", &u, "-o", "h"],
        2,
        &["unexpected argument '--chunk'"],
    );
    check_failure(&place, &["compute", "-u", "-i", &u, "-o"], 2, &["a value is required"]);
    check_failure(&place, &["compute", "u", "-i", &u, "-o", "-u"], 2, &[]);
    assert!(stdout(&freestone(&place, &["compute", "-h"])).contains("<EXPR>"));
}

/// Each next to a valid expression, which is not written either.
fn check_all(table: &[(&str, &str)], code: i32, marked: impl Fn(&str) -> bool) {
    let place = Place::new();
    for (text, says) in table {
        let output = run(&place, "compute", &["u * 2", text, "-o", "good", "-o", "bad.zarr:x"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}: {errors}");
        assert!(
            errors.contains(says) && !errors.contains("panicked"),
            "{text}: `{errors}` does not say `{says}`"
        );
        assert!(
            marked(&errors) && errors.contains("expression 2:1:"),
            "{text}: no place: {errors}"
        );
        assert!(
            output.stdout.is_empty() && names(place.folder.path()).is_empty(),
            "{text}: something was written"
        );
    }
}

/// Apart from the margin, the caret's line of an error has only the caret and its label.
fn has_caret(errors: &str) -> bool {
    errors.lines().any(|line| {
        line.trim_start().strip_prefix('|').is_some_and(|l| l.trim_start().starts_with('^'))
    })
}

#[test]
fn thirty_malformed_expressions() {
    let table = [
        ("", "expression is empty"),
        ("u +", "unexpected end of expression"),
        ("u + * v", "unexpected `*`"),
        ("(u + v", "`(` is not closed"),
        ("u + v)", "unexpected `)`"),
        ("u[1:2", "`[` is not closed"),
        ("u[]", "an index"),
        ("mean(u, axis=0", "`(` is not closed"),
        ("mean(u axis=0)", "unexpected `axis`"),
        ("mean(u, axis=)", "unexpected `)`"),
        ("mean(axis=0, u)", "positional argument follows keyword argument"),
        ("maen(u)", "did you mean `mean`?"),
        ("mean(w)", "unknown name `w`"),
        ("mean(latitud)", "did you mean `latitude`?"),
        ("mean(u, axes=0)", "did you mean `axis`?"),
        ("mean(u, 0)", "write `axis=`"),
        ("mean()", "missing required argument `x`"),
        ("mean(u, axis='time')", "found the text 'time'"),
        ("u.mean(0)", "write `mean(u, axis=0)`"),
        ("np.mean(u)", "write `mean(…)` without a module"),
        ("u < v < 3", "comparisons do not chain"),
        ("u and v", "write `a & b`"),
        ("u if v else 0", "where(condition, a, b)"),
        ("x = u", "unexpected `=`"),
        ("2u", "write `2 * u` for a product"),
        ("u × v", "write `*`"),
        ("'text", "unterminated string"),
        ("012", "invalid leading zero"),
        ("1/0 * u", "division by zero"),
        ("u[1.5]", "index must be an integer"),
        ("3 + 4", "this is the number 7"),
        ("(u, v)", "a sequence of 2"),
        ("sqrt(2)", "expected an array"),
        ("u + (1, 2)", "must be arrays or numbers"),
        ("u(3)", "is an array, not a function"),
        ("{u}", "unexpected `{`"),
    ];
    assert!(table.len() >= 30);
    check_all(&table, 2, has_caret);
    let nested = format!("{}u{}", "(".repeat(10_000), ")".repeat(10_000));
    check_all(
        &[(&nested, "nested too deeply"), (&"u+".repeat(50_000), "at most 65536 bytes")],
        2,
        has_caret,
    );
}

#[test]
fn twenty_impossible_expressions() {
    let table = [
        ("u + v[:5]", "along axis 3 from the end they have 12 and 5"),
        ("u + latitude", "axis 1 from the end"),
        ("u * permute_dims(v, (2, 1, 0))", "do not broadcast"),
        ("where(u > 0, u, v[:, :10])", "do not broadcast"),
        ("mean(u, axis=3)", "axis 3 is out of range"),
        ("sum(u, axis=-4)", "axis -4 is out of range"),
        ("max(u, axis=(0, -3))", "axis 0 is named twice"),
        ("u[12]", "index 12 is out of range for axis 0"),
        ("u[0, -74]", "index -74 is out of range for axis 1"),
        ("u[10**30]", "is out of range for axis 0"),
        ("u[0, 0, 0, 0]", "4 indices for 3 axes"),
        ("u[..., ...]", "one ellipsis"),
        ("u[::0]", "step"),
        ("u & v", "not defined for float32"),
        ("~u", "not defined for float32"),
        ("logical_not(u)", "not defined for float32"),
        ("(u > 0) - (v > 0)", "cannot subtract bools"),
        ("where(u, u, v)", "condition"),
        ("permute_dims(u, (0, 1))", "expected each of 3 axes once"),
        ("permute_dims(u, (0, 1, 3))", "axis 3 is out of range"),
        ("expand_dims(u, 5)", "axis 5 is out of range"),
        ("broadcast_to(u, (12, 73, 145))", "do not broadcast"),
        ("flip(u, axis=7)", "axis 7 is out of range"),
        ("max(u[:0], axis=0)", "axis 0 has length 0"),
        ("arange(0, 10, 0)", "its length is undefined"),
        ("random_uniform((3,), seed=1, dtype=int8)", "not defined for int8"),
    ];
    assert!(table.len() >= 20);
    check_all(&table, 4, has_caret);
}
