# What is done often. `just` alone lists it.

_list:
    @just --list --unsorted

# Formatting, lints and documentation: the quick suites of .ci/run
check:
    .ci/run format clippy rustdoc

# All tests that need nothing but Rust
test:
    cargo test --release --workspace

# Some end-to-end tests while working on them: compiles only what has changed
quick *filter:
    cargo test --profile quick --workspace --test end_to_end -- {{ filter }}

# Quadratic means of the winds that the repository ships
example *arguments:
    cargo run --release --example quadratic_means -- {{ arguments }}

# Everything that must pass before a change is merged, or only the suites named
ci *suites:
    .ci/run {{ suites }}

# The workspace's tests 10 times while busy loops keep every core from them; measure alone
stress *arguments:
    tests/stress.sh {{ arguments }}

# What every operation and codec takes beside its projection: docs/memory.md. With MEMORY_ROWS=all, all operations over all codecs
memory:
    .ci/run memory
    cp target/ci/memory.md docs/memory.md

# Quadratic means against Dask, Cubed and TensorStore; measure alone
bench:
    cargo run --release -p freestone-bench -- run quad_means --size 2GB --vs dask,cubed,tensorstore

# All benchmarks against their limits
bars:
    cargo run --release -p freestone-bench -- bars
