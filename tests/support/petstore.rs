//! `examples/petstore`, as a program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use super::WAIT_MAX;

pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/petstore")
}

fn changed_at(path: &Path) -> SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}

/// The program. `cargo test` builds it with the tests; a run of some tests alone may not have.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/petstore");
    let mut sources = std::fs::read_dir(examples()).unwrap().map(|file| changed_at(&file.unwrap().path()));
    if !program.exists() || sources.any(|changed| changed > changed_at(&program)) {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--locked", "--example", "petstore"]);
        assert!(build.status().unwrap().success());
    }
    program
}

/// Runs it to its end. Returns its story, which must have each of these proofs once.
pub(crate) async fn story(broker: Option<&str>, proofs: &[&str]) -> String {
    let mut command = tokio::process::Command::new(tokio::task::spawn_blocking(program).await.unwrap());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BALTO_")) {
        command.env_remove(name);
    }
    match broker {
        Some(url) => command.env("PETSTORE_AMQP_URL", url),
        None => command.env_remove("PETSTORE_AMQP_URL"),
    };
    let output = tokio::time::timeout(2 * WAIT_MAX, command.kill_on_drop(true).output());
    let output = output.await.expect("the story takes too long").unwrap();
    let (story, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{story}\n{errors}");
    for proof in proofs {
        let found = story.lines().filter(|line| line.starts_with("proof: ") && line.contains(proof));
        assert_eq!(found.count(), 1, "proofs of {proof:?}: {story}");
    }
    story.into_owned()
}
