//! The service manager's notification protocol, sd_notify(3): datagrams to the socket that
//! `NOTIFY_SOCKET` names.
//!
//! Owns: the address and the form of a message. The crate `sd-notify` was rejected: it takes a name
//! that begins with `@` (the abstract namespace) for a path.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time limit of a send to a socket that is not read.
const SEND_MAX: Duration = Duration::from_secs(1);

/// One line of a message.
#[derive(Clone, Debug)]
pub(super) enum Notification {
    Ready,
    /// With the time of the reload, which the protocol requires.
    Reloading,
    Stopping,
    Watchdog,
    Status(String),
}

impl Notification {
    fn line(&self) -> String {
        match self {
            Self::Ready => "READY=1\n".to_owned(),
            Self::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={}\n", monotonic_microseconds()),
            Self::Stopping => "STOPPING=1\n".to_owned(),
            Self::Watchdog => "WATCHDOG=1\n".to_owned(),
            Self::Status(text) => format!("STATUS={}\n", text.replace('\n', " ")),
        }
    }
}

/// Sends a message to the socket with this name.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when the socket is not read in time.
pub(super) fn send(name: &OsStr, notifications: &[Notification]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_MAX))?;
    let message: String = notifications.iter().map(Notification::line).collect();
    socket.send_to_addr(message.as_bytes(), &address(name)?).map(drop)
}

fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(name),
    }
}

fn monotonic_microseconds() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_a_line_for_each_notification() {
        let lines =
            |notifications: &[Notification]| notifications.iter().map(Notification::line).collect::<String>();
        assert_eq!(
            lines(&[Notification::Ready, Notification::Status("a\nb".into())]),
            "READY=1\nSTATUS=a b\n"
        );
        let reloading = lines(&[Notification::Reloading]);
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(time.trim_end().parse::<u64>().unwrap() > 0, "{reloading}");
    }

    #[test]
    fn abstract_name_and_path_both_reach_their_socket() {
        let name = format!("balto-test-{}", std::process::id());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listeners = [
            (format!("@{name}").into(), SocketAddr::from_abstract_name(&name).unwrap()),
            (path.clone().into_os_string(), SocketAddr::from_pathname(&path).unwrap()),
        ];
        for (name, address) in listeners {
            let listener = UnixDatagram::bind_addr(&address).unwrap();
            send(&name, &[Notification::Watchdog]).unwrap();
            let mut bytes = [0; 64];
            let length = listener.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"WATCHDOG=1\n");
        }
    }

    #[test]
    fn missing_socket_and_unread_socket_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let missing = send(path.as_os_str(), &[Notification::Ready]).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let _listener = UnixDatagram::bind(&path).unwrap();
        let unread = loop {
            if let Err(error) = send(path.as_os_str(), &[Notification::Ready]) {
                break error;
            }
        };
        assert_eq!(unread.kind(), io::ErrorKind::WouldBlock);
    }
}
