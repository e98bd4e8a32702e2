//! Other people's programs, which judge what Balto sends, answers and shows.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Whether the command was content, and what it said.
pub(crate) fn run(command: &mut Command, input: &str) -> (bool, String) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A judge that ends early does not read on; its own words are the better story.
    let _broken = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let words = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&words).into_owned())
}

/// Without the judges nothing here is proven, so their absence is a failure.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let (good, words) = run(&mut Command::new(root().join("tests/judges/install")), "");
        assert!(good, "the judges are not there: run tests/judges/install. It said:\n{words}");
    });
}

/// A program of the judges' Python environment, started at the repository's root.
pub(crate) fn python(program: &str) -> Command {
    install();
    let mut command = Command::new(root().join("target/judges/venv/bin").join(program));
    command.current_dir(root());
    command
}

/// `promtool`, when the machine has it or Debian's package could be had.
pub(crate) fn promtool() -> Option<Command> {
    install();
    let own = root().join("target/judges/promtool");
    let found = if own.exists() {
        Some(own.as_path())
    } else {
        super::has("promtool").then(|| Path::new("promtool"))
    };
    found.map(Command::new)
}
