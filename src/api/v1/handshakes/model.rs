//! The response to a callback.

/// The answer to a callback that was good.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub struct Granted {
    /// `consented`
    #[schemars(extend("enum" = ["consented"]))]
    pub status: &'static str,
}
