//! Balto: a webhook delivery engine in one binary.
//!
//! Applications post events. Balto stores each event durably and delivers it, signed and at least
//! once, to every subscribed endpoint. A slow or failing endpoint does not delay the others. The
//! outbox is a log; all other state is a projection of it.
//!
//! # Map
//!
//! | module | owns | must not know |
//! |---|---|---|
//! | [`limits`] | every bound | anything |
//! | [`codec`] | byte encoding of numbers and strings | their meaning |
//! | [`domain`] | events, endpoints, deliveries, attempts, records | async, I/O, serde, clocks, randomness |
//! | [`rules`] | every policy decision | the same |
//! | [`lanes`] | the schedule of each endpoint, and why a delivery waits | the same |
//! | [`schemas`] | event types as JSON: schemas, migrations, compatibility | I/O, clocks, randomness |
//! | [`projections`] | folds of the journal into ordered rows | the same |
//! | [`storage`] | bytes on disk: journal, state rows, every layout ([`storage::format`]) | decisions |
//! | [`outbox`] | accepting or rejecting writes, and the read model | HTTP |
//! | [`maintenance`] | retention, erasure, backup, restore, verification | HTTP |
//! | [`courier`] | outbound requests and messages, behind the address guard | the outbox |
//! | [`context`] | clock, randomness, settings and handles shared by the next two | wire formats |
//! | [`service`] | one small type for each API resource: decide, commit, then act | wire formats |
//! | [`delivery`] | the delivery loop, attempts, background tasks | wire formats |
//! | [`sources`] | brokers whose messages become events | HTTP |
//! | [`api`] | HTTP shape, authentication, status codes | the outbox |
//! | `nearest` | which known name is nearest to an unknown one | anything |
//! | `quantity` | a count with its noun, singular or plural | anything |
//! | `panics` | which panics end the process | anything |
//! | `unique_json` | JSON values without duplicate members | their meaning |
//! | [`templates`] | bodies that endpoints describe | where its output goes |
//! | [`filters`] | conditions of endpoints on the content of events | who asks, and what follows |
//! | [`vault`] | encryption at rest | where its key comes from |
//! | [`config`], [`metrics`] | the operator's settings and metrics | services |
//! | [`daemon`], [`cli`] | assembly, start and shutdown; the command line | |
//!
//! Imports point down only: `main, cli -> daemon -> { api, delivery, sources } -> service ->
//! context -> { maintenance, courier } -> outbox -> { storage, schemas, filters } -> { lanes,
//! rules, projections } -> domain -> codec, limits`. The test `tests/house/tidy.rs` checks this.
//! `rules` may also read the rows of `projections`.
//!
//! # One event's journey
//!
//! 1. [`api`] authenticates, bounds and parses the request into an [`outbox::draft::EventDraft`].
//! 2. [`outbox::Outbox::commit`] reads the event's stream and keys from the state.
//!    [`outbox::decide::Committer`] judges the event (rules in [`rules::append`]), matches it to
//!    endpoints ([`rules::matching`], [`filters`]) and appends one record. **The event becomes
//!    durable in [`storage::journal::Journal::append`]**; every response waits for its `fdatasync`.
//! 3. The state ([`storage::state::State`]) folds the record ([`projections::fold`]), then the
//!    lanes receive the new deliveries ([`lanes::Lanes::on_due`]).
//! 4. **A lane selects its next delivery in [`lanes::Lanes::next_action`].**
//!    [`delivery::Dispatcher`] starts the attempt. `delivery::attempt` signs it
//!    ([`rules::signature`]) and passes it to [`courier::Courier::send`]. [`courier::guard`]
//!    decides which addresses are allowed. Only the courier's `connect` module opens sockets to
//!    receivers. If the endpoint needs consent first, its lane waits while [`service::Handshakes`]
//!    requests it ([`rules::handshake`]).
//! 5. [`rules::verdict`] judges the reply. **[`rules::verdict::parse_retry_after`] reads the
//!    `Retry-After` of a 429**; it holds the lane through [`lanes::Outcome::Throttled`], and after
//!    a restart through [`projections::counters::Lane::hold`]. [`rules::retry`] computes the time
//!    of the next attempt. The outcome joins the next group commit.
//! 6. After the last attempt the delivery is kept as a dead letter ([`projections::dead`]) until it
//!    is redriven or purged.
//!
//! # Invariants
//!
//! * A request or response that depends on a write is sent only after the write is durable. One
//!   exception: an attempt's outcome may wait for the next commit, and losing it costs one more
//!   attempt.
//! * One thread writes the journal; one thread touches sled; position order is commit order.
//! * The state holds the rows of exactly one position: a checkpoint is one atomic batch with its
//!   cursor. The state can be lost: folding the journal rebuilds it, and `balto verify`
//!   ([`maintenance::verify`]) proves that both are equal.
//! * No reader gets the content of an erased event ([`storage::journal`]), and no file keeps it
//!   ([`maintenance::erasure`]).
//! * Retention removes only records without dependents. Each removal leaves a marker, so that
//!   any other gap is detected.
//! * The state applies a record before any lane requests a refill that follows it. [`lanes`]
//!   explains why this makes windows correct.
//! * The dispatcher never waits for the outbox, because the outbox may wait for the dispatcher.
//! * Endpoints delay each other only through shared limits of concurrent requests: in total, to one
//!   host, and to one address. Tenants share them by [`domain::share`].
//! * An endpoint's holds, rates ([`domain::Reservation`]), pauses and handshakes survive a restart
//!   or crash. Its circuit breaker starts closed, because what it learned may be out of date.
//! * Every collection that outlives a request has a bound.
//! * The state applies an event with many deliveries in steps. Between two steps it may write a
//!   checkpoint and answer questions that do not concern the event's tenant.
//! * A checkpoint becomes durable while the next records are applied. Nothing depends on its
//!   durability but the removal of records, of which each waits for it.
//! * Attempts are charged only for the receiver's failures. A shutdown, a suspended process or
//!   missing file descriptors are not charged.
//! * Scheduling and expiry use a clock that never goes back ([`context::clock`]). Rows expire by
//!   the time of the last commit.
//!
//! The `simulation` module runs all of this on one thread in a world generated from a
//! seed, and injects faults. The outbox's `conformance` module compares every outbox implementation
//! with an oracle built from plain maps ([`outbox::ReadModel`]).

pub mod api;
pub mod cli;
pub mod codec;
pub mod config;
pub mod context;
pub mod courier;
pub mod daemon;
pub mod delivery;
pub mod domain;
mod failpoints;
pub mod filters;
pub mod lanes;
pub mod limits;
pub mod maintenance;
pub mod metrics;
mod nearest;
pub mod outbox;
mod panics;
pub mod projections;
mod quantity;
pub mod rules;
pub mod schemas;
pub mod service;
#[cfg(test)]
mod simulation;
pub mod sources;
pub mod storage;
pub mod templates;
mod unique_json;
pub mod vault;

/// Most memory is freed by another thread than the one that allocated it. jemalloc returns such
/// memory to the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
