//! The gauge of the circuit breakers of all tenants. It shows the worst state.

use std::sync::Arc;

use metrics::Gauge;
use parking_lot::Mutex;

use super::breaker::BreakerLevel;

/// The part of one tenant in the gauge.
#[derive(Clone, Debug)]
pub(super) struct BreakerGauge {
    levels: Arc<Mutex<Vec<BreakerLevel>>>,
    index: usize,
    gauge: Gauge,
}

impl BreakerGauge {
    /// Creates the parts of this many tenants, all with closed breakers.
    pub(super) fn for_tenants(count: usize, gauge: &Gauge) -> impl Iterator<Item = Self> {
        let levels = Arc::new(Mutex::new(vec![BreakerLevel::Closed; count]));
        let gauge = gauge.clone();
        (0..count).map(move |index| Self { levels: Arc::clone(&levels), index, gauge: gauge.clone() })
    }

    /// Shows the state of this tenant's breaker. The gauge is set under the lock, so that the last value set includes
    /// all states.
    pub(super) fn show(&self, level: BreakerLevel) {
        let mut levels = self.levels.lock();
        levels[self.index] = level;
        self.gauge.set(levels.iter().max().copied().unwrap_or_default().value());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn the_gauge_shows_the_worst_state() {
        let metrics = Metrics::new();
        let gauges: Vec<_> = BreakerGauge::for_tenants(2, &metrics.upstream_breaker_state).collect();
        let shown = || {
            metrics
                .render()
                .lines()
                .find_map(|line| line.strip_prefix("profile_edge_upstream_breaker_state ").map(str::to_owned))
        };
        gauges[0].show(BreakerLevel::Open);
        gauges[1].show(BreakerLevel::HalfOpen);
        assert_eq!(shown().as_deref(), Some("2"));
        gauges[0].show(BreakerLevel::Closed);
        assert_eq!(shown().as_deref(), Some("1"));
    }
}
