//! Files that Balto makes, reads and replaces: permissions of the data directory, the destination
//! of a backup, the source of a restore.

use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::support::{Daemon, Receiver, WAIT_MAX, behind, say, serve};
use serde_json::json;

const BALTO: &str = env!("CARGO_BIN_EXE_balto");

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn output(mut command: Command) -> Output {
    blocking(move || command.output().unwrap()).await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn backup(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = Command::new(BALTO);
    command.args(["backup", "--to"]).args(arguments).stdin(Stdio::null());
    command.env("BALTO_URL", daemon.api.trim_end_matches("/v1"));
    command
}

fn restore(from: &str, data: &Path) -> Command {
    let mut command = Command::new(BALTO);
    command.args(["restore", "--from", from, "--data-dir"]).arg(data).stdin(Stdio::null());
    command
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            below(&path, found);
        }
        found.push(path);
    }
}

/// Files that other users can access.
fn accessible(directory: &Path) -> Vec<String> {
    let mut found = vec![directory.to_owned()];
    below(directory, &mut found);
    assert!(found.len() > 6, "{found:?}");
    let mode = |path: &PathBuf| fs::symlink_metadata(path).unwrap().mode() & 0o777;
    let open = found.iter().filter(|path| mode(path) & 0o077 != 0);
    open.map(|path| format!("{} {:o}", path.display(), mode(path))).collect()
}

#[tokio::test]
async fn data_directory_is_private_with_any_umask() {
    let directory = tempfile::tempdir().unwrap();
    let (data, copy) = (directory.path().join("data"), directory.path().join("copy"));
    let loose = ["sh", "-c", "umask 000; exec \"$@\"", "sh"];
    let receiver = Receiver::status(200).await;
    for _ in 0..2 {
        let mut daemon = Daemon::spawn(behind(&loose, &serve(&data, &["--dev"])));
        daemon.until_ready().await;
        daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
        daemon.post("/events", r#"{"type":"a","data":1}"#).await;
        daemon.until("/deliveries?status=pending", |page| page["data"] == json!([])).await;
        let file = directory.path().join("file");
        let command = backup(&daemon, &[file.to_str().unwrap(), "--force"]);
        assert!(output(behind(&loose, &command)).await.status.success());
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(daemon.terminate(), Some(0));
        assert_eq!(accessible(&data), Vec::<String>::new());
        // The next start moves this damaged state aside.
        fs::write(data.join("state/db"), "no longer a database").unwrap();
    }
    let done = output(behind(&loose, &restore(directory.path().join("file").to_str().unwrap(), &copy))).await;
    assert!(done.status.success(), "{}", text(&done.stderr));
    let mut daemon = Daemon::spawn(behind(&loose, &serve(&copy, &[])));
    daemon.until_ready().await;
    assert_eq!(daemon.terminate(), Some(0));
    assert!(copy.join("admin.key").is_file());
    assert_eq!(accessible(&copy), Vec::<String>::new());
}

#[tokio::test]
async fn files_of_an_earlier_version_become_private_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut daemon = Daemon::start_with(&data, &[]).await;
    assert_eq!(daemon.terminate(), Some(0));
    let mut found = Vec::new();
    below(&data, &mut found);
    for path in &found {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    assert!(accessible(&data).len() > 5);
    let mut daemon = Daemon::start_with(&data, &[]).await;
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(accessible(&data), Vec::<String>::new());
}

#[tokio::test]
async fn world_writable_data_directory_is_refused_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o777)).unwrap();
    fs::write(data.join("admin.key"), "a-key-that-somebody-planted\n").unwrap();
    let mut command = serve(&data, &[]);
    let refused = output({
        command.stderr(Stdio::piped());
        command
    })
    .await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("chmod 700"), "{}", text(&refused.stderr));
    let refused = output(restore("/dev/null", &data)).await;
    assert_eq!(refused.status.code(), Some(1));
}

