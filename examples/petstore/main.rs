//! A pet store on Balto: one small application, all four patterns.
//!
//! `cargo run --release --example petstore` tells its story and proves it at the end. Balto runs
//! inside this process; an application in another language uses the same HTTP API beside it. Read
//! in this order:
//!
//! | file | shows |
//! |---|---|
//! | `orders.rs` | an asynchronous API: 202 with a status URL, and the result as a webhook |
//! | `webhook.rs` | the receiver: it verifies webhooks and drops repetitions |
//! | `pets.rs` | an event-sourced aggregate: load, decide, append, again after a conflict |
//! | `worker.rs`, `notify.rs` | workers of a queue, whose handler fails and meets duplicates |
//! | `search.rs` | a read model, fed by a consumer: rows and cursor in one transaction |
//! | `versions.rs` | two versions of an event type, side by side |
//! | `rabbit.rs` | orders over RabbitMQ, if `PETSTORE_AMQP_URL` has the URL of a broker |
//! | `balto.rs` | Balto in this process, and a client for its API |
//!
//! `receiver.mjs` and `worker.mjs` are `webhook.rs` and `notify.rs` in plain Node.

#![expect(clippy::print_stdout, reason = "it tells a story")]

mod balto;
mod notify;
mod orders;
mod pets;
mod rabbit;
mod search;
mod versions;
mod webhook;
mod worker;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::balto::{Balto, Client, list, text};
use crate::notify::{Mood, REFUSALS, Worker};
use crate::pets::PetCommand;
use crate::search::Table;
use crate::webhook::Receiver;

/// Vaccinations of one pet at the same time.
const VETS: u64 = 8;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => story().await,
        ["notify", api, mailbox, "hangs"] => notify::run(api, Path::new(mailbox), Mood::Hangs).await,
        ["notify", api, mailbox, "refused"] => notify::run(api, Path::new(mailbox), Mood::Refused).await,
        _ => bail!("usage: petstore"),
    }
}

async fn story() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let store = Store::open(directory.path()).await?;
    store.take_in_pets().await?;
    store.sell().await?;
    store.vaccinate().await?;
    store.hear_from_the_shelter().await?;
    let duplicates = store.notify().await?;
    store.prove(duplicates).await?;
    match std::env::var("PETSTORE_AMQP_URL") {
        Ok(url) => store.sell_by_message(&url).await?,
        Err(_) => println!("> To see orders over RabbitMQ, set PETSTORE_AMQP_URL=amqp://127.0.0.1:5672"),
    }
    store.balto.stop_and_verify()?;
    println!("proof: Balto has stopped, and its files are whole");
    Ok(())
}

/// The store, and everybody who listens to it.
struct Store {
    balto: Balto,
    shop: Client,
    customer: Receiver,
    old_partner: Receiver,
    new_partner: Receiver,
    search: PathBuf,
    mailbox: PathBuf,
}

impl Store {
    async fn open(directory: &Path) -> anyhow::Result<Self> {
        println!("> The store opens: types, queues, a consumer and webhooks");
        let balto = Balto::start(directory).await?;
        let client = balto.client.clone();
        versions::register(&client).await?;
        pets::register(&client).await?;
        let orders =
            json!({"eventTypes": ["order.paid", "order.fulfilled", "order.failed"], "ordering": "key"});
        let adoptions =
            |version: &str| json!({"eventTypes": ["pet.adopted"], "versions": {"pet.adopted": version}});
        // The customer's receiver fails twice; Balto tries again.
        let customer = Receiver::subscribe(&client, orders, 2).await?;
        let old_partner = Receiver::subscribe(&client, adoptions("1.0"), 0).await?;
        let new_partner = Receiver::subscribe(&client, adoptions("latest"), 0).await?;
        notify::create_queue(&client).await?;
        search::create(&client).await?;
        let (search, mailbox) = (directory.join("search.json"), directory.join("mails"));
        std::fs::create_dir(&mailbox)?;
        tokio::spawn(search::follow(client.clone(), search.clone()));
        let shop = Client::new(orders::open(&client).await?)?;
        Ok(Self { balto, shop, customer, old_partner, new_partner, search, mailbox })
    }

    fn client(&self) -> &Client {
        &self.balto.client
    }

    async fn take_in_pets(&self) -> anyhow::Result<()> {
        println!("> Four pets move in; each is a stream of events");
        for name in ["Rex", "Tom", "Bella", "Felix"] {
            let command = PetCommand::Register { name: name.to_owned() };
            let id = name.to_lowercase();
            ensure!(pets::execute(self.client(), &id, &command).await?.is_ok(), "{name} is new");
            // A repetition finds that it is done.
            let again = pets::execute(self.client(), &id, &command).await?;
            ensure!(again.is_ok_and(|done| done.position.is_none()), "{name} is registered once");
        }
        Ok(())
    }

