//! Request and response of an erasure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::http::problem::Problem;
use crate::api::text::{Time, Word};
use crate::domain::OnDisk;
use crate::limits;
use crate::service::types::ErasureView;

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ErasureInput {
    /// Why, for the operator. It stays in the journal, so it must not repeat the erased content.
    #[schemars(length(min = 1, max = 500))]
    reason: String,
}

impl ErasureInput {
    /// # Errors
    /// 422 for an empty or too long reason.
    pub fn reason(&self) -> Result<&str, Problem> {
        let length = self.reason.chars().count();
        if self.reason.trim().is_empty() || length > limits::ERASURE_REASON_CHARS_MAX {
            let most = limits::ERASURE_REASON_CHARS_MAX;
            return Err(Problem::invalid("/reason", format!("1 to {most} characters, not only spaces")));
        }
        Ok(&self.reason)
    }
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErasureBody {
    /// The number of erased events, with those that were erased before.
    pub count: u64,
    /// When the last of them was erased; null without an event.
    pub erased_at: Option<Time>,
    /// `pending` until their content has left the files of the journal, then `done`. Repeat the
    /// request to see it.
    #[schemars(with = "Word<OnDisk>")]
    pub on_disk: &'static str,
}

impl From<ErasureView> for ErasureBody {
    fn from(view: ErasureView) -> Self {
        Self { count: view.count, erased_at: view.erased_at.map(Time), on_disk: view.on_disk.as_str() }
    }
}
