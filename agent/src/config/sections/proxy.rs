//! `[proxy]`: the way out of networks that have a proxy.

use serde::Deserialize;

use sealift_common::proxy::{self, NoProxy};

use crate::config::ConfigError;
use crate::config::secret::{Environment, SecretRef};

/// An HTTPS proxy (CONNECT), for the session and for PUTs. Without `url`, `HTTPS_PROXY` and `NO_PROXY` of the environment count.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxy {
    /// `http://HOST:PORT`; no password in it.
    url: Option<String>,
    /// Who asks, where the proxy wants to know.
    user: Option<String>,
    /// Its password.
    password: Option<SecretRef>,
    /// Hosts, domains and networks that are reached without it.
    no_proxy: Vec<String>,
    /// Whether the environment's variables count where there is no `url`.
    from_environment: bool,
}

impl Default for Proxy {
    fn default() -> Self {
        Self { url: None, user: None, password: None, no_proxy: Vec::new(), from_environment: true }
    }
}

impl Proxy {
    /// What is wrong with the section as a whole.
    pub(in crate::config) fn problem(&self) -> Option<String> {
        if self.user.is_some() != self.password.is_some() {
            return Some("[proxy] needs user and password together".to_owned());
        }
        let Some(url) = &self.url else {
            let needs = self.user.is_some() || !self.no_proxy.is_empty();
            return needs.then(|| "[proxy] needs url = \"http://HOST:PORT\"".to_owned());
        };
        if url.contains('@') {
            return Some("[proxy] url must not contain a user or password: use user and password".to_owned());
        }
        proxy::Proxy::new(url, NoProxy::default()).err().map(|error| format!("[proxy] url: {error}"))
    }

    /// Whether a password stands in the configuration itself.
    pub(in crate::config) fn holds_literal_secret(&self) -> bool {
        self.password.as_ref().is_some_and(SecretRef::is_literal)
    }

    /// The proxy as it is now: passwords are read anew each time.
    ///
    /// # Errors
    /// [`ConfigError::Secret`] where the password cannot be had, or the environment's value makes no sense.
    pub fn resolve(&self, environment: &Environment) -> Result<Option<proxy::Proxy>, ConfigError> {
        let Some(url) = &self.url else {
            return if self.from_environment { of_environment(environment) } else { Ok(None) };
        };
        let bad = |error: proxy::InvalidProxy| ConfigError::Secret {
            origin: "[proxy]".to_owned(),
            problem: error.to_string(),
        };
        let direct = NoProxy::parse(self.no_proxy.iter().map(String::as_str));
        let proxy = proxy::Proxy::new(url, direct).map_err(bad)?;
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => {
                proxy.with_credentials(user, &password.resolve(environment)?).map(Some).map_err(bad)
            }
            _ => Ok(Some(proxy)),
        }
    }
}

/// What `HTTPS_PROXY` and `NO_PROXY` say; the lower-case names count first, as for curl.
///
/// # Errors
/// [`ConfigError::Secret`], naming the variable: its value may hold a password.
pub fn of_environment(environment: &Environment) -> Result<Option<proxy::Proxy>, ConfigError> {
    let get = |names: [&'static str; 2]| {
        let found = |name| {
            environment.get(name).filter(|value| !value.expose().is_empty()).map(|value| (name, value))
        };
        names.into_iter().find_map(found)
    };
    let Some((name, address)) = get(["https_proxy", "HTTPS_PROXY"]) else { return Ok(None) };
    let direct = get(["no_proxy", "NO_PROXY"]);
    let direct = direct.map_or_else(NoProxy::default, |(_, list)| NoProxy::parse(list.expose().split(',')));
    proxy::Proxy::new(address.expose(), direct)
        .map(Some)
        .map_err(|error| ConfigError::Secret { origin: format!("env:{name}"), problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_counts_before_the_environment() {
        let environment = Environment::fixed([
            ("HTTPS_PROXY", "http://env.test:1"),
            ("NO_PROXY", "s3.test"),
            ("PW", "secret"),
        ]);
        let address = |section: &Proxy| section.resolve(&environment).unwrap().map(|proxy| proxy.address());
        assert_eq!(address(&Proxy::default()).as_deref(), Some("http://env.test:1"));
        let off = Proxy { from_environment: false, ..Proxy::default() };
        assert_eq!(address(&off), None);
        let proxy = of_environment(&environment).unwrap().unwrap();
        assert!(proxy.covers("backup.test", 443) && !proxy.covers("s3.test", 443));
        let own: Proxy =
            toml::from_str("url = \"http://own.test:2\"\nuser = \"till\"\npassword = \"${PW}\"\n").unwrap();
        assert_eq!(own.problem(), None);
        let own = own.resolve(&environment).unwrap().unwrap();
        assert_eq!((own.address().as_str(), own.covers("s3.test", 443)), ("http://own.test:2", true));
        assert_eq!(own.authorization().unwrap().expose(), "Basic dGlsbDpzZWNyZXQ=");
    }

    #[test]
    fn half_a_section_is_refused() {
        for (text, says) in [
            ("user = \"x\"", "together"),
            ("no_proxy = [\"x\"]", "url"),
            ("url = \"socks5://x\"", "http://HOST:PORT"),
            ("url = \"http://u:p@x:1\"", "user and password"),
        ] {
            let problem = toml::from_str::<Proxy>(text).unwrap().problem().unwrap();
            assert!(problem.contains(says), "{problem}");
        }
        let bad = Environment::fixed([("https_proxy", "ftp://till:hunter2@x")]);
        let error = of_environment(&bad).unwrap_err().to_string();
        assert!(error.contains("env:https_proxy") && !error.contains("hunter2"), "{error}");
    }
}
