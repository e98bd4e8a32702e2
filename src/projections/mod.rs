//! Projections: pure folds over journal records into ordered rows, and the reads over those rows.
//!
//! Owns: the layout of every row of state. Must never know sled, files, async, clocks or randomness: it sees [`Rows`],
//! an ordered map. Applying the records of a journal in order, from any checkpoint of the same journal, gives the
//! same rows as applying all of them from the start.
//!
//! | tag | key | value | is |
//! |---|---|---|---|
//! | `D` | endpoint, due, event | [`pending::Row`] | deliveries that a lane may send, in lane order |
//! | `P` | event, endpoint | [`pending::Detail`] | what a pending delivery has behind it, once it was tried |
//! | `W` | endpoint, order hash, event | [`pending::Row`] and due | all pending deliveries that stand in a queue, also its first |
//! | `E` | page, checkpoint, chunk | entries | index of events, in blocks |
//! | `O` | page, checkpoint, chunk | entries | changes of delivery state, in blocks; the last one counts |
//! | `X` | death, event, endpoint | [`dead::Letter`] | dead letters, in order of death |
//! | `S` | tenant, stream | [`streams::Head`] | version and times of a stream |
//! | `I` | scope | [`idempotency::Known`] | requests that were answered |
//! | `J` | hour, checkpoint | scopes | when `I` rows expire |
//! | `L` | endpoint | [`counters::Lane`] | how many deliveries wait, the receiver's failures, its `Retry-After` |
//! | `R` | endpoint | [`reserved::Reserved`] | what is reserved of its rate |
//! | `T` | endpoint, hour | [`stats::Hour`] | what happened in that hour |

pub mod audit;
pub mod counters;
pub mod dead;
pub mod failing;
pub mod fold;
pub mod idempotency;
pub mod pages;
pub mod pending;
pub mod reads;
pub mod reserved;
pub mod retention;
pub mod rows;
pub mod stats;
pub mod streams;
mod tallies;

pub use fold::{Fold, LaneChange};
pub use rows::Rows;
