//! The option file: where the server is, how it is reached, and the password.

use std::io::Write;
use std::path::Path;

use sealift_common::secret::Secret;
use tempfile::NamedTempFile;

use crate::config::secret::require_private;
use crate::config::source::{Host, Mysql, TlsMode};
use crate::source::error::SourceError;
use crate::source::{SourceEnv, system_ca};

/// Writes the file; 0600, gone when it is dropped.
pub fn write(
    mysql: &Mysql,
    password: Option<&Secret<String>>,
    for_mariadb_tools: bool,
    env: &SourceEnv,
) -> Result<NamedTempFile, SourceError> {
    if let Some(own) = &mysql.config_file {
        require_private(own.as_path()).map_err(SourceError::Config)?;
    }
    let mut file = env.temp.file("client-")?;
    let content = content(mysql, password, for_mariadb_tools);
    file.write_all(content.expose().as_bytes()).map_err(SourceError::io("write", file.path()))?;
    Ok(file)
}

fn content(mysql: &Mysql, password: Option<&Secret<String>>, for_mariadb_tools: bool) -> Secret<String> {
    let mut lines = String::new();
    if let Some(own) = &mysql.config_file {
        // Read first, so that what the source says prevails.
        lines.push_str(&format!("!include {}\n", own.as_path().display()));
    }
    lines.push_str("[client]\n");
    for (key, value) in location(mysql) {
        lines.push_str(&format!("{key}={}\n", quoted(&value)));
    }
    for (key, value) in tls(mysql, for_mariadb_tools) {
        match value {
            Some(value) => lines.push_str(&format!("{key}={}\n", quoted(&value))),
            None => lines.push_str(&format!("{key}\n")),
        }
    }
    if let Some(password) = password {
        lines.push_str(&format!("password={}\n", quoted(password.expose())));
    }
    Secret::new(lines)
}

/// In double quotes, as option files want it.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

fn location(mysql: &Mysql) -> Vec<(&'static str, String)> {
    let url = &mysql.url;
    let mut options = Vec::new();
    match &url.host {
        Host::Default => {}
        Host::Socket(path) => {
            options.push(("host", "localhost".to_owned()));
            options.push(("protocol", "socket".to_owned()));
            options.push(("socket", path.display().to_string()));
        }
        Host::Network(name) => {
            options.push(("host", name.clone()));
            // By itself "localhost" means the socket, whatever port is named.
            if url.port.is_some() || name != "localhost" {
                options.push(("protocol", "tcp".to_owned()));
            }
        }
    }
    options.extend(url.port.map(|port| ("port", port.to_string())));
    options.extend(url.user.clone().map(|user| ("user", user)));
    options
}

/// MariaDB's clients have no word for each mode; `verify-ca` is the full check there.
fn tls(mysql: &Mysql, for_mariadb_tools: bool) -> Vec<(&'static str, Option<String>)> {
    let mode = mysql.tls.mode(&mysql.url);
    let mut options = match (for_mariadb_tools, mode) {
        (true, TlsMode::Disable) => vec![("skip-ssl", None)],
        (true, TlsMode::Prefer) => vec![("skip-ssl-verify-server-cert", None)],
        (true, TlsMode::Require) => vec![("ssl", None), ("skip-ssl-verify-server-cert", None)],
        (true, TlsMode::VerifyCa | TlsMode::VerifyFull) => {
            vec![("ssl", None), ("ssl-verify-server-cert", None)]
        }
        (false, TlsMode::Disable) => vec![("ssl-mode", Some("DISABLED".to_owned()))],
        (false, TlsMode::Prefer) => vec![("ssl-mode", Some("PREFERRED".to_owned()))],
        (false, TlsMode::Require) => vec![("ssl-mode", Some("REQUIRED".to_owned()))],
        (false, TlsMode::VerifyCa) => vec![("ssl-mode", Some("VERIFY_CA".to_owned()))],
        (false, TlsMode::VerifyFull) => vec![("ssl-mode", Some("VERIFY_IDENTITY".to_owned()))],
    };
    if mode == TlsMode::Disable {
        return options;
    }
    let text = |path: &Path| Some(path.display().to_string());
    let tls = &mysql.tls;
    let ca = tls.ca.as_ref().map(|path| path.as_path()).or_else(|| system_ca(mode));
    options.extend(ca.map(|path| ("ssl-ca", text(path))));
    options.extend(tls.certificate.as_ref().map(|path| ("ssl-cert", text(path.as_path()))));
    options.extend(tls.key.as_ref().map(|path| ("ssl-key", text(path.as_path()))));
    options
}