    async fn sell(&self) -> anyhow::Result<()> {
        println!("> Ann and Bob order Rex at the same time, Cid's card is declined, Dan orders Bella");
        let order = |id: &str, customer: &str, pet: &str, card: &str| json!({"orderId": id, "customer": customer, "pet": pet, "card": card});
        let (ann, bob) = (order("a-1", "Ann", "rex", "4242"), order("b-1", "Bob", "rex", "4242"));
        let (cid, dan) = (order("c-1", "Cid", "tom", "declined"), order("d-1", "Dan", "bella", "4242"));
        // Ann's browser posts twice.
        let posted = tokio::join!(
            self.order(&ann),
            self.order(&ann),
            self.order(&bob),
            self.order(&cid),
            self.order(&dan)
        );
        for status_url in [posted.0?, posted.1?, posted.2?, posted.3?, posted.4?] {
            self.settled(&status_url).await?;
        }
        until("the customer has heard of each order", || {
            orders::outcomes(&self.customer.events()).is_ok_and(|outcomes| outcomes.len() == 4)
        })
        .await?;
        for (order, outcome) in orders::outcomes(&self.customer.events())? {
            println!("  {order}: {outcome}");
        }
        Ok(())
    }

    /// Posts an order. Returns its status URL.
    async fn order(&self, order: &Value) -> anyhow::Result<String> {
        let (status, answer) = self.shop.call(Method::POST, "/orders", Some(order)).await?;
        ensure!(status == 202, "{order} was answered {status}: {answer}");
        Ok(text(&answer, "statusUrl")?.to_owned())
    }

