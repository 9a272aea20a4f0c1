//! The configuration and this machine.

use crate::config::Config;

use super::Finding;

/// How many files a process needs beside its connections to clients.
const OTHER_FILES: u64 = 512;

/// Examines the configuration, whose loading caused `warnings`, and the limit of open files.
pub(super) fn examine(config: &Config, warnings: &[String]) -> Vec<Finding> {
    const CHECK: &str = "configuration";
    // The demo is not meant to be secure.
    let of_settings = if config.is_demo { Vec::new() } else { config.warnings() };
    let warning = |text: &String| {
        Finding::warning(CHECK, "settings", text, "change the setting that is named; conf/default.toml explains it")
    };
    let mut found: Vec<Finding> = warnings.iter().chain(&of_settings).map(warning).collect();
    if found.is_empty() {
        let kind = if config.is_demo { " (the demo: no tenant is configured)" } else { "" };
        let (tenants, callers) = (config.tenants.len(), config.callers.len());
        found.push(Finding::ok(CHECK, "settings", format!("valid; tenants: {tenants}, callers: {callers}{kind}")));
    }
    // The service raises the soft limit itself; the hard limit is what the system allows.
    if let Ok((_, allowed)) = rlimit::getrlimit(rlimit::Resource::NOFILE) {
        found.push(open_files(allowed, config.http.limits.max_connections as u64));
    }
    found
}

fn open_files(allowed: u64, connections: u64) -> Finding {
    const CHECK: &str = "machine.files";
    let wanted = connections.saturating_add(OTHER_FILES);
    if allowed >= wanted {
        let allowed = if allowed == u64::MAX { "any number of".to_owned() } else { allowed.to_string() };
        return Finding::ok(CHECK, "limit", format!("{allowed} open files are allowed, {wanted} may be needed"));
    }
    let detail = format!("{allowed} open files are allowed, {wanted} may be needed: fewer connections are accepted");
    let advice = format!(
        "raise the hard limit of open files to {wanted} (LimitNOFILE of systemd, ulimits of the container engine), or \
         lower http.limits.max_connections"
    );
    Finding::warning(CHECK, "limit", detail, advice)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn too_few_open_files_are_reported_with_the_number_that_is_needed() {
        let few = open_files(1_024, 10_000);
        assert_eq!(few.verdict, Verdict::Warning);
        assert!(few.advice.unwrap().contains("10512"));
        assert_eq!(open_files(u64::MAX, 10_000).verdict, Verdict::Ok);
    }
}
