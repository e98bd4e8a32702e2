//! A reader of the feed: its filter, its position, and its share of the reads.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::api::Api;
use crate::api::http::heavy_work::off_thread;
use crate::context::consumer_watch::{ConsumerConnection, Interruption};
use crate::domain::{KeyId, Party, Position, VersionChoice};
use crate::rules::feed::FeedFilter;
use crate::service::feed::FeedBounds;
use crate::service::types::{FeedError, FeedPage};
use crate::service::{Consumers, Feed, Keys};

/// The state of the consumer that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    Unchanged,
    Reset,
    Deleted,
    /// It reads other events now.
    Redefined,
}

pub struct FeedReader {
    pub api: Arc<Api>,
    pub party: Party,
    pub filter: FeedFilter,
    pub versions: VersionChoice,
    /// Every event up to here has been read, or was not wanted.
    pub position: Position,
    pub bounds: FeedBounds,
    /// The caller's key, if it is one of `/v1/keys`.
    pub key: Option<KeyId>,
    /// Of the consumer that reads, until its page or stream ends.
    pub connection: Option<ConsumerConnection>,
}

impl FeedReader {
    /// Follows the consumer that reads: after a reset the reader is at the new position.
    pub fn follow(&mut self) -> Followed {
        let Some(connection) = &mut self.connection else { return Followed::Unchanged };
        match connection.interruption() {
            Some(Interruption::Reset(position)) => {
                self.position = position;
                return Followed::Reset;
            }
            Some(Interruption::Deleted) => return Followed::Deleted,
            None => {}
        }
        let Some(status) = Consumers(&self.api.context).status(connection.consumer()) else {
            return Followed::Deleted;
        };
        let reads_the_same = FeedFilter::from(&*status.consumer) == self.filter
            && status.consumer.version_choice() == self.versions;
        if reads_the_same { Followed::Unchanged } else { Followed::Redefined }
    }

    /// Completes when the consumer that reads was reset or deleted.
    pub async fn interrupted(&self) {
        match &self.connection {
            Some(connection) => connection.interrupted().await,
            None => std::future::pending().await,
        }
    }

    /// Completes when the reader's key is not valid any more.
    pub async fn revoked(&self) {
        match &self.key {
            Some(key) => Keys(&self.api.context).revoked(key).await,
            None => std::future::pending().await,
        }
    }

    /// The next page. Takes a turn of the reads for everything that is not in memory.
    ///
    /// # Errors
    /// When events are forgotten, or the outbox is unavailable.
    pub async fn next_page(&mut self) -> Result<FeedPage, FeedError> {
        let feed = Feed(&self.api.context);
        let mut page = match feed.read_tail(&self.filter, self.position, self.bounds) {
            Some(page) => page?,
            None => {
                let _turn = self.api.reads.turn(&self.party).await;
                feed.read(&self.filter, self.position, self.bounds).await?
            }
        };
        if self.versions != VersionChoice::AsPublished && !page.events.is_empty() {
            off_thread(|| feed.convert(&self.versions, &mut page, self.bounds.bytes));
        }
        self.position = page.next;
        Ok(page)
    }

    /// As [`Self::next_page`], but waits for the first event at the end of the log, for at most
    /// `wait`, and not for a client that has gone. The wait ends when the consumer is deleted or
    /// redefined.
    ///
    /// # Errors
    /// As [`Self::next_page`], and when too many callers wait.
    pub async fn wait_for_page(
        &mut self,
        wait: Duration,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<FeedPage, FeedError> {
        let mut page = self.next_page().await?;
        if wait.is_zero() || !page.events.is_empty() {
            return Ok(page);
        }
        let api = Arc::clone(&self.api);
        let feed = Feed(&api.context);
        let _place = feed.enter(self.party.clone())?;
        let (mut timeout, mut gone) = (pin!(tokio::time::sleep(wait)), pin!(gone));
        while page.events.is_empty() && page.is_caught_up() && !feed.has_ended() {
            tokio::select! {
                _ = feed.changed(page.head) => {}
                () = self.interrupted() => {}
                () = &mut timeout => break,
                () = &mut gone => break,
            }
            if matches!(self.follow(), Followed::Deleted | Followed::Redefined) {
                break;
            }
            page = self.next_page().await?;
        }
        Ok(page)
    }
}
