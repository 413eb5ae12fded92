//! The environment variables that the programs and tests of this workspace read.
//!
//! This is the only list. `docs/environment.md` is [generated](markdown) from it, and tests compare
//! both with each other and with the sources. After a change, run
//! `FREESTONE_UPDATE_DOCS=1 cargo test -p freestone-engine environment`.

use std::fmt::Write as _;

/// A group of environment variables.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The heading of the group.
    pub title: &'static str,
    /// The introduction of the group.
    pub about: &'static str,
    /// The variables.
    pub variables: &'static [Variable],
}

/// An environment variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// The name.
    pub name: &'static str,
    /// The description in Markdown.
    pub about: &'static str,
}

/// Defines groups of variables, with a documented constant for each name.
macro_rules! variables {
    ($($title:literal, $about:literal {
        $($(#[doc = $doc:literal])+ $constant:ident = $name:literal;)*
    })*) => {
        $($($(#[doc = $doc])+ pub const $constant: &str = $name;)*)*

        /// All variables.
        pub const GROUPS: &[Group] = &[$(Group {
            title: $title,
            about: $about,
            variables: &[$(Variable { name: $name, about: concat!($($doc),+) }),*],
        }),*];
    };
}

variables! {
    "Settings", "Each variable overrides the setting of the same name in the settings file. \
        Options of the command and values in code take precedence. Sizes are bytes or have a \
        unit, such as `500MB` or `2 GB`; durations have a unit, such as `90s` or `2h 30m`. Empty \
        variables count as unset." {
        /// The settings file. The default is `freestone.toml` in the current directory.
        CONFIG = "FREESTONE_CONFIG";
        /// The directory or URL for intermediate arrays, plans and journals. The default is
        /// `freestone-UID` in `TMPDIR`, else `freestone` in `XDG_CACHE_HOME`, else
        /// `/tmp/freestone-UID`.
        WORK_DIR = "FREESTONE_WORK_DIR";
        /// The maximum memory of one task, including the reserved memory. The default is 2 GB.
        ALLOWED_MEM = "FREESTONE_ALLOWED_MEM";
        /// The part of the allowed memory that is reserved for the program itself. The default is
        /// 32 MB.
        RESERVED_MEM = "FREESTONE_RESERVED_MEM";
        /// The maximum memory of the local process. The default is the allowed memory of all
        /// threads, at most 80 % of the machine's memory.
        LOCAL_MEM = "FREESTONE_LOCAL_MEM";
        /// The number of concurrent tasks that plans are made for. The default is the number of
        /// threads.
        PARALLELISM = "FREESTONE_PARALLELISM";
        /// The number of threads or worker processes. The default is the number of CPUs.
        THREADS = "FREESTONE_THREADS";
        /// The codec of intermediate arrays: `none`, `lz4`, `zstd`, `zstd:LEVEL`, `gzip` or
        /// `gzip:LEVEL`. The default is `none`.
        CODEC = "FREESTONE_CODEC";
        /// The maximum number of retries per task. The default is 4.
        RETRIES = "FREESTONE_RETRIES";
        /// The maximum duration of a task.
        TASK_TIMEOUT = "FREESTONE_TASK_TIMEOUT";
        /// The maximum duration of a run. A run that exceeds it can be resumed.
        DEADLINE = "FREESTONE_DEADLINE";
        /// The repository to which runs commit. The default is `freestone.icechunk`.
        REPOSITORY = "FREESTONE_REPOSITORY";
        /// The branch of the repository. The default is `main`.
        BRANCH = "FREESTONE_BRANCH";
        /// The lifetime of shared sessions. The default is 24 hours.
        SESSION_EXPIRY = "FREESTONE_SESSION_EXPIRY";
        /// `true` or `false`: whether sessions can be shared by their ids. The default is `true`.
        SHARING = "FREESTONE_SHARING";
    }
    "Command", "These variables change the output of the command." {
        /// The level of logged events, or levels per module, as `--log` accepts them.
        LOG = "FREESTONE_LOG";
        /// Disables colors on standard error if it is not empty.
        NO_COLOR = "NO_COLOR";
    }
    "Directories", "The default work directory is private to the user. Relative paths are \
        ignored." {
        /// The directory for temporary files, which schedulers set for each job.
        TMPDIR = "TMPDIR";
        /// The directory for caches, as in the XDG Base Directory Specification.
        XDG_CACHE_HOME = "XDG_CACHE_HOME";
    }
    "Costs and AWS Lambda", "These variables describe the function that runs tasks, and the \
        prices for projections of costs." {
        /// The name or ARN of the Lambda function that runs tasks.
        LAMBDA_FUNCTION = "FREESTONE_LAMBDA_FUNCTION";
        /// The memory of the function in MiB, for projections of costs.
        LAMBDA_MEMORY = "FREESTONE_LAMBDA_MEMORY";
        /// The architecture of the function for its price: `x86_64` or `arm64`. The default is
        /// `x86_64`.
        LAMBDA_ARCHITECTURE = "FREESTONE_LAMBDA_ARCHITECTURE";
        /// The maximum number of concurrent invocations. The default is the parallelism.
        LAMBDA_CONCURRENCY = "FREESTONE_LAMBDA_CONCURRENCY";
        /// A file with prices, which replaces the built-in ones.
        PRICES = "FREESTONE_PRICES";
        /// The memory of this function in MiB, which AWS Lambda sets for the worker.
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE = "AWS_LAMBDA_FUNCTION_MEMORY_SIZE";
    }
    "Object stores", "Workers and repositories use the same variables as the command. Stores \
        also accept all other variables of the crate `object_store` with the prefixes `AWS_`, \
        `GOOGLE_` and `AZURE_`." {
        /// The access key of AWS. If it is set, no profile is used.
        AWS_ACCESS_KEY_ID = "AWS_ACCESS_KEY_ID";
        /// The secret of the access key.
        AWS_SECRET_ACCESS_KEY = "AWS_SECRET_ACCESS_KEY";
        /// The token of temporary credentials.
        AWS_SESSION_TOKEN = "AWS_SESSION_TOKEN";
        /// The file with a web identity token. If it is set, no profile is used.
        AWS_WEB_IDENTITY_TOKEN_FILE = "AWS_WEB_IDENTITY_TOKEN_FILE";
        /// The relative URI of a container's credentials. If it is set, no profile is used.
        AWS_CONTAINER_CREDENTIALS_RELATIVE_URI = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        /// The URI of a container's credentials. If it is set, no profile is used.
        AWS_CONTAINER_CREDENTIALS_FULL_URI = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
        /// The profile whose credentials the `aws` command resolves, including single sign-on.
        AWS_PROFILE = "AWS_PROFILE";
        /// The profile if `AWS_PROFILE` is not set.
        AWS_DEFAULT_PROFILE = "AWS_DEFAULT_PROFILE";
        /// The region.
        AWS_REGION = "AWS_REGION";
        /// The region if `AWS_REGION` is not set.
        AWS_DEFAULT_REGION = "AWS_DEFAULT_REGION";
        /// The endpoint of S3-compatible services for repositories.
        AWS_ENDPOINT_URL_S3 = "AWS_ENDPOINT_URL_S3";
        /// The endpoint of AWS Lambda.
        AWS_ENDPOINT_URL_LAMBDA = "AWS_ENDPOINT_URL_LAMBDA";
        /// The endpoint of all services.
        AWS_ENDPOINT_URL = "AWS_ENDPOINT_URL";
        /// The endpoint of S3-compatible services.
        AWS_ENDPOINT = "AWS_ENDPOINT";
        /// `true` if endpoints may use HTTP without TLS.
        AWS_ALLOW_HTTP = "AWS_ALLOW_HTTP";
        /// `true` for requests without credentials, to public buckets.
        AWS_SKIP_SIGNATURE = "AWS_SKIP_SIGNATURE";
    }
    "Internal", "The programs set these variables themselves." {
        /// Marks a worker process, which must not start worker processes.
        WORKER = "FREESTONE_WORKER";
    }
    "Tests and benchmarks", "Only tests and benchmarks read these variables. `.ci/run` sets \
        those that name servers, folders and interpreters." {
        /// Writes generated pages such as this one instead of comparing them.
        UPDATE_DOCS = "FREESTONE_UPDATE_DOCS";
        /// The URL of a bucket or prefix of an object store for tests.
        TEST_STORE = "FREESTONE_STORE";
        /// The URL of the same bucket or prefix for plain HTTP requests.
        TEST_HTTP = "FREESTONE_HTTP";
        /// The folder with arrays that zarr-python and Xarray have written.
        TEST_INTEROP = "FREESTONE_INTEROP";
        /// The folder with repositories of Icechunk's Python package.
        TEST_ICECHUNK = "FREESTONE_ICECHUNK";
        /// The Python interpreter of tests.
        TEST_PYTHON = "FREESTONE_PYTHON";
        /// The interpreter from which the suites create virtual environments.
        TEST_PYTHON312 = "FREESTONE_PYTHON312";
        /// The file for measurements of the suite `memory`.
        TEST_MEMORY = "FREESTONE_MEMORY";
        /// The folder of a memory cgroup in which tests create others.
        TEST_CGROUP = "FREESTONE_CGROUP";
        /// The folder of a small file system, for tests of full disks.
        TEST_SMALL_DISK = "FREESTONE_SMALL_DISK";
        /// The folder for pages that the suite `browser` checks.
        TEST_BROWSER = "FREESTONE_BROWSER";
        /// The folder for drawings of plans.
        TEST_DRAWINGS = "FREESTONE_DRAWINGS";
        /// The endpoint of a second Lambda server.
        TEST_SECOND_LAMBDA = "FREESTONE_SECOND_LAMBDA";
        /// The worker program of the Lambda emulator.
        TEST_BOOTSTRAP = "FREESTONE_BOOTSTRAP";
        /// The number of cases of the fault injection tests.
        TEST_FAULT_CASES = "FREESTONE_FAULT_CASES";
        /// The case of the fault injection tests to repeat.
        TEST_FAULT_SEED = "FREESTONE_FAULT_SEED";
        /// Prints the plans of benchmarks.
        BENCH_EXPLAIN = "FREESTONE_BENCH_EXPLAIN";
        /// The Python interpreter of benchmarks of other libraries.
        PEERS_PYTHON = "FREESTONE_PEERS_PYTHON";
    }
}

/// Returns the page `docs/environment.md`.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Environment variables\n\n\
        <!-- Generated from engine/src/environment.rs. -->\n",
    );
    for group in GROUPS {
        let _ = write!(page, "\n## {}\n\n{}\n\n", group.title, group.about);
        page.push_str("| variable | meaning |\n| --- | --- |\n");
        for Variable { name, about } in group.variables {
            let _ = writeln!(page, "| `{name}` | {} |", about.trim());
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::files;

    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

    #[test]
    fn environment_page_is_generated() {
        let path = format!("{ROOT}/docs/environment.md");
        if std::env::var_os(UPDATE_DOCS).is_some() {
            files::write(&path, markdown()).unwrap();
        }
        assert!(
            files::read_to_string(&path).unwrap() == markdown(),
            "docs/environment.md is outdated (hint: run this test with {UPDATE_DOCS}=1)"
        );
    }

    #[test]
    fn names_are_unique() {
        let all = GROUPS.iter().flat_map(|g| g.variables).map(|v| v.name);
        let mut names = BTreeSet::new();
        all.for_each(|name| assert!(names.insert(name), "{name} is listed twice"));
    }

    /// Every name in the sources is listed here, except those with the prefix of helper processes
    /// of single tests.
    #[test]
    fn environment_lists_all_variables_of_the_sources() {
        let listed: BTreeSet<&str> =
            GROUPS.iter().flat_map(|g| g.variables).map(|v| v.name).collect();
        let mut found = BTreeSet::new();
        collect(Path::new(ROOT), &mut found);
        found.retain(|name| !name.starts_with("FREESTONE_TEST_") && !name.ends_with('_'));
        let unlisted: Vec<_> = found.iter().filter(|n| !listed.contains(n.as_str())).collect();
        assert!(unlisted.is_empty(), "{unlisted:?} are not in engine/src/environment.rs");
        assert!(found.contains(WORK_DIR) && found.len() > 30, "{found:?}");
    }

    fn collect(folder: &Path, names: &mut BTreeSet<String>) {
        for entry in files::read_dir(folder).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if !["target", ".git"].iter().any(|skipped| name == *skipped) {
                    collect(&path, names);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
                let text = files::read_to_string(&path).unwrap();
                let words = text.split(|c| !is_part(c));
                names.extend(words.filter(|w| w.starts_with("FREESTONE_")).map(str::to_owned));
            }
        }
    }
}
