//! The `balto` command: parses the command line, hands it what the daemon offers, and ends with its exit code.

use std::process::ExitCode;

use anyhow::bail;
use balto::cli::{self, Backend};
use clap::Parser as _;

fn main() -> ExitCode {
    let backend = Backend {
        serve: |_args| bail!("the daemon is not part of this build"),
        check_config: |_path| bail!("the configuration is not part of this build"),
        verify: |_directory| bail!("the store is not part of this build"),
        openapi: || bail!("the API description is not part of this build"),
    };
    cli::run(&backend, cli::Cli::parse())
}
