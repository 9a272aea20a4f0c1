//! The budget of requests of one tenant, shared fairly by its callers: a pure state machine over the time that is passed.
//!
//! It is a token bucket of one minute's requests. One half is *common*: any caller may take from it, so while requests
//! are plenty, nobody is limited. The other half is *reserved*: each caller that requested something within
//! [`REMEMBERED`] has an account of an equal part. What the minute adds fills the accounts first, in equal shares, and what
//! a full account does not need goes to the others (max-min fairness). So:
//!
//! - A caller that is alone may use everything.
//! - When requests are scarce, each caller gets an equal share of what is added, and more if others need less. A caller
//!   that begins to request gets its share at once, whatever the others have spent.
//! - Customers that do not exist are bounded for each caller: a quarter of the budget, prefetches included. Above it the caller
//!   waits, because random ids would otherwise cost a request each.
//! - Fetches past a store that does not answer are bounded: half of the budget. Otherwise its failure would turn every hit
//!   into a request, and nothing would be left for the misses when it is back.
//! - Verifications of agents' tokens are one more caller, and bounded: half of the budget, and a quarter for tokens that were
//!   never valid, because anybody can present them.
//! - Refreshes in the background pass only while more than half of the common part is left, so they take nothing that a
//!   waiting caller needs. Prefetches for callers pass only while more than three quarters of it are left, so they take nothing
//!   that refreshes need.
//!
//! Its state is one account for each caller, which is forgotten after [`REMEMBERED`]; callers are named by the configuration.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Requester;

/// How long a caller that requests nothing keeps its account.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The shortest time between two distributions of what was added: it bounds the work of refused requests.
const STEP: Duration = Duration::from_millis(5);

/// The part of the budget that may be spent on customers that do not exist, for each caller.
const ABSENT_PART: f64 = 0.25;

/// The part of the budget that refreshes leave in the common part, and that prefetches for callers leave.
const KEPT_BY_REFRESHES: f64 = 0.25;
const KEPT_BY_PREFETCHES: f64 = 0.375;

/// The part of the budget that may be spent on fetches past the store.
const BYPASS_PART: f64 = 0.5;

/// The part of the budget that may be spent on verifications of agents' tokens.
const AGENTS_PART: f64 = 0.5;

/// The part of the budget that may be spent on verifications of tokens that were never valid.
const STRANGERS_PART: f64 = 0.25;

/// The account of verifications. No caller has this name.
const VERIFICATIONS: &str = "tokens of agents";

/// One request; less a rounding error.
const ONE: f64 = 1.0 - 1e-6;

/// The budget of one tenant; see the module's head.
#[derive(Debug)]
pub(super) struct Budget {
    /// The most requests per minute, also the size of the bucket.
    per_minute: f64,
    common: f64,
    /// How many more fetches may go past the store.
    bypass: f64,
    /// How many more tokens of agents may be verified, and how many of these were never valid.
    agents: f64,
    strangers: f64,
    accounts: HashMap<Arc<str>, Account>,
    /// How many absent customers each caller has asked for, less what the time has forgiven.
    absent: HashMap<Arc<str>, f64>,
    filled_at: Instant,
}

/// What is reserved for one caller.
#[derive(Debug)]
struct Account {
    reserved: f64,
    requested_at: Instant,
}

impl Budget {
    /// Creates a full budget.
    pub(super) fn new(per_minute: u32, now: Instant) -> Self {
        let per_minute = f64::from(per_minute);
        let (bypass, agents) = (per_minute * BYPASS_PART, per_minute * AGENTS_PART);
        let strangers = (per_minute * STRANGERS_PART).max(1.0);
        let (common, accounts, absent) = (per_minute, HashMap::new(), HashMap::new());
        Self { per_minute, common, bypass, agents: agents.max(1.0), strangers, accounts, absent, filled_at: now }
    }

    /// Takes one request.
    ///
    /// # Errors
    ///
    /// There is none for this requester; returns the time until there is.
    pub(super) fn spend(&mut self, requester: &Requester, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        let (caller, is_bypass) = match requester {
            Requester::Caller(caller) => (caller, false),
            Requester::Bypass(caller) => (caller, true),
            Requester::Prefetch(caller) => {
                self.check_absent(caller)?;
                self.spend_in_background(KEPT_BY_PREFETCHES)?;
                // Many are sent at once: each counts as absent until it is answered.
                *self.absent.entry(Arc::clone(caller)).or_default() += 1.0;
                return Ok(());
            }
            Requester::Background => return self.spend_in_background(KEPT_BY_REFRESHES),
        };
        if is_bypass && self.bypass < ONE {
            return Err(wait(1.0 - self.bypass, self.per_second() * BYPASS_PART));
        }
        self.check_absent(caller)?;
        self.open_account(caller, now);
        let (rate, hungry) = (self.per_second(), self.hungry());
        let Some(account) = self.accounts.get_mut(caller) else { return Ok(()) };
        let left = self.common + account.reserved;
        if left < ONE {
            return Err(wait(1.0 - left, rate / hungry.max(1.0)));
        }
        let from_common = self.common.min(1.0);
        self.common -= from_common;
        account.reserved = (account.reserved - (1.0 - from_common)).max(0.0);
        self.bypass -= f64::from(u8::from(is_bypass));
        Ok(())
    }

