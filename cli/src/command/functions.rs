//! `freestone functions`: the list of functions, and explanations.

use std::fmt::Write;

use freestone_expr::vocabulary::{self, either, nearest};

use super::{Failure, print};

pub(crate) fn functions(name: Option<&str>, markdown: bool) -> Result<(), Failure> {
    if markdown {
        return print(vocabulary::index().trim_end());
    }
    let Some(name) = name else { return print(list().trim_end()) };
    let Some(f) = vocabulary::function(name) else {
        let standard =
            vocabulary::standard_name(name).filter(|n| vocabulary::function(n).is_some());
        let near = standard.map_or_else(
            || nearest(name, vocabulary::functions().iter().map(|f| f.name)),
            |n| vec![n],
        );
        let hint = if near.is_empty() {
            "`freestone functions` lists all functions".into()
        } else {
            format!("did you mean {}?", either(&near))
        };
        return Err(Failure::usage(format!("unknown function `{name}` (hint: {hint})")));
    };
    print(&format!(
        "{}{}\n\n{}\n\nsection  {}\nshape    {}\ndtypes   {}\ncost     {}",
        f.name,
        f.signature,
        f.summary,
        f.section.title(),
        f.shape,
        f.dtypes,
        f.cost
    ))
}

fn list() -> String {
    let mut text = String::new();
    let mut section = None;
    for f in vocabulary::functions() {
        if section.replace(f.section) != Some(f.section) {
            let _ =
                writeln!(text, "{}{}", if text.is_empty() { "" } else { "\n" }, f.section.title());
        }
        let call = format!("{}{}", f.name, f.signature);
        // The summary of a long signature is on a line of its own.
        let _ = if call.len() <= 40 {
            writeln!(text, "  {call:<40}  {}", f.summary)
        } else {
            writeln!(text, "  {call}\n  {:<40}  {}", "", f.summary)
        };
    }
    text + "\nconstants: " + &vocabulary::constants().collect::<Vec<_>>().join(", ")
}