    /// Waits until an order is fulfilled or failed.
    async fn settled(&self, status_url: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let shown = self.shop.get(status_url).await?;
            if ["fulfilled", "failed"].contains(&text(&shown, "status")?) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{status_url} stays {shown}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn vaccinate(&self) -> anyhow::Result<()> {
        println!("> {VETS} vets vaccinate Tom at the same time; each dose has the next number");
        let vets = (0..VETS).map(|_| {
            let client = self.client().clone();
            tokio::spawn(async move { pets::execute(&client, "tom", &PetCommand::Vaccinate).await })
        });
        let (mut conflicts, mut last) = (0, 0);
        for vet in vets.collect::<Vec<_>>() {
            let done = vet.await??.map_err(anyhow::Error::msg)?;
            conflicts += done.conflicts;
            last = last.max(done.position.unwrap_or_default());
        }
        let (tom, version) = pets::load(self.client(), "tom").await?;
        ensure!((tom.doses, version) == (VETS, VETS + 1), "Tom has {} doses at version {version}", tom.doses);
        println!("  Tom has {} doses; {conflicts} decisions were taken again after a conflict", tom.doses);
        // Read your own writes, in another process's read model.
        search::wait_for(self.client(), last).await?;
        let table = Table::read(&self.search)?;
        ensure!(table.rows["tom"].doses == VETS, "the search has {:?}", table.rows["tom"]);
        println!("  The search has them, too; available: {}", table.available().join(", "));
        Ok(())
    }

    async fn hear_from_the_shelter(&self) -> anyhow::Result<()> {
        println!("> The shelter gives Felix away; its software publishes version 1.0");
        let event = versions::publish_as_the_shelter(self.client(), "felix", "Eve").await?;
        search::wait_for(self.client(), event["position"].as_u64().unwrap_or_default()).await?;
        until("both partners have three adoptions", || {
            self.old_partner.events().len() == 3 && self.new_partner.events().len() == 3
        })
        .await
    }

    /// Returns the number of duplicates that the workers met.
    async fn notify(&self) -> anyhow::Result<usize> {
        println!("> A worker sends a mail and is killed before it says so; another one takes over");
        let mut first = Worker::start(self.client(), &self.mailbox, "hangs")?;
        let (what, killed_with) = first.next().await?;
        ensure!(what == "sent", "the first worker has {what}");
        first.kill().await?;
        let mut second = Worker::start(self.client(), &self.mailbox, "refused")?;
        let (mut refused, mut sent, mut duplicates) = (0, 0, Vec::new());
        while sent + duplicates.len() < 3 {
            let (what, id) = second.next().await?;
            match what.as_str() {
                "sent" => sent += 1,
                "refused" => refused += 1,
                _ => duplicates.push(id),
            }
        }
        println!(
            "  mails: 1 + {sent}, refused by the mail server: {refused}, duplicates: {}",
            duplicates.len()
        );
        ensure!(refused == REFUSALS, "{refused} mails were refused");
        ensure!(duplicates == [killed_with], "{duplicates:?}");
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.client().get("/queues/notifications/lane").await?["pending"] != 0 {
            ensure!(Instant::now() < deadline, "the queue is not empty");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        second.kill().await?;
        Ok(duplicates.len())
    }

    async fn sell_by_message(&self, url: &str) -> anyhow::Result<()> {
        println!("> Fay orders Tom over RabbitMQ, and sends her message twice");
        rabbit::open(self.client(), url).await?;
        let mut fay = rabbit::Customer::connect(url).await?;
        let order = json!({"orderId": "e-1", "customer": "Fay", "pet": "tom", "card": "4242"});
        fay.order(&order).await?;
        fay.order(&order).await?;
        let steps = fay.steps_of("e-1").await?;
        println!("  e-1: {}", steps.join(", "));
        rabbit::prove(self.client(), "e-1", &steps).await
    }

    async fn prove(&self, duplicates: usize) -> anyhow::Result<()> {
        let log = orders::outcomes_in_the_log(self.client()).await?;
        let webhooks = self.customer.events();
        ensure!(orders::outcomes(&webhooks)? == log, "webhooks say {webhooks:?}, the log says {log:?}");
        let count = |kind: &str| log.iter().filter(|(_, outcome)| outcome == kind).count();
        ensure!((count("order.fulfilled"), count("order.failed")) == (2, 2), "{log:?}");
        let requests = self.customer.requests();
        ensure!(requests as usize >= webhooks.len() + 2, "{requests} requests");
        println!(
            "proof: {} webhooks arrived in {requests} requests, one outcome for each order",
            webhooks.len()
        );

        let placed = self.client().get("/feed?types=order.placed").await?;
        ensure!(list(&placed, "data")?.len() == 4, "an order was placed twice: {placed}");
        let rex = self.client().get("/feed?stream=pet-rex&types=pet.adopted").await?;
        ensure!(list(&rex, "data")?.len() == 1, "Rex was sold twice: {rex}");
        println!("proof: Rex was sold once, to {}", pets::adopter(&list(&rex, "data")?[0])?);

        let (table, rebuilt) = (Table::read(&self.search)?, search::rebuilt(self.client()).await?);
        ensure!(table == rebuilt, "the search is {table:?}, the log says {rebuilt:?}");
        for (id, row) in &table.rows {
            let (pet, _) = pets::load(self.client(), id).await?;
            ensure!((&pet.name, pet.doses) == (&row.name, row.doses), "{pet:?} is {row:?}");
            ensure!(pet.adopted_by.is_some() == row.adopter.is_some(), "{pet:?} is {row:?}");
            let folded = self.client().get(&format!("/streams/pet-{id}/state")).await?;
            ensure!(
                (&folded["state"], &folded["problems"]) == (&pet.state(), &json!([])),
                "{pet:?}: {folded}"
            );
        }
        println!("proof: the state that Balto folds for each pet equals the aggregate");
        println!("proof: the search equals the fold of the log, and every pet its row");

        let adoptions = self.client().get("/feed?types=pet.adopted").await?;
        let mut adopted: Vec<_> =
            list(&adoptions, "data")?.iter().map(|event| text(event, "id")).collect::<Result<_, _>>()?;
        let files = std::fs::read_dir(&self.mailbox)?
            .map(|file| Ok(file?.file_name().into_string().unwrap_or_default()));
        let mut mails: Vec<String> = files.collect::<anyhow::Result<_>>()?;
        adopted.sort_unstable();
        mails.sort_unstable();
        ensure!(mails == adopted, "mails {mails:?} for the adoptions {adopted:?}");
        println!("proof: one mail for each of {} adoptions, with {duplicates} duplicate met", mails.len());

        for (old, new) in self.old_partner.events().iter().zip(self.new_partner.events()) {
            let (old_name, new_name) = (text(&old["data"], "adopter")?, pets::adopter(&new)?);
            ensure!((&old["id"], old_name) == (&new["id"], new_name), "{old} and {new} differ");
            ensure!((&old["version"], &new["version"]) == (&json!("1.0"), &json!("2.0")), "{old}, {new}");
        }
        println!("proof: partners of versions 1.0 and 2.0 have heard the same adoptions");
        let dead = self.client().get("/dead-letters").await?;
        ensure!(list(&dead, "data")?.is_empty(), "dead letters: {dead}");
        Ok(())
    }
}

/// Waits until something holds, for at most half a minute.
async fn until(what: &str, holds: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        ensure!(Instant::now() < deadline, "it takes too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
