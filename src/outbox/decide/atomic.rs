//! Atomic units: all commands are committed, or none.
//!
//! Owns the order of judgement: first the key of the request, then the ids of its events, then the
//! checks and the expected versions. So a repeated request gets its first answer, at
//! any version of its streams. Owns the savepoint, from which a rejected unit is taken back.

use super::Committer;
use super::staged::StagedGroup;
use crate::domain::{Idempotency, Position, Record, Rejection, StreamName, Tenant};
use crate::failpoints::{self, Mutation};
use crate::outbox::unit::{Command, Outcome, Unit};
use crate::projections::idempotency::Known;

/// The beginning of the current unit in its group, and the entries that it replaced.
#[derive(Default)]
pub(super) struct Savepoint {
    records: usize,
    scopes: Vec<([u8; 16], Option<Known>)>,
    streams: Vec<ReplacedStream>,
}

/// A stream, and its version and last position in the group before.
type ReplacedStream = ((Tenant, StreamName), Option<(u64, Position)>);

impl StagedGroup {
    pub(super) fn put_scope(&mut self, scope: [u8; 16], known: Known) {
        let before = self.scopes.insert(scope, known);
        if let Some(savepoint) = &mut self.savepoint {
            savepoint.scopes.push((scope, before));
        }
    }

    pub(super) fn put_stream(&mut self, name: (Tenant, StreamName), version: u64, position: Position) {
        let undo_name = self.savepoint.is_some().then(|| name.clone());
        let before = self.streams.insert(name, (version, position));
        if let (Some(savepoint), Some(name)) = (&mut self.savepoint, undo_name) {
            savepoint.streams.push((name, before));
        }
    }

    fn set_savepoint(&mut self) {
        self.savepoint = Some(Savepoint { records: self.records.len(), ..Savepoint::default() });
    }

    /// Takes back everything since the savepoint, the latest first.
    fn take_back(&mut self) {
        let Some(savepoint) = self.savepoint.take() else { return };
        if failpoints::is_active(Mutation::HalfAppend) {
            return;
        }
        for record in self.records.drain(savepoint.records..) {
            self.next = Position(self.next.0 - 1);
            if let Record::EventAccepted(event) = record {
                self.loads.remove_event(&event);
                self.targets -= event.targets.len();
            }
        }
        for (scope, before) in savepoint.scopes.into_iter().rev() {
            match before {
                Some(known) => drop(self.scopes.insert(scope, known)),
                None => drop(self.scopes.remove(&scope)),
            }
        }
        for (name, before) in savepoint.streams.into_iter().rev() {
            match before {
                Some(known) => drop(self.streams.insert(name, known)),
                None => drop(self.streams.remove(&name)),
            }
        }
    }
}

/// The index of the command that fails its unit, and why.
type Failure = (usize, Outcome);

impl Committer {
    /// Judges a unit that begins with [`Command::Atomic`].
    pub(super) fn judge_atomic(
        &mut self,
        unit: &Unit,
        key: Option<&Idempotency>,
        staged: &mut StagedGroup,
    ) -> Vec<Outcome> {
        if let Some(repeated) = key.and_then(|key| self.repeated(key, &unit.prepared, staged)) {
            return repeat(&unit.commands, &repeated);
        }
        let judged = match self.find_ids(unit, staged) {
            Ok(Some(duplicates)) => return duplicates,
            Ok(None) => self.stage_all(unit, staged),
            Err(failure) => Err(failure),
        };
        let (index, outcome) = match judged {
            Ok(outcomes) => return outcomes,
            Err(failure) => failure,
        };
        if let (Outcome::Rejected(rejection), Some(key)) = (&outcome, key) {
            let (idempotency, rejection) = (key.clone(), *rejection);
            let command = u32::try_from(index).ok();
            staged.push_with_key(key, Record::EventRejected { idempotency, rejection, command });
        }
        let mut outcomes = vec![Outcome::Withdrawn; unit.commands.len()];
        outcomes[index] = outcome;
        outcomes
    }

    /// Looks up the publisher-chosen ids. If all events exist, returns their positions.
    fn find_ids(&self, unit: &Unit, staged: &StagedGroup) -> Result<Option<Vec<Outcome>>, Failure> {
        let (mut outcomes, mut events, mut first) = (Vec::new(), 0, None);
        for (index, command) in unit.commands.iter().enumerate() {
            outcomes.push(Outcome::Passed);
            let Some(draft) = command.draft() else { continue };
            events += 1;
            match self.by_id(draft, &unit.prepared, staged) {
                None => {}
                Some(Outcome::Mismatch) => return Err((index, Outcome::Rejected(Rejection::IdTaken))),
                Some(duplicate) => {
                    outcomes[index] = duplicate;
                    first = first.or(Some(index));
                }
            }
        }
        let duplicates = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Duplicate(_))).count();
        match first {
            Some(_) if duplicates == events => Ok(Some(outcomes)),
            Some(index) => Err((index, Outcome::Rejected(Rejection::PartialDuplicate))),
            None => Ok(None),
        }
    }

    /// Stages all commands, or none.
    fn stage_all(&mut self, unit: &Unit, staged: &mut StagedGroup) -> Result<Vec<Outcome>, Failure> {
        staged.set_savepoint();
        let mut outcomes = Vec::with_capacity(unit.commands.len());
        for (index, command) in unit.commands.iter().enumerate() {
            let outcome = match command {
                // An earlier event of the unit has this id.
                Command::Publish(draft) if self.by_id(draft, &unit.prepared, staged).is_some() => {
                    Outcome::Rejected(Rejection::IdTaken)
                }
                Command::Publish(draft) => self.append(draft, &unit.prepared, staged),
                other => self.judge(other, &unit.prepared, staged),
            };
            if matches!(
                outcome,
                Outcome::Rejected(_)
                    | Outcome::Refused(_)
                    | Outcome::TooManyTargets
                    | Outcome::QuotaExceeded(_)
                    | Outcome::UidTaken
                    | Outcome::Conflict
            ) {
                staged.take_back();
                return Err((index, outcome));
            }
            outcomes.push(outcome);
        }
        staged.savepoint = None;
        Ok(outcomes)
    }
}

/// The outcomes of a request that was answered before. Its events follow each other in the journal,
/// because they are one unit; the first one has the request's key.
fn repeat(commands: &[Command], repeated: &Outcome) -> Vec<Outcome> {
    let Outcome::Duplicate(first) = *repeated else { return vec![repeated.clone(); commands.len()] };
    let mut next = first;
    let outcome = |command: &Command| {
        let position = if command.draft().is_some() { next } else { first };
        if command.draft().is_some() {
            next = next.next();
        }
        Outcome::Duplicate(position)
    };
    commands.iter().map(outcome).collect()
}

#[cfg(test)]
mod tests;
