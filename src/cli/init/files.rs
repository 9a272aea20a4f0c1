//! The files that `profile-edge init` writes: the configuration, a file for each secret, and the files to import.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use url::Position;

use crate::domain::Secret;
use crate::private_files::{FILE_MODE, create_directory};

use super::answers::{Answers, Genesys};

/// The host and the tenant in the files to import.
const HOST: &str = "https://edge.example.com";
const BARE_HOST: &str = "edge.example.com";
const TENANT: &str = "10001";
/// What the page about these files says of them.
const PLACEHOLDERS: &str = "`edge.example.com` and `10001` stand for the public host and the tenant. `profile-edge init` writes these files with both filled in.";

/// The files to import into Genesys and AWS.
const PACK: [(&str, &str); 13] = [
    ("README.md", include_str!("../../../conf/genesys/README.md")),
    ("oauth-role.json", include_str!("../../../conf/genesys/oauth-role.json")),
    ("oauth-client.json", include_str!("../../../conf/genesys/oauth-client.json")),
    ("data-action-profile-by-id.json", include_str!("../../../conf/genesys/data-action-profile-by-id.json")),
    ("data-action-profile-by-phone.json", include_str!("../../../conf/genesys/data-action-profile-by-phone.json")),
    ("data-action-profile-by-email.json", include_str!("../../../conf/genesys/data-action-profile-by-email.json")),
    ("data-action-direct-by-phone.json", include_str!("../../../conf/genesys/data-action-direct-by-phone.json")),
    ("data-action-post-event.json", include_str!("../../../conf/genesys/data-action-post-event.json")),
    ("flow-inbound-call.yaml", include_str!("../../../conf/genesys/flow-inbound-call.yaml")),
    ("workflow-trigger.json", include_str!("../../../conf/genesys/workflow-trigger.json")),
    ("eventbridge.yaml", include_str!("../../../conf/genesys/eventbridge.yaml")),
    ("terraform/genesys.tf", include_str!("../../../conf/genesys/terraform/genesys.tf")),
    ("terraform/eventbridge.tf", include_str!("../../../conf/genesys/terraform/eventbridge.tf")),
];

/// What is wrong with a public URL of this machine.
const LOCAL: &str = "warning: Genesys cannot reach the public URL, which is of this machine. Before you import the files, run init again \
    with --force and --public-url.\n\n";

/// What is to be written.
pub(super) struct Plan {
    directory: PathBuf,
    /// The configuration, in which `{{NAME}}` stands for a secret.
    template: String,
    /// The secrets by name.
    secrets: Vec<(String, Secret)>,
    imports: Vec<(&'static str, String)>,
}

impl Plan {
    /// Plans the files for some answers; new secrets are drawn.
    pub(super) fn of(answers: &Answers, directory: &Path) -> Self {
        let mut secrets = vec![
            ("keys".to_owned(), random()),
            ("tokens".to_owned(), random()),
            ("webhook".to_owned(), random()),
            ("client-secret".to_owned(), answers.client_secret.clone()),
        ];
        secrets.extend(answers.callers.iter().map(|name| (format!("caller-{name}"), random())));
        secrets.extend(answers.redis_url.clone().map(|url| ("redis-url".to_owned(), url)));
        secrets.extend(answers.amqp_url.clone().map(|url| ("amqp-url".to_owned(), url)));
        let template = template(answers, directory, &secrets);
        let url = answers.public_url.as_str().trim_end_matches('/');
        let host = &answers.public_url[Position::BeforeHost..Position::AfterPort];
        let (tenant, written) = (
            answers.tenant.to_string(),
            format!("Written by `profile-edge init` for {url} and the tenant {}.", answers.tenant),
        );
        let fill = |text: &str| {
            text.replace(PLACEHOLDERS, &written).replace(HOST, url).replace(BARE_HOST, host).replace(TENANT, &tenant)
        };
        let imports = PACK.into_iter().map(|(name, text)| (name, fill(text))).collect();
        Self { directory: directory.to_owned(), template, secrets, imports }
    }

    /// Returns the path of the configuration.
    pub(super) fn configuration(&self) -> PathBuf {
        self.directory.join("edge.toml")
    }

    /// Returns the directory of the files to import.
    pub(super) fn pack(&self) -> PathBuf {
        self.directory.join("genesys")
    }

    fn secret_file(&self, name: &str) -> PathBuf {
        self.directory.join("secrets").join(name)
    }

    /// Returns the configuration with the secrets themselves; it is only validated.
    pub(super) fn settings_in_place(&self) -> String {
        self.secrets.iter().fold(self.template.clone(), |text, (name, secret)| {
            text.replace(&placeholder(name), &quoted(secret.expose()))
        })
    }

    fn settings(&self) -> String {
        self.secrets.iter().fold(self.template.clone(), |text, (name, _)| {
            text.replace(&placeholder(name), &quoted(&format!("file:{}", self.secret_file(name).display())))
        })
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let secrets = self.secrets.iter().map(|(name, _)| self.secret_file(name));
        let imports = self.imports.iter().map(|(name, _)| self.pack().join(name));
        std::iter::once(self.configuration()).chain(secrets).chain(imports)
    }

    /// Returns the first file that exists already.
    pub(super) fn existing(&self) -> Option<PathBuf> {
        self.paths().find(|path| path.exists())
    }

