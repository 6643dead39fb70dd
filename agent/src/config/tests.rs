use std::os::unix::fs::PermissionsExt;

use super::*;

const HEAD: &str = "coordinators = [\"https://backup.example.com:7443\"]\n";

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

fn load(text: &str) -> Result<Config, ConfigError> {
    load_with(text, 0o640, &Environment::fixed([]))
}

fn load_with(text: &str, mode: u32, environment: &Environment) -> Result<Config, ConfigError> {
    let files = Files::new();
    Config::load(&files.write("agent.toml", text, mode), environment)
}

#[test]
fn the_example_is_a_configuration() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/agent.toml");
    let text = fs::read_to_string(example).unwrap();
    // Also with every commented-out key put in force.
    let all: Vec<_> = text
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line))
        .collect();
    let config = load(&text).unwrap();
    assert_eq!(config.sources.len(), 5);
    assert!(config.warnings.is_empty());
    let config = load(&all.join("\n")).unwrap();
    assert_eq!(config.upload.bandwidth(), Some(20 << 20));
    assert!(config.telemetry.otlp_endpoint.is_some() && config.s3.ca.is_some());
}

#[test]
fn a_minimal_configuration_has_gentle_defaults() {
    let config = load(HEAD).unwrap();
    assert_eq!(config.state_dir.as_path(), Path::new("/var/lib/sealift-agent"));
    assert_eq!(config.backup.stall_timeout().as_secs(), 1800);
    assert_eq!(config.backup.max_duration().as_secs(), 86400);
    assert_eq!((config.backup.compression_level(), config.process.nice()), (3, 10));
    assert_eq!(config.upload.bandwidth(), None);
}

#[test]
fn mistakes_are_named_with_their_line() {
    let directory = "[[source]]\nname = \"d\"\nkind = \"directory\"\npath = \"/srv\"\n";
    let with = |extra: &str| format!("{HEAD}{directory}{extra}\n");
    for (text, line, part) in [
        (format!("{HEAD}colour = 1\n"), 2, "colour"),
        (with("exlude = []"), 6, "exlude"),
        (with("exclude = [\"[\"]"), 6, "["),
        (with("[log]\nlevl = \"info\""), 7, "levl"),
        (with("[log]\nlevel = \"loud\""), 7, "loud"),
        (with("[upload]\nbandwidth = \"fast\""), 7, "fast"),
        (with("[backup]\ncompression_level = 40"), 7, "40"),
        (with("[process]\nnice = -5"), 7, "-5"),
        (with("[s3]\nclient_key = \"/k\""), 1, "together"),
        (with("[telemetry]\notlp_endpoint = \"http://otel.example.com\""), 7, "https://"),
        (with(directory), 1, "two sources"),
        (format!("{HEAD}[[source]]\nname = \"Bad Name\"\nkind = \"sqlite\"\npath = \"/x\"\n"), 3, "Bad Name"),
        (format!("{HEAD}[[source]]\nname = \"x\"\nkind = \"oracle\"\n"), 2, "oracle"),
        (format!("{HEAD}[[source]]\nname = \"x\"\n"), 2, "kind"),
        (format!("{HEAD}[[source]]\nkind = \"sqlite\"\n"), 2, "name"),
        (format!("{HEAD}[[source]]\nname = \"x\"\nkind = \"sqlite\"\n"), 2, "path"),
        (format!("{HEAD}[[source]]\nname = \"x\"\nkind = \"sqlite\"\npath = \"/a/../b\"\n"), 5, ".."),
        (
            format!("{HEAD}[[source]]\nname = \"x\"\nkind = \"mysql\"\nurl = \"postgres://h/\"\n"),
            2,
            "mysql://",
        ),
        (
            format!(
                "{HEAD}[[source]]\nname = \"x\"\nkind = \"postgres\"\nurl = \"postgres://h/\"\ndatabases = [\"a\", \"a\"]\n"
            ),
            6,
            "twice",
        ),
        ("coordinators = [\"http://backup.example.com\"]\n".to_owned(), 1, "in clear"),
        ("coordinators = []\n".to_owned(), 1, "1 to 16"),
        ("state_dir = \"/x\"\n".to_owned(), 1, "coordinators"),
        (format!("{HEAD}state_dir = \"${{NOT_SET}}\"\n"), 2, "NOT_SET"),
        (format!("{HEAD}source = 1\n"), 2, "[[source]]"),
        (format!("{HEAD}not toml\n"), 2, ""),
    ] {
        let error = load(&text).unwrap_err();
        let ConfigError::Invalid { line: found, problem, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*found, line, "{text}\n{error}");
        assert!(problem.contains(part), "{part:?} in {error}");
    }
}

