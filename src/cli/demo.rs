//! x
pub(super) async fn run() -> anyhow::Result<()> {
    Ok(())
}
