//! Third-party programs that check Balto's requests, responses and metrics.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Once;

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the command. Returns whether it succeeded, and its output.
pub(crate) fn run(command: &mut Command, input: &str) -> (bool, String) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A judge that ends early stops reading; its own output explains the failure.
    let _broken = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let words = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&words).into_owned())
}

/// A missing judge fails the test, because nothing would be checked.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let (good, words) = run(&mut Command::new(root().join("tests/judges/install")), "");
        assert!(good, "the judges are not installed: run tests/judges/install. Its output:\n{words}");
    });
}

/// A program in the judges' Python environment, started in the repository's root.
pub(crate) fn python(program: &str) -> Command {
    install();
    let mut command = Command::new(root().join("target/judges/venv/bin").join(program));
    command.current_dir(root());
    command
}

/// `promtool`, if the machine has it or Debian's package was available.
pub(crate) fn promtool() -> Option<Command> {
    program("promtool", "promtool").map(Command::new)
}

/// `buildah`, a builder of images, if the machine has it or Debian's package was available.
pub(crate) fn buildah() -> Option<PathBuf> {
    program("buildah", "buildah/usr/bin/buildah")
}

/// The program of the judges, or of the machine.
fn program(name: &str, judge: &str) -> Option<PathBuf> {
    install();
    let judge = root().join("target/judges").join(judge);
    if judge.exists() { Some(judge) } else { super::has_program(name).then(|| name.into()) }
}
