//! Expressions that start with a minus sign, as in `freestone compute "-x"`, distinguished from
//! options before clap parses them.
//!
//! With clap's `allow_hyphen_values`, every option after the first expression would become another
//! expression.

use std::ffi::OsString;

use clap::{Arg, Command};

/// The mark before an expression that starts with a minus sign. No argument of a program can
/// contain it.
const MARK: char = '\0';

/// Returns the arguments with marks before expressions that start with a minus sign.
pub(crate) fn mark(arguments: impl Iterator<Item = OsString>, command: &Command) -> Vec<OsString> {
    let mut all: Vec<OsString> = arguments.collect();
    // Options such as `-q` may precede the subcommand.
    let subcommand = |(i, name): (usize, &OsString)| Some((i, command.find_subcommand(name)?));
    let Some((position, command)) =
        all.iter().enumerate().skip(1).find_map(subcommand).filter(|(_, c)| takes_expressions(c))
    else {
        return all;
    };
    let mut is_value = false;
    for argument in all.iter_mut().skip(position + 1) {
        let Some(text) = argument.to_str() else {
            is_value = false;
            continue;
        };
        if text == "--" {
            break;
        }
        let marked = if !is_value && is_expression(text, command) {
            Some(format!("{MARK}{text}"))
        } else {
            None
        };
        is_value = marked.is_none() && awaits_value(text, command);
        if let Some(marked) = marked {
            *argument = marked.into();
        }
    }
    all
}

/// Parses the argument of an expression and removes the mark.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn unmark(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(text.strip_prefix(MARK).unwrap_or(text).to_owned())
}

fn takes_expressions(command: &Command) -> bool {
    command.get_arguments().any(|a| a.get_id() == "expressions")
}

/// Returns true for an argument that starts with a minus sign and is neither an option nor similar
/// to a misspelt one.
fn is_expression(text: &str, command: &Command) -> bool {
    if let Some(name) = text.strip_prefix("--") {
        let name = name.split('=').next().unwrap_or(name);
        return !name.starts_with(|c: char| c.is_ascii_alphabetic())
            || name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
    }
    let Some(short) = text.strip_prefix('-').and_then(|rest| rest.chars().next()) else {
        return false;
    };
    let option = |c: char| command.get_arguments().find(|a| a.get_short() == Some(c));
    match option(short) {
        // `-iNAME=ARRAY` is an option; `-index*2` is an expression.
        Some(option) if option.get_id() == "inputs" => text.len() > 2 && !text.contains('='),
        Some(option) if option.get_action().takes_values() => false,
        // `-v` and `-vq` are flags; `-v*2` is an expression.
        Some(_) => !text.chars().skip(1).all(|c| option(c).is_some()),
        None => true,
    }
}

/// Returns true for an option whose value is the next argument.
fn awaits_value(text: &str, command: &Command) -> bool {
    let takes = |a: &Arg| a.get_action().takes_values();
    match text.strip_prefix("--") {
        Some(name) => command.get_arguments().any(|a| a.get_long() == Some(name) && takes(a)),
        None => {
            text.len() == 2
                && text.starts_with('-')
                && command.get_arguments().any(|a| a.get_short() == text.chars().nth(1) && takes(a))
        }
    }
}
