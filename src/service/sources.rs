//! Sources: create, change, delete, read.

use std::sync::Arc;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::records::UNEXPECTED_OUTCOME;
use crate::context::responses::Remember;
use crate::context::source_board::SourceReport;
use crate::courier::BrokerCredentials;
use crate::domain::{Sealed, Source, SourceName};
use crate::limits;
use crate::outbox::draft::ChangeError;
use crate::outbox::unit::{Command, Outcome};
use crate::service::pages::cut;
use crate::vault::{SealContext, VaultError};

/// A source, and what it does now.
#[derive(Clone, Debug)]
pub struct SourceView {
    pub source: Arc<Source>,
    /// `None` until it is looked at for the first time.
    pub report: Option<SourceReport>,
}

/// Operations on sources.
#[derive(Clone, Copy)]
pub struct Sources<'a>(pub &'a Context);

impl Sources<'_> {
    #[must_use]
    pub fn get(self, name: &SourceName) -> Option<SourceView> {
        let found = self.0.outbox_of(Home::All).registry(|registry| registry.source(name).cloned());
        found.map(|source| self.view(source))
    }

    /// All sources, by name.
    #[must_use]
    pub fn all(self) -> Vec<Arc<Source>> {
        self.0.outbox_of(Home::All).registry(|registry| registry.sources().cloned().collect())
    }

    /// Sources after a name, and whether there are more.
    #[must_use]
    pub fn list(self, after: Option<&SourceName>, limit: usize) -> (Vec<SourceView>, bool) {
        let later = |source: &Arc<Source>| after.is_none_or(|after| source.name > *after);
        let mut found: Vec<_> = self.all().into_iter().filter(later).take(limit + 1).collect();
        let more = cut(&mut found, limit);
        (found.into_iter().map(|source| self.view(source)).collect(), more)
    }

    pub(crate) fn view(self, source: Arc<Source>) -> SourceView {
        let report = self.0.source_board().report(&source.name);
        SourceView { source, report }
    }

    /// Creates a source, or changes one that has this revision. A plain password is sealed.
    ///
    /// # Errors
    /// [`ChangeError::Conflict`] when the current revision is another one.
    pub async fn put(
        self,
        mut source: Source,
        remember: Option<Remember>,
    ) -> Result<SourceView, ChangeError> {
        let is_new = source.revision == Default::default();
        if is_new && self.all().len() >= limits::broker::SOURCES_MAX {
            return Err(ChangeError::NotAllowed("64 sources exist; delete one first"));
        }
        if let Sealed::Plain(password) = &source.password {
            let nonce = self.0.random_bytes();
            source.password = self.0.vault().seal(password, SealContext::Source(&source), nonce);
        }
        source.updated_at = self.0.now().wall;
        let outcomes = self.0.commit(vec![Command::PutSource(Box::new(source))], remember).await?;
        let Some(Outcome::Source(source)) = outcomes.into_iter().next() else {
            unreachable!("{UNEXPECTED_OUTCOME}")
        };
        Ok(self.view(source))
    }

    /// Deletes a source. Its queue stays at the broker.
    ///
    /// # Errors
    /// When the source is unknown, or the commit failed.
    pub async fn delete(self, name: &SourceName) -> Result<(), ChangeError> {
        let command = Command::DeleteSource { name: name.clone(), at: self.0.now().wall };
        match self.0.commit(vec![command], None).await {
            Err(ChangeError::Conflict) => Err(ChangeError::NotFound),
            other => other.map(drop),
        }
    }

    /// The password in plain, for a change of what it is bound to.
    ///
    /// # Errors
    /// When it was sealed under a vault key that is not configured.
    pub fn plain_password(self, source: &Source) -> Result<Sealed, VaultError> {
        let bytes = self.0.vault().open(&source.password, SealContext::Source(source))?;
        Ok(Sealed::Plain(bytes.into()))
    }

    pub(crate) fn credentials(self, source: &Source) -> Result<BrokerCredentials, VaultError> {
        let bytes = self.0.vault().open(&source.password, SealContext::Source(source))?;
        let password = String::from_utf8(bytes).map_err(|_| VaultError::Damaged)?;
        Ok(BrokerCredentials { username: source.username.clone(), password: password.into() })
    }

    /// Checks that all passwords can be decrypted.
    ///
    /// # Errors
    /// The source whose password cannot be decrypted, and why.
    pub fn check(self) -> Result<(), String> {
        self.all().iter().try_for_each(|source| {
            let opened = self.plain_password(source);
            opened
                .map(drop)
                .map_err(|error| format!("the password of source {} cannot be opened: {error}", source.name))
        })
    }

    /// Sources whose password is not sealed under the first key.
    pub(crate) fn outdated(self) -> Vec<Arc<Source>> {
        let vault = self.0.vault();
        self.all().into_iter().filter(|source| !vault.is_current(&source.password)).collect()
    }
}
