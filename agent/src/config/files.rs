//! Sources that are files of this host, or what a command of this host prints.

use std::collections::BTreeMap;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::Deserialize;

use super::secret::{SecretRef, variable_name};
use super::values::AbsolutePath;

/// Most patterns, arguments or variables of one source.
const MAX_ITEMS: usize = 1_000;
/// Longest pattern or argument, in bytes.
const MAX_ITEM: usize = 32 * 1024;

/// `kind = "sqlite"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sqlite {
    /// The database file.
    pub path: AbsolutePath,
}

/// `kind = "directory"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// The directory; may itself be a symbolic link, what is in it is never followed.
    pub path: AbsolutePath,
    /// What to leave out.
    #[serde(default)]
    pub exclude: Exclude,
    /// Whether file systems mounted below are left out.
    #[serde(default)]
    pub one_filesystem: bool,
}

/// `kind = "command"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Program and arguments; no shell.
    pub command: Arguments,
    /// Variables for it; it gets no others but `PATH`, `HOME`, `TMPDIR` and `LC_ALL`.
    #[serde(default)]
    pub env: Variables,
}

/// A program and its arguments.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Arguments(Vec<String>);

impl Arguments {
    /// The program: an absolute path, or a name to be found on `PATH`.
    pub fn program(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// What it is given.
    pub fn arguments(&self) -> &[String] {
        self.0.get(1..).unwrap_or_default()
    }
}

impl TryFrom<Vec<String>> for Arguments {
    type Error = String;
    fn try_from(items: Vec<String>) -> Result<Self, String> {
        let Some(program) = items.first().filter(|program| !program.is_empty()) else {
            return Err(
                "command names a program and its arguments: [\"/usr/bin/program\", \"--option\"]".to_owned()
            );
        };
        if program.contains('/') {
            AbsolutePath::try_from(program.clone())?;
        }
        if items.len() > MAX_ITEMS || items.iter().any(|item| item.len() > MAX_ITEM || item.contains('\0')) {
            return Err(format!("command has at most {MAX_ITEMS} arguments of at most {MAX_ITEM} bytes"));
        }
        Ok(Self(items))
    }
}

/// Environment variables of a command; their values may be secrets.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "BTreeMap<String, SecretRef>")]
pub struct Variables(BTreeMap<String, SecretRef>);

impl Variables {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &SecretRef)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl TryFrom<BTreeMap<String, SecretRef>> for Variables {
    type Error = String;
    fn try_from(map: BTreeMap<String, SecretRef>) -> Result<Self, String> {
        if map.len() > MAX_ITEMS {
            return Err(format!("env has at most {MAX_ITEMS} variables"));
        }
        map.keys().try_for_each(|name| variable_name(name).map(drop))?;
        Ok(Self(map))
    }
}

/// Whether the value of a variable with this name is to be guarded even where it stands in the configuration.
pub(crate) fn looks_secret(variable: &str) -> bool {
    ["PASS", "PWD", "SECRET", "TOKEN", "KEY"].iter().any(|part| variable.to_ascii_uppercase().contains(part))
}

/// Patterns of what a directory backup leaves out.
///
/// A pattern without `/` is matched against the name of every entry, at any depth (`*.log`). One with `/` is matched
/// against the whole path below the directory (`tmp/*`, `/cache`); there `*` stays within one level and `**` does not.
/// A `/` at the end means directories alone. What is left out is not looked into.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Exclude {
    names: GlobSet,
    paths: GlobSet,
    directory_names: GlobSet,
    directory_paths: GlobSet,
}

impl Exclude {
    /// Whether the entry at `path` (below the directory) is left out.
    pub fn matches(&self, path: &Path, is_directory: bool) -> bool {
        let name = path.file_name().map_or(path, Path::new);
        self.names.is_match(name)
            || self.paths.is_match(path)
            || (is_directory && (self.directory_names.is_match(name) || self.directory_paths.is_match(path)))
    }
}

impl TryFrom<Vec<String>> for Exclude {
    type Error = String;
    fn try_from(patterns: Vec<String>) -> Result<Self, String> {
        if patterns.len() > MAX_ITEMS {
            return Err(format!("{} patterns, at most {MAX_ITEMS}", patterns.len()));
        }
        let mut sets = [const { Vec::new() }; 4];
        for pattern in &patterns {
            if pattern.len() > MAX_ITEM || pattern.split('/').any(|part| part == "..") {
                return Err(format!("the pattern {pattern:?} is too long or contains \"..\""));
            }
            let (body, directories) =
                pattern.strip_suffix('/').map_or((pattern.as_str(), 0), |body| (body, 2));
            let in_path = usize::from(body.contains('/'));
            let body = body.strip_prefix('/').unwrap_or(body);
            let glob = GlobBuilder::new(body).literal_separator(true).backslash_escape(true).build();
            sets[directories + in_path]
                .push(glob.map_err(|e| format!("the pattern {pattern:?} cannot be read: {}", e.kind()))?);
        }
        let compiled = |globs: Vec<globset::Glob>| {
            let mut set = GlobSetBuilder::new();
            for glob in globs {
                set.add(glob);
            }
            set.build().map_err(|e| format!("the patterns cannot be used together: {e}"))
        };
        let [names, paths, directory_names, directory_paths] = sets;
        Ok(Self {
            names: compiled(names)?,
            paths: compiled(paths)?,
            directory_names: compiled(directory_names)?,
            directory_paths: compiled(directory_paths)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_their_documentation_says() {
        let patterns = ["*.log", "tmp/*", "/top", "cache/", "a/**/z"].map(str::to_owned).to_vec();
        let exclude = Exclude::try_from(patterns).unwrap();
        for (path, directory, out) in [
            ("x.log", false, true),
            ("deep/er/x.log", false, true),
            ("x.log.gz", false, false),
            ("tmp", true, false),
            ("tmp/x", false, true),
            ("tmp/d", true, true),
            ("other/tmp/x", false, false),
            ("top", false, true),
            ("deep/top", false, false),
            ("deep/cache", true, true),
            ("deep/cache", false, false),
            ("a/b/c/z", false, true),
        ] {
            assert_eq!(exclude.matches(Path::new(path), directory), out, "{path}");
        }
        assert!(Exclude::try_from(vec!["[".to_owned()]).is_err());
        assert!(Exclude::try_from(vec!["../x".to_owned()]).is_err());
    }

    #[test]
    fn commands_are_argument_arrays() {
        for bad in [vec![], vec![""], vec!["./x"], vec!["/a/../b"], vec!["x\0"]] {
            assert!(
                Arguments::try_from(bad.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).is_err(),
                "{bad:?}"
            );
        }
    }
}
