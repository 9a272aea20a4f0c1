//! `profile-edge doctor`: examines everything and prints what was found.

use std::path::{Path, PathBuf};

use crate::clock::SystemClock;
use crate::config::Loaded;
use crate::doctor::{self, Finding, Options, Service, Verdict};
use crate::domain::Secret;

use super::args::DoctorArgs;
use super::listener::ServiceArgs;
use super::listener::{client_of, public_client};
use super::{Exit, complain, print, read};

/// The key of the demo's caller.
const DEMO_KEY: &str = "demo-key";

/// Examines the configuration and everything that it names.
pub(super) async fn run(args: DoctorArgs) -> Exit {
    let as_json = args.service.json;
    let findings = match read(&args.service.config, None) {
        Ok(loaded) => match examine(loaded, args).await {
            Ok(findings) => findings,
            Err(exit) => return exit,
        },
        Err(errors) => {
            let advice = "correct it; profile-edge check-config prints every setting with its origin";
            let failed = |problem: String| Finding::failed("configuration", "settings", problem, advice);
            errors.0.iter().map(ToString::to_string).map(failed).collect()
        }
    };
    print(&if as_json { doctor::json_lines(&findings) } else { doctor::text(&findings) });
    match doctor::worst(&findings) {
        Verdict::Ok => Exit::Ok,
        Verdict::Warning => Exit::NotInOrder,
        Verdict::Failed => Exit::NotWorking,
    }
}

async fn examine(loaded: Loaded, args: DoctorArgs) -> Result<Vec<Finding>, Exit> {
    let Loaded { mut config, warnings, .. } = loaded;
    config.point_demo_at(config.sandbox.listen);
    let DoctorArgs { service, tenant, url, caller_key, rabbitmq_api, without_service } = args;
    if let Some(tenant) = tenant.as_ref().filter(|id| config.tenants.iter().all(|tenant| tenant.id != **id)) {
        complain(&format!("--tenant: no [[tenant]] has the id \"{tenant}\""));
        return Err(Exit::Usage);
    }
    let caller_key = caller_key.or_else(|| config.is_demo.then(|| DEMO_KEY.to_owned())).map(Secret::new);
    let pack = service.config.file().and_then(pack_beside);
    let public_url = url.clone();
    let service = if without_service { None } else { Some(running(&config, service, url, caller_key)?) };
    let options = Options { tenant, service, public_url, pack, rabbitmq_api };
    Ok(doctor::examine(&config, &options, &warnings, &SystemClock::shared()).await)
}

/// Returns the directory with the files to import, where `init` has written it beside the configuration.
fn pack_beside(config: &Path) -> Option<PathBuf> {
    let pack = config.parent()?.join("genesys");
    pack.join("README.md").is_file().then_some(pack)
}

fn running(
    config: &crate::config::Config,
    service: ServiceArgs,
    url: Option<url::Url>,
    caller_key: Option<Secret>,
) -> Result<Service, Exit> {
    let (url, http) = public_client(url, config.http.listen, config.http.tls.cert.clone(), service.tls.clone())?;
    let admin = client_of(service)?;
    Ok(Service { url, http, admin, caller_key })
}
