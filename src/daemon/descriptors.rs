//! How many file descriptors there are, and who may have how many.
//!
//! Owns the shares. Clients and receivers must never take those that the store and the operator need: a journal that
//! cannot open its next file, or metrics that cannot be read, would be the price of an attack.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::limits;

/// The process's limit, after asking for as many as it may have.
pub(super) fn available() -> usize {
    let Rlimit { mut current, maximum } = getrlimit(Resource::Nofile);
    // The supervisor may have forbidden it; then the limit stays what it is.
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        current = maximum;
    }
    current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Lowers what is configured to what fits: half of what is there for connections of clients, a quarter for requests in
/// flight. Connections to receivers that are kept for later take of the rest, and are given up when there is none. Gives
/// what was lowered, in words.
///
/// # Errors
/// In words, when there are too few for anything.
pub(super) fn fit(config: &mut Config, available: usize) -> Result<Option<String>, String> {
    let needed = limits::DESCRIPTORS_RESERVED + limits::OPS_CONNECTIONS_MAX;
    let rest = available.saturating_sub(needed);
    if rest < 64 {
        return Err(format!("the process may open {available} files; at least {} are needed", needed + 64));
    }
    let (connections, in_flight) = (&mut config.server.max_connections, &mut config.delivery.max_in_flight);
    let wanted = (*connections, *in_flight);
    *connections = wanted.0.min(rest / 2);
    *in_flight = wanted.1.min(rest / 4);
    if (*connections, *in_flight) == wanted {
        return Ok(None);
    }
    Ok(Some(format!(
        "the process may open {available} files, which is enough for {connections} of {} connections and {in_flight} \
         of {} requests in flight",
        wanted.0, wanted.1
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_descriptors_change_nothing_and_few_are_shared() {
        let mut config = Config::default();
        assert_eq!(fit(&mut config, 65_536), Ok(None));
        assert_eq!(config, Config::default());
        let said = fit(&mut config, 256).unwrap().unwrap();
        assert_eq!((config.server.max_connections, config.delivery.max_in_flight), (64, 32));
        assert!(
            said.contains("256 files") && said.contains("64 of 4096") && said.contains("32 of 1024"),
            "{said}"
        );
        assert!(fit(&mut config, 191).unwrap_err().contains("at least 192"));
    }

    #[test]
    fn the_process_has_some() {
        assert!(available() >= 192);
    }
}
