//! The packages, built from the binary of the tests: Debian's own dpkg installs, upgrades and
//! removes one below a temporary root, and buildah builds the image.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::judges::{self, root, run};
use crate::support::{has_program, say};

const BALTO: &str = env!("CARGO_BIN_EXE_balto");
/// Files of every package, below its root.
const INSTALLED: [&str; 9] = [
    "usr/bin/balto",
    "etc/balto/balto.toml",
    "usr/lib/systemd/system/balto.service",
    "usr/share/man/man1/balto.1.gz",
    "usr/share/man/man1/balto-endpoints-add.1.gz",
    "usr/share/bash-completion/completions/balto",
    "usr/share/zsh/vendor-completions/_balto",
    "usr/share/fish/vendor_completions.d/balto.fish",
    "usr/share/doc/balto/copyright",
];

/// The output of a program that succeeds.
fn output(command: &mut Command) -> String {
    let (good, words) = run(command, "");
    assert!(good, "{command:?}: {words}");
    words
}

/// The binary without debug information, so that packages are small.
fn stripped(directory: &Path) -> PathBuf {
    let binary = directory.join("balto");
    if has_program("strip") {
        output(Command::new("strip").arg("-o").arg(&binary).arg(BALTO));
    } else {
        std::fs::copy(BALTO, &binary).unwrap();
    }
    binary
}

fn build_deb(binary: &Path, directory: &Path, revision: &str) -> PathBuf {
    let mut command = Command::new(root().join("packaging/deb"));
    let command = command.arg(binary).arg(directory).arg(revision).env("BALTO_DEB_COMPRESSION", "none");
    PathBuf::from(output(command).trim())
}

/// A root directory with an empty database of packages.
struct PackageRoot(PathBuf);

impl PackageRoot {
    fn new(directory: &Path) -> Self {
        let own = directory.join("root");
        for part in ["info", "updates", "triggers"] {
            std::fs::create_dir_all(own.join("var/lib/dpkg").join(part)).unwrap();
        }
        for file in ["status", "available"] {
            std::fs::write(own.join("var/lib/dpkg").join(file), "").unwrap();
        }
        Self(own)
    }

    fn dpkg(&self, arguments: &[&str]) -> String {
        // dpkg sets owners: as root, or as if.
        let program = if has_program("fakeroot") { "fakeroot" } else { "env" };
        let mut command = Command::new(program);
        command.arg("dpkg").arg(format!("--root={}", self.0.display())).args([
            "--force-not-root",
            "--force-script-chrootless",
            "--force-bad-path",
            "--force-depends",
            "--force-unsafe-io",
            "--force-confold",
            "--no-triggers",
        ]);
        output(command.args(arguments))
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// Installs a package in two steps, and returns whether its scripts would start the service.
    fn install(&self, package: &Path) -> bool {
        let marker = self.path("run/balto-installation");
        self.dpkg(&["--unpack", package.to_str().unwrap()]);
        let starts = marker.exists();
        self.dpkg(&["--configure", "balto"]);
        assert!(!marker.exists(), "the marker of an installation stays");
        starts
    }

    /// Starts the installed daemon with the shipped configuration until it is ready, and stops it.
    fn serve(&self) {
        let config = self.path("etc/balto/balto.toml");
        output(Command::new(self.path("usr/bin/balto")).arg("check-config").arg(&config));
        serves_until_terminated(
            Command::new(self.path("usr/bin/balto"))
                .args(["serve", "--config"])
                .arg(&config)
                .arg("--data-dir")
                .arg(self.path("var/lib/balto"))
                .env("BALTO__SERVER__API_LISTEN", "127.0.0.1:0")
                .env("BALTO__SERVER__OPS_LISTEN", "127.0.0.1:0"),
        );
    }
}

/// Starts a daemon, waits until it is ready, and stops it.
fn serves_until_terminated(command: &mut Command) {
    let mut daemon = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let is_ready = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| serde_json::from_str::<Value>(&line).is_ok_and(|line| line["message"] == "ready"));
    output(Command::new("kill").arg("-TERM").arg(daemon.id().to_string()));
    lines.for_each(drop);
    let ended = daemon.wait().unwrap();
    assert!(is_ready && ended.success(), "the daemon was not ready, or ended with {ended}");
}

