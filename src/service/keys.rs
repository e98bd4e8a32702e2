//! API keys.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::responses::Remember;
use crate::domain::{ApiKey, KeyId, Party, Record, Timestamp};
use crate::limits;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::unit::Command;

/// Operations on API keys.
#[derive(Clone, Copy)]
pub struct Keys<'a>(pub &'a Context);

impl Keys<'_> {
    /// The key whose secret has this SHA-256. A lookup by hash leaks no secret by its timing.
    #[must_use]
    pub fn find_by_hash(self, hash: &[u8; 32]) -> Option<Arc<ApiKey>> {
        self.0.outbox_of(Home::All).registry(|registry| registry.key_by_hash(hash).cloned())
    }

    #[must_use]
    pub fn get(self, id: &KeyId) -> Option<Arc<ApiKey>> {
        self.0.outbox_of(Home::All).registry(|registry| registry.key(id).cloned())
    }

    /// Whether the key exists and has not expired.
    #[must_use]
    pub fn is_valid(self, id: &KeyId) -> bool {
        self.get(id).is_some_and(|key| !key.has_expired(self.0.now().wall))
    }

    /// Completes when the key is not valid any more. Each poll looks, and there is one after
    /// [`limits::KEY_CHECK_INTERVAL`].
    pub async fn revoked(self, id: &KeyId) {
        let mut interval = tokio::time::interval(limits::KEY_CHECK_INTERVAL);
        poll_fn(|context| {
            while interval.poll_tick(context).is_ready() {}
            if self.is_valid(id) { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// All keys by id, which is the order of creation.
    #[must_use]
    pub fn list(self) -> Vec<Arc<ApiKey>> {
        self.0.outbox_of(Home::All).keys()
    }

    /// A request was authenticated with the key.
    pub fn note_use(self, key: &KeyId) {
        self.0.note_key_use(key);
    }

    /// The start of the hour of the last use. A crash may lose the last minutes.
    #[must_use]
    pub fn last_use(self, key: &KeyId) -> Option<Timestamp> {
        self.0.last_key_use(key).max(self.recorded_use(key))
    }

    fn recorded_use(self, key: &KeyId) -> Option<Timestamp> {
        self.0.outbox_of(Home::All).registry(|registry| registry.key_use(key))
    }

    /// Records the hours of use that are not recorded yet.
    ///
    /// # Errors
    /// When the outbox is unavailable. A later call records them.
    pub(crate) async fn record_uses(self) -> Result<(), Unavailable> {
        let mut uses = self.0.key_uses();
        uses.retain(|(id, at)| self.get(id).is_some() && self.recorded_use(id) < Some(*at));
        for step in uses.chunks(limits::KEY_USES_PER_COMMIT) {
            let record = |(id, at): &(KeyId, Timestamp)| Record::KeyUsed { id: id.clone(), at: *at };
            self.0.submit(step.iter().map(record).map(Command::Record).collect()).await?;
        }
        Ok(())
    }

    /// # Errors
    /// When the commit failed.
    pub async fn create(self, key: ApiKey, remember: Option<Remember>) -> Result<(), ChangeError> {
        self.0.commit(vec![Command::Record(Record::KeyPut(Arc::new(key)))], remember).await.map(drop)
    }

    /// Changes the description of a key.
    ///
    /// # Errors
    /// When the key is unknown, or the commit failed.
    pub async fn describe(self, id: &KeyId, description: Box<str>) -> Result<Arc<ApiKey>, ChangeError> {
        // No deletion between the read and the commit.
        let _alone = self.0.exclusive(&Party::of(None)).await;
        let known = self.get(id).ok_or(ChangeError::NotFound)?;
        let key = Arc::new(ApiKey { description, ..ApiKey::clone(&known) });
        self.0.commit(vec![Command::Record(Record::KeyPut(key.clone()))], None).await?;
        Ok(key)
    }

    /// # Errors
    /// When the key is unknown, or the commit failed.
    pub async fn delete(self, id: &KeyId) -> Result<(), ChangeError> {
        let _alone = self.0.exclusive(&Party::of(None)).await;
        if self.0.outbox_of(Home::All).registry(|registry| registry.key(id).is_none()) {
            return Err(ChangeError::NotFound);
        }
        self.0.write(Record::KeyDeleted { id: id.clone(), at: self.0.now().wall }).await?;
        self.0.forget_key_use(id);
        Ok(())
    }

    #[must_use]
    pub fn new_id(self) -> KeyId {
        self.0.new_id("key_").parse().expect("a ULID contains only letters and digits")
    }
}
