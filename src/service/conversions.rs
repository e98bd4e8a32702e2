//! Conversion of events to the versions that subscriptions pin.

use std::sync::Arc;

use crate::context::Context;
use crate::domain::{Event, EventType, EventVersion, Position, VersionPin, attribute};
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
        let same = || OutgoingEvent { event: event.clone(), stored_version: None };
        if event.erased_at.is_some() {
            return Ok(same());
        }
        let Some((_, pin)) = pins.iter().find(|(name, _)| *name == event.event_type) else {
            return Ok(same());
        };
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
        let converted = Arc::new(Event {
            version: converted.version,
            data: converted.data.into(),
            // Not sent, and possibly long.
            targets: Vec::new(),
            ..event.clone()
        });
        self.0.converted_events().insert(key, converted.clone());
        Ok(converted)
    }

    /// Whether the event's version is deprecated, and until when it is published.
    #[must_use]
    pub fn deprecation(self, event: &Event) -> Option<Option<crate::domain::Timestamp>> {
        self.0.outbox_of(&event.tenant).registry(|registry| {
            let registered = registry.event_type(&event.event_type)?;
            let version = registered.definition().version(&event.version)?;
            version.deprecated.then_some(version.sunset)
        })
    }
}
