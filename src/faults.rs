//! Named faults: points where a test can pause this program, make it fail, or break a rule of its protocol.
//!
//! Without the cargo feature `faults` (no release build has it) every point is an empty function.
//! With it, a test arms faults by name, in its own process through `Faults::arm` or in a child's
//! through the environment variable `PROFILE_EDGE_FAULTS` (names separated by commas).

/// A fault that a test can inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The consumer pauses before it applies a delivery.
    PauseBeforeApply,
    /// The consumer pauses after it has applied a delivery, before it writes the audit record.
    PauseBeforeAudit,
    /// The consumer pauses after it has written the audit record, before it acknowledges the delivery.
    PauseBeforeAck,
    /// A leader pauses after its fetch, before its fill.
    PauseBeforeFill,
    /// A leader fills although its fill was refused: the protocol without
    /// [`rules::lease-is-the-value`](crate::rules#lease-is-the-value).
    FillWithoutLease,
    /// A lookup by an identifier believes its pointer whatever the profile of the customer shows: the protocol without
    /// [`rules::identifier-pointer`](crate::rules#identifier-pointer).
    BelieveEveryPointer,
    /// A lookup logs the customer id before it requests the lease: a leak that the canary test must find.
    LeakIntoLog,
    /// A lookup panics with the customer id before it requests the lease.
    PanicInLookup,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 8] = [
        Self::PauseBeforeApply,
        Self::PauseBeforeAudit,
        Self::PauseBeforeAck,
        Self::PauseBeforeFill,
        Self::FillWithoutLease,
        Self::BelieveEveryPointer,
        Self::LeakIntoLog,
        Self::PanicInLookup,
    ];

    /// Returns the name that `PROFILE_EDGE_FAULTS` uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PauseBeforeApply => "PauseBeforeApply",
            Self::PauseBeforeAudit => "PauseBeforeAudit",
            Self::PauseBeforeAck => "PauseBeforeAck",
            Self::PauseBeforeFill => "PauseBeforeFill",
            Self::FillWithoutLease => "FillWithoutLease",
            Self::BelieveEveryPointer => "BelieveEveryPointer",
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

    /// Arms a fault: from now on, every task that reaches its point pauses there.
    pub fn arm(&self, fault: Fault) {
        self.armed.send_modify(|armed| {
            armed.insert(fault, 0);
        });
    }

    /// Disarms a fault: every task that pauses at its point continues.
    pub fn disarm(&self, fault: Fault) {
        self.armed.send_modify(|armed| {
            armed.remove(&fault);
        });
    }

    /// Waits until at least `count` tasks have reached the point of an armed fault.
    pub async fn reached(&self, fault: Fault, count: u64) {
        let mut armed = self.armed.subscribe();
        // The sender lives as long as `self`, so the channel cannot be closed here.
        let _ = armed.wait_for(|armed| armed.get(&fault).is_some_and(|reached| *reached >= count)).await;
    }

    /// Returns whether a fault is armed.
    #[must_use]
    pub fn is_armed(&self, fault: Fault) -> bool {
        self.armed.borrow().contains_key(&fault)
    }

    /// Leaks personal data into the log if [`Fault::LeakIntoLog`] is armed.
    ///
    /// # Panics
    ///
    /// Panics with the personal data if [`Fault::PanicInLookup`] is armed.
    pub fn leak_or_panic(&self, personal: &str) {
        if self.is_armed(Fault::LeakIntoLog) {
            tracing::debug!(personal, "a planted leak");
        }
        assert!(!self.is_armed(Fault::PanicInLookup), "a planted panic about {personal}");
    }

    /// Pauses the caller here while the fault is armed.
    pub async fn point(&self, fault: Fault) {
        let is_armed =
            self.armed.send_if_modified(|armed| armed.get_mut(&fault).map(|reached| *reached += 1).is_some());
        if is_armed {
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

    /// Does nothing: this build has no faults.
    #[expect(clippy::unused_async, reason = "the same signature as with the feature")]
    pub async fn point(&self, _fault: Fault) {}
}
