//! Conversion of events to the versions that subscriptions pin.

use std::sync::Arc;

use crate::context::Context;
use crate::domain::media::DataKind;
use crate::domain::{
    Event, EventType, EventVersion, Position, Timestamp, VersionChoice, VersionPin, attribute,
};
use crate::outbox::tail::FeedEvent;
use crate::schemas::{ConversionError, RegisteredType};

/// An event as a subscriber gets it.
#[derive(Clone, Debug)]
pub struct OutgoingEvent {
    pub event: Arc<Event>,
    /// The version as published, if the event was converted.
    pub stored_version: Option<EventVersion>,
}

/// Converts events.
#[derive(Clone, Copy)]
pub struct Conversions<'a>(pub &'a Context);

impl Conversions<'_> {
    /// The event in the pinned version. Without a pin, or in the same version, it stays as it was
    /// published, byte for byte.
    ///
    /// # Errors
    /// When the event cannot be converted.
    pub fn convert(
        self,
        pins: &[(EventType, VersionPin)],
        position: Position,
        event: &Arc<Event>,
    ) -> Result<OutgoingEvent, ConversionError> {
        let tested = tested_event(event);
        let event = tested.as_ref().unwrap_or(event);
        let pin = pins.iter().find(|(name, _)| *name == event.event_type).map(|(_, pin)| pin);
        self.convert_to(pin, position, event)
    }

    /// Converts the events of a page to the versions that a reader of the log wants, up to a number
    /// of bytes. An event that cannot be converted stays as it was published, with the reason.
    /// Returns the first event that has no room, and removes it and those after it. At least one
    /// event has room.
    pub fn convert_page(
        self,
        versions: &VersionChoice,
        events: &mut Vec<Arc<FeedEvent>>,
        bytes_max: usize,
    ) -> Option<Arc<FeedEvent>> {
        if *versions == VersionChoice::AsPublished {
            return None;
        }
        let mut bytes = 0;
        for number in 0..events.len() {
            let FeedEvent { position, event, .. } = &*events[number];
            let pin = versions.pin(&event.event_type);
            let read = match self.convert_to(pin, *position, event) {
                Ok(OutgoingEvent { stored_version: None, .. }) => None,
                Ok(OutgoingEvent { event, stored_version }) => {
                    Some(FeedEvent { stored_version, ..FeedEvent::new(*position, event) })
                }
                Err(error) => {
                    let conversion_error = Some(error.to_string().into());
                    Some(FeedEvent { conversion_error, ..FeedEvent::new(*position, event.clone()) })
                }
            };
            bytes += read.as_ref().map_or(event, |read| &read.event).weight();
            if bytes > bytes_max && number > 0 {
                let cut = events.swap_remove(number);
                events.truncate(number);
                return Some(cut);
            }
            if let Some(read) = read {
                events[number] = Arc::new(read);
            }
        }
        None
    }

    fn convert_to(
        self,
        pin: Option<&VersionPin>,
        position: Position,
        event: &Arc<Event>,
    ) -> Result<OutgoingEvent, ConversionError> {
        let same = || OutgoingEvent { event: event.clone(), stored_version: None };
        let Some(pin) = pin.filter(|_| event.erased_at.is_none()) else { return Ok(same()) };
        let registered = self
            .0
            .outbox_of(&event.tenant)
            .registry(|registry| registry.event_type(&event.event_type).cloned());
        let Some(registered) = registered else {
            let is_met = *pin == VersionPin::Latest || *pin == VersionPin::Version(event.version.clone());
            return if is_met { Ok(same()) } else { Err(ConversionError::UnknownType) };
        };
        match registered.pinned(pin) {
            Some(wanted) if *wanted != event.version => {
                let converted = self.cached(&registered, wanted, position, event)?;
                Ok(OutgoingEvent { event: converted, stored_version: Some(event.version.clone()) })
            }
            Some(_) | None => Ok(same()),
        }
    }

    fn cached(
        self,
        registered: &RegisteredType,
        wanted: &EventVersion,
        position: Position,
        event: &Event,
    ) -> Result<Arc<Event>, ConversionError> {
        let key = (position, wanted.clone(), registered.definition().revision);
        if let Some(known) = self.0.converted_events().get(&key) {
            return Ok(known);
        }
        if event.attribute(attribute::BINARY).is_some() {
            return Err(ConversionError::Unreadable("it is binary".to_owned()));
        }
        let converted = registered.convert(&event.version, wanted, &event.data)?;
        let is_kept = |name: &str, value: &str| {
            // The converted data is JSON.
            name != attribute::CONTENT_TYPE || DataKind::of(value) == DataKind::Json
        };
        let attributes = event.attributes.iter().filter(|(name, value)| is_kept(name, value));
        let converted = Arc::new(Event {
            version: converted.version,
            data: converted.data.into(),
            attributes: attributes.cloned().collect(),
            // Not sent, and possibly long.
            targets: Vec::new(),
            ..event.clone()
        });
        self.0.converted_events().insert(key, converted.clone());
        Ok(converted)
    }

    /// Whether the event's version is deprecated, and until when it is published.
    #[must_use]
    pub fn deprecation(self, event: &Event) -> Option<Option<Timestamp>> {
        self.0.outbox_of(&event.tenant).registry(|registry| {
            let registered = registry.event_type(&event.event_type)?;
            let version = registered.definition().version(&event.version)?;
            version.deprecated.then_some(version.sunset)
        })
    }
}

