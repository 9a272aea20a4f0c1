//! The fields of a profile that a caller received: their names, never their values.

use std::sync::Arc;

/// The names of the fields that a caller received. Cloning is cheap.
#[derive(Clone, Debug)]
pub enum DisclosedFields {
    /// None: there is no profile, or the caller has it already.
    Nothing,
    /// The whole profile.
    All,
    /// The marked fields.
    Some(FieldMarks),
}

/// A list of field names, some of which are marked.
#[derive(Clone, Debug)]
pub struct FieldMarks {
    names: Arc<[Box<str>]>,
    /// One bit per name; the last bit is shared by all names from there on.
    bits: u64,
}

impl DisclosedFields {
    /// Returns the names; `*` for the whole profile.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (all, marks) = match self {
            Self::Nothing => (None, None),
            Self::All => (Some("*"), None),
            Self::Some(marks) => (None, Some(marks)),
        };
        all.into_iter().chain(marks.into_iter().flat_map(FieldMarks::names))
    }
}

impl FieldMarks {
    /// Creates the list without marks.
    #[must_use]
    pub const fn none(names: Arc<[Box<str>]>) -> Self {
        Self { names, bits: 0 }
    }

    /// Marks the name at this index.
    pub const fn mark(&mut self, index: usize) {
        self.bits |= bit(index);
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let names = self.names.iter().enumerate();
        names.filter(|(index, _)| self.bits & bit(*index) != 0).map(|(_, name)| name.as_ref())
    }
}

const fn bit(index: usize) -> u64 {
    1 << if index < 63 { index } else { 63 }
}
