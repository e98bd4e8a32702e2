//! The `balto` command: gives the command line access to the daemon and returns its exit code.

use std::process::ExitCode;

use balto::cli::{self, Backend};
use balto::courier::tls;
use balto::{config, daemon};

fn main() -> ExitCode {
    let backend = Backend {
        serve: |args| {
            daemon::serve(&daemon::ServeOptions {
                config: args.config,
                data_dir: args.data_dir,
                dev: args.dev,
                dev_listen_anywhere: args.dev_listen_anywhere,
            })
        },
        check_config: |file| {
            config::check(file, &|path| tls::roots(Some(path)).map(drop), &daemon::check_certificate)
        },
        verify: |config, directory| daemon::verify(config, &directory),
        restore: |args| {
            let keys =
                daemon::RestoreKeys { config: args.config.clone(), unauthenticated: args.unauthenticated };
            daemon::restore(&args.from, &args.data_dir, &keys)
        },
        openapi: || Ok(serde_json::to_string_pretty(&balto::api::openapi::document())?),
    };
    cli::run(&backend, std::env::args_os())
}
