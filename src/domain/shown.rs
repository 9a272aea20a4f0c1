//! Which fields of a profile were handed out: their names, never their values.

use std::sync::Arc;

/// The names of the fields that somebody was shown. Cloning is cheap.
#[derive(Clone, Debug)]
pub enum Shown {
    /// None: there was no profile, or whoever asked has it already.
    Nothing,
    /// The profile as it is.
    All,
    /// Some of these.
    Some(Marks),
}

/// A list of names, some of which are marked.
#[derive(Clone, Debug)]
pub struct Marks {
    names: Arc<[Box<str>]>,
    /// One bit for each name; the last stands for all from there on.
    bits: u64,
}

impl Shown {
    /// Returns the names; `*` for the profile as it is.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (all, marks) = match self {
            Self::Nothing => (None, None),
            Self::All => (Some("*"), None),
            Self::Some(marks) => (None, Some(marks)),
        };
        all.into_iter().chain(marks.into_iter().flat_map(Marks::names))
    }
}

impl Marks {
    /// Marks none of these names.
    #[must_use]
    pub const fn none(names: Arc<[Box<str>]>) -> Self {
        Self { names, bits: 0 }
    }

    /// Marks the name with this number.
    pub const fn mark(&mut self, number: usize) {
        self.bits |= bit(number);
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let numbered = self.names.iter().enumerate();
        numbered.filter(|(number, _)| self.bits & bit(*number) != 0).map(|(_, name)| name.as_ref())
    }
}

const fn bit(number: usize) -> u64 {
    1 << if number < 63 { number } else { 63 }
}
