//! The end of the delivery loop.

use super::windows::{known, new_world, publish};
use super::*;
use crate::domain::Party;
use crate::service::Queues;
use crate::service::queues::ReceiveOptions;
use crate::simulation::workers::as_queue;

/// A receive has taken a message, and the disk does not answer. The loop ends at its limit, and at
/// a second signal at once.
#[tokio::test(start_paused = true)]
async fn receive_without_its_commit_does_not_delay_the_end() {
    for run in [Run::Draining, Run::Cut] {
        let world = new_world();
        let mut life = Life::begin(&world).unwrap();
        let as_queue = |endpoint| as_queue(endpoint, Duration::from_secs(5), 3);
        let number = subscribe_with(&mut life, Tenant::DEFAULT, as_queue).await;
        publish(&mut life).await;
        let (context, queue) = (life.context.clone(), known(&life, number).unwrap());
        let receiving = tokio::spawn(async move {
            let wait = Duration::from_secs(1);
            let options =
                ReceiveOptions { most: 1, bytes_max: 1 << 20, wait, visibility: None, worker: None };
            Queues(&context).receive(Party::of(None), &queue, options, std::future::pending()).await
        });
        run_without_writer(&mut life, Duration::from_secs(2)).await;
        assert!(!receiving.is_finished(), "the receive has taken no message");
        life.stop.send_replace(run);
        run_without_writer(&mut life, Duration::from_secs(5)).await;
        assert!(life.dispatcher.is_finished());
        assert!(receiving.await.unwrap().is_err());
        assert!(!world.has_violation());
    }
}
