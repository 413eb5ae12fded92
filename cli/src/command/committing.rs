//! Results that are committed to a repository: `--repository`, `--branch`, `--message`,
//! `--session`.

use clap::Args;
use freestone::sessions::{
    CommitOptions, Error, Format, MAIN, Rebase, Repository, RepositoryPublisher,
};
use freestone::{Session, Settings, Spec, Target};
use freestone_cli::limits::Limits;

use xxhash_rust::xxh3::xxh3_64;

use super::Failure;

/// Tries of a commit that may go on top of others.
pub(crate) const REBASE_ATTEMPTS: u32 = 100;

/// The targets of a command, in a session or in plain Zarr stores.
pub(crate) type Targets<'a> = &'a dyn Fn(Option<&Session>) -> Result<Vec<Target>, Failure>;

/// Where a repository is.
#[derive(Args, Clone, Default)]
pub(crate) struct Place {
    /// The repository, a directory or URL; otherwise that of the settings.
    #[arg(long, value_name = "REPOSITORY")]
    pub(crate) repository: Option<String>,
    /// Its branch.
    #[arg(long)]
    pub(crate) branch: Option<String>,
}

impl Place {
    /// Together with environment, file and defaults.
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

    /// A repository that is not there is made.
    pub(crate) fn open_or_create(
        &self,
        format: Option<Format>,
    ) -> Result<(Repository, Spec), Failure> {
        let spec = self.spec(Settings::default())?;
        Ok((open_or_create(&spec, format)?, spec))
    }
}

/// A new repository has one branch only: where another is asked for, there must be one.
fn open_or_create(spec: &Spec, format: Option<Format>) -> Result<Repository, Failure> {
    let create = || Repository::open_or_create(&spec.repository, format.unwrap_or_default());
    let repository =
        if spec.branch == MAIN { create() } else { Repository::open(&spec.repository) }?;
    let found = repository.format();
    if format.is_some_and(|format| format != found) {
        return Err(Failure::Usage(format!(
            "`{}` is a repository of format {found} already (hint: leave --format away)",
            spec.repository
        )));
    }
    Ok(repository.sharing(spec.sharing))
}

/// Commits the results to a repository, where any of these is given: then each output is a path
/// there.
#[derive(Args, Default)]
pub(crate) struct Committing {
    #[command(flatten)]
    place: Place,
    /// Format of a repository that is made: 1, which Icechunk 1.x reads too, or 2 (default), which
    /// Icechunk 2 reads
    #[arg(long, value_name = "1|2", conflicts_with = "session")]
    format: Option<Format>,
    /// What the commit says.
    #[arg(short, long)]
    message: Option<String>,
    /// Where others commit meanwhile, goes on top of what they have changed if that is disjoint.
    #[arg(long)]
    rebase: bool,
    /// Adds the results to that shared session, which somebody else commits.
    #[arg(long, value_name = "ID", conflicts_with_all = ["message", "rebase", "branch"])]
    session: Option<String>,
    /// The name to write under in the shared session; otherwise one that follows from the outputs.
    /// Who comes under the same name takes over.
    #[arg(long, value_name = "NAME", requires = "session")]
    name: Option<String>,
}

impl Committing {
    fn is_asked(&self) -> bool {
        self.place.repository.is_some()
            || self.place.branch.is_some()
            || self.message.is_some()
            || self.session.is_some()
            || self.rebase
            || self.format.is_some()
    }

    /// The session that results go to, where they go to one. A repository that is not there yet is
    /// made, unless nothing is to be run; first the targets are planned for one in memory, so that
    /// nothing is left where the plan is refused.
    pub(crate) fn begin(
        &self,
        limits: &Limits,
        outputs: &[String],
        plan_only: bool,
        targets: Targets<'_>,
    ) -> Result<Option<Session>, Failure> {
        if !self.is_asked() {
            return Ok(None);
        }
        let spec = self.place.spec(limits.settings())?;
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

    /// What the run needs to commit.
    pub(crate) fn publishing(&self, session: Session, outputs: &[String]) -> RepositoryPublisher {
        let message =
            self.message.clone().unwrap_or_else(|| format!("freestone: {}", outputs.join(", ")));
        session.publishing(
            &message,
            CommitOptions { rebase: rebase(self.rebase), ..CommitOptions::default() },
        )
    }
}

pub(crate) fn rebase(asked: bool) -> Rebase {
    if asked { Rebase::Disjoint { attempts: REBASE_ATTEMPTS } } else { Rebase::Never }
}

/// A path in a repository, of what was given as an output.
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
        let why = "write GROUP/NAME, of which none is `c`, `zarr.json`, dots, or begins with `__`";
        return Err(Failure::Usage(format!("`{output}` is no path in a repository: {why}")));
    }
    Ok(path)
}

/// The name of who writes these outputs, and nobody else does: the beginning of the first for
/// people, and a hash of all.
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
