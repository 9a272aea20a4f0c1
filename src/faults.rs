//! Named faults: places where a test can pause this program, fail it, or take a rule out of it.
//!
//! Without the cargo feature `faults` (no release build has it) every point is an empty function.
//! With it, a test arms faults by name, in its own process through `Faults::arm` or in a child's
//! through the environment variable `PROFILE_EDGE_FAULTS` (names separated by commas).

/// A place where something can be made to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The consumer holds a delivery before applying it.
    PauseBeforeApply,
    /// The consumer holds a delivery after applying it, before recording it in the audit.
    PauseBeforeAudit,
    /// The consumer holds a delivery after recording it, before acknowledging it.
    PauseBeforeAck,
    /// A lookup that leads holds after its fetch, before its fill.
    PauseBeforeFill,
    /// A lookup whose fill was refused fills all the same: the consistency protocol without its first rule.
    FillWithoutLease,
    /// A lookup that is about to fetch logs whom it is about: a leak, for the canary to find.
    LeakIntoLog,
    /// A lookup that is about to fetch panics, and says whom it is about.
    PanicInLookup,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 7] = [
        Self::PauseBeforeApply,
        Self::PauseBeforeAudit,
        Self::PauseBeforeAck,
        Self::PauseBeforeFill,
        Self::FillWithoutLease,
        Self::LeakIntoLog,
        Self::PanicInLookup,
    ];

    /// Returns the name by which it is armed from outside.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PauseBeforeApply => "PauseBeforeApply",
            Self::PauseBeforeAudit => "PauseBeforeAudit",
            Self::PauseBeforeAck => "PauseBeforeAck",
            Self::PauseBeforeFill => "PauseBeforeFill",
            Self::FillWithoutLease => "FillWithoutLease",
            Self::LeakIntoLog => "LeakIntoLog",
            Self::PanicInLookup => "PanicInLookup",
        }
    }
}

/// The faults of one application. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    #[cfg(feature = "faults")]
    armed: std::sync::Arc<tokio::sync::watch::Sender<std::collections::BTreeMap<Fault, u64>>>,
}

#[cfg(feature = "faults")]
impl Faults {
    /// Returns the faults that `PROFILE_EDGE_FAULTS` names.
    #[must_use]
    pub fn from_env() -> Self {
        let faults = Self::default();
        let names = std::env::var("PROFILE_EDGE_FAULTS").unwrap_or_default();
        for fault in Fault::ALL.into_iter().filter(|fault| names.split(',').any(|name| name == fault.as_str())) {
            faults.arm(fault);
        }
        faults
    }

    /// Arms a fault: from now on, whoever comes to its point is held there.
    pub fn arm(&self, fault: Fault) {
        self.armed.send_modify(|armed| {
            armed.insert(fault, 0);
        });
    }

    /// Disarms a fault: whoever is held at its point goes on.
    pub fn disarm(&self, fault: Fault) {
        self.armed.send_modify(|armed| {
            armed.remove(&fault);
        });
    }

    /// Waits until at least `count` have come to the point of an armed fault.
    pub async fn reached(&self, fault: Fault, count: u64) {
        let mut armed = self.armed.subscribe();
        // The sender lives as long as `self`, so the channel cannot be closed here.
        let _ = armed.wait_for(|armed| armed.get(&fault).is_some_and(|reached| *reached >= count)).await;
    }

    /// Tells whether a fault is armed that changes what is done, and holds nobody.
    #[must_use]
    pub fn is_armed(&self, fault: Fault) -> bool {
        self.armed.borrow().contains_key(&fault)
    }

    /// Logs what must not be logged, or panics with it, where that is armed.
    ///
    /// # Panics
    ///
    /// [`Fault::PanicInLookup`] is armed.
    pub fn betray(&self, personal: &str) {
        if self.is_armed(Fault::LeakIntoLog) {
            tracing::debug!(personal, "a planted leak");
        }
        assert!(!self.is_armed(Fault::PanicInLookup), "a planted panic about {personal}");
    }

    /// Holds the caller here while the fault is armed.
    pub async fn point(&self, fault: Fault) {
        let held = self.armed.send_if_modified(|armed| armed.get_mut(&fault).map(|reached| *reached += 1).is_some());
        if held {
            let mut armed = self.armed.subscribe();
            let _ = armed.wait_for(|armed| !armed.contains_key(&fault)).await;
        }
    }
}

#[cfg(not(feature = "faults"))]
impl Faults {
    /// Returns no faults: this build has none.
    #[must_use]
    pub fn from_env() -> Self {
        Self::default()
    }

    /// Answers no, always: this build has no faults.
    #[must_use]
    pub const fn is_armed(&self, _fault: Fault) -> bool {
        false
    }

    /// Does nothing: this build has no faults.
    pub const fn betray(&self, _personal: &str) {}

    /// Does nothing: this build has no faults.
    #[expect(clippy::unused_async, reason = "the same signature as with the feature")]
    pub async fn point(&self, _fault: Fault) {}
}
