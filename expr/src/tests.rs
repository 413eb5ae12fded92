//! Tests of parsing, evaluation and error messages, and properties of random expressions.

use freestone_ops::full;
use proptest::prelude::*;

use super::ast::{Argument, Binary, Expr, Kind, Operation, Subscript, Unary};
use super::*;
use freestone_kernels::DType;

/// The tree in prefix form.
fn tree(e: &Expr) -> String {
    let all = |items: &[Expr]| items.iter().map(|i| format!(" {}", tree(i))).collect::<String>();
    match &e.kind {
        Kind::Name(n) => n.clone(),
        Kind::Int(i) => i.to_string(),
        Kind::Float(x) => format!("{x:?}"),
        Kind::Imaginary(x) => format!("{x:?}j"),
        Kind::Text(t) => format!("'{t}'"),
        Kind::Unary(op, a) => format!("({} {})", op.symbol(), tree(a)),
        Kind::Binary(first, operations) => operations.iter().fold(tree(first), |left, o| {
            format!("({} {left} {})", o.operator.symbol(), tree(&o.right))
        }),
        Kind::Call(name, arguments) => {
            let argument = |a: &Argument| {
                format!(
                    " {}{}",
                    a.name.as_ref().map(|n| format!("{n}=")).unwrap_or_default(),
                    tree(&a.value)
                )
            };
            format!("(call {name}{})", arguments.iter().map(argument).collect::<String>())
        }
        Kind::Index(of, entries) => {
            let part = |e: &Option<Expr>| e.as_ref().map_or("_".into(), tree);
            let entry = |s: &Subscript| match s {
                Subscript::At(e) => format!(" {}", tree(e)),
                Subscript::Slice { start, stop, step } => {
                    format!(" (: {} {} {})", part(start), part(stop), part(step))
                }
                Subscript::Ellipsis(_) => " ...".into(),
            };
            format!("(index {}{})", tree(of), entries.iter().map(entry).collect::<String>())
        }
        Kind::Tuple(items) => format!("(tuple{})", all(items)),
        Kind::List(items) => format!("(list{})", all(items)),
    }
}

