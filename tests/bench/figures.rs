//! Figures: the resources of a process, its metrics, and the comparison with targets.

use std::net::SocketAddr;
use std::time::Duration;

use crate::load;

/// The unit of CPU time in /proc (`USER_HZ`): 10 ms on all relevant architectures.
const TICK: Duration = Duration::from_millis(10);

/// Returns the CPU time of a process so far, in user and kernel mode.
pub(crate) fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The second field, the name in parentheses, may contain spaces; fields 14 and 15 are the times.
    let rest = stat.rsplit_once(')').expect("a name in parentheses").1;
    let ticks = rest.split_ascii_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u32>().expect("a number"));
    TICK * ticks.sum::<u32>()
}

/// Returns the peak resident memory of a process so far, in MiB.
pub(crate) fn peak_memory(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

/// Returns the resident memory of a process, in MiB.
pub(crate) fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

/// A scrape of the metrics of a service.
pub(crate) struct Scrape(String);

impl Scrape {
    pub(crate) async fn of(admin: SocketAddr) -> Self {
        Self(String::from_utf8(load::fetch(admin, "/metrics").await).expect("metrics are text"))
    }

    /// Returns the sum of all series that start with `series`.
    pub(crate) fn sum(&self, series: &str) -> f64 {
        let values = self.0.lines().filter(|line| line.starts_with(series));
        values.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0)).sum()
    }

    /// Returns the buckets of a histogram: upper bounds and cumulative counts.
    fn buckets(&self, name: &str, label: &str) -> Vec<(f64, f64)> {
        let series = self.0.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with("_bucket{")) && line.contains(label)
        });
        let bucket = |line: &str| {
            let bound = line.split("le=\"").nth(1)?.split('"').next()?;
            Some((bound.replace("+Inf", "inf").parse().ok()?, line.rsplit(' ').next()?.parse().ok()?))
        };
        series.map(|line| bucket(line).expect("a bucket has a bound and a count")).collect()
    }
}

/// Estimates a quantile of a histogram between two scrapes, assuming an even distribution within each bucket.
pub(crate) fn quantile(name: &str, label: &str, before: &Scrape, after: &Scrape, share: f64) -> Duration {
    let earlier = before.buckets(name, label);
    let earlier = |bound: f64| earlier.iter().find(|(other, _)| *other == bound).map_or(0.0, |(_, count)| *count);
    let seen: Vec<(f64, f64)> =
        after.buckets(name, label).into_iter().map(|(bound, count)| (bound, count - earlier(bound))).collect();
    let wanted = share * seen.last().expect("a histogram has buckets").1;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in seen {
        if count >= wanted {
            let part = if count > below { (wanted - below) / (count - below) } else { 0.0 };
            // The last bucket has no upper bound.
            let high = if f64::is_finite(bound) { bound } else { low };
            return Duration::from_secs_f64(low + (high - low) * part);
        }
        (low, below) = (bound, count);
    }
    Duration::from_secs_f64(low)
}

/// Prints a figure with its target, and whether it is met.
pub(crate) fn report_figure(what: &str, value: &str, target: &str, met: bool) {
    println!("  {what:<44} {value:>12}   target {target:<12} {}", if met { "met" } else { "MISSED" });
}
