//! `balto completions` and `balto man`: files for shells and for `man`, from the definitions of the
//! command line.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;

use super::Cli;
use super::output::{OutputError, line};

/// Print the completions of a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    balto completions bash > /usr/share/bash-completion/completions/balto\n  \
    balto completions zsh > /usr/share/zsh/vendor-completions/_balto\n  \
    balto completions fish > ~/.config/fish/completions/balto.fish")]
pub(super) struct CompletionsArgs {
    shell: CompletedShell,
}

/// The shells of Linux.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CompletedShell {
    Bash,
    Zsh,
    Fish,
}

impl CompletionsArgs {
    pub(super) fn run(&self) -> Result<(), OutputError> {
        let shell = match self.shell {
            CompletedShell::Bash => Shell::Bash,
            CompletedShell::Zsh => Shell::Zsh,
            CompletedShell::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "balto", &mut script);
        line(String::from_utf8_lossy(&script).trim_end())
    }
}

/// Write the manual pages.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    balto man --dir ~/.local/share/man/man1 && man balto-endpoints-add")]
pub(super) struct ManArgs {
    /// The directory, which is created: one page for each command.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl ManArgs {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let failed = || format!("cannot write manual pages to {}", self.dir.display());
        std::fs::create_dir_all(&self.dir).with_context(failed)?;
        clap_mangen::generate_to(Cli::command(), &self.dir).with_context(failed)
    }
}