#[test]
fn passwords_come_by_reference_name_or_index() {
    let server = |name: &str, extra: &str| {
        format!(
            "[[source]]\nname = \"{name}\"\nkind = \"postgres\"\nurl = \"postgres://b@localhost/\"\n{extra}\n"
        )
    };
    let sqlite = "[[source]]\nname = \"s\"\nkind = \"sqlite\"\npath = \"/x\"\n";
    let text = format!(
        "{HEAD}{}{sqlite}{}{}{}",
        server("first", "password = \"${GIVEN}\""),
        server("main-db", ""),
        server("third", ""),
        server("fourth", "")
    );
    let environment = Environment::fixed([
        ("GIVEN", "a"),
        ("DB_FIRST_PASSWORD", "not this"),
        ("DB_MAIN_DB_PASSWORD", "b"),
        ("DB_1_PASSWORD", "not this"),
        ("DB_2_PASSWORD", "c"),
    ]);
    let config = load_with(&text, 0o640, &environment).unwrap();
    let password = |name: &str| {
        let credential = config.source(name).unwrap().password(&environment).unwrap();
        credential.map(|c| (c.value.expose().clone(), c.origin))
    };
    let own = |value: &str, origin: &str| Some((value.to_owned(), origin.to_owned()));
    assert_eq!(password("first"), own("a", "env:GIVEN"));
    assert_eq!(password("main-db"), own("b", "env:DB_MAIN_DB_PASSWORD"));
    assert_eq!(password("third"), own("c", "env:DB_2_PASSWORD"));
    assert_eq!(password("fourth"), None);
    assert_eq!(config.source("third").unwrap().credential_origins(&environment), ["env:DB_2_PASSWORD"]);
    let clash = format!("{HEAD}{}{}", server("a-b", ""), server("a.b", ""));
    assert!(load(&clash).unwrap_err().to_string().contains("DB_A_B_PASSWORD"));
}

#[test]
fn an_open_file_holds_no_secret_and_is_reported() {
    let with_secret = format!(
        "{HEAD}[[source]]\nname = \"x\"\nkind = \"postgres\"\nurl = \"postgres://b@h/\"\npassword = \"hunter2\"\n"
    );
    let none = Environment::fixed([]);
    assert!(load_with(&with_secret, 0o600, &none).is_ok());
    for mode in [0o640, 0o644] {
        let error = load_with(&with_secret, mode, &none).unwrap_err().to_string();
        assert!(error.contains("chmod 0600") && !error.contains("hunter2"), "{error}");
    }
    assert!(load_with(HEAD, 0o666, &none).unwrap_err().to_string().contains("chmod 0640"));
    let warnings = load_with(HEAD, 0o644, &none).unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("chmod 0640"), "{warnings:?}");
    let token = format!(
        "{HEAD}[[source]]\nname=\"c\"\nkind=\"command\"\ncommand=[\"true\"]\nenv={{ API_TOKEN = \"t\" }}\n"
    );
    assert!(load_with(&token, 0o640, &none).is_err());
    assert!(load_with(&token.replace("API_TOKEN", "LANG"), 0o640, &none).is_ok());
}

#[test]
fn sources_d_is_read_in_order_and_holds_sources_alone() {
    let files = Files::new();
    let source = |name: &str| format!("[[source]]\nname = \"{name}\"\nkind = \"sqlite\"\npath = \"/x\"\n");
    let main = files.write("agent.toml", &format!("{HEAD}{}", source("main")), 0o640);
    files.write("sources.d/20-b.toml", &source("b"), 0o640);
    files.write("sources.d/10-a.toml", &source("a"), 0o640);
    files.write("sources.d/README", "not toml", 0o640);
    let environment = Environment::fixed([]);
    let config = Config::load(&main, &environment).unwrap();
    let names: Vec<_> = config.sources.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["main", "a", "b"]);
    files.write("sources.d/30-c.toml", "coordinators = []\n", 0o640);
    let error = Config::load(&main, &environment).unwrap_err().to_string();
    assert!(error.contains("30-c.toml, line 1") && error.contains("coordinators"), "{error}");
}
