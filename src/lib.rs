//! Balto: a webhook delivery engine in one binary.
//!
//! Applications post events; each is stored durably and delivered, signed, to every subscriber that asked for it, at least
//! once, without one bad subscriber slowing another. The outbox is a log, and everything else is a projection of it.
//!
//! # Map
//!
//! | module | owns | must not know |
//! |---|---|---|
//! | [`limits`] | every bound | anything |
//! | [`codec`] | numbers and byte strings as bytes | what they mean |
//! | [`domain`] | events, endpoints, deliveries, attempts, records | async, I/O, serde, clocks, randomness |
//! | [`rules`] | every decision a person could argue about | the same |
//! | [`lanes`] | who sends next and why not | the same |
//! | [`projections`] | folds of the journal into ordered rows | the same |
//! | [`storage`] | bytes on disk: journal, state rows, every layout ([`storage::format`]) | what they decide |
//! | [`outbox`] | what is written and why not, and what can be read | HTTP |
//! | [`maintenance`] | retention, backup, restore, verification | HTTP |
//! | [`courier`] | outbound requests, behind the address guard | the outbox |
//! | [`context`] | clock, randomness, settings and handles that the next two share | wire formats |
//! | [`service`] | one small type for each API resource: decide, commit, then act | wire formats |
//! | [`delivery`] | the delivery loop, attempts, background jobs | wire formats |
//! | [`api`] | HTTP shape, authentication, status codes | the outbox |
//! | `panics` | which panics end the process | anything |
//! | [`vault`] | encryption at rest | where its key comes from |
//! | [`config`], [`metrics`] | what an operator sets and sees | services |
//! | [`daemon`], [`cli`] | choosing and ordering the parts; the command line | |
//!
//! Imports point down only: `main, cli -> daemon -> { api, delivery } -> service -> context -> { maintenance, courier } ->
//! outbox -> storage -> { lanes, rules, projections } -> domain -> codec, limits` (`tests/house/tidy.rs` checks it;
//! `rules` reads the rows of `projections`).
//!
//! # One event's journey
//!
//! 1. [`api`] authenticates, bounds and parses the request into an [`outbox::draft::EventDraft`].
//! 2. [`outbox::Outbox::commit`] reads what the state knows about its stream and keys; [`outbox::decide::Committer`] judges it
//!    (rules in [`rules::append`]), matches it to endpoints ([`rules::matching`]) and appends one record. **It becomes
//!    durable in [`storage::journal::Journal::append`]**, whose `fdatasync` every answer waits for.
//! 3. The state ([`storage::state::State`]) folds the record ([`projections::fold`]); the lanes hear of it
//!    ([`lanes::Lanes::on_due`]).
//! 4. **A lane picks its next delivery in [`lanes::Lanes::next_action`].** [`delivery::Dispatcher`] starts the attempt;
//!    `delivery::attempt` signs it ([`rules::signature`]) and hands it to [`courier::Courier::send`]. The rules for
//!    addresses are in [`courier::guard`]; the courier's `connect` is the one place that opens sockets to receivers.
//!    [`service::Handshakes`] asks a receiver that has to agree first, and its lane waits ([`rules::handshake`]).
//! 5. The reply is judged in [`rules::verdict`] (**a 429's `Retry-After` is read in
//!    [`rules::verdict::parse_retry_after`]** and holds the lane through [`lanes::Outcome::Throttled`], and the next life's by [`projections::counters::Lane::hold`]);
//!    [`rules::retry`] says when the next attempt is. The outcome joins the next group commit.
//! 6. After the last try the delivery rests as a dead letter ([`projections::dead`]) until it is redriven or purged.
//!
//! # Invariants
//!
//! * Nothing is sent and nothing is answered before the write that it rests on is durable. (An attempt's outcome may wait
//!   for the next commit: losing it costs one more attempt.)
//! * One thread writes the journal; one thread touches sled; position order is commit order.
//! * The state holds the rows of exactly one position: a checkpoint is one atomic batch with its cursor. It may be lost:
//!   folding the journal anew gives it again, and `balto verify` ([`maintenance::verify`]) shows that it does.
//! * Nothing leaves the journal while anything rests on it; what has left it leaves a note, so that nothing else can be
//!   missing unnoticed.
//! * The state has applied a record before any lane hears of a refill that follows it; see [`lanes`] for why that makes
//!   windows right.
//! * The dispatcher never waits for the outbox, because the outbox may wait for the dispatcher.
//! * No endpoint delays another but through the limits that they share, of all requests at once and of those to one host;
//!   turns are fair in both.
//! * A lane's promises to its receiver survive every end of the process: holds, rates ([`domain::Reservation`]), pauses and
//!   handshakes. Its circuit is deliberately fresh after a start, because what it learned may be out of date by then.
//! * Every collection that outlives a request has a bound.
//! * A receiver is charged with what it did: not with a stop of ours, a standstill of the process or its want of file
//!   descriptors.
//! * Scheduling and expiry go by a clock that never goes back ([`context::clock`]), and rows expire by the time of the last
//!   commit.
//!
//! The `simulation` module runs all of this on one thread in a world made from a seed, and breaks it on purpose.
//! The outbox's `conformance` module asks every outbox, and an oracle of plain maps, the same questions
//! ([`outbox::ReadModel`]).

pub mod api;
pub mod cli;
pub mod codec;
pub mod config;
pub mod context;
pub mod courier;
pub mod daemon;
pub mod delivery;
pub mod domain;
mod knobs;
pub mod lanes;
pub mod limits;
pub mod maintenance;
pub mod metrics;
pub mod outbox;
mod panics;
pub mod projections;
pub mod rules;
pub mod service;
#[cfg(test)]
mod simulation;
pub mod storage;
pub mod vault;

/// Most of what is allocated is freed by another thread; with this allocator it does not stay resident for it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