#[test]
fn deb_installs_upgrades_and_leaves_the_data() {
    if !has_program("dpkg-deb") {
        return say("SKIPPED: dpkg, which the machine does not have");
    }
    let directory = tempfile::tempdir().unwrap();
    let binary = stripped(directory.path());
    let first = build_deb(&binary, directory.path(), "1");
    let fields = output(Command::new("dpkg-deb").arg("--field").arg(&first).args(["Version", "Depends"]));
    assert!(fields.contains(&format!("{}-1", env!("CARGO_PKG_VERSION"))), "{fields}");
    let owners = output(Command::new("dpkg-deb").arg("--contents").arg(&first));
    assert!(owners.lines().all(|line| line.contains(" root/root ")), "{owners}");
    assert!(owners.contains("-rwxr-xr-x") && !owners.contains("rwxrwxr"), "{owners}");

    let installed = PackageRoot::new(directory.path());
    assert!(installed.install(&first), "a first installation starts no service");
    for file in INSTALLED {
        assert!(installed.path(file).is_file(), "{file} is not installed");
    }
    installed.serve();
    let key = std::fs::read(installed.path("var/lib/balto/admin.key")).unwrap();
    help_works(&installed);

    let config = installed.path("etc/balto/balto.toml");
    let own = std::fs::read_to_string(&config).unwrap().replace("max_attempts = 12", "max_attempts = 7");
    std::fs::write(&config, &own).unwrap();
    let second = build_deb(&binary, directory.path(), "2");
    assert!(!installed.install(&second), "an upgrade starts a stopped service");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), own, "the upgrade replaced the configuration");
    installed.serve();

    installed.dpkg(&["--remove", "balto"]);
    assert!(!installed.path("usr/bin/balto").exists());
    assert_eq!(std::fs::read_to_string(&config).unwrap(), own);
    assert!(installed.install(&second), "an installation after a removal starts no service");
    let message = installed.dpkg(&["--purge", "balto"]);
    assert!(message.contains("are still in"), "{message}");
    assert!(!installed.path("etc/balto").exists(), "a purge leaves the configuration");
    assert_eq!(std::fs::read(installed.path("var/lib/balto/admin.key")).unwrap(), key);
}

/// Manual pages are formatted, and bash completes commands and options.
fn help_works(installed: &PackageRoot) {
    if has_program("man") {
        let page = installed.path("usr/share/man/man1/balto-endpoints-add.1.gz");
        let mut man = Command::new("man");
        let text = output(man.arg("--local-file").arg(&page).env("MANWIDTH", "200").env("LC_ALL", "C.UTF-8"));
        assert!(text.contains("--event-types"), "{text}");
    } else {
        say("SKIPPED: man, which the machine does not have");
    }
    let script = installed.path("usr/share/bash-completion/completions/balto");
    for (line, expected) in [("balto endp", "endpoints"), ("balto endpoints add --event", "--event-types")] {
        let words: Vec<_> = line.split(' ').collect();
        let (before, word) = (words[words.len() - 2], words[words.len() - 1]);
        let code = format!(
            "source '{}'; COMP_WORDS=({line}); COMP_CWORD={}; _balto balto '{word}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.len() - 1,
        );
        let found = output(Command::new("bash").args(["--norc", "-c", &code]));
        assert!(found.split_whitespace().any(|found| found == expected), "{line}: {found}");
    }
}

#[test]
fn tarball_is_reproducible_and_names_its_libc() {
    let directory = tempfile::tempdir().unwrap();
    let binary = stripped(directory.path());
    let build = |to: &str| {
        let to = directory.path().join(to);
        let file = output(
            Command::new(root().join("packaging/tarball")).arg(&binary).arg(to).env("BALTO_GZIP_LEVEL", "1"),
        );
        PathBuf::from(file.trim())
    };
    let (first, second) = (build("1"), build("2"));
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap(), "two builds differ");
    let name = first.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with(&format!("balto-{}-", env!("CARGO_PKG_VERSION"))), "{name}");
    let is_dynamic = !output(Command::new("grep").arg("-ac").arg("GLIBC_2").arg(&binary)).starts_with('0');
    assert!(name.ends_with(if is_dynamic { "-gnu.tar.gz" } else { "-static.tar.gz" }), "{name}");
    let files = output(Command::new("tar").arg("-tzf").arg(&first));
    for file in INSTALLED {
        assert!(files.lines().any(|line| line == file), "{file} is not in the tarball");
    }
    // tar would set modes and times of directories such as /etc.
    assert!(!files.lines().any(|line| line.ends_with('/')), "the tarball has directories: {files}");
}