#[tokio::test]
async fn fresh_file_system_accepts_a_restore() {
    let directory = tempfile::tempdir().unwrap();
    let (file, volume) = (directory.path().join("file"), directory.path().join("volume"));
    let daemon = Daemon::start(&directory.path().join("data")).await;
    let event = daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    assert!(output(backup(&daemon, &[file.to_str().unwrap()])).await.status.success());
    fs::create_dir_all(volume.join("lost+found")).unwrap();
    let image = directory.path().join("image");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
    };
    let (image, mount) = (image.to_str().unwrap(), volume.to_str().unwrap());
    let mounted = crate::support::has_program("mkfs.ext4")
        && run("mkfs.ext4", &["-q", image])
        && run("mount", &["-o", "loop", image, mount]);
    if !mounted {
        say("SKIPPED: no file system can be mounted; a directory with lost+found takes its place");
    }
    let restored = output(restore(file.to_str().unwrap(), &volume)).await;
    let again = output(restore(file.to_str().unwrap(), &volume)).await;
    let mut copy = Daemon::start(&volume).await;
    let found = copy.get(&format!("/events/{}", event["id"].as_str().unwrap())).await;
    let code = copy.terminate();
    let has_kept = volume.join("lost+found").is_dir();
    if mounted {
        assert!(run("umount", &[mount]));
    }
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    assert!(text(&again.stderr).contains("is not empty"), "{}", text(&again.stderr));
    assert_eq!((found["id"].as_str(), code, has_kept), (event["id"].as_str(), Some(0), true));
}

#[tokio::test]
async fn backup_and_restore_work_through_pipes() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    let file = directory.path().join("file");
    assert!(output(backup(&daemon, &[file.to_str().unwrap()])).await.status.success());
    let expected = text(&fs::read(&file).unwrap());
    for name in ["-", "/dev/stdout"] {
        let done = output(backup(&daemon, &[name, "--json"])).await;
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert_eq!(text(&done.stdout), expected, "{name}");
        assert!(text(&done.stderr).contains("\"position\""), "{}", text(&done.stderr));
    }
    assert!(!Path::new("-").exists());
    let (fifo, link) = (directory.path().join("fifo"), directory.path().join("link"));
    make_fifo(&fifo);
    symlink("fifo", &link).unwrap();
    for (path, flags) in [(&fifo, &[][..]), (&fifo, &["--force"]), (&link, &[])] {
        let reader = fifo.clone();
        let read = tokio::task::spawn_blocking(move || fs::read_to_string(reader).unwrap());
        let done = output(backup(&daemon, &[&[path.to_str().unwrap()][..], flags].concat())).await;
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert_eq!(read.await.unwrap(), expected);
        assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
    }
    for from in ["-", fifo.to_str().unwrap()] {
        let data = directory.path().join(format!("from{}", from.len()));
        let mut command = restore(from, &data);
        command.stdin(if from == "-" { Stdio::piped() } else { Stdio::null() }).stderr(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (input, writer, bytes) = (child.stdin.take(), fifo.clone(), expected.clone());
        let written = tokio::task::spawn_blocking(move || match input {
            Some(mut input) => input.write_all(bytes.as_bytes()).unwrap(),
            None => fs::write(writer, bytes).unwrap(),
        });
        let done = blocking(move || child.wait_with_output().unwrap()).await;
        written.await.unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        let copy = Daemon::start(&data).await;
        assert_eq!(copy.get("/events").await["data"][0]["type"], "a");
    }
}

#[tokio::test]
async fn backup_replaces_the_target_of_a_symbolic_link() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    let (store, link) = (directory.path().join("store"), directory.path().join("latest"));
    fs::create_dir(&store).unwrap();
    symlink("store/today", &link).unwrap();
    for flags in [&[][..], &["--force"]] {
        let done = output(backup(&daemon, &[&[link.to_str().unwrap()][..], flags].concat())).await;
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(store.join("today")).unwrap().starts_with("balto-backup "));
        assert_eq!(fs::read_dir(&store).unwrap().count(), 1);
        fs::write(store.join("today"), "an older backup").unwrap();
    }
    let refused = output(backup(&daemon, &[link.to_str().unwrap()])).await;
    assert!(text(&refused.stderr).contains("--force"), "{}", text(&refused.stderr));
    assert_eq!(fs::read_to_string(store.join("today")).unwrap(), "an older backup");
}

