//! `profile-edge init`: writes a configuration, its secrets, and the files to import into Genesys; then runs the doctor.
//!
//! Nothing is written before the configuration has been validated, and nothing is overwritten without `--force`.

mod answers;
mod files;

use std::path::{Path, PathBuf};

use url::Url;

use crate::clock::SystemClock;
use crate::config;
use crate::doctor;

use super::{Exit, complain, print};

use answers::Answers;
pub(super) use answers::InitArgs;
use files::Plan;

/// Asks for what the arguments leave open, writes the files, prints what is to be done at Genesys, and runs the doctor.
pub(super) async fn run(args: InitArgs) -> Exit {
    let (directory, force) = (args.dir.clone(), args.force);
    let answers = match Answers::complete(args) {
        Ok(answers) => answers,
        Err(problem) => {
            complain(&problem);
            return Exit::Usage;
        }
    };
    let directory = match absolute(&directory) {
        Ok(directory) => directory,
        Err(error) => {
            complain(&format!("--dir {}: {error}", directory.display()));
            return Exit::Usage;
        }
    };
    let plan = Plan::of(&answers, &directory);
    // The same settings with the secrets in place, so that a mistake leaves no file behind.
    if let Err(errors) = config::from_toml(&plan.settings_in_place()) {
        for problem in &errors.0 {
            complain(&format!("configuration: {problem}"));
        }
        return Exit::Usage;
    }
    if let Some(existing) = plan.existing().filter(|_| !force) {
        complain(&format!("{} exists: nothing was written, use --force to overwrite it", existing.display()));
        return Exit::Usage;
    }
    if let Err(error) = plan.write() {
        complain(&format!("cannot write into {}: {error}", directory.display()));
        return Exit::Internal;
    }
    print(&plan.next_steps(&answers));
    examine(&plan, answers.public_url).await;
    Exit::Ok
}

fn absolute(directory: &Path) -> std::io::Result<PathBuf> {
    let path = std::path::absolute(directory)?;
    if path.to_str().is_none() {
        return Err(std::io::Error::other("the path is not valid UTF-8"));
    }
    Ok(path)
}

/// Checks what the written configuration depends on, and prints it.
async fn examine(plan: &Plan, public_url: Url) {
    let loaded = match config::load(Some(&plan.configuration()), std::iter::empty(), None) {
        Ok(loaded) => loaded,
        Err(errors) => return complain(&errors.to_string()),
    };
    let (public_url, pack) = (Some(public_url), Some(plan.pack()));
    let options = doctor::Options { tenant: None, service: None, public_url, pack, rabbitmq_api: None };
    let clock = SystemClock::shared();
    print(&doctor::text(&doctor::examine(&loaded.config, &options, &loaded.warnings, &clock).await));
}