/// An image, and the root directory of a container of it.
struct Image {
    _directory: tempfile::TempDir,
    config: Value,
    root: PathBuf,
}

impl Image {
    /// The image of a binary that is made in a directory. `None` where no image can be built.
    fn build(binary: impl FnOnce(&Path) -> PathBuf) -> Option<Self> {
        let Some(program) = judges::buildah() else {
            say("SKIPPED: buildah, which neither the machine nor Debian's mirror has");
            return None;
        };
        if output(Command::new("id").arg("-u")).trim() != "0" {
            say("SKIPPED: the image, whose root directory only root can enter");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let tool = buildah(&program, directory.path());
        let mut build = Command::new(root().join("packaging/image"));
        output(build.arg(binary(directory.path())).arg("balto:test").env("CONTAINER_TOOL", &tool));
        let about = output(Command::new(&tool).args(["inspect", "--type", "image", "balto:test"]));
        let about: Value = serde_json::from_str(&about).unwrap();
        output(Command::new(&tool).args(["from", "--name", "test", "balto:test"]));
        let mounted = output(Command::new(&tool).args(["mount", "test"]));
        let config = about["OCIv1"]["config"].clone();
        Some(Self { _directory: directory, config, root: PathBuf::from(mounted.trim()) })
    }

    /// A container of the image, on the network of the machine.
    fn container(&self, arguments: &Value) -> Command {
        let mut command = Command::new("chroot");
        let user = self.config["User"].as_str().unwrap();
        command.arg(format!("--userspec={user}")).arg(&self.root).env_clear();
        for variable in self.config["Env"].as_array().unwrap() {
            let (name, value) = variable.as_str().unwrap().split_once('=').unwrap();
            let value = value.replace("0.0.0.0:8400", "127.0.0.1:0").replace("0.0.0.0:8401", "127.0.0.1:0");
            command.env(name, value);
        }
        let words = [&self.config["Entrypoint"], arguments].map(|words| words.as_array().unwrap().iter());
        command.args(words.into_iter().flatten().map(|word| word.as_str().unwrap()));
        command
    }
}

/// A script that runs `buildah` with its storage in the directory.
fn buildah(program: &Path, directory: &Path) -> PathBuf {
    let home = directory.join("home");
    std::fs::create_dir_all(home.join(".config/containers")).unwrap();
    // It reads no image, so it trusts none.
    std::fs::write(home.join(".config/containers/policy.json"), r#"{"default": [{"type": "reject"}]}"#)
        .unwrap();
    let storage = directory.join("storage");
    let script = format!(
        "#!/bin/sh\nHOME='{}' LD_LIBRARY_PATH=\"{libraries}/usr/lib/$(uname -m)-linux-gnu:{libraries}/lib/$(uname -m)-linux-gnu\" \\\n\
         exec '{}' --storage-driver vfs --root '{storage}/images' --runroot '{storage}/run' \"$@\"\n",
        home.display(),
        program.display(),
        libraries = root().join("target/judges/buildah").display(),
        storage = storage.display(),
    );
    let file = directory.join("buildah");
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    file
}

#[test]
fn image_from_scratch_serves_as_its_own_user() {
    let Some(image) = Image::build(stripped) else { return };
    assert_eq!(image.config["Volumes"], json!({"/var/lib/balto": {}}));
    assert_eq!(image.config["ExposedPorts"], json!({"8400/tcp": {}, "8401/tcp": {}}));
    assert_eq!(image.config["StopSignal"], "SIGTERM");
    assert!(image.root.join("etc/ssl/certs/ca-certificates.crt").is_file());
    serves_until_terminated(&mut image.container(&image.config["Cmd"]));
    output(&mut image.container(&json!(["verify", "--data-dir", "/var/lib/balto"])));
}

/// Any static program, because a static build of Balto takes too long.
#[test]
fn image_of_a_static_binary_has_no_libraries() {
    let program = |directory: &Path| {
        let (source, binary) = (directory.join("balto.rs"), directory.join("balto"));
        std::fs::write(&source, r#"fn main() { println!("static") }"#).unwrap();
        let mut compiler = Command::new("rustc");
        output(compiler.args(["-C", "target-feature=+crt-static", "-o"]).arg(&binary).arg(&source));
        binary
    };
    let Some(image) = Image::build(program) else { return };
    let libraries = ["lib", "lib64", "usr/lib"].map(|directory| image.root.join(directory).exists());
    assert_eq!(libraries, [false; 3]);
    assert_eq!(output(&mut image.container(&json!([]))), "static\n");
}
