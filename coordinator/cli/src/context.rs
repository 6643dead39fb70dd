//! Contexts: which coordinators to talk to, and as whom. `sealift context list|use`, and what every other command loads.
//!
//! A context is a TOML file (paths in it are relative to the file): written by `sealift-coordinator dev` as
//! `DIR/context.toml`, or kept in `~/.config/sealift/contexts/NAME.toml`. `~/.config/sealift/current` names the one that
//! is used where neither `--context` nor `SEALIFT_CONTEXT` says otherwise.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use sealift_common::id::Sha256;
use sealift_common::name::Name;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Error, Exit, Result, because};
use crate::ui::{Change, Ui};

/// Which coordinators to talk to, and as whom; all paths absolute or relative to the working directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// What it is called.
    pub name: Name,
    /// `https://HOST:PORT`, tried in this order.
    pub coordinators: Vec<Url>,
    /// PEM file with the CA that the coordinators' certificates must come from.
    pub ca: PathBuf,
    /// PEM file with the admin's client certificate.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// The root key file that `trust set` signs with where `--root-key` is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_key: Option<PathBuf>,
    /// Fingerprints of the root keys that the trust policy must be signed by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub root_key_sha256: Vec<String>,
    /// How many of them must sign the first policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_threshold: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContextFile {
    context: Context,
}

impl Context {
    /// The context that is meant: `chosen` (a file or a name), else the current one.
    ///
    /// # Errors
    /// Exit code 2 where there is none, or its file is not as it must be.
    pub fn load(chosen: Option<&str>) -> Result<Self> {
        match chosen {
            Some(text) if is_path(text) => Self::read(Path::new(text)),
            Some(text) => Self::read(&named(text)?),
            None => {
                let current = home()?.join("current");
                let name = fs::read_to_string(&current).map_err(|_| {
                    Error::usage(
                        "no context is chosen: say --context FILE (sealift-coordinator dev writes DIR/context.toml), \
                         or choose one with `sealift context use`",
                    )
                })?;
                Self::read(&named(name.trim())?)
            }
        }
    }

    fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path)
            .map_err(because(Exit::Usage, format!("cannot read the context {shown}")))?;
        let file: ContextFile = toml::from_str(&text)
            .map_err(because(Exit::Usage, format!("the context {shown} is not as it must be")))?;
        let mut context = file.context;
        let base = path.parent().unwrap_or(Path::new("."));
        for relative in [&mut context.ca, &mut context.certificate, &mut context.key]
            .into_iter()
            .chain(&mut context.root_key)
        {
            *relative = base.join(&relative);
        }
        context.check(path)?;
        Ok(context)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let shown = path.display();
        if self.coordinators.is_empty() {
            return Err(Error::usage(format!(
                "the context {shown} names no coordinator: add coordinators = [\"https://HOST:7443\"]"
            )));
        }
        if let Some(url) =
            self.coordinators.iter().find(|url| url.scheme() != "https" || url.host_str().is_none())
        {
            return Err(Error::usage(format!(
                "the context {shown} names the coordinator {url}: it must be https://HOST:PORT"
            )));
        }
        for pin in &self.root_key_sha256 {
            pin.parse::<Sha256>().map_err(because(
                Exit::Usage,
                format!("root_key_sha256 in the context {shown} is not as it must be"),
            ))?;
        }
        Ok(())
    }
}

/// `a/b.toml`, `./x` and `x.toml` are files; everything else is a name.
fn is_path(text: &str) -> bool {
    text.contains('/') || Path::new(text).extension().is_some_and(|e| e == "toml")
}

/// `$XDG_CONFIG_HOME/sealift`, or `~/.config/sealift`.
fn home() -> Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME")) {
        (Some(dir), _) if !dir.is_empty() => PathBuf::from(dir),
        (_, Some(dir)) if !dir.is_empty() => Path::new(&dir).join(".config"),
        _ => return Err(Error::usage("neither HOME nor XDG_CONFIG_HOME is set: say --context FILE")),
    };
    Ok(base.join("sealift"))
}

fn named(name: &str) -> Result<PathBuf> {
    let name: Name = name.parse().map_err(because(Exit::Usage, "that is not the name of a context"))?;
    let path = home()?.join("contexts").join(format!("{name}.toml"));
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::new(
            Exit::NotFound,
            format!("there is no context {name} ({} is missing): see `sealift context list`", path.display()),
        ))
    }
}

/// `sealift context …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the contexts in ~/.config/sealift/contexts
    #[command(after_help = "Example:\n  sealift context list")]
    List,
    /// Choose the context that commands use from now on
    #[command(
        after_help = "Examples:\n  sealift context use production\n  sealift context use /srv/sealift/context.toml     (is added to the list first)"
    )]
    Use(UseArgs),
}

