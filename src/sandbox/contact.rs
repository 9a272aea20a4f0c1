//! A contact, and how the API shows it.

use std::sync::Arc;

use uuid::Uuid;

use crate::domain::Timestamp;

use super::fields::Fields;

/// One version of a contact.
#[derive(Clone)]
pub(super) struct Contact {
    /// The writable fields.
    pub(super) fields: Fields,
    pub(super) created: Timestamp,
    pub(super) modified: Timestamp,
    /// The contacts that were merged into this one.
    pub(super) merged_from: Vec<Uuid>,
    /// The contact that this one was merged into; set on an ancestor.
    pub(super) merged_to: Option<Uuid>,
    /// This contact and all its ancestors.
    pub(super) merge_set: Vec<Uuid>,
}

/// A contact together with its canonical contact.
pub(super) struct ContactView {
    pub(super) id: Uuid,
    pub(super) contact: Arc<Contact>,
    pub(super) canonical: Uuid,
    pub(super) merge_set: Vec<Uuid>,
}

/// The result of a merge: the new canonical contact and its direct ancestors.
pub(super) struct MergeResult {
    pub(super) canonical: ContactView,
    pub(super) ancestors: Vec<ContactView>,
}

impl Contact {
    /// Creates a contact that was never merged.
    pub(super) fn new(id: Uuid, fields: Fields, created: Timestamp, modified: Timestamp) -> Self {
        Self { fields, created, modified, merged_from: Vec::new(), merged_to: None, merge_set: vec![id] }
    }
}

impl ContactView {
    /// Shows a canonical contact.
    pub(super) fn of_canonical(id: Uuid, contact: Arc<Contact>) -> Self {
        Self { id, canonical: id, merge_set: contact.merge_set.clone(), contact }
    }
}
