//! The `balto` command.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("the command line is not built yet")
}
