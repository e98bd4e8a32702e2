//! Erasures, and checks that the content is gone.

use super::states::{RULES, StreamKey};
use super::*;
use crate::context::home::Home;
use crate::maintenance::erasure::Erasures;
use crate::service::Erasure;
use crate::service::stream_states::StateBound;

/// Erases an event or a stream, and reads the event.
pub(super) async fn erase(context: &Context, world: &World) {
    let drawn = world.with(|inner| {
        let of_streams = inner.chance.percent(50);
        let events = inner.model.oracle.events.iter();
        let events: Vec<_> = events.filter(|(_, event)| event.stream.is_some() || !of_streams).collect();
        let is_empty = events.is_empty();
        (!is_empty).then(|| {
            let (position, event) = *inner.chance.pick(&events);
            (*position, event.clone())
        })
    });
    let Some((position, event)) = drawn else { return };
    // The event is then part of a cached state.
    let looked_at = StreamKey::of(&event).filter(|_| world.chance(|chance| chance.percent(50)));
    if let Some(key) = &looked_at {
        let rules = world.chance(|chance| chance.pick(&RULES).0);
        types::register(context, world, event.event_type.clone(), Some(rules)).await;
        states::look_at(context, world, key, StateBound::default()).await;
    }
    world.with(|inner| inner.erasures_running += 1);
    let stream = event.stream.as_ref().filter(|_| world.chance(|chance| chance.percent(40)));
    let result = match stream {
        Some((stream, _)) => {
            Erasure(context).of_stream(&ALL_TENANTS, &event.tenant, stream, "asked for").await
        }
        None => Erasure(context).of_event(&ALL_TENANTS, &event.tenant, &event.id, "asked for").await,
    };
    check_change(world, &format!("erase {position}"), &result);
    if !world.is_alive() {
        return;
    }
    if matches!(result, Ok(_) | Err(ChangeError::NotFound)) {
        world.with(|inner| inner.erasures_running -= 1);
    }
    let Ok(view) = result else { return };
    if let Some(key) = &looked_at {
        states::look_at(context, world, key, StateBound::default()).await;
    }
    world.count(if stream.is_some() { "streamsErased" } else { "erased" });
    if view.count == 0 {
        return;
    }
    match Events(context).find(&ALL_TENANTS, &event.tenant, &event.id).await {
        // Another event may have the id: of another tenant, or after retention.
        Ok(Some((other, _))) if other != position => {}
        Ok(Some((_, found))) if found.erased_at.is_none() || !found.data.is_empty() => {
            world.record_violation(format!("erased event {position} still has {:?}", found.data));
        }
        Ok(_) => {}
        Err(error) => check_refusal(world, "read of an erased event", &error),
    }
}

/// Removes erased content from the disk. The start of the next life compares the files.
pub(super) async fn remove_from_disk(context: &Context, world: &World) {
    let contents = world.with(|inner| inner.model.contents());
    let result = Erasures::new(context.outbox_of(Home::All).clone()).pass(context.now().wall).await;
    match result {
        Ok(pass) => {
            world.note(format_args!("erasure pass: {pass:?}"));
            if pass.left == 0 {
                world.with(|inner| inner.model.lose_contents(&contents));
            }
            if pass.events > 0 {
                world.count("erasedOnDisk");
            }
        }
        Err(error) => check_refusal(world, "erasure pass", &error),
    }
}
