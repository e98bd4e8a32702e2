//! A bounded cache of compiled body templates, one per endpoint.

use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::{EndpointNumber, IdMap, Position};
use crate::limits;
use crate::templates::BodyTemplate;

/// Templates with the endpoint's revision that they belong to.
#[derive(Debug, Default)]
pub(crate) struct CompiledTemplates(Mutex<IdMap<EndpointNumber, (Position, Arc<BodyTemplate>)>>);

impl CompiledTemplates {
    pub(crate) fn get(&self, endpoint: EndpointNumber, revision: Position) -> Option<Arc<BodyTemplate>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&endpoint).filter(|(of, _)| *of == revision).map(|(_, template)| template.clone())
    }

    /// Replaces the template of an older revision. A full cache starts again.
    pub(crate) fn insert(&self, endpoint: EndpointNumber, revision: Position, template: Arc<BodyTemplate>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= limits::COMPILED_TEMPLATES_MAX && !known.contains_key(&endpoint) {
            known.clear();
        }
        known.insert(endpoint, (revision, template));
    }
}
