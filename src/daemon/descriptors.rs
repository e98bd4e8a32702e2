//! The limit of file descriptors, and the shares of its users.
//!
//! Owns: the shares. Clients and receivers must never exhaust the descriptors of the store and the
//! ops listener: an attack would stop the journal or hide the metrics.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::limits;

/// Raises the limit of the process to its maximum, and returns it.
pub(super) fn available() -> usize {
    let Rlimit { mut current, maximum } = getrlimit(Resource::Nofile);
    // The supervisor can forbid the change.
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        current = maximum;
    }
    current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Lowers configured limits to their shares: half of the descriptors for connections of clients, a
/// quarter for requests in flight. Idle connections to receivers use the rest, and are closed when
/// it is exhausted. Returns a warning about lowered limits.
///
/// # Errors
/// When the limit of file descriptors is too low.
pub(super) fn fit(config: &mut Config, available: usize) -> Result<Option<String>, String> {
    let needed = limits::DESCRIPTORS_RESERVED + limits::OPS_CONNECTIONS_MAX;
    let rest = available.saturating_sub(needed);
    if rest < 64 {
        return Err(format!(
            "the limit of open files is {available}, at least {} are needed: raise LimitNOFILE or `ulimit -n`",
            needed + 64
        ));
    }
    let (connections, in_flight) = (&mut config.server.max_connections, &mut config.delivery.max_in_flight);
    let wanted = (*connections, *in_flight);
    *connections = wanted.0.min(rest / 2);
    *in_flight = wanted.1.min(rest / 4);
    if (*connections, *in_flight) == wanted {
        return Ok(None);
    }
    Ok(Some(format!(
        "limit of open files is {available}: server.max_connections lowered to {connections} (of {}), \
         delivery.max_in_flight to {in_flight} (of {}); raise LimitNOFILE or `ulimit -n`",
        wanted.0, wanted.1
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_lower_the_limits() {
        let mut config = Config::default();
        assert_eq!(fit(&mut config, 65_536), Ok(None));
        assert_eq!(config, Config::default());
        let said = fit(&mut config, 256).unwrap().unwrap();
        assert_eq!((config.server.max_connections, config.delivery.max_in_flight), (64, 32));
        assert!(
            said.contains("is 256") && said.contains("64 (of 4096)") && said.contains("32 (of 1024)"),
            "{said}"
        );
        assert!(fit(&mut config, 191).unwrap_err().contains("at least 192"));
    }

    #[test]
    fn process_has_descriptors() {
        assert!(available() >= 192);
    }
}
