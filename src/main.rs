//! The `balto` command: parses the command line, hands it what the daemon offers, and ends with its exit code.

use std::path::Path;
use std::process::ExitCode;

use balto::cli::{self, Backend};
use balto::{config, daemon, store};
use clap::Parser as _;

fn main() -> ExitCode {
    let backend = Backend {
        serve: |args| {
            daemon::serve(&daemon::Options { config: args.config, data_dir: args.data_dir, dev: args.dev })
        },
        check_config,
        verify,
        openapi: || Ok(serde_json::to_string_pretty(&balto::api::openapi::document())?),
    };
    cli::run(&backend, cli::Cli::parse())
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command's answer")]
fn check_config(path: &Path) -> anyhow::Result<ExitCode> {
    match config::check(path) {
        Ok(_) => {
            println!("{}: good", path.display());
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("balto: {error}");
            Ok(ExitCode::from(2))
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command's answer")]
fn verify(directory: &Path) -> anyhow::Result<ExitCode> {
    let disk = store::disk::RealDisk::new(directory.join("journal"))?;
    let report = store::journal::verify(&disk)?;
    println!(
        "{} segments, {} frames, {} records, {} bytes",
        report.segments, report.frames, report.records, report.bytes
    );
    for damage in &report.damage {
        println!("damaged: {damage:?}");
    }
    Ok(if report.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
