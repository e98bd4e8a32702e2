//! `balto verify`: the result of the check of a data directory, as text and as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::progress::Meter;
use super::settings::load;
use super::{Findings, ServeOptions, make_files_private};
use crate::config::SecretsKey;
use crate::domain::Sealed;
use crate::maintenance::verify::{
    Problems, StateCheck, VerificationReport, VerifyError, VerifyProblem, VerifyStage, verify as check,
};
use crate::quantity::quantity;
use crate::vault::{self, SealContext, Vault, VaultKeyId};

/// Checks the data directory of a stopped daemon. Of the configuration only the secrets key is
/// used.
///
/// # Errors
/// When the directory cannot be checked.
pub fn verify(config: Option<PathBuf>, directory: &Path) -> anyhow::Result<Findings> {
    make_files_private();
    let options = ServeOptions { config, data_dir: Some(directory.to_owned()), ..ServeOptions::default() };
    let keys = load(&options)?.secrets_keys()?;
    let vault = Vault::new(keys.iter().map(SecretsKey::expose));
    let scratch = tempfile::tempdir().context("cannot make a scratch directory")?;
    let mut report = run(directory, scratch.path())?;
    let (secrets, found) = Secrets::inspect(&report, &vault);
    found.into_iter().for_each(|problem| report.problems.add(problem));
    let words = [as_text(&report), secrets.as_text(&vault), problems_as_text(&report.problems)];
    let json = json!({
        "ok": report.problems.count == 0,
        "path": directory.display().to_string(),
        "journal": journal_as_json(&report),
        "state": state_as_json(report.state),
        "secrets": secrets.as_json(&vault),
        "problems": problems_as_json(&report.problems),
        "problemCount": report.problems.count,
    });
    Ok(Findings { words: words.join("\n"), json, is_good: report.problems.count == 0, remark: None })
}

fn run(directory: &Path, scratch: &Path) -> Result<VerificationReport, VerifyError> {
    let mut meter: Option<(VerifyStage, Meter)> = None;
    check(directory, scratch, &mut |stage, progress| {
        if meter.as_ref().is_none_or(|(current, _)| *current != stage) {
            let what = match stage {
                VerifyStage::Bytes => "bytes of the journal",
                VerifyStage::Records => "records of the journal",
                VerifyStage::Rows => "rows of the state",
            };
            meter = Some((stage, Meter::of_a_command(what)));
        }
        if let Some((_, meter)) = &mut meter {
            meter.on(progress);
        }
    })
}

fn as_text(report: &VerificationReport) -> String {
    let journal = &report.journal;
    let mut words = format!(
        "journal: {}, {}, {}, {}, up to position {}",
        quantity(journal.segments, "segment", "segments"),
        quantity(journal.frames, "frame", "frames"),
        quantity(journal.records, "record", "records"),
        quantity(journal.bytes, "byte", "bytes"),
        report.last
    );
    if journal.torn_bytes > 0 {
        let torn = journal.torn_bytes;
        words.push_str(&format!(
            "\njournal: {} of an incomplete commit at the end; the next start removes them",
            quantity(torn, "byte", "bytes")
        ));
    }
    words.push_str("\nstate: ");
    words.push_str(&match report.state {
        StateCheck::Missing => "missing; the next start rebuilds it from the journal".to_owned(),
        StateCheck::EarlierLayout => {
            "of an earlier version; the next start rebuilds it from the journal".to_owned()
        }
        StateCheck::NotCompared => "not compared with the journal".to_owned(),
        StateCheck::Compared { applied, rows } => {
            let rows = quantity(rows, "entry", "entries");
            format!("{rows} compared with the journal up to position {applied}")
        }
    });
    words
}

fn problems_as_text(problems: &Problems) -> String {
    let mut lines: Vec<_> =
        problems.listed.iter().map(|problem| format!("PROBLEM {}", problem.text)).collect();
    if problems.count > problems.listed.len() as u64 {
        lines.push(format!("PROBLEM list cut here, {} in total", problems.count));
    }
    lines.push(if problems.count == 0 { "good" } else { "NOT good" }.to_owned());
    lines.join("\n")
}