#[track_caller]
fn check(text: &str, expected: &str) {
    match Expression::parse(text) {
        Ok(e) => assert_eq!(tree(e.root()), expected),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn precedence_is_pythons() {
    check("a + b*c", "(+ a (* b c))");
    check("a - b - c", "(- (- a b) c)");
    check("a ** b ** c", "(** a (** b c))");
    check("-a ** 2", "(- (** a 2))");
    check("2 ** -a ** b", "(** 2 (- (** a b)))");
    check("-a * b", "(* (- a) b)");
    check("~a & b | c ^ d", "(| (& (~ a) b) (^ c d))");
    check("a << 1 + b", "(<< a (+ 1 b))");
    check("a | b == c", "(== (| a b) c)");
    check("a < b & c", "(< a (& b c))");
    check("(a < b) & (b < c)", "(& (< a b) (< b c))");
    check("(a < b) < c", "(< (< a b) c)");
    check("a @ b // c % d", "(% (// (@ a b) c) d)");
    check("- - + ~a", "(- (- (+ (~ a))))");
    check("-a[0]", "(- (index a 0))");
    check("a ** b[0]", "(** a (index b 0))");
}

#[test]
fn brackets() {
    check("(a)", "a");
    check("()", "(tuple)");
    check("(a,)", "(tuple a)");
    check("[a, b,]", "(list a b)");
    check("f(x, (1, 2), axis=0, keepdims=True,)", "(call f x (tuple 1 2) axis=0 keepdims=True)");
    check("x[3, ::2, ..., None]", "(index x 3 (: _ _ 2) ... None)");
    check(
        "x[1:2:3][:][::][a:b, c]",
        "(index (index (index (index x (: 1 2 3)) (: _ _ _)) (: _ _ _)) (: a b _) c)",
    );
    check("x[[1, 2]]", "(index x (list 1 2))");
    check("x[...]", "(index x ...)");
    check("f(x)[0]", "(index (call f x) 0)");
    check(" a\n\t+ b ", "(+ a b)");
}

#[test]
fn numbers_are_pythons() {
    check("1_000", "1000");
    check("0xFf_0", "4080");
    check("0b101 + 0o17", "(+ 5 15)");
    check("00", "0");
    check("1. + .5 + 1.5e-3 + 2E3", "(+ (+ (+ 1.0 0.5) 0.0015) 2000.0)");
    check("2j + 1.5J", "(+ 2.0j 1.5j)");
    check("0012.5", "12.5");
    check("170141183460469231731687303715884105727", "170141183460469231731687303715884105727");
    check("astype(x, 'float32')", "(call astype x 'float32')");
}

fn inputs() -> Inputs {
    let array = |shape: &[u64], dtype| full(shape, 1.0, dtype, shape);
    let all = [
        ("u", array(&[12, 73, 144], DType::Float32)),
        ("m", array(&[12, 73, 144], DType::Bool)),
        ("i", array(&[12], DType::Int64)),
    ];
    all.map(|(n, a)| (n.to_owned(), a)).into()
}

fn evaluated(text: &str) -> Result<Array, ExpressionError> {
    Expression::parse(text)?.array(&inputs())
}

#[track_caller]
fn gives(text: &str, shape: &[u64], dtype: DType) {
    match evaluated(text) {
        Ok(a) => assert_eq!(
            (a.shape().unwrap().as_slice(), a.dtype().unwrap()),
            (shape, dtype),
            "{text}"
        ),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn results() {
    gives("u", &[12, 73, 144], DType::Float32);
    gives("mean(u*u, axis=0)", &[73, 144], DType::Float32);
    gives("sum(u, axis=(0, -1), keepdims=True, dtype=float64)", &[1, 73, 1], DType::Float64);
    gives("u[3, ::2, ..., None]", &[37, 144, 1], DType::Float32);
    gives("u[:2*5, -1:0:-10]", &[10, 8, 144], DType::Float32);
    gives("u[(0, 1)]", &[144], DType::Float32);
    gives("u[::10**30, :-10**30]", &[1, 0, 144], DType::Float32);
    gives("u[()]", &[12, 73, 144], DType::Float32);
    gives("(u > 3) & m | ~m", &[12, 73, 144], DType::Bool);
    gives("2 * u / pi - 1", &[12, 73, 144], DType::Float32);
    gives("i / 2", &[12], DType::Float64);
    gives("where(m, u, nan)", &[12, 73, 144], DType::Float32);
    gives("full((2, 3*4), 7)", &[2, 12], DType::Int64);
    gives("zeros((5, 5), dtype=uint8, chunks=(5, -1))", &[5, 5], DType::UInt8);
    gives("arange(0, 1, 0.25)", &[4], DType::Float64);
    gives("random_uniform((4, 4), seed=1)", &[4, 4], DType::Float64);
    gives("rechunk(u, (-1, 10, 10))", &[12, 73, 144], DType::Float32);
    gives("(u, m)[1]", &[12, 73, 144], DType::Bool);
}

/// Plain numbers, as CPython 3.12 says.
#[test]
fn arithmetic_of_numbers() {
    let python = [
        ("7 // -2", "-4"),
        ("-7 % 3", "2"),
        ("7 % -3", "-2"),
        ("7 / 2", "3.5"),
        ("-7.5 // 2", "-4.0"),
        ("-7.5 % 2", "0.5"),
        ("5.5 % -2", "-0.5"),
        ("2 ** 100", "1267650600228229401496703205376"),
        ("2 ** -1", "0.5"),
        ("(-1) ** 10 ** 20", "1"),
        ("1 << 100 >> 98", "4"),
        ("-1 >> 1000", "-1"),
        ("5 & 3 | 8 ^ 1", "9"),
        ("~5", "-6"),
        ("True + True", "2"),
        ("True & False", "False"),
        ("3 < 4", "True"),
        ("nan == nan", "False"),
        ("2j * 2j", "-4+0j"),
        ("1e308 * 10", "inf"),
    ];
    for (text, expected) in python {
        let error = evaluated(text).unwrap_err();
        let said = error.label.strip_prefix("this is ").unwrap();
        assert_eq!(said.strip_prefix("the number ").unwrap_or(said), expected, "{text}");
    }
    let impossible = [
        ("1 / 0", "division by zero"),
        ("1 % 0.0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("2 ** 127", "result exceeds 128 bits"),
        ("1 << 127", "result exceeds 128 bits"),
        ("3 ** 10 ** 30", "result exceeds 128 bits"),
        ("1 << -1", "shift by a negative number"),
        ("10.0 ** 400", "result exceeds float64"),
        ("1.5 & 1", "`&` is not defined for floats"),
        ("2j < 1", "complex numbers are not ordered"),
        ("2 @ 3", "`@` is not defined for numbers"),
    ];
    for (text, expected) in impossible {
        assert_eq!(evaluated(text).unwrap_err().message, expected, "{text}");
    }
}

#[test]
fn errors_point_to_the_position() {
    let texts = [
        "mean(u*v, axis=0",
        "u + * u",
        "maen(u, axis=0)",
        "mean(u, axes=0)",
        "mean(u, 0)",
        "mean(u, axis=3)",
        "u + 2*u[:5]",
        "u + w",
        "u.mean(0)",
        "u[0].T",
        "np.amax(u, 0)",
        "u < 1 < 2",
        "u and m",
        "2u",
        "u × u",
        "'abc",
        "u[1.5]",
        "add(u, 1, x2=3)",
        "amax(u)",
        "sum",
        "u, m",
        "u if m else 0",
        "3",
    ];
    let all: Vec<String> = texts.iter().map(|t| evaluated(t).unwrap_err().to_string()).collect();
    insta::assert_snapshot!(all.join("\n\n"));
}

#[test]
fn deep_nesting_and_long_texts_are_rejected() {
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("-", ""),
        ("f(", ")"),
        ("x[", "]"),
        ("2**", ""),
        ("(", ""),
        ("x[(", ""),
    ] {
        for n in [99, 100, 101, 5000, 100_000] {
            let text = format!("{}x{}", open.repeat(n), close.repeat(n));
            let deep = Expression::parse(&text).map(drop);
            assert!(deep.is_err() || n < 101, "{open} {n}");
            let _ = deep.map_err(|e| e.to_string());
        }
    }
    for text in [vec!["u"; 1_000_000].join("+"), format!("u{}", "[:]".repeat(1001))] {
        let error = evaluated(&text).unwrap_err();
        assert!(error.to_string().len() < 2000 && error.cause.is_none(), "{error}");
    }
    let wide = format!("({})", vec!["1"; 30_000].join(","));
    assert!(evaluated(&wide).unwrap_err().label.contains("a sequence of 30000"));
    assert!(evaluated(&"u[0]".repeat(10)).is_err());
}

/// Evaluation, printing, cloning and dropping do not recurse over operators in a row.
#[test]
fn ten_thousand_operators_in_a_row_are_accepted() {
    for operators in [&["+"][..], &["+", "-"], &["*", "/"], &["&"], &["+", "*", "-"]] {
        let operand = if operators == ["&"] { "m" } else { "u" };
        let mut text = operand.to_owned();
        for i in 0..10_000 {
            text.push_str(&format!(" {} {operand}", operators[i % operators.len()]));
        }
        let parsed = Expression::parse(&text).unwrap();
        assert!(parsed.root().to_string() == text, "{operators:?}");
        let copy = parsed.clone();
        assert!(copy.root() == parsed.root(), "{operators:?}");
        assert_eq!(copy.array(&inputs()).unwrap().shape().unwrap(), [12, 73, 144]);
    }
}

#[test]
fn errors_in_a_sum_span_the_operands_so_far() {
    let error = evaluated("u - (u[0]) + u[:5] + u").unwrap_err();
    assert_eq!(error.span, 0..18);
}

fn leaf() -> impl Strategy<Value = Expr> {
    let kind = prop_oneof![
        "[a-z_][a-z0-9_]{0,3}".prop_filter("no keyword", |n| is_identifier(n)).prop_map(Kind::Name),
        (0..i128::MAX).prop_map(Kind::Int),
        (0.0..1e300f64).prop_map(Kind::Float),
        (0.0..1e3f64).prop_map(Kind::Imaginary),
        "[a-z \"]{0,5}|[a-z ']{0,5}".prop_map(Kind::Text),
    ];
    kind.prop_map(expr)
}

fn expr(kind: Kind) -> Expr {
    Expr { kind, span: 0..0, depth: 0 }
}

fn any_expr() -> impl Strategy<Value = Expr> {
    leaf().prop_recursive(6, 60, 4, |inner| {
        let boxed = inner.clone().prop_map(Box::new);
        let argument = (
            proptest::option::of("[a-z]{1,4}".prop_filter("no keyword", |n| is_identifier(n))),
            inner.clone(),
        );
        let bound = proptest::option::of(inner.clone());
        let entry = prop_oneof![
            inner.clone().prop_map(Subscript::At),
            (bound.clone(), bound.clone(), bound)
                .prop_map(|(start, stop, step)| Subscript::Slice { start, stop, step }),
            Just(Subscript::Ellipsis(0..0)),
        ];
        prop_oneof![
            (proptest::sample::select(Unary::ALL), boxed.clone())
                .prop_map(|(op, a)| Kind::Unary(op, a)),
            (proptest::sample::select(Binary::ALL), boxed.clone(), inner.clone()).prop_map(
                |(operator, first, right)| {
                    Kind::Binary(first, vec![Operation { operator, right, end: 0 }])
                }
            ),
            ("f|g", prop::collection::vec(argument, 0..4)).prop_map(|(name, all)| {
                Kind::Call(
                    name,
                    all.into_iter()
                        .map(|(name, value)| Argument { name, value, span: 0..0 })
                        .collect(),
                )
            }),
            (boxed, prop::collection::vec(entry, 1..4))
                .prop_map(|(of, entries)| Kind::Index(of, entries)),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Kind::Tuple),
            prop::collection::vec(inner, 0..4).prop_map(Kind::List),
        ]
        .prop_map(expr)
    })
}

proptest! {
    #[test]
    fn printing_and_parsing_are_inverse(e in any_expr()) {
        let text = e.to_string();
        let again = Expression::parse(&text).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(tree(again.root()), tree(&e), "{}", text);
        prop_assert_eq!(again.root().to_string(), text);
    }

    /// Parsing, evaluating and rendering errors of any text do not panic. Positions are within the
    /// text.
    #[test]
    fn no_text_panics(text in "\\PC*|[-a-z0-9_.,:()\\[\\]*+/<>=&|^~%@!' \
        \n\"ex×]{0,60}\
        |(u|m|i|mean|sum|\\(|\\)|\\[|\\]|,|axis=|:|\\.\\.\\.|None|[-+*/<>&|~%^@]|==|\\*\\*|[0-9]\
        |1e9|where| ){1,30}") {
        if let Err(error) = evaluated(&text) {
            prop_assert!(error.span.start <= error.span.end && error.span.end <= text.len());
            prop_assert!(!error.render(true).is_empty() && !error.message.is_empty());
        }
    }
}