    /// Takes one request for the verification of an agent's token. `is_known`: it was valid before.
    ///
    /// # Errors
    ///
    /// As [`spend`](Self::spend).
    pub(super) fn verify(&mut self, is_known: bool, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        let rate = self.per_second();
        if self.agents < ONE {
            return Err(wait(1.0 - self.agents, rate * AGENTS_PART));
        }
        if !is_known && self.strangers < ONE {
            return Err(wait(1.0 - self.strangers, rate * STRANGERS_PART));
        }
        self.spend(&Requester::Caller(VERIFICATIONS.into()), now)?;
        self.agents -= 1.0;
        self.strangers -= f64::from(u8::from(!is_known));
        Ok(())
    }

    /// Records whether a request of this requester found no customer.
    pub(super) fn answered(&mut self, requester: &Requester, is_absent: bool) {
        match requester {
            Requester::Caller(caller) | Requester::Bypass(caller) if is_absent => {
                *self.absent.entry(Arc::clone(caller)).or_default() += 1.0;
            }
            Requester::Prefetch(caller) if !is_absent => {
                if let Some(absent) = self.absent.get_mut(caller) {
                    *absent -= 1.0;
                }
            }
            Requester::Caller(_) | Requester::Bypass(_) | Requester::Prefetch(_) | Requester::Background => {}
        }
    }

    /// Checks whether a caller may ask for another absent customer. Several requests at once may exceed the bound.
    fn check_absent(&self, caller: &Arc<str>) -> Result<(), Duration> {
        let left = (self.per_minute * ABSENT_PART).max(1.0) - self.absent.get(caller).copied().unwrap_or_default();
        if left < ONE { Err(wait(1.0 - left, self.per_second() * ABSENT_PART)) } else { Ok(()) }
    }

    fn spend_in_background(&mut self, kept: f64) -> Result<(), Duration> {
        let spare = self.common - self.per_minute * kept;
        if spare < ONE.min(self.per_minute / 4.0) {
            return Err(wait(1.0 - spare, self.per_second()));
        }
        self.common = (self.common - 1.0).max(0.0);
        Ok(())
    }

    /// Opens the account of a caller that has none, with its part of what the others' accounts have too much.
    fn open_account(&mut self, caller: &Arc<str>, now: Instant) {
        if let Some(account) = self.accounts.get_mut(caller) {
            account.requested_at = now;
            return;
        }
        self.accounts.insert(Arc::clone(caller), Account { reserved: 0.0, requested_at: now });
        let part = self.part();
        let mut released = (self.common - self.per_minute / 2.0).max(0.0);
        self.common -= released;
        for account in self.accounts.values_mut() {
            released += (account.reserved - part).max(0.0);
            account.reserved = account.reserved.min(part);
        }
        if let Some(account) = self.accounts.get_mut(caller) {
            account.reserved = part.min(released);
            released -= account.reserved;
        }
        self.common += released;
    }

    /// Distributes what was added since the last time, and closes the accounts of callers that are gone.
    fn fill(&mut self, now: Instant) {
        let elapsed = now.duration_since(self.filled_at);
        if elapsed < STEP {
            return;
        }
        self.filled_at = now;
        let common = &mut self.common;
        self.accounts.retain(|_, account| {
            let stays = now.duration_since(account.requested_at) < REMEMBERED;
            *common += if stays { 0.0 } else { account.reserved };
            stays
        });
        let mut added = self.per_second() * elapsed.as_secs_f64();
        let refilled = |left: f64, part: f64| (left + added * part).min((self.per_minute * part).max(1.0));
        self.agents = refilled(self.agents, AGENTS_PART);
        self.strangers = refilled(self.strangers, STRANGERS_PART);
        self.bypass = (self.bypass + added * BYPASS_PART).min(self.per_minute * BYPASS_PART);
        let forgiven = added * ABSENT_PART;
        self.absent.retain(|_, absent| {
            *absent -= forgiven;
            *absent > 0.0
        });
        let part = self.part();
        // The fullest accounts first: what one of them does not need is shared by those after it.
        let mut accounts: Vec<_> = self.accounts.values_mut().collect();
        accounts.sort_unstable_by(|a, b| b.reserved.total_cmp(&a.reserved));
        let mut others: u32 = accounts.len().try_into().unwrap_or(u32::MAX);
        for account in accounts {
            let gets = (added / f64::from(others.max(1))).min((part - account.reserved).max(0.0));
            account.reserved += gets;
            added -= gets;
            others -= 1;
        }
        let reserved: f64 = self.accounts.values().map(|account| account.reserved).sum();
        self.common = (self.common + added).min(self.per_minute - reserved).max(0.0);
    }

    fn per_second(&self) -> f64 {
        self.per_minute / 60.0
    }

    /// Returns the size of one account.
    fn part(&self) -> f64 {
        self.per_minute / 2.0 / count(self.accounts.len()).max(1.0)
    }

