//! Projections: pure folds over journal records into ordered rows, and reads of those rows.
//!
//! Owns the layout of every row. Must never use sled, files, async, clocks or randomness, only the
//! ordered map [`Rows`]. A fold from a checkpoint gives the same rows as a fold from the start.
//!
//! | tag | key | value | content |
//! |---|---|---|---|
//! | `D` | endpoint, due, event | [`pending::Row`] | deliveries that a lane may send, in lane order |
//! | `P` | event, endpoint | [`pending::Detail`] | attempt history of a pending delivery, once tried or revived |
//! | `W` | endpoint, order hash, event | [`pending::Row`] and due | all pending deliveries of a queue, including its first |
//! | `E` | page, checkpoint, chunk | entries | index of events, in blocks; the last entry of an event is valid |
//! | `t` | tenant, span | page numbers | index of the pages with events of a tenant |
//! | `F` | event | endpoint numbers | targets of a wide event |
//! | `H` | event | time | erased events whose content is still in the files |
//! | `O` | page, checkpoint, chunk | entries | changes of delivery state, in blocks; the last one is valid |
//! | `M` | event, part | entries | delivery states of a wide event, and of replays to other endpoints |
//! | `X` | death, event, endpoint | [`dead::Letter`] | dead letters, in order of death |
//! | `x` | endpoint, death, event | empty | index of the dead letters of an endpoint |
//! | `o` | owner, death, event, endpoint | empty | index of the dead letters of a tenant or `*` |
//! | `S` | tenant, stream | [`streams::Head`], open block | versions and times of a stream, positions of its last events |
//! | `V` | tenant, stream, block | positions | positions of a stream's earlier events, in blocks |
//! | `B` | hour, tenant | [`tenant_hours::TenantHour`] | events and attempts of that hour |
//! | `I` | scope | [`idempotency::Known`] | answered requests |
//! | `G` | queue, event | [`leases::LeaseRow`] | last lease of a pending message |
//! | `J` | hour, checkpoint | scopes | expiry times of `I` rows |
//! | `L` | endpoint | [`counters::Lane`] | numbers of deliveries, the receiver's failures, its `Retry-After` |
//! | `R` | endpoint | [`reserved::Reserved`] | reserved part of its rate |
//! | `T` | endpoint, hour | [`stats::Hour`] | statistics of that hour |
//! | `Q` | tenant, name | [`consumers::ConsumerRow`] | places of consumers |
//! | `U` | tenant | [`usage::Usage`] | numbers of endpoints, keys, deliveries and events |
//! | `j` | job | [`jobs::JobRow`] | progress of running jobs and of the last ended ones |
//! | `a` | act | time, tenant, actor, action, target | index of audit entries |
//! | `u` | tenant, act | empty | index of the audit entries that concern a tenant |
//! | `y` | event type, version | [`type_usage::TypeUsage`] | events of a registered type's version |

pub mod acts;
pub mod audit;
pub mod consumers;
pub mod counters;
pub mod dead;
pub mod erasures;
pub mod failing;
pub mod feed;
pub mod filter;
pub mod fold;
pub mod idempotency;
pub mod jobs;
pub mod lag;
mod last_attempt;
pub mod leases;
pub mod page_index;
pub mod pages;
pub mod pending;
pub mod reads;
pub mod reserved;
pub mod retention;
pub mod rows;
pub mod states;
pub mod stats;
pub mod streams;
mod tallies;
pub mod tenant_hours;
pub mod tenant_pages;
pub mod type_usage;
pub mod usage;

pub use fold::{Fold, LaneChange};
pub use rows::Rows;