/// A test event as its endpoint gets it: with the type whose example it carries. `None` for other
/// events. In the log it has the type of test events, so that no reader takes it for a real one.
fn tested_event(event: &Arc<Event>) -> Option<Arc<Event>> {
    let tested: EventType = event.attribute(attribute::TEST_TYPE)?.parse().ok()?;
    Some(Arc::new(Event { event_type: tested, targets: Vec::new(), ..Event::clone(event) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Compatibility, TypeDefinition, TypeMigration, TypeVersion};
    use crate::service::EventTypes;
    use crate::service::event_types::{Effect, Strictness};

    /// A type whose version 2 repeats the text of version 1.
    fn doubled(context: &Context) -> TypeDefinition {
        let version = |version: &str| TypeVersion {
            version: version.parse().unwrap(),
            schema: "true".into(),
            deprecated: false,
            sunset: None,
            examples: Vec::new(),
        };
        let now = context.now().wall;
        TypeDefinition {
            name: "pet.adopted".parse().unwrap(),
            description: "".into(),
            compatibility: Compatibility::None,
            transitive: false,
            versions: vec![version("1"), version("2")],
            migrations: vec![TypeMigration {
                from: "1".parse().unwrap(),
                to: "2".parse().unwrap(),
                patch: r#"[{"op":"copy","from":"/text","path":"/again"}]"#.into(),
            }],
            state: None,
            created_at: now,
            updated_at: now,
            revision: Position(0),
        }
    }

    fn entries(count: u64, bytes: usize) -> Vec<Arc<FeedEvent>> {
        let data = format!(r#"{{"text":"{}"}}"#, "x".repeat(bytes));
        let event = Event {
            event_type: "pet.adopted".parse().unwrap(),
            version: "1".parse().unwrap(),
            data: data.into(),
            ..crate::rules::tests::event()
        };
        let event = Arc::new(event);
        (1..=count).map(|at| Arc::new(FeedEvent::new(Position(at), event.clone()))).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn page_of_conversions_ends_at_its_bytes() {
        let (context, _dispatcher, _directory) = crate::service::tests::context();
        EventTypes(&context).put(doubled(&context), Strictness::Force, Effect::Store).await.unwrap();
        let convert = |versions: &VersionChoice, most: usize| {
            let mut events = entries(3, 1_000);
            let cut = Conversions(&context).convert_page(versions, &mut events, most);
            (events, cut.map(|cut| cut.position))
        };
        let latest = VersionChoice::Latest;
        let (published, cut) = convert(&VersionChoice::AsPublished, 1);
        assert_eq!((published.len(), cut), (3, None));
        let (converted, cut) = convert(&latest, usize::MAX);
        assert_eq!((converted.len(), cut), (3, None));
        assert!(converted.iter().all(|entry| entry.stored_version == Some("1".parse().unwrap())));
        let weight = converted[0].event.weight();
        assert!(weight > 2_000);
        let (converted, cut) = convert(&latest, 2 * weight);
        assert_eq!((converted.len(), cut), (2, Some(Position(3))));
        // One event always has room.
        let (converted, cut) = convert(&latest, 1);
        assert_eq!((converted.len(), cut), (1, Some(Position(2))));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn event_stays_as_published_when_its_conversion_fails() {
        let (context, _dispatcher, _directory) = crate::service::tests::context();
        let pin = |version: &str| {
            let pin = VersionPin::Version(version.parse().unwrap());
            VersionChoice::Pinned(vec![("pet.adopted".parse().unwrap(), pin)])
        };
        let read = |versions: &VersionChoice| {
            let mut events = entries(1, 1);
            Conversions(&context).convert_page(versions, &mut events, usize::MAX);
            (events[0].event.version.to_string(), events[0].conversion_error.clone())
        };
        // Unregistered: only a pin of another version fails.
        assert_eq!(read(&VersionChoice::Latest), ("1".to_owned(), None));
        assert_eq!(read(&pin("1")), ("1".to_owned(), None));
        assert!(read(&pin("2")).1.is_some());
        EventTypes(&context).put(doubled(&context), Strictness::Force, Effect::Store).await.unwrap();
        assert_eq!(read(&pin("2")), ("2".to_owned(), None));
        let (version, error) = read(&pin("3"));
        assert_eq!(
            (version.as_str(), error.as_deref()),
            ("1", Some("no migration leads from version 1 to 3"))
        );
    }
}
