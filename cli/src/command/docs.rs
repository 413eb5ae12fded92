//! `freestone completions` and `freestone man`: files generated from the command's definition.

use std::path::Path;

use clap::Command;
use clap_complete::Shell;

use super::{Failure, console};

pub(crate) fn completions(shell: Shell, mut command: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "freestone", &mut script);
    console::print(String::from_utf8_lossy(&script).trim_end())
}

pub(crate) fn man(dir: &Path, command: Command) -> Result<(), Failure> {
    let cannot = |e: std::io::Error| {
        Failure::usage(format!("cannot write man pages to `{}`: {e}", dir.display()))
    };
    freestone_engine::files::create_dir_all(dir).map_err(cannot)?;
    clap_mangen::generate_to(command, dir).map_err(cannot)
}