    /// Writes all files, readable by their owner only.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(super) fn write(&self) -> io::Result<()> {
        create_directory(&self.directory.join("secrets"))?;
        create_directory(&self.directory.join("genesys/terraform"))?;
        for (name, secret) in &self.secrets {
            write(&self.secret_file(name), secret.expose())?;
        }
        for (name, text) in &self.imports {
            write(&self.pack().join(name), text)?;
        }
        write(&self.configuration(), &self.settings())
    }

    /// Returns what is to be done next, for people.
    pub(super) fn next_steps(&self, answers: &Answers) -> String {
        let (config, genesys) = (self.configuration(), self.pack());
        let (config, genesys) = (config.display(), genesys.display());
        let url = answers.public_url.as_str().trim_end_matches('/');
        let caller = answers.callers.first().map_or("architect", String::as_str);
        let key = self.secret_file(&format!("caller-{caller}"));
        let (webhook, tenant) = (self.secret_file("webhook"), &answers.tenant);
        format!(
            "Written: {config}, its secrets, and the files to import in {genesys}\n\n\
             At Genesys ({genesys}/README.md has the details):\n\
             1. Role and OAuth client: oauth-role.json, oauth-client.json. Done, if genesys.token and genesys.permissions are ok below.\n\
             2. A Web Services Data Actions integration; its User Defined credential has the field apiKey: the content of\n   \
             {}\n   \
             Import data-action-profile-by-id.json, -by-phone.json, -by-email.json. They post to {url}/api/v1/profile\n\
             3. Events: eventbridge.yaml or terraform/, or the workflow. They post to {url}/webhooks/{tenant} with X-API-Key:\n   \
             the content of {}\n\n\
             Start:  profile-edge run --config {config}\n\
             Check:  PROFILE_EDGE_CALLER_KEY=\"$(cat {})\" profile-edge doctor --config {config}\n\n{}",
            key.display(),
            webhook.display(),
            key.display(),
            if answers.is_local() { LOCAL } else { "" },
        )
    }
}

fn template(answers: &Answers, directory: &Path, secrets: &[(String, Secret)]) -> String {
    let has = |name: &str| secrets.iter().any(|(secret, _)| secret == name);
    let mut text = String::from(
        "# Written by profile-edge init. conf/default.toml explains every option; profile-edge check-config prints them all.\n\n\
         [http]\n# Behind a proxy that terminates TLS; or set tls.cert and tls.key.\nlisten = \"127.0.0.1:8080\"\n\
         # Signs the tokens of POST /oauth/token; the same on every process.\ntoken_secret = {{tokens}}\n\n\
         # With a key, nobody who reads the store can test whether a person is a customer.\n\
         [keys]\nscheme = \"hmac-sha256\"\nsecret = {{keys}}\n\n",
    );
    let mut add = |part: &str| text.push_str(part);
    if has("redis-url") {
        add("# Entries, shared by all processes.\n[store]\nkind = \"redis\"\n\n[store.redis]\nurl = {{redis-url}}\n\n");
    }
    if has("amqp-url") {
        add("# Events, shared by all processes.\n[queue]\nkind = \"amqp\"\n\n[queue.amqp]\nurl = {{amqp-url}}\n\n");
    } else {
        let path = quoted(&directory.join("queue").display().to_string());
        add(&format!("# Events, in a file of this process.\n[queue.embedded]\npath = {path}\n\n"));
    }
    let path = quoted(&directory.join("audit.jsonl").display().to_string());
    add(&format!("# Who saw what.\n[audit]\nsink = \"file\"\npath = {path}\n\n"));
    let place = match &answers.genesys {
        Genesys::Region(region) => format!("region = {}", quoted(region)),
        Genesys::Url(url) => format!("api_url = {0}\nlogin_url = {0}", quoted(url.as_str())),
    };
    let (tenant, client) = (quoted(&answers.tenant.to_string()), quoted(&answers.client_id));
    add(&format!(
        "[[tenant]]\nid = {tenant}\n\n[tenant.upstream]\n{place}\nclient_id = {client}\nclient_secret = {{{{client-secret}}}}\n\
         # The budget of this process; the sum over all processes must respect the organisation's limit.\n\
         requests_per_minute = 300\n\n\
         # Events of changed contacts: POST /webhooks/{}, with this secret in X-API-Key.\n\
         [[tenant.webhook]]\nscheme = \"api-key\"\nsecrets = [{{{{webhook}}}}]\n\n",
        answers.tenant
    ));
    for name in &answers.callers {
        // The key was drawn above, under this name.
        let key = secrets.iter().find(|(secret, _)| *secret == format!("caller-{name}"));
        let digest = key.map(|(_, key)| hex::encode(Sha256::digest(key.expose()))).unwrap_or_default();
        let name = quoted(name);
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "[[caller]]\nname = {name}\nkey_sha256 = \"{digest}\"\ntenants = [{tenant}]\n\
             # The fields that it may read; \"*\" for all.\n\
             fields = [\"id\", \"firstName\", \"lastName\", \"workEmail\", \"workPhone.e164\"]\n\
             # What it may look customers up by: the data actions use all three.\n\
             lookup_by = [\"customerId\", \"phone\", \"email\"]\n\n"
        );
    }
    text
}

/// Formats a text as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn placeholder(name: &str) -> String {
    format!("{{{{{name}}}}}")
}

fn random() -> Secret {
    Secret::new(STANDARD.encode(rand::random::<[u8; 32]>()))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // An existing file may have a wider mode, or be a link.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?.write_all(text.as_bytes())
}