fn journal_as_json(report: &VerificationReport) -> Value {
    let journal = &report.journal;
    json!({"segments": journal.segments, "frames": journal.frames, "records": journal.records,
        "bytes": journal.bytes, "tornBytes": journal.torn_bytes, "position": report.last.0})
}

fn state_as_json(state: StateCheck) -> Value {
    match state {
        StateCheck::Missing => json!({"found": "missing"}),
        StateCheck::EarlierLayout => json!({"found": "earlier"}),
        StateCheck::NotCompared => json!({"found": "notCompared"}),
        StateCheck::Compared { applied, rows } => {
            json!({"found": "compared", "position": applied.0, "rows": rows})
        }
    }
}

fn problems_as_json(problems: &Problems) -> Vec<Value> {
    let one = |problem: &VerifyProblem| {
        let (first, last) = problem.positions.map(|(first, last)| (first.0, last.0)).unzip();
        json!({"reason": problem.text, "firstPosition": first, "lastPosition": last})
    };
    problems.listed.iter().map(one).collect()
}

/// How the secrets of endpoints and sources are kept.
#[derive(Debug, Default)]
struct Secrets {
    plain: u64,
    /// Number of encrypted values, by the id of their key.
    sealed: BTreeMap<VaultKeyId, u64>,
    /// Values that the next start encrypts again: under an older key, in an earlier layout, or
    /// plain although a key is set.
    outdated: u64,
}

impl Secrets {
    /// Opens values whose key is configured. Of others it checks the form.
    fn inspect(report: &VerificationReport, vault: &Vault) -> (Self, Vec<String>) {
        let (mut found, mut problems) = (Self::default(), Vec::new());
        let has_key = vault.sealing_key().is_some();
        for endpoint in &report.endpoints {
            for (_, value) in vault::values(endpoint) {
                if !found.add(value, vault) {
                    problems.push(format!("a secret of endpoint {} is damaged", endpoint.id));
                }
            }
            if let Err(error) = vault.check(endpoint)
                && has_key
            {
                problems.push(format!("a secret of endpoint {} cannot be opened: {error}", endpoint.id));
            }
        }
        for source in &report.sources {
            if !found.add(&source.password, vault) {
                problems.push(format!("the password of source {} is damaged", source.name));
            }
            if let Err(error) = vault.open(&source.password, SealContext::Source(source))
                && has_key
            {
                problems.push(format!("the password of source {} cannot be opened: {error}", source.name));
            }
        }
        (found, problems)
    }

    /// Counts a value. Returns whether its form is intact.
    fn add(&mut self, value: &Sealed, vault: &Vault) -> bool {
        self.outdated += u64::from(!vault.is_current(value));
        match value {
            Sealed::Plain(_) => self.plain += 1,
            Sealed::Encrypted(bytes) => match vault::key_id(bytes) {
                Some(id) => *self.sealed.entry(id).or_default() += 1,
                None => return false,
            },
        }
        true
    }

    fn as_text(&self, vault: &Vault) -> String {
        let mut words = format!("secrets: {} plain", self.plain);
        for (id, count) in &self.sealed {
            let opened = match vault.sealing_key() {
                None => "not opened: no key is configured",
                Some(_) if !vault.has_key(*id) => "not opened: this key is not configured",
                Some(first) if first == *id => "opened",
                Some(_) => "opened; not the first key",
            };
            words.push_str(&format!(", {count} encrypted under key {id} ({opened})"));
        }
        if vault.sealing_key().is_some() && self.outdated > 0 {
            words.push_str(&format!("; the next start encrypts {} again under the first key", self.outdated));
        }
        words
    }

    fn as_json(&self, vault: &Vault) -> Value {
        let sealed = self
            .sealed
            .iter()
            .map(|(id, count)| json!({"key": id.to_string(), "count": count, "opened": vault.has_key(*id)}));
        let with_key = vault.sealing_key().is_some();
        let mut json =
            json!({"plain": self.plain, "encrypted": sealed.collect::<Vec<_>>(), "opened": with_key});
        if with_key {
            json["outdated"] = self.outdated.into();
        }
        json
    }
}
