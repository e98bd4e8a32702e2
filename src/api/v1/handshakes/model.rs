//! The response to a callback.

/// The response to a valid callback.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub struct Granted {
    /// `consented`
    #[schemars(extend("enum" = ["consented"]))]
    pub status: &'static str,
}
