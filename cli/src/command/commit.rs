//! Commits of results to a repository: `--repository`, `--branch`, `--message`, `--session`.

use clap::Args;
use freestone::sessions::{
    CommitOptions, Error, Format, MAIN, Rebase, Repository, RepositoryPublisher,
};
use freestone::{Session, Settings, Spec, Target};
use freestone_cli::limits::Limits;

use xxhash_rust::xxh3::xxh3_64;

use super::Failure;

/// The maximum number of attempts to rebase a commit.
const REBASE_ATTEMPTS: u32 = 100;

/// A function that returns the targets of a command, in a session or in plain Zarr stores.
pub(crate) type Targets<'a> = &'a dyn Fn(Option<&Session>) -> Result<Vec<Target>, Failure>;

/// The location of a repository and the name of a branch.
#[derive(Args, Clone, Default)]
pub(crate) struct RepositoryArgs {
    /// Directory or URL of the repository [default: from settings]
    #[arg(long, value_name = "REPOSITORY")]
    pub(crate) repository: Option<String>,
    /// Branch of the repository [default: from settings]
    #[arg(long)]
    pub(crate) branch: Option<String>,
}

impl RepositoryArgs {
    /// Returns the specification from arguments, environment, file and defaults.
    pub(crate) fn spec(&self, settings: Settings) -> Result<Spec, Failure> {
        Ok(Spec::load(Settings {
            repository: self.repository.clone(),
            branch: self.branch.clone(),
            ..settings
        })?)
    }

    pub(crate) fn open(&self) -> Result<(Repository, Spec), Failure> {
        let spec = self.spec(Settings::default())?;
        Ok((Repository::open(&spec.repository)?.sharing(spec.sharing), spec))
    }

    /// Opens the repository, and creates it if it does not exist.
    pub(crate) fn open_or_create(
        &self,
        format: Option<Format>,
    ) -> Result<(Repository, Spec), Failure> {
        let spec = self.spec(Settings::default())?;
        Ok((open_or_create(&spec, format)?, spec))
    }
}

/// Opens a repository, and creates it if it does not exist and the branch is `main`. A new
/// repository has no other branch.
fn open_or_create(spec: &Spec, format: Option<Format>) -> Result<Repository, Failure> {
    let create = || Repository::open_or_create(&spec.repository, format.unwrap_or_default());
    let repository =
        if spec.branch == MAIN { create() } else { Repository::open(&spec.repository) }?;
    let found = repository.format();
    if format.is_some_and(|format| format != found) {
        return Err(Failure::Usage(format!(
            "repository `{}` exists in format {found} (hint: remove --format)",
            spec.repository
        )));
    }
    Ok(repository.sharing(spec.sharing))
}

/// The repository and session for results. With any of these arguments, outputs are paths in the
/// repository.
#[derive(Args, Default)]
#[command(next_help_heading = "Repository options (outputs are paths in the repository)")]
pub(crate) struct CommitArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// Format of a new repository: 1 (Icechunk 1 and 2) or 2 (Icechunk 2) [default: 2]
    #[arg(long, value_name = "FORMAT", conflicts_with = "session")]
    format: Option<Format>,
    /// Message of the commit
    #[arg(short, long)]
    message: Option<String>,
    /// Rebase onto concurrent commits that changed other chunks
    #[arg(long)]
    rebase: bool,
    /// Write to the shared session ID, which is committed separately
    #[arg(long, value_name = "ID", conflicts_with_all = ["message", "rebase", "branch"])]
    session: Option<String>,
    /// Writer's name in the shared session; replaces a writer of that name [default: from outputs]
    #[arg(long, value_name = "NAME", requires = "session")]
    name: Option<String>,
}

impl CommitArgs {
    fn is_any(&self) -> bool {
        self.repository.repository.is_some()
            || self.repository.branch.is_some()
            || self.message.is_some()
            || self.session.is_some()
            || self.rebase
            || self.format.is_some()
    }

    /// Returns the session for the results, or `None` for plain Zarr stores.
    ///
    /// Creates the repository if it does not exist, except for `--plan-only`. The targets are
    /// planned for a repository in memory first, so that a rejected plan creates nothing.
    pub(crate) fn begin(
        &self,
        limits: &Limits,
        outputs: &[String],
        plan_only: bool,
        targets: Targets<'_>,
    ) -> Result<Option<Session>, Failure> {
        if !self.is_any() {
            return Ok(None);
        }
        let spec = self.repository.spec(limits.settings())?;
        let repository = if plan_only || self.session.is_some() {
            Repository::open(&spec.repository)?.sharing(spec.sharing)
        } else {
            if spec.branch == MAIN
                && matches!(
                    Repository::open(&spec.repository),
                    Err(Error::NoRepository { .. } | Error::NotInProcess { .. })
                )
            {
                let rehearsal = Session::begin(&Repository::in_memory()?, MAIN)?;
                freestone::plan(&targets(Some(&rehearsal))?, &limits.spec()?)?;
            }
            open_or_create(&spec, self.format)?
        };
        let Some(id) = &self.session else {
            return Ok(Some(Session::begin(&repository, &spec.branch)?));
        };
        if plan_only {
            let status = repository.shared_session(id)?.status()?;
            return Ok(Some(Session::begin(&repository, &status.branch)?));
        }
        let name = self.name.clone().unwrap_or_else(|| writer(outputs));
        Ok(Some(Session::joined(repository.join_session(id, &name)?)))
    }

    /// Returns the session of a run, with message and options of its commit.
    pub(crate) fn publishing(
        &self,
        session: Session,
        outputs: &[String],
    ) -> Result<RepositoryPublisher, Failure> {
        let message =
            self.message.clone().unwrap_or_else(|| format!("freestone: {}", outputs.join(", ")));
        let options = CommitOptions { rebase: rebase(self.rebase), ..CommitOptions::default() };
        Ok(session.publishing(&message, options)?)
    }
}

pub(crate) fn rebase(asked: bool) -> Rebase {
    if asked { Rebase::Disjoint { attempts: REBASE_ATTEMPTS } } else { Rebase::Never }
}

/// Returns the path in a repository that an output names.
pub(crate) fn path(output: &str) -> Result<&str, Failure> {
    let path = output.trim_matches('/');
    let is_name = |n: &str| {
        !n.is_empty()
            && !n.starts_with("__")
            && !n.bytes().all(|b| b == b'.')
            && n != "zarr.json"
            && n != "c"
    };
    if path.contains([':', '\\'])
        || path.chars().any(char::is_control)
        || !path.split('/').all(is_name)
    {
        return Err(Failure::usage(format!(
            "invalid path `{output}` in a repository: expected GROUP/NAME, without names that are \
                `c`, `zarr.json` or dots, or start with `__`"
        )));
    }
    Ok(path)
}

/// Returns a writer's name that is unique for these outputs: the start of the first output, and a
/// hash of all.
fn writer(outputs: &[String]) -> String {
    let first: String = outputs
        .first()
        .map_or("", |o| o.as_str())
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(24)
        .collect();
    format!("compute-{first}-{:016x}", xxh3_64(outputs.join("\n").as_bytes()))
}