    /// Returns how many accounts are not full.
    fn hungry(&self) -> f64 {
        let part = self.part() * ONE;
        count(self.accounts.values().filter(|account| account.reserved < part).count())
    }
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

/// Returns the time until `missing` requests are added.
fn wait(missing: f64, per_second: f64) -> Duration {
    Duration::from_secs_f64((missing / per_second).clamp(0.0, 3600.0)).max(STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Requester {
        Requester::Caller(name.into())
    }

    fn spent_at_once(budget: &mut Budget, requester: &Requester, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.spend(requester, now).is_ok()).count()
    }

    #[test]
    fn a_caller_alone_may_use_everything_and_never_more() {
        let now = Instant::now();
        let mut budget = Budget::new(300, now);
        assert_eq!(spent_at_once(&mut budget, &caller("a"), now), 300);
        let until = budget.spend(&caller("a"), now).unwrap_err();
        assert_eq!(until.as_millis(), 200);
        assert_eq!(spent_at_once(&mut budget, &caller("a"), now + Duration::from_secs(10)), 50);
    }

    #[test]
    fn a_caller_that_begins_gets_half_of_what_is_added() {
        let mut now = Instant::now();
        let mut budget = Budget::new(300, now);
        spent_at_once(&mut budget, &caller("a"), now);
        let (mut a, mut b) = (0, 0);
        for _ in 0..1000 {
            now += Duration::from_millis(10);
            a += spent_at_once(&mut budget, &caller("a"), now);
            b += spent_at_once(&mut budget, &caller("b"), now);
        }
        assert!((24..=26).contains(&a) && (24..=26).contains(&b), "{a} {b}");
    }

    #[test]
    fn fetches_past_the_store_leave_half_of_the_budget() {
        let now = Instant::now();
        let mut budget = Budget::new(300, now);
        let past = caller("a").past_the_store();
        assert_eq!(spent_at_once(&mut budget, &past, now), 150);
        assert_eq!(budget.spend(&past, now).unwrap_err().as_millis(), 400);
        assert_eq!(spent_at_once(&mut budget, &caller("a"), now), 150);
        assert_eq!(spent_at_once(&mut budget, &past, now + Duration::from_secs(10)), 25);
    }

    #[test]
    fn tokens_that_were_never_valid_leave_enough_for_others() {
        let now = Instant::now();
        let mut budget = Budget::new(400, now);
        let verified =
            |budget: &mut Budget, is_known| (0..1000).take_while(|_| budget.verify(is_known, now).is_ok()).count();
        assert_eq!(verified(&mut budget, false), 100);
        assert_eq!(verified(&mut budget, true), 100);
        // Its equal share; verifications keep theirs, as any caller.
        assert_eq!(spent_at_once(&mut budget, &caller("a"), now), 100);
    }

    #[test]
    fn what_one_caller_does_not_need_goes_to_the_others() {
        let mut now = Instant::now();
        let mut budget = Budget::new(600, now);
        budget.spend(&caller("quiet"), now).unwrap();
        spent_at_once(&mut budget, &caller("greedy"), now);
        let (mut refused, mut greedy) = (0, 0);
        for second in 0..30 {
            for _ in 0..10 {
                now += Duration::from_millis(100);
                greedy += spent_at_once(&mut budget, &caller("greedy"), now);
            }
            refused += usize::from(second % 2 == 0 && budget.spend(&caller("quiet"), now).is_err());
        }
        assert_eq!(refused, 0);
        assert!(greedy > 250, "{greedy} of the 300 that were added");
    }

    #[test]
    fn absent_customers_are_bounded_and_refreshes_leave_enough() {
        let now = Instant::now();
        let mut budget = Budget::new(400, now);
        let mut found_nothing = 0;
        while budget.spend(&caller("a"), now).is_ok() {
            budget.answered(&caller("a"), true);
            found_nothing += 1;
        }
        assert_eq!(found_nothing, 100);
        assert!(spent_at_once(&mut budget, &Requester::Background, now) <= 200);
        assert!(spent_at_once(&mut budget, &caller("b"), now) >= 100);
    }

    #[test]
    fn prefetches_count_absent_customers_and_leave_enough_to_refreshes() {
        let now = Instant::now();
        let mut budget = Budget::new(400, now);
        let prefetch = |name: &str| Requester::Prefetch(name.into());
        let mut found_nothing = 0;
        while budget.spend(&prefetch("a"), now).is_ok() {
            budget.answered(&prefetch("a"), true);
            found_nothing += 1;
        }
        assert_eq!(found_nothing, 100);
        assert!(budget.spend(&caller("a"), now).is_err(), "lookups and prefetches have one bound");
        let mut found = 0;
        while budget.spend(&prefetch("b"), now).is_ok() {
            budget.answered(&prefetch("b"), false);
            found += 1;
        }
        assert_eq!(found, 150);
        assert_eq!(spent_at_once(&mut budget, &prefetch("c"), now), 0);
        assert_eq!(spent_at_once(&mut budget, &Requester::Background, now), 50);
        assert!(budget.spend(&caller("b"), now).is_ok());
    }
}
