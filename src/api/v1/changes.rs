//! Changes of resources that concurrent requests may interrupt, and merge patches.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::endpoints::settings;
use crate::api::Call;
use crate::api::http::body;
use crate::api::http::problem::Problem;
use crate::service::types::ChangeError;

/// Tries of a change that concurrent changes interrupt. Repeated changes take turns, so only first
/// tries of others interrupt them.
const TRIES_MAX: usize = 20;

/// Repeats a change until no concurrent one interrupts it. `change` reads the resource, decides and
/// writes; it returns `None` when the resource was changed in between.
///
/// # Errors
/// Those of `change`, and a conflict after [`TRIES_MAX`] tries.
pub async fn until_written<T, F>(call: &Call, change: impl Fn() -> F) -> Result<T, Problem>
where
    F: Future<Output = Result<Option<T>, Problem>>,
{
    repeat(call.api.context.change_turn(&call.party), change).await
}

/// Repeats an interrupted change in its turn.
async fn repeat<T, F>(turn: impl Future, change: impl Fn() -> F) -> Result<T, Problem>
where
    F: Future<Output = Result<Option<T>, Problem>>,
{
    if let Some(written) = change().await? {
        return Ok(written);
    }
    let _turn = turn.await;
    for _ in 1..TRIES_MAX {
        if let Some(written) = change().await? {
            return Ok(written);
        }
    }
    Err(ChangeError::Conflict.into())
}

/// The result of a write; `None` when the resource was changed concurrently.
///
/// # Errors
/// Why the write failed otherwise.
pub fn unless_interrupted<T>(written: Result<T, ChangeError>) -> Result<Option<T>, Problem> {
    match written {
        Err(ChangeError::Conflict) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// The members of a resource after a merge patch. See [`settings::merge`].
///
/// # Errors
/// 422 with a pointer when a member has the wrong type.
pub fn patched<T: Serialize + DeserializeOwned>(current: T, patch: &Value) -> Result<T, Problem> {
    let mut value = serde_json::to_value(current)
        .map_err(|_| Problem::Unavailable("the resource could not be serialised".to_owned()))?;
    settings::merge(&mut value, patch);
    body::parse_value(value)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn interrupted_change_is_repeated_a_few_times() {
        for (interruptions, expected) in [(0, Some(1)), (19, Some(20)), (20, None)] {
            let (tries, turns) = (Cell::new(0), Cell::new(0));
            let turn = async { turns.set(turns.get() + 1) };
            let written = repeat(turn, || async {
                tries.set(tries.get() + 1);
                let result =
                    if tries.get() > interruptions { Ok(tries.get()) } else { Err(ChangeError::Conflict) };
                unless_interrupted(result)
            });
            assert_eq!(written.await.ok(), expected, "{interruptions} interruptions");
            assert_eq!(turns.get(), i32::from(interruptions > 0), "{interruptions} interruptions");
        }
        let failed =
            repeat(async {}, || async { unless_interrupted::<()>(Err(ChangeError::NotFound)) }).await;
        assert!(failed.is_err());
    }
}