#[tokio::test]
async fn backup_to_devices_directories_and_sockets_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let device = directory.path().join("link to a device");
    symlink("/dev/null", &device).unwrap();
    for (path, reason) in [
        (Path::new("/dev/null"), "is a device"),
        (&device, "is a device"),
        (directory.path(), "is a directory"),
        (&socket, "is a socket"),
    ] {
        let before = fs::symlink_metadata(path).unwrap();
        let refused = output(backup(&daemon, &[path.to_str().unwrap(), "--force"])).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains(reason), "{}: {}", path.display(), text(&refused.stderr));
        assert_eq!(fs::symlink_metadata(path).unwrap().ino(), before.ino(), "{}", path.display());
    }
}

#[tokio::test]
async fn backup_into_a_closed_pipe_fails() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    // More than the buffer of a pipe.
    let data = "x".repeat(200_000);
    daemon.post("/events", &json!({"type": "a", "data": data}).to_string()).await;
    let mut child = backup(&daemon, &["-"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut reader = child.stdout.take().unwrap();
    let done = blocking(move || {
        reader.read_exact(&mut [0; 8]).unwrap();
        drop(reader);
        child.wait_with_output().unwrap()
    })
    .await;
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("closed it: the backup is incomplete"), "{}", text(&done.stderr));
}

#[tokio::test]
async fn backup_that_waits_for_a_reader_stops_on_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    daemon.post("/events", &json!({"type": "a", "data": "x".repeat(200_000)}).to_string()).await;
    let fifo = directory.path().join("fifo");
    make_fifo(&fifo);
    for path in [fifo.to_str().unwrap(), "-"] {
        let mut child =
            backup(&daemon, &[path]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Before it installs its signal handler, a signal ends it without a message.
        let listens = || fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let caught = |status: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
            u64::from_str_radix(line.trim(), 16).unwrap() & (1 << 14) != 0
        };
        let deadline = Instant::now() + WAIT_MAX;
        while !caught(&listens()) {
            assert!(Instant::now() < deadline, "the command installs no signal handler");
            tokio::task::yield_now().await;
        }
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
        let (code, message) = blocking(move || {
            let code = child.wait().unwrap().code();
            let mut message = String::new();
            child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
            (code, message)
        })
        .await;
        assert_eq!(code, Some(1), "{path}: {message}");
        assert!(message.contains("interrupted by a signal"), "{path}: {message}");
    }
}

#[tokio::test]
async fn secret_mounts_are_read_and_world_writable_keys_refused() {
    let directory = tempfile::tempdir().unwrap();
    // The layout of a Kubernetes secret mount.
    let mounted = directory.path().join("..data");
    fs::create_dir(&mounted).unwrap();
    fs::write(mounted.join("admin.key"), "k9Fq2xWv7LmZ4tRb8NcY1hJd").unwrap();
    let key = directory.path().join("admin.key");
    symlink("..data/admin.key", &key).unwrap();
    for (mode, good) in [(0o644, true), (0o400, true), (0o666, false)] {
        fs::set_permissions(mounted.join("admin.key"), Permissions::from_mode(mode)).unwrap();
        let mut command = serve(&directory.path().join("data"), &[]);
        command.env("BALTO__AUTH__ADMIN_KEY_FILE", &key);
        if good {
            let mut daemon = Daemon::spawn(command);
            daemon.until_ready().await;
            daemon.key = Some("k9Fq2xWv7LmZ4tRb8NcY1hJd".to_owned());
            daemon.get("/endpoints").await;
            assert_eq!(daemon.terminate(), Some(0));
        } else {
            command.stderr(Stdio::piped());
            let refused = output(command).await;
            assert!(text(&refused.stderr).contains("chmod o-w"), "{}", text(&refused.stderr));
        }
    }
}