/// `sealift context use`
#[derive(Debug, Args)]
pub struct UseArgs {
    /// Name of a context, or a context file to add
    #[arg(value_name = "NAME|FILE")]
    context: String,
    #[command(flatten)]
    change: Change,
}

#[derive(Serialize)]
struct View {
    name: String,
    current: bool,
    coordinators: Vec<String>,
    path: PathBuf,
}

/// Runs `sealift context …`.
pub fn run(ui: &Ui, command: Command) -> Result<Exit> {
    match command {
        Command::List => list(ui),
        Command::Use(args) => choose(ui, &args),
    }
}

fn list(ui: &Ui) -> Result<Exit> {
    let home = home()?;
    let current = fs::read_to_string(home.join("current")).unwrap_or_default();
    let mut views = Vec::new();
    let entries = fs::read_dir(home.join("contexts")).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "toml"))
    {
        match Context::read(&path) {
            Ok(context) => views.push(View {
                current: context.name.as_str() == current.trim(),
                name: context.name.to_string(),
                coordinators: context.coordinators.iter().map(ToString::to_string).collect(),
                path,
            }),
            Err(error) => ui.warn(crate::error::chain(&error)),
        }
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    ui.list(&views, &["", "name", "coordinators"], |view| {
        vec![if view.current { "*" } else { "" }.to_owned(), view.name.clone(), view.coordinators.join(" ")]
    })?;
    if views.is_empty() {
        ui.note("`sealift context use FILE` adds one (sealift-coordinator dev writes DIR/context.toml)");
    }
    Ok(Exit::Done)
}

fn choose(ui: &Ui, args: &UseArgs) -> Result<Exit> {
    let home = home()?;
    let context = if is_path(&args.context) {
        let mut context = Context::read(Path::new(&args.context))?;
        let full = |path: &PathBuf| {
            fs::canonicalize(path)
                .map_err(because(Exit::Usage, format!("the context names {}", path.display())))
        };
        context.ca = full(&context.ca)?;
        context.certificate = full(&context.certificate)?;
        context.key = full(&context.key)?;
        context.root_key = context.root_key.as_ref().map(full).transpose()?;
        context
    } else {
        Context::read(&named(&args.context)?)?
    };
    let name = context.name.clone();
    if args.change.dry_run {
        ui.note(format!("would use the context {name}"));
        return Ok(Exit::Done);
    }
    if is_path(&args.context) {
        let text = toml::to_string(&ContextFile { context })
            .map_err(because(Exit::Failed, "cannot write the context"))?;
        write_whole(&home.join("contexts").join(format!("{name}.toml")), &text)?;
    }
    write_whole(&home.join("current"), &format!("{name}\n"))?;
    ui.note(format!("commands now use the context {name}"));
    Ok(Exit::Done)
}

/// Writes a file so that it is either the old or the new one, never half.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let failed = || because(Exit::Failed, format!("cannot write {}", path.display()));
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(failed())?;
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed())?;
    file.write_all(text.as_bytes()).map_err(failed())?;
    file.persist(path).map_err(|error| failed()(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, body: &str) -> PathBuf {
        let path = dir.join("context.toml");
        fs::write(&path, body).unwrap();
        path
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(
            dir.path(),
            "[context]\nname = \"dev\"\ncoordinators = [\"https://127.0.0.1:7443\"]\nca = \"ca.pem\"\n\
             certificate = \"admin.pem\"\nkey = \"/abs/admin.key\"\nroot_key = \"root.key\"\n",
        );
        let context = Context::load(path.to_str()).unwrap();
        assert_eq!(context.ca, dir.path().join("ca.pem"));
        assert_eq!(context.key, Path::new("/abs/admin.key"));
        assert_eq!(context.root_key, Some(dir.path().join("root.key")));
    }

    #[test]
    fn a_bad_context_is_one_clear_usage_error() {
        let dir = tempfile::tempdir().unwrap();
        let base = "[context]\nname = \"dev\"\nca = \"c\"\ncertificate = \"a\"\nkey = \"k\"\n";
        for (body, says) in [
            (format!("{base}coordinators = []\n"), "names no coordinator"),
            (format!("{base}coordinators = [\"http://x:1\"]\n"), "must be https"),
            (format!("{base}coordinators = [\"https://x:1\"]\ntypo = 1\n"), "typo"),
            (
                format!("{base}coordinators = [\"https://x:1\"]\nroot_key_sha256 = [\"abc\"]\n"),
                "root_key_sha256",
            ),
        ] {
            let error = Context::load(write(dir.path(), &body).to_str()).unwrap_err();
            assert_eq!(error.exit(), Exit::Usage);
            assert!(crate::error::chain(&error).contains(says), "{}", crate::error::chain(&error));
        }
    }
}
