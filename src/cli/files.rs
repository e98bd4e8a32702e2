//! The output of commands that work on files in this process: a configuration, a data directory, a
//! backup.
//!
//! Owns: text, JSON and exit codes of the results. The [`super::Backend`] does the work.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::output::{OutputError, json_line, line, note};
use crate::config::{ConfigError, ConfigErrors, Origin};
use crate::daemon::Findings;

/// Exit code 0 when all is good, else 1.
pub(super) fn print_findings(findings: &Findings, as_json: bool) -> Result<ExitCode, OutputError> {
    findings.remark.iter().for_each(|remark| note(&format!("balto: {remark}")));
    if as_json {
        json_line(&findings.json.to_string())?;
    } else {
        line(&findings.words)?;
    }
    Ok(if findings.is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Exit code 0 when the file is good, also with warnings; else 2.
pub(super) fn print_config_check(
    file: &Path,
    checked: Result<Vec<ConfigError>, ConfigErrors>,
    as_json: bool,
) -> Result<ExitCode, OutputError> {
    let (warnings, errors) = match checked {
        Ok(warnings) => (warnings, Vec::new()),
        Err(errors) => (Vec::new(), errors.0),
    };
    if !as_json {
        warnings.iter().for_each(|warning| note(&format!("balto: warning: {warning}")));
    }
    if as_json {
        let told: Vec<_> = errors.iter().map(error).collect();
        let mut answer = json!({"ok": told.is_empty(), "errors": told});
        if !warnings.is_empty() {
            answer["warnings"] = warnings.iter().map(error).collect();
        }
        json_line(&answer.to_string())?;
    } else if errors.is_empty() {
        line(&format!("{}: good", file.display()))?;
    } else {
        errors.iter().for_each(|error| note(&format!("balto: {error}")));
    }
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn error(error: &ConfigError) -> Value {
    let (file, line) = match &error.origin {
        Origin::File { path, line } => (Some(path.display().to_string()), *line),
        Origin::Environment(_) | Origin::Default => (None, None),
    };
    json!({"file": file, "line": line, "key": error.key, "reason": error.reason})
}
